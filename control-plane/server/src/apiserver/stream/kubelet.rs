//! What a kubelet says of its Pods at `pods` and `stats/summary`, made of what is stored and of what
//! the node's agent has counted.

use super::proxy;
use crate::apiserver::{
    ApiServer,
    errors::ApiError,
    stored,
    verbs::{
        select::Selection,
        usage::{self, Row},
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_resources::{Object, meta};
use wherry_store::Snapshot;

/// The Pods that are bound to a node, as a PodList.
pub fn pods(state: &Snapshot, node: &str) -> Result<Vec<u8>, ApiError> {
    let kind = proxy::pods();
    let selection = Selection::new(kind, "", &format!("spec.nodeName={node}"))?;
    let mut list = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    for (_, entry) in state.range(&stored::prefix(kind, None), None) {
        if selection.may_match(&entry.value) && selection.matches(&stored::decode(kind, &entry)) {
            if !list.ends_with(b"[") {
                list.push(b',');
            }
            stored::write_item(kind, &entry.value, entry.modified, &mut list);
        }
    }
    list.extend_from_slice(b"]}\n");
    Ok(list)
}

/// What a node and its Pods use, as a kubelet's Summary.
pub async fn summary(api: &ApiServer, node: &Object) -> Result<Vec<u8>, ApiError> {
    let name = meta::name(node);
    let silent = || ApiError::Unavailable(format!("node {name:?} did not say what it uses"));
    let rows = usage::of_node(api, name).await.ok_or_else(silent)?;
    // An agent of an older version does not tell.
    let disk: Value = usage::asked(api, name, "/disk").await.unwrap_or_default();
    let told = vec![(name.to_owned(), rows.clone())];
    let text = || {
        let pods = usage::spoken_of(&api.store().current(), None, told);
        let mut text = summarized(node, (rows.as_slice(), &disk), pods).to_string().into_bytes();
        text.push(b'\n');
        text
    };
    Ok(api.fairness().compute(text).await)
}

fn summarized(
    node: &Object,
    (rows, disk): (&[Row], &Value),
    pods: Vec<(Object, Vec<Row>)>,
) -> Value {
    let since = node.pointer("/metadata/creationTimestamp");
    let mut whole = json!({ "nodeName": meta::name(node), "startTime": since });
    add(&mut whole, rows);
    if let Some(cpu) = whole["cpu"].as_object_mut() {
        // Without what ended before, it would fall.
        cpu.remove("usageCoreNanoSeconds");
    }
    add_disk(&mut whole, "fs", disk);
    let pods: Vec<Value> = pods.into_iter().map(|pod| of_pod(pod, &disk["pods"])).collect();
    json!({ "node": whole, "pods": pods })
}

fn of_pod((pod, mut rows): (Object, Vec<Row>), disk: &Value) -> Value {
    rows.sort_by(|left, right| left.container.cmp(&right.container));
    let container = |row: &Row| {
        let name = row.container.as_str();
        let mut item = json!({ "name": name, "startTime": started(&pod, name) });
        add(&mut item, std::slice::from_ref(row));
        item
    };
    let mut item = json!({
        "podRef": {
            "name": meta::name(&pod), "namespace": meta::namespace(&pod), "uid": meta::uid(&pod),
        },
        "startTime": pod.pointer("/status/startTime"),
        "containers": rows.iter().map(container).collect::<Vec<_>>(),
    });
    add(&mut item, &rows);
    for field in ["ephemeral-storage", "volume"] {
        add_disk(&mut item, field, &disk[meta::uid(&pod)]);
    }
    item
}

/// Puts what the agent tells of the disk into an item that has its other figures.
fn add_disk(item: &mut Value, field: &str, told: &Value) {
    let mut found = told[field].clone();
    let parts = match &mut found {
        Value::Array(all) => all.as_mut_slice(),
        one => std::slice::from_mut(one),
    };
    for part in parts.iter_mut().filter_map(Value::as_object_mut) {
        part.insert("time".to_owned(), item["cpu"]["time"].clone());
    }
    if !found.is_null() {
        item[field] = found;
    }
}

/// Since when a container runs.
fn started<'a>(pod: &'a Object, container: &str) -> Option<&'a Value> {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let lists = lists.iter().filter_map(|list| pod.get("status")?.get(list)?.as_array());
    let mut all = lists.flatten();
    all.find(|status| status["name"] == container)?.pointer("/state/running/startedAt")
}

/// Puts what these containers use together into the item of what they are parts of.
fn add(item: &mut Value, rows: &[Row]) {
    let sum = |figure: fn(&Row) -> u64| rows.iter().map(figure).fold(0, u64::saturating_add);
    let at = rows.iter().map(|row| row.at).max().unwrap_or_else(Timestamp::now);
    let (time, memory) = (meta::time(at), sum(|row| row.memory_bytes));
    item["cpu"] = json!({
        "time": time, "usageNanoCores": sum(|row| row.cpu_nanocores),
        "usageCoreNanoSeconds": sum(|row| row.cpu_ns),
    });
    item["memory"] = json!({ "time": time, "usageBytes": memory, "workingSetBytes": memory });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_summed_up_as_by_a_kubelet() {
        let at = Timestamp::UNIX_EPOCH;
        let row = |container: &str, cpu: u64| Row {
            uid: "u".to_owned(),
            container: container.to_owned(),
            cpu_ns: cpu * 10,
            cpu_nanocores: cpu,
            memory_bytes: 4096,
            requests_milli: 0,
            concurrency_milli: 0,
            at,
            window_ms: 15_000,
        };
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"}});
        let pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "status": {"startTime": "1970-01-01T00:00:01Z", "containerStatuses": [
                {"name": "a", "state": {"running": {"startedAt": "1970-01-01T00:00:02Z"}}}]},
        });
        let rows = vec![row("b", 3), row("a", 5)];
        let disk = json!({"fs": {"usedBytes": 7}, "pods": {
            "u": {"ephemeral-storage": {"usedBytes": 5}, "volume": [{"name": "v", "usedBytes": 3}]},
            "other": {"volume": []}}});
        let found = summarized(&node, (rows.as_slice(), &disk), vec![(pod, rows.clone())]);
        let of = |path: &str| found.pointer(path).unwrap_or(&Value::Null).clone();
        assert_eq!(of("/node/nodeName"), "n");
        assert_eq!(of("/node/cpu/usageNanoCores"), 8);
        assert_eq!(of("/node/memory/workingSetBytes"), 8192);
        let podref = json!({"name": "p", "namespace": "d", "uid": "u"});
        assert_eq!(of("/pods/0/podRef"), podref);
        assert_eq!(of("/pods/0/startTime"), "1970-01-01T00:00:01Z");
        assert_eq!(of("/pods/0/cpu/usageCoreNanoSeconds"), 80);
        assert_eq!(of("/pods/0/containers/0/name"), "a");
        assert_eq!(of("/pods/0/containers/0/startTime"), "1970-01-01T00:00:02Z");
        assert_eq!(of("/pods/0/containers/1/startTime"), Value::Null);
        assert_eq!(of("/pods/0/containers/1/cpu/usageNanoCores"), 3);
        let time = "1970-01-01T00:00:00Z";
        assert_eq!(of("/node/fs"), json!({"usedBytes": 7, "time": time}));
        assert_eq!(of("/pods/0/ephemeral-storage"), json!({"usedBytes": 5, "time": time}));
        assert_eq!(of("/pods/0/volume"), json!([{"name": "v", "usedBytes": 3, "time": time}]));
        let older = summarized(&node, (rows.as_slice(), &Value::Null), Vec::new());
        assert_eq!(older["node"].get("fs"), None);
    }
}
