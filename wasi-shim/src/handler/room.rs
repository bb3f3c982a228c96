//! Memory for another instance. A Pod's limit is for all instances of a container together, so a
//! request that finds no memory for one waits until another has ended, as it waits for a place.

use super::rest::Linked;
use super::{HandleError, Inner, Instance, Queued};
use crate::account::Reserved;

/// Where a request is handled: in an instance that has rested, or in a new one.
pub(super) struct Room {
    pub(super) resting: Option<Instance>,
    /// For a new one.
    pub(super) reserved: Reserved,
}

impl Inner {
    /// Memory for another instance, if there is some.
    pub(super) fn reserve(&self, linked: &Linked) -> Option<Reserved> {
        let total = self.pod.config.limits.memory_bytes_total;
        // One that never fits is not waited for: its own limiter says so.
        self.pod.meter.account.reserve(linked.memory_bytes.min(total), total)
    }

    /// An instance that rests, or memory for a new one.
    fn find_room(&self, linked: &Linked) -> Option<Room> {
        if let Some(instance) = self.shelf.take() {
            let reserved = Reserved::nothing(&self.pod.meter.account);
            return Some(Room { resting: Some(instance), reserved });
        }
        self.reserve(linked).map(|reserved| Room { resting: None, reserved })
    }

    /// Waits in the queue for that, if there is room in it: the memory limit is the container's, and
    /// other instances have it.
    pub(super) async fn room(&self, linked: &Linked) -> Result<Room, HandleError> {
        if let Some(room) = self.find_room(linked) {
            return Ok(room);
        }
        let limits = &self.pod.config.limits;
        let _queued = Queued::enter(&self.queued, limits.queued_requests)?;
        let account = &self.pod.meter.account;
        let found = async {
            loop {
                account.memory_freed().await;
                if let Some(room) = self.find_room(linked) {
                    // There may be enough for others, too.
                    account.tell_freed();
                    return room;
                }
            }
        };
        let found = tokio::time::timeout(limits.request_deadline, found).await;
        found.map_err(|_| HandleError::Busy)
    }
}
