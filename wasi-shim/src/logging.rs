//! `wasi:logging`: what a guest logs is a line of its standard error, with level and context.

use wasmtime::component::HasData;

use crate::output::{Output, Room, WRITE_BYTES_MAX};

pub(crate) use self::bindings::wasi::logging::logging as interface;

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        inline: "
            package wasi:logging@0.1.0-draft;

            interface logging {
                enum level { trace, debug, info, warn, error, critical }
                log: func(level: level, context: string, message: string);
            }

            world imports { import logging; }
        ",
        world: "imports",
        imports: { default: async | trappable },
    });
}

/// What the bindings work on.
pub(crate) struct LoggingView<'a> {
    pub(crate) output: &'a Output,
    /// Where the guest waits for its reader, it does so for what it logs as well.
    pub(crate) room: Option<&'a Room>,
}

pub(crate) struct HasLogging;

impl HasData for HasLogging {
    type Data<'a> = LoggingView<'a>;
}

impl interface::Host for LoggingView<'_> {
    async fn log(
        &mut self,
        level: interface::Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        let line = line(level, &context, &message);
        let Some(room) = self.room else {
            (self.output)(line.as_bytes());
            return Ok(());
        };
        for piece in line.as_bytes().chunks(WRITE_BYTES_MAX) {
            room.acquire(piece.len()).await;
            (self.output)(piece);
        }
        Ok(())
    }
}

fn line(level: interface::Level, context: &str, message: &str) -> String {
    let word = match level {
        interface::Level::Trace => "TRACE",
        interface::Level::Debug => "DEBUG",
        interface::Level::Info => "INFO",
        interface::Level::Warn => "WARN",
        interface::Level::Error => "ERROR",
        interface::Level::Critical => "CRITICAL",
    };
    let context = if context.is_empty() { String::new() } else { format!("{context}: ") };
    format!("{word} {context}{}\n", message.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;

    use super::interface::Host as _;
    use super::*;

    #[tokio::test]
    async fn a_guest_waits_until_what_it_logs_is_read() {
        let printed = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&printed);
        let output: Output = Arc::new(move |bytes: &[u8]| {
            counts.fetch_add(bytes.len(), Ordering::Relaxed);
        });
        let room = Room::new(12);
        let mut view = LoggingView { output: &output, room: Some(&room) };
        let mut logs = || {
            let logged = view.log(interface::Level::Info, String::new(), "paid".into());
            logged.now_or_never().is_some()
        };
        assert!(logs());
        assert!(!logs());
        assert_eq!(printed.load(Ordering::Relaxed), "INFO paid\n".len());
        room.give_back(10);
        assert!(logs());
    }

    #[test]
    fn lines() {
        let info = interface::Level::Info;
        assert_eq!(line(info, "cart", "paid\n"), "INFO cart: paid\n");
        assert_eq!(line(interface::Level::Critical, "", "gone"), "CRITICAL gone\n");
    }
}
