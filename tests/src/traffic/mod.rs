//! What the network must show: rolling updates under requests without a lost one, who reaches whom
//! under policies, and samples of several protocols. All on two nodes, with real processes.
//!
//! ```text
//!   keep-alive, new connections ── node port ──▶ hello-http ┐ rolled out again and again
//!   one stream after the other  ── node port ──▶ greeter    ┘
//! ```
//!
//! `make traffic` prints the three tables; `tests/it/traffic.rs` runs a short form of the first and the
//! last.

pub mod grpc;
mod policies;
mod protocols;
mod updates;

use std::fmt::Write as _;

use anyhow::Result;

use crate::{Dev, Options, wait_for};

pub use self::policies::Pair;
pub use self::protocols::Sample;
pub use self::updates::Row;

/// How much of it.
pub struct Plan {
    /// Rolling updates.
    pub updates: u32,
    /// Requests of both HTTP clients together, at their pace, while the updates go on.
    pub requests: u64,
    /// Greetings in one stream, ten a second.
    pub greetings: u32,
    /// Calls of each sample.
    pub calls: u32,
    /// With the table of policies.
    pub policies: bool,
}

/// What was seen.
pub struct Report {
    pub updates: Vec<Row>,
    pub policies: Vec<Pair>,
    pub samples: Vec<Sample>,
}

/// Runs all of it on a cluster of its own.
pub fn run(plan: &Plan) -> Result<Report> {
    let cluster = Dev::start_with(Options { nodes: 2, ..Options::default() });
    wait_for("both nodes are there", || {
        let nodes = cluster.kubectl_ok(&["get", "nodes", "-o", "name"]);
        (nodes.lines().count() == 2).then_some(())
    });
    for app in ["hello-http", "caller", "greeter"] {
        cluster.kubectl_ok(&["apply", "-f", &format!("sample-apps/{app}/app.yaml")]);
    }
    for name in ["hello-http", "caller", "greeter", "greeter-caller"] {
        let deployment = format!("deployment/{name}");
        cluster.kubectl_ok(&["rollout", "status", &deployment, "--timeout=120s"]);
    }
    let samples = protocols::run(&cluster, plan.calls)?;
    let updates = updates::run(&cluster, plan)?;
    let policies = if plan.policies { policies::run(&cluster)? } else { Vec::new() };
    Ok(Report { updates, policies, samples })
}

impl Report {
    /// Whether nothing was lost and everybody reached whom they may, and nobody else.
    pub fn is_fine(&self) -> bool {
        self.updates.iter().all(Row::is_fine)
            && self.policies.iter().all(Pair::is_fine)
            && self.samples.iter().all(Sample::is_fine)
    }

    /// The tables.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        // Writing into a text does not fail.
        let _ = writeln!(
            out,
            "{:44} {:>8} {:>6} {:>9} {:>9}",
            "rolling updates under", "answered", "lost", "p50 ms", "p99 ms"
        );
        for row in &self.updates {
            let Row { way, answered, lost, p50, p99 } = row;
            let mark = mark(row.is_fine());
            let _ = writeln!(out, "{way:44} {answered:>8} {lost:>6} {p50:>9.2} {p99:>9.2}{mark}");
        }
        let _ = writeln!(out, "\n{:44} {:>8} {:>6} {:>9}", "samples", "calls", "failed", "p50 ms");
        for sample in &self.samples {
            let Sample { name, calls, failed, p50 } = sample;
            let mark = mark(sample.is_fine());
            let _ = writeln!(out, "{name:44} {calls:>8} {failed:>6} {p50:>9.2}{mark}");
        }
        if self.policies.is_empty() {
            return out;
        }
        let _ = writeln!(out, "\n{:42} {:18} {:34} seen", "policy", "from", "to");
        for pair in &self.policies {
            let Pair { policy, from, to, .. } = pair;
            let seen = if pair.seen { "allowed" } else { "denied" };
            let mark = mark(pair.is_fine());
            let _ = writeln!(out, "{policy:42} {from:18} {to:34} {seen}{mark}");
        }
        out
    }
}

fn mark(fine: bool) -> &'static str {
    if fine { "" } else { "   FAILED" }
}
