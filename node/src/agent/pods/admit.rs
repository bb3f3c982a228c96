//! How Pods come to this node: with what is known of them, and only as many as fit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PodStatus};
use kube::Api;
use tokio::sync::mpsc;

use crate::agent::{
    facts::Facts,
    lifecycle::{Observation, Stage},
    node::{booted, cores, memory_kib},
    placement::Place,
    pressure::Written as Files,
    recover::recover,
    spec::{Desired, PodSpec},
};

use super::{Entry, Input, Placing, Pods, WriteState};

/// How long a Pod waits for the second look at its node.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What Pods request, or a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amounts {
    cpu_millis: u64,
    memory_bytes: u64,
    pods: u64,
}

impl Amounts {
    /// Of the containers that stay: what the scheduler counts, or less.
    fn of(pod: &PodSpec) -> Amounts {
        let sidecars = pod.containers[..pod.init].iter().filter(|it| it.sidecar);
        let all = sidecars.chain(&pod.containers[pod.main()]);
        all.fold(Amounts { pods: 1, ..Amounts::default() }, |sum, it| Amounts {
            cpu_millis: sum.cpu_millis + u64::from(it.requests.0.unwrap_or(0)),
            memory_bytes: sum.memory_bytes.saturating_add(it.requests.1.unwrap_or(0)),
            ..sum
        })
    }
}

/// Reason and sentence for a Pod that does not fit, in the words of a kubelet.
fn refusal(asked: Amounts, used: Amounts, capacity: Amounts) -> Option<(&'static str, String)> {
    let rows = [
        ("OutOfcpu", "cpu", asked.cpu_millis, used.cpu_millis, capacity.cpu_millis),
        ("OutOfmemory", "memory", asked.memory_bytes, used.memory_bytes, capacity.memory_bytes),
        ("OutOfpods", "pods", asked.pods, used.pods, capacity.pods),
    ];
    // Who asks for nothing gets nothing that could be missing.
    let lacking = rows.into_iter().find(|(_, _, asked, used, capacity)| {
        *asked > 0 && used.saturating_add(*asked) > *capacity
    });
    let (reason, what, asked, used, capacity) = lacking?;
    let message = format!(
        "Pod was rejected: Node didn't have enough resource: {what}, requested: {asked}, used: \
         {used}, capacity: {capacity}"
    );
    Some((reason, message))
}

impl Pods {
    /// Takes a Pod that was not known, with what the API and a worker know of it.
    pub(super) fn adopt(&mut self, desired: Desired, api: Option<&PodStatus>) {
        let spec = desired.spec.clone();
        self.parts.accounts.name(&spec.uid, &spec.namespace, &spec.name);
        let worker = self.parts.fleet.reported(&spec.namespace, &spec.uid);
        let mut state = recover(&spec, api, worker.as_ref(), Timestamp::now(), booted());
        if state.needs_worker()
            && let Some(ip) = state.ip
            && !self.addresses.claim(ip, &spec.uid)
        {
            // Only a Pod that does not run can take another address.
            tracing::warn!(pod = spec.name, %ip, "the address of a Pod is taken or not ours");
            state.ip = None;
        }
        if let Some(worker) = worker.as_ref().filter(|_| state.needs_worker()) {
            self.parts.volumes.adopt(&spec, worker.ip);
        }
        self.names.insert((spec.namespace.clone(), spec.name.clone()), spec.uid.clone());
        let is_new = worker.is_none() && api.is_none_or(|api| api.start_time.is_none());
        let entry = Entry {
            desired,
            state,
            starts: BTreeMap::new(),
            told: worker.is_some(),
            needs: false,
            written: None,
            write: WriteState::Idle,
            wake: None,
            placing: if is_new { Placing::Unasked } else { Placing::Done },
            disk: Files::default(),
            facts: Facts::default(),
        };
        self.entries.insert(spec.uid.clone(), Box::new(entry));
        if is_new && spec.scheduled.is_none() {
            self.admit(&spec);
        }
    }

    /// All Pods are known: addresses of those that are no more go to who waits for one.
    pub(super) fn end_promises(&mut self) {
        self.addresses.end_promises();
        let (now, thirsty) = (Timestamp::now(), std::mem::take(&mut self.thirsty));
        self.timers.extend(thirsty.into_iter().map(|uid| (now, uid)));
    }

    /// Whoever comes for an image that was refused here, and that no Pod of this node wants any more,
    /// may try again.
    pub(super) fn forget_refusals(&self) {
        self.parts.images.shown().keep_refused(|image| {
            let mut pods = self.entries.values().map(|entry| &entry.desired.spec.containers);
            pods.any(|containers| containers.iter().any(|container| container.image == image))
        });
    }

    /// Refuses a Pod that asks for more than is left. The scheduler never sends one, but a Pod that
    /// names its node does not ask it.
    fn admit(&mut self, spec: &PodSpec) {
        let others = self.entries.values().filter(|entry| {
            let stays = matches!(entry.state.stage, Stage::Admitted | Stage::Active);
            stays && entry.desired.spec.uid != spec.uid
        });
        let used = others.map(|entry| Amounts::of(&entry.desired.spec)).fold(
            Amounts::default(),
            |sum, it| Amounts {
                cpu_millis: sum.cpu_millis.saturating_add(it.cpu_millis),
                memory_bytes: sum.memory_bytes.saturating_add(it.memory_bytes),
                pods: sum.pods + it.pods,
            },
        );
        let cores = cores();
        let capacity = Amounts {
            cpu_millis: cores as u64 * 1000,
            memory_bytes: memory_kib().unwrap_or(1 << 20) << 10,
            pods: u64::from(self.parts.max_pods),
        };
        let Some((reason, message)) = refusal(Amounts::of(spec), used, capacity) else {
            return;
        };
        self.refuse(spec, reason, message);
    }

    fn refuse(&mut self, spec: &PodSpec, reason: &'static str, message: String) {
        tracing::warn!(namespace = spec.namespace, pod = spec.name, message, "refused a Pod");
        self.parts.events.warning_of_pod(spec, reason, message.clone());
        self.observed(&spec.uid, Observation::Refuse(reason, message));
    }

    /// Whether a Pod may begin as far as its node is concerned. If what is known of the Node says no,
    /// it is read anew, since it may have changed just before the Pod came; until then the Pod waits.
    pub(super) fn may_begin(&mut self, entry: &mut Entry) -> bool {
        match entry.placing {
            Placing::Done => return true,
            Placing::Asked => return false,
            Placing::Unasked => {}
        }
        let spec = &entry.desired.spec;
        let place = self.parts.place.borrow().clone();
        let Some((place, wanted)) = place.zip(spec.placement.as_ref()) else {
            // Before anything is known of the Node there is no address for the Pod either.
            return true;
        };
        if wanted.refused_by(&place).is_none() {
            entry.placing = Placing::Done;
            return true;
        }
        let (client, inputs) = (self.parts.client.clone(), self.parts.inputs.clone());
        self.tasks.spawn(look_again(client, self.parts.node.clone(), spec.clone(), inputs));
        entry.placing = Placing::Asked;
        false
    }

    /// The Node was read anew.
    pub(super) fn placed(&mut self, uid: &str, refused: Option<(&'static str, String)>) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.placing = Placing::Done;
        let spec = entry.desired.spec.clone();
        // Of one that was deleted meanwhile there is nothing to be said.
        let waits = entry.state.stage == Stage::Admitted;
        match refused.filter(|_| waits) {
            Some((reason, message)) => self.refuse(&spec, reason, message),
            None => self.process(uid),
        }
    }
}

/// Reads the Node and says whether the Pod may be on it.
async fn look_again(
    client: kube::Client,
    node: String,
    spec: Arc<PodSpec>,
    inputs: mpsc::WeakSender<Input>,
) {
    let nodes = Api::<Node>::all(client);
    let refused = match tokio::time::timeout(LOOK_MAX, nodes.get(&node)).await {
        Ok(Ok(node)) => {
            let place = Place::of(&node);
            spec.placement.as_ref().and_then(|wanted| wanted.refused_by(&place))
        }
        // Whoever bound it to this node has seen more of it than can be seen from here now.
        _ => None,
    };
    if let Some(inputs) = inputs.upgrade() {
        // The loop is gone only when the agent ends.
        let _ = inputs.send(Input::Placed { uid: spec.uid.clone(), refused }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_do_not_fit_are_refused_as_by_a_kubelet() {
        let amounts = |cpu_millis, memory_bytes, pods| Amounts { cpu_millis, memory_bytes, pods };
        let capacity = amounts(2000, 1 << 30, 3);
        let told = |asked, used| match refusal(asked, used, capacity) {
            Some((reason, message)) => format!("{reason}: {message}"),
            None => "fits".to_owned(),
        };
        assert_eq!(told(amounts(500, 1 << 20, 1), amounts(1500, 0, 2)), "fits");
        assert_eq!(
            told(amounts(501, 1 << 20, 1), amounts(1500, 0, 2)),
            "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 501, \
             used: 1500, capacity: 2000"
        );
        assert_eq!(told(amounts(0, 0, 1), amounts(9000, 9 << 30, 2)), "fits");
        let full = told(amounts(0, 1, 1), amounts(0, 1 << 30, 2));
        assert!(full.starts_with("OutOfmemory: "), "{full}");
        let many = told(amounts(0, 0, 1), amounts(0, 0, 3));
        assert!(many.starts_with("OutOfpods: "), "{many}");
    }

    #[test]
    fn a_pod_requests_what_its_containers_do_that_stay() {
        let pod = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},"spec":{"nodeName":"n",
            "initContainers":[
                {"name":"once","image":"i","resources":{"requests":{"cpu":"9"}}},
                {"name":"side","image":"i","restartPolicy":"Always",
                    "resources":{"requests":{"cpu":"100m"}}}],
            "containers":[{"name":"app","image":"i",
                "resources":{"requests":{"cpu":"250m","memory":"1Mi"}}}]}}"#;
        let pod = serde_json::from_str(pod).expect("a Pod");
        let spec = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
        let expected = Amounts { cpu_millis: 350, memory_bytes: 1 << 20, pods: 1 };
        assert_eq!(Amounts::of(&spec), expected);
    }
}
