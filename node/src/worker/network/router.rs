//! From what the agent says to the tables that requests read.
//!
//! Each change is worked into one table, of which copies are published: they share what is the same
//! (`imbl`), so that one Service among thousands costs as much as one alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::super::peers::{PeerKey, Peers};
use super::{Doors, Endpoint, Here, Node, Place, Route, Service, Table, forbidden};
use crate::protocol::{self, NodeRoute, Nodes, Protocol, ServiceKey, ServiceRoute, Services};

/// Applies messages and makes tables. Owned by the worker's main task.
pub struct Router {
    here: Here,
    table: Table,
    /// Services for which this node listens: few have node ports or balancers.
    listening: BTreeMap<ServiceKey, Arc<Service>>,
    /// They are others than the table says.
    doors_changed: bool,
    nodes: BTreeMap<String, NodeRoute>,
}

impl Router {
    /// With no Services yet.
    pub fn new(here: Here, peers: Peers) -> Router {
        let table = Table { peers, ..Table::default() };
        let (listening, nodes) = (BTreeMap::new(), BTreeMap::new());
        Router { here, table, listening, doors_changed: false, nodes }
    }

    /// The table as of now.
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    /// Takes in a change. The caller publishes [`Router::table`] afterwards, once for all changes
    /// that arrived together.
    pub fn apply(&mut self, change: Services) {
        match change {
            Services::Replace(routes) => {
                for key in self.others(&routes) {
                    self.remove(&key);
                }
                routes.into_iter().for_each(|route| self.put(route));
            }
            Services::Upsert(routes) => routes.into_iter().for_each(|route| self.put(route)),
            Services::Remove(keys) => {
                for key in keys {
                    self.remove(&key);
                }
            }
        }
        if std::mem::take(&mut self.doors_changed) {
            let all = || self.listening.values();
            self.table.doors = Arc::new(Doors {
                entrances: all().flat_map(|service| service.entrances()).collect(),
                healths: all().filter_map(|service| service.health.clone()).collect(),
            });
        }
        self.table.peers.forget_unused();
    }

    /// Takes in a change of the nodes.
    pub fn apply_nodes(&mut self, change: Nodes) {
        match change {
            Nodes::Replace(all) => {
                self.nodes = all.into_iter().map(|node| (node.name.clone(), node)).collect();
            }
            Nodes::Upsert(some) => {
                self.nodes.extend(some.into_iter().map(|node| (node.name.clone(), node)));
            }
            Nodes::Remove(name) => _ = self.nodes.remove(&name),
        }
        let prepared = self.nodes.values().map(|node| Node {
            name: node.name.clone(),
            blocks: node.pod_cidrs.iter().filter_map(|block| block.parse().ok()).collect(),
            workers: node.workers.clone(),
        });
        self.table.nodes = Arc::new(prepared.collect());
    }

    /// Services that are known and not among these.
    fn others(&self, routes: &[ServiceRoute]) -> Vec<ServiceKey> {
        let named: HashSet<&ServiceKey> = routes.iter().map(|route| &route.key).collect();
        let known = self.table.services.values().flat_map(|all| all.values());
        let others = known.filter(|service| !named.contains(&service.key));
        others.map(|service| service.key.clone()).collect()
    }

    fn put(&mut self, route: ServiceRoute) {
        let before = self.remove(&route.key);
        let service = prepare(&self.here, &self.table.peers, route, before.as_deref());
        let service = Arc::new(service);
        let table = &mut self.table;
        for address in &service.addresses {
            table.addresses.insert(*address, service.clone());
        }
        for address in &service.pool_ips {
            if !table.addresses.contains_key(address) {
                table.addresses.insert(*address, service.clone());
            }
        }
        for (ip, place) in &service.pods {
            let count = table.pods.get(ip).map_or(0, |(_, count)| *count);
            table.pods.insert(*ip, (place.clone(), count + 1));
        }
        let key = service.key.clone();
        let all = table.services.entry(key.namespace.clone()).or_default();
        all.insert(key.name.clone(), service.clone());
        let has_door = service.health.is_some() || !service.entrances().is_empty();
        if has_door && key.namespace == self.here.namespace {
            self.listening.insert(key, service);
            self.doors_changed = true;
        }
    }

    /// Forgets a Service; returns what it was.
    fn remove(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let table = &mut self.table;
        let all = table.services.get_mut(&key.namespace)?;
        let service = all.remove(&key.name)?;
        if all.is_empty() {
            table.services.remove(&key.namespace);
        }
        for address in service.addresses.iter().chain(&service.pool_ips) {
            // Another one may have got it meanwhile.
            if table.addresses.get(address).is_some_and(|held| Arc::ptr_eq(held, &service)) {
                table.addresses.remove(address);
            }
        }
        for (ip, _) in &service.pods {
            if let Some((place, count @ 2..)) = table.pods.remove(ip) {
                table.pods.insert(*ip, (place, count - 1));
            }
        }
        self.doors_changed |= self.listening.remove(key).is_some();
        Some(service)
    }
}

/// Prepares one Service; what its ports remember goes on from `before`.
fn prepare(here: &Here, peers: &Peers, route: ServiceRoute, before: Option<&Service>) -> Service {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    let mut pods: BTreeMap<IpAddr, Place> = BTreeMap::new();
    let ranges: Vec<IpNet> =
        route.source_ranges.iter().filter_map(|range| range.trim().parse().ok()).collect();
    let headless = route.cluster_ips.is_empty() && route.external_name.is_none();
    let (mut ports, mut datagram_ports) = (Vec::new(), Vec::new());
    for port in route.ports {
        let (old, made) = match port.protocol {
            Protocol::Tcp => (before.map(|service| &service.ports), &mut ports),
            Protocol::Udp => (before.map(|service| &service.datagram_ports), &mut datagram_ports),
        };
        let old = old.into_iter().flatten().find(|old| old.port == port.port);
        let (mut inner, mut external, mut unreachable) = (Vec::new(), Vec::new(), 0);
        for said in &port.endpoints {
            let Some(endpoint) = endpoint(here, peers, said, old.map(Arc::as_ref)) else {
                unreachable += usize::from(said.internal || said.external);
                continue;
            };
            let ip = endpoint.address.ip();
            if let Some(hostname) = said.name_below(headless).filter(|_| said.internal) {
                let all = hosts.entry(hostname.to_ascii_lowercase()).or_default();
                if !all.contains(&ip) {
                    all.push(ip);
                }
            }
            if !matches!(endpoint.place, Place::Outside) {
                pods.insert(ip, endpoint.place.clone());
            }
            if said.internal {
                inner.push(endpoint.clone());
            }
            if said.external {
                external.push(endpoint);
            }
        }
        made.push(Arc::new(Route {
            service: route.key.clone(),
            port: port.port,
            node_port: port.node_port,
            name: port.name,
            endpoints: inner,
            external,
            unreachable,
            affinity: route.affinity_seconds.map(|it| Duration::from_secs(it.into())),
            hold: route.hold,
            source_ranges: ranges.clone(),
            shared: old.map_or_else(Arc::default, |old| old.shared.clone()),
        }));
    }
    let told = |it: protocol::HealthPort| (route.key.clone(), it.endpoints);
    let health = route.health.map(|it| ((None, it.port, Protocol::Tcp), told(it)));
    Service {
        headless: route.cluster_ips.is_empty(),
        alias: route.external_name,
        ports,
        datagram_ports,
        hosts,
        pods: pods.into_iter().collect(),
        addresses: route.cluster_ips.iter().map(|ip| ip.to_canonical()).collect(),
        balancer_ips: route.balancer_ips.iter().map(|ip| ip.to_canonical()).collect(),
        pool_ips: route.pool_ips.iter().map(|ip| ip.to_canonical()).collect(),
        health,
        key: route.key,
    }
}

fn endpoint(
    here: &Here,
    peers: &Peers,
    said: &protocol::Endpoint,
    before: Option<&Route>,
) -> Option<Endpoint> {
    let address = SocketAddr::new(said.address.ip().to_canonical(), said.address.port());
    let place = match &said.node {
        None if said.outside && forbidden(address.ip()).is_none() => Place::Outside,
        None => return None,
        Some(node) if *node == here.node && said.namespace == here.namespace => Place::Local,
        Some(node) => Place::Peer(peers.get(PeerKey {
            address: said.peer?,
            namespace: said.namespace.clone(),
            node: node.clone(),
        })),
    };
    let known = before.into_iter().flat_map(|it| it.endpoints.iter().chain(&it.external));
    let load = known.filter(|it| it.address == address).map(|it| it.load.clone()).next();
    Some(Endpoint { address, place, load: load.unwrap_or_default() })
}
