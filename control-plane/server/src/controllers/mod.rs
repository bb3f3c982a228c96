//! The controllers: what makes the cluster be as its objects say.
//!
//! [`CONTROLLERS`] is the whole list. Each file there has the same shape: what it owns, a
//! `Snapshot` of what it reads, a pure `plan(&Snapshot, now)`, and a row of functions by which the
//! one loop (`reconcile`) calls it. They share one cache (`cache`), one writer (`write`) and one
//! recorder of events (`events`), and they reach the cluster through a client alone.
//!
//! Only the Raft leader runs them. A deposed leader's writes are refused by its own store, and
//! every write names the state it was planned from, so two leaders for a moment do no harm.

pub mod addresses;
pub mod affinity;
pub mod aggregation;
pub mod apiservices;
pub mod autoscaler;
pub mod bootstrap;
pub mod cache;
pub mod certificates;
pub mod cronjob;
pub mod daemonset;
pub mod definitions;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod ephemeral;
pub mod errands;
pub mod events;
pub mod flows;
pub mod garbage;
pub mod gateway;
pub mod history;
pub mod job;
pub mod leftovers;
pub mod mirroring;
pub mod namespace;
pub mod node;
pub mod owners;
mod pace;
pub mod podcidr;
pub mod pods;
pub mod quota;
pub mod reconcile;
pub mod replicaset;
pub mod serviceaccount;
pub mod share;
pub mod statefulset;
pub mod taints;
pub mod volumes;
pub mod watch;
pub mod write;

#[cfg(test)]
pub(crate) mod testing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;

use crate::pki::Pki;
use cache::Cache;
use reconcile::{Controller, Loop};
use write::Writer;

/// Every controller, in the order in which they learn of a change.
pub static CONTROLLERS: &[Controller] = &[
    bootstrap::CONTROLLER,
    aggregation::CONTROLLER,
    serviceaccount::CONTROLLER,
    certificates::CONTROLLER,
    podcidr::CONTROLLER,
    node::CONTROLLER,
    deployment::CONTROLLER,
    replicaset::CONTROLLER,
    replicaset::REPLICATION_CONTROLLER,
    statefulset::CONTROLLER,
    daemonset::CONTROLLER,
    job::CONTROLLER,
    volumes::CONTROLLER,
    ephemeral::CONTROLLER,
    cronjob::CONTROLLER,
    autoscaler::CONTROLLER,
    disruption::CONTROLLER,
    endpoints::CONTROLLER,
    mirroring::CONTROLLER,
    addresses::CONTROLLER,
    gateway::CONTROLLER,
    quota::CONTROLLER,
    leftovers::CONTROLLER,
    namespace::CONTROLLER,
    garbage::CONTROLLER,
    definitions::CONTROLLER,
    apiservices::CONTROLLER,
    flows::CONTROLLER,
];

/// A member of the control plane, as clients find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiMember {
    pub address: SocketAddr,
    /// Whether it answers.
    pub ready: bool,
}

/// What the controllers are started with.
#[derive(Clone)]
pub struct Config {
    pub pki: Arc<Pki>,
    /// Where Pods' addresses come from, such as `10.0.0.0/8`.
    pub cluster_cidr: String,
    /// Where the API is; empty until that is known.
    pub api_members: watch_channel::Receiver<Vec<ApiMember>>,
    /// Between the beginnings of two watches.
    pub watch_every: Duration,
}

/// Runs all controllers until the shutdown; returns when their last write is done.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) {
    let (recorder, notes) = events::recorder();
    let (writer, calls) = Writer::new(client.clone(), config.pki.clone(), recorder.clone());
    let mut cache = Cache::new();
    let mut watches = vec![
        watch::whole::<Pod>(&client, &mut cache),
        watch::whole::<ReplicaSet>(&client, &mut cache),
        watch::whole::<Deployment>(&client, &mut cache),
        watch::whole::<ReplicationController>(&client, &mut cache),
        watch::whole::<StatefulSet>(&client, &mut cache),
        watch::whole::<DaemonSet>(&client, &mut cache),
        watch::whole::<ControllerRevision>(&client, &mut cache),
        watch::whole::<PersistentVolumeClaim>(&client, &mut cache),
        watch::whole::<PersistentVolume>(&client, &mut cache),
        watch::whole::<StorageClass>(&client, &mut cache),
        watch::whole::<Job>(&client, &mut cache),
        watch::whole::<CronJob>(&client, &mut cache),
        watch::whole::<HorizontalPodAutoscaler>(&client, &mut cache),
        watch::whole::<PodDisruptionBudget>(&client, &mut cache),
        watch::whole::<ResourceQuota>(&client, &mut cache),
        watch::whole::<Ingress>(&client, &mut cache),
        watch::whole::<IngressClass>(&client, &mut cache),
        watch::whole::<Service>(&client, &mut cache),
        watch::whole::<EndpointSlice>(&client, &mut cache),
        watch::whole::<Endpoints>(&client, &mut cache),
        watch::whole::<Node>(&client, &mut cache),
        watch::whole::<Lease>(&client, &mut cache),
        watch::whole::<Namespace>(&client, &mut cache),
        watch::whole::<ServiceAccount>(&client, &mut cache),
        watch::whole::<CertificateSigningRequest>(&client, &mut cache),
        watch::whole::<PriorityClass>(&client, &mut cache),
        watch::whole::<CustomResourceDefinition>(&client, &mut cache),
        watch::whole::<ClusterRole>(&client, &mut cache),
        watch::whole::<ClusterRoleBinding>(&client, &mut cache),
        watch::whole::<FlowSchema>(&client, &mut cache),
        watch::whole::<PriorityLevelConfiguration>(&client, &mut cache),
        watch::whole::<APIService>(&client, &mut cache),
        watch::config_maps(&client, &mut cache),
        watch::secrets(&client, &mut cache),
    ];
    let bare = cache.bare_kinds();
    watches.extend(bare.into_iter().map(|kind| watch::bare(&client, kind)));
    watches.push(watch::custom(client.clone()));
    let watches = watch::one_by_one(watches, config.watch_every);
    let bootstrap = CONTROLLERS
        .iter()
        .position(|controller| controller.name == bootstrap::CONTROLLER.name)
        .expect("bootstrap stands in the table");
    let calls = errands::run_calls(client.clone(), recorder, calls, shutdown.clone());
    let events = events::run(client, notes, shutdown.clone());
    let controllers = Loop::new(cache, CONTROLLERS, config, writer).run(
        watches,
        vec![(bootstrap, bootstrap::key())],
        shutdown,
    );
    tokio::join!(controllers, events, calls);
}
