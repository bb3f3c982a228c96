//! What an object's type says about it: which fields it may have, and of which type they are.
//!
//! The same schemas that clients read, without everything else, for a look at each write. A field
//! that the type does not have is reported, and dropped or refused as the client wishes. A value of
//! the wrong type is always refused: objects travel as JSON, but clients read them with types, and
//! one mistyped object would break every list that it is part of.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine as _};
use serde_json::{Map, Value};
use wherry_resources::custom::schema::{Additional, Form, Schema};
use wherry_resources::{Kind, Object, meta, quantity::Quantity};

use super::schemas::{Schemas, referenced};

/// Reported fields of one object. A body of unknown fields would otherwise become an answer of its
/// own size.
pub const REPORTED_MAX: usize = 100;
/// Edits by which a misspelt name may differ from the one that was meant, for each started group of
/// so many letters.
const LETTERS_PER_EDIT: usize = 4;
/// No field has a longer name; comparing takes memory for each letter of both.
const NAME_BYTES_MAX: usize = 64;

/// The type of amounts, whose schema says less of them than they must be.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

static FIELDS: LazyLock<Fields> = LazyLock::new(|| Fields::new(&Schemas::generate()));

/// What may stand at a place in an object.
enum Shape {
    /// Free-form values: not looked into.
    Anything,
    Boolean,
    Integer {
        bits: u32,
    },
    Number,
    Text,
    Time,
    /// Text in base64.
    Bytes,
    Quantity,
    IntegerOrText,
    Object(BTreeMap<String, Shape>),
    List(Box<Shape>),
    Map(Box<Shape>),
    /// Index of another type: types may hold themselves.
    Type(usize),
}

struct Fields {
    types: Vec<Shape>,
    kinds: BTreeMap<(&'static str, &'static str, &'static str), usize>,
}

impl Fields {
    fn of(&self, kind: &Kind) -> Option<&Shape> {
        let index = self.kinds.get(&(kind.group, kind.version, kind.kind));
        index.map(|index| &self.types[*index])
    }
}

/// Holds an object against its kind's type; the error says what does not fit. Unknown fields and
/// missing ones are not its matter.
pub fn check_type(kind: &Kind, object: &Object) -> Result<(), String> {
    if kind.custom.is_some() {
        // Its schema says the rest; metadata is the same for all kinds.
        let any = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        return check_type(any, &serde_json::json!({"metadata": object["metadata"]}));
    }
    match FIELDS.of(kind) {
        Some(root) => FIELDS.fits(root, object, &mut Vec::new()),
        None => Ok(()),
    }
}

/// The same for what is sent to a part of an object and is itself no row of the table of kinds: a
/// Scale, an Eviction, a TokenRequest.
pub fn check_part(api_version: &str, kind: &str, sent: &Object) -> Result<(), String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let found = FIELDS.kinds.iter().find(|(key, _)| **key == (group, version, kind));
    match found {
        Some((_, index)) => FIELDS.fits(&FIELDS.types[*index], sent, &mut Vec::new()),
        None => Ok(()),
    }
}

/// A built-in kind's type as expressions are held against it.
pub fn schema(kind: &Kind) -> Option<Schema> {
    Some(FIELDS.schema(FIELDS.of(kind)?, &mut Vec::new()))
}

/// Paths of the fields that the kind does not have, such as `spec.template.spec.containers[0].img`,
/// in the object's order.
pub fn unknown_fields(kind: &Kind, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(root) = FIELDS.of(kind) {
        FIELDS.look(root, object, &mut Vec::new(), &mut found);
    }
    found
}

/// Drops the fields that the kind does not have.
pub fn drop_unknown(kind: &Kind, object: &mut Value) {
    if let Some(root) = FIELDS.of(kind) {
        FIELDS.drop_unknown(root, object);
    }
}

/// Makes null in maps of texts what a typed server reads it as: an empty text. Elsewhere null is the
/// same as absent.
pub fn fill_nulls(kind: &Kind, object: &mut Object) {
    if let Some(root) = FIELDS.of(kind).filter(|_| holds_null(object)) {
        FIELDS.fill(root, object);
    }
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(holds_null),
        Value::Object(fields) => fields.values().any(holds_null),
        _ => false,
    }
}

/// The name that the last part of such a path may have been meant to be.
pub fn did_you_mean(kind: &Kind, path: &str) -> Option<&'static str> {
    let fields: &'static Fields = &FIELDS;
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut shape = fields.resolve(fields.of(kind)?);
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
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
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
        let types = definitions.iter().map(|(name, schema)| match name.as_str() {
            QUANTITY => Shape::Quantity,
            _ => shape(schema, &index),
        });
        let types = types.collect();
        let kinds = schemas.kinds().map(|(key, name)| (*key, index[name.as_str()])).collect();
        Fields { types, kinds }
    }

    fn resolve<'a>(&'a self, shape: &'a Shape) -> &'a Shape {
        match shape {
            Shape::Type(index) => &self.types[*index],
            other => other,
        }
    }

    /// `above` are the types that this one is part of: one that holds itself may be anything there.
    fn schema(&self, shape: &Shape, above: &mut Vec<usize>) -> Schema {
        let mut schema = Schema::default();
        match shape {
            // Times have a type of their own in CEL, and bytes are no text.
            Shape::Anything | Shape::Time | Shape::Bytes => {}
            Shape::Boolean => schema.form = Form::Boolean,
            Shape::Integer { .. } => schema.form = Form::Integer,
            Shape::Number => schema.form = Form::Number,
            Shape::Text | Shape::Quantity => schema.form = Form::Text,
            Shape::IntegerOrText => schema.form = Form::IntOrText,
            Shape::Object(fields) if fields.is_empty() => {}
            Shape::Object(fields) => {
                schema.form = Form::Object;
                let field = |(name, shape): (&String, &Shape)| {
                    (name.clone(), self.schema(shape, &mut *above))
                };
                schema.properties = fields.iter().map(field).collect();
            }
            Shape::List(item) => {
                schema.form = Form::Array;
                schema.items = Some(Box::new(self.schema(item, above)));
            }
            Shape::Map(inner) => {
                schema.form = Form::Object;
                schema.additional = Additional::Of(Box::new(self.schema(inner, above)));
            }
            Shape::Type(index) if above.contains(index) => {}
            Shape::Type(index) => {
                above.push(*index);
                schema = self.schema(&self.types[*index], above);
                above.pop();
            }
        }
        schema
    }

    fn fits<'a>(
        &'a self,
        shape: &'a Shape,
        value: &'a Value,
        path: &mut Vec<Step<'a>>,
    ) -> Result<(), String> {
        let wrong = |wanted: &str| Err(complaint(path, value, wanted));
        match (shape, value) {
            // null is the same as absent.
            (Shape::Anything, _) | (_, Value::Null) => Ok(()),
            (Shape::Type(index), _) => self.fits(&self.types[*index], value, path),
            (Shape::Boolean, Value::Bool(_)) | (Shape::Text, Value::String(_)) => Ok(()),
            (Shape::Number, Value::Number(_)) => Ok(()),
            (Shape::IntegerOrText, Value::String(_) | Value::Number(_)) => Ok(()),
            (Shape::Integer { bits }, Value::Number(number)) => match number.as_i64() {
                Some(_) if *bits == 64 => Ok(()),
                Some(number) if i32::try_from(number).is_ok() => Ok(()),
                _ => wrong(&format!("a whole number of {bits} bits")),
            },
            (Shape::Time, Value::String(text)) if meta::parse_time(text).is_some() => Ok(()),
            (Shape::Quantity, Value::Number(_)) => Ok(()),
            (Shape::Quantity, Value::String(text)) => match Quantity::parse(text.trim()) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{}: {error}", place(path))),
            },
            (Shape::Bytes, Value::String(text)) => match STANDARD.decode(text) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{}: {}", place(path), no_base64(&error, text))),
            },
            (Shape::List(item), Value::Array(items)) => {
                for (index, value) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    self.fits(item, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for (key, value) in map {
                    path.push(Step::Key(key));
                    self.fits(inner, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Object(fields), Value::Object(map)) => {
                for (key, value) in map {
                    let Some(field) = fields.get(key) else {
                        continue;
                    };
                    path.push(Step::Key(key));
                    self.fits(field, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Boolean, _) => wrong("true or false"),
            (Shape::Number | Shape::Integer { .. }, _) => wrong("a number"),
            (Shape::Text | Shape::Bytes, _) => wrong("a string"),
            (Shape::Quantity, _) => wrong("a quantity"),
            (Shape::Time, _) => wrong("a time as RFC 3339 writes it"),
            (Shape::IntegerOrText, _) => wrong("a number or a string"),
            (Shape::List(_), _) => wrong("a list"),
            (Shape::Map(_) | Shape::Object(_), _) => wrong("an object"),
        }
    }

    fn fill(&self, shape: &Shape, value: &mut Value) {
        match (self.resolve(shape), value) {
            (Shape::Object(properties), Value::Object(fields)) => {
                for (name, value) in fields.iter_mut() {
                    if let Some(shape) = properties.get(name) {
                        self.fill(shape, value);
                    }
                }
            }
            (Shape::Map(inner), Value::Object(entries)) => {
                let is_text = matches!(self.resolve(inner), Shape::Text);
                for value in entries.values_mut() {
                    if is_text && value.is_null() {
                        *value = Value::from("");
                    } else {
                        self.fill(inner, value);
                    }
                }
            }
            (Shape::List(inner), Value::Array(items)) => {
                for item in items {
                    self.fill(inner, item);
                }
            }
            _ => {}
        }
    }

    fn drop_unknown(&self, shape: &Shape, value: &mut Value) {
        match (self.resolve(shape), value) {
            (Shape::Object(properties), Value::Object(fields)) => {
                fields.retain(|name, value| match properties.get(name) {
                    Some(shape) => {
                        self.drop_unknown(shape, value);
                        true
                    }
                    None => false,
                });
            }
            (Shape::Map(inner), Value::Object(entries)) => {
                entries.values_mut().for_each(|value| self.drop_unknown(inner, value));
            }
            (Shape::List(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.drop_unknown(inner, item));
            }
            _ => {}
        }
    }

    /// Recursion ends with the object, whose depth the JSON parser has limited.
    fn look<'a>(
        &self,
        shape: &Shape,
        value: &'a Value,
        path: &mut Vec<Step<'a>>,
        found: &mut Vec<String>,
    ) {
        match (self.resolve(shape), value) {
            (Shape::Object(properties), Value::Object(fields)) => {
                for (name, value) in fields {
                    path.push(Step::Key(name));
                    match properties.get(name) {
                        Some(shape) => self.look(shape, value, path, found),
                        None if found.len() < REPORTED_MAX => found.push(place(path)),
                        None => {}
                    }
                    path.pop();
                }
            }
            (Shape::Map(inner), Value::Object(entries)) => {
                for (name, value) in entries {
                    path.push(Step::Key(name));
                    self.look(inner, value, path, found);
                    path.pop();
                }
            }
            (Shape::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    self.look(inner, item, path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

/// One step of the path to a value, for messages.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// A path as messages show it.
fn place(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Kubernetes' sentence, which does not repeat what may be secret.
fn no_base64(error: &DecodeError, text: &str) -> String {
    let at = match error {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => *at,
        DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
    };
    format!("illegal base64 data at input byte {at}")
}

fn complaint(path: &[Step<'_>], value: &Value, wanted: &str) -> String {
    let text = place(path);
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("{text}: {found} stands where {wanted} belongs")
}

/// Reads a schema; what it does not understand may be anything.
fn shape(schema: &Value, index: &HashMap<&str, usize>) -> Shape {
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or("");
    if let Some(name) = referenced(schema) {
        let known = index.get(name).copied();
        return Shape::Type(known.expect("the generator adds what it refers to"));
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return Shape::IntegerOrText;
    }
    let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match (text("type"), text("format")) {
        ("boolean", _) => Shape::Boolean,
        ("integer", "int64") => Shape::Integer { bits: 64 },
        ("integer", _) => Shape::Integer { bits: 32 },
        ("number", _) => Shape::Number,
        ("string", "date-time") => Shape::Time,
        ("string", "byte") => Shape::Bytes,
        ("string", _) => Shape::Text,
        ("array", _) => {
            let items = schema.get("items").map_or(Shape::Anything, |items| shape(items, index));
            Shape::List(Box::new(items))
        }
        ("object", _) => match (schema.get("properties"), schema.get("additionalProperties")) {
            (Some(Value::Object(fields)), None) if !keeps_unknown => object(fields, index),
            (None, Some(values @ Value::Object(_))) => Shape::Map(Box::new(shape(values, index))),
            _ => Shape::Anything,
        },
        _ => Shape::Anything,
    }
}

fn object(properties: &Map<String, Value>, index: &HashMap<&str, usize>) -> Shape {
    let property = |(name, schema): (&String, &Value)| (name.clone(), shape(schema, index));
    Shape::Object(properties.iter().map(property).collect())
}
