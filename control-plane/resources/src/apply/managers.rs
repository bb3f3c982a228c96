//! `metadata.managedFields`: who owns which fields of an object.
//!
//! A manager is known by name, operation and subresource; one that updates also by the version it
//! wrote. Appliers own what their last configuration said; updaters own what they changed.

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// Updaters that are remembered one by one, as in Kubernetes; older ones become one.
const UPDATERS_MAX: usize = 10;
/// The name under which the oldest updaters become one.
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    /// RFC 3339, empty when unknown.
    pub time: String,
    pub subresource: String,
    pub fields: FieldSet,
}

impl Manager {
    /// Whether both are the same manager.
    pub fn is(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The manager as messages about conflicts name it.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    /// When it wrote last, whatever zone its time is written in; an unknown time is the oldest.
    fn second(&self) -> i64 {
        self.time.parse::<jiff::Timestamp>().map_or(i64::MIN, jiff::Timestamp::as_second)
    }

    fn decode(entry: &Value) -> Option<Manager> {
        let text = |key: &str| match entry.get(key) {
            None | Some(Value::Null) => Some(String::new()),
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => None,
        };
        let operation = match text("operation")?.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if !matches!(text("fieldsType")?.as_str(), "" | "FieldsV1") {
            return None;
        }
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => FieldSet::from_json(fields).ok()?,
        };
        Some(Manager {
            name: text("manager")?,
            operation,
            api_version: text("apiVersion")?,
            time: text("time")?,
            subresource: text("subresource")?,
            fields,
        })
    }

    fn encode(&self) -> Value {
        let mut entry = Map::new();
        let operation = format!("{:?}", self.operation);
        let words = [
            ("manager", self.name.as_str()),
            ("operation", operation.as_str()),
            ("apiVersion", self.api_version.as_str()),
            ("time", self.time.as_str()),
            ("fieldsType", "FieldsV1"),
        ];
        for (key, text) in words.iter().filter(|(_, text)| !text.is_empty()) {
            entry.insert((*key).to_owned(), json!(text));
        }
        entry.insert("fieldsV1".to_owned(), self.fields.to_json());
        if !self.subresource.is_empty() {
            entry.insert("subresource".to_owned(), json!(self.subresource));
        }
        Value::Object(entry)
    }
}

/// Reads all entries; None when one of them is malformed.
pub fn decode(entries: &[Value]) -> Option<Vec<Manager>> {
    let mut managers: Vec<Manager> = Vec::with_capacity(entries.len());
    for entry in entries {
        let manager = Manager::decode(entry)?;
        match managers.iter_mut().find(|known| known.is(&manager)) {
            Some(known) => *known = manager,
            None => managers.push(manager),
        }
    }
    Some(managers)
}

/// Writes all entries in Kubernetes' order: appliers first, then by second and name.
pub fn encode(mut managers: Vec<Manager>) -> Vec<Value> {
    let key = |manager: &Manager| {
        let Manager { operation, name, api_version, subresource, .. } = manager;
        (*operation, manager.second(), name.clone(), api_version.clone(), subresource.clone())
    };
    managers.sort_by_cached_key(key);
    managers.iter().map(Manager::encode).collect()
}

fn updaters(managers: &[Manager]) -> usize {
    managers.iter().filter(|manager| manager.operation == Operation::Update).count()
}

/// Makes the oldest updaters one, version by version, until there are few enough.
pub fn cap(managers: &mut Vec<Manager>) {
    if updaters(managers) <= UPDATERS_MAX {
        return;
    }
    let key = |manager: &Manager| (manager.operation, manager.second(), manager.name.clone());
    managers.sort_by_cached_key(key);
    let mut oldest: Vec<Manager> = Vec::new();
    while updaters(managers) + oldest.len() > UPDATERS_MAX {
        let Some(at) = managers.iter().position(|one| one.operation == Operation::Update) else {
            break;
        };
        let next = managers.remove(at);
        match oldest.iter_mut().find(|one| one.api_version == next.api_version) {
            Some(bucket) => {
                bucket.fields.add(&next.fields);
                bucket.name = ANCIENT.to_owned();
                bucket.subresource.clear();
                bucket.time = next.time;
            }
            None => oldest.push(next),
        }
    }
    for bucket in oldest {
        match managers.iter_mut().find(|known| known.is(&bucket)) {
            Some(known) => known.fields.add(&bucket.fields),
            None => managers.push(bucket),
        }
    }
}

/// Whether two lists of entries differ in nothing but their times.
pub fn differ_in_times_only(left: &[Value], right: &[Value]) -> bool {
    let mut rest: Vec<&Value> = right.iter().collect();
    left.len() == right.len()
        && left.iter().all(|entry| {
            let at = rest.iter().position(|other| same_but_time(entry, other));
            at.map(|at| rest.swap_remove(at)).is_some()
        })
}

fn same_but_time(left: &Value, right: &Value) -> bool {
    let (Some(left), Some(right)) = (left.as_object(), right.as_object()) else {
        return left == right;
    };
    let count = |entry: &Map<String, Value>| entry.len() - usize::from(entry.contains_key("time"));
    let mut fields = left.iter().filter(|(key, _)| *key != "time");
    count(left) == count(right) && fields.all(|(key, value)| right.get(key) == Some(value))
}
