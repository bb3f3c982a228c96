//! `make attacks`: see `wherry_tests::attacks`. Prints the table; the exit code is 1 when an attack
//! was not contained.
//!
//! ```text
//! attacks [--seconds N] [--quick] [--only NAME,NAME]
//! ```

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use wherry_tests::attacks::{AS_STORM, Plan, be_the_storm, run};

/// Long enough for a p99 of 1,000 requests.
const SECONDS: u64 = 5;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, address, seconds] = arguments.as_slice()
        && word == AS_STORM
    {
        be_the_storm(name, address, seconds)?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(understood(&arguments), "usage: attacks [--seconds N] [--quick] [--only NAME,NAME]");
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing installed a provider before main");
    let seconds = match flag("--seconds") {
        Some(text) => text.parse()?,
        None => SECONDS,
    };
    let plan = Plan {
        time: Duration::from_secs(seconds),
        quick: std::env::args().any(|argument| argument == "--quick"),
        only: flag("--only"),
        program: std::env::current_exe()?,
    };
    let report = run(&plan)?;
    print!("{}", report.table());
    Ok(if report.is_contained() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn understood(arguments: &[String]) -> bool {
    match arguments {
        [] => true,
        [word, rest @ ..] if word == "--quick" => understood(rest),
        [word, _, rest @ ..] if word == "--seconds" || word == "--only" => understood(rest),
        _ => false,
    }
}

fn flag(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}
