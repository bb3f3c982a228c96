//! Backups by the clock, made by the member that leads.
//!
//! What is there is read from the destination each time, never remembered: so a new leader goes on
//! where the old one stopped, and a backup that somebody removed is not missed. A backup appears
//! under its name complete or not at all, and those of other clusters in the same place are left
//! alone.
//!
//! ```text
//!  wherry-5f3a90c1-20261121T080000Z.backup      cluster (first 8 digits of its id), time (UTC)
//! ```
//!
//! [`run`] is one task of the leader's work; it ends with it, and gives up an upload that is on its
//! way.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, WriteMultipart};
use tokio_util::sync::CancellationToken;
use wherry_store::{Backup, BackupError, ReadError, Store};

use super::destination::Destination;
use crate::reports::Reports;

/// A part of an upload; S3 takes ten thousand of them, of at least 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// Parts on their way at the same time: this times [`PART_BYTES`] is what an upload holds in memory.
const PARTS_AT_ONCE: usize = 2;

/// After a failure the next attempt comes so soon, or with the next backup if that is sooner.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A cluster that was founded a moment ago holds nothing that is worth a backup, and would go without
/// one until the next is due: its first one is made so much later.
const FOUNDED_WAIT: Duration = Duration::from_secs(5);

/// Objects looked at in the destination; a bucket that holds more than that is not ours to list.
const LISTED_MAX: usize = 100_000;

/// When backups are made and how many are kept.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub to: Destination,
    pub every: Duration,
    pub keep: usize,
}

#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the destination cannot be used: {0}")]
    Destination(#[from] object_store::Error),
    #[error(
        "the destination holds more than {LISTED_MAX} objects; give backups a place of their own"
    )]
    TooMany,
    #[error("the store cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("{found} bytes arrived of {sent}")]
    Size { sent: u64, found: u64 },
    #[error("it was stopped")]
    Stopped,
}

/// A backup that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    made: Timestamp,
    path: Path,
    bytes: u64,
}

/// Makes backups until `stop`.
pub(crate) async fn run(
    store: Store,
    schedule: Schedule,
    reports: Arc<Reports>,
    stop: CancellationToken,
) {
    loop {
        let wait = match round(&store, &schedule, &reports, &stop).await {
            Ok(wait) => wait,
            Err(RoundError::Stopped) => return,
            Err(error) => {
                tracing::error!(to = %schedule.to, %error, "scheduled backup failed");
                reports.backups(|backups| backups.failed += 1);
                RETRY_AFTER.min(schedule.every)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes a backup if one is due, and removes those that are too many; returns how long it is until
/// the next one.
async fn round(
    store: &Store,
    schedule: &Schedule,
    reports: &Reports,
    stop: &CancellationToken,
) -> Result<Duration, RoundError> {
    let cluster = store.cluster_id();
    let found = list(&schedule.to, cluster).await?;
    if let Some(newest) = found.last() {
        tell_newest(reports, newest);
    }
    let now = Timestamp::now();
    let wait = due_in(found.last().map(|newest| newest.made), schedule.every, now);
    if !wait.is_zero() {
        return Ok(wait);
    }
    if store.current().is_empty() {
        return Ok(FOUNDED_WAIT.min(schedule.every));
    }
    let path = schedule.to.prefix.clone().join(name(cluster, now).as_str());
    let backup = store.backup(false).await?;
    let revision = backup.head().revision;
    let bytes = upload(&schedule.to, &path, backup, stop).await?;
    let made = Found { made: now, path, bytes };
    tracing::info!(to = %schedule.to, path = %made.path, revision, bytes, "backup made");
    reports.backups(|backups| backups.made += 1);
    tell_newest(reports, &made);

    let all = list(&schedule.to, cluster).await?;
    for old in surplus(&all, schedule.keep) {
        schedule.to.store.delete(&old.path).await?;
        tracing::info!(path = %old.path, "old backup removed");
    }
    Ok(schedule.every)
}

fn tell_newest(reports: &Reports, newest: &Found) {
    reports.backups(|backups| {
        backups.newest_seconds = u64::try_from(newest.made.as_second()).unwrap_or(0);
        backups.newest_bytes = newest.bytes;
    });
}

/// This cluster's backups, oldest first.
async fn list(to: &Destination, cluster: u128) -> Result<Vec<Found>, RoundError> {
    let mut objects = to.store.list(Some(&to.prefix));
    let mut found = Vec::new();
    let mut seen = 0;
    while let Some(object) = objects.try_next().await? {
        seen += 1;
        if seen > LISTED_MAX {
            return Err(RoundError::TooMany);
        }
        let (path, bytes) = (object.location, object.size);
        let made = path.filename().and_then(|name| made_at(cluster, name));
        let here = path.parts_count() == to.prefix.parts_count() + 1;
        if let (Some(made), true) = (made, here) {
            found.push(Found { made, path, bytes });
        }
    }
    found.sort();
    Ok(found)
}

/// Sends a backup. If anything goes wrong, nothing appears.
async fn upload(
    to: &Destination,
    path: &Path,
    backup: Backup,
    stop: &CancellationToken,
) -> Result<u64, RoundError> {
    let upload: Box<dyn MultipartUpload> = to.store.put_multipart(path).await?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let sent = match send(&mut upload, backup, stop).await {
        Ok(sent) => sent,
        Err(error) => {
            // The error says more than what becomes of the parts that were sent.
            let _ = upload.abort().await;
            return Err(error);
        }
    };
    upload.finish().await?;
    let found = to.store.head(path).await?.size;
    if found != sent {
        return Err(RoundError::Size { sent, found });
    }
    Ok(sent)
}

async fn send(
    upload: &mut WriteMultipart,
    backup: Backup,
    stop: &CancellationToken,
) -> Result<u64, RoundError> {
    let mut sent = 0;
    for frame in backup {
        let frame = frame?;
        sent += frame.len() as u64;
        tokio::select! {
            capacity = upload.wait_for_capacity(PARTS_AT_ONCE) => capacity?,
            () = stop.cancelled() => return Err(RoundError::Stopped),
        }
        upload.put(frame);
        // Making a frame takes a moment of this thread, and others wait for it.
        tokio::task::yield_now().await;
    }
    Ok(sent)
}

fn of_cluster(cluster: u128) -> String {
    format!("wherry-{:08x}-", cluster >> 96)
}

const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";
const ENDING: &str = ".backup";

/// The name of a backup.
fn name(cluster: u128, made: Timestamp) -> String {
    format!("{}{}{ENDING}", of_cluster(cluster), made.strftime(TIME_FORMAT))
}

/// When a backup of this cluster was made, by its name; `None` for other names.
fn made_at(cluster: u128, name: &str) -> Option<Timestamp> {
    let time = name.strip_prefix(&of_cluster(cluster))?.strip_suffix(ENDING)?;
    let time = jiff::civil::DateTime::strptime(TIME_FORMAT, time).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// How long it is until the next backup; zero if it is due. A newest one that lies ahead, by another
/// member's clock, does not put the next one off for longer than one interval.
fn due_in(newest: Option<Timestamp>, every: Duration, now: Timestamp) -> Duration {
    let Some(newest) = newest else {
        return Duration::ZERO;
    };
    let age = Duration::try_from(now.duration_since(newest)).unwrap_or(Duration::ZERO);
    every.saturating_sub(age)
}

/// Those beyond the newest `keep`.
fn surplus(oldest_first: &[Found], keep: usize) -> &[Found] {
    &oldest_first[..oldest_first.len().saturating_sub(keep)]
}

#[cfg(test)]
mod tests;
