//! Objects from JSON: whole, without some of their fields, or some of their fields alone.
//!
//! Reading is much of what lists cost an API server. What is generic in serde is compiled where it is
//! used: here, in a crate that is compiled to be fast, and not in those that use it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Error, Map, Value};

use crate::Object;

/// Fields by their places in an object; those that lead through the same field stand together.
pub type Paths = &'static [&'static [&'static str]];

/// The whole object.
#[inline(never)]
pub fn object(json: &[u8]) -> Result<Object, Error> {
    serde_json::from_slice(json)
}

/// The object without the fields that stand at some places.
#[inline(never)]
pub fn without(paths: Paths, json: &[u8]) -> Result<Object, Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    Without { paths, depth: 0 }.deserialize(&mut reader)
}

/// The object with nothing but the fields at some places; a path goes through all items of a list.
#[inline(never)]
pub fn only(paths: Paths, json: &[u8]) -> Result<Object, Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    Only { paths, depth: 0 }.deserialize(&mut reader)
}

/// The paths that lead through a field, of those that come so deep.
fn through(paths: Paths, depth: usize, key: &str) -> Option<Paths> {
    let leads = |path: &[&str]| path.get(depth).is_some_and(|name| *name == key);
    let first = paths.iter().position(|path| leads(path))?;
    let count = paths[first..].iter().take_while(|path| leads(path)).count();
    Some(&paths[first..first + count])
}

/// The name of a field, which is mostly not kept.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Name<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the name of a field")
            }
            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        reader.deserialize_str(Names)
    }
}

/// Reads the fields that stand at these places, and what leads there.
#[derive(Clone, Copy)]
struct Only {
    paths: Paths,
    /// How many names of a path lead here; `paths` are those that go through here.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Only {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Only {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object or a list of them")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value, M::Error> {
        let mut fields = Map::new();
        while let Some(Name(key)) = map.next_key::<Name<'de>>()? {
            let value = match through(self.paths, self.depth, &key) {
                None => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Some([path, ..]) if path.len() == self.depth + 1 => map.next_value()?,
                Some(paths) => map.next_value_seed(Only { paths, depth: self.depth + 1 })?,
            };
            fields.insert(key.into_owned(), value);
        }
        Ok(Value::Object(fields))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Value, S::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    // Where an object is expected nothing else is kept.
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Reads an object without the fields that stand at these places.
struct Without {
    paths: Paths,
    /// How many names of a path lead here; `paths` are those that go through here.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Without {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Without {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value, M::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = match through(self.paths, self.depth, &key) {
                None => map.next_value()?,
                Some([path, ..]) if path.len() == self.depth + 1 => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Some(paths) => map.next_value_seed(Without { paths, depth: self.depth + 1 })?,
            };
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_where_they_stand_and_nowhere_else() {
        let json = r#"{"a":{"x":1,"y":{"x":2},"z":3},"x":[{"x":4,"y":[5]},{"y":6},7],"b\n":5}"#;
        let told = |paths: Paths| only(paths, json.as_bytes()).expect("JSON").to_string();
        assert_eq!(told(&[]), "{}");
        assert_eq!(
            told(&[&["a", "x"], &["a", "y", "x"], &["none"], &["b\n"]]),
            r#"{"a":{"x":1,"y":{"x":2}},"b\n":5}"#
        );
        assert_eq!(
            told(&[&["x", "x"], &["a"]]),
            r#"{"a":{"x":1,"y":{"x":2},"z":3},"x":[{"x":4},{},null]}"#
        );
        assert!(only(&[], b"{").is_err());
    }

    #[test]
    fn fields_are_left_out_where_they_stand_and_nowhere_else() {
        let json = r#"{"a":{"x":1,"y":{"x":2},"z":3},"x":[{"x":4}],"b":5}"#;
        let told = |paths: Paths| without(paths, json.as_bytes()).expect("JSON").to_string();
        assert_eq!(told(&[]), json);
        assert_eq!(
            told(&[&["a", "x"], &["a", "y", "x"], &["b"]]),
            r#"{"a":{"y":{},"z":3},"x":[{"x":4}]}"#
        );
        assert_eq!(object(json.as_bytes()).expect("JSON").to_string(), json);
        assert!(without(&[], b"[]").is_err());
    }
}
