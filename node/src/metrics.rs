//! What workers tell of traffic and agents show as metrics: the families, and their text.
//!
//! A worker tells [`Samples`], lines by family; the agent puts those of all its workers together in
//! the text form of Prometheus, where a family stands in one piece.

use std::{collections::BTreeMap, fmt::Write as _};

/// Lines by the name of their family, each without its name: `{labels} value`, with what follows
/// the name in histograms (`_bucket`, `_sum`, `_count`) before it.
pub type Samples = BTreeMap<String, Vec<String>>;

/// Requests from a workload to a port of a Service, by the class of their status.
pub const REQUESTS: &str = "wherry_requests_total";
/// Until the head of the answer.
pub const DURATION: &str = "wherry_request_duration_seconds";
/// Bodies of requests.
pub const SENT: &str = "wherry_request_bytes_total";
/// Bodies of answers.
pub const RECEIVED: &str = "wherry_response_bytes_total";
/// Connections of bytes.
pub const CONNECTIONS: &str = "wherry_connections_total";
/// Their bytes.
pub const CONNECTION_BYTES: &str = "wherry_connection_bytes_total";
/// Those that are open.
pub const OPEN: &str = "wherry_connections_open";
/// Requests by rule of an Ingress or a route.
pub const ROUTE_REQUESTS: &str = "wherry_ingress_requests_total";
/// Until the head of the answer, by rule of an Ingress or a route.
pub const ROUTE_DURATION: &str = "wherry_ingress_request_duration_seconds";
/// Steps of requests; those of starts are counted by the agent.
pub const PHASES: &str = "wherry_phase_seconds";
/// What was left out for want of room.
pub const LEFT_OUT: &str = "wherry_traffic_left_out";
/// Workers that did not tell.
pub const SILENT: &str = "wherry_workers_silent";

/// Every family: name, type, meaning.
const FAMILIES: [(&str, &str, &str); 12] = [
    (REQUESTS, "counter", "Requests from a workload to a port of a Service."),
    (DURATION, "histogram", "Time from a request to the head of its answer."),
    (SENT, "counter", "Bytes in bodies of requests."),
    (RECEIVED, "counter", "Bytes in bodies of answers."),
    (CONNECTIONS, "counter", "Connections of bytes from a workload to a port of a Service."),
    (CONNECTION_BYTES, "counter", "Bytes of these connections, as whoever connected sees them."),
    (OPEN, "gauge", "These connections, as far as they are open now."),
    (ROUTE_REQUESTS, "counter", "Requests by rule of an Ingress or a route."),
    (ROUTE_DURATION, "histogram", "Time from a request to the head of its answer."),
    (PHASES, "histogram", "Steps of requests to handlers, and of wakes."),
    (LEFT_OUT, "gauge", "Pairs of workloads and Services that are not shown: too many."),
    (SILENT, "gauge", "Workers of this node that did not tell their metrics."),
];

/// The text of all of them.
pub fn text(all: &[Samples]) -> String {
    let mut text = String::new();
    for (name, kind, help) in FAMILIES {
        let mut lines = all.iter().filter_map(|samples| samples.get(name)).flatten().peekable();
        if lines.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(text, "{name}{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_in_one_piece_whoever_tells_it() {
        let samples = |family: &str, line: &str| {
            Samples::from([(family.to_owned(), vec![line.to_owned()]), ("odd".to_owned(), vec![])])
        };
        let all = [
            samples(REQUESTS, "{a=\"1\"} 1"),
            samples(SILENT, " 0"),
            samples(REQUESTS, "{a=\"2\"} 2"),
        ];
        let expected = "\
# HELP wherry_requests_total Requests from a workload to a port of a Service.
# TYPE wherry_requests_total counter
wherry_requests_total{a=\"1\"} 1
wherry_requests_total{a=\"2\"} 2
# HELP wherry_workers_silent Workers of this node that did not tell their metrics.
# TYPE wherry_workers_silent gauge
wherry_workers_silent 0
";
        assert_eq!(text(&all), expected);
    }
}
