//! The table of messages in memory: `messages.txt`, parsed once.
//!
//! The text explains its own format; `generate.rs` makes it and a test holds it against its
//! sources, so a line that cannot be read is a mistake of ours and stops the process at the first
//! use.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Every message of the built-in kinds.
pub static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("messages.txt")));

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Many {
    One,
    List,
    Map,
}

/// What a field's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    Bytes,
    /// Index of the message in the table.
    Message(usize),
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// A document of its own in field 1.
    Json,
    /// A list of strings in field 1.
    Strings,
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
}

/// One field of a message.
#[derive(Debug)]
pub struct Field {
    number: u32,
    /// JSON name, or `-` when the fields of its message stand in the parent.
    pub name: &'static str,
    pub many: Many,
    pub kind: Type,
    /// Whether a zero or an empty message says something.
    pub zero_matters: bool,
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// `core/v1.PodSpec`.
    pub name: &'static str,
    /// By number.
    fields: Vec<Field>,
}

impl Message {
    /// The field of this number.
    pub fn field(&self, number: u32) -> Option<&Field> {
        let place = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        Some(&self.fields[place])
    }
}

/// All messages.
pub struct Table {
    messages: Vec<Message>,
    /// Lower-case name -> index: prost spells `HPAScalingRules` in its own way.
    by_name: HashMap<String, usize>,
    json_schema: usize,
}

impl Table {
    /// The message of an object's type. Options of a call are the same in every group.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<&Message> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let folder = match group {
            _ if kind == "DeleteOptions" => "meta",
            "" => "core",
            group if group.contains('.') && !group.ends_with(".k8s.io") => return None,
            group => group.split('.').next().unwrap_or_default(),
        };
        let version = if folder == "meta" { "v1" } else { version };
        let name = format!("{folder}/{version}.{kind}").to_lowercase();
        self.by_name.get(&name).map(|index| self.message(*index))
    }

    /// The message at an index that a [`Type::Message`] holds.
    pub fn message(&self, index: usize) -> &Message {
        &self.messages[index]
    }

    /// The schema message of custom resource definitions.
    pub fn json_schema(&self) -> &Message {
        self.message(self.json_schema)
    }

    fn parse(text: &'static str) -> Table {
        let lines = || text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let heads = lines().filter(|line| !line.contains(' '));
        let by_name: HashMap<String, usize> =
            heads.enumerate().map(|(index, name)| (name.to_lowercase(), index)).collect();
        let mut messages: Vec<Message> = Vec::new();
        for line in lines() {
            if !line.contains(' ') {
                messages.push(Message { name: line, fields: Vec::new() });
                continue;
            }
            let message = messages.last_mut().expect("the table starts with a message");
            let field = parse_field(message.name, line, &by_name);
            message.fields.push(field);
        }
        for message in &mut messages {
            message.fields.sort_by_key(|field| field.number);
        }
        let json_schema = by_name["apiextensions/v1.jsonschemaprops"];
        Table { messages, by_name, json_schema }
    }
}

fn parse_field(message: &str, line: &'static str, by_name: &HashMap<String, usize>) -> Field {
    let mut words = line.split(' ');
    let (Some(number), Some(name), Some(word)) = (words.next(), words.next(), words.next()) else {
        panic!("messages.txt: {message}: {line:?} is not a field");
    };
    let (many, word) = match (word.strip_prefix("[]"), word.strip_prefix("{}")) {
        (Some(word), _) => (Many::List, word),
        (_, Some(word)) => (Many::Map, word),
        (None, None) => (Many::One, word),
    };
    let (zero_matters, word) = match word.strip_prefix('*') {
        Some(word) => (true, word),
        None => (false, word),
    };
    let number = number.parse().expect("a field starts with its number");
    let kind = scalar(word).unwrap_or_else(|| {
        let folder = message.split_once('.').map_or("", |(folder, _)| folder);
        let full = if word.contains('.') { word.to_string() } else { format!("{folder}.{word}") };
        Type::Message(by_name[&full.to_lowercase()])
    });
    Field { number, name, many, kind, zero_matters }
}

fn scalar(word: &str) -> Option<Type> {
    Some(match word {
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "Json" => Type::Json,
        "Strings" => Type::Strings,
        "SchemaOrBool" => Type::SchemaOrBool,
        "SchemaOrArray" => Type::SchemaOrArray,
        "SchemaOrStrings" => Type::SchemaOrStrings,
        _ => return None,
    })
}
