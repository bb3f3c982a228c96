//! Text in quotes as Kubernetes' own sentences have it: by the rules of Go's `%q`, which are not
//! those of Rust's `{:?}`. Clients compare such sentences, and people read them.

use std::fmt::Write as _;

/// The text between double quotes; what cannot be printed is escaped.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let code = u32::from(c);
        // Writing into memory does not fail.
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\u{7}' => out.write_str("\\a"),
            '\u{8}' => out.write_str("\\b"),
            '\t' => out.write_str("\\t"),
            '\n' => out.write_str("\\n"),
            '\u{b}' => out.write_str("\\v"),
            '\u{c}' => out.write_str("\\f"),
            '\r' => out.write_str("\\r"),
            _ if is_printed(c) => out.write_char(c),
            _ if code < 0x80 => write!(out, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push('"');
    out
}

/// Whether a character shows: no control character, no space but the plain one, and none of those
/// that only say how others are laid out or that mean nothing to anybody else.
pub fn is_printed(c: char) -> bool {
    let is_layout = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}');
    let is_private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_layout || is_private)
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn text_is_quoted_as_go_quotes_it() {
        let cases = [
            ("web", r#""web""#),
            ("a b", r#""a b""#),
            ("it's \"b\\c\"", r#""it's \"b\\c\"""#),
            ("\n\t\r\u{7}\u{8}\u{b}\u{c}", r#""\n\t\r\a\b\v\f""#),
            ("\0\u{1b}\u{7f}", r#""\x00\x1b\x7f""#),
            ("é\u{301}日", "\"é\u{301}日\""),
            ("\u{ad}\u{200b}\u{202e}\u{a0}", r#""\u00ad\u200b\u202e\u00a0""#),
            ("\u{e0001}\u{f0000}", r#""\U000e0001\U000f0000""#),
        ];
        for (text, expected) in cases {
            assert_eq!(quoted(text), expected);
        }
    }
}
