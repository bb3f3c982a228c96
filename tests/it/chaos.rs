//! The fast part of the chaos suite, with real processes: a minute of everything at once, power
//! cuts behind every fsync, and flipped bits. `make chaos MINUTES=n SEED=s` runs it longer.

use wherry_tests::chaos::{Options, flipped, report::shown, run};
use wherry_tests::{heavy, l3, powercut, wherry};

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
    let _turn = heavy();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outcome = runtime().block_on(run(&Options::new(20, 0.75, folder.path())));
    let outcome = outcome.expect("the run can be done");
    let (text, broken) = (outcome.report.text(), shown(&outcome.violations));
    eprint!("{text}");
    // How many outcomes are unknown depends on how slow calls are, here beside all other tests.
    if outcome.report.lost > 0 || !outcome.violations.is_empty() {
        let kept = folder.keep();
        panic!("the history is in {}:\n{text}{broken}", kept.display());
    }
    assert!(outcome.report.acknowledged_writes > 100, "too few writes to mean anything:\n{text}");
}

#[test]
fn every_acknowledged_write_survives_a_power_cut_behind_any_fsync() {
    if !l3() {
        return;
    }
    let report = cut(powercut::Options { operations: 30, ..Default::default() });
    assert!(report.boundaries > 30, "the journal saw too few fsyncs that mattered: {report}");
}

#[test]
fn three_members_survive_power_cuts_of_one_and_of_all() {
    if !l3() {
        return;
    }
    // Each has up to three members, and other tests want the processors, too.
    let options =
        powercut::Options { operations: 3, members: 3, parallel: 3, ..Default::default() };
    let report = cut(options);
    assert!(report.boundaries >= 6, "a majority makes each write durable: {report}");
}

#[track_caller]
fn cut(options: powercut::Options) -> powercut::Report {
    let report = runtime().block_on(powercut::run(options));
    let report = report.expect("the script can be run");
    eprintln!("{report}");
    assert!(report.failures.is_empty(), "{report}:\n{}", report.failures.join("\n"));
    report
}

#[test]
fn a_flipped_bit_in_a_followers_files_or_memory_is_found() {
    if !l3() {
        return;
    }
    // How long it takes says nothing here, beside all other tests; `make flipped-bit` measures it.
    let within = wherry_tests::DEADLINE;
    let options = flipped::Options { flips: 4, memory_flips: 1, seed: 3, within, binary: wherry() };
    let flips = runtime().block_on(flipped::run(&options, |flip| eprintln!("{flip}")));
    let flips = flips.expect("bits can be turned over");
    let missed: Vec<String> =
        flips.iter().filter(|flip| flip.missed()).map(ToString::to_string).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    let in_files = &flips[..flips.len() - 1];
    assert!(in_files.iter().any(flipped::Flip::found), "no flip was in what counts: {flips:?}");
    assert!(flips.last().is_some_and(flipped::Flip::found), "{flips:?}");
}
