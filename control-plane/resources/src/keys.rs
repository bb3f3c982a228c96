//! Keys under which the store holds objects.
//!
//! A key is `{group}/{plural} 0x00 {namespace} 0x00 {name}`; a cluster-scoped object has an empty
//! namespace. The zero byte cannot occur in any of the parts (names are validated), and it sorts
//! before every byte that can, so keys order by namespace and then by name, bytewise, as lists
//! must. Every prefix ends in the zero byte, so that no type or namespace is a prefix of another
//! (`pods` of `pods2`).

const SEPARATOR: u8 = 0;

/// The parts of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    pub group: &'a str,
    pub plural: &'a str,
    /// Empty for a cluster-scoped object.
    pub namespace: &'a str,
    pub name: &'a str,
}

/// The key of one object.
pub fn object(group: &str, plural: &str, namespace: &str, name: &str) -> Vec<u8> {
    let mut key = in_namespace(group, plural, namespace);
    key.extend_from_slice(name.as_bytes());
    key
}

/// The prefix of all objects of a type.
pub fn of_type(group: &str, plural: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(group.len() + plural.len() + 64);
    key.extend_from_slice(group.as_bytes());
    key.push(b'/');
    key.extend_from_slice(plural.as_bytes());
    key.push(SEPARATOR);
    key
}

/// The prefix of all objects of a type in one namespace.
pub fn in_namespace(group: &str, plural: &str, namespace: &str) -> Vec<u8> {
    let mut key = of_type(group, plural);
    key.extend_from_slice(namespace.as_bytes());
    key.push(SEPARATOR);
    key
}

/// Reads a key back; `None` for bytes that no function here made.
pub fn parse(key: &[u8]) -> Option<Key<'_>> {
    let text = std::str::from_utf8(key).ok()?;
    let mut parts = text.split('\0');
    let (group, plural) = parts.next()?.split_once('/')?;
    let parsed = Key { group, plural, namespace: parts.next()?, name: parts.next()? };
    if parts.next().is_some() || parsed.name.is_empty() {
        return None;
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_their_parts() {
        let key = object("apps", "deployments", "default", "web");
        assert_eq!(key, b"apps/deployments\0default\0web");
        let parts = Key { group: "apps", plural: "deployments", namespace: "default", name: "web" };
        assert_eq!(parse(&key), Some(parts));
        assert_eq!(object("", "nodes", "", "n"), b"/nodes\0\0n");
        assert_eq!(parse(b"/nodes\0\0n").map(|key| key.name), Some("n"));
        for bad in [&b"x"[..], b"/pods\0a", b"/pods\0a\0", b"/pods\0a\0b\0c", b"\xff/a\0\0b"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn no_prefix_covers_another_type_or_namespace() {
        assert!(!object("", "pods2", "a", "x").starts_with(&of_type("", "pods")));
        assert!(!object("", "pods", "ab", "x").starts_with(&in_namespace("", "pods", "a")));
        assert!(object("", "pods", "a", "x") < object("", "pods", "a-b", "a"));
    }
}
