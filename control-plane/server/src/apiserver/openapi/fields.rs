//! Which fields an object may have: the schemas without everything else, for a look at each write.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde_json::{Map, Value};
use wherry_resources::Kind;

use super::schemas::{Schemas, referenced};

/// Reported fields of one object. A body of unknown fields would otherwise become an answer of its
/// own size.
const REPORTED_MAX: usize = 100;
/// Edits by which a misspelt name may differ from the one that was meant, for each started group of
/// so many letters.
const LETTERS_PER_EDIT: usize = 4;

static FIELDS: LazyLock<Fields> = LazyLock::new(|| Fields::new(&Schemas::generate()));

/// What may stand at a place in an object.
enum Shape {
    /// Scalars and free-form values: not looked into.
    Anything,
    Object(BTreeMap<String, Shape>),
    List(Box<Shape>),
    Map(Box<Shape>),
    /// Index of another type.
    Type(usize),
}

struct Fields {
    types: Vec<Shape>,
    kinds: BTreeMap<(&'static str, &'static str, &'static str), usize>,
}

/// Paths of the fields that the kind does not have, such as `spec.template.spec.containers[0].img`,
/// in the object's order.
pub fn unknown_fields(kind: &Kind, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(root) = FIELDS.kinds.get(&(kind.group, kind.version, kind.kind)) {
        FIELDS.look(&FIELDS.types[*root], object, "", &mut found);
    }
    found
}

/// The name that the last part of such a path may have been meant to be.
pub fn did_you_mean(kind: &Kind, path: &str) -> Option<&'static str> {
    let fields: &'static Fields = &FIELDS;
    let root = fields.kinds.get(&(kind.group, kind.version, kind.kind))?;
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut shape = fields.resolve(&fields.types[*root]);
    for part in parent.split('.').filter(|part| !part.is_empty()) {
        let (field, indexes) = part
            .split_once('[')
            .map_or((part, 0), |(field, rest)| (field, rest.matches(']').count()));
        shape = match shape {
            Shape::Object(properties) => fields.resolve(properties.get(field)?),
            Shape::Map(inner) => fields.resolve(inner),
            _ => return None,
        };
        for _ in 0..indexes {
            let Shape::List(inner) = shape else {
                return None;
            };
            shape = fields.resolve(inner);
        }
    }
    let Shape::Object(properties) = shape else {
        return None;
    };
    nearest(name, properties.keys().map(String::as_str))
}

/// The name with the fewest edits, if they are few for its length; letter case counts for nothing.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let edits = |known: &str| strsim::damerau_levenshtein(&wanted, &known.to_lowercase());
    let allowed = name.len().div_ceil(LETTERS_PER_EDIT);
    let rated = names.map(|known| (edits(known), known)).filter(|(edits, _)| *edits <= allowed);
    rated.min().map(|(_, known)| known)
}

impl Fields {
    fn new(schemas: &Schemas) -> Fields {
        let definitions = schemas.definitions();
        let index: HashMap<&str, usize> =
            definitions.keys().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let types = definitions.values().map(|schema| shape(schema, &index)).collect();
        let kinds = schemas.kinds().map(|(key, name)| (*key, index[name.as_str()])).collect();
        Fields { types, kinds }
    }

    fn resolve<'a>(&'a self, shape: &'a Shape) -> &'a Shape {
        match shape {
            Shape::Type(index) => &self.types[*index],
            other => other,
        }
    }

    /// Recursion ends with the object, whose depth the JSON parser has limited.
    fn look(&self, shape: &Shape, value: &Value, path: &str, found: &mut Vec<String>) {
        match (self.resolve(shape), value) {
            (Shape::Object(properties), Value::Object(fields)) => {
                for (name, value) in fields {
                    let path = join(path, name);
                    match properties.get(name) {
                        Some(shape) => self.look(shape, value, &path, found),
                        None if found.len() < REPORTED_MAX => found.push(path),
                        None => return,
                    }
                }
            }
            (Shape::Map(inner), Value::Object(entries)) => {
                for (name, value) in entries {
                    self.look(inner, value, &join(path, name), found);
                }
            }
            (Shape::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.look(inner, item, &format!("{path}[{index}]"), found);
                }
            }
            _ => {}
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn shape(schema: &Value, index: &HashMap<&str, usize>) -> Shape {
    if let Some(name) = referenced(schema) {
        let known = index.get(name).copied();
        return Shape::Type(known.expect("the generator adds what it refers to"));
    }
    if let Some(items) = schema.get("items") {
        return Shape::List(Box::new(shape(items, index)));
    }
    let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match (schema.get("properties"), schema.get("additionalProperties")) {
        (Some(Value::Object(properties)), None) if !keeps_unknown => object(properties, index),
        (None, Some(inner @ Value::Object(_))) => Shape::Map(Box::new(shape(inner, index))),
        _ => Shape::Anything,
    }
}

fn object(properties: &Map<String, Value>, index: &HashMap<&str, usize>) -> Shape {
    let property = |(name, schema): (&String, &Value)| (name.clone(), shape(schema, index));
    Shape::Object(properties.iter().map(property).collect())
}
