//! The journal that the preload library writes (tests/shim/shim.c): every change below a folder in
//! the order in which the kernel saw it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Bytes before a record's payload.
const HEADER: usize = 40;

/// One record and where it ends in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The journal's length behind it.
    pub end: u64,
    /// Microseconds of the monotonic clock.
    pub at_us: u64,
    pub change: Change<'a>,
}

/// What happened. Files and folders go by inode number, which may be used again for a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A new file or folder in a folder; the root has no folder and no name.
    Create {
        folder: u64,
        inode: u64,
        is_folder: bool,
        name: &'a str,
    },
    Write {
        inode: u64,
        offset: u64,
        data: &'a [u8],
    },
    Truncate {
        inode: u64,
        size: u64,
    },
    /// An fsync returned; it covers what stood in the journal when it began.
    Sync {
        inode: u64,
        began: u64,
    },
    Rename {
        from: u64,
        to: u64,
        inode: u64,
        old: &'a str,
        new: &'a str,
    },
    Unlink {
        folder: u64,
        name: &'a str,
    },
    Link {
        folder: u64,
        inode: u64,
        name: &'a str,
    },
}

/// Reads a journal. A last record that is not whole was cut off by a kill, and is left out.
pub fn read(bytes: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        let number = |from: usize| {
            u64::from_le_bytes(header[from..from + 8].try_into().expect("eight bytes"))
        };
        let sizes = number(0);
        let (length, kind) = (sizes & 0xffff_ffff, sizes >> 32);
        let length = usize::try_from(length).expect("32 bits fit");
        let Some(payload) = bytes.get(at + HEADER..at + HEADER + length) else { break };
        let (a, b, c) = (number(8), number(16), number(24));
        let change = change(kind, a, b, c, payload)
            .with_context(|| format!("the journal's record at {at}"))?;
        at += HEADER + length;
        records.push(Record { end: at as u64, at_us: number(32), change });
    }
    Ok(records)
}

fn change(kind: u64, a: u64, b: u64, c: u64, payload: &[u8]) -> Result<Change<'_>> {
    let text = || std::str::from_utf8(payload).context("a name that is not UTF-8");
    Ok(match kind {
        1 => Change::Create { folder: a, inode: b, is_folder: c == 1, name: text()? },
        2 => Change::Write { inode: a, offset: b, data: payload },
        3 => Change::Truncate { inode: a, size: b },
        4 => Change::Sync { inode: a, began: b },
        5 => {
            let (old, new) = text()?.split_once('\0').context("two names")?;
            Change::Rename { from: a, to: b, inode: c, old, new }
        }
        6 => Change::Unlink { folder: a, name: text()? },
        7 => Change::Link { folder: a, inode: b, name: text()? },
        other => bail!("kind {other}"),
    })
}

/// A journal that begins with a folder as it is, all of it durable.
pub fn of_folder(folder: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let root = std::fs::metadata(folder)?.ino();
    append(&mut bytes, 1, [0, root, 1], &[]);
    folder_contents(folder, root, &mut bytes)?;
    Ok(bytes)
}

fn folder_contents(folder: &Path, inode: u64, bytes: &mut Vec<u8>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        let name = entry.file_name();
        append(bytes, 1, [inode, found.ino(), u64::from(found.is_dir())], name.as_encoded_bytes());
        if found.is_dir() {
            folder_contents(&entry.path(), found.ino(), bytes)?;
        } else {
            append(bytes, 2, [found.ino(), 0, 0], &std::fs::read(entry.path())?);
            append(bytes, 4, [found.ino(), bytes.len() as u64, 0], &[]);
        }
    }
    append(bytes, 4, [inode, bytes.len() as u64, 0], &[]);
    Ok(())
}

fn append(bytes: &mut Vec<u8>, kind: u32, numbers: [u64; 3], payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a test's file is smaller than 4 GiB");
    bytes.extend(length.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    numbers.iter().chain([&0]).for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend(payload);
}
