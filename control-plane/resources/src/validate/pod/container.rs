//! Rules for containers: names, images, ports, environment, mounts, resources and probes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::meta::{items, text};
use crate::names;
use crate::quantity::Quantity;
use crate::validate::{Errors, NOT_NEGATIVE, at, entries, get, integer, is_empty, nth};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
/// How long a Pod may take to end, or a container that failed a probe.
const GRACE: &str = "terminationGracePeriodSeconds";
const STANDARD_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const ENV_SOURCES: &[&str] =
    &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
/// The longest name of a variable in a file.
const FILE_KEY_BYTES_MAX: usize = 128;
/// Fields of its own Pod that a container may read.
const POD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// All lists of containers of a PodSpec.
pub(super) fn containers(spec: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    if is_empty(spec, "containers") {
        errors.required(&at(path, "containers"), "");
    }
    let mut seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (index, container) in items(spec, "containers").iter().enumerate() {
        let path = nth(path, "containers", index);
        self::container(container, spec, &path, volumes, errors);
        unique(container, &path, &mut seen, errors);
        probes_and_hooks(container, spec, &path, errors);
        restarts(container, &path, errors);
    }
    for (index, container) in items(spec, "containers").iter().enumerate() {
        self::host_ports(container, &nth(path, "containers", index), &mut host_ports, errors);
    }
    for (index, container) in items(spec, "initContainers").iter().enumerate() {
        let field = nth(path, "initContainers", index);
        self::container(container, spec, &field, volumes, errors);
        restarts(container, &field, errors);
        unique(container, &field, &mut seen, errors);
        // They run one by one, so each is looked at alone; Kubernetes calls it the first then.
        let first = nth(path, "initContainers", 0);
        self::host_ports(container, &first, &mut BTreeSet::new(), errors);
        match text(container, "restartPolicy") {
            "Always" => probes_and_hooks(container, spec, &field, errors),
            _ => ends_before_others(container, &field, errors),
        }
    }
    let others = seen.clone();
    for (index, container) in items(spec, "ephemeralContainers").iter().enumerate() {
        let path = nth(path, "ephemeralContainers", index);
        self::container(container, spec, &path, volumes, errors);
        padding(container, &path, errors);
        unique(container, &path, &mut seen, errors);
        ephemeral(container, &others, &path, errors);
    }
}

/// A name stands once among all containers of a Pod.
fn unique<'a>(container: &'a Value, path: &str, seen: &mut BTreeSet<&'a str>, errors: &mut Errors) {
    let name = text(container, "name");
    if !name.is_empty() && !seen.insert(name) {
        errors.duplicate(&at(path, "name"), name);
    }
}

/// Ports of the node that were asked for before. `taken` has them as `TCP/address/80`.
fn host_ports(container: &Value, path: &str, taken: &mut BTreeSet<String>, errors: &mut Errors) {
    for (index, port) in items(container, "ports").iter().enumerate() {
        let number = integer(port, "hostPort").unwrap_or(0);
        if number == 0 {
            continue;
        }
        let wanted = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if taken.contains(&wanted) {
            errors.duplicate(&at(&nth(path, "ports", index), "hostPort"), wanted);
        } else {
            taken.insert(wanted);
        }
    }
}

/// In the node's network a container has no other ports than the node.
pub(super) fn ports_of_node(spec: &Value, path: &str, errors: &mut Errors) {
    for (index, container) in items(spec, "containers").iter().enumerate() {
        let path = nth(path, "containers", index);
        for (index, port) in items(container, "ports").iter().enumerate() {
            let number = integer(port, "hostPort").unwrap_or(0);
            if number != 0 && Some(number) != integer(port, "containerPort") {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&at(&nth(&path, "ports", index), "hostPort"), number, detail);
            }
        }
    }
}

/// What a container cannot have that ends before the others begin.
fn ends_before_others(container: &Value, path: &str, errors: &mut Errors) {
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if !get(container, key).is_null() {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.forbidden(&at(path, key), detail);
        }
    }
}

/// When a container is started again, other than its Pod says.
fn restarts(container: &Value, path: &str, errors: &mut Errors) {
    let rules = items(container, "restartPolicyRules");
    match text(container, "restartPolicy") {
        "" if rules.is_empty() => {}
        "" => {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required(&at(path, "restartPolicy"), detail);
        }
        policy => errors.one_of(&at(path, "restartPolicy"), policy, RESTART_POLICIES),
    }
    if rules.len() > RESTART_RULES_MAX {
        errors.too_many(&at(path, "restartPolicyRules"), rules.len(), RESTART_RULES_MAX);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = nth(path, "restartPolicyRules", index);
        errors.one_of(&at(&path, "action"), text(rule, "action"), &["Restart"]);
        let (codes, path) = (get(rule, "exitCodes"), at(&path, "exitCodes"));
        if codes.is_null() {
            errors.required(&path, "must be specified");
            continue;
        }
        errors.one_of(&at(&path, "operator"), text(codes, "operator"), &["In", "NotIn"]);
        let values = items(codes, "values").len();
        if values > EXIT_CODES_MAX {
            errors.too_many(&at(&path, "values"), values, EXIT_CODES_MAX);
        }
    }
}

/// What a container cannot have that only looks at a Pod. `others` are those it may look at.
fn ephemeral(container: &Value, others: &BTreeSet<&str>, path: &str, errors: &mut Errors) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    let target = text(container, "targetContainerName");
    if !target.is_empty() && !others.contains(target) {
        errors.not_found(&at(path, "targetContainerName"), target);
    }
    for key in ["ports", "resources", "resizePolicy", "restartPolicy"] {
        if !is_empty(container, key) {
            errors.forbidden(&at(path, key), DETAIL);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        if !get(container, key).is_null() {
            errors.forbidden(&at(path, key), DETAIL);
        }
    }
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if !text(mount, key).is_empty() {
                errors.forbidden(&at(&nth(path, "volumeMounts", index), key), DETAIL);
            }
        }
    }
}

/// Images of Pods, but not of templates, are written without space around them.
pub(super) fn padding(container: &Value, path: &str, errors: &mut Errors) {
    let image = text(container, "image");
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.invalid(&at(path, "image"), image, detail);
    }
}

/// What holds for every container.
fn container(
    container: &Value,
    spec: &Value,
    path: &str,
    volumes: &BTreeSet<&str>,
    errors: &mut Errors,
) {
    match text(container, "name") {
        "" => errors.required(&at(path, "name"), ""),
        name => errors.complaints(&at(path, "name"), name, names::label(name)),
    }
    if text(container, "image").is_empty() {
        errors.required(&at(path, "image"), "");
    }
    match text(container, "terminationMessagePolicy") {
        "" => errors.required(&at(path, "terminationMessagePolicy"), ""),
        policy => {
            let supported = &["File", "FallbackToLogsOnError"];
            errors.one_of(&at(path, "terminationMessagePolicy"), policy, supported);
        }
    }
    ports(container, path, errors);
    environment(container, path, errors);
    env_files(container, spec, path, errors);
    mounts(container, path, volumes, errors);
    match text(container, "imagePullPolicy") {
        "" => errors.required(&at(path, "imagePullPolicy"), ""),
        policy => errors.one_of(&at(path, "imagePullPolicy"), policy, PULL_POLICIES),
    }
    resources(get(container, "resources"), &at(path, "resources"), errors);
    super::claims::wanted(container, spec, &at(path, "resources"), errors);
    resize_policies(container, text(spec, "restartPolicy"), &at(path, "resizePolicy"), errors);
    let context = get(container, "securityContext");
    super::security::container(context, &at(path, "securityContext"), errors);
}

/// What a container is asked while it runs, and told before it ends.
fn probes_and_hooks(container: &Value, spec: &Value, path: &str, errors: &mut Errors) {
    for key in ["postStart", "preStop"] {
        let hook = get(get(container, "lifecycle"), key);
        let field = format!("{path}.lifecycle.{key}");
        if !hook.is_null() {
            handler(hook, &field, errors);
        }
        let seconds = integer(get(hook, "sleep"), "seconds");
        if let (Some(seconds), Some(grace)) = (seconds, integer(spec, GRACE))
            && !(0..=grace).contains(&seconds)
        {
            let detail = format!("must be non-negative and less than {GRACE} ({grace})");
            errors.invalid(&at(&field, "sleep"), seconds, &detail);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get(key).filter(|probe| !probe.is_null()) {
            self::probe(probe, &at(path, key), key, errors);
        }
    }
}

/// Whether other resources need a restart. A Pod that never restarts cannot say that they do.
fn resize_policies(container: &Value, restart: &str, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, one) in items(container, "resizePolicy").iter().enumerate() {
        let (resource, policy) = (text(one, "resourceName"), text(one, "restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(&format!("{path}[{index}]"), resource);
        }
        match resource {
            "" => errors.required(path, ""),
            resource => errors.one_of(path, resource, &["cpu", "memory"]),
        }
        match policy {
            "" => errors.required(path, ""),
            policy => errors.one_of(path, policy, &["NotRequired", "RestartContainer"]),
        }
        if restart == "Never" && policy != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(path, policy, detail);
        }
    }
}

fn ports(container: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = nth(path, "ports", index);
        let name = text(port, "name");
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !seen.insert(name) {
                errors.duplicate(&at(&path, "name"), name);
            }
            errors.complaints(&at(&path, "name"), name, complaints);
        }
        match integer(port, "containerPort").unwrap_or(0) {
            0 => errors.required(&at(&path, "containerPort"), ""),
            number => port_number(number, &at(&path, "containerPort"), errors),
        }
        if let Some(number) = integer(port, "hostPort").filter(|number| *number != 0) {
            port_number(number, &at(&path, "hostPort"), errors);
        }
        match text(port, "protocol") {
            "" => errors.required(&at(&path, "protocol"), ""),
            protocol => errors.one_of(&at(&path, "protocol"), protocol, PROTOCOLS),
        }
    }
}

fn port_number(number: i64, field: &str, errors: &mut Errors) {
    for complaint in names::port_number(number) {
        errors.invalid(field, number, &complaint);
    }
}

fn environment(container: &Value, path: &str, errors: &mut Errors) {
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = nth(path, "env", index);
        match text(variable, "name") {
            "" => errors.required(&at(&path, "name"), ""),
            name => {
                errors.complaints(&at(&path, "name"), name, names::environment_variable(name));
            }
        }
        if let Some(source) = variable.get("valueFrom").filter(|source| !source.is_null()) {
            let has_value = !text(variable, "value").is_empty();
            value_from(source, has_value, &at(&path, "valueFrom"), errors);
        }
    }
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        let path = nth(path, "envFrom", index);
        let references = ["configMapRef", "secretRef"];
        let present: Vec<_> =
            references.into_iter().filter(|key| source.get(key).is_some()).collect();
        match present[..] {
            [] => {
                let detail = "must specify one of: `configMapRef` or `secretRef`";
                errors.invalid(&path, "", detail);
            }
            [reference] if text(get(source, reference), "name").is_empty() => {
                errors.required(&format!("{path}.{reference}.name"), "");
            }
            [_] => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn value_from(source: &Value, has_value: bool, path: &str, errors: &mut Errors) {
    let present: Vec<&str> =
        ENV_SOURCES.iter().copied().filter(|key| source.get(key).is_some()).collect();
    if present.is_empty() {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
            `secretKeyRef` or `fileKeyRef`";
        errors.invalid(path, "", detail);
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if present.len() > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
    for key in present {
        let (reference, path) = (get(source, key), at(path, key));
        match key {
            "fieldRef" => field_path(text(reference, "fieldPath"), &path, errors),
            "resourceFieldRef" if text(reference, "resource").is_empty() => {
                errors.required(&at(&path, "resource"), "");
            }
            "configMapKeyRef" | "secretKeyRef" => {
                if text(reference, "name").is_empty() {
                    errors.required(&at(&path, "name"), "");
                }
                match text(reference, "key") {
                    "" => errors.required(&at(&path, "key"), ""),
                    key => errors.complaints(&at(&path, "key"), key, names::config_key(key)),
                }
            }
            "fileKeyRef" => file_key(reference, &path, errors),
            _ => {}
        }
    }
}

fn file_key(reference: &Value, path: &str, errors: &mut Errors) {
    let field = at(path, "key");
    match text(reference, "key") {
        "" => errors.required(&field, ""),
        key if key.len() > FILE_KEY_BYTES_MAX => errors.too_long(&field, FILE_KEY_BYTES_MAX),
        key => errors.complaints(&field, key, names::environment_variable(key)),
    }
    let field = at(path, "path");
    match text(reference, "path") {
        "" => errors.required(&field, ""),
        file if file.starts_with('/') => errors.invalid(&field, file, "must be a relative path"),
        file if file.split('/').any(|part| part == "..") => {
            errors.invalid(&field, file, "must not contain '..'");
        }
        file if file.starts_with("..") => {
            errors.invalid(&field, file, "must not start with '..'");
        }
        _ => {}
    }
}

/// The volumes of files with variables: only what other containers of the Pod write is read.
fn env_files(container: &Value, spec: &Value, path: &str, errors: &mut Errors) {
    for (index, variable) in items(container, "env").iter().enumerate() {
        let reference = get(get(variable, "valueFrom"), "fileKeyRef");
        if reference.is_null() {
            continue;
        }
        let field = format!("{}.valueFrom.fileKeyRef.volumeName", nth(path, "env", index));
        let name = text(reference, "volumeName");
        match items(spec, "volumes").iter().find(|volume| text(volume, "name") == name) {
            _ if name.is_empty() => errors.required(&field, ""),
            None => errors.not_found(&field, name),
            Some(volume) if get(volume, "emptyDir").is_null() => {
                errors.invalid(&field, name, "the volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
}

fn field_path(field: &str, path: &str, errors: &mut Errors) {
    let path = at(path, "fieldPath");
    let subscript = |map: &str| {
        let inner = field.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(names::qualified(&inner.to_lowercase()))
    };
    if field.is_empty() {
        errors.required(&path, "");
        return;
    }
    let complaints = subscript("metadata.labels").or_else(|| subscript("metadata.annotations"));
    match complaints {
        Some(complaints) => errors.complaints(&path, field, complaints),
        None if POD_FIELDS.contains(&field) => {}
        None => {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            errors.invalid(&path, field, &detail);
        }
    }
}

fn mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = nth(path, "volumeMounts", index);
        match text(mount, "name") {
            "" => errors.required(&at(&path, "name"), ""),
            name if !volumes.contains(name) => errors.not_found(&at(&path, "name"), name),
            _ => {}
        }
        match text(mount, "mountPath") {
            "" => errors.required(&at(&path, "mountPath"), ""),
            target => {
                if !seen.insert(target) {
                    errors.invalid(&at(&path, "mountPath"), target, "must be unique");
                }
            }
        }
        let sub_path = text(mount, "subPath");
        if sub_path.starts_with('/') {
            errors.invalid(&at(&path, "subPath"), sub_path, "must be a relative path");
        }
        if sub_path.split('/').any(|part| part == "..") {
            errors.invalid(&at(&path, "subPath"), sub_path, "must not contain '..'");
        }
    }
}

/// `resources` of a container: known names, sane amounts, requests within limits.
fn resources(resources: &Value, path: &str, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        let path = at(path, list);
        for (name, amount) in entries(resources, list) {
            let path = format!("{path}[{name}]");
            errors.complaints(&path, name, names::qualified(name));
            let is_standard =
                STANDARD_RESOURCES.contains(&name.as_str()) || name.starts_with("hugepages-");
            if !name.contains('/') && !is_standard {
                errors.invalid(&path, name.as_str(), "must be a standard resource for containers");
            }
            quantity(amount, &path, errors);
        }
    }
    let limits = get(resources, "limits");
    for (name, request) in entries(resources, "requests") {
        let limit = limits.get(name).and_then(Quantity::of);
        if let (Some(request), Some(limit)) = (Quantity::of(request), limit)
            && request > limit
        {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(&at(path, "requests"), request.to_string(), &detail);
        }
    }
}

/// An amount that can be read and is not negative.
pub(in crate::validate) fn quantity(amount: &Value, path: &str, errors: &mut Errors) {
    match Quantity::of(amount) {
        None => {
            let detail = crate::quantity::QuantityError::Form.to_string();
            errors.invalid(path, amount.clone(), &detail);
        }
        Some(quantity) if quantity.is_negative() => {
            errors.invalid(path, quantity.to_string(), NOT_NEGATIVE);
        }
        Some(_) => {}
    }
}

fn probe(probe: &Value, path: &str, key: &str, errors: &mut Errors) {
    handler(probe, path, errors);
    let numbers = [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ];
    for number in numbers {
        errors.not_negative(probe, path, number);
    }
    let grace = integer(probe, GRACE);
    let field = at(path, GRACE);
    if let Some(grace) = grace.filter(|grace| *grace <= 0) {
        errors.invalid(&field, grace, "must be greater than 0");
    }
    if let Some(grace) = grace.filter(|_| key == "readinessProbe") {
        errors.invalid(&field, grace, "must not be set for readinessProbes");
    }
    let threshold = integer(probe, "successThreshold").unwrap_or(1);
    if key != "readinessProbe" && threshold != 1 {
        errors.invalid(&at(path, "successThreshold"), threshold, "must be 1");
    }
}

/// What a probe or a hook does: exactly one thing.
fn handler(handler: &Value, path: &str, errors: &mut Errors) {
    let mut present = HANDLERS.iter().filter(|key| handler.get(**key).is_some());
    let Some(first) = present.next() else {
        errors.required(path, "must specify a handler type");
        return;
    };
    for key in present {
        errors.forbidden(&at(path, key), "may not specify more than 1 handler type");
    }
    let (action, path) = (get(handler, first), at(path, first));
    match *first {
        "exec" if is_empty(action, "command") => errors.required(&at(&path, "command"), ""),
        "httpGet" => {
            if text(action, "path").is_empty() {
                errors.required(&at(&path, "path"), "");
            }
            port_or_name(get(action, "port"), &at(&path, "port"), errors);
            let scheme = text(action, "scheme");
            errors.one_of(&at(&path, "scheme"), scheme, &["HTTP", "HTTPS"]);
        }
        "tcpSocket" => port_or_name(get(action, "port"), &at(&path, "port"), errors),
        "grpc" => {
            let number = integer(action, "port").unwrap_or(0);
            port_number(number, &at(&path, "port"), errors);
        }
        _ => {}
    }
}

/// A port by number or by name.
pub(in crate::validate) fn port_or_name(port: &Value, field: &str, errors: &mut Errors) {
    match port {
        Value::String(name) => errors.complaints(field, name, names::port_name(name)),
        other => port_number(other.as_i64().unwrap_or(0), field, errors),
    }
}
