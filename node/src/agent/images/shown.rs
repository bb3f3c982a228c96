//! What of the images of a node others are told: which are here, and which cannot run here.
//!
//! The scheduler sends no Pod here whose image was refused, so nothing but this node can take a
//! refusal back. It ends when the name stands for another content, and when no Pod of this node
//! wants the image any more: whoever comes next may try, since the name may have been pushed anew.

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
    /// By name: which layer, and what that lacks.
    refused: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl Shown {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image is here, with this layer.
    pub fn add(&self, image: &str, layer: &str, bytes: u64) {
        let mut known = self.known();
        known.present.insert(image.to_owned(), bytes);
        if known.refused.get(image).is_some_and(|(refused, _)| refused != layer) {
            known.refused.remove(image);
        }
    }

    /// The image can run here.
    pub fn accept(&self, image: &str) {
        self.known().refused.remove(image);
    }

    /// The image, with this layer, lacks these imports here.
    pub fn refuse(&self, image: &str, layer: &str, missing: &[String]) {
        let mut known = self.known();
        if known.refused.len() < ENTRIES_MAX || known.refused.contains_key(image) {
            let missing: BTreeSet<String> = missing.iter().take(ENTRIES_MAX).cloned().collect();
            known.refused.insert(image.to_owned(), (layer.to_owned(), missing));
        }
    }

    /// Forgets refusals of images that no Pod wants.
    pub fn keep_refused(&self, is_wanted: impl Fn(&str) -> bool) {
        self.known().refused.retain(|image, _| is_wanted(image));
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
        let known = self.known();
        let all = known.refused.iter();
        all.map(|(image, (_, missing))| (image.clone(), missing.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_content_gets_another_try() {
        let shown = Shown::default();
        shown.add("a:1", "old", 10);
        shown.add("b:1", "other", 20);
        shown.refuse("a:1", "old", &["x:y/z@1.0.0".to_owned()]);
        assert_eq!(shown.present()[0], ("b:1".to_owned(), 20));
        assert_eq!(shown.refused()["a:1"].len(), 1);
        shown.add("a:1", "old", 10);
        assert_eq!(shown.refused()["a:1"].len(), 1, "it is the same");
        shown.add("a:1", "new", 11);
        assert!(shown.refused().is_empty());
    }

    /// Nobody else could take it back: no Pod comes here that would have the name read anew.
    #[test]
    fn who_comes_when_no_pod_wants_a_refused_image_may_try_again() {
        let shown = Shown::default();
        for image in ["a:1", "b:1"] {
            shown.refuse(image, "layer", &["x:y/z@1.0.0".to_owned()]);
        }
        shown.keep_refused(|image| image == "b:1");
        assert_eq!(shown.refused().into_keys().collect::<Vec<_>>(), ["b:1"]);
        shown.accept("b:1");
        assert!(shown.refused().is_empty());
    }
}
