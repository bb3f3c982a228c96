//! The Kubernetes API server: an axum Router over the store.
//!
//! A request passes `guard` (who, may they, how long), `routes` (where to), a verb (`verbs`), then
//! `Store::put`. For every kind it is the same pipeline:
//!
//! ```text
//! guard -> routes::resource -> verbs::create -> verbs::write::insert -> Store::put
//!                              decode, check    defaults, admission,
//!                              fields           validation
//! ```
//!
//! Who may do what: `auth` and `tokens` say who asks, `authorize` and `rbac` whether they may;
//! `access` asks them for this member.
//!
//! Decisions (`request`, `content`, `authorize`, `admission`, `verbs::prepare`, …) are pure; the
//! files named after verbs gather what they need and perform the outcome. `errors` is the only
//! place that knows what a Status looks like, `stored` the only one that knows the stored form.
//! Custom kinds go the same way: `catalog` says what is served, `custom` what their writes need
//! besides.
//!
//! `stream` carries commands and connections into Pods, through the nodes' tunnels.
//!
//! The same Router serves sockets (through `member`) and the control plane's own clients
//! ([`ApiServer::client`]), which therefore see exactly what everybody else sees.

mod access;
mod admission;
mod aggregate;
mod asides;
mod audit;
mod auth;
mod authorize;
mod backup;
mod catalog;
mod cel;
mod content;
mod custom;
mod derived;
mod discovery;
mod elsewhere;
mod errors;
mod escape;
mod extensions;
mod fairness;
mod follow;
#[cfg(test)]
mod fuzz;
mod graph;
mod guard;
mod health;
mod impersonate;
mod members;
mod openapi;
mod outbound;
mod pieces;
mod rbac;
mod registry;
mod request;
mod routes;
mod stored;
mod stream;
#[cfg(test)]
mod tests;
mod tokens;
mod tunnel;
mod ui;
mod verbs;
mod yaml;

pub use audit::{
    AuditError, AuditLog, LogConfig, Policy as AuditPolicy, PolicyError, VerifyError,
    verify as verify_audit_log,
};
pub use auth::{PeerAddress, PeerCertificate, User};
pub use errors::ApiError;
pub use health::GIT_VERSION;
pub use outbound::Network;
pub use tokens::{KeyError, TokenKey};
pub use tunnel::{TunnelError, Tunnels};

use crate::contain;
use crate::reports::Reports;
use admission::service::{Allocations, Known};
use arc_swap::ArcSwap;
use fairness::Fairness;
use follow::Followed;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokens::Tokens;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;
use verbs::quota::Counting;
use wherry_store::{Snapshot, Store};

use crate::peer::Others;
use crate::pki::Pki;

/// What an API server needs to start.
pub struct Config {
    /// Where objects are.
    pub store: Store,
    /// The other members, if there may be any.
    pub others: Option<Others>,
    /// The registry keeps its blobs below it.
    pub data_dir: PathBuf,
    /// The cluster's authorities, which a new member is given.
    pub pki: Arc<Pki>,
    /// Address at which clients reach this member.
    pub advertise: SocketAddr,
    /// What else `/metrics` shows.
    pub reports: Arc<Reports>,
    /// Signs the tokens of service accounts.
    pub token_key: Arc<TokenKey>,
    /// Where to tell who did what.
    pub audit: Option<AuditLog>,
    /// Ends streams and tunnels.
    pub shutdown: CancellationToken,
}

/// A running API server; clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Inner>,
    /// The shared one, or its handle that does not forward writes.
    store: Store,
    /// Which of both it is.
    leads: bool,
}

struct Inner {
    config: Config,
    roles: Followed<rbac::Index>,
    flows: Followed<fairness::Flows>,
    graph: Followed<graph::Graph>,
    gates: Followed<graph::Gates>,
    gateways: Followed<graph::Gateways>,
    fairness: Arc<Fairness>,
    service_account_tokens: Tokens,
    tunnels: Tunnels,
    tasks: TaskTracker,
    metrics: health::Metrics,
    allocations: Allocations,
    services: Followed<Known>,
    counting: Counting,
    sessions: ui::Sessions,
    past: ui::Past,
    printed: ui::Shelf,
    lately: ui::Lately,
    traffic: ui::Traffic,
    catalog: catalog::Source,
    hooks: extensions::Source,
    outbound: outbound::Outbound,
    aggregated: aggregate::Aggregated,
    backups: Arc<Semaphore>,
    /// Ends the watches that are open.
    watching: ArcSwap<CancellationToken>,
}

impl ApiServer {
    /// Makes a server; it answers once its [`router`](Self::router) is served.
    pub fn new(config: Config) -> ApiServer {
        let store = config.store.clone();
        let identity = config.pki.front_proxy().expect("the peers' authority signs");
        let outbound = outbound::Outbound::new(identity);
        let shared = Arc::new(Inner {
            roles: Followed::new(rbac::prefix()),
            flows: Followed::new(fairness::prefix()),
            graph: Followed::new(graph::prefix()),
            gates: Followed::new(graph::gates_prefix()),
            gateways: Followed::new(graph::gateways_prefix()),
            fairness: Fairness::new(),
            service_account_tokens: Tokens::new(config.token_key.clone()),
            watching: ArcSwap::from_pointee(config.shutdown.child_token()),
            config,
            tunnels: Tunnels::default(),
            tasks: TaskTracker::new(),
            metrics: health::Metrics::default(),
            allocations: Allocations::default(),
            services: Followed::new(verbs::facts::services()),
            counting: Counting::default(),
            sessions: ui::Sessions::default(),
            past: ui::Past::default(),
            printed: ui::Shelf::default(),
            lately: ui::Lately::default(),
            traffic: ui::Traffic::default(),
            catalog: catalog::Source::default(),
            hooks: extensions::Source::default(),
            outbound,
            aggregated: aggregate::Aggregated::default(),
            backups: Arc::new(Semaphore::new(backup::BACKUPS_AT_ONCE)),
        });
        ApiServer { shared, store, leads: false }
    }

    /// The same server, whose writes fail where this member does not lead.
    pub fn leading(&self) -> ApiServer {
        ApiServer { shared: self.shared.clone(), store: self.store.leading(), leads: true }
    }

    /// Whether writes fail where this member does not lead.
    fn acts_as_leader(&self) -> bool {
        self.leads
    }

    /// All routes. A request must carry a [`User`] or [`PeerCertificate`] extension, a bearer
    /// token, or be anonymous.
    pub fn router(&self) -> axum::Router {
        routes::router(self.clone())
    }

    /// A client inside the process that acts as `user`; no socket, the same routes.
    pub fn client(&self, user: User) -> kube::Client {
        self.client_as(user, true)
    }

    /// The same for one who never reads who manages which fields.
    pub fn client_without_managers(&self, user: User) -> kube::Client {
        self.client_as(user, false)
    }

    fn client_as(&self, user: User, managers: bool) -> kube::Client {
        let router = self.router();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let router = router.clone();
            let mut request = request.map(axum::body::Body::new);
            // Without an agent of its own a component is known by the last part of its user's name.
            let name = user.name.rsplit(':').next().unwrap_or_default();
            if let Ok(agent) = http::HeaderValue::try_from(name) {
                request.headers_mut().entry(http::header::USER_AGENT).or_insert(agent);
            }
            request.extensions_mut().insert(user.clone());
            if !managers {
                request.extensions_mut().insert(content::WithoutManagers);
            }
            router.oneshot(request)
        });
        kube::Client::new(service, "default")
    }

    /// Asks the servers of aggregated APIs whether they answer, until the shutdown.
    pub async fn check_aggregated(self) {
        let shutdown = self.shutdown().clone();
        aggregate::run(self, shutdown).await;
    }

    /// Keeps the last day in mind, and the lists that dashboards show, until the shutdown.
    pub async fn remember(self) {
        let mut tick = tokio::time::interval(ui::REMEMBER);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.shutdown().run_until_cancelled(tick.tick()).await.is_some() {
            let kept = contain::sync(|| {
                self.past().catch_up(&self.store);
                self.printed().keep();
            });
            if let Err(panic) = kept {
                tracing::error!(%panic, "not everything is remembered");
            }
        }
    }

    /// Connections to the nodes' agents.
    pub fn tunnels(&self) -> &Tunnels {
        &self.shared.tunnels
    }

    /// Waits for the tasks that serve tunnels; they end with the shutdown.
    pub async fn stopped(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        if let Some(log) = self.audit() {
            tokio::task::block_in_place(|| log.close());
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The state that a write is to be judged by: everything that was answered before it, by
    /// whichever member.
    async fn latest(&self) -> Result<Snapshot, ApiError> {
        self.store.read().await.map_err(ApiError::from)
    }

    /// Whether a new cluster has the namespaces that everything else needs.
    pub fn is_furnished(&self) -> bool {
        let kind = wherry_resources::kind("", "v1", "namespaces");
        let kind = kind.expect("Namespace is a built-in kind");
        self.store.current().get(&stored::key(kind, "", "kube-system")).is_some()
    }

    /// The other members.
    fn others(&self) -> Option<&Others> {
        self.shared.config.others.as_ref()
    }

    fn pki(&self) -> &Pki {
        &self.shared.config.pki
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.shared.config.data_dir
    }

    pub(crate) fn advertise(&self) -> SocketAddr {
        self.shared.config.advertise
    }

    /// Webhooks that are registered, and policies.
    fn hooks(&self) -> Arc<extensions::Hooks> {
        self.shared.hooks.get(self.store())
    }

    fn outbound(&self) -> &outbound::Outbound {
        &self.shared.outbound
    }

    /// What others serve under this server's name.
    fn aggregated(&self) -> &aggregate::Aggregated {
        &self.shared.aggregated
    }

    /// Lets webhooks and aggregated APIs be in these networks though they are inside: by
    /// themselves, users cannot make the API server connect to loopback, link-local or private
    /// addresses.
    pub fn let_webhooks_reach(&self, networks: &[Network]) {
        self.shared.outbound.allow(networks);
    }

    /// What is served at this moment.
    fn catalog(&self) -> Arc<catalog::Catalog> {
        self.shared.catalog.get(self.store())
    }

    fn shutdown(&self) -> &CancellationToken {
        &self.shared.config.shutdown
    }

    /// Is cancelled when the watches that begin now must end: at the shutdown, if not before.
    fn watching(&self) -> CancellationToken {
        CancellationToken::clone(&self.shared.watching.load())
    }

    /// Ends all watches, and the dashboard's streams: who watches begins anew, on a member that
    /// hears of the cluster.
    pub(crate) fn end_watches(&self) {
        let open = self.metrics().watches.load(Relaxed);
        if open > 0 {
            tracing::warn!(open, "not in touch with the cluster: watches end");
        }
        let next = Arc::new(self.shutdown().child_token());
        self.shared.watching.swap(next).cancel();
    }

    fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    fn metrics(&self) -> &health::Metrics {
        &self.shared.metrics
    }

    fn reports(&self) -> &Reports {
        &self.shared.config.reports
    }

    fn backups(&self) -> &Arc<Semaphore> {
        &self.shared.backups
    }

    fn allocations(&self) -> &Allocations {
        &self.shared.allocations
    }

    fn services(&self) -> &Followed<Known> {
        &self.shared.services
    }

    /// The flow schemas and priority levels as of now.
    fn flows(&self) -> Arc<fairness::Flows> {
        self.shared.flows.get(self.store())
    }

    fn fairness(&self) -> &Arc<Fairness> {
        &self.shared.fairness
    }

    fn audit(&self) -> Option<&AuditLog> {
        self.shared.config.audit.as_ref()
    }

    /// Writes that are being counted in quotas.
    fn counting(&self) -> &Counting {
        &self.shared.counting
    }

    fn ca_pem(&self) -> &str {
        self.pki().cluster.certificate_pem()
    }

    fn tokens(&self) -> &Tokens {
        &self.shared.service_account_tokens
    }

    fn past(&self) -> &ui::Past {
        &self.shared.past
    }

    fn lately(&self) -> &ui::Lately {
        &self.shared.lately
    }

    fn traffic(&self) -> &ui::Traffic {
        &self.shared.traffic
    }

    fn printed(&self) -> &ui::Shelf {
        &self.shared.printed
    }

    fn sessions(&self) -> &ui::Sessions {
        &self.shared.sessions
    }
}
