//! `/ui/traffic`: who asks what of which Service, over all nodes, as the workers of those who ask
//! have counted it since they began.
//!
//! Workers tell their counters as lines of Prometheus' text form (`node/src/worker/traffic.rs`);
//! here they are put together by source, Service and port. A way is for whoever may list the Pods
//! where it begins or where it leads; the other end is named only to whoever may list those too.

use std::collections::{BTreeMap, HashMap};

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{ApiServer, errors::ApiError};
use super::lately::listing;
use super::nodes::{self, Asked, Once};
use super::question::Question;

/// Ways in one answer, the most used first.
const WAYS_MAX: usize = 500;
/// Stands for an end that the person may not see.
const ELSEWHERE: &str = "elsewhere";
/// The bound of the last bucket.
const WITHOUT_BOUND: u64 = u64::MAX;

/// Lines by family, as a worker tells them (`node/src/metrics.rs`).
type Samples = BTreeMap<String, Vec<String>>;

/// From a workload to a port of a Service; both as `namespace/name`, or a word as `outside`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    source: String,
    service: String,
    port: String,
}

/// What went over a way.
#[derive(Debug, Default, PartialEq, Eq)]
struct Went {
    requests: u64,
    /// Without an answer, or with a status of 500 and more.
    failed: u64,
    /// Connections that were not opened.
    refused: u64,
    sent: u64,
    received: u64,
    /// Answers that began until each bound, in microseconds.
    until: BTreeMap<u64, u64>,
}

/// What the nodes have said.
#[derive(Debug, Default)]
pub struct Heard {
    at: Timestamp,
    asked: Asked,
    ways: BTreeMap<Way, Went>,
}

/// What was heard last.
pub type Traffic = Once<Heard>;

/// Asks the nodes.
async fn ask(api: &ApiServer) -> Heard {
    let (told, asked) = nodes::ask::<Vec<Samples>>(api, "/traffic").await;
    Heard { at: Timestamp::now(), asked, ways: put_together(told.iter().flatten()) }
}

fn put_together<'a>(all: impl Iterator<Item = &'a Samples>) -> BTreeMap<Way, Went> {
    let mut ways: BTreeMap<Way, Went> = BTreeMap::new();
    for (family, line) in all
        .flatten()
        .flat_map(|(family, lines)| lines.iter().map(move |line| (family.as_str(), line.as_str())))
    {
        let Some(sample) = Sample::parse(line) else { continue };
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        // Without a Service it went to a Pod by its own address.
        if label("service").is_empty() {
            continue;
        }
        let way = Way {
            source: label("source").to_owned(),
            service: label("service").to_owned(),
            port: label("port").to_owned(),
        };
        let went = ways.entry(way).or_default();
        let value = sample.value;
        match (family, sample.suffix) {
            ("wherry_requests_total", "") => {
                went.requests += value;
                went.failed += if ["none", "5xx"].contains(&label("code")) { value } else { 0 };
            }
            ("wherry_request_duration_seconds", "_bucket") => {
                let bound = label("le").parse().map_or(WITHOUT_BOUND, micros);
                *went.until.entry(bound).or_default() += value;
            }
            ("wherry_request_bytes_total", "") => went.sent += value,
            ("wherry_response_bytes_total", "") => went.received += value,
            ("wherry_connection_bytes_total", "") => match label("direction") {
                "sent" => went.sent += value,
                _ => went.received += value,
            },
            ("wherry_connections_total", "") if label("result") == "refused" => {
                went.refused += value;
            }
            _ => {}
        }
    }
    ways
}

/// A bound in seconds; `+Inf` is none.
fn micros(seconds: f64) -> u64 {
    if seconds.is_finite() { (seconds * 1e6).round() as u64 } else { WITHOUT_BOUND }
}

/// `_bucket{source="shop/cart",le="0.1"} 5`: a line without the name of its family.
#[derive(Debug, PartialEq, Eq)]
struct Sample<'a> {
    suffix: &'a str,
    labels: HashMap<&'a str, String>,
    value: u64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Sample<'a>> {
        let (suffix, rest) = line.split_once('{')?;
        let (mut rest, value) = rest.rsplit_once("} ")?;
        let mut labels = HashMap::new();
        while let Some((name, after)) = rest.split_once("=\"") {
            let mut value = String::new();
            let mut letters = after.char_indices();
            let end = loop {
                match letters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match letters.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.insert(name.trim_start_matches(','), value);
            rest = &after[end + 1..];
        }
        Some(Sample { suffix, labels, value: value.parse().ok()? })
    }
}

/// Answers `GET /ui/traffic?namespaces=a,b`; without namespaces of all that the person may see.
pub async fn traffic(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Json<Value>, ApiError> {
    let wanted = question.list("namespaces");
    let heard = api.traffic().get(ask(&api)).await;
    let mut rights: HashMap<String, bool> = HashMap::new();
    let may = |namespace: &str| {
        let known = rights.entry(namespace.to_owned());
        *known.or_insert_with(|| api.may(&question.user, &listing(namespace)))
    };
    Ok(Json(tell(&heard, &wanted, may)))
}

/// The ways that somebody may see, in the namespaces that they ask for.
fn tell(heard: &Heard, wanted: &[&str], mut may: impl FnMut(&str) -> bool) -> Value {
    let mut ways = Vec::new();
    for (way, went) in &heard.ways {
        let ends = [&way.source, &way.service].map(|end| end.split_once('/').map(|it| it.0));
        let is_wanted = |end: &Option<&str>| end.is_some_and(|end| wanted.contains(&end));
        if !wanted.is_empty() && !ends.iter().any(is_wanted) {
            continue;
        }
        // A word (`outside`) is no secret, and no reason to be told of a way either.
        let seen = ends.map(|end| end.map(&mut may));
        if !seen.contains(&Some(true)) {
            continue;
        }
        let name = |seen: Option<bool>, name: &str| match seen {
            Some(false) => ELSEWHERE.to_owned(),
            _ => name.to_owned(),
        };
        let bounds = went.until.keys().filter(|bound| **bound != WITHOUT_BOUND);
        let mut before = 0;
        let answered = went.until.values().map(|until| {
            let more = until.saturating_sub(before);
            before = *until;
            more
        });
        let told = json!({
            "from": name(seen[0], &way.source), "to": name(seen[1], &way.service),
            "port": way.port, "requests": went.requests, "failed": went.failed,
            "refused": went.refused, "sent": went.sent, "received": went.received,
            "boundsUs": bounds.collect::<Vec<_>>(), "answered": answered.collect::<Vec<_>>(),
        });
        ways.push((went.requests + went.refused, told));
    }
    ways.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    let is_whole = ways.len() <= WAYS_MAX;
    let ways: Vec<Value> = ways.into_iter().take(WAYS_MAX).map(|(_, told)| told).collect();
    let mut told = json!({ "atMs": heard.at.as_millisecond(), "whole": is_whole, "ways": ways });
    heard.asked.tell(&mut told);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lines: &[(&str, &str)]) -> Samples {
        let mut samples = Samples::new();
        for (family, line) in lines {
            samples.entry((*family).to_owned()).or_default().push((*line).to_owned());
        }
        samples
    }

    const WAY: &str = r#"source="shop/cart",service="bank/pay",port="80""#;

    #[test]
    fn a_line_is_read_with_its_labels() {
        let sample = Sample::parse(r#"_bucket{a="x\"y\\z\n,",b="",le="0.1"} 5"#).expect("a line");
        assert_eq!((sample.suffix, sample.value), ("_bucket", 5));
        let label = |name: &str| sample.labels.get(name).map(String::as_str);
        assert_eq!(
            [label("a"), label("b"), label("le")],
            [Some("x\"y\\z\n,"), Some(""), Some("0.1")]
        );
        assert_eq!(Sample::parse("no line"), None);
        assert_eq!(Sample::parse(r#"{a="open} 5"#), None);
    }

    #[test]
    fn counters_of_all_nodes_are_put_together_by_way() {
        let one = samples(&[
            ("wherry_requests_total", &format!("{{{WAY},code=\"2xx\"}} 7")),
            ("wherry_requests_total", &format!("{{{WAY},code=\"none\"}} 1")),
            ("wherry_request_duration_seconds", &format!("_bucket{{{WAY},le=\"0.005\"}} 6")),
            ("wherry_request_duration_seconds", &format!("_bucket{{{WAY},le=\"+Inf\"}} 8")),
            ("wherry_request_duration_seconds", &format!("_sum{{{WAY}}} 0.5")),
            ("wherry_request_bytes_total", &format!("{{{WAY}}} 100")),
            ("wherry_connections_total", &format!("{{{WAY},result=\"refused\"}} 2")),
            ("wherry_requests_total", r#"{source="shop/cart",service="",port="0",code="2xx"} 9"#),
        ]);
        let other = samples(&[
            ("wherry_requests_total", &format!("{{{WAY},code=\"5xx\"}} 2")),
            ("wherry_connection_bytes_total", &format!("{{{WAY},direction=\"received\"}} 50")),
        ]);
        let ways = put_together([&one, &other].into_iter());
        let went = Went {
            requests: 10,
            failed: 3,
            refused: 2,
            sent: 100,
            received: 50,
            until: BTreeMap::from([(5000, 6), (WITHOUT_BOUND, 8)]),
        };
        assert_eq!(ways.into_values().collect::<Vec<_>>(), [went]);
    }

    #[test]
    fn an_end_that_somebody_may_not_see_is_elsewhere() {
        let one = samples(&[
            ("wherry_requests_total", &format!("{{{WAY},code=\"2xx\"}} 7")),
            ("wherry_request_duration_seconds", &format!("_bucket{{{WAY},le=\"0.005\"}} 6")),
            ("wherry_request_duration_seconds", &format!("_bucket{{{WAY},le=\"+Inf\"}} 8")),
            (
                "wherry_requests_total",
                r#"{source="outside",service="bank/web",port="80",code="2xx"} 9"#,
            ),
        ]);
        let heard = Heard { ways: put_together([&one].into_iter()), ..Heard::default() };
        let told = |wanted: &[&str], may: fn(&str) -> bool| {
            let told = tell(&heard, wanted, may);
            let ways = told["ways"].as_array().expect("a list").iter();
            ways.map(|way| format!("{} {}", way["from"], way["to"]).replace('"', ""))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&[], |_| true), ["outside bank/web", "shop/cart bank/pay"]);
        assert_eq!(told(&[], |namespace| namespace == "shop"), ["shop/cart elsewhere"]);
        assert_eq!(
            told(&[], |namespace| namespace == "bank"),
            ["outside bank/web", "elsewhere bank/pay"]
        );
        assert_eq!(told(&["shop"], |_| true), ["shop/cart bank/pay"]);
        assert!(told(&[], |_| false).is_empty());
        let way = &tell(&heard, &["shop"], |_| true)["ways"][0];
        assert_eq!((&way["boundsUs"], &way["answered"]), (&json!([5000]), &json!([6, 2])));
    }
}
