//! Requests as people are told of them: by the dashboard as part of a container's record, by
//! `wherry tail` one after the other, as they end.
//!
//! A stream of them ([`super::Open::Requests`]) is lines of JSON, each a [`Line`]. The first says
//! where the stream begins. Each says where it goes on, so that whoever lost the connection misses
//! nothing: what was not kept meanwhile is at least counted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One request that has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// Counts all requests that have ended, from 1 on; not all of them are kept.
    pub number: u64,
    /// Who sent it: the address of a Pod; `peer`; `outside`.
    pub from: String,
    /// For whom it was: the name that it was sent to.
    pub host: String,
    /// When it came, in milliseconds since 1970.
    pub at_ms: i64,
    /// `GET`
    pub method: String,
    /// Without its query.
    pub path: String,
    /// Zero: no answer.
    pub status: u16,
    /// Why there was none.
    pub why: Option<String>,
    /// When each step had been taken, in microseconds since it came.
    pub placed_us: Option<u64>,
    /// Its instance was there.
    pub instantiated_us: Option<u64>,
    /// The head of the answer was there.
    pub answered_us: Option<u64>,
    /// All of it was over.
    pub ended_us: u64,
    /// What its instance used.
    pub cpu_us: u64,
    /// The same of memory.
    pub memory_bytes: Option<u64>,
    /// For how long the container had been at rest.
    pub rested_ms: Option<u64>,
}

/// One line of a stream of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Where the stream goes on behind this line.
    pub place: Place,
    /// Requests before that of this line which are not told: too many came at once, or whoever
    /// reads was too slow.
    pub missed: u64,
    /// The next request. None in the first line, and where only `missed` is told.
    pub seen: Option<Seen>,
}

/// A place in a container's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The record, by when it began, in milliseconds since 1970: another worker has another.
    pub record: i64,
    /// The request before the place; 0 before all.
    pub number: u64,
}

/// Where a stream of requests begins. As text `now`, `first` or a place, `1700000000000-7`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Since {
    /// With the next that ends.
    #[default]
    Now,
    /// With the first that is kept.
    First,
    /// Behind a place. In another record than that with the first that is kept.
    Place(Place),
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Since::Now => f.write_str("now"),
            Since::First => f.write_str("first"),
            Since::Place(Place { record, number }) => write!(f, "{record}-{number}"),
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Since, String> {
        match text {
            "now" => return Ok(Since::Now),
            "first" => return Ok(Since::First),
            _ => {}
        }
        let place = text.rsplit_once('-').and_then(|(record, number)| {
            Some(Place { record: record.parse().ok()?, number: number.parse().ok()? })
        });
        let place = place.ok_or_else(|| format!("{text:?} is no place in a stream of requests"))?;
        Ok(Since::Place(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_text_and_back() {
        for text in ["now", "first", "1700000000000-7", "-5-0"] {
            assert_eq!(text.parse::<Since>().map(|since| since.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "7", "a-b", "1-"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }
}
