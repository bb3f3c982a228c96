//! The control plane of `wherry dev`: one member, or several that form a cluster.
//!
//! A single member inherits the socket that the supervisor has bound. Several listen themselves, on
//! ports that are kept between runs, for members know each other by their addresses. The first one
//! founds the cluster; each further one joins it with a token of its own at its first start.
//!
//! ```text
//! DIR/server/…      the first member's data folder       DIR/addresses.json   where they listen
//! DIR/server-2/…    the second member's, and so on
//! DIR/server.damaged-TIME/…    data that could not be used again
//! ```

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wherry_control_plane::member::{MEMBER_FILE, STORE};

use super::{Cluster, End, MEMBERS_MAX, POLL_INTERVAL, Role, TOKEN_TTL, copy_private, supervise};
use crate::api::{self, Connection};
use crate::diagnostic::Diagnostic;
use crate::token::{self, Joins};
use crate::{folder, member, roles};

const ADDRESSES_FILE: &str = "addresses.json";
/// What a member writes when it answers.
const KUBECONFIG_FILE: &str = "admin.kubeconfig";

/// Where the members listen.
pub enum Listeners {
    /// One member: it inherits this.
    Inherited(TcpListener),
    /// Several: they bind these.
    Own(Vec<SocketAddr>),
}

/// Binds, or finds ports for as many members as were asked for or as there were before: with fewer
/// there might be no majority.
pub fn listeners(data_dir: &Path, listen: SocketAddr, asked: u8) -> Result<Listeners, Diagnostic> {
    // Not all of them: the folder of one that was damaged may have been emptied.
    let before = (2..=usize::from(MEMBERS_MAX)).rev().find(|number| was_member(data_dir, *number));
    let count = before.unwrap_or(1).max(usize::from(asked));
    let kept: Vec<SocketAddr> = std::fs::read(data_dir.join(ADDRESSES_FILE))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let first = match kept.first() {
        Some(kept) if listen.port() == 0 => *kept,
        _ => listen,
    };
    let listener = roles::bind(first)?;
    if count == 1 {
        return Ok(Listeners::Inherited(listener));
    }
    let unusable = |error| {
        Diagnostic::new("WH0003", "cannot find free ports for the members")
            .why(error)
            .help("start with one:   wherry dev --members 1")
    };
    let first = listener.local_addr().map_err(unusable)?;
    // Held until all are chosen, so that none is chosen twice.
    let mut held = vec![listener];
    let mut addresses = vec![first];
    for number in 1..count {
        let address = kept.get(number).copied();
        let address = address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listener = roles::bind(address)?;
        addresses.push(listener.local_addr().map_err(unusable)?);
        held.push(listener);
    }
    let text = serde_json::to_vec(&addresses).expect("addresses are JSON");
    std::fs::write(data_dir.join(ADDRESSES_FILE), text).map_err(|error| {
        let file = data_dir.join(ADDRESSES_FILE);
        Diagnostic::new("WH0005", format!("cannot write {}", file.display()))
            .why(error)
            .help("choose another folder with --data-dir DIR")
    })?;
    Ok(Listeners::Own(addresses))
}

fn folder_of(data_dir: &Path, number: usize) -> PathBuf {
    match number {
        1 => data_dir.join("server"),
        number => data_dir.join(format!("server-{number}")),
    }
}

fn was_member(data_dir: &Path, number: usize) -> bool {
    folder_of(data_dir, number).join(MEMBER_FILE).exists()
}

/// Whether a member can go on there: a restored backup is a store and nothing else.
fn has_data(data_dir: &Path, number: usize) -> bool {
    was_member(data_dir, number) || folder_of(data_dir, number).join(STORE).is_dir()
}

/// Starts all members and waits until the API answers and each new one votes.
pub async fn start(
    cluster: &Cluster,
    servers: &mut JoinSet<End>,
    stop: &CancellationToken,
) -> Result<Connection, Diagnostic> {
    folder::prepare(&cluster.data_dir.join("logs"))?;
    let listener = match &cluster.listeners {
        Listeners::Inherited(listener) => listener,
        Listeners::Own(addresses) => return several(cluster, addresses, servers, stop).await,
    };
    let fd = listener.as_raw_fd();
    let role = Role { inherit: Some(fd), ..role(cluster, 1, format!("--listen-fd={fd}"))? };
    servers.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
    tokio::select! {
        answering = answering(cluster, 1) => answering,
        Some(Ok(end)) = servers.join_next() => Err(end.why),
    }
}

/// Starts those that are members, or the first where nobody is one, and lets the others join. Whose
/// data turn out to be useless joins anew, while the others are more than half of those that have
/// data. How many members there are only they know: if these are no majority, nobody answers, and
/// the start takes too long.
async fn several(
    cluster: &Cluster,
    addresses: &[SocketAddr],
    servers: &mut JoinSet<End>,
    stop: &CancellationToken,
) -> Result<Connection, Diagnostic> {
    let all = 1..=addresses.len();
    let is_member = |number: &usize| has_data(&cluster.data_dir, *number);
    let mut there: Vec<usize> = all.clone().filter(is_member).collect();
    if there.is_empty() {
        there.push(1);
    }
    for (place, number) in there.iter().enumerate() {
        let mut role = role(cluster, *number, format!("--listen={}", addresses[number - 1]))?;
        // Without the others there may be no majority, without one of them there is.
        role.optional = place > 0;
        // Should its folder be emptied meanwhile, it must not found a cluster.
        let other = there.iter().find(|other| *other != number);
        role.arguments.extend(other.map(|other| format!("--join={}", addresses[other - 1])));
        servers.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
    }
    let count = there.len();
    let connection = loop {
        tokio::select! {
            biased;
            Some(Ok(end)) = servers.join_next() => {
                there.retain(|number| name_of(*number) != end.name);
                if !end.is_useless || there.len() * 2 <= count {
                    return Err(end.why);
                }
            }
            answering = answering(cluster, there[0]) => break answering?,
        }
    };
    for number in all.filter(|number| !there.contains(number)) {
        let address = addresses[number - 1];
        join(cluster, (number, address), &connection, servers, stop).await?;
    }
    match there.contains(&1) {
        true => Ok(connection),
        // It listens where the cluster was asked to be.
        false => answering(cluster, 1).await,
    }
}

/// Waits until a member answers, and makes its kubeconfig the cluster's.
async fn answering(cluster: &Cluster, number: usize) -> Result<Connection, Diagnostic> {
    let written = folder_of(&cluster.data_dir, number).join(KUBECONFIG_FILE);
    while !written.exists() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let kubeconfig = cluster.data_dir.join("kubeconfig");
    copy_private(&written, &kubeconfig)?;
    let connection = api::connect(&kubeconfig).await?;
    while !answers(&connection).await {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(connection)
}

/// Lets one join that is no member, or that cannot go on as the one it was. One after the other: each
/// is a change of the membership.
async fn join(
    cluster: &Cluster,
    (number, address): (usize, SocketAddr),
    connection: &Connection,
    servers: &mut JoinSet<End>,
    stop: &CancellationToken,
) -> Result<(), Diagnostic> {
    let name = name_of(number);
    // One whose data are gone is gone itself; the others may have to start before they agree.
    while member::forget(connection, &name).await.is_err() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    if let Some(kept) = set_aside(&cluster.data_dir, number, Timestamp::now())? {
        // The terminal may be gone.
        let _ = writeln!(
            std::io::stderr(),
            "{name} begins anew with what the other members have; its damaged data are kept in {}",
            kept.display()
        );
    }
    let mut role = role(cluster, number, format!("--listen={address}"))?;
    role.arguments.push(format!("--join={}", connection.url.trim_end_matches('/')));
    role.token = Some(token::create(connection, Joins::Member, TOKEN_TTL).await?);
    servers.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
    tokio::select! {
        () = wait_for_vote(connection, &name) => Ok(()),
        Some(Ok(end)) = servers.join_next() => Err(end.why),
    }
}

/// Moves the data of a member to where nobody uses them.
fn set_aside(
    data_dir: &Path,
    number: usize,
    now: Timestamp,
) -> Result<Option<PathBuf>, Diagnostic> {
    if !has_data(data_dir, number) {
        return Ok(None);
    }
    let folder = folder_of(data_dir, number);
    let mut kept = folder.clone().into_os_string();
    kept.push(now.strftime(".damaged-%Y%m%dT%H%M%SZ").to_string());
    let kept = PathBuf::from(kept);
    std::fs::rename(&folder, &kept).map_err(|error| {
        Diagnostic::new("WH0005", format!("cannot move {} aside", folder.display()))
            .why(error)
            .help("move it by hand and start again; the other members replace it")
    })?;
    Ok(Some(kept))
}

fn name_of(number: usize) -> String {
    format!("server-{number}")
}

fn role(cluster: &Cluster, number: usize, listen: String) -> Result<Role, Diagnostic> {
    let data_dir = folder::prepare(&folder_of(&cluster.data_dir, number))?;
    // Its appearance is the sign that this start's server answers.
    let _ = std::fs::remove_file(data_dir.join(KUBECONFIG_FILE));
    let log = if number == 1 { "server.log".to_owned() } else { format!("server-{number}.log") };
    Ok(Role {
        name: name_of(number),
        log_file: cluster.data_dir.join("logs").join(log),
        arguments: vec![
            "server".into(),
            format!("--name={}", name_of(number)),
            format!("--data-dir={}", data_dir.display()),
            // Whoever writes a webhook runs it beside the cluster first.
            "--webhook-network=127.0.0.0/8".into(),
            listen,
        ],
        inherit: None,
        token: None,
        optional: false,
    })
}

async fn wait_for_vote(connection: &Connection, name: &str) {
    while !member::votes(connection, name).await.is_ok_and(|votes| votes) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether the API answers and a new cluster's first objects are there.
async fn answers(connection: &Connection) -> bool {
    let ok = async |path: &str| {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.expect("a constant request is well formed");
        connection.client.request_text(request).await.is_ok()
    };
    ok("/readyz").await && ok("/api/v1/namespaces/kube-system").await
}

/// The members' URLs.
pub fn urls(cluster: &Cluster, connection: &Connection) -> Vec<String> {
    match &cluster.listeners {
        Listeners::Inherited(_) => vec![connection.url.trim_end_matches('/').to_owned()],
        Listeners::Own(addresses) => {
            addresses.iter().map(|address| format!("https://{address}")).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn useless_data_are_kept_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = "2026-02-03T04:05:06Z".parse().expect("a time");
        let aside = |number| set_aside(folder.path(), number, at).map_err(|e| e.to_string());
        std::fs::create_dir(folder_of(folder.path(), 2)).expect("a folder");
        assert_eq!(aside(2), Ok(None), "it was no member");
        std::fs::write(folder_of(folder.path(), 2).join(MEMBER_FILE), "{}").expect("written");
        let kept = folder.path().join("server-2.damaged-20260203T040506Z");
        assert_eq!(aside(2), Ok(Some(kept.clone())));
        assert!(kept.join(MEMBER_FILE).exists() && !was_member(folder.path(), 2));
    }

    #[test]
    fn members_keep_their_addresses() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let of = |asked| match listeners(folder.path(), any, asked) {
            Ok(Listeners::Own(addresses)) => addresses,
            Ok(Listeners::Inherited(_)) => Vec::new(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(of(1), []);
        let three = of(3);
        assert_eq!(three.len(), 3);
        assert_eq!(of(3), three);
        // Who has been a member is started again, also when fewer are asked for, and when another
        // one of them has lost its folder.
        for number in [3, 2] {
            let data_dir = folder_of(folder.path(), number);
            std::fs::create_dir_all(&data_dir).expect("a folder");
            std::fs::write(data_dir.join(MEMBER_FILE), "{}").expect("written");
            assert_eq!(of(1), three);
        }
    }
}
