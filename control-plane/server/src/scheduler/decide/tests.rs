//! Scripts over [`decide`]: nodes and Pods as short YAML, decisions as lines.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::*;
use crate::controllers::testing::yaml;

/// A node: `name cpu memory`, and more YAML for its spec and its status.
fn node(words: &str, spec: &str, labels: &str) -> Node {
    let mut words = words.split_whitespace();
    let mut word = || words.next().expect("name, cpu, memory");
    let (name, cpu, memory) = (word(), word(), word());
    let pods = words.next().unwrap_or("100");
    let ready = words.next().unwrap_or("True");
    yaml(&format!(
        "metadata: {{name: {name}, labels: {{host: {name}{labels}}}}}\nspec: {{{spec}}}\n\
         status:\n  allocatable: {{cpu: \"{cpu}\", memory: {memory}, pods: \"{pods}\"}}\n  \
         conditions: [{{type: Ready, status: \"{ready}\"}}]"
    ))
}

/// A Pod with these requests and more YAML for its spec.
fn pod(name: &str, requests: &str, spec: &str) -> Need {
    let mut pod: Pod = yaml(&format!(
        "metadata: {{name: \"{name}\", namespace: d}}\n\
         spec:\n  containers: [{{name: c, image: hello, \
         resources: {{requests: {{{requests}}}}}}}]\n{spec}"
    ));
    pod.metadata.owner_references = Some(vec![crate::controllers::testing::owner("web")]);
    Need::read(&pod)
}

fn cluster(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::default();
    nodes.iter().for_each(|node| cluster.put_node(node));
    cluster
}

fn shown(cluster: &mut Cluster, pods: &[Need]) -> Vec<String> {
    let show = |decision| match decision {
        Decision::Bind { node } => node,
        Decision::Unschedulable { sentence } => sentence,
    };
    decide(cluster, pods).into_iter().map(show).collect()
}

#[test]
fn replicas_are_spread_and_the_free_node_is_taken() {
    let mut cluster = cluster(&[node("a 4 8Gi", "", ""), node("b 4 8Gi", "", "")]);
    let pods: Vec<Need> = ["1", "2", "3", "4"].map(|name| pod(name, "cpu: 100m", "")).into();
    assert_eq!(shown(&mut cluster, &pods), ["a", "b", "a", "b"]);
    let mut uneven = super::tests::cluster(&[node("a 1 1Gi", "", ""), node("b 8 16Gi", "", "")]);
    let big = pod("big", "cpu: 500m, memory: 512Mi", "");
    assert_eq!(shown(&mut uneven, &[big]), ["b"]);
}

#[test]
fn requests_are_counted_at_once() {
    let mut cluster = cluster(&[node("a 1 1Gi", "", "")]);
    let pods: Vec<Need> = ["1", "2", "3"].map(|name| pod(name, "cpu: 500m", "")).into();
    assert_eq!(
        shown(&mut cluster, &pods),
        ["a", "a", "0/1 nodes are available: 1 Insufficient cpu."]
    );
    cluster.forget("uid-1");
    assert_eq!(shown(&mut cluster, &pods[2..]), ["a"], "there is room again");
}

#[test]
fn the_number_of_pods_is_a_quantity() {
    let mut cluster = cluster(&[node("a 999 8Gi 1k", "", "")]);
    let pods: Vec<Need> = (0..500).map(|number| pod(&number.to_string(), "", "")).collect();
    assert!(shown(&mut cluster, &pods).iter().all(|node| node == "a"));
}

#[test]
fn every_reason_is_counted() {
    let mut cluster = cluster(&[
        node("a 1 1Gi", "", ""),
        node("b 8 8Gi", "taints: [{key: gpu, value: \"yes\", effect: NoSchedule}]", ""),
        node("c 8 8Gi", "taints: [{key: gpu, value: \"yes\", effect: NoSchedule}]", ""),
        node("d 8 8Gi", "unschedulable: true", ""),
        node("e 8 8Gi 100 False", "", ""),
        node("f 8 8Gi 0", "", ""),
    ]);
    assert_eq!(
        shown(&mut cluster, &[pod("p", "cpu: 2, memory: 2Gi", "")]),
        ["0/6 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
          1 node(s) were not ready, 1 node(s) were unschedulable, \
          2 node(s) had untolerated taint {gpu: yes}."]
    );
    let mut empty = Cluster::default();
    assert_eq!(shown(&mut empty, &[pod("p", "", "")]), ["no nodes available to schedule pods"]);
}

#[test]
fn selectors_affinity_and_tolerations() {
    let tainted = "taints: [{key: gpu, effect: NoExecute}]";
    let mut cluster = cluster(&[
        node("a 4 8Gi", "", ", zone: east, size: \"3\""),
        node("b 4 8Gi", tainted, ", zone: west, size: \"9\""),
    ]);
    let mut check = |spec: &str, expected: &str| {
        assert_eq!(shown(&mut cluster, &[pod("p", "", spec)]), [expected], "{spec}");
    };
    let nowhere = "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
                   1 node(s) had untolerated taint {gpu: }.";
    check("  nodeSelector: {zone: east}", "a");
    check("  nodeSelector: {zone: west}", nowhere);
    let tolerant = "  tolerations: [{key: gpu, operator: Exists}]\n";
    check(&format!("{tolerant}  nodeSelector: {{zone: west}}"), "b");
    let affinity = |rule: &str| {
        format!(
            "{tolerant}  affinity: {{nodeAffinity: \
             {{requiredDuringSchedulingIgnoredDuringExecution: \
             {{nodeSelectorTerms: [{{{rule}}}]}}}}}}"
        )
    };
    check(&affinity("matchExpressions: [{key: zone, operator: NotIn, values: [east]}]"), "b");
    check(&affinity("matchExpressions: [{key: size, operator: Gt, values: [\"5\"]}]"), "b");
    check(&affinity("matchFields: [{key: metadata.name, operator: In, values: [a]}]"), "a");
    let preferred = "  affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: \
         [{weight: 50, preference: \
         {matchExpressions: \
         [{key: zone, operator: In, values: [west]}]}}]}}";
    check(&format!("{tolerant}{preferred}"), "b");
}

#[test]
fn host_ports_are_taken_once() {
    let mut cluster = cluster(&[node("a 4 8Gi", "", "")]);
    let with_port = |name: &str| {
        let mut need = pod(name, "", "");
        need.ports = vec![("TCP".to_string(), String::new(), 80)];
        need
    };
    assert_eq!(
        shown(&mut cluster, &[with_port("1"), with_port("2")]),
        [
            "a",
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        ]
    );
}

#[test]
fn a_deleted_node_takes_nothing_and_its_return_makes_room() {
    let mut cluster = cluster(&[node("a 1 1Gi", "", "")]);
    cluster.remove_node("a");
    let need = pod("p", "cpu: 500m", "");
    let decided = shown(&mut cluster, std::slice::from_ref(&need));
    assert_eq!(decided, ["no nodes available to schedule pods"]);
    cluster.put_node(&node("a 1 1Gi", "", ""));
    assert_eq!(shown(&mut cluster, &[need]), ["a"]);
}

#[test]
fn an_image_that_is_there_decides_between_equals() {
    let mut with_image = node("b 4 8Gi", "", "");
    let status = with_image.status.as_mut().expect("has a status");
    status.images = Some(vec![k8s_openapi::api::core::v1::ContainerImage {
        names: Some(vec!["hello".to_string()]),
        size_bytes: Some(1),
    }]);
    let mut cluster = cluster(&[node("a 4 8Gi", "", ""), with_image]);
    assert_eq!(shown(&mut cluster, &[pod("p", "", "")]), ["b"]);
}

#[test]
fn five_thousand_pods_on_five_thousand_nodes() {
    let nodes: Vec<Node> = (0..5_000).map(|n| node(&format!("n{n} 4 8Gi"), "", "")).collect();
    let mut cluster = cluster(&nodes);
    let pods: Vec<Need> = (0..5_000).map(|n| pod(&n.to_string(), "cpu: 100m", "")).collect();
    let start = Instant::now();
    let decisions = decide(&mut cluster, &pods);
    let took = start.elapsed();
    assert!(decisions.iter().all(|decision| matches!(decision, Decision::Bind { .. })));
    // The goal is one second; the margin is for a busy machine with other tests beside this one.
    assert!(took.as_secs() < 10, "{took:?}");
    eprintln!("5,000 decisions over 5,000 nodes: {took:?}");
}
