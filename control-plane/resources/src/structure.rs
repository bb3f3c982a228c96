//! How built-in types merge: which lists are keyed and by what, which values are taken whole.
//!
//! One row a type, and only what differs from the rule. The rule: objects merge field by field,
//! lists are replaced as a whole. The *strategic* column drives strategic merge patches (`patch`);
//! the *apply* column is what server-side apply tracks ownership by. They differ on purpose
//! (container ports merge by `containerPort` in a patch and by `containerPort` and `protocol` in
//! apply), as they do in Kubernetes.
//!
//! Apply walks through objects of built-in types and of custom ones alike: [`Place`] is where it
//! stands, whether a row of this table or a schema says what the value there is.

mod place;
mod rows;

pub use place::{Place, Rule};
use rows::TYPES;

use crate::Kind;

/// What a strategic merge patch does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategic {
    /// Objects merge, lists are replaced.
    Plain,
    /// A list of objects that are the same when this key is equal.
    Merge(&'static str),
    /// A list of values without duplicates.
    MergeValues,
    /// Replaced even though it is an object.
    Replace,
}

/// What server-side apply owns separately within a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Objects field by field, lists as a whole.
    Plain,
    /// As a whole, even though it is an object.
    Atomic,
    /// A list of values, each owned by itself.
    Set,
    /// A list of objects with these keys, each owned by itself.
    Keyed(&'static [&'static str]),
}

/// One field that differs from the rule, or leads to one that does.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub strategic: Strategic,
    /// Whether patches of this field may name the keys to keep (unions: volumes, strategies).
    pub retain_keys: bool,
    pub apply: Apply,
    /// Whether the items of a keyed list are owned as a whole.
    pub atomic_items: bool,
    child: Option<&'static str>,
}

/// A type of the table; types that are not in it follow the rule throughout.
#[derive(Clone, Copy, Debug)]
pub struct Type {
    fields: &'static [Field],
}

/// A type without exceptions.
const PLAIN: Type = Type { fields: &[] };
/// The type of every field called `metadata`.
const METADATA: &str = "ObjectMeta";

const METADATA_FIELD: Field = field("metadata").of(METADATA);

/// The type of a kind's objects.
pub fn of(kind: &Kind) -> Type {
    let group = if kind.group.is_empty() { String::new() } else { format!("{}/", kind.group) };
    named(&format!("{group}{}/{}", kind.version, kind.kind))
}

impl Type {
    /// The type of objects that are not in the table, such as custom resources: only metadata is
    /// special.
    pub fn plain() -> Self {
        PLAIN
    }

    /// What the table says about a field; `None` when it follows the rule and leads to no
    /// exception.
    pub fn field(&self, name: &str) -> Option<Field> {
        if let Some(field) = self.fields.iter().find(|field| field.name == name) {
            return Some(*field);
        }
        (name == METADATA_FIELD.name).then_some(METADATA_FIELD)
    }

    /// The type of the object in a field, or of the items of its list.
    pub fn child(&self, name: &str) -> Type {
        self.field(name).and_then(|field| field.child).map_or(PLAIN, named)
    }
}

fn named(name: &str) -> Type {
    match TYPES.binary_search_by(|(other, _)| other.cmp(&name)) {
        Ok(at) => Type { fields: TYPES[at].1 },
        Err(_) => PLAIN,
    }
}

const fn field(name: &'static str) -> Field {
    Field {
        name,
        strategic: Strategic::Plain,
        retain_keys: false,
        apply: Apply::Plain,
        atomic_items: false,
        child: None,
    }
}

impl Field {
    const fn of(mut self, child: &'static str) -> Self {
        self.child = Some(child);
        self
    }

    const fn merge(mut self, key: &'static str) -> Self {
        self.strategic = Strategic::Merge(key);
        self
    }

    const fn merge_values(mut self) -> Self {
        self.strategic = Strategic::MergeValues;
        self
    }

    const fn replace(mut self) -> Self {
        self.strategic = Strategic::Replace;
        self
    }

    const fn retain_keys(mut self) -> Self {
        self.retain_keys = true;
        self
    }

    const fn keyed(mut self, keys: &'static [&'static str]) -> Self {
        self.apply = Apply::Keyed(keys);
        self
    }

    const fn set(mut self) -> Self {
        self.apply = Apply::Set;
        self
    }

    const fn atomic(mut self) -> Self {
        self.apply = Apply::Atomic;
        self
    }

    const fn atomic_items(mut self) -> Self {
        self.atomic_items = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_sorted_and_every_child_is_in_the_table() {
        assert!(TYPES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (name, fields) in TYPES {
            for child in fields.iter().filter_map(|field| field.child) {
                assert!(!named(child).fields.is_empty(), "{child} in {name} is missing");
            }
        }
    }

    #[test]
    fn fields_by_path() {
        let cases = [
            ("", "v1", "pods", "spec.containers.ports", Strategic::Merge("containerPort")),
            ("", "v1", "pods", "spec.tolerations", Strategic::Plain),
            ("", "v1", "pods", "metadata.finalizers", Strategic::MergeValues),
            ("", "v1", "services", "spec.ports", Strategic::Merge("port")),
            ("", "v1", "serviceaccounts", "secrets", Strategic::Merge("name")),
            ("apps", "v1", "deployments", "spec.template.spec.volumes", Strategic::Merge("name")),
            ("apps", "v1", "deployments", "status.conditions", Strategic::Merge("type")),
            ("policy", "v1", "poddisruptionbudgets", "spec.selector", Strategic::Replace),
            ("batch", "v1", "cronjobs", "spec.jobTemplate.metadata.x", Strategic::Plain),
        ];
        for (group, version, plural, path, expected) in cases {
            let mut at = of(crate::kind(group, version, plural).expect("in the table"));
            let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
            for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
                at = at.child(parent);
            }
            let found = at.field(last).map_or(Strategic::Plain, |field| field.strategic);
            assert_eq!(found, expected, "{plural} {path}");
        }
    }
}
