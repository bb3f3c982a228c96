//! `wasi:logging`: what a guest logs is a line of its standard error, with level and context.

use wasmtime::component::HasData;

use crate::output::Output;

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
        imports: { default: trappable },
    });
}

/// What the bindings work on.
pub(crate) struct LoggingView<'a>(pub(crate) &'a Output);

pub(crate) struct HasLogging;

impl HasData for HasLogging {
    type Data<'a> = LoggingView<'a>;
}

impl interface::Host for LoggingView<'_> {
    fn log(
        &mut self,
        level: interface::Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        (self.0)(line(level, &context, &message).as_bytes());
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
    use super::*;

    #[test]
    fn lines() {
        let info = interface::Level::Info;
        assert_eq!(line(info, "cart", "paid\n"), "INFO cart: paid\n");
        assert_eq!(line(interface::Level::Critical, "", "gone"), "CRITICAL gone\n");
    }
}
