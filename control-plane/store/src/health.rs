//! How a store is, for probes, metrics and people.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::members::MemberId;
use crate::space::Room;
use crate::state::Revision;
use crate::store::{Leadership, Store};

/// A leader that a majority answered so recently has one; a follower that a leader spoke to so
/// recently follows it.
const CONTACT: Duration = Duration::from_secs(1);

/// How the store is.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether writes and reads have a chance here: the store runs, knows its leader and has a
    /// majority behind it.
    pub serving: bool,
    /// Why not, in one sentence; `None` while it serves.
    pub reason: Option<String>,
    /// Which member this is.
    pub member_id: MemberId,
    /// Of which cluster.
    pub cluster_id: u128,
    /// Who leads.
    pub leadership: Leadership,
    /// The newest revision applied here.
    pub revision: Revision,
    /// The hash of the state at a revision near that.
    pub hash: u128,
    /// The revision the hash is of.
    pub hash_revision: Revision,
    /// Why this member's data is not to be trusted, if so.
    pub quarantined: Option<String>,
    /// Whether the others say that this member is none any more.
    pub removed: bool,
    /// What is in doubt though the store serves: on the leader, how the members differ when no
    /// majority says who is right; what is wrong with the files of a member that goes on.
    pub suspicion: Option<String>,
    /// Keys in the store.
    pub objects: usize,
    /// Oldest revision that can still be had.
    pub oldest_revision: Revision,
    /// Changes in the window.
    pub window_revisions: usize,
    /// Memory the window needs, estimated.
    pub window_bytes: u64,
    /// Watches that run.
    pub watchers: usize,
    /// Watches that were cut off since the start.
    pub watchers_cut_off: u64,
    /// Changes handed to the disk since the start.
    pub disk_changes: u64,
    /// Fsyncs since the start; far fewer than writes, when many write at once.
    pub disk_fsyncs: u64,
    /// Whether new objects are refused because a disk is nearly full: this one's, or, on the
    /// leader, those of a majority.
    pub disk_full: bool,
}

/// What decides about serving.
#[derive(Clone, Debug, Default)]
struct Facts {
    stopped: Option<String>,
    quarantined: Option<String>,
    removed: bool,
    leads: bool,
    leader: Option<MemberId>,
    recovered: bool,
    /// How long ago a majority answered the leader, or the leader spoke to the follower.
    contact: Option<Duration>,
}

/// Why a store does not serve.
fn reason(facts: &Facts) -> Option<String> {
    if let Some(why) = &facts.stopped {
        return Some(format!("the store has stopped: {why}"));
    }
    if let Some(why) = &facts.quarantined {
        return Some(format!(
            "this member is quarantined: {why}; remove it from the cluster and let it join anew"
        ));
    }
    if facts.removed {
        return Some(
            "this member was removed from the cluster; to take part again it joins anew with an \
             empty folder"
                .to_owned(),
        );
    }
    let lost = facts.contact.is_none_or(|ago| ago > CONTACT);
    match (facts.leads, facts.leader) {
        (true, _) if lost => Some("this member leads, but no majority answers".to_owned()),
        (false, None) => Some("no leader is known".to_owned()),
        (false, Some(id)) if lost => Some(format!("the leader, member {id}, is not heard of")),
        _ if !facts.recovered => Some("this member is still catching up".to_owned()),
        _ => None,
    }
}

impl Store {
    /// How the store is, and its sizes.
    pub fn health(&self) -> Health {
        let inner = &self.inner;
        let leadership = *inner.leadership.borrow();
        let quarantined = inner.quarantine.borrow().clone();
        let leads = matches!(leadership, Leadership::Leader { .. });
        let removed = inner.removed.load(Ordering::Relaxed);
        let facts = Facts {
            stopped: inner.stop.reason().map(|reason| reason.as_ref().to_owned()),
            quarantined: quarantined.clone(),
            removed,
            leads,
            leader: match leadership {
                Leadership::Leader { .. } => Some(inner.identity.member_id),
                Leadership::Follower { leader } => leader,
            },
            recovered: inner.recovered.load(Ordering::Relaxed),
            contact: if leads { inner.member.majority_age() } else { inner.inbox.heard() },
        };
        let reason = reason(&facts);
        let current = self.current();
        let sizes = inner.feed.sizes();
        let written = inner.writer.written();
        let shown = *inner.shown.borrow();
        let differ = inner.suspicion.borrow().clone();
        let full = inner.room() != Room::Enough || inner.peers_full.load(Ordering::Relaxed);
        Health {
            serving: reason.is_none(),
            reason,
            member_id: inner.identity.member_id,
            cluster_id: inner.identity.cluster_id,
            leadership,
            revision: current.revision(),
            hash: shown.now.hash,
            hash_revision: shown.now.revision,
            quarantined,
            removed,
            suspicion: differ.or_else(|| inner.files_doubt.borrow().clone()),
            objects: current.len(),
            oldest_revision: sizes.oldest,
            window_revisions: sizes.revisions,
            window_bytes: sizes.bytes,
            watchers: sizes.watchers,
            watchers_cut_off: sizes.cut_off,
            disk_changes: written.changes.load(Ordering::Relaxed),
            disk_fsyncs: written.fsyncs.load(Ordering::Relaxed),
            disk_full: full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_serve_says_why() {
        let near = Some(Duration::from_millis(90));
        let sound = Facts { leader: Some(2), recovered: true, contact: near, ..Facts::default() };
        assert_eq!(reason(&sound), None);
        let starts = |facts: Facts, text: &str| {
            let reason = reason(&facts).expect("it does not serve");
            assert!(reason.starts_with(text), "{reason}");
        };
        let stopped = Some("the disk failed".to_owned());
        starts(Facts { stopped, ..sound.clone() }, "the store has stopped: the disk failed");
        let quarantined = Some("its data differs".to_owned());
        starts(Facts { quarantined, ..sound.clone() }, "this member is quarantined");
        starts(Facts { removed: true, ..sound.clone() }, "this member was removed");
        starts(Facts { leader: None, ..sound.clone() }, "no leader is known");
        starts(Facts { contact: None, ..sound.clone() }, "the leader, member 2, is not heard of");
        let late = Some(Duration::from_secs(2));
        starts(Facts { leads: true, contact: late, ..sound.clone() }, "this member leads, but");
        starts(Facts { recovered: false, ..sound }, "this member is still catching up");
    }
}
