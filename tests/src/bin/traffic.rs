//! `make traffic`: see `wherry_tests::traffic`. Prints the tables; the exit code is 1 when a request was
//! lost or somebody reached whom they may not.
//!
//! ```text
//! traffic [--updates N] [--requests N]
//! ```

use std::process::ExitCode;

use anyhow::Result;
use wherry_tests::traffic::{Plan, run};

const UPDATES: u32 = 20;
/// Of both HTTP clients together, 400 a second: two and a half minutes.
const REQUESTS: u64 = 60_000;
/// Ten seconds: some update falls into each stream.
const GREETINGS: u32 = 100;
const CALLS: u32 = 500;

fn main() -> Result<ExitCode> {
    let plan = Plan {
        updates: flag("--updates").map_or(Ok(UPDATES), |text| text.parse())?,
        requests: flag("--requests").map_or(Ok(REQUESTS), |text| text.parse())?,
        greetings: GREETINGS,
        calls: CALLS,
        policies: true,
    };
    let report = run(&plan)?;
    print!("{}", report.tables());
    Ok(if report.is_fine() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn flag(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}
