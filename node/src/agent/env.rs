//! The environment and arguments of a guest, by the rules of Kubernetes.
//!
//! Order, later wins: `HOSTNAME`, service variables, `envFrom`, `env`. `$(NAME)` in `env` values,
//! `command` and `args` refers to variables defined before; `$$` is a dollar sign; a name that is not
//! defined stays as it is written. A reference that cannot be resolved is an error unless it is
//! optional: the container then waits with `CreateContainerConfigError`.
//!
//! A guest gets nothing of the host's environment.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::protocol;

use super::{
    env_file, images, node,
    routes::ServiceInfo,
    spec::{ContainerSpec, EnvFile, EnvValue, PodSpec, Source},
};

/// What is outside the Pod's spec.
pub struct Context<'a> {
    /// The Pod's address.
    pub pod_ip: IpAddr,
    /// The node's address.
    pub host_ip: IpAddr,
    /// Services whose variables the Pod gets: `default/kubernetes` and those of its namespace.
    pub services: &'a [ServiceInfo],
    /// Contents of the ConfigMaps and Secrets that [`sources`] names; `None` if it does not exist.
    pub objects: &'a BTreeMap<Source, Option<BTreeMap<String, Vec<u8>>>>,
    /// Texts of the files that [`files`] names; `None` if it does not exist.
    pub files: &'a BTreeMap<EnvFile, Option<String>>,
    /// Stands for a limit that is not set: millicores.
    pub cpu_default: u32,
    /// Stands for a limit that is not set: bytes.
    pub memory_default: u64,
    /// Stands for a limit that is not set: bytes of disk.
    pub storage_default: u64,
}

/// What stands for a memory limit that is not set: the worker's own default.
pub const MEMORY_DEFAULT: u64 = 128 << 20;

impl Context<'static> {
    /// A context without services, objects and files, in which limits that are not set are the
    /// machine's.
    pub fn defaults(pod_ip: IpAddr, host_ip: IpAddr) -> Context<'static> {
        static NONE: BTreeMap<Source, Option<BTreeMap<String, Vec<u8>>>> = BTreeMap::new();
        static NO_FILES: BTreeMap<EnvFile, Option<String>> = BTreeMap::new();
        let cores = node::cores();
        Context {
            pod_ip,
            host_ip,
            services: &[],
            objects: &NONE,
            files: &NO_FILES,
            cpu_default: u32::try_from(cores * 1000).unwrap_or(u32::MAX),
            memory_default: MEMORY_DEFAULT,
            storage_default: u64::MAX,
        }
    }
}

/// Why a container's environment cannot be made. The text goes to the Pod's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret is not there.
    #[error("{0}")]
    NotFound(String),
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The Pod's namespace.
        namespace: String,
        /// The key that was asked for.
        key: String,
    },
    /// A file of variables is not there, or has no such variable.
    #[error("environment variable key {key:?} not found in file {path:?} of volume {volume:?}")]
    NoFileKey {
        /// The volume.
        volume: String,
        /// The file in it.
        path: String,
        /// The name that was asked for.
        key: String,
    },
    /// A file is none of variables.
    #[error("couldn't parse env file {path:?} of volume {volume:?}: {why}")]
    File {
        /// The volume.
        volume: String,
        /// The file in it.
        path: String,
        /// What is wrong with it.
        why: env_file::Malformed,
    },
    /// A value is not text; Wasm environments are UTF-8.
    #[error("the value of {variable} is not UTF-8 text, which an environment variable must be")]
    NotText {
        /// Name of the variable.
        variable: String,
    },
    /// `fieldRef` or `resourceFieldRef` names something that cannot be read.
    #[error("environment variable {variable}: {path} cannot be read by a Pod")]
    Field {
        /// Name of the variable.
        variable: String,
        /// The path that was asked for.
        path: String,
    },
}

/// The ConfigMaps and Secrets that a container refers to, without repetition.
pub fn sources(container: &ContainerSpec) -> Vec<Source> {
    let mut all: Vec<Source> = container.env_from.iter().map(|from| from.source.clone()).collect();
    for (_, value) in &container.env {
        if let EnvValue::Key { source, .. } = value {
            all.push(source.clone());
        }
    }
    all.sort();
    all.dedup();
    all
}

/// The files of variables that a container refers to, without repetition.
pub fn files(container: &ContainerSpec) -> Vec<EnvFile> {
    let named = container.env.iter().filter_map(|(_, value)| match value {
        EnvValue::File { file, .. } => Some(file.clone()),
        _ => None,
    });
    let mut all: Vec<EnvFile> = named.collect();
    all.sort();
    all.dedup();
    all
}

/// Environment and `argv` of the container at `index`.
pub fn build(
    spec: &PodSpec,
    index: usize,
    context: &Context<'_>,
) -> Result<(protocol::Env, Vec<String>), EnvError> {
    let container = &spec.containers[index];
    let mut env = Variables::default();
    env.set("HOSTNAME", spec.hostname.clone());
    for service in context.services {
        service_variables(service, &mut env);
    }
    if let Some(cwd) = &container.cwd {
        env.set("PWD", cwd.clone());
    }
    for from in &container.env_from {
        let Some(object) = object(context, &from.source, from.optional)? else {
            continue;
        };
        for (key, value) in object {
            let name = format!("{}{key}", from.prefix);
            if is_name(&name) && !is_binary(&from.source, value) {
                let value = text(&name, value)?;
                env.set(&name, value);
            }
        }
    }
    for (name, value) in &container.env {
        if let Some(value) = resolve(spec, container, context, name, value, &env)? {
            env.set(name, value);
        }
    }
    let mut args: Vec<String> = if container.command.is_empty() {
        vec![images::program_name(&container.image)]
    } else {
        container.command.iter().map(|part| env.expand(part)).collect()
    };
    args.extend(container.args.iter().map(|part| env.expand(part)));
    Ok((protocol::Env(env.into_list()), args))
}

/// `$(NAME)` in a path, by a finished environment. A variable that is missing or empty would lead
/// elsewhere: the error names it.
pub fn expand_path(env: &protocol::Env, text: &str) -> Result<String, String> {
    let mut missing = None;
    let path = expanded(text, |name| {
        let found = env.0.iter().find(|(known, value)| known == name && !value.is_empty());
        if found.is_none() {
            missing.get_or_insert_with(|| name.to_owned());
        }
        found.map(|(_, value)| value.as_str())
    });
    match missing {
        None => Ok(path),
        Some(name) => Err(format!("missing value for {name:?}")),
    }
}

/// The value of one variable; `None` if it is left out.
fn resolve(
    spec: &PodSpec,
    container: &ContainerSpec,
    context: &Context<'_>,
    name: &str,
    value: &EnvValue,
    env: &Variables,
) -> Result<Option<String>, EnvError> {
    match value {
        EnvValue::Plain(text) => Ok(Some(env.expand(text))),
        EnvValue::Key { source, key, optional } => {
            let Some(object) = object(context, source, *optional)? else {
                return Ok(None);
            };
            match object.get(key).filter(|value| !is_binary(source, value)) {
                Some(value) => text(name, value).map(Some),
                None if *optional => Ok(None),
                None => {
                    let (kind, object) = match source {
                        Source::ConfigMap(name) => ("ConfigMap", name),
                        Source::Secret(name) => ("Secret", name),
                    };
                    Err(EnvError::NoKey {
                        kind,
                        name: object.clone(),
                        namespace: spec.namespace.clone(),
                        key: key.clone(),
                    })
                }
            }
        }
        EnvValue::File { file, key, optional } => {
            let EnvFile { volume, path } = file.clone();
            let text = context.files.get(file).and_then(Option::as_ref);
            let found = match text.map(|text| env_file::find(text, key)).transpose() {
                Ok(found) => found.flatten(),
                Err(why) => return Err(EnvError::File { volume, path, why }),
            };
            match found {
                Some(value) => Ok(Some(value.to_owned())),
                None if *optional => Ok(None),
                None => Err(EnvError::NoFileKey { volume, path, key: key.clone() }),
            }
        }
        EnvValue::Field(path) => field(spec, context, path)
            .map(Some)
            .ok_or_else(|| EnvError::Field { variable: name.to_owned(), path: path.clone() }),
        EnvValue::Resource { container: other, resource, divisor } => {
            let source = match other {
                Some(other) => spec.container(other).map(|index| &spec.containers[index]),
                None => Some(container),
            };
            source
                .and_then(|source| amount(source, context, resource, divisor.as_deref()))
                .map(Some)
                .ok_or_else(|| EnvError::Field {
                    variable: name.to_owned(),
                    path: resource.clone(),
                })
        }
        EnvValue::Unknown(why) => {
            Err(EnvError::Field { variable: name.to_owned(), path: (*why).to_owned() })
        }
    }
}

/// Contents of a ConfigMap or Secret; `None` if it is absent and may be.
fn object<'a>(
    context: &Context<'a>,
    source: &Source,
    optional: bool,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, EnvError> {
    match context.objects.get(source) {
        Some(Some(object)) => Ok(Some(object)),
        _ if optional => Ok(None),
        _ => Err(EnvError::NotFound(not_found(source))),
    }
}

/// A ConfigMap or Secret is not there, in the words of a kubelet.
pub fn not_found(source: &Source) -> String {
    match source {
        Source::ConfigMap(name) => format!("configmap {name:?} not found"),
        Source::Secret(name) => format!("secret {name:?} not found"),
    }
}

/// What is no text in a ConfigMap is its binaryData, which is for volumes alone.
fn is_binary(source: &Source, value: &[u8]) -> bool {
    matches!(source, Source::ConfigMap(_)) && std::str::from_utf8(value).is_err()
}

fn text(variable: &str, value: &[u8]) -> Result<String, EnvError> {
    String::from_utf8(value.to_vec())
        .map_err(|_| EnvError::NotText { variable: variable.to_owned() })
}

/// What a variable may be called: printable ASCII without `=`.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

/// A field or resource of the Pod, for a file.
pub fn value(spec: &PodSpec, value: &EnvValue, context: &Context<'_>) -> Option<String> {
    match value {
        EnvValue::Field(path) => match path.as_str() {
            "metadata.labels" => Some(lines(&spec.labels)),
            "metadata.annotations" => Some(lines(&spec.annotations)),
            path => field(spec, context, path),
        },
        EnvValue::Resource { container, resource, divisor } => {
            let index = spec.container(container.as_deref()?)?;
            amount(&spec.containers[index], context, resource, divisor.as_deref())
        }
        EnvValue::Plain(_)
        | EnvValue::Key { .. }
        | EnvValue::File { .. }
        | EnvValue::Unknown(_) => None,
    }
}

/// `key="value"` lines, as files show labels.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// `fieldRef`.
fn field(spec: &PodSpec, context: &Context<'_>, path: &str) -> Option<String> {
    if let Some(key) = subscript(path, "metadata.labels") {
        return Some(spec.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Some(spec.annotations.get(key).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => spec.name.clone(),
        "metadata.namespace" => spec.namespace.clone(),
        "metadata.uid" => spec.uid.clone(),
        "spec.nodeName" => spec.node.clone(),
        "spec.serviceAccountName" => spec.service_account.clone(),
        "status.podIP" | "status.podIPs" => context.pod_ip.to_string(),
        "status.hostIP" | "status.hostIPs" => context.host_ip.to_string(),
        _ => return None,
    })
}

/// The key of `path['key']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// `resourceFieldRef`, rounded up to whole divisors.
fn amount(
    container: &ContainerSpec,
    context: &Context<'_>,
    resource: &str,
    divisor: Option<&str>,
) -> Option<String> {
    let limits = &container.limits;
    let (cpu, memory) = match resource {
        "limits.cpu" => (Some(limits.cpu_millis.unwrap_or(context.cpu_default)), None),
        "limits.memory" => (None, Some(limits.memory_bytes.unwrap_or(context.memory_default))),
        "requests.cpu" => (Some(container.requests.0.or(limits.cpu_millis).unwrap_or(0)), None),
        "requests.memory" => {
            (None, Some(container.requests.1.or(limits.memory_bytes).unwrap_or(0)))
        }
        "limits.ephemeral-storage" => {
            (None, Some(container.storage.0.unwrap_or(context.storage_default)))
        }
        "requests.ephemeral-storage" => {
            (None, Some(container.storage.1.or(container.storage.0).unwrap_or(0)))
        }
        _ => return None,
    };
    let divisor = divisor.filter(|text| !text.is_empty() && *text != "0").unwrap_or("1");
    let divisor = wherry_resources::quantity::Quantity::parse(divisor).ok()?;
    let (amount, unit) = match (cpu, memory) {
        (Some(cpu), _) => (u64::from(cpu), u64::try_from(divisor.millis()).ok()?),
        (None, Some(memory)) => (memory, u64::try_from(divisor.value()).ok()?),
        (None, None) => return None,
    };
    (unit > 0).then(|| amount.div_ceil(unit).to_string())
}

/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT` and the older forms next to them.
fn service_variables(service: &ServiceInfo, env: &mut Variables) {
    let (Some(ip), Some(first)) = (service.cluster_ips.first(), service.ports.first()) else {
        return;
    };
    let upper = |text: &str| text.to_uppercase().replace(['-', '.'], "_");
    let name = upper(&service.name);
    let host = match ip {
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    env.set(&format!("{name}_SERVICE_HOST"), ip.to_string());
    env.set(&format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        env.set(&format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string());
    }
    for (index, port) in service.ports.iter().enumerate() {
        let transport = match port.protocol {
            protocol::Protocol::Tcp => "tcp",
            protocol::Protocol::Udp => "udp",
        };
        let url = format!("{transport}://{host}:{}", port.port);
        if index == 0 {
            env.set(&format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, transport.to_uppercase());
        env.set(&prefix, url);
        env.set(&format!("{prefix}_PROTO"), transport.to_owned());
        env.set(&format!("{prefix}_PORT"), port.port.to_string());
        env.set(&format!("{prefix}_ADDR"), ip.to_string());
    }
}

/// Variables in the order of their first definition.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(index) => self.list[*index].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|index| self.list[*index].1.as_str())
    }

    fn into_list(self) -> Vec<(String, String)> {
        self.list
    }

    fn expand(&self, text: &str) -> String {
        expanded(text, |name| self.get(name))
    }
}

/// Replaces `$(NAME)` by its value, if it has one, and `$$` by `$`.
fn expanded<'a>(text: &str, mut value: impl FnMut(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match value(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
