//! Where Services of type LoadBalancer and Ingresses are reached from outside: at the nodes.
//!
//! Owns: `status.loadBalancer` of these two kinds, unless they name a class that is somebody else's:
//! a Service any `loadBalancerClass`, an Ingress an IngressClass with another controller than
//! [`INGRESS_CONTROLLER`].
//!
//! The addresses are those of the ready nodes, the ones for outside first; a node that is cordoned
//! or labelled `node.kubernetes.io/exclude-from-external-load-balancers` is left out. Where a pool
//! of addresses is configured (`addresses/pool.rs`), a Service gets one of these instead.
//!
//! An Ingress is told of Secrets with certificates that it names and that cannot be used.

pub mod pool;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, LoadBalancerIngress, Node, Secret, Service};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::gateway::{differs, is_certificate};
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;
use pool::Pool;

/// The controller of IngressClasses that this cluster's nodes serve.
pub const INGRESS_CONTROLLER: &str = "wherry.dev/ingress";
const COMPONENT: &str = "service-controller";
const INGRESS_COMPONENT: &str = "ingress-controller";
/// What is applied together comes one after the other: who names a Secret that comes in this time is
/// told nothing.
const SECRET_WAIT: SignedDuration = SignedDuration::from_secs(5);
/// Addresses shown: who needs more asks a name server.
const ADDRESSES_MAX: usize = 16;
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What a plan for one Service or Ingress reads.
pub struct Snapshot {
    pub what: Reached,
    pub nodes: Vec<Arc<Node>>,
    /// Addresses of one's own, if there are any.
    pub pool: Option<Pool>,
    /// Addresses of Services that are older than this one, and of all others.
    pub taken: (BTreeSet<IpAddr>, BTreeSet<IpAddr>),
    /// What the Secrets of an Ingress lack, for people.
    pub lacking: Vec<String>,
}

/// What is reached.
pub enum Reached {
    Service(Arc<Service>),
    /// With the controller of its class, if it names one.
    Ingress(Arc<Ingress>, Option<String>),
}

pub const CONTROLLER: Controller = Controller { name: "addresses", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if let Some((before, after)) = change.of::<Service>() {
        if [before, after]
            .into_iter()
            .flatten()
            .any(|service| is_balanced(service) || shows(service))
        {
            keys.push(change.key.clone());
        }
        // An address may have become free, or two that were planned for at the same time may have
        // got the same one. Without a pool all show those of the nodes.
        let held = |service: Option<&Service>| service.map(shown).unwrap_or_default();
        let (was, is) = (held(before), held(after));
        if was != is && configured(cache).is_some() {
            let concerned = cache.all::<Service>().filter(|service| {
                let has = shown(service);
                is_balanced(service) && (has.is_empty() || has.iter().any(|ip| is.contains(ip)))
            });
            keys.extend(concerned.map(|service| key_of::<Service>(&service.metadata)));
        }
    } else if change.of::<ConfigMap>().is_some() {
        if (change.key.namespace(), change.key.name()) == pool::CONFIG_MAP {
            let balanced = cache.all::<Service>().filter(|service| is_balanced(service));
            keys.extend(balanced.map(|service| key_of::<Service>(&service.metadata)));
        }
    } else if change.of::<Ingress>().is_some() {
        keys.push(change.key.clone());
    } else if let Some((before, after)) = change.of::<Node>() {
        if before.map(addresses) != after.map(addresses) {
            for service in cache.all::<Service>().filter(|service| is_balanced(service)) {
                keys.push(key_of::<Service>(&service.metadata));
            }
            ingresses(cache, keys);
        }
    } else if change.of::<IngressClass>().is_some() {
        ingresses(cache, keys);
    } else if differs::<Secret, _>(change, is_certificate) {
        let (namespace, secret) = (change.key.namespace(), change.key.name());
        let all = cache.within::<Ingress>(namespace);
        let naming = all.filter(|ingress| secrets(ingress).any(|name| name == secret));
        keys.extend(naming.map(|ingress| key_of::<Ingress>(&ingress.metadata)));
    }
}

fn ingresses(cache: &Cache, keys: &mut Vec<Key>) {
    keys.extend(cache.all::<Ingress>().map(|ingress| key_of::<Ingress>(&ingress.metadata)));
}

fn key_of<T: super::cache::Typed>(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Key {
    Key::of::<T>(meta.namespace.as_deref().unwrap_or(""), name_of(meta))
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let nodes = view.cache.all::<Node>().collect();
    let what = if key.kind.is("", "Service") {
        view.cache.get(key.namespace(), key.name()).map(Reached::Service)
    } else {
        view.cache.get::<Ingress>(key.namespace(), key.name()).map(|ingress| {
            let class = class(&ingress).and_then(|name| view.cache.get::<IngressClass>("", name));
            let controller = class.and_then(|class| class.spec.as_ref()?.controller.clone());
            let named = self::class(&ingress).is_some();
            // A class that does not exist is nobody's yet.
            Reached::Ingress(ingress, named.then(|| controller.unwrap_or_default()))
        })
    };
    let Some(what) = what else { return Plan::default() };
    let pool = configured(view.cache);
    let taken = match &what {
        Reached::Service(service) if pool.is_some() => taken(view.cache, service),
        _ => Default::default(),
    };
    let (mut lacking, mut again) = (Vec::new(), None);
    if let Reached::Ingress(ingress, _) = &what {
        lacking = self::lacking(view.cache, ingress);
        again = waits_for(ingress, view.now).filter(|_| !lacking.is_empty());
        if again.is_some() {
            lacking.clear();
        }
    }
    let writes = plan(&Snapshot { what, nodes, pool, taken, lacking }, view.now);
    Plan { writes, again }
}

/// The Secrets with certificates that an Ingress names.
fn secrets(ingress: &Ingress) -> impl Iterator<Item = &str> {
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref()).into_iter().flatten();
    tls.filter_map(|tls| tls.secret_name.as_deref()).filter(|name| !name.is_empty())
}

/// What the Secrets that an Ingress names lack, each once.
fn lacking(cache: &Cache, ingress: &Ingress) -> Vec<String> {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or("");
    let named: BTreeSet<&str> = secrets(ingress).collect();
    let lack = |name: &&str| match cache.get::<Secret>(namespace, name) {
        None => Some("does not exist"),
        Some(secret) if is_certificate(&secret) => None,
        Some(_) => Some("holds no certificate with its key in tls.crt and tls.key"),
    };
    let lacking = named.iter().filter_map(|name| Some((name, lack(name)?)));
    let said = lacking.map(|(name, lack)| {
        format!("Secret {namespace}/{name} {lack}: clients get a certificate that nobody trusts.")
    });
    said.collect()
}

/// How much longer the Secrets of an Ingress may be on their way.
fn waits_for(ingress: &Ingress, now: Timestamp) -> Option<Duration> {
    let born = ingress.metadata.creation_timestamp.as_ref()?.0;
    let left = Duration::try_from(SECRET_WAIT - now.duration_since(born)).ok()?;
    (!left.is_zero()).then_some(left)
}

/// The addresses of one's own that are configured.
fn configured(cache: &Cache) -> Option<Pool> {
    let (namespace, name) = pool::CONFIG_MAP;
    let map = cache.get::<ConfigMap>(namespace, name)?;
    Some(Pool::read(map.data.as_ref()?.get(pool::KEY)?))
}

/// Addresses of older and of all other Services.
fn taken(cache: &Cache, own: &Service) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let rank = |service: &Service| {
        let meta = &service.metadata;
        (
            meta.creation_timestamp.as_ref().map(|time| time.0),
            meta.namespace.clone(),
            meta.name.clone(),
        )
    };
    let (mut older, mut others) = (BTreeSet::new(), BTreeSet::new());
    let balanced = cache.all::<Service>().filter(|service| is_balanced(service));
    for service in balanced.filter(|service| service.metadata.uid != own.metadata.uid) {
        let shown = shown(&service);
        if rank(&service) < rank(own) {
            older.extend(&shown);
        }
        others.extend(shown);
    }
    (older, others)
}

/// The addresses in a Service's status.
fn shown(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let listed = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    listed.filter_map(|held| held.ip.as_ref()?.parse().ok()).collect()
}

fn class(ingress: &Ingress) -> Option<&str> {
    let annotation = ingress.metadata.annotations.as_ref();
    let old = annotation.and_then(|all| all.get("kubernetes.io/ingress.class"));
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    named.or(old).map(String::as_str)
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    })
}

/// Whether its status names any address.
fn shows(service: &Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|status| status.ingress.as_ref()).is_some_and(|all| !all.is_empty())
}

/// The addresses of a node that takes traffic from outside; none of one that does not.
pub(super) fn addresses(node: &Node) -> Vec<String> {
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|spec| spec.unschedulable) == Some(true);
    let excluded =
        node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    let status = node.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.any(|held| held.type_ == "Ready" && held.status == "True");
    if cordoned || excluded || !ready || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let all = status.and_then(|status| status.addresses.as_ref());
    let of = |kind: &str| -> Vec<String> {
        let named = all.into_iter().flatten().filter(|address| address.type_ == kind);
        named.map(|address| address.address.clone()).collect()
    };
    let outside = of("ExternalIP");
    if outside.is_empty() { of("InternalIP") } else { outside }
}

/// The addresses of all nodes, in their order as addresses.
pub(super) fn of_nodes(nodes: &[Arc<Node>]) -> Vec<IpAddr> {
    let texts = nodes.iter().flat_map(|node| addresses(node));
    let mut all: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    all.sort();
    all.dedup();
    all.truncate(ADDRESSES_MAX);
    all
}

/// Writes the addresses, if the status says any others. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let wanted = of_nodes(&snapshot.nodes);
    let listed = |wanted: Vec<IpAddr>| -> Option<Value> {
        let list: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        (!list.is_empty()).then(|| list.into())
    };
    match &snapshot.what {
        Reached::Service(service) => {
            let held = service.status.as_ref().and_then(|status| status.load_balancer.clone());
            let held = held.and_then(|held| held.ingress).unwrap_or_default();
            let balanced = is_balanced(service);
            let others = service.spec.as_ref().is_some_and(|spec| {
                spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_some()
            });
            if others || service.metadata.deletion_timestamp.is_some() {
                return Vec::new();
            }
            let ip = |held: &LoadBalancerIngress| held.ip.clone().unwrap_or_default();
            let shown: Vec<String> = held.iter().map(ip).collect();
            let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_ref());
            let asked = asked.and_then(|ip| ip.parse().ok());
            let (older, others) = &snapshot.taken;
            let own = |pool: &Pool| {
                pool.choose(&self::shown(service), asked, older, others).into_iter().collect()
            };
            let wanted = match &snapshot.pool {
                _ if !balanced => Vec::new(),
                Some(pool) => own(pool),
                None => wanted,
            };
            let mut writes = Vec::new();
            if balanced && snapshot.pool.is_some() && wanted.is_empty() {
                writes.push(Write::tell(none_left(service, asked)));
            }
            if shown == texts(&wanted) {
                return writes;
            }
            let modes: Option<Value> = listed(wanted).map(|mut list| {
                for entry in list.as_array_mut().into_iter().flatten() {
                    entry["ipMode"] = "VIP".into();
                }
                list
            });
            let body = json!({"status": {"loadBalancer": {"ingress": modes}}});
            writes.push(Write::patch_status(&**service, body));
            writes
        }
        Reached::Ingress(ingress, controller) => {
            let own = controller.as_ref().is_none_or(|name| name == INGRESS_CONTROLLER);
            if !own || ingress.metadata.deletion_timestamp.is_some() {
                return Vec::new();
            }
            let held = ingress.status.as_ref().and_then(|status| status.load_balancer.clone());
            let held = held.and_then(|held| held.ingress).unwrap_or_default();
            let shown: Vec<String> =
                held.iter().map(|held| held.ip.clone().unwrap_or_default()).collect();
            let warn = |why: &String| {
                let reason = "CertificateUnavailable";
                let note = Note::warning(INGRESS_COMPONENT, &**ingress, reason, why.clone());
                Write::tell(note)
            };
            let mut writes: Vec<Write> = snapshot.lacking.iter().map(warn).collect();
            if shown != texts(&wanted) {
                let ingresses = listed(wanted);
                let body = json!({"status": {"loadBalancer": {"ingress": ingresses}}});
                writes.push(Write::patch_status(&**ingress, body));
            }
            writes
        }
    }
}

/// That there is no address for a Service.
fn none_left(service: &Service, asked: Option<IpAddr>) -> Note {
    let (namespace, name) = pool::CONFIG_MAP;
    let message = match asked {
        Some(ip) => {
            format!("{ip} is not in ConfigMap {namespace}/{name}, or another Service has it.")
        }
        None => format!("All addresses in ConfigMap {namespace}/{name} are taken."),
    };
    Note::warning(COMPONENT, service, "AllocationFailed", message)
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::cache::{Object, Seen, kind_row};
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn node(name: &str, ready: &str, address: &str, more: &str) -> Arc<Node> {
        Arc::new(yaml(&format!(
            "metadata: {{name: {name}}}\nspec: {{{more}}}\nstatus: {{conditions: [{{type: Ready, \
             status: \"{ready}\"}}], addresses: [{address}]}}"
        )))
    }

    fn nodes() -> Vec<Arc<Node>> {
        vec![
            node("a", "True", "{type: InternalIP, address: 10.0.0.10}", ""),
            node(
                "b",
                "True",
                "{type: InternalIP, address: 10.0.0.2}, {type: ExternalIP, address: 192.0.2.2}",
                "",
            ),
            node("c", "Unknown", "{type: InternalIP, address: 10.0.0.3}", ""),
            node("d", "True", "{type: InternalIP, address: 10.0.0.4}", "unschedulable: true"),
        ]
    }

    fn of(what: Reached, pool: Option<Pool>) -> Snapshot {
        Snapshot { what, nodes: nodes(), pool, taken: Default::default(), lacking: Vec::new() }
    }

    fn service(spec: &str, status: &str) -> String {
        let service: Service = yaml(&format!(
            "metadata: {{name: web, namespace: d}}\nspec: {{{spec}}}\nstatus: {{{status}}}"
        ));
        let what = Reached::Service(Arc::new(service));
        text(&plan(&of(what, None), at(0)))
    }

    const BOTH: &str = "loadBalancer: {ingress: [{ip: 10.0.0.10}, {ip: 192.0.2.2}]}";

    #[test]
    fn a_service_is_reached_at_the_ready_nodes() {
        assert_eq!(
            service("type: LoadBalancer", ""),
            "patch services d/web/status {\"status\":{\"loadBalancer\":{\"ingress\":[\
             {\"ip\":\"10.0.0.10\",\"ipMode\":\"VIP\"},{\"ip\":\"192.0.2.2\",\"ipMode\":\"VIP\"}]\
             }}}\n"
        );
        assert_eq!(service("type: LoadBalancer", BOTH), "");
        assert_eq!(service("type: LoadBalancer, loadBalancerClass: x/y", ""), "");
        assert_eq!(service("type: ClusterIP", ""), "");
        assert_eq!(
            service("type: ClusterIP", BOTH),
            "patch services d/web/status {\"status\":{\"loadBalancer\":{\"ingress\":null}}}\n"
        );
    }

    #[test]
    fn a_pool_comes_before_the_nodes() {
        let what = || {
            Reached::Service(Arc::new(yaml(
                "metadata: {name: web, namespace: d}\nspec: {type: LoadBalancer}",
            )))
        };
        let pool = Pool::read("203.0.113.7");
        let mut snapshot = of(what(), Some(pool.clone()));
        assert_eq!(
            text(&plan(&snapshot, at(0))),
            "patch services d/web/status {\"status\":{\"loadBalancer\":{\"ingress\":[\
             {\"ip\":\"203.0.113.7\",\"ipMode\":\"VIP\"}]}}}\n"
        );
        snapshot.taken.1.insert("203.0.113.7".parse().expect("an address"));
        assert_eq!(
            text(&plan(&snapshot, at(0))),
            "(Warning AllocationFailed: All addresses in ConfigMap \
             kube-system/wherry-load-balancer are taken.)\n"
        );
        // One that has an address which the pool has no more loses it, and is told, too.
        let asks = "metadata: {name: web, namespace: d}\n\
            spec: {type: LoadBalancer, loadBalancerIP: 203.0.113.9}\n\
            status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}";
        let asking = of(Reached::Service(Arc::new(yaml(asks))), Some(pool));
        assert_eq!(
            text(&plan(&asking, at(0))),
            "(Warning AllocationFailed: 203.0.113.9 is not in ConfigMap \
             kube-system/wherry-load-balancer, or another Service has it.)\n\
             patch services d/web/status {\"status\":{\"loadBalancer\":{\"ingress\":null}}}\n"
        );
    }

    #[test]
    fn who_shows_an_address_of_another_one_is_looked_at_again() {
        let mut cache = Cache::new();
        cache.hold::<Service>();
        cache.hold::<ConfigMap>();
        let named = |name: &str, ip: &str| -> Service {
            yaml(&format!(
                "metadata: {{name: {name}, namespace: d}}\nspec: {{type: LoadBalancer}}\n\
                 status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}"
            ))
        };
        for (name, ip) in [("a", "203.0.113.7"), ("b", "203.0.113.7"), ("c", "203.0.113.8")] {
            let seen = Seen::Put(Object::new(named(name, ip)));
            cache.observe(kind_row::<Service>(), seen, Instant::now());
        }
        let woken = |cache: &Cache| {
            let key = Key::of::<Service>("d", "a");
            let after = Some(Object::new(named("a", "203.0.113.7")));
            let mut keys = Vec::new();
            wake(cache, &Change { key, before: None, after }, &mut keys);
            let names: BTreeSet<&str> = keys.iter().map(Key::name).collect();
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(woken(&cache), "a", "without a pool they all show the nodes' addresses");
        let map: ConfigMap = yaml(
            "metadata: {name: wherry-load-balancer, namespace: kube-system}\n\
             data: {addresses: 203.0.113.7-203.0.113.9}",
        );
        let seen = Seen::Put(Object::new(map));
        cache.observe(kind_row::<ConfigMap>(), seen, Instant::now());
        assert_eq!(woken(&cache), "a b");
    }

    #[test]
    fn an_ingress_of_this_clusters_class() {
        let shown = |controller: Option<&str>| {
            let ingress = Arc::new(yaml("metadata: {name: web, namespace: d}"));
            let what = Reached::Ingress(ingress, controller.map(str::to_string));
            text(&plan(&of(what, None), at(0)))
        };
        let patch = "patch ingresses.networking.k8s.io d/web/status {\"status\":{\"loadBalancer\":\
            {\"ingress\":[{\"ip\":\"10.0.0.10\"},{\"ip\":\"192.0.2.2\"}]}}}\n";
        assert_eq!(shown(None), patch);
        assert_eq!(shown(Some(INGRESS_CONTROLLER)), patch);
        assert_eq!(shown(Some("k8s.io/ingress-nginx")), "");
    }

    #[test]
    fn an_ingress_is_told_of_secrets_that_cannot_be_used() {
        let mut cache = Cache::new();
        cache.hold::<Ingress>();
        cache.hold::<Secret>();
        let ingress: Ingress = yaml(&format!(
            "metadata: {{name: web, namespace: d, creationTimestamp: '{}'}}\nspec: {{tls: [{{}}, \
             {{secretName: tls}}, {{secretName: tls, hosts: [b]}}, {{secretName: gone}}]}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: 10.0.0.10}}, {{ip: 192.0.2.2}}]}}}}",
            at(0)
        ));
        assert_eq!(waits_for(&ingress, at(2)), Some(Duration::from_secs(3)));
        assert_eq!(waits_for(&ingress, at(5)), None);
        let seen = Seen::Put(Object::new(ingress.clone()));
        cache.observe(kind_row::<Ingress>(), seen, Instant::now());
        let woken = |cache: &mut Cache, revision: u8, data: &str| {
            let secret: Secret = yaml(&format!(
                "metadata: {{name: tls, namespace: d, resourceVersion: '{revision}'}}\n\
                 data: {{{data}}}"
            ));
            let seen = Seen::Put(Object::new(secret));
            let mut keys = Vec::new();
            for change in cache.observe(kind_row::<Secret>(), seen, Instant::now()) {
                wake(cache, &change, &mut keys);
            }
            keys.len()
        };
        let told = |cache: &Cache| {
            let what = Reached::Ingress(Arc::new(ingress.clone()), None);
            let lacking = lacking(cache, &ingress);
            text(&plan(&Snapshot { lacking, ..of(what, None) }, at(9)))
        };
        let gone = "(Warning CertificateUnavailable: Secret d/gone does not exist: clients get a \
                    certificate that nobody trusts.)\n";
        assert_eq!(woken(&mut cache, 1, ""), 1);
        let both = format!(
            "{gone}(Warning CertificateUnavailable: Secret d/tls holds no certificate with its key \
             in tls.crt and tls.key: clients get a certificate that nobody trusts.)\n"
        );
        assert_eq!(told(&cache), both);
        assert_eq!(woken(&mut cache, 2, "expiration: ''"), 0);
        assert_eq!(woken(&mut cache, 3, "tls.crt: ''"), 1);
        assert_eq!(told(&cache), gone);
    }
}
