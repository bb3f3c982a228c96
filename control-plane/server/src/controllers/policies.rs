//! ValidatingAdmissionPolicies: that their expressions were looked at.
//!
//! Owns: the status of a policy. What is wrong with an expression is refused when it is written, so
//! there is nothing to warn of; but clients wait for `typeChecking` of the newest generation before
//! they rely on a policy.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

/// What a plan for one policy reads.
pub struct Snapshot {
    pub policy: Arc<ValidatingAdmissionPolicy>,
}

pub const CONTROLLER: Controller = Controller { name: "policies", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<ValidatingAdmissionPolicy>().is_some() {
        keys.push(change.key.clone());
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(policy) = view.cache.get::<ValidatingAdmissionPolicy>("", key.name()) else {
        return Plan::default();
    };
    plan(&Snapshot { policy }, view.now).into()
}

/// Says once for each generation that the expressions are good. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let policy = &*snapshot.policy;
    let generation = policy.metadata.generation;
    let is_told = policy.status.as_ref().is_some_and(|status| {
        status.observed_generation == generation && status.type_checking.is_some()
    });
    if is_told {
        return Vec::new();
    }
    let status = json!({"observedGeneration": generation, "typeChecking": {}});
    vec![Write::patch_status(policy, json!({"status": status}))]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    #[test]
    fn each_generation_of_a_policy_is_told_once() {
        let told = |status: &str| {
            let policy = yaml(&format!("{{metadata: {{name: p, generation: 2}}{status}}}"));
            text(&plan(&Snapshot { policy: Arc::new(policy) }, at(0)))
        };
        let write = "patch validatingadmissionpolicies.admissionregistration.k8s.io p/status \
                     {\"status\":{\"observedGeneration\":2,\"typeChecking\":{}}}\n";
        assert_eq!(told(""), write);
        assert_eq!(told(", status: {observedGeneration: 1, typeChecking: {}}"), write);
        assert_eq!(told(", status: {observedGeneration: 2}"), write);
        assert_eq!(told(", status: {observedGeneration: 2, typeChecking: {}}"), "");
    }
}
