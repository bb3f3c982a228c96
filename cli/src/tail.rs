//! `wherry tail`: requests as Pods answer them, read from the records that their workers keep. Of a
//! busy container a worker keeps some requests of each second, so a flood is told by a few of them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ListParams};
use serde::Deserialize;

use crate::api;
use crate::diagnostic::Diagnostic;

/// How often records are read.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is asked which Pods there are.
const PODS_EVERY: Duration = Duration::from_secs(5);
/// Pods that are read at the same time; of more the first by name. A record is read as a whole,
/// which of a container that was busy all day is some 100 kB.
const PODS_MAX: usize = 20;

#[derive(clap::Args)]
pub struct Flags {
    /// Whose requests: a Pod's name, deploy/NAME, sts/NAME, ds/NAME or rs/NAME [default: those of
    /// every Pod of the namespace]
    #[arg(value_name = "POD|KIND/NAME", value_parser = parse_target)]
    target: Option<Target>,
    /// Namespace of the Pods
    #[arg(long, short, default_value = "default", value_name = "NAME")]
    namespace: String,
    #[command(flatten)]
    cluster: api::Cluster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Pod(String),
    Deployment(String),
    StatefulSet(String),
    DaemonSet(String),
    ReplicaSet(String),
}

fn parse_target(text: &str) -> Result<Target, String> {
    let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
    let make = match kind {
        "pod" | "pods" | "po" => Target::Pod,
        "deploy" | "deployment" | "deployments" => Target::Deployment,
        "sts" | "statefulset" | "statefulsets" => Target::StatefulSet,
        "ds" | "daemonset" | "daemonsets" => Target::DaemonSet,
        "rs" | "replicaset" | "replicasets" => Target::ReplicaSet,
        _ => return Err(format!("{kind:?} has no Pods: say pod/NAME or deploy/NAME")),
    };
    match name {
        "" => Err(format!("{text:?} names nothing")),
        name => Ok(make(name.to_owned())),
    }
}

pub fn main(flags: Flags) -> Result<(), Diagnostic> {
    crate::roles::small_runtime()?.block_on(async {
        let shutdown = crate::roles::shutdown_on_signal()?;
        let connection = flags.cluster.connect().await?;
        let mut tail = Tail::new(connection.client, flags.namespace, flags.target);
        shutdown.run_until_cancelled(tail.run()).await.unwrap_or(Ok(()))
    })
}

/// What a worker keeps of a container, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Told {
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    container: String,
    record: Record,
}

#[derive(Debug, Deserialize)]
struct Record {
    seen: Vec<Seen>,
}

/// One request.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Seen {
    number: u64,
    at_ms: i64,
    from: String,
    host: String,
    method: String,
    path: String,
    status: u16,
    why: Option<String>,
    placed_us: Option<u64>,
    instantiated_us: Option<u64>,
    answered_us: Option<u64>,
    ended_us: u64,
    rested_ms: Option<u64>,
}

struct Tail {
    client: kube::Client,
    namespace: String,
    target: Option<Target>,
    /// Names of Pods by their addresses, of the whole namespace.
    names: HashMap<String, String>,
    pods: Vec<String>,
    looked: Option<Instant>,
    /// The last request of each container that was shown.
    shown: BTreeMap<(String, String), u64>,
}

impl Tail {
    fn new(client: kube::Client, namespace: String, target: Option<Target>) -> Tail {
        Tail {
            client,
            namespace,
            target,
            names: HashMap::new(),
            pods: Vec::new(),
            looked: None,
            shown: BTreeMap::new(),
        }
    }

    async fn run(&mut self) -> Result<(), Diagnostic> {
        loop {
            if self.looked.is_none_or(|at| at.elapsed() >= PODS_EVERY) {
                let first = self.looked.is_none();
                match self.look().await {
                    Ok(()) => {}
                    Err(diagnostic) if first => return Err(diagnostic),
                    // A server may go away for a while; what is known serves meanwhile.
                    Err(_) => self.looked = Some(Instant::now()),
                }
                if first && self.pods.is_empty() {
                    eprintln!("no Pod runs there yet; waiting for one");
                }
            }
            let asked = self.pods.iter().map(|pod| read(&self.client, &self.namespace, pod));
            let told = futures::future::join_all(asked).await;
            let mut lines = Vec::new();
            for (pod, told) in self.pods.clone().into_iter().zip(told) {
                for container in told?.containers {
                    lines.extend(self.news(&pod, container));
                }
            }
            lines.sort();
            let mut out = std::io::stdout().lock();
            for (_, line) in lines {
                if writeln!(out, "{line}").is_err() {
                    // Whoever read it has seen enough.
                    return Ok(());
                }
            }
            drop(out);
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Finds the Pods.
    async fn look(&mut self) -> Result<(), Diagnostic> {
        let selector = self.selector().await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let all =
            pods.list(&ListParams::default()).await.map_err(api::failed("reading the Pods"))?;
        self.names = all.items.iter().filter_map(name_of_address).collect();
        let name = |pod: &Pod| pod.metadata.name.clone();
        let mut chosen: Vec<String> = match (&self.target, &selector) {
            (Some(Target::Pod(wanted)), _) => {
                let found = all.items.iter().filter_map(name).find(|it| it == wanted);
                let missing = || {
                    let list = format!("kubectl get pods -n {}", self.namespace);
                    Diagnostic::new("WH0008", format!("there is no Pod {wanted:?}"))
                        .help(format!("see which there are:   {list}"))
                };
                vec![found.ok_or_else(missing)?]
            }
            (_, Some(selector)) => {
                let params = ListParams::default().labels(selector);
                let some = pods.list(&params).await.map_err(api::failed("reading the Pods"))?;
                some.items.iter().filter_map(name).collect()
            }
            (_, None) => all.items.iter().filter_map(name).collect(),
        };
        chosen.sort();
        chosen.truncate(PODS_MAX);
        self.shown.retain(|(pod, _), _| chosen.contains(pod));
        self.pods = chosen;
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// Which labels the Pods of a workload have.
    async fn selector(&self) -> Result<Option<String>, Diagnostic> {
        let (client, namespace) = (&self.client, &self.namespace);
        let found = match &self.target {
            None | Some(Target::Pod(_)) => return Ok(None),
            Some(Target::Deployment(name)) => {
                get::<Deployment>(client, namespace, name).await?.spec.selector
            }
            Some(Target::StatefulSet(name)) => {
                get::<StatefulSet>(client, namespace, name).await?.spec.selector
            }
            Some(Target::DaemonSet(name)) => {
                get::<DaemonSet>(client, namespace, name).await?.spec.selector
            }
            Some(Target::ReplicaSet(name)) => {
                get::<ReplicaSet>(client, namespace, name).await?.spec.selector
            }
        };
        Ok(Some(text_of(&found)))
    }

    /// What of a container was not shown yet. Of one that is seen for the first time nothing: it
    /// has happened before.
    fn news(&mut self, pod: &str, container: Container) -> Vec<(i64, String)> {
        let key = (pod.to_owned(), container.container);
        let last = container.record.seen.last().map_or(0, |seen| seen.number);
        let shown = self.shown.insert(key, last);
        // A worker that was restarted counts from the beginning again.
        let Some(shown) = shown.map(|shown| if shown > last { 0 } else { shown }) else {
            return Vec::new();
        };
        let new = container.record.seen.into_iter().filter(|seen| seen.number > shown);
        new.map(|seen| (seen.at_ms, line(&seen, pod, &self.names))).collect()
    }
}

async fn get<K>(client: &kube::Client, namespace: &str, name: &str) -> Result<K, Diagnostic>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.get(name).await.map_err(api::failed("reading the workload"))
}

/// The record of a Pod. Nothing while it cannot be read: it may start, or its node may be away.
/// Who may not read it is told so.
async fn read(client: &kube::Client, namespace: &str, pod: &str) -> Result<Told, Diagnostic> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("namespace", namespace)
        .append_pair("name", pod)
        .finish();
    let request = http::Request::get(format!("/ui/record?{query}")).body(Vec::new());
    let request = request.expect("an encoded query is part of a path");
    match client.request(request).await {
        Ok(told) => Ok(told),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Err(api::failed("reading the requests")(kube::Error::Api(status)))
        }
        Err(_) => Ok(Told { containers: Vec::new() }),
    }
}

fn name_of_address(pod: &Pod) -> Option<(String, String)> {
    Some((pod.status.as_ref()?.pod_ip.clone()?, pod.metadata.name.clone()?))
}

/// A selector as a query has it.
fn text_of(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let wanted = selector.match_expressions.iter().flatten().map(|it| {
        let values = it.values.clone().unwrap_or_default().join(",");
        match it.operator.as_str() {
            "In" => format!("{} in ({values})", it.key),
            "NotIn" => format!("{} notin ({values})", it.key),
            "DoesNotExist" => format!("!{}", it.key),
            _ => it.key.clone(),
        }
    });
    equal.chain(wanted).collect::<Vec<_>>().join(",")
}

/// One request as a line: when, from whom, to whom, what, and how it went.
fn line(seen: &Seen, pod: &str, names: &HashMap<String, String>) -> String {
    let at = Timestamp::from_millisecond(seen.at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    let at = at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S%.3f");
    let from = names.get(&seen.from).unwrap_or(&seen.from);
    let status = match seen.status {
        0 => "---".to_owned(),
        status => status.to_string(),
    };
    let mut text = format!(
        "{at} {from} > {pod} {} {}{} {status} {}",
        seen.method,
        seen.host,
        seen.path,
        time(seen.ended_us)
    );
    let steps = [
        ("wait", seen.placed_us, Some(0)),
        ("instantiate", seen.instantiated_us, seen.placed_us),
        ("answer", seen.answered_us, seen.instantiated_us),
        ("body", seen.answered_us.map(|_| seen.ended_us), seen.answered_us),
    ];
    for (name, until, since) in steps {
        if let (Some(until), Some(since)) = (until, since) {
            let _ = write!(text, " {name}={}", time(until.saturating_sub(since)));
        }
    }
    if let Some(rested) = seen.rested_ms {
        let _ = write!(text, " woke-after={}s", rested / 1000);
    }
    if let Some(why) = &seen.why {
        let _ = write!(text, " ({why})");
    }
    // What guests and clients have said moves no cursor.
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Microseconds as people read them.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.2}s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            number: 7,
            at_ms: 1_700_000_000_123,
            from: "10.64.0.7".to_owned(),
            host: "hello".to_owned(),
            method: "GET".to_owned(),
            path: "/a\u{1b}[2J".to_owned(),
            status: 200,
            placed_us: Some(5),
            instantiated_us: Some(305),
            answered_us: Some(1_500),
            ended_us: 2_000_000,
            ..Seen::default()
        }
    }

    #[test]
    fn a_request_is_a_line_without_tricks() {
        let names = HashMap::from([("10.64.0.7".to_owned(), "client".to_owned())]);
        assert_eq!(
            line(&seen(), "hello-1", &names),
            "22:13:20.123 client > hello-1 GET hello/a?[2J 200 2.00s wait=5µs instantiate=300µs \
             answer=1.2ms body=2.00s"
        );
        let why = Some("the client did not wait".to_owned());
        let left = Seen { status: 0, answered_us: None, rested_ms: Some(61_000), why, ..seen() };
        assert_eq!(
            line(&left, "hello-1", &HashMap::new()),
            "22:13:20.123 10.64.0.7 > hello-1 GET hello/a?[2J --- 2.00s wait=5µs \
             instantiate=300µs woke-after=61s (the client did not wait)"
        );
    }

    #[test]
    fn targets_are_pods_or_what_makes_them() {
        assert_eq!(parse_target("web-1"), Ok(Target::Pod("web-1".to_owned())));
        assert_eq!(parse_target("deploy/web"), Ok(Target::Deployment("web".to_owned())));
        assert!(parse_target("service/web").is_err());
        assert!(parse_target("deploy/").is_err());
    }

    #[test]
    fn selectors_are_queries() {
        let selector = serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        });
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        assert_eq!(text_of(&selector), "app=web,tier in (a,b),!old");
    }
}
