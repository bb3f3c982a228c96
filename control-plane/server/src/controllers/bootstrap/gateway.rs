//! The kinds of the Gateway API (`gateway.yaml`), as far as they are honoured.
//!
//! They are made when they are missing, and follow this binary's form for as long as they are its
//! own: who applies upstream's definitions over them has those from then on.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use serde_json::json;

use super::super::write::Write;

type Definition = apiextensions::CustomResourceDefinition;

/// Which form of a definition it is; of this binary's own alone.
const FORM: &str = "wherry.dev/definition";
/// Every definition of upstream's has it.
const UPSTREAM: &str = "gateway.networking.k8s.io/bundle-version";

/// Parsed once.
pub static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    serde_yaml_ng::from_str(include_str!("gateway.yaml")).expect("a test reads this file")
});

/// Whether a change of a definition of this name may need the plan.
pub fn is_own(name: &str) -> bool {
    DEFINITIONS.iter().any(|own| own.metadata.name.as_deref() == Some(name))
}

/// Makes what is missing, and brings what is ours into today's form. `held` looks up what there is.
pub fn plan(held: impl Fn(&str) -> Option<Arc<Definition>>) -> Vec<Write> {
    let mut writes = Vec::new();
    for wanted in &*DEFINITIONS {
        match held(wanted.metadata.name.as_deref().unwrap_or("")) {
            None => writes.push(Write::create(wanted)),
            Some(held) if is_older(&held, wanted) => {
                let annotations = &wanted.metadata.annotations;
                let body = json!({
                    "metadata": {"annotations": annotations}, "spec": wanted.spec,
                });
                writes.push(Write::patch(&*held, body));
            }
            Some(_) => {}
        }
    }
    writes
}

/// Whether it is ours, in another form than this one.
fn is_older(held: &Definition, wanted: &Definition) -> bool {
    let none = BTreeMap::new();
    let notes = |one: &'_ Definition| one.metadata.annotations.clone().unwrap_or_default();
    let held_notes = held.metadata.annotations.as_ref().unwrap_or(&none);
    let form = held_notes.get(FORM);
    form.is_some()
        && form != notes(wanted).get(FORM)
        && !held_notes.contains_key(UPSTREAM)
        && held.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{check_lines, text};
    use super::*;

    fn noted(notes: &[(&str, &str)]) -> String {
        text(&plan(|name| {
            let own = DEFINITIONS.iter().find(|own| own.metadata.name.as_deref() == Some(name))?;
            let mut own = own.clone();
            let held = own.metadata.annotations.get_or_insert_default();
            held.extend(notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
            Some(Arc::new(own))
        }))
    }

    #[test]
    fn definitions_are_made_and_kept_until_somebody_brings_others() {
        let kind = "create customresourcedefinitions.apiextensions.k8s.io";
        let names = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
        let lines = names.map(|name| format!("{kind} {name}.gateway.networking.k8s.io"));
        check_lines(&plan(|_| None), &lines.each_ref().map(String::as_str));
        assert_eq!(noted(&[]), "");
        assert_eq!(noted(&[(FORM, "0")]).lines().count(), 5);
        assert_eq!(noted(&[(FORM, "0"), (UPSTREAM, "v1.4.0")]), "");
    }
}
