//! One live list as one person looks at it: filtered, sorted, and a window of it. Pure.
//!
//! A [`View`] holds a printed row for each object of a kind that the person may see. Objects are
//! put and taken away as the store changes; [`View::news`] then says what the person's browser does
//! not know yet: how many there are, which rows are in the window in which order, and those rows
//! that are new or different. What is outside the window is never sent.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use wherry_resources::state::{Health, State};
use wherry_resources::{Kind, Object, meta, state, table};

/// Rows of one window; more than any screen shows.
pub const WINDOW_MAX: usize = 500;
/// Longest text that is looked for.
const TEXT_BYTES_MAX: usize = 256;

/// Columns that tell how long ago something was: a browser counts on by itself.
const AGES: [&str; 2] = ["Age", "Last Seen"];

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

/// One object, printed.
#[derive(Clone, Debug)]
struct Row {
    uid: String,
    revision: u64,
    /// Seconds since 1970 of its creation; of an event, when it was last seen.
    at: i64,
    state: Option<State>,
    namespace: String,
    cells: Vec<Value>,
    /// What text is looked for in, in lower case.
    found: String,
    shown: Value,
}

/// A list and what of it was sent.
#[derive(Debug)]
pub struct View {
    kind: &'static Kind,
    columns: Vec<String>,
    rows: BTreeMap<Bytes, Row>,
    look: Look,
    /// Keys in the order of the look.
    order: Vec<Bytes>,
    is_stale: bool,
    /// What the browser holds: the revision of each row by its uid.
    sent: HashMap<String, u64>,
    last: Value,
}

impl View {
    /// An empty list of a kind.
    pub fn new(kind: &'static Kind, look: Look) -> View {
        let columns = match kind.custom() {
            Some(custom) => {
                let definitions = custom.columns.definitions();
                definitions.iter().map(|one| meta::text(one, "name").to_owned()).collect()
            }
            None => table::columns(kind).iter().map(|column| column.name.to_owned()).collect(),
        };
        View {
            kind,
            columns,
            rows: BTreeMap::new(),
            look,
            order: Vec::new(),
            is_stale: true,
            sent: HashMap::new(),
            last: Value::Null,
        }
    }

    /// An object is there, or is there in another form.
    pub fn put(&mut self, key: Bytes, object: &Object, now: jiff::Timestamp) {
        let row = self.row(object, now);
        self.rows.insert(key, row);
        self.is_stale = true;
    }

    /// An object is gone.
    pub fn remove(&mut self, key: &[u8]) {
        self.is_stale |= self.rows.remove(key).is_some();
    }

    /// Looks at it in another way.
    pub fn look(&mut self, mut look: Look) {
        look.text.truncate(look.text.floor_char_boundary(TEXT_BYTES_MAX));
        self.look = look;
        self.is_stale = true;
    }

    /// The keys in the window, whose printed times go by.
    pub fn window(&self) -> Vec<Bytes> {
        self.slice().to_vec()
    }

    /// Prints an object again; nothing is said if it reads the same.
    pub fn refresh(&mut self, key: &Bytes, object: &Object, now: jiff::Timestamp) {
        let row = self.row(object, now);
        let Some(old) = self.rows.get_mut(key) else { return };
        let ages: Vec<usize> = AGES
            .iter()
            .filter_map(|age| self.columns.iter().position(|name| name == age))
            .collect();
        let differs = |at: usize| !ages.contains(&at) && old.cells.get(at) != row.cells.get(at);
        if (0..row.cells.len()).any(differs) {
            self.sent.remove(&row.uid);
            *old = row;
            self.is_stale = true;
        }
    }

    fn row(&self, object: &Object, now: jiff::Timestamp) -> Row {
        let cells = table::cells(self.kind, object, now);
        let state = state::of(self.kind, object);
        let at = at(object);
        let owner = meta::controller(object).map(|owner| json!([owner.kind, owner.name]));
        let (name, namespace) = (meta::name(object), meta::namespace(object));
        let mut found = format!("{namespace} {name}");
        for cell in &cells {
            found.push(' ');
            found.push_str(&plain(cell));
        }
        let mut shown = json!({
            "uid": meta::uid(object), "name": name, "at": at, "cells": cells,
            "version": meta::resource_version(object),
        });
        if !namespace.is_empty() {
            shown["namespace"] = namespace.into();
        }
        if let Some(owner) = owner {
            shown["owner"] = owner;
        }
        if meta::is_deleting(object) {
            shown["deleting"] = true.into();
        }
        if let Some(State { health, word, why }) = &state {
            shown["state"] = json!([health.word(), word, why]);
            found.push(' ');
            found.push_str(word);
        }
        Row {
            uid: meta::uid(object).to_owned(),
            revision: meta::resource_version(object).parse().unwrap_or(0),
            at,
            state,
            namespace: namespace.to_owned(),
            cells,
            found: found.to_lowercase(),
            shown,
        }
    }

    /// What the browser does not know yet; `None` if it knows everything.
    pub fn news(&mut self) -> Option<Value> {
        if !self.is_stale {
            return None;
        }
        self.is_stale = false;
        self.sort();
        let window: Vec<&Row> = self.slice().iter().filter_map(|key| self.rows.get(key)).collect();
        let order: Vec<&str> = window.iter().map(|row| row.uid.as_str()).collect();
        let mut health: BTreeMap<&str, usize> = BTreeMap::new();
        for state in self.rows.values().filter_map(|row| row.state.as_ref()) {
            *health.entry(state.health.word()).or_default() += 1;
        }
        let mut head = json!({
            "total": self.rows.len(), "shown": self.order.len(), "from": self.look.from,
            "health": health, "order": order,
        });
        let news = window.iter().filter(|row| self.sent.get(&row.uid) != Some(&row.revision));
        let news: Vec<Value> = news.map(|row| row.shown.clone()).collect();
        let sent = window.iter().map(|row| (row.uid.clone(), row.revision)).collect();
        self.sent = sent;
        if news.is_empty() && head == self.last {
            return None;
        }
        self.last = head.clone();
        head["rows"] = news.into();
        Some(head)
    }

    fn slice(&self) -> &[Bytes] {
        let from = self.look.from.min(self.order.len());
        let to = from.saturating_add(self.look.count.min(WINDOW_MAX)).min(self.order.len());
        &self.order[from..to]
    }

    fn sort(&mut self) {
        let wanted = Wanted::of(&self.look, &self.columns);
        let mut matching: Vec<(&Bytes, &Row)> =
            self.rows.iter().filter(|(_, row)| wanted.takes(row)).collect();
        let by = By::of(&self.look.sort, &self.columns);
        if by != By::Key {
            matching.sort_by(|(_, left), (_, right)| compare(by, left, right));
        }
        if self.look.descending {
            matching.reverse();
        }
        self.order = matching.into_iter().map(|(key, _)| key.clone()).collect();
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

/// Which rows are shown.
struct Wanted {
    health: Vec<Health>,
    /// Lower-case words, with the column each must be in.
    words: Vec<(Option<usize>, String)>,
}

impl Wanted {
    fn of(look: &Look, columns: &[String]) -> Wanted {
        let squeezed = |name: &str| name.to_lowercase().replace([' ', '-'], "");
        let word = |word: &str| {
            let word = word.to_lowercase();
            let split = word.split_once(':').and_then(|(column, rest)| {
                let at = columns.iter().position(|name| squeezed(name) == squeezed(column))?;
                Some((Some(at), rest.to_owned()))
            });
            split.unwrap_or((None, word))
        };
        Wanted {
            health: look.health.iter().filter_map(|word| Health::parse(word)).collect(),
            words: look.text.split_whitespace().map(word).collect(),
        }
    }

    fn takes(&self, row: &Row) -> bool {
        let healthy = || row.state.as_ref().is_some_and(|it| self.health.contains(&it.health));
        if !self.health.is_empty() && !healthy() {
            return false;
        }
        self.words.iter().all(|(column, word)| match column {
            None => row.found.contains(word.as_str()),
            Some(at) => {
                row.cells.get(*at).is_some_and(|cell| plain(cell).to_lowercase().contains(word))
            }
        })
    }
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

impl By {
    fn of(sort: &str, columns: &[String]) -> By {
        match (sort, columns.iter().position(|name| name == sort)) {
            ("State", None) => By::State,
            ("Namespace", None) => By::Namespace,
            (_, None) => By::Key,
            (sort, Some(_)) if AGES.contains(&sort) => By::Time,
            (_, Some(at)) => By::Cell(at),
        }
    }
}

fn compare(by: By, left: &Row, right: &Row) -> Ordering {
    match by {
        By::Key => Ordering::Equal,
        // The youngest has the smallest age.
        By::Time => right.at.cmp(&left.at),
        By::Namespace => left.namespace.cmp(&right.namespace),
        By::State => {
            let rank = |row: &Row| row.state.as_ref().map(|state| state.health);
            let word = |row: &Row| row.state.as_ref().map(|state| state.word.clone());
            // Without a state comes behind all that have one.
            let (a, b) = (rank(left), rank(right));
            a.is_none().cmp(&b.is_none()).then(a.cmp(&b)).then_with(|| word(left).cmp(&word(right)))
        }
        By::Cell(at) => {
            let nothing = Value::Null;
            let cell = |row: &'_ Row| row.cells.get(at).cloned().unwrap_or(nothing.clone());
            match (cell(left), cell(right)) {
                (Value::Number(a), Value::Number(b)) => {
                    a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
                }
                (a, b) => natural(&plain(&a), &plain(&b)),
            }
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

fn plain(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn pods() -> &'static Kind {
        wherry_resources::kind("", "v1", "pods").expect("a built-in kind")
    }

    fn pod(name: &str, revision: u64, node: &str, phase: &str) -> (Bytes, Object) {
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "n", "uid": format!("u-{name}"),
                "resourceVersion": revision.to_string()},
            "spec": {"nodeName": node, "containers": [{"name": "c"}]},
            "status": {"phase": phase},
        });
        (Bytes::from(name.to_owned()), object)
    }

    fn put(view: &mut View, one: (Bytes, Object)) {
        view.put(one.0, &one.1, jiff::Timestamp::UNIX_EPOCH);
    }

    fn told(view: &mut View) -> String {
        let Some(news) = view.news() else { return "nothing\n".to_owned() };
        let names = |rows: &Value, of: fn(&Value) -> &str| {
            let rows = rows.as_array().expect("a list").iter();
            rows.map(of).collect::<Vec<_>>().join(" ")
        };
        let order = names(&news["order"], |uid| uid.as_str().unwrap_or("?"));
        let rows = names(&news["rows"], |row| row["name"].as_str().unwrap_or("?"));
        let (shown, total) = (&news["shown"], &news["total"]);
        format!("{shown} of {total} {} [{order}] new: {rows}\n", news["health"])
    }

    #[test]
    fn only_what_is_in_the_window_and_new_is_told() {
        let look = Look { count: 2, ..Look::default() };
        let mut view = View::new(pods(), look.clone());
        let mut out = told(&mut view);
        for (at, name) in ["pod-10", "pod-9", "pod-2"].into_iter().enumerate() {
            put(&mut view, pod(name, at as u64 + 1, "node-a", "Running"));
        }
        out += &told(&mut view);
        out += &told(&mut view);
        view.look(Look { sort: "Name".to_owned(), ..look.clone() });
        out += &told(&mut view);
        put(&mut view, pod("pod-9", 7, "node-b", "Failed"));
        out += &told(&mut view);
        put(&mut view, pod("pod-10", 8, "node-b", "Running"));
        out += &told(&mut view);
        view.remove(b"pod-2");
        out += &told(&mut view);
        view.remove(b"pod-2");
        out += &told(&mut view);
        expect![[r#"
            0 of 0 {} [] new: 
            3 of 3 {"warn":3} [u-pod-10 u-pod-2] new: pod-10 pod-2
            nothing
            3 of 3 {"warn":3} [u-pod-2 u-pod-9] new: pod-9
            3 of 3 {"bad":1,"warn":2} [u-pod-2 u-pod-9] new: pod-9
            nothing
            2 of 2 {"bad":1,"warn":1} [u-pod-9 u-pod-10] new: pod-10
            nothing
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn text_health_and_sort() {
        let mut view = View::new(pods(), Look { count: 9, ..Look::default() });
        put(&mut view, pod("web-1", 1, "east-1", "Running"));
        put(&mut view, pod("web-2", 2, "west-1", "Failed"));
        put(&mut view, pod("east-db", 3, "west-1", "Succeeded"));
        let mut out = String::new();
        let look = |text: &str, health: &str, sort: &str, descending| Look {
            text: text.to_owned(),
            health: health.split(' ').filter(|one| !one.is_empty()).map(str::to_owned).collect(),
            sort: sort.to_owned(),
            descending,
            from: 0,
            count: 9,
        };
        for one in [
            look("east", "", "", false),
            look("node:east", "", "", false),
            look("WEB west", "", "", false),
            look("", "bad warn", "", false),
            look("", "", "State", false),
            look("", "", "Node", true),
            look("nothing like it", "", "", false),
        ] {
            view.look(one);
            out += &told(&mut view);
        }
        expect![[r#"
            2 of 3 {"bad":1,"idle":1,"warn":1} [u-east-db u-web-1] new: east-db web-1
            1 of 3 {"bad":1,"idle":1,"warn":1} [u-web-1] new: 
            1 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2] new: web-2
            2 of 3 {"bad":1,"idle":1,"warn":1} [u-web-1 u-web-2] new: web-1
            3 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2 u-web-1 u-east-db] new: east-db
            3 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2 u-east-db u-web-1] new: 
            0 of 3 {"bad":1,"idle":1,"warn":1} [] new: 
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = ["a-10", "a-9", "a-09b", "a", "b-1", "a-9-2"];
        names.sort_by(|left, right| natural(left, right));
        assert_eq!(names, ["a", "a-9", "a-9-2", "a-09b", "a-10", "b-1"]);
    }
}
