//! One member of the control plane: store, API server and, on the Raft leader, scheduler and
//! controllers, behind one TLS port for clients, peers and node tunnels.
//!
//! ```text
//!  listener ─ TLS ─┬─ clients ─► apiserver::router ─► store ─ peers ─► other members
//!                  └─ members ─► peer::router ──────────┘
//!                                     ▲
//!  leadership ──► controllers, scheduler   (in-process clients; stopped when leadership goes)
//! ```
//!
//! A member founds a cluster, goes on in the one that its data folder belongs to, or joins one
//! (`join`), which makes it a learner at first and a voter once it has caught up.
//!
//! Tasks: one accept loop with a task for each connection, one that starts and stops the leader's
//! work, one that looks who the members are, one that keeps encryption at rest on its newest key,
//! one that tells a new address, and after a join one that asks for the vote. All are joined by [`Member::stopped`]. A member that
//! is told to stop hands its leadership over first, and only then stops answering; it also stops
//! when its store does.

mod identity;
pub mod join;
mod patience;
pub(crate) mod serve;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wherry_store::{
    Engine, FOUNDER, Keyring, KeyringError, Leadership, MemberId, MemberStatus, MembershipError,
    OpenError, Role, Store,
};

use crate::apiserver::{self, ApiServer, AuditLog, TokenKey, User};
use crate::backup::Schedule;
use crate::controllers::ApiMember;
use crate::peer::{self, Others, Peers};
use crate::pki::{self, Pki, PkiError, Profile};
use crate::reports::Reports;
use crate::{at_rest, backup, controllers, scheduler};
use identity::Identity;
pub use identity::{IdentityError, MEMBER_FILE, STORE};
use join::{Join, JoinError};
use serve::{Side, Sides};
pub use wherry_store::{Window, too_full};

/// Pods of all nodes get their addresses out of this; see `controllers/podcidr.rs`.
const CLUSTER_CIDR: &str = "10.0.0.0/8";
/// The address of the Service `kubernetes`, first of the Services' range.
const API_SERVICE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 1));
/// How often a member looks who the members are and whether they answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A member that has not answered for this long, or has not heard of the others, is no place for
/// clients.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// Pause before a new member asks for the vote again.
const VOTE_PAUSE: Duration = Duration::from_millis(500);
/// A leader among several answers those who waited for one before its controllers read the whole
/// cluster, which takes all processors for a while.
const CALM: Duration = Duration::from_millis(250);
/// … and they read one kind after the other, at this distance.
const WATCH_EVERY: Duration = Duration::from_millis(5);
/// Pause before a member that moved says so again.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);
/// A leader that is told to stop gets this long to find a successor; one is found in far less, or
/// there is none.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// An address that stands for "the rest of the world" (TEST-NET-1); nothing is ever sent to it.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// What a member is started with; complete and checked by the caller.
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub encryption: at_rest::Config,
    /// How much of the past lists and watches may go back to.
    pub window: Window,
    /// Backups by the clock, made while this member leads.
    pub backups: Option<Schedule>,
    /// Already bound, so that a port in use is found before anything else is done.
    pub listener: std::net::TcpListener,
    /// Where nodes and other members reach this one; None: where it listens.
    pub advertise: Option<SocketAddr>,
    /// Whom to ask to be taken in; counts only while the data folder is new.
    pub join: Option<Join>,
    /// Where to tell who did what.
    pub audit: apiserver::LogConfig,
}

/// Why a member could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Audit(#[from] apiserver::AuditError),
    #[error(transparent)]
    TokenKey(#[from] apiserver::KeyError),
    #[error(transparent)]
    Store(#[from] wherry_store::OpenError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("cannot use the data folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot use the listening socket: {0}")]
    Listen(std::io::Error),
    #[error("the store has stopped: {0}")]
    Stopped(String),
    #[error("member {name:?} (id {id}) was removed from its cluster")]
    Removed { id: MemberId, name: String },
}

/// What a store that has stopped says of data that it could read once and cannot any more, and of
/// data that is older than what it has done.
const USELESS: [&str; 2] = ["is damaged on disk", "is older than what this member has done"];

impl MemberError {
    /// Whether its data are damaged or lost, so that it must never be started on them again.
    pub fn is_of_useless_data(&self) -> bool {
        match self {
            MemberError::Store(error) | MemberError::Identity(IdentityError::Store(error)) => {
                use OpenError::{Behind, Damaged, Older};
                matches!(error, Damaged { .. } | Behind { .. } | Older { .. })
            }
            MemberError::Identity(error) => {
                matches!(error, IdentityError::Damaged { .. } | IdentityError::Lost { .. })
            }
            MemberError::Stopped(why) => USELESS.iter().any(|words| why.contains(words)),
            _ => false,
        }
    }
}

/// A started member.
pub struct Member {
    pub api: ApiServer,
    /// Where it is reached.
    pub address: SocketAddr,
    pub name: String,
    pub id: MemberId,
    store: Store,
    peers: Peers,
    /// Whether it has its vote, or never needed to ask for it.
    votes: watch::Receiver<bool>,
    tasks: TaskTracker,
    /// Asks it to stop.
    shutdown: CancellationToken,
    /// Another member says that this one was removed.
    removed: CancellationToken,
    /// Ends its tasks.
    stop: CancellationToken,
    /// Ends the connections to other members, which the store needs to the last.
    alone: CancellationToken,
}

impl Member {
    /// Opens the store and starts to serve. When this returns, requests are answered and
    /// `admin.kubeconfig` is in the data folder.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Member, MemberError> {
        let folder = |source| MemberError::Folder { path: config.data_dir.clone(), source };
        fs::create_dir_all(&config.data_dir).map_err(folder)?;
        config.listener.set_nonblocking(true).map_err(MemberError::Listen)?;
        let listener = TcpListener::from_std(config.listener).map_err(MemberError::Listen)?;
        let listen = listener.local_addr().map_err(MemberError::Listen)?;
        let (data_dir, name) = (&config.data_dir, &config.name);
        let mut address = config.advertise.unwrap_or(listen);

        let identity = match (identity::find(data_dir)?, &config.join) {
            (None, Some(join)) => {
                let newcomer = Newcomer { data_dir, name, address, encryption: &config.encryption };
                let (identity, reached) = newcomer.take_part(join).await?;
                address = reached;
                Some(identity)
            }
            (found, _) => found,
        };
        if address.ip().is_unspecified() {
            address.set_ip(outward());
        }
        let id = identity.as_ref().map_or(FOUNDER, |identity| identity.id);
        let pki = Arc::new(Pki::load_or_create(&data_dir.join("pki"))?);
        let (keyring, made) = config.encryption.open(data_dir)?;
        let (stop, alone) = (CancellationToken::new(), CancellationToken::new());
        let removed = CancellationToken::new();
        let peers = Peers::new(pki.peer_client_config(id)?, alone.clone());
        let window = config.window;
        let to_open = ToOpen { data_dir, name, id, identity: identity.as_ref(), address, window };
        let store = open(to_open, keyring.clone(), &peers).await.inspect_err(|error| {
            // A keyring made for data that another one has encrypted would be taken for it later.
            if made && matches!(error, MemberError::Store(OpenError::Key { .. })) {
                let _ = fs::remove_file(keyring.path());
            }
        })?;
        let reports = Arc::<Reports>::default();

        let joined = identity.is_some_and(|identity| identity.joined);
        Identity::new(store.cluster_id(), id, name, joined).opened().keep(data_dir)?;
        let (members, all) = watch::channel(Vec::new());
        let (addresses, reachable) = watch::channel(Vec::new());
        let api = ApiServer::new(apiserver::Config {
            store: store.clone(),
            others: Some(Others { peers: peers.clone(), members: all }),
            data_dir: data_dir.clone(),
            pki: pki.clone(),
            advertise: address,
            reports: reports.clone(),
            token_key: Arc::new(TokenKey::from_pem(&pki.token_key_pem)?),
            audit: Some(AuditLog::open(config.audit)?),
            shutdown: stop.clone(),
        });

        let tasks = TaskTracker::new();
        let clients = Side {
            tls: Arc::new(pki.server_config(&server_profile(listen.ip(), address.ip()))?),
            router: api.router(),
        };
        let between = Side {
            tls: Arc::new(pki.peer_server_config(id)?),
            router: peer::router(api.clone(), store.clone(), removed.clone()),
        };
        tasks.spawn(serve::serve(listener, Sides { clients, peers: between }, stop.clone()));
        tasks.spawn(api.clone().remember());
        tasks.spawn(at_rest::keep(store.clone(), keyring, reports.clone(), stop.clone()));
        let leader = Leader {
            store: store.clone(),
            backups: config.backups,
            reports,
            api: api.clone(),
            pki: pki.clone(),
            members: reachable,
        };
        tasks.spawn(lead(store.clone(), leader, stop.clone()));
        tasks.spawn(api.clone().check_aggregated());
        let look = look_around(api.clone(), address, members, addresses, removed.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(look));
        let settle = settle(store.clone(), name.clone(), address);
        tasks.spawn(stop.clone().run_until_cancelled_owned(settle));
        let (elected, votes) = watch::channel(!joined);
        if joined {
            let ask = ask_for_vote(store.clone(), address, elected);
            tasks.spawn(stop.clone().run_until_cancelled_owned(ask));
        }
        tasks.close();
        write_admin_kubeconfig(data_dir, &pki, SocketAddr::new(listen.ip(), listen.port()))?;
        tracing::info!(member = name, id, %address, "answering");
        let name = config.name;
        Ok(Member {
            api,
            address,
            name,
            id,
            store,
            peers,
            votes,
            tasks,
            shutdown,
            removed,
            stop,
            alone,
        })
    }

    /// Waits until this member takes part in full: it has its vote, a leader is known, and a new
    /// cluster has its first objects.
    pub async fn serving(&self) {
        let mut votes = self.votes.clone();
        let mut leadership = self.store.leadership();
        // Both end with the member, and then nobody waits any more.
        let _ = votes.wait_for(|votes| *votes).await;
        let led = |leadership: &Leadership| *leadership != Leadership::Follower { leader: None };
        let _ = leadership.wait_for(led).await;
        while !self.api.is_furnished() {
            let next = self.store.current().revision() + 1;
            if !self.store.reached(next).await {
                return;
            }
        }
    }

    /// Waits until the member cannot go on: its store has stopped, or it is a member no more.
    pub async fn failed(&self) -> MemberError {
        tokio::select! {
            reason = self.store.stopped() => MemberError::Stopped(reason),
            () = self.removed.cancelled() => {
                MemberError::Removed { id: self.id, name: self.name.clone() }
            }
        }
    }

    /// Waits until the member was told to stop, or could not go on, and has stopped.
    pub async fn stopped(self) -> Result<(), MemberError> {
        let failed = tokio::select! {
            () = self.shutdown.cancelled() => None,
            failure = self.failed() => Some(failure),
        };
        if failed.is_none() {
            hand_over(&self.store).await;
        }
        self.stop.cancel();
        self.tasks.wait().await;
        self.api.stopped().await;
        if let Err(error) = self.store.shutdown().await {
            tracing::error!(%error, "store did not close cleanly");
        }
        self.alone.cancel();
        self.peers.stopped().await;
        failed.map_or(Ok(()), Err)
    }
}

/// A server on its way to become a member.
struct Newcomer<'a> {
    data_dir: &'a Path,
    name: &'a str,
    address: SocketAddr,
    encryption: &'a at_rest::Config,
}

impl Newcomer<'_> {
    /// Asks a member to be taken in, and keeps what it says before anything is done with it.
    async fn take_part(self, join: &Join) -> Result<(Identity, SocketAddr), MemberError> {
        let Newcomer { data_dir, name, address, encryption } = self;
        let (answer, address) = join::ask(join, name, address).await?;
        let not_hex = |_| JoinError::NotTaken {
            member: join.members.join(", "),
            why: format!("{:?} is not the id of a cluster", answer.cluster),
        };
        let cluster = u128::from_str_radix(&answer.cluster, 16).map_err(not_hex)?;
        Pki::adopt(&data_dir.join("pki"), &answer.authorities)?;
        if let Some(keyring) = &answer.keyring {
            encryption.adopt(data_dir, keyring)?;
        }
        let identity = Identity::new(cluster, answer.id, name, true);
        identity.keep(data_dir)?;
        tracing::info!(member = name, id = answer.id, "taken in");
        Ok((identity, address))
    }
}

/// Which store is opened.
struct ToOpen<'a> {
    data_dir: &'a Path,
    name: &'a str,
    id: MemberId,
    identity: Option<&'a Identity>,
    address: SocketAddr,
    window: Window,
}

async fn open(
    what: ToOpen<'_>,
    keyring: Arc<Keyring>,
    peers: &Peers,
) -> Result<Store, MemberError> {
    let ToOpen { data_dir, name, id, identity, address, window } = what;
    let engine = Engine::Rocks(data_dir.join(identity::STORE));
    let config = wherry_store::Config {
        name: name.to_owned(),
        cluster_id: identity.and_then(Identity::cluster),
        keys: Some(keyring),
        window,
        ..wherry_store::Config::new(engine, id, address.to_string())
    };
    let store = match identity {
        Some(Identity { joined: true, .. }) => Store::join(config, peers.transport()).await?,
        _ => Store::open_with(config, peers.transport()).await?,
    };
    Ok(store)
}

/// The address of this machine on its way to others.
fn outward() -> IpAddr {
    let found = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(ELSEWHERE)?;
        Ok(socket.local_addr()?.ip())
    };
    // A machine without a network is reached by itself only.
    found().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Keeps the list of members up to date, for the API server and for who looks for one. Sends away
/// who watches through a member that is not in touch with them, and ends one that was `removed`
/// while it was away.
async fn look_around(
    api: ApiServer,
    own: SocketAddr,
    members: watch::Sender<Vec<MemberStatus>>,
    addresses: watch::Sender<Vec<ApiMember>>,
    removed: CancellationToken,
) {
    let store = api.store();
    let mut in_touch = Instant::now();
    let mut seen: HashMap<MemberId, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let found = store.members().await;
        let now = Instant::now();
        let health = store.health();
        if health.serving {
            in_touch = now;
        }
        let alone = now.duration_since(in_touch) > AWAY_AFTER;
        if alone || health.quarantined.is_some() {
            api.end_watches();
        }
        if alone && health.removed {
            removed.cancel();
        }
        for member in found.iter().filter(|member| member.applied.is_some()) {
            seen.insert(member.id, now);
        }
        let is_seen = |id| seen.get(&id).is_some_and(|at| now.duration_since(*at) < AWAY_AFTER);
        let wanted = api_members(&found, (store.member_id(), own), is_seen);
        addresses.send_if_modified(|held| {
            let changed = !wanted.is_empty() && *held != wanted;
            if changed {
                *held = wanted;
            }
            changed
        });
        members.send_replace(found);
    }
}

/// Where clients find the API: every member that votes. The own address is known best.
fn api_members(
    members: &[MemberStatus],
    own: (MemberId, SocketAddr),
    is_seen: impl Fn(MemberId) -> bool,
) -> Vec<ApiMember> {
    let voters = members.iter().filter(|member| member.role != Role::Learner);
    let mut found: Vec<ApiMember> = voters
        .filter_map(|member| {
            let is_own = member.id == own.0;
            let address = if is_own { own.1 } else { member.address.parse().ok()? };
            let ready = is_own || is_seen(member.id) && member.quarantined.is_none();
            Some(ApiMember { address, ready })
        })
        .collect();
    found.sort_by_key(|member| member.address);
    found
}

/// Asks for the vote of a member that was taken in, until it has it.
async fn ask_for_vote(store: Store, address: SocketAddr, elected: watch::Sender<bool>) {
    let id = store.member_id();
    let mut unheard = Some(Instant::now());
    loop {
        let members = store.members().await;
        let own = members.iter().find(|member| member.id == id);
        if own.is_some_and(|own| own.role != Role::Learner) {
            elected.send_replace(true);
            return;
        }
        if own.is_some() {
            match store.promote(id).await {
                Ok(()) => continue,
                Err(error) => tracing::info!(%error, "no vote yet"),
            }
        } else if unheard.is_some_and(|since| since.elapsed() > AWAY_AFTER) {
            // The first entries have not come, so it is unknown to itself.
            unheard = None;
            tracing::warn!(
                %address,
                "no other member has spoken to this one yet: see whether they reach it at this \
                 address; if it is a wrong one, empty the data folder and join again with another \
                 --advertise"
            );
        }
        tokio::time::sleep(VOTE_PAUSE).await;
    }
}

/// Lets the cluster know where this member is, if it came back under another name or address.
async fn settle(store: Store, name: String, address: SocketAddr) {
    let address = address.to_string();
    let mut told = None;
    loop {
        match store.settle_at(&name, &address).await {
            Ok(()) => return,
            // Unknown to itself: the first entries have not come yet.
            Err(MembershipError::NoSuchMember { .. }) => {}
            Err(error) if told.as_ref() != Some(&error) => {
                tracing::info!(%error, address, "the cluster does not know this address yet");
                told = Some(error);
            }
            Err(_) => {}
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Gives the leadership to another member, if this one has it and there is another.
async fn hand_over(store: &Store) {
    let leads = matches!(*store.leadership().borrow(), Leadership::Leader { .. });
    if !leads {
        return;
    }
    match tokio::time::timeout(HAND_OVER_TIMEOUT, store.transfer(None)).await {
        Ok(Ok(to)) => tracing::info!(to, "leadership handed over"),
        Ok(Err(error)) => tracing::info!(%error, "leadership not handed over"),
        Err(_) => tracing::warn!("no successor took the leadership in time"),
    }
}

/// What the API server's own certificate says: every name under which clients find it.
fn server_profile(listen: IpAddr, advertise: IpAddr) -> Profile {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), API_SERVICE_ADDRESS];
    for address in [listen, advertise] {
        if !address.is_unspecified() && !addresses.contains(&address) {
            addresses.push(address);
        }
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

/// What the leader's work needs.
struct Leader {
    store: Store,
    backups: Option<Schedule>,
    reports: Arc<Reports>,
    api: ApiServer,
    pki: Arc<Pki>,
    members: watch::Receiver<Vec<ApiMember>>,
}

/// Runs controllers and scheduler while this member leads.
async fn lead(store: Store, leader: Leader, shutdown: CancellationToken) {
    let mut leadership = store.leadership();
    loop {
        let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
        let stop = shutdown.child_token();
        let work = TaskTracker::new();
        let alone = leader.members.borrow().len() < 2;
        let mut begins = leads;
        let mut calm =
            std::pin::pin!(tokio::time::sleep(if alone { Duration::ZERO } else { CALM }));
        let changed = loop {
            tokio::select! {
                changed = leadership.changed() => break changed.is_ok(),
                () = shutdown.cancelled() => break false,
                () = &mut calm, if begins => {
                    begins = false;
                    tracing::info!("leading: controllers and scheduler start");
                    let watch_every = if alone { Duration::ZERO } else { WATCH_EVERY };
                    start_leaders_work(&leader, watch_every, &work, &stop);
                }
            }
        };
        work.close();
        stop.cancel();
        work.wait().await;
        if !changed {
            return;
        }
    }
}

fn start_leaders_work(
    leader: &Leader,
    watch_every: Duration,
    work: &TaskTracker,
    stop: &CancellationToken,
) {
    // Its writes are not forwarded: once another member leads, they fail.
    let api = leader.api.leading();
    let client = |name: &str| {
        api.client_without_managers(User {
            name: name.to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            uid: String::new(),
            extra: BTreeMap::new(),
        })
    };
    let config = controllers::Config {
        pki: leader.pki.clone(),
        cluster_cidr: CLUSTER_CIDR.to_owned(),
        api_members: leader.members.clone(),
        watch_every,
    };
    let controllers = client("system:kube-controller-manager");
    work.spawn(controllers::run(controllers, config, stop.clone()));
    work.spawn(scheduler::run(client("system:kube-scheduler"), stop.clone()));
    if let Some(schedule) = leader.backups.clone() {
        let (store, reports) = (leader.store.clone(), leader.reports.clone());
        work.spawn(backup::run(store, schedule, reports, stop.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_voter_is_a_place_to_find_the_api() {
        let member = |id: u64, role, quarantined: Option<&str>| MemberStatus {
            id,
            name: format!("m{id}"),
            address: format!("10.0.0.{id}:6443"),
            role,
            applied: Some(9),
            hash: None,
            quarantined: quarantined.map(str::to_owned),
            disk_full: false,
        };
        let members = [
            member(4, Role::Voter, Some("its state differs")),
            member(3, Role::Learner, None),
            member(2, Role::Voter, None),
            member(1, Role::Leader, None),
            member(5, Role::Voter, None),
        ];
        let own = (1, "127.0.0.1:7000".parse().expect("an address"));
        let found = api_members(&members, own, |id| id != 5);
        let shown: Vec<String> =
            found.iter().map(|member| format!("{} {}", member.address, member.ready)).collect();
        let wanted = [
            "10.0.0.2:6443 true",
            "10.0.0.4:6443 false",
            "10.0.0.5:6443 false",
            "127.0.0.1:7000 true",
        ];
        assert_eq!(shown, wanted);
    }
}
