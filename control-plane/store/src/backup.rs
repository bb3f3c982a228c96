//! A backup: the whole key space at one revision, as one file that says what it is.
//!
//! ```text
//!  file  := line of text, frame(Head), frame(Keyring | Place)?, frame(Objects)*, frame(End)
//!  frame := ┌────────┬───────────────────────────────────────────────────┐
//!           │ length │ record (see `codec`): version, CRC-32, tag, fields │
//!           └────────┴───────────────────────────────────────────────────┘
//!  End   := counts, SHA-256 of every byte before this frame; nothing follows
//! ```
//!
//! It is made from one root in memory, so writes go on meanwhile and none is seen halfway. Objects
//! come in key order with their revisions. Values that are encrypted at rest are encrypted here
//! too, each bound to its key; the keyring is in the file only where that was asked for, else where
//! it lies on the machine of the member that made the backup.
//!
//! Invariants:
//! - Whatever bit of the file is changed, and wherever it is cut, reading it to the end fails.
//! - A reader holds one frame at a time, and no length in the file makes it allocate more.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use crate::codec::{self, CodecError, Decoder, Encoder};
use crate::errors::ReadError;
use crate::keyring::{Fingerprint, Keyring, OpenSealError};
use crate::state::{Entry, Revision, Snapshot};
use crate::store::Store;

/// What a file begins with, so that `head -1` tells a person what it is.
const FIRST_LINE: &[u8] = b"wherry backup, format 1\n";

/// The part of it that every format has.
const FIRST_WORDS: &[u8] = b"wherry backup, format ";

/// Objects are gathered into a frame up to this size: encoding one must not hold up the thread
/// that sends it.
const FRAME_BYTES: usize = 256 << 10;

/// No frame is longer: [`FRAME_BYTES`] and the largest object, with room for later formats.
const FRAME_BYTES_MAX: usize = 8 << 20;

const HASH_BYTES: usize = 32;

/// Frames by their tag.
const HEAD: u8 = b'H';
const KEYRING: u8 = b'K';
const PLACE: u8 = b'P';
const OBJECTS: u8 = b'O';
const END: u8 = b'E';

/// What a backup says about itself first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupHead {
    /// Version of the program that made it.
    pub program: String,
    /// The cluster it was made from.
    pub cluster_id: u128,
    /// When, in milliseconds since 1970, by the clock of the member that made it.
    pub made_ms: u64,
    /// The state it holds.
    pub revision: Revision,
    /// How many objects follow.
    pub objects: u64,
    /// The key that encrypts values in it; older ones need no key at all.
    pub key: Option<Fingerprint>,
}

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupObject {
    /// Its key, which is never encrypted.
    pub key: Bytes,
    /// The revision that made it.
    pub created: Revision,
    /// The revision of its last write.
    pub modified: Revision,
    /// Its value, maybe sealed.
    stored: Bytes,
    sealed: bool,
}

/// What reading a backup to its end has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupContent {
    /// What it says about itself.
    pub head: BackupHead,
    /// Bytes of all keys and values, as far as they could be read.
    pub bytes: u64,
    /// Objects whose value is encrypted.
    pub sealed: u64,
    /// The keys that those need.
    pub keys: BTreeSet<Fingerprint>,
    /// Whether the keyring is in the file.
    pub has_keyring: bool,
    /// SHA-256 of the file, in hex.
    pub file_sha256: String,
    /// SHA-256 over every key, value and revision, in hex: the same for the same state, whatever
    /// encrypts it. `None` if values could not be decrypted for want of a keyring.
    pub content_sha256: Option<String>,
}

/// Why a backup cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("the backup cannot be read")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error("this is not a backup of Wherry's")]
    Other,
    /// It is of a format that this program does not know.
    #[error("this backup was made by another version of wherry; restore it with that one")]
    OtherVersion,
    /// It was changed or cut after it was made.
    #[error(
        "the backup is damaged at byte {at}: {why}; nothing of it can be trusted, take another"
    )]
    Damaged {
        /// Where.
        at: u64,
        /// What was found.
        why: String,
    },
    /// Values are encrypted, and their key is missing.
    #[error(
        "the backup has values that are encrypted with key {0}; give the keyring of the cluster it \
         was made from"
    )]
    Key(Fingerprint),
    /// Values cannot be encrypted.
    #[error("a value cannot be encrypted: {0}")]
    Seal(String),
}

/// A backup as it is made: its file, piece by piece.
pub struct Backup {
    head: BackupHead,
    snapshot: Snapshot,
    keys: Option<Arc<Keyring>>,
    /// Whether the keyring goes into the file.
    with_keyring: bool,
    /// Where the keyring lies, if it does not go into the file.
    keyring_at: Option<String>,
    hasher: Context,
    sealed: u64,
    /// The last object that is in a frame.
    after: Option<Bytes>,
    next: Next,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    Objects,
    Nothing,
}

/// Says where a value belongs when it is sealed for a backup.
fn place(key: &[u8]) -> Vec<u8> {
    [b"backup\0", key].concat()
}

/// A path that means the same in every folder; `None` for an empty one, or one that is no text.
fn absolute(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    path.to_str().map(str::to_owned)
}

impl Backup {
    pub(crate) fn new(
        snapshot: Snapshot,
        (cluster_id, made_ms): (u128, u64),
        keys: Option<Arc<Keyring>>,
        with_keyring: bool,
    ) -> Backup {
        let keyring_at = keys.as_ref().filter(|_| !with_keyring);
        let keyring_at = keyring_at.and_then(|keys| absolute(keys.path()));
        // What is encrypted with a key that comes later would not open with the keyring in the file.
        let keys = keys.map(|keys| Arc::new(keys.frozen()));
        let head = BackupHead {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id,
            made_ms,
            revision: snapshot.revision(),
            objects: snapshot.len() as u64,
            key: keys.as_ref().map(|keys| keys.newest()),
        };
        let hasher = Context::new(&SHA256);
        Backup {
            head,
            snapshot,
            keys,
            with_keyring,
            keyring_at,
            hasher,
            sealed: 0,
            after: None,
            next: Next::Head,
        }
    }

    /// What its file begins with.
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    fn frame(&mut self, encoder: Encoder) -> Vec<u8> {
        let record = encoder.seal();
        assert!(record.len() <= FRAME_BYTES_MAX, "objects are bounded far below a frame");
        let frame = [&(record.len() as u32).to_le_bytes()[..], &record].concat();
        self.hasher.update(&frame);
        frame
    }

    fn first(&mut self) -> Bytes {
        self.hasher.update(FIRST_LINE);
        let mut file = FIRST_LINE.to_vec();
        let mut encoder = Encoder::new(128);
        encode_head(&mut encoder, &self.head);
        file.extend(self.frame(encoder));
        if let (Some(keys), true) = (self.keys.clone(), self.with_keyring) {
            let mut encoder = Encoder::new(1024);
            encoder.u8(KEYRING);
            encoder.bytes(keys.text().as_bytes());
            file.extend(self.frame(encoder));
        }
        if let Some(path) = self.keyring_at.take() {
            let mut encoder = Encoder::new(16 + path.len());
            encoder.u8(PLACE);
            encoder.text(&path);
            file.extend(self.frame(encoder));
        }
        file.into()
    }

    /// The next objects as a frame; `None` when all are out.
    fn objects(&mut self) -> Result<Option<Bytes>, BackupError> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for (key, entry) in self.snapshot.range(b"", self.after.as_deref()) {
            bytes += key.len() + entry.value.len();
            taken.push((key, entry));
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        let Some((last, _)) = taken.last() else {
            return Ok(None);
        };
        self.after = Some(last.clone());
        let mut encoder = Encoder::new(bytes + 128 * taken.len());
        encoder.u8(OBJECTS);
        encoder.count(taken.len());
        for (key, entry) in &taken {
            let sealing = self.keys.as_ref().filter(|keys| keys.covers(key));
            self.sealed += u64::from(sealing.is_some());
            encode_object(&mut encoder, key, entry, sealing)?;
        }
        Ok(Some(self.frame(encoder).into()))
    }

    fn end(&mut self) -> Bytes {
        let hash = self.hasher.clone().finish();
        let mut encoder = Encoder::new(64);
        encoder.u8(END);
        encoder.u64(self.head.objects);
        encoder.u64(self.sealed);
        encoder.bytes(hash.as_ref());
        self.frame(encoder).into()
    }
}

impl Store {
    /// A backup of the newest state: its file, piece by piece. Writes go on meanwhile.
    /// `with_keyring` puts the keys into the file, so that it can be restored with nothing else, and
    /// read by whoever has it.
    pub async fn backup(&self, with_keyring: bool) -> Result<Backup, ReadError> {
        let snapshot = self.read().await?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let made_ms = since.map_or(0, |since| since.as_millis() as u64);
        let keys = self.inner.keys.clone();
        Ok(Backup::new(snapshot, (self.cluster_id(), made_ms), keys, with_keyring))
    }
}

impl Iterator for Backup {
    type Item = Result<Bytes, BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next {
            Next::Head => {
                self.next = Next::Objects;
                Some(Ok(self.first()))
            }
            Next::Objects => match self.objects() {
                Ok(Some(frame)) => Some(Ok(frame)),
                Ok(None) => {
                    self.next = Next::Nothing;
                    Some(Ok(self.end()))
                }
                Err(error) => {
                    self.next = Next::Nothing;
                    Some(Err(error))
                }
            },
            Next::Nothing => None,
        }
    }
}

fn encode_head(encoder: &mut Encoder, head: &BackupHead) {
    encoder.u8(HEAD);
    encoder.bytes(head.program.as_bytes());
    encoder.bytes(&head.cluster_id.to_le_bytes());
    encoder.u64(head.made_ms);
    encoder.u64(head.revision);
    encoder.u64(head.objects);
    encoder.option(head.key.as_ref(), |encoder, key| encoder.bytes(&key.bytes()));
}

fn decode_head(decoder: &mut Decoder<'_>) -> Result<BackupHead, CodecError> {
    let program = String::from_utf8(decoder.bytes()?.into());
    let program = program.map_err(|_| CodecError::Invalid("the program's version"))?;
    let cluster_id = decoder.bytes()?.as_ref().try_into();
    let cluster_id = cluster_id.map_err(|_| CodecError::Invalid("the cluster's id"))?;
    Ok(BackupHead {
        program,
        cluster_id: u128::from_le_bytes(cluster_id),
        made_ms: decoder.u64()?,
        revision: decoder.u64()?,
        objects: decoder.u64()?,
        key: decoder.option(|decoder| {
            let key = decoder.bytes()?.as_ref().try_into();
            key.map(Fingerprint::from_bytes).map_err(|_| CodecError::Invalid("a fingerprint"))
        })?,
    })
}

fn encode_object(
    encoder: &mut Encoder,
    key: &[u8],
    entry: &Entry,
    sealing: Option<&Arc<Keyring>>,
) -> Result<(), BackupError> {
    encoder.bytes(key);
    encoder.u64(entry.created);
    encoder.u64(entry.modified);
    encoder.u8(sealing.is_some().into());
    match sealing {
        None => encoder.bytes(&entry.value),
        Some(keys) => {
            let sealed = keys.seal(&place(key), &entry.value);
            encoder.bytes(&sealed.map_err(|error| BackupError::Seal(error.to_string()))?);
        }
    }
    Ok(())
}

fn decode_object(decoder: &mut Decoder<'_>) -> Result<BackupObject, CodecError> {
    Ok(BackupObject {
        key: decoder.bytes()?,
        created: decoder.u64()?,
        modified: decoder.u64()?,
        sealed: decoder.bool("an encrypted value")?,
        stored: decoder.bytes()?,
    })
}

impl BackupObject {
    /// Its value, decrypted if need be; `None` if that needs a keyring and there is none.
    fn value(&self, keys: Option<&Keyring>) -> Result<Option<Bytes>, OpenSealError> {
        match (self.sealed, keys) {
            (false, _) => Ok(Some(self.stored.clone())),
            (true, None) => Ok(None),
            (true, Some(keys)) => {
                keys.open_sealed(&place(&self.key), &self.stored).map(|value| Some(value.into()))
            }
        }
    }

    /// Whether its value is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Bytes that it takes in the file, without the framing.
    pub fn size(&self) -> usize {
        self.key.len() + self.stored.len()
    }
}

/// Hashes a state: the same for the same keys, values and revisions.
struct ContentHash(Context);

impl ContentHash {
    fn add(&mut self, object: &BackupObject, value: &[u8]) {
        self.0.update(&(object.key.len() as u64).to_le_bytes());
        self.0.update(&object.key);
        self.0.update(&object.created.to_le_bytes());
        self.0.update(&object.modified.to_le_bytes());
        self.0.update(&(value.len() as u64).to_le_bytes());
        self.0.update(value);
    }
}

/// Reads the keyring that a backup carries, if it does; reads no further.
pub fn keyring_of_backup(input: impl Read) -> Result<Option<String>, BackupError> {
    match second_frame(input)? {
        Frame::Keyring(text) => Ok(Some(text)),
        _ => Ok(None),
    }
}

/// Where the keyring lies on the machine of the member that made a backup, if it says so; reads no
/// further.
pub fn keyring_place_of_backup(input: impl Read) -> Result<Option<PathBuf>, BackupError> {
    match second_frame(input)? {
        Frame::Place(path) => Ok(Some(path.into())),
        _ => Ok(None),
    }
}

/// The frame behind the head, which tells about the keyring if one does.
fn second_frame(input: impl Read) -> Result<Frame, BackupError> {
    let mut frames = Frames::open(input)?;
    frames.head()?;
    let (at, record) = frames.next()?;
    let frame = codec::decode(&record, Frame::decode);
    frame.map_err(|error| unread(at, &error))
}

/// Reads a backup to its end and checks all of it; `visit` gets each object with its value, which
/// is `None` where it is encrypted and there is no keyring.
pub fn read_backup<E: From<BackupError>>(
    input: impl Read,
    keys: Option<&Keyring>,
    mut visit: impl FnMut(&BackupObject, Option<Bytes>) -> Result<(), E>,
) -> Result<BackupContent, E> {
    let mut frames = Frames::open(input)?;
    let head = frames.head()?;
    let mut reading = Reading::new(head);
    loop {
        let hash = frames.hasher.clone().finish();
        let (at, record) = frames.next()?;
        let frame = codec::decode(&record, Frame::decode);
        let frame = frame.map_err(|error| unread(at, &error))?;
        match frame {
            Frame::Keyring(_) if reading.content.has_keyring || reading.last.is_some() => {
                return Err(damaged(at, "a keyring where none belongs").into());
            }
            Frame::Keyring(_) => reading.content.has_keyring = true,
            Frame::Place(_) if reading.last.is_some() => {
                return Err(damaged(at, "a keyring's place where none belongs").into());
            }
            Frame::Place(_) => {}
            Frame::Objects(objects) => {
                for object in &objects {
                    let value = reading.take(at, object, keys)?;
                    visit(object, value)?;
                }
            }
            Frame::End { objects, sealed, hash: said } => {
                let counted = (reading.objects, reading.content.sealed);
                if said != hash.as_ref() || counted != (objects, sealed) {
                    return Err(
                        damaged(at, "its hash or its counts are not those it ends with").into()
                    );
                }
                frames.nothing_follows()?;
                return Ok(reading.finish(at, frames)?);
            }
        }
    }
}

fn damaged(at: u64, why: impl Into<String>) -> BackupError {
    BackupError::Damaged { at, why: why.into() }
}

/// Why a part of a backup cannot be taken apart.
fn unread(at: u64, error: &CodecError) -> BackupError {
    match error {
        CodecError::Version(_) => BackupError::OtherVersion,
        _ => damaged(at, error.to_string()),
    }
}

enum Frame {
    Keyring(String),
    Place(String),
    Objects(Vec<BackupObject>),
    End { objects: u64, sealed: u64, hash: Bytes },
}

impl Frame {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Frame, CodecError> {
        match decoder.u8()? {
            KEYRING => {
                let text = String::from_utf8(decoder.bytes()?.into());
                text.map(Frame::Keyring).map_err(|_| CodecError::Invalid("its keyring"))
            }
            PLACE => decoder.text("the place of its keyring").map(Frame::Place),
            OBJECTS => {
                let mut objects = Vec::new();
                for _ in 0..decoder.count()? {
                    objects.push(decode_object(decoder)?);
                }
                Ok(Frame::Objects(objects))
            }
            END => {
                let (objects, sealed) = (decoder.u64()?, decoder.u64()?);
                let hash = decoder.bytes()?;
                match hash.len() {
                    HASH_BYTES => Ok(Frame::End { objects, sealed, hash }),
                    _ => Err(CodecError::Invalid("its hash")),
                }
            }
            other => Err(CodecError::Choice("a part of a backup", other)),
        }
    }
}

/// What has been found so far.
struct Reading {
    content: BackupContent,
    objects: u64,
    last: Option<Bytes>,
    hash: ContentHash,
    /// Whether every value was read, so that the hash says something.
    whole: bool,
}

impl Reading {
    fn new(head: BackupHead) -> Reading {
        let content = BackupContent {
            head,
            bytes: 0,
            sealed: 0,
            keys: BTreeSet::new(),
            has_keyring: false,
            file_sha256: String::new(),
            content_sha256: None,
        };
        let hash = ContentHash(Context::new(&SHA256));
        Reading { content, objects: 0, last: None, hash, whole: true }
    }

    fn take(
        &mut self,
        at: u64,
        object: &BackupObject,
        keys: Option<&Keyring>,
    ) -> Result<Option<Bytes>, BackupError> {
        let follows = self.last.as_ref().is_none_or(|last| *last < object.key);
        let revision = self.content.head.revision;
        if !follows || object.created > object.modified || object.modified > revision {
            return Err(damaged(at, "its objects are not in order"));
        }
        if object.sealed {
            let key = Keyring::key_of(&object.stored);
            let key = key.ok_or_else(|| damaged(at, "an encrypted value that is none"))?;
            self.content.keys.insert(key);
            self.content.sealed += 1;
        }
        let value = object.value(keys).map_err(|error| match error {
            OpenSealError::UnknownKey(key) => BackupError::Key(key),
            OpenSealError::Damaged => damaged(at, error.to_string()),
        })?;
        match &value {
            Some(value) => self.hash.add(object, value),
            None => self.whole = false,
        }
        self.objects += 1;
        self.content.bytes += (object.key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
        self.last = Some(object.key.clone());
        Ok(value)
    }

    fn finish<R>(mut self, at: u64, frames: Frames<R>) -> Result<BackupContent, BackupError> {
        if self.objects != self.content.head.objects {
            return Err(damaged(at, "it has another number of objects than it says"));
        }
        self.content.file_sha256 = hex::encode(frames.hasher.finish());
        self.content.content_sha256 = self.whole.then(|| hex::encode(self.hash.0.finish()));
        Ok(self.content)
    }
}

/// Takes a file apart into frames.
struct Frames<R> {
    input: R,
    hasher: Context,
    at: u64,
}

impl<R: Read> Frames<R> {
    fn open(mut input: R) -> Result<Frames<R>, BackupError> {
        let mut line = [0; FIRST_LINE.len()];
        match input.read_exact(&mut line) {
            Ok(()) if line == FIRST_LINE => {}
            Ok(()) if line.starts_with(FIRST_WORDS) => return Err(BackupError::OtherVersion),
            Ok(()) => return Err(BackupError::Other),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BackupError::Other);
            }
            Err(error) => return Err(BackupError::Read(error)),
        }
        let mut hasher = Context::new(&SHA256);
        hasher.update(&line);
        Ok(Frames { input, hasher, at: FIRST_LINE.len() as u64 })
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(self.at, "it ends too early"),
            _ => BackupError::Read(error),
        })?;
        self.hasher.update(&bytes);
        self.at += length as u64;
        Ok(bytes)
    }

    /// The next frame's record, and where the frame begins.
    fn next(&mut self) -> Result<(u64, Vec<u8>), BackupError> {
        let at = self.at;
        let length = self.read(4)?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes were read")) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(damaged(at, "a part of it is longer than any may be"));
        }
        Ok((at, self.read(length)?))
    }

    fn head(&mut self) -> Result<BackupHead, BackupError> {
        let (at, record) = self.next()?;
        let head = codec::decode(&record, |decoder| match decoder.u8()? {
            HEAD => decode_head(decoder),
            other => Err(CodecError::Choice("the head of a backup", other)),
        });
        head.map_err(|error| unread(at, &error))
    }

    fn nothing_follows(&mut self) -> Result<(), BackupError> {
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(damaged(self.at, "it goes on behind its end")),
            Err(error) => Err(BackupError::Read(error)),
        }
    }
}

#[cfg(test)]
mod tests;
