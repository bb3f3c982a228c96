//! Rules for volumes: a name, exactly one source, and what the commonest sources need.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::meta::{items, text};
use crate::names;
use crate::validate::{Errors, at, get, integer, nth};

const MODE_MAX: i64 = 0o777;

/// Sources and the field that each cannot do without: (source, field).
const NEEDS: &[(&str, &str)] = &[
    ("configMap", "name"),
    ("secret", "secretName"),
    ("hostPath", "path"),
    ("persistentVolumeClaim", "claimName"),
    ("nfs", "server"),
    ("nfs", "path"),
    ("csi", "driver"),
];

/// Checks the volumes of a PodSpec and returns their names.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = nth(path, "volumes", index);
        source(volume, &path, errors);
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(&at(&path, "name"), "");
            continue;
        }
        let complaints = names::label(name);
        if complaints.is_empty() && !seen.insert(name) {
            errors.duplicate(&at(&path, "name"), name);
        }
        errors.complaints(&at(&path, "name"), name, complaints);
    }
    seen
}

fn source(volume: &Value, path: &str, errors: &mut Errors) {
    let fields = volume.as_object().into_iter().flatten();
    let mut sources = fields.filter(|(key, value)| *key != "name" && !value.is_null());
    let Some((first, source)) = sources.next() else {
        errors.required(path, "must specify a volume type");
        return;
    };
    for (other, _) in sources {
        errors.forbidden(&at(path, other), "may not specify more than 1 volume type");
    }
    let path = at(path, first);
    for (_, field) in NEEDS.iter().filter(|(name, _)| name == first) {
        if text(source, field).is_empty() {
            errors.required(&at(&path, field), "");
        }
    }
    if let Some(mode) = integer(source, "defaultMode") {
        self::mode(mode, &at(&path, "defaultMode"), errors);
    }
    match first.as_str() {
        "configMap" | "secret" => key_paths(source, &path, errors),
        "projected" => {
            for (index, part) in items(source, "sources").iter().enumerate() {
                projection(part, &nth(&path, "sources", index), errors);
            }
        }
        _ => {}
    }
}

fn projection(part: &Value, path: &str, errors: &mut Errors) {
    for name in ["configMap", "secret"] {
        let source = get(part, name);
        if !source.is_null() {
            let path = at(path, name);
            if text(source, "name").is_empty() {
                errors.required(&at(&path, "name"), "");
            }
            key_paths(source, &path, errors);
        }
    }
    let token = get(part, "serviceAccountToken");
    if !token.is_null() && text(token, "path").is_empty() {
        errors.required(&at(path, "serviceAccountToken.path"), "");
    }
}

fn key_paths(source: &Value, path: &str, errors: &mut Errors) {
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = nth(path, "items", index);
        if text(item, "key").is_empty() {
            errors.required(&at(&path, "key"), "");
        }
        match text(item, "path") {
            "" => errors.required(&at(&path, "path"), ""),
            target if target.starts_with('/') => {
                errors.invalid(&at(&path, "path"), target, "must be a relative path");
            }
            target if target.split('/').any(|part| part == "..") => {
                errors.invalid(&at(&path, "path"), target, "must not contain '..'");
            }
            _ => {}
        }
        if let Some(mode) = integer(item, "mode") {
            self::mode(mode, &at(&path, "mode"), errors);
        }
    }
}

fn mode(mode: i64, field: &str, errors: &mut Errors) {
    if !(0..=MODE_MAX).contains(&mode) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid(field, mode, detail);
    }
}
