//! `/ui/lately`: how many requests the workloads have had in the last hour, minute by minute, over
//! all nodes that are connected to this member.
//!
//! ```text
//!  worker: counts ─▶ agent: those of its workers ─▶ here: of all nodes, kept for KEPT ─▶ browsers
//! ```
//!
//! Numbers name no paths and no senders, so they are for whoever may list the Pods of a namespace.
//! One answer of the nodes serves everybody who asks meanwhile: however many dashboards are open,
//! a node is asked once.

use std::collections::{BTreeMap, HashMap};

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{ApiServer, errors::ApiError, request::Attributes};
use super::nodes::{self, Asked, Once};
use super::question::Question;

/// What is told: the last hour.
const MINUTES: i64 = 60;

/// Requests, those that failed, and wakes from rest.
type Counts = [u64; 3];

/// Those of one workload, as workers tell them (`node/src/worker/record.rs`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    /// By the minute since 1970.
    minutes: BTreeMap<i64, Counts>,
    /// Of all minutes: how long the head of the answer took, in buckets.
    answered: Vec<u64>,
    bounds_us: Vec<u64>,
}

impl Counted {
    fn add(&mut self, other: &Counted) {
        for (minute, more) in &other.minutes {
            let counts = self.minutes.entry(*minute).or_default();
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        }
        if self.answered.len() < other.answered.len() {
            self.answered.resize(other.answered.len(), 0);
            self.bounds_us.clone_from(&other.bounds_us);
        }
        self.answered.iter_mut().zip(&other.answered).for_each(|(count, more)| *count += more);
    }
}

/// What the nodes have said.
#[derive(Debug, Default)]
pub struct Heard {
    /// The newest minute of it.
    minute: i64,
    asked: Asked,
    /// By namespace and name.
    workloads: BTreeMap<(String, String), Counted>,
}

/// What was heard last.
pub type Lately = Once<Heard>;

/// Asks the nodes.
async fn ask(api: &ApiServer) -> Heard {
    let minute = Timestamp::now().as_second().div_euclid(60);
    let target = format!("/lately?since={}", minute - MINUTES + 1);
    let (told, asked) = nodes::ask::<Vec<BTreeMap<String, Counted>>>(api, &target).await;
    let mut heard = Heard { minute, asked, ..Heard::default() };
    for (workload, counted) in told.iter().flatten().flatten() {
        let Some((namespace, name)) = workload.split_once('/') else { continue };
        let key = (namespace.to_owned(), name.to_owned());
        heard.workloads.entry(key).or_default().add(counted);
    }
    heard
}

/// Answers `GET /ui/lately?namespaces=a,b&each=1`; without namespaces of all that the person may
/// see, with `each` also of each workload.
pub async fn lately(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Json<Value>, ApiError> {
    let wanted = question.list("namespaces");
    let heard = api.lately().get(ask(&api)).await;
    let mut rights: HashMap<&str, bool> = HashMap::new();
    let may = |namespace: &str| api.may(&question.user, &listing(namespace));
    let seen = heard.workloads.iter().filter(|((namespace, _), _)| {
        (wanted.is_empty() || wanted.contains(&namespace.as_str()))
            && *rights.entry(namespace.as_str()).or_insert_with(|| may(namespace))
    });
    Ok(Json(tell(&heard, seen, question.query.flag("each"))))
}

/// The right that numbers of a namespace are for.
pub(super) fn listing(namespace: &str) -> Attributes {
    Attributes {
        verb: "list".to_owned(),
        is_resource: true,
        version: "v1".to_owned(),
        namespace: namespace.to_owned(),
        resource: "pods".to_owned(),
        path: "/ui/lately".to_owned(),
        ..Attributes::default()
    }
}

/// The sum of some workloads, and each of them if that is wanted.
fn tell<'a>(
    heard: &Heard,
    seen: impl Iterator<Item = (&'a (String, String), &'a Counted)>,
    each: bool,
) -> Value {
    let (mut sum, mut workloads) = (Counted::default(), Vec::new());
    let first = heard.minute - MINUTES + 1;
    for ((namespace, name), counted) in seen {
        sum.add(counted);
        if each {
            let of = |minute| counted.minutes.get(&minute).map_or(0, |[requests, ..]| *requests);
            let requests: Vec<u64> = (first..=heard.minute).map(of).collect();
            workloads.push(json!({
                "namespace": namespace, "name": name, "requests": requests,
            }));
        }
    }
    let minutes = sum.minutes.iter().filter(|(minute, _)| **minute >= first);
    let minutes: Vec<Value> = minutes.map(|(at, [a, b, c])| json!([at, a, b, c])).collect();
    let mut told = json!({
        "minute": heard.minute, "boundsUs": sum.bounds_us, "answered": sum.answered,
        "minutes": minutes, "workloads": workloads,
    });
    heard.asked.tell(&mut told);
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{
        User,
        tests::script::{Server, admin, text},
    };

    fn counted(told: Value) -> Counted {
        serde_json::from_value(told).expect("as workers tell it")
    }

    #[test]
    fn workloads_of_several_nodes_are_one_and_all_are_summed() {
        let mut cart = counted(json!({
            "minutes": {"98": [9, 9, 9], "99": [2, 1, 0]}, "answered": [1, 1], "boundsUs": [16],
        }));
        cart.add(&counted(json!({
            "minutes": {"99": [3, 0, 1], "100": [1, 0, 0]}, "answered": [0, 4], "boundsUs": [16],
        })));
        let db = counted(json!({
            "minutes": {"100": [5, 5, 0]}, "answered": [5, 0], "boundsUs": [16],
        }));
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let workloads = BTreeMap::from([(key("cart"), cart), (key("db"), db)]);
        let asked = Asked { nodes: 3, asked: 3, silent: 1 };
        let heard = Heard { minute: 158, asked, workloads };
        let told = tell(&heard, heard.workloads.iter(), true);
        // The minute 98 is longer ago than an hour.
        assert_eq!(told["minutes"], json!([[99, 5, 1, 1], [100, 6, 5, 0]]));
        assert_eq!((&told["answered"], &told["boundsUs"]), (&json!([6, 5]), &json!([16])));
        assert_eq!((&told["nodes"], &told["silent"]), (&json!(3), &json!(1)));
        let names = told["workloads"].as_array().expect("a list").iter().map(|it| &it["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["cart", "db"]);
        assert_eq!(told["workloads"][0]["requests"][0], 5);
        assert_eq!(told["workloads"][0]["requests"].as_array().map(Vec::len), Some(60));
    }

    #[tokio::test]
    async fn numbers_are_for_who_may_list_the_pods() {
        let server = Server::start().await;
        let key = ("shop".to_owned(), "cart".to_owned());
        let cart = counted(json!({
            "minutes": {"100": [7, 0, 0]}, "answered": [7], "boundsUs": [16],
        }));
        let workloads = BTreeMap::from([(key, cart)]);
        let heard = Heard { minute: 100, asked: Asked::default(), workloads };
        server.api.lately().get(async { heard }).await;
        let ask = async |user: User, query: &str| {
            let path = format!("/ui/lately{query}");
            let response = server.response(&user, "GET", &path, "", "").await;
            let told: Value = serde_json::from_str(&text(response).await).expect("JSON");
            told["minutes"].clone()
        };
        assert_eq!(ask(admin(), "").await, json!([[100, 7, 0, 0]]));
        assert_eq!(ask(admin(), "?namespaces=shop,other").await, json!([[100, 7, 0, 0]]));
        assert_eq!(ask(admin(), "?namespaces=other").await, json!([]));
        assert_eq!(ask(User::new("anna", &[]), "").await, json!([]));
    }
}
