//! `sed`: the part of it that scripts use: POSIX but for `l`, `r` and `w`, with addresses and `{}`.

use std::collections::VecDeque;

use lexopt::prelude::*;
use regex_lite::{Captures, Regex, RegexBuilder};

use crate::command::{Command, Failure, On, Outcome};
use crate::io::{Input, Output, too_long};
use crate::runtime;

use super::grep::{basic_to_extended, extended};

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

impl Range {
    fn names_last(&self) -> bool {
        let mut addresses = [&self.from, &self.to].into_iter().flatten();
        addresses.any(|address| matches!(address, Address::Last))
    }
}

enum Action {
    Substitute {
        regex: Regex,
        by: String,
        all: bool,
        nth: usize,
        print: bool,
    },
    Translate(Vec<(char, char)>),
    Print,
    Delete,
    Quit,
    Number,
    /// `n`
    Next,
    /// `N`
    More,
    /// `P` and `D`, of the first line of several.
    PrintFirst,
    DeleteFirst,
    Append(String),
    Insert(String),
    Change(String),
    /// `h` and `H`: whether it is put behind what is held.
    Hold(bool),
    /// `g` and `G`.
    Fetch(bool),
    Exchange,
    Label(String),
    /// To a label, or the end without one; and whether only if something was replaced (`t`).
    Branch(String, bool),
    /// So many instructions after it belong to it.
    Group(usize),
}

struct Instruction {
    range: Range,
    action: Action,
    /// Whether a range that began has not ended.
    active: bool,
}

pub async fn sed(command: Command) -> Outcome {
    let (mut quiet, mut extended, mut separate, mut in_place) = (false, false, false, None);
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
            Short('s') => separate = true,
            Short('u') => {}
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
    let mut program = Vec::new();
    parser.instructions(&mut program, false)?;
    for instruction in &program {
        if let Action::Branch(label, _) = &instruction.action
            && target(&program, label).is_none()
        {
            return Err(Failure::usage(format!("there is no label {label}")));
        }
    }
    let Some(suffix) = in_place else {
        let names = command.inputs(&names);
        for together in names.chunks(if separate { 1 } else { names.len() }) {
            let inputs = together.iter().map(|name| command.open(name));
            let inputs = inputs.collect::<Result<VecDeque<Input>, Failure>>()?;
            let mut editor = Editor::new(quiet, inputs, command.stdout.clone());
            if editor.edit(&mut program).await.on(&together.join(" "))? {
                break;
            }
        }
        return Ok(0);
    };
    for name in &names {
        let input = Input::text(command.open(name)?.rest().await.on(name)?);
        let memory = Output::memory();
        let mut editor = Editor::new(quiet, VecDeque::from([input]), memory.clone());
        let quit = editor.edit(&mut program).await.on(name)?;
        if !suffix.is_empty() {
            std::fs::copy(command.path(name), command.path(&format!("{name}{suffix}"))).on(name)?;
        }
        std::fs::write(command.path(name), memory.take()).on(name)?;
        if quit {
            break;
        }
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

    fn instructions(&mut self, all: &mut Vec<Instruction>, inner: bool) -> Result<(), Failure> {
        loop {
            self.skip(&[' ', '\t', '\n', ';']);
            if self.rest.is_empty() {
                return match inner {
                    true => Err(Failure::usage("a { has no }")),
                    false => Ok(()),
                };
            }
            if self.rest.starts_with('}') {
                self.next();
                return match inner {
                    true => Ok(()),
                    false => Err(Failure::usage("a } has no {")),
                };
            }
            if self.rest.starts_with('#') {
                self.line();
                continue;
            }
            let range = self.range()?;
            let (action, place) = (self.action()?, all.len());
            let is_group = matches!(action, Action::Group(_));
            let ends = !matches!(action, Action::Group(_) | Action::Label(_));
            all.push(Instruction { range, action, active: false });
            if is_group {
                self.instructions(all, true)?;
                all[place].action = Action::Group(all.len() - place - 1);
            }
            self.skip(&[' ', '\t']);
            if ends && !(self.rest.is_empty() || self.rest.starts_with(['\n', ';', '}', '#'])) {
                let why = format!("extra characters after a command: {}", self.line());
                return Err(Failure::usage(why));
            }
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
        let expression = if self.extended { extended(text) } else { basic_to_extended(text) };
        let built = RegexBuilder::new(&expression).case_insensitive(ignore_case).build();
        built.map_err(|error| Failure::usage(format!("bad regex '{text}': {error}")))
    }

    fn line(&mut self) -> String {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let text = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        text
    }

    fn label(&mut self) -> String {
        self.skip(&[' ', '\t']);
        let is_end = |c: char| c.is_whitespace() || c == ';' || c == '}';
        let end = self.rest.find(is_end).unwrap_or(self.rest.len());
        let (label, rest) = self.rest.split_at(end);
        self.rest = rest;
        label.to_owned()
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
            Some('N') => Action::More,
            Some('P') => Action::PrintFirst,
            Some('D') => Action::DeleteFirst,
            Some('h') => Action::Hold(false),
            Some('H') => Action::Hold(true),
            Some('g') => Action::Fetch(false),
            Some('G') => Action::Fetch(true),
            Some('x') => Action::Exchange,
            Some(':') => Action::Label(self.label()),
            Some('b') => Action::Branch(self.label(), false),
            Some('t') => Action::Branch(self.label(), true),
            Some('a') => Action::Append(self.text()),
            Some('i') => Action::Insert(self.text()),
            Some('c') => Action::Change(self.text()),
            Some('{') => Action::Group(0),
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

/// How the script ends for a line.
enum Step {
    Print,
    Delete,
    Quit,
}

/// Where a branch leads to: behind its label, or to the end.
fn target(program: &[Instruction], label: &str) -> Option<usize> {
    if label.is_empty() {
        return Some(program.len());
    }
    let is_it = |it: &Instruction| matches!(&it.action, Action::Label(name) if name == label);
    program.iter().position(is_it)
}

struct Editor {
    quiet: bool,
    /// What is left to read, one after the other.
    inputs: VecDeque<Input>,
    output: Output,
    number: u64,
    /// Whether somebody asks for the last line: only then the one after this is waited for.
    ahead: bool,
    /// The line after this one; without it, this is the last.
    next: Option<Vec<u8>>,
    /// What `h` and its like keep.
    held: String,
    /// What `a` puts after the line.
    after: String,
}

impl Editor {
    fn new(quiet: bool, inputs: VecDeque<Input>, output: Output) -> Editor {
        let (held, after) = (String::new(), String::new());
        Editor { quiet, inputs, output, number: 0, ahead: false, next: None, held, after }
    }

    /// Edits all lines, or those before the program quits: whether it did.
    async fn edit(&mut self, program: &mut [Instruction]) -> std::io::Result<bool> {
        self.ahead = program.iter().any(|instruction| instruction.range.names_last());
        while let Some(mut text) = self.line().await? {
            let mut out = String::new();
            let step = self.apply(program, &mut text, &mut out).await?;
            if !matches!(step, Step::Delete) && !self.quiet {
                out.push_str(&text);
                out.push('\n');
            }
            out.push_str(&std::mem::take(&mut self.after));
            self.output.write(out).await?;
            if matches!(step, Step::Quit) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        while let Some(input) = self.inputs.front() {
            if let Some(line) = input.line().await? {
                return Ok(Some(line));
            }
            self.inputs.pop_front();
        }
        Ok(None)
    }

    /// The next line.
    async fn line(&mut self) -> std::io::Result<Option<String>> {
        let line = match self.next.take() {
            None => self.read().await?,
            line => line,
        };
        let Some(line) = line else { return Ok(None) };
        if self.ahead {
            self.next = self.read().await?;
        }
        self.number += 1;
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }

    async fn apply(
        &mut self,
        program: &mut [Instruction],
        text: &mut String,
        out: &mut String,
    ) -> std::io::Result<Step> {
        let (mut at, mut replaced) = (0, false);
        while at < program.len() {
            too_long(text.len() + out.len() + self.held.len() + self.after.len())?;
            let selected = self.selected(&mut program[at], text);
            at += 1;
            match &program[at - 1].action {
                Action::Group(count) if !selected => at += count,
                _ if !selected => {}
                Action::Group(_) | Action::Label(_) => {}
                Action::Branch(label, if_replaced) => {
                    if !if_replaced || std::mem::take(&mut replaced) {
                        // A loop that waits for nothing must let others go on.
                        runtime::yield_now().await;
                        at = target(program, label).expect("labels were looked for at the start");
                    }
                }
                Action::Substitute { regex, by, all, nth, print } => {
                    if substitute(regex, by, *all, *nth, text) {
                        replaced = true;
                        if *print {
                            out.push_str(text);
                            out.push('\n');
                        }
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
                Action::PrintFirst => {
                    out.push_str(text.split('\n').next().unwrap_or(""));
                    out.push('\n');
                }
                Action::Delete => return Ok(Step::Delete),
                Action::DeleteFirst => match text.split_once('\n') {
                    Some((_, rest)) => {
                        runtime::yield_now().await;
                        (*text, at) = (rest.to_owned(), 0);
                    }
                    None => return Ok(Step::Delete),
                },
                Action::Quit => return Ok(Step::Quit),
                Action::Next => {
                    if !self.quiet {
                        out.push_str(text);
                        out.push('\n');
                    }
                    out.push_str(&std::mem::take(&mut self.after));
                    match self.line().await? {
                        Some(line) => *text = line,
                        None => return Ok(Step::Delete),
                    }
                }
                Action::More => match self.line().await? {
                    Some(line) => {
                        text.push('\n');
                        text.push_str(&line);
                    }
                    None => return Ok(Step::Print),
                },
                Action::Number => out.push_str(&format!("{}\n", self.number)),
                Action::Append(more) => self.after.push_str(more),
                Action::Insert(more) => out.push_str(more),
                Action::Change(more) => {
                    // It stands for a range once, at its end.
                    if !program[at - 1].active {
                        out.push_str(more);
                    }
                    return Ok(Step::Delete);
                }
                Action::Hold(more) => put(&mut self.held, text, *more),
                Action::Fetch(more) => put(text, &self.held, *more),
                Action::Exchange => std::mem::swap(text, &mut self.held),
            }
        }
        Ok(Step::Print)
    }

    fn selected(&self, instruction: &mut Instruction, text: &str) -> bool {
        let holds = |address: &Address| match address {
            Address::Line(number) => self.number == *number,
            Address::Last => self.next.is_none(),
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

/// Puts a text in place of another, or on a line behind it.
fn put(to: &mut String, from: &str, behind: bool) {
    if behind {
        to.push('\n');
    } else {
        to.clear();
    }
    to.push_str(from);
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
