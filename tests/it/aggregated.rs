//! APIs that other servers serve, under the API server's name: a process that speaks TLS and wants
//! to see the API server's certificate, and a guest in a Pod.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use wherry_tests::{Dev, l3, text, wait_for};

/// Serves one object of the kind Shirt, to whom the certificate of the front proxy is shown.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, http::Error> {
    let user = request.headers().get("x-remote-user").and_then(|value| value.to_str().ok());
    let user = user.unwrap_or("nobody").to_owned();
    let shirt = json!({
        "kind": "Shirt", "apiVersion": "wardrobe.example.com/v1",
        "metadata": {"name": "blue", "namespace": "default", "resourceVersion": "1"},
        "spec": {"wornBy": user},
    });
    let (status, body) = match request.uri().path() {
        "/apis/wardrobe.example.com/v1" => (
            200,
            json!({
                "kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": "wardrobe.example.com/v1", "resources": [
                    {"name": "shirts", "singularName": "shirt", "namespaced": true, "kind": "Shirt",
                     "verbs": ["get", "list"], "shortNames": ["sh"], "categories": ["clothes"]}],
            }),
        ),
        "/apis/wardrobe.example.com/v1/namespaces/default/shirts/blue" => (200, shirt),
        "/apis/wardrobe.example.com/v1/namespaces/default/shirts" => (
            200,
            json!({
                "kind": "ShirtList", "apiVersion": "wardrobe.example.com/v1",
                "metadata": {"resourceVersion": "1"}, "items": [shirt],
            }),
        ),
        _ => (
            404,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "there is no such shirt", "reason": "NotFound", "code": 404,
            }),
        ),
    };
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(Full::from(body.to_string()))
}

/// Serves until the test ends; returns where, and the certificate.
async fn serve(front_proxy_ca: &str) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["wardrobe.default.svc".to_owned()]);
    let made = made.expect("a certificate is made");
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
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                // A client may go at any time.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
    });
    (address, made.cert.pem())
}

fn apply(cluster: &Dev, objects: &[Value]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("objects.json");
    let list = json!({"kind": "List", "apiVersion": "v1", "items": objects});
    std::fs::write(&file, list.to_string()).expect("written");
    cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
}

fn api_service(group: &str, service: Value, more: Value) -> Value {
    let mut spec = json!({
        "group": group, "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 10,
        "service": service,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": format!("v1.{group}")}, "spec": spec,
    })
}

fn is_available(cluster: &Dev, name: &str) {
    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=Available",
        &format!("apiservice/{name}"),
        "--timeout=180s",
    ]);
}

#[test]
fn kubectl_uses_kinds_that_a_process_serves() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let authority = wait_for("the front proxy's authority is published", || {
        let config = cluster.kubectl(&[
            "-n",
            "kube-system",
            "get",
            "configmap",
            "extension-apiserver-authentication",
            "-o",
            "jsonpath={.data.requestheader-client-ca-file}",
        ]);
        let pem = text(&config.stdout);
        pem.contains("BEGIN CERTIFICATE").then_some(pem)
    });
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let (address, certificate) = runtime.block_on(serve(&authority));
    let service = json!({"namespace": "default", "name": "wardrobe", "port": address.port()});
    let bundle = json!({"caBundle": BASE64.encode(certificate)});
    apply(
        &cluster,
        &[
            json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"name": "wardrobe"},
                "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
            }),
            api_service("wardrobe.example.com", service, bundle),
        ],
    );
    is_available(&cluster, "v1.wardrobe.example.com");
    let row =
        cluster.kubectl_ok(&["api-resources", "--api-group=wardrobe.example.com", "--no-headers"]);
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, ["shirts", "sh", "wardrobe.example.com/v1", "true", "Shirt"]);
    let shown = cluster.kubectl_ok(&["get", "sh", "blue", "-o", "jsonpath={.spec.wornBy}"]);
    assert_eq!(shown, "kubernetes-admin");
    let shown = cluster.kubectl_ok(&["get", "clothes", "-o", "name"]);
    assert_eq!(shown.trim(), "shirt.wardrobe.example.com/blue");
    let refused = cluster.kubectl(&["get", "shirts", "red"]);
    assert!(text(&refused.stderr).contains("there is no such shirt"), "{}", text(&refused.stderr));
    // Only those get to it who may.
    let eve = cluster.kubectl(&["get", "shirts", "--as=eve"]);
    assert!(text(&eve.stderr).contains("User \"eve\" cannot list resource \"shirts\""));

    // Without its server the rest of the cluster goes on as before.
    drop(runtime);
    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=Available=False",
        "apiservice/v1.wardrobe.example.com",
        "--timeout=180s",
    ]);
    cluster.kubectl_ok(&["get", "pods"]);
    let why = cluster.kubectl_ok(&[
        "get",
        "apiservice",
        "v1.wardrobe.example.com",
        "-o",
        "jsonpath={.status.conditions[0].reason}",
    ]);
    assert_eq!(why, "FailedDiscoveryCheck");
}

#[test]
fn a_guest_answers_for_a_group() {
    if !l3() {
        return;
    }
    let cluster = Dev::start();
    let port = json!({"port": 443, "targetPort": 80, "appProtocol": "http"});
    apply(
        &cluster,
        &[
            json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "web", "image": "hello-http:dev", "ports": [{"containerPort": 80}],
                    "env": [{"name": "POD_NAME", "value": "web"}],
                }]},
            }),
            json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"},
                "spec": {"selector": {"app": "web"}, "ports": [port]},
            }),
            api_service(
                "hello.example.com",
                json!({"namespace": "default", "name": "web"}),
                json!({}),
            ),
        ],
    );
    is_available(&cluster, "v1.hello.example.com");
    let said = cluster.kubectl_ok(&["get", "--raw", "/apis/hello.example.com/v1/anything"]);
    assert_eq!(said.trim(), "Hello from web");
}
