//! Transcripts: what a person types and what is printed, kept as text in `tests/scripts`.
//!
//! A transcript is a row of blocks, separated by empty lines, against one cluster:
//!
//! ```text
//! # Why this is typed.
//! kubectl create namespace a      any lines of bash: stock kubectl and helm are on its PATH
//! = namespace/a created           what it printed, made anew with UPDATE_EXPECT=1
//! = [exit 1]                      how it ended, where that was a failure
//! ```
//!
//! The folder of the block is `tests/scripts/files`; `$TMP` is a folder of the transcript. What
//! differs from run to run (uids, times, ages, addresses, generated names) is masked, and columns
//! keep three spaces. `until_says TEXT COMMAND…` repeats a command until its output has a text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use regex::Regex;

use crate::{Dev, repository, text};

/// A block that takes longer hangs.
const BLOCK_SECONDS_MAX: u32 = 900;

/// What every block starts with. Errors stand where they were printed.
const PRELUDE: &str = r#"
exec 2>&1
until_says() {
    local text=$1 end=$((SECONDS + 180)); shift
    until "$@" 2>&1 | grep -qF -- "$text"; do
        [ $SECONDS -lt $end ] || { echo "not said within three minutes: $text"; "$@"; return 1; }
        sleep 0.3
    done
}
"#;

/// What is masked: a pattern, and what stands for it.
const MASKS: &[(&str, &str)] = &[
    ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "TIME"),
    (r"\b[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d \d{4}", "TIME"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC", "TIME"),
    ("sha256:[0-9a-f]{64}", "sha256:DIGEST"),
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "TOKEN"),
    (r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b(:\d+)?", "IP"),
    (r#"(?i)(resource ?version"?:\s*"?)\d+"#, "${1}R"),
    // Before ages: a made name may end like one.
    (r"-[bcdfghjklmnpqrstvwxz2456789]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-HASH-XXXXX"),
    (r"\b(\w+)-[bcdfghjklmnpqrstvwxz2456789]{5}(\s|$)", "$1-XXXXX$2"),
    (r"(-|=)[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "${1}HASH"),
    // From two minutes on a whole number of them has no seconds.
    (r"\b((\d+m)?\d+s|[2-9]m)\b", "AGE"),
    (r"\b(\d+y)?\d+d\b", "AGE"),
    (r"AGE \(x\d+ over AGE\)", "AGE"),
    (r"\b3[0-2]\d{3}\b", "NODEPORT"),
    (r"-{4,}", "----"),
    (r"(\S)[ \t]*(\t| {2})[ \t]*", "$1   "),
    (r"(?m) +$", ""),
];

/// The folder with the clients that tests drive, installed by the first who asks.
///
/// # Panics
/// When they cannot be installed; the message says why.
pub fn clients() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let install = repository().join("tests/install-clients");
        let output = Command::new(install).output().expect("bash is there");
        assert!(output.status.success(), "tests/install-clients: {}", text(&output.stderr));
        PathBuf::from(text(&output.stdout).trim())
    })
}

/// A path that finds the installed clients before those of the machine.
pub fn path() -> String {
    let machine = std::env::var("PATH").unwrap_or_default();
    format!("{}:{machine}", clients().join("bin").display())
}

/// Masks what differs from run to run.
pub fn masked(printed: &str) -> String {
    static PATTERNS: OnceLock<Vec<(Regex, &str)>> = OnceLock::new();
    let patterns = PATTERNS.get_or_init(|| {
        let compile = |(pattern, by): &(&str, &'static str)| {
            (Regex::new(pattern).expect("the masks are regular expressions"), *by)
        };
        MASKS.iter().map(compile).collect()
    });
    let mut printed = printed.to_owned();
    for (pattern, by) in patterns {
        printed = pattern.replace_all(&printed, *by).into_owned();
    }
    printed
}

/// Runs `tests/scripts/{name}` against a cluster and compares what is printed with what it holds.
#[track_caller]
pub fn check(name: &str, cluster: &Dev) {
    let file = repository().join("tests/scripts").join(name);
    let script = std::fs::read_to_string(&file).expect("the transcript is readable");
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut rendered = Vec::new();
    let updates = std::env::var_os("UPDATE_EXPECT").is_some();
    for block in script.trim_end().split("\n\n") {
        let mut lines: Vec<String> =
            block.lines().filter(|line| !line.starts_with('=')).map(str::to_owned).collect();
        let typed: Vec<&str> = block.lines().filter(|line| !line.starts_with(['=', '#'])).collect();
        if !typed.is_empty() {
            let printed = run(&typed.join("\n"), cluster, home.path());
            lines.extend(printed.lines().map(|line| format!("= {line}").trim_end().to_owned()));
        }
        let now = lines.join("\n");
        // Said here, for a screen has no room for the whole transcript, twice.
        assert!(
            updates || now == block,
            "tests/scripts/{name} prints something else (UPDATE_EXPECT=1 takes it):\n{}",
            difference(block, &now)
        );
        rendered.push(now);
    }
    expect_test::expect_file![file].assert_eq(&(rendered.join("\n\n") + "\n"));
}

/// A block's lines that are not as they were, in one screen, behind what they follow.
fn difference(before: &str, now: &str) -> String {
    let alike = before.lines().zip(now.lines()).take_while(|(before, now)| before == now).count();
    let some = |lines: &str, sign: char| {
        let mut text = String::new();
        for line in lines.lines().skip(alike).take(6) {
            let _ = writeln!(text, "{sign} {line}");
        }
        text
    };
    let follows = now.lines().take(alike).last().unwrap_or("the block's start");
    format!("  {follows}\n{}{}", some(before, '-'), some(now, '+'))
}

fn run(typed: &str, cluster: &Dev, home: &Path) -> String {
    let output = Command::new("timeout")
        .arg(BLOCK_SECONDS_MAX.to_string())
        .args(["bash", "-c", &format!("{PRELUDE}{typed}")])
        .current_dir(repository().join("tests/scripts/files"))
        .env("PATH", path())
        .env("KUBECONFIG", &cluster.kubeconfig)
        // Caches, configuration and releases of clients are the transcript's own.
        .env("HOME", home)
        .env("TMP", home)
        .env("WHERRY_DATA", &cluster.data_dir)
        .stdin(Stdio::null())
        .output()
        .expect("bash is there");
    let printed = text(&output.stdout).replace(&*home.to_string_lossy(), "$TMP");
    let mut printed = masked(&printed);
    if !output.status.success() {
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        let _ = writeln!(printed, "[exit {}]", output.status.code().unwrap_or(-1));
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::{difference, masked};

    #[test]
    fn a_difference_fits_on_a_screen() {
        let (before, now) = ("ls\n= a\n= b\n= c", "ls\n= a\n= x\n= c");
        assert_eq!(difference(before, now), "  = a\n- = b\n- = c\n+ = x\n+ = c\n");
        assert_eq!(difference("= a", "= a\n= b"), "  = a\n+ = b\n");
        assert_eq!(difference("= a\n= b", "= b"), "  the block's start\n- = a\n- = b\n+ = b\n");
    }

    #[test]
    fn what_differs_is_masked() {
        for (printed, shown) in [
            (
                "web-5d4b9c6f7b-x2k4z   1/1     Running   0          5s",
                "web-HASH-XXXXX   1/1   Running   0   AGE",
            ),
            ("web-5d4b9c6f7b-2456s   2m", "web-HASH-XXXXX   AGE"),
            ("resourceVersion: \"123\"", "resourceVersion: \"R\""),
            ("10.0.0.7:80", "IP"),
            ("hello-http   ok", "hello-http   ok"),
            ("at 2026-01-02T03:04:05Z", "at TIME"),
            ("  indented\n    more", "  indented\n    more"),
        ] {
            assert_eq!(masked(printed), shown);
        }
    }
}
