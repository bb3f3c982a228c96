//! The index by itself: what a user may do after some roles and bindings were put and removed.

use super::*;
use bytes::Bytes;
use serde_json::json;

/// Puts an object as the store would show it.
fn put(index: &mut Index, plural: &str, namespace: &str, name: &str, object: Value) {
    let value = Bytes::from(object.to_string());
    let entry = Entry { value, created: 1, modified: 1 };
    index.put(&Key { group: GROUP, plural, namespace, name }, &entry);
}

fn asked(verb: &str, namespace: &str, resource: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        is_resource: true,
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        ..Attributes::default()
    }
}

fn reader(index: &mut Index) {
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    put(index, "clusterroles", "", "reader", json!({ "rules": rules }));
}

fn bound(kind: &str, name: &str, subjects: Value) -> Value {
    json!({"roleRef": {"kind": kind, "name": name}, "subjects": subjects})
}

#[test]
fn bindings_give_what_their_role_says_where_they_are() {
    let mut index = Index::default();
    reader(&mut index);
    let account = json!([{"kind": "ServiceAccount", "name": "bot"}]);
    put(&mut index, "rolebindings", "shop", "b", bound("ClusterRole", "reader", account));
    let group = json!([{"kind": "Group", "name": "staff"}]);
    put(&mut index, "clusterrolebindings", "", "c", bound("ClusterRole", "reader", group));
    let bot = User::new("system:serviceaccount:shop:bot", &[]);
    let staff = User::new("ann", &["staff"]);
    let may = |index: &Index, user: &User, namespace| {
        index.decide(user, &asked("get", namespace, "pods")) == Opinion::Allowed
    };
    assert!(may(&index, &bot, "shop"));
    assert!(!may(&index, &bot, "other"));
    assert!(!may(&index, &bot, ""));
    assert!(may(&index, &staff, "other") && may(&index, &staff, ""));
    index.remove(&Key { group: GROUP, plural: "rolebindings", namespace: "shop", name: "b" });
    assert!(!may(&index, &bot, "shop"));
    let nobody = json!([{"kind": "User", "name": "staff"}]);
    put(&mut index, "clusterrolebindings", "", "c", bound("ClusterRole", "reader", nobody));
    assert!(!may(&index, &staff, ""));
}

#[test]
fn a_binding_without_its_role_says_so() {
    let mut index = Index::default();
    let user = json!([{"kind": "User", "name": "ann"}]);
    put(&mut index, "rolebindings", "shop", "b", bound("Role", "gone", user.clone()));
    let ann = User::new("ann", &[]);
    let found = index.decide(&ann, &asked("get", "shop", "pods"));
    let one = "RBAC: role.rbac.authorization.k8s.io \"gone\" not found";
    assert_eq!(found, Opinion::None(one.to_owned()));
    put(&mut index, "clusterrolebindings", "", "c", bound("ClusterRole", "gone", user));
    let found = index.decide(&ann, &asked("get", "shop", "pods"));
    let two = "RBAC: [clusterrole.rbac.authorization.k8s.io \"gone\" not found, \
               role.rbac.authorization.k8s.io \"gone\" not found]";
    assert_eq!(found, Opinion::None(two.to_owned()));
}
