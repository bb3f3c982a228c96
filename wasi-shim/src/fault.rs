//! Why an instance ended other than well, in words for people.
//!
//! Names of functions come from the image, so they are attacker's text: cut and stripped of control
//! characters before they reach a log or a status.

use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::FieldMapError;

use crate::instance::Refused;

/// The innermost frames; a stack overflow has thousands.
const FRAMES_MAX: usize = 16;
/// A demangled name with its generic arguments can be very long.
const NAME_CHARS_MAX: usize = 160;

/// In wasmtime's words a table without free keys.
const TOO_MUCH_OPEN: &str =
    "it has too much open at the same time: files, streams, sockets, requests, timers";

/// In wasmtime's words fields whose total size exceeds the limit.
const TOO_LARGE_HEADERS: &str = "its HTTP headers are too large, or it holds too many of them";

/// The ways in which running guest code can fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The guest asked to exit with this code.
    Exit(i32),
    /// It ran out of its own memory.
    OutOfMemory,
    /// The Pod's instances have used up their common memory.
    NoMemoryLeft,
    /// The pool has no place for another instance.
    NoInstanceLeft,
    /// Anything else: what happened and where.
    Trap(String),
}

/// `refused` is what the instance's limiter had to refuse before the error came.
pub(crate) fn classify(error: &wasmtime::Error, refused: Refused) -> Fault {
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return Fault::Exit(exit.0);
    }
    match refused {
        Refused::Nothing => {}
        Refused::OwnMemory => return Fault::OutOfMemory,
        Refused::CommonMemory => return Fault::NoMemoryLeft,
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Fault::NoInstanceLeft;
    }
    Fault::Trap(describe(error))
}

/// The root cause, then the guest's frames, innermost first.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    let too_large = Some(&FieldMapError::TotalSizeTooBig);
    let mut text = match error.downcast_ref::<ResourceTableError>() {
        Some(ResourceTableError::Full) => TOO_MUCH_OPEN.to_owned(),
        _ if error.downcast_ref::<FieldMapError>() == too_large => TOO_LARGE_HEADERS.to_owned(),
        _ => clean(&error.root_cause().to_string()),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    for frame in frames.iter().take(FRAMES_MAX) {
        let index = frame.func_index();
        match frame.func_name() {
            Some(name) => text += &format!("\n  at {}", clean(name)),
            None => text += &format!("\n  at function {index}"),
        }
    }
    if frames.len() > FRAMES_MAX {
        text += &format!("\n  and {} more", frames.len() - FRAMES_MAX);
    }
    text
}

fn clean(name: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(NAME_CHARS_MAX).map(printable).collect();
    if name.chars().nth(NAME_CHARS_MAX).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiter_explains_a_trap() {
        let trap = || wasmtime::Error::msg("unreachable");
        assert_eq!(classify(&trap(), Refused::OwnMemory), Fault::OutOfMemory);
        assert_eq!(classify(&trap(), Refused::CommonMemory), Fault::NoMemoryLeft);
        assert_eq!(classify(&trap(), Refused::Nothing), Fault::Trap("unreachable".into()));
        let full = wasmtime::Error::from(ResourceTableError::Full).context("open");
        assert_eq!(classify(&full, Refused::Nothing), Fault::Trap(TOO_MUCH_OPEN.into()));
        let large = wasmtime::Error::from(FieldMapError::TotalSizeTooBig);
        assert_eq!(classify(&large, Refused::Nothing), Fault::Trap(TOO_LARGE_HEADERS.into()));
        let exit = wasmtime::Error::new(I32Exit(3)).context("while calling");
        assert_eq!(classify(&exit, Refused::OwnMemory), Fault::Exit(3));
    }

    #[test]
    fn names_are_cut_and_cleaned() {
        assert_eq!(clean("a\u{1b}[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
        let long = "x".repeat(NAME_CHARS_MAX + 1);
        assert_eq!(clean(&long).chars().count(), NAME_CHARS_MAX + 1);
        assert!(clean(&long).ends_with('…'));
    }
}
