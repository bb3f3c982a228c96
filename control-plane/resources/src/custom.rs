//! Custom resources: kinds that a CustomResourceDefinition describes while the server runs.
//!
//! A *definition* ([`Definition`]) is what is compiled from one version of a CRD: its schema, its
//! printed columns, its subresources. A *row* is the same [`Kind`] that built-in kinds have, so
//! that everything downstream serves both alike; a custom row carries a [`Slot`] in which its
//! present definition lies. [`Rows`] makes rows from the CRDs that are stored.
//!
//! Rows are handed out as `&'static`, as built-in rows are: a request may hold one for as long as
//! it likes. Therefore a row, once made, is kept and used again when the same names come back, and
//! there is a limit to how many different ones a process makes ([`ROWS_MAX`]); what is large, the
//! definition, is dropped as soon as its CRD changes.
//!
//! - [`schema`]: structural schemas; [`shape`]: pruning and defaulting by them
//! - [`check`]: validation of objects; [`formats`]: the named formats of strings
//! - [`names`]: which CRD gets which names, and the conditions that say so
//! - [`path`]: JSON paths of columns, and the simple paths of scales and selectable fields

pub mod check;
pub mod formats;
pub mod names;
pub mod path;
pub mod schema;
pub mod shape;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::{Kind, Storage, Subresource};
use crate::names::NameRule;
use crate::{Object, meta};
use path::{Columns, Simple};
use schema::Schema;

/// Different rows that a process makes: each is a few hundred bytes and stays for good.
pub const ROWS_MAX: usize = 20_000;
/// The finalizer of a CRD: its objects go first.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// One version of a CRD, ready for use.
#[derive(Debug)]
pub struct Definition {
    /// Name of the CRD, `plural.group`.
    pub crd: String,
    /// uid and resourceVersion of the CRD that this was made from.
    pub made_from: (String, String),
    /// The schema of the whole object.
    pub schema: Schema,
    /// The schema as it was written, for OpenAPI.
    pub source: Value,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// The webhook that converts between versions; None when they differ in name only.
    pub conversion: Option<Value>,
    /// What a client of a deprecated version is told.
    pub deprecation: Option<String>,
    /// Fields that a field selector may name.
    pub selectable: Vec<(String, Simple)>,
    /// Where the scale subresource finds its numbers.
    pub scale: Option<Scale>,
    /// What `kubectl get` prints.
    pub columns: Columns,
}

/// Where the scale subresource finds its numbers.
#[derive(Debug)]
pub struct Scale {
    pub spec_replicas: Simple,
    pub status_replicas: Simple,
    pub label_selector: Option<Simple>,
}

impl Definition {
    /// Compiles one version of a valid CRD.
    pub fn new(crd: &Object, version: &Value) -> Definition {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("").to_owned();
        let versions = crd["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or(&[]);
        let storage = versions.iter().find(|version| version["storage"] == true);
        let conversion = &crd["spec"]["conversion"];
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        let source = version["schema"]["openAPIV3Schema"].clone();
        let scale = version["subresources"].get("scale").map(|scale| {
            let at = |key: &str| Simple::parse(scale[key].as_str().unwrap_or(""));
            Scale {
                spec_replicas: at("specReplicasPath"),
                status_replicas: at("statusReplicasPath"),
                label_selector: scale.get("labelSelectorPath").map(|_| at("labelSelectorPath")),
            }
        });
        Definition {
            crd: meta::name(crd).to_owned(),
            made_from: (meta::uid(crd).to_owned(), meta::resource_version(crd).to_owned()),
            schema: Schema::parse(&source),
            storage_version: storage.map(|version| text(version, "name")).unwrap_or_default(),
            conversion: (conversion["strategy"] == "Webhook")
                .then(|| conversion["webhook"].clone()),
            deprecation: deprecation(crd, version),
            selectable: selectable
                .map(|field| {
                    let path = text(field, "jsonPath");
                    (path.trim_start_matches('.').to_owned(), Simple::parse(&path))
                })
                .collect(),
            scale,
            columns: Columns::parse(&version["additionalPrinterColumns"]),
            source,
        }
    }

    /// Fills in defaults and drops nulls that stand for absent values.
    pub fn default(&self, object: &mut Object) {
        shape::default(&self.schema, object);
    }

    /// Drops what the schema does not know; the paths of what was dropped.
    pub fn prune(&self, object: &mut Object) -> Vec<String> {
        shape::prune(&self.schema, object)
    }

    /// The value of a selectable field, as selectors compare it; None if it is not selectable.
    pub fn selected(&self, object: &Object, field: &str) -> Option<String> {
        let (_, path) = self.selectable.iter().find(|(name, _)| name == field)?;
        Some(match path.get(object) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    /// The cells of one object's row.
    pub fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        self.columns.cells(object, now)
    }
}

fn deprecation(crd: &Object, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    if let Some(warning) = version["deprecationWarning"].as_str() {
        return Some(warning.to_owned());
    }
    let (group, kind) = (&crd["spec"]["group"], &crd["spec"]["names"]["kind"]);
    let (group, kind) = (group.as_str().unwrap_or(""), kind.as_str().unwrap_or(""));
    let own = version["name"].as_str().unwrap_or("");
    let mut better: Vec<&str> = crd["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|other| other["served"] == true && other["deprecated"] != true)
        .filter_map(|other| other["name"].as_str())
        .collect();
    better.sort_by(|left, right| compare_versions(left, right));
    let instead = better.first().filter(|name| compare_versions(name, own).is_lt());
    let hint = instead.map(|name| format!("; use {group}/{name} {kind}")).unwrap_or_default();
    Some(format!("{group}/{own} {kind} is deprecated{hint}"))
}

/// Kubernetes' order of versions, the best first: v2, v1, v2beta1, v1alpha1, then other words.
pub fn compare_versions(left: &str, right: &str) -> std::cmp::Ordering {
    let rank = |version: &str| -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((2, major, 0)),
            beta if beta.starts_with("beta") => Some((1, major, beta[4..].parse().ok()?)),
            alpha if alpha.starts_with("alpha") => Some((0, major, alpha[5..].parse().ok()?)),
            _ => None,
        }
    };
    match (rank(left), rank(right)) {
        (Some(left), Some(right)) => right.cmp(&left),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => left.cmp(right),
    }
}

/// Where a custom row keeps its present definition; empty when the CRD is gone.
#[derive(Default)]
pub struct Slot(RwLock<Option<Arc<Definition>>>);

impl Slot {
    /// The present definition.
    pub fn get(&self) -> Option<Arc<Definition>> {
        // The sections of this lock are one assignment or clone each: nothing panics in them.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, definition: Option<Arc<Definition>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = definition;
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// What makes two rows different.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RowKey {
    group: String,
    version: String,
    kind: String,
    list_kind: String,
    plural: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    namespaced: bool,
    has_status: bool,
    has_scale: bool,
    terminating: bool,
}

/// Verbs of a custom resource in discovery's order.
const VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// Verbs while the CRD is being deleted: nothing new, but finalizers must still be taken off.
const LAST_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CHANGE: &[&str] = &["get", "patch", "update"];
/// Custom groups stand behind the built-in ones.
const PRIORITY: u32 = 1_000;

/// The rows of all CRDs, of one API server.
#[derive(Debug, Default)]
pub struct Rows {
    made: HashMap<RowKey, &'static Kind>,
    used: Vec<&'static Kind>,
}

impl Rows {
    /// Rows of the established CRDs among these objects. Rows whose CRD is gone lose their
    /// definition; a CRD that has not changed keeps its own. A version that cannot be compiled has
    /// no row.
    pub fn update(
        &mut self,
        crds: &[Object],
        compile: impl Fn(&Object, &Value) -> Option<Definition>,
    ) -> &[&'static Kind] {
        let mut used: Vec<(&'static Kind, Arc<Definition>)> = Vec::new();
        for crd in crds {
            if !names::is_established(crd) {
                continue;
            }
            for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
                if version["served"] != true {
                    continue;
                }
                let Some(row) = self.row(key(crd, version)) else {
                    continue;
                };
                let made_from = (meta::uid(crd).to_owned(), meta::resource_version(crd).to_owned());
                let kept = row.custom().filter(|definition| definition.made_from == made_from);
                let definition = kept.or_else(|| compile(crd, version).map(Arc::new));
                used.extend(definition.map(|definition| (row, definition)));
            }
        }
        for row in &self.used {
            if !used.iter().any(|(kept, _)| std::ptr::eq(*kept, *row)) {
                row.custom.expect("only custom rows are made here").set(None);
            }
        }
        self.used = used
            .into_iter()
            .map(|(row, definition)| {
                row.custom.expect("only custom rows are made here").set(Some(definition));
                row
            })
            .collect();
        &self.used
    }

    /// The row with these properties; None when too many different ones were made.
    fn row(&mut self, key: RowKey) -> Option<&'static Kind> {
        if let Some(row) = self.made.get(&key) {
            return Some(row);
        }
        if self.made.len() >= ROWS_MAX {
            return None;
        }
        let row = make(&key);
        self.made.insert(key, row);
        Some(row)
    }
}

fn key(crd: &Object, version: &Value) -> RowKey {
    let (spec, accepted) = (&crd["spec"], &crd["status"]["acceptedNames"]);
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("").to_owned();
    let list = |key: &str| -> Vec<String> {
        let list = accepted[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    RowKey {
        group: text(spec, "group"),
        version: text(version, "name"),
        kind: text(accepted, "kind"),
        list_kind: text(accepted, "listKind"),
        plural: text(accepted, "plural"),
        singular: text(accepted, "singular"),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: spec["scope"] == "Namespaced",
        has_status: version["subresources"].get("status").is_some(),
        has_scale: version["subresources"].get("scale").is_some(),
        terminating: meta::is_deleting(crd),
    }
}

fn make(key: &RowKey) -> &'static Kind {
    let text = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let list = |list: &[String]| -> &'static [&'static str] {
        Box::leak(list.iter().map(|word| text(word)).collect())
    };
    let (group, version, kind) = (text(&key.group), text(&key.version), text(&key.kind));
    let mut subresources = Vec::new();
    if key.has_status {
        subresources.push(Subresource::new("status", group, version, kind, CHANGE));
    }
    if key.has_scale {
        subresources.push(Subresource::new("scale", "autoscaling", "v1", "Scale", CHANGE));
    }
    Box::leak(Box::new(Kind {
        group,
        version,
        kind,
        plural: text(&key.plural),
        singular: text(&key.singular),
        short_names: list(&key.short_names),
        categories: list(&key.categories),
        namespaced: key.namespaced,
        verbs: if key.terminating { LAST_VERBS } else { VERBS },
        subresources: Box::leak(subresources.into_boxed_slice()),
        name_rule: NameRule::Subdomain,
        has_status: key.has_status,
        generation: true,
        storage: Storage::Own,
        unconditional_update: false,
        create_on_update: false,
        orphans_by_default: false,
        priority: PRIORITY,
        list_kind: text(&key.list_kind),
        custom: Some(Box::leak(Box::default())),
    }))
}

/// The Scale of a custom object.
pub fn scale(scale: &Scale, object: &Object) -> (i64, Value) {
    let number = |path: &Simple| path.get(object).and_then(Value::as_i64);
    let mut status = json!({"replicas": number(&scale.status_replicas).unwrap_or(0)});
    let selector = scale.label_selector.as_ref().and_then(|path| path.get(object));
    if let Some(text) = selector.and_then(Value::as_str).filter(|text| !text.is_empty()) {
        status["selector"] = text.into();
    }
    (number(&scale.spec_replicas).unwrap_or(0), status)
}
