//! Structural schemas: OpenAPI v3 as custom resources use it, compiled for quick work on objects.
//!
//! A schema has a skeleton (types, properties, items, defaults, Kubernetes' extensions) and limits
//! on values. Schemas inside `allOf`, `anyOf`, `oneOf` and `not` have limits only.
//! [`Schema::parse`] never fails: what is wrong with a schema is said when its CRD is written
//! (`structural`).

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::formats::{self, Format};

/// Memory that one compiled pattern may take: patterns are users' input.
pub const PATTERN_BYTES_MAX: usize = 1 << 20;

/// What kind of value a schema asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Any,
    Object,
    Array,
    Text,
    Integer,
    Number,
    Boolean,
    IntOrText,
}

impl Form {
    /// The word in messages.
    pub fn name(self) -> &'static str {
        match self {
            Form::Any => "",
            Form::Object => "object",
            Form::Array => "array",
            Form::Text => "string",
            Form::Integer => "integer",
            Form::Number => "number",
            Form::Boolean => "boolean",
            Form::IntOrText => "integer,string",
        }
    }
}

/// What may stand under keys that `properties` does not name.
#[derive(Debug, Default)]
pub enum Additional {
    #[default]
    Nothing,
    Anything,
    Of(Box<Schema>),
}

/// How a list merges, and what makes its items distinct.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// One entry of `x-kubernetes-validations`, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    /// `oldSelf` is optional, so the rule runs on creation too.
    pub optional_old_self: bool,
}

/// A compiled schema.
#[derive(Debug, Default)]
pub struct Schema {
    pub form: Form,
    pub nullable: bool,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Additional,
    pub items: Option<Box<Schema>>,
    pub default: Option<Value>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    pub list: List,
    /// `x-kubernetes-map-type: atomic`
    pub atomic: bool,
    pub rules: Vec<Rule>,
    pub limits: Limits,
}

/// Restrictions on values.
#[derive(Debug, Default)]
pub struct Limits {
    pub required: Vec<String>,
    pub one_of_values: Vec<Value>,
    pub pattern: Option<(String, Regex)>,
    pub format: Option<(String, Format)>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

impl Schema {
    /// Compiles a schema.
    pub fn parse(source: &Value) -> Schema {
        let flag = |key: &str| source[key] == true;
        let texts = |key: &str| -> Vec<String> {
            let list = source[key].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let form = match source["type"].as_str().unwrap_or("") {
            _ if flag("x-kubernetes-int-or-string") => Form::IntOrText,
            "object" => Form::Object,
            "array" => Form::Array,
            "string" => Form::Text,
            "integer" => Form::Integer,
            "number" => Form::Number,
            "boolean" => Form::Boolean,
            _ => Form::Any,
        };
        let properties = source["properties"].as_object().into_iter().flatten();
        Schema {
            form,
            nullable: flag("nullable"),
            properties: properties.map(|(key, one)| (key.clone(), Schema::parse(one))).collect(),
            additional: match source.get("additionalProperties") {
                Some(Value::Bool(true)) => Additional::Anything,
                Some(inner @ Value::Object(_)) => Additional::Of(Box::new(Schema::parse(inner))),
                _ => Additional::Nothing,
            },
            items: source
                .get("items")
                .filter(|items| items.is_object())
                .map(|items| Box::new(Schema::parse(items))),
            default: source.get("default").cloned(),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            list: match source["x-kubernetes-list-type"].as_str() {
                Some("set") => List::Set,
                Some("map") => List::Map(texts("x-kubernetes-list-map-keys")),
                _ => List::Atomic,
            },
            atomic: source["x-kubernetes-map-type"] == "atomic",
            rules: rules(&source["x-kubernetes-validations"]),
            limits: Limits::parse(source),
        }
    }

    /// The schema of what stands under a key, if the schema says something about it.
    pub fn child(&self, key: &str) -> Option<&Schema> {
        self.properties.get(key).or(match &self.additional {
            Additional::Of(inner) => Some(inner),
            Additional::Nothing | Additional::Anything => None,
        })
    }

    /// Whether any schema in here has a default, so that reading must look for it.
    pub fn has_defaults(&self) -> bool {
        let additional = match &self.additional {
            Additional::Of(inner) => inner.has_defaults(),
            Additional::Nothing | Additional::Anything => false,
        };
        self.default.is_some()
            || additional
            || self.properties.values().any(Schema::has_defaults)
            || self.items.as_ref().is_some_and(|items| items.has_defaults())
    }
}

fn rules(source: &Value) -> Vec<Rule> {
    let list = source.as_array().into_iter().flatten();
    list.map(|rule| {
        let text = |key: &str| rule[key].as_str().unwrap_or("").to_owned();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule["optionalOldSelf"] == true,
        }
    })
    .collect()
}

impl Limits {
    fn parse(source: &Value) -> Limits {
        let count = |key: &str| source[key].as_u64();
        let number = |key: &str| source[key].as_f64();
        let schemas = |key: &str| -> Vec<Schema> {
            source[key].as_array().into_iter().flatten().map(Schema::parse).collect()
        };
        let required = source["required"].as_array().into_iter().flatten();
        let pattern = source["pattern"].as_str().filter(|pattern| !pattern.is_empty());
        let format = source["format"].as_str().filter(|format| !format.is_empty());
        Limits {
            required: required.filter_map(Value::as_str).map(str::to_owned).collect(),
            one_of_values: source["enum"].as_array().cloned().unwrap_or_default(),
            pattern: pattern.and_then(|text| Some((text.to_owned(), compile(text).ok()?))),
            format: format.and_then(|name| Some((name.to_owned(), formats::named(name)?))),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            minimum: number("minimum"),
            exclusive_minimum: source["exclusiveMinimum"] == true,
            maximum: number("maximum"),
            exclusive_maximum: source["exclusiveMaximum"] == true,
            multiple_of: number("multipleOf"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: source.get("not").map(|not| Box::new(Schema::parse(not))),
        }
    }
}

/// Compiles a pattern within the limit of memory.
pub fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build()
}
