//! Signals to a container's program, of which WASI has none: what `kubectl exec POD -- kill 1` does.
//!
//! A program of the toolbox is an instance of its own that sees no other, so the worker itself does
//! what a `kill` asks for. The container's program has the number 1, as in containers; nobody sees
//! more than that. TERM asks it to end if it can hear that and else ends it, KILL ends it, and the
//! Pod's restart policy decides what comes next. A `kill` among other commands of a shell is the
//! shell's: 1 is the shell itself there.

use super::start::{CODE_INTERRUPTED, CODE_KILLED, CODE_TERMINATED, exit_now};
use crate::protocol::{Exit, ExitReason};

/// What the program is told. A greater one counts more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// As by ^C at its terminal.
    Interrupt,
    /// It shall end.
    Terminate,
    /// It ends.
    Kill,
}

impl Signal {
    /// How a program has ended that this has ended.
    pub fn exit(self) -> Exit {
        let (code, message) = match self {
            Signal::Interrupt => (CODE_INTERRUPTED, "interrupted"),
            Signal::Terminate => (CODE_TERMINATED, ""),
            Signal::Kill => (CODE_KILLED, ""),
        };
        exit_now(code, ExitReason::Error, message.to_owned())
    }
}

/// What a command asks for if it is a `kill`, alone or as all that a shell shall do. Some: the signal
/// for the container's program (none of `kill -0`), or what `kill` has to say.
pub fn kill(command: &[String]) -> Option<Result<Option<Signal>, String>> {
    let words: Vec<&str> = match command {
        [shell, option, script]
            if option == "-c"
                && ["sh", "ash", "bash", "dash"].contains(&base(shell))
                && script.chars().all(|c| c.is_ascii_alphanumeric() || "-/ ".contains(c)) =>
        {
            script.split_whitespace().collect()
        }
        words => words.iter().map(String::as_str).collect(),
    };
    let (name, words) = words.split_first()?;
    (base(name) == "kill").then(|| asked(words))
}

fn asked(words: &[&str]) -> Result<Option<Signal>, String> {
    let mut signal = Some(Signal::Terminate);
    let mut numbers = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix('-') {
            Some("-") => {}
            Some("s" | "n") => signal = named(words.next().copied().unwrap_or_default())?,
            Some(name) => signal = named(name)?,
            None => numbers.push(*word),
        }
    }
    match numbers.iter().find(|number| **number != "1") {
        Some(other) => Err(format!("can't kill pid {other}: No such process")),
        None if numbers.is_empty() => Err("you need to specify whom to kill".to_owned()),
        None => Ok(signal),
    }
}

fn named(name: &str) -> Result<Option<Signal>, String> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "0" => Ok(None),
        "INT" | "2" => Ok(Some(Signal::Interrupt)),
        "TERM" | "15" => Ok(Some(Signal::Terminate)),
        "KILL" | "9" => Ok(Some(Signal::Kill)),
        _ => Err(format!("a guest can be sent INT, KILL and TERM, not '{name}'")),
    }
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_asks_for() {
        let of = |command: &[&str]| {
            kill(&command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let (term, force) = (Some(Ok(Some(Signal::Terminate))), Some(Ok(Some(Signal::Kill))));
        assert_eq!(of(&["kill", "1"]), term);
        assert_eq!(of(&["/bin/kill", "-SIGTERM", "1"]), term);
        assert_eq!(of(&["kill", "-s", "TERM", "--", "1"]), term);
        assert_eq!(of(&["kill", "-9", "1"]), force);
        assert_eq!(of(&["/bin/sh", "-c", " kill -KILL 1"]), force);
        assert_eq!(of(&["kill", "-0", "1"]), Some(Ok(None)));
        let says = |command: &[&str]| of(command).and_then(Result::err).unwrap_or_default();
        assert_eq!(says(&["kill", "7", "1"]), "can't kill pid 7: No such process");
        assert_eq!(says(&["kill", "-9"]), "you need to specify whom to kill");
        assert_eq!(
            says(&["kill", "-HUP", "1"]),
            "a guest can be sent INT, KILL and TERM, not 'HUP'"
        );
        assert_eq!(of(&["echo", "kill", "1"]), None);
        assert_eq!(of(&["sh", "-c", "kill 1; echo"]), None);
        assert_eq!(of(&["sh", "kill", "1"]), None);
        assert_eq!(of(&[]), None);
    }
}
