//! How the verbs reach a cluster: a kubeconfig, found as kubectl finds it, or in `wherry dev`'s
//! data folder.
//!
//! A kubeconfig names one server. The verbs remember the other members of its cluster in the user's
//! cache folder, by the cluster's authority, and go to them when that server is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use sha2::Digest as _;
use wherry_node::members::{self, Make, Members};

use crate::diagnostic::Diagnostic;

/// Members change rarely: a list of this age is asked for again.
const REMEMBER_FOR: Duration = Duration::from_secs(60);
/// It must not hold up the verb itself.
const LEARN_TIMEOUT: Duration = Duration::from_secs(1);

/// How the verbs name themselves.
const USER_AGENT: &str = concat!("wherry/", env!("CARGO_PKG_VERSION"));

/// Flags of every verb that speaks to a cluster.
#[derive(clap::Args)]
pub struct Cluster {
    /// Kubeconfig file [default: that of a running `wherry dev`, else ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

/// A cluster that can be called, and the authority that signed its certificate.
pub struct Connection {
    pub client: kube::Client,
    pub url: String,
    pub ca_der: Vec<u8>,
    /// The namespace of the kubeconfig's context, as for kubectl.
    pub namespace: String,
}

impl Cluster {
    pub async fn connect(&self) -> Result<Connection, Diagnostic> {
        match &self.kubeconfig {
            Some(file) => connect_any(file).await,
            None => connect_any(&default_kubeconfig()).await,
        }
    }
}

/// The kubeconfig that is used when none is named.
fn default_kubeconfig() -> PathBuf {
    let dev = default_data_dir().join("kubeconfig");
    if dev.exists() {
        return dev;
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    home.join(".kube/config")
}

/// Where `wherry dev` keeps its state when it is not told: the user's data folder.
pub fn default_data_dir() -> PathBuf {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let data = data.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        home.unwrap_or_else(std::env::temp_dir).join(".local/share")
    });
    data.join("wherry/dev")
}

/// Makes a client of a kubeconfig file's current context, for the server that it names.
pub async fn connect(file: &Path) -> Result<Connection, Diagnostic> {
    let (connection, _) = open(file).await?;
    Ok(connection)
}

/// The same for any member of that server's cluster.
async fn connect_any(file: &Path) -> Result<Connection, Diagnostic> {
    let (connection, members) = open(file).await?;
    let Some(remembered) = remembered_file(&connection.ca_der) else { return Ok(connection) };
    members.learn(&recall(&remembered));
    if !is_fresh(&remembered) {
        // Only the next call needs it, so this one goes on without it.
        let learned = learn(&connection.client, &members, &remembered);
        let _ = tokio::time::timeout(LEARN_TIMEOUT, learned).await;
    }
    Ok(connection)
}

async fn open(file: &Path) -> Result<(Connection, Arc<Members>), Diagnostic> {
    let unusable = |error: kube::config::KubeconfigError| {
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {}", file.display()))
            .why(error)
            .help("start a cluster with `wherry dev`, or name a file with --kubeconfig FILE")
    };
    let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.map_err(unusable)?;
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(USER_AGENT)));
    let url = config.cluster_url.to_string();
    let ca_der = config.root_cert.as_ref().and_then(|chain| chain.first().cloned());
    let ca_der = ca_der.unwrap_or_default();
    let namespace = config.default_namespace.clone();
    let make: Make = Arc::new(move |server| {
        let mut config = config.clone();
        config.cluster_url = server;
        config
    });
    let members = Members::new(std::slice::from_ref(&url), make).map_err(|error| {
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {}", file.display()))
            .why(error)
            .help("check its certificates, or name another file with --kubeconfig FILE")
    })?;
    let client = members.client();
    Ok((Connection { client, url, ca_der, namespace }, members))
}

/// Where the members of the cluster with this authority are remembered.
fn remembered_file(ca_der: &[u8]) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cluster = hex::encode(sha2::Sha256::digest(ca_der));
    Some(cache.or_else(home)?.join("wherry/members").join(format!("{cluster}.json")))
}

fn recall(file: &Path) -> Vec<String> {
    let text = std::fs::read(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn is_fresh(file: &Path) -> bool {
    let written = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age < REMEMBER_FOR))
}

/// Asks the cluster who its members are, and remembers it. A user who may not ask, or a folder that
/// cannot be written to, only means that nothing is remembered.
async fn learn(client: &kube::Client, members: &Members, file: &Path) {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let of_service = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let Ok(slices) = slices.list(&of_service).await else { return };
    let urls = members::of_slices(&slices.items);
    if urls.is_empty() {
        return;
    }
    members.learn(&urls);
    let text = serde_json::to_vec(&urls).expect("strings are JSON");
    let kept = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = kept.and_then(|()| std::fs::write(file, text)) {
        tracing::debug!(%error, file = %file.display(), "members are not remembered");
    }
}

/// A request to the cluster that failed.
pub fn failed(what: &str) -> impl FnOnce(kube::Error) -> Diagnostic + '_ {
    move |error| {
        let diagnostic = Diagnostic::new("WH0008", format!("{what} failed"));
        let diagnostic = match error {
            kube::Error::Api(status) => diagnostic.why(status.message),
            other => diagnostic.why(other),
        };
        diagnostic.help("see whether the cluster runs:   kubectl get --raw /readyz?verbose")
    }
}
