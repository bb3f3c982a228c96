//! Node restriction and namespaces, as a table of who writes what.

use super::*;
use serde_json::{Value, json};

fn refused(plural: &str, part: Part, new: Value, old: Option<Value>) -> String {
    let kind = wherry_resources::kind("", "v1", plural)
        .or_else(|| wherry_resources::kind("coordination.k8s.io", "v1", plural))
        .expect("a built-in kind");
    let facts = Facts { namespace: Some(json!({"metadata": {"name": "n"}})), ..Facts::default() };
    let user = User::new("system:node:a", &[auth::NODES]);
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let context = Context { operation, user: &user, kind, part, namespace: "n", facts: &facts };
    let mut new = new;
    match admit(&context, &mut new, old.as_ref()) {
        Ok(_) => "allowed".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_node_writes_what_is_its_own() {
    let node = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let allowed =
        refused("nodes", Part::Main, node("a", json!({"kubernetes.io/os": "linux"})), None);
    assert_eq!(allowed, "allowed");
    assert_eq!(
        refused("nodes", Part::Main, node("b", json!({})), None),
        "nodes \"b\" is forbidden: node \"a\" is not allowed to modify node \"b\""
    );
    let reserved = json!({"node-restriction.kubernetes.io/x": "y"});
    assert_eq!(
        refused("nodes", Part::Main, node("a", reserved), None),
        "nodes \"a\" is forbidden: node \"a\" is not allowed to modify label \
         \"node-restriction.kubernetes.io/x\""
    );
    let mut owned = node("a", json!({}));
    owned["metadata"]["ownerReferences"] = json!([{"uid": "u"}]);
    assert_eq!(
        refused("nodes", Part::Main, owned, Some(node("a", json!({})))),
        "nodes \"a\" is forbidden: node \"a\" is not allowed to modify ownerReferences"
    );
    let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
    assert_eq!(refused("pods", Part::Status, pod("a"), Some(pod("a"))), "allowed");
    assert_eq!(
        refused("pods", Part::Status, pod("b"), Some(pod("b"))),
        "pods \"p\" is forbidden: node \"a\" can only update pod status for pods with \
         spec.nodeName set to itself"
    );
    assert_eq!(refused("leases", Part::Main, node("a", json!({})), None), "allowed");
    assert_eq!(
        refused("leases", Part::Main, node("b", json!({})), None),
        "leases.coordination.k8s.io \"b\" is forbidden: can only access node lease with \
         the same name as the requesting node"
    );
}

#[test]
fn who_resizes_a_pod_is_told_when_it_counts() {
    let with = |cpu: &str| {
        let resources = json!({"requests": {"cpu": cpu}});
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
    };
    let (old, new) = (with("1"), with("2"));
    let told = pod::resized(&new, Some(&old)).expect("a warning");
    assert!(told.ends_with("its next start takes these"), "{told}");
    assert_eq!(pod::resized(&old, Some(&old)), None);
}

#[test]
fn a_pod_that_stays_is_judged_anew_only_where_a_level_is_concerned() {
    let facts = Facts { namespace: Some(json!({"metadata": {"name": "n"}})), ..Facts::default() };
    let user = User::new("admin", &[auth::MASTERS]);
    let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
    let (operation, part) = (Operation::Update, Part::Main);
    let context = Context { operation, user: &user, kind, part, namespace: "n", facts: &facts };
    let pod = |image: &str, cpu: &str, gates: Value| {
        let resources = json!({"requests": {"cpu": cpu}});
        let container = json!({"name": "c", "image": image, "resources": resources});
        json!({"metadata": {"name": "p"},
            "spec": {"hostPID": true, "containers": [container], "schedulingGates": gates}})
    };
    let old = pod("i:1", "1", json!([{"name": "x"}]));
    let is_let_in = |new: Value| pod_standards::admit(&context, &new, Some(&old)).is_ok();
    assert!(is_let_in(pod("i:1", "2", json!([]))));
    assert!(!is_let_in(pod("i:2", "1", json!([]))));
}

#[test]
fn a_pod_with_gates_says_why_it_has_no_node() {
    let namespace = Some(json!({"metadata": {"name": "n"}}));
    let service_account = Some(json!({"metadata": {"name": "default"}}));
    let facts = Facts { namespace, service_account, ..Facts::default() };
    let user = User::new("admin", &[auth::MASTERS]);
    let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
    let (operation, part) = (Operation::Create, Part::Main);
    let context = Context { operation, user: &user, kind, part, namespace: "n", facts: &facts };
    let reason = |gates: Value| {
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "schedulingGates": gates});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": {}});
        assert!(admit(&context, &mut pod, None).is_ok());
        pod["status"]["conditions"][0]["reason"].clone()
    };
    assert_eq!(reason(json!([{"name": "x"}])), "SchedulingGated");
    assert_eq!(reason(json!([])), Value::Null);
    assert_eq!(reason(Value::Null), Value::Null);
}

#[test]
fn nobody_but_the_control_plane_leads_traffic_to_loopback() {
    let kind = wherry_resources::kind("", "v1", "endpoints").expect("a built-in kind");
    let facts = Facts { namespace: Some(json!({"metadata": {"name": "n"}})), ..Facts::default() };
    let written = |user: &User, new: &Value, old: Option<&Value>| {
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let part = Part::Main;
        let context = Context { operation, user, kind, part, namespace: "n", facts: &facts };
        match admit(&context, &mut new.clone(), old) {
            Ok(_) => "allowed".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let at =
        |ip: &str| json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": ip}]}]});
    let (loopback, other) = (at("127.0.0.1"), at("169.254.169.254"));
    let admin = User::new("admin", &[auth::MASTERS]);
    let own = User::new("system:kube-controller-manager", &[]);
    let tenant = User::new("jane", &[]);
    assert_eq!(written(&own, &loopback, None), "allowed");
    for user in [&admin, &tenant] {
        let why = written(user, &loopback, None);
        assert!(why.contains("may not be in the loopback range (127.0.0.0/8, ::1/128)"), "{why}");
        let why = written(user, &other, Some(&loopback));
        assert!(why.contains("may not be in the link-local range"), "{why}");
        assert_eq!(written(user, &at("192.0.2.1"), None), "allowed");
    }
    // What the control plane has published can be labelled.
    assert_eq!(written(&admin, &loopback, Some(&loopback)), "allowed");
    assert_ne!(written(&tenant, &loopback, Some(&loopback)), "allowed");
}

#[test]
fn who_tightens_a_namespace_is_told_of_the_pods_that_stay() {
    let kind = wherry_resources::kind("", "v1", "namespaces").expect("a built-in kind");
    let pod = |name: &str, host_pid: bool| {
        let spec = json!({"hostPID": host_pid, "containers": []});
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let at = |level: &str| {
        json!({"metadata": {"name": "n",
            "labels": {"pod-security.kubernetes.io/enforce": level}}})
    };
    let (old, new) = (at("privileged"), at("baseline"));
    assert!(pod_standards::tightens(kind, &new, &old));
    assert!(!pod_standards::tightens(kind, &old, &new));
    let mut inside = pod_standards::Inside::of(&new);
    let names = [("a", true), ("b", false), ("c", true), ("d", true), ("e", true)];
    for (at, (name, host_pid)) in names.into_iter().enumerate() {
        inside.take(at == 0 || at > 2, || pod(name, host_pid));
    }
    assert_eq!(
        inside.warnings(&new),
        [
            "new PodSecurity enforce level only checked against the first 3 of 5 existing pods",
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \
             \"baseline:latest\"",
            "a (and 1 other pod): host namespaces",
        ]
    );
}

#[test]
fn a_pod_has_the_priority_of_its_class_and_no_other() {
    let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
    let judged = |class: Option<Value>, name: &str, priority: i64| {
        let facts = Facts {
            namespace: Some(json!({"metadata": {"name": "n"}})),
            service_account: Some(json!({"metadata": {"name": "default"}})),
            priority_class: class,
            ..Facts::default()
        };
        let user = User::new("jane", &[]);
        let (operation, part) = (Operation::Create, Part::Main);
        let context = Context { operation, user: &user, kind, part, namespace: "n", facts: &facts };
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "priority": priority,
            "priorityClassName": name});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": {}});
        match admit(&context, &mut pod, None) {
            Ok(_) => pod["spec"]["priority"].to_string(),
            Err(error) => error.to_string(),
        }
    };
    let chosen = |asked: i64, value: i64| {
        format!(
            "pods \"p\" is forbidden: the integer value of priority ({asked}) must not be provided \
             in pod spec; priority admission controller computed {value} from the given \
             PriorityClass name"
        )
    };
    assert_eq!(judged(None, "", 0), "0");
    assert_eq!(judged(None, "", 2_000_000_000), chosen(2_000_000_000, 0));
    assert_eq!(judged(None, "system-node-critical", 2_000_001_000), "2000001000");
    assert_eq!(judged(None, "system-node-critical", 3), chosen(3, 2_000_001_000));
    assert_eq!(
        judged(None, "system-mine", 2_000_000_000),
        "pods \"p\" is forbidden: no PriorityClass with name system-mine was found"
    );
    let class = json!({"metadata": {"name": "usual"}, "value": 7});
    assert_eq!(judged(Some(class.clone()), "", 0), "7");
    assert_eq!(judged(Some(class.clone()), "", 9), chosen(9, 7));
    assert_eq!(judged(Some(class), "usual", 7), "7");
}
