//! The quick part of the attack suite; `make attacks` runs all of it and prints the table.

use std::time::Duration;

use wherry_tests::attacks::{Plan, run};
use wherry_tests::l3;

#[test]
fn attacks_are_contained() {
    if !l3() {
        return;
    }
    // No p99 is asserted here: other tests run on the same processors.
    let program = env!("CARGO_BIN_EXE_attacks").into();
    let report = run(&Plan { time: Duration::from_secs(2), quick: true, only: None, program });
    let report = report.expect("the attacks run");
    assert!(report.is_contained(), "{}", report.table());
    let stopped = |name: &str| {
        let row = report.0.iter().find(|row| row.name == name).expect(name);
        row.stopped.clone()
    };
    for (name, by) in [
        ("memory", "OOMKilled"),
        ("sockets", "refused: 256 succeeded"),
        ("random", "Error (134)"),
        ("a million functions", "InvalidImage"),
        ("not Wasm", "InvalidImage"),
    ] {
        assert!(stopped(name).starts_with(by), "{name}: {}", stopped(name));
    }
}
