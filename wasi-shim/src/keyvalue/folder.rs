//! A bucket in a volume: a file for each key, directly in the volume's directory.
//!
//! The names of the files are the keys, with every other byte than letters, digits, `-`, `_` and
//! inner dots written as `%XX`: no key leads to another directory. Links are never followed, since a
//! guest that has the volume as a directory can put one there. A value is replaced by a rename, so a
//! reader sees the old one or the new one.

use std::collections::BinaryHeap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Ask, Error, KEYS_PAGE, Told, VALUE_BYTES_MAX, incremented, too_much};
use crate::host_memory::HostMemory;
use crate::limits::ANSWER_BYTES_FREE;

/// Keys that one list takes in.
const KEYS_MAX: usize = 100_000;

pub(super) struct Folder {
    path: PathBuf,
    read_only: bool,
    host_memory: HostMemory,
}

impl Folder {
    pub(super) fn new(path: PathBuf, read_only: bool, host_memory: HostMemory) -> Folder {
        Folder { path, read_only, host_memory }
    }

    /// Blocks.
    pub(super) fn ask(&self, ask: Ask) -> Result<Told, Error> {
        Ok(match ask {
            Ask::Get(key) => Told::Value(self.get(&key)?),
            Ask::Set(key, value) => {
                self.set(&key, &value)?;
                Told::Done
            }
            Ask::Delete(key) => {
                self.writable()?;
                match fs::remove_file(self.path.join(file_name(&key))) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    _ => Told::Done,
                }
            }
            Ask::List(from) => Told::Keys(self.list(from)?),
            Ask::Increment(key, delta) => {
                // Whoever else adds to it waits, whichever process of this node that is in.
                let lock = File::open(&self.path)?;
                lock.lock()?;
                let number = incremented(self.get(&key)?.as_deref(), delta)?;
                self.set(&key, number.to_string().as_bytes())?;
                Told::Number(number)
            }
        })
    }

    fn writable(&self) -> Result<(), Error> {
        if self.read_only { Err(Error::AccessDenied) } else { Ok(()) }
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let path = self.path.join(file_name(key));
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Error::Other("the key is the name of something that is no file".into()));
        }
        let mut value = Vec::new();
        file.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::Other("the file is too large for a value".into()));
        }
        Ok(Some(value))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.writable()?;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // No key has a name that begins with a dot.
        let draft = self.path.join(format!(".{}-{number}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        let written = file.write_all(value);
        let moved = written.and_then(|()| fs::rename(&draft, self.path.join(file_name(key))));
        if let Err(error) = moved {
            let _ = fs::remove_file(&draft);
            return Err(error.into());
        }
        Ok(())
    }

    /// A directory tells its names in no order: those before the ones that are asked for are held
    /// as well, and booked as long as they are. For the first keys that is never needed.
    fn list(&self, from: usize) -> Result<Vec<String>, Error> {
        let wanted = from.saturating_add(KEYS_PAGE + 1);
        let cost = |key: &String| key.len() + size_of::<String>();
        let mut booked = self.host_memory.part();
        let mut first = BinaryHeap::new();
        let (mut count, mut bytes) = (0, 0);
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let Some(key) = entry.file_name().to_str().filter(|_| is_file).and_then(key) else {
                continue;
            };
            count += 1;
            if count > KEYS_MAX {
                return Err(Error::Other(format!("there are more than {KEYS_MAX} keys")));
            }
            bytes += cost(&key);
            first.push(key);
            if first.len() > wanted
                && let Some(last) = first.pop()
            {
                bytes -= cost(&last);
            }
            if !booked.resize(bytes.saturating_sub(ANSWER_BYTES_FREE)) {
                return Err(too_much());
            }
        }
        Ok(first.into_sorted_vec().into_iter().skip(from).collect())
    }
}

fn file_name(key: &str) -> String {
    let mut name = String::new();
    for (at, byte) in key.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'.' if at > 0 => name.push('.'),
            _ => name += &format!("%{byte:02X}"),
        }
    }
    name
}

/// The key of a file's name, if it is one of a bucket.
fn key(name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let key = String::from_utf8(bytes).ok()?;
    // Others than ours could be written in more than one way.
    (file_name(&key) == name).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names() {
        for text in ["plain", "a/b", "..", ".hidden", "a.b", "%41", "ü", "a b"] {
            let name = file_name(text);
            assert!(!name.starts_with('.') && !name.contains('/'), "{name}");
            assert_eq!(key(&name).as_deref(), Some(text));
        }
        assert_eq!(key(".123-4"), None);
        assert_eq!(key("%61"), None, "a plain letter is never escaped");
        assert_eq!(key("%4"), None);
    }
}
