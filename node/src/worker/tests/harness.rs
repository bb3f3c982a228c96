//! The other side of the socket, and guests to run.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::super::{WorkerError, run};
use crate::protocol::{
    self, Container, Endpoint, Env, Exit, Form, Guest, Health, Hello, Hooks, Identity, LastWords,
    Limits, Pod, Port, ProbeKind, Probes, Protocol, RoutePort, ServiceKey, ServiceRoute, Services,
    State, ToAgent, ToWorker,
};

/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(180);

/// A folder of its own for each test; removed when the test succeeds.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wherry-worker-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn socket(&self, namespace: &str) -> PathBuf {
        self.0.join(format!("{namespace}.sock"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

/// A worker and how to reach it.
pub struct Fixture {
    pub folder: Folder,
    pub hello: Hello,
    pub worker: JoinHandle<Result<(), WorkerError>>,
}

impl Fixture {
    /// Starts a worker for a namespace of the node `node-1`.
    pub async fn start(namespace: &str) -> (Fixture, Agent) {
        let folder = Folder::new();
        let hello = Hello {
            protocol: protocol::VERSION,
            version: "test".to_owned(),
            node: "node-1".to_owned(),
            namespace: namespace.to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            log_root: folder.0.join("logs"),
            engine: wherry_wasi_shim::engine_hash(),
            cluster_domain: "cluster.local".to_owned(),
            tracing: None,
        };
        let listener = UnixListener::bind(folder.socket(namespace)).expect("a socket");
        let worker = tokio::spawn(run(listener, 64));
        let fixture = Fixture { folder, hello, worker };
        let mut agent = fixture.connect(&fixture.hello).await;
        let state = agent.state().await;
        assert_eq!((state.namespace.as_str(), state.pods.len()), (namespace, 0));
        (fixture, agent)
    }

    /// Where the worker listens for its agent.
    pub fn socket(&self) -> PathBuf {
        self.folder.socket(&self.hello.namespace)
    }

    /// Another connection, which has said this hello.
    pub async fn connect(&self, hello: &Hello) -> Agent {
        let stream = UnixStream::connect(self.socket()).await.expect("connect");
        let mut agent = Agent { frames: Framed::new(stream, protocol::codec()) };
        agent.say(ToWorker::Hello(hello.clone())).await;
        agent
    }

    /// Compiles an image, as the agent would have.
    pub fn module(&self, wasm: &[u8]) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.0.join(format!("{number}.cwasm"));
        std::fs::write(&path, wherry_wasi_shim::compile(wasm).expect("compile").code)
            .expect("write");
        path
    }

    /// What a container has logged, without times.
    pub fn log(&self, uid: &str, container: &str, restart: u32) -> String {
        let namespace = &self.hello.namespace;
        let path =
            protocol::log_file(&self.hello.log_root, namespace, uid, uid, container, restart);
        let text = std::fs::read_to_string(path).expect("the log file exists");
        text.lines().map(|line| line.split_once(' ').expect("a time").1.to_owned() + "\n").collect()
    }

    /// Ends the worker.
    pub async fn stop(self, mut agent: Agent) {
        agent.say(ToWorker::Stop { grace_ms: 1000 }).await;
        let ended = tokio::time::timeout(PATIENCE, self.worker).await.expect("it ends in time");
        ended.expect("no panic").expect("no error");
    }
}

/// The fake agent's end of one connection.
pub struct Agent {
    frames: Framed<UnixStream, LengthDelimitedCodec>,
}

impl Agent {
    pub async fn say(&mut self, message: ToWorker) {
        let frame = protocol::encode(&message).expect("encode");
        self.frames.send(frame).await.expect("send");
    }

    /// The next message; None if the worker has closed the connection.
    pub async fn hear(&mut self) -> Option<ToAgent> {
        let next = tokio::time::timeout(PATIENCE, self.frames.next());
        let frame = next.await.expect("the worker says something in time")?;
        Some(protocol::decode(&frame.ok()?).expect("decode"))
    }

    /// Skips messages until one fits.
    pub async fn hear_until<T>(&mut self, mut fits: impl FnMut(ToAgent) -> Option<T>) -> T {
        loop {
            let message = self.hear().await.expect("the connection stays open");
            if let Some(found) = fits(message) {
                return found;
            }
        }
    }

    pub async fn state(&mut self) -> State {
        match self.hear().await {
            Some(ToAgent::State(state)) => state,
            other => panic!("the first message is {other:?}"),
        }
    }

    /// Waits for a container to run or serve.
    pub async fn started(&mut self, uid: &str) {
        self.hear_until(|message| match message {
            ToAgent::ContainerStarted { uid: found, .. } if found == uid => Some(()),
            ToAgent::ContainerExited { exit, .. } => panic!("it ended: {exit:?}"),
            _ => None,
        })
        .await;
    }

    /// Waits for news of a probe.
    pub async fn probed(&mut self, uid: &str) -> (ProbeKind, Option<String>, Health) {
        self.hear_until(|message| match message {
            ToAgent::Probed { uid: found, kind, failure, health, .. } if found == uid => {
                Some((kind, failure, health))
            }
            _ => None,
        })
        .await
    }

    /// Waits for a container to end.
    pub async fn exited(&mut self, uid: &str, restart: u32) -> Exit {
        self.hear_until(|message| match message {
            ToAgent::ContainerExited { uid: found, restart: number, exit, .. }
                if found == uid && number == restart =>
            {
                Some(exit)
            }
            _ => None,
        })
        .await
    }
}

/// A Pod with one container `main`, named like its uid.
pub fn pod(fixture: &Fixture, uid: &str, ip: &str, container: Container) -> ToWorker {
    ToWorker::ApplyPod(Pod {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        namespace: fixture.hello.namespace.clone(),
        ip: ip.parse().expect("an address"),
        labels: [("app".to_owned(), uid.to_owned())].into(),
        hosts: Vec::new(),
        dns: Default::default(),
        containers: vec![container],
    })
}

pub fn command(module: &Path, restart: u32) -> Container {
    Container {
        name: "main".to_owned(),
        restart,
        module: module.to_owned(),
        form: Form::Module,
        guest: Guest::Command,
        image_id: "test@sha256:00".to_owned(),
        cwd: None,
        args: vec!["main".to_owned()],
        env: Env::default(),
        limits: Limits::default(),
        ports: Vec::new(),
        mounts: Vec::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        probes: Probes::default(),
        hooks: Hooks::default(),
        toolbox: None,
        last_words: LastWords::default(),
    }
}

pub fn handler(module: &Path, port: u16) -> Container {
    Container {
        form: Form::Component,
        guest: Guest::Handler,
        ports: vec![Port { name: None, port, protocol: Protocol::Tcp }],
        ..command(module, 0)
    }
}

/// A Service on port 80 with these endpoints: address, namespace, node, peer.
pub fn service(
    key: (&str, &str),
    node_port: Option<u16>,
    endpoints: &[(&str, &str, &str, Option<SocketAddr>)],
) -> ToWorker {
    let endpoint =
        |(address, namespace, node, peer): &(&str, &str, &str, Option<SocketAddr>)| Endpoint {
            address: address.parse().expect("an address"),
            namespace: (*namespace).to_owned(),
            node: Some((*node).to_owned()),
            peer: *peer,
            internal: true,
            external: true,
            outside: false,
            hostname: None,
        };
    ToWorker::Services(Services::Upsert(vec![ServiceRoute {
        key: ServiceKey { namespace: key.0.to_owned(), name: key.1.to_owned() },
        cluster_ips: Vec::new(),
        ports: vec![RoutePort {
            name: String::new(),
            port: 80,
            protocol: Protocol::Tcp,
            node_port,
            endpoints: endpoints.iter().map(endpoint).collect(),
        }],
        ..ServiceRoute::default()
    }]))
}

/// A traffic authority.
pub struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "traffic");
        let key = rcgen::KeyPair::generate().expect("a key");
        Authority(rcgen::CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn issue(&self, node: &str, namespace: &str) -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, node);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, namespace);
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            ca_pem: self.0.as_ref().pem(),
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A WASI p1 module that writes `text` to its standard output and exits with `code`.
pub fn printing(text: &str, code: u8) -> Vec<u8> {
    assert!(text.len() < 48 && code < 64, "one byte of LEB128 is enough for these");
    // Memory: an iovec (pointer 8, length) and the text; fd_write's result goes to 64.
    let mut data = vec![8, 0, 0, 0, text.len() as u8, 0, 0, 0];
    data.extend_from_slice(text.as_bytes());
    let body = [
        0x41, 1, 0x41, 0, 0x41, 1, 0x41, 0xc0, 0, // i32.const: fd 1, iovec 0, one of them, 64
        0x10, 0, 0x1a, // call fd_write, drop
        0x41, code, 0x10, 1, // i32.const code, call proc_exit
    ];
    module(&body, &data)
}

/// A WASI p1 module that never ends.
pub fn spinning() -> Vec<u8> {
    module(&[0x03, 0x40, 0x0c, 0, 0x0b], &[]) // loop, br 0, end
}

/// A module from its text.
pub fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the text of a module")
}

/// A module that runs until it is stopped and exports what probes and hooks can call: `ok` returns,
/// `sick` prints `not well` and exits with 1.
pub fn probed() -> Vec<u8> {
    let mut data = vec![8, 0, 0, 0, 8, 0, 0, 0];
    data.extend_from_slice(b"not well");
    let sick = [
        0x41, 1, 0x41, 0, 0x41, 1, 0x41, 0xc0, 0, 0x10, 0, 0x1a, // print
        0x41, 1, 0x10, 1, // exit 1
    ];
    let spin: &[u8] = &[0x03, 0x40, 0x0c, 0, 0x0b];
    exporting(&[("_start", spin), ("ok", &[]), ("sick", &sick)], &data)
}

/// Puts a module together: imports fd_write (function 0) and proc_exit (1), exports the memory and
/// `_start` with this body.
fn module(body: &[u8], data: &[u8]) -> Vec<u8> {
    exporting(&[("_start", body)], data)
}

fn exporting(functions: &[(&str, &[u8])], data: &[u8]) -> Vec<u8> {
    const WASI: &str = "wasi_snapshot_preview1";
    let name = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let import = |function: &str, kind: u8| [name(WASI), name(function), vec![0, kind]].concat();
    // (i32 i32 i32 i32) -> i32, (i32) -> (), () -> ()
    let types = [3, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f, 0x60, 1, 0x7f, 0, 0x60, 0, 0];
    let imports = [vec![2], import("fd_write", 0), import("proc_exit", 1)].concat();
    let count = functions.len() as u8;
    let mut exports = [vec![count + 1], name("memory"), vec![2, 0]].concat();
    let mut code = vec![count];
    for (index, (function, body)) in functions.iter().enumerate() {
        exports.extend([name(function), vec![0, 2 + index as u8]].concat());
        code.extend([&[body.len() as u8 + 2, 0], *body, &[0x0b]].concat());
    }
    let kinds = [vec![count], vec![2; functions.len()]].concat();
    let data = [&[1, 0, 0x41, 0, 0x0b, data.len() as u8], data].concat();
    let sections: [(u8, &[u8]); 7] = [
        (1, &types),
        (2, &imports),
        (3, &kinds),
        (5, &[1, 0, 1]),
        (7, &exports),
        (10, &code),
        (11, &data),
    ];
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        assert!(content.len() < 128, "one byte of LEB128 is enough");
        wasm.extend_from_slice(&[id, content.len() as u8]);
        wasm.extend_from_slice(content);
    }
    wasm
}
