//! Rules for volumes, claims, storage classes and what drivers say of themselves.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod::quantity;
use super::workloads::label_selector;
use super::{Errors, at, entries, get, is_empty, nth};
use crate::meta::{items, text};
use crate::quantity::Quantity;
use crate::{Object, names};

const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The mode that goes with no other.
const ONE_POD: &str = "ReadWriteOncePod";
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
/// Fields of a PersistentVolume's spec that are no source of storage.
const NO_SOURCE: &[&str] = &[
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

fn access_modes(spec: &Value, errors: &mut Errors) {
    let modes = || items(spec, "accessModes").iter().map(|mode| mode.as_str().unwrap_or(""));
    for mode in modes() {
        errors.one_of("spec.accessModes", mode, ACCESS_MODES);
    }
    let is_other = |mode: &str| mode != ONE_POD && ACCESS_MODES.contains(&mode);
    if modes().any(|mode| mode == ONE_POD) && modes().any(is_other) {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.forbidden("spec.accessModes", detail);
    }
}

pub(super) fn volume(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    if is_empty(spec, "accessModes") {
        errors.required("spec.accessModes", "");
    }
    access_modes(spec, errors);
    if is_empty(spec, "capacity") {
        errors.required("spec.capacity", "");
    }
    for (name, amount) in entries(spec, "capacity") {
        if name != "storage" {
            errors.unsupported("spec.capacity", name, &["storage"]);
        }
        quantity(amount, &format!("spec.capacity[{name}]"), errors);
    }
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    errors.one_of("spec.persistentVolumeReclaimPolicy", policy, RECLAIM_POLICIES);
    let fields = spec.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let sources: Vec<&str> = fields.filter(|key| !NO_SOURCE.contains(key)).collect();
    match sources[..] {
        [] => errors.required("spec", "must specify a volume type"),
        [_] => {}
        [_, second, ..] => {
            errors.forbidden(&at("spec", second), "may not specify more than 1 volume type");
        }
    }
}

pub(super) fn volume_change(new: &Object, old: &Object, errors: &mut Errors) {
    let source = |object: &Object| {
        let mut spec = get(object, "spec").clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|key, _| !NO_SOURCE.contains(&key.as_str()));
        }
        spec
    };
    if source(new) != source(old) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.forbidden("spec.persistentvolumesource", detail);
    }
    let mode = |object| get(get(object, "spec"), "volumeMode");
    errors.immutable("spec.volumeMode", Some(mode(new)), Some(mode(old)));
}

pub(super) fn claim(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    if is_empty(spec, "accessModes") {
        errors.required("spec.accessModes", "at least 1 access mode is required");
    }
    label_selector(get(spec, "selector"), "spec.selector", errors);
    access_modes(spec, errors);
    let requests = get(get(spec, "resources"), "requests");
    match requests.get("storage") {
        None => errors.required("spec.resources[storage]", ""),
        Some(amount) => {
            quantity(amount, "spec.resources[storage]", errors);
            if Quantity::of(amount).is_some_and(|quantity| quantity.is_zero()) {
                let detail = "must be greater than zero";
                errors.invalid("spec.resources[storage]", amount.clone(), detail);
            }
        }
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        errors.complaints("spec.storageClassName", class, names::subdomain(class));
    }
    let mode = text(spec, "volumeMode");
    if !mode.is_empty() {
        errors.one_of("spec.volumeMode", mode, &["Block", "Filesystem"]);
    }
}

/// A claim may grow; it is bound once; one that named no class may get one; everything else stays.
pub(super) fn claim_change(new: &Object, old: &Object, errors: &mut Errors) {
    let (new, old) = (get(new, "spec"), get(old, "spec"));
    let is_bound = !text(old, "volumeName").is_empty();
    let had_class = old.get("storageClassName").is_some();
    let rest = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.shift_remove("resources");
            fields.shift_remove("volumeAttributesClassName");
            if !had_class && !is_bound {
                fields.shift_remove("storageClassName");
            }
            if !is_bound {
                fields.shift_remove("volumeName");
            }
        }
        spec
    };
    if rest(new) != rest(old) {
        let detail = "spec is immutable after creation except resources.requests and \
            volumeAttributesClassName for bound claims";
        errors.forbidden("spec", detail);
    }
    let size = |spec: &Value| spec.pointer("/resources/requests/storage").and_then(Quantity::of);
    if let (Some(after), Some(before)) = (size(new), size(old))
        && after < before
    {
        let detail = "field can not be less than previous value";
        errors.forbidden("spec.resources.requests.storage", detail);
    }
}

pub(super) fn class(object: &Object, errors: &mut Errors) {
    match text(object, "provisioner") {
        "" => errors.required("provisioner", ""),
        name => errors.complaints("provisioner", name, names::qualified(&name.to_lowercase())),
    }
    let policy = text(object, "reclaimPolicy");
    if !policy.is_empty() {
        errors.one_of("reclaimPolicy", policy, &["Delete", "Retain"]);
    }
    match text(object, "volumeBindingMode") {
        "" => errors.required("volumeBindingMode", ""),
        mode => errors.one_of("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]),
    }
}

pub(super) fn class_change(new: &Object, old: &Object, errors: &mut Errors) {
    let fields = [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ];
    for (key, detail) in fields {
        if get(new, key) != get(old, key) {
            errors.forbidden(key, detail);
        }
    }
    errors.immutable(
        "volumeBindingMode",
        new.get("volumeBindingMode"),
        old.get("volumeBindingMode"),
    );
}

/// Longest name of a driver.
const DRIVER_NAME_MAX: usize = 63;

fn driver_name(name: &str, field: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(field, "");
        return;
    }
    if name.len() > DRIVER_NAME_MAX {
        errors.too_long(field, DRIVER_NAME_MAX);
    }
    errors.complaints(field, name, names::subdomain(&name.to_lowercase()));
}

pub(super) fn attachment(object: &Object, errors: &mut Errors) {
    let spec = get(object, "spec");
    driver_name(text(spec, "attacher"), "spec.attacher", errors);
    let source = get(spec, "source");
    let exactly = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let volume = source.get("persistentVolumeName").filter(|name| !name.is_null());
    match (volume, get(source, "inlineVolumeSpec").is_null()) {
        (None, true) => errors.required("spec.source", exactly),
        (Some(_), false) => errors.forbidden("spec.source", exactly),
        (None, false) => {}
        (Some(_), true) => match text(source, "persistentVolumeName") {
            "" => {
                let detail = "must specify non empty persistentVolumeName";
                errors.required("spec.source.persistentVolumeName", detail);
            }
            name => {
                let field = "spec.source.persistentVolumeName";
                errors.complaints(field, name, names::subdomain(name));
            }
        },
    }
    let node = text(spec, "nodeName");
    errors.complaints("spec.nodeName", node, names::subdomain(node));
}

pub(super) fn attachment_change(new: &Object, old: &Object, errors: &mut Errors) {
    errors.immutable("spec", new.get("spec"), old.get("spec"));
}

pub(super) fn node_drivers(object: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, driver) in items(get(object, "spec"), "drivers").iter().enumerate() {
        let path = nth("spec", "drivers", index);
        let name = text(driver, "name");
        driver_name(name, &at(&path, "name"), errors);
        if text(driver, "nodeID").is_empty() {
            errors.required(&at(&path, "nodeID"), "");
        }
        errors.not_negative(get(driver, "allocatable"), &at(&path, "allocatable"), "count");
        let mut keys = BTreeSet::new();
        for (index, key) in items(driver, "topologyKeys").iter().enumerate() {
            let field = nth(&path, "topologyKeys", index);
            let text = key.as_str().unwrap_or("");
            if text.is_empty() {
                errors.required(&field, "");
            } else if !keys.insert(text) {
                errors.duplicate(&field, text);
            } else {
                errors.complaints(&field, text, names::qualified(text));
            }
        }
        if !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
    }
}
