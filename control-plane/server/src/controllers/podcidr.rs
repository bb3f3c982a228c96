//! Addresses for Pods: each node gets a block of the cluster's range.
//!
//! Owns: `spec.podCIDR` and `spec.podCIDRs` of Nodes that have none. One key stands for all nodes,
//! so blocks are given by one plan at a time and no block is given twice. A block is free again
//! when its Node is gone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

/// A node's block: 8,190 Pods, as many as one node is designed for.
const BLOCK_BITS: u32 = 19;
const COMPONENT: &str = "cidr-allocator";

/// What the plan reads.
#[derive(Default)]
pub struct Snapshot {
    pub nodes: Vec<Arc<Node>>,
    /// The range that is divided, such as `10.0.0.0/8`.
    pub range: String,
}

pub const CONTROLLER: Controller = Controller { name: "podcidr", wake, reconcile };

fn wake(_: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let Some((_, after)) = change.of::<Node>() else { return };
    if after.is_none_or(|node| block_of(node).is_none()) {
        keys.push(Key::of::<Node>("", ""));
    }
}

fn reconcile(view: &View<'_>, _: &Key) -> Plan {
    let nodes = view.cache.all::<Node>().collect();
    let snapshot = Snapshot { nodes, range: view.config.cluster_cidr.clone() };
    plan(&snapshot, view.now).into()
}

fn block_of(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|block| !block.is_empty())
}

/// Gives each node without a block the first free one. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let Some((start, bits)) = parse(&snapshot.range) else { return Vec::new() };
    let used: BTreeSet<u32> =
        snapshot.nodes.iter().filter_map(|node| parse(block_of(node)?)).map(|(at, _)| at).collect();
    let count = 1_u64 << BLOCK_BITS.saturating_sub(bits);
    let size = 1_u64 << (32 - BLOCK_BITS);
    let blocks = (0..count).map(|number| u64::from(start) + number * size);
    let mut free = blocks.filter_map(|at| u32::try_from(at).ok()).filter(|at| !used.contains(at));
    let mut writes = Vec::new();
    for node in snapshot.nodes.iter().filter(|node| block_of(node).is_none()) {
        if node.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let Some(at) = free.next() else {
            let message = format!("All blocks of {} are taken by other nodes.", snapshot.range);
            let note = Note::warning(COMPONENT, &**node, "CIDRNotAvailable", message);
            writes.push(Write::tell(note));
            // One is told of; each change of a node comes by here again.
            break;
        };
        let block = format!("{}/{BLOCK_BITS}", Ipv4Addr::from(at));
        let body = json!({"spec": {"podCIDR": block, "podCIDRs": [block]}});
        writes.push(Write::patch(&**node, body));
    }
    writes
}

/// First address and length of a range.
fn parse(range: &str) -> Option<(u32, u32)> {
    let (address, bits) = range.split_once('/')?;
    let bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
    Some((address.parse::<Ipv4Addr>().ok()?.into(), bits))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn check(range: &str, nodes: &[(&str, &str)], expected: &str) {
        let node = |(name, block): &(&str, &str)| {
            Arc::new(yaml(&format!("metadata: {{name: {name}}}\nspec: {{podCIDR: \"{block}\"}}")))
        };
        let nodes = nodes.iter().map(node).collect();
        let snapshot = Snapshot { nodes, range: range.to_string() };
        assert_eq!(text(&plan(&snapshot, at(0))), expected);
    }

    #[test]
    fn each_node_gets_a_block_of_its_own() {
        check(
            "10.0.0.0/8",
            &[("a", "10.0.0.0/19"), ("b", ""), ("c", "10.0.64.0/19"), ("d", "")],
            concat!(
                r#"patch nodes b {"spec":{"podCIDR":"10.0.32.0/19","podCIDRs":["10.0.32.0/19"]}}"#,
                "\n",
                r#"patch nodes d {"spec":{"podCIDR":"10.0.96.0/19","podCIDRs":["10.0.96.0/19"]}}"#,
                "\n",
            ),
        );
        check("10.0.0.0/8", &[("a", "10.0.0.0/19")], "");
    }

    #[test]
    fn a_full_range_is_told() {
        check(
            "10.0.0.0/19",
            &[("a", "10.0.0.0/19"), ("b", "")],
            "(Warning CIDRNotAvailable: All blocks of 10.0.0.0/19 are taken by other nodes.)\n",
        );
    }
}
