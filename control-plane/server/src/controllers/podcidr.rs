//! Addresses for Pods: each node gets a block of the cluster's range, and further blocks when it
//! fills up.
//!
//! Owns: `spec.podCIDR` (the first block) and `spec.podCIDRs` (all of them) of Nodes. One key stands
//! for all nodes, so blocks are given by one plan at a time and no block is given twice. Blocks are
//! free again when their Node is gone.
//!
//! A block has room for 1,021 Pods, so that a /8 is enough for 16,384 nodes; a node of
//! thousands of Pods has as many blocks as it needs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::pods;
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

/// The length of a block.
const BLOCK_BITS: u32 = 22;
/// Addresses of a block that no Pod gets: the network's, the node's own and the broadcast one.
const NOT_FOR_PODS: usize = 3;
/// A node with fewer free addresses than this gets another block: more than Pods start while the
/// block is on its way.
const ROOM_MIN: usize = 256;
const COMPONENT: &str = "cidr-allocator";

/// What the plan reads.
#[derive(Default)]
pub struct Snapshot {
    /// Each with the number of its Pods.
    pub nodes: Vec<(Arc<Node>, usize)>,
    /// The range that is divided, such as `10.0.0.0/8`.
    pub range: String,
}

pub const CONTROLLER: Controller = Controller { name: "podcidr", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let all = || Key::of::<Node>("", "");
    if let Some((_, after)) = change.of::<Node>() {
        let wants = |node: &Node| wants_block(node, cache.count_on(name_of(node)));
        keys.extend(after.is_none_or(wants).then(all));
    }
    let Some((before, Some(after))) = change.of::<Pod>() else { return };
    let came = before.is_none_or(|before| pods::node(before) != pods::node(after));
    if came && let Some(node) = cache.get::<Node>("", pods::node(after)) {
        keys.extend(wants_block(&node, cache.count_on(pods::node(after))).then(all));
    }
}

fn reconcile(view: &View<'_>, _: &Key) -> Plan {
    let nodes = view.cache.all::<Node>();
    let nodes = nodes.map(|node| {
        let count = view.cache.count_on(name_of(&node));
        (node, count)
    });
    let snapshot = Snapshot { nodes: nodes.collect(), range: view.config.cluster_cidr.clone() };
    plan(&snapshot, view.now).into()
}

fn name_of(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or("")
}

/// A node's blocks, the first one first.
fn blocks_of(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let first = spec.pod_cidr.as_deref().filter(|block| !block.is_empty());
    let rest = spec.pod_cidrs.iter().flatten().map(String::as_str);
    let mut blocks: Vec<&str> = first.into_iter().collect();
    blocks.extend(rest.filter(|block| Some(*block) != first));
    blocks
}

/// Whether a node with so many Pods has too few addresses.
fn wants_block(node: &Node, count: usize) -> bool {
    let room = |block: &str| {
        let (_, bits) = parse(block)?;
        Some((1_usize << (32 - bits)).saturating_sub(NOT_FOR_PODS))
    };
    let room: usize = blocks_of(node).into_iter().filter_map(room).sum();
    node.metadata.deletion_timestamp.is_none() && room < count + ROOM_MIN
}

/// Gives each node that has too few addresses the first free block. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let Some((start, bits)) = parse(&snapshot.range) else { return Vec::new() };
    let range = |block: &str| {
        let (first, bits) = parse(block)?;
        Some((u64::from(first), u64::from(first) + (1 << (32 - bits))))
    };
    let used: BTreeSet<(u64, u64)> = snapshot
        .nodes
        .iter()
        .flat_map(|(node, _)| blocks_of(node).into_iter().filter_map(range))
        .collect();
    let count = 1_u64 << BLOCK_BITS.saturating_sub(bits);
    let size = 1_u64 << (32 - BLOCK_BITS);
    let is_free = |at: &u64| {
        // Blocks do not overlap, so the last one that begins before this one's end decides.
        let before = used.range(..(at + size, 0)).next_back();
        before.is_none_or(|(_, end)| end <= at)
    };
    let blocks = (0..count).map(|number| u64::from(start) + number * size);
    let mut free = blocks.filter(is_free).filter_map(|at| u32::try_from(at).ok());
    let mut writes = Vec::new();
    for (node, _) in snapshot.nodes.iter().filter(|(node, count)| wants_block(node, *count)) {
        let Some(at) = free.next() else {
            let message = format!("All blocks of {} are taken by other nodes.", snapshot.range);
            let note = Note::warning(COMPONENT, &**node, "CIDRNotAvailable", message);
            writes.push(Write::tell(note));
            // One is told of; each change of a node comes by here again.
            break;
        };
        let block = format!("{}/{BLOCK_BITS}", Ipv4Addr::from(at));
        let mut blocks = blocks_of(node);
        blocks.push(&block);
        let body = json!({"spec": {"podCIDR": blocks[0], "podCIDRs": blocks}});
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

    const POD_ROOM: usize = (1 << (32 - BLOCK_BITS)) - NOT_FOR_PODS;

    /// Nodes by name, blocks (the first one first, with spaces) and number of Pods.
    fn check(range: &str, nodes: &[(&str, &str, usize)], expected: &str) {
        let node = |(name, blocks, count): &(&str, &str, usize)| {
            let all: Vec<&str> = blocks.split_whitespace().collect();
            let first = all.first().unwrap_or(&"");
            let spec = json!({"podCIDR": first, "podCIDRs": all});
            (Arc::new(yaml(&format!("metadata: {{name: {name}}}\nspec: {spec}"))), *count)
        };
        let nodes = nodes.iter().map(node).collect();
        let snapshot = Snapshot { nodes, range: range.to_string() };
        assert_eq!(text(&plan(&snapshot, at(0))), expected);
    }

    #[test]
    fn each_node_gets_a_block_of_its_own() {
        check(
            "10.0.0.0/8",
            &[("a", "10.0.0.0/22", 0), ("b", "", 0), ("c", "10.0.8.0/22", 700), ("d", "", 0)],
            concat!(
                r#"patch nodes b {"spec":{"podCIDR":"10.0.4.0/22","podCIDRs":["10.0.4.0/22"]}}"#,
                "\n",
                r#"patch nodes d {"spec":{"podCIDR":"10.0.12.0/22","podCIDRs":["10.0.12.0/22"]}}"#,
                "\n",
            ),
        );
        check("10.0.0.0/8", &[("a", "10.0.0.0/22", POD_ROOM - ROOM_MIN)], "");
    }

    #[test]
    fn a_node_that_fills_up_gets_another_block() {
        check(
            "10.0.0.0/8",
            &[("a", "10.0.0.0/22", POD_ROOM - ROOM_MIN + 1), ("b", "10.0.4.0/22", 3)],
            concat!(
                r#"patch nodes a {"spec":{"podCIDR":"10.0.0.0/22","#,
                r#""podCIDRs":["10.0.0.0/22","10.0.8.0/22"]}}"#,
                "\n",
            ),
        );
        let both = [("a", "10.0.0.0/22 10.0.8.0/22", 1_700), ("b", "10.0.4.0/22", 3)];
        check("10.0.0.0/8", &both, "");
    }

    #[test]
    fn blocks_of_another_length_are_kept_free_of_others() {
        check(
            "10.0.0.0/8",
            &[("a", "10.0.0.0/19", 5_000), ("b", "", 0)],
            concat!(
                r#"patch nodes b {"spec":{"podCIDR":"10.0.32.0/22","podCIDRs":["10.0.32.0/22"]}}"#,
                "\n",
            ),
        );
    }

    #[test]
    fn more_nodes_fit_than_a_cluster_is_designed_for() {
        let nodes = (0..5_000).map(|number| {
            let node: Node = yaml(&format!("metadata: {{name: n{number}}}"));
            (Arc::new(node), 0)
        });
        let snapshot = Snapshot { nodes: nodes.collect(), range: "10.0.0.0/8".to_string() };
        let lines = text(&plan(&snapshot, at(0)));
        assert_eq!(lines.matches("patch nodes").count(), 5_000);
        assert!(lines.contains(r#""podCIDR":"10.78.28.0/22""#), "the last one is the 5,000th");
    }

    #[test]
    fn a_full_range_is_told() {
        check(
            "10.0.0.0/22",
            &[("a", "10.0.0.0/22", 0), ("b", "", 0)],
            "(Warning CIDRNotAvailable: All blocks of 10.0.0.0/22 are taken by other nodes.)\n",
        );
    }
}
