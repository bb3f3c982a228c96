//! Images from Debian's `docker-registry`: the layouts that `wkg` and `oras` push, credentials from
//! imagePullSecrets, and that an image which is here already is no way around them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use wherry_tests::{Dev, l3, repository, text, wait_for, wherry};

/// Who may read and write. The hash is the one of the password in bcrypt's own test vectors.
const USER: &str = "deployer";
const PASSWORD: &str = "U*U";
const HASH: &str = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The digest of `{}`, the config of artifacts that have none.
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// A running registry; ends with the value.
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Registry {
    fn start(folder: &Path) -> Registry {
        let (users, log) = (folder.join("users"), folder.join("log"));
        std::fs::write(&users, format!("{USER}:{HASH}\n")).expect("written");
        let config = json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}},
            "http": {"addr": "127.0.0.1:0"},
            "auth": {"htpasswd": {"realm": "tests", "path": users}},
        });
        // JSON is YAML.
        let file = folder.join("config.yml");
        std::fs::write(&file, config.to_string()).expect("written");
        let output = File::create(&log).expect("a file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(output.try_clone().expect("one more descriptor"))
            .stderr(output)
            .spawn()
            .expect("apt-get install docker-registry");
        let address = wait_for("the registry listens", || {
            let log = std::fs::read_to_string(&log).expect("a log");
            let (_, rest) = log.split_once("listening on ")?;
            let end =
                rest.find(|letter: char| !letter.is_ascii_digit() && !".:".contains(letter))?;
            rest[..end].parse().ok()
        });
        Registry { child, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn basic() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

/// One request, as the user who may do everything.
async fn call(
    address: SocketAddr,
    method: Method,
    path: &str,
    (kind, body): (&str, String),
) -> (StatusCode, HeaderMap, Bytes) {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.expect("it speaks HTTP");
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Basic {}", basic()))
        .header(header::ACCEPT, MANIFEST_TYPE)
        .header(header::CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(body)))
        .expect("well-formed");
    let response = sender.send_request(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    (head.status, head.headers, body.collect().await.expect("a body").to_bytes())
}

/// What `oras push --artifact-type … FILE:application/wasm` makes of a layer that is there; the
/// manifest's digest.
async fn push_as_oras(address: SocketAddr, layer: &Value) -> String {
    let json = "application/json";
    let bytes = "application/octet-stream";
    let uploads = "/v2/team/batch/blobs/uploads/";
    let (status, head, _) = call(address, Method::POST, uploads, (bytes, String::new())).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let location = head[header::LOCATION].to_str().expect("text");
    let (_, path) = location.split_once(&address.to_string()).unwrap_or(("", location));
    let path = format!("{path}{}digest={EMPTY}", if path.contains('?') { '&' } else { '?' });
    let (status, ..) = call(address, Method::PUT, &path, (bytes, "{}".to_owned())).await;
    assert_eq!(status, StatusCode::CREATED);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.unknown.artifact.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": EMPTY,
            "size": 2,
            "data": "e30=",
        },
        "layers": [{
            "mediaType": "application/wasm",
            "digest": layer["digest"],
            "size": layer["size"],
            "annotations": {"org.opencontainers.image.title": "batch.wasm"},
        }],
        "annotations": {"org.opencontainers.image.created": "2026-11-21T08:00:00Z"},
    });
    let path = "/v2/team/batch/manifests/oras";
    let body = (MANIFEST_TYPE, manifest.to_string());
    let (status, head, answer) = call(address, Method::PUT, path, body).await;
    assert_eq!(status, StatusCode::CREATED, "{}", text(&answer));
    let (_, _, kept) = call(address, Method::GET, path, (json, String::new())).await;
    assert_eq!(serde_json::from_slice::<Value>(&kept).expect("JSON"), manifest);
    head["docker-content-digest"].to_str().expect("text").to_owned()
}

fn pod(name: &str, image: &str, secrets: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         imagePullSecrets: {secrets}\n  containers:\n  - {{name: app, image: \"{image}\", \
         imagePullPolicy: IfNotPresent, args: [\"10\"]}}\n---\n"
    )
}

#[test]
fn what_wkg_and_oras_push_runs_for_those_who_may_read_it() {
    if !l3() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = Registry::start(folder.path());
    let host = registry.address.to_string();
    let cluster = Dev::start();

    // `wherry push` makes the layout of wkg: its config and one layer of Wasm.
    let login = folder.path().join("login.json");
    let auth = json!({"auths": {host.clone(): {"auth": basic()}}});
    std::fs::write(&login, auth.to_string()).expect("written");
    let image = format!("{host}/team/batch:1");
    let mut push = Command::new(wherry());
    push.arg("push").arg(repository().join("sample-apps/dist/batch.wasm")).arg(&image);
    push.arg("--insecure").arg("--auth-file").arg(&login);
    push.arg("--kubeconfig").arg(&cluster.kubeconfig);
    let output = push.output().expect("the binary starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pushed = text(&output.stdout);
    let (_, wkg) = pushed.trim().split_once('@').expect("a digest");

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let oras = runtime.block_on(async {
        let path = "/v2/team/batch/manifests/1";
        let read = call(registry.address, Method::GET, path, ("", String::new())).await;
        let manifest: Value = serde_json::from_slice(&read.2).expect("JSON");
        let config = &manifest["config"]["mediaType"];
        assert_eq!(config, "application/vnd.wasm.config.v0+json", "{manifest}");
        assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1), "{manifest}");
        let layer = &manifest["layers"][0];
        assert_eq!(layer["mediaType"], "application/wasm");
        push_as_oras(registry.address, layer).await
    });

    let server = format!("--docker-server={host}");
    let (user, password) =
        (format!("--docker-username={USER}"), format!("--docker-password={PASSWORD}"));
    cluster.kubectl_ok(&[
        "create",
        "secret",
        "docker-registry",
        "login",
        &server,
        &user,
        &password,
    ]);
    let own = "[{name: login}]";
    let by_digest = format!("{host}/team/batch@{wkg}");
    let pods = pod("wkg", &image, own)
        + &pod("oras", &format!("{host}/team/batch:oras"), own)
        + &pod("digest", &by_digest, own);
    let file = folder.path().join("pods.yaml");
    let apply = |pods: &str| {
        std::fs::write(&file, pods).expect("written");
        cluster.kubectl_ok(&["apply", "-f", file.to_str().expect("a plain path")]);
    };
    apply(&pods);
    for (name, digest) in [("wkg", wkg), ("oras", oras.as_str()), ("digest", wkg)] {
        let status = "jsonpath={.status.phase} {.status.containerStatuses[0].imageID}";
        let status = wait_for("the image runs", || {
            let status = cluster.kubectl_ok(&["get", "pod", name, "-o", status]);
            status.starts_with("Succeeded").then_some(status)
        });
        assert!(status.ends_with(digest), "{name}: {status}");
    }

    // The image is here now; who shows no credentials still may not have it.
    apply(&pod("borrower", &image, "[]"));
    let why = "jsonpath={.status.containerStatuses[0].state.waiting}";
    wait_for("the registry is asked and says no", || {
        let why = cluster.kubectl_ok(&["get", "pod", "borrower", "-o", why]);
        let refused = why.contains("does not let this node read");
        (refused && why.contains("ImagePull")).then_some(())
    });
    let reasons = ["get", "events", "--field-selector=involvedObject.name=borrower"];
    let reasons = [&reasons[..], &["-o", "jsonpath={.items[*].reason}"]].concat();
    wait_for("a kubelet's events", || {
        let reasons = cluster.kubectl_ok(&reasons);
        let all = ["Pulling", "Failed", "BackOff"];
        all.iter().all(|it| reasons.split(' ').any(|reason| reason == *it)).then_some(())
    });
}
