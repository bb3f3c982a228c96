//! What a Pod asks for, as far as a node needs it.
//!
//! The API's `Pod` takes several kilobytes in memory; a node with 5,000 of them cannot keep them.
//! This form is made once when a Pod arrives and shared by whoever works for it; everything else of
//! the object is dropped at once.

mod checks;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1 as core, apimachinery::pkg::api::resource::Quantity,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use wherry_resources::handling::{self, Handling};
use wherry_resources::{defaults, quantity};

use crate::protocol;

use super::placement::Placement;

pub use self::volumes::{Content, Files, Part, Sub, TokenItem, Volume, VolumeMount, no_csi_driver};

/// What `terminationGracePeriodSeconds` is when nothing says otherwise.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Longest time of a Pod, a hundred years: it may ask for more than there are on the calendar.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

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
    /// What the Pod calls itself: `hostname`, or its name; with its domain where it asked for that.
    pub hostname: String,
    /// Its short name and its name with the domain, below a `subdomain`.
    pub full_name: Option<(String, String)>,
    /// `hostAliases`
    pub hosts: Vec<protocol::HostAlias>,
    /// `dnsPolicy` and `dnsConfig`
    pub dns: protocol::Dns,
    /// `spec.priority`
    pub priority: i32,
    /// `readinessGates`
    pub gates: Vec<String>,
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
    /// `status.qosClass`
    pub qos: &'static str,
    /// When the scheduler bound it.
    pub scheduled: Option<Timestamp>,
    /// What it asks of its node; kept only until the node has said that it began.
    pub placement: Option<Placement>,
    /// Conditions that others own, to be kept when the status is written. Mostly none.
    pub conditions: Vec<core::PodCondition>,
    /// Volumes that containers mount.
    pub volumes: Vec<Volume>,
    /// How many of `containers` are init containers; they come first.
    pub init: usize,
    /// Where the ephemeral containers begin; they come last, and more may come later.
    pub ephemeral: usize,
    /// Init containers, containers, ephemeral containers.
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

/// `restartPolicy` and `restartPolicyRules` of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Instead of the Pod's.
    pub policy: Option<RestartPolicy>,
    /// Exit codes after which it is started again whatever the policy; the first that holds counts,
    /// and all of them say the same.
    pub rules: Vec<RestartRule>,
}

/// An entry of `restartPolicyRules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartRule {
    /// Whether the code must be one of these, or none of these.
    pub listed: bool,
    /// Exit codes.
    pub codes: Vec<i32>,
}

impl Restarts {
    /// Whether a container of a Pod with this policy is started again after this exit.
    pub fn after(&self, code: i32, of_pod: RestartPolicy) -> bool {
        let holds = |rule: &RestartRule| rule.codes.contains(&code) == rule.listed;
        if self.rules.iter().any(holds) {
            return true;
        }
        match self.policy.unwrap_or(of_pod) {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
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
    /// When it is started again.
    pub restarts: Restarts,
    /// `workingDir`
    pub cwd: Option<String>,
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
    /// Limit and request of `ephemeral-storage`.
    pub storage: (Option<u64>, Option<u64>),
    /// Declared ports.
    pub ports: Vec<protocol::Port>,
    /// `stdin`
    pub stdin: bool,
    /// `stdinOnce`
    pub stdin_once: bool,
    /// `tty`
    pub tty: bool,
    /// `securityContext.readOnlyRootFilesystem`
    pub read_only_root: bool,
    /// Its probes.
    pub probes: protocol::Probes,
    /// Its hooks.
    pub hooks: protocol::Hooks,
    /// What it mounts.
    pub mounts: Vec<VolumeMount>,
    /// `terminationMessagePath`
    pub message_path: String,
    /// `terminationMessagePolicy: FallbackToLogsOnError`
    pub message_from_log: bool,
}

/// `terminationMessagePath` when nothing says otherwise.
pub const MESSAGE_PATH_DEFAULT: &str = "/dev/termination-log";

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
    /// `fileKeyRef`: a variable in a file that another container of the Pod wrote.
    File {
        /// Where.
        file: EnvFile,
        /// Name of the variable in it.
        key: String,
        /// Whether file or variable may be absent; then the variable is left out.
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

/// A file of variables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnvFile {
    /// The volume that it is in, an `emptyDir`.
    pub volume: String,
    /// Its path there.
    pub path: String,
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

    /// The containers that the Pod is there for.
    pub fn main(&self) -> std::ops::Range<usize> {
        self.init..self.ephemeral
    }

    /// Those that stay as long as the Pod does: sidecars, then its containers.
    pub fn staying(&self) -> impl Iterator<Item = usize> {
        let sidecars = (0..self.init).filter(move |index| self.containers[*index].sidecar);
        sidecars.chain(self.main())
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
    let qos = qos_class(&spec, status);
    let is_new = status.is_none_or(|status| status.start_time.is_none());
    let placement = is_new.then(|| Placement::of(&spec));
    let init: Vec<ContainerSpec> =
        spec.init_containers.into_iter().flatten().map(container).collect();
    let first = init.len();
    let mut containers = init;
    containers.extend(spec.containers.into_iter().map(container));
    let ephemeral = containers.len();
    containers.extend(spec.ephemeral_containers.into_iter().flatten().map(ephemeral_container));
    let mounted: BTreeSet<String> =
        containers.iter().flat_map(|it| &it.mounts).map(|mount| mount.volume.clone()).collect();
    let pod = metadata.name.as_deref().unwrap_or("");
    let volumes = volumes::volumes(pod, spec.volumes.unwrap_or_default(), &mounted);
    let mut annotations = metadata.annotations.unwrap_or_default();
    let handling = handling::read(|name| annotations.get(name).map(String::as_str));
    for container in &mut containers {
        container.limits.handling = handling;
    }
    let shown = |volume: &Volume| matches!(&volume.content, Content::Files(files) if files.shows_annotations());
    if !containers.iter().any(refers_to_annotations) && !volumes.iter().any(shown) {
        annotations.clear();
    }
    let (name, namespace) = (metadata.name?, metadata.namespace?);
    let fqdn = spec.set_hostname_as_fqdn.unwrap_or(false);
    let host = spec.hostname_override.or(spec.hostname);
    let short = short_name(&name, host);
    let subdomain = spec.subdomain.filter(|text| !text.is_empty());
    let full_name = subdomain.map(|subdomain| {
        let domain = format!("{subdomain}.{namespace}.svc.{}", super::CLUSTER_DOMAIN);
        (short.clone(), format!("{short}.{domain}"))
    });
    let hostname = match &full_name {
        Some((_, full)) if fqdn => full.clone(),
        _ => short,
    };
    let dns = dns(spec.dns_policy.as_deref(), spec.dns_config.unwrap_or_default());
    Some(PodSpec {
        uid: metadata.uid?,
        name,
        namespace,
        hostname,
        full_name,
        hosts: spec.host_aliases.into_iter().flatten().flat_map(host_alias).collect(),
        dns,
        priority: spec.priority.unwrap_or(0),
        gates: spec.readiness_gates.into_iter().flatten().map(|gate| gate.condition_type).collect(),
        labels: metadata.labels.unwrap_or_default(),
        annotations,
        generation: metadata.generation,
        node: spec.node_name?,
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        restart: restart_policy(spec.restart_policy.as_deref().unwrap_or("Always")),
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
        placement,
        conditions: status.map(foreign_conditions).unwrap_or_default(),
        volumes,
        init: first,
        ephemeral,
        containers,
    })
}

/// The longest host name.
const HOSTNAME_BYTES_MAX: usize = 63;

fn short_name(name: &str, hostname: Option<String>) -> String {
    let short = hostname.filter(|text| !text.is_empty()).unwrap_or_else(|| name.to_owned());
    let end = short.floor_char_boundary(HOSTNAME_BYTES_MAX);
    short[..end].trim_end_matches(['-', '.']).to_owned()
}

fn dns(policy: Option<&str>, config: core::PodDNSConfig) -> protocol::Dns {
    let options = config.options.unwrap_or_default();
    let options = options.iter().map(|it| (it.name.as_deref().unwrap_or(""), it.value.as_deref()));
    protocol::Dns::new(policy, config.searches.unwrap_or_default(), options)
}

fn host_alias(alias: core::HostAlias) -> Vec<protocol::HostAlias> {
    let Ok(ip) = alias.ip.parse() else {
        return Vec::new();
    };
    let names = alias.hostnames.into_iter().flatten();
    names.map(|name| protocol::HostAlias { name: name.to_lowercase(), ip }).collect()
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
    value.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(TIME_MAX))
}

/// An ephemeral container is a container that is started once.
fn ephemeral_container(it: core::EphemeralContainer) -> ContainerSpec {
    let mut spec = container(core::Container {
        name: it.name,
        image: it.image,
        image_pull_policy: it.image_pull_policy,
        working_dir: it.working_dir,
        command: it.command,
        args: it.args,
        env: it.env,
        env_from: it.env_from,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        tty: it.tty,
        volume_mounts: it.volume_mounts,
        termination_message_path: it.termination_message_path,
        termination_message_policy: it.termination_message_policy,
        ..core::Container::default()
    });
    // A handler without ports would answer on those of the Pod.
    spec.ports.clear();
    spec
}

/// `imagePullPolicy`, with the default that depends on the tag.
fn pull_policy(policy: Option<&str>, image: &str) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => super::images::default_policy(image),
    }
}

fn restart_policy(word: &str) -> RestartPolicy {
    match word {
        "OnFailure" => RestartPolicy::OnFailure,
        "Never" => RestartPolicy::Never,
        _ => RestartPolicy::Always,
    }
}

fn restarts(policy: Option<&str>, rules: Option<Vec<core::ContainerRestartRule>>) -> Restarts {
    let rules = rules.into_iter().flatten().filter(|rule| rule.action == "Restart");
    let codes = rules.filter_map(|rule| rule.exit_codes).map(|codes| RestartRule {
        listed: codes.operator == "In",
        codes: codes.values.unwrap_or_default(),
    });
    Restarts { policy: policy.map(restart_policy), rules: codes.collect() }
}

fn container(container: core::Container) -> ContainerSpec {
    let (probes, hooks) = (checks::probes(&container), checks::hooks(&container));
    let image = container.image.unwrap_or_default();
    let resources = container.resources.unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    ContainerSpec {
        name: container.name,
        pull: pull_policy(container.image_pull_policy.as_deref(), &image),
        image,
        sidecar: container.restart_policy.as_deref() == Some("Always"),
        restarts: restarts(container.restart_policy.as_deref(), container.restart_policy_rules),
        cwd: container.working_dir.filter(|path| !path.is_empty()),
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
        // In Kubernetes a limit of zero is none.
        limits: protocol::Limits {
            memory_bytes: limits.get("memory").and_then(bytes).filter(|limit| *limit > 0),
            cpu_millis: limits.get("cpu").and_then(millis).filter(|limit| *limit > 0),
            cpu_request_millis: requests.get("cpu").and_then(millis),
            handling: Handling::default(),
        },
        requests: (requests.get("cpu").and_then(millis), requests.get("memory").and_then(bytes)),
        storage: (limits.get(STORAGE).and_then(bytes), requests.get(STORAGE).and_then(bytes)),
        ports: container.ports.into_iter().flatten().filter_map(port).collect(),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        read_only_root: container
            .security_context
            .and_then(|context| context.read_only_root_filesystem)
            .unwrap_or(false),
        probes,
        hooks,
        mounts: volumes::mounts(container.volume_mounts),
        message_path: container
            .termination_message_path
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| MESSAGE_PATH_DEFAULT.to_owned()),
        message_from_log: container.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError"),
    }
}

/// The resource of local files.
const STORAGE: &str = "ephemeral-storage";

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
        resource_value(reference)
    } else if let Some(reference) = from.file_key_ref {
        EnvValue::File {
            file: EnvFile { volume: reference.volume_name, path: reference.path },
            key: reference.key,
            optional: reference.optional.unwrap_or(false),
        }
    } else {
        EnvValue::Unknown("a source of a kind that this node does not know")
    }
}

fn resource_value(reference: core::ResourceFieldSelector) -> EnvValue {
    EnvValue::Resource {
        container: reference.container_name.filter(|name| !name.is_empty()),
        resource: reference.resource,
        divisor: reference.divisor.map(|quantity| quantity.0),
    }
}

fn bytes(value: &Quantity) -> Option<u64> {
    quantity::Quantity::parse(&value.0).ok().and_then(|quantity| quantity.value().try_into().ok())
}

fn millis(value: &Quantity) -> Option<u32> {
    quantity::Quantity::parse(&value.0).ok().and_then(|quantity| quantity.millis().try_into().ok())
}

/// The quality of service, as the API has said it.
fn qos_class(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> &'static str {
    let said = status.and_then(|status| status.qos_class.as_deref());
    let known = ["Guaranteed", "Burstable", "BestEffort"];
    known.into_iter().find(|class| said == Some(*class)).unwrap_or_else(|| {
        let spec = serde_json::to_value(spec).unwrap_or_default();
        spec.as_object().map_or("BestEffort", defaults::qos_class)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stay_on_the_calendar() {
        assert_eq!(seconds(Some(-1)), Some(Duration::ZERO));
        assert_eq!(seconds(Some(7)), Some(Duration::from_secs(7)));
        assert_eq!(seconds(Some(i64::MAX)), Some(TIME_MAX));
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let limits = |limits: &str| {
            let text = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
                "containers":[{"name":"app","image":"i","resources":{"limits":LIMITS}}]}}"#;
            let pod = serde_json::from_str(&text.replace("LIMITS", limits)).expect("a Pod");
            let spec = read(pod).expect("a Pod of a node").0.spec;
            let limits = &spec.containers[0].limits;
            (limits.memory_bytes, limits.cpu_millis)
        };
        assert_eq!(limits(r#"{"memory":"0","cpu":"0"}"#), (None, None));
        assert_eq!(limits(r#"{"memory":"1Ki","cpu":"1n"}"#), (Some(1024), Some(1)));
    }

    #[test]
    fn quality_of_service_is_what_the_api_says() {
        let class = |limits: &str, status: &str| {
            let text = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
                "containers":[{"name":"app","image":"i","resources":LIMITS}]},"status":STATUS}"#;
            let text = text.replace("LIMITS", limits).replace("STATUS", status);
            let pod = serde_json::from_str(&text).expect("a Pod");
            read(pod).expect("a Pod of a node").0.spec.qos
        };
        assert_eq!(class(r#"{"requests":{"cpu":"0"}}"#, "{}"), "BestEffort");
        let same = r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m"}}"#;
        assert_eq!(class(same, "{}"), "Guaranteed");
        assert_eq!(class(same, r#"{"qosClass":"Burstable"}"#), "Burstable");
    }

    #[test]
    fn containers_are_started_again_by_their_own_policies_and_rules() {
        let pod = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},
            "spec":{"nodeName":"n","restartPolicy":"Never","containers":[
                {"name":"plain","image":"i"},
                {"name":"own","image":"i","restartPolicy":"OnFailure"},
                {"name":"in","image":"i","restartPolicy":"Never","restartPolicyRules":[
                    {"action":"Restart","exitCodes":{"operator":"In","values":[42,7]}}]},
                {"name":"not","image":"i","restartPolicy":"Never","restartPolicyRules":[
                    {"action":"Restart","exitCodes":{"operator":"NotIn","values":[0]}}]},
                {"name":"new","image":"i","restartPolicy":"Never","restartPolicyRules":[
                    {"action":"Other","exitCodes":{"operator":"NotIn","values":[]}}]}]}}"#;
        let pod = serde_json::from_str(pod).expect("a Pod");
        let spec = read(pod).expect("a Pod of a node").0.spec;
        let after = |code| {
            let again = spec.containers.iter().filter(|it| it.restarts.after(code, spec.restart));
            again.map(|it| it.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after(0), "");
        assert_eq!(after(1), "own not");
        assert_eq!(after(42), "own in not");
    }
}
