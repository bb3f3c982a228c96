//! What a Pod asks of a node, read from its spec once and then compared with many nodes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, NodeSelectorTerm, Pod, PodSpec, PreferredSchedulingTerm, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use wherry_resources::offers::{IMPORTS, imports};
use wherry_resources::quantity;
use wherry_resources::turns::{DEADLINE, GANG, GANG_SIZE};

use super::company::{Company, Labels};
use crate::controllers::pods;

/// The scheduler's name in `spec.schedulerName`.
const NAME: &str = "default-scheduler";
/// The other name: Pods of it fill nodes one after the other, so that some stay empty.
const PACKING: &str = "packing-scheduler";

/// Most of one thing that is told apart: far more than a machine has, and still little enough for the
/// amounts of thousands of Pods to be added up.
const AMOUNT_MAX: i64 = 1 << 52;

/// Amounts of what a node has: CPU in thousandths of a core, memory and everything else in whole
/// units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub cpu: i64,
    pub memory: i64,
    /// By name, such as `ephemeral-storage`; most Pods ask for none.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    pub fn read(amounts: Option<&BTreeMap<String, Quantity>>) -> Resources {
        let mut resources = Resources::default();
        for (name, amount) in amounts.into_iter().flatten() {
            // Admission has refused what cannot be read.
            let Ok(amount) = quantity::Quantity::parse(&amount.0) else { continue };
            match name.as_str() {
                "cpu" => resources.cpu = amount.millis().clamp(0, AMOUNT_MAX),
                "memory" => resources.memory = amount.value().clamp(0, AMOUNT_MAX),
                "pods" => {}
                _ => _ = resources.others.insert(name.clone(), amount.value().clamp(0, AMOUNT_MAX)),
            }
        }
        resources
    }

    pub fn add(&mut self, more: &Resources) {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        for (name, amount) in &more.others {
            let held = self.others.entry(name.clone()).or_default();
            *held = held.saturating_add(*amount);
        }
    }

    pub fn take(&mut self, less: &Resources) {
        self.cpu = self.cpu.saturating_sub(less.cpu);
        self.memory = self.memory.saturating_sub(less.memory);
        for (name, amount) in &less.others {
            let held = self.others.entry(name.clone()).or_default();
            *held = held.saturating_sub(*amount);
        }
    }

    fn at_least(&mut self, other: &Resources) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        for (name, amount) in &other.others {
            let held = self.others.entry(name.clone()).or_default();
            *held = (*held).max(*amount);
        }
    }
}

/// A port of the node itself that a Pod wants: protocol, address (empty for all), number.
pub type HostPort = (String, String, i32);

/// Pods that start together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gang {
    pub namespace: String,
    pub name: String,
    /// Members without which none starts.
    pub size: usize,
}

/// One Pod as the scheduler sees it.
#[derive(Clone, Debug, Default)]
pub struct Need {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub revision: String,
    pub priority: i32,
    pub created: Option<Timestamp>,
    /// Uid of what controls it: Pods of one owner are spread.
    pub owner: Option<String>,
    pub requests: Resources,
    pub ports: Vec<HostPort>,
    pub selector: BTreeMap<String, String>,
    /// Terms of which one must hold; empty when there are none.
    pub required: Vec<NodeSelectorTerm>,
    pub preferred: Vec<PreferredSchedulingTerm>,
    pub tolerations: Vec<Toleration>,
    pub images: Vec<String>,
    /// What its images import, as far as its author says.
    pub imports: Vec<String>,
    /// What its condition PodScheduled says when it is False.
    pub told: Option<String>,
    pub labels: Arc<Labels>,
    /// What it says about other Pods.
    pub company: Option<Arc<Company>>,
    /// Names of the claims for its volumes.
    pub claims: Vec<String>,
    pub gang: Option<Gang>,
    pub deadline: Option<Timestamp>,
    /// May make room by having Pods of lower priority deleted.
    pub preempts: bool,
    /// Prefers full nodes to empty ones.
    pub packs: bool,
    /// The node where room was made for it, by its status.
    pub nominated: Option<String>,
    pub started: Option<Timestamp>,
    /// How often its binding was refused since the last news of it.
    pub refusals: u32,
    /// How often it fitted nowhere, since the last news of its spec.
    pub tries: u32,
    /// Equal for Pods that the same nodes can take.
    pub class: u64,
}

impl Need {
    pub fn read(pod: &Pod) -> Need {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let owner = meta.owner_references.iter().flatten();
        let mut owner = owner.filter(|owner| owner.controller == Some(true));
        let mut need = Need {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            revision: text(&meta.resource_version),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            owner: owner.next().map(|owner| owner.uid.clone()),
            told: told(pod),
            labels: Arc::new(meta.labels.clone().unwrap_or_default()),
            ..Need::default()
        };
        if let Some(annotations) = &meta.annotations {
            need.read_annotations(annotations);
        }
        if let Some(status) = &pod.status {
            need.nominated = status.nominated_node_name.clone().filter(|name| !name.is_empty());
            need.started = status.start_time.as_ref().map(|time| time.0);
        }
        if let Some(spec) = &pod.spec {
            need.read_spec(spec);
            need.claims = pods::claims(pod);
        }
        need.class = need.class();
        need
    }

    /// What is left of it once it has a node.
    pub fn settled(&self) -> Need {
        Need {
            selector: BTreeMap::new(),
            required: Vec::new(),
            preferred: Vec::new(),
            tolerations: Vec::new(),
            images: Vec::new(),
            imports: Vec::new(),
            told: None,
            ..self.clone()
        }
    }

    fn read_annotations(&mut self, annotations: &Labels) {
        self.imports = annotations.get(IMPORTS).into_iter().flat_map(|it| imports(it)).collect();
        self.deadline = annotations.get(DEADLINE).and_then(|text| text.parse().ok());
        let size = annotations.get(GANG_SIZE).and_then(|text| text.parse().ok());
        if let Some((name, size)) = annotations.get(GANG).cloned().zip(size) {
            self.gang = Some(Gang { namespace: self.namespace.clone(), name, size });
        }
    }

    fn read_spec(&mut self, spec: &PodSpec) {
        self.priority = spec.priority.unwrap_or(0);
        self.packs = spec.scheduler_name.as_deref() == Some(PACKING);
        self.preempts = spec.preemption_policy.as_deref() != Some("Never");
        self.company = Company::read(spec, &self.namespace, &self.labels).map(Arc::new);
        self.requests = requests(spec);
        self.selector = spec.node_selector.clone().unwrap_or_default();
        self.tolerations = spec.tolerations.clone().unwrap_or_default();
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        if let Some(affinity) = affinity {
            let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
            self.required = required.map(|one| one.node_selector_terms.clone()).unwrap_or_default();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref();
            self.preferred = preferred.cloned().unwrap_or_default();
        }
        // An image that cannot run stops the Pod, whether it comes first or stays.
        let first = || spec.init_containers.iter().flatten();
        self.images = first().chain(&spec.containers).filter_map(|it| it.image.clone()).collect();
        for container in first().filter(|it| is_sidecar(it)).chain(&spec.containers) {
            for port in container.ports.iter().flatten() {
                let Some(number) = port.host_port.filter(|number| *number > 0) else { continue };
                let protocol = port.protocol.clone().unwrap_or("TCP".to_string());
                let address = port.host_ip.clone().filter(|address| address != "0.0.0.0");
                self.ports.push((protocol, address.unwrap_or_default(), number));
            }
        }
    }

    fn class(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.namespace, &self.labels, self.priority, self.preempts).hash(&mut hasher);
        if let Some(company) = &self.company {
            company.hash_rules(&mut hasher);
        }
        self.claims.hash(&mut hasher);
        // Images, too: some nodes cannot run some.
        (&self.images, &self.imports).hash(&mut hasher);
        self.requests.hash(&mut hasher);
        self.ports.hash(&mut hasher);
        self.selector.hash(&mut hasher);
        if !self.required.is_empty() || !self.tolerations.is_empty() {
            let rest = serde_json::to_string(&(&self.required, &self.tolerations));
            rest.expect("terms and tolerations are JSON").hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Whether a scheduler's name is one of this one's.
fn is_own(name: &str) -> bool {
    [NAME, PACKING].contains(&name)
}

/// Whether a Pod waits for this scheduler.
pub fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let scheduler = spec.scheduler_name.as_deref().unwrap_or(NAME);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    pods::node(pod).is_empty() && pods::is_active(pod) && is_own(scheduler) && !gated
}

fn told(pod: &Pod) -> Option<String> {
    let condition = pods::condition(pod, "PodScheduled")?;
    (condition.status == "False").then(|| condition.message.clone().unwrap_or_default())
}

/// What the Pod asks for at its most demanding moment: all containers and sidecars together, or an
/// init container beside the sidecars that were started before it.
fn requests(spec: &PodSpec) -> Resources {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        Resources::read(resources.and_then(|resources| resources.requests.as_ref()))
    };
    let mut sidecars = Resources::default();
    let mut greediest = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut together = of(container);
        together.add(&sidecars);
        greediest.at_least(&together);
        if is_sidecar(container) {
            sidecars = together;
        }
    }
    let mut sum = sidecars;
    spec.containers.iter().for_each(|container| sum.add(&of(container)));
    sum.at_least(&greediest);
    sum.add(&Resources::read(spec.overhead.as_ref()));
    sum
}

/// Whether an init container runs beside the others.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_beyond_all_machines_can_be_added_up() {
        let amounts = ["cpu", "memory", "x.dev/thing"]
            .map(|name| (name.to_string(), Quantity("9E".to_string())));
        let one = Resources::read(Some(&BTreeMap::from(amounts)));
        let mut sum = Resources::default();
        for _ in 0..3_000 {
            sum.add(&one);
        }
        assert_eq!(
            (sum.cpu, sum.memory, sum.others["x.dev/thing"]),
            (i64::MAX, i64::MAX, i64::MAX)
        );
        let less = BTreeMap::from([("cpu".to_string(), Quantity("-9E".to_string()))]);
        assert_eq!(Resources::read(Some(&less)).cpu, 0);
        sum = one.clone();
        sum.add(&one);
        sum.take(&one);
        assert_eq!(sum, one);
    }
}
