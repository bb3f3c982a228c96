//! The control plane of `wherry dev`: one member, or several that form a cluster.
//!
//! A single member inherits the socket that the supervisor has bound. Several listen themselves, on
//! ports that are kept between runs, for members know each other by their addresses. The first one
//! founds the cluster; each further one joins it with a token of its own at its first start.
//!
//! ```text
//! DIR/server/…      the first member's data folder       DIR/addresses.json   where they listen
//! DIR/server-2/…    the second member's, and so on
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wherry_control_plane::member::MEMBER_FILE;

use super::{Cluster, MEMBERS_MAX, POLL_INTERVAL, Role, TOKEN_TTL, copy_private, supervise};
use crate::api::{self, Connection};
use crate::diagnostic::Diagnostic;
use crate::token::{self, Joins};
use crate::{folder, member, roles};

const ADDRESSES_FILE: &str = "addresses.json";

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

/// Starts all members and waits until the API answers and each new one votes.
pub async fn start(
    cluster: &Cluster,
    servers: &mut JoinSet<Diagnostic>,
    stop: &CancellationToken,
) -> Result<Connection, Diagnostic> {
    let first = folder::prepare(&folder_of(&cluster.data_dir, 1))?;
    folder::prepare(&cluster.data_dir.join("logs"))?;
    let written = first.join("admin.kubeconfig");
    // Its appearance is the sign that this start's server answers.
    let _ = std::fs::remove_file(&written);
    match &cluster.listeners {
        Listeners::Inherited(listener) => {
            let fd = listener.as_raw_fd();
            let listen = format!("--listen-fd={fd}");
            let role = Role { inherit: Some(fd), ..role(cluster, 1, listen)? };
            servers.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
        }
        Listeners::Own(addresses) => {
            let first = role(cluster, 1, format!("--listen={}", addresses[0]))?;
            servers.spawn(supervise(first, cluster.ready.clone(), stop.clone()));
            // The others of a cluster that was there before: without them there is no majority. One
            // that ends at its start is not the end of all: it is replaced while the others run.
            let ready = CancellationToken::new();
            ready.cancel();
            for (number, address) in (1..).zip(addresses).skip(1) {
                if was_member(&cluster.data_dir, number) {
                    let mut role = role(cluster, number, format!("--listen={address}"))?;
                    // Should its folder be emptied meanwhile, it must not found a cluster.
                    role.arguments.push(format!("--join={}", addresses[0]));
                    servers.spawn(supervise(role, ready.clone(), stop.clone()));
                }
            }
        }
    }
    let kubeconfig = cluster.data_dir.join("kubeconfig");
    let answering = async {
        while !written.exists() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        copy_private(&written, &kubeconfig)?;
        let connection = api::connect(&kubeconfig).await?;
        while !answers(&connection).await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok::<_, Diagnostic>(connection)
    };
    let connection = tokio::select! {
        answering = answering => answering?,
        Some(Ok(failed)) = servers.join_next() => return Err(failed),
    };
    if let Listeners::Own(addresses) = &cluster.listeners {
        join_others(cluster, addresses, &connection, servers, stop).await?;
    }
    Ok(connection)
}

/// Lets those join that have not been members before. One after the other: each is a change of the
/// membership.
async fn join_others(
    cluster: &Cluster,
    addresses: &[SocketAddr],
    connection: &Connection,
    servers: &mut JoinSet<Diagnostic>,
    stop: &CancellationToken,
) -> Result<(), Diagnostic> {
    for (number, address) in (1..).zip(addresses).skip(1) {
        if was_member(&cluster.data_dir, number) {
            continue;
        }
        let mut role = role(cluster, number, format!("--listen={address}"))?;
        let name = role.name.clone();
        // One whose folder is gone is gone itself; the others may have to start before they agree.
        while member::forget(connection, &name).await.is_err() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        role.arguments.push(format!("--join={}", connection.url.trim_end_matches('/')));
        role.token = Some(token::create(connection, Joins::Member, TOKEN_TTL).await?);
        servers.spawn(supervise(role, cluster.ready.clone(), stop.clone()));
        tokio::select! {
            () = wait_for_vote(connection, &name) => {}
            Some(Ok(failed)) = servers.join_next() => return Err(failed),
        }
    }
    Ok(())
}

fn role(cluster: &Cluster, number: usize, listen: String) -> Result<Role, Diagnostic> {
    let data_dir = folder::prepare(&folder_of(&cluster.data_dir, number))?;
    let log = if number == 1 { "server.log".to_owned() } else { format!("server-{number}.log") };
    Ok(Role {
        name: format!("server-{number}"),
        log_file: cluster.data_dir.join("logs").join(log),
        arguments: vec![
            "server".into(),
            format!("--name=server-{number}"),
            format!("--data-dir={}", data_dir.display()),
            // Whoever writes a webhook runs it beside the cluster first.
            "--webhook-network=127.0.0.0/8".into(),
            listen,
        ],
        inherit: None,
        token: None,
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
