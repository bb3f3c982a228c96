//! Walks through objects along their types: which fields there are, what differs between two
//! states, and the two ways an apply changes an object (laying a configuration over it, and taking
//! fields away).

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use super::set::{Element, FieldSet, Node, display};
use crate::structure::{Place, Rule};

/// Fields that are there in every object of a built-in type, empty or not, so that nobody adds them
/// as such: structs by value and lists that are always written.
const ALWAYS_THERE: &[&str] = &[
    ".metadata",
    ".spec",
    ".status",
    ".status.loadBalancer",
    ".spec.strategy",
    ".spec.updateStrategy",
    ".spec.template",
    ".spec.template.metadata",
    ".spec.template.spec",
    ".spec.template.spec.containers",
    ".spec.containers",
    ".spec.jobTemplate",
    ".spec.jobTemplate.metadata",
    ".spec.jobTemplate.spec",
    ".spec.jobTemplate.spec.template",
    ".spec.jobTemplate.spec.template.metadata",
    ".spec.jobTemplate.spec.template.spec",
    ".spec.jobTemplate.spec.template.spec.containers",
    ".spec.names",
    ".spec.resources",
    ".status.nodeInfo",
    ".status.daemonEndpoints",
    ".status.daemonEndpoints.kubeletEndpoint",
    ".template",
    ".template.metadata",
    ".template.spec",
    ".template.spec.containers",
];

/// The fields of a configuration, or sentences about what makes it no configuration.
pub fn fields(place: Place<'_>, config: &Value) -> Result<FieldSet, Vec<String>> {
    let mut reading = Reading::default();
    let mut root = Node::default();
    reading.look(place, config, &mut root);
    if reading.errors.is_empty() { Ok(root.below) } else { Err(reading.errors) }
}

/// The fields of an object that is there already: what cannot be told apart is owned as a whole.
pub fn fields_of_live(place: Place<'_>, object: &Value) -> FieldSet {
    let mut root = Node::default();
    Reading::default().look(place, object, &mut root);
    root.below
}

/// Reported errors of one configuration.
const ERRORS_MAX: usize = 20;

#[derive(Default)]
struct Reading {
    path: Vec<Element>,
    errors: Vec<String>,
}

impl Reading {
    fn error(&mut self, why: &str) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(format!("{}: {why}", display(&self.path)));
        }
    }

    fn look(&mut self, place: Place<'_>, value: &Value, node: &mut Node) {
        let rule = place.rule(value);
        match (&rule, value) {
            (Rule::Leaf, _) => node.member = true,
            (_, Value::Object(map)) => {
                for (name, inner) in map {
                    let element = Element::field(name);
                    self.path.push(element.clone());
                    let mut child = Node::default();
                    self.look(place.field(name), inner, &mut child);
                    self.path.pop();
                    let hollow = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                    child.member |= hollow || !place.is_named(name);
                    node.below.put(element, child);
                }
            }
            (_, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let element = match element(place, &rule, item) {
                        Ok(element) => element,
                        Err(why) => {
                            self.error(&format!("element {index}: {why}"));
                            continue;
                        }
                    };
                    if node.below.get(&element).is_some() {
                        self.error(&format!("duplicate entries for key {element}"));
                    }
                    self.path.push(element.clone());
                    let mut child = Node { member: true, below: FieldSet::default() };
                    self.look(place.item(), item, &mut child);
                    self.path.pop();
                    node.below.put(element, child);
                }
            }
            _ => {}
        }
    }
}

/// By what an item of a list is known.
fn element(place: Place<'_>, rule: &Rule<'_>, item: &Value) -> Result<Element, String> {
    let Rule::Keyed(keys) = rule else {
        return match item {
            Value::Null => Err("associative list without keys has an element that's an explicit \
                null"
                .to_owned()),
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            value => Ok(Element::Value(value.clone())),
        };
    };
    let Value::Object(item) = item else {
        return Err("associative list with keys may not have non-map elements".to_owned());
    };
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let value = item.get(*key).filter(|value| !value.is_null()).cloned();
        let value = value.or_else(|| place.key_default(key)).ok_or_else(|| {
            format!(
                "associative list with keys has an element that omits key field {key:?} (and \
                 doesn't have default value)"
            )
        })?;
        found.push(((*key).to_owned(), value));
    }
    Ok(Element::key(found))
}

/// The items of a list by their elements in order; None when one cannot be told from the others.
fn indexed<'a>(
    place: Place<'_>,
    rule: &Rule<'_>,
    items: &'a [Value],
) -> Option<Vec<(Element, &'a Value)>> {
    let mut found: Vec<(Element, &Value)> = Vec::with_capacity(items.len());
    let mut seen = FieldSet::default();
    for item in items {
        let element = element(place, rule, item).ok()?;
        if seen.get(&element).is_some() {
            return None;
        }
        seen.insert(std::slice::from_ref(&element));
        found.push((element, item));
    }
    Some(found)
}

/// The items of a list by their elements: several of one where the list says it more than once.
/// None when an item has no element.
fn grouped<'a>(
    place: Place<'_>,
    rule: &Rule<'_>,
    items: &'a [Value],
) -> Option<BTreeMap<Element, Vec<&'a Value>>> {
    let mut found: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in items {
        found.entry(element(place, rule, item).ok()?).or_default().push(item);
    }
    Some(found)
}

/// The one item of an element.
fn single<'a>(items: &[&'a Value]) -> Option<&'a Value> {
    match items {
        [item] => Some(*item),
        _ => None,
    }
}

/// What differs between two states of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

/// Compares two states; `managedFields` themselves do not count.
pub fn difference(place: Place<'_>, old: &Value, new: &Value) -> Difference {
    let found = Comparing::default().compare(place, Some(old), Some(new));
    let Found { added, removed, modified } = found;
    Difference { added: added.below, removed: removed.below, modified: modified.below }
}

/// What differs at one place and below it.
#[derive(Default)]
struct Found {
    added: Node,
    removed: Node,
    modified: Node,
}

impl Found {
    /// Adds what was found at an element below this place; each is looked at once.
    fn put(&mut self, element: impl Fn() -> Element, inner: Found) {
        let sides = [
            (&mut self.added, inner.added),
            (&mut self.removed, inner.removed),
            (&mut self.modified, inner.modified),
        ];
        for (ours, node) in sides {
            if !node.is_empty() {
                ours.below.put(element(), node);
            }
        }
    }
}

#[derive(Default)]
struct Comparing {
    /// As [`display`] writes it; items of lists stand as `[]`.
    path: String,
}

impl Comparing {
    fn compare(&mut self, place: Place<'_>, old: Option<&Value>, new: Option<&Value>) -> Found {
        let mut found = Found::default();
        let old = old.filter(|value| !value.is_null());
        let new = new.filter(|value| !value.is_null());
        if old == new {
            return found;
        }
        let present = old.or(new).expect("two absent values are equal");
        let rule = place.rule(present);
        let same_rule = new.is_none_or(|new| place.rule(new) == rule);
        let hollow = |value: Option<&Value>| match value {
            None => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if rule == Rule::Leaf || !same_rule || hollow(old) && hollow(new) {
            self.leaf(place, old, new, &mut found);
            return found;
        }
        match present {
            Value::Object(_) => self.fields(place, old, new, &mut found),
            _ if !self.items(place, &rule, old, new, &mut found) => {
                self.leaf(place, old, new, &mut found);
                return found;
            }
            _ => {}
        }
        match (old, new) {
            (None, Some(_)) if !self.always_there(place) => found.added.member = true,
            (Some(_), None) if !self.always_there(place) => found.removed.member = true,
            _ => {}
        }
        found
    }

    /// Compares what stands below a step of the path.
    fn below(
        &mut self,
        step: [&str; 2],
        place: Place<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Found {
        let length = self.path.len();
        self.path.extend(step);
        let found = self.compare(place, old, new);
        self.path.truncate(length);
        found
    }

    fn leaf(&self, place: Place<'_>, old: Option<&Value>, new: Option<&Value>, found: &mut Found) {
        let side = match (old, new) {
            (Some(_), Some(_)) => &mut found.modified,
            (None, _) => &mut found.added,
            (_, None) => &mut found.removed,
        };
        let hollow = [old, new].iter().flatten().all(|value| {
            value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
        });
        side.member = !(hollow && self.always_there(place));
    }

    fn always_there(&self, place: Place<'_>) -> bool {
        place.is_built_in() && ALWAYS_THERE.contains(&self.path.as_str())
    }

    fn fields(
        &mut self,
        place: Place<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        found: &mut Found,
    ) {
        let empty = Map::new();
        let old = old.and_then(Value::as_object).unwrap_or(&empty);
        let new = new.and_then(Value::as_object).unwrap_or(&empty);
        let is_metadata = self.path == ".metadata";
        let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
        for name in names.filter(|name| !(is_metadata && *name == "managedFields")) {
            let (old, new) = (old.get(name), new.get(name));
            let inner = self.below([".", name], place.field(name), old, new);
            found.put(|| Element::field(name), inner);
        }
    }

    /// False when the lists cannot be compared element by element.
    fn items(
        &mut self,
        place: Place<'_>,
        rule: &Rule<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        found: &mut Found,
    ) -> bool {
        let (old, new) = (grouped(place, rule, list(old)), grouped(place, rule, list(new)));
        let (Some(old), Some(new)) = (old, new) else {
            return false;
        };
        let others = new.keys().filter(|element| !old.contains_key(*element));
        for element in old.keys().chain(others) {
            let before = old.get(element).map_or(&[][..], Vec::as_slice);
            let after = new.get(element).map_or(&[][..], Vec::as_slice);
            let mut inner = self.below(["[", "]"], place.item(), single(before), single(after));
            // What is said twice is owned as one.
            match (before.len() > 1, after.len() > 1) {
                (true, true) => inner.modified.member = before != after,
                (true, false) => inner.removed.member = true,
                (false, true) => inner.added.member = true,
                (false, false) => {}
            }
            found.put(|| element.clone(), inner);
        }
        true
    }
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
}

/// Lays a configuration over a live object.
pub fn merge(place: Place<'_>, live: &Value, config: &Value) -> Value {
    merged(place, Some(live), Some(config)).unwrap_or_else(|| Value::Object(Map::new()))
}

fn merged(place: Place<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let Some(config) = config else {
        return live.cloned();
    };
    if config.is_null() {
        // Null unsets a leaf. Null lists and objects say nothing about what is in them: what was
        // given up is taken away afterwards.
        return live.filter(|live| place.rule(live) != Rule::Leaf).cloned();
    }
    match (place.rule(config), config) {
        (Rule::Fields, Value::Object(config)) => {
            let none = Map::new();
            let live = live.and_then(Value::as_object).unwrap_or(&none);
            let mut all = Map::new();
            let names = live.keys().chain(config.keys().filter(|name| !live.contains_key(*name)));
            for name in names {
                if let Some(value) = merged(place.field(name), live.get(name), config.get(name)) {
                    all.insert(name.clone(), value);
                }
            }
            Some(Value::Object(all))
        }
        (rule @ (Rule::Set | Rule::Keyed(_)), Value::Array(config)) => {
            Some(Value::Array(merged_items(place, &rule, list(live), config)))
        }
        _ => Some(config.clone()),
    }
}

/// Merges two lists item by item. Items of the configuration keep its order, items of the live
/// object alone stay beside the neighbours that they had.
fn merged_items(place: Place<'_>, rule: &Rule<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let Some(config) = indexed(place, rule, config) else {
        return config.to_vec();
    };
    let live: Vec<(Option<Element>, &Value)> =
        live.iter().map(|item| (element(place, rule, item).ok(), item)).collect();
    let known = live.iter().rev().filter_map(|(element, item)| Some((element.as_ref()?, *item)));
    let known: BTreeMap<&Element, &Value> = known.collect();
    let in_live = |wanted: &Element| known.get(wanted).copied();
    let places: BTreeMap<&Element, usize> =
        config.iter().enumerate().map(|(index, (element, _))| (element, index)).collect();
    let place_in_config =
        |wanted: &Option<Element>| wanted.as_ref().and_then(|wanted| places.get(wanted).copied());
    // Items that both lists have, in the configuration's order: their turn is the rhythm by which
    // the live list is followed.
    let mut shared: VecDeque<usize> =
        (0..config.len()).filter(|index| in_live(&config[*index].0).is_some()).collect();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let (mut left, mut right) = (0, 0);
    while left < live.len() || right < config.len() {
        let here = live.get(left).map(|(element, _)| place_in_config(element));
        if let Some(configured) = here {
            let Some(index) = configured else {
                out.push(live[left].1.clone());
                left += 1;
                continue;
            };
            let out_of_turn = index != right && shared.front().is_some_and(|next| *next != index);
            if index <= right || out_of_turn {
                left += 1;
            }
            if out_of_turn {
                continue;
            }
        }
        if let Some((element, item)) = config.get(right) {
            out.extend(merged(place.item(), in_live(element), Some(item)));
            if shared.front() == Some(&right) {
                shared.pop_front();
            }
            right += 1;
        }
    }
    out
}

/// Takes members of a set away from an object; objects and lists that become empty by it go too.
pub fn without(place: Place<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    let rule = place.rule(value);
    match (&rule, value) {
        (Rule::Fields, Value::Object(map)) => {
            let mut kept = Map::new();
            for (name, inner) in map {
                match set.get(&Element::field(name)) {
                    Some(Node { member: true, .. }) => {}
                    Some(Node { below, .. }) if !below.is_empty() => {
                        if let Some(inner) = without(place.field(name), inner, below) {
                            kept.insert(name.clone(), inner);
                        }
                    }
                    _ => {
                        kept.insert(name.clone(), inner.clone());
                    }
                }
            }
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Rule::Set | Rule::Keyed(_), Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                let node = element(place, &rule, item).ok().and_then(|element| set.get(&element));
                match node {
                    Some(Node { member: true, .. }) => {}
                    Some(Node { below, .. }) if !below.is_empty() => {
                        kept.extend(without(place.item(), item, below));
                    }
                    _ => kept.push(item.clone()),
                }
            }
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => Some(value.clone()),
    }
}

/// The set with all fields that the type names and that lead to members as members themselves.
pub fn with_named(place: Place<'_>, set: &FieldSet) -> FieldSet {
    let mut all = FieldSet::default();
    for (element, node) in set.nodes() {
        let (inner, is_named) = match element {
            Element::Field(name) => (place.field(name), place.is_named(name)),
            _ => (place.item(), false),
        };
        let below = with_named(inner, &node.below);
        let member = node.member || is_named && !below.is_empty();
        all.put(element.clone(), Node { member, below });
    }
    all
}

/// The set as it has to be where the type has come to own a place as a whole.
pub fn collapsed(place: Place<'_>, set: &FieldSet) -> FieldSet {
    let mut all = FieldSet::default();
    for (element, node) in set.nodes() {
        let inner = match element {
            Element::Field(name) => place.field(name),
            _ => place.item(),
        };
        let node = if inner.is_atomic() && !node.below.is_empty() {
            Node { member: true, below: FieldSet::default() }
        } else {
            Node { member: node.member, below: collapsed(inner, &node.below) }
        };
        all.put(element.clone(), node);
    }
    all
}

/// A path such as `spec.containers[0].x` as [`display`] would write it. Keys may hold dots, so each
/// key of the object that the path can begin with is tried.
pub fn locate(place: Place<'_>, value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Object(map) => {
            if map.contains_key(path) {
                return Some(Element::field(path).to_string());
            }
            map.iter().find_map(|(name, inner)| {
                let rest = path.strip_prefix(name.as_str())?;
                let rest = rest.strip_prefix('.').or_else(|| rest.starts_with('[').then_some(rest));
                let below = locate(place.field(name), inner, rest?)?;
                Some(Element::field(name).to_string() + &below)
            })
        }
        Value::Array(items) => {
            let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
            let index: usize = index.parse().ok()?;
            let item = items.get(index)?;
            let rule = place.rule(value);
            let known = (rule != Rule::Leaf).then(|| element(place, &rule, item).ok()).flatten();
            let known = known.unwrap_or(Element::Index(index));
            let below = locate(place.item(), item, rest.strip_prefix('.').unwrap_or(rest))?;
            Some(known.to_string() + &below)
        }
        _ => None,
    }
}
