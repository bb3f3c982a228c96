//! How the verbs reach a cluster: a kubeconfig, found as kubectl finds it, or in `wherry dev`'s
//! data folder.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::diagnostic::Diagnostic;

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
}

impl Cluster {
    pub async fn connect(&self) -> Result<Connection, Diagnostic> {
        match &self.kubeconfig {
            Some(file) => connect(file).await,
            None => connect(&default_kubeconfig()).await,
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

/// Makes a client of a kubeconfig file's current context.
pub async fn connect(file: &Path) -> Result<Connection, Diagnostic> {
    let unusable = |error: kube::config::KubeconfigError| {
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {}", file.display()))
            .why(error)
            .help("start a cluster with `wherry dev`, or name a file with --kubeconfig FILE")
    };
    let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let config = config.map_err(unusable)?;
    let url = config.cluster_url.to_string();
    let ca_der = config.root_cert.as_ref().and_then(|chain| chain.first().cloned());
    let client = kube::Client::try_from(config).map_err(|error| {
        Diagnostic::new("WH0007", format!("cannot use the kubeconfig {}", file.display()))
            .why(error)
            .help("check its certificates, or name another file with --kubeconfig FILE")
    })?;
    Ok(Connection { client, url, ca_der: ca_der.unwrap_or_default() })
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
