//! What a server behind an APIService must know to believe the API server: whose certificate to
//! trust, and in which headers it says who asks. Such servers read it from a ConfigMap of this
//! name, through a Role of this name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::super::write::Write;
use crate::pki::{FRONT_PROXY, Pki};

pub const NAMESPACE: &str = "kube-system";
pub const CONFIG: &str = "extension-apiserver-authentication";
pub const READER: &str = "extension-apiserver-authentication-reader";

fn data(pki: &Pki) -> BTreeMap<String, String> {
    let list = |one: &str| json!([one]).to_string();
    let rows = [
        ("client-ca-file", pki.cluster.certificate_pem().to_owned()),
        ("requestheader-allowed-names", list(FRONT_PROXY)),
        ("requestheader-client-ca-file", pki.peer.certificate_pem().to_owned()),
        ("requestheader-extra-headers-prefix", list("X-Remote-Extra-")),
        ("requestheader-group-headers", list("X-Remote-Group")),
        ("requestheader-uid-headers", list("X-Remote-Uid")),
        ("requestheader-username-headers", list("X-Remote-User")),
    ];
    rows.map(|(key, value)| (key.to_owned(), value)).into()
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        ..ObjectMeta::default()
    }
}

/// Makes what is missing, and puts the data right.
pub fn plan(held: Option<&ConfigMap>, has_role: bool, pki: &Pki) -> Vec<Write> {
    let mut writes = Vec::new();
    let wanted = data(pki);
    match held {
        None => {
            let metadata = metadata(CONFIG);
            let data = Some(wanted);
            writes.push(Write::create(&ConfigMap { metadata, data, ..ConfigMap::default() }));
        }
        Some(held) if held.data.as_ref() != Some(&wanted) => {
            writes.push(Write::patch(held, json!({"data": wanted})));
        }
        Some(_) => {}
    }
    if !has_role {
        let rule = PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["configmaps".to_owned()]),
            resource_names: Some(vec![CONFIG.to_owned()]),
            verbs: ["get", "list", "watch"].map(str::to_owned).into(),
            ..PolicyRule::default()
        };
        let metadata = metadata(READER);
        writes.push(Write::create(&Role { metadata, rules: Some(vec![rule]) }));
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::text;
    use super::*;

    #[test]
    fn it_is_made_and_put_right() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pki = Pki::load_or_create(folder.path()).expect("authorities");
        let made = text(&plan(None, false, &pki));
        assert_eq!(made.lines().count(), 2, "{made}");
        let right = ConfigMap {
            metadata: metadata(CONFIG),
            data: Some(data(&pki)),
            ..ConfigMap::default()
        };
        assert_eq!(text(&plan(Some(&right), true, &pki)), "");
        let wrong = ConfigMap { data: None, ..right };
        let shown = text(&plan(Some(&wrong), true, &pki));
        assert!(shown.starts_with("patch configmaps kube-system/"), "{shown}");
        assert!(shown.contains("[\\\"wherry-front-proxy\\\"]"), "{shown}");
    }
}
