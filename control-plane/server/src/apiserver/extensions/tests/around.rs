//! What stands around hooks: built-in admission before and after them.

use super::*;

/// Registers a policy that changes new objects of a resource of the core group by a JSON patch.
async fn patches(server: &Server, name: &str, resource: &str, when: &str, operations: &str) {
    let policy = json!({"metadata": {"name": name}, "spec": {
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
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
    patches(&server, "side", "pods", "object.metadata.name == 'side'", side).await;
    let memory = "[JSONPatch{op: 'replace', value: object.metadata.labels.memory, \
        path: '/spec/containers/0/resources/limits/memory'}, \
        JSONPatch{op: 'replace', value: object.metadata.labels.memory, \
        path: '/spec/containers/0/resources/requests/memory'}]";
    patches(&server, "memory", "pods", "has(object.metadata.labels)", memory).await;
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
