//! `sed`: the part of it that scripts use: `s`, `p`, `d`, `q`, `=`, `y`, `a`, `i`, `c`, `n`, with
//! addresses and `{}`.

use lexopt::prelude::*;
use regex_lite::{Captures, Regex, RegexBuilder};

use crate::command::{Command, Failure, On, Outcome};
use crate::io::{Input, Output};

use super::grep::basic_to_extended;

enum Address {
    Line(u64),
    Last,
    Match(Regex),
}

/// From, to, and whether it is everything else that is meant.
#[derive(Default)]
struct Range {
    from: Option<Address>,
    to: Option<Address>,
    negated: bool,
}

enum Action {
    Substitute { regex: Regex, by: String, all: bool, nth: usize, print: bool },
    Translate(Vec<(char, char)>),
    Print,
    Delete,
    Quit,
    Number,
    Next,
    Append(String),
    Insert(String),
    Change(String),
    Group(Vec<Instruction>),
}

struct Instruction {
    range: Range,
    action: Action,
    /// Whether a range that began has not ended.
    active: bool,
}

pub async fn sed(command: Command) -> Outcome {
    let (mut quiet, mut extended, mut in_place) = (false, false, None);
    let (mut scripts, mut names) = (Vec::new(), Vec::new());
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('n') | Long("quiet") => quiet = true,
            Short('E' | 'r') | Long("regexp-extended") => extended = true,
            Short('i') | Long("in-place") => {
                let suffix = options.optional_value().map(|suffix| suffix.string()).transpose()?;
                in_place = Some(suffix.unwrap_or_default());
            }
            Short('e') => scripts.push(options.value()?.string()?),
            Short('f') => {
                let name = options.value()?.string()?;
                let text = command.open(&name)?.rest().await.on(&name)?;
                scripts.push(String::from_utf8_lossy(&text).into_owned());
            }
            Short('u' | 's' | 'z') => {}
            Value(value) => names.push(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if scripts.is_empty() {
        if names.is_empty() {
            return Err(Failure::usage("which script?"));
        }
        scripts.push(names.remove(0));
    }
    let text = scripts.join("\n");
    let mut parser = Parser { rest: text.trim_start(), extended };
    let mut program = parser.instructions(false)?;
    let Some(suffix) = in_place else {
        let mut editor = Editor::new(quiet, command.stdout.clone());
        for name in command.inputs(&names) {
            let input = command.open(&name)?;
            editor.file(&mut program, &input).await.on(&name)?;
            if editor.quit {
                return Ok(0);
            }
        }
        return Ok(0);
    };
    for name in &names {
        let input = Input::text(command.open(name)?.rest().await.on(name)?);
        let memory = Output::memory();
        let mut editor = Editor::new(quiet, memory.clone());
        editor.file(&mut program, &input).await.on(name)?;
        if !suffix.is_empty() {
            std::fs::copy(command.path(name), command.path(&format!("{name}{suffix}"))).on(name)?;
        }
        std::fs::write(command.path(name), memory.take()).on(name)?;
    }
    Ok(0)
}

struct Parser<'a> {
    rest: &'a str,
    extended: bool,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn skip(&mut self, characters: &[char]) {
        self.rest = self.rest.trim_start_matches(characters);
    }

    fn instructions(&mut self, inner: bool) -> Result<Vec<Instruction>, Failure> {
        let mut all = Vec::new();
        loop {
            self.skip(&[' ', '\t', '\n', ';']);
            if self.rest.is_empty() {
                return match inner {
                    true => Err(Failure::usage("a { has no }")),
                    false => Ok(all),
                };
            }
            if self.rest.starts_with('}') {
                self.next();
                return match inner {
                    true => Ok(all),
                    false => Err(Failure::usage("a } has no {")),
                };
            }
            if self.rest.starts_with('#') {
                self.line();
                continue;
            }
            let range = self.range()?;
            let action = self.action()?;
            all.push(Instruction { range, action, active: false });
        }
    }

    fn range(&mut self) -> Result<Range, Failure> {
        let mut range = Range { from: self.address()?, ..Range::default() };
        if range.from.is_some() && self.rest.starts_with(',') {
            self.next();
            range.to = self.address()?;
        }
        self.skip(&[' ', '\t']);
        while self.rest.starts_with('!') {
            self.next();
            range.negated = true;
            self.skip(&[' ']);
        }
        Ok(range)
    }

    fn address(&mut self) -> Result<Option<Address>, Failure> {
        self.skip(&[' ', '\t']);
        match self.rest.chars().next() {
            Some('0'..='9') => {
                let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
                let number = self.rest[..end].parse().map_err(|_| Failure::usage("bad line"))?;
                self.rest = &self.rest[end..];
                Ok(Some(Address::Line(number)))
            }
            Some('$') => {
                self.next();
                Ok(Some(Address::Last))
            }
            Some('/') => {
                self.next();
                let text = self.until('/')?;
                let ignore_case = self.rest.starts_with('I');
                if ignore_case {
                    self.next();
                }
                Ok(Some(Address::Match(self.regex(&text, ignore_case)?)))
            }
            _ => Ok(None),
        }
    }

    /// The text up to the next `end` that is not behind a backslash.
    fn until(&mut self, end: char) -> Result<String, Failure> {
        let mut text = String::new();
        let mut in_class = false;
        loop {
            match self.next() {
                None => return Err(Failure::usage(format!("a {end} is missing"))),
                Some(c) if c == end && !in_class => return Ok(text),
                Some('\\') => match self.next() {
                    Some(c) if c == end => text.push(c),
                    Some('n') => text.push('\n'),
                    Some(c) => {
                        text.push('\\');
                        text.push(c);
                    }
                    None => {}
                },
                Some(c) => {
                    in_class = c == '[' && !text.ends_with('[') || in_class && c != ']';
                    text.push(c);
                }
            }
        }
    }

    fn regex(&self, text: &str, ignore_case: bool) -> Result<Regex, Failure> {
        let expression = if self.extended { text.to_owned() } else { basic_to_extended(text) };
        let built = RegexBuilder::new(&expression).case_insensitive(ignore_case).build();
        built.map_err(|error| Failure::usage(format!("bad regex '{text}': {error}")))
    }

    fn line(&mut self) -> String {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let text = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        text
    }

    /// The text of `a`, `i` and `c`, on the same line or after a backslash.
    fn text(&mut self) -> String {
        self.skip(&[' ', '\t']);
        if self.rest.starts_with('\\') {
            self.next();
            self.skip(&[' ', '\t']);
            if self.rest.starts_with('\n') {
                self.next();
            }
        }
        self.line() + "\n"
    }

    fn action(&mut self) -> Result<Action, Failure> {
        self.skip(&[' ', '\t']);
        Ok(match self.next() {
            Some('s') => self.substitution()?,
            Some('y') => {
                let end = self.next().unwrap_or('/');
                let (from, to) = (self.until(end)?, self.until(end)?);
                if from.chars().count() != to.chars().count() {
                    return Err(Failure::usage("y: both sides need the same length"));
                }
                Action::Translate(from.chars().zip(to.chars()).collect())
            }
            Some('p') => Action::Print,
            Some('d') => Action::Delete,
            Some('q') => Action::Quit,
            Some('=') => Action::Number,
            Some('n') => Action::Next,
            Some('a') => Action::Append(self.text()),
            Some('i') => Action::Insert(self.text()),
            Some('c') => Action::Change(self.text()),
            Some('{') => Action::Group(self.instructions(true)?),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                return Err(Failure::usage(format!("unsupported command {name}")));
            }
        })
    }

    fn substitution(&mut self) -> Result<Action, Failure> {
        let end = self.next().unwrap_or('/');
        let pattern = self.until(end)?;
        // In the replacement brackets mean nothing.
        let mut by = String::new();
        loop {
            match self.next() {
                None => return Err(Failure::usage("s is not complete")),
                Some(c) if c == end => break,
                Some('\\') => {
                    let c = self.next().unwrap_or('\\');
                    if c != end || c == '&' {
                        by.push('\\');
                    }
                    by.push(c);
                }
                Some(c) => by.push(c),
            }
        }
        let (mut all, mut nth, mut print, mut ignore_case) = (false, 1, false, false);
        while let Some(flag) = self.rest.chars().next() {
            match flag {
                'g' => all = true,
                'p' => print = true,
                'i' | 'I' => ignore_case = true,
                '1'..='9' => nth = flag.to_digit(10).map_or(1, |digit| digit as usize),
                _ => break,
            }
            self.next();
        }
        let regex = self.regex(&pattern, ignore_case)?;
        Ok(Action::Substitute { regex, by, all, nth, print })
    }
}

/// What an instruction does to the flow of the script.
enum Step {
    On,
    Delete,
    Quit,
    Next,
}

struct Editor {
    quiet: bool,
    output: Output,
    number: u64,
    /// Whether this line is the last of its file.
    at_end: bool,
    /// What `a` puts after the line.
    after: String,
    quit: bool,
}

impl Editor {
    fn new(quiet: bool, output: Output) -> Editor {
        Editor { quiet, output, number: 0, at_end: false, after: String::new(), quit: false }
    }

    async fn file(&mut self, program: &mut [Instruction], input: &Input) -> std::io::Result<()> {
        let mut line = input.line().await?;
        while let Some(bytes) = line {
            line = input.line().await?;
            self.number += 1;
            self.at_end = line.is_none();
            let mut text = String::from_utf8_lossy(&bytes).into_owned();
            let mut out = String::new();
            let step = self.apply(program, &mut text, &mut out);
            if !matches!(step, Step::Delete) && !self.quiet {
                out.push_str(&text);
                out.push('\n');
            }
            out.push_str(&std::mem::take(&mut self.after));
            self.output.write(out).await?;
            match step {
                Step::Quit => {
                    self.quit = true;
                    return Ok(());
                }
                Step::Next => {
                    // The rest of the script is for the next line, which begins it anew here: what
                    // scripts want by `n` is to skip one line.
                    if let Some(skipped) = line.take() {
                        self.number += 1;
                        line = input.line().await?;
                        if !self.quiet {
                            self.output.write([skipped, b"\n".to_vec()].concat()).await?;
                        }
                    }
                }
                Step::On | Step::Delete => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, program: &mut [Instruction], text: &mut String, out: &mut String) -> Step {
        for instruction in program {
            if !self.selected(instruction, text) {
                continue;
            }
            match &mut instruction.action {
                Action::Substitute { regex, by, all, nth, print } => {
                    if substitute(regex, by, *all, *nth, text) && *print {
                        out.push_str(text);
                        out.push('\n');
                    }
                }
                Action::Translate(pairs) => {
                    let change = |c: char| {
                        let pair = pairs.iter().find(|(from, _)| *from == c);
                        pair.map_or(c, |(_, to)| *to)
                    };
                    *text = text.chars().map(change).collect();
                }
                Action::Print => {
                    out.push_str(text);
                    out.push('\n');
                }
                Action::Delete => return Step::Delete,
                Action::Quit => return Step::Quit,
                Action::Next => return Step::Next,
                Action::Number => out.push_str(&format!("{}\n", self.number)),
                Action::Append(more) => self.after.push_str(more),
                Action::Insert(more) => out.push_str(more),
                Action::Change(more) => {
                    out.push_str(more);
                    return Step::Delete;
                }
                Action::Group(inner) => match self.apply(inner, text, out) {
                    Step::On => {}
                    step => return step,
                },
            }
        }
        Step::On
    }

    fn selected(&self, instruction: &mut Instruction, text: &str) -> bool {
        let holds = |address: &Address| match address {
            Address::Line(number) => self.number == *number,
            Address::Last => self.at_end,
            Address::Match(regex) => regex.is_match(text),
        };
        let range = &instruction.range;
        let inside = match (&range.from, &range.to) {
            (None, _) => true,
            (Some(from), None) => holds(from),
            (Some(from), Some(to)) => {
                let begins = !instruction.active && holds(from);
                let inside = instruction.active || begins;
                let ends = match to {
                    Address::Line(number) => self.number >= *number,
                    to => holds(to) && !begins,
                };
                instruction.active = inside && !ends;
                inside
            }
        };
        inside != range.negated
    }
}

/// Replaces in `text`; whether anything was.
fn substitute(regex: &Regex, by: &str, all: bool, nth: usize, text: &mut String) -> bool {
    let mut count = 0;
    let mut changed = false;
    let mut out = String::with_capacity(text.len());
    let mut last = 0;
    for found in regex.captures_iter(text) {
        count += 1;
        let Some(whole) = found.get(0) else { continue };
        if count < nth || (count > nth && !all) {
            continue;
        }
        out.push_str(&text[last..whole.start()]);
        out.push_str(&replacement(by, &found));
        last = whole.end();
        changed = true;
    }
    out.push_str(&text[last..]);
    *text = out;
    changed
}

fn replacement(by: &str, found: &Captures<'_>) -> String {
    let mut out = String::new();
    let group = |index: usize| found.get(index).map_or("", |group| group.as_str());
    let mut characters = by.chars();
    while let Some(c) = characters.next() {
        match c {
            '&' => out.push_str(group(0)),
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(digit @ '0'..='9') => {
                    out.push_str(group(digit.to_digit(10).map_or(0, |digit| digit as usize)));
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}
