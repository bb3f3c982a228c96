//! Who may reach whom: NetworkPolicies, judged when a connection or request begins. Pure.
//!
//! A caller is known by identity, not by address: a Pod of this worker by its labels; one of
//! another worker by what that worker says of it, in the namespace that its certificate names; all
//! others by their address, as from outside. The worker of the Pod that is reached judges both what
//! the caller may leave for and what the Pod lets in, because only there are both known; what
//! leaves the cluster is judged by the caller's worker.
//!
//! ```text
//!   no policy selects a Pod for a direction   all of that direction is allowed, within the cluster
//!   one or more do                            what any rule of any of them allows
//!   outside of the cluster                    only what a rule for egress allows: by ipBlock,
//!                                             by `to: []`, or by a host name (ANNOTATION_HOSTS)
//! ```
//!
//! A policy with [`ANNOTATION_MODE`] `audit` refuses nothing; what it would refuse is reported.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::HeaderValue;
use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{
        apis::meta::v1::LabelSelector as TypedSelector, util::intstr::IntOrString,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wherry_resources::selectors::LabelSelector;

use super::traffic::{OUTSIDE, workload};
use crate::protocol::{self, Direction, Port, Protocol};

/// `audit`: the policy only looks.
const ANNOTATION_MODE: &str = "wherry.dev/policy-mode";
/// Names outside of the cluster that the selected Pods may reach, `host`, `host:port` or
/// `*.domain`, with commas between. Without a port: 80 and 443.
const ANNOTATION_HOSTS: &str = "wherry.dev/egress-hosts";
/// Ports of a host name without any.
const WEB_PORTS: [u16; 2] = [80, 443];
/// Policies that a refusal names; who has more looks them up.
const NAMED_MAX: usize = 3;

/// A Pod as policies see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Its uid; empty for a Pod of another worker.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its labels.
    pub labels: Value,
    /// Its declared ports, for rules that name them.
    pub ports: Vec<Port>,
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Pod {}/{}", self.namespace, self.name)
    }
}

/// Who begins a connection or request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// From where.
    pub ip: IpAddr,
    /// None: from outside of the cluster.
    pub pod: Option<Arc<Subject>>,
    /// What it is counted under.
    pub source: Arc<str>,
    /// What other workers are told.
    word: HeaderValue,
}

/// What one worker tells another of a caller.
#[derive(Serialize, Deserialize)]
struct Word<'a> {
    ip: IpAddr,
    #[serde(borrow)]
    pod: Option<&'a str>,
    labels: Value,
}

impl Caller {
    /// Somebody outside of the cluster.
    pub fn outside(ip: IpAddr) -> Caller {
        Caller::outside_by(ip, OUTSIDE)
    }

    /// Somebody outside of the cluster who comes by a way that is counted apart.
    pub fn outside_by(ip: IpAddr, way: &str) -> Caller {
        let ip = ip.to_canonical();
        Caller { ip, pod: None, source: Arc::from(way), word: word(ip, None) }
    }

    /// A Pod of this worker.
    pub fn pod(subject: Arc<Subject>) -> Caller {
        let name = workload(&subject.name, &subject.labels);
        let source = Arc::from(format!("{}/{name}", subject.namespace));
        let word = word(subject.ip, Some(&subject));
        Caller { ip: subject.ip, source, word, pod: Some(subject) }
    }

    /// What other workers are told.
    pub fn word(&self) -> HeaderValue {
        self.word.clone()
    }

    /// The caller that another worker speaks of. Its namespace is that of the worker's certificate,
    /// whatever it says. Who says nothing is a Pod without labels.
    pub fn of_peer(said: Option<&HeaderValue>, namespace: &str, remote: IpAddr) -> Caller {
        let read: Option<Word<'_>> =
            said.and_then(|said| serde_json::from_slice(said.as_bytes()).ok());
        let (ip, pod, labels) = match &read {
            Some(Word { ip, pod: None, .. }) => return Caller::outside(*ip),
            Some(Word { ip, pod: Some(pod), labels }) => (*ip, *pod, labels.clone()),
            None => (remote, "", json!({})),
        };
        Caller::pod(Arc::new(Subject {
            uid: String::new(),
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
            ip: ip.to_canonical(),
            labels,
            ports: Vec::new(),
        }))
    }
}

fn word(ip: IpAddr, pod: Option<&Subject>) -> HeaderValue {
    let labels = pod.map_or(Value::Null, |pod| pod.labels.clone());
    let word = Word { ip, pod: pod.map(|pod| pod.name.as_str()), labels };
    let text = serde_json::to_string(&word).expect("addresses and labels are JSON");
    // Names and labels are ASCII by the API's rules; who got around them is nobody.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("{}"))
}

/// What the policies say to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody minds.
    Allowed,
    /// It goes on, but a policy that only looks would have refused it.
    Noted(Direction, String),
    /// It does not.
    Denied(Direction, String),
}

/// All policies, prepared.
#[derive(Default)]
pub struct Table {
    policies: HashMap<String, Vec<Policy>>,
    namespaces: HashMap<String, Value>,
    machines: Vec<IpAddr>,
}

struct Policy {
    name: String,
    pods: LabelSelector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
    hosts: Vec<Host>,
    audit: bool,
}

struct Rule {
    /// Empty: everybody.
    peers: Vec<Peer>,
    /// Empty: every port.
    ports: Vec<PortRule>,
}

enum Peer {
    Block(IpNet, Vec<IpNet>),
    /// Pods; without a selector of namespaces those of the policy's own.
    Pods {
        namespaces: Option<LabelSelector>,
        pods: LabelSelector,
    },
    /// A rule that cannot be read allows nobody.
    Nobody,
}

struct PortRule {
    protocol: Option<Protocol>,
    port: PortMatch,
}

enum PortMatch {
    Any,
    Range(u16, u16),
    Named(String),
}

/// A host name that may be reached.
struct Host {
    /// Without the star of `*.domain`, but with its dot.
    name: String,
    port: Option<u16>,
}

/// The other end of a connection.
enum End<'a> {
    Pod(&'a Subject),
    Address(IpAddr, Option<&'a str>),
}

impl Table {
    /// Prepares what the agent said.
    pub fn new(said: protocol::Policies) -> Table {
        let mut policies: HashMap<String, Vec<Policy>> = HashMap::new();
        for policy in said.policies {
            let namespace = policy.metadata.namespace.clone().unwrap_or_default();
            policies.entry(namespace).or_default().push(prepare(policy));
        }
        let labels = |(name, labels): (String, BTreeMap<String, String>)| (name, json!(labels));
        let machines = said.machines.iter().map(IpAddr::to_canonical).collect();
        Table { policies, namespaces: said.namespaces.into_iter().map(labels).collect(), machines }
    }

    /// Whether nothing is to be judged within the cluster.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether an address is that of a node or of the control plane.
    pub fn is_machine(&self, ip: IpAddr) -> bool {
        self.machines.contains(&ip)
    }

    /// Whether a caller may reach a port of a Pod.
    pub fn judge(&self, caller: &Caller, pod: &Subject, port: u16, protocol: Protocol) -> Verdict {
        if self.is_empty() || caller.pod.as_ref().is_some_and(|own| own.ip == pod.ip) {
            return Verdict::Allowed;
        }
        let target = Target { port, protocol, declared: &pod.ports };
        let leaves = match &caller.pod {
            Some(from) => self.direction(from, Direction::Egress, &End::Pod(pod), &target, || {
                format!("{from} may not reach {pod} at port {port}")
            }),
            None => Verdict::Allowed,
        };
        if matches!(leaves, Verdict::Denied(..)) {
            return leaves;
        }
        let end = match &caller.pod {
            Some(from) => End::Pod(from),
            None => End::Address(caller.ip, None),
        };
        let enters = self.direction(pod, Direction::Ingress, &end, &target, || {
            let from = match &caller.pod {
                Some(from) => from.to_string(),
                None => caller.ip.to_string(),
            };
            format!("{pod} does not let {from} in at port {port}")
        });
        if enters == Verdict::Allowed { leaves } else { enters }
    }

    /// Whether a Pod may reach an address outside of the cluster, `host` being the name by which it
    /// asked for it.
    pub fn judge_outside(
        &self,
        from: &Subject,
        to: SocketAddr,
        host: Option<&str>,
        protocol: Protocol,
    ) -> Verdict {
        let target = Target { port: to.port(), protocol, declared: &[] };
        let end = End::Address(to.ip(), host);
        let selecting = self.selecting(from, Direction::Egress);
        let named = |policy: &&Policy| !policy.audit;
        let name = host.map_or_else(|| to.to_string(), |host| format!("{host}:{}", to.port()));
        let why = || format!("{from} may not reach {name} outside of the cluster");
        if !selecting.iter().any(named) {
            let hint = "no NetworkPolicy for egress allows it";
            return Verdict::Denied(Direction::Egress, format!("{}: {hint}", why()));
        }
        self.verdict(&selecting, from, Direction::Egress, &end, &target, why)
    }

    /// Whether a name may be looked up for a Pod: some policy lets it out there by name, or lets it
    /// out by address, which the answer will show. The error is for people.
    pub fn may_look_up(&self, from: &Subject, host: &str, port: u16) -> Result<(), String> {
        let selecting = self.selecting(from, Direction::Egress);
        let opens = |policy: &&Policy| {
            let open = |rule: &Rule| {
                rule.peers.is_empty() || rule.peers.iter().any(|it| matches!(it, Peer::Block(..)))
            };
            let rules = policy.egress.as_deref().unwrap_or_default();
            policy.hosts.iter().any(|it| it.allows(host, port)) || rules.iter().any(open)
        };
        if selecting.iter().any(opens) {
            return Ok(());
        }
        let why = match selecting.is_empty() {
            true => "no NetworkPolicy for egress allows it".to_owned(),
            false => by(&from.namespace, &selecting),
        };
        Err(format!("{from} may not reach {host}:{port} outside of the cluster: {why}"))
    }

    /// Whether a Pod may reach an address outside of the cluster that stands behind a Service.
    /// Who wrote it there may say where a Service leads; so only a policy for egress refuses it.
    pub fn judge_endpoint(&self, from: &Subject, to: SocketAddr) -> Verdict {
        let target = Target { port: to.port(), protocol: Protocol::Tcp, declared: &[] };
        let end = End::Address(to.ip(), None);
        self.direction(from, Direction::Egress, &end, &target, || {
            format!("{from} may not reach {to} outside of the cluster")
        })
    }

    /// Policies that say something about a Pod.
    fn selecting(&self, pod: &Subject, direction: Direction) -> Vec<&Policy> {
        let policies = self.policies.get(&pod.namespace).into_iter().flatten();
        let rules = |policy: &&Policy| policy.rules(direction).is_some();
        policies.filter(rules).filter(|it| it.pods.matches_labels(Some(&pod.labels))).collect()
    }

    fn direction(
        &self,
        pod: &Subject,
        direction: Direction,
        end: &End<'_>,
        target: &Target<'_>,
        why: impl Fn() -> String,
    ) -> Verdict {
        let selecting = self.selecting(pod, direction);
        self.verdict(&selecting, pod, direction, end, target, why)
    }

    fn verdict(
        &self,
        selecting: &[&Policy],
        pod: &Subject,
        direction: Direction,
        end: &End<'_>,
        target: &Target<'_>,
        why: impl Fn() -> String,
    ) -> Verdict {
        let allows = |policy: &&Policy| self.allows(policy, pod, direction, end, target);
        let (audits, strict): (Vec<&Policy>, Vec<&Policy>) =
            selecting.iter().partition(|policy| policy.audit);
        let names = |all: &[&Policy]| by(&pod.namespace, all);
        if !strict.is_empty() && !strict.iter().any(allows) {
            return Verdict::Denied(direction, format!("{}: {}", why(), names(&strict)));
        }
        // Strict ones that let it through open it for good, or say nothing of the Pod.
        if audits.is_empty() || !strict.is_empty() || audits.iter().any(allows) {
            return Verdict::Allowed;
        }
        Verdict::Noted(direction, format!("{}: {}", why(), names(&audits)))
    }

    fn allows(
        &self,
        policy: &Policy,
        pod: &Subject,
        direction: Direction,
        end: &End<'_>,
        target: &Target<'_>,
    ) -> bool {
        let by_name = match (direction, end) {
            (Direction::Egress, End::Address(_, Some(host))) => {
                policy.hosts.iter().any(|it| it.allows(host, target.port))
            }
            _ => false,
        };
        let rules = policy.rules(direction).unwrap_or_default();
        by_name
            || rules.iter().any(|rule| {
                let ports = rule.ports.is_empty() || rule.ports.iter().any(|it| it.fits(target));
                let peer = |peer: &Peer| self.is_peer(peer, &pod.namespace, end);
                ports && (rule.peers.is_empty() || rule.peers.iter().any(peer))
            })
    }

    fn is_peer(&self, peer: &Peer, namespace: &str, end: &End<'_>) -> bool {
        match (peer, end) {
            (Peer::Block(block, except), end) => {
                let ip = match end {
                    End::Pod(pod) => pod.ip,
                    End::Address(ip, _) => *ip,
                };
                block.contains(&ip) && !except.iter().any(|block| block.contains(&ip))
            }
            (Peer::Pods { namespaces, pods }, End::Pod(other)) => {
                let there = match namespaces {
                    None => other.namespace == namespace,
                    Some(selector) => {
                        selector.matches_labels(self.namespaces.get(&other.namespace))
                    }
                };
                there && pods.matches_labels(Some(&other.labels))
            }
            (Peer::Pods { .. }, End::Address(..)) | (Peer::Nobody, _) => false,
        }
    }
}

/// `NetworkPolicy a/b` and perhaps others.
fn by(namespace: &str, policies: &[&Policy]) -> String {
    let shown = policies.iter().take(NAMED_MAX);
    let shown: Vec<String> = shown.map(|it| format!("{namespace}/{}", it.name)).collect();
    let more = policies.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("NetworkPolicy {}{more}", shown.join(", "))
}

/// The port that is reached.
struct Target<'a> {
    port: u16,
    protocol: Protocol,
    declared: &'a [Port],
}

impl Policy {
    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl PortRule {
    fn fits(&self, target: &Target<'_>) -> bool {
        self.protocol == Some(target.protocol)
            && match &self.port {
                PortMatch::Any => true,
                PortMatch::Range(first, last) => (*first..=*last).contains(&target.port),
                PortMatch::Named(name) => target.declared.iter().any(|declared| {
                    declared.name.as_deref() == Some(name.as_str())
                        && declared.port == target.port
                        && declared.protocol == target.protocol
                }),
            }
    }
}

impl Host {
    fn read(text: &str) -> Option<Host> {
        let text = text.trim().to_ascii_lowercase();
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port.parse().ok()?)),
            None => (text, None),
        };
        let name = name.strip_prefix('*').map_or(name.clone(), str::to_owned);
        (!name.is_empty() && !name.contains('*')).then_some(Host { name, port })
    }

    fn allows(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let name = match self.name.starts_with('.') {
            true => host.ends_with(&self.name) && host.len() > self.name.len(),
            false => host == self.name,
        };
        name && self.port.map_or(WEB_PORTS.contains(&port), |own| own == port)
    }
}

fn prepare(policy: NetworkPolicy) -> Policy {
    let spec = policy.spec.unwrap_or_default();
    let annotations = policy.metadata.annotations.unwrap_or_default();
    let hosts: Vec<Host> = annotations
        .get(ANNOTATION_HOSTS)
        .map(|hosts| hosts.split(',').filter_map(Host::read).collect())
        .unwrap_or_default();
    let types = spec.policy_types.unwrap_or_else(|| {
        let egress = spec.egress.is_some().then(|| "Egress".to_owned());
        [Some("Ingress".to_owned()), egress].into_iter().flatten().collect()
    });
    let is = |kind: &str| types.iter().any(|it| it == kind);
    let ingress = spec.ingress.unwrap_or_default().into_iter();
    let egress = spec.egress.unwrap_or_default().into_iter();
    Policy {
        name: policy.metadata.name.unwrap_or_default(),
        pods: spec.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector),
        ingress: is("Ingress")
            .then(|| ingress.map(|rule| prepare_rule(rule.from, rule.ports)).collect()),
        // Names are a way out: they make the policy one for egress.
        egress: (is("Egress") || !hosts.is_empty())
            .then(|| egress.map(|rule| prepare_rule(rule.to, rule.ports)).collect()),
        hosts,
        audit: annotations.get(ANNOTATION_MODE).is_some_and(|mode| mode == "audit"),
    }
}

fn prepare_rule(
    peers: Option<Vec<NetworkPolicyPeer>>,
    ports: Option<Vec<NetworkPolicyPort>>,
) -> Rule {
    Rule {
        peers: peers.into_iter().flatten().map(prepare_peer).collect(),
        ports: ports.into_iter().flatten().map(prepare_port).collect(),
    }
}

fn prepare_peer(peer: NetworkPolicyPeer) -> Peer {
    if let Some(IPBlock { cidr, except }) = peer.ip_block {
        let except = except.into_iter().flatten().filter_map(|block| block.parse().ok());
        return match cidr.parse() {
            Ok(block) => Peer::Block(block, except.collect()),
            Err(_) => Peer::Nobody,
        };
    }
    let pods = peer.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector);
    Peer::Pods { namespaces: peer.namespace_selector.as_ref().map(selector), pods }
}

fn prepare_port(port: NetworkPolicyPort) -> PortRule {
    let number = |number: i32| u16::try_from(number).ok();
    let matched = match (port.port, port.end_port) {
        (None, _) => Some(PortMatch::Any),
        (Some(IntOrString::Int(first)), None) => {
            number(first).map(|first| PortMatch::Range(first, first))
        }
        (Some(IntOrString::Int(first)), Some(last)) => {
            number(first).zip(number(last)).map(|(first, last)| PortMatch::Range(first, last))
        }
        (Some(IntOrString::String(name)), _) => Some(PortMatch::Named(name)),
    };
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        // Nothing of this cluster speaks it.
        Some(_) => None,
    };
    // What cannot be read matches nothing: an empty range.
    PortRule { protocol, port: matched.unwrap_or(PortMatch::Range(1, 0)) }
}

/// A selector that cannot be read selects nothing.
fn selector(typed: &TypedSelector) -> LabelSelector {
    LabelSelector::from_typed(Some(&json!(typed))).unwrap_or_else(|_| LabelSelector::nothing())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
