//! The applets: one table, one shape. See [`Command`] for what each gets.

mod archive;
mod awk;
mod basic;
mod blocks;
mod digest;
mod directory;
mod find;
mod grep;
#[cfg(any(test, target_family = "wasm"))]
mod grpc;
#[cfg(any(test, target_family = "wasm"))]
mod nc;
#[cfg(target_family = "wasm")]
mod network;
mod od;
mod sed;
mod system;
mod text;

use futures::future::FutureExt;

use crate::command::{Command, Failure, Outcome, Running, base_name};
use crate::shell;

type Applet = fn(Command) -> Running;

/// Nothing of that name.
const CODE_NOT_FOUND: i32 = 127;
/// Names that are this program itself: the applet comes next.
const OWN_NAMES: [&str; 3] = ["toolbox", "busybox", "toybox"];

#[rustfmt::skip] // a table
const APPLETS: &[(&str, Applet)] = &[
    ("[", |c| test(c).boxed_local()),
    ("ash", |c| shell::sh(c).boxed_local()),
    ("awk", |c| awk::awk(c).boxed_local()),
    ("base64", |c| digest::base64(c).boxed_local()),
    ("basename", |c| basic::basename(c).boxed_local()),
    ("bash", |c| shell::sh(c).boxed_local()),
    ("busybox", |c| own(c).boxed_local()),
    ("cat", |c| text::cat(c).boxed_local()),
    ("chgrp", |_| nothing().boxed_local()),
    ("chmod", |_| nothing().boxed_local()),
    ("chown", |_| nothing().boxed_local()),
    ("clear", |c| say(c, "\x1b[H\x1b[J").boxed_local()),
    ("cmp", |c| blocks::cmp(c).boxed_local()),
    ("cp", |c| directory::cp(c).boxed_local()),
    ("cut", |c| text::cut(c).boxed_local()),
    ("dash", |c| shell::sh(c).boxed_local()),
    ("date", |c| system::date(c).boxed_local()),
    ("dd", |c| blocks::dd(c).boxed_local()),
    ("df", |_| system::df().boxed_local()),
    ("dirname", |c| basic::dirname(c).boxed_local()),
    ("du", |c| directory::du(c).boxed_local()),
    ("echo", |c| basic::echo(c).boxed_local()),
    ("egrep", |c| grep::egrep(c).boxed_local()),
    ("entrypoint", |c| entrypoint(c).boxed_local()),
    ("env", |c| system::env(c).boxed_local()),
    ("expr", |c| basic::expr(c).boxed_local()),
    ("fallocate", |c| blocks::fallocate(c).boxed_local()),
    ("false", |_| async { Ok(1) }.boxed_local()),
    ("fgrep", |c| grep::fgrep(c).boxed_local()),
    ("find", |c| find::find(c).boxed_local()),
    ("free", |c| system::free(c).boxed_local()),
    ("grep", |c| grep::grep(c).boxed_local()),
    ("gunzip", |c| archive::gunzip(c).boxed_local()),
    ("gzip", |c| archive::gzip(c).boxed_local()),
    ("head", |c| text::head(c).boxed_local()),
    ("hostname", |c| system::hostname(c).boxed_local()),
    ("id", |c| system::id(c).boxed_local()),
    ("ln", |c| directory::ln(c).boxed_local()),
    ("ls", |c| directory::ls(c).boxed_local()),
    ("md5sum", |c| digest::md5sum(c).boxed_local()),
    ("mkdir", |c| directory::mkdir(c).boxed_local()),
    ("mktemp", |c| directory::mktemp(c).boxed_local()),
    ("mv", |c| directory::mv(c).boxed_local()),
    ("nl", |c| text::nl(c).boxed_local()),
    ("nohup", |c| system::nohup(c).boxed_local()),
    ("nproc", |c| say(c, "1\n").boxed_local()),
    ("od", |c| od::od(c).boxed_local()),
    ("pause", |_| system::pause().boxed_local()),
    ("printenv", |c| system::printenv(c).boxed_local()),
    ("printf", |c| basic::printf(c).boxed_local()),
    ("ps", |c| system::ps(c).boxed_local()),
    ("pwd", |c| system::pwd(c).boxed_local()),
    ("readlink", |c| directory::readlink(c).boxed_local()),
    ("realpath", |c| directory::realpath(c).boxed_local()),
    ("rev", |c| text::rev(c).boxed_local()),
    ("rm", |c| directory::rm(c).boxed_local()),
    ("rmdir", |c| directory::rmdir(c).boxed_local()),
    ("sed", |c| sed::sed(c).boxed_local()),
    ("seq", |c| basic::seq(c).boxed_local()),
    ("sh", |c| shell::sh(c).boxed_local()),
    ("sha256sum", |c| digest::sha256sum(c).boxed_local()),
    ("sha512sum", |c| digest::sha512sum(c).boxed_local()),
    ("sleep", |c| system::sleep(c).boxed_local()),
    ("sort", |c| text::sort(c).boxed_local()),
    ("stat", |c| directory::stat(c).boxed_local()),
    ("sync", |_| nothing().boxed_local()),
    ("tac", |c| text::tac(c).boxed_local()),
    ("tail", |c| text::tail(c).boxed_local()),
    ("tar", |c| archive::tar(c).boxed_local()),
    ("tee", |c| text::tee(c).boxed_local()),
    ("test", |c| test(c).boxed_local()),
    ("time", |c| system::time(c).boxed_local()),
    ("timeout", |c| system::timeout(c).boxed_local()),
    ("toolbox", |c| own(c).boxed_local()),
    ("touch", |c| directory::touch(c).boxed_local()),
    ("tr", |c| text::tr(c).boxed_local()),
    ("true", |_| nothing().boxed_local()),
    ("truncate", |c| blocks::truncate(c).boxed_local()),
    ("tty", |c| say(c, "not a tty\n").boxed_local()),
    ("uname", |c| system::uname(c).boxed_local()),
    ("uniq", |c| text::uniq(c).boxed_local()),
    ("wc", |c| text::wc(c).boxed_local()),
    ("which", |c| system::which(c).boxed_local()),
    ("whoami", |c| say(c, "nobody\n").boxed_local()),
    ("xargs", |c| find::xargs(c).boxed_local()),
    ("yes", |c| basic::yes(c).boxed_local()),
    ("zcat", |c| archive::zcat(c).boxed_local()),
];

/// What needs the interfaces of a network, which only a Pod has.
#[cfg(target_family = "wasm")]
#[rustfmt::skip] // a table
const NETWORK: &[(&str, Applet)] = &[
    ("agnhost", |c| network::agnhost(c).boxed_local()),
    ("curl", |c| network::curl(c).boxed_local()),
    ("httpd", |c| network::httpd(c).boxed_local()),
    ("nc", |c| network::nc(c).boxed_local()),
    ("nslookup", |c| network::nslookup(c).boxed_local()),
    ("wget", |c| network::wget(c).boxed_local()),
];
#[cfg(not(target_family = "wasm"))]
const NETWORK: &[(&str, Applet)] = &[];

/// The applet of a name or path: `/bin/ls` and `ls` are the same.
pub fn find(name: &str) -> Option<Applet> {
    let is_program = !name.contains('/')
        || ["/bin/", "/sbin/", "/usr/", "/agnhost", "/pause"]
            .iter()
            .any(|folder| name.starts_with(folder));
    let name = base_name(name);
    let known = APPLETS.iter().chain(NETWORK).find(|(known, _)| *known == name && is_program);
    known.map(|(_, applet)| *applet)
}

/// Runs a command by its name; its failure is said on its standard error.
pub async fn run(mut command: Command) -> i32 {
    let complaints = command.stderr.clone();
    let outcome = match find(&command.name) {
        Some(applet) => {
            command.name = base_name(&command.name).to_owned();
            let name = command.name.clone();
            (applet(command).await, name)
        }
        None => script(command).await,
    };
    match outcome {
        (Ok(code), _) => code,
        (Err(failure), name) => {
            if !failure.message.is_empty() {
                // Where that cannot be written nobody can be told.
                let _ = complaints.write(format!("{name}: {}\n", failure.message)).await;
            }
            failure.code
        }
    }
}

/// A file of commands, as `./run.sh` or by its path.
async fn script(command: Command) -> (Outcome, String) {
    let name = command.name.clone();
    let path = command.path(&name);
    if name.contains('/') && path.is_file() {
        let mut words = vec!["sh".to_owned(), name.clone()];
        words.extend(command.args.iter().cloned());
        return (shell::sh(command.with(words)).boxed_local().await, name);
    }
    let message = "not found; the toolbox has no programs but its own: see `busybox --list`";
    let failure = Failure { message: message.to_owned(), code: CODE_NOT_FOUND };
    (Err(failure), name)
}

/// `busybox APPLET …`; without one the shell, or the list.
pub async fn own(command: Command) -> Outcome {
    match command.args.first().map(String::as_str) {
        Some("--list" | "--help") => {
            let mut names: Vec<&str> =
                APPLETS.iter().chain(NETWORK).map(|(name, _)| *name).collect();
            names.sort_unstable();
            command.print(names.join("\n") + "\n").await?;
            Ok(0)
        }
        Some(_) => {
            let words = command.args.clone();
            Ok(run(command.with(words)).await)
        }
        None => shell::sh(command.with(vec!["sh".to_owned()])).boxed_local().await,
    }
}

/// `entrypoint PROGRAM WORD …`, as images of one program begin: the words are its arguments, unless
/// the first is a program itself.
async fn entrypoint(command: Command) -> Outcome {
    let mut words = command.args.clone();
    let is_program = |word: &String| {
        find(word).is_some() || (word.contains('/') && command.path(word).is_file())
    };
    if words.get(1).is_some_and(is_program) {
        words.remove(0);
    }
    Ok(run(command.with(words)).await)
}

/// Whether a name is this program's own.
pub fn is_own_name(name: &str) -> bool {
    OWN_NAMES.contains(&name)
}

/// What has no meaning here and must not fail: there are no owners and no modes in WASI.
async fn nothing() -> Outcome {
    Ok(0)
}

async fn say(command: Command, text: &str) -> Outcome {
    command.print(text).await?;
    Ok(0)
}

async fn test(command: Command) -> Outcome {
    let mut operands = command.args.clone();
    if command.name == "[" && operands.pop().as_deref() != Some("]") {
        return Err(Failure::usage("missing ]"));
    }
    Ok(i32::from(!shell::evaluate(&command, &operands)?))
}

/// A count as people write it: `10`, `4k`, `1M`.
fn count(text: &str) -> Result<u64, Failure> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let factor: u64 = match unit {
        "" | "c" => 1,
        "k" | "K" | "kB" | "KiB" => 1 << 10,
        "M" | "MB" | "MiB" => 1 << 20,
        "G" | "GB" | "GiB" => 1 << 30,
        "b" => 512,
        _ => return Err(Failure::usage(format!("invalid number {text}"))),
    };
    let number: u64 =
        digits.parse().map_err(|_| Failure::usage(format!("invalid number {text}")))?;
    Ok(number.saturating_mul(factor))
}

/// Takes `-5` for `-n 5`, as `head` and `tail` do.
fn old_style(mut args: Vec<String>) -> Vec<String> {
    let short = args.first().and_then(|first| first.strip_prefix('-')).map(str::to_owned);
    if let Some(digits) =
        short.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
    {
        args.splice(..1, ["-n".to_owned(), digits]);
    }
    args
}
