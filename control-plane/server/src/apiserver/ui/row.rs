//! One object as a row of its kind's table: what is shown of it, and what it is found, filtered and
//! sorted by. Printed once; whoever looks only reads. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_resources::state::{Health, State};
use wherry_resources::{Kind, Object, fields, meta, state, table};

use super::super::verbs::select::Selection;

/// Longest text that is looked for.
const TEXT_BYTES_MAX: usize = 256;
/// Columns that tell how long ago something was: a browser counts on by itself.
const AGES: [&str; 2] = ["Age", "Last Seen"];
/// What a Deployment and its ReplicaSets are numbered by.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Between the parts of [`Row::found`]; no word that is looked for has it.
const BETWEEN: char = '\n';
/// The namespace and the name stand before the cells.
const PARTS_BEFORE_CELLS: usize = 2;

/// How a person looks at a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Look {
    /// Words that must all be in a row; `column:word` looks in one column.
    pub text: String,
    /// Health words; empty shows all.
    pub health: Vec<String>,
    /// A column's name, `State` or `Namespace`; empty is by namespace and name.
    pub sort: String,
    pub descending: bool,
    /// The window.
    pub from: usize,
    pub count: usize,
}

impl Look {
    /// Whether the same rows are shown, in whichever order.
    pub fn shows_the_same(&self, other: &Look) -> bool {
        (&self.text, &self.health) == (&other.text, &other.health)
    }
}

/// The names of a kind's columns.
pub fn columns(kind: &Kind) -> Vec<String> {
    match kind.custom() {
        Some(custom) => {
            let definitions = custom.columns.definitions();
            definitions.iter().map(|one| meta::text(one, "name").to_owned()).collect()
        }
        None => table::columns(kind).iter().map(|column| column.name.to_owned()).collect(),
    }
}

/// One object, printed.
#[derive(Debug)]
pub struct Row {
    /// Where it is in the store; rows are in the order of their keys where nothing else sorts them.
    pub key: Bytes,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    version: String,
    /// Seconds since 1970 of its creation; of an event, when it was last seen.
    at: i64,
    state: Option<State>,
    owner: Option<(String, String)>,
    /// Which revision of a Deployment it is; no table of kubectl's has a column for it.
    revision: Option<String>,
    is_deleting: bool,
    cells: Vec<Value>,
    /// Namespace, name, each cell and the state's word, in lower case.
    found: String,
    selectable: Object,
}

impl Row {
    /// Prints an object as of a time.
    pub fn print(kind: &Kind, key: Bytes, object: &Object, now: jiff::Timestamp) -> Row {
        let cells = table::cells(kind, object, now);
        let state = state::of(kind, object);
        let (name, namespace) = (meta::name(object), meta::namespace(object));
        let owner = meta::controller(object);
        let mut found = String::with_capacity(128);
        let cell_texts = cells.iter().map(plain);
        let word = state.iter().map(|state| Cow::Borrowed(state.word.as_str()));
        let names = [Cow::from(namespace), Cow::from(name)];
        for part in names.into_iter().chain(cell_texts).chain(word) {
            let low = part.to_lowercase();
            match low.contains(BETWEEN) {
                true => found.push_str(&low.replace(BETWEEN, " ")),
                false => found.push_str(&low),
            }
            found.push(BETWEEN);
        }
        Row {
            key,
            uid: meta::uid(object).to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            version: meta::resource_version(object).to_owned(),
            at: at(object),
            state,
            owner: owner.map(|owner| (owner.kind.to_owned(), owner.name.to_owned())),
            revision: meta::annotation(object, REVISION).map(str::to_owned),
            is_deleting: meta::is_deleting(object),
            cells,
            found,
            selectable: fields::selectable(kind, object),
        }
    }

    /// As a browser gets it.
    pub fn shown(&self) -> Value {
        let mut shown = json!({
            "uid": self.uid, "name": self.name, "at": self.at, "cells": self.cells,
            "version": self.version,
        });
        if !self.namespace.is_empty() {
            shown["namespace"] = self.namespace.as_str().into();
        }
        if let Some((kind, name)) = &self.owner {
            shown["owner"] = json!([kind, name]);
        }
        if let Some(revision) = &self.revision {
            shown["revision"] = revision.as_str().into();
        }
        if self.is_deleting {
            shown["deleting"] = true.into();
        }
        if let Some(State { health, word, why }) = &self.state {
            shown["state"] = json!([health.word(), word, why]);
        }
        shown
    }

    /// How it is, if its kind has such a thing.
    pub fn health(&self) -> Option<Health> {
        self.state.as_ref().map(|state| state.health)
    }

    /// Whether a selector selects its object.
    pub fn is_selected(&self, selection: &Selection) -> bool {
        selection.matches(&self.selectable)
    }

    /// Whether this one, kind and name, controls its object.
    pub fn is_owned_by(&self, owner: &(String, String)) -> bool {
        self.owner.as_ref() == Some(owner)
    }

    /// Whether it reads the same but for what a browser counts on by itself.
    pub fn reads_as(&self, other: &Row, columns: &[String]) -> bool {
        let counted = |at: usize| columns.get(at).is_some_and(|it| AGES.contains(&it.as_str()));
        self.version == other.version
            && (0..columns.len()).all(|at| counted(at) || self.cell(at) == other.cell(at))
    }

    fn cell(&self, at: usize) -> &Value {
        self.cells.get(at).unwrap_or(&Value::Null)
    }
}

/// When an object was made; of an event, when it was last seen.
fn at(object: &Object) -> i64 {
    let seen = ["/series/lastObservedTime", "/lastTimestamp", "/deprecatedLastTimestamp"];
    let seen = seen.into_iter().chain(["/eventTime"]);
    let times = seen.filter_map(|path| object.pointer(path)?.as_str());
    let is_event = meta::kind(object) == "Event";
    let seen = times.filter(|_| is_event).find_map(meta::parse_time);
    seen.or_else(|| meta::creation_timestamp(object)).map_or(0, jiff::Timestamp::as_second)
}

/// Which rows a look shows.
#[derive(Debug, Default)]
pub struct Wanted {
    health: Vec<Health>,
    words: Vec<Word>,
}

/// A word that is looked for.
#[derive(Debug)]
struct Word {
    /// The column that it must be in; else it may be anywhere.
    column: Option<usize>,
    /// In lower case.
    text: String,
    /// Made once a look, for it goes over all rows.
    finder: Finder<'static>,
}

impl Word {
    fn of(word: &str, columns: &[String]) -> Word {
        let squeezed = |name: &str| name.to_lowercase().replace([' ', '-'], "");
        let word = word.to_lowercase();
        let split = word.split_once(':').and_then(|(column, rest)| {
            let at = columns.iter().position(|name| squeezed(name) == squeezed(column))?;
            Some((Some(at), rest.to_owned()))
        });
        let (column, text) = split.unwrap_or((None, word));
        let finder = Finder::new(text.as_bytes()).into_owned();
        Word { column, text, finder }
    }

    fn is_in(&self, row: &Row) -> bool {
        let place = match self.column {
            None => Some(row.found.as_str()),
            Some(at) => row.found.split(BETWEEN).nth(PARTS_BEFORE_CELLS + at),
        };
        place.is_some_and(|place| self.finder.find(place.as_bytes()).is_some())
    }
}

impl Wanted {
    pub fn of(look: &Look, columns: &[String]) -> Wanted {
        let text = &look.text[..look.text.floor_char_boundary(TEXT_BYTES_MAX)];
        Wanted {
            health: look.health.iter().filter_map(|word| Health::parse(word)).collect(),
            words: text.split_whitespace().map(|word| Word::of(word, columns)).collect(),
        }
    }

    /// Whether it shows every row.
    pub fn is_everything(&self) -> bool {
        self.health.is_empty() && self.words.is_empty()
    }

    /// Whether it shows none that the other does not: somebody goes on typing.
    pub fn narrows(&self, other: &Wanted) -> bool {
        let goes_on = |(new, old): (&Word, &Word)| {
            new.column == old.column && new.text.contains(old.text.as_str())
        };
        (other.health.is_empty() || self.health == other.health)
            && self.words.len() >= other.words.len()
            && self.words.iter().zip(&other.words).all(goes_on)
    }

    pub fn takes(&self, row: &Row) -> bool {
        let is_so = |health| self.health.contains(&health);
        (self.health.is_empty() || row.health().is_some_and(is_so))
            && self.words.iter().all(|word| word.is_in(row))
    }
}

/// The order of a look. No two rows are equal in it, for no two have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    by: By,
    descending: bool,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Key,
    Time,
    State,
    Namespace,
    Cell(usize),
}

impl Order {
    /// As the rows come.
    pub const BY_KEY: Order = Order { by: By::Key, descending: false };

    pub fn of(look: &Look, columns: &[String]) -> Order {
        let sort = look.sort.as_str();
        let by = match (sort, columns.iter().position(|name| name == sort)) {
            ("State", None) => By::State,
            ("Namespace", None) => By::Namespace,
            (_, None) => By::Key,
            (sort, Some(_)) if AGES.contains(&sort) => By::Time,
            (_, Some(at)) => By::Cell(at),
        };
        Order { by, descending: look.descending }
    }

    /// Whether it is the other one read from its end.
    pub fn is_reverse_of(self, other: Order) -> bool {
        self == Order { descending: !other.descending, ..other }
    }

    /// Puts rows into this order.
    pub fn sort(self, rows: &mut [Arc<Row>]) {
        rows.sort_unstable_by(|left, right| self.compare(left, right));
    }

    pub fn compare(self, left: &Row, right: &Row) -> Ordering {
        let order = self.by.compare(left, right).then_with(|| left.key.cmp(&right.key));
        if self.descending { order.reverse() } else { order }
    }
}

impl By {
    fn compare(self, left: &Row, right: &Row) -> Ordering {
        match self {
            By::Key => Ordering::Equal,
            // The youngest has the smallest age.
            By::Time => right.at.cmp(&left.at),
            By::Namespace => left.namespace.cmp(&right.namespace),
            By::State => match (&left.state, &right.state) {
                (Some(a), Some(b)) => a.health.cmp(&b.health).then_with(|| a.word.cmp(&b.word)),
                // Without a state comes behind all that have one.
                (a, b) => a.is_none().cmp(&b.is_none()),
            },
            By::Cell(at) => match (left.cell(at), right.cell(at)) {
                (Value::Number(a), Value::Number(b)) => {
                    a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
                }
                (Value::Number(_), _) => Ordering::Less,
                (_, Value::Number(_)) => Ordering::Greater,
                (a, b) => natural(&plain(a), &plain(b)),
            },
        }
    }
}

/// Text in which numbers count as numbers: `pod-9` before `pod-10`.
fn natural(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        match (left.first(), right.first()) {
            (None, _) | (_, None) => return left.len().cmp(&right.len()),
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (a, b) = (digits(&mut left), digits(&mut right));
                let order = a.len().cmp(&b.len()).then_with(|| a.cmp(b));
                if order != Ordering::Equal {
                    return order;
                }
            }
            (Some(a), Some(b)) if a != b => return a.cmp(b),
            _ => {
                left = &left[1..];
                right = &right[1..];
            }
        }
    }
}

/// Takes the number off the front, without its leading zeros.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    let zeros = number.iter().take_while(|digit| **digit == b'0').count();
    &number[zeros..]
}

fn plain(cell: &Value) -> Cow<'_, str> {
    match cell {
        Value::String(text) => text.into(),
        Value::Null => "".into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = ["a-10", "a-9", "a-09b", "a", "b-1", "a-9-2"];
        names.sort_by(|left, right| natural(left, right));
        assert_eq!(names, ["a", "a-9", "a-9-2", "a-09b", "a-10", "b-1"]);
    }

    #[test]
    fn a_row_reads_the_same_until_more_than_its_age_differs() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let object = |restarted: i64| {
            let at = jiff::Timestamp::from_second(restarted).expect("a time");
            json!({
                "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "3",
                    "creationTimestamp": "1970-01-01T00:00:00Z"},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"containerStatuses": [{"name": "c", "restartCount": 1,
                    "lastState": {"terminated": {"finishedAt": at.to_string()}}}]},
            })
        };
        let print = |restarted: i64, second: i64| {
            let now = jiff::Timestamp::from_second(second).expect("a time");
            Row::print(kind, Bytes::from_static(b"a"), &object(restarted), now)
        };
        let columns = columns(kind);
        assert!(print(0, 300).reads_as(&print(10, 310), &columns), "only its age has changed");
        assert!(!print(0, 300).reads_as(&print(0, 900), &columns), "1 (5m ago), 1 (15m ago)");
    }

    #[test]
    fn a_column_is_looked_in_by_its_name() {
        let kind = wherry_resources::kind("", "v1", "events").expect("a built-in kind");
        let event = json!({
            "metadata": {"name": "e", "namespace": "n", "uid": "u", "resourceVersion": "1"},
            "kind": "Event", "type": "Warning", "reason": "Failed",
            "message": "First line\nsecond line", "involvedObject": {"kind": "Pod", "name": "p"},
        });
        let row = Row::print(kind, Bytes::new(), &event, jiff::Timestamp::UNIX_EPOCH);
        let takes = |text: &str| {
            let look = Look { text: text.to_owned(), ..Look::default() };
            Wanted::of(&look, &columns(kind)).takes(&row)
        };
        assert!(takes("second n") && takes("MESSAGE:Second") && takes("reason:failed"));
        assert!(!takes("reason:second") && !takes("message:failed"));
    }

    #[test]
    fn who_goes_on_typing_narrows() {
        let columns = vec!["Name".to_owned(), "Node".to_owned()];
        let wanted = |text: &str, health: &str| {
            let health = health.split(' ').filter(|one| !one.is_empty()).map(str::to_owned);
            let look = Look { text: text.to_owned(), health: health.collect(), ..Look::default() };
            Wanted::of(&look, &columns)
        };
        let narrows = |new: (&str, &str), old: (&str, &str)| {
            wanted(new.0, new.1).narrows(&wanted(old.0, old.1))
        };
        assert!(narrows(("web", ""), ("we", "")) && narrows(("web east", ""), ("web", "")));
        assert!(
            narrows(("web", "bad"), ("", "")) && narrows(("node:ab", "bad"), ("node:a", "bad"))
        );
        assert!(!narrows(("we", ""), ("web", "")) && !narrows(("node:a", ""), ("a", "")));
        assert!(
            !narrows(("web", ""), ("web", "bad")) && !narrows(("web", "bad warn"), ("", "bad"))
        );
        assert!(wanted("", "").is_everything() && !wanted("", "bad").is_everything());
    }
}
