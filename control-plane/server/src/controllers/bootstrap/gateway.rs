//! The kinds of the Gateway API (`gateway.yaml`), as far as they are honoured.
//!
//! They are made when they are missing, and follow this binary's form for as long as they are its
//! own: who applies upstream's definitions over them has those from then on. They are applied in the
//! name of kubectl, so that its server-side apply of others meets no conflict.

use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use serde_json::Value;
use wherry_resources::meta;

use super::super::cache::kind_row;
use super::super::write::{Action, Write};

type Definition = apiextensions::CustomResourceDefinition;

/// Which form of a definition it is; of this binary's own alone.
const FORM: &str = "wherry.dev/definition";
/// Every definition of upstream's has it.
const UPSTREAM: &str = "gateway.networking.k8s.io/bundle-version";

/// Parsed once. As JSON: typed, whole numbers would become others.
pub static DEFINITIONS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    serde_yaml_ng::from_str(include_str!("gateway.yaml")).expect("a test reads this file")
});

/// Whether a change of a definition of this name may need the plan.
pub fn is_own(name: &str) -> bool {
    DEFINITIONS.iter().any(|own| meta::name(own) == name)
}

/// Makes what is missing, and brings what is ours into today's form. `held` looks up what there is.
pub fn plan(held: impl Fn(&str) -> Option<Arc<Definition>>) -> Vec<Write> {
    let mut writes = Vec::new();
    for wanted in &*DEFINITIONS {
        let held = held(meta::name(wanted));
        if held.is_none_or(|held| is_older(&held, wanted)) {
            let (kind, object) = (kind_row::<Definition>(), wanted.clone());
            writes.push(Action::Apply { kind, object, manager: "kubectl" }.into());
        }
    }
    writes
}

/// Whether it is ours, in another form than this one.
fn is_older(held: &Definition, wanted: &Value) -> bool {
    let notes = held.metadata.annotations.as_ref();
    let note = |key: &str| notes.and_then(|notes| notes.get(key)).map(String::as_str);
    note(FORM).is_some()
        && note(FORM) != meta::annotation(wanted, FORM)
        && note(UPSTREAM).is_none()
        && held.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{check_lines, text};
    use super::*;

    fn noted(notes: &[(&str, &str)]) -> String {
        text(&plan(|name| {
            let own = DEFINITIONS.iter().find(|own| meta::name(own) == name)?;
            let mut own: Definition = serde_json::from_value(own.clone()).expect("a definition");
            let held = own.metadata.annotations.get_or_insert_default();
            held.extend(notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
            Some(Arc::new(own))
        }))
    }

    #[test]
    fn definitions_are_made_and_kept_until_somebody_brings_others() {
        let kind = "apply customresourcedefinitions.apiextensions.k8s.io";
        let names = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
        let lines = names.map(|name| format!("{kind} {name}.gateway.networking.k8s.io"));
        check_lines(&plan(|_| None), &lines.each_ref().map(String::as_str));
        assert_eq!(noted(&[]), "");
        assert_eq!(noted(&[(FORM, "0")]).lines().count(), 5);
        assert_eq!(noted(&[(FORM, "0"), (UPSTREAM, "v1.4.0")]), "");
    }
}
