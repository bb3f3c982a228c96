//! What every namespace has from the start: the ServiceAccount `default` and the ConfigMap
//! `kube-root-ca.crt` with the cluster's CA certificate, by which guests check the API server.
//!
//! Owns: these two objects. They are made again when deleted, and the certificate is put right when
//! changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::replicaset::name_of;
use super::write::Write;

const ACCOUNT: &str = "default";
pub const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";

/// What a plan for one namespace reads.
#[derive(Default)]
pub struct Snapshot {
    pub namespace: Arc<Namespace>,
    pub has_account: bool,
    pub root_ca: Option<Arc<ConfigMap>>,
    /// The cluster's CA certificate, PEM.
    pub certificate: String,
}

pub const CONTROLLER: Controller = Controller { name: "serviceaccount", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<Namespace>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    let name = change.key.name();
    let account = change.of::<ServiceAccount>().is_some() && name == ACCOUNT;
    let config_map = change.of::<ConfigMap>().is_some() && name == ROOT_CA;
    if account || config_map {
        keys.push(Key::of::<Namespace>("", change.key.namespace()));
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(namespace) = view.cache.get::<Namespace>("", key.name()) else {
        return Plan::default();
    };
    let snapshot = Snapshot {
        namespace,
        has_account: view.cache.get::<ServiceAccount>(key.name(), ACCOUNT).is_some(),
        root_ca: view.cache.get(key.name(), ROOT_CA),
        certificate: view.config.pki.cluster.certificate_pem().to_string(),
    };
    plan(&snapshot, view.now).into()
}

/// Makes what is missing in a living namespace. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    if snapshot.namespace.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let namespace = name_of(&snapshot.namespace.metadata);
    let meta = |name: &str| ObjectMeta {
        name: Some(name.to_string()),
        namespace: Some(namespace.to_string()),
        ..ObjectMeta::default()
    };
    let mut writes = Vec::new();
    if !snapshot.has_account {
        let account = ServiceAccount { metadata: meta(ACCOUNT), ..ServiceAccount::default() };
        writes.push(Write::create(&account));
    }
    let wanted = BTreeMap::from([(ROOT_CA_KEY.to_string(), snapshot.certificate.clone())]);
    match &snapshot.root_ca {
        None => writes.push(Write::create(&ConfigMap {
            metadata: meta(ROOT_CA),
            data: Some(wanted),
            ..ConfigMap::default()
        })),
        Some(held)
            if held.data.as_ref().and_then(|data| data.get(ROOT_CA_KEY))
                != Some(&snapshot.certificate) =>
        {
            writes.push(Write::patch(&**held, json!({"data": wanted})));
        }
        Some(_) => {}
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, meta, object, text};
    use super::*;

    fn snapshot(has_account: bool, certificate: Option<&str>) -> Snapshot {
        let held = certificate.map(|text| {
            let mut map: ConfigMap = object(meta("shop", ROOT_CA));
            map.data = Some([(ROOT_CA_KEY.to_string(), text.to_string())].into());
            Arc::new(map)
        });
        Snapshot {
            namespace: Arc::new(object(meta("", "shop"))),
            has_account,
            root_ca: held,
            certificate: "CA".to_string(),
        }
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_wrong_put_right() {
        let shown = |snapshot: &Snapshot| text(&plan(snapshot, at(0)));
        assert_eq!(
            shown(&snapshot(false, None)),
            "create serviceaccounts shop/default\ncreate configmaps shop/kube-root-ca.crt\n"
        );
        assert_eq!(
            shown(&snapshot(true, Some("old"))),
            "patch configmaps shop/kube-root-ca.crt {\"data\":{\"ca.crt\":\"CA\"}}\n"
        );
        assert_eq!(shown(&snapshot(true, Some("CA"))), "");
        let mut going = snapshot(false, None);
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0));
        Arc::make_mut(&mut going.namespace).metadata.deletion_timestamp = Some(now);
        assert_eq!(shown(&going), "");
    }
}
