//! Where a name or address of the virtual network leads. Pure: no I/O, no clock, no tasks.
//!
//! A [`Table`] is made by the [`Router`] from the routes that the agent sends and is never changed
//! afterwards; the worker publishes a new one as a whole. What the agent says of a Service is
//! prepared for the request path: each port is a [`Route`] with the endpoints this worker can reach,
//! and each endpoint already knows whether it is a Pod of this worker or behind which peer it is.
//!
//! Names are resolved as the cluster's DNS would, relative to the caller's namespace: `svc`,
//! `svc.ns`, `svc.ns.svc` and `svc.ns.svc.<cluster domain>`, and with a Pod's own name before it
//! below a headless Service; `10-64-0-7.ns.pod` is an address. Addresses may be those of Services
//! and of Pods. Everything else is the world outside, which guests reach only where a policy says
//! so (`policy.rs`).

mod router;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;

pub use self::router::Router;
use super::balance::{Affinity, Load};
use super::peers::{Peer, PeerKey, Peers};
use super::traffic::Pairs;
use crate::protocol::{Protocol, ServiceKey, dashed_address};

/// Endpoints that one request or connection is tried at.
pub const ATTEMPTS_MAX: usize = 3;
/// Workers of one node that are asked for a Pod: namespaces with Pods on it.
pub const STRAY_ATTEMPTS_MAX: usize = 64;
/// Names that stand for names that stand for names: more is a circle.
const ALIASES_MAX: usize = 4;

/// All Services and the Pods behind them. Cheap to copy.
#[derive(Clone, Default)]
pub struct Table {
    /// By namespace, then name: looked up without making a key.
    services: imbl::HashMap<String, imbl::HashMap<String, Arc<Service>>>,
    addresses: imbl::HashMap<IpAddr, Arc<Service>>,
    doors: Arc<Doors>,
    /// Every Pod that is an endpoint of a Service, by its address, and of how many.
    pods: imbl::HashMap<IpAddr, (Place, usize)>,
    nodes: Arc<Vec<Node>>,
    peers: Peers,
}

/// Where this node listens for Services.
#[derive(Default)]
struct Doors {
    entrances: BTreeMap<At, Entrance>,
    /// Where it is said how many Pods of a Service this node has.
    healths: BTreeMap<At, (ServiceKey, usize)>,
}

/// A node: where Pods are that no Service leads to.
struct Node {
    name: String,
    blocks: Vec<IpNet>,
    workers: BTreeMap<String, SocketAddr>,
}

/// One Service.
pub struct Service {
    key: ServiceKey,
    /// Without a virtual address: its name stands for its Pods themselves.
    headless: bool,
    /// Its name stands for another name.
    alias: Option<String>,
    addresses: Vec<IpAddr>,
    /// Where Pods reach it as well.
    pool_ips: Vec<IpAddr>,
    ports: Vec<Arc<Route>>,
    /// Its UDP ports.
    datagram_ports: Vec<Arc<Route>>,
    /// Pods that have a name of their own below that of the Service.
    hosts: HashMap<String, Vec<IpAddr>>,
    /// Every Pod behind it, also those that take no new requests.
    pods: Vec<(IpAddr, Place)>,
    /// Where a balancer is reached through this node.
    balancer_ips: Vec<IpAddr>,
    health: Option<(At, (ServiceKey, usize))>,
}

/// One port of a Service.
pub struct Route {
    /// Its Service.
    pub service: ServiceKey,
    /// The Service's port.
    pub port: u16,
    node_port: Option<u16>,
    name: String,
    /// Endpoints for callers within the cluster.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints for callers from outside.
    pub external: Vec<Endpoint>,
    /// Endpoints whose worker is not known, for the error message.
    pub unreachable: usize,
    /// How long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Requests wait while there is no endpoint.
    pub hold: bool,
    /// Who may come in by a balancer's address; empty for everybody.
    source_ranges: Vec<IpNet>,
    /// Survives a new table.
    pub shared: Arc<Shared>,
}

/// What a port of a Service remembers.
#[derive(Default)]
pub struct Shared {
    turn: AtomicUsize,
    /// Who stays with whom.
    pub affinity: Affinity,
    /// Who has sent what.
    pub pairs: Pairs,
}

/// Where one request may go.
#[derive(Clone)]
pub struct Endpoint {
    /// Pod address and port.
    pub address: SocketAddr,
    /// How it is reached.
    pub place: Place,
    /// How it does.
    pub load: Arc<Load>,
}

/// How a Pod is reached.
#[derive(Clone)]
pub enum Place {
    /// It is (or was a moment ago) a Pod of this worker.
    Local,
    /// Through another worker.
    Peer(Arc<Peer>),
    /// It is no Pod: an address outside of the cluster, written by hand into an EndpointSlice.
    Outside,
}

/// What an authority leads to.
#[derive(Clone)]
pub enum Destination {
    /// A Service's port, for callers within the cluster.
    Route(Arc<Route>),
    /// A Service's port, for callers from outside.
    External(Arc<Route>),
    /// One Pod.
    Pod(Endpoint),
    /// One Pod behind no Service that is known here: its node is known, and it is behind one of the
    /// workers there. Who does not have it says so.
    Stray(Arc<Vec<Endpoint>>),
}

impl Destination {
    /// Who may be asked, in no order.
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Destination::Route(route) => &route.endpoints,
            Destination::External(route) => &route.external,
            Destination::Pod(endpoint) => std::slice::from_ref(endpoint),
            Destination::Stray(endpoints) => endpoints,
        }
    }

    /// How many endpoints are tried: enough to step over a node that just died and a busy Pod, few
    /// enough not to multiply an overload. Workers that do not have a Pod cost nothing.
    pub fn attempts_max(&self) -> usize {
        match self {
            Destination::Stray(_) => STRAY_ATTEMPTS_MAX,
            _ => ATTEMPTS_MAX,
        }
    }

    /// The Service's port, if it is one.
    pub fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Destination::Route(route) | Destination::External(route) => Some(route),
            Destination::Pod(_) | Destination::Stray(_) => None,
        }
    }
}

/// Where this node listens: a balancer's address or, without one, the node's own; and a port.
pub type At = (Option<IpAddr>, u16, Protocol);

/// What comes in where this node listens for a Service.
#[derive(Clone)]
pub struct Entrance {
    /// The Service's port.
    pub route: Arc<Route>,
    /// By a balancer's address: only who is in its source ranges may come in.
    pub balancer: bool,
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
    /// A name of the cluster's domain that nobody has: it is asked for nowhere else.
    #[error("there is no {host} in the cluster")]
    NoName {
        /// As looked up.
        host: String,
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

impl Endpoint {
    /// A Pod of which nothing else is known.
    pub fn new(address: SocketAddr, place: Place) -> Endpoint {
        Endpoint { address, place, load: Arc::default() }
    }
}

impl Route {
    /// The next turn; each caller gets its own.
    pub fn next_turn(&self) -> usize {
        self.shared.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The same Pods at another of their ports.
    fn at_port(&self, port: u16) -> Route {
        let moved =
            |it: &Endpoint| Endpoint::new(SocketAddr::new(it.address.ip(), port), it.place.clone());
        Route {
            service: self.service.clone(),
            port,
            node_port: None,
            name: String::new(),
            endpoints: self.endpoints.iter().map(moved).collect(),
            external: Vec::new(),
            unreachable: self.unreachable,
            affinity: self.affinity,
            hold: false,
            source_ranges: Vec::new(),
            shared: self.shared.clone(),
        }
    }

    /// Whether somebody outside may come in by a balancer's address.
    pub fn admits(&self, client: IpAddr) -> bool {
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|it| it.contains(&client))
    }
}

impl Table {
    /// What comes in there.
    pub fn entrance(&self, at: &At) -> Option<&Entrance> {
        self.doors.entrances.get(at)
    }

    /// Of which Service it is said there how many ready Pods of it this node has, and how many.
    pub fn health(&self, at: &At) -> Option<&(ServiceKey, usize)> {
        self.doors.healths.get(at)
    }

    /// Where this worker has to listen, with the Service's name.
    pub fn entrances(&self) -> BTreeMap<At, String> {
        let Doors { entrances, healths } = &*self.doors;
        let entrances = entrances.iter().map(|(at, entrance)| (at, &entrance.route.service));
        let healths = healths.iter().map(|(at, (service, _))| (at, service));
        healths.chain(entrances).map(|(at, service)| (*at, service.name.clone())).collect()
    }

    /// Whether there is no other node.
    pub fn is_alone(&self) -> bool {
        self.nodes.len() < 2
    }

    /// Every port of every Service, of TCP.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.services.values().flat_map(|all| all.values()).flat_map(|service| &service.ports)
    }

    /// A Service's port by number or name; none of one whose name stands for another name.
    pub fn service_port(&self, service: &ServiceKey, port: &str) -> Option<&Arc<Route>> {
        let service = self.service(service).filter(|service| service.alias.is_none())?;
        let number: Option<u16> = port.parse().ok();
        let is = |route: &&Arc<Route>| match number {
            Some(number) => route.port == number,
            None => route.name == port,
        };
        service.ports.iter().find(is)
    }

    /// Whether an address is one of the virtual network. That of a pool is not: names of the world
    /// outside lead there.
    pub fn is_virtual(&self, ip: IpAddr) -> bool {
        let of_node = |node: &Node| node.blocks.iter().any(|block| block.contains(&ip));
        let of_cluster = |service: &Arc<Service>| service.addresses.contains(&ip);
        self.addresses.get(&ip).is_some_and(of_cluster)
            || self.pods.contains_key(&ip)
            || self.nodes.iter().any(of_node)
    }

    /// Why [`Table::service_port`] has no such port, for people.
    pub fn why_no_port(&self, service: &ServiceKey, port: &str) -> String {
        match self.service(service) {
            None => "does not exist".to_owned(),
            Some(Service { alias: Some(_), .. }) => {
                "is of type ExternalName, which is a name for Pods only; a Service without a \
                 selector and an EndpointSlice lead to addresses outside"
                    .to_owned()
            }
            Some(_) => format!("has no port {port}"),
        }
    }

    fn service(&self, service: &ServiceKey) -> Option<&Service> {
        self.services.get(&service.namespace)?.get(&service.name).map(Arc::as_ref)
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
            return self.resolve_ip(here, host, ip, port, is_local);
        }
        match self.find(here, host)? {
            Found::Service(service) => service.destination(port),
            Found::Pods(ips) => match ips.first() {
                Some(ip) => self.resolve_ip(here, host, *ip, port, is_local),
                None => Err(ResolveError::Outside { host: host.to_owned() }),
            },
        }
    }

    /// The addresses that a name stands for: those of the Service, or of a headless one's Pods.
    pub fn lookup(&self, here: &Here, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let service = match self.find(here, host)? {
            Found::Service(service) => service,
            Found::Pods(ips) => return Ok(ips),
        };
        if !service.headless {
            return Ok(service.addresses.clone());
        }
        let routes = service.ports.iter().chain(&service.datagram_ports);
        let endpoints = routes.flat_map(|route| &route.endpoints);
        let found: BTreeSet<IpAddr> = endpoints.map(|endpoint| endpoint.address.ip()).collect();
        Ok(found.into_iter().collect())
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
            let place = self.pods.get(&ip).map_or(Place::Local, |(place, _)| place.clone());
            return Ok(Destination::Pod(Endpoint::new(address, place)));
        };
        match service.datagram_ports.iter().find(|route| route.port == to.port()) {
            Some(route) => Ok(Destination::Route(route.clone())),
            None => Err(service.no_port(to.port())),
        }
    }

    /// What a name stands for. Aliases are followed.
    fn find(&self, here: &Here, host: &str) -> Result<Found<'_>, ResolveError> {
        let mut name = host.to_owned();
        for _ in 0..ALIASES_MAX {
            match self.find_once(here, &name)? {
                Found::Service(Service { alias: Some(alias), .. }) => name = format!("{alias}."),
                found => return Ok(found),
            }
        }
        Err(ResolveError::Outside { host: host.to_owned() })
    }

    fn find_once(&self, here: &Here, host: &str) -> Result<Found<'_>, ResolveError> {
        let lower = host.to_ascii_lowercase();
        // A name with a dot at its end is whole: nothing is tried behind it.
        let (name, whole) = match lower.strip_suffix('.') {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        let domain = here.cluster_domain.as_str();
        let within = name.strip_suffix(domain).and_then(|within| within.strip_suffix('.'));
        let nobody = || {
            let host = name.to_owned();
            match within.is_some() || name.ends_with(".svc") {
                true => ResolveError::NoName { host },
                false => ResolveError::Outside { host },
            }
        };
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(ResolveError::Forbidden {
                host: host.to_owned(),
                what: "the machine's own name",
            });
        }
        if let Some(pod) = within.and_then(|within| within.strip_suffix(".pod")) {
            return by_address(pod).ok_or_else(nobody);
        }
        let (short, certain) = match within.and_then(|within| within.strip_suffix(".svc")) {
            Some(short) => (short, true),
            None if whole => return Err(nobody()),
            None => match name.strip_suffix(".svc") {
                Some(short) => (short, true),
                None => (name, false),
            },
        };
        let labels: Vec<&str> = short.split('.').collect();
        let (name, namespace) = match labels[..] {
            [name] if !certain => (name, here.namespace.as_str()),
            [name, namespace] => {
                // As the first search domain would have it: a Pod of a Service of the own namespace.
                if !certain && let Some(found) = self.host(name, namespace, &here.namespace) {
                    return Ok(found);
                }
                (name, namespace)
            }
            [host, name, namespace] => {
                let found = self.host(host, name, namespace);
                // As the last search domain would have it.
                let of_pod = if certain { None } else { short.strip_suffix(".pod") };
                return found.or_else(|| by_address(of_pod?)).ok_or_else(nobody);
            }
            _ => return Err(nobody()),
        };
        match self.services.get(namespace).and_then(|services| services.get(name)) {
            Some(service) => Ok(Found::Service(service)),
            // `example.com` could have been a Service `example` in a namespace `com`; say what is
            // more likely meant: only names that can be nothing else are missing Services.
            None if certain || !short.contains('.') || self.services.contains_key(namespace) => {
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                Err(ResolveError::NoService { namespace, name })
            }
            None => Err(nobody()),
        }
    }

    /// A Pod with a name of its own below a Service's.
    fn host(&self, host: &str, service: &str, namespace: &str) -> Option<Found<'_>> {
        let service = self.services.get(namespace)?.get(service)?;
        service.hosts.get(host).map(|ips| Found::Pods(ips.clone()))
    }

    /// The workers behind one of which a Pod must be, those of the caller's namespace first.
    fn stray(&self, here: &Here, address: SocketAddr) -> Option<Destination> {
        let holds = |node: &&Node| node.blocks.iter().any(|it| it.contains(&address.ip()));
        let node = self.nodes.iter().find(holds)?;
        let of_here = |namespace: &str| node.name == here.node && namespace == here.namespace;
        let mut workers: Vec<_> =
            node.workers.iter().filter(|(namespace, _)| !of_here(namespace)).collect();
        workers.sort_by_key(|(namespace, _)| **namespace != here.namespace);
        let endpoint = |(namespace, peer): (&String, &SocketAddr)| {
            let key =
                PeerKey { address: *peer, namespace: namespace.clone(), node: node.name.clone() };
            Endpoint::new(address, Place::Peer(self.peers.get(key)))
        };
        let endpoints: Vec<Endpoint> = workers.into_iter().map(endpoint).collect();
        (!endpoints.is_empty()).then(|| Destination::Stray(Arc::new(endpoints)))
    }

    fn resolve_ip(
        &self,
        here: &Here,
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
            return Ok(Destination::Pod(Endpoint::new(address, Place::Local)));
        }
        let outside = || ResolveError::Outside { host: host.to_owned() };
        match self.pods.get(&ip) {
            Some((place, _)) => Ok(Destination::Pod(Endpoint::new(address, place.clone()))),
            None => self.stray(here, address).ok_or_else(outside),
        }
    }
}

/// A Pod by its address and namespace, `10-64-0-7.shop`, whoever has that address.
fn by_address(name: &str) -> Option<Found<'static>> {
    let (host, namespace) = name.split_once('.')?;
    let ip = dashed_address(host).filter(|_| !namespace.contains('.'))?;
    Some(Found::Pods(vec![ip.to_canonical()]))
}

/// What a name stands for.
enum Found<'a> {
    Service(&'a Service),
    /// Pods with that name of their own.
    Pods(Vec<IpAddr>),
}

impl Service {
    /// Where a node listens for it.
    fn entrances(&self) -> Vec<(At, Entrance)> {
        let mut all = Vec::new();
        let streams = self.ports.iter().map(|route| (route, Protocol::Tcp));
        let datagrams = self.datagram_ports.iter().map(|route| (route, Protocol::Udp));
        for (route, protocol) in streams.chain(datagrams) {
            let entrance = |balancer| Entrance { route: route.clone(), balancer };
            let node_port = route.node_port.map(|port| ((None, port, protocol), entrance(false)));
            all.extend(node_port);
            let balanced = self.balancer_ips.iter();
            all.extend(balanced.map(|ip| ((Some(*ip), route.port, protocol), entrance(true))));
        }
        all
    }

    fn destination(&self, port: u16) -> Result<Destination, ResolveError> {
        if let Some(route) = self.ports.iter().find(|route| route.port == port) {
            return Ok(Destination::Route(route.clone()));
        }
        // The name of a headless Service stands for its Pods, which answer on their own ports.
        let of_pods = |route: &&Arc<Route>| {
            route.endpoints.first().is_some_and(|endpoint| endpoint.address.port() == port)
        };
        if !self.headless {
            return Err(self.no_port(port));
        }
        if let Some(route) = self.ports.iter().find(of_pods) {
            return Ok(Destination::Route(route.clone()));
        }
        let any = self.ports.first().filter(|any| !any.endpoints.is_empty());
        any.map(|any| Destination::Route(Arc::new(any.at_port(port))))
            .ok_or_else(|| self.no_port(port))
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
            .filter(|route| route.port > 0)
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
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
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
    } else {
        ip.is_unspecified().then_some("no address")
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
