//! The scheduler without its watches and writes: what it knows, who waits, and when waiting is over.
//! `run` drives it with the API's events, the simulation with its own.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::cluster::Cluster;
use super::decide::{Decision, decide};
use super::need::{Need, is_pending};
use super::queue::Queue;
use crate::controllers::pods;

/// So often a Pod may fit nowhere before it has to rest.
const TRIES_FREE: u32 = 5;
/// Its first rest, which doubles with each further try, and the longest: as in Kubernetes.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Desk {
    pub cluster: Cluster,
    pub queue: Queue,
    /// `Cluster::room` when Pods that fit nowhere were tried last, and `Cluster::company`.
    room: u64,
    company: u64,
}

impl Desk {
    /// A Pod as the API now says it is.
    pub fn put_pod(&mut self, pod: &Pod) {
        let need = Need::read(pod);
        if is_pending(pod) {
            // One that is assumed has its binding under way; this is an event from before it.
            if !self.cluster.is_assumed(&need.uid) {
                self.keep_room(&need);
                self.queue.put(need);
            }
            return;
        }
        self.queue.remove(&need.uid);
        // One that neither has a node nor waits for one is on its way out: it gets none any more.
        if pods::is_finished(pod) || pods::node(pod).is_empty() {
            self.cluster.remove(&need.uid);
        } else {
            self.cluster.place(&need, pods::node(pod), pods::is_deleting(pod));
        }
    }

    /// Takes over what an earlier leader decided: that a node is being made ready for a Pod.
    fn keep_room(&mut self, need: &Need) {
        let told = need.nominated.as_deref().and_then(|name| self.cluster.node_index(name));
        if let Some(node) = told
            && self.cluster.nominee(&need.uid).is_none()
        {
            self.cluster.nominate(need, node);
        }
    }

    pub fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.cluster.remove(uid);
    }

    /// Uids of all Pods that wait or have a node. Those that are only assumed to are among them: what a
    /// list lacks may have been bound and have gone while no watch was heard.
    pub fn uids(&self) -> Vec<String> {
        let mut uids = self.cluster.uids();
        uids.extend(self.queue.uids());
        uids
    }

    /// Keeps a Pod that fits nowhere until something changes for it; one that was tried often at
    /// least for a while. Who has room kept for it does not rest: that is what changes.
    pub fn stick(&mut self, need: Need, now: Instant) {
        let need = Need { tries: need.tries + 1, ..need };
        if need.tries <= TRIES_FREE || self.cluster.nominee(&need.uid).is_some() {
            return self.queue.stick(need);
        }
        let doublings = (need.tries - TRIES_FREE - 1).min(16);
        let rest = REST_FIRST.saturating_mul(1 << doublings).min(REST_MAX);
        self.queue.rest(need, now + rest);
    }

    /// Lets Pods try again that fitted nowhere, if something has changed for them or they have
    /// rested.
    pub fn look_again(&mut self, now: Instant) {
        self.queue.wake(now);
        if self.cluster.room() != self.room {
            self.room = self.cluster.room();
            self.queue.retry();
        } else if self.cluster.company() != self.company {
            self.queue.retry_company();
        }
        self.company = self.cluster.company();
    }

    /// Decides for the first of the queue: about `count` Pods, and the rest of their gangs.
    pub fn decide(&mut self, count: usize) -> Vec<(Need, Decision)> {
        let needs = self.queue.take(count);
        let decisions = decide(&mut self.cluster, &needs);
        needs.into_iter().zip(decisions).collect()
    }

    /// A binding was refused. If the Pod is not assumed any more, the API has said meanwhile that
    /// it is bound after all, or gone.
    pub fn refused(&mut self, need: Need) {
        if self.cluster.is_assumed(&need.uid) {
            self.cluster.forget(&need.uid);
            self.queue.put(Need { refusals: need.refusals + 1, ..need });
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;
    use crate::controllers::testing::yaml;

    fn desk() -> Desk {
        let mut desk = Desk::default();
        let node: Node = yaml(
            "metadata: {name: a}\nstatus:\n  allocatable: {cpu: \"4\", memory: 8Gi, pods: \"9\"}\n  \
             conditions: [{type: Ready, status: \"True\"}]",
        );
        desk.cluster.put_node(&node);
        desk
    }

    fn pod(name: &str, spec: &str) -> Pod {
        yaml(&format!(
            "metadata: {{name: {name}, namespace: d}}\nspec: {{containers: [{{name: c}}]{spec}}}"
        ))
    }

    fn decided(desk: &mut Desk) -> Vec<String> {
        desk.look_again(Instant::now());
        desk.decide(9).into_iter().map(|(need, _)| need.name).collect()
    }

    #[test]
    fn gates_keep_a_pod_out_until_the_last_is_gone() {
        let mut desk = desk();
        desk.put_pod(&pod("p", ", schedulingGates: [{name: x}, {name: y}]"));
        assert!(decided(&mut desk).is_empty());
        desk.put_pod(&pod("p", ", schedulingGates: [{name: y}]"));
        assert!(decided(&mut desk).is_empty());
        desk.put_pod(&pod("p", ""));
        assert_eq!(decided(&mut desk), ["p"]);
    }

    #[test]
    fn pods_of_other_schedulers_are_counted_and_not_decided_for() {
        let mut desk = desk();
        desk.put_pod(&pod("theirs", ", schedulerName: somebody-else"));
        desk.put_pod(&pod("full", ", schedulerName: packing-scheduler"));
        assert_eq!(decided(&mut desk), ["full"]);
        desk.put_pod(&pod("theirs", ", schedulerName: somebody-else, nodeName: a"));
        assert_eq!(desk.cluster.nodes()[0].pods, 2);
    }

    #[test]
    fn a_refused_binding_gives_the_room_back() {
        let mut desk = desk();
        desk.put_pod(&pod("p", ""));
        desk.look_again(Instant::now());
        let (need, _) = desk.decide(1).remove(0);
        assert_eq!(desk.cluster.nodes()[0].pods, 1, "it counts from the decision on");
        desk.refused(need);
        assert_eq!(desk.cluster.nodes()[0].pods, 0);
        desk.look_again(Instant::now());
        let (need, _) = desk.decide(1).remove(0);
        assert_eq!(need.refusals, 1);
        // The watch says meanwhile that it is bound after all.
        desk.put_pod(&pod("p", ", nodeName: a"));
        desk.refused(need);
        assert_eq!(desk.cluster.nodes()[0].pods, 1);
    }

    #[test]
    fn a_pod_that_goes_before_it_is_bound_leaves_its_room() {
        let mut desk = desk();
        desk.put_pod(&pod("p", ""));
        desk.look_again(Instant::now());
        let (need, _) = desk.decide(1).remove(0);
        assert_eq!(desk.uids(), [need.uid.as_str()], "a list may lack it");
        // A finalizer holds it: no watch says that it is gone.
        let leaving = "metadata: {name: p, namespace: d, deletionTimestamp: 2024-01-01T00:00:00Z}\n\
            spec: {containers: [{name: c}]}";
        desk.put_pod(&yaml(leaving));
        assert_eq!(desk.cluster.nodes()[0].pods, 0);
        desk.refused(need);
        assert!(desk.queue.is_empty(), "it is not tried again");
    }

    #[test]
    fn who_fits_nowhere_again_and_again_lets_others_go_first() {
        let begun = Instant::now();
        let at = |millis: u64| begun + Duration::from_millis(millis);
        let mut desk = desk();
        desk.put_pod(&pod("huge", ", priority: 9, nodeSelector: {none: such}"));
        let mut tried = 0;
        for turn in 0..100 {
            // Something becomes free each millisecond.
            desk.cluster.put_volumes(|_| {});
            desk.look_again(at(turn));
            for (need, _) in desk.decide(1) {
                tried += 1;
                desk.stick(need, at(turn));
            }
        }
        assert_eq!(tried, 6, "five times at once, and then it rests");
        desk.put_pod(&pod("small", ""));
        desk.cluster.put_volumes(|_| {});
        desk.look_again(at(100));
        let (need, _) = desk.decide(1).remove(0);
        assert_eq!(need.name, "small");
        let mut rests = Vec::new();
        for _ in 0..8 {
            let end = desk.queue.rested().expect("it rests");
            desk.look_again(end);
            let (need, _) = desk.decide(1).remove(0);
            desk.stick(need, end);
            rests
                .push(desk.queue.rested().expect("it rests again").duration_since(end).as_millis());
        }
        assert_eq!(rests, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    }
}
