//! What of `wasi:filesystem` costs the worker something, bounded: what guests have open are
//! descriptors, of which its other guests want some, too; directories are listed a part at a time (see
//! `listing`); and each stream of a file holds what is read ahead or being written.
//!
//! The rest of the interface is wasmtime's own. What keeps a file open is not its descriptor alone
//! but its streams as well; wasmtime has them share the file by an `Arc`, so a file counts as long
//! as that lives, and nobody has to say when it ends.
//!
//! Modules of WASI p1 open their files past this one, for wasmtime links them to functions of its
//! own; they are held by how large their table of resources may become.

mod listing;

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use wasmtime::StoreContextMut;
use wasmtime::component::{
    Access, Accessor, FutureReader, Linker, Resource, ResourceTable, StreamReader,
};
use wasmtime_wasi::filesystem::{
    Descriptor, WasiFilesystem, WasiFilesystemCtxView, WasiFilesystemView,
};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;

use self::listing::{Directory, LISTING_BYTES};
#[cfg(test)]
pub(crate) use self::listing::{list_p2, next_p2};
use crate::host_memory::HostMemory;
use crate::instance::Host;
use crate::limits::{
    FILE_HANDLES_MAX, FILE_HANDLES_MAX_TOTAL, OPEN_FILES_MAX, OPEN_FILES_MAX_TOTAL,
};
use crate::output::Output;

const OPEN_AT: &str = "[method]descriptor.open-at";
const READ_STREAM: &str = "[method]descriptor.read-via-stream";
const WRITE_STREAM: &str = "[method]descriptor.write-via-stream";
const APPEND_STREAM: &str = "[method]descriptor.append-via-stream";

/// Files, and directories that are listed, that somebody holds open.
#[derive(Default)]
struct Held(Vec<Weak<dyn Send + Sync>>);

impl Held {
    fn has_room(&mut self, max: usize) -> bool {
        if self.0.len() >= max {
            self.0.retain(|file| file.strong_count() > 0);
        }
        self.0.len() < max
    }

    /// Descriptors and streams of all of them.
    fn handles(&self) -> usize {
        self.0.iter().map(Weak::strong_count).sum()
    }
}

/// What all instances of a container have open.
#[derive(Default)]
pub(crate) struct Common {
    held: Held,
    /// Whether the container's log says that there were too many.
    told: bool,
}

/// What one instance has open.
pub(crate) struct OpenFiles {
    held: Held,
    /// Locked for a look at the list.
    common: Arc<Mutex<Common>>,
    log: Output,
    host_memory: HostMemory,
    volumes_listed: bool,
}

impl OpenFiles {
    pub(crate) fn new(
        common: Arc<Mutex<Common>>,
        log: Output,
        host_memory: HostMemory,
    ) -> OpenFiles {
        OpenFiles { held: Held::default(), common, log, host_memory, volumes_listed: false }
    }

    /// Whether one more may be opened. If not, the container's log says so, once.
    fn has_room(&mut self) -> bool {
        let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room =
            self.held.has_room(OPEN_FILES_MAX) && common.held.has_room(OPEN_FILES_MAX_TOTAL);
        if !has_room && !common.told {
            common.told = true;
            let line = format!(
                "wherry: a file was not opened: an instance may have {OPEN_FILES_MAX} open, all of \
                 a container {OPEN_FILES_MAX_TOTAL}; close what is not needed\n"
            );
            (self.log)(line.as_bytes());
        }
        has_room
    }

    /// Counts what was opened; says whether there was room for it.
    pub(crate) fn hold(&mut self, descriptor: &Descriptor) -> bool {
        let file = match descriptor {
            Descriptor::File(file) => &file.file,
            Descriptor::Dir(dir) => &dir.dir,
        };
        if !self.has_room() {
            return false;
        }
        self.count(file);
        true
    }

    fn count<T: Send + Sync + 'static>(&mut self, opened: &Arc<T>) {
        let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        // As long as anybody has it.
        let (own, all) = (Arc::downgrade(opened), Arc::downgrade(opened));
        self.held.0.push(own);
        common.held.0.push(all);
    }

    /// Begins to list a directory; None: too much is open, or held by the host.
    fn list(&mut self, of: &Arc<std::fs::File>) -> Option<Arc<Directory>> {
        let mut booked = self.host_memory.part();
        if !self.has_room() || !booked.resize(LISTING_BYTES) {
            return None;
        }
        let directory = Arc::new(Directory::new(Arc::clone(of), booked));
        self.count(&directory);
        Some(directory)
    }

    /// Whether a file may have one stream more.
    fn may_stream(&self) -> bool {
        let common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        self.held.handles() < FILE_HANDLES_MAX && common.held.handles() < FILE_HANDLES_MAX_TOTAL
    }

    /// The instance asks for its volumes; says whether it does for the first time, which is free:
    /// how many there are is the Pod's word, not the guest's.
    pub(crate) fn lists_volumes(&mut self) -> bool {
        !std::mem::replace(&mut self.volumes_listed, true)
    }
}

/// What the bindings work on.
pub(crate) struct FilesView<'a> {
    pub(crate) files: &'a mut OpenFiles,
    pub(crate) table: &'a mut ResourceTable,
}

impl FilesView<'_> {
    /// Counts a descriptor of the table, or closes it for want of room.
    fn keep(
        &mut self,
        opened: Resource<Descriptor>,
    ) -> wasmtime::Result<Option<Resource<Descriptor>>> {
        if self.files.hold(self.table.get(&opened)?) {
            return Ok(Some(opened));
        }
        self.table.delete(opened)?;
        Ok(None)
    }

    /// Begins to list a directory of the table.
    fn list(
        &mut self,
        listed: &Resource<Descriptor>,
    ) -> wasmtime::Result<io::Result<Arc<Directory>>> {
        let directory = match self.table.get(listed)? {
            Descriptor::Dir(directory) => &directory.dir,
            Descriptor::File(_) => return Ok(Err(io::Error::from_raw_os_error(libc::ENOTDIR))),
        };
        let listing = self.files.list(directory);
        Ok(listing.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM)))
    }
}

/// WASI has no code for too many files; programs are told that memory is missing (`ENOMEM`).
type Opened<Code> = (Result<Resource<Descriptor>, Code>,);

pub(crate) type OpenAtP2 =
    (Resource<Descriptor>, p2::PathFlags, String, p2::OpenFlags, p2::DescriptorFlags);

type OpenAtP3 = (Resource<Descriptor>, p3::PathFlags, String, p3::OpenFlags, p3::DescriptorFlags);

pub(crate) async fn open_p2(
    mut store: StoreContextMut<'_, Host>,
    (directory, path_flags, path, open_flags, flags): OpenAtP2,
) -> wasmtime::Result<Opened<p2::ErrorCode>> {
    let host = store.data_mut();
    // Before as well as after: what is refused must not have made or emptied a file.
    if !host.own_files().files.has_room() {
        return Ok((Err(p2::ErrorCode::InsufficientMemory),));
    }
    let opened = p2::HostDescriptor::open_at(
        &mut host.filesystem(),
        directory,
        path_flags,
        path,
        open_flags,
        flags,
    )
    .await;
    let opened = match opened {
        Ok(opened) => host.own_files().keep(opened)?,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    Ok((opened.ok_or(p2::ErrorCode::InsufficientMemory),))
}

async fn open_p3(
    accessor: &Accessor<Host>,
    (directory, path_flags, path, open_flags, flags): OpenAtP3,
) -> wasmtime::Result<Opened<p3::ErrorCode>> {
    if !accessor.with(|mut access| access.get().own_files().files.has_room()) {
        return Ok((Err(p3::ErrorCode::InsufficientMemory),));
    }
    let files = accessor.with_getter::<WasiFilesystem>(Host::filesystem);
    let opened = <WasiFilesystem as p3::HostDescriptorWithStore<Host>>::open_at(
        &files, directory, path_flags, path, open_flags, flags,
    )
    .await;
    let opened = match opened {
        Ok(opened) => accessor.with(|mut access| access.get().own_files().keep(opened))?,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    Ok((opened.ok_or(p3::ErrorCode::InsufficientMemory),))
}

/// Makes a stream of a file, if there may be one more.
pub(crate) fn stream_p2<T>(
    host: &mut Host,
    make: impl FnOnce(&mut WasiFilesystemCtxView<'_>) -> FsResult<T>,
) -> wasmtime::Result<(Result<T, p2::ErrorCode>,)> {
    if !host.own_files().files.may_stream() {
        return Ok((Err(p2::ErrorCode::InsufficientMemory),));
    }
    Ok((match make(&mut host.filesystem()) {
        Ok(stream) => Ok(stream),
        Err(error) => Err(error.downcast()?),
    },))
}

fn define_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:filesystem/types@0.2.12")?;
    types.func_wrap_async(OPEN_AT, |store, given: OpenAtP2| Box::new(open_p2(store, given)))?;
    types.func_wrap(READ_STREAM, |mut store, (file, from): (Resource<Descriptor>, u64)| {
        stream_p2(store.data_mut(), |view| p2::HostDescriptor::read_via_stream(view, file, from))
    })?;
    types.func_wrap(WRITE_STREAM, |mut store, (file, from): (Resource<Descriptor>, u64)| {
        stream_p2(store.data_mut(), |view| p2::HostDescriptor::write_via_stream(view, file, from))
    })?;
    types.func_wrap(APPEND_STREAM, |mut store, (file,): (Resource<Descriptor>,)| {
        stream_p2(store.data_mut(), |view| p2::HostDescriptor::append_via_stream(view, file))
    })?;
    listing::define_p2(&mut types)
}

/// How a stream of WASI 0.3 ends.
type EndP3 = FutureReader<Result<(), p3::ErrorCode>>;

/// The end of a stream that may not be made.
fn refused_p3(store: &mut StoreContextMut<'_, Host>) -> wasmtime::Result<EndP3> {
    let why = async { wasmtime::error::Ok(Err(p3::ErrorCode::InsufficientMemory)) };
    FutureReader::new(store, why)
}

pub(crate) fn read_p3(
    mut store: StoreContextMut<'_, Host>,
    (file, from): (Resource<Descriptor>, u64),
) -> wasmtime::Result<((StreamReader<u8>, EndP3),)> {
    if !store.data_mut().own_files().files.may_stream() {
        let nothing = StreamReader::new(&mut store, std::iter::empty())?;
        return Ok(((nothing, refused_p3(&mut store)?),));
    }
    let access = Access::<Host, WasiFilesystem>::new(store, Host::filesystem);
    let made =
        <WasiFilesystem as p3::HostDescriptorWithStore<Host>>::read_via_stream(access, file, from);
    Ok((made?,))
}

fn write_p3(
    mut store: StoreContextMut<'_, Host>,
    (file, mut data, from): (Resource<Descriptor>, StreamReader<u8>, u64),
) -> wasmtime::Result<(EndP3,)> {
    if !store.data_mut().own_files().files.may_stream() {
        data.close(&mut store)?;
        return Ok((refused_p3(&mut store)?,));
    }
    let access = Access::<Host, WasiFilesystem>::new(store, Host::filesystem);
    let made = <WasiFilesystem as p3::HostDescriptorWithStore<Host>>::write_via_stream(
        access, file, data, from,
    );
    Ok((made?,))
}

fn append_p3(
    mut store: StoreContextMut<'_, Host>,
    (file, mut data): (Resource<Descriptor>, StreamReader<u8>),
) -> wasmtime::Result<(EndP3,)> {
    if !store.data_mut().own_files().files.may_stream() {
        data.close(&mut store)?;
        return Ok((refused_p3(&mut store)?,));
    }
    let access = Access::<Host, WasiFilesystem>::new(store, Host::filesystem);
    let made = <WasiFilesystem as p3::HostDescriptorWithStore<Host>>::append_via_stream(
        access, file, data,
    );
    Ok((made?,))
}

fn define_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:filesystem/types@0.3.0")?;
    types.func_wrap_concurrent(OPEN_AT, |accessor: &Accessor<Host>, given: OpenAtP3| {
        Box::pin(open_p3(accessor, given))
    })?;
    types.func_wrap(READ_STREAM, read_p3)?;
    types.func_wrap(WRITE_STREAM, write_p3)?;
    types.func_wrap(APPEND_STREAM, append_p3)?;
    listing::define_p3(&mut types)
}

/// Puts functions of ours in the place of wasmtime's.
pub(crate) fn replace(
    linker: &mut Linker<Host>,
    define: fn(&mut Linker<Host>) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let replaced = define(linker);
    linker.allow_shadowing(false);
    replaced
}

/// `wasi:filesystem/types` of WASI 0.2.
pub(crate) fn add_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p2::add_to_linker::<_, WasiFilesystem>(linker, Host::filesystem)?;
    replace(linker, define_p2)
}

/// `wasi:filesystem/types` of WASI 0.3.
pub(crate) fn add_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p3::add_to_linker::<_, WasiFilesystem>(linker, Host::filesystem)?;
    replace(linker, define_p3)
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi::filesystem;
    use wasmtime_wasi::{FsPerms, OpenMode};

    use super::*;

    fn opened() -> Descriptor {
        let file = tempfile::tempfile().expect("a file");
        Descriptor::File(filesystem::File::new(file, FsPerms::ReadOnly, OpenMode::READ, false))
    }

    fn open_files() -> OpenFiles {
        OpenFiles::new(Arc::default(), crate::no_output(), HostMemory::default())
    }

    #[test]
    fn instances_and_containers_have_so_many_and_are_told_once() {
        let lines = Arc::new(Mutex::new(0));
        let count = Arc::clone(&lines);
        let log: Output = Arc::new(move |_: &[u8]| *count.lock().expect("not poisoned") += 1);
        let common = Arc::new(Mutex::new(Common::default()));
        let memory = HostMemory::default();
        let instance = || OpenFiles::new(Arc::clone(&common), Arc::clone(&log), memory.clone());
        // One file stands for many: what is counted is who was let in.
        let file = opened();
        let fill = |files: &mut OpenFiles| (0..200).filter(|_| files.hold(&file)).count();
        let all: Vec<usize> = (0..9).map(|_| fill(&mut instance())).collect();
        assert_eq!(all, [128, 128, 128, 128, 128, 128, 128, 128, 0]);
        assert_eq!(*lines.lock().expect("not poisoned"), 1);
    }

    #[test]
    fn a_file_counts_while_a_stream_of_it_lives() {
        let mut files = open_files();
        let held: Vec<Descriptor> = (0..OPEN_FILES_MAX).map(|_| opened()).collect();
        assert!(held.iter().all(|file| files.hold(file)));
        let last = opened();
        assert!(!files.hold(&last));
        let Some(Descriptor::File(first)) = held.first() else { unreachable!("all are files") };
        let stream = Arc::clone(&first.file);
        drop(held);
        let more: Vec<Descriptor> = (0..OPEN_FILES_MAX).map(|_| opened()).collect();
        let let_in = more.iter().filter(|file| files.hold(file)).count();
        assert_eq!(let_in, OPEN_FILES_MAX - 1, "the stream's file is open");
        drop(stream);
        assert!(files.hold(&last));
    }

    #[test]
    fn directories_that_are_listed_count() {
        let mut files = open_files();
        let folder = tempfile::tempdir().expect("a folder");
        let folder = Arc::new(std::fs::File::open(folder.path()).expect("a directory"));
        let listed: Vec<_> = (0..OPEN_FILES_MAX).map_while(|_| files.list(&folder)).collect();
        assert_eq!(listed.len(), OPEN_FILES_MAX);
        assert!(files.list(&folder).is_none());
        drop(listed);
        assert!(files.list(&folder).is_some(), "there is room again");
        // Another one of the same container has taken what the host holds for it.
        let mut taken = files.host_memory.part();
        assert!(taken.resize(crate::limits::HOST_BYTES_MAX));
        assert!(files.list(&folder).is_none());
    }

    #[test]
    fn streams_of_files_are_bounded() {
        let mut files = open_files();
        let file = opened();
        assert!(files.hold(&file) && files.may_stream());
        let Descriptor::File(of) = &file else { unreachable!("it is a file") };
        // The descriptor is one of them.
        let streams: Vec<_> = (1..FILE_HANDLES_MAX).map(|_| Arc::clone(&of.file)).collect();
        assert!(!files.may_stream());
        drop(streams);
        assert!(files.may_stream());
    }

    #[test]
    fn what_is_replaced_was_there() {
        let engine = wasmtime::Engine::default();
        let mut linker = Linker::new(&engine);
        p2::add_to_linker::<_, WasiFilesystem>(&mut linker, Host::filesystem).expect("0.2");
        p3::add_to_linker::<_, WasiFilesystem>(&mut linker, Host::filesystem).expect("0.3");
        assert!(define_p2(&mut linker).is_err());
        assert!(define_p3(&mut linker).is_err());
    }
}
