//! Pod Security Standards, translated to Wasm: what a Pod may ask of the node.
//!
//! A namespace's labels `pod-security.kubernetes.io/{enforce,warn,audit}` name a level. Without
//! the label `enforce` Pods must meet `restricted` (Kubernetes' own default is `privileged`), so
//! asking for the machine takes an administrator's label. The labels `enforce-version` and the like
//! are said again in messages; all versions of a level are the same here.
//!
//! | asks for | baseline | restricted |
//! |---|---|---|
//! | host network, host processes, host IPC, host ports, hostPath | no | no |
//! | `privileged`, any `procMount` but Default, a Windows host process, unknown sysctls | no | no |
//! | unusual capabilities; SELinux user or role; AppArmor or seccomp off | no | no |
//! | `allowPrivilegeEscalation: true`, user 0, `runAsNonRoot: false` | yes | no |
//! | any added capability but NET_BIND_SERVICE | yes | no |
//! | volumes that are no files of the cluster's own (NFS, iSCSI, …) | yes | no |
//! | a missing `runAsNonRoot`, seccomp profile or dropped capability | yes | yes |
//!
//! The last row is the translation: a guest has no user, no system calls and no capabilities, so a
//! field that only takes such things away changes nothing and need not be there.
//!
//! The visitor takes every struct apart field by field, without `..`: a field that a new version of
//! the API brings does not compile until somebody has decided what it means here.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EphemeralContainer, Lifecycle, LifecycleHandler,
    PodSecurityContext, PodSpec, Probe, SecurityContext, Volume,
};
use serde_json::Value;
use wherry_resources::{Object, meta};

const PREFIX: &str = "pod-security.kubernetes.io/";
const LATEST: &str = "latest";

/// How much a Pod may ask for, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// The word in a label.
    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }

    fn parse(word: &str) -> Option<Level> {
        let all = [Level::Privileged, Level::Baseline, Level::Restricted];
        all.into_iter().find(|level| level.name() == word)
    }
}

/// A level and the version that is named with it: `restricted:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    version: String,
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

/// What a namespace's labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub warn: Standard,
    pub audit: Standard,
}

/// The policy of a namespace. A word that is no level counts as the strictest.
pub fn policy(namespace: &Object) -> Policy {
    let standard = |mode: &str, default: &Standard| {
        let word = meta::label(namespace, &format!("{PREFIX}{mode}"));
        // A version is named for the level that it is named with.
        let (level, other) = match word {
            Some(word) => (Level::parse(word).unwrap_or(Level::Restricted), LATEST),
            None => (default.level, default.version.as_str()),
        };
        let version = meta::label(namespace, &format!("{PREFIX}{mode}-version"));
        let version = version.filter(|word| is_version(word)).unwrap_or(other);
        Standard { level, version: version.to_owned() }
    };
    let strictest = Standard { level: Level::Restricted, version: LATEST.to_owned() };
    let enforce = standard("enforce", &strictest);
    Policy { warn: standard("warn", &enforce), audit: standard("audit", &enforce), enforce }
}

/// `latest`, or `v1.` and a number.
fn is_version(word: &str) -> bool {
    let minor = word.strip_prefix("v1.").unwrap_or("");
    let digits = !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit());
    word == LATEST || digits && (minor == "0" || !minor.starts_with('0'))
}

/// A label of a namespace that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub key: String,
    pub word: String,
    /// What it must be.
    pub must: &'static str,
}

/// Labels of a namespace that name no level, or no version.
pub fn wrong_labels(namespace: &Object) -> Vec<Wrong> {
    let wrong = meta::labels(namespace).filter_map(|(key, word)| {
        let must = match key.strip_prefix(PREFIX)? {
            "enforce" | "warn" | "audit" if Level::parse(word).is_none() => {
                "must be one of privileged, baseline, restricted"
            }
            "enforce-version" | "warn-version" | "audit-version" if !is_version(word) => {
                "must be \"latest\" or \"v1.x\""
            }
            _ => return None,
        };
        Some(Wrong { key: key.to_owned(), word: word.to_owned(), must })
    });
    wrong.collect()
}

/// One thing that a Pod asks for and the level from which on it may not.
struct Finding {
    from: Level,
    /// Kubernetes' name of the check, by which findings are grouped.
    check: &'static str,
    detail: String,
}

/// What a Pod's spec asks for beyond a level, in Kubernetes' form: `check (detail), check
/// (detail)`. None when it meets the level. A spec that cannot be read meets none.
pub fn violations(spec: &Value, level: Level) -> Option<String> {
    told(spec, level, |check, details| format!("{check} ({})", details.join(", ")))
}

/// The same without details.
pub fn reasons(spec: &Value, level: Level) -> Option<String> {
    told(spec, level, |check, _| check.to_owned())
}

fn told(spec: &Value, level: Level, tell: impl Fn(&str, &[String]) -> String) -> Option<String> {
    if level == Level::Privileged {
        return None;
    }
    let Ok(spec) = serde_json::from_value::<PodSpec>(spec.clone()) else {
        return Some(tell("unreadable", &["the spec is not one of a Pod".to_owned()]));
    };
    let mut findings = Vec::new();
    visit_spec(&spec, &mut findings);
    let mut texts: Vec<(&'static str, Vec<String>)> = Vec::new();
    for finding in findings.into_iter().filter(|finding| finding.from <= level) {
        match texts.iter_mut().find(|(check, _)| *check == finding.check) {
            Some((_, details)) if details.contains(&finding.detail) => {}
            Some((_, details)) => details.push(finding.detail),
            None => texts.push((finding.check, vec![finding.detail])),
        }
    }
    let texts: Vec<String> = texts.iter().map(|(check, details)| tell(check, details)).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn add(found: &mut Vec<Finding>, from: Level, check: &'static str, detail: impl Into<String>) {
    found.push(Finding { from, check, detail: detail.into() });
}

fn visit_spec(spec: &PodSpec, found: &mut Vec<Finding>) {
    let PodSpec {
        // What the Pod asks of the machine.
        host_network,
        host_pid,
        host_ipc,
        volumes,
        security_context,
        containers,
        init_containers,
        ephemeral_containers,
        // What it asks of the cluster, where it runs, or what only the guest sees.
        active_deadline_seconds: _,
        affinity: _,
        automount_service_account_token: _,
        dns_config: _,
        dns_policy: _,
        enable_service_links: _,
        eviction_responders: _,
        host_aliases: _,
        // A user namespace only takes away.
        host_users: _,
        hostname: _,
        hostname_override: _,
        image_pull_secrets: _,
        node_name: _,
        node_selector: _,
        os: _,
        overhead: _,
        preemption_policy: _,
        priority: _,
        priority_class_name: _,
        readiness_gates: _,
        resource_claims: _,
        resources: _,
        restart_policy: _,
        runtime_class_name: _,
        scheduler_name: _,
        scheduling_gates: _,
        scheduling_group: _,
        service_account: _,
        service_account_name: _,
        set_hostname_as_fqdn: _,
        // Guests of one Pod share nothing of the machine's processes.
        share_process_namespace: _,
        subdomain: _,
        termination_grace_period_seconds: _,
        tolerations: _,
        topology_spread_constraints: _,
    } = spec;
    let namespaces = [("hostNetwork", host_network), ("hostPID", host_pid), ("hostIPC", host_ipc)];
    for (name, _) in namespaces.iter().filter(|(_, asked)| **asked == Some(true)) {
        add(found, Level::Baseline, "host namespaces", format!("{name}=true"));
    }
    volumes.iter().flatten().for_each(|volume| visit_volume(volume, found));
    if let Some(context) = security_context {
        visit_pod_context(context, found);
    }
    for container in containers.iter().chain(init_containers.iter().flatten()) {
        visit_container(&Guest::of_container(container), found);
    }
    for container in ephemeral_containers.iter().flatten() {
        visit_container(&Guest::of_ephemeral(container), found);
    }
}

/// What matters of a container, whichever of the lists it stands in.
struct Guest<'a> {
    name: &'a str,
    ports: &'a [ContainerPort],
    context: Option<&'a SecurityContext>,
    probes: [Option<&'a Probe>; 3],
    lifecycle: Option<&'a Lifecycle>,
}

/// Takes a container of either type apart, all of its fields named: a new one must be looked at
/// before this compiles.
macro_rules! guest {
    ($of:ident, $container:expr $(, $more:ident)*) => {{
        let $of {
            name,
            ports,
            security_context,
            lifecycle,
            liveness_probe,
            readiness_probe,
            startup_probe,
            // The guest's own affairs.
            args: _,
            command: _,
            env: _,
            env_from: _,
            image: _,
            image_pull_policy: _,
            resize_policy: _,
            resources: _,
            restart_policy: _,
            restart_policy_rules: _,
            stdin: _,
            stdin_once: _,
            termination_message_path: _,
            termination_message_policy: _,
            tty: _,
            // A device is a volume, looked at there.
            volume_devices: _,
            volume_mounts: _,
            working_dir: _,
            $($more: _,)*
        } = $container;
        Guest {
            name,
            ports: ports.as_deref().unwrap_or_default(),
            context: security_context.as_ref(),
            probes: [liveness_probe.as_ref(), readiness_probe.as_ref(), startup_probe.as_ref()],
            lifecycle: lifecycle.as_ref(),
        }
    }};
}

impl<'a> Guest<'a> {
    fn of_container(container: &'a Container) -> Guest<'a> {
        guest!(Container, container)
    }

    fn of_ephemeral(container: &'a EphemeralContainer) -> Guest<'a> {
        guest!(EphemeralContainer, container, target_container_name)
    }
}

fn visit_container(guest: &Guest<'_>, found: &mut Vec<Finding>) {
    let name = guest.name;
    for port in guest.ports {
        let ContainerPort { container_port: _, host_ip: _, host_port, name: _, protocol: _ } = port;
        if let Some(number) = host_port.filter(|number| *number != 0) {
            let detail = format!("container {name:?} uses hostPort {number}");
            add(found, Level::Baseline, "hostPort", detail);
        }
    }
    let probed = guest.probes.iter().flatten().any(|probe| asks_elsewhere(probe));
    let hooks = guest.lifecycle.map(|lifecycle| {
        let Lifecycle { post_start, pre_stop, stop_signal: _ } = lifecycle;
        [post_start.as_ref(), pre_stop.as_ref()]
    });
    let hooked = hooks.into_iter().flatten().flatten().any(hook_asks_elsewhere);
    if probed || hooked {
        let detail = format!("container {name:?} must not set a host of a probe or handler");
        add(found, Level::Baseline, "probe or lifecycle host", detail);
    }
    if let Some(context) = guest.context {
        visit_context(name, context, found);
    }
}

/// A probe of another host would make the node ask for the guest.
fn asks_elsewhere(probe: &Probe) -> bool {
    let http = probe.http_get.as_ref().and_then(|get| get.host.as_deref());
    let tcp = probe.tcp_socket.as_ref().and_then(|socket| socket.host.as_deref());
    [http, tcp].into_iter().flatten().any(is_elsewhere)
}

fn hook_asks_elsewhere(hook: &LifecycleHandler) -> bool {
    let LifecycleHandler { exec: _, http_get, sleep: _, tcp_socket } = hook;
    let http = http_get.as_ref().and_then(|get| get.host.as_deref());
    let tcp = tcp_socket.as_ref().and_then(|socket| socket.host.as_deref());
    [http, tcp].into_iter().flatten().any(is_elsewhere)
}

fn is_elsewhere(host: &str) -> bool {
    !["", "127.0.0.1", "::1"].contains(&host)
}

/// What containers have anyway, elsewhere: adding it asks for nothing.
const USUAL_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn visit_context(name: &str, context: &SecurityContext, found: &mut Vec<Finding>) {
    let SecurityContext {
        allow_privilege_escalation,
        app_armor_profile,
        capabilities,
        privileged,
        proc_mount,
        run_as_non_root,
        run_as_user,
        se_linux_options,
        seccomp_profile,
        windows_options,
        // Neither asks for more.
        read_only_root_filesystem: _,
        run_as_group: _,
    } = context;
    let must_not = |field: &str| format!("container {name:?} must not set securityContext.{field}");
    if *privileged == Some(true) {
        add(found, Level::Baseline, "privileged", must_not("privileged=true"));
    }
    if *allow_privilege_escalation == Some(true) {
        let detail =
            format!("container {name:?} must set securityContext.allowPrivilegeEscalation=false");
        add(found, Level::Restricted, "allowPrivilegeEscalation != false", detail);
    }
    if let Some(mount) = proc_mount.as_deref().filter(|mount| *mount != "Default") {
        add(found, Level::Baseline, "procMount", must_not(&format!("procMount to {mount:?}")));
    }
    if let Some(capabilities) = capabilities {
        visit_capabilities(name, capabilities, found);
    }
    visit_user(&must_not, *run_as_non_root, *run_as_user, found);
    visit_confinement(
        &must_not,
        app_armor_profile.as_ref().map(|profile| profile.type_.as_str()),
        seccomp_profile.as_ref().map(|profile| profile.type_.as_str()),
        se_linux_options.as_ref(),
        found,
    );
    if windows_options.as_ref().is_some_and(|options| options.host_process == Some(true)) {
        let detail = must_not("windowsOptions.hostProcess=true");
        add(found, Level::Baseline, "hostProcess", detail);
    }
}

fn visit_capabilities(name: &str, capabilities: &Capabilities, found: &mut Vec<Finding>) {
    let Capabilities { add: added, drop: _ } = capabilities;
    let added: Vec<&str> = added.iter().flatten().map(String::as_str).collect();
    let listed = |list: &[&str]| -> String {
        let quoted: Vec<String> = list.iter().map(|one| format!("{one:?}")).collect();
        quoted.join(", ")
    };
    let unusual: Vec<&str> =
        added.iter().copied().filter(|one| !USUAL_CAPABILITIES.contains(one)).collect();
    let detail = |list: &[&str]| {
        let list = listed(list);
        format!("container {name:?} must not include {list} in securityContext.capabilities.add")
    };
    if !unusual.is_empty() {
        add(found, Level::Baseline, "non-default capabilities", detail(&unusual));
    }
    let beyond: Vec<&str> =
        added.iter().copied().filter(|one| *one != "NET_BIND_SERVICE").collect();
    if !beyond.is_empty() {
        add(found, Level::Restricted, "unrestricted capabilities", detail(&beyond));
    }
}

fn visit_user(
    must_not: &dyn Fn(&str) -> String,
    run_as_non_root: Option<bool>,
    run_as_user: Option<i64>,
    found: &mut Vec<Finding>,
) {
    if run_as_non_root == Some(false) {
        let detail = must_not("runAsNonRoot=false");
        add(found, Level::Restricted, "runAsNonRoot != true", detail);
    }
    if run_as_user == Some(0) {
        add(found, Level::Restricted, "runAsUser=0", must_not("runAsUser=0"));
    }
}

fn visit_confinement(
    must_not: &dyn Fn(&str) -> String,
    app_armor: Option<&str>,
    seccomp: Option<&str>,
    se_linux: Option<&k8s_openapi::api::core::v1::SELinuxOptions>,
    found: &mut Vec<Finding>,
) {
    if app_armor == Some("Unconfined") {
        let detail = must_not("appArmorProfile.type to \"Unconfined\"");
        add(found, Level::Baseline, "forbidden AppArmor profile", detail);
    }
    if seccomp == Some("Unconfined") {
        let detail = must_not("seccompProfile.type to \"Unconfined\"");
        add(found, Level::Baseline, "seccompProfile", detail);
    }
    let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let forbidden = se_linux.is_some_and(|options| {
        let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        let kind = options.type_.as_deref().unwrap_or("");
        set(&options.user) || set(&options.role) || !types.contains(&kind)
    });
    if forbidden {
        add(found, Level::Baseline, "seLinuxOptions", must_not("seLinuxOptions"));
    }
}

fn visit_pod_context(context: &PodSecurityContext, found: &mut Vec<Finding>) {
    let PodSecurityContext {
        app_armor_profile,
        run_as_non_root,
        run_as_user,
        se_linux_options,
        seccomp_profile,
        sysctls,
        windows_options,
        // Groups and labels of files in the Pod's own volumes.
        fs_group: _,
        fs_group_change_policy: _,
        run_as_group: _,
        se_linux_change_policy: _,
        supplemental_groups: _,
        supplemental_groups_policy: _,
    } = context;
    let must_not = |field: &str| format!("pod must not set securityContext.{field}");
    visit_user(&must_not, *run_as_non_root, *run_as_user, found);
    visit_confinement(
        &must_not,
        app_armor_profile.as_ref().map(|profile| profile.type_.as_str()),
        seccomp_profile.as_ref().map(|profile| profile.type_.as_str()),
        se_linux_options.as_ref(),
        found,
    );
    // A guest has no kernel of its own, so there is none that would be safe to set.
    for sysctl in sysctls.iter().flatten() {
        add(found, Level::Baseline, "forbidden sysctls", sysctl.name.clone());
    }
    if windows_options.as_ref().is_some_and(|options| options.host_process == Some(true)) {
        let detail = must_not("windowsOptions.hostProcess=true");
        add(found, Level::Baseline, "hostProcess", detail);
    }
}

fn visit_volume(volume: &Volume, found: &mut Vec<Finding>) {
    let Volume {
        name,
        host_path,
        // Files of the cluster's own.
        config_map: _,
        csi: _,
        downward_api: _,
        empty_dir: _,
        ephemeral: _,
        image: _,
        persistent_volume_claim: _,
        projected: _,
        secret: _,
        // The machine's network reaches these.
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        git_repo,
        glusterfs,
        iscsi,
        nfs,
        photon_persistent_disk,
        portworx_volume,
        quobyte,
        rbd,
        scale_io,
        storageos,
        vsphere_volume,
    } = volume;
    if host_path.is_some() {
        add(found, Level::Baseline, "hostPath volumes", format!("volume {name:?}"));
    }
    let others = [
        ("awsElasticBlockStore", aws_elastic_block_store.is_some()),
        ("azureDisk", azure_disk.is_some()),
        ("azureFile", azure_file.is_some()),
        ("cephfs", cephfs.is_some()),
        ("cinder", cinder.is_some()),
        ("fc", fc.is_some()),
        ("flexVolume", flex_volume.is_some()),
        ("flocker", flocker.is_some()),
        ("gcePersistentDisk", gce_persistent_disk.is_some()),
        ("gitRepo", git_repo.is_some()),
        ("glusterfs", glusterfs.is_some()),
        ("hostPath", host_path.is_some()),
        ("iscsi", iscsi.is_some()),
        ("nfs", nfs.is_some()),
        ("photonPersistentDisk", photon_persistent_disk.is_some()),
        ("portworxVolume", portworx_volume.is_some()),
        ("quobyte", quobyte.is_some()),
        ("rbd", rbd.is_some()),
        ("scaleIO", scale_io.is_some()),
        ("storageos", storageos.is_some()),
        ("vsphereVolume", vsphere_volume.is_some()),
    ];
    for (kind, _) in others.iter().filter(|(_, asked)| *asked) {
        let detail = format!("volume {name:?} uses restricted volume type {kind:?}");
        add(found, Level::Restricted, "restricted volume types", detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(field: &str, value: Value) -> Value {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        spec[field] = value;
        spec
    }

    #[test]
    fn an_ordinary_pod_meets_the_strictest_level() {
        let spec = with("restartPolicy", json!("Always"));
        assert_eq!(violations(&spec, Level::Restricted), None);
    }

    #[test]
    fn what_is_asked_of_the_machine_is_found_in_every_list() {
        let cases = [
            (with("hostNetwork", json!(true)), "host namespaces (hostNetwork=true)"),
            (
                with("volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])),
                "hostPath volumes (volume \"v\")",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(violations(&spec, Level::Baseline).as_deref(), Some(expected));
            assert_eq!(violations(&spec, Level::Privileged), None);
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let guest = json!([{"name": "x", "image": "i",
                "securityContext": {"privileged": true, "runAsUser": 0}}]);
            let spec = with(list, guest);
            let privileged =
                "privileged (container \"x\" must not set securityContext.privileged=true)";
            assert_eq!(violations(&spec, Level::Baseline).as_deref(), Some(privileged), "{list}");
            let all = violations(&spec, Level::Restricted).expect("two findings");
            assert!(all.ends_with(
                "runAsUser=0 (container \"x\" must not set securityContext.runAsUser=0)"
            ));
        }
    }

    #[test]
    fn labels_choose_the_level() {
        let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
        let plain = policy(&namespace(json!({})));
        assert_eq!(plain.enforce.to_string(), "restricted:latest");
        assert_eq!(plain.warn, plain.enforce);
        let open = json!({"pod-security.kubernetes.io/enforce": "privileged",
            "pod-security.kubernetes.io/warn": "baseline",
            "pod-security.kubernetes.io/warn-version": "v1.30"});
        assert!(wrong_labels(&namespace(open.clone())).is_empty());
        let open = policy(&namespace(open));
        assert_eq!(open.enforce.level, Level::Privileged);
        assert_eq!(open.warn.to_string(), "baseline:v1.30");
        let pinned = namespace(json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.30",
            "pod-security.kubernetes.io/warn": "restricted"}));
        assert_eq!(policy(&pinned).warn.to_string(), "restricted:latest");
        assert_eq!(policy(&pinned).audit.to_string(), "baseline:v1.30");
        let wrong = namespace(json!({"pod-security.kubernetes.io/enforce": "none",
            "pod-security.kubernetes.io/enforce-version": "v1.030"}));
        assert_eq!(policy(&wrong).enforce.to_string(), "restricted:latest");
        assert_eq!(wrong_labels(&wrong).len(), 2);
    }
}
