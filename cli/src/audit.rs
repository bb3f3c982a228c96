//! `wherry audit verify`: whether an audit log is as it was written.

use std::path::PathBuf;

use wherry_control_plane::apiserver::verify_audit_log;

use crate::diagnostic::Diagnostic;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Check that no line of an audit log was changed, dropped or added after it was written
    Verify {
        /// The log's files, the oldest first: audit.log.2 audit.log.1 audit.log
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

pub fn main(verb: Verb) -> Result<(), Diagnostic> {
    let Verb::Verify { files } = verb;
    let (lines, last) = verify_audit_log(&files).map_err(|error| {
        Diagnostic::new("WH0045", "the audit log is not whole")
            .why(error)
            .help("compare it with the lines that were shipped elsewhere")
    })?;
    println!("{lines} lines, each as it was written; the last has the hash {last}");
    Ok(())
}
