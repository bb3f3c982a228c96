//! The store among its members: what it asks of them, and what it answers.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::check::{COLLECT_TIMEOUT, Judgement, judge};
use crate::codec;
use crate::errors::{MembershipError, ReadError, WriteError};
use crate::faults::{Bug, Faults};
use crate::members::{Change, MemberId, MemberStatus, Role};
use crate::network::{AskError, Peer};
use crate::passing::Passed;
use crate::promise;
use crate::raft::View;
use crate::space::Room;
use crate::state::{Action, Command, Mark, Outcome, Precondition, Revision};
use crate::store::{ANSWER_TIMEOUT, Inner, Leadership, Store, Target};
use crate::tasks;
use crate::wire::{Answer, Request, Status, Write, Written};

/// A leader that no majority has confirmed yet lets others' writes wait so long for that; whoever
/// forwarded them asks again.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(250);

/// After so long without an answer the leader is asked for a sign of life …
const SIGN_AFTER: Duration = Duration::from_millis(250);

/// … which must come by then, or the next one, while there is time.
const SIGN_TIMEOUT: Duration = Duration::from_millis(350);

/// Signs of life that may be missing.
const SIGNS_MISSING_MAX: u32 = 2;

/// A leader answers a read index by then, if it has a majority.
const INDEX_TIMEOUT: Duration = Duration::from_millis(1400);

/// Members say how they are by then, or count as away.
const STATUS_TIMEOUT: Duration = Duration::from_millis(900);

/// A member that no leader spoke to for so long asks whether it is one.
const FORGOTTEN: Duration = Duration::from_secs(3);

/// Members apply the same entry within a few of these.
const COLLECT_RETRY: Duration = Duration::from_millis(50);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Store {
    /// Answers a request that another member's transport brought; `from` is whom its certificate
    /// names. Requests that are not for this member, or not from that one, are refused.
    pub async fn handle_peer(&self, from: MemberId, request: Bytes) -> Bytes {
        self.answer(from, &request).await.encode()
    }

    async fn answer(&self, from: MemberId, request: &[u8]) -> Answer {
        let refused = |why: String| {
            tracing::warn!(from, why, "refuse a peer's request");
            Answer::Failed(why)
        };
        if let Err(error) = self.inner.faults().pass("peer.answer").await {
            return Answer::Failed(error.to_string());
        }
        let (envelope, request) = match codec::decode(request, Request::decode) {
            Ok(request) => request,
            Err(error) => return refused(format!("the request cannot be read: {error}")),
        };
        let own = self.inner.identity;
        if envelope.cluster_id != own.cluster_id {
            return refused(format!(
                "member {from} is of cluster {:032x}, this is cluster {:032x}",
                envelope.cluster_id, own.cluster_id
            ));
        }
        if envelope.from != from {
            return refused(format!("member {from} says that it is member {}", envelope.from));
        }
        if envelope.to != own.member_id {
            return refused(format!(
                "member {from} looks for member {}, this is member {}",
                envelope.to, own.member_id
            ));
        }
        match request {
            Request::Writes(writes) => {
                self.inner.caller.waiting.note(from);
                let written = writes.into_iter().map(|write| self.inner.write_for_peer(write));
                Answer::Written(futures::future::join_all(written).await)
            }
            Request::ReadIndex => {
                self.inner.caller.waiting.note(from);
                Answer::Index(self.inner.member.read_index().await)
            }
            Request::Status => Answer::Status(self.inner.status(from)),
            Request::Change(Change::Move { id, .. }) if id != from => {
                refused(format!("member {from} says where member {id} is"))
            }
            Request::Change(change) => Answer::Changed(self.inner.changer.perform(change).await),
            Request::Promised => {
                let mut promise = self.inner.caller.ledger.of(from);
                promise.add(self.inner.member.own_vote_of(from), None);
                Answer::Promised(promise)
            }
            of_raft => self.inner.inbox.answer(of_raft).await,
        }
    }

    /// The members, as this one knows them and as they say they are. Those that do not answer
    /// within a second are shown without what only they know.
    pub async fn members(&self) -> Vec<MemberStatus> {
        let view = self.inner.member.view();
        let statuses = self.inner.statuses(&view).await;
        let show = |(id, place): (&MemberId, &crate::raft::Place)| {
            let status = statuses.get(id);
            let role = match *id {
                id if view.leader == Some(id) => Role::Leader,
                id if view.established.contains(&id) => Role::Voter,
                _ => Role::Learner,
            };
            MemberStatus {
                id: *id,
                name: place.name.clone(),
                address: place.address.clone(),
                role,
                applied: status.map(|status| status.now.revision),
                hash: status.map(|status| status.now.hash),
                quarantined: status.and_then(|status| status.quarantine.clone()),
                disk_full: status.is_some_and(|status| status.room != Room::Enough),
            }
        };
        view.places.iter().map(show).collect()
    }

    /// Takes a new member in, as a learner, and returns its id, which nobody ever had. A learner of
    /// the same name or address is replaced; a voter must be removed first.
    pub async fn add_learner(
        &self,
        name: &str,
        address: &str,
    ) -> Result<MemberId, MembershipError> {
        let (name, address) = (name.to_owned(), address.to_owned());
        self.change(Change::Add { name, address }).await
    }

    /// Waits until a learner has caught up, and makes it a voter. Fine if it is one already.
    pub async fn promote(&self, id: MemberId) -> Result<(), MembershipError> {
        self.change(Change::Promote(id)).await.map(drop)
    }

    /// Takes a member out of the cluster, for ever. A leader lets another one lead first.
    pub async fn remove(&self, id: MemberId) -> Result<(), MembershipError> {
        self.change(Change::Remove(id)).await.map(drop)
    }

    /// Makes this voter the leader, or whichever is furthest; returns who leads now.
    pub async fn transfer(&self, to: Option<MemberId>) -> Result<MemberId, MembershipError> {
        self.change(Change::Transfer(to)).await
    }

    /// Lets the cluster know under which name and address this member is reached, if it knows
    /// others. All members are asked in turn: the leader looks for this one where it is not, so who
    /// leads may not be known here.
    pub async fn settle_at(&self, name: &str, address: &str) -> Result<(), MembershipError> {
        let id = self.member_id();
        let view = self.inner.member.view();
        let known = view.places.get(&id).ok_or(MembershipError::NoSuchMember { id })?;
        if known.name == name && known.address == address {
            return Ok(());
        }
        let change = Change::Move { id, name: name.to_owned(), address: address.to_owned() };
        if matches!(self.target(), Target::Here) {
            return self.inner.changer.perform(change).await.map(drop);
        }
        let mut last = MembershipError::NoLeader;
        for (&id, place) in view.places.iter().filter(|(other, _)| **other != id) {
            let peer = Peer { id, address: place.address.clone() };
            match self.inner.forward_change(peer, change.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Brings a change to whoever leads. Tried again only while it is certain that nothing
    /// happened.
    async fn change(&self, change: Change) -> Result<MemberId, MembershipError> {
        let mut deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if self.inner.stop.reason().is_some() {
                return Err(MembershipError::Stopped);
            }
            let mut leadership = self.inner.leadership.clone();
            leadership.mark_unchanged();
            let (begun, change) = (Instant::now(), change.clone());
            let changed = match self.target() {
                Target::Here => self.inner.changer.perform(change).await,
                Target::There(peer) => self.inner.forward_change(peer, change).await,
                Target::Nowhere => Err(MembershipError::NoLeader),
            };
            // A leader that handed over first took its time for that.
            deadline += begun.elapsed();
            match changed {
                Err(MembershipError::NoLeader) if Instant::now() < deadline => {}
                done => return done,
            }
            tasks::pause(&mut leadership).await;
        }
    }
}

impl Inner {
    pub(crate) fn faults(&self) -> &Faults {
        self.caller.faults()
    }

    /// Where a write goes.
    pub(crate) fn target(&self) -> Target {
        match *self.leadership.borrow() {
            Leadership::Leader { .. } => Target::Here,
            Leadership::Follower { leader: None } => Target::Nowhere,
            Leadership::Follower { leader: Some(id) } => match self.member.address(id) {
                Some(address) => Target::There(Peer { id, address }),
                None => Target::Nowhere,
            },
        }
    }

    pub(crate) fn room(&self) -> Room {
        Room::of(self.room.load(Ordering::Relaxed))
    }

    /// Whether new objects are refused.
    pub(crate) fn is_full(&self) -> bool {
        self.room() != Room::Enough || self.peers_full.load(Ordering::Relaxed)
    }

    /// Proposes a write, here, where the leader is if there is one, in no later term than `fence`.
    pub(crate) async fn lead_write(
        &self,
        mut command: Command,
        makes_room: bool,
        (fence, confirm_by): (u64, Instant),
    ) -> Result<Written, WriteError> {
        if self.stop.reason().is_some() {
            return Err(WriteError::Stopped);
        }
        match &command.action {
            Action::Put(_) if self.is_full() && !makes_room => return Err(WriteError::Full),
            Action::Put(_) | Action::Delete => {}
            // Checks are the leader's own.
            Action::Check { .. } => return Err(WriteError::Unknown),
        }
        command.time_ms = now_ms();
        match self.member.propose(command, fence, confirm_by).await? {
            (_, Outcome::Put { entry, .. }) => {
                Ok(Written::Put { created: entry.created, modified: entry.modified })
            }
            (revision, Outcome::Deleted { last }) => Ok(Written::Deleted { revision, last }),
            (_, Outcome::Refused { current }) => Err(WriteError::Conflict { current }),
            (_, Outcome::Nothing) => unreachable!("a write has an outcome"),
        }
    }

    /// Proposes what another member has passed on, in no later term than `fence`: that member may
    /// have learned by then that it did not happen. While nobody is known to lead, as in the middle
    /// of an election, it waits a little: who asks was told that this member is the next leader.
    async fn write_for_peer(&self, write: Write) -> Result<Written, WriteError> {
        let Write { command, makes_room, fence } = write;
        let confirm_by = Instant::now() + CONFIRM_TIMEOUT;
        loop {
            let mut leadership = self.leadership.clone();
            leadership.mark_unchanged();
            if self.member.term() > fence {
                return Err(WriteError::NotLeader { leader: None, address: None });
            }
            let bounds = (fence, confirm_by);
            let refused = match self.lead_write(command.clone(), makes_room, bounds).await {
                Err(refused @ WriteError::NotLeader { .. }) => refused,
                done => return done,
            };
            if matches!(self.target(), Target::There(_)) || Instant::now() >= confirm_by {
                return Err(refused);
            }
            tasks::pause(&mut leadership).await;
        }
    }

    /// Lets the leader propose a write. `NotLeader` means that nothing happened.
    pub(crate) async fn forward(
        &self,
        peer: Peer,
        command: Command,
        makes_room: bool,
        (fence, deadline): (u64, Instant),
    ) -> Result<Written, WriteError> {
        let (answer, answered) = oneshot::channel();
        let write = Write { command, makes_room, fence };
        let passed = Passed { leader: peer.clone(), write, answer };
        let asked = async {
            self.passing.send(passed).await.map_err(|_| WriteError::Stopped)?;
            answered.await.map_err(|_| WriteError::Unknown)
        };
        let answer = tokio::select! {
            answer = asked => answer?,
            () = self.silent(peer.clone(), deadline) => return Err(WriteError::Unknown),
        };
        let not_sent = WriteError::NotLeader { leader: Some(peer.id), address: Some(peer.address) };
        match answer {
            // A member that has stopped did not take the write.
            Ok(Err(WriteError::Stopped)) => Err(not_sent),
            Ok(written) => written,
            Err(AskError::Lost(_)) => Err(WriteError::Unknown),
            Err(AskError::NotSent(_) | AskError::Refused(_)) => Err(not_sent),
        }
    }

    /// Returns when a member gives no sign of life any more.
    async fn silent(&self, peer: Peer, deadline: Instant) {
        let mut missing = 0;
        loop {
            tokio::time::sleep(SIGN_AFTER).await;
            let sign = self.caller.ask(peer.clone(), &Request::Status, SIGN_TIMEOUT).await;
            missing = if sign.is_ok() { 0 } else { missing + 1 };
            let late = missing > 0 && Instant::now() >= deadline;
            if late || missing >= SIGNS_MISSING_MAX {
                return;
            }
        }
    }

    async fn forward_change(
        &self,
        peer: Peer,
        change: Change,
    ) -> Result<MemberId, MembershipError> {
        let timeout = change.timeout();
        let request = Request::Change(change);
        let answer = tokio::select! {
            answer = self.caller.ask(peer.clone(), &request, timeout) => answer,
            () = self.silent(peer, Instant::now() + ANSWER_TIMEOUT) => {
                return Err(MembershipError::Unknown);
            }
        };
        match answer {
            Ok(Answer::Changed(Err(MembershipError::Stopped))) => Err(MembershipError::NoLeader),
            Ok(Answer::Changed(changed)) => changed,
            Ok(_) | Err(AskError::Lost(_)) => Err(MembershipError::Unknown),
            Err(AskError::NotSent(_) | AskError::Refused(_)) => Err(MembershipError::NoLeader),
        }
    }

    /// The revision that a linearizable read needs, from whoever leads. `before` is what the last
    /// call returned, which is of no use to this one.
    pub(crate) async fn read_index(&self, before: Option<Revision>) -> Result<Revision, ReadError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut again = false;
        loop {
            if let Some(before) = before.filter(|_| again)
                && self.faults().has(Bug::ReadIndexReused)
            {
                return Ok(before);
            }
            let mut leadership = self.leadership.clone();
            leadership.mark_unchanged();
            let refused = match self.target() {
                Target::Here => match self.member.read_index().await {
                    Err(error @ ReadError::NotLeader { .. }) => error,
                    answered => return answered,
                },
                Target::There(peer) => {
                    let (id, address) = (peer.id, peer.address.clone());
                    let asked = self.caller.ask(peer, &Request::ReadIndex, INDEX_TIMEOUT);
                    let answer = tokio::select! {
                        answer = asked => answer,
                        _ = leadership.changed() => Err(AskError::Lost("it is deposed".into())),
                    };
                    match answer {
                        Ok(Answer::Index(Ok(index))) => return Ok(index),
                        Ok(Answer::Index(Err(ReadError::NoMajority))) => {
                            return Err(ReadError::NoMajority);
                        }
                        _ => ReadError::NotLeader { leader: Some(id), address: Some(address) },
                    }
                }
                Target::Nowhere => ReadError::NotLeader { leader: None, address: None },
            };
            if Instant::now() >= deadline {
                return Err(refused);
            }
            again = true;
            tasks::pause(&mut leadership).await;
        }
    }

    /// How this member is, told to another one.
    fn status(&self, to: MemberId) -> Status {
        let shown = *self.shown.borrow();
        let quarantine = self.quarantine.borrow().clone();
        let (room, knows_you) = (self.room(), self.member.knows(to));
        Status { now: shown.now, mark: shown.mark, quarantine, room, knows_you }
    }

    /// How the members are, those that answer in time.
    async fn statuses(&self, view: &View) -> BTreeMap<MemberId, Status> {
        let me = self.identity.member_id;
        let others = view.places.iter().filter(|(id, _)| **id != me);
        let asked = others.map(|(&id, place)| async move {
            let peer = Peer { id, address: place.address.clone() };
            match self.caller.ask(peer, &Request::Status, STATUS_TIMEOUT).await {
                Ok(Answer::Status(status)) => Some((id, status)),
                _ => None,
            }
        });
        let answers = futures::future::join_all(asked).await;
        let own = view.places.contains_key(&me).then(|| (me, self.status(me)));
        answers.into_iter().flatten().chain(own).collect()
    }

    /// What the leader does from time to time: hears how the others are, and lets all compare their
    /// states.
    pub(crate) async fn compare(&self) {
        let quarantined = self.quarantine.borrow().is_some();
        let view = self.member.view();
        let removed = self.is_removed(&view).await;
        self.removed.store(removed, Ordering::Relaxed);
        self.fit.send_if_modified(|fit| {
            let now = !quarantined && !removed;
            std::mem::replace(fit, now) != now
        });
        if view.leader != Some(self.identity.member_id) || view.places.len() < 2 {
            self.peers_full.store(false, Ordering::Relaxed);
            return;
        }
        if quarantined && view.voters.len() > 1 {
            let handed = self.changer.perform(Change::Transfer(None)).await;
            tracing::warn!(?handed, "a quarantined member does not lead");
            return;
        }
        let statuses = self.statuses(&view).await;
        let full = view.voters.iter().filter_map(|id| statuses.get(id));
        let full = full.filter(|status| status.room != Room::Enough).count();
        self.peers_full.store(full * 2 > view.voters.len(), Ordering::Relaxed);

        let shown = *self.shown.borrow();
        if shown.mark.is_some_and(|mark| mark.hash == shown.now.hash) {
            return;
        }
        let Some(at) = self.propose_check(None).await else {
            return;
        };
        let marks = self.collect(&view, at).await;
        let members = view.places.keys().copied().collect();
        match judge(at, &members, &view.voters, &marks) {
            Judgement::Same => {
                self.suspicion.send_replace(None);
            }
            Judgement::Majority(verdict) => {
                self.suspicion.send_replace(None);
                self.propose_check(Some(verdict)).await;
            }
            Judgement::Split(why) => {
                tracing::error!(why, "the members differ, and no majority is right");
                self.suspicion.send_replace(Some(why));
            }
            Judgement::TooFew => {}
        }
    }

    /// Asks those who could not be asked at the start what this member has promised them; whether
    /// nobody is left to be asked.
    pub(crate) async fn ask_witnesses(&self) -> bool {
        let view = self.member.view();
        let mut left = std::mem::take(&mut *self.witnesses());
        left.retain(|peer| view.places.is_empty() || view.places.contains_key(&peer.id));
        if left.is_empty() {
            return true;
        }
        let held = || {
            let mut held = self.flushed.promised();
            held.add(None, self.shown.borrow().last);
            held
        };
        match promise::ask(&self.caller, left, held).await {
            Ok(silent) => {
                let asked_all = silent.is_empty();
                *self.witnesses() = silent;
                asked_all
            }
            Err(broken) => {
                self.stop.stop(&broken.refused(self.base.as_deref()).to_string());
                true
            }
        }
    }

    fn witnesses(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.witnesses.lock().expect("no section of this lock panics")
    }

    /// Whether the others say that this member is none any more. Asked only when no leader speaks
    /// to it, for nobody tells a member that it was removed.
    async fn is_removed(&self, view: &View) -> bool {
        let me = self.identity.member_id;
        let led = self.member.is_leading() || self.inbox.heard().is_some_and(|ago| ago < FORGOTTEN);
        if led || !view.places.contains_key(&me) {
            return false;
        }
        let statuses = self.statuses(view).await;
        let others: Vec<MemberId> = view.voters.iter().copied().filter(|id| *id != me).collect();
        let answered = others.iter().filter_map(|id| statuses.get(id));
        let strange = answered.filter(|status| !status.knows_you).count();
        strange > 0 && strange * 2 >= others.len()
    }

    async fn propose_check(&self, verdict: Option<Mark>) -> Option<Revision> {
        let action = Action::Check { verdict };
        let key = Bytes::new();
        let precondition = Precondition::Any;
        let command = Command { time_ms: now_ms(), id: 0, key, precondition, action };
        // What is not proposed now is the next time.
        let proposed = self.member.propose(command, u64::MAX, Instant::now()).await;
        proposed.ok().map(|(revision, _)| revision)
    }

    /// What the members noted at a revision, once all have, or time is up.
    async fn collect(&self, view: &View, at: Revision) -> BTreeMap<MemberId, Mark> {
        let deadline = Instant::now() + COLLECT_TIMEOUT;
        loop {
            let statuses = self.statuses(view).await;
            let marks = statuses.iter().filter_map(|(id, status)| Some((*id, status.mark?)));
            let marks: BTreeMap<MemberId, Mark> =
                marks.filter(|(_, mark)| mark.revision == at).collect();
            if marks.len() == view.places.len() || Instant::now() >= deadline {
                return marks;
            }
            tokio::time::sleep(COLLECT_RETRY).await;
        }
    }
}
