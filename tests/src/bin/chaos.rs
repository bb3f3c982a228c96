//! `make chaos` and `make chaos-seeded`: see `wherry_tests::chaos`.
//!
//! ```text
//! chaos [--minutes N] [--seed S] [--mode kills|mixed|both] [--members N] [--clients N]
//!       [--folder DIR] [--binary FILE] [--server-flag FLAG]…
//! chaos --check HISTORY            checks a recorded history again
//! chaos --seeded [--bug NAME]      hunts the seeded bugs
//! chaos --power-cut [--members 3] [--operations N] [--torn SEED] [--failures N]
//!                                  cuts power behind every fsync, until so many cuts lost something
//! chaos --flipped-bit [--flips N] [--memory N] [--seed S]   turns bits over in a follower's files,
//!                                                           and in its memory
//! ```
//!
//! The exit code is 1 when a promise was broken.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use wherry_tests::chaos::history::History;
use wherry_tests::chaos::nemesis::Mode;
use wherry_tests::chaos::report::{Report, shown};
use wherry_tests::chaos::seeded::{self, BUGS, Plan};
use wherry_tests::chaos::{Options, check, flipped, run};
use wherry_tests::powercut::{self, disk::Keep};

/// Power cuts that lose something each take their full time; so many say what is wrong.
const FAILURES_MAX: usize = 20;

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
        if has("--flipped-bit") {
            return flipped_bit().await;
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
    let modes = match flag("--mode").as_deref() {
        None | Some("kills") => vec![Mode::Kills],
        Some("mixed") => vec![Mode::Mixed],
        Some("both") => vec![Mode::Kills, Mode::Mixed],
        Some(other) => bail!("--mode {other} is not known; say kills, mixed or both"),
    };
    let mut passed = true;
    for mode in modes {
        passed &= chaos_in(mode).await?;
    }
    Ok(passed)
}

async fn chaos_in(mode: Mode) -> Result<bool> {
    let name = if mode == Mode::Kills { "kills" } else { "mixed" };
    let folder = folder().join(name);
    let mut options = Options::new(number("--seed", 1)?, number("--minutes", 1.0)?, &folder);
    options.mode = mode;
    options.members = number("--members", options.members)?;
    options.clients = number("--clients", options.clients)?;
    options.power_cuts = mode == Mode::Mixed;
    if let Some(binary) = flag("--binary") {
        options.binary = PathBuf::from(binary);
    }
    let arguments: Vec<String> = std::env::args().collect();
    let flags = arguments.windows(2).filter(|pair| pair[0] == "--server-flag");
    options.arguments = flags.map(|pair| pair[1].clone()).collect();
    let (seed, minutes, members) = (options.seed, options.minutes, options.members);
    println!("chaos: {mode}; seed {seed}, {minutes} minutes, {members} members");
    let outcome = run(&options).await?;
    print!("{}", outcome.report.text());
    print!("{}", shown(&outcome.violations));
    for accident in &outcome.accidents {
        println!("ended by itself: {accident}");
    }
    let report = serde_json::to_string_pretty(&outcome.report)?;
    std::fs::write(options.folder.join("report.json"), report)?;
    println!("\nhistory and logs: {}", options.folder.display());
    for broken in outcome.report.broken() {
        println!("BROKEN: {broken}");
    }
    let verdict = if outcome.passed() { "passed" } else { "FAILED" };
    println!("{verdict}: {mode}; again with SEED={seed} MODE={name}");
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
    options.members = number("--members", options.members)?;
    options.parallel = number("--parallel", options.parallel)?;
    options.failures_max = number("--failures", FAILURES_MAX)?;
    if let Some(seed) = flag("--torn") {
        options.keep = Keep::Torn(seed.parse()?);
    }
    options.binary = flag("--binary").map(PathBuf::from);
    let begun = Instant::now();
    let (members, operations, failures_max) =
        (options.members, options.operations, options.failures_max);
    let torn = if has("--torn") { ", torn writes" } else { "" };
    println!("power cuts: {members} members, {operations} operations{torn}");
    let report = powercut::run(options).await?;
    for failure in &report.failures {
        println!("{failure}");
    }
    println!("{report} ({:.1} min)", begun.elapsed().as_secs_f64() / 60.0);
    if report.failures.len() >= failures_max {
        println!("stopped there: not every fsync was tried");
    }
    Ok(report.failures.is_empty())
}

async fn flipped_bit() -> Result<bool> {
    let binary = flag("--binary").map_or_else(wherry_tests::wherry, PathBuf::from);
    let (flips, memory_flips) = (number("--flips", 20)?, number("--memory", 5)?);
    let seed = number("--seed", 1)?;
    println!("flipped bits: {flips} in a follower's files, {memory_flips} in memory, seed {seed}");
    let within = flipped::FOUND_WITHIN;
    let options = flipped::Options { flips, memory_flips, seed, within, binary };
    let flips = flipped::run(&options, |flip| println!("{flip}")).await?;
    let missed = flips.iter().filter(|flip| flip.missed()).count();
    let harmless = flips.iter().filter(|flip| flip.fate == flipped::Fate::Harmless).count();
    let found = flips.len() - missed - harmless;
    let slowest = flips.iter().map(|flip| flip.took).max().unwrap_or_default();
    println!(
        "{found} found, {harmless} without effect, {missed} not found; the longest took {:.1} s \
         (promise: 10 s)",
        slowest.as_secs_f64()
    );
    // Where nothing is ever found, bits were not turned over where a member looks.
    let blind = options.flips > 0 && found == 0;
    if blind {
        println!("FAILED: none of the flips was found");
    }
    Ok(missed == 0 && !blind)
}

async fn hunt() -> Result<bool> {
    let binary = flag("--binary").map_or_else(wherry_tests::wherry, PathBuf::from);
    let minutes_max = number("--minutes", HUNT_MINUTES)?;
    let plan = Plan { binary, folder: folder(), seed: number("--seed", 1)?, minutes_max };
    // The control has no name, and comes last.
    let mut bugs: Vec<&str> = BUGS.into_iter().chain([""]).collect();
    if let Some(asked) = flag("--bug") {
        bugs.retain(|bug| *bug == asked || asked == "control" && bug.is_empty());
        ensure!(!bugs.is_empty(), "there is no bug {asked}; there are {BUGS:?} and control");
    }
    let mut hunts = Vec::new();
    for bug in bugs {
        let name = if bug.is_empty() { "control" } else { bug };
        let control = Plan { minutes_max: plan.minutes_max.min(1.0), ..plan.clone() };
        let plan = if bug.is_empty() { &control } else { &plan };
        let hunt = seeded::hunt(plan, bug, |line| println!("  {name}: {line}")).await;
        println!("{hunt}");
        hunts.push(hunt);
    }
    println!();
    hunts.iter().for_each(|hunt| println!("{hunt}"));
    let all = hunts.iter().all(seeded::Hunt::passed);
    println!("{}", if all { "passed" } else { "FAILED" });
    Ok(all)
}
