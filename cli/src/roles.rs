//! The roles by hand: `server`, `node`, and the two processes that a node starts.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{FromRawFd as _, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use wherry_control_plane::apiserver::{AuditPolicy, LogConfig, Network};
use wherry_control_plane::at_rest;
use wherry_control_plane::backup::{Destination, Schedule};
use wherry_control_plane::contain;
use wherry_control_plane::member::join::{Join, JoinError};
use wherry_control_plane::member::{self, IdentityError, Member, MemberError, Window};
use wherry_node::agent::AgentError;
use wherry_node::protocol::Tracing;
use wherry_resources::{names, node_labels};

use crate::diagnostic::{CODE_USELESS, Diagnostic};
use crate::folder;

/// Where a node answers DNS if nothing else is said: nobody's usual port, and not for strangers.
pub const DNS_ADDRESS: &str = "127.0.0.1:5300";
/// How long tasks may take to end once a role has stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct ServerFlags {
    /// Folder of this member's state
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of this member [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Address and port for clients, peers and node tunnels; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:6443",
        value_parser = parse_address)]
    listen: SocketAddr,
    /// Private network in which webhooks may be reached; may be repeated. By themselves users cannot
    /// make the server connect to loopback, link-local or private addresses
    #[arg(long = "webhook-network", value_name = "ADDRESS/PREFIX")]
    webhook_networks: Vec<Network>,
    /// Where nodes and other members reach this one [default: the address of --listen; if that is
    /// every address, the one of this host's way out]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    advertise: Option<SocketAddr>,
    /// Become a member of the cluster that this member belongs to; may be repeated. Counts only
    /// while the data folder is new
    #[arg(long, value_name = "URL", value_parser = parse_server)]
    join: Vec<String>,
    /// Token of `wherry token create --for member`, needed to join
    #[arg(long, env = "WHERRY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Keys of encryption at rest [default: pki/at-rest.keys in the data folder]
    #[arg(long, value_name = "FILE", help_heading = "Encryption at rest")]
    keyring: Option<PathBuf>,
    /// Encrypt every object on disk, not only Secrets and ConfigMaps
    #[arg(long, help_heading = "Encryption at rest")]
    encrypt_everything: bool,
    /// Changes that lists and watches may go back to; a client that is further behind is told to
    /// list again (410). A few minutes of a busy cluster
    #[arg(long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(100..=10_000_000),
        help_heading = "Window of past states")]
    window_revisions: u64,
    /// How old they may be: clients of Kubernetes expect a resourceVersion to be good for five
    /// minutes
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_age,
        help_heading = "Window of past states")]
    window_age: Duration,
    /// Memory that only past states need, in MiB: it bounds what large objects that change often
    /// cost
    #[arg(long, value_name = "MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=65_536),
        help_heading = "Window of past states")]
    window_memory: u64,
    /// Make backups by the clock: file:///FOLDER or s3://BUCKET/PREFIX (with the usual AWS_…
    /// variables); give it to every member, the one that leads makes them
    #[arg(long, value_name = "URL", help_heading = "Scheduled backups")]
    backup_to: Option<String>,
    /// Time between two backups
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = parse_interval,
        help_heading = "Scheduled backups")]
    backup_every: Duration,
    /// How many backups are kept; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 28,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Scheduled backups")]
    backup_keep: u32,
    /// What is written to the audit log: a Policy of audit.k8s.io/v1 [default: every change]
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// The audit log [default: audit/audit.log in the data folder]
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// Megabytes after which the audit log goes on in a new file
    #[arg(long, value_name = "MB", default_value_t = 100)]
    audit_log_maxsize: u64,
    /// Old audit logs that are kept
    #[arg(long, value_name = "N", default_value_t = 10)]
    audit_log_maxbackup: usize,
    /// Serve on this inherited listening socket instead
    #[arg(long, hide = true)]
    listen_fd: Option<RawFd>,
}

#[derive(clap::Args)]
pub struct NodeFlags {
    /// Folder of this node's state
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of this node [default: the host's name]
    #[arg(long, value_parser = parse_node_name)]
    name: Option<String>,
    /// URL of a control-plane member; may be repeated
    #[arg(long = "server", value_name = "URL", required = true, value_parser = parse_server)]
    servers: Vec<String>,
    /// Token of `wherry token create`, needed until the node has its own certificate
    #[arg(long, env = "WHERRY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Address of this machine on which the node serves NodePorts and other nodes' traffic; behind
    /// NAT, too: who does not reach it goes through the control plane
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1",
        value_parser = parse_node_address)]
    address: IpAddr,
    /// Label of the node, as KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Pods this node takes at most
    #[arg(long, value_name = "N", default_value_t = 12_000)]
    max_pods: u32,
    /// End the workers too when the agent is told to stop; without it they go on serving
    #[arg(long)]
    stop_workers_on_exit: bool,
    /// Ports at which this node takes HTTP and HTTPS for Ingresses and Gateways; bound when there is
    /// one
    #[arg(long, value_name = "HTTP,HTTPS", default_value = "80,443", value_parser = parse_ports)]
    ingress_ports: (u16, u16),
    /// Where this node answers DNS for names of the cluster, by UDP and TCP, for programs outside
    /// of Pods; while it is taken the node runs without
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DNS_ADDRESS,
        value_parser = parse_address)]
    dns_address: SocketAddr,
    /// Answer no DNS
    #[arg(long)]
    no_dns: bool,
    /// Collector that traces of requests are sent to, by OTLP over HTTP with JSON, as
    /// http://HOST:4318; without one there are none
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_parser = parse_collector)]
    otlp_endpoint: Option<Collector>,
    /// Headers for the collector
    #[arg(long, value_name = "NAME=VALUE,…", env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true, value_delimiter = ',', value_parser = parse_pair)]
    otlp_headers: Vec<(String, String)>,
    /// Part of the requests that come without a trace of their own, of which one is recorded
    #[arg(long, value_name = "0..1", default_value_t = 1.0, env = "OTEL_TRACES_SAMPLER_ARG")]
    otlp_ratio: f64,
    /// Run the built-in toolbox (a shell and small programs) for busybox, alpine, pause, agnhost and
    /// the like
    #[arg(long)]
    image_aliases: bool,
    /// Use of the disk, in percent, from which on unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// Use of the disk, in percent, down to which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
}

/// Two ports with a comma between.
pub fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let both = text.split_once(',').and_then(|(http, https)| port(http).zip(port(https)));
    both.filter(|(http, https)| http != https)
        .ok_or_else(|| format!("{text:?} is not two ports with a comma between, like 80,443"))
}

/// An address and a port, in numbers or of this machine.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    local.as_deref().unwrap_or(text).parse().map_err(|_| {
        "it is not an address and a port in numbers, like 127.0.0.1:6443 or [::1]:0".to_owned()
    })
}

/// The URL of a server. Nothing but https is spoken with one, so that it may be left out.
fn parse_server(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let parsed = url.parse::<http::Uri>().ok().filter(|url| {
        let has_host = url.host().is_some_and(|host| !host.is_empty());
        url.scheme_str() == Some("https") && has_host && matches!(url.path(), "" | "/")
    });
    match parsed {
        Some(_) => Ok(url),
        None => Err("it is not the URL of a server, like https://HOST:6443".to_owned()),
    }
}

/// An address that one machine has.
fn parse_node_address(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.filter(|address| !(address.is_unspecified() || address.is_multicast()));
    address.ok_or_else(|| "it is not the address of one machine, like 192.0.2.7".to_owned())
}

/// The name of a node, which is also the value of its label `kubernetes.io/hostname`.
fn parse_node_name(text: &str) -> Result<String, String> {
    let complaints = names::subdomain(text).into_iter().chain(names::label_value(text)).next();
    complaints.map_or_else(|| Ok(text.to_owned()), Err)
}

/// Where traces go. None: the variable is there and says nothing, as OpenTelemetry allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector(Option<String>);

fn parse_collector(text: &str) -> Result<Collector, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Collector(None));
    }
    let known = ["http", "https"];
    match text.parse::<http::Uri>() {
        Ok(url) if url.scheme_str().is_some_and(|it| known.contains(&it)) => {
            Ok(Collector(Some(text.to_owned())))
        }
        _ => Err(format!("{text:?} is not the address of a collector, like http://127.0.0.1:4318")),
    }
}

#[derive(clap::Args)]
pub struct WorkerFlags {
    /// Unix socket on which the agent speaks to this worker
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// File or folder that the worker must not see; may be repeated
    #[arg(long, value_name = "PATH")]
    hide: Vec<PathBuf>,
    /// Folder that the worker must not change; may be repeated
    #[arg(long, value_name = "DIR")]
    read_only: Vec<PathBuf>,
    /// User that the worker becomes
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
}

#[derive(clap::Args)]
pub struct CompileFlags {
    /// The Wasm file
    input: PathBuf,
    /// Where the compiled file goes
    output: PathBuf,
}

/// A minute at least: a backup of a large cluster takes seconds.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    match Duration::try_from(span) {
        Ok(interval) if interval >= Duration::from_secs(60) => Ok(interval),
        _ => Err("it must be a minute at least".to_owned()),
    }
}

/// A second at least: pages of one list are asked for one after the other.
fn parse_age(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    match Duration::try_from(span) {
        Ok(age) if age >= Duration::from_secs(1) => Ok(age),
        _ => Err("it must be a second at least".to_owned()),
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("want KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A label that the API takes from a node: with any other there would be no Node at all.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = parse_pair(text)?;
    match names::qualified(&key).into_iter().chain(names::label_value(&value)).next() {
        Some(complaint) => Err(complaint),
        None if node_labels::may_set(&key) => Ok((key, value)),
        None => Err(format!(
            "a node may not give itself {key}; an administrator may: kubectl label node NAME {text}"
        )),
    }
}

/// Runs a member of the control plane until it is told to stop.
pub fn server(flags: ServerFlags) -> Result<(), Diagnostic> {
    let data_dir = folder::prepare(&flags.data_dir)?;
    if !data_dir.join(member::MEMBER_FILE).exists() {
        folder::has_room(&data_dir)?;
    }
    let listener = match flags.listen_fd {
        // SAFETY: the flag is set by `wherry dev` alone, which passes a socket it owns to this
        // process.
        Some(fd) => unsafe { TcpListener::from_raw_fd(fd) },
        None => bind(flags.listen)?,
    };
    let audit = audit(&flags, &data_dir)?;
    let name = flags.name.map_or_else(host_name, Ok)?;
    // Whether a token is needed shows only when the data folder is known to be new.
    let (members, token) = (flags.join, flags.token.unwrap_or_default());
    let join = (!members.is_empty()).then_some(Join { members, token });
    let advertise = flags.advertise;
    let window = Window {
        revisions: usize::try_from(flags.window_revisions).expect("the flag has a bound"),
        age: flags.window_age,
        bytes: flags.window_memory << 20,
    };
    let encryption =
        at_rest::Config { keyring: flags.keyring, everything: flags.encrypt_everything };
    let backups = schedule(flags.backup_to, flags.backup_every, flags.backup_keep)?;
    let config = member::Config {
        name,
        data_dir: data_dir.clone(),
        encryption,
        window,
        backups,
        listener,
        advertise,
        join,
        audit,
    };
    abort_on_panic();
    let runtime = Runtime::new().map_err(no_runtime)?;
    let result = runtime.block_on(async {
        let shutdown = shutdown_on_signal()?;
        let starting = Member::start(config, shutdown.clone());
        let started = tokio::select! {
            started = starting => started,
            // It may have been waiting to be taken in.
            () = shutdown.cancelled() => return Ok(()),
        };
        let member = started.map_err(|error| server_failed(error, &data_dir))?;
        member.api.let_webhooks_reach(&flags.webhook_networks);
        let (name, id, url) =
            (member.name.clone(), member.id, format!("https://{}", member.address));
        tokio::select! {
            () = member.serving() => {
                let kubeconfig = folder::quoted(&data_dir.join("admin.kubeconfig"));
                let said = format!(
                    "member {name} (id {id}) serves at {url}\n  export KUBECONFIG={kubeconfig}\n  \
                     wherry token create\n"
                );
                // Nobody may listen to a member that was started in the background.
                let _ = std::io::stdout().write_all(said.as_bytes());
            }
            () = shutdown.cancelled() => {}
            _ = member.failed() => {}
        }
        member.stopped().await.map_err(|error| server_failed(error, &data_dir))
    });
    runtime.shutdown_timeout(STOP_TIMEOUT);
    result
}

/// A member whose state machine has panicked would go on sending heartbeats and never apply
/// anything again. So a panic in it ends the process, but for those of one request or object
/// (`contain`); who supervises it starts it again.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if contain::ends_the_process(panic) {
            tracing::error!(%panic, "a panic ends this process");
            std::process::abort();
        }
        tracing::error!(%panic, "a panic that ends no more than one request, or one object's turn");
    }));
}

/// When and where to backups are made, if that was asked for.
fn schedule(
    to: Option<String>,
    every: Duration,
    keep: u32,
) -> Result<Option<Schedule>, Diagnostic> {
    let Some(to) = to else {
        return Ok(None);
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let to = Destination::parse(&to, environment).map_err(|error| {
        Diagnostic::new("WH0044", "backups cannot be put there")
            .why(error)
            .help("a folder:   --backup-to file:///var/backups/wherry")
            .help("a bucket:   --backup-to s3://BUCKET/PREFIX, with AWS_… in the environment")
    })?;
    Ok(Some(Schedule { to, every, keep: keep as usize }))
}

fn audit(flags: &ServerFlags, data_dir: &std::path::Path) -> Result<LogConfig, Diagnostic> {
    let policy = match &flags.audit_policy_file {
        None => AuditPolicy::standard(),
        Some(path) => {
            let shown = path.display();
            let unusable = |error: Box<dyn std::error::Error>| {
                Diagnostic::usage(format!("the audit policy {shown} cannot be used"))
                    .why(error)
                    .help("name a Policy of audit.k8s.io/v1 with --audit-policy-file FILE")
            };
            let text = std::fs::read_to_string(path).map_err(|error| unusable(error.into()))?;
            AuditPolicy::parse(&text).map_err(|error| unusable(error.into()))?
        }
    };
    let path = flags.audit_log_path.clone();
    Ok(LogConfig {
        path: path.unwrap_or_else(|| data_dir.join("audit").join("audit.log")),
        policy,
        bytes_max: flags.audit_log_maxsize.saturating_mul(1 << 20),
        files_max: flags.audit_log_maxbackup,
    })
}

fn server_failed(error: MemberError, data_dir: &std::path::Path) -> Diagnostic {
    let is_useless = error.is_of_useless_data();
    let mut diagnostic = failure(error, data_dir);
    if is_useless {
        diagnostic.exit_code = CODE_USELESS;
    }
    diagnostic
}

fn failure(error: MemberError, data_dir: &std::path::Path) -> Diagnostic {
    let shown = data_dir.display().to_string();
    let headline = format!("the server cannot start on {shown}");
    let pki = folder::quoted(&data_dir.join("pki"));
    let restore = format!(
        "if there was no other:   wherry backup restore FILE --data-dir NEW-DIR --pki {pki}"
    );
    let help = match &error {
        MemberError::Pki(_) | MemberError::TokenKey(_) => format!("check the files in {shown}/pki"),
        MemberError::Keyring(_) => {
            "name the cluster's keyring with --keyring FILE, or mend that file".to_owned()
        }
        MemberError::Store(_) | MemberError::Identity(IdentityError::Store(_)) => {
            format!("the state is in {shown}/store; nothing was changed")
        }
        MemberError::Audit(_) => "choose another file with --audit-log-path FILE".to_owned(),
        MemberError::Folder { .. } => "choose another folder with --data-dir DIR".to_owned(),
        MemberError::Listen(_) => "choose another address with --listen".to_owned(),
        MemberError::Identity(IdentityError::Lost { name, .. }) => {
            let remove = format!("wherry member remove {name}");
            return Diagnostic::new("WH0011", headline)
                .why(error)
                .help(format!("on another member, then join from an empty folder:   {remove}"))
                .help(restore);
        }
        MemberError::Identity(_) => format!("see {shown}/member.json; nothing was changed"),
        MemberError::Join(join) => {
            let help = match join {
                JoinError::NotTaken { .. } => "look at the members:   wherry member list",
                JoinError::NoAnswer(_) | JoinError::Url(_) => {
                    "see whether a member runs where --join says, and is reached from here"
                }
                JoinError::NoToken
                | JoinError::Token
                | JoinError::WrongCa(_)
                | JoinError::Refused(_) => {
                    "make a new token on a member:   wherry token create --for member"
                }
            };
            return Diagnostic::new("WH0017", "this server cannot join the cluster")
                .why(error)
                .help(help);
        }
        MemberError::Removed { .. } => {
            return Diagnostic::new("WH0019", "this server is a member no more")
                .why(error)
                .help(format!("to let it join again, empty {shown} and start it with --join"));
        }
        MemberError::Stopped(_) if error.is_of_useless_data() => {
            let join = format!(
                "do not start it again on this data: keep a copy of {shown}, remove the member on \
                 another one (wherry member remove), empty the folder and start it with --join"
            );
            return Diagnostic::new("WH0018", "this member cannot go on")
                .why(error)
                .help(join)
                .help(restore);
        }
        MemberError::Stopped(_) => {
            return Diagnostic::new("WH0018", "this member cannot go on")
                .why(error)
                .help("start it again; everything that was answered is on disk");
        }
    };
    Diagnostic::new("WH0011", headline).why(error).help(help)
}

/// Binds a listening socket, or says why not.
pub fn bind(address: SocketAddr) -> Result<TcpListener, Diagnostic> {
    TcpListener::bind(address).map_err(|error| {
        let free = SocketAddr::new(address.ip(), 0);
        let free = format!("let wherry pick a free port:   --listen {free}");
        let (headline, help) = match error.kind() {
            ErrorKind::AddrInUse => (format!("{address} is in use by another program"), free),
            ErrorKind::AddrNotAvailable => {
                let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
                let help = format!("take an address of this machine:   --listen {own}");
                (format!("cannot listen on {address}"), help)
            }
            _ => (format!("cannot listen on {address}"), free),
        };
        Diagnostic::new("WH0003", headline).why(error).help(help)
    })
}

/// Runs an agent until it is told to stop.
pub fn node(flags: NodeFlags) -> Result<(), Diagnostic> {
    let name = flags.name.map_or_else(own_name, Ok)?;
    let data_dir = folder::prepare(&flags.data_dir)?;
    let config = wherry_node::agent::Config {
        name,
        data_dir,
        servers: flags.servers,
        token: flags.token,
        address: flags.address,
        labels: flags.labels.into_iter().collect(),
        max_pods: flags.max_pods,
        stop_workers_on_exit: flags.stop_workers_on_exit,
        ingress_ports: flags.ingress_ports,
        dns_address: Some(flags.dns_address).filter(|_| !flags.no_dns),
        image_aliases: flags.image_aliases,
        image_thresholds: wherry_node::agent::Thresholds {
            high: flags.image_gc_high_threshold,
            low: flags.image_gc_low_threshold.min(flags.image_gc_high_threshold),
        },
        tracing: flags.otlp_endpoint.and_then(|Collector(url)| url).map(|endpoint| Tracing {
            endpoint,
            headers: flags.otlp_headers,
            ratio: flags.otlp_ratio.clamp(0.0, 1.0),
        }),
        joined: CancellationToken::new(),
    };
    let (name, servers) = (config.name.clone(), config.servers.join(", "));
    let (joined, goes_on) = (config.joined.clone(), !config.stop_workers_on_exit);
    let runtime = Runtime::new().map_err(no_runtime)?;
    let result = runtime.block_on(async {
        let shutdown = shutdown_on_signal()?;
        let told = joined.clone();
        tokio::spawn(async move {
            told.cancelled().await;
            let _ = writeln!(std::io::stdout(), "node {name} belongs to {servers}");
        });
        wherry_node::agent::run(config, shutdown).await.map_err(node_failed)
    });
    runtime.shutdown_timeout(STOP_TIMEOUT);
    if result.is_ok() && goes_on && joined.is_cancelled() {
        let said = "its Pods go on without it; with --stop-workers-on-exit they end, too";
        let _ = writeln!(std::io::stderr(), "stopped: {said}");
    }
    result
}

fn node_failed(error: AgentError) -> Diagnostic {
    let help = match &error {
        AgentError::DataDir { .. } | AgentError::InUse(_) => {
            Some("give each node a folder of its own:   --data-dir DIR")
        }
        AgentError::Address { .. } => {
            Some("name an address that this machine has, behind NAT too:   --address ADDRESS")
        }
        error if error.wants_token() => {
            Some("make a new token where the server runs:   wherry token create")
        }
        _ => None,
    };
    let diagnostic = Diagnostic::new("WH0012", "the node cannot run").why(error);
    help.into_iter().fold(diagnostic, Diagnostic::help)
}

pub fn worker(flags: WorkerFlags) -> Result<(), Diagnostic> {
    let walls = wherry_node::worker::Walls { hidden: flags.hide, read_only: flags.read_only };
    let (socket, user) = (flags.socket, flags.user);
    let flags = wherry_node::worker::Flags { socket, walls, user };
    wherry_node::worker::main(flags)
        .map_err(|error| Diagnostic::new("WH0013", "the worker cannot run").why(error))
}

/// The report goes to stdout, whatever it says.
pub fn compile(flags: CompileFlags) -> ExitCode {
    wherry_node::compile::main(&flags.input, &flags.output)
}

/// A runtime for verbs and the supervisor: one thread is plenty, and child processes that shall die
/// with their parent need the thread that started them to live on.
pub fn small_runtime() -> Result<Runtime, Diagnostic> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)
}

fn no_runtime(error: std::io::Error) -> Diagnostic {
    Diagnostic::new("WH0014", "cannot start threads").why(error).help("check `ulimit -a`")
}

/// A token that is cancelled by the first Ctrl-C or SIGTERM, or when the terminal is closed.
pub fn shutdown_on_signal() -> Result<CancellationToken, Diagnostic> {
    let failed = |error| Diagnostic::new("WH0014", "cannot handle signals").why(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hangup = match ignores_hangup(&status) {
        true => None,
        false => Some(signal(SignalKind::hangup()).map_err(failed)?),
    };
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        let closed = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = closed => {}
        }
        cancelled.cancel();
    });
    Ok(shutdown)
}

/// Whether a process with this `/proc/PID/status` is to outlive its terminal, as by `nohup`.
fn ignores_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is signal 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// The name of this host as that of a node.
fn own_name() -> Result<String, Diagnostic> {
    let name = host_name()?;
    parse_node_name(&name).map_err(|why| {
        Diagnostic::usage(format!("this host's name {name:?} cannot be that of a node"))
            .why(why)
            .help("give one with --name NAME")
    })
}

pub fn host_name() -> Result<String, Diagnostic> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = Some(name.trim().to_lowercase()).filter(|name| !name.is_empty());
    name.ok_or_else(|| {
        Diagnostic::usage("this host has no usable name").help("give one with --name NAME")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_or_this_machine() {
        let parsed = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(parsed("localhost:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(parsed("[::1]:6443").as_deref(), Ok("[::1]:6443"));
        let wrong = ["6443", "127.0.0.1", "example.com:6443", "localhost", "localhost:x"];
        assert!(wrong.iter().all(|text| parse_address(text).is_err()));
    }

    #[test]
    fn servers_are_reached_by_https() {
        assert_eq!(parse_server("https://a:6443").as_deref(), Ok("https://a:6443"));
        assert_eq!(parse_server("https://a:6443/").as_deref(), Ok("https://a:6443/"));
        assert_eq!(parse_server("10.0.0.1:6443").as_deref(), Ok("https://10.0.0.1:6443"));
        let wrong = ["http://a:6443", "https://", "https://a/path", "a b", ""];
        assert!(wrong.iter().all(|text| parse_server(text).is_err()));
    }

    #[test]
    fn a_node_is_named_and_labelled_as_the_api_takes_it() {
        assert_eq!(parse_node_name("edge-1.example").as_deref(), Ok("edge-1.example"));
        let long = "a".repeat(64);
        assert!([&*long, "Edge", "edge_1", ""].iter().all(|name| parse_node_name(name).is_err()));
        let label = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_label("example.com/zone=a"), label("example.com/zone", "a"));
        assert_eq!(parse_label("dry="), label("dry", ""));
        assert!(
            ["zone", "=a", "zone=a/b", "a/b/c=d"].iter().all(|text| parse_label(text).is_err())
        );
        assert_eq!(
            parse_label("node-role.kubernetes.io/edge="),
            Err("a node may not give itself node-role.kubernetes.io/edge; an administrator may: \
                 kubectl label node NAME node-role.kubernetes.io/edge="
                .to_owned())
        );
    }

    #[test]
    fn a_failure_names_what_helps() {
        let foreign = SocketAddr::from(([192, 0, 2, 1], 6443));
        let foreign = bind(foreign).map(|_| ()).expect_err("nobody's address").to_string();
        assert!(
            foreign.starts_with("error[WH0003]: cannot listen on 192.0.2.1:6443\n"),
            "{foreign}"
        );
        assert!(foreign.ends_with("this machine:   --listen 127.0.0.1:6443"), "{foreign}");
        let in_use = node_failed(AgentError::InUse("/data".into())).to_string();
        assert!(in_use.ends_with("folder of its own:   --data-dir DIR"), "{in_use}");
        let elsewhere = parse_node_address("192.0.2.1").expect("somebody's address");
        let source = TcpListener::bind((elsewhere, 0)).map(|_| ()).expect_err("nobody's address");
        let elsewhere = node_failed(AgentError::Address { address: elsewhere, source }).to_string();
        assert!(elsewhere.contains("\nwhy:  listen on 192.0.2.1, where others"), "{elsewhere}");
        assert!(elsewhere.ends_with("behind NAT too:   --address ADDRESS"), "{elsewhere}");
        assert!(
            ["0.0.0.0", "::", "224.0.0.1", "edge"].iter().all(|it| parse_node_address(it).is_err())
        );
        assert!(!node_failed(AgentError::NoServer).to_string().contains("help:"));
    }

    #[test]
    fn a_member_without_its_data_joins_anew_or_is_restored() {
        let (name, store) = ("m1".to_owned(), PathBuf::from("/data/store"));
        let error = MemberError::Identity(IdentityError::Lost { id: 7, name, store });
        expect_test::expect![[r#"
            error[WH0011]: the server cannot start on /data
            why:  the data of member "m1" (id 7) is gone from /data/store; a member that lost its data must not come back under its old id
            help: on another member, then join from an empty folder:   wherry member remove m1
              or: if there was no other:   wherry backup restore FILE --data-dir NEW-DIR --pki /data/pki"#]]
        .assert_eq(&server_failed(error, std::path::Path::new("/data")).to_string());
    }

    #[test]
    fn data_that_cannot_be_used_again_has_a_code_of_its_own() {
        let code = |error| server_failed(error, std::path::Path::new("/data")).exit_code;
        let path = PathBuf::from("/data/store");
        let lost = IdentityError::Lost { id: 7, name: "m1".to_owned(), store: path.clone() };
        assert_eq!(code(MemberError::Identity(lost)), CODE_USELESS);
        let stopped = |why: &str| MemberError::Stopped(why.to_owned());
        assert_eq!(code(stopped("entry 4 is damaged on disk: its checksum")), CODE_USELESS);
        assert_eq!(code(stopped("a write failed")), 1);
        let source = std::io::Error::other("read-only");
        assert_eq!(code(MemberError::Folder { path, source }), 1);
    }

    #[test]
    fn what_nohup_starts_outlives_its_terminal() {
        let status =
            |mask: &str| format!("Name:\twherry\nSigIgn:\t{mask}\nSigCgt:\t0000000000000001\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(""));
    }

    #[test]
    fn two_ports_are_two() {
        assert_eq!(parse_ports("80, 443"), Ok((80, 443)));
        assert!(["80", "80,80", "0,443", "80,x"].iter().all(|text| parse_ports(text).is_err()));
    }
}
