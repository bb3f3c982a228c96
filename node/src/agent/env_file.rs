//! Files of variables, which containers write for others of their Pod (`fileKeyRef`).
//!
//! The format is Kubernetes', of which every file is also one that a shell can read: a variable is
//! `NAME='value'`, the value may have several lines and stands for itself; empty lines and those
//! that begin with `#` say nothing. A line of any other form makes everything behind it unreadable.

/// The largest file that is read, as in Kubernetes.
pub const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why a file cannot be read as variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at line {line}")]
pub struct Malformed {
    what: &'static str,
    line: usize,
}

/// The value of the first variable with this name; `None` if there is none.
pub fn find<'a>(text: &'a str, key: &str) -> Result<Option<&'a str>, Malformed> {
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let end = rest.find('\n').unwrap_or(rest.len());
        let trimmed = rest[..end].trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = rest[end..].strip_prefix('\n').unwrap_or("");
            line += 1;
            continue;
        }
        let malformed = |what| Malformed { what, line };
        let (name, after) = rest[..end]
            .split_once('=')
            .map(|(name, _)| (name.trim_start(), &rest[name.len() + 1..]))
            .ok_or(malformed("invalid environment variable format"))?;
        if name.is_empty() {
            return Err(malformed("invalid environment variable format"));
        }
        if name.ends_with(char::is_whitespace) {
            return Err(malformed("whitespace before '=' is not allowed"));
        }
        let value =
            after.strip_prefix('\'').ok_or(malformed("value must be enclosed in single quotes"))?;
        let close = value.find('\'').ok_or(malformed("unclosed single quote"))?;
        let behind = &value[close + 1..];
        let end = behind.find('\n').unwrap_or(behind.len());
        let remark = behind[..end].trim();
        let apart = behind.starts_with(char::is_whitespace);
        if !(remark.is_empty() || apart && remark.starts_with('#')) {
            return Err(malformed("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(&value[..close]));
        }
        line += 1 + value[..close].matches('\n').count();
        rest = behind[end..].strip_prefix('\n').unwrap_or("");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, key: &str, expected: &str) {
        let found = match find(text, key) {
            Ok(Some(value)) => format!("{value:?}"),
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn values_stand_for_themselves() {
        let text = "# a file\n\n  A='1'\n\t\
            B='  two = \"2\" $A \\n # no remark '\r\nC='' # empty\nA='3'";
        check(text, "A", r#""1""#);
        check(text, "B", r#""  two = \"2\" $A \\n # no remark ""#);
        check(text, "C", r#""""#);
        check(text, "D", "none");
        check("", "A", "none");
        check("A='one\n\n# three\n four'\nB='5'\n", "A", r#""one\n\n# three\n four""#);
        check("A='one\n\n# three\n four'\nB='5'\n", "B", r#""5""#);
    }

    #[test]
    fn other_lines_are_named() {
        check("A='1'\nB\n", "B", "invalid environment variable format at line 2");
        check("='1'", "A", "invalid environment variable format at line 1");
        check("A = '1'", "A", "whitespace before '=' is not allowed at line 1");
        check("A=1", "A", "value must be enclosed in single quotes at line 1");
        check("A= '1'", "A", "value must be enclosed in single quotes at line 1");
        check("A=\"1\"", "A", "value must be enclosed in single quotes at line 1");
        check("A='1''2'", "A", "unexpected content after closing quote at line 1");
        check("A='1'#2", "A", "unexpected content after closing quote at line 1");
        check("A='\n\n'\nB='2", "B", "unclosed single quote at line 4");
        // What stands behind the variable is not looked at.
        check("A='1'\nB\n", "A", r#""1""#);
    }
}
