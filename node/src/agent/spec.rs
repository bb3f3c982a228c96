//! What a Pod asks for, as far as a node needs it.
//!
//! The API's `Pod` takes several kilobytes in memory; a node with 5,000 of them cannot keep them.
//! This form is made once when a Pod arrives and shared by whoever works for it; everything else of
//! the object is dropped at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1 as core, apimachinery::pkg::api::resource::Quantity,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use wherry_resources::quantity;

use crate::protocol;

/// What `terminationGracePeriodSeconds` is when nothing says otherwise.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// Annotation on a Pod: the longest time for one request of a handler, in seconds.
const ANNOTATION_REQUEST_DEADLINE: &str = "wherry.dev/request-deadline-seconds";

/// A Pod bound to this node and whether it shall go away.
#[derive(Debug, Clone)]
pub struct Desired {
    /// What shall run.
    pub spec: Arc<PodSpec>,
    /// Set once deletion was asked for.
    pub deletion: Option<Deletion>,
}

/// A deletion that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Time the containers get to end by themselves.
    pub grace: Duration,
    /// The object is no longer in the API: nothing is left to be written.
    pub gone: bool,
}

/// The part of a Pod that decides what its node does.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSpec {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, kept only if an environment variable refers to one.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.generation`
    pub generation: Option<i64>,
    /// `spec.nodeName`
    pub node: String,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// `spec.restartPolicy`
    pub restart: RestartPolicy,
    /// `spec.terminationGracePeriodSeconds`
    pub grace: Duration,
    /// `spec.activeDeadlineSeconds`
    pub active_deadline: Option<Duration>,
    /// `spec.enableServiceLinks`
    pub service_links: bool,
    /// Names of `spec.imagePullSecrets`.
    pub pull_secrets: Vec<String>,
    /// `status.qosClass` as it follows from requests and limits.
    pub qos: &'static str,
    /// When the scheduler bound it.
    pub scheduled: Option<Timestamp>,
    /// Conditions that others own, to be kept when the status is written. Mostly none.
    pub conditions: Vec<core::PodCondition>,
    /// How many of `containers` are init containers; they come first.
    pub init: usize,
    /// Init containers and containers.
    pub containers: Vec<ContainerSpec>,
}

/// `spec.restartPolicy`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// Only after a failure.
    OnFailure,
    /// Not at all.
    Never,
}

/// The part of a container that its node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Container name.
    pub name: String,
    /// Image reference as written.
    pub image: String,
    /// `imagePullPolicy`
    pub pull: PullPolicy,
    /// An init container with `restartPolicy: Always`: starts in its turn and stays.
    pub sidecar: bool,
    /// `command`
    pub command: Vec<String>,
    /// `args`
    pub args: Vec<String>,
    /// `envFrom`
    pub env_from: Vec<EnvFrom>,
    /// `env`
    pub env: Vec<(String, EnvValue)>,
    /// Bounds for the worker.
    pub limits: protocol::Limits,
    /// `resources.requests`, for `resourceFieldRef`: millicores and bytes.
    pub requests: (Option<u32>, Option<u64>),
    /// Declared ports.
    pub ports: Vec<protocol::Port>,
}

/// `imagePullPolicy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Ask only for what is not here.
    IfNotPresent,
    /// Never ask.
    Never,
}

/// One entry of `envFrom`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFrom {
    /// Put before each name.
    pub prefix: String,
    /// Where the variables are.
    pub source: Source,
    /// Whether the source may be absent.
    pub optional: bool,
}

/// A ConfigMap or Secret of the Pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A ConfigMap's name.
    ConfigMap(String),
    /// A Secret's name.
    Secret(String),
}

/// Where an environment variable gets its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// Text with `$(NAME)` references.
    Plain(String),
    /// One key of a ConfigMap or Secret.
    Key {
        /// The object.
        source: Source,
        /// Its key.
        key: String,
        /// Whether object or key may be absent; then the variable is left out.
        optional: bool,
    },
    /// `fieldRef.fieldPath`
    Field(String),
    /// `resourceFieldRef`
    Resource {
        /// Which container; its own if `None`.
        container: Option<String>,
        /// `limits.cpu`, `requests.memory` and so on.
        resource: String,
        /// Unit; `1` if absent.
        divisor: Option<String>,
    },
    /// A kind of reference that this node cannot read; the container does not start.
    Unknown(&'static str),
}

impl PodSpec {
    /// Index of a container by its name.
    pub fn container(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|container| container.name == name)
    }

    /// Whether the container at `index` belongs to the init containers.
    pub fn is_init(&self, index: usize) -> bool {
        index < self.init
    }
}

/// Reads a Pod of the API. `None` if it has no uid, name, namespace or node: then it is not ours.
pub fn read(pod: core::Pod) -> Option<(Desired, Option<core::PodStatus>)> {
    let core::Pod { metadata, spec, status } = pod;
    let deletion = metadata.deletion_timestamp.as_ref().map(|_| Deletion {
        grace: seconds(metadata.deletion_grace_period_seconds).unwrap_or(GRACE_DEFAULT),
        gone: false,
    });
    let spec = pod_spec(metadata, spec?, status.as_ref())?;
    Some((Desired { spec: Arc::new(spec), deletion }, status))
}

fn pod_spec(
    metadata: ObjectMeta,
    spec: core::PodSpec,
    status: Option<&core::PodStatus>,
) -> Option<PodSpec> {
    let qos = qos_class(&spec);
    let init: Vec<ContainerSpec> =
        spec.init_containers.into_iter().flatten().map(container).collect();
    let first = init.len();
    let mut containers = init;
    containers.extend(spec.containers.into_iter().map(container));
    let mut annotations = metadata.annotations.unwrap_or_default();
    let deadline = annotations
        .get(ANNOTATION_REQUEST_DEADLINE)
        .and_then(|text| text.parse::<u64>().ok())
        .map(|seconds| seconds.saturating_mul(1000));
    for container in &mut containers {
        container.limits.request_deadline_ms = deadline;
    }
    if !containers.iter().any(refers_to_annotations) {
        annotations.clear();
    }
    Some(PodSpec {
        uid: metadata.uid?,
        name: metadata.name?,
        namespace: metadata.namespace?,
        labels: metadata.labels.unwrap_or_default(),
        annotations,
        generation: metadata.generation,
        node: spec.node_name?,
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        restart: match spec.restart_policy.as_deref() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        },
        grace: seconds(spec.termination_grace_period_seconds).unwrap_or(GRACE_DEFAULT),
        active_deadline: seconds(spec.active_deadline_seconds),
        service_links: spec.enable_service_links.unwrap_or(true),
        pull_secrets: spec
            .image_pull_secrets
            .into_iter()
            .flatten()
            .map(|reference| reference.name)
            .collect(),
        qos,
        scheduled: status.and_then(scheduled_at),
        conditions: status.map(foreign_conditions).unwrap_or_default(),
        init: first,
        containers,
    })
}

fn refers_to_annotations(container: &ContainerSpec) -> bool {
    container.env.iter().any(
        |(_, value)| matches!(value, EnvValue::Field(path) if path.starts_with("metadata.annot")),
    )
}

/// Condition types that the node writes; `PodScheduled` is written again as the scheduler left it.
pub const CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

fn foreign_conditions(status: &core::PodStatus) -> Vec<core::PodCondition> {
    let all = status.conditions.iter().flatten();
    all.filter(|condition| !CONDITIONS.contains(&condition.type_.as_str())).cloned().collect()
}

fn scheduled_at(status: &core::PodStatus) -> Option<Timestamp> {
    let conditions = status.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

fn seconds(value: Option<i64>) -> Option<Duration> {
    value.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn container(container: core::Container) -> ContainerSpec {
    let image = container.image.unwrap_or_default();
    let resources = container.resources.unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    ContainerSpec {
        name: container.name,
        pull: match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some(_) => PullPolicy::IfNotPresent,
            None => super::images::default_policy(&image),
        },
        image,
        sidecar: container.restart_policy.as_deref() == Some("Always"),
        command: container.command.unwrap_or_default(),
        args: container.args.unwrap_or_default(),
        env_from: container.env_from.into_iter().flatten().filter_map(env_from).collect(),
        env: container
            .env
            .into_iter()
            .flatten()
            .map(|variable| {
                let value = env_value(variable.value, variable.value_from);
                (variable.name, value)
            })
            .collect(),
        limits: protocol::Limits {
            memory_bytes: limits.get("memory").and_then(bytes),
            cpu_millis: limits.get("cpu").and_then(millis),
            request_deadline_ms: None,
        },
        requests: (requests.get("cpu").and_then(millis), requests.get("memory").and_then(bytes)),
        ports: container.ports.into_iter().flatten().filter_map(port).collect(),
    }
}

fn port(port: core::ContainerPort) -> Option<protocol::Port> {
    Some(protocol::Port {
        name: port.name,
        port: u16::try_from(port.container_port).ok()?,
        protocol: transport(port.protocol.as_deref())?,
    })
}

/// The transport of a port; `None` for one that guests cannot speak (SCTP).
pub fn transport(name: Option<&str>) -> Option<protocol::Protocol> {
    match name {
        None | Some("TCP" | "") => Some(protocol::Protocol::Tcp),
        Some("UDP") => Some(protocol::Protocol::Udp),
        Some(_) => None,
    }
}

fn env_from(source: core::EnvFromSource) -> Option<EnvFrom> {
    let (reference, optional) = match (source.config_map_ref, source.secret_ref) {
        (Some(map), _) => (Source::ConfigMap(map.name), map.optional),
        (None, Some(secret)) => (Source::Secret(secret.name), secret.optional),
        (None, None) => return None,
    };
    Some(EnvFrom {
        prefix: source.prefix.unwrap_or_default(),
        source: reference,
        optional: optional.unwrap_or(false),
    })
}

fn env_value(value: Option<String>, from: Option<core::EnvVarSource>) -> EnvValue {
    let Some(from) = from else {
        return EnvValue::Plain(value.unwrap_or_default());
    };
    if let Some(reference) = from.config_map_key_ref {
        EnvValue::Key {
            source: Source::ConfigMap(reference.name),
            key: reference.key,
            optional: reference.optional.unwrap_or(false),
        }
    } else if let Some(reference) = from.secret_key_ref {
        EnvValue::Key {
            source: Source::Secret(reference.name),
            key: reference.key,
            optional: reference.optional.unwrap_or(false),
        }
    } else if let Some(reference) = from.field_ref {
        EnvValue::Field(reference.field_path)
    } else if let Some(reference) = from.resource_field_ref {
        EnvValue::Resource {
            container: reference.container_name.filter(|name| !name.is_empty()),
            resource: reference.resource,
            divisor: reference.divisor.map(|quantity| quantity.0),
        }
    } else {
        EnvValue::Unknown("fileKeyRef needs a volume, which a Wasm guest does not have")
    }
}

fn bytes(value: &Quantity) -> Option<u64> {
    quantity::Quantity::parse(&value.0).ok().and_then(|quantity| quantity.value().try_into().ok())
}

fn millis(value: &Quantity) -> Option<u32> {
    quantity::Quantity::parse(&value.0).ok().and_then(|quantity| quantity.millis().try_into().ok())
}

/// `Guaranteed` if every container has equal requests and limits for cpu and memory, `BestEffort` if
/// none has any, else `Burstable`.
fn qos_class(spec: &core::PodSpec) -> &'static str {
    let mut guaranteed = true;
    let mut best_effort = true;
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let empty = BTreeMap::new();
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref()).unwrap_or(&empty);
        let requests = resources.and_then(|r| r.requests.as_ref()).unwrap_or(&empty);
        for resource in ["cpu", "memory"] {
            let (limit, request) = (limits.get(resource), requests.get(resource));
            best_effort &= limit.is_none() && request.is_none();
            let equal = match (limit, request) {
                (Some(limit), Some(request)) => limit == request,
                (Some(_), None) => true,
                _ => false,
            };
            guaranteed &= equal;
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}
