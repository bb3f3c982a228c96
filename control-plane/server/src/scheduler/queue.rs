//! Pods that wait for a node: by priority, then by deadline, then by age; and those that fit
//! nowhere for now.
//!
//! ```text
//!  waiting ─► taken ─► bound
//!     ▲          └─► stuck: until something changes for it ──┐
//!     │          └─► resting: until its time is over ────────┤
//!     └──────────────────────────────────────────────────────┘
//! ```
//!
//! Who rests is not looked at in between: in a busy cluster something changes all the time, and the
//! important who fit nowhere would always come before the others who do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use jiff::Timestamp;

use super::need::{Gang, Need};

/// The order of the queue: higher priority first, then the earlier deadline (none is last), then
/// older, then by uid.
type Place = (Reverse<i32>, Timestamp, Option<Timestamp>, String);

fn place(need: &Need) -> Place {
    let deadline = need.deadline.unwrap_or(Timestamp::MAX);
    (Reverse(need.priority), deadline, need.created, need.uid.clone())
}

/// The waiting Pods.
#[derive(Default)]
pub struct Queue {
    waiting: BTreeMap<Place, Need>,
    /// Where each waiting Pod stands, by uid.
    places: HashMap<String, Place>,
    stuck: HashMap<String, Need>,
    /// By the end of their rest.
    resting: BTreeMap<(Instant, String), Need>,
    /// When that is, by uid.
    rests: HashMap<String, Instant>,
}

impl Queue {
    /// A new Pod, or news about one.
    pub fn put(&mut self, need: Need) {
        // Its own status changing is no reason to try again, another spec is.
        if let Some(held) = self.set_aside(&need.uid).filter(|held| held.class == need.class) {
            let tries = held.tries;
            *held = Need { tries, ..need };
            return;
        }
        let held = self.places.get(&need.uid).and_then(|place| self.waiting.get(place));
        let tries = held.filter(|held| held.class == need.class).map_or(0, |held| held.tries);
        self.wait(Need { tries: tries.max(need.tries), ..need });
    }

    /// A Pod that is stuck or rests.
    fn set_aside(&mut self, uid: &str) -> Option<&mut Need> {
        match self.rests.get(uid) {
            Some(end) => self.resting.get_mut(&(*end, uid.to_string())),
            None => self.stuck.get_mut(uid),
        }
    }

    fn wait(&mut self, need: Need) {
        self.remove(&need.uid);
        self.places.insert(need.uid.clone(), place(&need));
        self.waiting.insert(place(&need), need);
    }

    pub fn remove(&mut self, uid: &str) {
        self.stuck.remove(uid);
        if let Some(end) = self.rests.remove(uid) {
            self.resting.remove(&(end, uid.to_string()));
        }
        if let Some(place) = self.places.remove(uid) {
            self.waiting.remove(&place);
        }
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
            || self.stuck.contains_key(uid)
            || self.rests.contains_key(uid)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes the first Pods out. A member of a gang brings the others, so it may be more.
    pub fn take(&mut self, count: usize) -> Vec<Need> {
        let mut taken = Vec::with_capacity(count.min(self.waiting.len()));
        while taken.len() < count
            && let Some((_, need)) = self.waiting.pop_first()
        {
            self.places.remove(&need.uid);
            let gang = need.gang.clone();
            taken.push(need);
            taken.extend(gang.map(|gang| self.take_gang(&gang)).unwrap_or_default());
        }
        taken
    }

    fn take_gang(&mut self, gang: &Gang) -> Vec<Need> {
        let member = |need: &&Need| need.gang.as_ref() == Some(gang);
        let needs = self.waiting.values().chain(self.stuck.values()).chain(self.resting.values());
        let members: Vec<Need> = needs.filter(member).cloned().collect();
        members.iter().for_each(|need| self.remove(&need.uid));
        members
    }

    /// Keeps a Pod that fits nowhere until there is room.
    pub fn stick(&mut self, need: Need) {
        self.stuck.insert(need.uid.clone(), need);
    }

    /// Leaves a Pod that fits nowhere alone until then.
    pub fn rest(&mut self, need: Need, end: Instant) {
        self.rests.insert(need.uid.clone(), end);
        self.resting.insert((end, need.uid.clone()), need);
    }

    /// When the first rest is over.
    pub fn rested(&self) -> Option<Instant> {
        self.resting.first_key_value().map(|((end, _), _)| *end)
    }

    /// Lets those try again whose rest is over.
    pub fn wake(&mut self, now: Instant) {
        while self.rested().is_some_and(|end| end <= now)
            && let Some(((_, uid), need)) = self.resting.pop_first()
        {
            self.rests.remove(&uid);
            self.wait(need);
        }
    }

    /// Lets every Pod that fitted nowhere try again, but for those that rest.
    pub fn retry(&mut self) {
        for (_, need) in std::mem::take(&mut self.stuck) {
            self.wait(need);
        }
    }

    /// Lets those try again that mind other Pods: somebody came.
    pub fn retry_company(&mut self) {
        let minds = |need: &&Need| need.company.is_some() || need.gang.is_some();
        let needs: Vec<Need> = self.stuck.values().filter(minds).cloned().collect();
        for need in needs {
            self.stuck.remove(&need.uid);
            self.wait(need);
        }
    }

    /// Lets one Pod try again whose reason could not be written, unless it left meanwhile.
    pub fn retry_untold(&mut self, uid: &str) {
        if let Some(need) = self.set_aside(uid).cloned() {
            self.wait(Need { told: None, ..need });
        }
    }

    /// Uids of all Pods in here.
    pub fn uids(&self) -> Vec<String> {
        self.places.keys().chain(self.stuck.keys()).chain(self.rests.keys()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::at;

    fn need(name: &str, priority: i32, age: i64) -> Need {
        let uid = format!("uid-{name}");
        Need { name: name.into(), uid, priority, created: Some(at(age)), ..Need::default() }
    }

    fn names(needs: Vec<Need>) -> String {
        needs.into_iter().map(|need| need.name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn priority_then_age() {
        let mut queue = Queue::default();
        for (name, priority, age) in [("a", 0, 5), ("b", 9, 7), ("c", 0, 1)] {
            queue.put(need(name, priority, age));
        }
        queue.put(need("b", 9, 7));
        assert_eq!(names(queue.take(2)), "b c");
        queue.remove("uid-a");
        assert!(queue.is_empty());
    }

    #[test]
    fn the_earliest_deadline_goes_first_within_a_priority() {
        let mut queue = Queue::default();
        let due = |name: &str, priority: i32, deadline: Option<i64>| Need {
            deadline: deadline.map(at),
            ..need(name, priority, 0)
        };
        queue.put(due("never", 0, None));
        queue.put(due("late", 0, Some(90)));
        queue.put(due("soon", 0, Some(30)));
        queue.put(due("high", 1, None));
        assert_eq!(names(queue.take(9)), "high soon late never");
    }

    #[test]
    fn what_is_stuck_waits_for_room() {
        let mut queue = Queue::default();
        queue.stick(need("a", 0, 0));
        queue.put(need("a", 0, 0));
        assert!(queue.is_empty(), "news of itself are no room");
        queue.retry();
        assert_eq!(names(queue.take(9)), "a");
    }

    #[test]
    fn who_rests_is_left_alone_until_its_time_is_over() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + std::time::Duration::from_secs(seconds);
        let mut queue = Queue::default();
        queue.rest(Need { tries: 7, ..need("a", 9, 0) }, at(5));
        queue.rest(need("b", 9, 0), at(3));
        queue.put(need("c", 0, 0));
        queue.put(need("a", 9, 0));
        queue.retry();
        queue.retry_company();
        assert_eq!((queue.rested(), queue.uids().len()), (Some(at(3)), 3));
        assert_eq!(names(queue.take(9)), "c", "neither news nor room wake it");
        queue.wake(at(4));
        assert_eq!(names(queue.take(9)), "b");
        queue.wake(at(5));
        let woken = queue.take(9);
        assert_eq!((woken[0].tries, queue.rested()), (7, None));
        // Another spec may fit, and who leaves leaves.
        queue.rest(need("a", 9, 0), at(9));
        queue.put(Need { class: 1, ..need("a", 9, 0) });
        assert_eq!(names(queue.take(9)), "a");
        queue.rest(need("a", 9, 0), at(9));
        queue.remove("uid-a");
        assert!(!queue.contains("uid-a") && queue.rested().is_none());
    }
}
