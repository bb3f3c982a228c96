//! The table of features in `control-plane/server/README.md`: every row names tests, and every test
//! that it names is there.

use wherry_tests::repository;

/// Rows that the table must have at least: were it not read, nothing would be checked.
const ROWS_MIN: usize = 80;

/// Whether code has a test of this name: a function right behind such an attribute.
fn has_test(code: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    code.match_indices(&function).any(|(at, _)| {
        let lead = code[..at].rsplit("\n\n").next().unwrap_or("");
        lead.contains("#[test]") || lead.contains("#[tokio::test")
    })
}

/// The texts between backticks in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_feature_names_tests_that_are_there() {
    let file = repository().join("control-plane/server/README.md");
    let text = std::fs::read_to_string(&file).expect("the table is there");
    let mut rows = 0;
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| feature"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let tests = quoted(cells.last().expect("a row has cells"));
        assert!(!tests.is_empty(), "no test: {line}");
        for test in tests {
            let (place, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}: {line}"));
            let found = ["control-plane/server/src", "control-plane", "."].iter().any(|root| {
                let code = std::fs::read_to_string(repository().join(root).join(place));
                code.is_ok_and(|code| has_test(&code, name))
            });
            assert!(found, "there is no test {test}: {line}");
        }
        rows += 1;
    }
    assert!(rows >= ROWS_MIN, "{rows} rows");
}
