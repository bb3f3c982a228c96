//! The nodes with what is free on each, kept up to date Pod by Pod.
//!
//! A Pod is *placed* on a node: by its binding, or *assumed* there from the moment the scheduler
//! decides until the binding comes back by the watch. Either way its requests are taken off the
//! node at once, so the next decision sees them.
//!
//! Invariants: a Pod (by uid) is placed at most once; `room` grows whenever a Pod that did not fit
//! anywhere could fit now, and only then does the scheduler look at it again.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Node, Taint};
use wherry_resources::quantity::Quantity;

use super::need::{HostPort, Need, Resources};

/// Pods on a node that does not say how many it takes.
const PODS_DEFAULT: i64 = 110;

/// One node with what is used of it.
#[derive(Default)]
pub struct NodeState {
    pub name: String,
    /// False while only Pods speak of it.
    pub present: bool,
    pub ready: bool,
    pub unschedulable: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub capacity: Resources,
    pub pods_max: i64,
    pub images: HashSet<String>,
    pub used: Resources,
    pub pods: i64,
    pub ports: HashMap<HostPort, u32>,
    /// Pods by the uid of their owner.
    pub owners: HashMap<String, i64>,
}

impl NodeState {
    fn read(&mut self, node: &Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|found| found.type_ == "Ready");
        self.present = true;
        self.ready = ready.is_some_and(|ready| ready.status == "True");
        self.unschedulable = spec.unschedulable == Some(true);
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        let amounts = status.allocatable.or(status.capacity).unwrap_or_default();
        self.capacity = Resources::read(Some(&amounts));
        let pods = amounts.get("pods").and_then(|amount| Quantity::parse(&amount.0).ok());
        self.pods_max = pods.map_or(PODS_DEFAULT, |amount| amount.value());
        let images = status.images.unwrap_or_default().into_iter();
        self.images = images.flat_map(|image| image.names.unwrap_or_default()).collect();
    }

    /// Whether another state differs in anything that filters look at.
    fn same_for_filters(&self, other: &NodeState) -> bool {
        (self.present, self.ready, self.unschedulable, self.pods_max)
            == (other.present, other.ready, other.unschedulable, other.pods_max)
            && self.labels == other.labels
            && self.taints == other.taints
            && self.capacity == other.capacity
    }
}

struct Placed {
    node: usize,
    assumed: bool,
    requests: Resources,
    ports: Vec<HostPort>,
    owner: Option<String>,
}

/// All nodes and all placed Pods.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeState>,
    by_name: HashMap<String, usize>,
    placed: HashMap<String, Placed>,
    room: u64,
    /// Where the next search begins, so that all nodes get their turn.
    pub(super) next: usize,
    /// Sentences about classes of Pods that fit nowhere, and the `room` they were found at.
    pub(super) hopeless: HashMap<u64, (u64, String)>,
}

impl Cluster {
    /// Nodes, those that are not present included.
    pub fn nodes(&self) -> &[NodeState] {
        &self.nodes
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.nodes.iter().filter(|node| node.present).count()
    }

    /// Grows whenever something became free or possible.
    pub fn room(&self) -> u64 {
        self.room
    }

    pub fn put_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let index = self.index(&name);
        let mut fresh = NodeState { name, ..NodeState::default() };
        fresh.read(node);
        let state = &mut self.nodes[index];
        if !fresh.same_for_filters(state) {
            self.room += 1;
        }
        state.read(node);
    }

    /// A node without its object keeps what its Pods use, and takes no more.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.by_name.get(name) {
            let state = &mut self.nodes[*index];
            state.present = false;
            // The number of nodes is part of what is said about Pods that fit nowhere.
            self.room += 1;
        }
    }

    /// Takes in that a Pod is bound to a node.
    pub fn place(&mut self, need: &Need, node: &str) {
        let index = self.index(node);
        if let Some(placed) = self.placed.get_mut(&need.uid) {
            if placed.node == index {
                placed.assumed = false;
                return;
            }
            self.remove(&need.uid);
        }
        self.occupy(need, index, false);
    }

    /// Counts a Pod on a node before its binding is known.
    pub fn assume(&mut self, need: &Need, node: usize) {
        self.occupy(need, node, true);
    }

    /// Takes back an assumption whose binding failed.
    pub fn forget(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.remove(uid);
        }
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// Uids of Pods that are bound, not assumed.
    pub fn bound(&self) -> Vec<String> {
        let bound = self.placed.iter().filter(|(_, placed)| !placed.assumed);
        bound.map(|(uid, _)| uid.clone()).collect()
    }

    /// Frees what a Pod used.
    pub fn remove(&mut self, uid: &str) {
        let Some(placed) = self.placed.remove(uid) else { return };
        let node = &mut self.nodes[placed.node];
        node.used.take(&placed.requests);
        node.pods -= 1;
        for port in &placed.ports {
            if let Some(count) = node.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    node.ports.remove(port);
                }
            }
        }
        if let Some(owner) = &placed.owner
            && let Some(count) = node.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                node.owners.remove(owner);
            }
        }
        self.room += 1;
    }

    fn occupy(&mut self, need: &Need, index: usize, assumed: bool) {
        let node = &mut self.nodes[index];
        node.used.add(&need.requests);
        node.pods += 1;
        for port in &need.ports {
            *node.ports.entry(port.clone()).or_default() += 1;
        }
        if let Some(owner) = &need.owner {
            *node.owners.entry(owner.clone()).or_default() += 1;
        }
        let placed = Placed {
            node: index,
            assumed,
            requests: need.requests.clone(),
            ports: need.ports.clone(),
            owner: need.owner.clone(),
        };
        self.placed.insert(need.uid.clone(), placed);
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.nodes.len();
        self.nodes.push(NodeState { name: name.to_string(), ..NodeState::default() });
        self.by_name.insert(name.to_string(), index);
        index
    }
}
