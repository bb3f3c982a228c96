//! What becomes of every field of a Pod on a node that runs Wasm: one table.
//!
//! A field is *honoured*; or it *does not apply* to a Wasm guest, and whoever sends it is told so
//! by a warning; or it is *refused*: the container that needs it does not start, and the warning
//! says it before. No field is ignored in silence: a test holds the table against the messages of the API.
//! `node/README.md` shows the same table to people; another test holds it against this one.

use serde_json::Value;

use crate::{Object, handling, pod_slips, turns};

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It does what Kubernetes says.
    Honoured,
    /// There is nothing in a Wasm guest that it could do something to.
    DoesNotApply,
    /// A container that needs it does not start.
    Refused,
}

impl Answer {
    /// As tables show it.
    pub fn word(self) -> &'static str {
        match self {
            Answer::Honoured => "honoured",
            Answer::DoesNotApply => "does not apply",
            Answer::Refused => "refused",
        }
    }
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The message of the API that has it, without its version.
    pub message: &'static str,
    /// Its name in JSON.
    pub field: &'static str,
    /// What happens to it.
    pub answer: Answer,
    /// How, or why not.
    pub note: &'static str,
    /// Values (as JSON) that ask for nothing, or for what holds anyway: no warning.
    pub fine: &'static [&'static str],
}

use Answer::{DoesNotApply, Honoured, Refused};

const fn row(
    message: &'static str,
    field: &'static str,
    answer: Answer,
    note: &'static str,
    fine: &'static [&'static str],
) -> Row {
    Row { message, field, answer, note, fine }
}

/// A warning needs no reason twice.
const NO_USERS: &str = "a Wasm guest has no Unix user; it reaches nothing but its own volumes";
const NO_KERNEL: &str = "a Wasm guest makes no system calls of its own that this could restrict";
const NO_HOST: &str = "guests never share the host's namespaces";
const OTHER_VOLUME: &str = "volumes of this type cannot be mounted; use a persistentVolumeClaim";
const NO: &[&str] = &["false"];

/// Every field, by message.
pub const ROWS: &[Row] = &[
    row("PodSpec", "volumes", Honoured, "see VolumeSource", &[]),
    row(
        "PodSpec",
        "initContainers",
        Honoured,
        "in order; with restartPolicy Always as sidecars",
        &[],
    ),
    row("PodSpec", "containers", Honoured, "", &[]),
    row("PodSpec", "ephemeralContainers", Honoured, "started once, decide nothing", &[]),
    row("PodSpec", "restartPolicy", Honoured, "back-off 10 s to 5 min", &[]),
    row(
        "PodSpec",
        "terminationGracePeriodSeconds",
        Honoured,
        "handlers drain; commands hear it from stdin or wherry:pod/lifecycle",
        &[],
    ),
    row("PodSpec", "activeDeadlineSeconds", Honoured, "", &[]),
    row(
        "PodSpec",
        "dnsPolicy",
        Honoured,
        "names resolve in the host; Default and None: without the cluster's search domains",
        &[],
    ),
    row("PodSpec", "nodeSelector", Honoured, "by the scheduler; the node looks again", &[]),
    row("PodSpec", "serviceAccountName", Honoured, "", &[]),
    row("PodSpec", "serviceAccount", Honoured, "the old name of serviceAccountName", &[]),
    row("PodSpec", "automountServiceAccountToken", Honoured, "", &[]),
    row("PodSpec", "nodeName", Honoured, "", &[]),
    row("PodSpec", "hostNetwork", DoesNotApply, NO_HOST, NO),
    row("PodSpec", "hostPID", DoesNotApply, NO_HOST, NO),
    row("PodSpec", "hostIPC", DoesNotApply, NO_HOST, NO),
    row(
        "PodSpec",
        "shareProcessNamespace",
        DoesNotApply,
        "guests are not processes and cannot see each other",
        NO,
    ),
    row("PodSpec", "securityContext", Honoured, "see PodSecurityContext", &[]),
    row(
        "PodSpec",
        "imagePullSecrets",
        Honoured,
        "all that cover the image are tried, the longest path first; at last none",
        &[],
    ),
    row("PodSpec", "hostname", Honoured, "HOSTNAME, and the Pod's name in its Service", &[]),
    row("PodSpec", "subdomain", Honoured, "", &[]),
    row("PodSpec", "affinity", Honoured, "by the scheduler; the node looks again", &[]),
    row("PodSpec", "schedulerName", Honoured, "", &[]),
    row("PodSpec", "tolerations", Honoured, "by the scheduler; the node looks again", &[]),
    row("PodSpec", "hostAliases", Honoured, "in name resolution; there is no /etc/hosts", &[]),
    row("PodSpec", "priorityClassName", Honoured, "", &[]),
    row(
        "PodSpec",
        "priority",
        Honoured,
        "by the scheduler, and when a node is short of something",
        &[],
    ),
    row("PodSpec", "dnsConfig", Honoured, "see PodDNSConfig", &[]),
    row("PodSpec", "readinessGates", Honoured, "", &[]),
    row("PodSpec", "runtimeClassName", DoesNotApply, "there is one runtime, for Wasm", &[]),
    row(
        "PodSpec",
        "enableServiceLinks",
        Honoured,
        "false where the namespace has more than 256 Services",
        &[],
    ),
    row("PodSpec", "preemptionPolicy", Honoured, "by the scheduler", &[]),
    row("PodSpec", "overhead", Honoured, "by the scheduler", &[]),
    row("PodSpec", "topologySpreadConstraints", Honoured, "by the scheduler", &[]),
    row("PodSpec", "setHostnameAsFQDN", Honoured, "", &[]),
    row(
        "PodSpec",
        "os",
        DoesNotApply,
        "a Wasm guest has no operating system",
        &["{\"name\":\"linux\"}"],
    ),
    row("PodSpec", "hostUsers", DoesNotApply, NO_USERS, &["false", "true"]),
    row("PodSpec", "schedulingGates", Honoured, "by the scheduler", &[]),
    row("PodSpec", "resourceClaims", DoesNotApply, "a Wasm guest cannot use devices", &[]),
    row("PodSpec", "resources", DoesNotApply, "limits are per container", &[]),
    row("PodSpec", "hostnameOverride", Honoured, "as HOSTNAME", &[]),
    row("PodSpec", "workloadRef", Honoured, "by the scheduler", &[]),
    row("Container", "name", Honoured, "", &[]),
    row("Container", "image", Honoured, "an OCI Wasm artifact", &[]),
    row("Container", "command", Honoured, "argv; $(VAR) is expanded", &[]),
    row("Container", "args", Honoured, "argv; $(VAR) is expanded", &[]),
    row("Container", "workingDir", Honoured, "WASI's initial directory and PWD", &[]),
    row("Container", "ports", Honoured, "see ContainerPort", &[]),
    row("Container", "envFrom", Honoured, "", &[]),
    row("Container", "env", Honoured, "", &[]),
    row("Container", "resources", Honoured, "see ResourceRequirements", &[]),
    row("Container", "resizePolicy", DoesNotApply, "resources change with the next start", &[]),
    row("Container", "restartPolicy", Honoured, "Always makes an init container a sidecar", &[]),
    row("Container", "restartPolicyRules", Honoured, "by exit code", &[]),
    row("Container", "volumeMounts", Honoured, "see VolumeMount", &[]),
    row("Container", "volumeDevices", Refused, "a Wasm guest cannot use block devices", &[]),
    row("Container", "livenessProbe", Honoured, "", &[]),
    row("Container", "readinessProbe", Honoured, "", &[]),
    row("Container", "startupProbe", Honoured, "", &[]),
    row("Container", "lifecycle", Honoured, "see LifecycleHandler", &[]),
    row(
        "Container",
        "terminationMessagePath",
        Honoured,
        "of handlers only if it is not the default",
        &[],
    ),
    row("Container", "terminationMessagePolicy", Honoured, "", &[]),
    row("Container", "imagePullPolicy", Honoured, "", &[]),
    row("Container", "securityContext", Honoured, "see SecurityContext", &[]),
    row("Container", "stdin", Honoured, "a command's input is open until it shall end", &[]),
    row("Container", "stdinOnce", Honoured, "the input ends with the first attach", &[]),
    row("Container", "tty", Honoured, "lines are edited and echoed by the worker", &[]),
    row(
        "EphemeralContainer",
        "targetContainerName",
        DoesNotApply,
        "guests are not processes and cannot see each other",
        &[],
    ),
    row("PodSecurityContext", "seLinuxOptions", DoesNotApply, NO_KERNEL, &[]),
    row("PodSecurityContext", "windowsOptions", DoesNotApply, NO_KERNEL, &[]),
    row("PodSecurityContext", "runAsUser", DoesNotApply, NO_USERS, &[]),
    row("PodSecurityContext", "runAsGroup", DoesNotApply, NO_USERS, &[]),
    row("PodSecurityContext", "runAsNonRoot", Honoured, "a guest is nobody, so never root", &[]),
    row("PodSecurityContext", "supplementalGroups", DoesNotApply, NO_USERS, &[]),
    row("PodSecurityContext", "supplementalGroupsPolicy", DoesNotApply, NO_USERS, &[]),
    row("PodSecurityContext", "fsGroup", DoesNotApply, NO_USERS, &[]),
    row("PodSecurityContext", "sysctls", DoesNotApply, NO_KERNEL, &[]),
    row("PodSecurityContext", "fsGroupChangePolicy", DoesNotApply, NO_USERS, &[]),
    row(
        "PodSecurityContext",
        "seccompProfile",
        Honoured,
        "stricter by nature: a guest makes no system calls",
        &[],
    ),
    row("PodSecurityContext", "appArmorProfile", DoesNotApply, NO_KERNEL, &[]),
    row("PodSecurityContext", "seLinuxChangePolicy", DoesNotApply, NO_KERNEL, &[]),
    row("SecurityContext", "capabilities", Honoured, "a guest has none; add does not apply", &[]),
    row(
        "Capabilities",
        "add",
        DoesNotApply,
        "a Wasm guest never has capabilities of the kernel",
        &[],
    ),
    row("Capabilities", "drop", Honoured, "a guest has none", &[]),
    row("SecurityContext", "privileged", DoesNotApply, "no guest is privileged", NO),
    row("SecurityContext", "seLinuxOptions", DoesNotApply, NO_KERNEL, &[]),
    row("SecurityContext", "windowsOptions", DoesNotApply, NO_KERNEL, &[]),
    row("SecurityContext", "runAsUser", DoesNotApply, NO_USERS, &[]),
    row("SecurityContext", "runAsGroup", DoesNotApply, NO_USERS, &[]),
    row("SecurityContext", "runAsNonRoot", Honoured, "a guest is nobody, so never root", &[]),
    row(
        "SecurityContext",
        "readOnlyRootFilesystem",
        Honoured,
        "a guest has no root file system but that of an aliased image",
        &[],
    ),
    row(
        "SecurityContext",
        "allowPrivilegeEscalation",
        Honoured,
        "there is nothing to escalate to",
        &[],
    ),
    row("SecurityContext", "procMount", DoesNotApply, NO_KERNEL, &["\"Default\""]),
    row(
        "SecurityContext",
        "seccompProfile",
        Honoured,
        "stricter by nature: a guest makes no system calls",
        &[],
    ),
    row("SecurityContext", "appArmorProfile", DoesNotApply, NO_KERNEL, &[]),
    row("ContainerPort", "name", Honoured, "", &[]),
    row("ContainerPort", "hostPort", DoesNotApply, "use a Service of type NodePort", &[]),
    row("ContainerPort", "containerPort", Honoured, "", &[]),
    row(
        "ContainerPort",
        "protocol",
        DoesNotApply,
        "TCP and UDP are honoured; guests have no sockets of SCTP",
        &["\"TCP\"", "\"UDP\""],
    ),
    row("ContainerPort", "hostIP", DoesNotApply, "use a Service of type NodePort", &[]),
    row(
        "ResourceRequirements",
        "limits",
        Honoured,
        "memory (of all instances together), cpu, ephemeral-storage",
        &[],
    ),
    row(
        "ResourceRequirements",
        "requests",
        Honoured,
        "room on the node; cpu is the weight when it is short",
        &[],
    ),
    row("ResourceRequirements", "claims", DoesNotApply, "a Wasm guest cannot use devices", &[]),
    row("EnvVarSource", "fieldRef", Honoured, "", &[]),
    row("EnvVarSource", "resourceFieldRef", Honoured, "", &[]),
    row("EnvVarSource", "configMapKeyRef", Honoured, "", &[]),
    row("EnvVarSource", "secretKeyRef", Honoured, "", &[]),
    row("EnvVarSource", "fileKeyRef", Honoured, "of an emptyDir, read at each start", &[]),
    row("VolumeMount", "name", Honoured, "", &[]),
    row(
        "VolumeMount",
        "readOnly",
        Honoured,
        "a file beside one that may be written to is a copy",
        &[],
    ),
    row("VolumeMount", "recursiveReadOnly", Honoured, "there are no mounts below a volume", &[]),
    row("VolumeMount", "mountPath", Honoured, "one preopened directory each", &[]),
    row("VolumeMount", "subPath", Honoured, "a file is shown in a directory of its own", &[]),
    row(
        "VolumeMount",
        "mountPropagation",
        DoesNotApply,
        "guests cannot mount anything",
        &["\"None\""],
    ),
    row("VolumeMount", "subPathExpr", Honoured, "", &[]),
    row("VolumeSource", "emptyDir", Honoured, "medium Memory and sizeLimit included", &[]),
    row("VolumeSource", "configMap", Honoured, "updated within a minute", &[]),
    row("VolumeSource", "secret", Honoured, "in memory only; updated within a minute", &[]),
    row("VolumeSource", "projected", Honoured, "see VolumeProjection", &[]),
    row("VolumeSource", "downwardAPI", Honoured, "", &[]),
    row(
        "VolumeSource",
        "hostPath",
        Honoured,
        "directories and files, in namespaces labelled privileged",
        &[],
    ),
    row(
        "VolumeSource",
        "persistentVolumeClaim",
        Honoured,
        "own folders, local, hostPath and nfs volumes",
        &[],
    ),
    row("VolumeSource", "ephemeral", Honoured, "as the claim of its name", &[]),
    row("VolumeSource", "image", Honoured, "the artifact as module.wasm", &[]),
    row("VolumeSource", "gcePersistentDisk", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "awsElasticBlockStore", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "gitRepo", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "nfs", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "iscsi", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "glusterfs", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "rbd", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "flexVolume", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "cinder", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "cephfs", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "flocker", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "fc", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "azureFile", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "vsphereVolume", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "quobyte", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "azureDisk", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "photonPersistentDisk", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "portworxVolume", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "scaleIO", Refused, OTHER_VOLUME, &[]),
    row("VolumeSource", "storageos", Refused, OTHER_VOLUME, &[]),
    row(
        "VolumeSource",
        "csi",
        Refused,
        "no node runs CSI drivers; use an emptyDir or a persistentVolumeClaim",
        &[],
    ),
    row(
        "EmptyDirVolumeSource",
        "medium",
        DoesNotApply,
        "Memory is honoured; there are no huge pages, and the disk is used instead",
        &["\"Memory\""],
    ),
    row("EmptyDirVolumeSource", "sizeLimit", Honoured, "a Pod that writes more is evicted", &[]),
    row("VolumeProjection", "secret", Honoured, "", &[]),
    row("VolumeProjection", "downwardAPI", Honoured, "", &[]),
    row("VolumeProjection", "configMap", Honoured, "", &[]),
    row("VolumeProjection", "serviceAccountToken", Honoured, "renewed before it expires", &[]),
    row("VolumeProjection", "clusterTrustBundle", Refused, "use a configMap", &[]),
    row("VolumeProjection", "podCertificate", Refused, "use a secret", &[]),
    row(
        "PodDNSConfig",
        "nameservers",
        DoesNotApply,
        "names resolve in the host; outside as its own do",
        &[],
    ),
    row("PodDNSConfig", "searches", Honoured, "tried after the cluster's own", &[]),
    row("PodDNSConfig", "options", Honoured, "see PodDNSConfigOption", &[]),
    row(
        "PodDNSConfigOption",
        "name",
        DoesNotApply,
        "ndots is honoured; names outside are asked for as the node itself asks",
        &["\"ndots\""],
    ),
    row("PodDNSConfigOption", "value", Honoured, "of ndots", &[]),
    row("Probe", "initialDelaySeconds", Honoured, "", &[]),
    row("Probe", "timeoutSeconds", Honoured, "", &[]),
    row("Probe", "periodSeconds", Honoured, "", &[]),
    row("Probe", "successThreshold", Honoured, "", &[]),
    row("Probe", "failureThreshold", Honoured, "", &[]),
    row("Probe", "terminationGracePeriodSeconds", Honoured, "", &[]),
    row(
        "ProbeHandler",
        "exec",
        Honoured,
        "an export of the image, a program of the toolbox, or its command",
        &[],
    ),
    row("ProbeHandler", "httpGet", Honoured, "straight to the guest", &[]),
    row("ProbeHandler", "tcpSocket", Honoured, "", &[]),
    row("ProbeHandler", "grpc", Honoured, "", &[]),
    row(
        "LifecycleHandler",
        "exec",
        Honoured,
        "an export of the image, a program of the toolbox, or its command",
        &[],
    ),
    row("LifecycleHandler", "httpGet", Honoured, "", &[]),
    row("LifecycleHandler", "tcpSocket", Honoured, "", &[]),
    row("LifecycleHandler", "sleep", Honoured, "", &[]),
    row("Lifecycle", "postStart", Honoured, "", &[]),
    row("Lifecycle", "preStop", Honoured, "", &[]),
    row(
        "Lifecycle",
        "stopSignal",
        DoesNotApply,
        "WASI has no signals; see wherry:pod/lifecycle",
        &[],
    ),
];

/// Which message the value of a field is, where its own fields are in the table.
const NESTED: &[(&str, &str, &str)] = &[
    ("PodSpec", "containers", "Container"),
    ("PodSpec", "initContainers", "Container"),
    ("PodSpec", "ephemeralContainers", "EphemeralContainer"),
    ("PodSpec", "securityContext", "PodSecurityContext"),
    ("PodSpec", "volumes", "VolumeSource"),
    ("PodSpec", "dnsConfig", "PodDNSConfig"),
    ("PodDNSConfig", "options", "PodDNSConfigOption"),
    ("Container", "securityContext", "SecurityContext"),
    ("SecurityContext", "capabilities", "Capabilities"),
    ("Container", "ports", "ContainerPort"),
    ("Container", "resources", "ResourceRequirements"),
    ("Container", "volumeMounts", "VolumeMount"),
    ("Container", "lifecycle", "Lifecycle"),
    ("Container", "env", "EnvVar"),
    ("EnvVar", "valueFrom", "EnvVarSource"),
    ("VolumeSource", "emptyDir", "EmptyDirVolumeSource"),
    ("VolumeSource", "projected", "ProjectedVolumeSource"),
    ("ProjectedVolumeSource", "sources", "VolumeProjection"),
];

/// What a person who sends a Pod should know: a sentence for each field that will not do what it
/// does elsewhere. Empty for most Pods.
pub fn warnings(pod: &Object) -> Vec<String> {
    warnings_of("", pod)
}

/// The same for a Pod's template; `at` is the path to it, with a dot behind.
pub fn warnings_of(at: &str, template: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(spec) = template.get("spec") {
        walk("PodSpec", &format!("{at}spec"), spec, &mut found);
    }
    found.extend(handling::warnings(at, template));
    found.extend(turns::warnings(at, template));
    found.extend(pod_slips::warnings(at, template));
    found
}

fn walk(message: &str, path: &str, value: &Value, found: &mut Vec<String>) {
    if let Value::Array(items) = value {
        for (index, item) in items.iter().enumerate() {
            walk(message, &format!("{path}[{index}]"), item, found);
        }
        return;
    }
    let Value::Object(fields) = value else {
        return;
    };
    for (field, value) in fields {
        let path = format!("{path}.{field}");
        let row = ROWS.iter().find(|row| has(message, row.message) && row.field == field);
        if let Some(row) = row.filter(|row| row.answer != Honoured && asks(row, value)) {
            let what = match row.answer {
                Refused => "is not supported",
                DoesNotApply | Honoured => "does not apply to Wasm",
            };
            found.push(format!("{path}: {what}: {}", row.note));
        }
        let nested = NESTED.iter().find(|(of, name, _)| has(message, of) && name == field);
        if let Some((_, _, inner)) = nested {
            walk(inner, &path, value, found);
        }
    }
}

/// Whether a message has the fields of another: its own, or those that it takes over.
fn has(message: &str, fields_of: &str) -> bool {
    message == fields_of || (message, fields_of) == ("EphemeralContainer", "Container")
}

/// Whether a value asks for something.
fn asks(row: &Row, value: &Value) -> bool {
    let empty = match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    !empty && !row.fine.contains(&value.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plain_pod_is_not_commented_on() {
        let pod = json!({"spec": {
            "containers": [{"name": "a", "image": "b", "stdin": true,
                "securityContext": {"privileged": false, "runAsNonRoot": true,
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"}},
                "ports": [{"containerPort": 80}]}],
            "securityContext": {}, "hostNetwork": false, "dnsPolicy": "ClusterFirst",
            "volumes": [{"name": "v", "emptyDir": {}}],
            "unknown": {"field": 1}}});
        assert_eq!(warnings(&pod), Vec::<String>::new());
        assert_eq!(warnings(&json!({})), Vec::<String>::new());
    }

    #[test]
    fn options_of_resolvers_are_told_apart() {
        let pod = json!({"spec": {"dnsConfig": {"searches": ["corp.example"], "options": [
            {"name": "ndots", "value": "2"}, {"name": "timeout", "value": "1"}, {"name": "rotate"}]}}});
        expect![[r#"
            spec.dnsConfig.options[1].name: does not apply to Wasm: ndots is honoured; names outside are asked for as the node itself asks
            spec.dnsConfig.options[2].name: does not apply to Wasm: ndots is honoured; names outside are asked for as the node itself asks"#]]
        .assert_eq(&warnings(&pod).join("\n"));
    }

    #[test]
    fn what_does_not_apply_is_said() {
        let pod = json!({"spec": {
            "hostNetwork": true,
            "securityContext": {"fsGroup": 1000},
            "containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}],
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}],
            "volumes": [{"name": "v", "csi": {"driver": "x"}}]}});
        expect![[r#"
            spec.hostNetwork: does not apply to Wasm: guests never share the host's namespaces
            spec.securityContext.fsGroup: does not apply to Wasm: a Wasm guest has no Unix user; it reaches nothing but its own volumes
            spec.containers[0].ports[0].hostPort: does not apply to Wasm: use a Service of type NodePort
            spec.containers[0].securityContext.capabilities.add: does not apply to Wasm: a Wasm guest never has capabilities of the kernel
            spec.volumes[0].csi: is not supported: no node runs CSI drivers; use an emptyDir or a persistentVolumeClaim"#]]
        .assert_eq(&warnings(&pod).join("\n"));
    }

    #[test]
    fn values_and_ephemeral_containers_are_looked_at() {
        let pod = json!({"spec": {
            "ephemeralContainers": [{"name": "a", "targetContainerName": "b",
                "securityContext": {"privileged": true}}],
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "h", "emptyDir": {"medium": "HugePages-2Mi"}}],
            "containers": [{"name": "c", "ports": [{"containerPort": 1, "protocol": "TCP"},
                {"containerPort": 2, "protocol": "SCTP"}]}]}});
        expect![[r#"
            spec.ephemeralContainers[0].targetContainerName: does not apply to Wasm: guests are not processes and cannot see each other
            spec.ephemeralContainers[0].securityContext.privileged: does not apply to Wasm: no guest is privileged
            spec.volumes[1].emptyDir.medium: does not apply to Wasm: Memory is honoured; there are no huge pages, and the disk is used instead
            spec.containers[0].ports[1].protocol: does not apply to Wasm: TCP and UDP are honoured; guests have no sockets of SCTP"#]]
        .assert_eq(&warnings(&pod).join("\n"));
    }

    /// Messages that have no rows because the row that leads to them speaks for all their fields.
    const WHOLE: &[&str] = &[
        "Affinity",
        "ConfigMapEnvSource",
        "ConfigMapKeySelector",
        "ConfigMapProjection",
        "ConfigMapVolumeSource",
        "ContainerRestartRule",
        "ContainerRestartRuleOnExitCodes",
        "DownwardAPIProjection",
        "DownwardAPIVolumeFile",
        "DownwardAPIVolumeSource",
        "EnvFromSource",
        "EnvVar",
        "EphemeralVolumeSource",
        "ExecAction",
        "FileKeySelector",
        "GrpcAction",
        "HostAlias",
        "HostPathVolumeSource",
        "HttpGetAction",
        "HttpHeader",
        "ImageVolumeSource",
        "KeyToPath",
        "LabelSelector",
        "LabelSelectorRequirement",
        "LocalObjectReference",
        "NodeAffinity",
        "NodeSelector",
        "NodeSelectorRequirement",
        "NodeSelectorTerm",
        "ObjectFieldSelector",
        "ObjectMeta",
        "OwnerReference",
        "ManagedFieldsEntry",
        "PersistentVolumeClaimSpec",
        "PersistentVolumeClaimTemplate",
        "PersistentVolumeClaimVolumeSource",
        "PodAffinity",
        "PodAffinityTerm",
        "PodAntiAffinity",
        "PodReadinessGate",
        "PodSchedulingGate",
        "PreferredSchedulingTerm",
        "ProjectedVolumeSource",
        "ResourceFieldSelector",
        "SeccompProfile",
        "SecretEnvSource",
        "SecretKeySelector",
        "SecretProjection",
        "SecretVolumeSource",
        "ServiceAccountTokenProjection",
        "SleepAction",
        "TcpSocketAction",
        "Toleration",
        "TopologySpreadConstraint",
        "TypedLocalObjectReference",
        "TypedObjectReference",
        "Volume",
        "VolumeResourceRequirements",
        "WeightedPodAffinityTerm",
        "WorkloadReference",
    ];

    /// Everything that a Pod can hold, however deep: each message on the way has its rows, or the row
    /// that leads to it speaks for it. What is refused is not looked into.
    #[test]
    fn nothing_below_a_pod_is_forgotten() {
        let text = include_str!("protobuf/messages.txt");
        let fields = |message: &str| {
            let (_, body) = text.split_once(&format!("\n\n{message}\n"))?;
            Some(body.split("\n\n").next().expect("it ends").lines().collect::<Vec<_>>())
        };
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let mut seen = BTreeSet::from(["core/v1.PodSpec".to_owned()]);
        let mut left = vec!["core/v1.PodSpec".to_owned()];
        let mut untold = BTreeSet::new();
        while let Some(message) = left.pop() {
            let (package, name) = message.split_once('.').expect("package and name");
            // What ephemeral containers share with others is told of those.
            let told = if name == "EphemeralContainerCommon" { "Container" } else { name };
            let rows: Vec<&Row> = ROWS.iter().filter(|row| same(row.message, told)).collect();
            if rows.is_empty() && !WHOLE.contains(&name) {
                untold.insert(name.to_owned());
            }
            for line in fields(&message).expect("it is in the list") {
                let words: Vec<&str> = line.split(' ').collect();
                let row = rows.iter().find(|row| row.field == words[1]);
                if row.is_some_and(|row| row.answer != Honoured) {
                    continue;
                }
                let kind = words[2].trim_start_matches(['[', ']', '{', '}', '*']);
                let inner =
                    if kind.contains('/') { kind.to_owned() } else { format!("{package}.{kind}") };
                if fields(&inner).is_some() && seen.insert(inner.clone()) {
                    left.push(inner);
                }
            }
        }
        assert_eq!(untold, BTreeSet::new());
        assert!(seen.len() > 70, "the messages were found: {}", seen.len());
        for name in WHOLE {
            assert!(seen.iter().any(|it| it.ends_with(&format!(".{name}"))), "{name} is not there");
        }
    }

    /// The messages of the API name every field that there is.
    #[test]
    fn no_field_is_forgotten() {
        let messages = include_str!("protobuf/messages.txt");
        let mut expected = BTreeSet::new();
        let named: BTreeSet<&str> = ROWS.iter().map(|row| row.message).collect();
        for message in named {
            let spelled = message.replace("PodDNS", "PodDns");
            let head = format!("\n\ncore/v1.{spelled}\n");
            // Messages with nothing but a list and the like have no entry of their own.
            let Some(at) = messages.find(&head) else { continue };
            let body = messages[at + head.len()..].split("\n\n").next().expect("it ends");
            for line in body.lines() {
                let field = line.split(' ').nth(1).expect("number, name, type");
                if field != "-" {
                    expected.insert((message, field));
                }
            }
        }
        let mut rows: BTreeSet<(&str, &str)> = BTreeSet::new();
        for row in ROWS {
            assert!(rows.insert((row.message, row.field)), "{}.{} twice", row.message, row.field);
        }
        let forgotten: Vec<_> = expected.difference(&rows).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
        assert!(expected.len() > 130, "the messages were found: {}", expected.len());
    }

    /// What people read is what is done.
    #[test]
    fn the_readme_shows_this_table() {
        let readme = include_str!("../../../node/README.md");
        for row in ROWS {
            let Row { message, field, answer, note, .. } = row;
            let line = format!("| {message} | {field} | {} | {note} |", answer.word());
            assert!(readme.contains(&line), "missing in node/README.md:\n{line}");
        }
        let lines = readme.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(lines, ROWS.len() + 1, "rows and the head");
    }
}
