//! Patterns of host names: `foo.com`, `*.foo.com` for everything below it, or empty for every host.

/// Whether every host of `other` is one of `pattern`.
fn covers(pattern: &str, other: &str) -> bool {
    let below = pattern.strip_prefix('*');
    pattern.is_empty() || pattern == other || below.is_some_and(|below| other.ends_with(below))
}

/// The hosts that two patterns have in common: the narrower of both, if any.
pub fn common<'a>(left: &'a str, right: &'a str) -> Option<&'a str> {
    if covers(left, right) {
        Some(right)
    } else if covers(right, left) {
        Some(left)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_pattern_is_what_both_have_in_common() {
        for (left, right, expected) in [
            ("", "foo.com", Some("foo.com")),
            ("foo.com", "", Some("foo.com")),
            ("*.foo.com", "a.b.foo.com", Some("a.b.foo.com")),
            ("*.foo.com", "*.b.foo.com", Some("*.b.foo.com")),
            ("*.foo.com", "foo.com", None),
            ("*.foo.com", "barfoo.com", None),
            ("a.com", "b.com", None),
            ("", "", Some("")),
        ] {
            assert_eq!(common(left, right), expected, "{left} {right}");
            assert_eq!(common(right, left), expected, "{right} {left}");
        }
    }
}
