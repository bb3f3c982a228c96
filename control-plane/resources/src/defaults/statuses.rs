//! The status of an object for which no controller has written one.
//!
//! A typed server always has one, and clients count on it: they read `status.readyReplicas` of what
//! they have just created, and those of Python and Java refuse a status whose required numbers are
//! missing. So these numbers are there, and they are 0.

use serde_json::{Value, json};

use crate::Kind;

/// The empty status of a kind; none where there is no status, or its own row makes it.
pub(super) fn empty(kind: &Kind) -> Option<Value> {
    let status = match (kind.group, kind.plural) {
        ("", "resourcequotas")
        | ("apps", "deployments")
        | ("batch", "jobs" | "cronjobs")
        | ("certificates.k8s.io", "certificatesigningrequests")
        | ("apiregistration.k8s.io", "apiservices")
        | ("admissionregistration.k8s.io", "validatingadmissionpolicies")
        | ("flowcontrol.apiserver.k8s.io", "flowschemas" | "prioritylevelconfigurations") => {
            json!({})
        }
        ("", "services") | ("networking.k8s.io", "ingresses") => json!({"loadBalancer": {}}),
        ("", "replicationcontrollers") | ("apps", "replicasets") => json!({"replicas": 0}),
        ("apps", "statefulsets") => json!({"replicas": 0, "availableReplicas": 0}),
        ("apps", "daemonsets") => json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0,
            "numberReady": 0,
        }),
        ("autoscaling", "horizontalpodautoscalers") => {
            json!({"currentReplicas": 0, "desiredReplicas": 0})
        }
        ("policy", "poddisruptionbudgets") => json!({
            "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
        }),
        ("storage.k8s.io", "volumeattachments") => json!({"attached": false}),
        _ => return None,
    };
    Some(status)
}
