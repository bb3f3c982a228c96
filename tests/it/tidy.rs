//! The house rules that a machine can check: which crate may use which, headers, lengths, forbidden
//! clocks, sample apps with manifest and test, documents that name what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wherry_tests::repository;

/// Files beyond this many lines are split where a seam is.
const FILE_LINES_MAX: usize = 800;

/// All tracked-looking files with an ending, build outputs and dependencies left out.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let skipped = ["target", "node_modules", "dist", ".git"];
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
            if path.is_dir() && !skipped.contains(&name) {
                walk(&path, ending, found);
            } else if name.ends_with(ending) && path.is_file() {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(repository(), ending, &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).expect("in the repository").display().to_string()
}

#[track_caller]
fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The dependencies of a crate as its manifest names them, tests' ones left out.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = read(&repository().join(folder).join("Cargo.toml"));
    let section = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.split_once(['.', ' ']));
    names.map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn crates_use_only_what_the_map_allows() {
    let allowed: [(&str, &[&str]); 7] = [
        ("cli", &["wherry-control-plane", "wherry-node", "wherry-resources"]),
        ("control-plane/resources", &[]),
        ("control-plane/store", &[]),
        ("control-plane/server", &["wherry-store", "wherry-resources", "wherry-dashboard"]),
        ("node", &["wherry-resources", "wherry-wasi-shim"]),
        ("wasi-shim", &[]),
        ("web-dashboard", &[]),
    ];
    let owned = [
        ("openraft", "control-plane/store"),
        ("rocksdb", "control-plane/store"),
        ("wasmtime", "wasi-shim"),
    ];
    let mut broken = Vec::new();
    for (folder, may_use) in allowed {
        for name in dependencies(folder) {
            if name.starts_with("wherry-") && !may_use.contains(&name.as_str()) {
                broken.push(format!("{folder} uses {name}"));
            }
            for (engine, owner) in owned {
                if name.starts_with(engine) && folder != owner {
                    broken.push(format!("{folder} uses {name}, which belongs to {owner}"));
                }
            }
        }
    }
    assert_none("a new edge between crates is a decision (ARCHITECTURE.md, DECISIONS.md)", &broken);
}

#[test]
fn decisions_reach_objects_through_a_client_only() {
    let server = repository().join("control-plane/server/src");
    let mut broken = Vec::new();
    for file in files(".rs").iter().filter(|file| file.starts_with(&server)) {
        // The group apiextensions has a module of this name that is not ours.
        let text = read(file).replace("apiextensions_apiserver::", "");
        let within = |folder: &str| file.starts_with(server.join(folder));
        let decides = within("controllers") || within("scheduler");
        for forbidden in ["wherry_store", "apiserver::"] {
            if decides && text.contains(forbidden) {
                broken.push(format!("{} names {forbidden}", shown(file)));
            }
        }
        if within("apiserver/admission") && text.contains("wherry_store") {
            broken.push(format!("{}: admission never reads the store", shown(file)));
        }
    }
    assert_none("controllers, scheduler and admission stand apart from the store", &broken);
}

#[test]
fn pure_crates_and_apply_have_no_clock_and_no_chance() {
    let pure = ["control-plane/resources/src", "control-plane/store/src/state.rs"];
    let forbidden =
        ["::now()", "SystemTime", "Instant", "rand::", "Uuid::new", "tokio::", "std::fs"];
    let mut broken = Vec::new();
    for file in files(".rs") {
        let name = shown(&file);
        if !pure.iter().any(|prefix| name.starts_with(prefix)) || name.contains("test") {
            continue;
        }
        let text = read(&file);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{name}: {word} in `{}`", line.trim()));
            }
        }
    }
    assert_none("time and chance are arguments of pure code", &broken);
}

#[test]
fn every_file_opens_with_a_header_and_ends_in_time() {
    let mut broken = Vec::new();
    for file in files(".rs") {
        let text = read(&file);
        if !text.starts_with("//!") {
            broken.push(format!("{} has no header", shown(&file)));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{} has {lines} lines", shown(&file)));
        }
    }
    assert_none("files teach in their header and stay below 800 lines", &broken);
}

#[test]
fn sample_apps_have_a_manifest_and_a_test() {
    let apps = repository().join("sample-apps");
    let tests = read(&repository().join("tests/it/apps.rs"));
    let mut broken = Vec::new();
    for entry in fs::read_dir(apps).expect("sample-apps is there") {
        let folder = entry.expect("an entry").path();
        let manifest = folder.join("Cargo.toml");
        if !manifest.exists() || !read(&manifest).contains("[package.metadata.wherry]") {
            continue;
        }
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if !folder.join("app.yaml").exists() {
            broken.push(format!("{name} has no app.yaml"));
        }
        if !tests.contains(&format!("sample-apps/{name}/app.yaml")) {
            broken.push(format!("{name} is applied by no test in tests/it/apps.rs"));
        }
    }
    assert_none("a sample app comes with its manifest and its test", &broken);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files(".md") {
        let text = read(&file);
        let folder = file.parent().expect("a file is in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            let remote = path.contains("://") || path.is_empty();
            if !remote && !folder.join(path).exists() {
                broken.push(format!("{} links to {path}", shown(&file)));
            }
        }
    }
    assert_none("links lead to files that exist", &broken);
}

#[test]
fn sources_that_documents_name_are_there() {
    let sources: Vec<String> = files(".rs").iter().map(|it| format!("/{}", shown(it))).collect();
    let mut broken = Vec::new();
    for document in files(".md").iter().map(|file| shown(file)) {
        // These two tell of the past as well.
        if ["CHANGELOG.md", "DECISIONS.md"].contains(&&*document) {
            continue;
        }
        let text = read(&repository().join(&document));
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
            let end = format!("/{name}");
            if !sources.iter().any(|source| source.ends_with(&end)) {
                broken.push(format!("{document} names {name}"));
            }
        }
    }
    assert_none("documents name sources that exist", &broken);
}

#[test]
fn every_error_of_the_command_is_explained_once() {
    let codes = |text: &str| -> Vec<String> {
        text.split("WH").skip(1).filter_map(|rest| rest.get(..4)).map(str::to_owned).collect()
    };
    let sources = files(".rs").into_iter().filter(|file| shown(file).starts_with("cli/src/"));
    let used: BTreeSet<String> = sources.flat_map(|file| codes(&read(&file))).collect();
    let used: Vec<String> =
        used.into_iter().filter(|code| code.bytes().all(|it| it.is_ascii_digit())).collect();
    let table = read(&repository().join("cli/ERRORS.md"));
    let rows = table.lines().filter(|line| line.starts_with("| WH"));
    let explained: Vec<String> = rows.flat_map(|line| codes(&line[..8])).collect();
    assert_eq!(used, explained, "codes in cli/src, and the rows of cli/ERRORS.md in their order");
}
