//! A Service's cluster address and node ports.
//!
//! Addresses are taken from the state of the store plus what is being written at this moment.
//! [`Allocations::reserve`] reads the Services and reserves under one lock; the reservation is given
//! back after the write, when the state shows it. So two requests of this process never get the
//! same address, and only the leader's process writes. If the outcome of a write is not known, its
//! reservation stays until the process ends.

use super::Context;
use crate::apiserver::errors::{self, ApiError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wherry_resources::validate::Reason;
use wherry_resources::{Kind, Object, meta};

/// Cluster addresses are in 172.20.0.0/16.
const ADDRESS_BASE: u32 = u32::from_be_bytes([172, 20, 0, 0]);
const ADDRESS_COUNT: u32 = 1 << 16;
/// The first of them are for Services that name their address (`kubernetes` has 172.20.0.1).
const ADDRESS_STATIC: u32 = 256;
/// Node ports, both ends included, as in Kubernetes.
const PORT_FIRST: u16 = 30_000;
const PORT_LAST: u16 = 32_767;

/// Addresses and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    addresses: BTreeSet<u32>,
    ports: BTreeSet<(String, u16)>,
}

impl Taken {
    fn add(&mut self, service: &Object) {
        self.addresses.extend(addresses(service));
        self.ports.extend(node_ports(service));
    }
}

/// What each Service has, by namespace and name, and how many have an address or a port. Followed,
/// for to look at all Services for each one that is made takes longer the more there are.
#[derive(Clone, Default)]
pub struct Known {
    each: BTreeMap<(String, String), Taken>,
    addresses: BTreeMap<u32, usize>,
    ports: BTreeMap<(String, u16), usize>,
}

impl Known {
    pub fn has(&mut self, namespace: &str, name: &str, service: &Object) {
        self.gone(namespace, name);
        let mut taken = Taken::default();
        taken.add(service);
        for address in &taken.addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
        for port in &taken.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        self.each.insert((namespace.to_owned(), name.to_owned()), taken);
    }

    pub fn gone(&mut self, namespace: &str, name: &str) {
        let had = self.each.remove(&(namespace.to_owned(), name.to_owned())).unwrap_or_default();
        had.addresses.iter().for_each(|address| one_less(&mut self.addresses, address));
        had.ports.iter().for_each(|port| one_less(&mut self.ports, port));
    }
}

fn one_less<T: Ord>(counts: &mut BTreeMap<T, usize>, of: &T) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

/// Whom a Service must not take anything from.
struct Others<'a> {
    known: &'a Known,
    reserved: &'a Taken,
    /// What it has itself, of what is known.
    own: Option<&'a Taken>,
}

impl Others<'_> {
    fn have_address(&self, address: u32) -> bool {
        let own = self.own.is_some_and(|own| own.addresses.contains(&address));
        let count = self.known.addresses.get(&address).copied().unwrap_or_default();
        count > usize::from(own) || self.reserved.addresses.contains(&address)
    }

    fn have_port(&self, port: &(String, u16)) -> bool {
        let own = self.own.is_some_and(|own| own.ports.contains(port));
        let count = self.known.ports.get(port).copied().unwrap_or_default();
        count > usize::from(own) || self.reserved.ports.contains(port)
    }
}

/// What a Service gets, and everything that it then has.
pub type Granted = Result<(Grant, Taken), ApiError>;

/// What is reserved by writes on their way.
#[derive(Clone, Default)]
pub struct Allocations {
    // Held while Services are read and a free address is found; never across an await.
    reserved: Arc<Mutex<Taken>>,
}

/// What a Service gets: the values for its empty fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    address: Option<Ipv4Addr>,
    /// By index of the port.
    ports: Vec<(usize, u16)>,
    /// Where nodes say whether they have Pods of it.
    health: Option<u16>,
}

/// Given back by [`Reservation::settle`], or when dropped.
pub struct Reservation {
    allocations: Option<Allocations>,
    taken: Taken,
}

impl Reservation {
    /// Nothing is reserved.
    pub fn none() -> Reservation {
        Reservation { allocations: None, taken: Taken::default() }
    }

    /// Gives the addresses back, unless nobody knows whether the Service was written.
    pub fn settle(mut self, unknown: bool) {
        if unknown {
            self.allocations = None;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(allocations) = &self.allocations else {
            return;
        };
        let mut reserved = allocations.lock();
        reserved.addresses.retain(|address| !self.taken.addresses.contains(address));
        reserved.ports.retain(|port| !self.taken.ports.contains(port));
    }
}

impl Allocations {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides what `new` gets and holds it. `read` shows what all Services have, under the lock:
    /// whatever was given back before shows in it.
    pub fn reserve(
        &self,
        read: impl FnOnce(&dyn Fn(&Known) -> Granted) -> Granted,
        new: &Object,
        old: Option<&Object>,
        random: u64,
    ) -> Result<(Grant, Reservation), ApiError> {
        let mut reserved = self.lock();
        let name = (meta::namespace(new).to_owned(), meta::name(new).to_owned());
        let (grant, held) = read(&|known: &Known| {
            let own = old.and_then(|_| known.each.get(&name));
            grant(new, old, &Others { known, reserved: &reserved, own }, random)
        })?;
        // What the old object has is in the state already.
        let mut before = Taken::default();
        old.into_iter().for_each(|old| before.add(old));
        let taken = Taken {
            addresses: &held.addresses - &before.addresses,
            ports: &held.ports - &before.ports,
        };
        reserved.addresses.extend(&taken.addresses);
        reserved.ports.extend(taken.ports.iter().cloned());
        drop(reserved);
        Ok((grant, Reservation { allocations: Some(self.clone()), taken }))
    }
}

fn kind() -> &'static Kind {
    wherry_resources::kind("", "v1", "services").expect("Service is a built-in kind")
}

fn text<'a>(service: &'a Object, path: &str) -> &'a str {
    service.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn ports(service: &Object) -> &[Value] {
    service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn addresses(service: &Object) -> Vec<u32> {
    let address = text(service, "/spec/clusterIP").parse::<Ipv4Addr>();
    address.map(u32::from).into_iter().collect()
}

/// All its ports of nodes.
fn node_ports(service: &Object) -> Vec<(String, u16)> {
    let health = health_port(service).map(|number| ("TCP".to_owned(), number));
    ports(service).iter().filter_map(node_port).chain(health).collect()
}

fn node_port(port: &Value) -> Option<(String, u16)> {
    Some((protocol(port).to_owned(), number(port.get("nodePort")?)?))
}

fn health_port(service: &Object) -> Option<u16> {
    service.pointer("/spec/healthCheckNodePort").and_then(number)
}

/// A port's; none is none, and so is 0.
fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|number| *number > 0)
}

fn protocol(port: &Value) -> &str {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
}

fn wants_address(service: &Object) -> bool {
    text(service, "/spec/type") != "ExternalName"
}

fn wants_node_ports(service: &Object) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false))
        }
        _ => false,
    }
}

/// A balancer in front of the nodes can ask them where Pods of such a Service are.
fn wants_health_port(service: &Object) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Decides what a Service gets: pure.
fn grant(new: &Object, old: Option<&Object>, others: &Others<'_>, random: u64) -> Granted {
    let invalid = |field: &str, message: String| {
        let error = errors::field(Reason::Invalid, field, message);
        ApiError::invalid(kind(), meta::name(new), vec![error])
    };
    let mut grant = Grant::default();
    let mut held = Taken::default();
    let kept = old.filter(|old| wants_address(old)).map_or("", |old| text(old, "/spec/clusterIP"));
    match text(new, "/spec/clusterIP") {
        _ if !wants_address(new) => {}
        "None" => {}
        "" if kept == "None" => {}
        "" => {
            let address = match kept.parse::<Ipv4Addr>() {
                Ok(kept) => u32::from(kept),
                Err(_) => free_address(others, random).ok_or_else(|| {
                    let why = "failed to allocate a serviceIP: range is full";
                    ApiError::Internal(why.to_owned())
                })?,
            };
            grant.address = Some(address.into());
            held.addresses.insert(address);
        }
        // What it has it keeps: validation says so, whichever address was meant.
        asked if !kept.is_empty() && asked != kept => {}
        asked => {
            let address = u32::from(asked.parse::<Ipv4Addr>().map_err(|_| {
                let why = "must be empty, 'None', or a valid IP address";
                invalid("spec.clusterIPs[0]", format!("Invalid value: {asked:?}: {why}"))
            })?);
            let failed = |why: &str| {
                let message =
                    format!("Invalid value: [{asked:?}]: failed to allocate IP {asked}: {why}");
                invalid("spec.clusterIPs", message)
            };
            let offset = address.wrapping_sub(ADDRESS_BASE);
            if offset == 0 || offset >= ADDRESS_COUNT - 1 {
                return Err(failed(
                    "the provided IP is not in the valid range. The range of valid IPs is \
                     172.20.0.0/16",
                ));
            }
            if kept.is_empty() && others.have_address(address) {
                return Err(failed("provided IP is already allocated"));
            }
            held.addresses.insert(address);
        }
    }
    node_port_grants(new, old, others, random, &mut grant, &mut held)
        .and_then(|()| health_port_grant(new, old, others, random, &mut grant, &mut held))
        .map_err(|(field, message)| invalid(&field, message))?;
    Ok((grant, held))
}

type FieldFault = (String, String);

fn node_port_grants(
    new: &Object,
    old: Option<&Object>,
    others: &Others<'_>,
    random: u64,
    grant: &mut Grant,
    held: &mut Taken,
) -> Result<(), FieldFault> {
    let own: Vec<(String, u16)> = old.map(node_ports).unwrap_or_default();
    for (index, port) in ports(new).iter().enumerate() {
        let Some(wanted) = node_port(port) else {
            continue;
        };
        hold(wanted, &own, others, held)
            .map_err(|why| (format!("spec.ports[{index}].nodePort"), why))?;
    }
    if !wants_node_ports(new) {
        return Ok(());
    }
    for (index, port) in ports(new).iter().enumerate() {
        if node_port(port).is_some() {
            continue;
        }
        let protocol = protocol(port).to_owned();
        // A port that the client sends without its number keeps the one it had.
        let same = |other: &&Value| {
            other.get("port") == port.get("port") && self::protocol(other) == protocol
        };
        let kept = old.and_then(|old| ports(old).iter().find(same)).and_then(node_port);
        let number = kept.filter(|kept| !held.ports.contains(kept)).map(|kept| kept.1);
        let number =
            number.or_else(|| free_port(others, held, &protocol, random)).ok_or_else(|| {
                let why = "failed to allocate a nodePort: range is full";
                (format!("spec.ports[{index}].nodePort"), why.to_owned())
            })?;
        held.ports.insert((protocol, number));
        grant.ports.push((index, number));
    }
    Ok(())
}

/// The port at which nodes say whether they have Pods of it: the one it asks for or had, else a free one.
fn health_port_grant(
    new: &Object,
    old: Option<&Object>,
    others: &Others<'_>,
    random: u64,
    grant: &mut Grant,
    held: &mut Taken,
) -> Result<(), FieldFault> {
    // Validation refuses one that is asked for in vain.
    if !wants_health_port(new) {
        return Ok(());
    }
    let fault = |why: String| ("spec.healthCheckNodePort".to_owned(), why);
    let own = old.map(node_ports).unwrap_or_default();
    let kept = || old.filter(|old| wants_health_port(old)).and_then(health_port);
    if let Some(number) = health_port(new).or_else(kept) {
        hold(("TCP".to_owned(), number), &own, others, held).map_err(fault)?;
        grant.health = Some(number);
        return Ok(());
    }
    let number = free_port(others, held, "TCP", random)
        .ok_or_else(|| fault("failed to allocate a HealthCheck NodePort: range is full".into()))?;
    held.ports.insert(("TCP".to_owned(), number));
    grant.health = Some(number);
    Ok(())
}

/// Takes a port that is asked for, or says why it cannot be had.
fn hold(
    wanted: (String, u16),
    own: &[(String, u16)],
    others: &Others<'_>,
    held: &mut Taken,
) -> Result<(), String> {
    let number = wanted.1;
    if !(PORT_FIRST..=PORT_LAST).contains(&number) && !own.contains(&wanted) {
        return Err(format!(
            "Invalid value: {number}: provided port is not in the valid range. The range of valid \
             ports is {PORT_FIRST}-{PORT_LAST}"
        ));
    }
    if others.have_port(&wanted) || !held.ports.insert(wanted) {
        return Err(format!("Invalid value: {number}: provided port is already allocated"));
    }
    Ok(())
}

/// The first free address behind a random place.
fn free_address(others: &Others<'_>, random: u64) -> Option<u32> {
    // Without the network's own and the broadcast address.
    let count = ADDRESS_COUNT - ADDRESS_STATIC - 1;
    let start = u32::try_from(random % u64::from(count)).expect("a remainder is below its divisor");
    (0..count)
        .map(|step| ADDRESS_BASE + ADDRESS_STATIC + (start + step) % count)
        .find(|address| !others.have_address(*address))
}

fn free_port(others: &Others<'_>, held: &Taken, protocol: &str, random: u64) -> Option<u16> {
    let count = PORT_LAST - PORT_FIRST + 1;
    let start = u16::try_from(random % u64::from(count)).expect("a remainder is below its divisor");
    (0..count).map(|step| PORT_FIRST + (start + step) % count).find(|number| {
        let port = (protocol.to_owned(), *number);
        !others.have_port(&port) && !held.ports.contains(&port)
    })
}

/// Writes the grant into the Service and checks what must not be in one.
pub fn admit(
    context: &Context<'_>,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    let externals = |object: &Object| object.pointer("/spec/externalIPs").cloned();
    let fresh = externals(new).filter(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    if fresh.is_some() && fresh != old.and_then(externals) {
        let why = "Use of external IPs is denied by admission control.";
        return Err(ApiError::forbidden(context.kind, meta::name(new), why));
    }
    let grant = context.facts.service.clone().unwrap_or_default();
    let spec = &mut new["spec"];
    if let Some(address) = grant.address {
        spec["clusterIP"] = json!(address);
        spec["clusterIPs"] = json!([address]);
    } else if let Some(old) = old.filter(|old| text(old, "/spec/clusterIP") == "None")
        && spec["type"] != "ExternalName"
        && spec["clusterIP"].as_str().is_none_or(str::is_empty)
    {
        spec["clusterIP"] = old["spec"]["clusterIP"].clone();
        spec["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    for (index, number) in grant.ports {
        spec["ports"][index]["nodePort"] = json!(number);
    }
    if let Some(number) = grant.health {
        spec["healthCheckNodePort"] = json!(number);
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Object {
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})
    }

    fn granted(new: Value, old: Option<Value>, known: &Known) -> String {
        let (new, old) = (service(new), old.map(service));
        let others = Others { known, reserved: &Taken::default(), own: None };
        match grant(&new, old.as_ref(), &others, 0) {
            Ok((grant, _)) => {
                let address = grant.address.map_or("-".to_owned(), |address| address.to_string());
                let health = grant.health.map_or(String::new(), |port| format!(" health {port}"));
                format!("{address} {:?}{health}", grant.ports)
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn addresses_and_ports() {
        let mut taken = Known::default();
        let other = json!({"clusterIP": "172.20.1.0", "ports": [{"nodePort": 30000}]});
        taken.has("n", "other", &service(other));
        let node_port = json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]});
        assert_eq!(granted(node_port, None, &taken), "172.20.1.1 [(0, 30001), (1, 30002)]");
        assert_eq!(granted(json!({"clusterIP": "None"}), None, &taken), "- []");
        assert_eq!(granted(json!({"type": "ExternalName"}), None, &taken), "- []");
        assert_eq!(granted(json!({"clusterIP": "172.20.0.1"}), None, &taken), "- []");
        assert_eq!(
            granted(json!({"clusterIP": "172.20.1.0"}), None, &taken),
            "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"172.20.1.0\"]: failed to \
             allocate IP 172.20.1.0: provided IP is already allocated"
        );
        assert_eq!(
            granted(
                json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}),
                None,
                &taken
            ),
            "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is \
             not in the valid range. The range of valid ports is 30000-32767"
        );
        let old = json!({"type": "NodePort", "clusterIP": "172.20.9.9",
            "ports": [{"port": 80, "nodePort": 31000}]});
        let new = json!({"type": "NodePort", "ports": [{"port": 81}, {"port": 80}]});
        assert_eq!(granted(new, Some(old), &taken), "172.20.9.9 [(0, 30001), (1, 31000)]");
        let old = json!({"clusterIP": "172.20.9.9"});
        assert_eq!(granted(json!({"clusterIP": "10.0.0.9"}), Some(old), &taken), "- []");
    }

    #[test]
    fn what_a_service_has_is_in_the_way_of_others_until_it_is_gone() {
        let mut known = Known::default();
        let spec = json!({"clusterIP": "172.20.1.0", "type": "NodePort",
            "ports": [{"port": 80, "nodePort": 30000}]});
        let object = service(spec);
        let has = |known: &Known, own: Option<&Taken>| {
            let others = Others { known, reserved: &Taken::default(), own };
            let port = ("TCP".to_owned(), 30_000);
            (others.have_address(ADDRESS_BASE + 256), others.have_port(&port))
        };
        known.has("n", "s", &object);
        known.has("n", "s", &object);
        assert_eq!(has(&known, None), (true, true));
        let own = known.each.get(&("n".to_owned(), "s".to_owned()));
        assert_eq!(has(&known, own), (false, false), "it has that itself");
        known.gone("n", "s");
        known.gone("n", "s");
        assert_eq!(has(&known, None), (false, false));
    }

    #[test]
    fn a_balancer_can_ask_which_nodes_have_pods() {
        let mut taken = Known::default();
        taken.has("n", "other", &service(json!({"healthCheckNodePort": 30000})));
        let local = |port: Value, policy: &str| {
            json!({"type": "LoadBalancer", "clusterIP": "172.20.9.9", "ports": [{"port": 80}],
                "externalTrafficPolicy": policy, "healthCheckNodePort": port})
        };
        let new = || local(Value::Null, "Local");
        assert_eq!(granted(new(), None, &taken), "- [(0, 30001)] health 30002");
        assert_eq!(granted(local(Value::Null, "Cluster"), None, &taken), "- [(0, 30001)]");
        let (asked, before) = (local(json!(31000), "Local"), local(json!(31000), "Local"));
        assert_eq!(granted(asked, None, &taken), "- [(0, 30001)] health 31000");
        assert_eq!(granted(new(), Some(before), &taken), "- [(0, 30001)] health 31000");
        assert_eq!(
            granted(local(json!(30000), "Local"), None, &taken),
            "Service \"s\" is invalid: spec.healthCheckNodePort: Invalid value: 30000: provided \
             port is already allocated"
        );
    }
}
