//! The one form in which `wherry` reports a failure: a headline, why, and what to do.
//!
//! ```text
//! error[WH0003]: 127.0.0.1:6443 is in use
//! why:  another program listens there (Address already in use)
//! help: let wherry pick a free port:   wherry dev --listen 127.0.0.1:0
//! ```
//! The codes are explained in cli/ERRORS.md. Usage is never printed on a failure that is not about
//! usage.

use std::fmt::{self, Display, Write as _};

/// The exit code of a server whose data cannot be used again: who has other members may replace it.
pub const CODE_USELESS: u8 = 3;

/// A failure as a person reads it.
#[derive(Debug)]
pub struct Diagnostic {
    code: &'static str,
    headline: String,
    why: Option<String>,
    help: Vec<String>,
    pub exit_code: u8,
}

impl Diagnostic {
    pub fn new(code: &'static str, headline: impl Into<String>) -> Diagnostic {
        let headline = headline.into();
        Diagnostic { code, headline, why: None, help: Vec::new(), exit_code: 1 }
    }

    /// A command line that cannot be meant: exit code 2.
    pub fn usage(headline: impl Into<String>) -> Diagnostic {
        Diagnostic { exit_code: 2, ..Diagnostic::new("WH0001", headline) }
    }

    /// The cause, with the facts that were checked. Causes of causes follow it.
    pub fn why(mut self, cause: impl Into<Box<dyn std::error::Error>>) -> Diagnostic {
        let cause = cause.into();
        let mut text = cause.to_string();
        let mut source = cause.source();
        while let Some(cause) = source {
            let next = cause.to_string();
            if !text.contains(&next) {
                let _ = write!(text, ": {next}");
            }
            source = cause.source();
        }
        self.why = Some(text);
        self
    }

    /// A next step; commands in it work when pasted.
    pub fn help(mut self, step: impl Into<String>) -> Diagnostic {
        self.help.push(step.into());
        self
    }

    /// Prints it to stderr, the word `error` in red where that is a terminal.
    pub fn print(&self) {
        let red = anstyle::AnsiColor::Red.on_default() | anstyle::Effects::BOLD;
        let text = self.to_string();
        let rest = text.strip_prefix("error").expect("the text starts with the word error");
        anstream::eprintln!("{red}error{red:#}{rest}");
    }
}

impl Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.headline)?;
        if let Some(why) = &self.why {
            write!(f, "\nwhy:  {why}")?;
        }
        for (index, step) in self.help.iter().enumerate() {
            write!(f, "\n{} {step}", if index == 0 { "help:" } else { "  or:" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Diagnostic;

    #[test]
    fn has_headline_cause_and_steps() {
        let diagnostic = Diagnostic::new("WH0003", "127.0.0.1:6443 is in use")
            .why("Address already in use")
            .help("stop that program")
            .help("wherry dev --listen 127.0.0.1:0");
        expect_test::expect![[r"
            error[WH0003]: 127.0.0.1:6443 is in use
            why:  Address already in use
            help: stop that program
              or: wherry dev --listen 127.0.0.1:0"]]
        .assert_eq(&diagnostic.to_string());
    }
}
