//! The version 2 document in protobuf: the form in which kubectl asks for it when a manifest names
//! a kind that version 3 does not have, and which tools of before version 3 read.
//!
//! The messages are those of `openapi.v2` (gnostic), of which the tables below name what our
//! documents have. Values of any form (defaults, enums, extensions) travel as YAML text, of which
//! JSON is a part.

use serde_json::{Map, Value};

/// The media type of the form, and the older spelling of it.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
pub const MEDIA_TYPE_BEFORE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A document as the message `Document`.
pub fn encode(swagger: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    DOCUMENT.write(swagger, &mut out);
    out
}

/// What a field of a message holds, by what JSON has there.
#[derive(Clone, Copy)]
enum Holds {
    Text,
    Texts,
    Flag,
    Whole,
    Real,
    /// Any value, as text.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// A map, as a message with a list (field 1) of entries: name (1) and value (2).
    Named(&'static Message),
    /// The same with the entries in this field.
    Paths,
    Responses,
    /// A list of texts, or one, in field 1 of a message.
    Types,
    /// One schema in field 1 of a message.
    Boxed(&'static Message),
    /// A schema (1) or a flag (2) in a message.
    SchemaOrFlag,
    Parameters,
    Security,
}

struct Message {
    fields: &'static [(&'static str, u32, Holds)],
    /// Where keys that begin with `x-` go.
    extensions: u32,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Holds::Text),
        ("info", 2, Holds::One(&INFO)),
        ("paths", 8, Holds::Paths),
        ("definitions", 9, Holds::Named(&SCHEMA)),
        ("security", 12, Holds::Security),
        ("securityDefinitions", 13, Holds::Named(&SECURITY)),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { fields: &[("title", 1, Holds::Text), ("version", 2, Holds::Text)], extensions: 7 };

/// SecurityDefinitionsItem, whose second form is ours.
static SECURITY: Message = Message { fields: &[("", 2, Holds::One(&API_KEY))], extensions: 0 };

static API_KEY: Message = Message {
    fields: &[
        ("type", 1, Holds::Text),
        ("name", 2, Holds::Text),
        ("in", 3, Holds::Text),
        ("description", 4, Holds::Text),
    ],
    extensions: 5,
};

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Holds::One(&OPERATION)),
        ("put", 3, Holds::One(&OPERATION)),
        ("post", 4, Holds::One(&OPERATION)),
        ("delete", 5, Holds::One(&OPERATION)),
        ("options", 6, Holds::One(&OPERATION)),
        ("head", 7, Holds::One(&OPERATION)),
        ("patch", 8, Holds::One(&OPERATION)),
        ("parameters", 9, Holds::Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Holds::Texts),
        ("description", 3, Holds::Text),
        ("operationId", 5, Holds::Text),
        ("produces", 6, Holds::Texts),
        ("consumes", 7, Holds::Texts),
        ("parameters", 8, Holds::Parameters),
        ("responses", 9, Holds::Responses),
        ("schemes", 10, Holds::Texts),
    ],
    extensions: 13,
};

static RESPONSE: Message = Message {
    fields: &[("description", 1, Holds::Text), ("schema", 2, Holds::Boxed(&SCHEMA))],
    extensions: 5,
};

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Holds::Text),
        ("name", 2, Holds::Text),
        ("in", 3, Holds::Text),
        ("required", 4, Holds::Flag),
        ("schema", 5, Holds::One(&SCHEMA)),
    ],
    extensions: 6,
};

static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Holds::Flag),
        ("in", 2, Holds::Text),
        ("description", 3, Holds::Text),
        ("name", 4, Holds::Text),
        ("type", 6, Holds::Text),
        ("format", 7, Holds::Text),
        ("default", 10, Holds::Any),
        ("uniqueItems", 20, Holds::Flag),
        ("enum", 21, Holds::Anys),
    ],
    extensions: 23,
};

static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Holds::Flag),
        ("in", 2, Holds::Text),
        ("description", 3, Holds::Text),
        ("name", 4, Holds::Text),
        ("type", 5, Holds::Text),
        ("format", 6, Holds::Text),
        ("uniqueItems", 19, Holds::Flag),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Holds::Text),
        ("format", 2, Holds::Text),
        ("title", 3, Holds::Text),
        ("description", 4, Holds::Text),
        ("default", 5, Holds::Any),
        ("multipleOf", 6, Holds::Real),
        ("maximum", 7, Holds::Real),
        ("exclusiveMaximum", 8, Holds::Flag),
        ("minimum", 9, Holds::Real),
        ("exclusiveMinimum", 10, Holds::Flag),
        ("maxLength", 11, Holds::Whole),
        ("minLength", 12, Holds::Whole),
        ("pattern", 13, Holds::Text),
        ("maxItems", 14, Holds::Whole),
        ("minItems", 15, Holds::Whole),
        ("uniqueItems", 16, Holds::Flag),
        ("maxProperties", 17, Holds::Whole),
        ("minProperties", 18, Holds::Whole),
        ("required", 19, Holds::Texts),
        ("enum", 20, Holds::Anys),
        ("additionalProperties", 21, Holds::SchemaOrFlag),
        ("type", 22, Holds::Types),
        ("items", 23, Holds::Boxed(&SCHEMA)),
        ("allOf", 24, Holds::Many(&SCHEMA)),
        ("properties", 25, Holds::Named(&SCHEMA)),
        ("readOnly", 27, Holds::Flag),
        ("example", 30, Holds::Any),
    ],
    extensions: 31,
};

impl Message {
    fn write(&self, value: &Value, out: &mut Vec<u8>) {
        let Some(object) = value.as_object() else { return };
        for (name, number, holds) in self.fields {
            // The one field without a name holds the object itself.
            let held = if name.is_empty() { Some(value) } else { object.get(*name) };
            if let Some(held) = held.filter(|held| !held.is_null()) {
                holds.write(*number, held, out);
            }
        }
        for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
            entry(self.extensions, name, out, |out| any(2, value, out));
        }
    }
}

impl Holds {
    fn write(self, number: u32, value: &Value, out: &mut Vec<u8>) {
        let items = || value.as_array().into_iter().flatten();
        match self {
            Holds::Text => text(number, value.as_str().unwrap_or_default(), out),
            Holds::Texts => {
                items().filter_map(Value::as_str).for_each(|item| text(number, item, out));
            }
            Holds::Flag => flag(number, value.as_bool().unwrap_or(false), out),
            Holds::Whole => {
                key(number, 0, out);
                // As int64 is written: a negative number in all ten bytes.
                varint(value.as_i64().unwrap_or_default().cast_unsigned(), out);
            }
            Holds::Real => {
                key(number, 1, out);
                out.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
            }
            Holds::Any => any(number, value, out),
            Holds::Anys => items().for_each(|item| any(number, item, out)),
            Holds::One(message) => nested(number, out, |out| message.write(value, out)),
            Holds::Many(message) => {
                items().for_each(|item| nested(number, out, |out| message.write(item, out)));
            }
            Holds::Named(message) => nested(number, out, |out| {
                for (name, value) in pairs(value) {
                    entry(1, name, out, |out| nested(2, out, |out| message.write(value, out)));
                }
            }),
            Holds::Paths => nested(number, out, |out| {
                for (name, value) in pairs(value) {
                    entry(2, name, out, |out| nested(2, out, |out| PATH_ITEM.write(value, out)));
                }
            }),
            Holds::Responses => nested(number, out, |out| {
                for (name, value) in pairs(value) {
                    let response =
                        |out: &mut Vec<u8>| nested(1, out, |out| RESPONSE.write(value, out));
                    entry(1, name, out, |out| nested(2, out, response));
                }
            }),
            Holds::Types => nested(number, out, |out| match value {
                Value::String(one) => text(1, one, out),
                _ => items().filter_map(Value::as_str).for_each(|item| text(1, item, out)),
            }),
            Holds::Boxed(message) => {
                nested(number, out, |out| nested(1, out, |out| message.write(value, out)));
            }
            Holds::SchemaOrFlag => nested(number, out, |out| match value {
                Value::Bool(allowed) => flag(2, *allowed, out),
                schema => nested(1, out, |out| SCHEMA.write(schema, out)),
            }),
            Holds::Parameters => items().for_each(|item| {
                nested(number, out, |out| nested(1, out, |out| parameter(item, out)));
            }),
            Holds::Security => items().for_each(|item| {
                nested(number, out, |out| {
                    for (name, scopes) in pairs(item) {
                        let scopes = |out: &mut Vec<u8>| {
                            Holds::Texts.write(1, scopes, out);
                        };
                        entry(1, name, out, |out| nested(2, out, scopes));
                    }
                });
            }),
        }
    }
}

/// A parameter is in the body (1), or elsewhere (2): in the query (3) or the path (4).
fn parameter(value: &Value, out: &mut Vec<u8>) {
    match value["in"].as_str() {
        Some("body") => nested(1, out, |out| BODY_PARAMETER.write(value, out)),
        Some("path") => {
            nested(2, out, |out| nested(4, out, |out| PATH_PARAMETER.write(value, out)));
        }
        _ => nested(2, out, |out| nested(3, out, |out| QUERY_PARAMETER.write(value, out))),
    }
}

fn pairs(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// An entry of a map: its name, and what `value` writes.
fn entry(number: u32, name: &str, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    nested(number, out, |out| {
        text(1, name, out);
        value(out);
    });
}

fn any(number: u32, value: &Value, out: &mut Vec<u8>) {
    nested(number, out, |out| text(2, &format!("{value}\n"), out));
}

fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(number, &inner, out);
}

fn text(number: u32, text: &str, out: &mut Vec<u8>) {
    bytes(number, text.as_bytes(), out);
}

fn flag(number: u32, set: bool, out: &mut Vec<u8>) {
    key(number, 0, out);
    out.push(u8::from(set));
}

fn bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    key(number, 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn key(number: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire), out);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Fields of one message, as numbers and what they hold.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn number(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let (first, rest) = bytes.split_first().expect("a whole number");
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let length = match key & 7 {
                0 => {
                    let value = number(&mut bytes);
                    found.push((key >> 3, value.to_string().into_bytes()));
                    continue;
                }
                1 => 8,
                2 => usize::try_from(number(&mut bytes)).expect("a length"),
                other => panic!("wire type {other}"),
            };
            let (value, rest) = bytes.split_at(length);
            found.push((key >> 3, value.to_vec()));
            bytes = rest;
        }
        found
    }

    #[test]
    fn a_schema_is_written_field_by_field() {
        let schema = json!({
            "description": "d", "type": "object", "required": ["a"], "maxLength": -1,
            "properties": {"a": {"$ref": "#/definitions/x"}},
            "additionalProperties": true, "default": {"k": 1},
            "x-kubernetes-list-type": "atomic",
        });
        let mut out = Vec::new();
        SCHEMA.write(&schema, &mut out);
        let found = fields(&out);
        let held = |number: u64| {
            let field = found.iter().find(|(found, _)| *found == number);
            field.map(|(_, bytes)| bytes.clone()).expect("the field is there")
        };
        assert_eq!(held(4), b"d");
        assert_eq!(held(11), u64::MAX.to_string().into_bytes());
        assert_eq!(held(19), b"a");
        assert_eq!(fields(&held(22)), [(1, b"object".to_vec())]);
        assert_eq!(fields(&held(21)), [(2, b"1".to_vec())]);
        assert_eq!(fields(&held(5)), [(2, b"{\"k\":1}\n".to_vec())]);
        let property = fields(&fields(&held(25))[0].1);
        assert_eq!(property[0], (1, b"a".to_vec()));
        assert_eq!(fields(&property[1].1), [(1, b"#/definitions/x".to_vec())]);
        let extension = fields(&held(31));
        assert_eq!(extension[0].1, b"x-kubernetes-list-type");
        assert_eq!(fields(&extension[1].1), [(2, b"\"atomic\"\n".to_vec())]);
    }

    #[test]
    fn parameters_go_where_they_are() {
        let operation = json!({"parameters": [
            {"in": "query", "name": "q", "type": "string"},
            {"in": "body", "name": "body", "schema": {}},
        ]});
        let mut out = Vec::new();
        OPERATION.write(&operation, &mut out);
        let parameters: Vec<Vec<u8>> =
            fields(&out).into_iter().map(|(_, item)| fields(&item)[0].1.clone()).collect();
        assert_eq!(fields(&parameters[0])[0].0, 2);
        assert_eq!(fields(&fields(&parameters[0])[0].1)[0].0, 3);
        assert_eq!(fields(&parameters[1])[0].0, 1);
    }
}
