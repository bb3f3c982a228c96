//! Tests as text: a script holds cases and what comes out of them, and is compared as a whole.
//!
//! Cases are separated by empty lines. A line is a word and the rest (`patch {"a":1}`); lines that
//! start with `#` are comments; lines that start with `=` are the outcome. With `UPDATE_EXPECT=1`
//! the outcomes are rewritten and the reviewer reads the difference.

use std::path::Path;

/// The input lines of one case: (word, rest of the line).
pub(crate) type Case<'a> = [(&'a str, &'a str)];

/// Runs every case of `src/testscripts/{name}` and compares the outcomes with those in the file.
pub(crate) fn check(name: &str, mut run: impl FnMut(&Case<'_>) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts").join(name);
    let script = std::fs::read_to_string(&path).expect("the script is readable");
    let mut rendered = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let kept: Vec<&str> = block.lines().filter(|line| !line.starts_with('=')).collect();
        let input: Vec<(&str, &str)> = kept
            .iter()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .collect();
        let mut lines: Vec<String> = kept.iter().map(|line| (*line).to_string()).collect();
        if !input.is_empty() {
            lines.extend(run(&input).lines().map(|line| format!("= {line}")));
        }
        rendered.push(lines.join("\n"));
    }
    expect_test::expect_file![path].assert_eq(&(rendered.join("\n\n") + "\n"));
}

/// The rest of the first line with that word, empty when there is none.
pub(crate) fn argument<'a>(case: &Case<'a>, word: &str) -> &'a str {
    case.iter().find(|(other, _)| *other == word).map_or("", |(_, rest)| rest)
}

/// The row of the table of kinds for `pods` or `deployments.apps`.
pub(crate) fn kind(qualified: &str) -> &'static crate::Kind {
    let row = crate::KINDS.iter().find(|kind| kind.qualified() == qualified);
    row.unwrap_or_else(|| panic!("{qualified} is not in the table of kinds"))
}

/// Reads JSON.
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
