//! From the text of a program to its words.

use std::fmt;

use super::value::numeric_length;
use crate::command::Failure;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Number(f64),
    Text(String),
    Regex(String),
    Name(String),
    /// A name with `(` right behind it, or further on if it is one of [`BUILT_IN`].
    Call(String),
    Word(&'static str),
    Sign(&'static str),
    Line,
    End,
}

const WORDS: [&str; 17] = [
    "BEGIN", "END", "function", "if", "else", "while", "for", "do", "break", "continue", "next",
    "exit", "return", "delete", "in", "print", "printf",
];

/// Functions that nobody defines. `system` is there to be refused.
const BUILT_IN: [&str; 22] = [
    "atan2", "close", "cos", "exp", "fflush", "gsub", "index", "int", "length", "log", "match",
    "rand", "sin", "split", "sprintf", "sqrt", "srand", "sub", "substr", "system", "tolower",
    "toupper",
];

/// Longer ones first.
const SIGNS: [&str; 41] = [
    "**=", "&&", "||", "!~", "==", "!=", "<=", ">=", ">>", "++", "--", "+=", "-=", "*=", "/=",
    "%=", "^=", "**", "{", "}", "(", ")", "[", "]", ";", ",", "+", "-", "*", "/", "%", "^", "!",
    "<", ">", "|", "?", ":", "~", "=", "$",
];

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Number(number) => write!(out, "{number}"),
            Token::Text(text) => write!(out, "\"{text}\""),
            Token::Regex(text) => write!(out, "/{text}/"),
            Token::Name(name) | Token::Call(name) => write!(out, "{name}"),
            Token::Word(word) => write!(out, "{word}"),
            Token::Sign(sign) => write!(out, "{sign}"),
            Token::Line => write!(out, "the end of a line"),
            Token::End => write!(out, "the end"),
        }
    }
}

/// After these a `/` divides; after all else it begins a regular expression.
fn is_value(token: Option<&Token>) -> bool {
    match token {
        Some(Token::Number(_) | Token::Text(_) | Token::Name(_)) => true,
        Some(Token::Sign(sign)) => [")", "]", "++", "--"].contains(sign),
        _ => false,
    }
}

pub fn tokens(text: &str) -> Result<Vec<Token>, Failure> {
    let mut all: Vec<Token> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            ' ' | '\t' | '\r' => rest = after,
            '\n' => {
                all.push(Token::Line);
                rest = after;
            }
            '\\' => {
                rest = after.strip_prefix("\r").unwrap_or(after).strip_prefix('\n').unwrap_or(after)
            }
            '#' => rest = after.find('\n').map_or("", |end| &after[end..]),
            '"' => {
                let (found, behind) = quoted(after, '"')?;
                all.push(Token::Text(unescaped(found)));
                rest = behind;
            }
            '/' if !is_value(all.last()) => {
                let (found, behind) = quoted(after, '/')?;
                all.push(Token::Regex(found.replace("\\/", "/")));
                rest = behind;
            }
            '0'..='9' | '.' => {
                let length = numeric_length(rest);
                if length == 0 {
                    return Err(Failure::usage("syntax error at ."));
                }
                all.push(Token::Number(rest[..length].parse().unwrap_or(0.0)));
                rest = &rest[length..];
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                let (name, behind) = rest.split_at(length);
                let name = if name == "func" { "function" } else { name };
                let next = match BUILT_IN.contains(&name) {
                    true => behind.trim_start_matches([' ', '\t']),
                    false => behind,
                };
                all.push(match WORDS.iter().copied().find(|word| *word == name) {
                    Some(word) => Token::Word(word),
                    None if next.starts_with('(') => Token::Call(name.to_owned()),
                    None => Token::Name(name.to_owned()),
                });
                rest = behind;
            }
            _ => {
                let sign = SIGNS.iter().copied().find(|sign| rest.starts_with(*sign));
                let sign = sign.ok_or_else(|| Failure::usage(format!("syntax error at {c}")))?;
                rest = &rest[sign.len()..];
                all.push(Token::Sign(match sign {
                    "**" => "^",
                    "**=" => "^=",
                    sign => sign,
                }));
            }
        }
    }
    all.push(Token::End);
    Ok(all)
}

/// What is before an unescaped end, and what is behind it.
fn quoted(text: &str, end: char) -> Result<(&str, &str), Failure> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => break,
            c if c == end => return Ok((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    Err(Failure::usage(format!("syntax error: a {end} has no end")))
}

/// A text without its backslashes; one before something without a meaning stays, for patterns.
pub fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match characters.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('a') => out.push('\x07'),
            Some('b') => out.push('\x08'),
            Some('f') => out.push('\x0c'),
            Some('v') => out.push('\x0b'),
            Some(same @ ('\\' | '"' | '/')) => out.push(same),
            Some('\n') => {}
            Some(digit @ '0'..='7') => {
                let mut code = digit.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(more) = characters.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + more;
                    characters.next();
                }
                out.extend(char::from_u32(code));
            }
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
            None => out.push('\\'),
        }
    }
    out
}
