//! `grep`, and the translation of regular expressions.

use std::iter::Peekable;
use std::str::Chars;

use lexopt::prelude::*;
use regex_lite::{Regex, RegexBuilder};

use crate::command::{Command, Failure, On, Outcome};
use crate::files;

/// What patterns are written in.
#[derive(Clone, Copy, PartialEq)]
enum Language {
    Basic,
    Extended,
    Fixed,
}

pub async fn grep(command: Command) -> Outcome {
    search(command, Language::Basic).await
}

pub async fn egrep(command: Command) -> Outcome {
    search(command, Language::Extended).await
}

pub async fn fgrep(command: Command) -> Outcome {
    search(command, Language::Fixed).await
}

/// The beginning of a class behind its `[`, where `]` is a member.
fn begin_class(characters: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    out.extend(characters.next_if_eq(&'^'));
    if characters.next_if_eq(&']').is_some() {
        out.push_str("\\]");
    }
}

/// A name within a class, such as `[:digit:]`, behind its `[`.
fn name(characters: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    for c in characters.by_ref() {
        out.push(c);
        if c == ']' {
            break;
        }
    }
}

/// A basic regular expression in the words of an extended one: `\(`, `\{`, `\|`, `\+` and `\?` are
/// special there, and the bare characters are not.
pub fn basic_to_extended(basic: &str) -> String {
    let mut out = String::with_capacity(basic.len());
    let mut characters = basic.chars().peekable();
    let mut in_class = false;
    let mut at_start = true;
    while let Some(c) = characters.next() {
        let was_start = std::mem::replace(&mut at_start, false);
        match c {
            '[' if !in_class => {
                in_class = true;
                begin_class(&mut characters, &mut out);
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' if characters.peek() == Some(&':') => name(&mut characters, &mut out),
            c if in_class => {
                if c == '\\' || c == '[' {
                    out.push('\\');
                }
                out.push(c);
            }
            '\\' => match characters.next() {
                Some(special @ ('(' | '|')) => {
                    out.push(special);
                    at_start = true;
                }
                Some(special @ (')' | '{' | '}' | '+' | '?')) => out.push(special),
                Some('<' | '>') => out.push_str("\\b"),
                Some(other) => {
                    out.push('\\');
                    out.push(other);
                }
                None => out.push_str("\\\\"),
            },
            '(' | ')' | '{' | '}' | '|' | '+' | '?' => {
                out.push('\\');
                out.push(c);
            }
            '*' if was_start => out.push_str("\\*"),
            '^' => {
                at_start = true;
                out.push('^');
            }
            c => out.push(c),
        }
    }
    out
}

/// An extended regular expression in the words of the crate, for which `[` within a class and a `{`
/// without a count are mistakes: here they are themselves.
pub fn extended(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    let mut in_class = false;
    while let Some(c) = characters.next() {
        match c {
            '\\' => {
                out.push('\\');
                out.extend(characters.next());
            }
            '[' if !in_class => {
                in_class = true;
                begin_class(&mut characters, &mut out);
            }
            '[' if characters.peek() == Some(&':') => name(&mut characters, &mut out),
            '[' => out.push_str("\\["),
            ']' => {
                in_class = false;
                out.push(']');
            }
            '{' if !in_class && !characters.peek().is_some_and(char::is_ascii_digit) => {
                out.push_str("\\{");
            }
            c => out.push(c),
        }
    }
    out
}

struct Search {
    regex: Regex,
    options: String,
    max: u64,
    before: usize,
    after: usize,
    titles: bool,
}

async fn search(command: Command, mut language: Language) -> Outcome {
    let (mut flags, mut patterns, mut names) = (String::new(), Vec::new(), Vec::new());
    let (mut max, mut before, mut after) = (u64::MAX, 0, 0);
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        let number = |text: std::ffi::OsString| -> Result<usize, Failure> { Ok(text.parse()?) };
        match argument {
            Short('E') | Long("extended-regexp") => language = Language::Extended,
            Short('P') => language = Language::Extended,
            Short('F') | Long("fixed-strings") => language = Language::Fixed,
            Short('G') => language = Language::Basic,
            Short('e') | Long("regexp") => patterns.push(options.value()?.string()?),
            Short('m') | Long("max-count") => max = options.value()?.parse()?,
            Short('A') => after = number(options.value()?)?,
            Short('B') => before = number(options.value()?)?,
            Short('C') => {
                before = number(options.value()?)?;
                after = before;
            }
            Short('f') => {
                let name = options.value()?.string()?;
                let text = command.open(&name)?.rest().await.on(&name)?;
                patterns.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
            }
            Long("color" | "colour") => drop(options.optional_value()),
            Long("line-buffered") => {}
            Long("quiet" | "silent") => flags.push('q'),
            Long("ignore-case") => flags.push('i'),
            Long("invert-match") => flags.push('v'),
            Long("count") => flags.push('c'),
            Long("only-matching") => flags.push('o'),
            Short(letter) if "ivqcnlLoxwhHsrRa".contains(letter) => flags.push(letter),
            Value(value) => names.push(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if patterns.is_empty() {
        if names.is_empty() {
            return Err(Failure::usage("which pattern?"));
        }
        patterns.push(names.remove(0));
    }
    let regex = compiled(&patterns, language, &flags)?;
    let recursive = flags.contains(['r', 'R']);
    if recursive {
        names = below(&command, &names);
    }
    let titles = (names.len() > 1 || recursive || flags.contains('H')) && !flags.contains('h');
    let search = Search { regex, options: flags, max, before, after, titles };
    let mut found = false;
    let mut failed = false;
    for name in command.inputs(&names) {
        match search.file(&command, &name).await {
            Ok(matched) => found |= matched,
            Err(failure) if failure.code == crate::command::CODE_PIPE => return Err(failure),
            Err(failure) => {
                failed = true;
                if !search.options.contains('s') {
                    command.complain(&failure.message).await;
                }
            }
        }
        if found && search.options.contains('q') {
            return Ok(0);
        }
    }
    Ok(if failed { 2 } else { i32::from(!found) })
}

fn compiled(patterns: &[String], language: Language, flags: &str) -> Result<Regex, Failure> {
    let expressions: Vec<String> = patterns
        .iter()
        .flat_map(|pattern| pattern.split('\n'))
        .map(|pattern| match language {
            Language::Fixed => regex_lite::escape(pattern),
            Language::Basic => basic_to_extended(pattern),
            Language::Extended => extended(pattern),
        })
        .map(|pattern| {
            let around = if flags.contains('w') { "\\b" } else { "" };
            format!("{around}(?:{pattern}){around}")
        })
        .collect();
    let mut expression = expressions.join("|");
    if flags.contains('x') {
        expression = format!("^(?:{expression})$");
    }
    let built = RegexBuilder::new(&expression).case_insensitive(flags.contains('i')).build();
    built.map_err(|error| Failure::usage(format!("bad regex '{}': {error}", patterns.join("\n"))))
}

fn below(command: &Command, names: &[String]) -> Vec<String> {
    let here = [".".to_owned()];
    let names = if names.is_empty() { &here } else { names };
    let mut stack: Vec<String> = names.iter().rev().cloned().collect();
    let mut found = Vec::new();
    while let Some(name) = stack.pop() {
        let path = command.path(&name);
        if !files::is_dir(&path) || path.is_symlink() {
            found.push(name);
            continue;
        }
        let inner = files::list(&path).unwrap_or_default();
        let name = name.trim_end_matches('/').to_owned();
        stack.extend(inner.into_iter().rev().map(|entry| format!("{name}/{entry}")));
    }
    found
}

impl Search {
    fn has(&self, letter: char) -> bool {
        self.options.contains(letter)
    }

    async fn file(&self, command: &Command, name: &str) -> Result<bool, Failure> {
        let input = command.open(name)?;
        let title = if self.titles { format!("{name}:") } else { String::new() };
        let (mut count, mut number, mut owed) = (0_u64, 0_u64, 0_usize);
        let mut context = std::collections::VecDeque::new();
        while count < self.max
            && let Some(line) = input.line().await.on(name)?
        {
            number += 1;
            let line = String::from_utf8_lossy(&line).into_owned();
            let matched = self.regex.is_match(&line) != self.has('v');
            let label = if self.has('n') { format!("{number}:") } else { String::new() };
            let shown = format!("{title}{label}{line}\n");
            if !matched {
                if owed > 0 {
                    owed -= 1;
                    command.print(shown).await?;
                } else if self.before > 0 {
                    context.push_back(shown);
                    if context.len() > self.before {
                        context.pop_front();
                    }
                }
                continue;
            }
            count += 1;
            if self.has('q') || self.has('l') || self.has('L') {
                break;
            }
            if self.has('c') {
                continue;
            }
            for earlier in context.drain(..) {
                command.print(earlier).await?;
            }
            owed = self.after;
            if self.has('o') && !self.has('v') {
                let parts = self.regex.find_iter(&line).filter(|part| !part.is_empty());
                let parts: Vec<String> =
                    parts.map(|part| format!("{title}{label}{}\n", part.as_str())).collect();
                command.print(parts.concat()).await?;
            } else {
                command.print(shown).await?;
            }
        }
        if self.has('c') && !self.has('q') {
            command.print(format!("{title}{count}\n")).await?;
        }
        if (self.has('l') && count > 0) || (self.has('L') && count == 0) {
            command.print(format!("{name}\n")).await?;
        }
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_expressions() {
        let cases = [
            (r"a\(b\)\{2\}", "a(b){2}"),
            ("a+b?(c)|d", r"a\+b\?\(c\)\|d"),
            ("*a*", r"\*a*"),
            ("[]^x]+", r"[\]^x]\+"),
            ("[[:digit:]]*", "[[:digit:]]*"),
            (r"\<word\>", r"\bword\b"),
        ];
        for (basic, extended) in cases {
            assert_eq!(basic_to_extended(basic), extended, "{basic}");
        }
    }

    #[test]
    fn extended_expressions() {
        let cases = [
            (r"a{2}{x}\{", r"a{2}\{x}\{"),
            ("[][]|[^]a]", r"[\]\[]|[^\]a]"),
            (r"[[:digit:]{\]]+", r"[[:digit:]{\]]+"),
        ];
        for (text, expected) in cases {
            assert_eq!(extended(text), expected, "{text}");
            assert!(Regex::new(expected).is_ok(), "{text}");
        }
    }
}
