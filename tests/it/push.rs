//! `wherry push`: a file becomes an image, in the built-in registry and in another one, and runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wherry_tests::{Dev, l3, repository, text, wait_for, wherry};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a registry has, by path.
type Held = Arc<Mutex<HashMap<String, Bytes>>>;

/// The registry: enough of the protocol for a push and a pull, and nobody may push below `locked`.
async fn answer(held: Held, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let mut held = held.lock().expect("no holder panics");
    let created = Response::builder().status(StatusCode::CREATED).header(header::LOCATION, &path);
    let response = match parts.method {
        Method::GET if path == "/v2/" => Response::builder(),
        Method::POST if path.starts_with("/v2/locked/") => {
            Response::builder().status(StatusCode::UNAUTHORIZED)
        }
        Method::POST => Response::builder()
            .status(StatusCode::ACCEPTED)
            .header(header::LOCATION, format!("{path}1")),
        Method::PUT if path.contains("/manifests/") => {
            held.insert(path, body);
            created
        }
        Method::PUT => {
            let digest = query.strip_prefix("digest=").unwrap_or_default().replace("%3A", ":");
            held.insert(path.replace("/uploads/1", &format!("/{digest}")), body);
            created
        }
        _ => match held.get(&path) {
            None => Response::builder().status(StatusCode::NOT_FOUND),
            Some(content) => {
                let response = Response::builder().header(header::CONTENT_TYPE, MANIFEST_TYPE);
                return response.body(Full::new(content.clone())).expect("well-formed");
            }
        },
    };
    response.body(Full::default()).expect("well-formed")
}

/// Serves until the runtime ends.
async fn serve() -> SocketAddr {
    let held = Held::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let held = held.clone();
            let service = service_fn(move |request| {
                let held = held.clone();
                async move { Ok::<_, Infallible>(answer(held, request).await) }
            });
            // A client may go at any time.
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// Runs `wherry push`: exit code, stdout, stderr.
fn push(kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(wherry());
    command.arg("push").arg("--kubeconfig").arg(kubeconfig).args(arguments);
    let output = command.output().expect("the binary starts");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn sample(name: &str) -> PathBuf {
    repository().join("sample-apps/dist").join(name)
}

/// Pushes a sample; runs the command that was printed, and returns the digest.
fn push_and_run(cluster: &Dev, file: &str, arguments: &[&str]) -> String {
    let file = sample(file);
    let all = [&[file.to_str().expect("a plain path")], arguments].concat();
    let (code, stdout, stderr) = push(&cluster.kubeconfig, &all);
    assert_eq!(code, Some(0), "{stderr}");
    println!("{stdout}{stderr}");
    let (image, digest) = stdout.trim().split_once('@').expect("a reference with its digest");
    assert_eq!(image, arguments[0]);
    let next: Vec<&str> = stderr.split_whitespace().collect();
    assert_eq!(next[..2], ["kubectl", "run"], "{stderr}");
    cluster.kubectl_ok(&next[1..]);
    digest.to_owned()
}

fn runs(cluster: &Dev, pod: &str, digest: &str) {
    let status = "jsonpath={.status.phase} {.status.containerStatuses[0].imageID}";
    wait_for("the pushed image runs", || {
        let status = cluster.kubectl_ok(&["get", "pod", pod, "-o", status]);
        let begun = status.starts_with("Running") || status.starts_with("Succeeded");
        (begun && status.ends_with(digest)).then_some(())
    });
}

#[test]
fn what_is_pushed_runs() {
    if !l3() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = runtime.block_on(serve());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = wherry_tests::Options {
        images: Some(folder.path().to_owned()),
        ..wherry_tests::Options::default()
    };
    let cluster = Dev::start_with(options);

    let digest = push_and_run(&cluster, "hello-http.wasm", &["team/greeter:1"]);
    runs(&cluster, "greeter", &digest);
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "--timeout=180s", "pod/greeter"]);
    let path = "/api/v1/namespaces/default/pods/greeter/proxy/";
    let hello = cluster.kubectl_ok(&["get", "--raw", path]);
    assert!(hello.starts_with("Hello from "), "{hello}");
    // A handler that rests is in the accounts from its start on, and its start is counted.
    wait_for("the Pod is in the accounts", || {
        let top = cluster.kubectl(&["top", "pod", "greeter", "--no-headers"]);
        text(&top.stdout).starts_with("greeter ").then_some(())
    });
    const COUNT: &str = "wherry_cold_start_seconds_count{";
    let metrics = ["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"];
    let counts = wait_for("all parts of the start are counted", || {
        let metrics = cluster.kubectl_ok(&metrics);
        let counts: Vec<&str> = metrics.lines().filter(|it| it.starts_with(COUNT)).collect();
        let all = counts.len() == 7 && counts.iter().all(|line| !line.ends_with(" 0"));
        all.then(|| counts.join("\n"))
    });
    println!("{counts}");

    let image = format!("{registry}/team/batch:1");
    let digest = push_and_run(&cluster, "batch.wasm", &[&image, "--insecure"]);
    runs(&cluster, "batch", &digest);

    let file = sample("batch.wasm");
    let file = file.to_str().expect("a plain path");
    let refused = |kubeconfig: &Path, arguments: &[&str], expected: &str| {
        let (code, stdout, stderr) = push(kubeconfig, arguments);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.starts_with(expected), "{stderr}");
        println!("{stderr}");
    };
    let admin = cluster.kubeconfig.as_path();
    let locked = format!("{registry}/locked/batch:1");
    let why = format!("error[WH0021]: {registry} does not let you push locked/batch\n");
    refused(admin, &[file, &locked, "--insecure"], &why);
    let nobody = "127.0.0.1:1/batch:1";
    let why = "error[WH0021]: 127.0.0.1:1 cannot be reached\n";
    refused(admin, &[file, nobody, "--insecure"], why);
    let manifest = repository().join("sample-apps/batch/app.yaml");
    let manifest = manifest.to_str().expect("a plain path");
    refused(admin, &[manifest, "x:1"], &format!("error[WH0020]: {manifest} cannot be pushed\n"));
    let plain = without_rights(&cluster, folder.path());
    refused(&plain, &[file, "x:1"], "error[WH0010]: you may not push the image x\n");
    let (code, _, stderr) = push(admin, &[file, "ghcr.io/x:1", "--insecure"]);
    assert_eq!(code, Some(2), "{stderr}");
}

/// The kubeconfig of a ServiceAccount.
fn without_rights(cluster: &Dev, folder: &Path) -> PathBuf {
    let token = cluster.kubectl_ok(&["create", "token", "default"]);
    let config = cluster.kubectl_ok(&["config", "view", "--raw", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = folder.join("plain.kubeconfig");
    std::fs::write(&file, config.to_string()).expect("written");
    file
}
