//! The loop's part in streams: whether a Pod is here and runs.

use crate::agent::{lifecycle::Phase, streams::ReachQuery};

use super::Pods;

impl Pods {
    pub(super) fn reach(&self, query: ReachQuery) {
        let reachable = self.is_reachable(&query);
        let found = reachable.map(|()| self.parts.fleet.takes_code(&query.namespace));
        // Whoever asked may have gone.
        let _ = query.answer.send(found);
    }

    fn is_reachable(&self, query: &ReachQuery) -> Result<(), String> {
        let ReachQuery { namespace, pod, uid, container, .. } = query;
        let entry = self.entries.get(uid).filter(|entry| {
            let spec = &entry.desired.spec;
            spec.namespace == *namespace && spec.name == *pod
        });
        let entry = entry.ok_or_else(|| {
            format!("pod \"{pod}\" of namespace {namespace} is not here with the uid {uid}")
        })?;
        let Some(container) = container else {
            return Ok(());
        };
        let index = entry.desired.spec.container(container);
        let phase = index.map(|index| &entry.state.containers[index].phase);
        match phase {
            Some(Phase::Running { .. } | Phase::Stopping { .. }) => Ok(()),
            _ => Err(format!("container not found (\"{container}\")")),
        }
    }
}
