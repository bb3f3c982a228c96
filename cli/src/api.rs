//! How the verbs reach a cluster: a kubeconfig, found as kubectl finds it, or in `wherry dev`'s
//! data folder.
//!
//! A kubeconfig names one server. The verbs remember the other members of its cluster in the user's
//! cache folder, by the cluster's authority, and go to them when that server is away.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use sha2::Digest as _;
use wherry_node::members::{self, Make, Members};

use crate::diagnostic::Diagnostic;

/// A list of this age is asked for again. A script that calls often need not, but a cluster that is
/// being set up may have grown since, and lose the member that the kubeconfig names.
const REMEMBER_FOR: Duration = Duration::from_secs(2);
/// It must not hold up the verb itself.
const LEARN_TIMEOUT: Duration = Duration::from_secs(1);

/// How the verbs name themselves.
const USER_AGENT: &str = concat!("wherry/", env!("CARGO_PKG_VERSION"));

/// Flags of every verb that speaks to a cluster.
#[derive(clap::Args)]
pub struct Cluster {
    /// Kubeconfig file [default: the files that KUBECONFIG names, else that of `wherry dev`, else
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE")]
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
            Some(file) => connect_any(std::slice::from_ref(file)).await,
            None => connect_any(&default_kubeconfigs()).await,
        }
    }
}

/// The kubeconfigs that are used when none is named, as kubectl takes them: several are one.
fn default_kubeconfigs() -> Vec<PathBuf> {
    let named = named_by(&std::env::var_os("KUBECONFIG").unwrap_or_default());
    if named.is_empty() { vec![default_kubeconfig()] } else { named }
}

/// The files in the value of `KUBECONFIG`. Some of several may not be there.
fn named_by(variable: &OsStr) -> Vec<PathBuf> {
    let named = std::env::split_paths(variable).filter(|file| !file.as_os_str().is_empty());
    let named: Vec<PathBuf> = named.collect();
    let there: Vec<PathBuf> = named.iter().filter(|file| file.exists()).cloned().collect();
    if there.is_empty() { named } else { there }
}

/// The kubeconfig that is used when there is no other word of one.
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
    let (connection, _) = open(&[file.to_owned()]).await?;
    Ok(connection)
}

/// The same for any member of that server's cluster, and of several files' context.
async fn connect_any(files: &[PathBuf]) -> Result<Connection, Diagnostic> {
    let (connection, members) = open(files).await?;
    let Some(remembered) = remembered_file(&connection.ca_der) else { return Ok(connection) };
    members.learn(&recall(&remembered));
    if !is_fresh(&remembered) {
        // Only the next call needs it, so this one goes on without it.
        let learned = learn(&connection.client, &members, &remembered);
        let _ = tokio::time::timeout(LEARN_TIMEOUT, learned).await;
    }
    Ok(connection)
}

async fn open(files: &[PathBuf]) -> Result<(Connection, Arc<Members>), Diagnostic> {
    let shown: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let shown = shown.join(", ");
    let unusable = |error: kube::config::KubeconfigError| {
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {shown}"))
            .why(error)
            .help("start a cluster with `wherry dev`, or name a file with --kubeconfig FILE")
    };
    let kubeconfig = files
        .iter()
        .try_fold(Kubeconfig::default(), |before, file| before.merge(Kubeconfig::read_from(file)?));
    let kubeconfig = kubeconfig.map_err(unusable)?;
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
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {shown}"))
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
        match error {
            kube::Error::Api(status) => {
                let help = help_with(status.code);
                help.into_iter().fold(diagnostic.why(status.message), Diagnostic::help)
            }
            kube::Error::Service(error) => {
                let error: Box<dyn std::error::Error> = error;
                diagnostic.why(error).help(SEE)
            }
            other => diagnostic.why(other).help(SEE),
        }
    }
}

/// What to look at when no answer came, or none that a healthy cluster gives.
const SEE: &str = "see whether the cluster runs:   kubectl get --raw /readyz?verbose";

/// What helps with an answer of that status. A cluster that refuses something runs, and its message
/// says what is wrong.
fn help_with(code: u16) -> Option<&'static str> {
    match code {
        401 => Some("name a kubeconfig that this cluster takes:   --kubeconfig FILE"),
        403 => Some("see what you may do:   kubectl auth can-i --list"),
        429 | 500.. => Some(SEE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::{failed, named_by};

    #[test]
    fn kubeconfig_names_files_as_for_kubectl() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (there, other) = (folder.path().join("there"), folder.path().join("other"));
        std::fs::write(&there, "").expect("written");
        let both = std::env::join_paths([&other, &there]).expect("no colon in them");
        assert_eq!(named_by(&both), std::slice::from_ref(&there));
        assert_eq!(named_by(other.as_os_str()), [other]);
        assert!(named_by("".as_ref()).is_empty() && named_by(":".as_ref()).is_empty());
    }

    #[test]
    fn a_refusal_is_not_taken_for_a_cluster_that_is_away() {
        let refused = |code, message: &str| {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            failed("reading the Pod")(kube::Error::Api(Box::new(status))).to_string()
        };
        expect_test::expect![[r#"
            error[WH0008]: reading the Pod failed
            why:  pods "a" not found
            error[WH0008]: reading the Pod failed
            why:  forbidden
            help: see what you may do:   kubectl auth can-i --list
            error[WH0008]: reading the Pod failed
            why:  no leader
            help: see whether the cluster runs:   kubectl get --raw /readyz?verbose"#]]
        .assert_eq(&format!(
            "{}\n{}\n{}",
            refused(404, "pods \"a\" not found"),
            refused(403, "forbidden"),
            refused(503, "no leader")
        ));
    }
}
