//! `wasi:filesystem/preopens`: the directories of a container, opened when an instance asks for them.
//!
//! wasmtime's own opens them for each store. A handler's instances are made by the thousand, each Pod
//! has at least the folder of its token, and few look into it while they answer a request.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, Dir};
use wasmtime_wasi::p2::bindings::filesystem::preopens as p2;
use wasmtime_wasi::p3::bindings::filesystem::preopens as p3;
use wasmtime_wasi::{FsPerms, OpenMode};

use crate::files::OpenFiles;
use crate::limits::{Mount, OPEN_FILES_MAX};

/// What the bindings work on.
pub(crate) struct PreopensView<'a> {
    pub(crate) mounts: &'a [Mount],
    pub(crate) files: &'a mut OpenFiles,
    pub(crate) table: &'a mut ResourceTable,
}

pub(crate) struct HasPreopens;

impl HasData for HasPreopens {
    type Data<'a> = PreopensView<'a>;
}

type Directories = Vec<(Resource<Descriptor>, String)>;

impl PreopensView<'_> {
    /// Fails if a directory is gone, or if a guest that asks again and again has too many open: the
    /// interface has no error for that.
    fn open(&mut self) -> wasmtime::Result<Directories> {
        let first = self.files.lists_volumes();
        let mut directories = Vec::with_capacity(self.mounts.len());
        for mount in self.mounts {
            let directory = Descriptor::Dir(open(mount)?);
            if !first && !self.files.hold(&directory) {
                let text = format!("the guest has more than {OPEN_FILES_MAX} files open");
                return Err(wasmtime::Error::msg(text));
            }
            directories.push((self.table.push(directory)?, mount.guest.clone()));
        }
        Ok(directories)
    }
}

/// What a guest may do in a mount.
pub(crate) fn perms(mount: &Mount) -> FsPerms {
    if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite }
}

fn open(mount: &Mount) -> wasmtime::Result<Dir> {
    let mode = if mount.read_only { OpenMode::READ } else { OpenMode::READ | OpenMode::WRITE };
    let flags = libc::O_DIRECTORY | libc::O_PATH;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(&mount.host);
    let directory = opened.map_err(|error| {
        // In one piece: the root cause alone is what a guest's log shows.
        let guest = &mount.guest;
        wasmtime::Error::msg(format!("open the volume that is mounted at {guest}: {error}"))
    })?;
    Ok(Dir::new(directory, perms(mount), mode, false))
}

impl p2::Host for PreopensView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Directories> {
        self.open()
    }
}

impl p3::Host for PreopensView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Directories> {
        self.open()
    }
}
