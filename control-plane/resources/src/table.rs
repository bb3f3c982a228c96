//! Tables: what `kubectl get` prints, made by the server.
//!
//! A kind has columns and a function that fills one row. A row has exactly as many cells as there
//! are columns. Columns of priority 1 show with `-o wide` only. Kinds without an entry, and custom
//! resources without printer columns, show name and age. `now` is an argument; ages are rounded as
//! kubectl rounds them.

mod cluster;
mod network;
mod pod;
mod policy;
mod workloads;

pub use pod::{status as pod_status, why as pod_why};

use jiff::Timestamp;
use serde_json::Value;

use crate::meta::{self, items, text};
use crate::read::{self, Paths};
use crate::{Kind, Object};

/// One column definition of a `meta.k8s.io` Table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date` or `boolean`.
    pub kind: &'static str,
    /// `name` for the column that names the object.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// Fills the cells of one row.
type Cells = fn(&Object, Timestamp) -> Vec<Value>;

/// (group, plural, columns, cells)
type Row = (&'static str, &'static str, &'static [Column], Cells);

const TABLES: &[&[Row]] =
    &[pod::TABLES, workloads::TABLES, network::TABLES, cluster::TABLES, policy::TABLES];

const DEFAULT: &[Column] = &[NAME, AGE];

/// The columns of a Scale, which belongs to several kinds and is none.
pub const SCALE: &[Column] = &[
    NAME,
    number("Desired", "The number of Pods that are wanted"),
    number("Available", "The number of Pods that there are"),
    AGE,
];

/// The cells of a Scale.
pub fn scale_cells(scale: &Object, now: Timestamp) -> Vec<Value> {
    let (desired, available) = (count(scale, "/spec/replicas"), count(scale, "/status/replicas"));
    vec![name(scale), desired.into(), available.into(), age(scale, now)]
}

/// The columns of a built-in kind; those of a custom kind are in its definition.
pub fn columns(kind: &Kind) -> &'static [Column] {
    row(kind).map_or(DEFAULT, |row| row.2)
}

/// The cells of one object's row, as many as there are columns.
pub fn cells(kind: &Kind, object: &Object, now: Timestamp) -> Vec<Value> {
    if let Some(definition) = kind.custom() {
        return definition.cells(object, now);
    }
    match row(kind) {
        Some(row) => (row.3)(object, now),
        None => vec![name(object), age(object, now)],
    }
}

/// What no cell of a built-in kind shows, and which is half of what there is to read.
const UNPRINTED: Paths = &[&["metadata", "managedFields"]];

/// The cells of an object in JSON, as those of [`cells`]: not much more is read than is shown. Not
/// for custom kinds, whose columns may be anywhere.
pub fn cells_of_json(
    kind: &Kind,
    json: &[u8],
    now: Timestamp,
) -> Result<Vec<Value>, serde_json::Error> {
    let object = match kind.is("", "Pod") {
        true => read::only(pod::PRINTED, json)?,
        false => read::without(UNPRINTED, json)?,
    };
    Ok(cells(kind, &object, now))
}

fn row(kind: &Kind) -> Option<&'static Row> {
    let mut rows = TABLES.iter().flat_map(|rows| rows.iter());
    rows.find(|row| row.0 == kind.group && row.1 == kind.plural)
}

/// The time from `then` to `now` as kubectl prints ages: `5s`, `3m2s`, `4h`, `2d3h`.
pub fn duration(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..=-2 => "<invalid>".to_string(),
        -1 => "0s".to_string(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if hours < 3 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => pair(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The time since a field of the wire, `<unknown>` when there is none.
fn since(time: &str, now: Timestamp) -> String {
    meta::parse_time(time).map_or("<unknown>".to_string(), |then| duration(then, now))
}

const NAME: Column = Column {
    format: "name",
    ..column("Name", "The name of the object, unique within its kind and namespace")
};
const AGE: Column = column("Age", "The time since the object was created");
const CREATED: Column = date("Created At", "The time at which the object was created");

const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { kind: "integer", ..column(name, description) }
}

const fn date(name: &'static str, description: &'static str) -> Column {
    Column { kind: "date", ..column(name, description) }
}

impl Column {
    const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// What an empty cell shows.
const NONE: &str = "<none>";

fn name(object: &Object) -> Value {
    Value::from(meta::name(object))
}

fn age(object: &Object, now: Timestamp) -> Value {
    Value::from(since(field(object, "/metadata/creationTimestamp"), now))
}

fn created(object: &Object) -> Value {
    Value::from(field(object, "/metadata/creationTimestamp"))
}

/// What stands at a path of plain names, as for `Value::pointer`, which is made for all there are.
fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').skip(1).try_fold(object, |value, name| value.get(name))
}

/// A text anywhere in the object, empty when absent.
fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// A text anywhere in the object, `<none>` when absent or empty.
fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { NONE } else { text })
}

/// A whole number anywhere in the object, zero when absent.
fn count(object: &Value, path: &str) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// A list anywhere in the object.
fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
}

/// Number of entries of a map or list.
fn size(value: Option<&Value>) -> i64 {
    let size = match value {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    };
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// One field of every item, joined by commas.
fn joined(items: &[Value], key: &str) -> String {
    items.iter().map(|item| text(item, key)).collect::<Vec<_>>().join(",")
}

/// A map of labels as `a=b,c=d`.
fn labels(map: Option<&Value>) -> Value {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    let mut pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
    pairs.sort();
    or_none(&pairs.join(","))
}

/// A typed label selector in its text form.
fn selector(value: Option<&Value>) -> Value {
    match crate::selectors::LabelSelector::from_typed(value) {
        Ok(selector) => or_none(&selector.to_string()),
        Err(_) => Value::from("<invalid>"),
    }
}

/// A text or a number as text.
fn scalar(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// The containers of a PodSpec: their names and their images.
fn containers(spec: Option<&Value>) -> (Value, Value) {
    let containers = spec.map(|spec| items(spec, "containers")).unwrap_or(&[]);
    (Value::from(joined(containers, "name")), Value::from(joined(containers, "image")))
}

#[cfg(test)]
mod tests;
