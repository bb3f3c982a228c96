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
//! A process that is killed leaves whole lines and at most one torn one at the end, which the next one
//! cuts off. On a full disk what is gone is still written, first and by itself: it needs little.
//!
//! A file for each key would be replaced by a new one at each change, and file systems make files
//! slowly: ext4 looks for an inode that was not given back within the last minute.

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
/// What is written at once.
const PIECE_BYTES: usize = 1 << 20;

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
    /// Opens or makes it. Lines that cannot be read are as if they were not there, and so is a file
    /// that cannot, which is set aside.
    pub fn open(path: PathBuf) -> io::Result<Journal> {
        let _ = fs::remove_file(draft(&path));
        let opened = Journal::read_all(&path);
        opened.or_else(|error| {
            let aside = path.with_extension("unreadable");
            tracing::warn!(path = %path.display(), %error, "setting aside what was kept");
            fs::rename(&path, aside)?;
            Journal::read_all(&path)
        })
    }

    fn read_all(path: &Path) -> io::Result<Journal> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut journal = Journal {
            path: path.to_owned(),
            file: file.open(path)?,
            bytes: 0,
            live_bytes: 0,
            garbage_bytes: GARBAGE_BYTES,
            places: HashMap::new(),
        };
        journal.read()?;
        journal.cut()?;
        Ok(journal)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(PIECE_BYTES, self.file.try_clone()?);
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
        Ok(())
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

    /// Takes away what is behind the last whole line: it may be lines that are not true any more.
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

    /// Appends changes of different keys, those first that say what is gone. After an error those are
    /// left in `changes` that were not written.
    pub fn append(&mut self, changes: &mut Vec<Change>) -> io::Result<()> {
        // Pieces are taken from the end.
        changes.sort_by_key(|(_, value)| value.is_none());
        while let Some((_, last)) = changes.last() {
            let of_gone = last.is_none();
            let (mut lines, mut places) = (Vec::new(), Vec::new());
            let same = changes.iter().rev().take_while(|(_, value)| value.is_none() == of_gone);
            for ((kind, key), value) in same {
                let start = lines.len();
                let line = Line { kind: *kind, key: key.into(), value: value.as_deref() };
                serde_json::to_writer(&mut lines, &line)?;
                lines.push(b'\n');
                let (start, bytes) = (self.bytes + start as u64, lines.len() - start);
                places.push((!of_gone).then_some(Place { start, bytes }));
                if lines.len() >= PIECE_BYTES {
                    break;
                }
            }
            self.write(&lines)?;
            self.bytes += lines.len() as u64;
            let written = changes.drain(changes.len() - places.len()..).rev();
            for ((key, _), place) in written.zip(places) {
                self.note(key, place);
            }
        }
        if self.bytes > 2 * self.live_bytes + self.garbage_bytes {
            self.garbage_bytes = GARBAGE_BYTES;
            if let Err(error) = self.write_anew() {
                tracing::warn!(path = %self.path.display(), %error, "cannot write it anew");
                // It is tried again after as much has been added.
                self.garbage_bytes += self.bytes;
            }
        }
        Ok(())
    }

    /// Writes whole lines behind the last one: all of them or none.
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        self.cut()?;
        self.file.write_all_at(lines, self.bytes).inspect_err(|_| {
            // Somebody else may need the room; if it fails, the next one tries it first.
            let _ = self.cut();
        })
    }

    /// Has what was written reach the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Leaves behind what does not count.
    fn write_anew(&mut self) -> io::Result<()> {
        let draft = draft(&self.path);
        let mut options = OpenOptions::new();
        let new = options.create(true).truncate(true).read(true).write(true).mode(0o600);
        let mut copy = new.open(&draft)?;
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
            if lines.len() >= PIECE_BYTES {
                copy.write_all(&lines)?;
                lines.clear();
            }
        }
        copy.write_all(&lines)?;
        // Or a power cut could leave the new name and nothing in it.
        copy.sync_data()?;
        Ok(copied)
    }
}

fn draft(path: &Path) -> PathBuf {
    path.with_extension("draft")
}

/// What agents kept in a file for each object, in 0.1 before there was a journal. Their keys cannot be
/// told from that: under these they are there until their kind is listed.
pub fn files(folder: &Path, kind: Kind) -> Vec<Change> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |path: PathBuf| {
        path.extension().filter(|end| *end == "json")?;
        let text = fs::read_to_string(&path).ok().filter(|text| !text.contains('\n'))?;
        let value = RawValue::from_string(text).ok()?;
        Some(((kind, path.file_name()?.to_str()?.to_owned()), Some(value)))
    };
    entries.filter_map(|entry| read(entry.path())).collect()
}

#[cfg(test)]
impl Journal {
    /// `/dev/full` takes nothing, like a disk without room. The file that was open.
    pub(super) fn without_room(&mut self) -> File {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("a device");
        std::mem::replace(&mut self.file, full)
    }

    pub(super) fn with_room(&mut self, file: File) {
        self.file = file;
    }
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
        let mut all = journal.load(Kind::Pods);
        all.sort();
        all
    }

    fn open(path: &Path) -> Journal {
        Journal::open(path.to_owned()).expect("open")
    }

    fn append(journal: &mut Journal, changes: impl Into<Vec<Change>>) {
        let mut changes = changes.into();
        journal.append(&mut changes).expect("written");
        assert_eq!(changes.len(), 0);
    }

    #[test]
    fn the_last_line_of_a_key_counts_also_for_the_next_agent() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = open(&path);
        append(&mut journal, [is("a", "1"), is("b", "2"), is("b\n\"", "3")]);
        append(&mut journal, [is("a", "4"), gone("b"), gone("never")]);
        assert_eq!(all(&journal), ["3", "4"]);
        let journal = open(&path);
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
        let mut journal = open(&path);
        for change in [is("a", "1"), is("b", "2"), is("c", "3")] {
            append(&mut journal, [change]);
        }
        let whole = fs::read(&path).expect("read");
        for bytes in 0..whole.len() {
            fs::write(&path, &whole[..bytes]).expect("written");
            let mut journal = open(&path);
            let lines = whole[..bytes].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(all(&journal), ["1", "2", "3"][..lines]);
            append(&mut journal, [is("d", "4")]);
            assert_eq!(all(&open(&path)).len(), lines + 1, "after {bytes} bytes");
        }
        let middle = whole.len() / 2;
        fs::write(&path, [&whole[..middle], &[0; 9], &whole[middle..]].concat()).expect("written");
        assert_eq!(all(&open(&path)), ["1", "3"]);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        fs::create_dir(&path).expect("made");
        append(&mut open(&path), [is("a", "1")]);
        assert_eq!(all(&open(&path)), ["1"]);
        assert!(path.with_extension("unreadable").is_dir());
    }

    #[test]
    fn a_file_that_is_mostly_garbage_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        fs::write(draft(&path), "what a killed agent left").expect("written");
        let mut journal = open(&path);
        assert!(!draft(&path).exists());
        let long = "x".repeat(PIECE_BYTES / 2 + 1);
        let expected: Vec<String> = (0..5).map(|number| format!("{number}{long}")).collect();
        let mut lengths = Vec::new();
        for round in 0..40_u64 {
            let same = expected.iter().enumerate();
            let mut changes: Vec<Change> =
                same.map(|(number, value)| is(&number.to_string(), value)).collect();
            changes.push(is(&format!("of {round}"), "soon gone"));
            changes.push(gone(&format!("of {}", round.wrapping_sub(1))));
            append(&mut journal, changes);
            assert_eq!(all(&journal)[..5], expected);
            lengths.push(fs::metadata(&path).expect("it is there").len());
        }
        let live = lengths[0];
        let largest = lengths.iter().max().expect("there are some");
        assert!((2 * live..4 * live + GARBAGE_BYTES).contains(largest), "{largest} of {live}");
        assert_eq!(all(&open(&path))[..5], expected);
        assert_eq!(open(&path).keys(Kind::Pods).count(), 6);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");
    }

    #[test]
    fn what_could_not_be_written_is_left_to_be_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = open(&path);
        append(&mut journal, [is("a", "1"), is("b", "2")]);
        let file = journal.without_room();
        let mut changes = vec![is("a", "3"), gone("b")];
        journal.append(&mut changes).expect_err("there is no room");
        assert_eq!(changes.len(), 2);
        journal.with_room(file);
        assert_eq!(all(&journal), ["1", "2"]);
        // What an append leaves that is torn, and could not be cut off at once.
        let torn =
            [&fs::read(&path).expect("read")[..], b"{\"kind\":\"pods\",\"key\":\"b"].concat();
        fs::write(&path, torn).expect("written");
        append(&mut journal, changes);
        assert_eq!(all(&journal), ["3"]);
        assert_eq!(all(&open(&path)), ["3"]);
    }
}
