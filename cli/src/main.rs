//! `wherry`, the one binary: flags become a checked configuration, and that starts a role or a
//! verb.
//!
//! Roles: `server` (a control-plane member), `node` (an agent), `dev` (both on loopback, as child
//! processes), and two that only an agent starts: `worker` and `compile`. Verbs speak to a cluster
//! with a kubeconfig. Results go to stdout, everything else to stderr; exit code 1 is a failure, 2
//! a wrong command line.

mod api;
mod audit;
mod backup;
mod dev;
mod diagnostic;
mod folder;
mod images;
mod keys;
mod member;
mod push;
mod roles;
mod tail;
mod token;
mod ui;
mod why;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::diagnostic::Diagnostic;

/// An API request or a guest's instance is thousands of small allocations on many threads; RocksDB
/// allocates by it too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas and freed pages given back within a second: an idle node must stay small. jemalloc
/// reads it as the text of `MALLOC_CONF`.
// SAFETY: jemalloc wants a C string under this name, and nothing else has the name.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8] =
    b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true\0";

/// Kubernetes for WebAssembly: Pods that cost what a Wasm instance costs.
#[derive(Parser)]
#[command(name = "wherry", version, propagate_version = true, max_term_width = 100)]
struct Flags {
    /// Write logs to this file instead of stderr
    #[arg(long, global = true, value_name = "FILE", help_heading = "Logging")]
    log_file: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter such as wherry_node=debug
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "WHERRY_LOG",
        help_heading = "Logging"
    )]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a cluster on this machine: control plane and nodes on loopback, state kept between
    /// runs
    Dev(dev::Flags),
    /// Run a member of the control plane
    Server(roles::ServerFlags),
    /// Run a node: the agent that hosts Pods
    Node(roles::NodeFlags),
    /// Show and change the members of the control plane
    Member {
        #[command(subcommand)]
        verb: member::Verb,
    },
    /// Make tokens with which nodes and members join
    Token {
        #[command(subcommand)]
        verb: token::Verb,
    },
    /// Save, inspect and restore backups of a cluster
    Backup {
        #[command(subcommand)]
        verb: backup::Verb,
    },
    /// Show and rotate the keys of encryption at rest
    Keys {
        #[command(subcommand)]
        verb: keys::Verb,
    },
    /// Check audit logs
    Audit {
        #[command(subcommand)]
        verb: audit::Verb,
    },
    /// Push a Wasm file as an image, into the cluster's registry or another
    Push(push::Flags),
    /// Open the dashboard, signed in
    Ui(ui::Flags),
    /// Print requests as Pods answer them, until Ctrl-C
    Tail(tail::Flags),
    /// Say why a Pod is on its node, or on none
    Why(why::Flags),
    /// Host the Pods of one trust domain (started by the agent)
    #[command(hide = true)]
    Worker(roles::WorkerFlags),
    /// Inspect and compile one Wasm file (started by the agent)
    #[command(hide = true)]
    Compile(roles::CompileFlags),
}

fn main() -> ExitCode {
    // A process that is given no provider picks one by its dependencies' features; this one is
    // always ring.
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing installed a provider before main");
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => match usage_error(&error, std::env::args_os().skip(1)) {
            Some(diagnostic) => {
                diagnostic.print();
                return ExitCode::from(diagnostic.exit_code);
            }
            // Help and versions that were asked for.
            None => error.exit(),
        },
    };
    if let Err(diagnostic) = start_log(flags.log_file.as_deref(), flags.log.as_deref()) {
        diagnostic.print();
        return ExitCode::from(diagnostic.exit_code);
    }
    let result = match flags.verb {
        Verb::Dev(flags) => dev::main(flags),
        Verb::Server(flags) => roles::server(flags),
        Verb::Node(flags) => roles::node(flags),
        Verb::Member { verb } => member::main(verb),
        Verb::Token { verb } => token::main(verb),
        Verb::Backup { verb } => backup::main(verb),
        Verb::Keys { verb } => keys::main(verb),
        Verb::Audit { verb } => audit::main(verb),
        Verb::Push(flags) => push::main(flags),
        Verb::Ui(flags) => ui::main(flags),
        Verb::Tail(flags) => tail::main(flags),
        Verb::Why(flags) => why::main(flags),
        Verb::Worker(flags) => roles::worker(flags),
        Verb::Compile(flags) => return roles::compile(flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(diagnostic) => {
            diagnostic.print();
            ExitCode::from(diagnostic.exit_code)
        }
    }
}

/// A wrong command line in the form of every other failure.
fn usage_error(
    error: &clap::Error,
    arguments: impl Iterator<Item = OsString>,
) -> Option<Diagnostic> {
    let text = error.render().to_string();
    let mut parts = text.strip_prefix("error: ")?.split("\n\n");
    let headline: Vec<&str> = parts.next()?.lines().map(str::trim).collect();
    let tips = parts.flat_map(str::lines).filter_map(|line| line.trim().strip_prefix("tip: "));
    let diagnostic = tips.fold(Diagnostic::usage(headline.join(" ")), Diagnostic::help);
    let root = Flags::command();
    let (mut verb, mut command) = ("wherry".to_owned(), &root);
    for argument in arguments {
        if let Some(found) = command.find_subcommand(&argument) {
            verb = format!("{verb} {}", found.get_name());
            command = found;
        }
    }
    Some(diagnostic.help(format!("see what it takes:   {verb} --help")))
}

fn start_log(file: Option<&Path>, filter: Option<&str>) -> Result<(), Diagnostic> {
    // openraft tells each step of its own at info, and at warn each of the ten times a second that it
    // does not reach a member; the store tells once who does not answer. kube warns of each watch
    // that a server's end cuts off, a dozen at once; the agent tells that it does not answer.
    let level = if file.is_some() { "info" } else { "warn" };
    let usual = format!("{level},openraft=error,kube_client=error");
    let filter = filter.unwrap_or(&usual);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        Diagnostic::usage(format!("--log {filter:?} is not a filter"))
            .why(error)
            .help("try --log info, or --log wherry_node=debug")
    })?;
    // A terminal that was closed takes no more lines; saying so on it would be a panic.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    let log = log.with_env_filter(filter).with_ansi(false);
    let Some(file) = file else {
        log.with_writer(std::io::stderr).init();
        return Ok(());
    };
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    let opened = opened.map_err(|error| {
        Diagnostic::new("WH0002", format!("cannot write the log file {}", file.display()))
            .why(error)
            .help("choose another with --log-file, or leave the flag out to log to stderr")
    })?;
    log.with_writer(std::sync::Mutex::new(opened)).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_told_as_other_failures() {
        let told = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            let error = Flags::try_parse_from(words.clone()).err().expect("it is wrong");
            usage_error(&error, words.skip(1)).map_or_else(String::new, |error| error.to_string())
        };
        expect_test::expect![[r"
            error[WH0001]: invalid value '0' for '--nodes <N>': 0 is not in 1..=250
            help: see what it takes:   wherry dev --help
            error[WH0001]: invalid value '6443' for '--listen <ADDRESS:PORT>': it is not an address and a port in numbers, like 127.0.0.1:6443 or [::1]:0
            help: see what it takes:   wherry dev --help
            error[WH0001]: the following required arguments were not provided: --server <URL>
            help: see what it takes:   wherry node --help
            error[WH0001]: unexpected argument '--bogus' found
            help: see what it takes:   wherry token create --help
            error[WH0001]: unrecognized subcommand 'serve'
            help: a similar subcommand exists: 'server'
              or: see what it takes:   wherry --help"]]
        .assert_eq(
            &[
                "wherry dev --nodes 0",
                "wherry dev --listen 6443",
                "wherry node --data-dir a",
                "wherry token create --bogus",
                "wherry serve",
            ]
            .map(told)
            .join("\n"),
        );
        assert_eq!(told("wherry dev --help"), "");
        assert_eq!(told("wherry token"), "");
    }
}
