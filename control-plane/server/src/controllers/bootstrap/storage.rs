//! The storage class that every cluster has: folders of the nodes.
//!
//! It is made again when it is deleted. Who wants another default marks this one as none: `kubectl
//! annotate storageclass local storageclass.kubernetes.io/is-default-class=false --overwrite`.

use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::volumes::{DEFAULT_CLASS, LOCAL};
use super::super::write::Write;

pub const CLASS: &str = "local";

/// Makes the class if it is missing.
pub fn plan(is_there: bool) -> Option<Write> {
    let annotations = [(DEFAULT_CLASS.to_string(), "true".to_string())];
    let class = StorageClass {
        metadata: ObjectMeta {
            name: Some(CLASS.to_string()),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        provisioner: LOCAL.to_string(),
        reclaim_policy: Some("Delete".to_string()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_string()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    };
    (!is_there).then(|| Write::create(&class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_when_it_is_missing() {
        let made = plan(false).map(|write| write.to_string());
        assert_eq!(made.as_deref(), Some("create storageclasses.storage.k8s.io local"));
        assert!(plan(true).is_none());
    }
}
