//! `wherry why pod/NAME`: why a Pod is on its node, or on none. The decision is made once more
//! here, by the scheduler's own code over the cluster's objects, so it needs no more than to read.

use kube::api::{Api, ListParams};
use wherry_control_plane::scheduler::why::{Situation, why};

use crate::api::{self, Connection};
use crate::diagnostic::Diagnostic;

#[derive(clap::Args)]
pub struct Flags {
    /// What to explain: pod/NAME, or just the Pod's name
    #[arg(value_name = "pod/NAME", value_parser = parse_pod)]
    pod: String,
    /// Namespace of the Pod [default: that of the kubeconfig's context]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: api::Cluster,
}

fn parse_pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None => Ok(text.to_owned()),
        Some(("pod" | "pods" | "po", name)) if !name.is_empty() => Ok(name.to_owned()),
        Some((kind, _)) => Err(format!("{kind:?} is not a Pod: say pod/NAME")),
    }
}

pub fn main(flags: Flags) -> Result<(), Diagnostic> {
    crate::roles::small_runtime()?.block_on(async {
        let connection = flags.cluster.connect().await?;
        let namespace = flags.namespace.as_deref().unwrap_or(&connection.namespace);
        print!("{}", explain(&connection, namespace, &flags.pod).await?);
        Ok(())
    })
}

async fn explain(
    connection: &Connection,
    namespace: &str,
    name: &str,
) -> Result<String, Diagnostic> {
    let client = &connection.client;
    let pods = Api::namespaced(client.clone(), namespace);
    let pod = pods.get(name).await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => {
            Diagnostic::new("WH0008", format!("there is no Pod {namespace}/{name}"))
                .help("see what there is:   kubectl get pods --all-namespaces")
        }
        error => api::failed("reading the Pod")(error),
    })?;
    let situation = Situation {
        nodes: list(client, "reading the nodes").await?,
        pods: list(client, "reading the Pods").await?,
        namespaces: list(client, "reading the namespaces").await?,
        budgets: list(client, "reading the disruption budgets").await?,
        claims: list(client, "reading the volume claims").await?,
        volumes: list(client, "reading the volumes").await?,
        classes: list(client, "reading the storage classes").await?,
    };
    Ok(why(&situation, &pod))
}

async fn list<K>(client: &kube::Client, what: &str) -> Result<Vec<K>, Diagnostic>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let all = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(all.map_err(api::failed(what))?.items)
}
