//! Who is in the cluster, and how that changes.
//!
//! ```text
//!  add ─▶ learner ──(catches up: log, or snapshot and log)──▶ promote ─▶ voter ⇄ leader
//!                                                     remove ─▶ gone, its id for ever
//! ```
//!
//! A member that comes back at another address says so itself, and its entry follows.
//!
//! Invariants:
//! - A member id is the index of a log entry of its own, so no two members ever have the same, not
//!   even one after the other. A machine that lost its data joins again, under a new one.
//! - One change at a time: the leader takes them in turn, each is proposed only if the membership
//!   is still the one it was planned for, and ends with a look at what is there.
//! - A member becomes a voter only when it has caught up, and a voter goes only if those that stay
//!   can still decide.
//!
//! The decisions are functions of a `View`; `Changer` carries them out on the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use openraft::ChangeMembers;

use crate::errors::MembershipError;
use crate::faults::Faults;
use crate::raft::{Member, Place, View};
use crate::state::Revision;

/// Names a member, for ever.
pub type MemberId = u64;

/// The member that founds a cluster.
pub const FOUNDER: MemberId = 1;

/// Members of a cluster, learners included: more voters only make writes slower.
const MEMBERS_MAX: usize = 9;

/// A learner so close behind becomes a voter: it is there within a heartbeat or two.
const CAUGHT_UP_ENTRIES: u64 = 64;

/// A learner may take so long to catch up with a store of some GiB.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// A member that answered within this time counts as one that can be reached.
const ALIVE: Duration = Duration::from_secs(1);

/// A change that was committed is seen here by then.
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// A voter asked to lead takes what it lacks of the log first, and has a quarter of a second for
/// it. Further behind it would not make it, and nobody would lead until the others notice.
const HAND_OVER_ENTRIES: u64 = 256;

/// A voter asked to lead does so by then, or somebody else does.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a member does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes the writes.
    Leader,
    /// It decides with the others.
    Voter,
    /// It follows, and does not count.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Leader => "leader",
            Role::Voter => "voter",
            Role::Learner => "learner",
        })
    }
}

/// A member, as another one shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: MemberId,
    /// What people call it.
    pub name: String,
    /// Where the others reach it.
    pub address: String,
    /// What it does.
    pub role: Role,
    /// The newest revision it has applied; `None` if it did not answer.
    pub applied: Option<Revision>,
    /// The hash of its state at that revision.
    pub hash: Option<u128>,
    /// Why its data is not to be trusted, if so.
    pub quarantined: Option<String>,
    /// Whether its disk is nearly full.
    pub disk_full: bool,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Add {
        name: String,
        address: String,
    },
    Promote(MemberId),
    Remove(MemberId),
    Transfer(Option<MemberId>),
    /// The member is somewhere else now, or is called otherwise; only itself may say so.
    Move {
        id: MemberId,
        name: String,
        address: String,
    },
}

impl Change {
    /// How long the leader may take for it.
    pub(crate) fn timeout(&self) -> Duration {
        const STEPS: Duration = Duration::from_secs(30);
        match self {
            Change::Promote(_) => CATCH_UP_TIMEOUT + STEPS,
            Change::Add { .. } | Change::Remove(_) | Change::Transfer(_) | Change::Move { .. } => {
                STEPS
            }
        }
    }
}

/// The learners that a new member replaces: one of its name or address never came to vote, and its
/// id is of no use any more.
fn plan_add(view: &View, name: &str, address: &str) -> Result<BTreeSet<MemberId>, MembershipError> {
    let same = |place: &Place| place.name == name || place.address == address;
    let mut replaced = BTreeSet::new();
    for (&id, place) in view.places.iter().filter(|(_, place)| same(place)) {
        if view.voters.contains(&id) {
            let (name, address) = (place.name.clone(), place.address.clone());
            return Err(MembershipError::Taken { id, name, address });
        }
        replaced.insert(id);
    }
    match view.places.len() - replaced.len() {
        count if count >= MEMBERS_MAX => Err(MembershipError::TooMany(count)),
        _ => Ok(replaced),
    }
}

/// Whether a member's entry is to be changed; no two members have the same name or address.
fn plan_move(view: &View, id: MemberId, place: &Place) -> Result<bool, MembershipError> {
    let known = view.places.get(&id).ok_or(MembershipError::NoSuchMember { id })?;
    let same = |other: &Place| other.name == place.name || other.address == place.address;
    match view.places.iter().find(|(other, held)| **other != id && same(held)) {
        Some((&id, Place { name, address })) => {
            Err(MembershipError::Taken { id, name: name.clone(), address: address.clone() })
        }
        None => Ok(known != place),
    }
}

/// How many log entries a member lacks.
fn behind(view: &View, id: MemberId) -> u64 {
    view.last_index.saturating_sub(view.matched.get(&id).copied().unwrap_or(0))
}

/// Whether a member has anything of the log, or of a snapshot.
fn started(view: &View, id: MemberId) -> bool {
    view.matched.get(&id).is_some_and(|index| *index > 0)
}

fn alive(view: &View, me: MemberId, id: MemberId) -> bool {
    id == me || view.heard.get(&id).is_some_and(|ago| *ago < ALIVE)
}

/// How a member goes.
#[derive(Debug, PartialEq, Eq)]
enum Removal {
    Learner,
    Voter,
    /// It leads: another one must do that first.
    AfterHandOver,
}

fn plan_remove(view: &View, me: MemberId, id: MemberId) -> Result<Removal, MembershipError> {
    if !view.places.contains_key(&id) {
        return Err(MembershipError::NoSuchMember { id });
    }
    if !view.voters.contains(&id) {
        return Ok(Removal::Learner);
    }
    let rest: Vec<MemberId> = view.voters.iter().copied().filter(|voter| *voter != id).collect();
    if rest.is_empty() {
        return Err(MembershipError::LastVoter);
    }
    let reached = rest.iter().filter(|voter| alive(view, me, **voter)).count();
    if reached * 2 <= rest.len() {
        return Err(MembershipError::LosesMajority { id });
    }
    Ok(if id == me { Removal::AfterHandOver } else { Removal::Voter })
}

/// A voter that has nearly everything.
fn keeps_up(view: &View, me: MemberId, id: MemberId) -> Result<MemberId, MembershipError> {
    match behind(view, id) {
        behind if id != me && behind > HAND_OVER_ENTRIES => {
            Err(MembershipError::NotCaughtUp { id, behind })
        }
        _ => Ok(id),
    }
}

/// Who leads next: the voter asked for, or the one that is furthest, if it keeps up.
fn plan_transfer(
    view: &View,
    me: MemberId,
    to: Option<MemberId>,
) -> Result<MemberId, MembershipError> {
    if let Some(id) = to {
        return match view.places.contains_key(&id) {
            false => Err(MembershipError::NoSuchMember { id }),
            true if !view.voters.contains(&id) => Err(MembershipError::NotAVoter { id }),
            true if !alive(view, me, id) => Err(MembershipError::NotTaken { id }),
            true => keeps_up(view, me, id),
        };
    }
    let others = view.voters.iter().copied().filter(|id| *id != me && alive(view, me, *id));
    let furthest = others.max_by_key(|id| view.matched.get(id).copied());
    keeps_up(view, me, furthest.ok_or(MembershipError::LosesMajority { id: me })?)
}

/// Changes the membership, on the leader.
pub(crate) struct Changer {
    member: Member,
    /// Whose turn it is. Held across the steps of a change: that is what it is for.
    turn: tokio::sync::Mutex<()>,
    faults: Faults,
}

type Outcome = Result<MemberId, MembershipError>;

impl Changer {
    pub(crate) fn new(member: Member, faults: Faults) -> Changer {
        Changer { member, turn: tokio::sync::Mutex::new(()), faults }
    }

    /// Carries a change out; returns the member it was about. `NoLeader` means that nothing
    /// happened and another member leads.
    pub(crate) async fn perform(&self, change: Change) -> Outcome {
        let passed = self.faults.pass("members.change").await;
        passed.map_err(|_| MembershipError::Unknown)?;
        tracing::info!(?change, "change the members");
        match change {
            Change::Add { name, address } => self.add(Place { name, address }).await,
            Change::Promote(id) => self.promote(id).await,
            Change::Remove(id) => self.remove(id).await,
            Change::Transfer(to) => self.transfer(to).await,
            Change::Move { id, name, address } => self.relocate(id, Place { name, address }).await,
        }
    }

    /// The membership to plan on: committed, and no change half done.
    async fn view(&self) -> Result<View, MembershipError> {
        let me = self.member.id();
        let ready = |view: &View| view.leader != Some(me) || view.settled;
        let view = self.member.until(READ_BACK_TIMEOUT, ready).await;
        let view = view.ok_or(MembershipError::Changed)?;
        if view.leader != Some(me) {
            return Err(MembershipError::NoLeader);
        }
        if !view.joint {
            return Ok(view);
        }
        self.member.settle(&view).await?;
        let view = self.member.until(READ_BACK_TIMEOUT, |view| view.settled && !view.joint).await;
        view.ok_or(MembershipError::Changed)
    }

    /// Waits until a committed change is seen.
    async fn read_back(&self, id: MemberId, there: impl Fn(&View) -> bool) -> Outcome {
        let seen = |view: &View| view.settled && !view.joint && there(view);
        match self.member.until(READ_BACK_TIMEOUT, seen).await {
            Some(_) => Ok(id),
            None => Err(MembershipError::Unknown),
        }
    }

    async fn add(&self, place: Place) -> Outcome {
        let _turn = self.turn.lock().await;
        plan_add(&self.view().await?, &place.name, &place.address)?;
        let id = self.member.allot().await?;
        let view = self.view().await?;
        let replaced = plan_add(&view, &place.name, &place.address)?;
        let add = ChangeMembers::AddNodes(BTreeMap::from([(id, place)]));
        let changes = match replaced.is_empty() {
            true => add,
            false => ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(replaced), add]),
        };
        self.member.change(&view, changes).await?;
        self.read_back(id, |view| view.places.contains_key(&id)).await
    }

    async fn promote(&self, id: MemberId) -> Outcome {
        let me = self.member.id();
        let view = self.view().await?;
        if !view.places.contains_key(&id) {
            return Err(MembershipError::NoSuchMember { id });
        }
        let ready = |view: &View| {
            let close = started(view, id) && behind(view, id) <= CAUGHT_UP_ENTRIES;
            let close = close && alive(view, me, id);
            view.leader != Some(me) || view.voters.contains(&id) || close
        };
        if self.member.until(CATCH_UP_TIMEOUT, ready).await.is_none() {
            let behind = behind(&self.member.view(), id);
            return Err(MembershipError::NotCaughtUp { id, behind });
        }
        let _turn = self.turn.lock().await;
        let view = self.view().await?;
        if !view.voters.contains(&id) {
            let changes = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
            self.member.change(&view, changes).await?;
        }
        self.read_back(id, |view| view.voters.contains(&id)).await
    }

    async fn remove(&self, id: MemberId) -> Outcome {
        let _turn = self.turn.lock().await;
        let me = self.member.id();
        // A new leader has not been answered by all others yet.
        let lost = |view: &View| {
            matches!(plan_remove(view, me, id), Err(MembershipError::LosesMajority { .. }))
        };
        self.member.until(ALIVE, |view| !lost(view)).await;
        let view = self.view().await?;
        let gone = BTreeSet::from([id]);
        let changes = match plan_remove(&view, me, id)? {
            Removal::AfterHandOver => {
                self.transfer(None).await?;
                return Err(MembershipError::NoLeader);
            }
            Removal::Learner => ChangeMembers::RemoveNodes(gone),
            Removal::Voter => ChangeMembers::RemoveVoters(gone),
        };
        self.member.change(&view, changes).await?;
        self.read_back(id, |view| !view.places.contains_key(&id)).await
    }

    async fn relocate(&self, id: MemberId, place: Place) -> Outcome {
        let _turn = self.turn.lock().await;
        let view = self.view().await?;
        if plan_move(&view, id, &place)? {
            let nodes = BTreeMap::from([(id, place.clone())]);
            self.member.change(&view, ChangeMembers::SetNodes(nodes)).await?;
        }
        self.read_back(id, |view| view.places.get(&id) == Some(&place)).await
    }

    async fn transfer(&self, to: Option<MemberId>) -> Outcome {
        let me = self.member.id();
        // As above: who was not heard of may answer any moment, and who lacks entries gets them.
        let clear = |view: &View| view.leader != Some(me) || plan_transfer(view, me, to).is_ok();
        self.member.until(ALIVE, clear).await;
        let view = self.member.view();
        if view.leader != Some(me) {
            return Err(MembershipError::NoLeader);
        }
        let to = plan_transfer(&view, me, to)?;
        if to == me || self.member.hand_over(to, HAND_OVER_TIMEOUT).await {
            return Ok(to);
        }
        Err(MembershipError::NotTaken { id: to })
    }
}

#[cfg(test)]
mod tests;
