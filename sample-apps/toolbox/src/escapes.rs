//! Backslash sequences, as `echo -e`, `printf` and `$'...'` know them.

/// How an octal code begins: `\0NNN` in `echo`, `\NNN` elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Octal {
    Zero,
    Bare,
}

/// The bytes of a text with sequences, and whether it goes on after it (`\c` ends all output).
pub fn expand(text: &str, octal: Octal) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..position]);
        rest = &rest[position + 1..];
        let Some(c) = rest.chars().next() else {
            out.push(b'\\');
            break;
        };
        rest = &rest[c.len_utf8()..];
        match c {
            'a' => out.push(7),
            'b' => out.push(8),
            'c' => return (out, false),
            'e' | 'E' => out.push(27),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            '\'' | '"' | '?' if octal == Octal::Bare => out.push(c as u8),
            'x' => code(&mut rest, 2, 16, "\\x", &mut out),
            'u' => unicode(&mut rest, 4, &mut out),
            'U' => unicode(&mut rest, 8, &mut out),
            '0' => {
                if octal == Octal::Bare {
                    octal_byte("0", &mut rest, 2, &mut out);
                } else {
                    octal_byte("", &mut rest, 3, &mut out);
                }
            }
            '1'..='7' if octal == Octal::Bare => {
                octal_byte(c.encode_utf8(&mut [0; 4]), &mut rest, 2, &mut out);
            }
            other => {
                out.push(b'\\');
                out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    (out, true)
}

fn digits<'a>(rest: &mut &'a str, count: usize, radix: u32) -> &'a str {
    let length = rest.chars().take(count).take_while(|c| c.is_digit(radix)).count();
    // Digits are one byte each.
    let (found, after) = rest.split_at(length);
    *rest = after;
    found
}

fn code(rest: &mut &str, count: usize, radix: u32, otherwise: &str, out: &mut Vec<u8>) {
    match u8::from_str_radix(digits(rest, count, radix), radix) {
        Ok(byte) => out.push(byte),
        Err(_) => out.extend_from_slice(otherwise.as_bytes()),
    }
}

fn octal_byte(first: &str, rest: &mut &str, more: usize, out: &mut Vec<u8>) {
    let text = format!("{first}{}", digits(rest, more, 8));
    let value = u32::from_str_radix(&text, 8).unwrap_or(0);
    out.push((value & 0xff) as u8);
}

fn unicode(rest: &mut &str, count: usize, out: &mut Vec<u8>) {
    let value = u32::from_str_radix(digits(rest, count, 16), 16).ok();
    let c = value.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences() {
        let cases: [(&str, Octal, &[u8]); 7] = [
            (r"a\tb\n", Octal::Zero, b"a\tb\n"),
            (r"\0101\x41\x4", Octal::Zero, b"AA\x04"),
            (r"\101\1", Octal::Bare, b"A\x01"),
            (r"\101", Octal::Zero, br"\101"),
            (r"\q\", Octal::Zero, br"\q\"),
            (r"\u00e4", Octal::Bare, "ä".as_bytes()),
            (r"one\ctwo", Octal::Zero, b"one"),
        ];
        for (text, octal, expected) in cases {
            assert_eq!(expand(text, octal).0, expected, "{text}");
        }
    }
}
