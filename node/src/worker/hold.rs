//! Requests for a Service whose workload is at zero Pods: they wait while it comes back.
//!
//! Only Services that the control plane marked wait (`RoutePort::hold`): their workload has an
//! autoscaler that may go to zero. The agent is told at once who waits and how many, and tells the
//! control plane; when the routes name a Pod, all that wait go on, in the order in which they came.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    network::{Destination, Route, Table},
    switch::Refusal,
};
use crate::protocol::{Demand, ServiceKey};

/// Requests that wait for one Service: bodies are not read meanwhile, so each costs its head.
const WAITING_MAX: usize = 1024;
/// The longest wait: a start from nothing takes a second, an image that must be compiled some ten.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// All requests of a worker that wait.
#[derive(Default)]
pub struct Holds {
    /// Locked for an entry.
    waiting: Mutex<BTreeMap<ServiceKey, usize>>,
    /// A new table is there.
    published: Notify,
    /// Somebody new waits, or nobody any more.
    changed: Notify,
}

/// One request that waits, until it is dropped.
struct Waiting<'a> {
    holds: &'a Holds,
    service: &'a ServiceKey,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.holds.lock();
        if let Some(count) = waiting.get_mut(self.service) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.service);
                self.holds.changed.notify_one();
            }
        }
    }
}

impl Holds {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceKey, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new table was published.
    pub fn look_again(&self) {
        self.published.notify_waiters();
    }

    /// Ends when the demand is another one. For one listener.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Who waits now.
    pub fn demand(&self) -> Vec<Demand> {
        let waiting = self.lock();
        let each = waiting.iter();
        each.map(|(service, waiting)| Demand {
            service: service.clone(),
            waiting: u32::try_from(*waiting).unwrap_or(u32::MAX),
        })
        .collect()
    }

    fn enter<'a>(&'a self, service: &'a ServiceKey) -> Option<Waiting<'a>> {
        let mut waiting = self.lock();
        let count = waiting.entry(service.clone()).or_default();
        if *count >= WAITING_MAX {
            return None;
        }
        *count += 1;
        if *count == 1 {
            self.changed.notify_one();
        }
        Some(Waiting { holds: self, service })
    }

    /// Waits until the newest table has an endpoint for a port of a Service.
    pub async fn wait(
        &self,
        route: &Route,
        patience: Duration,
        external: bool,
        table: impl Fn() -> Arc<Table>,
    ) -> Result<Destination, Refusal> {
        let asleep = |why| Refusal::Asleep {
            service: format!("Service {}/{}", route.service.namespace, route.service.name),
            why,
        };
        let full = "too many requests wait for it already";
        let _waiting = self.enter(&route.service).ok_or_else(|| asleep(full))?;
        let port = route.port.to_string();
        let found = async {
            loop {
                let mut published = std::pin::pin!(self.published.notified());
                // Registered before the look, so that no table is missed.
                published.as_mut().enable();
                let table = table();
                if let Some(route) = table.service_port(&route.service, &port) {
                    let destination = match external {
                        true => Destination::External(route.clone()),
                        false => Destination::Route(route.clone()),
                    };
                    if !destination.endpoints().is_empty() || !route.hold {
                        return destination;
                    }
                }
                published.await;
            }
        };
        tokio::time::timeout(patience, found)
            .await
            .map_err(|_| asleep("no Pod of it came back in time"))
    }
}

impl Holds {
    /// Waits a moment for a table in which a port of a Service has other endpoints than it had.
    pub async fn newer(
        &self,
        route: &Route,
        patience: Duration,
        external: bool,
        table: impl Fn() -> Arc<Table>,
    ) -> Option<Destination> {
        let port = route.port.to_string();
        let of = |route: &Route| -> Vec<std::net::SocketAddr> {
            let endpoints = if external { &route.external } else { &route.endpoints };
            endpoints.iter().map(|endpoint| endpoint.address).collect()
        };
        let before = of(route);
        let found = async {
            loop {
                let mut published = std::pin::pin!(self.published.notified());
                // Registered before the look, so that no table is missed.
                published.as_mut().enable();
                let table = table();
                if let Some(route) = table.service_port(&route.service, &port)
                    && of(route) != before
                {
                    return match external {
                        true => Destination::External(route.clone()),
                        false => Destination::Route(route.clone()),
                    };
                }
                published.await;
            }
        };
        tokio::time::timeout(patience, found).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            network::{Here, Router},
            peers::Peers,
        },
        *,
    };
    use crate::protocol::{Endpoint, Protocol, RoutePort, ServiceRoute, Services};

    fn table(pods: &[&str]) -> Arc<Table> {
        let here =
            Here { node: "n".into(), namespace: "shop".into(), cluster_domain: "c.local".into() };
        let mut router = Router::new(here, Peers::default());
        let endpoint = |address: &&str| Endpoint {
            address: address.parse().expect("an address"),
            namespace: "shop".into(),
            node: Some("n".into()),
            peer: None,
            internal: true,
            external: true,
            outside: false,
            hostname: None,
        };
        router.apply(Services::Replace(vec![ServiceRoute {
            key: key(),
            hold: true,
            cluster_ips: vec!["172.20.0.9".parse().expect("an address")],
            ports: vec![RoutePort {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
                node_port: None,
                endpoints: pods.iter().map(endpoint).collect(),
            }],
            ..ServiceRoute::default()
        }]));
        Arc::new(router.table())
    }

    fn key() -> ServiceKey {
        ServiceKey { namespace: "shop".into(), name: "web".into() }
    }

    fn route() -> Arc<Route> {
        table(&[]).service_port(&key(), "80").expect("it has the port").clone()
    }

    #[tokio::test]
    async fn a_request_waits_for_a_pod_and_is_demand_meanwhile() {
        let (holds, newest) = (Holds::default(), arc_swap::ArcSwap::new(table(&[])));
        let route = route();
        let waiting = holds.wait(&route, WAIT_MAX, true, || newest.load_full());
        let waking = async {
            holds.changed().await;
            assert_eq!(holds.demand(), [Demand { service: key(), waiting: 1 }]);
            newest.store(table(&["10.0.0.1:80"]));
            holds.look_again();
        };
        let (found, ()) = tokio::join!(waiting, waking);
        assert_eq!(found.expect("a Pod is there").endpoints().len(), 1);
        assert!(holds.demand().is_empty());
    }

    #[tokio::test]
    async fn whose_pod_has_just_left_waits_for_the_next_table() {
        let (holds, newest) = (Holds::default(), arc_swap::ArcSwap::new(table(&["10.0.0.1:80"])));
        let newest_table = newest.load_full();
        let route = newest_table.service_port(&key(), "80").expect("it has the port");
        let waiting = holds.newer(route, WAIT_MAX, false, || newest.load_full());
        let moving = async {
            tokio::task::yield_now().await;
            newest.store(table(&["10.0.0.2:80"]));
            holds.look_again();
        };
        let (found, ()) = tokio::join!(waiting, moving);
        let address = found.expect("a Pod came").endpoints()[0].address;
        assert_eq!(address.to_string(), "10.0.0.2:80");
        let short = Duration::from_millis(1);
        assert!(holds.newer(route, short, true, || newest_table.clone()).await.is_none());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_nor_in_any_number() {
        let holds = Holds::default();
        let route = route();
        let never = || holds.wait(&route, Duration::from_millis(1), false, || table(&[]));
        let Err(refusal) = never().await else { panic!("there is no Pod") };
        let expected = "Service shop/web was scaled to zero, and no Pod of it came back in time";
        assert_eq!(refusal.to_string(), expected);
        let all: Vec<_> = (0..WAITING_MAX).map(|_| holds.enter(&route.service)).collect();
        assert!(all.iter().all(Option::is_some));
        let Err(refusal) = never().await else { panic!("it is full") };
        assert!(refusal.to_string().contains("too many"), "{refusal}");
    }
}
