//! Strategic merge patch: a merge patch that knows which lists are keyed.
//!
//! ```text
//! object ──► directives ($patch, $retainKeys) ──► order and merge lists ($setElementOrder/x)
//!        ──► delete values ($deleteFromPrimitiveList/x) ──► merge the rest field by field
//! ```
//!
//! Which list merges by which key is looked up in `structure`; every other list is replaced. A
//! directive is a key of the patch and never reaches the result. `null` removes a field. JSON patch
//! and JSON merge patch know no types and are not here.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::structure::{self, Strategic, Type};
use crate::{Kind, Object};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";
/// Lists of one object for which a patch gives an order; no type has so many.
const ORDERS_MAX: usize = 64;

/// A patch that cannot be applied; the API server answers 400 with the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("the patch must be a JSON object")]
    NoObject,
    #[error("unknown patch type: {0} in map: {1}")]
    Directive(String, String),
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergeItem,
    #[error("invalid patch format of {0}: {1} must be a list")]
    NoList(&'static str, String),
    #[error(
        "invalid patch format of retainKeys: {0} is in the patch but not in the list of keys \
         to retain"
    )]
    NotRetained(String),
    #[error("expected a list of objects in {0}, found {1}")]
    MixedList(String, String),
    #[error("a patch orders at most {ORDERS_MAX} lists of one object")]
    Orders,
}

/// Applies a strategic merge patch to an object of that kind.
pub fn strategic(kind: &Kind, object: &Object, patch: &Value) -> Result<Object, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::NoObject);
    };
    let original = object.as_object().cloned().unwrap_or_default();
    merge_map(original, patch.clone(), structure::of(kind)).map(Value::Object)
}

type Fields = Map<String, Value>;

fn merge_map(original: Fields, mut patch: Fields, of: Type) -> Result<Fields, PatchError> {
    match take_directive(&mut patch)? {
        Directive::Replace => return Ok(without_directives(patch)),
        Directive::Delete => return Ok(Fields::new()),
        Directive::Merge => {}
    }
    let mut merged = original;
    retain_keys(&mut merged, &mut patch)?;
    merge_ordered_lists(&mut merged, &mut patch, of)?;
    // All at once: taking one key out moves all behind it.
    let mut removed = HashSet::new();
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_VALUES) {
            delete_values(&mut merged, name, &value)?;
            continue;
        }
        if value.is_null() {
            removed.insert(key);
            continue;
        }
        let before = merged.get_mut(&key).map(Value::take);
        let after = merge_field(before, value, of, &key)?;
        merged.insert(key, after);
    }
    if !removed.is_empty() {
        merged.retain(|key, _| !removed.contains(key));
    }
    Ok(merged)
}

/// The new value of one field that the patch gives a value.
fn merge_field(
    original: Option<Value>,
    patch: Value,
    of: Type,
    name: &str,
) -> Result<Value, PatchError> {
    let strategic = of.field(name).map_or(Strategic::Plain, |field| field.strategic);
    let child = of.child(name);
    match (original, patch) {
        (_, patch) if strategic == Strategic::Replace => Ok(cleaned(patch)),
        (Some(Value::Object(original)), Value::Object(patch)) => {
            merge_map(original, patch, child).map(Value::Object)
        }
        (Some(Value::Array(original)), Value::Array(patch)) => match strategic {
            Strategic::Merge(key) => merge_keyed(original, patch, key, child).map(Value::Array),
            Strategic::MergeValues => Ok(Value::Array(merge_values(original, patch))),
            Strategic::Plain | Strategic::Replace => Ok(Value::Array(patch)),
        },
        // Nothing to merge with: the patch is the value, but its directives and nulls are
        // instructions.
        (_, Value::Object(patch)) => merge_map(Fields::new(), patch, child).map(Value::Object),
        (_, Value::Array(patch)) => match strategic {
            Strategic::Merge(key) => merge_keyed(Vec::new(), patch, key, child).map(Value::Array),
            _ => Ok(Value::Array(patch)),
        },
        (_, patch) => Ok(patch),
    }
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

fn take_directive(patch: &mut Fields) -> Result<Directive, PatchError> {
    let Some(directive) = patch.shift_remove(PATCH) else {
        return Ok(Directive::Merge);
    };
    match directive.as_str() {
        Some("merge") => Ok(Directive::Merge),
        Some("replace") => Ok(Directive::Replace),
        Some("delete") => Ok(Directive::Delete),
        _ => {
            let patch = Value::Object(patch.clone()).to_string();
            Err(PatchError::Directive(directive.to_string(), patch))
        }
    }
}

/// Removes from the object every key that the patch does not want to keep.
fn retain_keys(original: &mut Fields, patch: &mut Fields) -> Result<(), PatchError> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(PatchError::NoList(RETAIN_KEYS, keys.to_string()));
    };
    let kept: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let is_kept = |key: &str| kept.contains(key);
    let stray = patch
        .iter()
        .find(|(key, value)| !value.is_null() && !key.starts_with('$') && !is_kept(key));
    if let Some((key, _)) = stray {
        return Err(PatchError::NotRetained(key.clone()));
    }
    original.retain(|key, _| is_kept(key));
    Ok(())
}

/// Merges the lists for which the patch gives an order, and takes them out of the patch.
fn merge_ordered_lists(
    merged: &mut Fields,
    patch: &mut Fields,
    of: Type,
) -> Result<(), PatchError> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    if directives.len() > ORDERS_MAX {
        return Err(PatchError::Orders);
    }
    for directive in directives {
        let name = directive[SET_ORDER.len()..].to_string();
        let order = patch.shift_remove(&directive).unwrap_or(Value::Null);
        let Value::Array(order) = order else {
            return Err(PatchError::NoList(SET_ORDER, order.to_string()));
        };
        if let Some(values) = patch.shift_remove(&format!("{DELETE_VALUES}{name}")) {
            delete_values(merged, &name, &values)?;
        }
        let items = patch.shift_remove(&name);
        if items.as_ref().is_some_and(Value::is_null) {
            merged.shift_remove(&name);
            continue;
        }
        let original = merged.get(&name).and_then(Value::as_array).cloned().unwrap_or_default();
        if original.is_empty() && items.is_none() {
            continue;
        }
        let list = match items {
            None => Value::Array(original.clone()),
            Some(items) => merge_field(Some(Value::Array(original.clone())), items, of, &name)?,
        };
        let Value::Array(list) = list else {
            return Err(PatchError::NoList(SET_ORDER, list.to_string()));
        };
        let strategic = of.field(&name).map_or(Strategic::Plain, |field| field.strategic);
        let list = match strategic {
            Strategic::Merge(key) => arrange(list, &order, &original, |item| {
                item.get(key).cloned().unwrap_or(Value::Null)
            }),
            Strategic::MergeValues => arrange(list, &order, &original, Value::clone),
            Strategic::Plain | Strategic::Replace => list,
        };
        merged.insert(name, Value::Array(list));
    }
    Ok(())
}

/// Merges two lists of objects that are the same when `key` is equal.
fn merge_keyed(
    original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    child: Type,
) -> Result<Vec<Value>, PatchError> {
    let mut merged: Vec<Option<Value>> = original.iter().cloned().map(Some).collect();
    let mut places = Places::of(&original, |item| item.get(key));
    let mut order = Vec::new();
    let mut replaced = false;
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(PatchError::MixedList(key.to_string(), item.to_string()));
        };
        let directive = take_item_directive(&mut item)?;
        if matches!(directive, Directive::Replace) && !replaced {
            // The list is replaced by what else the patch says.
            merged.clear();
            places = Places::default();
            replaced = true;
        }
        // A replacing item that holds nothing else only says that the list is replaced.
        if matches!(directive, Directive::Replace) && item.is_empty() {
            continue;
        }
        let Some(id) = item.get(key).cloned() else {
            let item = Value::Object(item).to_string();
            return Err(PatchError::NoMergeKey { item, key: key.to_string() });
        };
        if matches!(directive, Directive::Delete) {
            for at in places.0.remove(&id).unwrap_or_default() {
                merged[at] = None;
            }
            continue;
        }
        match places.first(&id) {
            Some(at) => {
                let before = merged[at].take().and_then(|item| item.as_object().cloned());
                let after = merge_map(before.unwrap_or_default(), item, child)?;
                merged[at] = Some(Value::Object(after));
            }
            None => {
                places.0.insert(id.clone(), vec![merged.len()]);
                merged.push(Some(Value::Object(merge_map(Fields::new(), item, child)?)));
            }
        }
        order.push(id);
    }
    let merged: Vec<Value> = merged.into_iter().flatten().collect();
    let id = |item: &Value| item.get(key).cloned().unwrap_or(Value::Null);
    let order: Vec<Value> = order.into_iter().map(|id| Value::from_iter([(key, id)])).collect();
    Ok(arrange(merged, &order, &original, id))
}

/// Where the items of a list stand, by what tells them apart: lists may have tens of thousands.
#[derive(Default)]
struct Places(HashMap<Value, Vec<usize>>);

impl Places {
    fn of<'a>(list: &'a [Value], id: impl Fn(&'a Value) -> Option<&'a Value>) -> Places {
        let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
        for (at, item) in list.iter().enumerate() {
            if let Some(id) = id(item) {
                places.entry(id.clone()).or_default().push(at);
            }
        }
        Places(places)
    }

    fn first(&self, id: &Value) -> Option<usize> {
        self.0.get(id).and_then(|places| places.first().copied())
    }
}

/// As [`take_directive`], but merging is what happens without a directive and may not be asked for.
fn take_item_directive(item: &mut Fields) -> Result<Directive, PatchError> {
    if item.get(PATCH).and_then(Value::as_str) == Some("merge") {
        return Err(PatchError::MergeItem);
    }
    take_directive(item)
}

/// Adds the values that are not there yet.
fn merge_values(original: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    let mut merged = original.clone();
    let mut known: HashSet<&Value> = original.iter().collect();
    for value in &patch {
        if known.insert(value) {
            merged.push(value.clone());
        }
    }
    arrange(merged, &patch, &original, Value::clone)
}

fn delete_values(merged: &mut Fields, name: &str, values: &Value) -> Result<(), PatchError> {
    let Value::Array(values) = values else {
        return Err(PatchError::NoList(DELETE_VALUES, values.to_string()));
    };
    let values: HashSet<&Value> = values.iter().collect();
    if let Some(Value::Array(list)) = merged.get_mut(name) {
        list.retain(|value| !values.contains(value));
    }
    Ok(())
}

/// Orders a merged list. Items that `order` names stand in its order, all others in the order of
/// the original list, and among each other the original list decides as well as it can: an item
/// that `order` does not name comes before the first remaining named one that followed it in the
/// original list.
fn arrange(
    list: Vec<Value>,
    order: &[Value],
    original: &[Value],
    id: impl Fn(&Value) -> Value,
) -> Vec<Value> {
    let ordered: Vec<Value> = order.iter().map(&id).collect();
    let before: Vec<Value> = original.iter().map(&id).collect();
    let (ordered, before) = (Places::of(&ordered, Some), Places::of(&before, Some));
    let place = |places: &Places, item: &Value| places.first(&id(item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        list.into_iter().partition(|item| place(&ordered, item).is_some());
    named.sort_by_cached_key(|item| place(&ordered, item));
    others.sort_by_cached_key(|item| place(&before, item).unwrap_or(usize::MAX));

    let mut arranged = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let here = place(&before, &item);
        while let Some(other) = others.peek() {
            let comes_first = match (place(&before, other), here) {
                (Some(other), Some(here)) => other < here,
                _ => false,
            };
            if !comes_first {
                break;
            }
            arranged.extend(others.next());
        }
        arranged.push(item);
    }
    arranged.extend(others);
    arranged
}

/// A value that replaces another one: directives in it are spent.
fn cleaned(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(without_directives(fields)),
        other => other,
    }
}

fn without_directives(fields: Fields) -> Fields {
    fields.into_iter().filter(|(key, _)| !key.starts_with('$')).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testscript;

    #[test]
    fn patches() {
        testscript::check("patch.txt", |case| {
            let kind = testscript::kind(testscript::argument(case, "kind"));
            let object = testscript::json(testscript::argument(case, "object"));
            let patch = testscript::json(testscript::argument(case, "patch"));
            match strategic(kind, &object, &patch) {
                Ok(object) => object.to_string(),
                Err(error) => error.to_string(),
            }
        });
    }

    #[test]
    fn many_keys_go_in_one_sweep() {
        let kind = crate::kind("", "v1", "configmaps").expect("in the table");
        let keys = (0..20_000).map(|key| format!("k{key}"));
        let data = |value: Value| -> Value {
            let fields: Fields = keys.clone().map(|key| (key, value.clone())).collect();
            json!({"data": fields})
        };
        let patched = strategic(kind, &data(json!("")), &data(Value::Null)).expect("it is patched");
        assert_eq!(patched, json!({"data": {}}));
        let orders: Fields = keys.map(|key| (format!("{SET_ORDER}{key}"), json!([]))).collect();
        let refused = strategic(kind, &json!({}), &Value::Object(orders));
        assert_eq!(refused, Err(PatchError::Orders));
    }

    #[test]
    fn a_patch_is_an_object() {
        let kind = crate::kind("", "v1", "pods").expect("in the table");
        assert_eq!(strategic(kind, &json!({}), &json!([])), Err(PatchError::NoObject));
    }
}
