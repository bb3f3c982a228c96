//! Which workers are ended, and when: by a fleet that has taken over workers, played here.

use std::{convert::Infallible, path::Path};

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::UnixListener;
use tokio_util::codec::Framed;

use super::*;
use crate::{
    agent::{cgroups::Cgroups, gate, relay::Relays, users::Users, watch::Change},
    protocol::{Hello, ToAgent},
    worker::Walls,
};

/// A worker that an earlier agent left, with the engine of that one.
fn left_behind(folder: &Path, namespace: &str, engine: &str) {
    let listener = UnixListener::bind(folder.join(format!("{namespace}.sock"))).expect("a socket");
    let state = State {
        protocol: protocol::VERSION,
        engine: engine.to_owned(),
        pid: 1,
        namespace: namespace.to_owned(),
        peer: None,
        identity_until: None,
        pods: Vec::new(),
        node_ports: Vec::new(),
    };
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("the agent");
        let mut agent = Framed::new(stream, protocol::codec());
        let state = protocol::encode(&ToAgent::State(state)).expect("a frame");
        agent.send(state).await.expect("sent");
        while let Some(Ok(_)) = agent.next().await {}
    });
}

/// A fleet that has taken over all workers in a folder.
async fn fleet(folder: &Path, events: mpsc::Sender<Input>) -> Fleet {
    let hello = Hello {
        protocol: protocol::VERSION,
        version: String::new(),
        node: "n".to_owned(),
        namespace: String::new(),
        address: [127, 0, 0, 1].into(),
        log_root: folder.to_owned(),
        engine: String::new(),
        cluster_domain: "cluster.local".to_owned(),
        tracing: None,
    };
    let workers = Arc::new(Workers {
        binary: folder.join("none"),
        sockets: folder.to_owned(),
        logs: folder.to_owned(),
        walls: Walls { hidden: Vec::new(), read_only: Vec::new() },
        users: Arc::new(Users::open(folder, folder.to_owned(), None)),
        cgroups: Cgroups::default(),
        relays: Relays::new(folder.to_owned()),
        hello,
        events,
    });
    let links = workers.adopt().await;
    let never = |_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
    };
    let client = kube::Client::new(tower::service_fn(never), "default");
    let told = (watch::channel(Traffic::default()).0, watch::channel(Seen::Nothing).0);
    let zone = Zone::new("cluster.local", [127, 0, 0, 1].into());
    let zone = Arc::new(std::sync::RwLock::new(zone));
    Fleet::new(workers, client, links, folder.to_owned(), told, (0, 0), zone)
}

/// Whether a worker was told to end, at the latest when it has lingered for long enough.
fn has_ended(fleet: &mut Fleet, namespace: &str) -> bool {
    fleet.tend(Timestamp::now() + LINGER * 2);
    fleet.running[namespace].worker.is_ending()
}

/// Lists come in any order when the control plane is back, and long after the agent has started.
#[tokio::test]
async fn a_worker_serves_until_all_that_may_need_it_was_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (events, _heard) = mpsc::channel(16);
    left_behind(folder.path(), "shop", "");
    left_behind(folder.path(), INGRESS_NAMESPACE, "");
    let mut fleet = fleet(folder.path(), events).await;
    assert_eq!(fleet.running.len(), 2, "both were found");
    fleet.pods_synced();
    assert!(!has_ended(&mut fleet, "shop"), "a Service may have a node port");
    fleet.services_synced();
    fleet.slices_synced();
    fleet.nodes_synced();
    fleet.policies_synced();
    fleet.namespaces_synced();
    fleet.tend(Timestamp::now());
    assert!(!fleet.running["shop"].worker.is_ending(), "it lingers from now on");
    assert!(has_ended(&mut fleet, "shop"));
    fleet.change_gate(GateInput::Ingress(Change::Synced));
    fleet.change_gate(GateInput::Class(Change::Synced));
    for kind in gate::KINDS {
        assert!(!has_ended(&mut fleet, INGRESS_NAMESPACE), "{kind:?} may need it");
        fleet.change_gate(GateInput::Object(kind, Change::Synced));
    }
    fleet.tend(Timestamp::now());
    assert!(!fleet.running[INGRESS_NAMESPACE].worker.is_ending(), "it lingers from now on");
    assert!(has_ended(&mut fleet, INGRESS_NAMESPACE));
}

/// One that nothing is known to need is not started again.
#[tokio::test]
async fn a_worker_of_another_engine_waits_for_all_that_may_need_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (events, _heard) = mpsc::channel(16);
    left_behind(folder.path(), "shop", "older");
    left_behind(folder.path(), INGRESS_NAMESPACE, "older");
    let mut fleet = fleet(folder.path(), events).await;
    assert!(fleet.is_outdated("shop") && fleet.is_outdated(INGRESS_NAMESPACE));
    fleet.pods_synced();
    assert!(!fleet.is_replaceable("shop"), "a Service may have a node port");
    fleet.services_synced();
    fleet.slices_synced();
    fleet.nodes_synced();
    fleet.policies_synced();
    fleet.namespaces_synced();
    assert!(fleet.is_replaceable("shop"));
    assert!(!fleet.is_replaceable(INGRESS_NAMESPACE), "an Ingress may need it");
    fleet.change_gate(GateInput::Ingress(Change::Synced));
    fleet.change_gate(GateInput::Class(Change::Synced));
    for kind in gate::KINDS {
        fleet.change_gate(GateInput::Object(kind, Change::Synced));
    }
    assert!(fleet.is_replaceable(INGRESS_NAMESPACE));
    fleet.replace("shop");
    assert!(!fleet.is_replaceable("shop"), "it is asked once");
}
