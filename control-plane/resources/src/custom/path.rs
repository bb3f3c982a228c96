//! JSON paths: the full ones of printed columns, and the simple ones that name one field.
//!
//! Kubernetes writes paths without the leading `$` and lets a dot be escaped with a backslash; a
//! path is brought into the standard's form (RFC 9535) once, when its CRD is read.

use std::fmt::Write as _;

use jiff::Timestamp;
use jsonpath_rust::parser::{model::JpQuery, parse_json_path};
use jsonpath_rust::query::js_path_process;
use serde_json::{Value, json};

use crate::{Object, meta, table};

/// What a path may have at most of each, far more than any column needs. The parser tries a call in
/// several ways at each level, and recurses for brackets; each descent looks below all that the one
/// before it has found.
const MOST: [(&str, usize); 3] = [("(", 8), ("[", 64), ("..", 2)];

/// The most names of a path: setting a field makes as many objects inside each other.
pub const NAMES_MAX: usize = 64;

/// A path of plain field names, such as `.spec.replicas`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simple(Vec<String>);

impl Simple {
    /// Splits the path at its dots. What is longer than [`NAMES_MAX`] is refused when a CRD is
    /// written, and cut off here.
    pub fn parse(path: &str) -> Simple {
        let fields = path.split('.').filter(|field| !field.is_empty()).take(NAMES_MAX);
        Simple(fields.map(str::to_owned).collect())
    }

    /// The names of the fields, outermost first.
    pub fn fields(&self) -> &[String] {
        &self.0
    }

    /// What stands there.
    pub fn get<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(object, |at, field| at.get(field))
    }

    /// Puts a value there; objects on the way are made where they are missing.
    pub fn set(&self, object: &mut Value, value: Value) {
        let mut at = object;
        for field in &self.0 {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[field.as_str()];
        }
        *at = value;
    }
}

/// The printed columns of a custom kind.
#[derive(Debug)]
pub struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    /// As a Table has it.
    definition: Value,
    kind: String,
    /// None when the path cannot be read: then the cells stay empty.
    path: Option<JpQuery>,
}

impl Columns {
    /// Reads `additionalPrinterColumns`; without any, the age is shown.
    pub fn parse(source: &Value) -> Columns {
        let age = json!([{
            "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "The time since the object was created",
        }]);
        let given = source.as_array().filter(|list| !list.is_empty());
        let list = given.or(age.as_array()).into_iter().flatten();
        Columns(list.map(Column::parse).collect())
    }

    /// The column definitions of a Table.
    pub fn definitions(&self) -> Vec<Value> {
        let name = json!({
            "name": "Name", "type": "string", "format": "name",
            "description": "The name of the object, unique within its kind and namespace",
            "priority": 0,
        });
        let given = self.0.iter().map(|column| column.definition.clone());
        std::iter::once(name).chain(given).collect()
    }

    pub(super) fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let name = Value::from(meta::name(object));
        let given = self.0.iter().map(|column| column.cell(object, now));
        std::iter::once(name).chain(given).collect()
    }
}

impl Column {
    fn parse(source: &Value) -> Column {
        let text = |key: &str| source[key].as_str().unwrap_or("");
        Column {
            definition: json!({
                "name": text("name"), "type": text("type"), "format": text("format"),
                "description": text("description"),
                "priority": source["priority"].as_i64().unwrap_or(0),
            }),
            kind: text("type").to_owned(),
            path: compile(text("jsonPath")).ok(),
        }
    }

    fn cell(&self, object: &Object, now: Timestamp) -> Value {
        let found = self.path.as_ref().and_then(|path| js_path_process(path, object).ok());
        let values: Vec<&Value> = found.into_iter().flatten().map(|found| found.val).collect();
        let Some(first) = values.first().filter(|first| !first.is_null()) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "string" => {
                let texts: Vec<String> = values.iter().map(|value| plain(value)).collect();
                Value::from(texts.join(" "))
            }
            "integer" => match first.as_f64() {
                // Whole numbers pass as they are; others lose their fraction, as in Kubernetes.
                Some(_) if first.is_i64() || first.is_u64() => (*first).clone(),
                Some(number) => Value::from(number as i64),
                None => Value::Null,
            },
            "number" if first.is_number() => (*first).clone(),
            "boolean" if first.is_boolean() => (*first).clone(),
            "date" => match first.as_str() {
                Some(text) => Value::from(match meta::parse_time(text) {
                    Some(then) => table::duration(then, now),
                    None => "<invalid>".to_owned(),
                }),
                None => Value::Null,
            },
            _ => Value::Null,
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Compiles a path in Kubernetes' spelling; the error says what is wrong with it.
pub fn compile(path: &str) -> Result<JpQuery, String> {
    if let Some((part, most)) = MOST.iter().find(|(part, most)| path.matches(part).count() > *most)
    {
        return Err(format!("a path has at most {most} times {part:?}"));
    }
    let standard = standard(path)?;
    parse_json_path(&standard).map_err(|error| error.to_string())
}

/// The path as RFC 9535 writes it, every field name quoted.
fn standard(path: &str) -> Result<String, String> {
    let bare = path.trim().trim_start_matches('{').trim_end_matches('}');
    let bare = bare.strip_prefix('$').unwrap_or(bare);
    let mut out = String::from("$");
    let mut rest = bare;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            out.push_str("..");
            let (name, after) = name(after);
            let step = if name == "*" { "*".to_owned() } else { quoted(&name) };
            out.push_str(&step);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('.') {
            let (name, after) = name(after);
            match name.as_str() {
                "" => {}
                "*" => out.push_str("[*]"),
                name => out.push_str(&quoted(name)),
            }
            rest = after;
        } else if rest.starts_with('[') {
            let end = bracket(rest).ok_or_else(|| format!("unterminated array in {path:?}"))?;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else {
            return Err(format!("unrecognized character at {rest:?}"));
        }
    }
    Ok(out)
}

/// The field name at the start of a text, and what follows it.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => name.extend(letters.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            other => name.push(other),
        }
    }
    (name, "")
}

fn quoted(name: &str) -> String {
    let mut out = String::from("['");
    for letter in name.chars() {
        if matches!(letter, '\'' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    let _ = write!(out, "']");
    out
}

/// The length of the bracket that a text starts with, quotes and inner brackets respected.
fn bracket(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0usize, None);
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match (quote, letter) {
            (Some(_), '\\') => {
                letters.next();
            }
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{NAMES_MAX, Simple, compile};

    #[test]
    fn a_path_makes_no_deeper_objects_than_it_may() {
        let path = Simple::parse(&".a".repeat(100_000));
        assert_eq!(path.fields().len(), NAMES_MAX);
        let mut object = json!({});
        path.set(&mut object, json!(1));
        assert_eq!(path.get(&object), Some(&json!(1)));
    }

    #[test]
    fn what_would_keep_the_parser_or_the_search_busy_is_refused() {
        for good in [".a[?(@.type==\"Ready\")].b", "..name", ".a[?(@.b>1)]"] {
            assert!(compile(good).is_ok(), "{good}");
        }
        let calls = format!(".a[?{}@.b]", "length(".repeat(40));
        let brackets = format!(".a{}1{}", "[?@".repeat(1_000), "]".repeat(1_000));
        for bad in [calls.as_str(), brackets.as_str(), "..*..*..*"] {
            let said = compile(bad).expect_err("it is refused");
            assert!(said.starts_with("a path has at most"), "{said}");
        }
    }
}
