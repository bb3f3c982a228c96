//! The schemas of all types, under their long names (`io.k8s.api.apps.v1.Deployment`), as OpenAPI 3
//! wants them.
//!
//! `k8s-openapi` gives names, types and descriptions. Added here: which schema is which kind, the
//! lists, how lists and maps merge, and references in the form that allows a description beside
//! them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::Resource;
use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration, apps::v1 as apps,
    authentication::v1 as authentication, authorization::v1 as authorization,
    autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling_v2, batch::v1 as batch,
    certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, events::v1 as events, flowcontrol::v1 as flowcontrol,
    networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use wherry_resources::structure::{self, Apply, Field, Strategic, Type};
use wherry_resources::{KINDS, Kind};

/// What a reference to a schema starts with.
pub const REFERENCE: &str = "#/components/schemas/";
/// Long names that documents use beside those of kinds.
pub const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const CONTAINER_PORT: &str = "io.k8s.api.core.v1.ContainerPort";
const SERVICE_PORT: &str = "io.k8s.api.core.v1.ServicePort";
const METRICS: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";

/// A type that is sent or answered under its own kind.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    /// Adds the schema and all it refers to; answers its long name.
    add: fn(&mut SchemaGenerator) -> String,
}

const fn row<T: Resource + JsonSchema>() -> Row {
    Row { group: T::GROUP, version: T::VERSION, kind: T::KIND, add: add::<T> }
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

/// Every type of the table of kinds and of its subresources.
const ROWS: &[Row] = &[
    row::<core::Binding>(),
    row::<core::ComponentStatus>(),
    row::<core::ConfigMap>(),
    row::<core::Endpoints>(),
    row::<core::Event>(),
    row::<core::LimitRange>(),
    row::<core::Namespace>(),
    row::<core::Node>(),
    row::<core::PersistentVolume>(),
    row::<core::PersistentVolumeClaim>(),
    row::<core::Pod>(),
    row::<core::PodTemplate>(),
    row::<core::ReplicationController>(),
    row::<core::ResourceQuota>(),
    row::<core::Secret>(),
    row::<core::Service>(),
    row::<core::ServiceAccount>(),
    row::<apiregistration::APIService>(),
    row::<apps::ControllerRevision>(),
    row::<apps::DaemonSet>(),
    row::<apps::Deployment>(),
    row::<apps::ReplicaSet>(),
    row::<apps::StatefulSet>(),
    row::<events::Event>(),
    row::<authentication::SelfSubjectReview>(),
    row::<authentication::TokenRequest>(),
    row::<authentication::TokenReview>(),
    row::<authorization::LocalSubjectAccessReview>(),
    row::<authorization::SelfSubjectAccessReview>(),
    row::<authorization::SelfSubjectRulesReview>(),
    row::<authorization::SubjectAccessReview>(),
    row::<autoscaling_v1::HorizontalPodAutoscaler>(),
    row::<autoscaling_v1::Scale>(),
    row::<autoscaling_v2::HorizontalPodAutoscaler>(),
    row::<batch::CronJob>(),
    row::<batch::Job>(),
    row::<certificates::CertificateSigningRequest>(),
    row::<networking::Ingress>(),
    row::<networking::IngressClass>(),
    row::<networking::NetworkPolicy>(),
    row::<policy::Eviction>(),
    row::<policy::PodDisruptionBudget>(),
    row::<rbac::ClusterRole>(),
    row::<rbac::ClusterRoleBinding>(),
    row::<rbac::Role>(),
    row::<rbac::RoleBinding>(),
    row::<storage::CSIDriver>(),
    row::<storage::CSINode>(),
    row::<storage::CSIStorageCapacity>(),
    row::<storage::StorageClass>(),
    row::<storage::VolumeAttachment>(),
    row::<admissionregistration::MutatingAdmissionPolicy>(),
    row::<admissionregistration::MutatingAdmissionPolicyBinding>(),
    row::<admissionregistration::MutatingWebhookConfiguration>(),
    row::<admissionregistration::ValidatingAdmissionPolicy>(),
    row::<admissionregistration::ValidatingAdmissionPolicyBinding>(),
    row::<admissionregistration::ValidatingWebhookConfiguration>(),
    row::<apiextensions::CustomResourceDefinition>(),
    row::<scheduling::PriorityClass>(),
    row::<coordination::Lease>(),
    row::<node::RuntimeClass>(),
    row::<discovery::EndpointSlice>(),
    row::<flowcontrol::FlowSchema>(),
    row::<flowcontrol::PriorityLevelConfiguration>(),
    row::<meta::Status>(),
];

/// All schemas by long name, and which of them is which kind.
pub struct Schemas {
    definitions: Map<String, Value>,
    names: BTreeMap<(&'static str, &'static str, &'static str), String>,
}

impl Schemas {
    /// Makes them all. Costs some tens of milliseconds.
    pub fn generate() -> Schemas {
        let settings = SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.transforms.clear();
        });
        let mut generator = SchemaGenerator::new(settings);
        let mut names = BTreeMap::new();
        for row in ROWS {
            names.insert((row.group, row.version, row.kind), (row.add)(&mut generator));
        }
        add::<meta::DeleteOptions>(&mut generator);
        add::<meta::ListMeta>(&mut generator);
        let mut definitions = generator.take_definitions(false);
        add_metrics(&mut definitions, &mut names);
        add_special(&mut definitions);
        for kind in KINDS {
            let name = names.get(&(kind.group, kind.version, kind.kind));
            if let Some(name) = name {
                decorate(name, structure::of(kind), &mut definitions, &mut BTreeSet::new());
            }
        }
        for (key, name) in &names {
            mark_kind(&mut definitions[name], *key);
            ask_for_no_metadata(&mut definitions[name]);
        }
        for kind in KINDS.iter().filter(|kind| kind.verbs.contains(&"list")) {
            add_list(kind, &names, &mut definitions);
        }
        definitions.values_mut().for_each(mark_plain_lists);
        definitions.values_mut().for_each(wrap_references);
        definitions.sort_keys();
        Schemas { definitions, names }
    }

    /// The schemas that every document needs, and those of custom kinds.
    pub fn with_custom(base: &Schemas, custom: &[&'static Kind]) -> Schemas {
        let shared = [OBJECT_META, LIST_META, STATUS, DELETE_OPTIONS, PATCH];
        let mut roots: Vec<String> = shared.map(str::to_string).into();
        let scale = ("autoscaling", "v1", "Scale");
        roots.extend(base.names.get(&scale).cloned());
        let mut definitions = base.reachable(roots);
        let mut names: BTreeMap<_, String> =
            base.names.get(&scale).map(|name| (scale, name.clone())).into_iter().collect();
        for kind in custom {
            let Some(definition) = kind.custom() else {
                continue;
            };
            let key = (kind.group, kind.version, kind.kind);
            let name = custom_name(kind);
            let mut schema = custom_schema(&definition.source, &definitions);
            mark_kind(&mut schema, key);
            definitions.insert(name.clone(), schema);
            names.insert(key, name);
            add_list(kind, &names, &mut definitions);
        }
        definitions.values_mut().for_each(wrap_references);
        definitions.sort_keys();
        Schemas { definitions, names }
    }

    /// The long name of a kind's schema.
    pub fn name(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        let mut names = self.names.iter();
        let found = names.find(|(key, _)| **key == (group, version, kind));
        found.map(|(_, name)| name.as_str())
    }

    /// The schemas of these names and of all they refer to.
    pub fn reachable(&self, roots: Vec<String>) -> Map<String, Value> {
        let mut waiting = roots;
        let mut found = BTreeSet::new();
        while let Some(name) = waiting.pop() {
            if let Some(schema) = self.definitions.get(&name)
                && found.insert(name)
            {
                collect_references(schema, &mut waiting);
            }
        }
        let schema = |name: String| {
            let schema = self.definitions[&name].clone();
            (name, schema)
        };
        found.into_iter().map(schema).collect()
    }

    pub fn definitions(&self) -> &Map<String, Value> {
        &self.definitions
    }

    pub fn kinds(
        &self,
    ) -> impl Iterator<Item = (&(&'static str, &'static str, &'static str), &String)> {
        self.names.iter()
    }
}

/// The long name of a custom kind: its group backwards, as in `com.example.v1.Shirt`.
fn custom_name(kind: &Kind) -> String {
    let parts: Vec<&str> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", parts.join("."), kind.version, kind.kind)
}

/// The schema of a CRD with what belongs to every object.
fn custom_schema(source: &Value, definitions: &Map<String, Value>) -> Value {
    let mut schema = if source.is_object() { source.clone() } else { json!({"type": "object"}) };
    let common = &definitions[STATUS]["properties"];
    let mut properties = schema["properties"].as_object().cloned().unwrap_or_default();
    for key in ["apiVersion", "kind"] {
        properties.insert(key.to_string(), common[key].clone());
    }
    let metadata = json!({
        "description": "Standard object's metadata.",
        "$ref": format!("{REFERENCE}{OBJECT_META}"),
    });
    properties.insert("metadata".to_string(), metadata);
    schema["properties"] = Value::Object(properties);
    schema
}

/// The long name of the list of a kind.
pub fn list_name(name: &str) -> String {
    format!("{name}List")
}

/// The name that a reference leads to.
pub fn referenced(schema: &Value) -> Option<&str> {
    let direct = schema.get("$ref").and_then(Value::as_str);
    let wrapped = || schema.get("allOf")?.get(0)?.get("$ref")?.as_str();
    direct.or_else(wrapped)?.strip_prefix(REFERENCE)
}

fn collect_references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.extend(reference.strip_prefix(REFERENCE).map(str::to_string));
            }
            fields.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

/// A reference must stand alone, so one with a description moves into `allOf`.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.len() > 1 && fields.get("$ref").is_some_and(Value::is_string) {
                let reference = fields.shift_remove("$ref");
                fields.insert("allOf".to_string(), json!([{"$ref": reference}]));
            }
            fields.values_mut().for_each(wrap_references);
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn mark_kind(schema: &mut Value, (group, version, kind): (&str, &str, &str)) {
    let mark = json!([{"group": group, "kind": kind, "version": version}]);
    schema["x-kubernetes-group-version-kind"] = mark;
}

/// The crate's types always have metadata; a manifest need not.
fn ask_for_no_metadata(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if let Some(required) = fields.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != "metadata");
        if required.is_empty() {
            fields.shift_remove("required");
        }
    }
}

/// Adds to a schema, and to those below it, how its lists and maps merge.
fn decorate(
    name: &str,
    structure: Type,
    definitions: &mut Map<String, Value>,
    above: &mut BTreeSet<String>,
) {
    if !above.insert(name.to_string()) {
        return;
    }
    let mut below = Vec::new();
    let properties = definitions.get_mut(name).and_then(|schema| schema.get_mut("properties"));
    for (property, schema) in properties.and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(field) = structure.field(property) else {
            continue;
        };
        let inner = ["items", "additionalProperties"].iter().find_map(|key| schema.get(key));
        let target = referenced(inner.unwrap_or(schema)).map(str::to_string);
        below.extend(target.map(|target| (target, structure.child(property))));
        mark_field(schema, &field);
    }
    for (target, structure) in below {
        decorate(&target, structure, definitions, above);
    }
    above.remove(name);
}

fn mark_field(schema: &mut Value, field: &Field) {
    let mut strategies = Vec::new();
    match field.strategic {
        Strategic::Plain => {}
        Strategic::Merge(key) => {
            schema["x-kubernetes-patch-merge-key"] = json!(key);
            strategies.push("merge");
        }
        Strategic::MergeValues => strategies.push("merge"),
        Strategic::Replace => strategies.push("replace"),
    }
    if field.retain_keys {
        strategies.push("retainKeys");
    }
    if !strategies.is_empty() {
        schema["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
    }
    let is_list = schema["type"] == "array";
    match field.apply {
        Apply::Plain => {}
        Apply::Atomic if is_list => schema["x-kubernetes-list-type"] = json!("atomic"),
        Apply::Atomic => schema["x-kubernetes-map-type"] = json!("atomic"),
        Apply::Set => schema["x-kubernetes-list-type"] = json!("set"),
        Apply::Keyed(keys) => {
            schema["x-kubernetes-list-type"] = json!("map");
            schema["x-kubernetes-list-map-keys"] = json!(keys);
        }
    }
}

/// Lists that no row of the table of structure names are replaced and owned as a whole.
fn mark_plain_lists(schema: &mut Value) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (_, property) in properties.into_iter().flatten() {
        if property["type"] == "array" && property.get("x-kubernetes-list-type").is_none() {
            property["x-kubernetes-list-type"] = json!("atomic");
        }
    }
}

fn add_list(
    kind: &Kind,
    names: &BTreeMap<(&'static str, &'static str, &'static str), String>,
    definitions: &mut Map<String, Value>,
) {
    let Some(name) = names.get(&(kind.group, kind.version, kind.kind)) else {
        return;
    };
    let reference = |name: &str| format!("{REFERENCE}{name}");
    let mut list = json!({
        "description": format!("{} is a list of {}.", kind.list_kind(), kind.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": definitions[name]["properties"]["apiVersion"],
            "items": {
                "description": format!("The {} of the list.", kind.plural),
                "type": "array",
                "items": {"$ref": reference(name)},
            },
            "kind": definitions[name]["properties"]["kind"],
            "metadata": {
                "description": "What is known about the list itself.",
                "$ref": reference(LIST_META),
            },
        },
    });
    mark_kind(&mut list, (kind.group, kind.version, &kind.list_kind()));
    definitions.insert(list_name(name), list);
}

/// Schemas whose JSON is not what their Rust type would tell.
fn add_special(definitions: &mut Map<String, Value>) {
    let any_of = [
        (QUANTITY, json!([{"type": "string"}, {"type": "number"}])),
        (INT_OR_STRING, json!([{"type": "integer"}, {"type": "string"}])),
    ];
    for (name, forms) in any_of {
        definitions[name]["oneOf"] = forms;
    }
    definitions[INT_OR_STRING]["format"] = json!("int-or-string");
    // Clients merge lists by this key too, and must know what it is where it is left out.
    for name in [CONTAINER_PORT, SERVICE_PORT] {
        definitions[name]["properties"]["protocol"]["default"] = json!("TCP");
    }
    let patch = json!({
        "description": "Patch is a change to an object, in the form its media type names.",
        "type": "object",
    });
    definitions.insert(PATCH.to_string(), patch);
}

/// Usage figures are in no crate.
fn add_metrics(
    definitions: &mut Map<String, Value>,
    names: &mut BTreeMap<(&'static str, &'static str, &'static str), String>,
) {
    let reference = |name: &str| format!("{REFERENCE}{name}");
    let usage = json!({
        "description": "Resources in use: cpu in cores, memory in bytes.",
        "type": "object",
        "additionalProperties": {"$ref": reference(QUANTITY)},
    });
    let common = json!({
        "apiVersion": definitions[STATUS]["properties"]["apiVersion"],
        "kind": definitions[STATUS]["properties"]["kind"],
        "metadata": {"$ref": reference(OBJECT_META)},
        "timestamp": {"description": "End of the measured interval.", "$ref": reference(TIME)},
        "window": {"description": "Length of the interval that was measured.", "type": "string"},
    });
    let container = json!({
        "description": "ContainerMetrics are the resources that one container uses.",
        "type": "object",
        "required": ["name", "usage"],
        "properties": {
            "name": {"description": "Name of the container.", "type": "string"},
            "usage": usage,
        },
    });
    let mut node = json!({
        "description": "NodeMetrics are the resources that a node uses.",
        "type": "object",
        "properties": common,
    });
    let mut pod = json!({
        "description": "PodMetrics are the resources that a pod uses.",
        "type": "object",
        "properties": common,
    });
    node["properties"]["usage"] = usage;
    pod["properties"]["containers"] = json!({
        "description": "Figures of the pod's containers.",
        "type": "array",
        "items": {"$ref": reference(&format!("{METRICS}.ContainerMetrics"))},
    });
    for (kind, schema) in [("NodeMetrics", node), ("PodMetrics", pod)] {
        names.insert(("metrics.k8s.io", "v1beta1", kind), format!("{METRICS}.{kind}"));
        definitions.insert(format!("{METRICS}.{kind}"), schema);
    }
    definitions.insert(format!("{METRICS}.ContainerMetrics"), container);
}
