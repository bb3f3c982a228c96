//! Roles, impersonation, tokens and what nobody may gain, through the whole Router.

use super::script::{Server, admin};
use crate::apiserver::{User, request::Attributes};
use crate::controllers::bootstrap::access::DEFAULTS;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use proptest::prelude::*;
use serde_json::{Value, json};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A server with the default roles, their gathered rules put together by hand.
pub async fn with_roles() -> Server {
    let server = Server::start().await;
    let rules_of = |label: &str| -> Vec<Value> {
        let all = DEFAULTS.roles.iter().filter(|role| {
            role.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
        });
        all.flat_map(|role| role.rules.iter().flatten()).map(|rule| json!(rule)).collect()
    };
    let prefix = "rbac.authorization.k8s.io/aggregate-to-";
    let gathered = |words: &[&str]| -> Vec<Value> {
        words.iter().flat_map(|word| rules_of(&format!("{prefix}{word}"))).collect()
    };
    for role in &DEFAULTS.roles {
        let mut role = json!(role);
        role["rules"] = match role["metadata"]["name"].as_str() {
            Some("view") => json!(gathered(&["view"])),
            Some("edit") => json!(gathered(&["view", "edit"])),
            Some("admin") => json!(gathered(&["view", "edit", "admin"])),
            _ => role["rules"].clone(),
        };
        server.ok("POST", &format!("{ROLES}/clusterroles"), &role.to_string()).await;
    }
    for binding in &DEFAULTS.bindings {
        let binding = json!(binding).to_string();
        server.ok("POST", &format!("{ROLES}/clusterrolebindings"), &binding).await;
    }
    server
}

async fn bind(server: &Server, user: &str, role: &str) {
    let body = json!({
        "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}],
    });
    let path = format!("{ROLES}/namespaces/default/rolebindings");
    server.ok("POST", &path, &body.to_string()).await;
}

#[tokio::test]
async fn a_binding_counts_at_once_and_not_longer() {
    let server = with_roles().await;
    bind(&server, "alice", "view").await;
    let out = server
        .script(
            "
            as alice
            GET /api/v1/namespaces/default/pods
            GET /api/v1/namespaces/default/secrets
            GET /api/v1/pods
            as admin system:masters
            DELETE /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/alice-view
            as alice
            GET /api/v1/namespaces/default/pods
            GET /version
            ",
        )
        .await;
    let lines: Vec<&str> = out.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(lines[0].starts_with("  200"), "{out}");
    assert!(lines[1].contains("cannot list resource \\\"secrets\\\""), "{out}");
    assert!(lines[2].contains("at the cluster scope"), "{out}");
    assert!(lines[4].starts_with("  403"), "{out}");
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let server = with_roles().await;
    bind(&server, "alice", "admin").await;
    let out = server
        .script(
            r#"
            as alice
            POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles
            {"metadata":{"name":"own"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}
            POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles
            {"metadata":{"name":"more"},"rules":[{"verbs":["get","list"],"apiGroups":[""],"resources":["pods","nodes"]}]}
            POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
            {"metadata":{"name":"b"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"system:kubelet-api-admin"},"subjects":[{"kind":"User","name":"alice"}]}
            POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
            {"metadata":{"name":"b"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"gone"},"subjects":[{"kind":"User","name":"alice"}]}
            POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
            {"metadata":{"name":"b"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"own"},"subjects":[{"kind":"User","name":"bob"}]}
            PATCH /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/own application/merge-patch+json
            {"rules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}]}
            "#,
        )
        .await;
    expect![[r#"
        POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles
          201 {"kind":"Role","apiVersion":"rbac.authorization.k8s.io/v1","metadata":{"name":"own","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}
        POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"alice\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}","reason":"Forbidden","details":{"name":"more","group":"rbac.authorization.k8s.io","kind":"roles"},"code":403}
        POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: user \"alice\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\" \"watch\"]}\n{APIGroups:[\"\"], Resources:[\"nodes/log\"], Verbs:[\"*\"]}\n{APIGroups:[\"\"], Resources:[\"nodes/metrics\"], Verbs:[\"*\"]}\n{APIGroups:[\"\"], Resources:[\"nodes/proxy\"], Verbs:[\"*\"]}\n{APIGroups:[\"\"], Resources:[\"nodes/stats\"], Verbs:[\"*\"]}","reason":"Forbidden","details":{"name":"b","group":"rbac.authorization.k8s.io","kind":"rolebindings"},"code":403}
        POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"roles.rbac.authorization.k8s.io \"gone\" not found","reason":"NotFound","details":{"name":"gone","group":"rbac.authorization.k8s.io","kind":"roles"},"code":404}
        POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings
          201 {"kind":"RoleBinding","apiVersion":"rbac.authorization.k8s.io/v1","metadata":{"name":"b","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"own"},"subjects":[{"kind":"User","name":"bob","apiGroup":"rbac.authorization.k8s.io"}]}
        PATCH /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/own
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"roles.rbac.authorization.k8s.io \"own\" is forbidden: user \"alice\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}","reason":"Forbidden","details":{"name":"own","group":"rbac.authorization.k8s.io","kind":"roles"},"code":403}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn acting_as_somebody_takes_a_right_and_gives_theirs() {
    let server = with_roles().await;
    bind(&server, "alice", "view").await;
    let body = json!({"metadata": {"name": "support"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"],
            "resourceNames": ["alice"]}]});
    server.ok("POST", &format!("{ROLES}/clusterroles"), &body.to_string()).await;
    let body = json!({"metadata": {"name": "support"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "support"},
        "subjects": [{"kind": "User", "name": "sam"}]});
    server.ok("POST", &format!("{ROLES}/clusterrolebindings"), &body.to_string()).await;
    let sam = User::new("sam", &[]);
    let pods = "/api/v1/namespaces/default/pods";
    for (header, expected) in [
        ("accept: application/json", 403),
        ("impersonate-user: alice", 200),
        ("impersonate-user: bob", 403),
        ("impersonate-group: system:masters", 400),
    ] {
        let response = server.response(&sam, "GET", pods, header, "").await;
        assert_eq!(response.status().as_u16(), expected, "{header}");
    }
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let response = server.response(&sam, "POST", review, "impersonate-user: alice", "{}").await;
    let told: Value = serde_json::from_str(&super::script::text(response).await).expect("JSON");
    let expected = json!({"username": "alice", "groups": ["system:authenticated"]});
    assert_eq!(told["status"]["userInfo"], expected);
}

/// What a request with this token answers.
async fn with_token(server: &Server, token: &str, path: &str) -> u16 {
    use tower::ServiceExt as _;
    let request = http::Request::builder()
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .body(axum::body::Body::empty())
        .expect("a request");
    let response = server.api.router().oneshot(request).await.expect("infallible");
    response.status().as_u16()
}

#[tokio::test]
async fn a_token_speaks_for_its_account_while_its_pod_is_there() {
    let server = with_roles().await;
    let pods = "/api/v1/namespaces/default/pods";
    let body = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i:1"}]}}"#;
    let pod = server.ok("POST", pods, body).await;
    bind(&server, "system:serviceaccount:default:default", "view").await;
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = json!({"spec": {"expirationSeconds": 600, "boundObjectRef": {
        "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]}}});
    let made = server.ok("POST", tokens, &bound.to_string()).await;
    let token = made["status"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(with_token(&server, &token, pods).await, 200);
    assert_eq!(with_token(&server, &format!("{token}x"), pods).await, 401);
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = json!({"spec": {"token": token}}).to_string();
    let told = server.ok("POST", reviews, &review).await;
    assert_eq!(told["status"]["authenticated"], true);
    assert_eq!(told["status"]["user"]["username"], "system:serviceaccount:default:default");
    let foreign = json!({"spec": {"token": token, "audiences": ["vault"]}}).to_string();
    let told = server.ok("POST", reviews, &foreign).await;
    assert_eq!(told["status"]["error"], "invalid bearer token");
    server.ok("DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), "").await;
    assert_eq!(with_token(&server, &token, pods).await, 401);
    for (body, code) in [
        (json!({"spec": {"expirationSeconds": 60}}), 422),
        (bound, 404),
        (json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Job"}}}), 400),
    ] {
        let (found, text) = server.send("POST", tokens, &body.to_string()).await;
        assert_eq!(found.as_u16(), code, "{text}");
    }
    let keys = server.ok("GET", "/openid/v1/jwks", "").await;
    assert_eq!(keys["keys"][0]["alg"], "ES256");
    let discovery = server.ok("GET", "/.well-known/openid-configuration", "").await;
    assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(["ES256"]));
}

#[tokio::test]
async fn a_secret_made_for_it_holds_an_accounts_token() {
    let server = with_roles().await;
    bind(&server, "system:serviceaccount:default:default", "view").await;
    let (secrets, pods) = ("/api/v1/namespaces/default/secrets", "/api/v1/namespaces/default/pods");
    let secret = |name: &str, account: &str| {
        let annotations = json!({"kubernetes.io/service-account.name": account});
        let metadata = json!({"name": name, "annotations": annotations});
        json!({"metadata": metadata, "type": "kubernetes.io/service-account-token"}).to_string()
    };
    let made = server.ok("POST", secrets, &secret("robot", "default")).await;
    let told = |key: &str| {
        let text = made["data"][key].as_str().expect("it is filled in");
        String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text")
    };
    assert_eq!(told("namespace"), "default");
    assert!(told("ca.crt").contains("BEGIN CERTIFICATE"));
    let token = told("token");
    assert_eq!(with_token(&server, &token, pods).await, 200);
    server.ok("DELETE", &format!("{secrets}/robot"), "").await;
    assert_eq!(with_token(&server, &token, pods).await, 401);
    let (code, text) = server.send("POST", secrets, &secret("other", "nobody")).await;
    assert_eq!(code.as_u16(), 403, "{text}");
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_own_pods() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut uids = Vec::new();
    for (name, node) in [("mine", "a"), ("other", "b")] {
        let body = json!({"metadata": {"name": name}, "spec": {"nodeName": node,
            "containers": [{"name": "c", "image": "i:1"}]}});
        let pod = server.ok("POST", pods, &body.to_string()).await;
        uids.push(pod["metadata"]["uid"].clone());
    }
    let node = User::new("system:node:a", &["system:nodes"]);
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = |name: &str, uid: &Value| {
        json!({"spec": {"boundObjectRef":
            {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}})
        .to_string()
    };
    for (body, code) in [
        (bound("mine", &uids[0]), 201),
        (bound("other", &uids[1]), 403),
        (bound("mine", &json!("")), 403),
        ("{}".to_owned(), 403),
    ] {
        let response = server.response(&node, "POST", tokens, "", &body).await;
        assert_eq!(response.status().as_u16(), code, "{body}");
    }
}

#[tokio::test]
async fn owner_references_take_the_right_to_delete() {
    let server = with_roles().await;
    let body = json!({"metadata": {"name": "labeller"}, "rules": [
        {"verbs": ["get", "create", "patch"], "apiGroups": [""], "resources": ["configmaps"]}]});
    server.ok("POST", &format!("{ROLES}/clusterroles"), &body.to_string()).await;
    bind(&server, "alice", "labeller").await;
    let alice = User::new("alice", &[]);
    let maps = "/api/v1/namespaces/default/configmaps";
    server.ok("POST", maps, r#"{"metadata":{"name":"m"}}"#).await;
    let owned = |blocks: bool| {
        json!({"metadata": {"name": "n", "ownerReferences": [{"apiVersion": "v1", "kind": "Secret",
            "name": "s", "uid": "u", "blockOwnerDeletion": blocks}]}})
        .to_string()
    };
    let merge = "application/merge-patch+json";
    let map = format!("{maps}/m");
    let patch = owned(false).replace("\"name\":\"n\",", "");
    let refused = server.response(&alice, "PATCH", &map, merge, &patch).await;
    let text = super::script::text(refused).await;
    assert!(text.contains("cannot set an ownerRef on a resource you can't delete"), "{text}");
    assert_eq!(server.response(&alice, "POST", maps, "", &owned(false)).await.status(), 201);
    let refused = server.response(&alice, "POST", maps, "", &owned(true)).await;
    assert_eq!(refused.status(), 403);
}

const VERBS: [&str; 5] = ["get", "list", "create", "delete", "*"];
const RESOURCES: [&str; 5] = ["pods", "pods/log", "secrets", "*/log", "*"];

fn rule() -> impl Strategy<Value = Value> {
    let verbs = proptest::sample::subsequence(VERBS.to_vec(), 1..3);
    let resources = proptest::sample::subsequence(RESOURCES.to_vec(), 1..3);
    let names = proptest::sample::subsequence(vec!["a", "b"], 0..2);
    (verbs, resources, names).prop_map(|(verbs, resources, names)| {
        json!({"verbs": verbs, "apiGroups": [""], "resources": resources, "resourceNames": names})
    })
}

/// One write that the attacker tries.
#[derive(Clone, Debug)]
enum Try {
    Role { cluster: bool, name: &'static str, rules: Vec<Value>, label: bool },
    Gathering { name: &'static str },
    Binding { cluster: bool, role: &'static str, of_cluster: bool, subject: &'static str },
    Delete { cluster: bool, name: &'static str },
}

fn attempt() -> impl Strategy<Value = Try> {
    let name = || proptest::sample::select(vec!["r", "s", "own", "strong"]);
    let subject = proptest::sample::select(vec!["mallory", "friend"]);
    prop_oneof![
        (any::<bool>(), name(), proptest::collection::vec(rule(), 1..3), any::<bool>())
            .prop_map(|(cluster, name, rules, label)| Try::Role { cluster, name, rules, label }),
        name().prop_map(|name| Try::Gathering { name }),
        (any::<bool>(), name(), any::<bool>(), subject).prop_map(
            |(cluster, role, of_cluster, subject)| Try::Binding {
                cluster,
                role,
                of_cluster,
                subject
            }
        ),
        (any::<bool>(), name()).prop_map(|(cluster, name)| Try::Delete { cluster, name }),
    ]
}

/// Everything small that might be allowed, in the cluster, in the attacker's namespace and in
/// another.
fn universe() -> Vec<Attributes> {
    let mut all = Vec::new();
    for namespace in ["", "default", "kube-node-lease"] {
        for verb in ["get", "list", "create", "delete", "patch"] {
            for resource in ["pods", "pods/log", "secrets", "services/log", "nodes"] {
                for name in ["", "a", "b"] {
                    let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
                    all.push(Attributes {
                        verb: verb.to_owned(),
                        is_resource: true,
                        namespace: namespace.to_owned(),
                        resource: resource.to_owned(),
                        subresource: part.to_owned(),
                        name: name.to_owned(),
                        ..Attributes::default()
                    });
                }
            }
        }
    }
    all
}

fn rights(server: &Server, user: &User) -> Vec<bool> {
    universe().iter().map(|asked| server.api.may(user, asked)).collect()
}

fn request(attempt: &Try) -> (&'static str, String, Value) {
    let place = |cluster: bool, plural: &str| match cluster {
        true => format!("{ROLES}/cluster{plural}"),
        false => format!("{ROLES}/namespaces/default/{plural}"),
    };
    match attempt {
        Try::Role { cluster, name, rules, label } => {
            let labels = if *label { json!({"part": "of"}) } else { json!({}) };
            let body = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
            ("PUT", format!("{}/{name}", place(*cluster, "roles")), body)
        }
        Try::Gathering { name } => {
            let body = json!({"metadata": {"name": name}, "rules": [], "aggregationRule":
                {"clusterRoleSelectors": [{"matchLabels": {"part": "of"}}]}});
            ("PUT", format!("{}/{name}", place(true, "roles")), body)
        }
        Try::Binding { cluster, role, of_cluster, subject } => {
            let kind = if *cluster || *of_cluster { "ClusterRole" } else { "Role" };
            let name = format!("{subject}-{kind}-{role}").to_lowercase();
            let body = json!({
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
                "subjects": [{"kind": "User", "name": subject}],
            });
            ("POST", place(*cluster, "rolebindings"), body)
        }
        Try::Delete { cluster, name } => {
            ("DELETE", format!("{}/{name}", place(*cluster, "roles")), Value::Null)
        }
    }
}

async fn nobody_gains(first: Vec<Value>, attempts: Vec<Try>) -> Result<(), TestCaseError> {
    let server = Server::start().await;
    let all = ["roles", "rolebindings", "clusterroles", "clusterrolebindings"];
    let writes = json!({"verbs": ["create", "update", "patch", "delete", "get"],
        "apiGroups": ["rbac.authorization.k8s.io"], "resources": all});
    let objects = [
        ("clusterroles", json!({"metadata": {"name": "writer"}, "rules": [writes]})),
        ("clusterroles", json!({"metadata": {"name": "own"}, "rules": first})),
        (
            "clusterroles",
            json!({"metadata": {"name": "strong"}, "rules":
                [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}),
        ),
    ];
    for (plural, object) in objects {
        server.ok("POST", &format!("{ROLES}/{plural}"), &object.to_string()).await;
    }
    let given = |role: &str| {
        json!({"metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": role},
            "subjects": [{"kind": "User", "name": "mallory"}]})
    };
    let bindings = format!("{ROLES}/clusterrolebindings");
    server.ok("POST", &bindings, &given("writer").to_string()).await;
    let own = format!("{ROLES}/namespaces/default/rolebindings");
    server.ok("POST", &own, &given("own").to_string()).await;
    let (mallory, friend) = (User::new("mallory", &[]), User::new("friend", &[]));
    let before = rights(&server, &mallory);
    for attempt in &attempts {
        let (method, path, body) = request(attempt);
        let _ = server.response(&mallory, method, &path, "", &body.to_string()).await;
        for user in [&mallory, &friend] {
            let after = rights(&server, user);
            let gained = before.iter().zip(&after).zip(universe()).find(|((b, a), _)| !**b && **a);
            prop_assert!(gained.is_none(), "{} gained {gained:?} by {attempt:?}", user.name);
        }
    }
    Ok(())
}

proptest! {
    // Each case starts a server.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nobody_gains_rights_by_what_they_may_write(
        first in proptest::collection::vec(rule(), 1..3),
        attempts in proptest::collection::vec(attempt(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(nobody_gains(first, attempts))?;
    }
}

#[tokio::test]
async fn reviews_say_what_would_be_answered() {
    let server = with_roles().await;
    bind(&server, "alice", "view").await;
    let out = server
        .script(
            r#"
            POST /apis/authorization.k8s.io/v1/subjectaccessreviews
            {"spec":{"user":"alice","resourceAttributes":{"verb":"list","resource":"pods","namespace":"default"}}}
            POST /apis/authorization.k8s.io/v1/subjectaccessreviews
            {"spec":{"user":"alice","resourceAttributes":{"verb":"list","resource":"secrets","namespace":"default"}}}
            POST /apis/authorization.k8s.io/v1/subjectaccessreviews
            {"spec":{"resourceAttributes":{"verb":"list","resource":"secrets"}}}
            POST /apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews
            {"spec":{"user":"alice","resourceAttributes":{"verb":"get","resource":"pods","namespace":"other"}}}
            as alice
            POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
            {"spec":{"nonResourceAttributes":{"verb":"get","path":"/version"}}}
            POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
            {"spec":{}}
            POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews
            {"spec":{"namespace":"kube-node-lease"}}
            "#,
        )
        .await;
    expect![[r#"
        POST /apis/authorization.k8s.io/v1/subjectaccessreviews
          201 {"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"user":"alice","resourceAttributes":{"verb":"list","resource":"pods","namespace":"default"}},"status":{"allowed":true,"reason":"RBAC: allowed by RoleBinding \"alice-view/default\" of ClusterRole \"view\" to User \"alice\""}}
        POST /apis/authorization.k8s.io/v1/subjectaccessreviews
          201 {"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"user":"alice","resourceAttributes":{"verb":"list","resource":"secrets","namespace":"default"}},"status":{"allowed":false}}
        POST /apis/authorization.k8s.io/v1/subjectaccessreviews
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified","reason":"Invalid","details":{"group":"authorization.k8s.io","kind":"SubjectAccessReview","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"\": at least one of user or group must be specified","field":"spec.user"}]},"code":422}
        POST /apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"spec.resourceAttributes.namespace must match namespace: default","reason":"BadRequest","code":400}
        POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
          201 {"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"nonResourceAttributes":{"verb":"get","path":"/version"}},"status":{"allowed":true,"reason":"RBAC: allowed by ClusterRoleBinding \"system:discovery\" of ClusterRole \"system:discovery\" to Group \"system:authenticated\""}}
        POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"SelfSubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified","reason":"Invalid","details":{"group":"authorization.k8s.io","kind":"SelfSubjectAccessReview","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified","field":"spec.resourceAttributes"}]},"code":422}
        POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews
          201 {"kind":"SelfSubjectRulesReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"namespace":"kube-node-lease"},"status":{"resourceRules":[{"verbs":["create"],"apiGroups":["authorization.k8s.io"],"resources":["selfsubjectaccessreviews","selfsubjectrulesreviews"]},{"verbs":["create"],"apiGroups":["authentication.k8s.io"],"resources":["selfsubjectreviews"]}],"nonResourceRules":[{"verbs":["get","head"],"nonResourceURLs":["/livez*"]},{"verbs":["get","head"],"nonResourceURLs":["/readyz*"]},{"verbs":["get","head"],"nonResourceURLs":["/healthz*"]},{"verbs":["get","head"],"nonResourceURLs":["/version"]},{"verbs":["get","head","post","delete"],"nonResourceURLs":["/ui*"]},{"verbs":["get"],"nonResourceURLs":["/api","/api/*","/apis","/apis/*","/healthz","/livez","/openapi","/openapi/*","/readyz","/version","/version/"]},{"verbs":["get"],"nonResourceURLs":["/healthz","/livez","/readyz","/version","/version/"]}],"incomplete":false}}
    "#]].assert_eq(&out);
    assert!(admin().is_in("system:masters"));
}
