//! What of the images of a node others are told: which are here, and which cannot run here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use wherry_resources::offers::{ENTRIES_MAX, Refused};

/// Images that a Node's status names, the largest first: as many as a kubelet names.
const PRESENT_MAX: usize = 50;

/// Locked for short copies only.
#[derive(Default)]
pub struct Shown(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Bytes by name.
    present: BTreeMap<String, u64>,
    refused: Refused,
}

impl Shown {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image is here.
    pub fn add(&self, image: &str, bytes: u64) {
        self.known().present.insert(image.to_owned(), bytes);
    }

    /// The image can run here: another content may lie under a name that was refused.
    pub fn accept(&self, image: &str) {
        self.known().refused.remove(image);
    }

    /// The image lacks these imports here.
    pub fn refuse(&self, image: &str, missing: &[String]) {
        let mut known = self.known();
        if known.refused.len() < ENTRIES_MAX {
            let missing: BTreeSet<String> = missing.iter().take(ENTRIES_MAX).cloned().collect();
            known.refused.insert(image.to_owned(), missing);
        }
    }

    /// Names and bytes of images, the largest first.
    pub fn present(&self) -> Vec<(String, u64)> {
        let known = self.known();
        let mut all: Vec<(String, u64)> =
            known.present.iter().map(|(name, bytes)| (name.clone(), *bytes)).collect();
        all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        all.truncate(PRESENT_MAX);
        all
    }

    /// Images that cannot run here, and why.
    pub fn refused(&self) -> Refused {
        self.known().refused.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_content_gets_another_try() {
        let shown = Shown::default();
        shown.add("a:1", 10);
        shown.add("b:1", 20);
        shown.refuse("a:1", &["x:y/z@1.0.0".to_owned()]);
        assert_eq!(shown.present()[0], ("b:1".to_owned(), 20));
        assert_eq!(shown.refused()["a:1"].len(), 1);
        shown.add("a:1", 11);
        assert_eq!(shown.refused()["a:1"].len(), 1, "it is not yet known to run");
        shown.accept("a:1");
        assert!(shown.refused().is_empty());
    }
}
