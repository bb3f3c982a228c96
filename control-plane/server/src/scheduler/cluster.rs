//! The nodes with what is free on each, kept up to date Pod by Pod.
//!
//! A Pod is *placed* on a node: by its binding, or *assumed* there from the moment the scheduler
//! decides until the binding comes back by the watch. Either way its requests are taken off the
//! node at once, so the next decision sees them.
//!
//! Nodes also say what their workers offer, which images they had to refuse, and what their Pods
//! really use: see `wherry_resources::offers`.
//!
//! Invariants: a Pod (by uid) is placed at most once; `room` grows whenever a Pod that did not fit
//! anywhere could fit now, and only then does the scheduler look at it again. For Pods that mind
//! others, that is also so when `company` grows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use wherry_resources::offers::{MEASURED, Measured, OFFERS, REFUSED, Refused};
use wherry_resources::quantity::Quantity;

use super::appetite::Appetites;
use super::census::{Census, Resident, TERMS_MAX};
use super::company::Labels;
use super::need::{Gang, HostPort, Need, Resources};
use super::volumes::{Ties, Volumes};
use crate::controllers::owners::selects;

/// Pods on a node that does not say how many it takes.
const PODS_DEFAULT: i64 = 110;
/// The label by which nodes say in which zone they are.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Different texts of offers that are kept: one for each version of Wherry among the nodes.
const OFFERS_MAX: usize = 100;

/// One node with what is used of it.
#[derive(Default)]
pub struct NodeState {
    pub name: String,
    /// False while only Pods speak of it.
    pub present: bool,
    pub ready: bool,
    pub unschedulable: bool,
    pub labels: BTreeMap<String, String>,
    /// The number of its zone; none while it names none.
    pub zone: Option<usize>,
    pub taints: Vec<Taint>,
    pub capacity: Resources,
    pub pods_max: i64,
    pub images: HashSet<String>,
    /// Interfaces and engine features of its workers; none while it has not said.
    pub offers: Option<Arc<BTreeSet<String>>>,
    /// Images that it could not run, and what they lacked.
    pub refused: Refused,
    /// What its Pods really use; none while it has not said.
    pub measured: Option<Measured>,
    pub used: Resources,
    pub pods: i64,
    pub ports: HashMap<HostPort, i64>,
    /// Pods by the uid of their owner.
    pub owners: HashMap<String, i64>,
    /// Uids of the Pods here.
    pub residents: HashSet<String>,
    /// Room that is being made here.
    pub reserved: Vec<Reserved>,
}

/// Room on a node that others are leaving for a Pod.
#[derive(Clone, Debug)]
pub struct Reserved {
    uid: String,
    priority: i32,
    pub requests: Resources,
}

impl Reserved {
    /// Whether the room is not for this Pod either.
    pub fn keeps_out(&self, need: &Need) -> bool {
        self.uid != need.uid && self.priority >= need.priority
    }
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug)]
pub struct Budget {
    selector: Option<LabelSelector>,
    pub allowed: i32,
}

impl Budget {
    pub fn covers(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selects(selector, Some(labels)))
    }
}

impl NodeState {
    fn read(&mut self, node: &Node) {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions).flatten();
        let ready = conditions.find(|found| found.type_ == "Ready");
        self.present = true;
        self.ready = ready.is_some_and(|ready| ready.status == "True");
        self.unschedulable = spec.is_some_and(|spec| spec.unschedulable == Some(true));
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let amounts =
            status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        self.capacity = Resources::read(amounts);
        let pods = amounts.and_then(|amounts| amounts.get("pods"));
        let pods = pods.and_then(|amount| Quantity::parse(&amount.0).ok());
        self.pods_max = pods.map_or(PODS_DEFAULT, |amount| amount.value());
        let images = status.into_iter().flat_map(|status| &status.images).flatten();
        self.images = images.flat_map(|image| &image.names).flatten().cloned().collect();
        let annotations = node.metadata.annotations.as_ref();
        let says = |name: &str| annotations.and_then(|annotations| annotations.get(name));
        self.refused =
            says(REFUSED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        self.measured = says(MEASURED).and_then(|text| Measured::read(text));
    }

    /// Whether another state differs in anything that filters look at.
    fn same_for_filters(&self, other: &NodeState) -> bool {
        (self.present, self.ready, self.unschedulable, self.pods_max)
            == (other.present, other.ready, other.unschedulable, other.pods_max)
            && self.labels == other.labels
            && self.taints == other.taints
            && self.capacity == other.capacity
            && self.offers == other.offers
            && self.refused == other.refused
    }
}

/// A Pod on its node.
#[derive(Clone)]
pub struct Placed {
    pub node: usize,
    pub assumed: bool,
    /// On its way out: its room will be free without anybody's doing.
    pub leaving: bool,
    /// What it asked for, without what only matters before it has a node.
    pub need: Need,
}

impl Placed {
    fn resident(&self) -> Resident<'_> {
        Resident {
            node: self.node,
            namespace: &self.need.namespace,
            labels: &self.need.labels,
            company: self.need.company.as_deref(),
            leaving: self.leaving,
        }
    }
}

/// Pods of one owner by the number of their zone.
pub type InZones = HashMap<usize, i64>;

/// Zones by number, and who has Pods where.
#[derive(Default)]
struct Zones {
    numbers: HashMap<String, usize>,
    by_owner: HashMap<String, InZones>,
}

impl Zones {
    fn number(&mut self, node: &Node) -> Option<usize> {
        let name = node.metadata.labels.as_ref()?.get(ZONE)?;
        let next = self.numbers.len();
        Some(*self.numbers.entry(name.clone()).or_insert(next))
    }

    /// So many Pods more of an owner; what is none is not kept.
    fn add(&mut self, owner: &str, zone: Option<usize>, more: i64) {
        let Some(zone) = zone else { return };
        let zones = self.by_owner.entry(owner.to_string()).or_default();
        let count = zones.entry(zone).or_default();
        *count += more;
        if *count == 0 {
            zones.remove(&zone);
        }
        if zones.is_empty() {
            self.by_owner.remove(owner);
        }
    }
}

/// All nodes and all placed Pods.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeState>,
    by_name: HashMap<String, usize>,
    placed: HashMap<String, Placed>,
    room: u64,
    company: u64,
    census: Census,
    budgets: BTreeMap<(String, String), Budget>,
    volumes: Volumes,
    /// Pods that have a node, by the claims that they use.
    claims_used: HashMap<(String, String), i64>,
    /// Where room is being made, by the uid of the Pod that it is for.
    nominated: HashMap<String, usize>,
    /// Offers by the text that nodes say them with: most say the same.
    offers: HashMap<String, Arc<BTreeSet<String>>>,
    appetites: Appetites,
    zones: Zones,
    /// What images import, as far as some node could not offer it.
    learned: Refused,
    /// Where the next search begins, so that all nodes get their turn.
    pub(super) next: usize,
    /// Sentences about classes of Pods that fit nowhere, and the `room` they were found at.
    pub(super) hopeless: HashMap<u64, ((u64, u64), String)>,
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

    /// Grows whenever a Pod that minds others could fit because others came.
    pub fn company(&self) -> u64 {
        self.company
    }

    pub fn census(&self) -> &Census {
        &self.census
    }

    pub fn placed(&self, uid: &str) -> Option<&Placed> {
        self.placed.get(uid)
    }

    pub fn budgets(&self) -> impl Iterator<Item = (&(String, String), &Budget)> {
        self.budgets.iter()
    }

    /// Members of a gang that have a node.
    pub fn gang_placed(&self, gang: &Gang) -> usize {
        let members = |placed: &&Placed| placed.need.gang.as_ref() == Some(gang);
        self.placed.values().filter(members).count()
    }

    pub fn put_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let index = self.index(&name);
        let offers = self.offers_of(node);
        let mut fresh = NodeState { name, offers, ..NodeState::default() };
        fresh.read(node);
        let state = &mut self.nodes[index];
        if !fresh.same_for_filters(state) {
            self.room += 1;
        }
        let learns = fresh.refused != state.refused;
        if fresh.measured != state.measured {
            let pods = |measured: Option<Measured>| measured.unwrap_or_default().pods;
            let (before, after) = (pods(state.measured.take()), pods(fresh.measured.clone()));
            let placed = &self.placed;
            let owner = |uid: &str| placed.get(uid)?.need.owner.as_deref();
            self.appetites.measured(&before, &after, owner);
        }
        let held = std::mem::take(state);
        *state = NodeState {
            zone: held.zone,
            used: held.used,
            pods: held.pods,
            ports: held.ports,
            owners: held.owners,
            residents: held.residents,
            reserved: held.reserved,
            ..fresh
        };
        let zone = self.zones.number(node);
        if zone != state.zone {
            for (owner, count) in &state.owners {
                self.zones.add(owner, state.zone, -count);
                self.zones.add(owner, zone, *count);
            }
            state.zone = zone;
        }
        self.census.put_node(index, &self.nodes[index]);
        if learns {
            self.learn();
        }
    }

    fn offers_of(&mut self, node: &Node) -> Option<Arc<BTreeSet<String>>> {
        let text = node.metadata.annotations.as_ref()?.get(OFFERS)?;
        if let Some(known) = self.offers.get(text) {
            return Some(known.clone());
        }
        let read: Arc<BTreeSet<String>> = Arc::new(serde_json::from_str(text).ok()?);
        // Texts of versions that no node has any more go with the others.
        if self.offers.len() >= OFFERS_MAX {
            self.offers.clear();
        }
        self.offers.insert(text.clone(), read.clone());
        Some(read)
    }

    /// Puts together what the nodes have found out about images.
    fn learn(&mut self) {
        self.learned.clear();
        for (image, imports) in self.nodes.iter().flat_map(|node| &node.refused) {
            self.learned.entry(image.clone()).or_default().extend(imports.iter().cloned());
        }
    }

    /// What a Pod's images import, as far as it is known.
    pub fn imports(&self, need: &Need) -> BTreeSet<String> {
        let learned = need.images.iter().filter_map(|image| self.learned.get(image)).flatten();
        need.imports.iter().chain(learned).cloned().collect()
    }

    /// CPU in thousandths of a core that a Pod is likely to use.
    pub fn appetite(&self, need: &Need) -> i64 {
        need.owner.as_ref().map_or(0, |owner| self.appetites.of(owner))
    }

    /// Where Pods of the same owner are.
    pub fn siblings(&self, need: &Need) -> Option<&InZones> {
        self.zones.by_owner.get(need.owner.as_ref()?)
    }

    pub fn put_namespace(&mut self, namespace: &Namespace) {
        let name = namespace.metadata.name.as_deref().unwrap_or("");
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        if self.census.put_namespace(name, Some(&labels)) {
            self.recount();
        }
    }

    pub fn remove_namespace(&mut self, name: &str) {
        if self.census.put_namespace(name, None) {
            self.recount();
        }
    }

    pub fn put_budget(&mut self, budget: &PodDisruptionBudget) {
        let meta = &budget.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed);
        let allowed = allowed.unwrap_or(0);
        let key = (text(&meta.namespace), text(&meta.name));
        self.budgets.insert(key, Budget { selector, allowed });
    }

    pub fn remove_budget(&mut self, namespace: &str, name: &str) {
        self.budgets.remove(&(namespace.to_string(), name.to_string()));
    }

    /// Takes in news about claims, volumes or classes.
    pub fn put_volumes(&mut self, change: impl FnOnce(&mut Volumes)) {
        change(&mut self.volumes);
        self.room += 1;
    }

    /// How a Pod's volumes tie it to nodes; an error says why no node can do.
    pub fn ties(&self, need: &Need) -> Result<Ties, String> {
        let in_use =
            |name: &str| self.claims_used.contains_key(&(need.namespace.clone(), name.to_string()));
        self.volumes.ties(&need.namespace, &need.claims, in_use)
    }

    /// Counts what this Pod asks about others. To be called before the census is asked.
    pub fn meet(&mut self, need: &Need) {
        let Some(company) = &need.company else { return };
        if self.census.len() + self.census.unknown(company).len() > TERMS_MAX {
            self.recount();
        }
        self.register(need);
    }

    /// Counts anew, and only what Pods that are there ask about.
    fn recount(&mut self) {
        self.census.clear();
        let held: Vec<Need> = self.placed.values().map(|placed| placed.need.clone()).collect();
        held.iter().for_each(|need| self.register(need));
        self.room += 1;
    }

    fn register(&mut self, need: &Need) {
        let Some(company) = &need.company else { return };
        for term in self.census.unknown(company) {
            let residents = self.placed.values().map(Placed::resident);
            self.census.register(term, &self.nodes, residents);
        }
    }

    /// Keeps room on a node for a Pod for which others leave.
    pub fn nominate(&mut self, need: &Need, node: usize) {
        self.denominate(&need.uid);
        let Need { uid, priority, requests, .. } = need;
        let reserved =
            Reserved { uid: uid.clone(), priority: *priority, requests: requests.clone() };
        self.nodes[node].reserved.push(reserved);
        self.nominated.insert(uid.clone(), node);
    }

    pub fn nominee(&self, uid: &str) -> Option<usize> {
        self.nominated.get(uid).copied()
    }

    /// Gives up the room that was kept for a Pod.
    pub fn denominate(&mut self, uid: &str) {
        if let Some(node) = self.nominated.remove(uid) {
            self.nodes[node].reserved.retain(|reserved| reserved.uid != uid);
            self.room += 1;
        }
    }

    pub fn node_index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// A node without its object keeps what its Pods use, and takes no more.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.by_name.get(name) {
            let state = &mut self.nodes[*index];
            state.present = false;
            self.census.put_node(*index, state);
            // The number of nodes is part of what is said about Pods that fit nowhere.
            self.room += 1;
        }
    }

    /// Takes in that a Pod is bound to a node.
    pub fn place(&mut self, need: &Need, node: &str, leaving: bool) {
        let index = self.index(node);
        if let Some(placed) = self.placed.get_mut(&need.uid) {
            if placed.node == index && placed.need.class == need.class {
                placed.assumed = false;
                if placed.leaving != leaving {
                    self.census.book(&placed.resident(), -1);
                    placed.leaving = leaving;
                    self.census.book(&placed.resident(), 1);
                    self.company += 1;
                }
                return;
            }
            self.remove(&need.uid);
        }
        self.meet(need);
        let need = need.settled();
        self.put_back(Placed { node: index, assumed: false, leaving, need });
        self.company += 1;
    }

    /// Counts a Pod on a node before its binding is known.
    pub fn assume(&mut self, need: &Need, node: usize) {
        self.meet(need);
        self.put_back(Placed { node, assumed: true, leaving: false, need: need.settled() });
        self.company += 1;
    }

    /// Takes back an assumption whose binding failed.
    pub fn forget(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.remove(uid);
        }
    }

    /// Takes back assumptions that nothing came of, with the `company` of before them. Nobody else
    /// has seen these, so nothing became free: who fits nowhere need not look again.
    pub fn take_back(&mut self, needs: &[Need], company: u64) {
        for need in needs {
            self.take_out(&need.uid);
        }
        self.company = company;
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// Uids of all Pods that have a node, or are assumed to.
    pub fn uids(&self) -> Vec<String> {
        self.placed.keys().cloned().collect()
    }

    /// Frees what a Pod used.
    pub fn remove(&mut self, uid: &str) {
        self.denominate(uid);
        if self.take_out(uid).is_some() {
            self.room += 1;
        }
    }

    /// Takes a Pod off its node, also to see what would be if it were not there.
    pub fn take_out(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.placed.remove(uid)?;
        let node = &mut self.nodes[placed.node];
        node.used.take(&placed.need.requests);
        node.pods -= 1;
        node.residents.remove(uid);
        for port in &placed.need.ports {
            less(&mut node.ports, port);
        }
        if let Some(owner) = &placed.need.owner {
            less(&mut node.owners, owner);
            self.zones.add(owner, node.zone, -1);
        }
        for claim in &placed.need.claims {
            less(&mut self.claims_used, &(placed.need.namespace.clone(), claim.clone()));
        }
        self.appetites.gone(uid, placed.need.owner.as_deref());
        self.census.book(&placed.resident(), -1);
        Some(placed)
    }

    /// The opposite of [`Cluster::take_out`].
    pub fn put_back(&mut self, placed: Placed) {
        self.denominate(&placed.need.uid);
        let node = &mut self.nodes[placed.node];
        let need = &placed.need;
        node.used.add(&need.requests);
        node.pods += 1;
        node.residents.insert(need.uid.clone());
        for port in &need.ports {
            *node.ports.entry(port.clone()).or_default() += 1;
        }
        if let Some(owner) = &need.owner {
            *node.owners.entry(owner.clone()).or_default() += 1;
            self.zones.add(owner, node.zone, 1);
        }
        for claim in &need.claims {
            let used = (need.namespace.clone(), claim.clone());
            *self.claims_used.entry(used).or_default() += 1;
        }
        self.appetites.came(&need.uid, need.owner.as_deref());
        self.census.book(&placed.resident(), 1);
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

/// One less of a thing; things of which there are none are not kept.
fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, i64>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
