//! Who may do what: one table of rules, read by one pure function.
//!
//! A request is allowed if a rule allows it; there is no rule that denies. The table holds the
//! rules that are built in: for everybody, for administrators, for the control plane's own
//! tasks, for node agents (Kubernetes' Node authorizer) and for machines about to join. What the
//! Node rules read of the state is the snapshot they are given. What a request must not *contain*
//! is admission's matter (`admission/node_restriction.rs`).

use super::{
    auth, auth::User, errors::ApiError, errors::GroupResource, request::Attributes, stored,
};
use serde_json::{Value, json};
use wherry_resources::{Object, selectors::FieldSelector};
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
const JOINING: Who = Who::Group(auth::BOOTSTRAPPERS);
const KNOWN: Who = Who::Group(auth::AUTHENTICATED);
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
    path(KNOWN, "/api*"),
    path(KNOWN, "/openapi*"),
    may(KNOWN, &["create"], "authorization.k8s.io", &["selfsubjectaccessreviews"], Only::Any),
    may(KNOWN, &["create"], "authorization.k8s.io", &["selfsubjectrulesreviews"], Only::Any),
    may(KNOWN, &["create"], "authentication.k8s.io", &["selfsubjectreviews"], Only::Any),
    // Who holds this token is told the cluster's keys.
    Rule {
        who: Who::Group(auth::JOINING_MEMBERS),
        verbs: &["post"],
        what: What::Path("/wherry/v1/members"),
    },
    // Images and the way back to the agent.
    path(NODES, "/v2*"),
    path(NODES, "/wherry/v1/tunnel"),
    may(NODES, READ, "", &["services", "nodes"], Only::Any),
    may(NODES, READ, "discovery.k8s.io", &["endpointslices"], Only::Any),
    may(NODES, READ, "", &["pods"], Only::OwnPods),
    may(NODES, READ, "", &["configmaps", "secrets", "serviceaccounts"], Only::Referenced),
    // Whether paths of the host may be mounted, and where the volume of a claim is.
    may(NODES, &["get"], "", &["namespaces", "persistentvolumes"], Only::Any),
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

/// Allows or refuses with Kubernetes' own sentence.
pub fn authorize(user: &User, asked: &Attributes, state: &Snapshot) -> Result<(), ApiError> {
    if allowed(user, asked, state) { Ok(()) } else { Err(forbidden(user, asked)) }
}

/// The bare answer, for access reviews.
pub fn allowed(user: &User, asked: &Attributes, state: &Snapshot) -> bool {
    RULES.iter().any(|rule| {
        let concerned = match rule.who {
            Who::Everyone => true,
            Who::Group(group) => user.is_in(group),
            Who::User(name) => user.name == name && user.is_in(auth::AUTHENTICATED),
        };
        concerned && covers(rule, asked) && holds(rule, user, asked, state)
    })
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
        Some("/api") => ["/api", "/apis"].iter().any(|root| path_matches_below(root, path)),
        Some(root) => path_matches_below(root, path),
    }
}

fn path_matches_below(root: &str, path: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn holds(rule: &Rule, user: &User, asked: &Attributes, state: &Snapshot) -> bool {
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
        Only::OwnPods => {
            // A selector narrows a list; beside a name it would be ignored.
            let listed = !asked.named && selects_node(&asked.field_selector, node);
            listed || is_bound(asked, state, node)
        }
        Only::Referenced => !asked.name.is_empty() && is_referenced(asked, state, node),
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

fn is_own_request(user: &User, asked: &Attributes, state: &Snapshot) -> bool {
    let found = object(&asked.resource, CERTIFICATES, "", &asked.name, state);
    let owner = found.as_ref().and_then(|csr| csr.pointer("/spec/username")?.as_str());
    owner == Some(user.name.as_str())
}

fn is_referenced(asked: &Attributes, state: &Snapshot, node: &str) -> bool {
    let pods = wherry_resources::kind("", "v1", "pods").expect("Pod is a built-in kind");
    let prefix = stored::prefix(pods, Some(&asked.namespace));
    // Most Pods of a namespace run elsewhere: look for the node's name before reading a Pod.
    let mark = format!("\"nodeName\":{}", Value::from(node));
    state.range(&prefix, None).any(|(_, entry)| {
        let mine = std::str::from_utf8(&entry.value).is_ok_and(|text| text.contains(&mark));
        mine && {
            let pod = stored::decode(pods, &entry);
            node_of(&pod) == node && references(&pod["spec"], &asked.resource, &asked.name)
        }
    })
}

/// Whether a Pod's spec names a ConfigMap, Secret or ServiceAccount. Walks every field, so that a
/// reference in a field added later is found too; the shapes of references are few.
fn references(spec: &Value, resource: &str, name: &str) -> bool {
    let named = |value: &Value, key: &str| value.get(key).and_then(Value::as_str) == Some(name);
    match spec {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            let here = match (resource, key.as_str()) {
                ("secrets", "secretKeyRef" | "secretRef" | "nodePublishSecretRef") => {
                    named(value, "name")
                }
                ("secrets", "secret") => named(value, "secretName") || named(value, "name"),
                ("secrets", "imagePullSecrets") => {
                    value.as_array().is_some_and(|list| list.iter().any(|one| named(one, "name")))
                }
                ("configmaps", "configMapKeyRef" | "configMapRef" | "configMap") => {
                    named(value, "name")
                }
                ("serviceaccounts", "serviceAccountName") => value.as_str() == Some(name),
                _ => false,
            };
            here || references(value, resource, name)
        }),
        Value::Array(items) => items.iter().any(|item| references(item, resource, name)),
        _ => false,
    }
}

/// Kubernetes' exact words.
fn forbidden(user: &User, asked: &Attributes) -> ApiError {
    let (user, verb) = (&user.name, &asked.verb);
    if !asked.is_resource {
        return ApiError::Forbidden {
            resource: GroupResource::default(),
            name: String::new(),
            why: format!("User {user:?} cannot {verb} path {:?}", asked.path),
            causes: Vec::new(),
        };
    }
    let slash = if asked.subresource.is_empty() { "" } else { "/" };
    let resource = format!("{}{slash}{}", asked.resource, asked.subresource);
    let place = match asked.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let group = &asked.group;
    ApiError::Forbidden {
        resource: GroupResource { group: group.clone(), plural: asked.resource.clone() },
        name: asked.name.clone(),
        why: format!(
            "User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}"
        ),
        causes: Vec::new(),
    }
}

/// What a user may do, as SelfSubjectRulesReview tells it. Rules with a condition on the object
/// cannot be told in that form, so with them the answer says that it is incomplete.
pub fn rules(user: &User) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let mut paths: Vec<Value> = Vec::new();
    let mut incomplete = false;
    let concerned = RULES.iter().filter(|rule| match rule.who {
        Who::Everyone => true,
        Who::Group(group) => user.is_in(group),
        Who::User(name) => user.name == name,
    });
    for rule in concerned {
        match rule.what {
            What::All => {
                resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
                paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
            }
            What::Path(path) => paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": [path]})),
            What::Resources(group, names, Only::Any) => resources
                .push(json!({"verbs": rule.verbs, "apiGroups": [group], "resources": names})),
            What::Resources(..) => incomplete = true,
        }
    }
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete })
}
