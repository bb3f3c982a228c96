//! The scheduler without its watches and writes: what it knows, who waits, and when waiting is over.
//! `run` drives it with the API's events, the simulation with its own.

use k8s_openapi::api::core::v1::Pod;

use super::cluster::Cluster;
use super::decide::{Decision, decide};
use super::need::{Need, is_pending};
use super::queue::Queue;
use crate::controllers::pods;

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
        if pods::is_finished(pod) {
            self.cluster.remove(&need.uid);
        } else if !pods::node(pod).is_empty() {
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

    /// Uids of all Pods that wait or are known to be bound.
    pub fn uids(&self) -> Vec<String> {
        let mut uids = self.cluster.bound();
        uids.extend(self.queue.uids());
        uids
    }

    /// Lets Pods try again that fitted nowhere, if something has changed for them.
    pub fn look_again(&mut self) {
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
            self.queue.put(need);
        }
    }
}
