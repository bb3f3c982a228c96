//! `make bench`: what Wherry costs and carries, beside others in the same run.
//!
//! Parts, by name (`make bench ARGS="--parts store,etcd"`); without names those of [`USUAL`] run, a few minutes:
//! - `requests`: through a NodePort to a handler, beside plain `wasmtime serve` (wrk, 32
//!   connections, two threads, the same component, plain and with the pool settings Wherry uses);
//! - `apply`: apply → first 200 with the image compiled;
//! - `store`: the store's writes of 1 KiB at 1, 16 and 128 writers, in this process;
//! - `wake`: the first request to handlers that were idle, four hundred times in three minutes;
//! - `memory`: resident memory idle and with 1,000 idle Pods;
//! - `node`: one node with 5,000 idle Pods (`--pods N` for less): start rate, memory, processor time at
//!   rest, first requests; compiling, loading and instantiating by themselves;
//! - `api`: single requests at 1 and 64 clients, lists of 10,000 Pods, 1,000 watchers, processor
//!   time and memory of the server;
//! - `flood`: what one client's flood does to another one's requests;
//! - `scheduler`: 5,000 hollow nodes: Pods bound in a second, a Deployment of 10,000, the leader at
//!   rest (`--nodes N --pods N` for less);
//! - `services`: 10,000 idle Services of one Pod each on one node (`--pods N` for less, or for more on
//!   as many nodes as take them): memory for each Service, first requests;
//! - `pods`: requests from Pod to Pod on one node and on two, bytes through a guest's socket beside
//!   loopback;
//! - `ingress`: TLS before a handler and a proxy to a server outside, beside nginx and haproxy;
//! - `readiness`: from a Pod's readiness to the last of 1,000 hollow nodes (`--nodes N` for less);
//! - `zero`: the first request to a workload that was let go to zero Pods;
//! - `etcd`: three members of the control plane beside three of etcd, the same load on both;
//! - `failover`: how long nobody can write when the leader hands over, and when it is killed.
//!
//! Every load is bounded in time and goes to loopback. A run with any answer other than 200 does
//! not count. A part that fails does not keep the others from being measured. Prints a table, writes
//! `bench-results.json`; the machine's load is part of both.

mod api;
mod apps;
mod beside;
mod etcd;
mod failover;
mod flood;
mod ingress;
mod network;
mod node;
mod readiness;
mod scheduler;
mod target;

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wherry_tests::machine::{ProcessorTime, load_average};
use wherry_tests::repository;

const PARTS: [&str; 16] = [
    "requests",
    "apply",
    "wake",
    "store",
    "memory",
    "node",
    "api",
    "flood",
    "scheduler",
    "services",
    "pods",
    "ingress",
    "readiness",
    "zero",
    "etcd",
    "failover",
];

/// What runs when no part is named. The others fill clusters for many minutes.
const USUAL: [&str; 5] = ["requests", "apply", "store", "memory", "etcd"];

fn main() -> Result<()> {
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing installed a provider before main");
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, kubeconfig, token] = arguments.as_slice()
        && word == flood::AS_FLOOD
    {
        return flood::be_the_flood(kubeconfig, token);
    }
    let target = flag("--target").unwrap_or_else(|| "target".to_owned());
    let parts = parts()?;
    let mut rows = Rows(Vec::new());
    rows.add("machine", "load average before", load_average()?, "");
    let mut failed = Vec::new();
    for part in &parts {
        let begun = ProcessorTime::now()?;
        let measured = match part.as_str() {
            "requests" => apps::requests(&mut rows, Path::new(&target)),
            "apply" => apps::apply_to_first_answer(&mut rows),
            "wake" => apps::wake(&mut rows),
            "store" => apps::store_writes(&mut rows),
            "memory" => apps::memory(&mut rows),
            "node" => node::node(&mut rows),
            "failover" => failover::failover(&mut rows),
            "scheduler" => scheduler::scheduler(&mut rows),
            "api" => api::api(&mut rows),
            "flood" => flood::flood(&mut rows),
            "services" => network::services(&mut rows),
            "pods" => network::pods(&mut rows),
            "zero" => network::from_zero(&mut rows),
            "ingress" => ingress::ingress(&mut rows),
            "readiness" => readiness::readiness(&mut rows),
            _ => beside::etcd(&mut rows),
        };
        if let Err(error) = measured {
            eprintln!("{part}: {error:?}");
            failed.push(part.as_str());
        }
        let stolen = ProcessorTime::now()?.stolen_percent_since(begun);
        rows.add("machine", &format!("taken by its host during {part}"), stolen, "%");
    }
    rows.add("machine", "load average after", load_average()?, "");
    rows.print();
    let file = repository().join("bench-results.json");
    std::fs::write(&file, serde_json::to_string_pretty(&rows.0)?)?;
    println!("\nwritten to {}", file.display());
    ensure!(failed.is_empty(), "these parts failed, for the reasons above: {}", failed.join(", "));
    Ok(())
}

/// The parts that were asked for, in their order.
fn parts() -> Result<Vec<String>> {
    let all: Vec<String> = PARTS.iter().map(|part| (*part).to_owned()).collect();
    let asked = flag("--parts").unwrap_or_else(|| USUAL.join(","));
    let asked: Vec<&str> = asked.split(',').map(str::trim).collect();
    if let Some(other) = asked.iter().find(|part| !PARTS.contains(part)) {
        anyhow::bail!("--parts: {other:?} is none; there are {}", PARTS.join(", "));
    }
    ensure!(!asked.is_empty(), "--parts names nothing");
    Ok(all.into_iter().filter(|part| asked.contains(&part.as_str())).collect())
}

pub fn flag(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

/// The results, in the order in which they were measured.
pub struct Rows(Vec<Value>);

impl Rows {
    pub fn add(&mut self, group: &str, name: &str, value: f64, unit: &str) {
        eprintln!("{group}: {name} = {value:.2} {unit}");
        self.0.push(json!({"group": group, "name": name, "value": value, "unit": unit}));
    }

    fn print(&self) {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let names = self.0.iter().map(|row| text(row, "name").len());
        let width = names.max().unwrap_or_default();
        let mut group = String::new();
        for row in &self.0 {
            if text(row, "group") != group {
                group = text(row, "group");
                println!("\n{group}");
            }
            let value = row["value"].as_f64().unwrap_or_default();
            println!("  {:width$}  {value:>12.2} {}", text(row, "name"), text(row, "unit"));
        }
    }
}
