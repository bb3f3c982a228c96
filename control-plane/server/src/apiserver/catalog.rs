//! Everything that is served at this moment: the built-in kinds and those of
//! CustomResourceDefinitions.
//!
//! A [`Catalog`] is made anew when a CRD changes and never altered; requests hold the one they
//! began with. Documents that follow from it (discovery, OpenAPI) are rendered at the first request
//! for them and kept in it, so they change together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;
use wherry_resources::custom::{self, Definition, Rows};
use wherry_resources::{GROUPS, Group, KINDS, Kind, Object, meta};
use wherry_store::{Snapshot, Store};

use super::custom::Rules;
use super::derived::Derived;
use super::discovery::Documents;
use super::openapi::Custom as OpenApi;
use super::stored;
use crate::contain::{self, Panic};

/// Custom groups stand behind the built-in ones.
const CUSTOM_PRIORITY: u32 = 1_000;

/// What is served.
pub struct Catalog {
    /// All groups in discovery order.
    pub groups: Vec<Group>,
    /// All kinds in discovery order.
    pub kinds: Vec<&'static Kind>,
    /// Custom kinds alone.
    pub custom: Vec<&'static Kind>,
    by_path: HashMap<(&'static str, &'static str, &'static str), &'static Kind>,
    /// Rendered discovery documents.
    pub discovery: Documents,
    openapi: OnceLock<Arc<OpenApi>>,
    /// Compiled rules by the row they belong to, with the definition they were compiled from. Held
    /// for a look-up, or while rules are compiled.
    rules: Mutex<CompiledRules>,
}

type CompiledRules = HashMap<(&'static str, &'static str, &'static str), Compiled>;
type Compiled = (Arc<Definition>, Arc<Rules>);

impl Catalog {
    /// The kind of a path.
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        wherry_resources::kind(group, version, plural)
            .or_else(|| self.by_path.get(&(group, version, plural)).copied())
    }

    /// The kind of an object's `apiVersion` and `kind`.
    pub fn kind_of(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        wherry_resources::kind_of(api_version, kind).or_else(|| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let same =
                |row: &&&Kind| row.kind == kind && row.group == group && row.version == version;
            self.custom.iter().find(same).copied()
        })
    }

    /// OpenAPI of the custom kinds; rendered by whoever asks first.
    pub fn openapi(&self) -> Arc<OpenApi> {
        self.openapi.get_or_init(|| Arc::new(OpenApi::of(&self.custom))).clone()
    }

    /// The rules of a custom kind with its definition; None for built-in kinds.
    pub fn rules(&self, kind: &'static Kind) -> Option<Compiled> {
        let definition = kind.custom()?;
        let key = (kind.group, kind.version, kind.plural);
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = rules.get(&key)
            && Arc::ptr_eq(&compiled.0, &definition)
        {
            return Some(compiled.clone());
        }
        // Rules that do not compile were refused when the CRD was written.
        let compiled = Rules::compile(&definition.schema, &mut Vec::new());
        let compiled = (definition, Arc::new(compiled));
        rules.insert(key, compiled.clone());
        Some(compiled)
    }

    /// Built-in kinds and these custom ones.
    pub fn of(custom: &[&'static Kind]) -> Catalog {
        let mut custom = custom.to_vec();
        custom.sort_by(|left, right| {
            left.group
                .cmp(right.group)
                .then_with(|| custom::compare_versions(left.version, right.version))
                .then_with(|| left.plural.cmp(right.plural))
        });
        let kinds = KINDS.iter().chain(custom.iter().copied()).collect();
        let by_path =
            custom.iter().map(|kind| ((kind.group, kind.version, kind.plural), *kind)).collect();
        Catalog {
            groups: groups(&custom),
            kinds,
            by_path,
            custom,
            discovery: Documents::default(),
            openapi: OnceLock::new(),
            rules: Mutex::default(),
        }
    }
}

/// Built-in groups, with the versions that CRDs add to them, and then those of CRDs alone.
fn groups(custom: &[&'static Kind]) -> Vec<Group> {
    let copy = |group: &Group| Group {
        name: group.name,
        versions: group.versions.clone(),
        priority: group.priority,
    };
    let mut groups: Vec<Group> = GROUPS.iter().map(copy).collect();
    for kind in custom {
        let at = groups.iter().position(|group| group.name == kind.group);
        let at = at.unwrap_or_else(|| {
            let versions = Vec::new().into();
            groups.push(Group { name: kind.group, versions, priority: CUSTOM_PRIORITY });
            groups.len() - 1
        });
        if !groups[at].versions.contains(&kind.version) {
            groups[at].versions.to_mut().push(kind.version);
        }
    }
    groups
}

/// Where the present catalog comes from.
pub struct Source {
    derived: Derived<Catalog>,
    /// Rows outlive catalogs. Held only while a catalog is made.
    rows: Mutex<Rows>,
}

impl Default for Source {
    fn default() -> Source {
        let prefix = stored::prefix(definitions(), None);
        Source { derived: Derived::new(vec![prefix]), rows: Mutex::default() }
    }
}

/// The kind of CRDs.
pub fn definitions() -> &'static Kind {
    wherry_resources::kind("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        .expect("CustomResourceDefinition is a built-in kind")
}

/// All CRDs in a state.
pub fn all_definitions(snapshot: &Snapshot) -> Vec<Object> {
    let range = snapshot.range(&stored::prefix(definitions(), None), None);
    range.map(|(_, entry)| stored::decode(definitions(), &entry)).collect()
}

/// Compiles one version of a CRD. Where that panics, by a bug, only this version is not served.
fn compile(crd: &Object, version: &Value) -> Option<Definition> {
    let compiled = contain::sync(|| Definition::new(crd, version));
    let crd = meta::name(crd);
    let tell = |panic: &Panic| tracing::error!(crd, %panic, "a version of a CRD is not served");
    compiled.inspect_err(tell).ok()
}

impl Source {
    /// The catalog for the present state of the store.
    pub fn get(&self, store: &Store) -> Arc<Catalog> {
        self.derived.get(store, |snapshot, before| {
            let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
            let catalog = Catalog::of(rows.update(&all_definitions(snapshot), compile));
            if let Some(before) = before {
                let kept = before.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
                *catalog.rules.lock().unwrap_or_else(PoisonError::into_inner) = kept;
            }
            catalog
        })
    }
}
