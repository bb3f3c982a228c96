//! Real connections on loopback: who is who is checked on both sides, and a broken connection is
//! made anew.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::*;
use crate::member::serve::{Side, Sides, serve};
use crate::pki::{Pki, Profile};

/// A member that answers each request with who called and what came.
struct TestMember {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl TestMember {
    async fn start(pki: &Pki, id: MemberId, listen: &str) -> TestMember {
        let listener = TcpListener::bind(listen).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let echo = |request: Request| async move {
            let from = request.extensions().get::<PeerMember>().copied();
            let body = request.into_body().collect().await.expect("a whole body").to_bytes();
            match from {
                Some(PeerMember(from)) => format!("{from}: {} bytes", body.len()).into_response(),
                None => StatusCode::FORBIDDEN.into_response(),
            }
        };
        let side = |tls| Side { tls: Arc::new(tls), router: Router::new().fallback(echo) };
        let clients = Profile { addresses: vec![address.ip()], server: true, ..Profile::default() };
        let sides = Sides {
            clients: side(pki.server_config(&clients).expect("TLS")),
            peers: side(pki.peer_server_config(id).expect("TLS")),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, sides, stop.clone()));
        TestMember { address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it ends");
    }

    fn peer(&self, id: MemberId) -> Peer {
        Peer { id, address: self.address.to_string() }
    }
}

fn pki() -> (tempfile::TempDir, Pki) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pki = Pki::load_or_create(folder.path()).expect("authorities");
    (folder, pki)
}

fn peers(pki: &Pki, id: MemberId) -> Peers {
    Peers::new(pki.peer_client_config(id).expect("TLS"), CancellationToken::new())
}

async fn ask(peers: &Peers, peer: Peer, bytes: usize) -> Result<String, ErrorKind> {
    let answer = peers.transport()(peer, Bytes::from(vec![7; bytes])).await;
    let answer = answer.map_err(|error| error.kind())?;
    Ok(String::from_utf8(answer.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_member_answers_for_itself_only() {
    let (_folder, pki) = pki();
    let member = TestMember::start(&pki, 3, "127.0.0.1:0").await;
    let peers = peers(&pki, 8);
    assert_eq!(ask(&peers, member.peer(3), 5).await, Ok("8: 5 bytes".to_owned()));
    let large = PEER_BYTES_MAX;
    assert_eq!(ask(&peers, member.peer(3), large).await, Ok(format!("8: {large} bytes")));
    assert_eq!(ask(&peers, member.peer(4), 5).await, Err(ErrorKind::PermissionDenied));
    member.stop().await;
}

#[tokio::test]
async fn a_member_of_another_cluster_is_a_stranger() {
    let ((_one, ours), (_two, theirs)) = (pki(), pki());
    let member = TestMember::start(&ours, 3, "127.0.0.1:0").await;
    let refused = ask(&peers(&theirs, 8), member.peer(3), 5).await;
    assert_eq!(refused, Err(ErrorKind::PermissionDenied));
    member.stop().await;
}

#[tokio::test]
async fn a_member_that_was_away_is_found_again() {
    let (_folder, pki) = pki();
    let member = TestMember::start(&pki, 3, "127.0.0.1:0").await;
    let (peers, address) = (peers(&pki, 8), member.address);
    assert!(ask(&peers, member.peer(3), 1).await.is_ok());
    let peer = member.peer(3);
    member.stop().await;
    let away = ask(&peers, peer.clone(), 1).await;
    assert!(
        matches!(away, Err(ErrorKind::ConnectionRefused | ErrorKind::NotConnected)),
        "{away:?}: surely not delivered"
    );
    let member = TestMember::start(&pki, 3, &address.to_string()).await;
    assert_eq!(ask(&peers, peer, 2).await, Ok("8: 2 bytes".to_owned()));
    member.stop().await;
}
