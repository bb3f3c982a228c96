//! Workers of another engine, as an upgrade of the node's program leaves them.
//!
//! ```text
//!   adopted ─▶ compiling ahead ─all is there─▶ waiting ─nothing is lost for good─▶ replaced
//!      └──────────────┴─ a start is prepared, which only a new worker takes ──────────▲
//! ```
//!
//! What runs in such a worker goes on and is looked after as in any other, but it loads no code of this
//! agent's engine. So the images of what runs are compiled first; then the worker ends when its requests
//! have, and what it ran starts again in a new one. That is put off as long as a container runs which
//! its restart policy would not start again. Nothing is replaced until a server has told all that may
//! need a worker, unless a start waits for it: who ends before would come back only after that.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    agent::{
        lifecycle::{CODE_KILLED, Observation, Phase, PodState, Stage, observe},
        spec::PodSpec,
    },
    protocol,
};

use super::{Input, Pods};

/// After an image could not be compiled ahead, it is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// The containers that a worker has of a Pod, and whether they start again if it is gone. Ephemeral
/// ones are not looked at: they end with it.
fn live(spec: &PodSpec, state: &PodState) -> Vec<(usize, bool)> {
    let is_live = |phase: &Phase| {
        matches!(phase, Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. })
    };
    let containers = state.containers.iter().zip(&spec.containers).take(spec.ephemeral);
    let live = containers.enumerate().filter(|(_, (container, _))| is_live(&container.phase));
    let stays = state.stage == Stage::Active;
    live.map(|(index, (_, this))| (index, stays && this.restarts.after(CODE_KILLED, spec.restart)))
        .collect()
}

impl Pods {
    /// A start is prepared. While no worker is there that takes it, it waits; one of another engine is
    /// replaced for it.
    pub(super) fn prepared(
        &mut self,
        uid: &str,
        container: usize,
        start: Box<protocol::Container>,
    ) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let expected = &entry.state.containers[container];
        let due = matches!(expected.phase, Phase::Preparing { .. });
        if !due || expected.restarts != start.restart {
            return;
        }
        entry.starts.insert(container, start);
        let namespace = entry.desired.spec.namespace.clone();
        if self.parts.fleet.takes_code(&namespace) {
            self.deliver_prepared(uid);
            self.process(uid);
        } else if self.parts.fleet.is_outdated(&namespace) {
            self.replace_worker(&namespace);
        }
    }

    /// What was prepared is due, if the worker takes it.
    pub(super) fn deliver_prepared(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        if !self.parts.fleet.takes_code(&entry.desired.spec.namespace) {
            return;
        }
        let now = Timestamp::now();
        for (container, start) in &entry.starts {
            let observation = Observation::Prepared {
                container: *container,
                image_id: start.image_id.clone(),
                guest: start.guest,
            };
            entry.state = observe(&entry.state, &entry.desired.spec, observation, now);
        }
    }

    /// A worker has come or gone, or more may be known now of what needs one.
    pub(super) fn look_at_engine(&mut self, namespace: &str) {
        if self.parts.fleet.outdated().is_empty() {
            self.tasks.spawn(self.parts.images.clone().forget_other_engines());
        }
        if !self.parts.fleet.is_outdated(namespace) {
            self.ahead.remove(namespace);
        } else if self.parts.fleet.is_replaceable(namespace) && !self.ahead.contains_key(namespace)
        {
            self.compile_ahead(namespace);
        }
    }

    fn compile_ahead(&mut self, namespace: &str) {
        self.ahead.insert(namespace.to_owned(), false);
        let mut images = BTreeSet::new();
        let mut wanted = self.live_in(namespace);
        wanted.retain(|(pod, index, starts_again)| {
            *starts_again && images.insert(pod.containers[*index].image.clone())
        });
        tracing::info!(namespace, images = images.len(), "its worker has another engine");
        let (preparer, inputs) = (self.parts.preparer.clone(), self.parts.inputs.clone());
        let namespace = namespace.to_owned();
        self.tasks.spawn(async move {
            let mut ready = true;
            for (pod, index, _) in wanted {
                ready &= preparer.compile_ahead(&pod, index).await;
            }
            if !ready {
                tokio::time::sleep(AGAIN).await;
            }
            if let Some(inputs) = inputs.upgrade() {
                // The loop is gone only when the agent ends.
                let _ = inputs.send(Input::CompiledAhead { namespace, ready }).await;
            }
        });
    }

    /// What ran in a worker of another engine has been compiled, or is to be tried again.
    pub(super) fn compiled(&mut self, namespace: &str, ready: bool) {
        match self.ahead.get_mut(namespace) {
            Some(known) if ready => {
                *known = true;
                self.replace_when_ready(namespace);
            }
            Some(_) => self.compile_ahead(namespace),
            // It has been replaced for a start.
            None => {}
        }
    }

    /// Replaces a worker of another engine if all is compiled and nothing would be lost for good.
    pub(super) fn replace_when_ready(&mut self, namespace: &str) {
        if self.ahead.get(namespace) != Some(&true) {
            return;
        }
        match self.live_in(namespace).iter().find(|(_, _, starts_again)| !starts_again) {
            Some((pod, _, _)) => {
                tracing::info!(namespace, pod = pod.name, "an old worker waits for a Pod's end");
            }
            None => self.replace_worker(namespace),
        }
    }

    fn replace_worker(&mut self, namespace: &str) {
        let live = self.live_in(namespace);
        let pods: HashSet<&str> = live.iter().map(|(pod, _, _)| pod.uid.as_str()).collect();
        let message = format!(
            "The worker process of namespace {namespace} is of before the node's upgrade: it ends, \
             and what it ran of {} Pods starts again in a new one",
            pods.len()
        );
        tracing::info!(namespace, pods = pods.len(), "replacing a worker of another engine");
        self.parts.events.of_node(&self.parts.node, "WorkerReplaced", message, false);
        for (pod, index, starts_again) in &live {
            let next = match starts_again {
                true => "it starts again in a new one",
                false => "its Pod does not start it again",
            };
            let message = format!(
                "Container {} ends with its worker process, which is of before the node's upgrade; \
                 {next}",
                pod.containers[*index].name
            );
            self.parts.events.normal(pod, *index, "WorkerReplaced", message);
        }
        self.ahead.remove(namespace);
        self.parts.fleet.replace(namespace);
    }

    /// What a worker runs: see [`live`].
    fn live_in(&self, namespace: &str) -> Vec<(Arc<PodSpec>, usize, bool)> {
        let mut all = Vec::new();
        for entry in self.entries.values() {
            let spec = &entry.desired.spec;
            if spec.namespace == namespace {
                let live = live(spec, &entry.state).into_iter();
                all.extend(live.map(|(index, starts_again)| (spec.clone(), index, starts_again)));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::lifecycle::Why;

    /// Of a Pod whose sidecar, first container and ephemeral one run.
    fn check(policy: &str, change: impl FnOnce(&mut PodState), expected: &[(usize, bool)]) {
        let pod = format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","uid":"u"}},
                "spec":{{"nodeName":"n","restartPolicy":"{policy}",
                    "initContainers":[{{"name":"side","image":"i","restartPolicy":"Always"}}],
                    "containers":[{{"name":"app","image":"i"}},{{"name":"ended","image":"i"}}],
                    "ephemeralContainers":[{{"name":"debug","image":"i"}}]}}}}"#
        );
        let pod = serde_json::from_str(&pod).expect("a Pod");
        let spec = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
        let now = Timestamp::UNIX_EPOCH;
        let mut state = PodState::new(&spec, now);
        state.stage = Stage::Active;
        for index in [0, 1, 3] {
            state.containers[index].phase = Phase::Running { since: now };
        }
        change(&mut state);
        assert_eq!(live(&spec, &state), expected, "{policy}");
    }

    #[test]
    fn what_would_not_start_again_is_known_before_its_worker_ends() {
        check("Always", |_| {}, &[(0, true), (1, true)]);
        check("OnFailure", |_| {}, &[(0, true), (1, true)]);
        check("Never", |_| {}, &[(0, true), (1, false)]);
        let ends = |state: &mut PodState| state.stage = Stage::Finished(Why::Succeeded);
        check("Always", ends, &[(0, false), (1, false)]);
        let waits = |state: &mut PodState| {
            state.containers[0].phase = Phase::Waiting;
            state.containers[1].phase = Phase::Starting;
        };
        check("Always", waits, &[(1, true)]);
    }
}
