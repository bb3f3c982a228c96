//! Where a name or address of the virtual network leads. Pure: no I/O, no clock, no tasks.
//!
//! A [`Table`] is built from the routes that the agent sends and is never changed afterwards; the
//! worker publishes a new one as a whole. What the agent says of a Service is prepared for the
//! request path: each port is a [`Route`] with the endpoints this worker can reach, and each
//! endpoint already knows whether it is a Pod of this worker or behind which peer it is.
//!
//! Names are resolved as the cluster's DNS would, relative to the caller's namespace: `svc`,
//! `svc.ns`, `svc.ns.svc` and `svc.ns.svc.<cluster domain>`. Addresses may be those of Services and
//! of Pods. Everything else is the world outside, which guests cannot reach.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::peers::{Peer, PeerKey, Peers};
use crate::protocol::{self, Protocol, ServiceKey, ServiceRoute, Services};

/// All Services and the Pods behind them.
#[derive(Default)]
pub struct Table {
    /// By namespace, then name: looked up without making a key.
    services: HashMap<String, HashMap<String, Arc<Service>>>,
    addresses: HashMap<IpAddr, Arc<Service>>,
    node_ports: HashMap<u16, Arc<Route>>,
    /// Every Pod that is an endpoint of a Service, by its address.
    pods: HashMap<IpAddr, Place>,
}

/// One Service.
pub struct Service {
    key: ServiceKey,
    /// Without a virtual address: its name stands for its Pods themselves.
    headless: bool,
    addresses: Vec<IpAddr>,
    ports: Vec<Arc<Route>>,
    /// Its UDP ports.
    datagram_ports: Vec<Arc<Route>>,
}

/// One port of a Service.
pub struct Route {
    /// Its Service.
    pub service: ServiceKey,
    /// The Service's port.
    pub port: u16,
    node_port: Option<u16>,
    name: String,
    /// Ready endpoints that can be reached from here.
    pub endpoints: Vec<Endpoint>,
    /// Ready endpoints whose worker is not known, for the error message.
    pub unreachable: usize,
    /// Whose turn it is. Survives a new table, or each change would start at the first endpoint.
    turn: Arc<AtomicUsize>,
}

/// Where one request may go.
#[derive(Clone)]
pub struct Endpoint {
    /// Pod address and port.
    pub address: SocketAddr,
    /// How it is reached.
    pub place: Place,
}

/// How a Pod is reached.
#[derive(Clone)]
pub enum Place {
    /// It is (or was a moment ago) a Pod of this worker.
    Local,
    /// Through another worker.
    Peer(Arc<Peer>),
}

/// What an authority leads to.
#[derive(Clone)]
pub enum Destination {
    /// A Service's port.
    Route(Arc<Route>),
    /// One Pod.
    Pod(Endpoint),
}

/// Why an authority leads nowhere. The messages go to the guest and into its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such Service, and the name cannot be anything else.
    #[error("there is no Service {name} in namespace {namespace}")]
    NoService {
        /// As looked up.
        namespace: String,
        /// As looked up.
        name: String,
    },
    /// The Service has other ports.
    #[error("Service {namespace}/{name} has no port {port}; it has {ports}")]
    NoPort {
        /// Namespace of the Service.
        namespace: String,
        /// Its name.
        name: String,
        /// The port asked for.
        port: u16,
        /// Its ports, for people.
        ports: String,
    },
    /// A name or address outside of the cluster.
    #[error("{host} is outside of the cluster, and Pods may not reach the outside")]
    Outside {
        /// As the guest wrote it.
        host: String,
    },
    /// An address of the machine itself or its link.
    #[error("{host} is {what}, which is never reachable from a Pod")]
    Forbidden {
        /// As the guest wrote it.
        host: String,
        /// What kind of address it is.
        what: &'static str,
    },
}

/// Who this worker is, for telling its own Pods from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Node name.
    pub node: String,
    /// Namespace, which is the trust domain.
    pub namespace: String,
    /// `cluster.local`
    pub cluster_domain: String,
}

/// Applies messages and makes tables. Owned by the worker's main task.
pub struct Router {
    here: Here,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    peers: Peers,
}

impl Router {
    /// With no Services yet.
    pub fn new(here: Here, peers: Peers) -> Router {
        Router { here, services: BTreeMap::new(), peers }
    }

    /// Takes in a change. The caller publishes [`Router::table`] afterwards, once for all changes
    /// that arrived together.
    pub fn apply(&mut self, change: Services) {
        match change {
            Services::Replace(routes) => {
                let mut old = std::mem::take(&mut self.services);
                for route in routes {
                    let before = old.remove(&route.key);
                    self.put(route, before);
                }
            }
            Services::Upsert(routes) => {
                for route in routes {
                    let before = self.services.remove(&route.key);
                    self.put(route, before);
                }
            }
            Services::Remove(keys) => {
                for key in keys {
                    self.services.remove(&key);
                }
            }
        }
        self.peers.forget_unused();
    }

    fn put(&mut self, route: ServiceRoute, before: Option<Arc<Service>>) {
        let service = prepare(&self.here, &self.peers, route, before.as_deref());
        self.services.insert(service.key.clone(), Arc::new(service));
    }

    /// The whole table. Copies one pointer for each Service and one entry for each Pod.
    pub fn table(&self) -> Table {
        let mut table = Table::default();
        for service in self.services.values() {
            for address in &service.addresses {
                table.addresses.insert(*address, service.clone());
            }
            for route in &service.ports {
                if let Some(port) = route.node_port
                    && service.key.namespace == self.here.namespace
                {
                    table.node_ports.insert(port, route.clone());
                }
                for endpoint in &route.endpoints {
                    table.pods.insert(endpoint.address.ip(), endpoint.place.clone());
                }
            }
            table
                .services
                .entry(service.key.namespace.clone())
                .or_default()
                .insert(service.key.name.clone(), service.clone());
        }
        table
    }
}

/// Prepares one Service; turns continue from `before`.
fn prepare(here: &Here, peers: &Peers, route: ServiceRoute, before: Option<&Service>) -> Service {
    let (streams, datagrams): (Vec<_>, Vec<_>) =
        route.ports.into_iter().partition(|port| port.protocol == Protocol::Tcp);
    let routes = |ports: Vec<protocol::RoutePort>, old: &[Arc<Route>]| {
        let made = ports.into_iter().map(|port| {
            let turn = old
                .iter()
                .find(|old| old.port == port.port)
                .map_or_else(Default::default, |old| old.turn.clone());
            let known = port.endpoints.len();
            let endpoints: Vec<Endpoint> =
                port.endpoints.iter().filter_map(|it| endpoint(here, peers, it)).collect();
            Arc::new(Route {
                service: route.key.clone(),
                port: port.port,
                node_port: port.node_port,
                name: port.name,
                unreachable: known - endpoints.len(),
                endpoints,
                turn,
            })
        });
        made.collect::<Vec<_>>()
    };
    Service {
        headless: route.cluster_ips.is_empty(),
        ports: routes(streams, before.map_or(&[], |service| &service.ports)),
        datagram_ports: routes(datagrams, before.map_or(&[], |service| &service.datagram_ports)),
        addresses: route.cluster_ips.iter().map(|ip| ip.to_canonical()).collect(),
        key: route.key.clone(),
    }
}

fn endpoint(here: &Here, peers: &Peers, endpoint: &protocol::Endpoint) -> Option<Endpoint> {
    let node = endpoint.node.as_ref()?;
    let place = if *node == here.node && endpoint.namespace == here.namespace {
        Place::Local
    } else {
        Place::Peer(peers.get(PeerKey {
            address: endpoint.peer?,
            namespace: endpoint.namespace.clone(),
            node: node.clone(),
        }))
    };
    let address = SocketAddr::new(endpoint.address.ip().to_canonical(), endpoint.address.port());
    Some(Endpoint { address, place })
}

impl Route {
    /// The next turn; each caller gets its own.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

/// Whose turn it is among `count` endpoints, round robin from `turn`, without those that were tried
/// before. Nobody if all were.
pub fn pick(turn: usize, count: usize, tried: &[usize]) -> Option<usize> {
    (0..count).map(|step| turn.wrapping_add(step) % count).find(|index| !tried.contains(index))
}

impl Table {
    /// The Service port behind a node port of this worker's namespace.
    pub fn node_port(&self, port: u16) -> Option<&Arc<Route>> {
        self.node_ports.get(&port)
    }

    /// The node ports that this worker has to listen on, with the Service's name.
    pub fn node_ports(&self) -> BTreeMap<u16, String> {
        self.node_ports.iter().map(|(port, route)| (*port, route.service.name.clone())).collect()
    }

    /// Where `host:port` leads for a caller in `here.namespace`. `is_local` tells whether an
    /// address is that of a Pod of this worker.
    pub fn resolve(
        &self,
        here: &Here,
        host: &str,
        port: u16,
        is_local: impl Fn(IpAddr) -> bool,
    ) -> Result<Destination, ResolveError> {
        if let Some(ip) = parse_ip(host) {
            return self.resolve_ip(host, ip, port, is_local);
        }
        self.find(here, host)?.destination(port)
    }

    /// The addresses that a name stands for: those of the Service, or of a headless one's Pods.
    pub fn lookup(&self, here: &Here, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let service = self.find(here, host)?;
        if !service.headless {
            return Ok(service.addresses.clone());
        }
        let routes = service.ports.iter().chain(&service.datagram_ports);
        let endpoints = routes.flat_map(|route| &route.endpoints);
        let mut found: Vec<IpAddr> = endpoints.map(|endpoint| endpoint.address.ip()).collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Where an address leads for a datagram. Whether a Pod of this worker takes it is for its
    /// inbox to know.
    pub fn resolve_datagram(&self, to: SocketAddr) -> Result<Destination, ResolveError> {
        let ip = to.ip().to_canonical();
        if let Some(what) = forbidden(ip) {
            return Err(ResolveError::Forbidden { host: to.to_string(), what });
        }
        let Some(service) = self.addresses.get(&ip) else {
            let address = SocketAddr::new(ip, to.port());
            let place = self.pods.get(&ip).cloned().unwrap_or(Place::Local);
            return Ok(Destination::Pod(Endpoint { address, place }));
        };
        match service.datagram_ports.iter().find(|route| route.port == to.port()) {
            Some(route) => Ok(Destination::Route(route.clone())),
            None => Err(service.no_port(to.port())),
        }
    }

    /// The Service of a name.
    fn find(&self, here: &Here, host: &str) -> Result<&Arc<Service>, ResolveError> {
        let outside = || ResolveError::Outside { host: host.to_owned() };
        let lower = host.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(ResolveError::Forbidden {
                host: host.to_owned(),
                what: "the machine's own name",
            });
        }
        let domain = here.cluster_domain.as_str();
        let (short, certain) = match name.strip_suffix(domain).and_then(|s| s.strip_suffix(".svc."))
        {
            Some(short) => (short, true),
            None => match name.strip_suffix(".svc") {
                Some(short) => (short, true),
                None => (name, false),
            },
        };
        let mut labels = short.split('.');
        let (name, namespace) = match (labels.next(), labels.next(), labels.next()) {
            (Some(name), None, None) if !certain => (name, here.namespace.as_str()),
            (Some(name), Some(namespace), None) => (name, namespace),
            _ => return Err(outside()),
        };
        match self.services.get(namespace).and_then(|services| services.get(name)) {
            Some(service) => Ok(service),
            // `example.com` could have been a Service `example` in a namespace `com`; say what is
            // more likely meant: only names that can be nothing else are missing Services.
            None if certain || !short.contains('.') || self.services.contains_key(namespace) => {
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                Err(ResolveError::NoService { namespace, name })
            }
            None => Err(outside()),
        }
    }

    fn resolve_ip(
        &self,
        host: &str,
        ip: IpAddr,
        port: u16,
        is_local: impl Fn(IpAddr) -> bool,
    ) -> Result<Destination, ResolveError> {
        if let Some(what) = forbidden(ip) {
            return Err(ResolveError::Forbidden { host: host.to_owned(), what });
        }
        if let Some(service) = self.addresses.get(&ip) {
            return service.destination(port);
        }
        let address = SocketAddr::new(ip, port);
        if is_local(ip) {
            return Ok(Destination::Pod(Endpoint { address, place: Place::Local }));
        }
        match self.pods.get(&ip) {
            Some(place) => Ok(Destination::Pod(Endpoint { address, place: place.clone() })),
            None => Err(ResolveError::Outside { host: host.to_owned() }),
        }
    }
}

impl Service {
    fn destination(&self, port: u16) -> Result<Destination, ResolveError> {
        if let Some(route) = self.ports.iter().find(|route| route.port == port) {
            return Ok(Destination::Route(route.clone()));
        }
        // The name of a headless Service stands for its Pods, which answer on their own ports.
        let of_pods = |route: &&Arc<Route>| {
            route.endpoints.first().is_some_and(|endpoint| endpoint.address.port() == port)
        };
        if self.headless
            && let Some(route) = self.ports.iter().find(of_pods)
        {
            return Ok(Destination::Route(route.clone()));
        }
        Err(self.no_port(port))
    }

    fn no_port(&self, port: u16) -> ResolveError {
        ResolveError::NoPort {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            port,
            ports: self.port_list(),
        }
    }

    fn port_list(&self) -> String {
        let ports: Vec<String> = self
            .ports
            .iter()
            .map(|route| match route.name.as_str() {
                "" => route.port.to_string(),
                name => format!("{} ({name})", route.port),
            })
            .collect();
        if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
    }
}

/// An address as it stands in a URI; an IPv4 address in IPv6 clothes is an IPv4 address.
fn parse_ip(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Addresses that mean the machine, its link, or many machines, whatever a table says.
fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let (loopback, link_local) = match ip {
        IpAddr::V4(ip) => (ip.is_loopback(), ip.is_link_local()),
        IpAddr::V6(ip) => (ip.is_loopback(), ip.is_unicast_link_local()),
    };
    if loopback {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("an address of many machines")
    } else if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        Some("no address")
    } else {
        None
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
