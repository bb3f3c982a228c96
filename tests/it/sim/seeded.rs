//! Bugs made on purpose: each is a row of the table of controllers whose plans are changed on their
//! way out. The simulation has to find every one of them, and say what it broke.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wherry_control_plane::controllers::reconcile::Plan;

use super::*;

/// Seeds within which a bug has to show.
const SEEDS_MAX: u64 = 60;

/// A bug: what it is, the row that has it, and how the finding begins or goes on.
struct Bug {
    what: &'static str,
    row: Controller,
    found_by: &'static str,
}

const BUGS: [Bug; 4] = [
    Bug {
        what: "eviction from a silent node does not wait for the node to say that the Pod ended",
        row: Controller { reconcile: forced, ..node::CONTROLLER },
        found_by: " runs on ",
    },
    Bug {
        what: "a rollout makes one Pod more than surge lets it",
        row: Controller { reconcile: generous, ..deployment::CONTROLLER },
        found_by: " are allowed",
    },
    Bug {
        what: "a rollout takes one Pod more away than maxUnavailable lets it",
        row: Controller { reconcile: hasty, ..deployment::CONTROLLER },
        found_by: " that work where ",
    },
    Bug {
        what: "the garbage collector overlooks Pods",
        row: Controller { reconcile: careless, ..garbage::CONTROLLER },
        found_by: "it does not settle",
    },
];

fn forced(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = (node::CONTROLLER.reconcile)(view, key);
    for write in &mut plan.writes {
        if let Action::Delete { grace_seconds, .. } = &mut write.action {
            *grace_seconds = Some(0);
        }
    }
    plan
}

fn generous(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = (deployment::CONTROLLER.reconcile)(view, key);
    for write in &mut plan.writes {
        if let Action::Patch { target, body, .. } = &mut write.action
            && target.key.kind.kind == "ReplicaSet"
            && let Some(replicas) = body["spec"]["replicas"].as_i64().filter(|size| *size > 1)
        {
            body["spec"]["replicas"] = (replicas + 1).into();
        }
    }
    plan
}

fn hasty(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = (deployment::CONTROLLER.reconcile)(view, key);
    for write in &mut plan.writes {
        let shrinks = write.to_string().contains("Scaled down");
        if let Action::Patch { body, .. } = &mut write.action
            && let Some(replicas) = body["spec"]["replicas"].as_i64().filter(|size| *size > 0)
            && shrinks
        {
            body["spec"]["replicas"] = (replicas - 1).into();
        }
    }
    plan
}

fn careless(view: &View<'_>, key: &Key) -> Plan {
    match key.kind.kind {
        "Pod" => Plan::default(),
        _ => (garbage::CONTROLLER.reconcile)(view, key),
    }
}

/// What a run with this bug ended with, if it did not end well.
fn run(bug: &Bug, seed: u64) -> Option<String> {
    let rows = CONTROLLERS.map(|row| if row.name == bug.row.name { bug.row } else { row });
    let run = AssertUnwindSafe(|| Sim::with(seed, false, rows.into()).run());
    let panic = catch_unwind(run).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()))
}

#[test]
fn bugs_made_on_purpose_are_found() {
    for bug in &BUGS {
        // Another check may notice it first, with other seeds.
        let mut findings = (0..SEEDS_MAX).filter_map(|seed| Some((seed, run(bug, seed)?)));
        let found = findings.find(|(_, finding)| finding.contains(bug.found_by));
        let (seed, finding) = found.unwrap_or_else(|| panic!("nobody noticed: {}", bug.what));
        let first = finding.lines().next().unwrap_or("");
        println!("{}\n  found with seed {seed}: {first}", bug.what);
    }
}
