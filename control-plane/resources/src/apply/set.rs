//! Sets of fields: which parts of an object somebody owns.
//!
//! A path is a row of [`Element`]s from the root. A set is a tree of them: each node may be a
//! member itself and may have members below it. On the wire (`fieldsV1`) the tree is a JSON object
//! whose keys name elements: `f:` a field, `k:` the keys of a list item, `v:` a value of a list,
//! `i:` an index; `.` says that a node which has members below is a member itself.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

/// One step of a path. The order is the one in which Kubernetes writes and reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    Field(String),
    /// Keys of an item with their values, sorted by key.
    Key(Vec<(String, Value)>),
    Value(Value),
    Index(usize),
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<Element, Node>);

/// What a set holds at and below one element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub member: bool,
    pub below: FieldSet,
}

/// A `fieldsV1` that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a field, key, value or index of fieldsV1")]
pub struct NotAFieldSet(String);

impl Node {
    pub fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The node of an element, if the set holds anything there.
    pub fn get(&self, element: &Element) -> Option<&Node> {
        self.0.get(element)
    }

    /// Elements of this level with what is below them.
    pub fn nodes(&self) -> impl Iterator<Item = (&Element, &Node)> {
        self.0.iter()
    }

    /// Adds a path; the empty path is in no set.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.0.entry(first.clone()).or_default();
        match rest {
            [] => node.member = true,
            rest => node.below.insert(rest),
        }
    }

    /// Puts a node where none is; an empty node is left out.
    pub fn put(&mut self, element: Element, node: Node) {
        if !node.is_empty() {
            self.0.insert(element, node);
        }
    }

    /// Paths that are in either set.
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut all = self.clone();
        all.add(other);
        all
    }

    /// Adds all paths of another set.
    pub fn add(&mut self, other: &FieldSet) {
        for (element, theirs) in &other.0 {
            let ours = self.0.entry(element.clone()).or_default();
            ours.member |= theirs.member;
            ours.below.add(&theirs.below);
        }
    }

    /// Takes all paths of another set away.
    pub fn take_away(&mut self, other: &FieldSet) {
        for (element, theirs) in &other.0 {
            let Some(ours) = self.0.get_mut(element) else { continue };
            ours.member &= !theirs.member;
            ours.below.take_away(&theirs.below);
            if ours.is_empty() {
                self.0.remove(element);
            }
        }
    }

    /// Paths of this set that are not in the other.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |ours, theirs| Node {
            member: ours.member && !theirs.member,
            below: ours.below.difference(&theirs.below),
        })
    }

    /// Paths of this set for which `other` has neither them nor anything above them.
    pub fn recursive_difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |ours, theirs| match theirs.member {
            true => Node::default(),
            false => {
                Node { member: ours.member, below: ours.below.recursive_difference(&theirs.below) }
            }
        })
    }

    /// This set with `merge` applied to nodes that both have.
    fn combine(&self, other: &FieldSet, merge: impl Fn(&Node, &Node) -> Node) -> FieldSet {
        let mut rest = FieldSet::default();
        for (element, ours) in &self.0 {
            let node = match other.0.get(element) {
                Some(theirs) => merge(ours, theirs),
                None => ours.clone(),
            };
            rest.put(element.clone(), node);
        }
        rest
    }

    /// Paths that are in both sets.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut both = FieldSet::default();
        for (element, ours) in &self.0 {
            if let Some(theirs) = other.0.get(element) {
                let node = Node {
                    member: ours.member && theirs.member,
                    below: ours.below.intersection(&theirs.below),
                };
                both.put(element.clone(), node);
            }
        }
        both
    }

    /// All paths: those that end at a level come before those that go on below it.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, above: &mut Vec<Element>, found: &mut Vec<Vec<Element>>) {
        for (element, _) in self.0.iter().filter(|(_, node)| node.member) {
            let mut path = above.clone();
            path.push(element.clone());
            found.push(path);
        }
        for (element, node) in &self.0 {
            above.push(element.clone());
            node.below.collect(above, found);
            above.pop();
        }
    }

    /// The set as `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        self.write(&mut fields);
        Value::Object(fields)
    }

    fn write(&self, fields: &mut Map<String, Value>) {
        for (element, node) in &self.0 {
            let mut inner = Map::new();
            if node.member && !node.below.is_empty() {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            node.below.write(&mut inner);
            fields.insert(element.to_key(), Value::Object(inner));
        }
    }

    /// Reads `fieldsV1`. Its depth is that of the body it came in, which has a limit.
    pub fn from_json(fields: &Value) -> Result<FieldSet, NotAFieldSet> {
        let Value::Object(fields) = fields else {
            return Err(NotAFieldSet(fields.to_string()));
        };
        let mut set = FieldSet::default();
        for (key, inner) in fields.iter().filter(|(key, _)| *key != ".") {
            let below = FieldSet::from_json(inner)?;
            let member = below.is_empty() || inner.get(".").is_some();
            set.0.insert(Element::from_key(key)?, Node { member, below });
        }
        Ok(set)
    }
}

impl Element {
    fn to_key(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(keys) => {
                let keys: Map<String, Value> = keys.iter().cloned().collect();
                format!("k:{}", Value::Object(keys))
            }
            Element::Value(value) => format!("v:{value}"),
            Element::Index(index) => format!("i:{index}"),
        }
    }

    fn from_key(key: &str) -> Result<Element, NotAFieldSet> {
        let wrong = || NotAFieldSet(key.to_owned());
        let (prefix, rest) = key.split_once(':').ok_or_else(wrong)?;
        match prefix {
            "f" => Ok(Element::Field(rest.to_owned())),
            "v" => serde_json::from_str(rest).map(Element::Value).map_err(|_| wrong()),
            "i" => rest.parse().map(Element::Index).map_err(|_| wrong()),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| wrong())?;
                Ok(Element::key(keys.into_iter().collect()))
            }
            _ => Err(wrong()),
        }
    }

    /// The element of a list item with these keys.
    pub fn key(mut keys: Vec<(String, Value)>) -> Element {
        keys.sort_by(|left, right| left.0.cmp(&right.0));
        Element::Key(keys)
    }

    /// The element of a field.
    pub fn field(name: &str) -> Element {
        Element::Field(name.to_owned())
    }

    fn rank(&self) -> u8 {
        match self {
            Element::Field(_) => 0,
            Element::Key(_) => 1,
            Element::Value(_) => 2,
            Element::Index(_) => 3,
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Element::Field(left), Element::Field(right)) => left.cmp(right),
            (Element::Key(left), Element::Key(right)) => {
                let pairs = left.iter().zip(right);
                let mut orders = pairs.map(|((name, value), (other_name, other))| {
                    name.cmp(other_name).then_with(|| compare(value, other))
                });
                let first = orders.find(|order| order.is_ne());
                first.unwrap_or_else(|| left.len().cmp(&right.len()))
            }
            (Element::Value(left), Element::Value(right)) => compare(left, right),
            (Element::Index(left), Element::Index(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// A total order of JSON values: numbers, strings, booleans, lists, objects, null.
fn compare(left: &Value, right: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => {
                let float = |number: &serde_json::Number| number.as_f64().unwrap_or(0.0);
                float(left)
                    .total_cmp(&float(right))
                    .then_with(|| left.to_string().cmp(&right.to_string()))
            }
        },
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Null, Value::Null) => Ordering::Equal,
        (left, right) => {
            rank(left).cmp(&rank(right)).then_with(|| left.to_string().cmp(&right.to_string()))
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(keys) => {
                f.write_char('[')?;
                for (index, (name, value)) in keys.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_char(']')
            }
            Element::Value(value) => write!(f, "[={value}]"),
            Element::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A path as Kubernetes prints it: `.spec.containers[name="a"].image`.
pub fn display(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}
