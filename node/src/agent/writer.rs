//! Writing Pod statuses, and deleting Pods that have ended.
//!
//! A status is a merge patch of what this node owns: `null` where a value is gone. The Pod's uid is
//! part of it, so a status never lands on a Pod of the same name that came later. A Pod that has
//! ended because it is being deleted gets its last status first and is then deleted with grace 0,
//! under the precondition of its uid.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use super::client::has_code;

/// What a status may lose again: the last ones when a Pod is refused that was waiting before.
const GOING: [&str; 6] =
    ["reason", "message", "podIP", "podIPs", "containerStatuses", "initContainerStatuses"];

/// One status to write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Uid of the Pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its status, as [`content`] made it.
    pub status: Value,
    /// What is told beside it.
    pub annotations: BTreeMap<String, String>,
    /// Whether it is to be deleted after that.
    pub delete: bool,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The API has it.
    Done,
    /// The Pod is gone, or another one has its name: nothing is left to write.
    Gone,
    /// To be tried again.
    Failed,
}

/// The patch for a status, and a hash by which equal ones are known without keeping them.
pub fn content(status: &PodStatus, annotations: &BTreeMap<String, String>) -> (Value, u64) {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    annotations.hash(&mut hasher);
    if let Value::Object(fields) = &mut value {
        for field in GOING {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    (value, hasher.finish())
}

/// Writes one status.
pub async fn write(client: kube::Client, write: Write) -> (String, Written) {
    let api: Api<Pod> = Api::namespaced(client, &write.namespace);
    let mut metadata = json!({"uid": write.uid});
    if !write.annotations.is_empty() {
        metadata["annotations"] = json!(write.annotations);
    }
    let patch = Patch::Merge(json!({"metadata": metadata, "status": write.status}));
    let patched = api.patch_status(&write.name, &PatchParams::default(), &patch).await;
    let mut outcome = patched.map(drop);
    if write.delete && !matches!(&outcome, Err(error) if is_gone(error)) {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(write.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        outcome = api.delete(&write.name, &params).await.map(drop);
    }
    let written = match outcome {
        Ok(()) => Written::Done,
        Err(error) if is_gone(&error) => {
            tracing::info!(pod = write.name, %error, "a status was not taken");
            Written::Gone
        }
        Err(error) => {
            tracing::debug!(pod = write.name, %error, "cannot write a status");
            Written::Failed
        }
    };
    (write.uid, written)
}

/// 404: deleted. 409 and 422: a Pod with another uid.
fn is_gone(error: &kube::Error) -> bool {
    [404, 409, 422].into_iter().any(|code| has_code(error, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_lost_goes_from_the_api() {
        let status = PodStatus { reason: Some("NodeAffinity".to_owned()), ..PodStatus::default() };
        let (patch, _) = content(&status, &BTreeMap::new());
        assert_eq!(patch["reason"], "NodeAffinity");
        assert!(patch["containerStatuses"].is_null() && patch.get("containerStatuses").is_some());
        assert_eq!(patch.get("conditions"), None);
    }
}
