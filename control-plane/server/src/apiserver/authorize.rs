//! Who may do what: a table of built-in rules, and the roles (`rbac`); pure.
//!
//! A request is allowed if either allows it; nothing denies. The table holds what no role can
//! say or what must hold before there are roles: for everybody, for administrators, for the control
//! plane's own tasks, for node agents (Kubernetes' Node authorizer) and for machines about to join.
//! What the Node rules read of the state is the snapshot they are given. What a request must not
//! *contain* is admission's matter (`admission/node_restriction.rs`).
//!
//! Roles mean nothing to anonymous users: what is for everybody stands in the table.

use super::{
    auth,
    auth::User,
    errors::ApiError,
    errors::GroupResource,
    rbac::{Index, Opinion},
    request::Attributes,
    stored,
};
use serde_json::{Value, json};
use wherry_resources::{Object, gateway, quoted, rbac::Rule as RoleRule, selectors::FieldSelector};
use wherry_store::Snapshot;

/// To whom a rule applies.
enum Who {
    Everyone,
    Group(&'static str),
    User(&'static str),
}

/// What more must be true of the object.
#[derive(Clone, Copy)]
enum Only {
    /// Nothing.
    Any,
    /// Its name is the node's own.
    OwnName,
    /// The same, and the namespace is that of the node leases.
    OwnLease,
    /// The Pod is bound to the node, or a selector on spec.nodeName says so.
    OwnPods,
    /// A Pod bound to the node names it.
    Referenced,
    /// A volume that the node may need, see [`is_needed`].
    Needed,
    /// The same user has created it.
    OwnRequest,
}

struct Rule {
    who: Who,
    verbs: &'static [&'static str],
    what: What,
}

enum What {
    /// A plain path; with a `*` at the end everything below.
    Path(&'static str),
    /// Resources (with `/subresource`) of a group.
    Resources(&'static str, &'static [&'static str], Only),
    All,
}

const READ: &[&str] = &["get", "list", "watch"];
const GET: &[&str] = &["get", "head"];
const NODES: Who = Who::Group(auth::NODES);
const JOINING: Who = Who::Group(auth::JOINING_NODES);
/// What Pods name, and their node may read.
const NAMED: &[&str] = &["configmaps", "persistentvolumeclaims", "secrets", "serviceaccounts"];
/// What every node's traffic follows from.
const NETWORK: &[&str] = &["networkpolicies", "ingresses", "ingressclasses"];
const GATEWAYS: &[&str] =
    &["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
/// The driver of volumes that are folders of nodes.
const LOCAL: &str = "wherry.dev/local";
const CERTIFICATES: &str = "certificates.k8s.io";

const fn path(who: Who, path: &'static str) -> Rule {
    Rule { who, verbs: GET, what: What::Path(path) }
}

const fn may(
    who: Who,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
    only: Only,
) -> Rule {
    Rule { who, verbs, what: What::Resources(group, resources, only) }
}

/// The whole policy.
static RULES: &[Rule] = &[
    Rule { who: Who::Group(auth::MASTERS), verbs: &[], what: What::All },
    Rule { who: Who::User("system:kube-controller-manager"), verbs: &[], what: What::All },
    Rule { who: Who::User("system:kube-scheduler"), verbs: &[], what: What::All },
    path(Who::Everyone, "/livez*"),
    path(Who::Everyone, "/readyz*"),
    path(Who::Everyone, "/healthz*"),
    path(Who::Everyone, "/version"),
    // The dashboard's files, and its sign-in, which checks what it is shown.
    Rule {
        who: Who::Everyone,
        verbs: &["get", "head", "post", "delete"],
        what: What::Path("/ui*"),
    },
    // Who holds this token is told the cluster's keys.
    Rule {
        who: Who::Group(auth::JOINING_MEMBERS),
        verbs: &["post"],
        what: What::Path("/wherry/v1/members"),
    },
    // Images and the way back to the agent.
    path(NODES, "/v2*"),
    path(NODES, "/wherry/v1/tunnel"),
    path(NODES, "/wherry/v1/relay*"),
    may(NODES, READ, "", &["services", "nodes", "namespaces"], Only::Any),
    may(NODES, READ, "networking.k8s.io", NETWORK, Only::Any),
    may(NODES, READ, gateway::GROUP, GATEWAYS, Only::Any),
    may(NODES, READ, "discovery.k8s.io", &["endpointslices"], Only::Any),
    may(NODES, READ, "", &["pods"], Only::OwnPods),
    may(NODES, READ, "", NAMED, Only::Referenced),
    // For the accounts of its own Pods; admission compares the Pod that the token is bound to.
    may(NODES, &["create"], "", &["serviceaccounts/token"], Only::Referenced),
    // Whether paths of the host may be mounted, and where the volume of a claim is.
    may(NODES, &["get"], "", &["persistentvolumes"], Only::Needed),
    // A name is not in the path of a create: admission compares it.
    may(NODES, &["create"], "", &["nodes"], Only::Any),
    may(NODES, &["update", "patch"], "", &["nodes", "nodes/status"], Only::OwnName),
    may(NODES, &["create"], "coordination.k8s.io", &["leases"], Only::OwnLease),
    may(NODES, &["get", "update", "patch"], "coordination.k8s.io", &["leases"], Only::OwnLease),
    may(NODES, &["update", "patch"], "", &["pods/status"], Only::OwnPods),
    may(NODES, &["delete"], "", &["pods"], Only::OwnPods),
    may(NODES, &["create", "update", "patch"], "", &["events"], Only::Any),
    may(NODES, &["create", "update", "patch"], "events.k8s.io", &["events"], Only::Any),
    may(NODES, &["create"], CERTIFICATES, &["certificatesigningrequests"], Only::Any),
    may(NODES, READ, CERTIFICATES, &["certificatesigningrequests"], Only::OwnRequest),
    may(JOINING, &["create"], CERTIFICATES, &["certificatesigningrequests"], Only::Any),
    may(JOINING, READ, CERTIFICATES, &["certificatesigningrequests"], Only::OwnRequest),
];

/// What is decided from: the state of the store, and the roles in it.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub state: &'a Snapshot,
    pub roles: &'a Index,
    /// Whether a Pod on this node names the object that is asked for.
    pub refers: &'a dyn Fn(&str, &Attributes) -> bool,
}

/// Whether a request may go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /// Nothing allows it. The text says more, or is empty.
    Denied(String),
}

/// Whether a rule or a role allows the request.
pub fn decide(user: &User, asked: &Attributes, world: World<'_>) -> Decision {
    let mut reasons: Vec<String> = Vec::new();
    for rule in RULES.iter().filter(|rule| concerns(rule, user) && covers(rule, asked)) {
        if holds(rule, user, asked, world) {
            return Decision::Allowed;
        }
        if let Some(node) = user.node().filter(|_| reasons.is_empty()) {
            reasons.push(format!("no relationship found between node '{node}' and this object"));
        }
    }
    if !user.is_in(auth::UNAUTHENTICATED) {
        match world.roles.decide(user, asked) {
            Opinion::Allowed => return Decision::Allowed,
            Opinion::None(why) if why.is_empty() => {}
            Opinion::None(why) => reasons.push(why),
        }
    }
    Decision::Denied(reasons.join("\n"))
}

/// Whether this user may grant what they do not hold themselves: administrators, and the control
/// plane's own tasks, which keep the default roles whole.
pub fn is_unlimited(user: &User) -> bool {
    RULES.iter().any(|rule| matches!(rule.what, What::All) && concerns(rule, user))
}

fn concerns(rule: &Rule, user: &User) -> bool {
    match rule.who {
        Who::Everyone => true,
        Who::Group(group) => user.is_in(group),
        Who::User(name) => user.name == name && user.is_in(auth::AUTHENTICATED),
    }
}

fn covers(rule: &Rule, asked: &Attributes) -> bool {
    let verb = || rule.verbs.contains(&asked.verb.as_str());
    match rule.what {
        What::All => true,
        What::Path(path) if !asked.is_resource => verb() && path_matches(path, &asked.path),
        What::Resources(group, resources, _) if asked.is_resource => {
            let plain = asked.subresource.is_empty();
            let resource = resources.iter().any(|rule| match rule.split_once('/') {
                Some((name, part)) => asked.resource == name && asked.subresource == part,
                None => asked.resource == *rule && plain,
            });
            verb() && asked.group == group && resource
        }
        _ => false,
    }
}

/// `/livez*` is `/livez` and what lies below it, not `/livezilla`.
fn path_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        None => path.trim_end_matches('/') == rule,
        Some(root) => {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

fn holds(rule: &Rule, user: &User, asked: &Attributes, world: World<'_>) -> bool {
    let state = world.state;
    let What::Resources(_, _, only) = rule.what else {
        return true;
    };
    if let Only::OwnRequest = only {
        return is_own_request(user, asked, state);
    }
    // The rules of node agents mean nothing to a user who is in the group without being a node.
    let of_nodes = matches!(rule.who, Who::Group(auth::NODES));
    let Some(node) = user.node() else {
        return !of_nodes;
    };
    match only {
        Only::Any => true,
        Only::OwnName => asked.name == node,
        Only::OwnLease => {
            let lease = asked.verb == "create" || asked.name == node;
            asked.namespace == "kube-node-lease" && lease
        }
        // A selector narrows a list; beside a name it would be ignored.
        Only::OwnPods if !asked.named => selects_node(&asked.field_selector, node),
        Only::OwnPods => is_bound(asked, state, node),
        Only::Referenced => !asked.name.is_empty() && (world.refers)(node, asked),
        Only::Needed => is_needed(node, asked, world),
        Only::OwnRequest => unreachable!("decided above"),
    }
}

fn object(
    plural: &str,
    group: &str,
    namespace: &str,
    name: &str,
    state: &Snapshot,
) -> Option<Object> {
    let kind = wherry_resources::kind(group, "v1", plural)?;
    state.get(&stored::key(kind, namespace, name)).map(|entry| stored::decode(kind, &entry))
}

/// Whether a list is narrowed to the Pods of one node. The parser of the list itself decides what
/// the selector means: an escaped comma must not pass for a separator here.
fn selects_node(selector: &str, node: &str) -> bool {
    FieldSelector::parse(selector)
        .is_ok_and(|selector| selector.exact("spec.nodeName") == Some(node))
}

fn is_bound(asked: &Attributes, state: &Snapshot, node: &str) -> bool {
    let pod = object("pods", "", &asked.namespace, &asked.name, state);
    pod.is_some_and(|pod| node_of(&pod) == node)
}

fn node_of(pod: &Object) -> &str {
    pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("")
}

/// Whether a node needs to know of a volume: it is bound to a claim that a Pod of the node names, or is
/// a folder, for each node looks after its own also while no Pod uses them. That one is gone is told to
/// all: its folder may go by that.
fn is_needed(node: &str, asked: &Attributes, world: World<'_>) -> bool {
    let Some(volume) = object("persistentvolumes", "", "", &asked.name, world.state) else {
        return true;
    };
    let text = |path: &str| volume.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
    let claim = Attributes {
        resource: "persistentvolumeclaims".to_owned(),
        namespace: text("/spec/claimRef/namespace"),
        name: text("/spec/claimRef/name"),
        ..asked.clone()
    };
    text("/spec/csi/driver") == LOCAL || (world.refers)(node, &claim)
}

fn is_own_request(user: &User, asked: &Attributes, state: &Snapshot) -> bool {
    let found = object(&asked.resource, CERTIFICATES, "", &asked.name, state);
    let owner = found.as_ref().and_then(|csr| csr.pointer("/spec/username")?.as_str());
    owner == Some(user.name.as_str())
}

/// Kubernetes' exact words.
pub fn forbidden(user: &User, asked: &Attributes, reason: &str) -> ApiError {
    let (user, verb) = (quoted(&user.name), &asked.verb);
    let more = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !asked.is_resource {
        return ApiError::Forbidden {
            resource: GroupResource::default(),
            name: String::new(),
            why: format!("User {user} cannot {verb} path {}{more}", quoted(&asked.path)),
            causes: Vec::new(),
        };
    }
    let slash = if asked.subresource.is_empty() { "" } else { "/" };
    let resource = format!("{}{slash}{}", asked.resource, asked.subresource);
    let place = match asked.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {}", quoted(namespace)),
    };
    let (group, resource) = (quoted(&asked.group), quoted(&resource));
    ApiError::Forbidden {
        resource: GroupResource { group: asked.group.clone(), plural: asked.resource.clone() },
        name: asked.name.clone(),
        why: format!(
            "User {user} cannot {verb} resource {resource} in API group {group} {place}{more}"
        ),
        causes: Vec::new(),
    }
}

/// What a user may do in a namespace, as SelfSubjectRulesReview tells it. Built-in rules with a
/// condition on the object cannot be told in that form, so with them the answer is incomplete.
pub fn rules(user: &User, namespace: &str, roles: &Index) -> Value {
    let mut all: Vec<RoleRule> = Vec::new();
    let mut incomplete = false;
    for rule in RULES.iter().filter(|rule| concerns(rule, user)) {
        match rule.what {
            What::All => all.extend(wherry_resources::rbac::everything()),
            What::Path(path) => all.push(RoleRule::on_paths(rule.verbs, &[path])),
            What::Resources(group, names, Only::Any) => {
                all.push(RoleRule::of(rule.verbs, &[group], names));
            }
            What::Resources(..) => incomplete = true,
        }
    }
    if !user.is_in(auth::UNAUTHENTICATED) {
        all.extend(roles.rules_of(user, namespace));
    }
    let told = |of_paths: bool| -> Vec<Value> {
        let rules = all.iter().filter(|rule| rule.urls.is_empty() != of_paths);
        rules.map(RoleRule::to_json).collect()
    };
    json!({
        "resourceRules": told(false), "nonResourceRules": told(true), "incomplete": incomplete,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_star_is_what_lies_below_it() {
        for (rule, path, fits) in [
            ("/livez*", "/livez", true),
            ("/livez*", "/livez/ping", true),
            ("/livez*", "/livezilla", false),
            ("/version", "/version/", true),
        ] {
            assert_eq!(path_matches(rule, path), fits, "{rule} {path}");
        }
    }
}
