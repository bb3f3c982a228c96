//! The autonomy run, with a control plane that is away for seconds; `make autonomy` takes longer.

use std::time::Duration;

use wherry_tests::autonomy::{Row, run, table};
use wherry_tests::l3;

#[test]
fn a_node_goes_on_without_whom_it_does_not_need() {
    if !l3() {
        return;
    }
    let rows = run(Duration::from_secs(3)).expect("every event happens");
    // No times are asserted here: other tests run on the same processors.
    assert!(rows.iter().all(Row::is_whole), "{}", table(&rows));
}
