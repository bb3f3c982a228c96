//! Which fields of a kind a field selector may name, and how they read.
//!
//! `metadata.name` and `metadata.namespace` are offered by every kind; objects of the whole cluster
//! have the empty namespace. An absent field reads as its default (empty, `false`, `0`), so that
//! `spec.unschedulable==false` matches a node that never had the field.

use std::sync::Arc;

use serde_json::Value;

use crate::custom::Definition;
use crate::selectors::FieldSelector;
use crate::{Kind, Object, meta};

/// A selector names a field that the kind does not offer. The sentence is Kubernetes' own, which
/// is another one for kinds that offer nothing but the two fields of metadata.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownField {
    #[error("field label not supported: {0}")]
    OfKind(String),
    #[error(
        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        crate::quoted(.0)
    )]
    OfMetadata(String),
}

/// How a field reads when it is absent.
#[derive(Clone, Copy)]
enum Absent {
    Empty,
    False,
    Zero,
}

/// (group, plural, field in the selector, path in the object, how it reads when absent)
type Row = (&'static str, &'static str, &'static str, &'static str, Absent);

const FIELDS: &[Row] = &[
    ("", "pods", "spec.nodeName", "/spec/nodeName", Absent::Empty),
    ("", "pods", "spec.restartPolicy", "/spec/restartPolicy", Absent::Empty),
    ("", "pods", "spec.schedulerName", "/spec/schedulerName", Absent::Empty),
    ("", "pods", "spec.serviceAccountName", "/spec/serviceAccountName", Absent::Empty),
    ("", "pods", "spec.hostNetwork", "/spec/hostNetwork", Absent::False),
    ("", "pods", "status.phase", "/status/phase", Absent::Empty),
    ("", "pods", "status.podIP", "/status/podIP", Absent::Empty),
    ("", "pods", "status.podIPs", "/status/podIP", Absent::Empty),
    ("", "pods", "status.nominatedNodeName", "/status/nominatedNodeName", Absent::Empty),
    ("", "events", "involvedObject.kind", "/involvedObject/kind", Absent::Empty),
    ("", "events", "involvedObject.namespace", "/involvedObject/namespace", Absent::Empty),
    ("", "events", "involvedObject.name", "/involvedObject/name", Absent::Empty),
    ("", "events", "involvedObject.uid", "/involvedObject/uid", Absent::Empty),
    ("", "events", "involvedObject.apiVersion", "/involvedObject/apiVersion", Absent::Empty),
    (
        "",
        "events",
        "involvedObject.resourceVersion",
        "/involvedObject/resourceVersion",
        Absent::Empty,
    ),
    ("", "events", "involvedObject.fieldPath", "/involvedObject/fieldPath", Absent::Empty),
    ("", "events", "reason", "/reason", Absent::Empty),
    ("", "events", "reportingComponent", "/reportingComponent", Absent::Empty),
    ("", "events", "source", "/source/component", Absent::Empty),
    ("", "events", "type", "/type", Absent::Empty),
    ("events.k8s.io", "events", "regarding.kind", "/regarding/kind", Absent::Empty),
    ("events.k8s.io", "events", "regarding.namespace", "/regarding/namespace", Absent::Empty),
    ("events.k8s.io", "events", "regarding.name", "/regarding/name", Absent::Empty),
    ("events.k8s.io", "events", "regarding.uid", "/regarding/uid", Absent::Empty),
    ("events.k8s.io", "events", "regarding.apiVersion", "/regarding/apiVersion", Absent::Empty),
    (
        "events.k8s.io",
        "events",
        "regarding.resourceVersion",
        "/regarding/resourceVersion",
        Absent::Empty,
    ),
    ("events.k8s.io", "events", "regarding.fieldPath", "/regarding/fieldPath", Absent::Empty),
    ("events.k8s.io", "events", "reason", "/reason", Absent::Empty),
    ("events.k8s.io", "events", "reportingController", "/reportingController", Absent::Empty),
    ("events.k8s.io", "events", "source", "/deprecatedSource/component", Absent::Empty),
    ("events.k8s.io", "events", "type", "/type", Absent::Empty),
    ("", "nodes", "spec.unschedulable", "/spec/unschedulable", Absent::False),
    ("", "namespaces", "status.phase", "/status/phase", Absent::Empty),
    ("", "secrets", "type", "/type", Absent::Empty),
    ("", "services", "spec.clusterIP", "/spec/clusterIP", Absent::Empty),
    ("", "services", "spec.type", "/spec/type", Absent::Empty),
    ("", "replicationcontrollers", "status.replicas", "/status/replicas", Absent::Zero),
    ("apps", "replicasets", "status.replicas", "/status/replicas", Absent::Zero),
    ("batch", "jobs", "status.successful", "/status/succeeded", Absent::Zero),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        "spec.signerName",
        "/spec/signerName",
        Absent::Empty,
    ),
];

/// Refuses a selector with a field that the kind does not offer.
pub fn check(kind: &Kind, selector: &FieldSelector) -> Result<(), UnknownField> {
    let unknown = selector.terms.iter().find(|term| !is_known(kind, &term.field));
    let own = |row: &Row| row.0 == kind.group && row.1 == kind.plural;
    match unknown.map(|term| term.field.clone()) {
        None => Ok(()),
        Some(field) if kind.custom.is_some() || FIELDS.iter().any(own) => {
            Err(UnknownField::OfKind(field))
        }
        Some(field) => Err(UnknownField::OfMetadata(field)),
    }
}

/// Whether an object of that kind satisfies a selector that [`check`] let through.
pub fn matches(kind: &Kind, object: &Object, selector: &FieldSelector) -> bool {
    selector.matches(|field| value(kind, object, field))
}

/// One field as a selector compares it.
pub fn value(kind: &Kind, object: &Object, field: &str) -> String {
    match field {
        "metadata.name" => return meta::name(object).to_string(),
        "metadata.namespace" => return meta::namespace(object).to_string(),
        _ => {}
    }
    if let Some(definition) = kind.custom() {
        return definition.selected(object, field).unwrap_or_default();
    }
    let Some((_, _, _, path, absent)) = row(kind, field) else {
        return String::new();
    };
    match object.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => match absent {
            Absent::Empty => String::new(),
            Absent::False => "false".to_string(),
            Absent::Zero => "0".to_string(),
        },
        Some(other) => other.to_string(),
    }
}

/// What of an object selectors look at: name, namespace, labels and the fields that its kind
/// offers. A selector decides over it as over the whole object.
pub fn selectable(kind: &Kind, object: &Object) -> Object {
    let mut out = Value::Null;
    let mut keep = |path: &str| {
        if let Some(value) = object.pointer(path) {
            let place = path.split('/').skip(1).fold(&mut out, |at, field| &mut at[field]);
            *place = value.clone();
        }
    };
    let fields = FIELDS.iter().filter(|row| row.0 == kind.group && row.1 == kind.plural);
    let names = ["/metadata/name", "/metadata/namespace", "/metadata/labels"];
    names.into_iter().chain(fields.map(|row| row.3)).for_each(&mut keep);
    if let Some(definition) = kind.custom() {
        for (_, path) in &definition.selectable {
            if let Some(value) = path.get(object) {
                path.set(&mut out, value.clone());
            }
        }
    }
    out
}

fn is_known(kind: &Kind, field: &str) -> bool {
    let everywhere = ["metadata.name", "metadata.namespace"].contains(&field);
    let selectable =
        |definition: Arc<Definition>| definition.selectable.iter().any(|(name, _)| name == field);
    everywhere || row(kind, field).is_some() || kind.custom().is_some_and(selectable)
}

fn row(kind: &Kind, field: &str) -> Option<&'static Row> {
    FIELDS.iter().find(|row| row.0 == kind.group && row.1 == kind.plural && row.2 == field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_of_kinds() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "w"}});
        let node = json!({"metadata": {"name": "w"}});
        let cases = [
            ("pods", &pod, "metadata.name=a,metadata.namespace=n", "true"),
            ("pods", &pod, "spec.nodeName=w", "true"),
            ("pods", &pod, "spec.nodeName=", "false"),
            ("pods", &pod, "status.phase!=Running", "true"),
            ("pods", &pod, "spec.hostNetwork=false", "true"),
            ("pods", &pod, "spec.x=1", "field label not supported: spec.x"),
            ("nodes", &node, "spec.unschedulable==false", "true"),
            ("nodes", &node, "metadata.namespace=x", "false"),
            ("nodes", &node, "metadata.namespace=", "true"),
            (
                "configmaps",
                &node,
                "data.x=1",
                r#""data.x" is not a known field selector: only "metadata.name", "metadata.namespace""#,
            ),
        ];
        for (plural, object, text, expected) in cases {
            let kind = crate::kind("", "v1", plural).expect("in the table");
            let selector = FieldSelector::parse(text).expect("a selector");
            let found = match check(kind, &selector) {
                Ok(()) => matches(kind, object, &selector).to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_selector_decides_over_what_is_selectable() {
        let kind = crate::kind("", "v1", "pods").expect("in the table");
        let pod = json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "x"}, "uid": "u"},
            "spec": {"nodeName": "w", "hostNetwork": true, "containers": []},
            "status": {"podIP": "10.0.0.1", "conditions": []},
        });
        let kept = selectable(kind, &pod);
        let expected = json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "x"}},
            "spec": {"nodeName": "w", "hostNetwork": true},
            "status": {"podIP": "10.0.0.1"},
        });
        assert_eq!(kept, expected);
        for (_, _, field, ..) in FIELDS.iter().filter(|row| row.1 == "pods") {
            assert_eq!(value(kind, &kept, field), value(kind, &pod, field), "{field}");
        }
    }
}
