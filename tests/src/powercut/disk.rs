//! A disk as a journal describes it: what is certainly on it, and what a power cut takes away.
//!
//! The model is the strict reading of POSIX: a file's bytes and length are kept once an fsync of
//! that file, begun after they were written, has returned; a name in a folder (new, changed or
//! gone) is kept once an fsync of that folder has. Real file systems often keep more, never less.
//! [`Keep::Torn`] keeps more by chance: of each file some of its last changes in their order, the
//! last of them perhaps in part.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::journal::{Change, Record};

/// What a cut leaves beyond what was fsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    /// Some of the rest, by this seed.
    Torn(u64),
    /// All: what a killed process leaves.
    All,
}

/// The disk at one moment of the journal.
#[derive(Default)]
pub struct Disk<'a> {
    things: Vec<Thing<'a>>,
    /// Which thing an inode number stands for at present.
    inodes: HashMap<u64, usize>,
    root: Option<usize>,
}

enum Thing<'a> {
    File { bytes: Vec<u8>, pending: Vec<(u64, Edit<'a>)> },
    Folder { names: BTreeMap<String, usize>, pending: Vec<(u64, Naming)> },
}

#[derive(Clone, Copy)]
enum Edit<'a> {
    Write(u64, &'a [u8]),
    Truncate(u64),
}

/// A change of names; a rename inside a folder is one change.
#[derive(Clone)]
struct Naming {
    gone: Option<String>,
    new: Option<(String, usize)>,
}

impl Edit<'_> {
    fn apply(self, bytes: &mut Vec<u8>) {
        let fits = |number: u64| usize::try_from(number).expect("a test's file fits into memory");
        match self {
            Edit::Write(offset, data) => {
                let end = fits(offset) + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[fits(offset)..end].copy_from_slice(data);
            }
            Edit::Truncate(size) => bytes.resize(fits(size), 0),
        }
    }

    /// The first part of a write.
    fn torn(self, random: &mut StdRng) -> Self {
        match self {
            Edit::Write(offset, data) if !data.is_empty() => {
                Edit::Write(offset, &data[..random.random_range(0..data.len())])
            }
            whole => whole,
        }
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, thing)) = &self.new {
            names.insert(name.clone(), *thing);
        }
    }
}

impl<'a> Disk<'a> {
    /// Whether a record would make something durable that is not yet.
    pub fn hardens(&self, record: &Record<'a>) -> bool {
        let Change::Sync { inode, began } = record.change else { return false };
        let Some(thing) = self.inodes.get(&inode) else { return false };
        let first = match &self.things[*thing] {
            Thing::File { pending, .. } => pending.first().map(|(at, _)| *at),
            Thing::Folder { pending, .. } => pending.first().map(|(at, _)| *at),
        };
        first.is_some_and(|at| at <= began)
    }

    /// Takes the journal's next record.
    pub fn apply(&mut self, record: &Record<'a>) {
        let at = record.end;
        match record.change {
            Change::Create { folder, inode, is_folder, name } => {
                let thing = self.add(inode, is_folder);
                match name {
                    "" => self.root = Some(thing),
                    name => self.name(folder, at, None, Some((name.to_owned(), thing))),
                }
            }
            Change::Write { inode, offset, data } => {
                self.edit(inode, at, Edit::Write(offset, data));
            }
            Change::Truncate { inode, size } => self.edit(inode, at, Edit::Truncate(size)),
            Change::Sync { inode, began } => self.sync(inode, began),
            Change::Rename { from, to, inode, old, new } => {
                let thing = self.file(inode);
                let new = Some((new.to_owned(), thing));
                if from == to {
                    self.name(from, at, Some(old.to_owned()), new);
                } else {
                    self.name(to, at, None, new);
                    self.name(from, at, Some(old.to_owned()), None);
                }
            }
            Change::Unlink { folder, name } => self.name(folder, at, Some(name.to_owned()), None),
            Change::Link { folder, inode, name } => {
                let thing = self.file(inode);
                self.name(folder, at, None, Some((name.to_owned(), thing)));
            }
        }
    }

    fn add(&mut self, inode: u64, is_folder: bool) -> usize {
        self.things.push(match is_folder {
            true => Thing::Folder { names: BTreeMap::new(), pending: Vec::new() },
            false => Thing::File { bytes: Vec::new(), pending: Vec::new() },
        });
        self.inodes.insert(inode, self.things.len() - 1);
        self.things.len() - 1
    }

    /// What an inode stands for; one that was made unseen (by stdio) is a file of which nothing is
    /// known.
    fn file(&mut self, inode: u64) -> usize {
        match self.inodes.get(&inode) {
            Some(thing) => *thing,
            None => self.add(inode, false),
        }
    }

    fn edit(&mut self, inode: u64, at: u64, edit: Edit<'a>) {
        let thing = self.file(inode);
        if let Thing::File { pending, .. } = &mut self.things[thing] {
            pending.push((at, edit));
        }
    }

    fn name(&mut self, folder: u64, at: u64, gone: Option<String>, new: Option<(String, usize)>) {
        let Some(thing) = self.inodes.get(&folder) else { return };
        if let Thing::Folder { pending, .. } = &mut self.things[*thing] {
            pending.push((at, Naming { gone, new }));
        }
    }

    fn sync(&mut self, inode: u64, began: u64) {
        let Some(thing) = self.inodes.get(&inode) else { return };
        match &mut self.things[*thing] {
            Thing::File { bytes, pending } => {
                let covered = pending.iter().take_while(|(at, _)| *at <= began).count();
                pending.drain(..covered).for_each(|(_, edit)| edit.apply(bytes));
            }
            Thing::Folder { names, pending } => {
                let covered = pending.iter().take_while(|(at, _)| *at <= began).count();
                pending.drain(..covered).for_each(|(_, naming)| naming.apply(names));
            }
        }
    }

    /// Lays out in an empty folder what a power cut at this moment leaves.
    pub fn cut(&self, folder: &Path, keep: Keep) -> Result<()> {
        let root = self.root.context("the journal names no root")?;
        let seed = if let Keep::Torn(seed) = keep { seed } else { 0 };
        self.lay(root, folder, keep, &mut StdRng::seed_from_u64(seed))
    }

    fn lay(&self, thing: usize, path: &Path, keep: Keep, random: &mut StdRng) -> Result<()> {
        match &self.things[thing] {
            Thing::File { bytes, pending } => {
                let mut bytes = bytes.clone();
                let kept = kept(pending.len(), keep, random);
                pending[..kept].iter().for_each(|(_, edit)| edit.apply(&mut bytes));
                if let (Keep::Torn(_), Some((_, next))) = (keep, pending.get(kept))
                    && random.random_bool(0.5)
                {
                    next.torn(random).apply(&mut bytes);
                }
                // The journal tells no modes; the program under test keeps its files to itself.
                let only_ours = fs::Permissions::from_mode(0o600);
                fs::write(path, bytes)
                    .and_then(|()| fs::set_permissions(path, only_ours))
                    .with_context(|| format!("write {}", path.display()))
            }
            Thing::Folder { names, pending } => {
                let mut names = names.clone();
                let kept = kept(pending.len(), keep, random);
                pending[..kept].iter().for_each(|(_, naming)| naming.apply(&mut names));
                if !path.is_dir() {
                    fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
                }
                for (name, thing) in &names {
                    self.lay(*thing, &path.join(name), keep, random)?;
                }
                Ok(())
            }
        }
    }
}

/// How many of the pending changes stay.
fn kept(pending: usize, keep: Keep, random: &mut StdRng) -> usize {
    match keep {
        Keep::Nothing => 0,
        Keep::All => pending,
        Keep::Torn(_) => random.random_range(0..=pending),
    }
}
