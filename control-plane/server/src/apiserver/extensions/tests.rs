//! Webhooks over real TLS, and policies, against a server in memory.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::apiserver::outbound::Network;
use crate::apiserver::tests::script::Server;

mod around;

/// A webhook server: answers by its path, and remembers what it was asked.
struct Hook {
    address: SocketAddr,
    certificate_pem: String,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    async fn start() -> Hook {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
            .expect("a certificate is made");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the ciphers")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key fits");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("is bound");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, seen.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Hook { address, certificate_pem: made.cert.pem(), asked, task }
    }

    /// A webhook of a configuration, with this path on the server.
    fn webhook(&self, name: &str, path: &str, more: Value) -> Value {
        let mut webhook = json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "url": format!("https://localhost:{}{path}", self.address.port()),
                "caBundle": BASE64.encode(&self.certificate_pem),
            },
            "rules": [{"operations": ["CREATE", "UPDATE", "DELETE"], "apiGroups": [""],
                "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            webhook[key] = value.clone();
        }
        webhook
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("no test panics in here"))
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path == "/convert" {
        return Ok(Response::new(Full::from(converted(&review).to_string())));
    }
    let asked = &review["request"];
    let line = format!("{path} {} {}", asked["operation"], asked["object"]["data"]);
    seen.lock().expect("no test panics in here").push(line.replace('"', ""));
    let patch = |patch: Value| BASE64.encode(patch.to_string());
    let mut response = json!({"uid": asked["uid"], "allowed": true});
    match path.as_str() {
        "/label" => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(patch(json!([
                {"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}])));
        }
        "/count" => {
            let count = asked["object"]["data"]["count"].as_str().and_then(|n| n.parse().ok());
            let count = count.unwrap_or(0) + 1;
            let value = count.to_string();
            response["patchType"] = json!("JSONPatch");
            response["patch"] =
                json!(patch(json!([{"op": "add", "path": "/data/count", "value": value}])));
        }
        "/deny" => {
            response["allowed"] = json!(false);
            response["warnings"] = json!(["come back later"]);
            response["status"] =
                json!({"code": 403, "message": "not today", "reason": "Forbidden"});
        }
        "/warn" => response["warnings"] = json!(["mind the gap"]),
        "/redirect" => {
            let answer = Response::builder().status(302).header("location", "https://example.com/");
            return Ok(answer.body(Full::default()).expect("a response"));
        }
        "/large" => response["padding"] = json!("x".repeat(2 << 20)),
        "/other-uid" => response["uid"] = json!("other"),
        "/slow" => std::future::pending::<()>().await,
        _ => {}
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": response});
    Ok(Response::new(Full::from(review.to_string())))
}

/// Version v1 says `color`, v2 says `colour`.
fn converted(review: &Value) -> Value {
    let request = &review["request"];
    let convert = |object: &Value| {
        let mut object = object.clone();
        let (from, to) = match request["desiredAPIVersion"].as_str() {
            Some("example.com/v2") => ("color", "colour"),
            _ => ("colour", "color"),
        };
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        let spec = object.get_mut("spec").and_then(Value::as_object_mut);
        if let Some(spec) = spec
            && let Some(value) = spec.shift_remove(from)
        {
            spec.insert(to.to_owned(), value);
        }
        object
    };
    let objects = request["objects"].as_array().into_iter().flatten().map(convert);
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
        "uid": request["uid"], "result": {"status": "Success"},
        "convertedObjects": objects.collect::<Vec<_>>()}})
}

/// Serves Shirts in two versions, and says where they are.
async fn shirts(server: &Server, hook: &Hook) -> impl Fn(&str) -> String {
    let version = |name: &str, field: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"spec": {"type": "object",
                "properties": {field: {"type": "string"}}}}}}})
    };
    let client = hook.webhook("x", "/convert", json!({}))["clientConfig"].clone();
    let definition = json!({"metadata": {"name": "shirts.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "shirts", "kind": "Shirt"},
        "versions": [version("v1", "color", true), version("v2", "colour", false)],
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": ["v1"], "clientConfig": client}}}});
    let definitions = crate::apiserver::tests::custom::DEFINITIONS;
    server.ok("POST", definitions, &definition.to_string()).await;
    |version: &str| format!("/apis/example.com/{version}/namespaces/default/shirts")
}

#[tokio::test]
async fn webhooks_convert_between_the_versions_of_a_custom_kind() {
    let (server, hook) = (server().await, Hook::start().await);
    let at = shirts(&server, &hook).await;
    let made =
        server.ok("POST", &at("v2"), r#"{"metadata":{"name":"a"},"spec":{"colour":"red"}}"#).await;
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("example.com/v2"), &json!({"colour": "red"}))
    );
    let read = server.ok("GET", &format!("{}/a", at("v1")), "").await;
    assert_eq!(
        (&read["apiVersion"], &read["spec"]),
        (&json!("example.com/v1"), &json!({"color": "red"}))
    );
    let admin = crate::apiserver::tests::script::admin();
    let path = format!("{}/a", at("v2"));
    let kind = "application/merge-patch+json";
    let patch = r#"{"spec":{"colour":"blue"}}"#;
    assert_eq!(server.response(&admin, "PATCH", &path, kind, patch).await.status(), 200);
    let list = server.ok("GET", &at("v2"), "").await;
    assert_eq!(list["items"][0]["spec"], json!({"colour": "blue"}));
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v2");
    let list = server.ok("GET", &at("v1"), "").await;
    assert_eq!(list["items"][0]["spec"], json!({"color": "blue"}));
    let watch = format!("{}?watch=1&timeoutSeconds=1", at("v2"));
    let events = server.send("GET", &watch, "").await.1;
    assert!(events.contains(r#""spec":{"colour":"blue"}"#), "{events}");
    // What lingers is shown in the version that was asked for, too.
    let held = r#"{"metadata":{"finalizers":["x.dev/a"]}}"#;
    assert_eq!(server.response(&admin, "PATCH", &path, kind, held).await.status(), 200);
    let lingers = server.ok("DELETE", &path, "").await;
    assert_eq!(
        (&lingers["apiVersion"], &lingers["spec"]),
        (&json!("example.com/v2"), &json!({"colour": "blue"}))
    );
}

#[tokio::test]
async fn what_is_owned_in_another_version_is_owned_under_its_name_there() {
    let (server, hook) = (server().await, Hook::start().await);
    let at = shirts(&server, &hook).await;
    let admin = crate::apiserver::tests::script::admin();
    let patch = async |kind: &str, who: &str, version: &str, spec: Value| {
        let path = format!("{}/a?fieldManager={who}", at(version));
        let body = json!({"apiVersion": format!("example.com/{version}"), "kind": "Shirt",
            "metadata": {"name": "a"}, "spec": spec});
        let answer = server.response(&admin, "PATCH", &path, kind, &body.to_string()).await;
        let code = answer.status().as_u16();
        let text = crate::apiserver::tests::script::text(answer).await;
        let object: Value = serde_json::from_str(&text).expect("answers are JSON");
        let owners = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        let owners = owners.map(|owner| format!("{} {}", owner["manager"], owner["fieldsV1"]));
        let owners = owners.collect::<Vec<_>>().join("; ").replace('"', "");
        format!("{code} {} {owners}", object.get("spec").unwrap_or(&object["message"]))
    };
    let apply = "application/apply-patch+yaml";
    let done = [
        patch(apply, "first", "v1", json!({"color": "red"})).await,
        patch(apply, "second", "v2", json!({"colour": "blue"})).await,
        patch(apply, "first", "v2", json!({"colour": "red"})).await,
        patch(apply, "second", "v1", json!({"color": "red"})).await,
        patch("application/merge-patch+json", "third", "v1", json!({"color": "green"})).await,
    ];
    assert_eq!(
        done,
        [
            r#"201 {"color":"red"} first {f:spec:{f:color:{}}}"#,
            r#"409 "Apply failed with 1 conflict: conflict with \"first\": .spec.color" "#,
            r#"200 {"colour":"red"} first {f:spec:{f:colour:{}}}"#,
            r#"200 {"color":"red"} first {f:spec:{f:colour:{}}}; second {f:spec:{f:color:{}}}"#,
            r#"200 {"color":"green"} third {f:spec:{f:color:{}}}"#,
        ]
    );
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server whose webhooks may be on this machine.
async fn server() -> Server {
    let server = Server::start().await;
    let network = |text: &str| text.parse::<Network>().expect("a network");
    server.api.let_webhooks_reach(&[network("127.0.0.0/8"), network("::1")]);
    server
}

async fn register(server: &Server, kind: &str, name: &str, webhooks: Value) {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations");
    let body = json!({"metadata": {"name": name}, "webhooks": webhooks});
    server.ok("POST", &path, &body.to_string()).await;
}

fn config_map(name: &str) -> String {
    json!({"metadata": {"name": name}, "data": {"a": "b"}}).to_string()
}

#[tokio::test]
async fn mutating_webhooks_change_objects_in_order_and_again_when_asked() {
    let (server, hook) = (server().await, Hook::start().await);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    let first = hook.webhook("count.example.com", "/count", again);
    let second = hook.webhook("label.example.com", "/label", json!({}));
    register(&server, "mutating", "hooks", json!([first, second])).await;
    let made = server.ok("POST", CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(made["metadata"]["labels"], json!({"hooked": "yes"}));
    assert_eq!(made["data"]["count"], "2", "asked again after the other changed the object");
    assert_eq!(
        hook.asked(),
        ["/count CREATE {a:b}", "/label CREATE {a:b,count:1}", "/count CREATE {a:b,count:1}"]
    );
    // Hooks cannot keep themselves from being removed.
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hooks";
    server.ok("DELETE", path, "").await;
    let made = server.ok("POST", CONFIG_MAPS, &config_map("b")).await;
    assert!(made["metadata"].get("labels").is_none());
    assert!(hook.asked().is_empty());
}

#[tokio::test]
async fn validating_webhooks_refuse_and_warn() {
    let (server, hook) = (server().await, Hook::start().await);
    let only_b = json!({"matchConditions": [
        {"name": "b",
            "expression": "request.operation == 'DELETE' || object.metadata.name == 'b'"}]});
    let hooks = json!([
        hook.webhook("warn.example.com", "/warn", json!({})),
        hook.webhook("deny.example.com", "/deny", only_b),
    ]);
    register(&server, "validating", "hooks", hooks).await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"b"}}
            DELETE /api/v1/namespaces/default/configmaps/a
            "#,
        )
        .await;
    expect_test::expect![[r#"
        POST /api/v1/namespaces/default/configmaps
          201 warning: 299 - "mind the gap" {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"}}
        POST /api/v1/namespaces/default/configmaps
          403 warning: 299 - "come back later" warning: 299 - "mind the gap" {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"deny.example.com\" denied the request: not today","reason":"Forbidden","code":403}
        DELETE /api/v1/namespaces/default/configmaps/a
          403 warning: 299 - "come back later" warning: 299 - "mind the gap" {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"deny.example.com\" denied the request: not today","reason":"Forbidden","code":403}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn webhooks_hear_of_deletions_and_streams() {
    let (server, hook) = (server().await, Hook::start().await);
    let streams = json!({"rules": [{"operations": ["CONNECT"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["pods/exec"]}]});
    let hooks = json!([
        hook.webhook("warn.example.com", "/warn", json!({})),
        hook.webhook("deny.example.com", "/deny", streams),
    ]);
    register(&server, "validating", "hooks", hooks).await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a"}}
            DELETE /api/v1/namespaces/default/configmaps/a
            POST /api/v1/namespaces/default/pods/p/exec?command=true&stdout=1
            "#,
        )
        .await;
    expect_test::expect![[r#"
        POST /api/v1/namespaces/default/configmaps
          201 warning: 299 - "mind the gap" {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"}}
        DELETE /api/v1/namespaces/default/configmaps/a
          200 warning: 299 - "mind the gap" {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"a","kind":"configmaps","uid":"UID"}}
        POST /api/v1/namespaces/default/pods/p/exec?command=true&stdout=1
          403 warning: 299 - "come back later" {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"deny.example.com\" denied the request: not today","reason":"Forbidden","code":403}
    "#]].assert_eq(&out);
    assert_eq!(hook.asked(), ["/warn CREATE null", "/warn DELETE null", "/deny CONNECT null"]);
}

#[tokio::test]
async fn a_webhook_that_fails_is_fatal_or_ignored_as_it_says() {
    let (server, hook) = (server().await, Hook::start().await);
    let cases = [
        ("redirect", json!({}), "the answer has status 302"),
        ("large", json!({}), "length limit exceeded"),
        ("other-uid", json!({}), "expected response.uid="),
        ("slow", json!({"timeoutSeconds": 1}), "/slow?timeout=1s\\\": context deadline exceeded"),
    ];
    for (path, more, expected) in cases {
        let mut more = more;
        let name = format!("{path}.example.com");
        let url = format!("/{path}");
        register(&server, "validating", path, json!([hook.webhook(&name, &url, more.clone())]))
            .await;
        let (code, text) = server.send("POST", CONFIG_MAPS, &config_map(path)).await;
        assert_eq!(code, 500, "{path}");
        let prefix = format!("failed calling webhook \\\"{name}\\\": failed to call webhook: ");
        assert!(text.contains(&prefix) && text.contains(expected), "{path}: {text}");
        more["failurePolicy"] = json!("Ignore");
        let at =
            format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{path}");
        server.ok("DELETE", &at, "").await;
        register(&server, "validating", path, json!([hook.webhook(&name, &url, more)])).await;
        server.ok("POST", CONFIG_MAPS, &config_map(path)).await;
        server.ok("DELETE", &at, "").await;
    }
}

#[tokio::test]
async fn users_cannot_make_the_server_connect_inside() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let hooks = json!([hook.webhook("inside.example.com", "/", json!({}))]);
    register(&server, "validating", "hooks", hooks).await;
    let (code, text) = server.send("POST", CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(code, 500);
    assert!(text.contains("which the control plane does not connect to for users"), "{text}");
    assert!(hook.asked().is_empty());
}

#[tokio::test]
async fn selectors_choose_and_dry_runs_have_no_side_effects() {
    let (server, hook) = (server().await, Hook::start().await);
    let more = json!({"objectSelector": {"matchLabels": {"ask": "yes"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    register(&server, "validating", "hooks", json!([hook.webhook("a.example.com", "/", more)]))
        .await;
    server.ok("POST", CONFIG_MAPS, &config_map("a")).await;
    let other = "/api/v1/namespaces/kube-node-lease/configmaps";
    let labelled = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"ask": "yes"}}, "data": {}}).to_string()
    };
    server.ok("POST", other, &labelled("b")).await;
    assert!(hook.asked().is_empty());
    server.ok("POST", &format!("{CONFIG_MAPS}?dryRun=All"), &labelled("c")).await;
    assert_eq!(hook.asked(), ["/ CREATE null"]);
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

#[tokio::test]
async fn policies_refuse_warn_and_have_parameters() {
    let server = Server::start().await;
    let params = json!({"metadata": {"name": "limits"}, "data": {"max": "3"}});
    server.ok("POST", CONFIG_MAPS, &params.to_string()).await;
    let policy = json!({"metadata": {"name": "replicas"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"],
            "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]},
        "matchConditions": [{"name": "mine", "expression": "object.metadata.name != 'free'"}],
        "variables": [{"name": "max", "expression": "int(params.data.max)"},
            {"name": "replicas", "expression": "object.spec.replicas"}],
        "validations": [{"expression": "variables.replicas <= variables.max",
            "messageExpression": "'at most ' + string(variables.max) + ' replicas'"},
            {"expression":
                "authorizer.group('apps').resource('deployments').check('get').allowed()"},
            {"expression": "namespaceObject.metadata.name == 'default'"}],
    }});
    server
        .ok("POST", &format!("{POLICIES}/validatingadmissionpolicies"), &policy.to_string())
        .await;
    let binding = |actions: Value| {
        json!({"metadata": {"name": "here"}, "spec": {"policyName": "replicas",
            "validationActions": actions,
            "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}}})
        .to_string()
    };
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    let deployments = "/apis/apps/v1/namespaces/default/deployments?dryRun=All";
    let deployment = |name: &str, replicas: u32| {
        let labels = json!({"app": "x"});
        json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
        .to_string()
    };
    // Without a binding a policy says nothing.
    server.ok("POST", deployments, &deployment("a", 5)).await;
    server.ok("POST", &bindings, &binding(json!(["Deny"]))).await;
    server.ok("POST", deployments, &deployment("a", 3)).await;
    server.ok("POST", deployments, &deployment("free", 5)).await;
    let (code, text) = server.send("POST", deployments, &deployment("a", 5)).await;
    assert_eq!(code, 422);
    let status: Value = serde_json::from_str(&text).expect("a status");
    assert_eq!(
        status["message"],
        "deployments.apps \"a\" is forbidden: ValidatingAdmissionPolicy 'replicas' with binding \
         'here' denied request: at most 3 replicas"
    );
    server.ok("DELETE", &format!("{bindings}/here"), "").await;
    server.ok("POST", &bindings, &binding(json!(["Warn"]))).await;
    let admin = crate::apiserver::tests::script::admin();
    let answer = server.response(&admin, "POST", deployments, "", &deployment("a", 5)).await;
    assert_eq!(answer.status(), 201);
    assert!(answer.headers()["warning"].to_str().expect("text").contains("at most 3 replicas"));
}

#[tokio::test]
async fn policies_are_heard_in_the_audit_log() {
    let server = Server::with_audit("{rules: [{level: Metadata}]}").await;
    let policy = json!({"metadata": {"name": "names"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "validations": [{"expression": "true"}, {"expression": "object.metadata.name != 'a'"}],
        "auditAnnotations": [{"key": "name", "valueExpression": "' ' + object.metadata.name"},
            {"key": "nothing", "valueExpression": "' '"}],
    }});
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    server.ok("POST", &policies, &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "names",
        "validationActions": ["Audit"]}});
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
    server.ok("POST", CONFIG_MAPS, &config_map("a")).await;
    let events = server.audited();
    let notes = &events.last().expect("the last request is told")["annotations"];
    assert_eq!(notes["names/name"], "a");
    assert!(notes.get("names/nothing").is_none());
    let failures = notes["validation.policy.admission.k8s.io/validation_failure"].as_str();
    let failures: Value = serde_json::from_str(failures.expect("a text")).expect("JSON in it");
    assert_eq!(failures[0]["expressionIndex"], 1);
    assert_eq!(failures[0]["validationActions"], json!(["Audit"]));
}

#[tokio::test]
async fn what_a_policy_cannot_say_for_the_audit_log_refuses_or_is_ignored() {
    let server = Server::start().await;
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    let cases = [
        ("object.data.none", "expression 'object.data.none' resulted in error: no such key: none"),
        ("object.data", "resulted in unsupported return type: map. Return type must be either"),
    ];
    for (expression, expected) in cases {
        for failure in ["Fail", "Ignore"] {
            let policy = json!({"metadata": {"name": "notes"}, "spec": {
                "failurePolicy": failure,
                "matchConstraints": {"resourceRules": [{"operations": ["CREATE"],
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]},
                "auditAnnotations": [{"key": "note", "valueExpression": expression}],
            }});
            server.ok("POST", &policies, &policy.to_string()).await;
            let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "notes",
                "validationActions": ["Audit"]}});
            server.ok("POST", &bindings, &binding.to_string()).await;
            let path = format!("{CONFIG_MAPS}?dryRun=All");
            let (code, text) = server.send("POST", &path, &config_map("a")).await;
            match failure {
                "Fail" => assert!(code == 422 && text.contains(expected), "{code} {text}"),
                _ => assert_eq!(code, 201, "{text}"),
            }
            server.ok("DELETE", &format!("{bindings}/all"), "").await;
            server.ok("DELETE", &format!("{policies}/notes"), "").await;
        }
    }
}

#[tokio::test]
async fn policies_are_asked_about_tokens() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "tokens"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["serviceaccounts/token"]}]},
        "validations": [{"expression": "object.spec.expirationSeconds <= 600"}],
    }});
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    server.ok("POST", &policies, &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "tokens",
        "validationActions": ["Deny"]}});
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.ok("POST", accounts, r#"{"metadata":{"name":"bot"}}"#).await;
    let path = format!("{accounts}/bot/token");
    let wanted = |seconds: u32| {
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "spec": {"expirationSeconds": seconds}})
        .to_string()
    };
    server.ok("POST", &path, &wanted(600)).await;
    let (code, text) = server.send("POST", &path, &wanted(3600)).await;
    assert_eq!(code, 422, "{text}");
    assert!(text.contains("ValidatingAdmissionPolicy 'tokens'"), "{text}");
}

#[tokio::test]
async fn a_namespace_is_in_no_other_namespace() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "namespaces"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["UPDATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["namespaces"]}]},
        "validations": [
            {"expression": "namespaceObject == null && request.namespace == 'default'"}],
    }});
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    server.ok("POST", &policies, &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "namespaces",
        "validationActions": ["Deny"]}});
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
    let labelled = json!({"metadata": {"name": "default", "labels": {"a": "b"}}});
    server.ok("PUT", "/api/v1/namespaces/default", &labelled.to_string()).await;
    // Its parameters are those inside; what is in no namespace has none.
    let mut policy = policy;
    policy["metadata"]["name"] = json!("limits");
    policy["spec"]["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    policy["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["*"],
        "apiGroups": ["", "scheduling.k8s.io"], "apiVersions": ["v1"],
        "resources": ["namespaces", "priorityclasses"]}]);
    policy["spec"]["validations"] = json!([{"expression": "params.data.least == '1'"}]);
    server.ok("POST", &policies, &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "limits"}, "spec": {"policyName": "limits",
        "validationActions": ["Deny"],
        "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}}});
    server.ok("POST", &bindings, &binding.to_string()).await;
    let body = labelled.to_string();
    let (code, text) = server.send("PUT", "/api/v1/namespaces/default", &body).await;
    assert_eq!(code, 422, "{text}");
    assert!(text.contains("failed to configure binding: no params found"), "{text}");
    let limits = json!({"metadata": {"name": "limits"}, "data": {"least": "1"}});
    server.ok("POST", CONFIG_MAPS, &limits.to_string()).await;
    server.ok("PUT", "/api/v1/namespaces/default", &body).await;
    let class = json!({"metadata": {"name": "c"}, "value": 1}).to_string();
    let (code, text) =
        server.send("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", &class).await;
    assert_eq!(code, 422, "{text}");
    assert!(text.contains("failed to configure binding: cannot use namespaced paramRef"), "{text}");
}

#[tokio::test]
async fn bindings_are_admitted_as_they_are_sent() {
    let server = Server::start().await;
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    let rules = [
        ("bindings", "CREATE", "object.kind == 'Binding' && object.target.name != 'full'"),
        // The server's own write is not what was asked for.
        ("none", "UPDATE", "false"),
    ];
    for (name, operation, expression) in rules {
        let policy = json!({"metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"operations": [operation], "apiGroups": [""],
                "apiVersions": ["v1"], "resources": ["pods/binding"]}]},
            "validations": [{"expression": expression}],
        }});
        server.ok("POST", &policies, &policy.to_string()).await;
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name,
            "validationActions": ["Deny"]}});
        let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
        server.ok("POST", &bindings, &binding.to_string()).await;
    }
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    server.ok("POST", pods, &pod.to_string()).await;
    let path = format!("{pods}/p/binding");
    let to = |node: &str| json!({"target": {"kind": "Node", "name": node}}).to_string();
    let (code, text) = server.send("POST", &path, &to("full")).await;
    assert_eq!(code, 422, "{text}");
    server.ok("POST", &path, &to("free")).await;
}

#[tokio::test]
async fn mutating_policies_apply_and_patch() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "labels"}, "spec": {
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "matchConditions": [{"name": "new", "expression": "!has(object.metadata.labels)"}],
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{metadata: Object.metadata{labels: {'by': request.userInfo.username}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', value: '1', \
                  path: '/data/' + jsonpatch.escapeKey('x~y').replace('~0', '.')}]"}},
        ],
    }});
    server.ok("POST", &format!("{POLICIES}/mutatingadmissionpolicies"), &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "labels"}});
    let bindings = format!("{POLICIES}/mutatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
    let made = server.ok("POST", CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(made["metadata"]["labels"], json!({"by": "admin"}));
    assert_eq!(made["data"], json!({"a": "b", "x.y": "1"}));
}

#[tokio::test]
async fn policies_see_what_a_client_asks_besides() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "options"}, "spec": {
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"],
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'kind': request.options.kind, \
              'by': request.options.fieldManager, 'how': request.options.fieldValidation}}}"}}],
    }});
    server.ok("POST", &format!("{POLICIES}/mutatingadmissionpolicies"), &policy.to_string()).await;
    let binding = json!({"metadata": {"name": "all"}, "spec": {"policyName": "options"}});
    let bindings = format!("{POLICIES}/mutatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
    let how = "fieldManager=me&fieldValidation=Strict";
    let made = server.ok("POST", &format!("{CONFIG_MAPS}?{how}"), &config_map("a")).await;
    let asked = |kind: &str| json!({"kind": kind, "by": "me", "how": "Strict"});
    assert_eq!(made["metadata"]["labels"], asked("CreateOptions"));
    let replaced = server.ok("PUT", &format!("{CONFIG_MAPS}/a?{how}"), &config_map("a")).await;
    assert_eq!(replaced["metadata"]["labels"], asked("UpdateOptions"));
}

#[tokio::test]
async fn expressions_that_do_not_compile_are_refused() {
    let server = Server::start().await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["*"], "apiGroups": ["*"],
            "apiVersions": ["*"], "resources": ["*"]}]},
        "validations": [{"expression": "object.spec.replicas <="}, {"expression": "nothing.here"}],
    }});
    let path = format!("{POLICIES}/validatingadmissionpolicies");
    let (code, text) = server.send("POST", &path, &policy.to_string()).await;
    assert_eq!(code, 422);
    assert!(text.contains("spec.validations[0].expression"), "{text}");
    assert!(text.contains("undeclared reference to 'nothing'"), "{text}");
}
