//! Encryption at rest: the keys, and how bytes are sealed with them.
//!
//! Words:
//! - *Key*: 32 random bytes of the keyring's file, named by its *fingerprint* (the start of its
//!   SHA-256). The newest key seals, all of them open. A key seals data keys only.
//! - *Data key*: 32 random bytes that one process makes for itself. It seals values, and lies
//!   itself sealed in front of each of them (an *envelope*), so that every sealed value can be
//!   opened with the keyring alone, wherever it is copied.
//! - *Place*: where sealed bytes belong. It is authenticated with them, so that a value put under
//!   another key does not open.
//!
//! ```text
//!  sealed := ┌──────┬─────────────┬─────────────────────┬───────────────────┐
//!            │ mark │ fingerprint │ nonce, data key,tag │ nonce, bytes, tag │   AES-256-GCM
//!            │ 1    │ 8           │ 12 + 32 + 16        │ 12 + n + 16       │
//!            └──────┴─────────────┴─────────────────────┴───────────────────┘
//! ```
//!
//! Invariants:
//! - No two seals share data key and nonce. Nonces are random; a data key is never stored to be
//!   used again, so a restart and every other member have another one, and one is given up after
//!   [`SEALS_MAX`] seals, long before random nonces may meet.
//! - A running process forgets no key: what it has read once it can read until it ends.
//! - Keys are never shown: no type here that holds one can be printed.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

/// First byte of sealed bytes; a plain record begins with its version, which is far below.
pub(crate) const MARK: u8 = 0xE1;

/// Seals with one data key. With 96-bit random nonces the chance that any two of so many meet is
/// below 2^-36; the standard (SP 800-38D) allows four times as many.
const SEALS_MAX: u64 = 1 << 30;

/// Data keys kept opened: one for each start of each member whose values are still there.
const OPENED_MAX: usize = 256;

/// Keys in one keyring; one a month for twenty years.
const KEYS_MAX: usize = 256;

const KEY_BYTES: usize = 32;
const FINGERPRINT_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = NONCE_BYTES + KEY_BYTES + TAG_BYTES;
const ENVELOPE_BYTES: usize = 1 + FINGERPRINT_BYTES + WRAPPED_BYTES;

/// What sealing adds to a value.
pub(crate) const SEAL_BYTES: usize = ENVELOPE_BYTES + NONCE_BYTES + TAG_BYTES;

/// First line of a keyring's file.
const FILE_HEAD: &str = "wherry-keyring-1";

/// Names a key without telling it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Fingerprint {
    fn of(key: &[u8]) -> Fingerprint {
        let hash = digest(&SHA256, key);
        let start = &hash.as_ref()[..FINGERPRINT_BYTES];
        Fingerprint(start.try_into().expect("a SHA-256 is longer than that"))
    }

    pub(crate) fn bytes(self) -> [u8; FINGERPRINT_BYTES] {
        self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; FINGERPRINT_BYTES]) -> Fingerprint {
        Fingerprint(bytes)
    }
}

/// Which values of the key space are sealed on disk; the log always is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cover {
    /// All of them.
    Everything,
    /// Those whose key starts with one of these.
    Prefixes(Vec<Vec<u8>>),
}

impl Cover {
    fn covers(&self, key: &[u8]) -> bool {
        match self {
            Cover::Everything => true,
            Cover::Prefixes(prefixes) => prefixes.iter().any(|prefix| key.starts_with(prefix)),
        }
    }
}

/// Why a keyring cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read or written.
    #[error("cannot {what} the keyring {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "the keyring {path} can be read by others than its owner (mode {mode:03o}); run \
         `chmod 600 {path}`",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The text is no keyring.
    #[error("{origin}, line {line}: {why}; put the file back as it was, or restore it from a copy")]
    Line {
        /// Where the text is from.
        origin: String,
        /// Counted from one.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes, so no key can be made")]
    Random,
}

/// Why sealed bytes do not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenSealError {
    #[error("it is encrypted with key {0}, which the keyring does not have")]
    UnknownKey(Fingerprint),
    #[error("its encrypted bytes are not what was written there")]
    Damaged,
}

/// A key as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub fingerprint: Fingerprint,
    /// When it was made, in seconds since 1970.
    pub made_seconds: u64,
    /// Whether it is the one that encrypts.
    pub newest: bool,
}

#[derive(Clone)]
struct Key {
    fingerprint: Fingerprint,
    made_seconds: u64,
    bytes: [u8; KEY_BYTES],
}

impl Key {
    fn make() -> Result<Key, KeyringError> {
        let mut bytes = [0; KEY_BYTES];
        fill(&mut bytes).map_err(|_| KeyringError::Random)?;
        let made = SystemTime::now().duration_since(UNIX_EPOCH);
        let made_seconds = made.map_or(0, |made| made.as_secs());
        Ok(Key { fingerprint: Fingerprint::of(&bytes), made_seconds, bytes })
    }

    fn cipher(&self) -> LessSafeKey {
        cipher(&self.bytes)
    }
}

fn cipher(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the key has the cipher's length");
    LessSafeKey::new(key)
}

fn fill(bytes: &mut [u8]) -> Result<(), ring::error::Unspecified> {
    SystemRandom::new().fill(bytes)
}

/// The keys of a cluster's encryption at rest. Every member has the same ones, since members send
/// each other files.
pub struct Keyring {
    /// Empty for a keyring that is not a file.
    path: PathBuf,
    cover: Cover,
    /// A std mutex: sections are short and never await.
    ring: Mutex<Ring>,
}

/// Without the keys.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys();
        f.debug_struct("Keyring").field("path", &self.path).field("keys", &keys).finish()
    }
}

struct Ring {
    /// Oldest first; never empty.
    keys: Vec<Key>,
    sealing: Option<DataKey>,
    opened: HashMap<[u8; ENVELOPE_BYTES], LessSafeKey>,
    /// The order in which `opened` grew.
    opened_order: VecDeque<[u8; ENVELOPE_BYTES]>,
}

/// The data key that seals at present.
struct DataKey {
    envelope: [u8; ENVELOPE_BYTES],
    cipher: LessSafeKey,
    seals: u64,
}

impl Ring {
    fn new(keys: Vec<Key>) -> Ring {
        assert!(!keys.is_empty(), "a keyring has a key");
        Ring { keys, sealing: None, opened: HashMap::new(), opened_order: VecDeque::new() }
    }

    fn newest(&self) -> &Key {
        self.keys.last().expect("a keyring is never empty")
    }
}

impl Keyring {
    /// Reads a keyring's file.
    pub fn open(path: &Path, cover: Cover) -> Result<Keyring, KeyringError> {
        let ring = Mutex::new(Ring::new(read(path)?));
        Ok(Keyring { path: path.to_owned(), cover, ring })
    }

    /// The same, and makes a file with one new key where there is none. Says whether it did.
    pub fn open_or_create(path: &Path, cover: Cover) -> Result<(Keyring, bool), KeyringError> {
        match Keyring::open(path, cover.clone()) {
            Err(KeyringError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let keys = vec![Key::make()?];
                write(path, &text(&keys))?;
                let ring = Mutex::new(Ring::new(keys));
                Ok((Keyring { path: path.to_owned(), cover, ring }, true))
            }
            opened => opened.map(|keyring| (keyring, false)),
        }
    }

    /// Puts the keys of another member's keyring (its text) into this file, the newest last. Keys
    /// that are in the file already stay.
    pub fn adopt(path: &Path, shared: &str, origin: &str) -> Result<(), KeyringError> {
        let found = match read(path) {
            Err(KeyringError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            found => found?,
        };
        let shared = parse(shared, origin)?;
        let known = |key: &Key| shared.iter().any(|other| other.fingerprint == key.fingerprint);
        let mut keys: Vec<Key> = found.into_iter().filter(|key| !known(key)).collect();
        keys.extend(shared);
        write(path, &text(&keys))
    }

    /// A keyring of the text of its file, such as a backup carries; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, cover: Cover) -> Result<Keyring, KeyringError> {
        let ring = Mutex::new(Ring::new(parse(text, origin)?));
        Ok(Keyring { path: PathBuf::new(), cover, ring })
    }

    /// A keyring of the keys that are here now, which takes up no newer one.
    pub(crate) fn frozen(&self) -> Keyring {
        let ring = Mutex::new(Ring::new(self.lock().keys.clone()));
        Keyring { path: PathBuf::new(), cover: self.cover.clone(), ring }
    }

    /// Adds a new key to a keyring's file, from then on the newest, and returns its name. Members
    /// that run take it up by [`Keyring::reload`].
    pub fn rotate(path: &Path) -> Result<Fingerprint, KeyringError> {
        let mut keys = read(path)?;
        if keys.len() == KEYS_MAX {
            let (origin, why) = (path.display().to_string(), "there is no room for another key");
            return Err(KeyringError::Line { origin, line: KEYS_MAX + 1, why });
        }
        keys.push(Key::make()?);
        write(path, &text(&keys))?;
        Ok(keys[keys.len() - 1].fingerprint)
    }

    /// Takes up what was added to the file since; true if the newest key is another one now. Keys
    /// that are gone from the file are kept until the process ends: values may still need them.
    pub fn reload(&self) -> Result<bool, KeyringError> {
        if self.path.as_os_str().is_empty() {
            return Ok(false);
        }
        let found = read(&self.path)?;
        let mut ring = self.lock();
        let before = ring.newest().fingerprint;
        let known = |key: &Key| found.iter().any(|other| other.fingerprint == key.fingerprint);
        let mut keys: Vec<Key> = ring.keys.iter().filter(|key| !known(key)).cloned().collect();
        keys.extend(found);
        ring.keys = keys;
        let changed = ring.newest().fingerprint != before;
        if changed {
            ring.sealing = None;
        }
        Ok(changed)
    }

    /// Its keys, oldest first.
    pub fn keys(&self) -> Vec<KeyInfo> {
        let ring = self.lock();
        let newest = ring.newest().fingerprint;
        let info = |key: &Key| KeyInfo {
            fingerprint: key.fingerprint,
            made_seconds: key.made_seconds,
            newest: key.fingerprint == newest,
        };
        ring.keys.iter().map(info).collect()
    }

    /// Where it is; empty if it is not a file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of its file, with the keys: for whoever is to open what it sealed.
    pub fn text(&self) -> String {
        text(&self.lock().keys)
    }

    /// Whether a key's value is to be sealed.
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.cover.covers(key)
    }

    /// Seals bytes for a place.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyringError> {
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce).map_err(|_| KeyringError::Random)?;
        let (envelope, cipher) = self.data_key()?;
        let mut sealed = Vec::with_capacity(SEAL_BYTES + plain.len());
        sealed.extend(envelope);
        sealed.extend(nonce);
        let start = sealed.len();
        sealed.extend(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(place), &mut sealed[start..]);
        sealed.extend(tag.expect("values are far shorter than the cipher's limit").as_ref());
        Ok(sealed)
    }

    /// Opens what was sealed for a place.
    pub(crate) fn open_sealed(
        &self,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, OpenSealError> {
        let rest = sealed.get(ENVELOPE_BYTES..).ok_or(OpenSealError::Damaged)?;
        let cipher = match self.opened_data_key(sealed) {
            // Another member may have been given a newer key a moment ago.
            Err(OpenSealError::UnknownKey(_)) if self.reload().is_ok() => {
                self.opened_data_key(sealed)?
            }
            cipher => cipher?,
        };
        open_with(&cipher, place, rest)
    }

    /// The key that some sealed bytes need; `None` for bytes that are not sealed.
    pub(crate) fn key_of(record: &[u8]) -> Option<Fingerprint> {
        if record.first() != Some(&MARK) {
            return None;
        }
        let bytes = record.get(1..=FINGERPRINT_BYTES)?;
        Some(Fingerprint(bytes.try_into().expect("exactly so many were taken")))
    }

    pub(crate) fn newest(&self) -> Fingerprint {
        self.lock().newest().fingerprint
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data key to seal with, a new one where there is none or it is used up.
    fn data_key(&self) -> Result<([u8; ENVELOPE_BYTES], LessSafeKey), KeyringError> {
        let mut ring = self.lock();
        if ring.sealing.as_ref().is_none_or(|key| key.seals >= SEALS_MAX) {
            ring.sealing = Some(DataKey::make(ring.newest())?);
        }
        let sealing = ring.sealing.as_mut().expect("made above");
        sealing.seals += 1;
        Ok((sealing.envelope, sealing.cipher.clone()))
    }

    fn opened_data_key(&self, sealed: &[u8]) -> Result<LessSafeKey, OpenSealError> {
        let fingerprint = Keyring::key_of(sealed).ok_or(OpenSealError::Damaged)?;
        let envelope = sealed.get(..ENVELOPE_BYTES).ok_or(OpenSealError::Damaged)?;
        let (head, wrapped) = envelope.split_at(ENVELOPE_BYTES - WRAPPED_BYTES);
        let envelope: [u8; ENVELOPE_BYTES] = envelope.try_into().expect("taken at that length");
        let mut ring = self.lock();
        if let Some(cipher) = ring.opened.get(&envelope) {
            return Ok(cipher.clone());
        }
        let key = ring.keys.iter().find(|key| key.fingerprint == fingerprint);
        let key = key.ok_or(OpenSealError::UnknownKey(fingerprint))?;
        let bytes = open_with(&key.cipher(), head, wrapped)?;
        let bytes = bytes.as_slice().try_into().map_err(|_| OpenSealError::Damaged)?;
        let opened = cipher(bytes);
        if ring.opened_order.len() == OPENED_MAX
            && let Some(oldest) = ring.opened_order.pop_front()
        {
            ring.opened.remove(&oldest);
        }
        ring.opened_order.push_back(envelope);
        ring.opened.insert(envelope, opened.clone());
        Ok(opened)
    }
}

impl DataKey {
    fn make(key: &Key) -> Result<DataKey, KeyringError> {
        let (mut bytes, mut nonce) = ([0; KEY_BYTES], [0; NONCE_BYTES]);
        fill(&mut bytes).and_then(|()| fill(&mut nonce)).map_err(|_| KeyringError::Random)?;
        let mut wrapped = bytes;
        let mut head = vec![MARK];
        head.extend(key.fingerprint.0);
        let unique = Nonce::assume_unique_for_key(nonce);
        let sealed =
            key.cipher().seal_in_place_separate_tag(unique, Aad::from(&head), &mut wrapped);
        let tag = sealed.expect("a data key is short");
        let envelope = [&head[..], &nonce, &wrapped, tag.as_ref()].concat();
        let envelope = envelope.try_into().expect("the parts have their lengths");
        Ok(DataKey { envelope, cipher: cipher(&bytes), seals: 0 })
    }
}

/// Opens `nonce, bytes, tag`.
fn open_with(cipher: &LessSafeKey, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenSealError> {
    let (nonce, bytes) = sealed.split_at_checked(NONCE_BYTES).ok_or(OpenSealError::Damaged)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenSealError::Damaged)?;
    let mut bytes = bytes.to_vec();
    let plain = cipher.open_in_place(nonce, Aad::from(place), &mut bytes);
    let length = plain.map_err(|_| OpenSealError::Damaged)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

/// The text of a keyring's file.
fn text(keys: &[Key]) -> String {
    let mut text = format!(
        "{FILE_HEAD}\n# fingerprint, seconds since 1970, key; the last one encrypts, all of them \
         decrypt.\n# Without this file the data is lost: keep a copy, and not beside the backups.\n"
    );
    for key in keys {
        let Key { fingerprint, made_seconds, bytes } = key;
        text.push_str(&format!("{fingerprint} {made_seconds} {}\n", hex::encode(bytes)));
    }
    text
}

fn parse(text: &str, origin: &str) -> Result<Vec<Key>, KeyringError> {
    let bad = |line, why| KeyringError::Line { origin: origin.to_owned(), line, why };
    let mut keys: Vec<Key> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let bad = |why| bad(number + 1, why);
        match line.trim() {
            head if number == 0 && head == FILE_HEAD => {}
            _ if number == 0 => return Err(bad("this is not a keyring of Wherry's")),
            "" => {}
            comment if comment.starts_with('#') => {}
            line => {
                let key = parse_key(line).map_err(bad)?;
                if keys.iter().any(|other| other.fingerprint == key.fingerprint) {
                    return Err(bad("the same key is there twice"));
                }
                keys.push(key);
            }
        }
    }
    match keys.len() {
        0 => Err(bad(text.lines().count() + 1, "there is no key in it")),
        1..=KEYS_MAX => Ok(keys),
        _ => Err(bad(text.lines().count(), "there are more keys than a keyring may have")),
    }
}

fn parse_key(line: &str) -> Result<Key, &'static str> {
    let mut words = line.split_whitespace();
    let (name, made, key) = (words.next(), words.next(), words.next());
    let (Some(name), Some(made), Some(key), None) = (name, made, key, words.next()) else {
        return Err("a key has three words");
    };
    let made_seconds = made.parse().map_err(|_| "its second word is not a number")?;
    let mut bytes = [0; KEY_BYTES];
    hex::decode_to_slice(key, &mut bytes).map_err(|_| "its third word is not 64 hex digits")?;
    let fingerprint = Fingerprint::of(&bytes);
    match fingerprint.to_string() == name {
        true => Ok(Key { fingerprint, made_seconds, bytes }),
        false => Err("the key does not match its fingerprint"),
    }
}

fn read(path: &Path) -> Result<Vec<Key>, KeyringError> {
    let failed = |source| KeyringError::File { what: "read", path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyringError::Exposed { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    parse(&text, &path.display().to_string())
}

/// Writes the file for its owner alone, so that a crash leaves the old one or the new one.
fn write(path: &Path, text: &str) -> Result<(), KeyringError> {
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    written().map_err(|source| KeyringError::File { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod at_rest;
#[cfg(test)]
mod tests;
