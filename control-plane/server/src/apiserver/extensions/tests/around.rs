//! What stands around hooks: built-in admission before and after them, versions, the audit log.

use super::*;

/// Registers a policy that changes new objects of a resource in version v1 by a JSON patch.
async fn patches(server: &Server, name: &str, about: [&str; 2], when: &str, operations: &str) {
    let [group, resource] = about;
    let policy = json!({"metadata": {"name": name}, "spec": {
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [group],
            "apiVersions": ["v1"], "resources": [resource]}]},
        "matchConditions": [{"name": "when", "expression": when}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": operations}}],
    }});
    server.ok("POST", &format!("{POLICIES}/mutatingadmissionpolicies"), &policy.to_string()).await;
    let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
    let bindings = format!("{POLICIES}/mutatingadmissionpolicybindings");
    server.ok("POST", &bindings, &binding.to_string()).await;
}

#[tokio::test]
async fn limits_and_standards_judge_pods_as_hooks_leave_them() {
    let server = Server::start().await;
    let at = "/api/v1/namespaces/default";
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "default": {"memory": "64Mi"}, "max": {"memory": "128Mi"}}]}});
    server.ok("POST", &format!("{at}/limitranges"), &range.to_string()).await;
    let side = "[JSONPatch{op: 'add', path: '/spec/containers/-', \
        value: {'name': 'side', 'image': 'i:1'}}]";
    patches(&server, "side", ["", "pods"], "object.metadata.name == 'side'", side).await;
    let memory = "[JSONPatch{op: 'replace', value: object.metadata.labels.memory, \
        path: '/spec/containers/0/resources/limits/memory'}, \
        JSONPatch{op: 'replace', value: object.metadata.labels.memory, \
        path: '/spec/containers/0/resources/requests/memory'}]";
    patches(&server, "memory", ["", "pods"], "has(object.metadata.labels)", memory).await;
    let pod = |name: &str, sent: &str, becomes: &str| {
        let resources = json!({"limits": {"memory": sent}});
        let container = json!({"name": "c", "image": "i:1", "resources": resources});
        json!({"metadata": {"name": name, "labels": {"memory": becomes}},
            "spec": {"containers": [container]}})
    };
    let pods = format!("{at}/pods");
    let mut bare = pod("side", "64Mi", "");
    bare["metadata"] = json!({"name": "side"});
    let made = server.ok("POST", &pods, &bare.to_string()).await;
    let given = &made["spec"]["containers"][1];
    assert_eq!(given["resources"]["limits"], json!({"memory": "64Mi"}), "{given}");
    server.ok("POST", &pods, &pod("less", "256Mi", "128Mi").to_string()).await;
    let (code, text) = server.send("POST", &pods, &pod("more", "64Mi", "256Mi").to_string()).await;
    assert_eq!(code, 403, "{text}");
    let why = "pods \\\"more\\\" is forbidden: maximum memory usage per Container is 128Mi, but limit \
        is 256Mi";
    assert!(text.contains(why), "{text}");
}

#[tokio::test]
async fn hooks_see_custom_objects_in_the_version_of_their_rules() {
    let (server, hook) = (server().await, Hook::start().await);
    let at = shirts(&server, &hook).await;
    let green = "[JSONPatch{op: 'replace', path: '/spec/color', value: 'green'}]";
    let shirts = ["example.com", "shirts"];
    patches(&server, "green", shirts, "object.spec.color == 'red'", green).await;
    let rule = json!({"operations": ["DELETE"], "apiGroups": ["example.com"],
        "apiVersions": ["v1"], "resources": ["shirts"]});
    let when = json!([{"name": "green", "expression": "oldObject.spec.color == 'green'"}]);
    let more = json!({"rules": [rule], "matchConditions": when});
    let keep = hook.webhook("keep.example.com", "/deny", more);
    register(&server, "validating", "keep", json!([keep])).await;
    for (name, colour, becomes, code) in
        [("a", "red", "green", 403_u16), ("b", "blue", "blue", 200)]
    {
        let shirt = json!({"metadata": {"name": name}, "spec": {"colour": colour}});
        let made = server.ok("POST", &at("v2"), &shirt.to_string()).await;
        assert_eq!(made["apiVersion"], "example.com/v2");
        assert_eq!(made["spec"], json!({"colour": becomes}));
        let (status, text) = server.send("DELETE", &format!("{}/{name}", at("v2")), "").await;
        assert_eq!(status, code, "{text}");
    }
}

#[tokio::test]
async fn the_audit_log_is_told_what_each_webhook_did() {
    let (server, hook) =
        (Server::with_audit("{rules: [{level: Request}]}").await, Hook::start().await);
    server.api.let_webhooks_reach(
        &["127.0.0.0/8", "::1"].map(|text| text.parse::<Network>().expect("a network")),
    );
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    let ignored = json!({"failurePolicy": "Ignore"});
    let both = json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps", "serviceaccounts"]}]});
    let hooks = json!([
        hook.webhook("count.example.com", "/count", again),
        hook.webhook("label.example.com", "/label", both),
        hook.webhook("fails.example.com", "/other-uid", ignored.clone()),
    ]);
    register(&server, "mutating", "all", hooks).await;
    let fails = hook.webhook("late.example.com", "/other-uid", ignored);
    register(&server, "validating", "late", json!([fails])).await;
    server.ok("POST", CONFIG_MAPS, &config_map("a")).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.ok("POST", accounts, r#"{"metadata":{"name":"bot"}}"#).await;
    let events = server.audited();
    let [.., of_map, of_account] = events.as_slice() else { panic!("both are told") };
    let did = |webhook: &str, mutated: bool| {
        format!(r#"{{"configuration":"all","webhook":"{webhook}","mutated":{mutated}}}"#)
    };
    let patch = json!({"configuration": "all", "webhook": "label.example.com",
        "patch": [{"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}],
        "patchType": "JSONPatch"});
    let mutation = "mutation.webhook.admission.k8s.io";
    let (first, second) = ("round_0_index_0", "round_0_index_1");
    let of_label = format!("patch.webhook.admission.k8s.io/{second}");
    let expected = [
        (of_map, format!("{mutation}/{first}"), did("count.example.com", true)),
        (of_map, format!("{mutation}/{second}"), did("label.example.com", true)),
        (of_map, format!("{mutation}/round_0_index_2"), did("fails.example.com", false)),
        (of_map, format!("{mutation}/round_1_index_0"), did("count.example.com", true)),
        (of_map, format!("failed-open.{mutation}/round_0_index_2"), "fails.example.com".to_owned()),
        (
            of_map,
            format!("failed-open.validating.webhook.admission.k8s.io/{first}"),
            "late.example.com".to_owned(),
        ),
        (of_account, format!("{mutation}/{second}"), did("label.example.com", true)),
        (of_account, of_label.clone(), patch.to_string()),
    ];
    for (event, key, text) in expected {
        assert_eq!(event["annotations"][&key], text, "{key} of {event}");
    }
    assert!(of_map["annotations"].get(&of_label).is_none(), "what a ConfigMap holds is not told");
}
