//! One member of the control plane: store, API server and, on the Raft leader, scheduler and
//! controllers, behind one TLS port for clients, peers and node tunnels.
//!
//! ```text
//!  listener ─ TLS ─ PeerCertificate ─► apiserver::router ─► store
//!                                           ▲
//!  leadership ──► controllers, scheduler ───┘  (in-process clients; stopped when leadership goes)
//! ```
//!
//! Tasks: one accept loop with a task for each connection, and one that starts and stops the
//! leader's work. All are joined by [`Member::stopped`]; a member stops when its shutdown token is
//! cancelled or its store does.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use wherry_store::{Engine, Leadership, Store};

use crate::apiserver::{self, ApiServer, PeerCertificate, User};
use crate::pki::{self, Pki, PkiError, Profile};
use crate::{controllers, scheduler};

/// A client that does not finish its TLS handshake in this time is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections at most, so that a flood of them cannot use up the process's file descriptors.
const CONNECTIONS_MAX: usize = 12_000;
/// Streams on one HTTP/2 connection: a client's watches share one connection, and each holds a
/// stream.
const STREAMS_MAX: u32 = 1_000;
/// A request's header block; kubectl sends well below 8 KiB.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// How long open connections may go on after a shutdown was asked for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pods of all nodes get their addresses out of this; each node has a /19 (8,190 Pods).
const CLUSTER_CIDR: &str = "10.0.0.0/8";
/// The address of the Service `kubernetes`, first of the Services' range.
const API_SERVICE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 1));

/// What a member is started with; complete and checked by the caller.
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    /// Already bound, so that a port in use is found before anything else is done.
    pub listener: std::net::TcpListener,
}

/// Why a member could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Store(#[from] wherry_store::OpenError),
    #[error("cannot use the data folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot use the listening socket: {0}")]
    Listen(std::io::Error),
}

/// A started member.
pub struct Member {
    pub api: ApiServer,
    pub address: SocketAddr,
    store: Store,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Member {
    /// Opens the store and starts to serve. When this returns, requests are answered and
    /// `admin.kubeconfig` is in the data folder.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Member, MemberError> {
        let folder = |source| MemberError::Folder { path: config.data_dir.clone(), source };
        fs::create_dir_all(&config.data_dir).map_err(folder)?;
        config.listener.set_nonblocking(true).map_err(MemberError::Listen)?;
        let listener = TcpListener::from_std(config.listener).map_err(MemberError::Listen)?;
        let address = listener.local_addr().map_err(MemberError::Listen)?;

        let pki = Arc::new(Pki::load_or_create(&config.data_dir.join("pki"))?);
        let tls = TlsAcceptor::from(Arc::new(pki.server_config(&server_profile(address.ip()))?));
        let engine = Engine::Rocks(config.data_dir.join("store"));
        let member = wherry_store::Config::founder(engine, address.to_string());
        let store = Store::open(member).await?;
        let api = ApiServer::new(apiserver::Config {
            store: store.clone(),
            data_dir: config.data_dir.clone(),
            ca_pem: pki.cluster.certificate_pem().to_owned(),
            advertise: address,
            shutdown: shutdown.clone(),
        });

        let tasks = TaskTracker::new();
        tasks.spawn(serve(listener, tls, api.router(), shutdown.clone()));
        let leader = Leader { api: api.clone(), pki: pki.clone(), address };
        tasks.spawn(lead(store.clone(), leader, shutdown.clone()));
        tasks.close();
        write_admin_kubeconfig(&config.data_dir, &pki, address)?;
        tracing::info!(member = config.name, %address, "serving");
        Ok(Member { api, address, store, tasks, shutdown })
    }

    /// Waits until the member was told to stop and has stopped.
    pub async fn stopped(self) {
        self.shutdown.cancelled().await;
        self.tasks.wait().await;
        self.api.stopped().await;
        if let Err(error) = self.store.shutdown().await {
            tracing::error!(%error, "store did not close cleanly");
        }
    }
}

/// What the API server's own certificate says: every name under which clients find it.
fn server_profile(listen: IpAddr) -> Profile {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), API_SERVICE_ADDRESS];
    if !listen.is_unspecified() && !addresses.contains(&listen) {
        addresses.push(listen);
    }
    if listen.is_unspecified()
        && let Ok(hostname) = fs::read_to_string("/proc/sys/kernel/hostname")
    {
        names.push(hostname.trim().to_owned());
    }
    Profile {
        common_name: "kube-apiserver".to_owned(),
        names,
        addresses,
        server: true,
        ..Profile::default()
    }
}

/// Writes `admin.kubeconfig`: this member's address, the CA and a new client certificate of a
/// cluster admin.
fn write_admin_kubeconfig(
    data_dir: &Path,
    pki: &Pki,
    address: SocketAddr,
) -> Result<(), MemberError> {
    use base64::Engine as _;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let admin = pki.cluster.issue(&Profile {
        common_name: "kubernetes-admin".to_owned(),
        organization: Some("system:masters".to_owned()),
        client: true,
        ..Profile::default()
    })?;
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let server = format!("https://{}", SocketAddr::new(host, address.port()));
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "wherry", "cluster": {
            "server": server,
            "certificate-authority-data": base64(pki.cluster.certificate_pem()),
        }}],
        "users": [{"name": "wherry-admin", "user": {
            "client-certificate-data": base64(&admin.certificate_pem),
            "client-key-data": base64(&admin.key_pem),
        }}],
        "contexts": [{"name": "wherry", "context": {
            "cluster": "wherry", "user": "wherry-admin", "namespace": "default",
        }}],
        "current-context": "wherry",
        "preferences": {},
    });
    let text = serde_yaml_ng::to_string(&kubeconfig).expect("plain maps are YAML");
    pki::write_private(&data_dir.join("admin.kubeconfig"), text.as_bytes())?;
    Ok(())
}

/// Accepts connections until the shutdown, then gives the open ones [`DRAIN_TIMEOUT`] to end.
async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: let connections end before the next try.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, router, graceful) = (tls.clone(), router.clone(), graceful.watcher());
        connections.spawn(async move {
            if let Err(error) = connection(stream, tls, router, graceful).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    connections.close();
    let drained = async {
        graceful.shutdown().await;
        connections.wait().await;
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::info!(open = connections.len(), "closing connections that did not end");
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    router: Router,
    graceful: Watcher,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.map(|leaf| PeerCertificate(leaf.to_vec()));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        router.clone().call(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    graceful.watch(served.into_owned()).await
}

/// What the leader's work needs.
struct Leader {
    api: ApiServer,
    pki: Arc<Pki>,
    address: SocketAddr,
}

/// Runs controllers and scheduler while this member leads.
async fn lead(store: Store, leader: Leader, shutdown: CancellationToken) {
    let mut leadership = store.leadership();
    loop {
        let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
        let stop = shutdown.child_token();
        let work = TaskTracker::new();
        if leads {
            tracing::info!("leading: controllers and scheduler start");
            start_leaders_work(&leader, &work, &stop);
        }
        work.close();
        let changed = tokio::select! {
            changed = leadership.changed() => changed.is_ok(),
            () = shutdown.cancelled() => false,
        };
        stop.cancel();
        work.wait().await;
        if !changed {
            return;
        }
    }
}

fn start_leaders_work(leader: &Leader, work: &TaskTracker, stop: &CancellationToken) {
    let client = |name: &str| {
        leader.api.client(User {
            name: name.to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            uid: String::new(),
            extra: BTreeMap::new(),
        })
    };
    let config = controllers::Config {
        pki: leader.pki.clone(),
        cluster_cidr: CLUSTER_CIDR.to_owned(),
        api_address: leader.address,
    };
    let controllers = client("system:kube-controller-manager");
    work.spawn(controllers::run(controllers, config, stop.clone()));
    work.spawn(scheduler::run(client("system:kube-scheduler"), stop.clone()));
}
