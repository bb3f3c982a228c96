//! The sequence of writes as everybody saw it: what was acknowledged, watched and read, by
//! revision. Two sightings of one revision that differ are a violation by themselves.

use std::collections::{BTreeMap, HashMap};

use super::Violation;
use crate::chaos::history::{History, Item, Op, Outcome, Refusal, Revision, Saw};

/// One write: a key set to a value, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: Option<String>,
}

/// All writes that anybody saw.
#[derive(Debug, Default)]
pub struct Timeline {
    pub writes: BTreeMap<Revision, Write>,
    /// For each key the revisions of its writes.
    pub keys: HashMap<String, BTreeMap<Revision, Option<String>>>,
}

impl Timeline {
    pub fn of(history: &History, violations: &mut Vec<Violation>) -> Timeline {
        let mut timeline = Timeline::default();
        for call in &history.calls {
            match (&call.op, &call.outcome) {
                (Op::Create { key, value }, Outcome::Written { revision })
                | (Op::Update { key, value, .. }, Outcome::Written { revision }) => {
                    timeline.saw(*revision, key, Some(value), "acknowledged", violations);
                }
                (_, Outcome::Found { item: Some(item) }) => timeline.read(item, violations),
                (_, Outcome::Listed { items, .. }) => {
                    items.iter().for_each(|item| timeline.read(item, violations));
                }
                _ => {}
            }
        }
        for line in &history.watches {
            match &line.saw {
                Saw::Restart { items, .. } => {
                    items.iter().for_each(|item| timeline.read(item, violations));
                }
                Saw::Event { key, revision, value, .. } => {
                    timeline.saw(*revision, key, value.as_deref(), "watched", violations);
                }
                _ => {}
            }
        }
        timeline.check_refused(history, violations);
        timeline
    }

    fn read(&mut self, item: &Item, violations: &mut Vec<Violation>) {
        self.saw(item.revision, &item.key, Some(&item.value), "read", violations);
    }

    fn saw(
        &mut self,
        revision: Revision,
        key: &str,
        value: Option<&str>,
        how: &str,
        violations: &mut Vec<Violation>,
    ) {
        if let Some(known) = self.writes.get(&revision) {
            if known.key != key || known.value.as_deref() != value {
                violations.push(Violation {
                    rule: "one-write-a-revision",
                    detail: format!(
                        "revision {revision} is {} = {:?}, and {how} as {key} = {value:?}",
                        known.key, known.value
                    ),
                });
            }
            return;
        }
        let value = value.map(str::to_owned);
        self.keys.entry(key.to_owned()).or_default().insert(revision, value.clone());
        self.writes.insert(revision, Write { key: key.to_owned(), value });
    }

    /// What was refused must not have happened, and no value may be there that nobody wrote.
    fn check_refused(&self, history: &History, violations: &mut Vec<Violation>) {
        let mut asked: HashMap<&str, &Outcome> = HashMap::new();
        for call in &history.calls {
            if let Some(value) = call.op.value() {
                asked.insert(value, &call.outcome);
            }
        }
        let mut made: HashMap<&str, Revision> = HashMap::new();
        for (revision, write) in &self.writes {
            let Some(value) = write.value.as_deref() else { continue };
            match asked.get(value) {
                None => violations.push(Violation {
                    rule: "no-value-from-nowhere",
                    detail: format!("{} = {value:?} at {revision}: nobody wrote it", write.key),
                }),
                Some(Outcome::Refused(refusal)) => violations.push(Violation {
                    rule: "refused-is-not-done",
                    detail: format!(
                        "{} = {value:?} was refused ({}) and is there at {revision}",
                        write.key,
                        reason(refusal)
                    ),
                }),
                Some(_) => {}
            }
            if let Some(first) = made.insert(value, *revision) {
                violations.push(Violation {
                    rule: "done-once",
                    detail: format!(
                        "{} = {value:?} was written once, and is there at {first} and {revision}",
                        write.key
                    ),
                });
            }
        }
    }

    /// What a key holds at a revision: the revision of its last write and the value.
    pub fn at(&self, key: &str, revision: Revision) -> Option<(Revision, &str)> {
        let (at, value) = self.keys.get(key)?.range(..=revision).next_back()?;
        Some((*at, value.as_deref()?))
    }

    /// The first write of a key behind a revision.
    pub fn next_write(&self, key: &str, revision: Revision) -> Option<Revision> {
        let writes = self.keys.get(key)?;
        writes.range(revision + 1..).next().map(|(revision, _)| *revision)
    }

    /// The last write of a key before a revision.
    pub fn previous_write(
        &self,
        key: &str,
        revision: Revision,
    ) -> Option<(Revision, Option<&str>)> {
        let (at, value) = self.keys.get(key)?.range(..revision).next_back()?;
        Some((*at, value.as_deref()))
    }
}

fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unserved(why) => format!("not served: {why}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
