//! Image references: `[host[:port]/]name[:tag][@sha256:digest]`.
//!
//! Without a host the image is in the registry that is built into the control plane.

use crate::agent::spec::PullPolicy;

/// The longest reference that is taken; the API allows no longer ones either.
const LENGTH_MAX: usize = 1024;

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry host; `None` for the built-in one.
    pub host: Option<String>,
    /// Repository name.
    pub name: String,
    /// What to ask the registry for.
    pub version: Version,
}

/// Tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    /// A name that may move.
    Tag(String),
    /// `sha256:<hex>`: content that cannot change.
    Digest(String),
}

impl Reference {
    /// Reads a reference; the error is a sentence for people.
    pub fn parse(text: &str) -> Result<Reference, String> {
        let invalid = |why: &str| {
            format!("\"{text}\" is not an image reference: {why}; write it like hello-http:dev")
        };
        if text.is_empty() || text.len() > LENGTH_MAX {
            return Err(invalid("it is empty or too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first.to_owned()), rest),
            _ => (None, rest),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if !host.as_deref().is_none_or(is_host_name) {
            return Err(invalid("its registry is not a host name"));
        }
        if !name.split('/').all(is_name_part) {
            return Err(invalid("its name may have lower case letters, digits and ._-/ only"));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(invalid("its tag may have letters, digits and ._- only"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) if is_digest(digest) => Version::Digest(digest.to_owned()),
            (Some(_), _) => return Err(invalid("a digest is sha256: and 64 hex digits")),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Reference { host, name: name.to_owned(), version })
    }

    /// Host and name, the part of an imageID before the digest.
    pub fn repository(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// Tag or digest as a registry takes it in a path.
    pub fn version(&self) -> &str {
        match &self.version {
            Version::Tag(tag) => tag,
            Version::Digest(digest) => digest,
        }
    }
}

/// Whether a registry is on this machine: as with every container runtime, such a one needs no TLS.
pub fn is_local(host: &str) -> bool {
    matches!(host.split(':').next(), Some("localhost" | "127.0.0.1"))
}

/// A first component is a host if it cannot be a name: as Docker decides it.
fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

/// `name` or `name:port`, of letters, digits, dots and dashes.
fn is_host_name(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "443"));
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    port.parse::<u16>().is_ok()
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte))
}

fn is_name_part(part: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().copied().is_some_and(edge) && bytes.last().copied().is_some_and(edge);
    ends && bytes.iter().all(|byte| edge(*byte) || b"._-".contains(byte))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().copied().is_some_and(word)
        && bytes.iter().all(|byte| word(*byte) || b".-".contains(byte))
}

/// Whether this is `sha256:` and 64 lower case hex digits: safe in file names and URLs.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// `imagePullPolicy` where none is given.
pub fn default_policy(image: &str) -> PullPolicy {
    match Reference::parse(image) {
        Ok(Reference { version: Version::Tag(tag), .. }) if tag == "latest" => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// `argv[0]` of a guest whose Pod names no command: the last part of the image's name.
pub fn program_name(image: &str) -> String {
    let name = match Reference::parse(image) {
        Ok(reference) => reference.name,
        Err(_) => image.to_owned(),
    };
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_usual_forms() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let cases = [
            ("hello-http:dev", "None hello-http dev"),
            ("team/hello", "None team/hello latest"),
            ("localhost:5000/a/b:1.0", "Some(\"localhost:5000\") a/b 1.0"),
            ("ghcr.io/x/y:z", "Some(\"ghcr.io\") x/y z"),
            (&format!("a:1@{digest}"), &format!("None a {digest}")),
        ];
        for (text, expected) in cases {
            let reference = Reference::parse(text).expect(text);
            let shown = format!("{:?} {} {}", reference.host, reference.name, reference.version());
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn refuses_what_could_leave_its_folder_or_url() {
        for text in ["", "../x", "a/../b", "A", "a:", "a@sha256:12", "a b", "a/", "a?x=1", "a:-x"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_programs_and_policies() {
        assert_eq!(program_name("ghcr.io/x/cart:1.4"), "cart");
        assert_eq!(default_policy("x"), PullPolicy::Always);
        assert_eq!(default_policy("x:1"), PullPolicy::IfNotPresent);
    }
}
