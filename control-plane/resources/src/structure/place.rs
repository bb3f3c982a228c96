//! Where a walk through an object stands, and what may be told about the value there.
//!
//! A place comes from one of three sources: a row of the table of structure (built-in types), a
//! structural schema (custom resources), or nothing at all (what a schema lets through unseen),
//! where objects are owned field by field and everything else as a whole.

use serde_json::{Map, Value, json};

use super::{Apply, METADATA, PLAIN, Type, named, of};
use crate::Kind;

/// A place in an object.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    BuiltIn {
        apply: Apply,
        atomic_items: bool,
        /// Type of the object here, or of the items of the list here.
        of: Type,
    },
    /// A structural schema in its JSON form; the root and embedded objects have `metadata`.
    Schema {
        schema: &'a Value,
        has_metadata: bool,
    },
    Deduced,
}

/// How the value at a place is owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// As a whole.
    Leaf,
    /// Field by field.
    Fields,
    /// A list, value by value.
    Set,
    /// A list, object by object, told apart by these keys.
    Keyed(Vec<&'a str>),
}

impl<'a> Place<'a> {
    /// The root of an object of a built-in kind.
    pub fn built_in(kind: &Kind) -> Place<'static> {
        Place::typed(Apply::Plain, false, of(kind))
    }

    /// The root of a custom resource with this structural schema (`openAPIV3Schema`).
    pub fn custom(schema: &'a Value) -> Place<'a> {
        Place(Source::Schema { schema, has_metadata: true })
    }

    /// A place of which nothing is known.
    pub fn deduced() -> Place<'static> {
        Place(Source::Deduced)
    }

    fn typed(apply: Apply, atomic_items: bool, of: Type) -> Place<'static> {
        Place(Source::BuiltIn { apply, atomic_items, of })
    }

    /// Whether this is a built-in type: those have fields that are there even when they are empty.
    pub fn is_built_in(self) -> bool {
        matches!(self.0, Source::BuiltIn { .. })
    }

    /// How a value here is owned. The value decides where the type leaves it open.
    pub fn rule(self, value: &Value) -> Rule<'a> {
        match self.declared(value) {
            Rule::Fields if !value.is_object() && !value.is_null() => Rule::Leaf,
            Rule::Set | Rule::Keyed(_) if !value.is_array() && !value.is_null() => Rule::Leaf,
            rule => rule,
        }
    }

    fn declared(self, value: &Value) -> Rule<'a> {
        match self.0 {
            Source::BuiltIn { apply: Apply::Atomic, .. } => Rule::Leaf,
            Source::BuiltIn { apply: Apply::Set, .. } => Rule::Set,
            Source::BuiltIn { apply: Apply::Keyed(keys), .. } => Rule::Keyed(keys.to_vec()),
            Source::BuiltIn { apply: Apply::Plain, .. } | Source::Deduced => match value {
                Value::Object(_) => Rule::Fields,
                _ => Rule::Leaf,
            },
            Source::Schema { schema, .. } => schema_rule(schema),
        }
    }

    /// Whether values here are owned as a whole although they are objects or lists.
    pub fn is_atomic(self) -> bool {
        match self.0 {
            Source::BuiltIn { apply, .. } => apply == Apply::Atomic,
            Source::Schema { schema, .. } => {
                let is_container = matches!(text(schema, "type"), "object" | "array");
                is_container && schema_rule(schema) == Rule::Leaf
            }
            Source::Deduced => false,
        }
    }

    /// The place of a field of the object here.
    pub fn field(self, name: &str) -> Place<'a> {
        match self.0 {
            Source::BuiltIn { of, .. } => {
                let field = of.field(name);
                let apply = field.map_or(Apply::Plain, |field| field.apply);
                let atomic_items = field.is_some_and(|field| field.atomic_items);
                Place::typed(apply, atomic_items, of.child(name))
            }
            Source::Schema { has_metadata: true, .. } if name == "metadata" => {
                Place::typed(Apply::Plain, false, named(METADATA))
            }
            Source::Schema { schema, .. } => {
                let found = properties(schema).and_then(|properties| properties.get(name));
                let values = schema.get("additionalProperties").filter(|values| values.is_object());
                found.or(values).map_or(Place::deduced(), Place::schema)
            }
            Source::Deduced => Place::deduced(),
        }
    }

    fn schema(schema: &'a Value) -> Place<'a> {
        let has_metadata = schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
        Place(Source::Schema { schema, has_metadata })
    }

    /// The place of the items of the list here.
    pub fn item(self) -> Place<'a> {
        match self.0 {
            Source::BuiltIn { atomic_items: true, .. } => Place::typed(Apply::Atomic, false, PLAIN),
            Source::BuiltIn { of, .. } => Place::typed(Apply::Plain, false, of),
            Source::Schema { schema, .. } => {
                schema.get("items").map_or(Place::deduced(), Place::schema)
            }
            Source::Deduced => Place::deduced(),
        }
    }

    /// Whether the type names this field; if not it is a key of a map. Built-in maps hold nothing
    /// that is owned in parts, so for them the difference does not show.
    pub fn is_named(self, name: &str) -> bool {
        match self.0 {
            Source::BuiltIn { .. } => true,
            Source::Schema { has_metadata: true, .. }
                if matches!(name, "apiVersion" | "kind" | "metadata") =>
            {
                true
            }
            Source::Schema { schema, .. } => {
                properties(schema).is_some_and(|properties| properties.contains_key(name))
            }
            Source::Deduced => false,
        }
    }

    /// What an item of the keyed list here has under a key that it leaves out.
    pub fn key_default(self, key: &str) -> Option<Value> {
        match self.0 {
            // The protocol of container ports and of Service ports.
            Source::BuiltIn { .. } => (key == "protocol").then(|| json!("TCP")),
            Source::Schema { schema, .. } => {
                properties(schema.get("items")?)?.get(key)?.get("default").cloned()
            }
            Source::Deduced => None,
        }
    }
}

fn schema_rule(schema: &Value) -> Rule<'_> {
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        return Rule::Leaf;
    }
    match text(schema, "type") {
        "array" => match text(schema, "x-kubernetes-list-type") {
            "set" => Rule::Set,
            "map" => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                Rule::Keyed(keys.into_iter().flatten().filter_map(Value::as_str).collect())
            }
            _ => Rule::Leaf,
        },
        "object" if text(schema, "x-kubernetes-map-type") == "atomic" => Rule::Leaf,
        "object" => Rule::Fields,
        // Untyped: only what preserves unknown fields may be; the value decides.
        "" => Rule::Fields,
        _ => Rule::Leaf,
    }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema.get(key).and_then(Value::as_str).unwrap_or("")
}
