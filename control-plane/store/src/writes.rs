//! A write on its way to whoever leads, and what its answers mean.
//!
//! ```text
//!  attempt ─┬─ done, or refused for good ──────────────────────────────▶ answer
//!           ├─ nobody leads there ──▶ where the refusal says, or a pause ──▶ attempt
//!           └─ outcome unknown ──▶ a later leader's first entry is applied here:
//!                                  is the write before it? ──▶ done, or attempt
//! ```
//!
//! The outcome of an attempt is unknown when the leader fails while it has it. But each attempt has
//! a *fence*: the last term in which it may be proposed. Once an entry of a later term has been
//! applied here, whatever of earlier terms is not here will never come. So the attempt shows in the
//! changes of its key since the write began, or it did not happen and may be made again. It shows by
//! the name that each write has: others may have written the same bytes, at the same revision.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::engine::KEY_BYTES_MAX;
use crate::errors::WriteError;
use crate::network::Peer;
use crate::state::{Action, Command, Precondition, Revision};
use crate::store::{ANSWER_TIMEOUT, SEE_OWN_WRITE, Store, Target};
use crate::tasks;
use crate::watch::{Change, Event};
use crate::wire::Written;

type Attempt = Result<Written, WriteError>;

/// What became of an attempt whose answer was lost.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Done(Written),
    /// It did not happen, and never will.
    NotDone,
    Unknown,
}

/// Reads an attempt's fate out of all changes of its key that it can be among.
fn fate(command: &Command, changes: &[Arc<Event>]) -> Fate {
    let Some(own) = changes.iter().find(|event| event.write == command.id) else {
        return Fate::NotDone;
    };
    Fate::Done(match &own.change {
        Change::Put(entry) => Written::Put { created: entry.created, modified: entry.modified },
        Change::Delete(last) => Written::Deleted { revision: own.revision, last: last.clone() },
    })
}

/// A name that no other write has. One of zero would be none.
fn name() -> u64 {
    rand::random::<u64>().max(1)
}

impl Store {
    /// Brings a write to whoever leads, as often as that can do no harm, while there is time.
    pub(crate) async fn write(
        &self,
        key: Bytes,
        precondition: Precondition,
        action: Action,
    ) -> Attempt {
        if key.len() > KEY_BYTES_MAX {
            return Err(WriteError::TooLarge { size: key.len(), limit: KEY_BYTES_MAX });
        }
        let command = Command { time_ms: 0, id: name(), key, precondition, action };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let since = self.current().revision();
        // Whom the last one asked has named as the leader.
        let mut named: Option<Peer> = None;
        loop {
            if self.inner.stop.reason().is_some() {
                return Err(WriteError::Stopped);
            }
            let mut leadership = self.leadership();
            leadership.mark_unchanged();
            let follows_hint = named.is_some();
            let target = named.take().map_or_else(|| self.target(), Target::There);
            // Who was named leads in the next term.
            let fence = self.inner.member.term() + u64::from(follows_hint);
            let refused = match self.attempt(target, &command, (fence, deadline)).await {
                Err(refused @ WriteError::NotLeader { .. }) => refused,
                Err(WriteError::Unknown) if self.forwards => {
                    match self.fate(&command, since, (fence, deadline)).await {
                        Fate::Done(written) => return Ok(written),
                        Fate::NotDone => WriteError::NotLeader { leader: None, address: None },
                        Fate::Unknown => return Err(WriteError::Unknown),
                    }
                }
                answer => return answer,
            };
            if !self.forwards || Instant::now() >= deadline {
                return Err(refused);
            }
            // A leader that hands over says to whom, before anybody can know it otherwise.
            named = self.other_leader(&refused).filter(|_| !follows_hint);
            if named.is_none() {
                tasks::pause(&mut leadership).await;
            }
        }
    }

    async fn attempt(&self, target: Target, command: &Command, bounds: (u64, Instant)) -> Attempt {
        let command = command.clone();
        match target {
            Target::Here => self.inner.lead_write(command, self.makes_room, bounds).await,
            Target::There(peer) if self.forwards => {
                let written = self.inner.forward(peer, command, self.makes_room, bounds).await?;
                self.see(&written).await;
                Ok(written)
            }
            Target::There(Peer { id, address }) => {
                Err(WriteError::NotLeader { leader: Some(id), address: Some(address) })
            }
            Target::Nowhere => Err(WriteError::NotLeader { leader: None, address: None }),
        }
    }

    /// What became of an attempt that may have been made in any term up to `fence`, once that is
    /// certain; `Unknown` if it is not in time.
    async fn fate(
        &self,
        command: &Command,
        since: Revision,
        (fence, deadline): (u64, Instant),
    ) -> Fate {
        let mut shown = self.inner.shown.clone();
        let decided = async {
            let later = shown.wait_for(|shown| shown.term() > fence).await;
            let Ok(revision) = later.map(|shown| shown.now.revision) else {
                return false;
            };
            self.reached(revision).await
        };
        let decided = tokio::time::timeout_at(deadline.into(), decided).await;
        if decided != Ok(true) {
            return Fate::Unknown;
        }
        let Ok(mut watch) = self.watch(command.key.clone(), since) else {
            return Fate::Unknown;
        };
        let mut changes = Vec::new();
        loop {
            match watch.ready() {
                Ok(Some(event)) => changes.push(event),
                Ok(None) => return fate(command, &changes),
                Err(_) => return Fate::Unknown,
            }
        }
    }

    /// Whom a refusal names as the leader, if that is news to this member.
    fn other_leader(&self, refused: &WriteError) -> Option<Peer> {
        let WriteError::NotLeader { leader: Some(id), address: Some(address) } = refused else {
            return None;
        };
        let known = match self.target() {
            Target::Here => self.member_id(),
            Target::There(peer) => peer.id,
            Target::Nowhere => return None,
        };
        let is_news = *id != known && *id != self.member_id();
        is_news.then(|| Peer { id: *id, address: address.clone() })
    }

    /// Waits a little until a write that another member applied is seen here, so that whoever wrote
    /// finds it.
    async fn see(&self, written: &Written) {
        let revision = match written {
            Written::Put { modified, .. } => *modified,
            Written::Deleted { revision, .. } => *revision,
        };
        let _ = tokio::time::timeout(SEE_OWN_WRITE, self.reached(revision)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Entry;

    fn event(write: u64, key: &'static str, change: Change) -> Arc<Event> {
        let (revision, key) = (change_revision(&change), Bytes::from_static(key.as_bytes()));
        Arc::new(Event::new(revision, key, change, None).made_by(write))
    }

    fn change_revision(change: &Change) -> Revision {
        match change {
            Change::Put(entry) | Change::Delete(entry) => entry.modified,
        }
    }

    fn entry(value: &'static str, modified: Revision) -> Entry {
        Entry { value: Bytes::from_static(value.as_bytes()), created: 3, modified }
    }

    fn command(action: Action) -> Command {
        let key = Bytes::from_static(b"key");
        Command { time_ms: 0, id: 1, key, precondition: Precondition::At(6), action }
    }

    #[test]
    fn a_write_shows_by_its_name() {
        let put = command(Action::Put(Bytes::from_static(b"same")));
        let mine = event(1, "key", Change::Put(entry("same", 9)));
        let gone = event(4, "key", Change::Delete(entry("same", 10)));
        let other = event(3, "key/longer", Change::Put(entry("same", 7)));
        let done = || Fate::Done(Written::Put { created: 3, modified: 9 });
        assert_eq!(fate(&put, &[]), Fate::NotDone);
        assert_eq!(fate(&put, &[other.clone(), mine.clone()]), done());
        assert_eq!(fate(&put, &[mine, gone.clone()]), done(), "what came later does not matter");

        let delete = command(Action::Delete);
        assert_eq!(fate(&delete, &[gone, other]), Fate::NotDone);
        let last = entry("same", 10);
        let own = event(1, "key", Change::Delete(last.clone()));
        assert_eq!(fate(&delete, &[own]), Fate::Done(Written::Deleted { revision: 10, last }));
    }

    /// Two that count from the same revision write the same bytes: one of them has not counted.
    #[test]
    fn the_same_bytes_of_another_are_not_ones_own() {
        let put = command(Action::Put(Bytes::from_static(b"7")));
        let theirs = event(2, "key", Change::Put(entry("7", 8)));
        assert_eq!(fate(&put, &[theirs]), Fate::NotDone);
    }

    #[test]
    fn names_differ() {
        let (one, other) = (name(), name());
        assert!(one != other && one != 0 && other != 0);
    }
}
