//! Names, tags, digests and the paths made of them: everything of a request that could become part
//! of a path on the disk passes through here first.

use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::error::Error;

/// Longest repository name, so that its folder's name fits any file system.
const NAME_BYTES_MAX: usize = 200;
/// Longest tag, as the specification has it.
const TAG_BYTES_MAX: usize = 128;

/// A repository's name: lower-case words joined by single separators, slashes between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    pub fn parse(text: &str) -> Option<Name> {
        let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX;
        (fits && text.split('/').all(is_path_component)).then(|| Name(text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The repository's folder: flat, because `a` and `a/blobs` are both names. `+` is not in any
    /// name.
    pub fn folder(&self) -> String {
        self.0.replace('/', "+")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    if !ends.into_iter().all(|end| end.is_some_and(|byte| alphanumeric(*byte))) {
        return false;
    }
    let mut separators = text.split(|letter: char| letter.is_ascii() && alphanumeric(letter as u8));
    separators.all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

/// The SHA-256 digest of some bytes, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    pub fn parse(text: &str) -> Option<Digest> {
        let digits = text.strip_prefix("sha256:")?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == 64 && digits.bytes().all(is_digit)).then(|| Digest(digits.to_string()))
    }

    pub fn of(bytes: &[u8]) -> Digest {
        Digest(hex::encode(Sha256::digest(bytes)))
    }

    pub fn from_hasher(hasher: Sha256) -> Digest {
        Digest(hex::encode(hasher.finalize()))
    }

    /// The digits alone, which are a file's name.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}

/// A name for a manifest: letters, digits, `_`, `.` and `-`, not starting with the last two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    pub fn parse(text: &str) -> Option<Tag> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = text.len() <= TAG_BYTES_MAX && text.bytes().next().is_some_and(word);
        let rest = text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        (fits && rest).then(|| Tag(text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a request names a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// A path below `/v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Base,
    Tags(Name),
    Manifest(Name, Reference),
    Blob(Name, Digest),
    Uploads(Name),
    Upload(Name, Uuid),
}

impl Route {
    /// Reads a path from its end, because names have slashes in them.
    pub fn parse(path: &str) -> Result<Route, Error> {
        if matches!(path, "" | "/") {
            return Ok(Route::Base);
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let name = |words: &[&str]| Name::parse(&words.join("/")).ok_or(Error::NameInvalid);
        match segments.as_slice() {
            [words @ .., "tags", "list"] => Ok(Route::Tags(name(words)?)),
            [words @ .., "blobs", "uploads"] | [words @ .., "blobs", "uploads", ""] => {
                Ok(Route::Uploads(name(words)?))
            }
            [words @ .., "blobs", "uploads", id] => {
                let id = Uuid::try_parse(id).map_err(|_| Error::UploadUnknown)?;
                Ok(Route::Upload(name(words)?, id))
            }
            [words @ .., "blobs", digest] => {
                let digest = Digest::parse(digest).ok_or(Error::DigestInvalid)?;
                Ok(Route::Blob(name(words)?, digest))
            }
            [words @ .., "manifests", reference] => {
                let reference = match Digest::parse(reference) {
                    Some(digest) => Reference::Digest(digest),
                    None => Reference::Tag(Tag::parse(reference).ok_or(Error::TagInvalid)?),
                };
                Ok(Route::Manifest(name(words)?, reference))
            }
            _ => Err(Error::PathUnknown),
        }
    }
}
