//! The other encoding that clients send: protobuf bodies of the built-in kinds, read into JSON.
//!
//! A body is an *envelope*: four bytes of magic, then a message `Unknown` that names `apiVersion`
//! and `kind` and holds the object's own message as bytes. One decoder walks those bytes by the
//! table in `protobuf/messages.txt` (see [`table`]) and builds the same [`Object`] that a JSON body
//! would have given: times, quantities and int-or-strings as JSON writes them, bytes in base64,
//! embedded JSON parsed.
//!
//! Kubernetes' own clients write a zero for every field that they hold by value, so a zero there
//! says nothing and is left out; a field behind a pointer is written only when it is set, so its
//! zero is kept (`replicas: 0`, `emptyDir: {}`). The table's `*` tells the two apart.
//!
//! Invariants: no input makes this code panic or recurse without limit, and what is allocated is
//! bounded by the length of the body and by [`VALUES_MAX`]. Unknown fields are skipped, as protobuf
//! wants it.

#[cfg(test)]
mod generate;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use self::table::{Field, Many, Message, TABLE, Type};
use self::wire::{Reader, Wire, WireError};
use crate::Object;

/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every envelope starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Messages within messages. Schemas of custom resources are the deepest real bodies, at three
/// levels a property; JSON parsing stops near the same depth.
const DEPTH_MAX: usize = 100;

/// Values in one object. A body of 3 MiB (the API server's limit) can claim one value for every two
/// bytes, and a value costs about a hundred bytes of memory; the largest real objects have tens of
/// thousands.
const VALUES_MAX: usize = 400_000;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the body does not start with the protobuf magic number")]
    Magic,
    #[error("content encoding {0:?} of the envelope is unknown")]
    Encoding(String),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("{message}: malformed protobuf")]
    Wire {
        message: String,
        #[source]
        source: WireError,
    },
    #[error("{message}.{field}: {problem}")]
    Value { message: String, field: String, problem: &'static str },
    #[error("the object is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    #[error("the object has more than {VALUES_MAX} values")]
    TooLarge,
}

/// Reads a body with its envelope. The object starts with `apiVersion` and `kind` of the envelope
/// (`kind` first, as Kubernetes orders them).
pub fn decode(body: &[u8]) -> Result<Object, DecodeError> {
    Decoder { values_left: VALUES_MAX }.envelope(body, 0)
}

/// Reads the bare message of a kind, without an envelope.
pub fn decode_message(api_version: &str, kind: &str, raw: &[u8]) -> Result<Object, DecodeError> {
    Decoder { values_left: VALUES_MAX }.object(api_version, kind, raw, 0)
}

/// The envelope's four fields.
#[derive(Default)]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

/// One decoding; its state is what is left of the budget of values.
struct Decoder {
    values_left: usize,
}

impl Decoder {
    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Object, DecodeError> {
        let message = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
        let envelope = read_envelope(message)?;
        self.object(&envelope.api_version, &envelope.kind, envelope.raw, depth)
    }

    fn object(
        &mut self,
        api_version: &str,
        kind: &str,
        raw: &[u8],
        depth: usize,
    ) -> Result<Object, DecodeError> {
        let Some(message) = TABLE.kind(api_version, kind) else {
            return Err(DecodeError::UnknownKind {
                api_version: api_version.to_string(),
                kind: kind.to_string(),
            });
        };
        let mut object = Map::new();
        object.insert("kind".to_string(), Value::from(kind));
        object.insert("apiVersion".to_string(), Value::from(api_version));
        self.message(message, raw, depth, &mut object)?;
        Ok(Value::Object(object))
    }

    /// Reads the fields of a message into `object`.
    fn message(
        &mut self,
        message: &Message,
        bytes: &[u8],
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        if depth > DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
            let Some(field) = message.field(number) else {
                continue;
            };
            match (&field.many, &field.kind) {
                (Many::One, Type::Message(inner)) if field.name == "-" => {
                    let bytes = length_delimited(message, field, wire)?;
                    self.message(TABLE.message(*inner), bytes, depth + 1, object)?;
                }
                (Many::One, _) => {
                    let value = self.value(message, field, wire, depth)?;
                    if field.zero_matters || !is_zero(&value) {
                        insert(object, field, value);
                    }
                }
                (Many::List, _) => self.list_item(message, field, wire, depth, object)?,
                (Many::Map, _) => self.map_entry(message, field, wire, depth, object)?,
            }
        }
        Ok(())
    }

    fn list_item(
        &mut self,
        message: &Message,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let mut items = Vec::new();
        match (&field.kind, wire) {
            // Numbers may come packed: all of them in one field.
            (Type::Bool | Type::Int32 | Type::Int64, Wire::Bytes(packed)) => {
                let mut reader = Reader::new(packed);
                while !reader.is_empty() {
                    let number = reader.varint().map_err(|error| broken(message, error))?;
                    items.push(self.value(message, field, Wire::Varint(number), depth)?);
                }
            }
            (_, wire) => items.push(self.value(message, field, wire, depth)?),
        }
        let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.extend(items);
        }
        Ok(())
    }

    /// A map entry is a message of its own: 1 is the key, 2 the value.
    fn map_entry(
        &mut self,
        message: &Message,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let entry = length_delimited(message, field, wire)?;
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(entry);
        while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
            match number {
                1 => {
                    key = text(message, field, length_delimited(message, field, wire)?)?.to_string()
                }
                2 => value = Some(self.value(message, field, wire, depth)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.value(message, field, Wire::Bytes(&[]), depth)?,
        };
        let entries = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(entries) = entries {
            entries.insert(key, value);
        }
        Ok(())
    }

    /// One value of a field's type; `Null` when the message on the wire says nothing (a zero time).
    fn value(
        &mut self,
        message: &Message,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
    ) -> Result<Value, DecodeError> {
        self.values_left = self.values_left.checked_sub(1).ok_or(DecodeError::TooLarge)?;
        let wrong = |problem| value_error(message, field, problem);
        let bytes = match (&field.kind, wire) {
            (Type::Bool, Wire::Varint(number)) => return Ok(Value::from(number != 0)),
            (Type::Int32, Wire::Varint(number)) => return Ok(Value::from(number as i32)),
            (Type::Int64, Wire::Varint(number)) => return Ok(Value::from(number as i64)),
            (Type::Double, Wire::Fixed64(bits)) => {
                let number = serde_json::Number::from_f64(f64::from_bits(bits));
                return number.map(Value::Number).ok_or(wrong("is not a finite number"));
            }
            (Type::Bool | Type::Int32 | Type::Int64 | Type::Double, _) => {
                return Err(wrong("must be a number"));
            }
            (_, Wire::Bytes(bytes)) => bytes,
            (_, _) => return Err(wrong("must be length-delimited")),
        };
        match &field.kind {
            Type::String => Ok(Value::from(text(message, field, bytes)?)),
            Type::Bytes => Ok(Value::from(BASE64.encode(bytes))),
            Type::Message(inner) => {
                let mut object = Map::new();
                self.message(TABLE.message(*inner), bytes, depth + 1, &mut object)?;
                Ok(Value::Object(object))
            }
            Type::Json => self.json(message, field, bytes, depth),
            Type::Strings => self.strings(message, field, bytes),
            Type::SchemaOrBool | Type::SchemaOrArray | Type::SchemaOrStrings => {
                self.schema_or(message, field, bytes, depth)
            }
            _ => leaf(message, field, bytes),
        }
    }

    /// A message whose field 1 is a document: JSON, or another envelope.
    fn json(
        &mut self,
        message: &Message,
        field: &Field,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, DecodeError> {
        let mut raw: &[u8] = &[];
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
            if number == 1 {
                raw = length_delimited(message, field, wire)?;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(MAGIC) {
            if depth >= DEPTH_MAX {
                return Err(DecodeError::TooDeep);
            }
            return self.envelope(raw, depth + 1);
        }
        let not_json = |_| value_error(message, field, "holds neither JSON nor protobuf");
        let value: Value = serde_json::from_slice(raw).map_err(not_json)?;
        self.values_left =
            self.values_left.checked_sub(count(&value)).ok_or(DecodeError::TooLarge)?;
        Ok(value)
    }

    /// A message that stands for a list of strings (field 1).
    fn strings(
        &mut self,
        message: &Message,
        field: &Field,
        bytes: &[u8],
    ) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
            if number == 1 {
                self.values_left = self.values_left.checked_sub(1).ok_or(DecodeError::TooLarge)?;
                let item = length_delimited(message, field, wire)?;
                items.push(Value::from(text(message, field, item)?));
            }
        }
        Ok(Value::Array(items))
    }

    /// The three messages that hold a schema or something simpler instead.
    fn schema_or(
        &mut self,
        message: &Message,
        field: &Field,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, DecodeError> {
        let (mut schema, mut allows) = (None, false);
        let mut list = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
            self.values_left = self.values_left.checked_sub(1).ok_or(DecodeError::TooLarge)?;
            match (&field.kind, number, wire) {
                (Type::SchemaOrBool, 1, Wire::Varint(number)) => allows = number != 0,
                (Type::SchemaOrBool, 2, Wire::Bytes(bytes))
                | (Type::SchemaOrArray | Type::SchemaOrStrings, 1, Wire::Bytes(bytes)) => {
                    schema = Some(self.schema(bytes, depth)?);
                }
                (Type::SchemaOrArray, 2, Wire::Bytes(bytes)) => {
                    list.push(self.schema(bytes, depth)?)
                }
                (Type::SchemaOrStrings, 2, Wire::Bytes(bytes)) => {
                    list.push(Value::from(text(message, field, bytes)?));
                }
                _ => {}
            }
        }
        Ok(match (schema, &field.kind) {
            (Some(schema), _) => schema,
            (None, Type::SchemaOrBool) => Value::from(allows),
            (None, _) => Value::Array(list),
        })
    }

    fn schema(&mut self, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
        let mut schema = Map::new();
        self.message(TABLE.json_schema(), bytes, depth + 1, &mut schema)?;
        Ok(Value::Object(schema))
    }
}

/// Reads `Unknown {1: TypeMeta {1: apiVersion, 2: kind}, 2: raw, 3: contentEncoding, 4:
/// contentType}`.
fn read_envelope(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let malformed = |source| DecodeError::Wire { message: "envelope".to_string(), source };
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next().map_err(malformed)? {
        match (number, wire) {
            (1, Wire::Bytes(type_meta)) => {
                let mut reader = Reader::new(type_meta);
                while let Some((number, wire)) = reader.next().map_err(malformed)? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => envelope.api_version = lossy(bytes),
                        (2, Wire::Bytes(bytes)) => envelope.kind = lossy(bytes),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => envelope.raw = raw,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(DecodeError::Encoding(lossy(encoding)));
            }
            _ => {}
        }
    }
    Ok(envelope)
}

/// Values that are messages on the wire and scalars in JSON.
fn leaf(message: &Message, field: &Field, bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut first, mut second, mut string, mut empty) = (0_u64, 0_u64, "", true);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next().map_err(|error| broken(message, error))? {
        empty = false;
        match (number, wire) {
            (1, Wire::Varint(number)) => first = number,
            (2, Wire::Varint(number)) => second = number,
            (1 | 3, Wire::Bytes(bytes)) => string = text(message, field, bytes)?,
            _ => {}
        }
    }
    let wrong = |_| value_error(message, field, "is not a time between the years -9999 and 9999");
    match field.kind {
        // An empty message is the zero time, which JSON writes as null.
        Type::Time | Type::MicroTime if empty => Ok(Value::Null),
        // Times are kept to the second, whatever the client sent.
        Type::Time => {
            let time = Timestamp::from_second(first as i64).map_err(wrong)?;
            Ok(Value::from(time.to_string()))
        }
        Type::MicroTime => {
            let time = Timestamp::new(first as i64, second as i32).map_err(wrong)?;
            Ok(Value::from(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()))
        }
        Type::Quantity if string.is_empty() => Ok(Value::from("0")),
        Type::Quantity => Ok(Value::from(string)),
        Type::IntOrString if first == 0 => Ok(Value::from(second as i32)),
        Type::IntOrString => Ok(Value::from(string)),
        _ => unreachable!("all other types are handled by the caller"),
    }
}

fn insert(object: &mut Map<String, Value>, field: &Field, value: Value) {
    // A zero time, and embedded JSON of no bytes: Kubernetes reads null there as absent.
    if !value.is_null() {
        object.insert(field.name.to_string(), value);
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>() + 1,
        Value::Object(fields) => fields.values().map(count).sum::<usize>() + 1,
        _ => 1,
    }
}

fn text<'a>(message: &Message, field: &Field, bytes: &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| value_error(message, field, "is not valid UTF-8"))
}

fn length_delimited<'a>(
    message: &Message,
    field: &Field,
    wire: Wire<'a>,
) -> Result<&'a [u8], DecodeError> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(value_error(message, field, "must be length-delimited")),
    }
}

fn broken(message: &Message, source: WireError) -> DecodeError {
    DecodeError::Wire { message: message.name.to_string(), source }
}

fn value_error(message: &Message, field: &Field, problem: &'static str) -> DecodeError {
    DecodeError::Value { message: message.name.to_string(), field: field.name.to_string(), problem }
}
