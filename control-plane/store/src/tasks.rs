//! The tasks of a store: each is a loop that gathers, asks somebody who decides, and acts.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::check::CHECK_EVERY;
use crate::errors::ReadError;
use crate::log::Flushed;
use crate::machine::Growth;
use crate::raft::Member;
use crate::space::{Room, Space};
use crate::state::Revision;
use crate::store::{Inner, Leadership, READERS_MAX};
use crate::superblock::Anchor;
use crate::watch::Feed;
use crate::writer::{Stop, Writer};

/// How often the free space is looked at, the superblock's promise renewed, and what was put off
/// written though nothing else is.
const HOUSE_EVERY: Duration = Duration::from_millis(500);

/// A log that grows slowly is compacted this often.
const COMPACT_EVERY: Duration = Duration::from_secs(10 * 60);

/// Whoever waits for another leader looks again after this, for not all that changes is told.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Those who could not be asked at the start what this member has promised are asked again after
/// this: as long as they are silent, it may have forgotten something.
const WITNESSES_EVERY: Duration = Duration::from_millis(500);

/// Somebody who waits for a read index.
pub(crate) type Reader = oneshot::Sender<Result<Revision, ReadError>>;

/// Waits until somebody else leads, or a little.
pub(crate) async fn pause(leadership: &mut watch::Receiver<Leadership>) {
    // Both ends mean the same: look again.
    let _ = tokio::time::timeout(LOOK_AGAIN, leadership.changed()).await;
    if leadership.has_changed().is_err() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Lets those tasks run first that are ready on this thread.
pub(crate) async fn step_back() {
    let mut stepped = false;
    let step = poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    });
    step.await;
}

/// The leadership task; it also ends the Raft member when the store is shut down, dropped, or has
/// failed.
pub(crate) async fn follow(
    member: Member,
    tell: watch::Sender<Leadership>,
    feed: Arc<Feed>,
    (stop, shutdown): (Stop, CancellationToken),
) {
    let following = member.follow_leadership(|leadership| {
        let changed = tell.send_if_modified(|current| {
            let changed = *current != leadership;
            *current = leadership;
            changed
        });
        if changed {
            tracing::info!(?leadership, "leadership changed");
        }
    });
    tokio::select! {
        reason = following => stop.stop(&reason),
        _ = stop.stopped() => member.shutdown().await,
        () = shutdown.cancelled() => {
            stop.stop("it was shut down");
            member.shutdown().await;
        }
    }
    tell.send_replace(Leadership::Follower { leader: None });
    feed.stop();
}

/// The reads task: everyone who waits when a read index is asked for gets that one.
pub(crate) async fn reads(inner: Weak<Inner>, mut waiting: mpsc::Receiver<Reader>) {
    let mut readers = Vec::new();
    let mut last = None;
    while waiting.recv_many(&mut readers, READERS_MAX).await > 0 {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let index = inner.read_index(last).await;
        last = index.clone().ok().or(last);
        for reader in readers.drain(..) {
            // Whoever does not wait any more does not need the answer.
            let _ = reader.send(index.clone());
        }
    }
}

/// What the housekeeping task works with.
pub(crate) struct House {
    pub(crate) member: Member,
    pub(crate) growth: Arc<Growth>,
    pub(crate) space: Space,
    pub(crate) room: Arc<AtomicU8>,
    pub(crate) flushed: Flushed,
    pub(crate) anchor: Arc<Anchor>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) writer: Writer,
}

/// The housekeeping task.
pub(crate) async fn keep_house(house: House) {
    let House { member, growth, space, room, flushed, anchor, feed, writer } = house;
    let space = Arc::new(space);
    let mut ticks = tokio::time::interval(HOUSE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut compactions = tokio::time::interval(COMPACT_EVERY);
    let mut renewed = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                // A writer that has ended has stopped the store.
                let _ = writer.settle().await;
                let (space, flushed, anchor) = (space.clone(), flushed.clone(), anchor.clone());
                let look = move || (space.look(), flushed.promise(&anchor));
                let Ok((now, promised)) = tokio::task::spawn_blocking(look).await else {
                    continue;
                };
                // It promises less than it could: a start finds less. On a full disk that lasts.
                if let Err(error) = &promised
                    && renewed
                {
                    tracing::warn!(%error, "the superblock cannot be renewed");
                }
                renewed = promised.is_ok();
                let before = Room::of(room.swap(now as u8, Ordering::Relaxed));
                if before != now {
                    tracing::warn!(?before, ?now, "free space of the store's disk changed");
                }
                if now != Room::Enough && growth.any() {
                    member.compact(&growth, feed.current().revision(), true).await;
                }
            }
            _ = growth.compact.notified() => {
                member.compact(&growth, feed.current().revision(), false).await;
            }
            _ = compactions.tick() => if growth.any() {
                member.compact(&growth, feed.current().revision(), false).await;
            }
        }
    }
}

/// The campaign task: a member asks for votes while it is fit to lead, and not while votes of slow
/// disks may be on their way.
pub(crate) async fn campaign(
    member: Member,
    mut fit: watch::Receiver<bool>,
    mut rest: watch::Receiver<Option<Instant>>,
) {
    loop {
        let until = rest.borrow_and_update().filter(|until| *until > Instant::now());
        member.may_campaign(*fit.borrow_and_update() && until.is_none());
        let rested = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = fit.changed() => changed,
            changed = rest.changed() => changed,
            () = rested => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The compare task.
pub(crate) async fn compare(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        inner.compare().await;
    }
}

/// The task that asks witnesses until all have answered.
pub(crate) async fn witnesses(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(WITNESSES_EVERY).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if inner.ask_witnesses().await {
            return;
        }
    }
}

/// Notes when the state is at least what it was before the member stopped.
pub(crate) async fn recover(inner: Weak<Inner>, member: Member) {
    if member.recovered().await
        && let Some(inner) = inner.upgrade()
    {
        inner.recovered.store(true, Ordering::Relaxed);
    }
}
