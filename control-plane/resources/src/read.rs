//! Objects from JSON, whole or without some of their fields.
//!
//! Reading is much of what lists cost an API server. What is generic in serde is compiled where it is
//! used: here, in a crate that is compiled to be fast, and not in those that use it.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::{Error, Value};

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

/// Reads an object without the fields that stand at these places.
struct Without {
    paths: Paths,
    /// How many names of a path lead here; `paths` are those that go through here.
    depth: usize,
}

impl Without {
    /// The paths that lead through a field; one that ends there leaves it out.
    fn below(&self, key: &str) -> Option<Paths> {
        let through = |path: &[&str]| path.get(self.depth).is_some_and(|name| *name == key);
        let first = self.paths.iter().position(|path| through(path))?;
        let count = self.paths[first..].iter().take_while(|path| through(path)).count();
        Some(&self.paths[first..first + count])
    }
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
        let mut fields = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = match self.below(&key) {
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
