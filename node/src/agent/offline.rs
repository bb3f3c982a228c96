//! Running Pods before any server has been reached: what the checkpoint says, until a server does.
//!
//! A starting agent waits a moment for the control plane. If nothing has come by then, the loop gets
//! everything that was kept, as if the watches had said it. Whatever a watch lists later wins; what it
//! does not list is gone (`Unconfirmed`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use tokio::sync::mpsc;

use super::{
    checkpoint::{Checkpoint, Kind},
    pods::{Input, Name},
    routes::{NodeInfo, ServiceInfo, SliceInfo},
};

/// How long a server may take before the checkpoint is used. Workers that still run serve meanwhile;
/// one that has died must be back within two seconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Everything that was kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// Pods with their last status.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<ServiceInfo>,
    /// EndpointSlices.
    pub slices: Vec<SliceInfo>,
    /// Nodes.
    pub nodes: Vec<NodeInfo>,
    /// NetworkPolicies.
    pub policies: Vec<(Name, NetworkPolicy)>,
    /// Labels of namespaces.
    pub namespaces: Vec<(String, BTreeMap<String, String>)>,
}

/// What the checkpoint said and no watch has said yet.
#[derive(Debug, Default)]
pub struct Unconfirmed {
    /// Uids.
    pub pods: BTreeSet<String>,
    /// Namespaces and names.
    pub services: BTreeSet<Name>,
    /// Namespaces and names.
    pub slices: BTreeSet<Name>,
    /// Names.
    pub nodes: BTreeSet<String>,
    /// Namespaces and names.
    pub policies: BTreeSet<Name>,
    /// Names.
    pub namespaces: BTreeSet<String>,
}

/// Which watches have listed their kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Live {
    /// Pods.
    pub pods: bool,
    /// Services.
    pub services: bool,
    /// EndpointSlices.
    pub slices: bool,
    /// Nodes.
    pub nodes: bool,
    /// NetworkPolicies.
    pub policies: bool,
    /// Namespaces.
    pub namespaces: bool,
}

/// Gives the loop what was kept, after a moment. The loop takes what no watch has listed by then.
pub async fn run(checkpoint: Arc<Checkpoint>, inputs: mpsc::Sender<Input>) {
    tokio::time::sleep(PATIENCE).await;
    let read = tokio::task::spawn_blocking(move || Kept {
        pods: checkpoint.load(Kind::Pods),
        services: checkpoint.load(Kind::Services),
        slices: checkpoint.load(Kind::Slices),
        nodes: checkpoint.load(Kind::Nodes),
        policies: checkpoint.load(Kind::Policies),
        namespaces: checkpoint.load(Kind::Labels),
    });
    match read.await {
        // The loop is gone only when the agent ends.
        Ok(kept) => drop(inputs.send(Input::Offline(Box::new(kept))).await),
        Err(panic) => tracing::error!(%panic, "the checkpoint cannot be read"),
    }
}
