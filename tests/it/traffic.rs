//! The short form of what the network must show; `make traffic` runs all of it and prints the tables.

use wherry_tests::l3;
use wherry_tests::traffic::{Plan, run};

#[test]
fn rolling_updates_lose_no_request() {
    if !l3() {
        return;
    }
    let plan = Plan { updates: 2, requests: 800, greetings: 15, calls: 5, policies: false };
    let report = run(&plan).expect("everything starts");
    assert!(report.is_fine(), "{}", report.tables());
}
