//! The names of the cluster, and what DNS answers to them. Pure: no I/O, no clock, no tasks.
//!
//! | name, below the cluster's domain | types | answer |
//! |---|---|---|
//! | `svc.ns.svc` | A, AAAA | the Service's addresses; of a headless one those of its Pods |
//! | `svc.ns.svc` of an ExternalName | all | CNAME, and what follows while it stays in the domain |
//! | `host.svc.ns.svc` | A, AAAA | the Pods with that name of their own |
//! | `10-64-0-7.ns.pod` | A, AAAA | that address, whoever has it |
//! | `_port._tcp.svc.ns.svc` | SRV | the Service and its port; of a headless one each Pod |
//! | `ns.dns`, `dns-version`, the domain itself | A, TXT, SOA, NS | about this server |
//! | an address below `in-addr.arpa`, `ip6.arpa` | PTR | the Services and Pods that have it |
//!
//! This is the specification of DNS-based service discovery of Kubernetes, version 1.1.0. Below a
//! headless Service a Pod without a name of its own has its address as name, `10-64-0-7`; one
//! without any ready Pod has no name at all. A name that exists without records of the wanted type,
//! or only because names below it exist, is NODATA; any other in the domain NXDOMAIN; what is of no
//! zone of ours is refused. Names of Pods by their address alone are the specification's deprecated
//! ones, which it still requires.
//!
//! Which Pods there are is what guests are told too: the endpoints for callers within the cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use domain::base::iana::{OptRcode, Rtype};
use ipnet::IpNet;

use crate::protocol::{Protocol, ServiceKey, ServiceRoute, dashed_address};

use super::super::routes::Changed;

/// For how long answers are good, in seconds: Pods come and go.
const TTL: u32 = 5;
/// Records of one answer: more fit in no message.
const RECORDS_MAX: usize = 2_000;
/// Names that stand for names that stand for names: more is a circle.
const ALIASES_MAX: usize = 8;
/// Version of the specification, told by `dns-version`.
const SPECIFICATION: &str = "1.1.0";

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose, in lower case, without a dot at the end.
    pub name: String,
    /// For how many seconds it is good.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name stands for another.
    Cname(String),
    /// Name of an address.
    Ptr(String),
    /// Who knows the zone.
    Ns(String),
    /// A port, and the name of who has it.
    Srv {
        /// Its share among records of one priority.
        weight: u16,
        /// Port.
        port: u16,
        /// Name.
        target: String,
    },
    /// Text of at most 255 bytes.
    Txt(String),
    /// Who the zone belongs to.
    Soa {
        /// The domain.
        domain: String,
        /// Grows with every change.
        serial: u32,
    },
    /// Instead of everything there is, by RFC 8482.
    Hinfo(&'static str),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub code: OptRcode,
    /// The question is about a zone of ours.
    pub authoritative: bool,
    /// The records.
    pub records: Vec<Record>,
    /// Who says that there are none.
    pub authority: Vec<Record>,
    /// Addresses of names in the records, if there is room.
    pub extra: Vec<Record>,
}

impl Answer {
    /// Nothing but a code.
    pub fn only(code: OptRcode) -> Answer {
        let (records, authority, extra) = (Vec::new(), Vec::new(), Vec::new());
        Answer { code, authoritative: false, records, authority, extra }
    }
}

/// All names.
#[derive(Debug)]
pub struct Zone {
    domain: String,
    /// The node's address, which is the name server's.
    own: IpAddr,
    services: BTreeMap<ServiceKey, Entry>,
    /// Names of addresses.
    reverse: HashMap<IpAddr, BTreeSet<String>>,
    /// Where Pods of each node have their addresses: the reverse zones.
    blocks: BTreeMap<String, Vec<IpNet>>,
    serial: u32,
    /// Everything has been listed once. Before, a name that is missing may exist.
    complete: bool,
}

/// Names of one Service.
#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    alias: Option<String>,
    headless: bool,
    /// Pods by their names below the Service's.
    pods: BTreeMap<String, BTreeSet<IpAddr>>,
    ports: Vec<Port>,
}

/// A named port.
#[derive(Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    port: u16,
    /// Of a headless Service: names of Pods, and where they take it.
    pods: BTreeSet<(String, u16)>,
}

/// What a name is.
enum Found<'a> {
    Apex,
    NameServer,
    Version,
    /// There are names below it.
    Between,
    Service(&'a Entry),
    Address(IpAddr),
    Pods(&'a BTreeSet<IpAddr>),
    Port(&'a Entry, &'a Port, String),
}

impl Zone {
    /// Without any Service.
    pub fn new(domain: &str, own: IpAddr) -> Zone {
        Zone {
            domain: domain.to_owned(),
            own,
            services: BTreeMap::new(),
            reverse: HashMap::new(),
            blocks: BTreeMap::new(),
            serial: 1,
            complete: false,
        }
    }

    /// From now on a name that is missing does not exist.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Takes in what became of a Service.
    pub fn apply(&mut self, change: &Changed) {
        self.serial = self.serial.wrapping_add(1).max(1);
        match change {
            Changed::Remove(key) => self.remove(key),
            Changed::Upsert(route) => {
                self.remove(&route.key);
                let entry = entry(route);
                for (address, name) in self.names(&route.key, &entry) {
                    self.reverse.entry(address).or_default().insert(name);
                }
                self.services.insert(route.key.clone(), entry);
            }
        }
    }

    /// Where a node's Pods have their addresses; none once it is gone.
    pub fn set_blocks(&mut self, node: &str, blocks: &[String]) {
        let blocks: Vec<IpNet> = blocks.iter().filter_map(|block| block.parse().ok()).collect();
        if blocks.is_empty() {
            self.blocks.remove(node);
        } else {
            self.blocks.insert(node.to_owned(), blocks);
        }
    }

    fn remove(&mut self, key: &ServiceKey) {
        let Some(entry) = self.services.remove(key) else { return };
        for (address, name) in self.names(key, &entry) {
            if let Some(names) = self.reverse.get_mut(&address) {
                names.remove(&name);
                if names.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
    }

    /// Every address of a Service with the name that it gets from it.
    fn names(&self, key: &ServiceKey, entry: &Entry) -> Vec<(IpAddr, String)> {
        let service = self.service_name(key);
        let own = entry.addresses.iter().map(|ip| (*ip, service.clone()));
        let pods = entry.pods.iter().flat_map(|(host, ips)| {
            let name = format!("{host}.{service}");
            ips.iter().map(move |ip| (*ip, name.clone()))
        });
        own.chain(pods).collect()
    }

    fn service_name(&self, key: &ServiceKey) -> String {
        format!("{}.{}.svc.{}", key.name, key.namespace, self.domain)
    }

    fn name_server(&self) -> String {
        format!("ns.dns.{}", self.domain)
    }

    /// Who says so, in the domain or in a zone of addresses.
    fn soa(&self, zone: &str) -> Record {
        let data = Data::Soa { domain: self.domain.clone(), serial: self.serial };
        Record { name: zone.to_owned(), ttl: TTL, data }
    }

    /// Answers a question of class IN about a name, by its labels in lower case.
    pub fn answer(&self, labels: &[String], wanted: Rtype) -> Answer {
        let (own, address) = (self.below_domain(labels), reverse_address(labels));
        if own.is_none() && address.is_none() || matches!(wanted, Rtype::AXFR | Rtype::IXFR) {
            return Answer::only(OptRcode::REFUSED);
        }
        if !self.complete {
            return Answer::only(OptRcode::SERVFAIL);
        }
        let found = match (own, address) {
            (Some(own), _) => Some(self.answer_own(own, labels.join("."), wanted)),
            (None, Some(address)) => self.answer_reverse(address, labels, wanted),
            (None, None) => None,
        };
        let Some(mut answer) = found else { return Answer::only(OptRcode::REFUSED) };
        answer.authoritative = true;
        answer.records.truncate(RECORDS_MAX);
        answer.extra.truncate(RECORDS_MAX);
        answer
    }

    /// The labels before those of the domain.
    fn below_domain(&self, labels: &[String]) -> Option<Vec<String>> {
        let domain: Vec<&str> = self.domain.split('.').collect();
        let before = labels.len().checked_sub(domain.len())?;
        let (own, end) = labels.split_at(before);
        let same = end.iter().zip(&domain).all(|(label, wanted)| label == wanted);
        same.then(|| own.to_vec())
    }

    /// A name of the domain. Aliases are followed as long as they stay in it.
    fn answer_own(&self, mut own: Vec<String>, mut name: String, wanted: Rtype) -> Answer {
        let mut answer = Answer::only(OptRcode::NOERROR);
        for _ in 0..ALIASES_MAX {
            let alias = match self.find(&own) {
                Some(Found::Service(Entry { alias: Some(alias), .. })) => normal(alias),
                Some(found) => {
                    let aliases = answer.records.len();
                    self.tell(&found, &name, wanted, &mut answer);
                    if answer.records.len() == aliases {
                        answer.authority.push(self.soa(&self.domain));
                    }
                    return answer;
                }
                None => {
                    answer.code = OptRcode::NXDOMAIN;
                    answer.authority.push(self.soa(&self.domain));
                    return answer;
                }
            };
            let data = Data::Cname(alias.clone());
            answer.records.push(Record { name, ttl: TTL, data });
            let labels: Vec<String> = alias.split('.').map(str::to_owned).collect();
            match self.below_domain(&labels).filter(|_| wanted != Rtype::CNAME) {
                None => return answer,
                Some(below) => own = below,
            }
            name = alias;
        }
        Answer::only(OptRcode::SERVFAIL)
    }

    fn find(&self, own: &[String]) -> Option<Found<'_>> {
        let labels: Vec<&str> = own.iter().map(String::as_str).collect();
        let (before, service) = match labels[..] {
            [] => return Some(Found::Apex),
            ["svc" | "dns" | "pod"] | [_, "pod"] => return Some(Found::Between),
            [host, _, "pod"] => return dashed_address(host).map(Found::Address),
            ["ns", "dns"] => return Some(Found::NameServer),
            ["dns-version"] => return Some(Found::Version),
            [namespace, "svc"] => {
                let first = ServiceKey { namespace: namespace.to_owned(), name: String::new() };
                let next = self.services.range(first..).next();
                let any = next.is_some_and(|(key, _)| key.namespace == namespace);
                return any.then_some(Found::Between);
            }
            [ref before @ .., name, namespace, "svc"] => {
                (before, ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => return None,
        };
        let entry = self.services.get(&service)?;
        let alone = entry.headless && entry.pods.is_empty();
        if alone || entry.alias.is_some() && !before.is_empty() {
            return None;
        }
        match before {
            [] => Some(Found::Service(entry)),
            [protocol] if protocol.starts_with('_') => {
                let is = |port: &Port| word(port.protocol) == *protocol;
                entry.ports.iter().any(is).then_some(Found::Between)
            }
            [host] => entry.pods.get(*host).map(Found::Pods),
            [port, protocol] => {
                let name = port.strip_prefix('_')?;
                let is = |it: &&Port| it.name == name && word(it.protocol) == *protocol;
                let port = entry.ports.iter().find(is)?;
                Some(Found::Port(entry, port, self.service_name(&service)))
            }
            _ => None,
        }
    }

    /// Adds the records of the wanted type.
    fn tell(&self, found: &Found<'_>, name: &str, wanted: Rtype, answer: &mut Answer) {
        let record = |data| Record { name: name.to_owned(), ttl: TTL, data };
        if wanted == Rtype::ANY {
            answer.records.push(record(Data::Hinfo("RFC8482")));
            return;
        }
        match found {
            Found::Apex => match wanted {
                Rtype::SOA => answer.records.push(self.soa(&self.domain)),
                Rtype::NS => {
                    answer.records.push(record(Data::Ns(self.name_server())));
                    answer.extra.extend(address(&self.name_server(), self.own));
                }
                _ => {}
            },
            Found::NameServer => {
                answer.records.extend(address(name, self.own).filter(|it| it.is(wanted)));
            }
            Found::Version if wanted == Rtype::TXT => {
                answer.records.push(record(Data::Txt(SPECIFICATION.to_owned())));
            }
            Found::Version | Found::Between => {}
            Found::Service(entry) => {
                let all = entry.all_addresses().filter_map(|ip| address(name, ip));
                answer.records.extend(all.filter(|it| it.is(wanted)));
            }
            Found::Address(ip) => {
                answer.records.extend(address(name, *ip).filter(|it| it.is(wanted)));
            }
            Found::Pods(ips) => {
                let all = ips.iter().filter_map(|ip| address(name, *ip));
                answer.records.extend(all.filter(|it| it.is(wanted)));
            }
            Found::Port(entry, port, service) if wanted == Rtype::SRV => {
                self.tell_port(entry, port, service, name, answer);
            }
            Found::Port(..) => {}
        }
    }

    fn tell_port(
        &self,
        entry: &Entry,
        port: &Port,
        service: &str,
        name: &str,
        answer: &mut Answer,
    ) {
        let srv = |weight, port, target| {
            let data = Data::Srv { weight, port, target };
            Record { name: name.to_owned(), ttl: TTL, data }
        };
        if !entry.headless {
            answer.records.push(srv(100, port.port, service.to_owned()));
            let own = entry.addresses.iter().filter_map(|ip| address(service, *ip));
            answer.extra.extend(own);
            return;
        }
        let weight = (100 / port.pods.len().clamp(1, 100)) as u16;
        for (host, number) in port.pods.iter().take(RECORDS_MAX) {
            let target = format!("{host}.{service}");
            for ip in entry.pods.get(host).into_iter().flatten() {
                answer.extra.extend(address(&target, *ip));
            }
            answer.records.push(srv(weight, *number, target));
        }
    }

    /// `None` for addresses of others.
    fn answer_reverse(&self, ip: IpAddr, labels: &[String], wanted: Rtype) -> Option<Answer> {
        let mut answer = Answer::only(OptRcode::NOERROR);
        let zone = labels[labels.len().saturating_sub(2)..].join(".");
        let Some(names) = self.reverse.get(&ip) else {
            let ours = self.blocks.values().flatten().any(|block| block.contains(&ip));
            answer.code = OptRcode::NXDOMAIN;
            answer.authority.push(self.soa(&zone));
            return ours.then_some(answer);
        };
        if wanted != Rtype::PTR {
            answer.authority.push(self.soa(&zone));
        } else {
            let name = labels.join(".");
            let record =
                |it: &String| Record { name: name.clone(), ttl: TTL, data: Data::Ptr(it.clone()) };
            answer.records.extend(names.iter().map(record));
        }
        Some(answer)
    }
}

impl Entry {
    fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let pods: BTreeSet<IpAddr> = match self.headless {
            true => self.pods.values().flatten().copied().collect(),
            false => BTreeSet::new(),
        };
        self.addresses.iter().copied().chain(pods)
    }
}

impl Data {
    /// Its type.
    fn kind(&self) -> Rtype {
        match self {
            Data::A(_) => Rtype::A,
            Data::Aaaa(_) => Rtype::AAAA,
            Data::Cname(_) => Rtype::CNAME,
            Data::Ptr(_) => Rtype::PTR,
            Data::Ns(_) => Rtype::NS,
            Data::Srv { .. } => Rtype::SRV,
            Data::Txt(_) => Rtype::TXT,
            Data::Soa { .. } => Rtype::SOA,
            Data::Hinfo(_) => Rtype::HINFO,
        }
    }
}

impl Record {
    fn is(&self, wanted: Rtype) -> bool {
        self.data.kind() == wanted
    }
}

/// The names that a Service gives.
fn entry(route: &ServiceRoute) -> Entry {
    let alias = route.external_name.clone();
    let headless = route.cluster_ips.is_empty() && alias.is_none();
    let mut pods: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut ports = Vec::new();
    for port in &route.ports {
        let mut of_port = BTreeSet::new();
        for endpoint in port.endpoints.iter().filter(|endpoint| endpoint.internal) {
            let Some(host) = endpoint.name_below(headless) else { continue };
            let host = host.to_ascii_lowercase();
            let ip = endpoint.address.ip().to_canonical();
            pods.entry(host.clone()).or_default().insert(ip);
            if headless {
                of_port.insert((host, endpoint.address.port()));
            }
        }
        if !port.name.is_empty() {
            let name = port.name.to_ascii_lowercase();
            ports.push(Port { name, protocol: port.protocol, port: port.port, pods: of_port });
        }
    }
    let addresses = route.cluster_ips.iter().map(IpAddr::to_canonical).collect();
    Entry { addresses, alias, headless, pods, ports }
}

fn address(name: &str, ip: IpAddr) -> Option<Record> {
    let data = match ip {
        ip if ip.is_unspecified() => return None,
        IpAddr::V4(ip) => Data::A(ip),
        IpAddr::V6(ip) => Data::Aaaa(ip),
    };
    Some(Record { name: name.to_owned(), ttl: TTL, data })
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
    }
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is about, if it is whole.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [d, c, b, a, "in-addr", "arpa"] => {
            let number = |label: &str| {
                let plain = label.bytes().all(|byte| byte.is_ascii_digit());
                label.parse::<u8>().ok().filter(|_| plain)
            };
            Some(IpAddr::from([number(a)?, number(b)?, number(c)?, number(d)?]))
        }
        [ref nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut bits = 0_u128;
            for nibble in nibbles.iter().rev() {
                let digit = nibble.chars().next().filter(|_| nibble.len() == 1)?.to_digit(16)?;
                bits = (bits << 4) | u128::from(digit);
            }
            Some(IpAddr::from(bits.to_be_bytes()).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
