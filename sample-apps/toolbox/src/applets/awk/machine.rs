//! A program at work: its variables, the record it looks at, and what it has printed.
//!
//! It never waits. What it prints is taken from it after each record, and between turns of loops (see
//! `turns`).

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use regex_lite::{Captures, Regex};

use super::parse::{Binary, Expr, Function, Pattern, Program, Rule, Statement, Target, regex};
use super::value::Value;
use crate::applets::basic::directive;
use crate::command::Failure;
use crate::io::TEXT_BYTES_MAX;

/// Functions within each other: more is a recursion without end, and the stack is small.
const CALLS_MAX: usize = 48;
/// The last field that can be set: those before it are made, too.
const FIELD_MAX: usize = 65_536;
/// Expressions that are kept of texts: a program may take another one from each record.
const REGEXES_MAX: usize = 256;

type List = Rc<RefCell<BTreeMap<String, Value>>>;

pub struct Machine<'a> {
    pub program: &'a Program,
    variables: HashMap<String, Value>,
    lists: HashMap<String, List>,
    /// Parameters of the functions that run.
    frames: Vec<Frame>,
    record: String,
    /// Of the record, once somebody has asked for them.
    fields: Option<Vec<Value>>,
    regexes: HashMap<String, Rc<Regex>>,
    /// Whether the range of each rule has begun and not ended.
    inside: Vec<bool>,
    random: u64,
    /// What was printed.
    pub out: Vec<u8>,
    /// What was printed to somewhere else.
    pub targets: BTreeMap<(Target, String), Vec<u8>>,
    /// What it ends with.
    pub code: i32,
}

#[derive(Default)]
struct Frame {
    variables: HashMap<String, Value>,
    lists: HashMap<String, List>,
}

/// Why statements do not go on.
pub enum Flow {
    Next,
    Exit,
    Break,
    Continue,
    Return(Value),
    Failed(Failure),
}

type Run<T> = Result<T, Flow>;

impl From<Failure> for Flow {
    fn from(failure: Failure) -> Flow {
        Flow::Failed(failure)
    }
}

/// Which rules run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Begin,
    Record,
    End,
}

/// Something that can be set, its keys evaluated.
pub enum Place {
    Variable(String),
    Field(usize),
    Element(List, String),
}

impl<'a> Machine<'a> {
    pub fn new(program: &'a Program) -> Machine<'a> {
        let text = |text: &str| Value::Text(text.to_owned());
        let variables =
            [("FS", " "), ("OFS", " "), ("ORS", "\n"), ("RS", "\n"), ("SUBSEP", "\x1c")];
        let variables = variables.map(|(name, value)| (name.to_owned(), text(value)));
        Machine {
            program,
            variables: HashMap::from(variables),
            lists: HashMap::new(),
            frames: Vec::new(),
            record: String::new(),
            fields: None,
            regexes: HashMap::new(),
            inside: vec![false; program.rules.len()],
            random: 1,
            out: Vec::new(),
            targets: BTreeMap::new(),
            code: 0,
        }
    }

    /// A new record.
    pub fn take(&mut self, record: String) {
        self.record = record;
        self.fields = None;
    }

    /// Whether a rule, one of the program's, runs at a moment.
    pub fn applies(&mut self, index: usize, rule: &Rule, moment: Moment) -> Run<bool> {
        Ok(match (&rule.pattern, moment) {
            (Pattern::Begin, Moment::Begin) | (Pattern::End, Moment::End) => true,
            (Pattern::Begin | Pattern::End, _) | (_, Moment::Begin | Moment::End) => false,
            (Pattern::Always, _) => true,
            (Pattern::When(condition), _) => self.value(condition)?.is_true(),
            (Pattern::Range(first, last), _) => {
                let applies = self.inside[index] || self.value(first)?.is_true();
                self.inside[index] = applies && !self.value(last)?.is_true();
                applies
            }
        })
    }

    pub fn run(&mut self, statement: &Statement) -> Run<()> {
        match statement {
            Statement::Expr(expr) => self.value(expr).map(drop),
            Statement::Print(values, target) => self.print(values, target.as_ref()),
            Statement::Printf(values, target) => {
                let text = self.formatted(values)?;
                self.put(&text, target.as_ref())
            }
            Statement::Block(all) => all.iter().try_for_each(|statement| self.run(statement)),
            Statement::If(condition, then, otherwise) => {
                if self.value(condition)?.is_true() {
                    return self.run(then);
                }
                otherwise.as_ref().map_or(Ok(()), |otherwise| self.run(otherwise))
            }
            Statement::While(condition, body) => {
                while self.value(condition)?.is_true() && self.turn(body)? {}
                Ok(())
            }
            Statement::DoWhile(body, condition) => {
                while self.turn(body)? && self.value(condition)?.is_true() {}
                Ok(())
            }
            Statement::For(first, condition, last, body) => {
                if let Some(first) = first {
                    self.run(first)?;
                }
                loop {
                    if let Some(condition) = condition
                        && !self.value(condition)?.is_true()
                    {
                        return Ok(());
                    }
                    if !self.turn(body)? {
                        return Ok(());
                    }
                    if let Some(last) = last {
                        self.run(last)?;
                    }
                }
            }
            Statement::Each(name, list, body) => {
                for key in self.keys(list) {
                    self.put_in(Place::Variable(name.clone()), key)?;
                    if !self.turn(body)? {
                        break;
                    }
                }
                Ok(())
            }
            Statement::Delete(name, None) => {
                self.list(name).borrow_mut().clear();
                Ok(())
            }
            Statement::Delete(name, Some(keys)) => {
                let key = self.key(keys)?;
                self.list(name).borrow_mut().remove(&key);
                Ok(())
            }
            Statement::Next => Err(Flow::Next),
            Statement::Break => Err(Flow::Break),
            Statement::Continue => Err(Flow::Continue),
            Statement::Exit(code) => {
                if let Some(code) = code {
                    self.code = self.value(code)?.number() as i32;
                }
                Err(Flow::Exit)
            }
            Statement::Return(value) => {
                let value = match value {
                    Some(value) => self.value(value)?,
                    None => Value::Unset,
                };
                Err(Flow::Return(value))
            }
        }
    }

    /// One turn of a loop; whether there may be another.
    fn turn(&mut self, body: &Statement) -> Run<bool> {
        match self.run(body) {
            Ok(()) | Err(Flow::Continue) => Ok(true),
            Err(Flow::Break) => Ok(false),
            Err(flow) => Err(flow),
        }
    }

    pub fn print(&mut self, values: &[Expr], target: Option<&(Target, Expr)>) -> Run<()> {
        let mut text = String::new();
        if values.is_empty() {
            text.push_str(&self.record);
        }
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                text.push_str(&self.variable("OFS").text());
            }
            text.push_str(&self.value(value)?.text());
        }
        text.push_str(&self.variable("ORS").text());
        self.put(&text, target)
    }

    fn put(&mut self, text: &str, target: Option<&(Target, Expr)>) -> Run<()> {
        let out = match target {
            None => &mut self.out,
            Some((target, name)) => {
                let name = self.value(name)?.text();
                self.targets.entry((*target, name)).or_default()
            }
        };
        if out.len() + text.len() > TEXT_BYTES_MAX {
            return Err(Failure::new("too much was printed for one record").into());
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    pub fn value(&mut self, expr: &Expr) -> Run<Value> {
        Ok(match expr {
            Expr::Number(number) => Value::Number(*number),
            Expr::Text(text) => Value::Text(text.clone()),
            Expr::Regex(regex) => regex.is_match(&self.record).into(),
            Expr::Variable(name) => self.variable(name),
            Expr::Field(_) | Expr::Element(..) => {
                let place = self.place(expr)?;
                self.get_from(&place)
            }
            Expr::Negative(inner) => Value::Number(-self.value(inner)?.number()),
            Expr::Positive(inner) => Value::Number(self.value(inner)?.number()),
            Expr::Not(inner) => (!self.value(inner)?.is_true()).into(),
            Expr::And(left, right) => {
                (self.value(left)?.is_true() && self.value(right)?.is_true()).into()
            }
            Expr::Or(left, right) => {
                (self.value(left)?.is_true() || self.value(right)?.is_true()).into()
            }
            Expr::Binary(operator, left, right) => {
                let left = self.value(left)?;
                binary(*operator, &left, &self.value(right)?)?
            }
            Expr::Matches(text, pattern, shall) => {
                let text = self.value(text)?.text();
                (self.regex(pattern)?.is_match(&text) == *shall).into()
            }
            Expr::In(keys, list) => {
                let key = self.key(keys)?;
                self.list(list).borrow().contains_key(&key).into()
            }
            Expr::Conditional(condition, yes, no) => {
                let chosen = if self.value(condition)?.is_true() { yes } else { no };
                self.value(chosen)?
            }
            Expr::Assign(target, operator, value) => {
                let value = self.value(value)?;
                let place = self.place(target)?;
                let value = match operator {
                    Some(operator) => binary(*operator, &self.get_from(&place), &value)?,
                    None => value,
                };
                self.put_in(place, value.clone())?;
                value
            }
            Expr::Step(target, by, after) => {
                let place = self.place(target)?;
                let before = self.get_from(&place).number();
                self.put_in(place, Value::Number(before + by))?;
                Value::Number(if *after { before + by } else { before })
            }
            Expr::Call(name, arguments) => self.call(name, arguments)?,
            Expr::List(keys) => Value::Text(self.key(keys)?),
        })
    }

    fn place(&mut self, target: &Expr) -> Run<Place> {
        match target {
            Expr::Variable(name) => Ok(Place::Variable(name.clone())),
            Expr::Field(index) => {
                let index = self.value(index)?.number();
                if !(0.0..=FIELD_MAX as f64).contains(&index) {
                    let why = format!("fields are from 0 to {FIELD_MAX}, not {index}");
                    return Err(Failure::usage(why).into());
                }
                Ok(Place::Field(index as usize))
            }
            Expr::Element(list, keys) => {
                let key = self.key(keys)?;
                Ok(Place::Element(self.list(list), key))
            }
            _ => Err(Failure::usage("only variables, fields and elements can be set").into()),
        }
    }

    fn get_from(&mut self, place: &Place) -> Value {
        match place {
            Place::Variable(name) => self.variable(name),
            Place::Field(0) => Value::Read(self.record.clone()),
            Place::Field(index) => self.fields().get(index - 1).cloned().unwrap_or_default(),
            // Who asks for an element makes it.
            Place::Element(list, key) => list.borrow_mut().entry(key.clone()).or_default().clone(),
        }
    }

    pub fn put_in(&mut self, place: Place, value: Value) -> Run<()> {
        match place {
            Place::Variable(name) if name == "NF" => {
                let count = value.number().clamp(0.0, FIELD_MAX as f64) as usize;
                self.fields().resize(count, Value::Unset);
                self.join();
            }
            Place::Variable(name) => {
                let frame = self.frames.last_mut();
                let local = frame.and_then(|frame| frame.variables.get_mut(&name));
                match local {
                    Some(local) => *local = value,
                    None => _ = self.variables.insert(name, value),
                }
            }
            Place::Field(0) => self.take(value.text()),
            Place::Field(index) => {
                let fields = self.fields();
                if fields.len() < index {
                    fields.resize(index, Value::Unset);
                }
                fields[index - 1] = value;
                self.join();
            }
            Place::Element(list, key) => _ = list.borrow_mut().insert(key, value),
        }
        Ok(())
    }

    /// Sets a variable from outside; it is a number too, if it looks like one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), Value::Read(value.to_owned()));
    }

    /// Counts one more.
    pub fn count(&mut self, name: &str) {
        let number = self.variable(name).number() + 1.0;
        self.variables.insert(name.to_owned(), Value::Number(number));
    }

    /// Sets an element from outside.
    pub fn set_element(&mut self, list: &str, key: &str, value: &str) {
        self.list(list).borrow_mut().insert(key.to_owned(), Value::Read(value.to_owned()));
    }

    pub fn variable(&mut self, name: &str) -> Value {
        if let Some(local) = self.frames.last().and_then(|frame| frame.variables.get(name)) {
            return local.clone();
        }
        if name == "NF" {
            return Value::Number(self.fields().len() as f64);
        }
        self.variables.get(name).cloned().unwrap_or_default()
    }

    fn list(&mut self, name: &str) -> List {
        if let Some(local) = self.frames.last().and_then(|frame| frame.lists.get(name)) {
            return local.clone();
        }
        self.lists.entry(name.to_owned()).or_default().clone()
    }

    /// The keys of a list, in order.
    pub fn keys(&mut self, list: &str) -> Vec<Value> {
        let mut keys: Vec<Value> =
            self.list(list).borrow().keys().cloned().map(Value::Read).collect();
        keys.sort_by(Value::order);
        keys
    }

    fn key(&mut self, keys: &[Expr]) -> Run<String> {
        let mut whole = String::new();
        for (index, key) in keys.iter().enumerate() {
            if index > 0 {
                whole.push_str(&self.variable("SUBSEP").text());
            }
            whole.push_str(&self.value(key)?.text());
        }
        Ok(whole)
    }

    fn fields(&mut self) -> &mut Vec<Value> {
        if self.fields.is_none() {
            let separator = self.variables.get("FS").map(Value::text).unwrap_or_default();
            let parts = match self.split(&self.record.clone(), &separator) {
                Ok(parts) => parts,
                // A separator that is no expression separates nothing.
                Err(_) => vec![self.record.clone()],
            };
            self.fields = Some(parts.into_iter().map(Value::Read).collect());
        }
        self.fields.get_or_insert_default()
    }

    /// The record anew, after one of its fields was set.
    fn join(&mut self) {
        let separator = self.variable("OFS").text();
        let texts: Vec<String> = self.fields().iter().map(Value::text).collect();
        self.record = texts.join(&separator);
    }

    fn split(&mut self, text: &str, separator: &str) -> Run<Vec<String>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut characters = separator.chars();
        Ok(match (characters.next(), characters.next()) {
            (Some(' '), None) => text.split_whitespace().map(str::to_owned).collect(),
            (None, _) => text.chars().map(String::from).collect(),
            (Some(one), None) => text.split(one).map(str::to_owned).collect(),
            _ => self.dynamic(separator)?.split(text).map(str::to_owned).collect(),
        })
    }

    /// The expression that a text is.
    fn dynamic(&mut self, text: &str) -> Run<Rc<Regex>> {
        if let Some(known) = self.regexes.get(text) {
            return Ok(known.clone());
        }
        let made = regex(text)?;
        if self.regexes.len() >= REGEXES_MAX {
            self.regexes.clear();
        }
        self.regexes.insert(text.to_owned(), made.clone());
        Ok(made)
    }

    fn regex(&mut self, pattern: &Expr) -> Run<Rc<Regex>> {
        match pattern {
            Expr::Regex(regex) => Ok(regex.clone()),
            other => {
                let text = self.value(other)?.text();
                self.dynamic(&text)
            }
        }
    }

    fn call(&mut self, name: &str, arguments: &[Expr]) -> Run<Value> {
        let Some(function) = self.enter(name, arguments)? else {
            return self.built_in(name, arguments);
        };
        let flow = self.run(&function.body);
        self.leave(flow)
    }

    /// Functions within each other that run.
    pub fn depth(&self) -> usize {
        self.frames.len()
    }

    /// Begins a call, which `leave` ends; `None` if it is none of the program's own functions.
    pub fn enter(&mut self, name: &str, arguments: &[Expr]) -> Run<Option<&'a Function>> {
        let program = self.program;
        let Some(function) = program.functions.get(name) else {
            return Ok(None);
        };
        if self.frames.len() >= CALLS_MAX {
            let why = format!("more than {CALLS_MAX} calls within each other");
            return Err(Failure::new(why).into());
        }
        let mut frame = Frame::default();
        for (index, parameter) in function.parameters.iter().enumerate() {
            let (value, list) = match arguments.get(index) {
                Some(Expr::Variable(name)) => (self.variable(name), self.list(name)),
                Some(other) => (self.value(other)?, List::default()),
                None => (Value::Unset, List::default()),
            };
            frame.variables.insert(parameter.clone(), value);
            frame.lists.insert(parameter.clone(), list);
        }
        self.frames.push(frame);
        Ok(Some(function))
    }

    /// What the body of a function that was entered has led to.
    pub fn leave(&mut self, flow: Run<()>) -> Run<Value> {
        self.frames.pop();
        match flow {
            Ok(()) => Ok(Value::Unset),
            Err(Flow::Return(value)) => Ok(value),
            Err(flow) => Err(flow),
        }
    }

    fn built_in(&mut self, name: &str, arguments: &[Expr]) -> Run<Value> {
        let wrong = || Failure::usage(format!("{name} has other arguments"));
        let number = |machine: &mut Machine<'_>, index: usize| -> Run<f64> {
            let argument = arguments.get(index).ok_or_else(wrong)?;
            Ok(machine.value(argument)?.number())
        };
        let text = |machine: &mut Machine<'_>, index: usize| -> Run<String> {
            let argument = arguments.get(index).ok_or_else(wrong)?;
            Ok(machine.value(argument)?.text())
        };
        Ok(match name {
            "length" => match arguments {
                [] => Value::Number(self.record.chars().count() as f64),
                [Expr::Variable(name)] if !self.list(name).borrow().is_empty() => {
                    Value::Number(self.list(name).borrow().len() as f64)
                }
                _ => Value::Number(text(self, 0)?.chars().count() as f64),
            },
            "substr" => {
                let characters: Vec<char> = text(self, 0)?.chars().collect();
                let first = number(self, 1)?.round();
                let end = match arguments.len() {
                    2 => f64::INFINITY,
                    _ => first + number(self, 2)?.round(),
                };
                let at = |place: f64| (place - 1.0).clamp(0.0, characters.len() as f64) as usize;
                let (from, to) = (at(first), at(end));
                Value::Text(characters[from..to.max(from)].iter().collect())
            }
            "index" => {
                let whole = text(self, 0)?;
                let found = whole.find(&text(self, 1)?);
                Value::Number(found.map_or(0.0, |at| 1.0 + whole[..at].chars().count() as f64))
            }
            "split" => self.split_into(arguments)?,
            "sub" | "gsub" => self.substitute(name == "gsub", arguments)?,
            "match" => {
                let whole = text(self, 0)?;
                let regex = self.regex(arguments.get(1).ok_or_else(wrong)?)?;
                let count = |text: &str| text.chars().count() as f64;
                let (start, length) = match regex.find(&whole) {
                    Some(found) => (1.0 + count(&whole[..found.start()]), count(found.as_str())),
                    None => (0.0, -1.0),
                };
                self.variables.insert("RSTART".to_owned(), Value::Number(start));
                self.variables.insert("RLENGTH".to_owned(), Value::Number(length));
                Value::Number(start)
            }
            "sprintf" => Value::Text(self.formatted(arguments)?),
            "tolower" => Value::Text(text(self, 0)?.to_lowercase()),
            "toupper" => Value::Text(text(self, 0)?.to_uppercase()),
            "int" => Value::Number(number(self, 0)?.trunc()),
            "sqrt" => Value::Number(number(self, 0)?.sqrt()),
            "exp" => Value::Number(number(self, 0)?.exp()),
            "log" => Value::Number(number(self, 0)?.ln()),
            "sin" => Value::Number(number(self, 0)?.sin()),
            "cos" => Value::Number(number(self, 0)?.cos()),
            "atan2" => Value::Number(number(self, 0)?.atan2(number(self, 1)?)),
            "rand" => {
                // Knuth's generator of 64 bits, of which the upper ones are good.
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
                self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
                Value::Number((self.random >> 32) as f64 / (1_u64 << 32) as f64)
            }
            "srand" => {
                let now = std::time::SystemTime::now();
                let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
                self.random = match arguments.is_empty() {
                    true => since.map_or(1, |since| since.as_secs()),
                    false => number(self, 0)? as u64,
                };
                Value::Number(0.0)
            }
            // All that was printed goes out after the record, what is for commands at the end.
            "close" | "fflush" => Value::Number(0.0),
            _ => return Err(Failure::usage(format!("there is no function {name}")).into()),
        })
    }

    /// `split(text, list[, separator])`
    fn split_into(&mut self, arguments: &[Expr]) -> Run<Value> {
        let [text, Expr::Variable(list), separator @ ..] = arguments else {
            return Err(Failure::usage("split(TEXT, LIST[, SEPARATOR])").into());
        };
        let text = self.value(text)?.text();
        let parts: Vec<String> = match separator.first() {
            Some(Expr::Regex(_)) if text.is_empty() => Vec::new(),
            Some(Expr::Regex(regex)) => regex.split(&text).map(str::to_owned).collect(),
            Some(separator) => {
                let separator = self.value(separator)?.text();
                self.split(&text, &separator)?
            }
            None => {
                let separator = self.variable("FS").text();
                self.split(&text, &separator)?
            }
        };
        let count = parts.len();
        let numbered = parts.into_iter().zip(1_u32..);
        let list = self.list(list);
        *list.borrow_mut() =
            numbered.map(|(part, number)| (number.to_string(), Value::Read(part))).collect();
        Ok(Value::Number(count as f64))
    }

    /// `sub` and `gsub`: pattern, replacement, and where, the record if nothing is said.
    fn substitute(&mut self, all: bool, arguments: &[Expr]) -> Run<Value> {
        let [pattern, by, target @ ..] = arguments else {
            return Err(Failure::usage("sub(PATTERN, REPLACEMENT[, WHERE])").into());
        };
        let (regex, by) = (self.regex(pattern)?, self.value(by)?.text());
        let place = match target.first() {
            Some(target) => self.place(target)?,
            None => Place::Field(0),
        };
        let text = self.get_from(&place).text();
        let mut count = 0_u32;
        let replaced = regex.replacen(&text, usize::from(!all), |found: &Captures<'_>| {
            count += 1;
            replacement(&by, found.get(0).map_or("", |whole| whole.as_str()))
        });
        if count > 0 {
            let replaced = replaced.into_owned();
            self.put_in(place, Value::Text(replaced))?;
        }
        Ok(Value::Number(f64::from(count)))
    }

    /// `sprintf`
    fn formatted(&mut self, arguments: &[Expr]) -> Run<String> {
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(self.value(argument)?);
        }
        let mut values = values.into_iter();
        let format = values.next().unwrap_or_default().text();
        let (mut out, mut rest) = (String::new(), format.as_str());
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
                continue;
            }
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (flags, after) = rest.split_at(end);
            let mut parts = flags.split('*');
            let mut flags = parts.next().unwrap_or("").to_owned();
            for part in parts {
                flags += &values.next().unwrap_or_default().text();
                flags += part;
            }
            let Some(kind) = after.chars().next() else { break };
            rest = &after[1..];
            let value = values.next().unwrap_or_default();
            let argument = match (kind, &value) {
                ('c', Value::Number(code)) => {
                    char::from_u32(*code as u32).map(String::from).unwrap_or_default()
                }
                ('c' | 's', value) => value.text(),
                ('d' | 'i' | 'u' | 'x' | 'X' | 'o', value) => {
                    format!("{}", value.number().trunc() as i64)
                }
                (_, value) => format!("{}", value.number()),
            };
            out.push_str(&directive(&flags, kind, &argument, &mut 0));
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// A replacement with `&` for what was found.
fn replacement(by: &str, found: &str) -> String {
    let mut out = String::new();
    let mut characters = by.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if characters.peek().is_some_and(|next| ['&', '\\'].contains(next)) => {
                out.extend(characters.next());
            }
            '&' => out.push_str(found),
            c => out.push(c),
        }
    }
    out
}

fn binary(operator: Binary, left: &Value, right: &Value) -> Run<Value> {
    let (a, b) = (left.number(), right.number());
    let order = || left.compare(right);
    Ok(match operator {
        Binary::Add => Value::Number(a + b),
        Binary::Subtract => Value::Number(a - b),
        Binary::Multiply => Value::Number(a * b),
        Binary::Divide | Binary::Modulo if b == 0.0 => {
            return Err(Failure::usage("division by zero").into());
        }
        Binary::Divide => Value::Number(a / b),
        Binary::Modulo => Value::Number(a % b),
        Binary::Power => Value::Number(a.powf(b)),
        Binary::Join => Value::Text(left.text() + &right.text()),
        Binary::Less => (order() == Ordering::Less).into(),
        Binary::LessOrEqual => (order() != Ordering::Greater).into(),
        Binary::Equal => (order() == Ordering::Equal).into(),
        Binary::NotEqual => (order() != Ordering::Equal).into(),
        Binary::Greater => (order() == Ordering::Greater).into(),
        Binary::GreaterOrEqual => (order() != Ordering::Less).into(),
    })
}
