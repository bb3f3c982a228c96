//! `docs/api.md`: which resources are served with which verbs, and how many scripted cases hold
//! each section of the contract with clients. Made of the table of kinds and of the scripts
//! themselves, and held against them here: `make bless` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use wherry_resources::KINDS;
use wherry_tests::repository;

/// The contract's sections.
const SECTIONS: [&str; 16] = [
    "What breaks stock clients",
    "Transport, authentication, headers",
    "Content negotiation and bad input",
    "Discovery",
    "OpenAPI",
    "Resources to serve",
    "Reads",
    "Writes",
    "Status bodies, names",
    "Defaults, validation, immutable fields",
    "Subresources",
    "Streaming",
    "Tables and descriptions",
    "What each command sends",
    "What exists after the start",
    "The acceptance round",
];

/// Where scripts are, relative to the repository.
const CONTRACT: &str = "control-plane/server/src/apiserver/tests/contract";
const PURE: &str = "control-plane/resources/src/testscripts";
const TRANSCRIPTS: &str = "tests/scripts";
const CLIENTS: &str = "tests/clients";
const PROCESSES: &str = "tests/it";

/// Scripts that are not named after their section: of pure functions (a case is a block),
/// transcripts (a line that is typed), clients (a thing that is said), tests of processes.
const OTHERS: &[(&str, &str, usize)] = &[
    (PURE, "apply.txt", 8),
    (PURE, "patch.txt", 8),
    (PURE, "names.txt", 9),
    (PURE, "custom_schemas", 5),
    (PURE, "custom_objects", 8),
    (PURE, "custom_definitions", 10),
    (PURE, "defaults.txt", 10),
    (PURE, "validate.txt", 10),
    (PURE, "table.txt", 13),
    (PROCESSES, "streams.rs", 12),
    (TRANSCRIPTS, "kinds.txt", 13),
    (TRANSCRIPTS, "commands.txt", 14),
    (TRANSCRIPTS, "helm.txt", 14),
    (CLIENTS, "round.py", 14),
    (CLIENTS, "round.mjs", 14),
    (TRANSCRIPTS, "start.txt", 15),
    (TRANSCRIPTS, "section-16.txt", 16),
];

/// The cases of a script.
fn cases(folder: &str, file: &Path) -> usize {
    let script = std::fs::read_to_string(file).expect("the script is readable");
    let is_input = |line: &&str| !line.is_empty() && !line.starts_with(['#', '=']);
    match folder {
        CONTRACT => {
            let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
            let word = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
            script.lines().filter(|line| methods.contains(&word(line).as_str())).count()
        }
        CLIENTS => script.lines().filter(|line| says(line)).count(),
        PROCESSES => script.lines().filter(|line| is_test(line)).count(),
        PURE => script.split("\n\n").filter(|block| block.lines().any(|l| is_input(&l))).count(),
        _ => script.lines().filter(is_input).count(),
    }
}

/// Whether a client's line tells something that it has seen.
fn says(line: &str) -> bool {
    let line = line.trim_start().trim_start_matches("await ");
    line.starts_with("says(") || line.starts_with("refused(")
}

fn is_test(line: &str) -> bool {
    line.starts_with("#[test]") || line.starts_with("#[tokio::test")
}

/// All scripts with their section and cases.
fn scripts() -> BTreeMap<usize, Vec<(PathBuf, usize)>> {
    let mut found: BTreeMap<usize, Vec<(PathBuf, usize)>> = BTreeMap::new();
    let contract = std::fs::read_dir(repository().join(CONTRACT)).expect("the scripts are there");
    let mut files: Vec<PathBuf> = contract.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a plain name");
        let section = name.split('-').next().and_then(|number| number.parse().ok());
        let section = section.expect("a script is named after its section");
        let count = cases(CONTRACT, &file);
        found.entry(section).or_default().push((Path::new(CONTRACT).join(name), count));
    }
    for (folder, name, section) in OTHERS {
        let count = cases(folder, &repository().join(folder).join(name));
        found.entry(*section).or_default().push((Path::new(folder).join(name), count));
    }
    // Section 6 is the table below, and a test that asks for every verb in it.
    let verbs = KINDS.iter().map(|kind| kind.verbs.len()).sum();
    let test = "control-plane/server/src/apiserver/tests/resources.rs";
    found.entry(6).or_default().push((PathBuf::from(test), verbs));
    found
}

fn sections() -> String {
    let scripts = scripts();
    let mut out = String::from("| section | what | cases | scripts |\n|---|---|---:|---|\n");
    let mut total = 0;
    for (index, what) in SECTIONS.iter().enumerate() {
        let none = Vec::new();
        let scripts = scripts.get(&(index + 1)).unwrap_or(&none);
        let count: usize = scripts.iter().map(|(_, count)| count).sum();
        total += count;
        let link = |(path, _): &(PathBuf, usize)| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            format!("[{name}](../{})", path.display())
        };
        let links: Vec<String> = scripts.iter().map(link).collect();
        let _ = writeln!(out, "| {} | {what} | {count} | {} |", index + 1, links.join(", "));
    }
    let _ = writeln!(out, "| | all | {total} | |");
    out
}

fn resources() -> String {
    let mut out = String::from(
        "| resource | version | scope | short names, categories | verbs | subresources |\n\
         |---|---|---|---|---|---|\n",
    );
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let shown = |verbs: &[&str]| match verbs == all {
        true => "all".to_owned(),
        false => verbs.join(" "),
    };
    for kind in KINDS {
        let scope = if kind.namespaced { "namespace" } else { "cluster" };
        let names = [kind.short_names, kind.categories].concat().join(" ");
        let parts = kind.subresources.iter().map(|part| match part.verbs {
            ["get", "patch", "update"] => part.name.to_owned(),
            verbs => format!("{} ({})", part.name, verbs.join(" ")),
        });
        let parts = parts.collect::<Vec<_>>().join(", ");
        let (name, version, verbs) = (kind.qualified(), kind.version, shown(kind.verbs));
        let _ = writeln!(out, "| {name} | {version} | {scope} | {names} | {verbs} | {parts} |");
    }
    out
}

#[test]
fn the_document_says_what_is_served() {
    let text = format!(
        "# What the API serves\n\n\
         Made by a test (`tests/it/served.rs`) of the table of kinds and the scripts it counts; \
         `make bless` writes it anew.\n\n\
         ## Scripted cases\n\n\
         A case is a request with its whole answer, a pure function's input with its outcome, a \
         command of kubectl or helm with what it prints, or what a program saw through a client. `make test` runs all of them and fails \
         when one gives another answer.\n\n{}\n\
         ## Resources and verbs\n\n\
         \"all\" is create, delete, deletecollection, get, list, patch, update and watch. \
         Subresources without verbs have get, patch and update. Custom resources have all verbs, \
         and `status` and `scale` where their definition says so.\n\n{}",
        sections(),
        resources()
    );
    expect_test::expect_file![repository().join("docs/api.md")].assert_eq(&text);
}
