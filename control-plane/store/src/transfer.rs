//! A snapshot on its way from one member to another.
//!
//! ```text
//!  root ─▶ pieces of whole objects, a record each ~~~▶ Receiver ─▶ staged state on disk
//!                                                             └─▶ new root ─▶ openraft ─▶ adopt
//! ```
//!
//! Every piece has its own checksum and carries a running one over those before it, so a lost,
//! doubled or mixed-up piece is noticed at once; at the end the hash of the whole state must be the
//! sender's. The receiver builds the new state beside the old one, in memory and in a folder of its
//! own; nothing of it counts before the last piece, and a new transfer throws an unfinished one
//! away. A crash at any point leaves the old state, and a folder that the next start removes.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::{Batch, Engine, EngineError, Stage};
use crate::faults::Faults;
use crate::machine::{Image, put_entry};
use crate::raft::{Snapshot, Vote};
use crate::state::{self, Entry, Root};
use crate::wire::Piece;

/// Bytes of objects in one piece of a snapshot; at least one object goes into each.
const PIECE_BYTES: usize = 2 << 20;

fn add_to_checksum(hasher: &mut crc32fast::Hasher, key: &[u8], entry: &Entry) {
    hasher.update(key);
    hasher.update(&entry.modified.to_le_bytes());
    hasher.update(&entry.value);
}

/// Cuts a snapshot into pieces, made one by one as they are sent. There is always a last one.
pub(crate) fn pieces(
    vote: Vote,
    snapshot: &Snapshot,
    transfer: u64,
) -> impl Iterator<Item = Piece> {
    let image = &snapshot.snapshot;
    let hash = image.hash;
    let mut objects = image.root.iter().peekable();
    let mut hasher = crc32fast::Hasher::new();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let number = next?;
        let before = hasher.clone().finalize();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES
            && let Some((key, entry)) = objects.next()
        {
            bytes += key.len() + entry.value.len();
            add_to_checksum(&mut hasher, key, entry);
            taken.push((key.clone(), entry.clone()));
        }
        let last = objects.peek().is_none();
        next = (!last).then_some(number + 1);
        Some(Piece {
            vote,
            meta: snapshot.meta.clone(),
            time_ms: image.time_ms,
            mark: image.mark,
            hash,
            transfer,
            number,
            before,
            last,
            objects: taken,
        })
    })
}

/// Why a piece is not taken in. The sender begins anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("no snapshot is being received")]
    Nothing,
    #[error("the piece does not follow the one before it")]
    Order,
    #[error("the objects received are not those that were sent")]
    Hash,
    #[error("the snapshot cannot be written: {0}")]
    Disk(String),
}

impl From<EngineError> for ReceiveError {
    fn from(error: EngineError) -> ReceiveError {
        ReceiveError::Disk(error.to_string())
    }
}

/// Takes pieces in.
pub(crate) struct Receiver {
    engine: Arc<dyn Engine>,
    faults: Faults,
    /// The snapshot on its way in; taken out while a piece is added. A std mutex: sections are
    /// short and never await.
    incoming: Mutex<Option<Incoming>>,
}

impl Receiver {
    pub(crate) fn new(engine: Arc<dyn Engine>, faults: Faults) -> Receiver {
        Receiver { engine, faults, incoming: Mutex::new(None) }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.incoming.lock().expect("no section of this lock panics")
    }

    /// Adds a piece to the snapshot on its way in; the whole of it once it is complete.
    pub(crate) async fn take_in(
        &self,
        piece: Piece,
    ) -> Result<Option<(Vote, Snapshot)>, ReceiveError> {
        let passed = self.faults.pass("snapshot.receive").await;
        passed.map_err(|error| ReceiveError::Disk(error.to_string()))?;
        let earlier = self.slot().take();
        let (engine, faults) = (self.engine.clone(), self.faults.clone());
        let adding = tokio::task::spawn_blocking(move || {
            let mut incoming = match earlier {
                _ if piece.number == 0 => Incoming::begin(&*engine, &piece)?,
                Some(incoming) => incoming,
                None => return Err(ReceiveError::Nothing),
            };
            incoming.add(&piece, &faults)?;
            incoming.write(&*engine, &piece)?;
            Ok((incoming, piece))
        });
        let added = adding.await.map_err(|error| ReceiveError::Disk(error.to_string()))?;
        let (incoming, piece) = added?;
        if !piece.last {
            *self.slot() = Some(incoming);
            return Ok(None);
        }
        if incoming.hash != piece.hash {
            return Err(ReceiveError::Hash);
        }
        let Piece { vote, meta, time_ms, mark, hash, .. } = piece;
        let (root, stage) = (incoming.root, Some(incoming.stage));
        let image = Image { root, hash, time_ms, mark, stage };
        Ok(Some((vote, Snapshot { meta, snapshot: image })))
    }
}

struct Incoming {
    vote: Vote,
    transfer: u64,
    next: u64,
    root: Root,
    hash: u128,
    hasher: crc32fast::Hasher,
    stage: Stage,
}

impl Incoming {
    fn begin(engine: &dyn Engine, piece: &Piece) -> Result<Incoming, ReceiveError> {
        let (vote, transfer) = (piece.vote, piece.transfer);
        tracing::info!(transfer, meta = %piece.meta, "receive a snapshot");
        let (root, hasher) = (Root::new(), crc32fast::Hasher::new());
        Ok(Incoming { vote, transfer, next: 0, root, hash: 0, hasher, stage: engine.stage()? })
    }

    /// Takes the objects of the next piece in.
    fn add(&mut self, piece: &Piece, faults: &Faults) -> Result<(), ReceiveError> {
        let same = self.vote == piece.vote && self.transfer == piece.transfer;
        let fits = self.next == piece.number && self.hasher.clone().finalize() == piece.before;
        if !same || !fits {
            return Err(ReceiveError::Order);
        }
        for (key, entry) in &piece.objects {
            add_to_checksum(&mut self.hasher, key, entry);
            self.hash = self.hash.wrapping_add(state::part(faults, key, entry));
            self.root.insert(key.clone(), entry.clone());
        }
        self.next += 1;
        Ok(())
    }

    fn write(&self, engine: &dyn Engine, piece: &Piece) -> Result<(), ReceiveError> {
        let mut batch = Batch::default();
        for (key, entry) in &piece.objects {
            put_entry(&mut batch, key.clone(), entry);
        }
        Ok(engine.fill(self.stage, &batch)?)
    }
}

#[cfg(test)]
mod tests;
