//! What a member has promised, and what the others remember of it.
//!
//! A *promise* is a vote given and a log entry confirmed: a member that forgets one can vote twice,
//! or let a majority lose what it has acknowledged. Its own superblock reminds it of what its
//! database forgets. But a whole folder that was put back to an older copy agrees with itself, and
//! only those to whom the member has promised more since can tell:
//!
//! ```text
//!  sending side of Raft ── answers of member 3 ─▶ Ledger: what member 3 has promised this one
//!  member 3, before it starts: "what have I promised you?" ─▶ more than its folder has: refused
//! ```
//!
//! The ledger lives as long as its process. A member that cannot be asked at the start is asked
//! again until it answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::errors::OpenError;
use crate::members::MemberId;
use crate::network::{Caller, Peer};
use crate::raft::{LogId, Vote};
use crate::wire::{Answer, Request};

/// A member that runs answers well before; one that is just starting, like this one, does not yet,
/// and then a start must not take much longer for it.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// What a member has promised: to vote for nobody older, and to have this log entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
}

impl Promise {
    /// What of this promise is missing from what a member has: in words what was promised, and what
    /// is there instead.
    pub(crate) fn missing_from(&self, held: &Promise) -> Option<(String, String)> {
        let ballot = |vote: Vote| (vote.leader_id, vote.committed);
        if held.vote.map(ballot) < self.vote.map(ballot) {
            return Some((show("vote", self.vote), show("vote", held.vote)));
        }
        if held.last < self.last {
            return Some((show("log entry", self.last), show("log entry", held.last)));
        }
        None
    }

    /// The same, but told by another member, which may not know that a later leader has cut the
    /// log: then nothing can be said about its end.
    fn broken_by(&self, held: &Promise) -> Option<(String, String)> {
        let later =
            |promised: LogId| held.vote.is_some_and(|vote| vote.leader_id > promised.leader_id);
        let last = self.last.filter(|promised| !later(*promised));
        Promise { last, ..*self }.missing_from(held)
    }

    /// Adds what else was promised.
    pub(crate) fn add(&mut self, vote: Option<Vote>, last: Option<LogId>) {
        let ballot = |vote: Vote| (vote.leader_id, vote.committed);
        if vote.map(ballot) > self.vote.map(ballot) {
            self.vote = vote;
        }
        self.last = self.last.max(last);
    }
}

fn show(what: &str, value: Option<impl std::fmt::Display>) -> String {
    value.map_or(format!("no {what}"), |value| format!("{what} {value}"))
}

/// What the other members have promised this one since it started. A std mutex: sections are short
/// and never await.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<MemberId, Promise>>>);

impl Ledger {
    /// Notes a promise of a member.
    pub(crate) fn note(&self, of: MemberId, vote: Option<Vote>, last: Option<LogId>) {
        let mut promises = self.0.lock().expect("no section of this lock panics");
        promises.entry(of).or_default().add(vote, last);
    }

    /// What a member has promised.
    pub(crate) fn of(&self, member: MemberId) -> Promise {
        let promises = self.0.lock().expect("no section of this lock panics");
        promises.get(&member).copied().unwrap_or_default()
    }
}

/// A promise that its member cannot keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// To whom it was made.
    pub(crate) witness: MemberId,
    pub(crate) promised: String,
    pub(crate) found: String,
}

impl Broken {
    /// Why the member does not start, or go on.
    pub(crate) fn refused(self, base: Option<&Path>) -> OpenError {
        let Broken { witness, promised, found } = self;
        let path = base.unwrap_or(Path::new("(memory)")).to_owned();
        OpenError::Older { path, witness, promised, found }
    }
}

/// Asks members what this one has promised them, and compares it with what it has by then. Returns
/// those that did not answer.
pub(crate) async fn ask(
    caller: &Caller,
    peers: Vec<Peer>,
    held: impl Fn() -> Promise,
) -> Result<Vec<Peer>, Broken> {
    let asking = peers.into_iter().map(|peer| async move {
        let answer = caller.ask(peer.clone(), &Request::Promised, ASK_TIMEOUT).await;
        (peer, answer)
    });
    let mut silent = Vec::new();
    for (peer, answer) in futures::future::join_all(asking).await {
        let Ok(Answer::Promised(promise)) = answer else {
            silent.push(peer);
            continue;
        };
        if let Some((promised, found)) = promise.broken_by(&held()) {
            return Err(Broken { witness: peer.id, promised, found });
        }
    }
    Ok(silent)
}

#[cfg(test)]
mod tests {
    use openraft::impls::leader_id_adv::LeaderId;

    use super::*;

    fn promise(vote: u64, term: u64, index: u64) -> Promise {
        let vote = Vote { leader_id: LeaderId { term: vote, node_id: 1 }, committed: true };
        let last = LogId { leader_id: LeaderId { term, node_id: 1 }, index };
        Promise { vote: Some(vote), last: Some(last) }
    }

    #[test]
    fn an_older_copy_breaks_a_promise() {
        let promised = promise(4, 4, 90);
        let broken = |held: Promise| promised.broken_by(&held).is_some();
        assert!(!broken(promise(4, 4, 90)), "the same");
        assert!(!broken(promise(4, 4, 91)), "further");
        assert!(broken(promise(4, 4, 89)), "a log entry is missing");
        assert!(broken(promise(3, 3, 95)), "the vote is missing");
        assert!(broken(promise(4, 3, 95)), "an entry of an older term is no match");
        assert!(broken(Promise::default()), "everything is missing");
        assert!(!broken(promise(5, 4, 60)), "a later leader may have cut it");
        assert!(!broken(promise(5, 5, 60)), "a later leader has cut it");
        let mut held = promise(4, 3, 60);
        held.vote = Some(Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true });
        assert!(!broken(held), "one term can have two leaders, and the later one may have cut it");
        assert!(Promise::default().broken_by(&Promise::default()).is_none());
    }

    #[test]
    fn the_ledger_keeps_the_most_that_was_promised() {
        let ledger = Ledger::default();
        assert_eq!(ledger.of(3), Promise::default());
        let Promise { vote, last } = promise(2, 2, 8);
        ledger.note(3, vote, None);
        ledger.note(3, None, last);
        ledger.note(3, promise(1, 1, 1).vote, promise(1, 1, 99).last);
        assert_eq!(ledger.of(3), promise(2, 2, 8));
        assert_eq!(ledger.of(4), Promise::default());
    }
}
