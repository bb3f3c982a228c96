//! What nodes tell the scheduler besides their status: which interfaces their workers offer, which
//! images they could not run for want of one, and how much CPU their Pods really use.
//!
//! All three are annotations of the Node, written by its agent when they change. What an image
//! imports is known to who has read it: the author (annotation [`IMPORTS`] of a Pod), and every node
//! that was given it. So a node that had to refuse an image speaks for all nodes that lack the same.
//!
//! Names are those of WIT (`wasi:http/types@0.2.3`), of modules of core imports
//! (`wasi_snapshot_preview1`), and of engine features (`wasm:simd`). An offer without the last part
//! of its version stands for all compatible ones: `wasi:http/types@0.2` offers 0.2.0 and 0.2.9.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// Annotation of a Node: a JSON array of names.
pub const OFFERS: &str = "wherry.dev/offers";
/// Annotation of a Node: JSON of [`Refused`].
pub const REFUSED: &str = "wherry.dev/refused-images";
/// Annotation of a Node: the text of [`Measured`].
pub const MEASURED: &str = "wherry.dev/measured-cpu";
/// Annotation of a Pod: names that its images import, with spaces or commas between them.
pub const IMPORTS: &str = "wherry.dev/imports";
/// Images, and Pods, that one Node speaks of: it is sent to every node of the cluster.
pub const ENTRIES_MAX: usize = 20;
/// A Pod that uses less CPU than this is nobody's bad neighbour.
pub const HEAVY_MILLIS: i64 = 100;

/// The imports that were missing, by the image's name.
pub type Refused = BTreeMap<String, BTreeSet<String>>;

/// CPU in thousandths of a core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Of all Pods of the node.
    pub cpu: i64,
    /// Of the heaviest of them, by uid.
    pub pods: BTreeMap<String, i64>,
}

impl Measured {
    /// From what each Pod uses, by uid.
    pub fn of(pods: &BTreeMap<String, i64>) -> Measured {
        let mut heavy: Vec<(&String, &i64)> =
            pods.iter().filter(|(_, cpu)| **cpu >= HEAVY_MILLIS).collect();
        heavy.sort_by_key(|(uid, cpu)| (-**cpu, *uid));
        let heavy = heavy.into_iter().take(ENTRIES_MAX);
        Measured {
            cpu: pods.values().sum(),
            pods: heavy.map(|(uid, cpu)| (uid.clone(), *cpu)).collect(),
        }
    }

    /// `{"cpu":899,"pods":{"UID":700}}`
    pub fn text(&self) -> String {
        json!({"cpu": self.cpu, "pods": self.pods}).to_string()
    }

    /// Reads such a text; none if it is none.
    pub fn read(text: &str) -> Option<Measured> {
        let value: Value = serde_json::from_str(text).ok()?;
        let pods = value["pods"].as_object()?.iter().take(ENTRIES_MAX);
        let pods = pods.filter_map(|(uid, cpu)| Some((uid.clone(), cpu.as_i64()?)));
        Some(Measured { cpu: value["cpu"].as_i64()?, pods: pods.collect() })
    }

    /// Whether somebody who decides by `other` would now decide otherwise: a figure moved by more
    /// than a tenth of the node's `capacity`, or another Pod is heavy.
    pub fn differs(&self, other: &Measured, capacity: i64) -> bool {
        let moved = |a: i64, b: i64| (a - b).abs() > (capacity / 10).max(HEAVY_MILLIS / 2);
        moved(self.cpu, other.cpu)
            || !self.pods.keys().eq(other.pods.keys())
            || self.pods.iter().any(|(uid, cpu)| moved(*cpu, other.pods[uid]))
    }
}

/// The names in a Pod's annotation.
pub fn imports(text: &str) -> impl Iterator<Item = String> + '_ {
    let separates = |letter: char| letter == ',' || letter.is_whitespace();
    text.split(separates).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Whether these offers serve an import.
pub fn serve(offers: &BTreeSet<String>, import: &str) -> bool {
    if offers.contains(import) {
        return true;
    }
    // An import of a core module is its module and its function.
    if let Some((module, _)) = import.split_once(' ') {
        return offers.contains(module);
    }
    let Some((name, version)) = import.split_once('@') else { return false };
    // Pre-releases match themselves alone.
    let mut numbers = version.split('.');
    let track = match (numbers.next(), numbers.next()) {
        _ if version.contains('-') => return false,
        (Some("0"), Some(minor)) => format!("{name}@0.{minor}"),
        (Some(major), _) => format!("{name}@{major}"),
        (None, _) => return false,
    };
    offers.contains(&track)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_serve_compatible_versions() {
        let offers = [
            "wasi:http/types@0.2",
            "wasi:config/store@0.2.0-rc.1",
            "a:b/c@1",
            "wasm:simd",
            "wasi_snapshot_preview1",
        ];
        let offers: BTreeSet<String> = offers.map(str::to_owned).into();
        for import in [
            "wasi:http/types@0.2.0",
            "wasi:http/types@0.2.9",
            "wasi:config/store@0.2.0-rc.1",
            "a:b/c@1.7.0",
            "wasm:simd",
            "wasi_snapshot_preview1 fd_write",
        ] {
            assert!(serve(&offers, import), "{import}");
        }
        for import in [
            "wasi:http/types@0.3.0",
            "wasi:http/types@0.2.0-rc.1",
            "wasi:http/handler@0.2.0",
            "wasi:config/store@0.2.0-rc.2",
            "a:b/c@2.0.0",
            "wasm:threads",
            "env now",
            "x",
        ] {
            assert!(!serve(&offers, import), "{import}");
        }
    }

    #[test]
    fn the_heaviest_pods_are_named() {
        let pods = [("a", 99), ("b", 700), ("c", 100)].map(|(uid, cpu)| (uid.to_owned(), cpu));
        let measured = Measured::of(&pods.into());
        assert_eq!(measured.cpu, 899);
        assert_eq!(measured.pods.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(Measured::read(&measured.text()), Some(measured.clone()));
        assert_eq!(Measured::read("{}"), None);
        let later = Measured { cpu: 950, ..measured.clone() };
        assert!(!later.differs(&measured, 2_000), "within a tenth");
        assert!(Measured { cpu: 1_200, ..measured.clone() }.differs(&measured, 2_000));
        assert!(Measured::default().differs(&measured, 2_000));
        assert_eq!(
            imports("a:b/c@1.0.0, wasm:simd\n").collect::<Vec<_>>(),
            ["a:b/c@1.0.0", "wasm:simd"]
        );
    }
}
