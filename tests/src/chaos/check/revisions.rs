//! Revision order: a write that was answered has its revision; who came later has a later one; and
//! a read is the state at some revision between what was known before it and what was asked after.
//!
//! For each call two bounds follow from everything else in the history:
//! - *floor*: the newest revision that an answer or a watch had shown before the call was sent;
//! - *ceiling*: the oldest revision of a write that was sent only after this call was answered.
//!
//! A linearizable call lies between its floor and its ceiling.

use std::collections::{HashMap, HashSet};

use super::Violation;
use super::timeline::Timeline;
use crate::chaos::history::{Call, History, Item, Op, Outcome, Revision, Saw};

/// What was counted on the way.
#[derive(Debug, Default)]
pub struct Seen {
    /// Acknowledged writes that a later state does not show.
    pub lost: usize,
}

/// Times with revisions, to be asked for the newest before or the oldest after a time.
struct Bounds {
    /// (time, newest revision shown up to it), by time.
    shown: Vec<(u64, Revision)>,
    /// (time, oldest revision of a write sent from it on), by time.
    sent: Vec<(u64, Revision)>,
}

impl Bounds {
    fn of(history: &History) -> Bounds {
        let mut shown: Vec<(u64, Revision)> = Vec::new();
        let mut sent: Vec<(u64, Revision)> = Vec::new();
        for call in &history.calls {
            if let Some(revision) = call.proves() {
                shown.push((call.return_us, revision));
            }
            if let Outcome::Written { revision } = call.outcome {
                sent.push((call.invoke_us, revision));
            }
        }
        for line in &history.watches {
            if let Saw::Event { revision, .. } | Saw::Restart { revision, .. } = line.saw {
                shown.push((line.at_us, revision));
            }
        }
        shown.sort_unstable();
        let mut newest = 0;
        for (_, revision) in &mut shown {
            newest = newest.max(*revision);
            *revision = newest;
        }
        sent.sort_unstable();
        let mut oldest = Revision::MAX;
        for (_, revision) in sent.iter_mut().rev() {
            oldest = oldest.min(*revision);
            *revision = oldest;
        }
        Bounds { shown, sent }
    }

    fn floor(&self, call: &Call) -> Revision {
        let before = self.shown.partition_point(|(time, _)| *time < call.invoke_us);
        before.checked_sub(1).map_or(0, |index| self.shown[index].1)
    }

    /// The newest revision the call may have seen.
    fn ceiling(&self, call: &Call) -> Revision {
        let after = self.sent.partition_point(|(time, _)| *time <= call.return_us);
        self.sent.get(after).map_or(Revision::MAX, |(_, revision)| revision - 1)
    }
}

/// Checks every call against the timeline.
pub fn check(history: &History, timeline: &Timeline, violations: &mut Vec<Violation>) -> Seen {
    let bounds = Bounds::of(history);
    let deletes = UnknownDeletes::of(history);
    let mut owners: HashMap<Revision, &Call> = HashMap::new();
    let mut lost = HashSet::new();
    for call in &history.calls {
        let mut broken = |rule, detail| violations.push(Violation { rule, detail });
        match &call.outcome {
            Outcome::Written { revision } => {
                if let Some(other) = owners.insert(*revision, call) {
                    broken("own-revision", format!("{} and {}", shown(other), shown(call)));
                }
                written(call, *revision, &bounds, timeline, &mut broken);
            }
            Outcome::Found { item } => {
                let Op::Get { key } = &call.op else { continue };
                found(call, key, item.as_ref(), &bounds, timeline, &deletes, &mut broken);
            }
            Outcome::Listed { revision, items } => {
                let Op::List { prefix } = &call.op else { continue };
                let list = List { call, prefix, revision: *revision, items };
                listed(&list, &bounds, timeline, &deletes, &mut broken, &mut lost);
            }
            _ => {}
        }
    }
    Seen { lost: lost.len() }
}

type Broken<'a> = dyn FnMut(&'static str, String) + 'a;

fn written(
    call: &Call,
    revision: Revision,
    bounds: &Bounds,
    timeline: &Timeline,
    broken: &mut Broken<'_>,
) {
    let floor = bounds.floor(call);
    if revision <= floor {
        broken(
            "writes-in-real-time",
            format!("{} is not behind {floor}, which was known before it was sent", shown(call)),
        );
    }
    if revision > bounds.ceiling(call) {
        broken(
            "writes-in-real-time",
            format!("{} is behind a write that was sent after its answer", shown(call)),
        );
    }
    let Some(key) = call.op.key() else { return };
    let previous = timeline.previous_write(key, revision);
    match &call.op {
        Op::Create { .. } => {
            if let Some((at, Some(value))) = previous {
                broken("create-of-absent", format!("{}, but {value:?} at {at}", shown(call)));
            }
        }
        Op::Update { base, .. } => {
            let at = previous.map(|(at, _)| at);
            if at != Some(*base) {
                broken("swap-of-base", format!("{}, but the key was at {at:?}", shown(call)));
            }
        }
        _ => {}
    }
}

/// Deletes of unknown outcome: they may have removed a key without anybody seeing it.
struct UnknownDeletes<'a>(HashMap<&'a str, u64>);

impl<'a> UnknownDeletes<'a> {
    /// The first such delete of each key.
    fn of(history: &'a History) -> Self {
        let mut deletes = HashMap::new();
        for call in history.calls.iter().filter(|call| call.is_unknown() || deleted(call)) {
            if let Op::Delete { key, .. } = &call.op {
                let first = deletes.entry(key.as_str()).or_insert(call.invoke_us);
                *first = call.invoke_us.min(*first);
            }
        }
        UnknownDeletes(deletes)
    }

    fn may_have_removed(&self, key: &str, call: &Call) -> bool {
        self.0.get(key).is_some_and(|invoked| *invoked < call.return_us)
    }
}

fn deleted(call: &Call) -> bool {
    call.outcome == Outcome::Deleted
}

fn found(
    call: &Call,
    key: &str,
    item: Option<&Item>,
    bounds: &Bounds,
    timeline: &Timeline,
    deletes: &UnknownDeletes<'_>,
    broken: &mut Broken<'_>,
) {
    let (floor, ceiling) = (bounds.floor(call), bounds.ceiling(call));
    match item {
        Some(item) => {
            if let Some(next) = timeline.next_write(key, item.revision)
                && next <= floor
            {
                broken(
                    "stale-read",
                    format!("{}: the write at {next} was over (known: {floor})", shown(call)),
                );
            }
            if item.revision > ceiling {
                broken("read-of-the-future", format!("{}: ceiling {ceiling}", shown(call)));
            }
        }
        None => {
            let absent = absent_between(timeline, key, floor, ceiling);
            if !absent && !deletes.may_have_removed(key, call) {
                let at = timeline.at(key, floor);
                broken("stale-read", format!("{}: absent, but it is {at:?}", shown(call)));
            }
        }
    }
}

/// Whether the key is absent at any revision in the range.
fn absent_between(timeline: &Timeline, key: &str, floor: Revision, ceiling: Revision) -> bool {
    if timeline.at(key, floor).is_none() {
        return true;
    }
    let Some(writes) = timeline.keys.get(key) else { return true };
    if ceiling <= floor {
        return false;
    }
    writes.range(floor + 1..=ceiling).any(|(_, value)| value.is_none())
}

struct List<'a> {
    call: &'a Call,
    prefix: &'a str,
    revision: Revision,
    items: &'a [Item],
}

fn listed(
    list: &List<'_>,
    bounds: &Bounds,
    timeline: &Timeline,
    deletes: &UnknownDeletes<'_>,
    broken: &mut Broken<'_>,
    lost: &mut HashSet<Revision>,
) {
    let (floor, ceiling) = (bounds.floor(list.call), bounds.ceiling(list.call));
    let what = format!("list of {:?} at {}", list.prefix, list.revision);
    if list.revision < floor {
        let detail = format!("{what}: {floor} was known before it was sent");
        broken("stale-list", detail);
    }
    if list.revision > ceiling && timeline.writes.range(ceiling + 1..=list.revision).count() > 0 {
        broken("list-of-the-future", format!("{what}: its ceiling is {ceiling}"));
    }
    let there: HashMap<&str, &Item> =
        list.items.iter().map(|item| (item.key.as_str(), item)).collect();
    for item in list.items {
        let expected = timeline.at(&item.key, list.revision);
        if expected.map(|(at, _)| at) != Some(item.revision) {
            // The item itself is in the timeline, so what is newer was left out of the list.
            if let Some((at, _)) = expected.filter(|(at, _)| *at > item.revision) {
                lost.insert(at);
            }
            broken("state-at-revision", format!("{what}: {item:?}, but it is {expected:?}"));
        }
    }
    for (key, _) in timeline.keys.iter().filter(|(key, _)| key.starts_with(list.prefix)) {
        if there.contains_key(key.as_str()) || deletes.may_have_removed(key, list.call) {
            continue;
        }
        if let Some((at, value)) = timeline.at(key, list.revision) {
            lost.insert(at);
            let detail = format!("{what}: {key} is missing, it is {value:?} since {at}");
            broken("state-at-revision", detail);
        }
    }
}

fn shown(call: &Call) -> String {
    format!(
        "{:?} → {:?} (client {} on member {}, {}–{} µs)",
        call.op, call.outcome, call.client, call.member, call.invoke_us, call.return_us
    )
}
