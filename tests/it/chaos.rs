//! The fast part of the chaos suite, with real processes: a minute of everything at once, and the
//! power cut behind every fsync. `make chaos MINUTES=n SEED=s` runs it longer.

use wherry_tests::chaos::{Options, report::shown, run};
use wherry_tests::{l3, powercut};

fn runtime() -> tokio::runtime::Runtime {
    // A test binary that has installed one before is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Runtime::new().expect("a runtime")
}

#[test]
fn a_minute_of_chaos_breaks_no_promise() {
    if !l3() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outcome = runtime().block_on(run(&Options::new(20, 1.0, folder.path())));
    let outcome = outcome.expect("the run can be done");
    let (text, broken) = (outcome.report.text(), shown(&outcome.violations));
    eprint!("{text}");
    if !outcome.passed() {
        let kept = folder.keep();
        panic!("the history is in {}:\n{text}{broken}", kept.display());
    }
    assert!(outcome.report.acknowledged_writes > 200, "too few writes to mean anything:\n{text}");
}

#[test]
fn every_acknowledged_write_survives_a_power_cut_behind_any_fsync() {
    if !l3() {
        return;
    }
    let report = runtime().block_on(powercut::run(powercut::Options::default()));
    let report = report.expect("the script can be run");
    let (fsyncs, cuts, failed) = (report.fsyncs, report.cuts, report.failures.len());
    eprintln!("{fsyncs} fsyncs, {cuts} cuts, {failed} failed");
    assert!(report.failures.is_empty(), "{} failed:\n{}", failed, report.failures.join("\n"));
    assert!(cuts > 100, "the journal saw only {cuts} fsyncs that mattered");
}
