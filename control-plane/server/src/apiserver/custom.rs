//! What custom resources need of the pipeline beyond what built-in kinds need: CRDs get their names
//! when they are written, objects are held against the rules of their CRD, and they are brought
//! into the version that is asked for when they are read.

mod conversion;
mod rules;
mod types;

pub use conversion::{by_webhook, into_storage, into_version, is_foreign};
pub use rules::Rules;
pub use types::OwnTypes;

use jiff::Timestamp;
use wherry_resources::custom::{names, schema::Schema};
use wherry_resources::validate::{FieldError, Reason};
use wherry_resources::{Kind, Object, meta};
use wherry_store::Snapshot;

use super::{ApiServer, catalog, errors, extensions};

/// A CRD with the status that follows from its spec, so that its kind is served as soon as the
/// write is answered. Other objects come back as they are.
pub fn settle(kind: &Kind, object: Object, snapshot: &Snapshot) -> Object {
    if !kind.is("apiextensions.k8s.io", "CustomResourceDefinition") {
        return object;
    }
    let others = catalog::all_definitions(snapshot);
    let mut settled = names::decide(&object, &others, Timestamp::now());
    meta::order(&mut settled);
    settled
}

/// What the rules of its CRD say against an object, or what is wrong with the rules of a CRD.
pub fn complaints(
    api: &ApiServer,
    kind: &'static Kind,
    new: &Object,
    old: Option<&Object>,
) -> Vec<FieldError> {
    if kind.is("apiextensions.k8s.io", "CustomResourceDefinition") {
        let is_same = old.is_some_and(|old| old["spec"] == new["spec"]);
        return if is_same { Vec::new() } else { mistakes(new) };
    }
    let mistakes = extensions::mistakes(kind, new);
    if !mistakes.is_empty() {
        return mistakes;
    }
    match kind.custom.and_then(|_| api.catalog().rules(kind)) {
        Some((definition, rules)) => rules.check(&definition.schema, new, old),
        None => Vec::new(),
    }
}

/// Rules of a CRD that do not compile.
fn mistakes(definition: &Object) -> Vec<FieldError> {
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or(&[]);
    let mut found = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let path = match versions.len() {
            // With one version alone a stock server speaks of its older place.
            1 => "spec.validation.openAPIV3Schema".to_owned(),
            _ => format!("spec.versions[{index}].schema.openAPIV3Schema"),
        };
        let schema = Schema::parse(&version["schema"]["openAPIV3Schema"]);
        let mut mistakes = Vec::new();
        Rules::compile(&schema, &mut mistakes);
        found.extend(mistakes.into_iter().map(|mistake| {
            let rules::Mistake { place, index, field, source, why } = mistake;
            let path = format!("{path}{place}.x-kubernetes-validations[{index}].{field}");
            match source.trim().is_empty() {
                true => errors::field(Reason::Required, &path, format!("Required value: {why}")),
                false => {
                    let message = format!("Invalid value: {source:?}: {why}");
                    errors::field(Reason::Invalid, &path, message)
                }
            }
        }));
    }
    found
}

/// A stored object in the version of its row, with the defaults of its schema. Where a webhook
/// converts, an object of another version stays as it is until the webhook was asked.
pub fn read(kind: &'static Kind, mut object: Object) -> Object {
    if is_foreign(kind, &object) && by_webhook(kind) {
        return object;
    }
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
    }
    if let Some(definition) = kind.custom() {
        definition.default(&mut object);
    }
    object
}
