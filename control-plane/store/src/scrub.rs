//! Looking again at what is stored: bits turn over, in memory and on disks, long after they were
//! written as they should be.
//!
//! ```text
//!  memory: the newest root, object by object ─▶ its hash must be the one that apply has kept
//!  disk:   every record of every column      ─▶ its own checksum, and RocksDB's of each block
//! ```
//!
//! Whoever reads is answered from memory, so memory is looked through every few seconds: what was
//! read and wrong is found within 10 s. Files are read when a member starts and when RocksDB merges
//! them; a look at them in between finds damage while other members still have the data.
//!
//! Both go in slices, and rest after each slice for a multiple of the time it took, so that they
//! take a small part of one processor however much is stored. A look at memory holds an old root
//! meanwhile, which costs what has changed since.
//!
//! What is found ends the store: with damaged memory it is sound again once it is read from disk,
//! with damaged files it does not open any more and is replaced. Only a member that is alone goes on
//! with damaged files, and says so: what it has in memory is the last sound copy, and can be backed
//! up. What is not damage, such as a key that is missing, is only said.

use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::Decoder;
use crate::engine::{Column, Engine, EngineError, Walk};
use crate::faults::Faults;
use crate::log::decode_entry;
use crate::machine::decode_object;
use crate::state::{self, Mark, Root};
use crate::store::Inner;

/// A look at memory begins so long after the last one began, at the earliest. It is made twice
/// before it counts, and both must be done within 10 s.
const MEMORY_EVERY: Duration = Duration::from_secs(4);

/// A look at memory rests so many times as long as it works: 5 % of a processor hash a gigabyte
/// within 10 s.
const MEMORY_REST: u32 = 19;

/// A look at the files begins so long after the last one began, at the earliest.
const FILES_EVERY: Duration = Duration::from_secs(5);

/// A look at the files rests so many times as long as it works: 1 % of a processor, which on a
/// large store is also little of what its disk can do.
const FILES_REST: u32 = 99;

/// Looked at in one go, in well below the time of a heartbeat.
const SLICE_BYTES: usize = 1 << 20;

/// What an object costs a look beside its bytes.
const OBJECT_BYTES: usize = 64;

/// Between an entry's hash and its root becoming visible are microseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What can be looked through, slice by slice.
trait Look: Send + 'static {
    /// Looks at the next slice; `Walk::Enough` when it was the last one.
    fn slice(&mut self) -> Result<Walk, EngineError>;
}

/// The objects in memory at one revision.
struct Memory {
    root: Root,
    /// What they must hash to.
    kept: Mark,
    faults: Faults,
    sum: u128,
    after: Option<Bytes>,
}

impl Memory {
    fn new(root: Root, kept: Mark, faults: Faults) -> Memory {
        Memory { root, kept, faults, sum: 0, after: None }
    }

    /// The newest state with its hash; `None` while it is just changing.
    fn newest(inner: &Inner) -> Option<Memory> {
        let (snapshot, kept) = (inner.feed.current(), inner.shown.borrow().now);
        let same = snapshot.revision() == kept.revision;
        same.then(|| Memory::new(snapshot.root, kept, inner.faults().clone()))
    }
}

impl Look for Memory {
    fn slice(&mut self) -> Result<Walk, EngineError> {
        let after = self.after.take();
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        for (key, entry) in self.root.range::<_, [u8]>((from, Bound::Unbounded)) {
            self.sum = self.sum.wrapping_add(state::part(&self.faults, key, entry));
            bytes += key.len() + entry.value.len() + OBJECT_BYTES;
            if bytes >= SLICE_BYTES {
                self.after = Some(key.clone());
                return Ok(Walk::On);
            }
        }
        let Mark { revision, hash } = self.kept;
        if self.sum == hash {
            return Ok(Walk::Enough);
        }
        let why = format!(
            "at revision {revision} it hashes to {:032x}, when it was stored to {hash:032x}; a \
             member that is started again reads its data from disk, and if this comes again, the \
             machine's memory is to be replaced",
            self.sum
        );
        Err(EngineError::DamagedMemory(why))
    }
}

/// All that lies on disk.
struct Files {
    disk: Arc<dyn Engine>,
    /// Which of all columns.
    column: usize,
    from: Vec<u8>,
}

impl Files {
    fn new(disk: Arc<dyn Engine>) -> Files {
        Files { disk, column: 0, from: Vec::new() }
    }
}

impl Look for Files {
    fn slice(&mut self) -> Result<Walk, EngineError> {
        let column = Column::ALL[self.column];
        let (mut bytes, mut next) = (0, None);
        self.disk.scan(column, &self.from, &mut |key, record| {
            if bytes >= SLICE_BYTES {
                next = Some(key.to_vec());
                return Ok(Walk::Enough);
            }
            bytes += key.len() + record.len() + OBJECT_BYTES;
            check(column, key, record)?;
            Ok(Walk::On)
        })?;
        self.column += usize::from(next.is_none());
        self.from = next.unwrap_or_default();
        Ok(if self.column == Column::ALL.len() { Walk::Enough } else { Walk::On })
    }
}

/// Reads a record as it is read when it is needed.
fn check(column: Column, key: &[u8], record: &[u8]) -> Result<(), EngineError> {
    match column {
        Column::Log => decode_entry(key, record).map(drop),
        Column::State => decode_object(key, record).map(drop),
        Column::Meta => Decoder::open(record).map(drop).map_err(|error| {
            EngineError::Damaged(format!("the mark {}", key.escape_ascii()), error.to_string())
        }),
    }
}

/// Looks through everything, and rests `rest` times as long as it works.
async fn look_through(mut look: impl Look, rest: u32) -> Result<(), EngineError> {
    loop {
        let slice = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let walk = look.slice();
            (look, walk, begun.elapsed())
        });
        // It does not panic: the runtime ends, and everything with it.
        let Ok((back, walk, worked)) = slice.await else {
            return Ok(());
        };
        if walk? == Walk::Enough {
            return Ok(());
        }
        look = back;
        tokio::time::sleep(worked * rest).await;
    }
}

/// The task that looks at memory.
pub(crate) async fn memory(inner: Weak<Inner>) {
    let mut suspected = false;
    loop {
        let begun = Instant::now();
        let Some(look) = inner.upgrade().map(|inner| Memory::newest(&inner)) else {
            return;
        };
        let Some(look) = look else {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        let found = look_through(look, MEMORY_REST).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        match found {
            Ok(()) => suspected = false,
            // Once more, on a newer state: nobody is to be stopped by a mistake in here.
            Err(_) if !suspected => {
                suspected = true;
                continue;
            }
            Err(error) => return inner.stop.stop(&error.to_string()),
        }
        drop(inner);
        tokio::time::sleep(MEMORY_EVERY.saturating_sub(begun.elapsed())).await;
    }
}

/// The task that looks at the files.
pub(crate) async fn files(inner: Weak<Inner>) {
    loop {
        let begun = Instant::now();
        let Some(disk) = inner.upgrade().map(|inner| inner.disk.clone()) else {
            return;
        };
        let found = look_through(Files::new(disk), FILES_REST).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let doubt = match found {
            Ok(()) => None,
            Err(EngineError::Closed) => return,
            Err(error @ EngineError::Damaged(..)) if inner.member.view().voters.len() > 1 => {
                return inner.stop.stop(&error.to_string());
            }
            Err(error @ EngineError::Damaged(..)) => Some(format!(
                "{error}; this member is alone, and what it has in memory is sound: make a backup \
                 with `wherry backup save` before it is stopped, and restore that"
            )),
            // It may pass: no key for a moment, no free file handle.
            Err(error) => Some(format!("looking at the store's files failed: {error}")),
        };
        inner.files_doubt.send_if_modified(|told| {
            let is_news = *told != doubt;
            if is_news && let Some(why) = &doubt {
                tracing::error!(why, "the store's files are in doubt");
            }
            *told = doubt;
            is_news
        });
        drop(inner);
        tokio::time::sleep(FILES_EVERY.saturating_sub(begun.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::engine::Batch;
    use crate::engine::memory::Memory as InMemory;
    use crate::machine::put_entry;
    use crate::state::Entry;

    fn entry(number: usize) -> Entry {
        let value = Bytes::from(format!("{number:01000}"));
        Entry { value, created: 1, modified: 1 + number as u64 }
    }

    fn key(number: usize) -> Bytes {
        Bytes::from(format!("key/{number:05}"))
    }

    /// Looks until the end; how many slices it took.
    fn slices(look: &mut impl Look) -> Result<usize, EngineError> {
        let mut slices = 1;
        while look.slice()? == Walk::On {
            slices += 1;
        }
        Ok(slices)
    }

    #[test]
    fn each_changed_bit_of_memory_is_found() {
        let root: Root = (0..2500).map(|number| (key(number), entry(number))).collect();
        let kept = Mark { revision: 9, hash: state::hash(&root) };
        let look = |root: &Root| slices(&mut Memory::new(root.clone(), kept, Faults::default()));
        let whole = look(&root).expect("nothing is damaged");
        assert_eq!(whole, 3, "2,500 objects of 1,000 bytes are a little more than two slices");
        for (number, bit) in [(0, 0), (999, 4000), (2499, 7999)] {
            let mut damaged = root.clone();
            let mut value = entry(number).value.to_vec();
            value[bit / 8] ^= 1 << (bit % 8);
            damaged.insert(key(number), Entry { value: value.into(), ..entry(number) });
            let found = look(&damaged).expect_err("it is found").to_string();
            assert!(found.contains("memory") && found.contains("revision 9"), "{found}");
        }
        let mut lost = root.clone();
        lost.remove(&key(7));
        assert!(look(&lost).is_err(), "an object that is gone is found too");
    }

    #[test]
    fn each_damaged_record_is_found() {
        let disk = Arc::new(InMemory::new());
        let mut batch = Batch::default();
        for number in 0..2500 {
            put_entry(&mut batch, key(number), &entry(number));
        }
        let mark = codec::encode(8, &7u64, |encoder, number| encoder.u64(*number));
        batch.put(Column::Meta, Bytes::from_static(b"mark"), mark);
        disk.write(&batch, true).expect("memory does not fail");
        let look = || slices(&mut Files::new(disk.clone()));
        assert_eq!(look().expect("nothing is damaged"), 5, "one slice for each small column");

        for (column, key) in [(Column::State, key(2100)), (Column::Meta, Bytes::from("mark"))] {
            let sound = disk.get(column, &key).expect("it can be read").expect("it is there");
            let mut damaged = sound.clone();
            *damaged.last_mut().expect("it is not empty") ^= 2;
            for (record, is_sound) in [(damaged, false), (sound, true)] {
                let mut batch = Batch::default();
                batch.put(column, key.clone(), record);
                disk.write(&batch, true).expect("memory does not fail");
                assert_eq!(look().is_ok(), is_sound, "{column:?}");
            }
        }
    }
}
