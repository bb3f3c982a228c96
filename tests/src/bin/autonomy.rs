//! `make autonomy`: see `wherry_tests::autonomy`. Prints the counts; the exit code is 1 when a
//! request was lost that must not be, or something took too long.
//!
//! ```text
//! autonomy [--away SECONDS]
//! ```

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use wherry_tests::autonomy::{Row, run, table};

/// How long the control plane is away, unless told otherwise.
const AWAY_SECONDS: u64 = 30;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--away");
    let away = match arguments.nth(1) {
        Some(text) => text.parse()?,
        None => AWAY_SECONDS,
    };
    let rows = run(Duration::from_secs(away))?;
    print!("{}", table(&rows));
    Ok(if rows.iter().all(Row::is_fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
