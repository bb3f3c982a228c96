//! Whether an object fits its type: numbers are numbers, lists are lists, times are times.
//!
//! Objects travel as JSON, but clients read them with types, and one mistyped object would break
//! every list that it is part of. So each object is held against its type before it is stored. The
//! types are `k8s-openapi`'s, taken from its schemas: reading each kind with its Rust type would
//! say the same, but would have the compiler make a decoder for every one of them. Unknown fields
//! and missing ones are not this file's matter.

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use k8s_openapi::{Resource, schemars::JsonSchema, schemars::SchemaGenerator};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;
use wherry_resources::{Kind, Object, meta};

static SHAPES: LazyLock<Shapes> = LazyLock::new(Shapes::generate);

/// What may stand at a place.
enum Shape {
    Anything,
    Boolean,
    Integer {
        bits: u32,
    },
    Number,
    Text,
    Time,
    IntegerOrText,
    List(Box<Shape>),
    Map(Box<Shape>),
    Object(HashMap<String, Shape>),
    /// Another type by index: types may hold themselves.
    Type(usize),
}

/// All types, and which of them is which kind.
struct Shapes {
    types: Vec<Shape>,
    kinds: HashMap<(&'static str, &'static str, &'static str), usize>,
}

/// Holds the object against its kind's type; the error says what does not fit.
pub fn check(kind: &Kind, object: &Object) -> Result<(), String> {
    let Some(index) = SHAPES.kinds.get(&(kind.group, kind.version, kind.kind)) else {
        // Kinds without a row are not stored.
        return Ok(());
    };
    SHAPES.fits(&SHAPES.types[*index], object, &mut Vec::new())
}

/// One step of the path to a value, for messages.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Shapes {
    fn fits<'a>(
        &'a self,
        shape: &'a Shape,
        value: &'a Value,
        path: &mut Vec<Step<'a>>,
    ) -> Result<(), String> {
        let wrong = |wanted: &str| Err(complaint(path, value, wanted));
        match (shape, value) {
            // null is the same as absent.
            (Shape::Anything, _) | (_, Value::Null) => Ok(()),
            (Shape::Type(index), _) => self.fits(&self.types[*index], value, path),
            (Shape::Boolean, Value::Bool(_)) | (Shape::Text, Value::String(_)) => Ok(()),
            (Shape::Number, Value::Number(_)) => Ok(()),
            (Shape::IntegerOrText, Value::String(_) | Value::Number(_)) => Ok(()),
            (Shape::Integer { bits }, Value::Number(number)) => match number.as_i64() {
                Some(_) if *bits == 64 => Ok(()),
                Some(number) if i32::try_from(number).is_ok() => Ok(()),
                _ => wrong(&format!("a whole number of {bits} bits")),
            },
            (Shape::Time, Value::String(text)) if meta::parse_time(text).is_some() => Ok(()),
            (Shape::List(item), Value::Array(items)) => {
                for (index, value) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    self.fits(item, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for (key, value) in map {
                    path.push(Step::Key(key));
                    self.fits(inner, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Object(fields), Value::Object(map)) => {
                for (key, value) in map {
                    let Some(field) = fields.get(key) else {
                        continue;
                    };
                    path.push(Step::Key(key));
                    self.fits(field, value, path)?;
                    path.pop();
                }
                Ok(())
            }
            (Shape::Boolean, _) => wrong("true or false"),
            (Shape::Number | Shape::Integer { .. }, _) => wrong("a number"),
            (Shape::Text, _) => wrong("a string"),
            (Shape::Time, _) => wrong("a time as RFC 3339 writes it"),
            (Shape::IntegerOrText, _) => wrong("a number or a string"),
            (Shape::List(_), _) => wrong("a list"),
            (Shape::Map(_) | Shape::Object(_), _) => wrong("an object"),
        }
    }

    fn generate() -> Shapes {
        let mut generator: SchemaGenerator = SchemaSettings::draft07().into_generator();
        let mut roots = Vec::new();
        for row in ROWS {
            roots.push(((row.group, row.version, row.kind), (row.add)(&mut generator)));
        }
        let definitions = generator.take_definitions(false);
        let names = definitions.keys().enumerate();
        let indexes: HashMap<&str, usize> = names.map(|(i, name)| (name.as_str(), i)).collect();
        let types = definitions.values().map(|schema| shape(schema, &indexes)).collect();
        let index = |name: &String| indexes[name.as_str()];
        let kinds = roots.iter().map(|(kind, name)| (*kind, index(name))).collect();
        Shapes { types, kinds }
    }
}

fn complaint(path: &[Step<'_>], value: &Value, wanted: &str) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("{text}: {found} stands where {wanted} belongs")
}

/// Reads a schema; what it does not understand may be anything.
fn shape(schema: &Value, indexes: &HashMap<&str, usize>) -> Shape {
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or("");
    let inner = schema.get("allOf").and_then(|list| list.get(0)).unwrap_or(schema);
    if let Some(reference) = inner.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or("");
        return indexes.get(name).map_or(Shape::Anything, |index| Shape::Type(*index));
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        return Shape::IntegerOrText;
    }
    match (text("type"), text("format")) {
        ("boolean", _) => Shape::Boolean,
        ("integer", "int64") => Shape::Integer { bits: 64 },
        ("integer", _) => Shape::Integer { bits: 32 },
        ("number", _) => Shape::Number,
        ("string", "date-time") => Shape::Time,
        ("string", _) => Shape::Text,
        ("array", _) => {
            let items = schema.get("items").map_or(Shape::Anything, |items| shape(items, indexes));
            Shape::List(Box::new(items))
        }
        ("object", _) => match (schema.get("properties"), schema.get("additionalProperties")) {
            (Some(Value::Object(fields)), _) => Shape::Object(
                fields.iter().map(|(key, field)| (key.clone(), shape(field, indexes))).collect(),
            ),
            (_, Some(values @ Value::Object(_))) => Shape::Map(Box::new(shape(values, indexes))),
            _ => Shape::Anything,
        },
        _ => Shape::Anything,
    }
}

struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    /// Adds the schema of the type and of all it refers to; answers its name.
    add: fn(&mut SchemaGenerator) -> String,
}

const fn row<T: Resource + JsonSchema>() -> Row {
    Row { group: T::GROUP, version: T::VERSION, kind: T::KIND, add: add::<T> }
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

/// Every kind that is stored.
const ROWS: &[Row] = &[
    row::<api::core::v1::ConfigMap>(),
    row::<api::core::v1::Endpoints>(),
    row::<api::core::v1::Event>(),
    row::<api::core::v1::LimitRange>(),
    row::<api::core::v1::Namespace>(),
    row::<api::core::v1::Node>(),
    row::<api::core::v1::PersistentVolume>(),
    row::<api::core::v1::PersistentVolumeClaim>(),
    row::<api::core::v1::Pod>(),
    row::<api::core::v1::PodTemplate>(),
    row::<api::core::v1::ReplicationController>(),
    row::<api::core::v1::ResourceQuota>(),
    row::<api::core::v1::Secret>(),
    row::<api::core::v1::Service>(),
    row::<api::core::v1::ServiceAccount>(),
    row::<api::admissionregistration::v1::MutatingWebhookConfiguration>(),
    row::<api::admissionregistration::v1::ValidatingAdmissionPolicy>(),
    row::<api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>(),
    row::<api::admissionregistration::v1::ValidatingWebhookConfiguration>(),
    row::<apiextensions::CustomResourceDefinition>(),
    row::<apiregistration::APIService>(),
    row::<api::apps::v1::ControllerRevision>(),
    row::<api::apps::v1::DaemonSet>(),
    row::<api::apps::v1::Deployment>(),
    row::<api::apps::v1::ReplicaSet>(),
    row::<api::apps::v1::StatefulSet>(),
    row::<api::autoscaling::v1::HorizontalPodAutoscaler>(),
    row::<api::autoscaling::v2::HorizontalPodAutoscaler>(),
    row::<api::batch::v1::CronJob>(),
    row::<api::batch::v1::Job>(),
    row::<api::certificates::v1::CertificateSigningRequest>(),
    row::<api::coordination::v1::Lease>(),
    row::<api::discovery::v1::EndpointSlice>(),
    row::<api::events::v1::Event>(),
    row::<api::flowcontrol::v1::FlowSchema>(),
    row::<api::flowcontrol::v1::PriorityLevelConfiguration>(),
    row::<api::networking::v1::Ingress>(),
    row::<api::networking::v1::IngressClass>(),
    row::<api::networking::v1::NetworkPolicy>(),
    row::<api::node::v1::RuntimeClass>(),
    row::<api::policy::v1::PodDisruptionBudget>(),
    row::<api::rbac::v1::ClusterRole>(),
    row::<api::rbac::v1::ClusterRoleBinding>(),
    row::<api::rbac::v1::Role>(),
    row::<api::rbac::v1::RoleBinding>(),
    row::<api::scheduling::v1::PriorityClass>(),
    row::<api::storage::v1::CSIDriver>(),
    row::<api::storage::v1::CSINode>(),
    row::<api::storage::v1::CSIStorageCapacity>(),
    row::<api::storage::v1::StorageClass>(),
    row::<api::storage::v1::VolumeAttachment>(),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use wherry_resources::{KINDS, Storage};

    #[test]
    fn every_stored_kind_has_a_row() {
        for kind in KINDS.iter().filter(|kind| kind.storage != Storage::None) {
            let key = (kind.group, kind.version, kind.kind);
            assert!(SHAPES.kinds.contains_key(&key), "{key:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let pods = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let cases = [
            (json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}}), ""),
            (
                json!({"spec": {"containers": [{"ports": [{"containerPort": "1"}]}]}}),
                "spec.containers[0].ports[0].containerPort: a string stands where a number belongs",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "metadata.labels.a: a number stands where a string belongs",
            ),
            (
                json!({"metadata": {"creationTimestamp": "yesterday"}}),
                "metadata.creationTimestamp: a string stands where a time as RFC 3339 writes it \
                 belongs",
            ),
            (
                json!({"spec": {"priority": 3_000_000_000_i64}}),
                "spec.priority: a number stands where a whole number of 32 bits belongs",
            ),
            (
                json!({"spec": {"containers": {}}}),
                "spec.containers: an object stands where a list belongs",
            ),
            (json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1}}}]}}), ""),
        ];
        for (pod, expected) in cases {
            assert_eq!(check(pods, &pod).err().unwrap_or_default(), expected);
        }
    }
}
