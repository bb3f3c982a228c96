//! A map on disk that is written by appending: of each key the last line counts.
//!
//! ```text
//!   {"kind":"pods","key":"shop/a","value":{…}}      it is this
//!   {"kind":"pods","key":"shop/a"}                  it is gone
//! ```
//!
//! Where the last line of each key lies is held in memory, values are not: as in Bitcask (Sheehy and
//! Smith, "A Log-Structured Hash Table for Fast Key/Value Data", 2010), in JSON Lines. What does not
//! count any more is left behind when it is most of the file.
//!
//! Changes are appended by one call for all that came together, so a process that is killed leaves
//! whole lines and at most one torn one at the end, which is cut off by the next. A file for each key
//! would be replaced by a new one at each change, and file systems make files slowly: ext4 looks for
//! an inode that was not given back within the last minute.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::Kind;

/// A file with less than this beyond twice what counts is left as it is.
const GARBAGE_BYTES: u64 = 4 << 20;
/// What is copied at once when the file is written anew.
const COPY_BYTES: usize = 1 << 20;

/// What a line is about.
pub type Key = (Kind, String);

/// One change: what it is now, or that it is gone.
pub type Change = (Key, Option<Box<RawValue>>);

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    kind: Kind,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
}

/// Where a line is, with its end.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    bytes: usize,
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Of whole lines.
    bytes: u64,
    /// Of lines that count.
    live_bytes: u64,
    /// [`GARBAGE_BYTES`], or more after the file could not be written anew: it is tried seldom.
    garbage_bytes: u64,
    places: HashMap<Key, Place>,
}

impl Journal {
    /// Opens or makes it. Lines that cannot be read are as if they were not there.
    pub fn open(path: PathBuf) -> io::Result<Journal> {
        let file =
            OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path)?;
        let (garbage_bytes, places) = (GARBAGE_BYTES, HashMap::new());
        let mut journal = Journal { path, file, bytes: 0, live_bytes: 0, garbage_bytes, places };
        journal.read()?;
        Ok(journal)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(COPY_BYTES, self.file.try_clone()?);
        let (mut line, mut unreadable) = (Vec::new(), 0_u64);
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            match serde_json::from_slice::<Line<'_>>(&line) {
                Ok(Line { kind, key, value }) => {
                    let place = Place { start: self.bytes, bytes };
                    self.note((kind, key.into_owned()), value.is_some().then_some(place));
                }
                Err(_) => unreadable += 1,
            }
            self.bytes += bytes as u64;
        }
        if unreadable > 0 {
            let path = self.path.display();
            tracing::warn!(%path, unreadable, "passing over lines of what was kept");
        }
        self.cut()
    }

    /// What became of a key.
    fn note(&mut self, key: Key, place: Option<Place>) {
        let before = match place {
            Some(place) => self.places.insert(key, place),
            None => self.places.remove(&key),
        };
        self.live_bytes += place.map_or(0, |place| place.bytes as u64);
        self.live_bytes -= before.map_or(0, |place| place.bytes as u64);
    }

    /// Takes away what is behind the last whole line.
    fn cut(&self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.bytes {
            self.file.set_len(self.bytes)?;
        }
        Ok(())
    }

    /// The keys of a kind.
    pub fn keys(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.places.keys().filter(move |(of, _)| *of == kind).map(|(_, key)| &**key)
    }

    /// All values of a kind that can be read.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Vec<T> {
        let mut found = Vec::new();
        let mut places: Vec<_> = self.places.iter().filter(|((of, _), _)| *of == kind).collect();
        places.sort_by_key(|(_, place)| place.start);
        for ((_, key), place) in places {
            match self.value(*place) {
                Ok(value) => found.push(value),
                Err(error) => tracing::warn!(key, %error, "passing over a kept object"),
            }
        }
        found
    }

    fn value<T: DeserializeOwned>(&self, place: Place) -> io::Result<T> {
        let mut line = vec![0; place.bytes];
        self.file.read_exact_at(&mut line, place.start)?;
        let line: Line<'_> = serde_json::from_slice(&line)?;
        let value = line.value.ok_or(io::ErrorKind::InvalidData)?;
        Ok(serde_json::from_str(value.get())?)
    }

    /// Appends changes, in this order: all of them, or after an error none.
    pub fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let (mut lines, mut places) = (Vec::new(), Vec::new());
        for ((kind, key), value) in changes {
            let before = lines.len();
            let line = Line { kind: *kind, key: key.into(), value: value.as_deref() };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
            let place = Place { start: self.bytes + before as u64, bytes: lines.len() - before };
            places.push(value.is_some().then_some(place));
        }
        if let Err(error) = self.file.write_all(&lines) {
            self.cut()?;
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        for ((key, _), place) in changes.iter().zip(places) {
            self.note(key.clone(), place);
        }
        if self.bytes > 2 * self.live_bytes + self.garbage_bytes {
            self.garbage_bytes = GARBAGE_BYTES;
            if let Err(error) = self.write_anew() {
                tracing::warn!(path = %self.path.display(), %error, "cannot write it anew");
                self.garbage_bytes += self.bytes;
            }
        }
        Ok(())
    }

    /// Leaves behind what does not count.
    fn write_anew(&mut self) -> io::Result<()> {
        let draft = self.path.with_extension("draft");
        // One that a killed agent left is of no use.
        let _ = fs::remove_file(&draft);
        let mut copy =
            OpenOptions::new().create_new(true).read(true).append(true).mode(0o600).open(&draft)?;
        let copied = self.copy_to(&mut copy);
        match copied.and_then(|places| fs::rename(&draft, &self.path).map(|()| places)) {
            Ok(places) => {
                (self.file, self.places, self.bytes) = (copy, places, self.live_bytes);
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&draft);
                Err(error)
            }
        }
    }

    /// Copies the lines that count, in their order; where they are in the copy.
    fn copy_to(&self, copy: &mut File) -> io::Result<HashMap<Key, Place>> {
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort_by_key(|(_, place)| place.start);
        let (mut copied, mut start, mut lines) = (HashMap::new(), 0, Vec::new());
        for (key, place) in places {
            let before = lines.len();
            lines.resize(before + place.bytes, 0);
            self.file.read_exact_at(&mut lines[before..], place.start)?;
            copied.insert(key.clone(), Place { start, ..*place });
            start += place.bytes as u64;
            if lines.len() >= COPY_BYTES {
                copy.write_all(&lines)?;
                lines.clear();
            }
        }
        copy.write_all(&lines)?;
        Ok(copied)
    }
}

/// What agents kept in a file for each object, in 0.1 before there was a journal. Their keys cannot be
/// told from that: under these they are there until their kind is listed.
pub fn files(folder: &Path, kind: Kind) -> Vec<Change> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok().filter(|text| !text.contains('\n'))?;
        let value = RawValue::from_string(text).ok()?;
        Some(((kind, path.file_name()?.to_str()?.to_owned()), Some(value)))
    };
    entries.filter_map(|entry| read(entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::to_raw_value;

    fn is(key: &str, value: &str) -> Change {
        ((Kind::Pods, key.to_owned()), Some(to_raw_value(value).expect("JSON")))
    }

    fn gone(key: &str) -> Change {
        ((Kind::Pods, key.to_owned()), None)
    }

    fn all(journal: &Journal) -> Vec<String> {
        journal.load(Kind::Pods)
    }

    #[test]
    fn the_last_line_of_a_key_counts_also_for_the_next_agent() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::open(path.clone()).expect("open");
        journal.append(&[is("a", "1"), is("b", "2"), is("b\n\"", "3")]).expect("written");
        journal.append(&[is("a", "4"), gone("b"), gone("never")]).expect("written");
        assert_eq!(all(&journal), ["3", "4"]);
        let journal = Journal::open(path).expect("open");
        assert_eq!(all(&journal), ["3", "4"]);
        let mut keys: Vec<_> = journal.keys(Kind::Pods).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["a", "b\n\""]);
        assert_eq!(journal.keys(Kind::Nodes).count(), 0);
        assert_eq!(journal.load::<String>(Kind::Nodes).len(), 0);
    }

    /// An agent that is killed in the middle of a line, and a disk that has lost some.
    #[test]
    fn torn_and_damaged_lines_are_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let open = || Journal::open(path.clone()).expect("open");
        open().append(&[is("a", "1"), is("b", "2"), is("c", "3")]).expect("written");
        let whole = fs::read(&path).expect("read");
        for bytes in 0..whole.len() {
            fs::write(&path, &whole[..bytes]).expect("written");
            let mut journal = open();
            let lines = whole[..bytes].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(all(&journal), ["1", "2", "3"][..lines]);
            journal.append(&[is("d", "4")]).expect("written");
            assert_eq!(all(&open()).len(), lines + 1, "after {bytes} bytes");
        }
        let middle = whole.len() / 2;
        fs::write(&path, [&whole[..middle], &[0; 9], &whole[middle..]].concat()).expect("written");
        assert_eq!(all(&open()), ["1", "3"]);
    }

    #[test]
    fn a_file_that_is_mostly_garbage_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::open(path.clone()).expect("open");
        let long = "x".repeat(COPY_BYTES / 2 + 1);
        let expected: Vec<String> = (0..5).map(|number| format!("{number}{long}")).collect();
        let mut largest = 0;
        for round in 0..40 {
            let changes: Vec<Change> = expected
                .iter()
                .enumerate()
                .map(|(number, value)| is(&number.to_string(), value))
                .chain([
                    is(&format!("of round {round}"), &long),
                    gone(&format!("of round {round}")),
                ])
                .collect();
            journal.append(&changes).expect("written");
            assert_eq!(all(&journal), expected);
            largest = largest.max(fs::metadata(&path).expect("it is there").len());
        }
        let live: u64 = expected.iter().map(|value| value.len() as u64 + 64).sum();
        assert!(largest < 2 * live + GARBAGE_BYTES + 2 * live, "{largest} of {live}");
        assert_eq!(all(&Journal::open(path).expect("open")), expected);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");
    }

    /// `/dev/full` takes nothing, like a disk without room.
    #[test]
    fn what_could_not_be_written_is_not_said_to_be_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut journal = Journal::open(folder.path().join("journal")).expect("open");
        journal.append(&[is("a", "1")]).expect("written");
        let file = std::mem::replace(
            &mut journal.file,
            OpenOptions::new().append(true).open("/dev/full").expect("a device"),
        );
        journal.append(&[is("a", "2"), gone("a")]).expect_err("there is no room");
        journal.file = file;
        assert_eq!(all(&journal), ["1"]);
        journal.append(&[is("a", "3")]).expect("written");
        assert_eq!(all(&journal), ["3"]);
    }
}
