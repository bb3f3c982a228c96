//! Directories that guests list, a part at a time.
//!
//! wasmtime reads a directory to its end at once, into memory that nobody counts (0.2), or in a
//! thread of the worker's that waits until the guest has taken the last name (0.3): a guest that
//! takes none keeps them all. Here each read is one short call for as many names as fit into a
//! buffer, made when the guest asks for them. What is held in between is a descriptor, which counts
//! as an open file, and the names of one buffer, which are booked.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Destination, FutureReader, LinkerInstance, Resource, ResourceType, StreamProducer,
    StreamReader, StreamResult, VecBuffer,
};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;

use crate::host_memory::Part;
use crate::instance::Host;

const READ_DIRECTORY: &str = "[method]descriptor.read-directory";
const STREAM: &str = "directory-entry-stream";
const READ_ENTRY: &str = "[method]directory-entry-stream.read-directory-entry";

/// Entries that are read at a time, as the kernel writes them: 29 with the longest names, 340 with
/// the shortest.
const BUFFER_BYTES: usize = 8 << 10;
/// What they take at most once they are told apart, and the rest of a stream.
pub(super) const LISTING_BYTES: usize = 32 << 10;
/// Where the name begins in the kernel's entry: behind two numbers of 64 bits (inode, offset), one of
/// 16 (the entry's length) and one of 8 (its type).
const NAME_AT: usize = 19;

/// A directory that is being listed, from its beginning to its end.
pub(crate) struct Directory {
    of: Arc<File>,
    /// Opened by the first read: where it stands is its own.
    own: OnceLock<File>,
    _booked: Part,
}

struct Entry {
    /// One of the kernel's `DT_…`.
    kind: u8,
    /// None: it is no UTF-8, which WASI cannot tell.
    name: Option<String>,
}

impl Directory {
    pub(super) fn new(of: Arc<File>, booked: Part) -> Directory {
        Directory { of, own: OnceLock::new(), _booked: booked }
    }

    fn own(&self) -> io::Result<&File> {
        if let Some(own) = self.own.get() {
            return Ok(own);
        }
        let own = File::open(format!("/proc/self/fd/{}", self.of.as_raw_fd()))?;
        Ok(self.own.get_or_init(|| own))
    }

    /// The next entries; none at the end. Blocks.
    fn read(&self) -> io::Result<Vec<Entry>> {
        let own = self.own()?;
        let mut buffer = vec![0u8; BUFFER_BYTES];
        loop {
            // SAFETY: pointer and length are those of the buffer, which the call fills at most.
            let filled = unsafe {
                let (start, length) = (buffer.as_mut_ptr(), buffer.len());
                libc::syscall(libc::SYS_getdents64, own.as_raw_fd(), start, length)
            };
            let Ok(filled) = usize::try_from(filled) else {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    // It was removed meanwhile.
                    io::ErrorKind::NotFound => Ok(Vec::new()),
                    io::ErrorKind::Interrupted => continue,
                    _ => Err(error),
                };
            };
            let entries = entries(own, &buffer[..filled]);
            // There may be nothing but the directory itself and the one above.
            if filled == 0 || !entries.is_empty() {
                return Ok(entries);
            }
        }
    }
}

/// What the kernel has written of a directory.
fn entries(directory: &File, mut written: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some(head) = written.first_chunk::<NAME_AT>() {
        let length = usize::from(u16::from_ne_bytes([head[16], head[17]]));
        let (entry, rest) = written.split_at(length.clamp(NAME_AT, written.len()));
        written = rest;
        let name = entry[NAME_AT..].split(|byte| *byte == 0).next().unwrap_or_default();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match head[18] {
            libc::DT_UNKNOWN => look_up(directory, name),
            kind => kind,
        };
        entries.push(Entry { kind, name: String::from_utf8(name.to_vec()).ok() });
    }
    entries
}

/// The type of an entry of which the file system does not say it.
fn look_up(directory: &File, name: &[u8]) -> u8 {
    let folder = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = std::path::Path::new(&folder).join(std::ffi::OsStr::from_bytes(name));
    // The upper bits of a mode are the same number.
    let kind = fs::symlink_metadata(path).map(|found| (found.mode() & libc::S_IFMT) >> 12);
    kind.ok().and_then(|kind| u8::try_from(kind).ok()).unwrap_or(libc::DT_UNKNOWN)
}

fn spawn_read(directory: &Arc<Directory>) -> JoinHandle<io::Result<Vec<Entry>>> {
    let directory = Arc::clone(directory);
    spawn_blocking(move || directory.read())
}

/// A `directory-entry-stream`.
pub(crate) struct Listing {
    directory: Arc<Directory>,
    /// What was read and not yet taken.
    entries: std::vec::IntoIter<Entry>,
}

type Listed = (Result<Resource<Listing>, p2::ErrorCode>,);

pub(crate) async fn list_p2(
    mut store: StoreContextMut<'_, Host>,
    (descriptor,): (Resource<Descriptor>,),
) -> wasmtime::Result<Listed> {
    let listed = store.data_mut().own_files().list(&descriptor)?;
    let directory = match listed {
        Ok(directory) => directory,
        Err(error) => return Ok((Err(error.into()),)),
    };
    // What cannot be read is told at once.
    let entries = match spawn_read(&directory).await? {
        Ok(entries) => entries.into_iter(),
        Err(error) => return Ok((Err(error.into()),)),
    };
    let listing = Listing { directory, entries };
    Ok((Ok(store.data_mut().own_files().table.push(listing)?),))
}

type Next = (Result<Option<p2::DirectoryEntry>, p2::ErrorCode>,);

pub(crate) async fn next_p2(
    mut store: StoreContextMut<'_, Host>,
    (stream,): (Resource<Listing>,),
) -> wasmtime::Result<Next> {
    let view = store.data_mut().own_files();
    let listing = view.table.get_mut(&stream)?;
    if let Some(entry) = listing.entries.next() {
        return Ok((entry_p2(entry).map(Some),));
    }
    let reading = spawn_read(&listing.directory);
    let mut entries = match reading.await? {
        Ok(entries) => entries.into_iter(),
        Err(error) => return Ok((Err(error.into()),)),
    };
    let first = entries.next();
    let view = store.data_mut().own_files();
    view.table.get_mut(&stream)?.entries = entries;
    Ok((first.map(entry_p2).transpose(),))
}

fn entry_p2(entry: Entry) -> Result<p2::DirectoryEntry, p2::ErrorCode> {
    let type_ = match entry.kind {
        libc::DT_BLK => p2::DescriptorType::BlockDevice,
        libc::DT_CHR => p2::DescriptorType::CharacterDevice,
        libc::DT_DIR => p2::DescriptorType::Directory,
        libc::DT_FIFO => p2::DescriptorType::Fifo,
        libc::DT_LNK => p2::DescriptorType::SymbolicLink,
        libc::DT_REG => p2::DescriptorType::RegularFile,
        libc::DT_SOCK => p2::DescriptorType::Socket,
        _ => p2::DescriptorType::Unknown,
    };
    let name = entry.name.ok_or(p2::ErrorCode::IllegalByteSequence)?;
    Ok(p2::DirectoryEntry { type_, name })
}

fn entry_p3(entry: Entry) -> Result<p3::DirectoryEntry, p3::ErrorCode> {
    let type_ = match entry.kind {
        libc::DT_BLK => p3::DescriptorType::BlockDevice,
        libc::DT_CHR => p3::DescriptorType::CharacterDevice,
        libc::DT_DIR => p3::DescriptorType::Directory,
        libc::DT_FIFO => p3::DescriptorType::Fifo,
        libc::DT_LNK => p3::DescriptorType::SymbolicLink,
        libc::DT_REG => p3::DescriptorType::RegularFile,
        libc::DT_SOCK => p3::DescriptorType::Socket,
        _ => p3::DescriptorType::Other(None),
    };
    let name = entry.name.ok_or(p3::ErrorCode::IllegalByteSequence)?;
    Ok(p3::DirectoryEntry { type_, name })
}

/// The stream of WASI 0.3.
struct Producer {
    directory: Arc<Directory>,
    /// Only while the guest reads.
    reading: Option<JoinHandle<io::Result<Vec<Entry>>>>,
    /// Told how it ended.
    ended: Option<oneshot::Sender<Result<(), p3::ErrorCode>>>,
}

impl Producer {
    fn end(&mut self, how: Result<(), p3::ErrorCode>) {
        if let Some(ended) = self.ended.take() {
            // The guest may not want to know.
            let _ = ended.send(how);
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}

impl<D: 'static> StreamProducer<D> for Producer {
    type Item = p3::DirectoryEntry;
    type Buffer = VecBuffer<p3::DirectoryEntry>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = self.get_mut();
        // Whether there is one more is known only when it was read.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let directory = &this.directory;
        let reading = this.reading.get_or_insert_with(|| spawn_read(directory));
        let read = match Pin::new(reading).poll(cx) {
            // It goes on, and what it finds is for the next one who asks.
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            polled => ready!(polled),
        };
        this.reading = None;
        let entries = match read? {
            Ok(entries) => entries,
            Err(error) => {
                this.end(Err(error.into()));
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
        };
        let (is_end, mut names) = (entries.is_empty(), Vec::with_capacity(entries.len()));
        for entry in entries {
            match entry_p3(entry) {
                Ok(entry) => names.push(entry),
                Err(error) => {
                    this.end(Err(error));
                    break;
                }
            }
        }
        destination.set_buffer(names.into());
        if is_end {
            this.end(Ok(()));
        }
        Poll::Ready(Ok(match this.ended {
            Some(_) => StreamResult::Completed,
            None => StreamResult::Dropped,
        }))
    }
}

type Streamed = ((StreamReader<p3::DirectoryEntry>, FutureReader<Result<(), p3::ErrorCode>>),);

fn list_p3(
    mut store: StoreContextMut<'_, Host>,
    (descriptor,): (Resource<Descriptor>,),
) -> wasmtime::Result<Streamed> {
    let (ended, end) = oneshot::channel();
    let listed = store.data_mut().own_files().list(&descriptor)?;
    let stream = match listed {
        Ok(directory) => {
            let producer = Producer { directory, reading: None, ended: Some(ended) };
            StreamReader::new(&mut store, producer)?
        }
        Err(error) => {
            // Its receiver is below.
            let _ = ended.send(Err(error.into()));
            StreamReader::new(&mut store, std::iter::empty())?
        }
    };
    Ok(((stream, FutureReader::new(&mut store, end)?),))
}

pub(super) fn define_p2(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    types.resource(STREAM, ResourceType::host::<Listing>(), |mut store, listing| {
        let listing = Resource::<Listing>::new_own(listing);
        store.data_mut().own_files().table.delete(listing)?;
        Ok(())
    })?;
    types.func_wrap_async(READ_DIRECTORY, |store, given: (Resource<Descriptor>,)| {
        Box::new(list_p2(store, given))
    })?;
    types.func_wrap_async(READ_ENTRY, |store, given: (Resource<Listing>,)| {
        Box::new(next_p2(store, given))
    })
}

pub(super) fn define_p3(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    types.func_wrap(READ_DIRECTORY, list_p3)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::host_memory::HostMemory;

    fn directory(path: &std::path::Path) -> Directory {
        let of = Arc::new(File::open(path).expect("a directory"));
        Directory::new(of, HostMemory::default().part())
    }

    #[test]
    fn a_directory_is_read_in_parts() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = |number: usize| format!("{number:0>200}");
        for number in 0..200 {
            fs::write(folder.path().join(names(number)), "").expect("a file");
        }
        fs::create_dir(folder.path().join("below")).expect("a folder");
        std::os::unix::fs::symlink("below", folder.path().join("link")).expect("a link");
        let directory = directory(folder.path());
        let (mut found, mut parts) = (BTreeMap::new(), 0);
        loop {
            let part = directory.read().expect("it is there");
            if part.is_empty() {
                break;
            }
            assert!(part.len() <= BUFFER_BYTES / 24);
            parts += 1;
            for entry in part {
                let again = found.insert(entry.name.expect("it is UTF-8"), entry.kind);
                assert_eq!(again, None);
            }
        }
        assert!(parts > 4, "{parts}");
        assert_eq!(found.len(), 202);
        let kinds = ["below", "link", names(7).as_str()].map(|name| found[name]);
        assert_eq!(kinds, [libc::DT_DIR, libc::DT_LNK, libc::DT_REG]);
        assert!(directory.read().expect("it is there").is_empty(), "the end stays the end");
    }

    #[test]
    fn entries_without_a_type_are_looked_up() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("below")).expect("a folder");
        let file = File::open(folder.path()).expect("a directory");
        let written = |kind: u8| {
            let mut entry = vec![0; 32];
            entry[16..18].copy_from_slice(&32u16.to_ne_bytes());
            entry[18] = kind;
            entry[NAME_AT..NAME_AT + 5].copy_from_slice(b"below");
            entry
        };
        let kinds = |written: &[u8]| {
            entries(&file, written).iter().map(|entry| entry.kind).collect::<Vec<u8>>()
        };
        let both = [written(libc::DT_UNKNOWN), written(libc::DT_REG)].concat();
        assert_eq!(kinds(&both), [libc::DT_DIR, libc::DT_REG]);
        assert_eq!(look_up(&file, b"nothing"), libc::DT_UNKNOWN);
        // An entry says how long it is; none is taken for shorter than its head.
        let mut broken = written(libc::DT_REG);
        broken[16..18].copy_from_slice(&0u16.to_ne_bytes());
        assert!(kinds(&broken).len() <= 2);
    }

    #[test]
    fn a_directory_that_is_removed_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("below");
        fs::create_dir(&below).expect("a folder");
        let directory = directory(&below);
        fs::remove_dir(&below).expect("it is empty");
        assert!(directory.read().map_or(true, |entries| entries.is_empty()));
    }
}
