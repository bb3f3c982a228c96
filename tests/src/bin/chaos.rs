//! `make chaos` and `make chaos-seeded`: see `wherry_tests::chaos`.
//!
//! ```text
//! chaos [--minutes N] [--seed S] [--members N] [--clients N] [--folder DIR] [--binary FILE]
//!       [--power-cuts] [--kills-only] [--server-flag FLAG]…
//! chaos --check HISTORY            checks a recorded history again
//! chaos --seeded [--bug NAME]      hunts the seeded bugs
//! chaos --power-cut [--operations N] [--torn SEED]   cuts the power behind every fsync
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use wherry_tests::chaos::history::History;
use wherry_tests::chaos::report::{Report, shown};
use wherry_tests::chaos::seeded::{self, BUGS, Plan};
use wherry_tests::chaos::{Options, check, run};
use wherry_tests::powercut::{self, disk::Keep};

/// Minutes of chaos for each seeded bug, unless told otherwise.
const HUNT_MINUTES: f64 = 10.0;

fn main() -> Result<ExitCode> {
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing installed a provider before main");
    let runtime = tokio::runtime::Runtime::new()?;
    let passed = runtime.block_on(async {
        if let Some(file) = flag("--check") {
            return check_file(Path::new(&file));
        }
        if has("--power-cut") {
            return power_cut().await;
        }
        if has("--seeded") { hunt().await } else { chaos().await }
    })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn has(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

fn flag(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let Some(text) = flag(name) else { return Ok(otherwise) };
    text.parse().with_context(|| format!("{name} {text}"))
}

fn folder() -> PathBuf {
    flag("--folder").map_or_else(|| std::env::temp_dir().join("wherry-chaos"), PathBuf::from)
}

async fn chaos() -> Result<bool> {
    let mut options = Options::new(number("--seed", 1)?, number("--minutes", 1.0)?, &folder());
    options.members = number("--members", options.members)?;
    options.clients = number("--clients", options.clients)?;
    options.power_cuts = has("--power-cuts");
    options.second_faults = !has("--kills-only");
    if let Some(binary) = flag("--binary") {
        options.binary = PathBuf::from(binary);
    }
    let arguments: Vec<String> = std::env::args().collect();
    let flags = arguments.windows(2).filter(|pair| pair[0] == "--server-flag");
    options.arguments = flags.map(|pair| pair[1].clone()).collect();
    println!(
        "chaos: seed {}, {} minutes, {} members",
        options.seed, options.minutes, options.members
    );
    let outcome = run(&options).await?;
    print!("{}", outcome.report.text());
    print!("{}", shown(&outcome.violations));
    for accident in &outcome.accidents {
        println!("ended by itself: {accident}");
    }
    let report = serde_json::to_string_pretty(&outcome.report)?;
    std::fs::write(options.folder.join("report.json"), report)?;
    println!("history and logs: {}", options.folder.display());
    println!("{}", if outcome.passed() { "passed" } else { "FAILED" });
    Ok(outcome.passed())
}

fn check_file(file: &Path) -> Result<bool> {
    let history = History::read(file)?;
    let findings = check::check(&history);
    print!("{}", Report::of(&history, &findings, 0).text());
    print!("{}", shown(&findings.violations));
    Ok(findings.violations.is_empty())
}

async fn power_cut() -> Result<bool> {
    let mut options = powercut::Options::default();
    options.operations = number("--operations", options.operations)?;
    options.parallel = number("--parallel", options.parallel)?;
    if let Some(seed) = flag("--torn") {
        options.keep = Keep::Torn(seed.parse()?);
    }
    options.binary = flag("--binary").map(PathBuf::from);
    let report = powercut::run(options).await?;
    for failure in &report.failures {
        println!("{failure}");
    }
    let (fsyncs, cuts, failed) = (report.fsyncs, report.cuts, report.failures.len());
    println!(
        "{fsyncs} fsyncs, {cuts} of them made something durable, {failed} cuts lost something"
    );
    Ok(failed == 0)
}

async fn hunt() -> Result<bool> {
    let binary = flag("--binary").map_or_else(wherry_tests::wherry, PathBuf::from);
    let minutes_max = number("--minutes", HUNT_MINUTES)?;
    let plan = Plan { binary, folder: folder(), seed: number("--seed", 1)?, minutes_max };
    let asked = flag("--bug");
    let mut all = true;
    let bugs = BUGS.iter().filter(|bug| asked.as_deref().is_none_or(|asked| asked == **bug));
    for bug in bugs {
        let hunt = seeded::hunt(&plan, bug).await.with_context(|| format!("the hunt for {bug}"))?;
        println!("{hunt}");
        all &= hunt.found.is_some();
    }
    if asked.as_deref().is_none_or(str::is_empty) {
        let control = Plan { minutes_max: plan.minutes_max.min(1.0), ..plan };
        let hunt = seeded::hunt(&control, "").await?;
        println!("{hunt}");
        all &= hunt.found.is_none();
    }
    Ok(all)
}
