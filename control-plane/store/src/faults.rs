//! Faults that tests ask for: named points where the store panics, fails or waits, and bugs it can
//! be told to have. In the shipped binary this is an empty type and none of its calls does
//! anything.
//!
//! - A *failpoint* is a named step. The feature `failpoints` (and every unit test of this crate)
//!   makes it obey `Faults::set`, or the variable `WHERRY_STORE_FAILPOINTS`:
//!   `writer.sync=delay(4);log.append=1*error;machine.apply=panic`, where `N*` means the first N
//!   times only.
//! - A *seeded bug* is a mistake made on purpose, for the suite to find. The feature `seeded-bugs`
//!   makes the store obey `Faults::seed`, or `WHERRY_STORE_BUG`, names with commas between.
//!
//! A store has its own faults, so that of three members in one process one can fail.

use std::io;

/// The mistakes the suite must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A vote is answered before it is on disk.
    VoteWithoutFsync,
    /// Log entries are reported as written before they are on disk.
    AckBeforeFsync,
    /// How far the state was applied is written in another batch than the state.
    AppliedOutsideBatch,
    /// A watch that begins exactly at the oldest event of the window misses it.
    EventDroppedAtEdge,
    /// A linearizable read that has to ask again takes the read index it got before.
    ReadIndexReused,
    /// The hash of the state leaves out some keys.
    HashSkipsFamily,
}

impl Bug {
    /// All of them, in the order of the issue.
    pub const ALL: [Bug; 6] = [
        Bug::VoteWithoutFsync,
        Bug::AckBeforeFsync,
        Bug::AppliedOutsideBatch,
        Bug::EventDroppedAtEdge,
        Bug::ReadIndexReused,
        Bug::HashSkipsFamily,
    ];

    /// The name in `WHERRY_STORE_BUG`.
    pub fn name(self) -> &'static str {
        match self {
            Bug::VoteWithoutFsync => "vote-without-fsync",
            Bug::AckBeforeFsync => "ack-before-fsync",
            Bug::AppliedOutsideBatch => "applied-outside-batch",
            Bug::EventDroppedAtEdge => "event-dropped-at-edge",
            Bug::ReadIndexReused => "read-index-reused",
            Bug::HashSkipsFamily => "hash-skips-family",
        }
    }
}

/// Every failpoint there is.
pub const POINTS: [&str; 21] = [
    "log.append",
    "log.vote",
    "log.truncate",
    "log.purge",
    "log.read",
    "writer.write",
    "writer.sync",
    "machine.apply",
    "machine.hand",
    "machine.publish",
    "machine.corrupt",
    "machine.flip",
    "superblock.write",
    "snapshot.send",
    "snapshot.receive",
    "snapshot.stage",
    "snapshot.adopt",
    "snapshot.switch",
    "peer.ask",
    "peer.answer",
    "members.change",
];

/// What a failpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Panic.
    Panic,
    /// Fail, as a disk or a network would.
    Error,
    /// Wait so many milliseconds.
    Delay(u64),
}

#[cfg(any(test, feature = "failpoints", feature = "seeded-bugs"))]
mod on {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex, MutexGuard};
    use std::time::Duration;

    use super::*;

    /// The faults of one store; clones are the same.
    #[derive(Clone, Debug, Default)]
    pub struct Faults(Arc<Mutex<Table>>);

    #[derive(Debug, Default)]
    struct Table {
        /// What to do, and how many times more; `None` for ever.
        points: BTreeMap<String, (Fault, Option<u64>)>,
        bugs: BTreeSet<Bug>,
        hits: BTreeMap<&'static str, u64>,
    }

    impl Faults {
        /// What the environment asks for.
        pub fn from_env() -> Faults {
            let faults = Faults::default();
            let points = std::env::var("WHERRY_STORE_FAILPOINTS").unwrap_or_default();
            for (point, fault, times) in parse(&points) {
                faults.set(&point, fault, times);
            }
            let bugs = std::env::var("WHERRY_STORE_BUG").unwrap_or_default();
            let asked = Bug::ALL.into_iter();
            for bug in asked.filter(|bug| bugs.split(',').any(|name| name.trim() == bug.name())) {
                faults.seed(bug);
            }
            faults
        }

        fn lock(&self) -> MutexGuard<'_, Table> {
            self.0.lock().expect("no section of this lock panics")
        }

        /// Lets a point fail, the next `times` times.
        pub fn set(&self, point: &str, fault: Fault, times: Option<u64>) {
            self.lock().points.insert(point.to_owned(), (fault, times));
        }

        /// Lets all points pass again.
        pub fn clear(&self) {
            self.lock().points.clear();
        }

        /// Gives the store a bug.
        pub fn seed(&self, bug: Bug) {
            self.lock().bugs.insert(bug);
        }

        /// How often a point was passed.
        pub fn hits(&self, point: &str) -> u64 {
            self.lock().hits.get(point).copied().unwrap_or(0)
        }

        fn next(&self, point: &'static str) -> Option<Fault> {
            let mut table = self.lock();
            *table.hits.entry(point).or_insert(0) += 1;
            let (fault, times) = table.points.get_mut(point)?;
            match times {
                Some(0) => return None,
                Some(times) => *times -= 1,
                None => {}
            }
            Some(*fault)
        }

        /// Passes a point on a thread that may block.
        pub(crate) fn hit(&self, point: &'static str) -> io::Result<()> {
            match self.next(point) {
                None => Ok(()),
                Some(Fault::Panic) => panic!("failpoint {point}"),
                Some(Fault::Error) => Err(io::Error::other(format!("failpoint {point}"))),
                Some(Fault::Delay(milliseconds)) => {
                    std::thread::sleep(Duration::from_millis(milliseconds));
                    Ok(())
                }
            }
        }

        /// Whether a point fails for a key: for every one, or (as `POINT@START`) for those that begin so.
        pub(crate) fn hits_key(&self, point: &'static str, key: &[u8]) -> bool {
            let starts = |name: &String| {
                let start = name.strip_prefix(point).and_then(|rest| rest.strip_prefix('@'));
                start.is_some_and(|start| key.starts_with(start.as_bytes()))
            };
            let named = self.lock().points.keys().any(starts);
            named || self.hit(point).is_err()
        }

        /// Passes a point in a task.
        pub(crate) async fn pass(&self, point: &'static str) -> io::Result<()> {
            match self.next(point) {
                None => Ok(()),
                Some(Fault::Panic) => panic!("failpoint {point}"),
                Some(Fault::Error) => Err(io::Error::other(format!("failpoint {point}"))),
                Some(Fault::Delay(milliseconds)) => {
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                    Ok(())
                }
            }
        }

        /// Whether the store has a bug.
        pub(crate) fn has(&self, bug: Bug) -> bool {
            self.lock().bugs.contains(&bug)
        }
    }

    /// Reads `POINT[@START]=[N*](panic|error|delay(MS))`, separated by semicolons; what cannot be read is
    /// left out, and said.
    pub(super) fn parse(text: &str) -> Vec<(String, Fault, Option<u64>)> {
        let read = |item: &str| {
            let (point, action) = item.split_once('=')?;
            let (times, action) = match action.split_once('*') {
                Some((times, action)) => (Some(times.trim().parse().ok()?), action),
                None => (None, action),
            };
            let delay = action.strip_prefix("delay(").and_then(|rest| rest.strip_suffix(')'));
            let fault = match (action, delay) {
                ("panic", _) => Fault::Panic,
                ("error", _) => Fault::Error,
                (_, Some(milliseconds)) => Fault::Delay(milliseconds.parse().ok()?),
                _ => return None,
            };
            let point = point.trim();
            let name = point.split('@').next().unwrap_or_default();
            POINTS.contains(&name).then(|| (point.to_owned(), fault, times))
        };
        let items = text.split(';').map(str::trim).filter(|item| !item.is_empty());
        items
            .filter_map(|item| {
                let fault = read(item);
                if fault.is_none() {
                    tracing::error!(item, "this failpoint cannot be read");
                }
                fault
            })
            .collect()
    }
}

#[cfg(not(any(test, feature = "failpoints", feature = "seeded-bugs")))]
mod off {
    use super::*;

    /// No faults.
    #[derive(Clone, Debug, Default)]
    pub struct Faults;

    impl Faults {
        /// The shipped binary asks nobody.
        pub fn from_env() -> Faults {
            Faults
        }

        #[inline(always)]
        pub(crate) fn hit(&self, _point: &'static str) -> io::Result<()> {
            Ok(())
        }

        #[inline(always)]
        pub(crate) fn hits_key(&self, _point: &'static str, _key: &[u8]) -> bool {
            false
        }

        #[inline(always)]
        pub(crate) async fn pass(&self, _point: &'static str) -> io::Result<()> {
            Ok(())
        }

        #[inline(always)]
        pub(crate) fn has(&self, _bug: Bug) -> bool {
            false
        }
    }
}

#[cfg(not(any(test, feature = "failpoints", feature = "seeded-bugs")))]
pub use off::Faults;
#[cfg(any(test, feature = "failpoints", feature = "seeded-bugs"))]
pub use on::Faults;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failpoints_are_read_from_text() {
        let text = "writer.sync=delay(4); log.append=2*error;machine.apply=panic";
        let expected = [
            ("writer.sync".to_owned(), Fault::Delay(4), None),
            ("log.append".to_owned(), Fault::Error, Some(2)),
            ("machine.apply".to_owned(), Fault::Panic, None),
        ];
        assert_eq!(on::parse(text), expected);
        assert_eq!(on::parse("nothing.known=error;log.append;log.read=x*error"), []);
    }

    #[test]
    fn a_point_fails_as_often_as_it_was_told() {
        let faults = Faults::default();
        faults.set("log.read", Fault::Error, Some(1));
        assert!(faults.hit("log.read").is_err());
        assert!(faults.hit("log.read").is_ok());
        assert_eq!(faults.hits("log.read"), 2);
        assert!(!faults.has(Bug::AckBeforeFsync));
        faults.seed(Bug::AckBeforeFsync);
        assert!(faults.clone().has(Bug::AckBeforeFsync));
    }
}
