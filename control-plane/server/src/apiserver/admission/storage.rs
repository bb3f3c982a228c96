//! Volumes and claims: protected from the start, a class where the cluster has a default one,
//! growth only where the class allows it.

use super::{Context, Operation};
use crate::apiserver::errors::ApiError;
use serde_json::{Value, json};
use wherry_resources::quantity::Quantity;
use wherry_resources::{Object, meta};

/// The annotation of the class that claims without one get.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Hold an object that is in use; controllers take them off.
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

/// Protects a new volume.
pub fn volume(new: &mut Object) {
    protect(new, VOLUME_PROTECTION);
}

/// Protects a new claim and gives it the default class; asks the class of one that grows.
pub fn claim(
    context: &Context<'_>,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if context.operation == Operation::Create {
        protect(new, CLAIM_PROTECTION);
        let names_one = new["spec"].get("storageClassName").is_some_and(|class| !class.is_null());
        if let Some(class) = context.facts.default_storage_class.as_ref().filter(|_| !names_one) {
            new["spec"]["storageClassName"] = json!(class);
        }
        return Ok(());
    }
    let Some(old) = old else { return Ok(()) };
    let expands = context
        .facts
        .storage_class
        .as_ref()
        .is_some_and(|class| class["allowVolumeExpansion"] == true);
    if grows(new, old) && !expands {
        let why = "only dynamically provisioned pvc can be resized and the storageclass that \
            provisions the pvc must support resize";
        return Err(ApiError::forbidden(context.kind, meta::name(new), why.to_owned()));
    }
    Ok(())
}

/// Whether a claim asks for more than before.
pub fn grows(new: &Object, old: &Object) -> bool {
    let size =
        |object: &Object| object.pointer("/spec/resources/requests/storage").and_then(Quantity::of);
    size(new).zip(size(old)).is_some_and(|(new, old)| new > old)
}

fn protect(object: &mut Object, finalizer: &str) {
    let mut finalizers: Vec<String> =
        meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|held| held == finalizer) {
        finalizers.push(finalizer.to_owned());
    }
    let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).collect();
    meta::set_finalizers(object, &finalizers);
}

/// The name of the class marked as the default by this annotation, the newest of several.
pub fn default_class(classes: &[Object], annotation: &str) -> Option<String> {
    let marked = classes.iter().filter(|class| {
        meta::annotation(class, annotation) == Some("true") && !meta::is_deleting(class)
    });
    let created = |class: &Object| {
        let created = class.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
        created.unwrap_or("").to_owned()
    };
    let newest = marked.max_by_key(|class| (created(class), std::cmp::Reverse(meta::name(class))));
    newest.map(|class| meta::name(class).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::Facts;
    use crate::apiserver::auth::User;
    use crate::apiserver::verbs::Part;

    fn admitted(facts: &Facts, mut new: Object, old: Option<Object>) -> Result<Object, String> {
        let context = Context {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            user: &User::new("ann", &[]),
            kind: wherry_resources::kind("", "v1", "persistentvolumeclaims").expect("built in"),
            part: Part::Main,
            namespace: "n",
            facts,
        };
        let done = claim(&context, &mut new, old.as_ref());
        done.map(|()| new).map_err(|error| error.to_string())
    }

    #[test]
    fn claims_get_the_default_class_and_protection() {
        let facts = Facts { default_storage_class: Some("local".to_owned()), ..Facts::default() };
        let made = admitted(&facts, json!({"metadata": {}, "spec": {}}), None).expect("allowed");
        assert_eq!(made["spec"]["storageClassName"], "local");
        assert_eq!(made["metadata"]["finalizers"], json!([CLAIM_PROTECTION]));
        let none = json!({"metadata": {}, "spec": {"storageClassName": ""}});
        let made = admitted(&facts, none, None).expect("allowed");
        assert_eq!(made["spec"]["storageClassName"], "", "no class is a choice, too");
    }

    #[test]
    fn a_claim_grows_where_its_class_lets_it() {
        let size = |size: &str| {
            let resources = json!({"requests": {"storage": size}});
            json!({"metadata": {"name": "c"}, "spec": {"resources": resources}})
        };
        let fixed = Facts::default();
        let refused = admitted(&fixed, size("2Gi"), Some(size("1Gi"))).expect_err("refused");
        assert!(refused.contains("only dynamically provisioned pvc can be resized"), "{refused}");
        assert!(admitted(&fixed, size("1024Mi"), Some(size("1Gi"))).is_ok(), "the same size");
        let class = json!({"allowVolumeExpansion": true});
        let grows = Facts { storage_class: Some(class), ..Facts::default() };
        assert!(admitted(&grows, size("2Gi"), Some(size("1Gi"))).is_ok());
    }

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, mark: &str, created: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": created,
                "annotations": {DEFAULT_CLASS: mark}}})
        };
        let classes = [
            class("a", "true", "2026-01-01T00:00:00Z"),
            class("b", "true", "2026-02-01T00:00:00Z"),
            class("c", "false", "2026-03-01T00:00:00Z"),
        ];
        assert_eq!(default_class(&classes, DEFAULT_CLASS).as_deref(), Some("b"));
        assert_eq!(default_class(&classes, "another"), None);
        assert_eq!(default_class(&[], DEFAULT_CLASS), None);
    }
}
