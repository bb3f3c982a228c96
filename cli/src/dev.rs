//! `wherry dev`: a whole cluster on loopback with one command, no root and no container engine.
//!
//! This process is a supervisor. It binds the port, so that a used one is found before anything
//! starts, and starts the same children that a person would: one `wherry server`, which inherits
//! the socket (or several, see `servers`), and `wherry node` for each node, on 127.0.0.1, 127.0.0.2
//! and so on. A child that dies is started again; the kernel ends the children if the supervisor is
//! killed. Workers outlive a killed agent, and are found again by the next.
//!
//! ```text
//! DIR/kubeconfig            admin's, written when the API answers
//! DIR/server/…              the member's data folder          DIR/logs/server.log
//! DIR/nodes/node-1/…        each node's data folder           DIR/logs/node-1.log
//! ```

mod servers;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Connection};
use crate::diagnostic::{CODE_USELESS, Diagnostic};
use crate::token::{self, Joins};
use crate::{folder, images, roles};
use servers::Listeners;

/// A cluster that is not usable by then will not be: compiled images are not waited for.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at something that is about to be ready.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Children get this long to end by themselves.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// A child that dies again and again is started again after this, doubled up to the second.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A child that ran this long starts with the shortest delay again.
const RESTART_DELAY_RESET: Duration = Duration::from_secs(30);
/// Nodes listen on 127.0.0.1, 127.0.0.2 and so on, so the last octet bounds their number.
const NODES_MAX: u8 = 250;
/// More members make writes slower and nothing safer.
const MEMBERS_MAX: u8 = 5;
/// The join token of a start is used within seconds.
const TOKEN_TTL: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub struct Flags {
    /// Folder of the cluster's state [default: wherry/dev in the user's data folder]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data_dir: Option<PathBuf>,
    /// Keep nothing: use a temporary folder and remove it at the end
    #[arg(long)]
    ephemeral: bool,
    /// Address and port of the API; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443",
          value_parser = crate::roles::parse_address)]
    listen: SocketAddr,
    /// How many members of the control plane to start; never fewer than were there before
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MEMBERS_MAX)))]
    members: u8,
    /// How many nodes to start
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Address of the first node's NodePorts; further nodes count up from it
    #[arg(long, value_name = "ADDRESS", default_value_t = Ipv4Addr::LOCALHOST)]
    node_address: Ipv4Addr,
    /// Ports at which nodes take HTTP and HTTPS for Ingresses and Gateways
    #[arg(long, value_name = "HTTP,HTTPS", default_value = "80,443",
          value_parser = crate::roles::parse_ports)]
    ingress_ports: (u16, u16),
    /// Where the first node answers DNS for names of the cluster; further nodes count up from it
    #[arg(long, value_name = "ADDRESS:PORT", default_value = crate::roles::DNS_ADDRESS)]
    dns_address: SocketAddrV4,
    /// Folder whose NAME.wasm files become the images NAME:dev
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Do not run the built-in toolbox for busybox, alpine, pause, agnhost and the like
    #[arg(long)]
    no_image_aliases: bool,
}

pub fn main(flags: Flags) -> Result<(), Diagnostic> {
    let begun = Instant::now();
    let temporary = match flags.ephemeral {
        true => Some(tempfile::tempdir().map_err(|error| {
            Diagnostic::new("WH0005", "cannot make a temporary folder")
                .why(error)
                .help("set TMPDIR to a folder that can be written to")
        })?),
        false => None,
    };
    let named = temporary.as_ref().map(|folder| folder.path().to_owned());
    let named = named.or_else(|| flags.data_dir.clone());
    let data_dir = folder::prepare(&named.unwrap_or_else(api::default_data_dir))?;
    // Also where there was a cluster: without updates no node becomes Ready.
    folder::has_room(&data_dir)?;
    let _lock = folder::lock(&data_dir)?;
    if let Some(images) = &flags.images
        && !images.is_dir()
    {
        return Err(Diagnostic::usage(format!("--images {}: no such folder", images.display()))
            .help("build the sample apps first:   make apps"));
    }
    let node_addresses = node_addresses(flags.node_address, flags.nodes)?;
    let listeners = servers::listeners(&data_dir, flags.listen, flags.members)?;
    let ready = CancellationToken::new();
    let cluster = Cluster { data_dir, listeners, node_addresses, flags, begun, ready };
    // One thread: a child's parent-death signal is tied to the thread that started it.
    roles::small_runtime()?.block_on(run(cluster))
}

/// What this start runs.
struct Cluster {
    data_dir: PathBuf,
    listeners: Listeners,
    node_addresses: Vec<Ipv4Addr>,
    flags: Flags,
    begun: Instant,
    /// Cancelled when the cluster is usable: from then on a child that ends is started again,
    /// whatever it said.
    ready: CancellationToken,
}

async fn run(cluster: Cluster) -> Result<(), Diagnostic> {
    let shutdown = roles::shutdown_on_signal()?;
    // Nodes stop first, while the API still takes their last status.
    let (stop_nodes, stop_server) = (CancellationToken::new(), CancellationToken::new());
    let mut nodes = JoinSet::new();
    let mut server = JoinSet::new();
    let mut outcome = tokio::select! {
        started = start(&cluster, &mut server, &mut nodes, &stop_server, &stop_nodes) => started,
        () = shutdown.cancelled() => Ok(()),
    };
    if outcome.is_ok() {
        outcome = stay(&mut server, &mut nodes, &shutdown).await;
    }
    if outcome.is_ok() {
        say("stopping");
    }
    stop_nodes.cancel();
    while nodes.join_next().await.is_some() {}
    stop_server.cancel();
    while server.join_next().await.is_some() {}
    outcome
}

/// Waits until the cluster shall end, or has no member any more; tells of children that are not
/// started again.
async fn stay(
    server: &mut JoinSet<End>,
    nodes: &mut JoinSet<End>,
    shutdown: &CancellationToken,
) -> Result<(), Diagnostic> {
    loop {
        let end = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(Ok(end)) = server.join_next() => end,
            Some(Ok(end)) = nodes.join_next() => end,
        };
        if server.is_empty() {
            return Err(end.why);
        }
        say(&end.why.to_string());
    }
}

/// Tells whoever sits before the terminal, which may be gone.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

async fn start(
    cluster: &Cluster,
    server: &mut JoinSet<End>,
    nodes: &mut JoinSet<End>,
    stop_server: &CancellationToken,
    stop_nodes: &CancellationToken,
) -> Result<(), Diagnostic> {
    let since = Timestamp::now();
    let ready = async {
        let connection = servers::start(cluster, server, stop_server).await?;
        start_nodes(cluster, &connection, nodes, stop_nodes).await?;
        let images = match &cluster.flags.images {
            Some(folder) => images::push_folder(&connection.client, folder).await?,
            None => Vec::new(),
        };
        let ready = wait_for_nodes(&connection, usize::from(cluster.flags.nodes), since);
        tokio::select! {
            ready = ready => ready?,
            Some(Ok(end)) = nodes.join_next() => return Err(end.why),
        }
        cluster.ready.cancel();
        announce(cluster, &connection, &images);
        tell_of_others(cluster, &connection).await;
        Ok(())
    };
    tokio::time::timeout(START_TIMEOUT, ready).await.unwrap_or_else(|_| {
        let logs = cluster.data_dir.join("logs");
        let limit = START_TIMEOUT.as_secs();
        Err(Diagnostic::new("WH0015", format!("the cluster did not become ready within {limit} s"))
            .why("the API does not answer, or not every node is Ready")
            .help(format!("read the logs in {}", logs.display())))
    })
}

async fn start_nodes(
    cluster: &Cluster,
    connection: &Connection,
    nodes: &mut JoinSet<End>,
    stop: &CancellationToken,
) -> Result<(), Diagnostic> {
    let token = token::create(connection, Joins::Node, TOKEN_TTL).await?;
    let servers = servers::urls(cluster, connection);
    let servers: Vec<String> = servers.iter().map(|url| format!("--server={url}")).collect();
    let (http, https) = cluster.flags.ingress_ports;
    for (index, address) in (1..).zip(&cluster.node_addresses) {
        let name = format!("node-{index}");
        let data_dir = folder::prepare(&cluster.data_dir.join("nodes").join(&name))?;
        let mut arguments = vec![
            "node".into(),
            format!("--name={name}"),
            format!("--data-dir={}", data_dir.display()),
            format!("--address={address}"),
            format!("--ingress-ports={http},{https}"),
            format!("--dns-address={}", nth_address(cluster.flags.dns_address, index)),
            "--stop-workers-on-exit".into(),
        ];
        if !cluster.flags.no_image_aliases {
            arguments.push("--image-aliases".into());
        }
        arguments.extend(servers.iter().cloned());
        let role = Role {
            log_file: cluster.data_dir.join(format!("logs/{name}.log")),
            arguments,
            name,
            inherit: None,
            token: Some(token.clone()),
            optional: false,
        };
        nodes.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
    }
    Ok(())
}

/// Waits until every node is Ready by a heartbeat of this start.
async fn wait_for_nodes(
    connection: &Connection,
    count: usize,
    since: Timestamp,
) -> Result<(), Diagnostic> {
    let nodes: Api<Node> = Api::all(connection.client.clone());
    let leases: Api<Lease> = Api::namespaced(connection.client.clone(), "kube-node-lease");
    loop {
        let all = ListParams::default();
        if let (Ok(nodes), Ok(leases)) = (nodes.list(&all).await, leases.list(&all).await) {
            let alive = |node: &&Node| is_ready(node) && has_lease(node, &leases.items, since);
            if nodes.items.iter().filter(alive).count() >= count {
                return Ok(());
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn has_lease(node: &Node, leases: &[Lease], since: Timestamp) -> bool {
    let lease = leases.iter().find(|lease| lease.metadata.name == node.metadata.name);
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
    renewed.is_some_and(|time| time.0 >= since)
}

fn announce(cluster: &Cluster, connection: &Connection, images: &[String]) {
    let seconds = cluster.begun.elapsed().as_secs_f64();
    let kubeconfig = cluster.data_dir.join("kubeconfig");
    let nodes = match cluster.flags.nodes {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    let url = connection.url.trim_end_matches('/');
    let members = match &cluster.listeners {
        Listeners::Inherited(_) => String::new(),
        Listeners::Own(addresses) => format!("{} members, ", addresses.len()),
    };
    let mut text = format!("wherry is ready in {seconds:.1} s: {url}, {members}{nodes} Ready\n");
    let kubeconfig = folder::quoted(&kubeconfig);
    text.push_str(&format!("  export KUBECONFIG={kubeconfig}\n  kubectl get nodes\n"));
    if images.iter().any(|name| name == "hello-http") {
        text.push_str("  kubectl apply -f sample-apps/hello-http/app.yaml\n");
    }
    text.push_str("  wherry ui\n");
    // Who waited for the first line may be gone after it; the cluster stays.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Tells of nodes that an earlier start ran and this one does not: they stay in the cluster, and
/// Pods that end on them stay `Terminating`, until somebody starts or deletes them.
async fn tell_of_others(cluster: &Cluster, connection: &Connection) {
    let nodes: Api<Node> = Api::all(connection.client.clone());
    let Ok(nodes) = nodes.list(&ListParams::default()).await else { return };
    let names: Vec<String> = nodes.items.into_iter().filter_map(|it| it.metadata.name).collect();
    if let Some(text) = others(&names, cluster.flags.nodes) {
        say(&text);
    }
}

/// The sentence on those of `nodes` that are beyond the `started` ones.
fn others(nodes: &[String], started: u8) -> Option<String> {
    let number = |name: &str| name.strip_prefix("node-")?.parse::<u8>().ok();
    let mut others: Vec<u8> = nodes.iter().filter_map(|name| number(name)).collect();
    others.retain(|number| *number > started);
    others.sort_unstable();
    let most = others.last()?;
    let names: Vec<String> = others.iter().map(|number| format!("node-{number}")).collect();
    let names = names.join(" ");
    Some(format!(
        "not started, but there from before: {names}; start them with --nodes {most}, or forget \
         them:   kubectl delete node {names}"
    ))
}

/// One child process.
struct Role {
    name: String,
    log_file: PathBuf,
    arguments: Vec<String>,
    /// A socket that the child keeps open.
    inherit: Option<RawFd>,
    token: Option<String>,
    /// The cluster can start without it: it is started again if it ends at its start.
    optional: bool,
}

/// Why a child is not started again.
struct End {
    /// The role's name.
    name: String,
    /// Its data cannot be used again.
    is_useless: bool,
    why: Diagnostic,
}

/// Keeps a child running until `stop`. Returns before that only when the child cannot be started,
/// its data are useless, or it ends by itself before the cluster was `ready` (it has then said why
/// on stderr).
async fn supervise(role: Role, ready: CancellationToken, stop: CancellationToken) -> End {
    let mut delay = RESTART_DELAY_MIN;
    let mut told = BTreeSet::new();
    let end = |why| End { name: role.name.clone(), is_useless: false, why };
    loop {
        let begun = Instant::now();
        let mut child = match spawn(&role) {
            Ok(child) => child,
            Err(error) => {
                let headline = format!("cannot start the {} process", role.name);
                let diagnostic = Diagnostic::new("WH0016", headline).why(error);
                return end(diagnostic.help("see whether this machine can start more:   ulimit -a"));
            }
        };
        let status = tokio::select! {
            status = child.wait() => status,
            () = stop.cancelled() => {
                stop_child(&mut child).await;
                return end(stopped(&role));
            }
        };
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let is_useless = code == Some(i32::from(CODE_USELESS));
        if code.is_some() && !ready.is_cancelled() && (is_useless || !role.optional) {
            return End { is_useless, ..end(refusal(&role, &status)) };
        }
        if is_useless {
            return End { is_useless, ..end(given_up(&role, &status)) };
        }
        tracing::info!(child = role.name, status, "child ended; starting it again");
        if begun.elapsed() > RESTART_DELAY_RESET {
            delay = RESTART_DELAY_MIN;
            told.clear();
        }
        let text = started_again(&role, &status);
        if told.insert(status) {
            say(&text);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = stop.cancelled() => return end(stopped(&role)),
        }
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}

fn stopped(role: &Role) -> Diagnostic {
    Diagnostic::new("WH0016", format!("{} was stopped", role.name))
}

fn refusal(role: &Role, status: &str) -> Diagnostic {
    Diagnostic::new("WH0016", format!("{} ended at its start ({status})", role.name))
        .why("the lines above are what it said")
        .help(format!("its log is {}", role.log_file.display()))
}

/// One whose data turn out to be useless while the cluster runs.
fn given_up(role: &Role, status: &str) -> Diagnostic {
    let headline = format!("{} ended ({status}) and is not started again", role.name);
    Diagnostic::new("WH0016", headline)
        .why("its data cannot be used any more; the lines above are what it said")
        .help(
            "where there are other members, stop `wherry dev` and start it again: they replace it",
        )
        .help(format!("its log is {}", role.log_file.display()))
}

/// What is said of a child that ended, once for each way in which it does.
fn started_again(role: &Role, status: &str) -> String {
    let (name, log) = (&role.name, role.log_file.display());
    let mut text = format!("{name} ended ({status}) and is started again; its log is {log}");
    if role.optional {
        text.push_str(&format!(
            "\n  the other members go on without it; if it does not come back, stop `wherry dev`,\
             \n  move the folder {name} away and start again: it then joins anew"
        ));
    }
    text
}

fn spawn(role: &Role) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(format!("--log-file={}", role.log_file.display())).args(&role.arguments);
    // What a server says when it serves is for whoever started it by hand.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // The token goes by the environment: a command line can be read by everybody on the machine.
    if let Some(token) = &role.token {
        command.env("WHERRY_TOKEN", token);
    }
    let inherit = role.inherit;
    // Ctrl-C reaches the whole process group; the children wait for the supervisor's word instead.
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is
    // allocated.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            if let Some(fd) = inherit {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    command.spawn()
}

/// The address of each node, counted up from the first one's. NodePorts are opened there, so each
/// must be one of this machine's.
fn node_addresses(first: Ipv4Addr, count: u8) -> Result<Vec<Ipv4Addr>, Diagnostic> {
    const LOOPBACK: &str = "take addresses of this machine:   --node-address 127.0.0.1";
    let nth = |above| u32::from(first).checked_add(above).map(Ipv4Addr::from);
    let addresses: Option<Vec<Ipv4Addr>> = (0..u32::from(count)).map(nth).collect();
    let is_one = |address: &Ipv4Addr| {
        !(address.is_unspecified() || address.is_broadcast() || address.is_multicast())
    };
    let addresses = addresses.filter(|all| all.iter().all(is_one)).ok_or_else(|| {
        let what = if count == 1 { "a node".to_owned() } else { format!("each of {count} nodes") };
        Diagnostic::usage(format!("--node-address {first} does not give {what} an address"))
            .help(LOOPBACK)
    })?;
    for (index, address) in addresses.iter().enumerate() {
        TcpListener::bind((*address, 0)).map_err(|error| {
            let headline = format!("node-{} cannot listen on {address}", index + 1);
            Diagnostic::new("WH0003", headline).why(error).help(LOOPBACK)
        })?;
    }
    Ok(addresses)
}

/// An address for each node: the first one's, counted up.
fn nth_address(first: SocketAddrV4, index: u8) -> SocketAddrV4 {
    let ip = u32::from(*first.ip()).wrapping_add(u32::from(index) - 1);
    SocketAddrV4::new(Ipv4Addr::from(ip), first.port())
}

/// Ends a child: asks first, then insists.
async fn stop_child(child: &mut Child) {
    let Some(pid) = child.id() else { return };
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    // It may have ended in this moment; waiting below says so either way.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Copies a file of secrets so that readers see the old one or the new one, and nobody else any.
fn copy_private(from: &Path, to: &Path) -> Result<(), Diagnostic> {
    let copied = || -> Result<(), Box<dyn std::error::Error>> {
        let content = std::fs::read(from)?;
        Ok(wherry_control_plane::pki::write_private(to, &content)?)
    };
    copied().map_err(|error| {
        Diagnostic::new("WH0005", format!("cannot write {}", to.display()))
            .why(error)
            .help("choose another folder with --data-dir DIR")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_an_earlier_start_are_named() {
        let nodes = ["node-10", "node-1", "edge", "node-2"].map(str::to_owned);
        assert_eq!(others(&nodes, 10), None);
        let want = "not started, but there from before: node-2 node-10; start them with --nodes 10, \
                    or forget them:   kubectl delete node node-2 node-10";
        assert_eq!(others(&nodes, 1).as_deref(), Some(want));
    }

    #[test]
    fn who_ended_is_named_with_what_to_do() {
        let role = |optional| Role {
            name: "server-2".to_owned(),
            log_file: PathBuf::from("/data/logs/server-2.log"),
            arguments: Vec::new(),
            inherit: None,
            token: None,
            optional,
        };
        expect_test::expect![[r#"
            server-2 ended (exit status: 1) and is started again; its log is /data/logs/server-2.log
              the other members go on without it; if it does not come back, stop `wherry dev`,
              move the folder server-2 away and start again: it then joins anew"#]]
        .assert_eq(&started_again(&role(true), "exit status: 1"));
        assert!(!started_again(&role(false), "exit status: 1").contains("folder"));
        expect_test::expect![[r#"
            error[WH0016]: server-2 ended (exit status: 3) and is not started again
            why:  its data cannot be used any more; the lines above are what it said
            help: where there are other members, stop `wherry dev` and start it again: they replace it
              or: its log is /data/logs/server-2.log"#]]
        .assert_eq(&given_up(&role(true), "exit status: 3").to_string());
    }

    #[tokio::test]
    async fn the_cluster_stays_while_it_has_a_member() {
        let ended = |name: &str| {
            let (name, why) = (name.to_owned(), Diagnostic::new("WH0016", name));
            std::future::ready(End { name, is_useless: true, why })
        };
        let (mut server, mut nodes) = (JoinSet::new(), JoinSet::new());
        let shutdown = CancellationToken::new();
        server.spawn(ended("server-1"));
        let gone = stay(&mut server, &mut nodes, &shutdown).await.expect_err("none is left");
        assert_eq!(gone.to_string(), "error[WH0016]: server-1");
        server.spawn(ended("server-2"));
        server.spawn(std::future::pending());
        nodes.spawn(ended("node-1"));
        let all_have_run = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            outcome = stay(&mut server, &mut nodes, &shutdown) => panic!("{outcome:?}"),
            () = all_have_run => {}
        }
        assert_eq!((server.len(), nodes.len()), (1, 0));
        shutdown.cancel();
        stay(&mut server, &mut nodes, &shutdown).await.expect("it was asked to end");
    }

    #[test]
    fn nodes_have_addresses_of_this_machine() {
        let three = node_addresses(Ipv4Addr::LOCALHOST, 3).map_err(|error| error.to_string());
        let counted = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
        assert_eq!(three, Ok(counted.to_vec()));
        let refused = |first: [u8; 4], count| {
            let error = node_addresses(first.into(), count).expect_err("refused");
            let text = error.to_string();
            (error.exit_code, text.lines().next().unwrap_or_default().to_owned())
        };
        let none = "error[WH0001]: --node-address 255.255.255.254 does not give each of 3 nodes an \
                    address";
        assert_eq!(refused([255, 255, 255, 254], 3), (2, none.to_owned()));
        let any = "error[WH0001]: --node-address 0.0.0.0 does not give a node an address";
        assert_eq!(refused([0, 0, 0, 0], 1), (2, any.to_owned()));
        // An address that is for documents only is nobody's.
        let foreign = "error[WH0003]: node-1 cannot listen on 192.0.2.1";
        assert_eq!(refused([192, 0, 2, 1], 1), (1, foreign.to_owned()));
    }
}
