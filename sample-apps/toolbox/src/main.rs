//! `toolbox`: one command with a shell and the small programs that scripts call, so that manifests
//! written for containers of BusyBox run, and `kubectl exec` and `cp` find something to run in any
//! Pod. Its name, or its first argument, says which applet it is.
//!
//! There are no processes and no threads in WASI, so everything that would be a process is a
//! future here (`runtime`), what connects them is in memory (`io`), and an applet is a function
//! from a [`command::Command`] to an exit code (`applets`).

mod applets;
mod command;
mod escapes;
mod files;
#[cfg(target_family = "wasm")]
mod http;
#[cfg(target_family = "wasm")]
mod https;
mod io;
#[cfg(target_family = "wasm")]
mod net;
mod runtime;
mod shell;
mod signals;

use std::path::{Path, PathBuf};

use command::{Command, base_name};
use io::{Input, Output};

/// Set by the worker where the end of the input means SIGTERM and nothing else.
const ENDS_WITH_INPUT: &str = "WHERRY_ENDS_WITH_INPUT";

fn main() {
    let mut words = std::env::args();
    let mut name = words.next().unwrap_or_default();
    let mut args: Vec<String> = words.collect();
    if applets::is_own_name(base_name(&name)) {
        name = match args.first() {
            None => "sh".to_owned(),
            Some(option) if option.starts_with("--") => "busybox".to_owned(),
            Some(_) => args.remove(0),
        };
    }
    let mut env = std::env::vars().collect::<std::collections::BTreeMap<_, _>>();
    let cwd = env.get("PWD").map(PathBuf::from).filter(|path| files::is_dir(path));
    let cwd = cwd.unwrap_or_else(|| Path::new("/").to_owned());
    let (stdin, stdout, stderr) = (input(&mut env), Output::stdout(), Output::stderr());
    let command = Command { name, args, env, cwd, stdin, stdout, stderr };
    let code = runtime::run(applets::run(command));
    exit(u8::try_from(code & 0xff).unwrap_or(1));
}

/// The standard input. That of a container which reads none ends when the container shall.
fn input(env: &mut std::collections::BTreeMap<String, String>) -> Input {
    if env.remove(ENDS_WITH_INPUT).is_some() {
        runtime::spawn(async {
            // Nothing ever comes.
            let _ = Input::stdin().rest().await;
            signals::Signal::Terminate.raise();
        });
        return Input::null();
    }
    // Natively reading would keep everything else from going on.
    match cfg!(target_family = "wasm") && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        true => Input::typed(),
        false => Input::stdin(),
    }
}

/// The adapter of WASI p1 knows success and failure only; this tells the code.
#[cfg(target_family = "wasm")]
fn exit(code: u8) {
    wasip2::cli::exit::exit_with_code(code);
}

#[cfg(not(target_family = "wasm"))]
fn exit(code: u8) {
    std::process::exit(i32::from(code));
}
