//! Rules for metadata, the same for every kind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Errors, IMMUTABLE, NOT_NEGATIVE, at, entries, get, nth};
use crate::{Kind, Object, meta, names};

/// All annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Names of CronJobs leave room for the time that their Jobs' names end in.
const CRON_JOB_NAME_MAX: usize = 52;
/// Finalizers that need no domain in front.
const STANDARD_FINALIZERS: &[&str] =
    &["kubernetes", meta::ORPHAN_FINALIZER, meta::FOREGROUND_FINALIZER];

const PATH: &str = "metadata";

pub(super) fn create(kind: &Kind, object: &Object, errors: &mut Errors) {
    let prefix = meta::generate_name(object);
    if !prefix.is_empty() {
        errors.complaints("metadata.generateName", prefix, kind.name_rule.check_prefix(prefix));
    }
    let name = meta::name(object);
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        errors.complaints("metadata.name", name, kind.name_rule.check(name));
    }
    if kind.is("batch", "CronJob") && name.len() > CRON_JOB_NAME_MAX {
        errors.invalid("metadata.name", name, "must be no more than 52 characters");
    }
    let namespace = meta::namespace(object);
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.required("metadata.namespace", ""),
        (true, false) => {
            errors.complaints("metadata.namespace", namespace, names::label(namespace));
        }
        (false, false) => errors.forbidden("metadata.namespace", "not allowed on this type"),
        (false, true) => {}
    }
    common(object, errors);
}

pub(super) fn update(kind: &Kind, new: &Object, old: &Object, errors: &mut Errors) {
    let fields = [
        ("name", meta::name(new), meta::name(old)),
        ("namespace", meta::namespace(new), meta::namespace(old)),
        ("uid", meta::uid(new), meta::uid(old)),
    ];
    for (key, new, old) in fields {
        let is_left_out = key == "namespace" && !kind.namespaced;
        if new != old && !is_left_out {
            errors.invalid(&at(PATH, key), new, IMMUTABLE);
        }
    }
    if meta::is_deleting(old) {
        let before: BTreeSet<&str> = meta::finalizers(old).into_iter().collect();
        let after = meta::finalizers(new).into_iter();
        let added: Vec<String> =
            after.filter(|name| !before.contains(name)).map(|name| format!("{name:?}")).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, \
                 found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.forbidden("metadata.finalizers", &detail);
        }
    }
    common(new, errors);
}

fn common(object: &Object, errors: &mut Errors) {
    let generation = meta::generation(object);
    if generation < 0 {
        errors.invalid("metadata.generation", generation, NOT_NEGATIVE);
    }
    let metadata = get(object, PATH);
    labels(metadata, PATH, errors);
    annotations(metadata, PATH, errors);
    owners(object, errors);
    finalizers(object, errors);
}

/// The labels in `parent`, which is some metadata.
pub(super) fn labels(parent: &Value, path: &str, errors: &mut Errors) {
    label_map(parent, path, "labels", errors);
}

/// A map of labels under any name: selectors and node selectors too.
pub(super) fn label_map(parent: &Value, path: &str, key: &str, errors: &mut Errors) {
    let path = at(path, key);
    for (key, value) in entries(parent, key) {
        let value = value.as_str().unwrap_or("");
        errors.complaints(&path, key, names::qualified(key));
        errors.complaints(&path, value, names::label_value(value));
    }
}

pub(super) fn annotations(parent: &Value, path: &str, errors: &mut Errors) {
    let path = at(path, "annotations");
    let mut size = 0;
    for (key, value) in entries(parent, "annotations") {
        // Keys were lower case only once; both are accepted for the check and compared as they are.
        errors.complaints(&path, key, names::qualified(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.too_long(&path, ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(object: &Object, errors: &mut Errors) {
    let path = "metadata.ownerReferences";
    let mut controller: Option<&str> = None;
    for (index, owner) in meta::owner_references(object).into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let fields = [
            ("apiVersion", owner.api_version, "version must not be empty"),
            ("kind", owner.kind, "kind must not be empty"),
            ("name", owner.name, "name must not be empty"),
            ("uid", owner.uid, "uid must not be empty"),
        ];
        for (key, _, sentence) in fields.into_iter().filter(|(_, value, _)| value.is_empty()) {
            errors.invalid(&at(&path, key), "", sentence);
        }
        if !owner.controller {
            continue;
        }
        if let Some(first) = controller.filter(|_| !errors.is_full()) {
            let second = owner.kind;
            let detail = format!(
                "Only one reference can have Controller set to true. \
                 Found \"true\" in references for {first} and {second}"
            );
            let all = get(get(object, PATH), "ownerReferences").clone();
            errors.invalid("metadata.ownerReferences", all, &detail);
        }
        controller = Some(owner.kind);
    }
}

fn finalizers(object: &Object, errors: &mut Errors) {
    let finalizers = meta::finalizers(object);
    for (index, name) in finalizers.iter().enumerate() {
        errors.complaints("metadata.finalizers", name, names::qualified(name));
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&nth(PATH, "finalizers", index), *name, detail);
        }
    }
    let has = |name: &str| finalizers.contains(&name);
    if has(meta::ORPHAN_FINALIZER) && has(meta::FOREGROUND_FINALIZER) {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid("metadata.finalizers", finalizers, detail);
    }
}
