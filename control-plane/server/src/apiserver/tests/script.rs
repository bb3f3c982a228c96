//! The harness: a script is lines `VERB path [content type]`, each followed by the body's lines. A
//! line `as NAME group,group` changes who sends what follows. What differs from run to run (uids,
//! times, revisions) is replaced in the answers.

use crate::apiserver::{ApiServer, AuditLog, AuditPolicy, Config, LogConfig, TokenKey, User};
use axum::{body::Body, response::Response};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use wherry_store::{Engine, Store, Window};

/// A WebSocket, read by hand.
pub struct Socket {
    /// The head of the answer to the handshake.
    pub head: String,
    stream: TcpStream,
    serving: JoinHandle<()>,
}

impl Socket {
    /// The subprotocol that the server has chosen.
    pub fn protocol(&self) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let named = |(name, _): &(&str, &str)| name.eq_ignore_ascii_case("sec-websocket-protocol");
        fields.find(named).map(|(_, value)| value)
    }

    /// The first byte and the data of the next frame, which a server does not mask.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        let first = self.stream.read_u8().await.expect("a frame");
        let length = match self.stream.read_u8().await.expect("a length") {
            126 => self.stream.read_u16().await.expect("a length of two bytes"),
            length => length.into(),
        };
        let mut data = vec![0; usize::from(length)];
        self.stream.read_exact(&mut data).await.expect("the whole frame");
        (first, data)
    }

    /// Waits until the server has ended it.
    pub async fn ended(&mut self) {
        // However it ends.
        let _ = self.stream.read_to_end(&mut Vec::new()).await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A server of its own for one test.
pub struct Server {
    pub api: ApiServer,
    pub shutdown: CancellationToken,
    /// Where its authorities are, and its audit log.
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts with the namespaces `default` and `kube-node-lease` and their ServiceAccounts.
    pub async fn start() -> Server {
        Server::with_window(Window::default()).await
    }

    /// The same with another window of past revisions.
    pub async fn with_window(window: Window) -> Server {
        Server::with(window, None).await
    }

    /// The same with an audit log of this policy.
    pub async fn with_audit(policy: &str) -> Server {
        Server::with(Window::default(), Some(policy)).await
    }

    async fn with(window: Window, audit: Option<&str>) -> Server {
        let config = wherry_store::Config {
            window,
            ..wherry_store::Config::new(Engine::Memory, wherry_store::FOUNDER, "127.0.0.1:6443")
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pki = crate::pki::Pki::load_or_create(folder.path()).expect("authorities");
        let shutdown = CancellationToken::new();
        let log = |policy: &str| {
            let path = folder.path().join("audit.log");
            let policy = AuditPolicy::parse(policy).expect("a policy");
            let config = LogConfig { path, policy, bytes_max: 1 << 30, files_max: 1 };
            AuditLog::open(config).expect("the folder can be written")
        };
        let api = ApiServer::new(Config {
            store: Store::open(config).await.expect("a store in memory opens"),
            others: None,
            data_dir: std::env::temp_dir(),
            token_key: Arc::new(TokenKey::from_pem(&pki.token_key_pem).expect("a P-256 key")),
            audit: audit.map(log),
            pki: Arc::new(pki),
            advertise: ([127, 0, 0, 1], 6443).into(),
            reports: std::sync::Arc::default(),
            shutdown: shutdown.clone(),
        });
        let server = Server { api, shutdown, _folder: folder };
        for namespace in ["default", "kube-node-lease"] {
            let body = format!("{{\"metadata\":{{\"name\":\"{namespace}\"}}}}");
            server.ok("POST", "/api/v1/namespaces", &body).await;
            let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            server.ok("POST", &accounts, "{\"metadata\":{\"name\":\"default\"}}").await;
        }
        server
    }

    /// Ends its audit log, and returns what that was told.
    pub fn audited(&self) -> Vec<Value> {
        let log = self.api.audit().expect("it was started with one");
        log.close();
        let text = std::fs::read_to_string(log.path()).expect("it was written");
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// One request, as an administrator.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        let response = self.response(&admin(), method, path, "", body).await;
        let code = response.status();
        (code, text(response).await)
    }

    /// One request that must succeed; returns its JSON.
    pub async fn ok(&self, method: &str, path: &str, body: &str) -> Value {
        let (code, text) = self.send(method, path, body).await;
        assert!(code.is_success(), "{method} {path}: {code} {text}");
        serde_json::from_str(&text).expect("answers are JSON")
    }

    /// One request; `kind` is its content type, or `Name: value` of any one header.
    pub async fn response(
        &self,
        user: &User,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Response {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(path)
            .extension(user.clone());
        let header = match kind.split_once(": ") {
            Some(header) => header,
            None => ("content-type", kind),
        };
        if !kind.is_empty() {
            request = request.header(header.0, header.1);
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        self.api.router().oneshot(request).await.expect("the router is infallible")
    }

    /// Asks for a WebSocket, as an administrator. `protocols` are those that are offered.
    pub async fn socket(&self, path: &str, protocols: &str) -> Socket {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let router = self.api.router().layer(axum::Extension(admin()));
        let serving = tokio::spawn(async move {
            // It is aborted with the socket.
            let _ = axum::serve(listener, router).await;
        });
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let offered = match protocols {
            "" => String::new(),
            protocols => format!("Sec-WebSocket-Protocol: {protocols}\r\n"),
        };
        let handshake = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {offered}\r\n"
        );
        stream.write_all(handshake.as_bytes()).await.expect("it is open");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        Socket { head: String::from_utf8_lossy(&head).into_owned(), stream, serving }
    }

    /// Runs a script.
    pub async fn script(&self, script: &str) -> String {
        let mut out = String::new();
        let mut user = admin();
        let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        while let Some(line) = lines.next() {
            let mut words = line.splitn(3, ' ');
            let (verb, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let rest = words.next().unwrap_or("");
            if verb == "as" {
                let groups: Vec<&str> = rest.split(',').filter(|group| !group.is_empty()).collect();
                user = match path {
                    "anonymous" => User::anonymous(),
                    name => User::new(name, &groups),
                };
                continue;
            }
            let mut body = String::new();
            while let Some(more) = lines.next_if(|line| !starts_request(line)) {
                body.push_str(more);
            }
            let response = self.response(&user, verb, path, rest, &body).await;
            let _ = writeln!(out, "{verb} {path}");
            let _ = write!(out, "  {}", response.status().as_u16());
            for warning in response.headers().get_all("warning") {
                let _ = write!(out, " warning: {}", warning.to_str().unwrap_or("?"));
            }
            let _ = writeln!(out, " {}", masked(text(response).await.trim_end()));
        }
        out
    }
}

fn starts_request(line: &str) -> bool {
    let verbs = ["GET ", "POST ", "PUT ", "PATCH ", "DELETE ", "as "];
    verbs.iter().any(|verb| line.starts_with(verb))
}

/// Who may do everything.
pub fn admin() -> User {
    User::new("admin", &["system:masters"])
}

/// The whole body of an answer.
pub async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.expect("the body ends").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes the record of owners out of answers: scripts about it ask for it by `owners`.
fn without_records(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(",\"managedFields\":[") {
        out.push_str(&rest[..at]);
        let list = &rest[at + ",\"managedFields\":".len()..];
        let mut values = serde_json::Deserializer::from_str(list).into_iter::<Value>();
        values.next();
        rest = &list[values.byte_offset()..];
    }
    out + rest
}

/// Replaces uids wherever they stand.
fn without_uids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '-').unwrap_or(rest.len());
        let is_uid = uuid::Uuid::parse_str(&rest[..end]).is_ok();
        out.push_str(if is_uid { "UID" } else { &rest[..end] });
        rest = &rest[end..];
    }
    out + rest
}

/// Replaces the values of keys that differ from run to run. Revisions become R1, R2, … by size,
/// so that equal ones stay equal.
pub fn masked(text: &str) -> String {
    let mut text = without_uids(&without_records(text));
    let values = |text: &str, key: &str| -> Vec<String> {
        let mark = format!("\"{key}\":\"");
        let parts = text.split(&mark).skip(1);
        parts.filter_map(|part| part.split('"').next().map(str::to_owned)).collect()
    };
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "lastTransitionTime"] {
        for value in values(&text, key) {
            if value.len() > 15 {
                text = text.replace(&format!("\"{key}\":\"{value}\""), &format!("\"{key}\":\"-\""));
            }
        }
    }
    let mut revisions: Vec<u64> =
        values(&text, "resourceVersion").iter().filter_map(|value| value.parse().ok()).collect();
    revisions.sort_unstable();
    revisions.dedup();
    for (index, revision) in revisions.iter().enumerate() {
        let from = format!("\"resourceVersion\":\"{revision}\"");
        text = text.replace(&from, &format!("\"resourceVersion\":\"R{}\"", index + 1));
    }
    text
}
