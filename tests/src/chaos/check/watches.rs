//! What followers may rely on, whichever member they watch and however often they come back:
//!
//! - *ordered*: revisions only grow, bookmarks included;
//! - *unique*: no change twice, nor again after a resumption;
//! - *atomic*: an event is a whole write of the timeline, and creations are told from changes;
//! - *resumable*: between the revision a follower began at and the last it saw, nothing is missing;
//! - *bookmark*: behind a bookmark comes nothing from before it.

use std::collections::{BTreeMap, HashMap};

use super::Violation;
use super::timeline::Timeline;
use crate::chaos::history::{History, Item, Revision, Saw, WatchLine};

/// Checks all followers; returns how many events were looked at.
pub fn check(history: &History, timeline: &Timeline, violations: &mut Vec<Violation>) -> usize {
    let mut events = 0;
    for (follower, lines) in history.followers() {
        let mut view = View { follower, timeline, state: None, violations };
        for line in lines {
            events += usize::from(matches!(line.saw, Saw::Event { .. }));
            view.step(line);
        }
        view.end();
    }
    events
}

/// A follower's knowledge between two lines.
struct View<'a> {
    follower: u32,
    timeline: &'a Timeline,
    /// `None` until it first listed or opened a watch.
    state: Option<State>,
    violations: &'a mut Vec<Violation>,
}

struct State {
    /// What it began behind.
    from: Revision,
    /// All up to here it has seen, by event or bookmark.
    upto: Revision,
    /// The last event or listing; bookmarks do not prove events.
    events: BTreeMap<Revision, String>,
    /// Keys as it knows them.
    keys: HashMap<String, Revision>,
    /// Whether `keys` is the whole state, or only what came since.
    whole: bool,
}

impl State {
    fn listed(revision: Revision, items: &[Item]) -> State {
        let keys = items.iter().map(|item| (item.key.clone(), item.revision)).collect();
        State { from: revision, upto: revision, events: BTreeMap::new(), keys, whole: true }
    }

    fn behind(revision: Revision) -> State {
        let (events, keys) = (BTreeMap::new(), HashMap::new());
        State { from: revision, upto: revision, events, keys, whole: false }
    }
}

impl View<'_> {
    fn broken(&mut self, rule: &'static str, line: &WatchLine, why: &str) {
        let (follower, member, at) = (self.follower, line.member, line.at_us);
        let detail = format!("follower {follower} on member {member} at {at} µs: {why}");
        self.violations.push(Violation { rule, detail });
    }

    fn step(&mut self, line: &WatchLine) {
        match &line.saw {
            Saw::Restart { revision, items } => {
                self.end();
                self.state = Some(State::listed(*revision, items));
            }
            Saw::Open { after } => self.open(*after),
            Saw::Event { key, revision, value, created } => {
                self.event(line, key, *revision, value.as_deref(), *created);
            }
            Saw::Bookmark { revision } => {
                let Some(state) = &mut self.state else { return };
                let upto = state.upto;
                state.upto = upto.max(*revision);
                if *revision < upto {
                    let why = format!("bookmark {revision} behind {upto}");
                    self.broken("watch-bookmark", line, &why);
                }
            }
            Saw::End { .. } => {}
        }
    }

    /// A watch that opens where the last one stood goes on with it; any other begins anew.
    fn open(&mut self, after: Revision) {
        if self.state.as_ref().is_none_or(|state| state.upto != after) {
            self.end();
            self.state = Some(State::behind(after));
        }
    }

    fn event(
        &mut self,
        line: &WatchLine,
        key: &str,
        revision: Revision,
        value: Option<&str>,
        created: bool,
    ) {
        let Some(state) = &mut self.state else {
            return self.broken("watch-ordered", line, "an event before the watch was opened");
        };
        let upto = state.upto;
        let again = state.events.contains_key(&revision);
        let known = state.keys.contains_key(key);
        let whole = state.whole;
        state.upto = upto.max(revision);
        state.events.insert(revision, key.to_owned());
        match value {
            Some(_) => _ = state.keys.insert(key.to_owned(), revision),
            None => _ = state.keys.remove(key),
        }
        if again {
            self.broken("watch-unique", line, &format!("{revision} ({key}) once more"));
        } else if revision <= upto {
            self.broken("watch-ordered", line, &format!("{revision} ({key}) behind {upto}"));
        }
        if whole && value.is_some() && created == known {
            let why = format!("{revision}: {key} as {}", if created { "new" } else { "changed" });
            self.broken("watch-atomic", line, &why);
        }
        if whole && value.is_none() && !known {
            self.broken("watch-atomic", line, &format!("{revision}: {key} removed, was not there"));
        }
    }

    /// Nothing between the first and the last revision is missing.
    fn end(&mut self) {
        let Some(state) = self.state.take() else { return };
        if state.upto <= state.from {
            return;
        }
        let expected = self.timeline.writes.range(state.from + 1..=state.upto);
        for (revision, write) in expected {
            if !state.events.contains_key(revision) {
                let detail = format!(
                    "follower {}: saw {}–{} and missed {revision} ({} = {:?})",
                    self.follower, state.from, state.upto, write.key, write.value
                );
                self.violations.push(Violation { rule: "watch-complete", detail });
            }
        }
    }
}
