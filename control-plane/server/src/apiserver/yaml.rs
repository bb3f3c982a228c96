//! Answers in YAML, for readers of its older version too.
//!
//! YAML 1.1 reads `yes`, `0x1f`, `1:30` and `2026-01-02` as other things than text, and Python's
//! and Ruby's readers still do. So a text stands bare only where nobody can take it for anything
//! else; a text of several lines stands as a block; every other is quoted.

use serde_json::{Number, Value};

/// Columns of a level.
const STEP: usize = 2;
/// Longest key in front of a colon on its line; readers look no further than 1024 characters.
const KEY_CHARS_MAX: usize = 1_000;
/// What older readers take for true, false or nothing, in any case.
const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

/// One document.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    out
}

/// Writes a value that begins where the cursor is, at this column, and ends its line.
fn block(out: &mut String, value: &Value, column: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (name, value)) in fields.iter().enumerate() {
                if index > 0 {
                    pad(out, column);
                }
                key(out, name, column);
                after_key(out, value, column);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    pad(out, column);
                }
                out.push_str("- ");
                block(out, item, column + STEP);
            }
        }
        _ => {
            scalar(out, value, column.max(STEP));
            out.push('\n');
        }
    }
}

/// A key and its colon.
fn key(out: &mut String, name: &str, column: usize) {
    let shown = if is_plain(name) { name.to_owned() } else { quoted(name) };
    if shown.chars().count() > KEY_CHARS_MAX {
        out.push_str("? ");
        out.push_str(&shown);
        out.push('\n');
        pad(out, column);
    } else {
        out.push_str(&shown);
    }
    out.push(':');
}

/// What follows the colon of a key that stands at this column.
fn after_key(out: &mut String, value: &Value, column: usize) {
    let inner = match value {
        Value::Object(fields) if !fields.is_empty() => column + STEP,
        Value::Array(items) if !items.is_empty() => column,
        _ => {
            out.push(' ');
            scalar(out, value, column + STEP);
            out.push('\n');
            return;
        }
    };
    out.push('\n');
    pad(out, inner);
    block(out, value, inner);
}

fn pad(out: &mut String, column: usize) {
    out.extend(std::iter::repeat_n(' ', column));
}

/// A value without parts. The lines of a block of text stand at this column.
fn scalar(out: &mut String, value: &Value, column: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(value) => out.push_str(&number(value)),
        Value::String(value) if is_plain(value) => out.push_str(value),
        Value::String(value) if is_block(value) => lines(out, value, column),
        Value::String(value) => out.push_str(&quoted(value)),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

/// A number; one with an exponent has a point and a sign, without which it is a text in YAML 1.1.
fn number(value: &Number) -> String {
    let text = value.to_string();
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text;
    };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// Whether a text can stand as it is.
fn is_plain(text: &str) -> bool {
    if text == "." {
        return true;
    }
    let begins = match text.bytes().next() {
        Some(b'_' | b'/') => true,
        Some(first) if first.is_ascii_digit() => is_id(text),
        Some(first) => first.is_ascii_alphabetic(),
        None => false,
    };
    begins
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Whether what begins with a digit is surely no number, which has one dash at most, and no date,
/// which has its first behind four digits.
fn is_id(text: &str) -> bool {
    text.matches('-').count() >= 2 && text.as_bytes().get(4) != Some(&b'-')
}

/// Whether a text can stand as a block of lines.
fn is_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.starts_with(char::is_whitespace)
        && !body.ends_with('\n')
        && body.chars().all(|c| c == '\n' || is_printable(c))
        && body.split('\n').all(|line| line.is_empty() || !line.trim().is_empty())
}

fn lines(out: &mut String, text: &str, column: usize) {
    let (mark, body) = match text.strip_suffix('\n') {
        Some(body) => ("|", body),
        None => ("|-", text),
    };
    out.push_str(mark);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, column);
            out.push_str(line);
        }
    }
}

/// In double quotes, where everything can be said.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_printable(c) => out.push(c),
            // All that is not printable has four hexadecimal digits.
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// What may stand in a document as it is, but line ends and marks of the order of bytes.
fn is_printable(c: char) -> bool {
    matches!(
        c,
        ' '..='~'
            | '\u{a0}'..='\u{2027}'
            | '\u{202a}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fefe}'
            | '\u{ff00}'..='\u{fffd}'
            | '\u{10000}'..='\u{10ffff}'
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::text;

    #[test]
    fn a_document() {
        let value = json!({
            "kind": "X", "empty": {}, "none": [], "nothing": null, "n": 1, "f": 1e21,
            "list": [{"a": [[1, 2], []], "b": {"c": "d"}}, "e"],
            "on": {"time": "2026-01-02T03:04:05Z", "a: b": "x #y", "z:": "", "f:x": {".": {}}},
            "text": "two\n\n  lines\n", "cut": "a\nb", "hard": "a\n\n", "id": "1e2-3-4",
        });
        let expected = r#"kind: X
empty: {}
none: []
nothing: null
"n": 1
f: 1.0e+21
list:
- a:
  - - 1
    - 2
  - []
  b:
    c: d
- e
"on":
  time: "2026-01-02T03:04:05Z"
  "a: b": "x #y"
  "z:": ""
  f:x:
    .: {}
text: |
  two

    lines
cut: |-
  a
  b
hard: "a\n\n"
id: 1e2-3-4
"#;
        assert_eq!(text(&value), expected);
    }

    #[test]
    fn every_text_comes_back_as_a_text() {
        let long = "k".repeat(2_000);
        let texts = [
            "yes",
            "No",
            "ON",
            "off",
            "y",
            "NULL",
            "~",
            "=",
            "<<",
            "0x1f",
            "0o17",
            "017",
            "1_000",
            "1:30",
            "1.5",
            ".5",
            ".inf",
            "1e3",
            "+1",
            "-1",
            "2026-01-02",
            "",
            " ",
            "a ",
            " a",
            "\n",
            "a\n",
            "\na\nb",
            "a\n \nb",
            "a\r\nb",
            "a\tb\nc",
            "\u{1}",
            "\u{7f}",
            "\u{85}",
            "\u{a0}",
            "é\u{2028}ü",
            "\u{feff}a",
            "\u{ffff}",
            "😀\nb",
            "- a",
            "? a",
            "# a",
            "a # b",
            "a: b",
            "a:",
            "{a}",
            "[a]",
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "`a",
            "'a'",
            "\"a\"",
            "a\\b",
            "---",
            "...",
            "k:{\"name\":\"a\"}",
            "10.0.0.1",
            "1234-5-6",
            "12345-6-7",
            long.as_str(),
        ];
        for shown in texts {
            let value = json!({shown: [shown, {shown: shown}], "a": shown});
            let document = text(&value);
            let read: Value = serde_yaml_ng::from_str(&document).expect("what was written is YAML");
            assert_eq!(read, value, "{document}");
        }
    }
}
