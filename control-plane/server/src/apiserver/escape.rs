//! JSON as Go's encoder writes it: `<`, `>`, `&` and the two line separators of Unicode are
//! escaped. Clients compare answers byte for byte, so every answer passes here where its bytes are
//! made.
//!
//! All of these can stand in strings only, so bytes are looked at and never read. Stored bytes stay
//! as they are: there an escape would count against the size of an object.

use memchr::{memchr3_iter, memmem};

/// How the line separators begin in UTF-8; their third byte tells them from other characters.
const SEPARATOR: [u8; 2] = [0xe2, 0x80];

/// The same JSON, escaped.
pub fn whole(mut json: Vec<u8>) -> Vec<u8> {
    tail(&mut json, 0);
    json
}

/// Escapes what stands from `start` on. Most JSON has nothing to escape and is only searched.
pub fn tail(json: &mut Vec<u8>, start: usize) {
    if let Some(mut escaped) = escaped(&json[start..]) {
        json.truncate(start);
        json.append(&mut escaped);
    }
}

/// The text with its escapes; None if it needs none.
fn escaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut marks = memchr3_iter(b'<', b'>', b'&', text).peekable();
    let is_separator = |at: &usize| matches!(text.get(*at + 2), Some(0xa8 | 0xa9));
    let mut separators = memmem::find_iter(text, &SEPARATOR).filter(is_separator).peekable();
    if marks.peek().is_none() && separators.peek().is_none() {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    let mut copied = 0;
    loop {
        let next = [marks.peek(), separators.peek()].into_iter().flatten().min().copied();
        let Some(at) = next else { break };
        marks.next_if_eq(&at);
        separators.next_if_eq(&at);
        let (length, escape): (usize, &[u8; 6]) = match (text[at], text.get(at + 2)) {
            (b'<', _) => (1, b"\\u003c"),
            (b'>', _) => (1, b"\\u003e"),
            (b'&', _) => (1, b"\\u0026"),
            (_, Some(0xa8)) => (3, b"\\u2028"),
            _ => (3, b"\\u2029"),
        };
        out.extend_from_slice(&text[copied..at]);
        out.extend_from_slice(escape);
        copied = at + length;
    }
    out.extend_from_slice(&text[copied..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::{tail, whole};

    #[test]
    fn json_is_escaped_as_go_escapes_it() {
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"b"}"#),
            (r#"{"a":"<none>"}"#, r#"{"a":"\u003cnone\u003e"}"#),
            (r#"{"<":"a && b"}"#, r#"{"\u003c":"a \u0026\u0026 b"}"#),
            ("\"\u{2028}\u{2029}&\"", r#""\u2028\u2029\u0026""#),
            // Their neighbours are no separators.
            ("\"\u{2027}\u{202a}—…é日\"", "\"\u{2027}\u{202a}—…é日\""),
            (r#""\u003c\n\"<""#, r#""\u003c\n\"\u003c""#),
            ("", ""),
        ];
        for (json, expected) in cases {
            let escaped = whole(json.as_bytes().to_vec());
            assert_eq!(String::from_utf8_lossy(&escaped), expected);
            assert_eq!(whole(escaped.clone()), escaped, "a second time changes nothing");
        }
    }

    #[test]
    fn what_stands_before_stays() {
        let mut json = b"<\"a&b\"".to_vec();
        tail(&mut json, 1);
        assert_eq!(json, br#"<"a\u0026b""#);
    }
}
