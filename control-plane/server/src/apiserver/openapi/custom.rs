//! OpenAPI of custom kinds: a document for each of their groups and versions, the index over all
//! documents, and version 2 of everything.

use std::collections::BTreeSet;
use std::sync::{LazyLock, OnceLock};

use serde_json::{Map, Value};
use wherry_resources::{KINDS, Kind};

use super::schemas::Schemas;
use super::{Document, VERSION_3, Version2, Version3, document, group_version_path, index};

/// What custom schemas refer to, made once.
static BASE: LazyLock<Schemas> = LazyLock::new(|| Schemas::with_custom(&Schemas::generate(), &[]));

/// Documents of one catalog.
pub struct Custom {
    pub(super) documents: Version3,
    /// Over built-in kinds too.
    pub(super) index: Document,
    kinds: Vec<&'static Kind>,
    version_2: OnceLock<Version2>,
}

impl Custom {
    /// Renders the documents of these kinds.
    pub fn of(kinds: &[&'static Kind]) -> Custom {
        let mut documents = Version3::new();
        let schemas = Schemas::with_custom(&BASE, kinds);
        let places: BTreeSet<_> = kinds.iter().map(|kind| (kind.group, kind.version)).collect();
        for (group, version) in places {
            let path = group_version_path(group, version);
            // A CRD in a version that is built in shows in discovery, and with version 2.
            if VERSION_3.contains_key(&path) {
                continue;
            }
            let rendered = document(&schemas, kinds.iter().copied(), Some((group, version)));
            documents.insert(path, Document::new(&rendered));
        }
        let index = index(VERSION_3.iter().chain(&documents));
        Custom { documents, index, kinds: kinds.to_vec(), version_2: OnceLock::new() }
    }

    /// Everything in one version 2 document; rendered by whoever asks first.
    pub(super) fn version_2(&self) -> &Version2 {
        let render = || {
            let built_in = Schemas::generate();
            let mut whole = document(&built_in, KINDS.iter(), None);
            let schemas = Schemas::with_custom(&BASE, &self.kinds);
            let custom = document(&schemas, self.kinds.iter().copied(), None);
            merge(&mut whole["paths"], &custom["paths"]);
            let added = &custom["components"]["schemas"];
            merge(&mut whole["components"]["schemas"], added);
            Version2::of(&whole)
        };
        self.version_2.get_or_init(render)
    }
}

fn merge(into: &mut Value, from: &Value) {
    let none = Map::new();
    let from = from.as_object().unwrap_or(&none);
    if let Value::Object(into) = into {
        into.extend(from.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}
