//! What a node tells of a Pod beside its status, as annotations that `kubectl describe` shows: what
//! the images of its containers import and export, and how long each part of a cold start took.
//!
//! ```text
//!   imports.wherry.dev/<container>      wasi:http/types@0.2.12, …
//!   exports.wherry.dev/<container>      wasi:http/incoming-handler@0.2.12
//!   cold-start.wherry.dev/<container>   queue 0.1 ms, pull 12 ms, compile 840 ms, prepare 1 ms, …
//!   state.wherry.dev/<container>        Idle, and Active again: of handlers that were idle once
//! ```
//!
//! These are the only measurements of a start: the dashboard reads them too.

use std::{collections::BTreeMap, time::Duration};

use super::starts::Part;
use crate::{compile::Image, protocol::StartTimes};

/// Names of one list that are told; a component has a few dozen.
const NAMES_MAX: usize = 64;

/// The agent's parts of a cold start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Asking the registry, and the download.
    pub pull: Duration,
    /// Compiling, or looking the code up.
    pub compile: Duration,
    /// Its environment and volumes.
    pub prepare: Duration,
}

/// The facts of one Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    annotations: BTreeMap<String, String>,
    took: BTreeMap<String, Took>,
    /// What the worker has told of each container's newest start.
    told: BTreeMap<String, StartTimes>,
}

impl Facts {
    /// By their names.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// A start was prepared.
    pub fn prepared(&mut self, container: &str, image: &Image, took: Took) {
        let mut tell = |what: &str, names: &[String]| {
            self.annotations.insert(format!("{what}.wherry.dev/{container}"), list(names));
        };
        tell("imports", &image.imports);
        tell("exports", &image.exports);
        self.took.insert(container.to_owned(), took);
        self.told.remove(container);
        self.tell_start(container, None);
    }

    /// The parts of a start that the worker tells of for the first time, with their microseconds.
    pub fn passed(&mut self, container: &str, times: &StartTimes) -> Vec<(Part, u64)> {
        if !self.took.contains_key(container) {
            return Vec::new();
        }
        let before = self.told.insert(container.to_owned(), *times).unwrap_or_default();
        let parts = [
            (Part::Load, before.load, times.load),
            (Part::Link, before.link, times.link),
            (Part::Instantiate, before.instantiate, times.instantiate),
            (Part::FirstByte, before.first_byte, times.first_byte),
        ];
        let new = parts.into_iter().filter(|(_, before, now)| *before == 0 && *now > 0);
        new.map(|(part, _, now)| (part, now)).collect()
    }

    /// The worker has told its part. Says whether that is news.
    pub fn started(&mut self, container: &str, times: &StartTimes) -> bool {
        self.took.contains_key(container) && self.tell_start(container, Some(times))
    }

    /// Whether a handler has given its code back. Says whether that is news.
    pub fn idle(&mut self, container: &str, idle: bool) -> bool {
        let key = format!("state.wherry.dev/{container}");
        // Who was never idle needs no word for it.
        if !idle && !self.annotations.contains_key(&key) {
            return false;
        }
        let word = if idle { "Idle" } else { "Active" };
        self.annotations.insert(key, word.to_owned()).as_deref() != Some(word)
    }

    fn tell_start(&mut self, container: &str, times: Option<&StartTimes>) -> bool {
        let took = self.took.get(container).copied().unwrap_or_default();
        let key = format!("cold-start.wherry.dev/{container}");
        let text = cold_start(took, times);
        self.annotations.insert(key, text.clone()).is_none_or(|before| before != text)
    }
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX);
    let mut text = shown.map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_MAX {
        text += &format!(" and {} more", names.len() - NAMES_MAX);
    }
    text
}

fn cold_start(took: Took, times: Option<&StartTimes>) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let mut parts = vec![
        ("queue", millis(took.queue)),
        ("pull", millis(took.pull)),
        ("compile", millis(took.compile)),
        ("prepare", millis(took.prepare)),
    ];
    if let Some(times) = times {
        let worker = [
            ("load", times.load),
            ("link", times.link),
            ("instantiate", times.instantiate),
            ("first byte", times.first_byte),
        ];
        // What has not happened yet took no time.
        let known = worker.into_iter().filter(|(_, micros)| *micros > 0);
        parts.extend(known.map(|(name, micros)| (name, micros as f64 / 1000.0)));
    }
    let parts: Vec<String> = parts.iter().map(|(name, ms)| format!("{name} {ms:.2} ms")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Form, Guest};

    #[test]
    fn a_start_is_told_part_by_part() {
        let mut facts = Facts::default();
        let times = StartTimes { load: 1200, link: 80, instantiate: 0, first_byte: 0 };
        assert!(!facts.started("app", &times), "of an earlier agent's start nothing is known");
        assert!(facts.passed("app", &times).is_empty());
        let image = Image {
            form: Form::Component,
            guest: Guest::Handler,
            imports: vec!["wasi:io/poll@0.2.0".to_owned(), "wasi:http/types@0.2.0".to_owned()],
            exports: vec!["wasi:http/incoming-handler@0.2.0".to_owned()],
            missing: Vec::new(),
            memory_min_bytes: 0,
        };
        let took = Took { pull: Duration::from_millis(12), ..Took::default() };
        facts.prepared("app", &image, took);
        assert_eq!(facts.passed("app", &times), [(Part::Load, 1200), (Part::Link, 80)]);
        assert!(facts.passed("app", &times).is_empty());
        assert!(facts.started("app", &times));
        assert!(!facts.started("app", &times), "no news");
        let later = StartTimes { instantiate: 50, first_byte: 900, ..times };
        assert!(facts.started("app", &later));
        let parts = [(Part::Instantiate, 50), (Part::FirstByte, 900)];
        assert_eq!(facts.passed("app", &later), parts);
        let told: Vec<String> =
            facts.annotations().iter().map(|(key, text)| format!("{key}: {text}")).collect();
        assert_eq!(
            told,
            [
                "cold-start.wherry.dev/app: queue 0.00 ms, pull 12.00 ms, compile 0.00 ms, \
                 prepare 0.00 ms, load 1.20 ms, link 0.08 ms, instantiate 0.05 ms, first byte \
                 0.90 ms",
                "exports.wherry.dev/app: wasi:http/incoming-handler@0.2.0",
                "imports.wherry.dev/app: wasi:io/poll@0.2.0, wasi:http/types@0.2.0",
            ]
        );
        facts.prepared("app", &image, took);
        assert_eq!(facts.passed("app", &times).len(), 2, "the next start is another one");
    }

    #[test]
    fn a_handler_that_rests_is_idle_until_it_is_asked() {
        let mut facts = Facts::default();
        assert!(!facts.idle("app", false));
        assert!(facts.annotations().is_empty());
        let check = |facts: &mut Facts, idle, news, word: &str| {
            assert_eq!(facts.idle("app", idle), news);
            assert_eq!(facts.annotations()["state.wherry.dev/app"], word);
        };
        check(&mut facts, true, true, "Idle");
        check(&mut facts, true, false, "Idle");
        check(&mut facts, false, true, "Active");
        check(&mut facts, false, false, "Active");
    }
}
