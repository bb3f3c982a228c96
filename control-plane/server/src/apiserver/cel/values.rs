//! JSON as CEL sees it, and back.
//!
//! With a schema, values have the types that it says: a `number` is a double even when it is whole,
//! a `date-time` is a timestamp, and properties have the names that an expression can write
//! (`foo-bar` is `foo__dash__bar`). Without one, JSON stands for itself. Texts are borrowed.

use std::collections::HashMap;

use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString,
};
use cel::common::value::{CowVal, Val};
use serde_json::Value;
use wherry_resources::custom::schema::{Additional, Form, Schema};

use super::ENVIRONMENT;

/// A value for an expression.
pub fn value<'v>(json: &'v Value, schema: Option<&'v Schema>) -> Box<dyn Val + 'v> {
    let form = schema.map_or(Form::Any, |schema| schema.form);
    match json {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match (form, number.as_i64()) {
            (Form::Number, _) | (_, None) => {
                let float = number.as_f64().unwrap_or(f64::NAN);
                match form {
                    Form::Integer | Form::IntOrText if float.fract() == 0.0 => {
                        Box::new(CelInt::from(float as i64))
                    }
                    _ => Box::new(CelDouble::from(float)),
                }
            }
            (_, Some(whole)) => Box::new(CelInt::from(whole)),
        },
        Value::String(text) => formatted(text, schema),
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.items.as_deref());
            let items: Vec<Box<dyn Val + 'v>> =
                items.iter().map(|item| value(item, inner)).collect();
            Box::new(CelList::from(items))
        }
        Value::Object(map) => {
            let mut entries: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> =
                HashMap::with_capacity(map.len());
            for (key, inner) in map {
                match schema {
                    Some(schema) => {
                        if let Some((name, child)) = field(schema, key) {
                            entries.insert(name, value(inner, child));
                        }
                    }
                    None => {
                        entries.insert(CelMapKey::from(key.as_str()), value(inner, None));
                    }
                }
            }
            Box::new(CelMap::from(entries))
        }
    }
}

/// The same of JSON that does not live as long as the value.
pub fn owned<'v>(json: &Value) -> Box<dyn Val + 'v> {
    match json {
        Value::String(text) => Box::new(CelString::from(text.clone())),
        Value::Array(items) => {
            let items: Vec<Box<dyn Val + 'v>> = items.iter().map(owned).collect();
            Box::new(CelList::from(items))
        }
        Value::Object(map) => {
            let entry = |(key, inner): (&String, &Value)| -> (CelMapKey<'v>, Box<dyn Val + 'v>) {
                (CelMapKey::String(CelString::from(key.clone())), owned(inner))
            };
            Box::new(CelMap::from(map.iter().map(entry).collect::<HashMap<_, _>>()))
        }
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Box::new(CelInt::from(whole)),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
    }
}

/// The name under which an expression finds a field, and the field's schema; None if it cannot.
fn field<'v>(schema: &'v Schema, key: &'v str) -> Option<(CelMapKey<'v>, Option<&'v Schema>)> {
    if let Some(child) = schema.properties.get(key) {
        // Metadata is implicit: a schema says at most what its name looks like.
        let child = Some(child).filter(|child| key != "metadata" || !child.properties.is_empty());
        let name = escaped(key)?;
        let name = match name == key {
            true => CelMapKey::from(key),
            false => CelMapKey::String(CelString::from(name)),
        };
        return Some((name, child));
    }
    match &schema.additional {
        Additional::Of(inner) => Some((CelMapKey::from(key), Some(inner))),
        Additional::Anything => Some((CelMapKey::from(key), None)),
        // Every object says what it is; metadata shows its names alone.
        Additional::Nothing if matches!(key, "apiVersion" | "kind" | "metadata") => {
            Some((CelMapKey::from(key), None))
        }
        Additional::Nothing => (schema.preserve && schema.properties.is_empty())
            .then_some((CelMapKey::from(key), None)),
    }
}

/// A text of a format that CEL has a type for.
fn formatted<'v>(text: &'v str, schema: Option<&Schema>) -> Box<dyn Val + 'v> {
    let format = schema.and_then(|schema| schema.limits.format.as_ref());
    let plain = || Box::new(CelString::from(text));
    match format.map_or("", |(name, _)| name.as_str()) {
        "date-time" => called("timestamp", text).unwrap_or_else(|| plain()),
        "date" => called("timestamp", &format!("{text}T00:00:00Z")).unwrap_or_else(|| plain()),
        "duration" => called("duration", text).unwrap_or_else(|| plain()),
        "byte" => {
            use base64::Engine as _;
            match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => Box::new(CelBytes::from(bytes)),
                Err(_) => plain(),
            }
        }
        _ => plain(),
    }
}

/// What a conversion function of the language makes of a text.
fn called<'v>(function: &str, text: &str) -> Option<Box<dyn Val + 'v>> {
    let args: Vec<CowVal<'_, '_>> = vec![CowVal::owned(CelString::from(text.to_owned()))];
    let function = ENVIRONMENT.find_overload(function, &args)?;
    function(args).ok().map(CowVal::into_owned)
}

/// Words that an identifier may not be.
const RESERVED: [&str; 22] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "do",
];

/// A property's name as an expression writes it; None if it cannot be written.
pub fn escaped(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(letter) = rest.chars().next() {
        let (text, length) = match letter {
            _ if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(text);
        rest = &rest[length..];
    }
    Some(out)
}

/// The property that an identifier in an expression stands for.
pub fn unescaped(name: &str) -> String {
    let whole = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
    if let Some(word) = whole.filter(|word| RESERVED.contains(word)) {
        return word.to_owned();
    }
    name.replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace("__underscores__", "__")
}

/// What an expression made, as JSON; None for values that have no form in it.
pub fn json(value: &dyn Val) -> Option<Value> {
    use cel::common::types::{CelOptional, CelUInt};
    if let Some(value) = value.downcast_ref::<CelString>() {
        return Some(value.inner().into());
    }
    if let Some(value) = value.downcast_ref::<CelInt>() {
        return Some((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelUInt>() {
        return Some((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelBool>() {
        return Some((*value.inner()).into());
    }
    if let Some(value) = value.downcast_ref::<CelDouble>() {
        return Some((*value.inner()).into());
    }
    if value.downcast_ref::<CelNull>().is_some() {
        return Some(Value::Null);
    }
    if let Some(list) = value.downcast_ref::<CelList>() {
        let items: Option<Vec<Value>> =
            list.inner().iter().map(|item| json(item.as_ref())).collect();
        return items.map(Value::Array);
    }
    if let Some(map) = value.downcast_ref::<CelMap>() {
        let entries = map.inner().iter().map(|(key, inner)| match key {
            CelMapKey::String(key) => Some((key.inner().to_owned(), json(inner.as_ref())?)),
            _ => None,
        });
        let mut entries: Vec<(String, Value)> = entries.collect::<Option<_>>()?;
        // The evaluator keeps no order; a fixed one makes equal results equal.
        entries.sort_by(|left, right| left.0.cmp(&right.0));
        return Some(Value::Object(entries.into_iter().collect()));
    }
    if let Some(optional) = value.downcast_ref::<CelOptional>() {
        return optional.option().and_then(json);
    }
    None
}
