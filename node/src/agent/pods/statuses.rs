//! The loop's part in statuses: which ones are due, and how many are on their way.
//!
//! A Pod is in the queue at most once and written by at most one request at a time; what changes
//! meanwhile is written after. While the control plane is away one request now and then finds out;
//! while it takes requests and is silent nothing is written: it would do so when it goes on, and say of
//! a Pod what was so for a moment, long ago.

use std::time::Duration;

use jiff::Timestamp;

use crate::agent::{
    lifecycle::Stage,
    status,
    writer::{self, Write, Written},
};

use crate::protocol::Usage;

use super::{Entry, Pods, WriteState};

/// Status writes at the same time.
const WRITES_MAX: usize = 16;
/// First and longest pause after a write failed: then the control plane is away.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

impl Pods {
    /// Puts a Pod in the queue if the API does not have its status yet.
    pub(super) fn note_status(&mut self, entry: &mut Entry, uid: &str) {
        if entry.write != WriteState::Idle || !self.is_due(entry) {
            return;
        }
        entry.write = WriteState::Queued;
        self.queue.push_back(uid.to_owned());
    }

    /// What workers tell of starts and of rests becomes part of what is written.
    pub(super) fn tell_facts(&mut self, usages: &[Usage]) {
        for usage in usages {
            // Taken out only if it is put back.
            let Some(mut entry) = self.entries.remove(&usage.uid) else { continue };
            let mut news = entry.facts.idle(&usage.container, usage.idle);
            if let Some(times) = &usage.start {
                for (part, micros) in entry.facts.passed(&usage.container, times) {
                    self.parts.accounts.starts.took(part, Duration::from_micros(micros));
                }
                news |= entry.facts.started(&usage.container, times);
            }
            if news {
                self.note_status(&mut entry, &usage.uid);
            }
            self.entries.insert(usage.uid.clone(), entry);
        }
    }

    fn is_due(&self, entry: &Entry) -> bool {
        if entry.desired.deletion.is_some_and(|deletion| deletion.gone) {
            return false;
        }
        let status = status::status(&entry.state, &entry.desired.spec, self.parts.address);
        let deleting = entry.state.stage == Stage::Deleting;
        let annotations = entry.facts.annotations();
        entry.written != Some(mark(writer::content(&status, annotations).1, deleting))
    }

    /// Whether one more status may be sent now.
    pub(super) fn may_write(&self) -> bool {
        self.writes.len() < WRITES_MAX && *self.parts.reached.borrow()
    }

    pub(super) fn start_writes(&mut self) {
        let now = Timestamp::now();
        if self.paused_until.is_some_and(|until| until > now) {
            return;
        }
        while self.may_write() {
            let Some(uid) = self.queue.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&uid) else {
                continue;
            };
            let spec = &entry.desired.spec;
            let status = status::status(&entry.state, spec, self.parts.address);
            let annotations = entry.facts.annotations().clone();
            let (status, hash) = writer::content(&status, &annotations);
            let delete = entry.state.stage == Stage::Deleting;
            entry.write = WriteState::Running;
            entry.written = Some(mark(hash, delete));
            let write = Write {
                uid,
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                status,
                annotations,
                delete,
            };
            self.writes.spawn(writer::write(self.parts.client.clone(), write));
        }
    }

    pub(super) fn written(&mut self, done: Result<(String, Written), tokio::task::JoinError>) {
        let (uid, written) = done.expect("a write neither panics nor is aborted");
        let now = Timestamp::now();
        if written == Written::Failed {
            let longer = (self.pause * 2).min(PAUSE.1);
            if self.paused_until.is_none_or(|until| until <= now) {
                self.pause = longer.max(PAUSE.0);
                self.paused_until = Some(now + self.pause);
            }
        } else {
            self.pause = Duration::ZERO;
            self.paused_until = None;
        }
        let Some(mut entry) = self.entries.remove(&uid) else {
            return;
        };
        entry.write = WriteState::Idle;
        if written == Written::Failed {
            entry.written = None;
        }
        self.note_status(&mut entry, &uid);
        self.entries.insert(uid, entry);
    }
}

/// The mark of a written status: a deletion is one more thing to write.
fn mark(hash: u64, deleting: bool) -> u64 {
    hash ^ u64::from(deleting)
}
