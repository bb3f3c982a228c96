//! Which images go when the disk gets full: as the kubelet decides it, by thresholds and last use.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

/// Images used more recently than this stay: they were just pulled for a Pod that starts.
const AGE_MIN: Duration = Duration::from_secs(120);

/// From which use of the disk on images are removed, and down to which, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Nothing is removed below it.
    pub high: u8,
    /// Removing ends here.
    pub low: u8,
}

impl Default for Thresholds {
    /// Those of the kubelet.
    fn default() -> Thresholds {
        Thresholds { high: 85, low: 80 }
    }
}

/// An image on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Digest of its Wasm.
    pub layer: String,
    /// Digests of the manifests that led to it.
    pub manifests: BTreeSet<String>,
    /// Wasm and compiled code.
    pub bytes: u64,
    /// When a start last wanted it.
    pub used: Timestamp,
}

impl Kept {
    fn is_used(&self, used: &BTreeSet<String>) -> bool {
        used.contains(&self.layer) || self.manifests.iter().any(|digest| used.contains(digest))
    }
}

/// How many bytes must go. `disk` is what is available and all there is; `all` is for a disk under
/// pressure: then everything that is not used may go.
pub fn excess(disk: (u64, u64), thresholds: Thresholds, all: bool) -> u64 {
    let (free, total) = disk;
    if all {
        return u64::MAX;
    }
    let used = total.saturating_sub(free);
    let part = |percent: u8| total / 100 * u64::from(percent);
    if used < part(thresholds.high) {
        return 0;
    }
    used.saturating_sub(part(thresholds.low))
}

/// The images to remove, the longest unused first, until `bytes` are free. `used` are digests of
/// manifests or layers that Pods of this node have.
pub fn plan(
    mut images: Vec<Kept>,
    used: &BTreeSet<String>,
    bytes: u64,
    now: Timestamp,
) -> Vec<Kept> {
    images.retain(|image| !image.is_used(used) && image.used + AGE_MIN <= now);
    images.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.layer.cmp(&b.layer)));
    let mut freed = 0;
    images
        .into_iter()
        .take_while(|image| {
            let go = freed < bytes;
            freed = freed.saturating_add(image.bytes);
            go
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layer: &str, manifest: &str, bytes: u64, used: i64) -> Kept {
        Kept {
            layer: layer.to_owned(),
            manifests: BTreeSet::from([manifest.to_owned()]),
            bytes,
            used: Timestamp::from_second(used).expect("a time"),
        }
    }

    #[test]
    fn only_a_full_disk_has_an_excess() {
        let thresholds = Thresholds::default();
        assert_eq!(excess((200, 1000), thresholds, false), 0);
        assert_eq!(excess((100, 1000), thresholds, false), 100);
        assert_eq!(excess((900, 1000), thresholds, true), u64::MAX);
    }

    #[test]
    fn the_longest_unused_go_first_and_what_is_used_stays() {
        let images = || {
            vec![
                image("new", "m-new", 10, 990),
                image("late", "m-late", 10, 300),
                image("first", "m-first", 10, 100),
                image("in-use", "m-used", 10, 50),
                image("laid", "m-laid", 10, 40),
            ]
        };
        let used = BTreeSet::from(["m-used".to_owned(), "laid".to_owned()]);
        let now = Timestamp::from_second(1000).expect("a time");
        let gone = |bytes| {
            let plan = plan(images(), &used, bytes, now);
            plan.iter().map(|image| image.layer.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(gone(0), "");
        assert_eq!(gone(5), "first");
        assert_eq!(gone(11), "first late");
        assert_eq!(gone(u64::MAX), "first late", "what was just pulled stays");
    }
}
