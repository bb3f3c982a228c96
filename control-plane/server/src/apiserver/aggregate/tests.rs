//! An aggregated API over real TLS: a server in this process behind a Service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{group_version, is_whole};
use crate::apiserver::User;
use crate::apiserver::tests::script::{Server, text};

/// Conditions come true within this.
const DEADLINE: Duration = Duration::from_secs(120);
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// A server of its own kinds, which believes nobody but the API server.
struct Extension {
    address: SocketAddr,
    certificate_pem: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Extension {
    async fn start(front_proxy_ca: &str) -> Extension {
        let made = rcgen::generate_simple_self_signed(vec!["wardrobe.default.svc".to_owned()])
            .expect("a certificate is made");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).expect("a certificate");
        roots.add(ca).expect("an authority");
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the ciphers")
            .with_client_cert_verifier(clients.build().expect("a verifier"))
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key fits");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("is bound");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        });
        Extension { address, certificate_pem: made.cert.pem(), task }
    }

    fn api_service(&self, bundle: Option<&str>) -> String {
        let mut service = json!({
            "metadata": {"name": "v1.wardrobe.example.com"},
            "spec": {
                "group": "wardrobe.example.com", "version": "v1",
                "groupPriorityMinimum": 2000, "versionPriority": 10,
                "service": {"namespace": "default", "name": "wardrobe",
                    "port": self.address.port()},
            },
        });
        match bundle {
            Some(pem) => service["spec"]["caBundle"] = json!(BASE64.encode(pem)),
            None => service["spec"]["insecureSkipTLSVerify"] = json!(true),
        }
        service.to_string()
    }
}

/// What it is asked, in its own words; and what it serves.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let path = request.uri().path_and_query().map_or("", |it| it.as_str()).to_owned();
    let all = |name: &str| -> Vec<String> {
        let values = request.headers().get_all(name).iter();
        values.filter_map(|value| Some(value.to_str().ok()?.to_owned())).collect()
    };
    let said = json!({
        "method": request.method().as_str(), "path": path,
        "user": all("x-remote-user"), "groups": all("x-remote-group"),
        "scopes": all("x-remote-extra-example.com%2fscope"),
        "authorization": all("authorization"), "forged": all("x-remote-extra-forged"),
    });
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answer = match path.as_str() {
        "/apis/wardrobe.example.com/v1" => json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": "wardrobe.example.com/v1", "resources": [
                {"name": "shirts", "singularName": "shirt", "namespaced": true, "kind": "Shirt",
                 "verbs": ["get", "list"], "shortNames": ["sh"]},
                {"name": "shirts/wash", "singularName": "", "namespaced": true, "kind": "Wash",
                 "verbs": ["create"]}],
        }),
        "/openapi/v3" => json!({"paths": {"apis/wardrobe.example.com/v1":
            {"serverRelativeURL": "/openapi/v3/apis/wardrobe.example.com/v1?hash=1"}}}),
        "/openapi/v2" => json!({
            "swagger": "2.0",
            "paths": {
                "/apis/wardrobe.example.com/v1/namespaces/{namespace}/shirts": {"get": {
                    "operationId": "listShirts", "responses": {"200": {"description": "OK",
                        "schema": {"$ref": "#/definitions/com.example.Shirt"}}}}},
                "/apis/apps/v1/deployments": {"get": {"operationId": "forged"}},
            },
            "definitions": {"com.example.Shirt": {"type": "object", "description": "To wear."}},
        }),
        path if path.ends_with("/away") => {
            let moved = Response::builder().status(302).header("location", "https://evil.example/");
            return Ok(moved.body(Full::default()).expect("well-formed"));
        }
        _ => json!({"said": said, "body": String::from_utf8_lossy(&body)}),
    };
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::from(answer.to_string())).expect("well-formed"))
}

/// Waits until the APIService says so, and returns the condition.
async fn available(server: &Server, status: &str) -> Value {
    let begun = Instant::now();
    loop {
        let service = server.ok("GET", &format!("{SERVICES}/v1.wardrobe.example.com"), "").await;
        let condition = &service["status"]["conditions"][0];
        if condition["status"] == status {
            return condition.clone();
        }
        assert!(begun.elapsed() < DEADLINE, "{service}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn start() -> (Server, Extension) {
    let server = Server::start().await;
    let loopback = ["127.0.0.0/8", "::1"].map(|text| text.parse().expect("a network"));
    server.api.let_webhooks_reach(&loopback);
    let extension = Extension::start(server.api.pki().peer.certificate_pem()).await;
    let service = json!({
        "metadata": {"name": "wardrobe"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    server.ok("POST", "/api/v1/namespaces/default/services", &service.to_string()).await;
    tokio::spawn(server.api.clone().check_aggregated());
    (server, extension)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_by_the_server_behind_the_service() {
    let (server, extension) = start().await;
    let path = "/apis/wardrobe.example.com/v1/namespaces/default/shirts?limit=5";
    assert_eq!(server.send("GET", path, "").await.0, StatusCode::NOT_FOUND);
    server.ok("POST", SERVICES, &extension.api_service(Some(&extension.certificate_pem))).await;
    let condition = available(&server, "True").await;
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (&json!("Passed"), &json!("all checks passed"),)
    );

    let mut user = User::new("alice", &["system:masters"]);
    user.extra.insert("Example.com/Scope".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
    let answer = server.response(&user, "POST", path, "x-remote-extra-forged: 1", "{}").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        serde_json::from_str::<Value>(&text(answer).await).expect("JSON"),
        json!({"body": "{}", "said": {
            "method": "POST", "path": path, "user": ["alice"],
            "groups": ["system:masters", "system:authenticated"], "scopes": ["a", "b"],
            "authorization": [], "forged": [],
        }})
    );

    // What was judged as a plain path reaches nobody who would take it for a resource.
    let unjudged = "/apis/wardrobe.example.com/v1//namespaces/default/shirts";
    assert_eq!(server.send("GET", unjudged, "").await.0, StatusCode::NOT_FOUND);

    // Who may not is refused here.
    let eve = User::new("eve", &[]);
    let refused = server.response(&eve, "GET", path, "", "").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let (code, body) = server.send("GET", "/apis/wardrobe.example.com/v1/away", "").await;
    assert_eq!(code, StatusCode::BAD_GATEWAY);
    assert!(body.contains("attempted to redirect"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_serve_is_discovered_among_the_rest() {
    let (server, extension) = start().await;
    server.ok("POST", SERVICES, &extension.api_service(None)).await;
    available(&server, "True").await;
    let groups = server.ok("GET", "/apis", "").await;
    let names: Vec<&str> = groups["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    let at = |name: &str| names.iter().position(|held| *held == name);
    assert!(at("apps") < at("wardrobe.example.com"), "{names:?}");
    let group = server.ok("GET", "/apis/wardrobe.example.com", "").await;
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardrobe.example.com/v1");
    let admin = User::new("admin", &["system:masters"]);
    let accept = "accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let whole = text(server.response(&admin, "GET", "/apis", accept, "").await).await;
    let whole: Value = serde_json::from_str(&whole).expect("JSON");
    let items = whole["items"].as_array().expect("items");
    let own = items.iter().find(|it| it["metadata"]["name"] == "wardrobe.example.com");
    expect_test::expect![[r#"{"version":"v1","resources":[{"resource":"shirts","responseKind":{"group":"wardrobe.example.com","version":"v1","kind":"Shirt"},"scope":"Namespaced","singularResource":"shirt","verbs":["get","list"],"shortNames":["sh"],"subresources":[{"subresource":"wash","responseKind":{"group":"wardrobe.example.com","version":"v1","kind":"Wash"},"verbs":["create"]}]}],"freshness":"Current"}"#]]
    .assert_eq(&own.expect("it is listed")["versions"][0].to_string());
    let index = server.ok("GET", "/openapi/v3", "").await;
    assert_eq!(
        index["paths"]["apis/wardrobe.example.com/v1"]["serverRelativeURL"],
        "/openapi/v3/apis/wardrobe.example.com/v1?hash=1"
    );
    let document = "/openapi/v3/apis/wardrobe.example.com/v1?hash=1";
    let document = server.ok("GET", document, "").await;
    assert_eq!(document["said"]["method"], "GET");
    let whole = server.ok("GET", "/openapi/v2", "").await;
    let paths = &whole["paths"];
    let shirts = &paths["/apis/wardrobe.example.com/v1/namespaces/{namespace}/shirts"]["get"];
    assert_eq!(shirts["operationId"], "listShirts");
    assert_eq!(whole["definitions"]["com.example.Shirt"]["description"], "To wear.");
    assert_eq!(whole["definitions"]["io.k8s.api.core.v1.Pod"]["type"], "object");
    let deployments = &paths["/apis/apps/v1/deployments"]["get"];
    assert_ne!(deployments["operationId"], "forged");

    // With its server gone it is said to be unavailable, and stale in discovery.
    drop(extension);
    let condition = available(&server, "False").await;
    assert_eq!(condition["reason"], "FailedDiscoveryCheck");
    let whole = text(server.response(&admin, "GET", "/apis", accept, "").await).await;
    assert!(whole.contains("\"freshness\":\"Stale\""), "it is marked");
    let (code, _) = server.send("GET", "/apis/wardrobe.example.com/v1", "").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_prove_itself_and_be_there() {
    let (server, extension) = start().await;
    let other = rcgen::generate_simple_self_signed(vec!["wardrobe.default.svc".to_owned()]);
    let other = other.expect("a certificate is made").cert.pem();
    server.ok("POST", SERVICES, &extension.api_service(Some(&other))).await;
    let condition = available(&server, "False").await;
    let message = condition["message"].as_str().expect("text");
    assert!(message.contains("TLS with wardrobe.default.svc"), "{message}");
    server.ok("DELETE", "/api/v1/namespaces/default/services/wardrobe", "").await;
    let begun = Instant::now();
    while available(&server, "False").await["reason"] != "ServiceNotFound" {
        assert!(begun.elapsed() < DEADLINE, "it never noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is built in is never handed on.
    let mut apps: Value = serde_json::from_str(&extension.api_service(None)).expect("JSON");
    apps["metadata"]["name"] = json!("v1.apps");
    apps["spec"]["group"] = json!("apps");
    server.ok("POST", SERVICES, &apps.to_string()).await;
    server.ok("GET", "/apis/apps/v1/deployments", "").await;
}

/// Through the tunnel of a Pod's node they are streams of that node like others.
#[tokio::test]
async fn requests_count_among_the_users_streams() {
    let server = Server::start().await;
    let made = async |path: &str, body: Value| server.ok("POST", path, &body.to_string()).await;
    let container = json!({"name": "a", "image": "i:1"});
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [container]}});
    made("/api/v1/namespaces/default/pods", pod).await;
    let service = json!({"metadata": {"name": "wardrobe"},
        "spec": {"selector": {"app": "wardrobe"}, "ports": [{"port": 443}]}});
    made("/api/v1/namespaces/default/services", service).await;
    let slice = json!({
        "metadata": {"name": "wardrobe", "labels": {"kubernetes.io/service-name": "wardrobe"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 443}],
        "endpoints": [{"addresses": ["10.42.0.9"], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": "p", "namespace": "default"}}],
    });
    made("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let handed_on = json!({
        "metadata": {"name": "v1.wardrobe.example.com"},
        "spec": {"group": "wardrobe.example.com", "version": "v1", "groupPriorityMinimum": 2000,
            "versionPriority": 10, "insecureSkipTLSVerify": true,
            "service": {"namespace": "default", "name": "wardrobe", "port": 443}},
    });
    made(SERVICES, handed_on).await;
    let path = "/apis/wardrobe.example.com/v1/namespaces/default/shirts";
    let (code, body) = server.send("GET", path, "").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE, "the node has no tunnel: {body}");
    let admin = User::new("admin", &["system:masters"]);
    let tunnels = server.api.tunnels();
    let open: Vec<_> = std::iter::from_fn(|| tunnels.count("n", &admin).ok()).collect();
    let (code, body) = server.send("GET", path, "").await;
    assert_eq!(code, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert!(body.contains("streams to node"), "{body}");
    drop(open);
    assert_eq!(server.send("GET", path, "").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn paths_name_group_versions() {
    let of = |path| group_version(path).map(|(group, version)| format!("{group} {version}"));
    assert_eq!(of("/apis/a/v1").as_deref(), Some("a v1"));
    assert_eq!(of("/apis/a/v1/namespaces/x/y").as_deref(), Some("a v1"));
    assert_eq!(of("/openapi/v3/apis/a/v1").as_deref(), Some("a v1"));
    for other in ["/apis/a", "/apis", "/api/v1/pods", "/apis//v1", "/openapi/v3"] {
        assert_eq!(of(other), None, "{other}");
    }
    for whole in ["/apis/a/v1", "/apis/a/v1/", "/openapi/v3/apis/a/v1"] {
        assert!(is_whole(whole), "{whole}");
    }
    for below in ["/apis/a/v1//x", "/apis/a/v1/x%00", "/openapi/v3/apis/a/v1/../b"] {
        assert!(!is_whole(below), "{below}");
    }
}
