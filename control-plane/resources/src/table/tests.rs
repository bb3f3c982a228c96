//! What `kubectl get` prints: one script, in which each case is one object.

use jiff::Timestamp;

use super::*;
use crate::testscript::{self, argument};

#[test]
fn rows() {
    let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
    testscript::check("table.txt", |case| {
        let kind = testscript::kind(argument(case, "kind"));
        let object = testscript::json(argument(case, "object"));
        let cells = cells(kind, &object, now);
        assert_eq!(cells.len(), columns(kind).len(), "one cell for each column");
        let json = object.to_string();
        let of_json = cells_of_json(kind, json.as_bytes(), now).expect("JSON");
        assert_eq!(of_json, cells, "they are the same of less");
        let line = |(column, cell): (&Column, &Value)| {
            let wide = if column.priority > 0 { " (wide)" } else { "" };
            format!("{}{wide}: {}", column.name, scalar(Some(cell)))
        };
        columns(kind).iter().zip(&cells).map(line).collect::<Vec<_>>().join("\n")
    });
}

#[test]
fn every_kind_has_a_row_that_fits_its_columns_even_when_empty() {
    for kind in crate::KINDS {
        let cells = cells(kind, &serde_json::json!({}), Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), columns(kind).len(), "{}", kind.qualified());
    }
}

#[test]
fn ages() {
    let (minute, hour, day) = (60, 3600, 86_400);
    let cases = [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (2 * minute, "2m"),
        (3 * minute + 2, "3m2s"),
        (10 * minute + 5, "10m"),
        (3 * hour - 1, "179m"),
        (4 * hour, "4h"),
        (4 * hour + 5 * minute, "4h5m"),
        (47 * hour, "47h"),
        (2 * day, "2d"),
        (2 * day + 3 * hour, "2d3h"),
        (9 * day + 3 * hour, "9d"),
        (365 * 2 * day, "2y"),
        (365 * 3 * day + 4 * day, "3y4d"),
        (365 * 9 * day, "9y"),
    ];
    for (seconds, expected) in cases {
        let now = Timestamp::from_second(seconds).expect("a time");
        assert_eq!(duration(Timestamp::UNIX_EPOCH, now), expected);
    }
}
