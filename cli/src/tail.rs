//! `wherry tail`: requests as Pods answer them. Each container is followed by a stream of its own, in
//! which its worker tells each request as it ends; while there are none, nothing is asked. A stream
//! that breaks goes on where it was. Of a busy container a worker keeps some requests of each
//! second, so a flood is told by a few of them and the number of the others.
//!
//! ```text
//!   watch of the Pods ──▶ Tail ──▶ a Follower for each container that runs
//!                          ▲             │ GET /ui/requests, line by line
//!                          └──── News ◀──┘
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use wherry_node::protocol::{Line, Seen, Since};
use wherry_resources::selectors::LabelSelector;

use crate::api;
use crate::diagnostic::Diagnostic;

/// Containers that are followed at the same time: each is a connection, and a worker takes 128.
const FOLLOWED_MAX: usize = 50;
/// News that wait to be printed. Beyond, followers wait, and the workers count what they miss.
const NEWS_MAX: usize = 256;
/// First and longest wait before a broken stream goes on.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// What a Pod that has gone has answered last may still be on its way.
const LINGER: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Flags {
    /// Whose requests: a Pod's name, deploy/NAME, sts/NAME, ds/NAME or rs/NAME [default: those of
    /// every Pod of the namespace]
    #[arg(value_name = "POD|KIND/NAME", value_parser = parse_target)]
    target: Option<Target>,
    /// Namespace of the Pods [default: that of the kubeconfig's context]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
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
        let namespace = flags.namespace.unwrap_or(connection.namespace);
        let run = Tail::run(connection.client, namespace, flags.target);
        shutdown.run_until_cancelled(run).await.unwrap_or(Ok(()))
    })
}

/// What followers have to say.
enum News {
    /// A container has answered, or some of its answers are missing.
    Line { pod: String, line: Line },
    /// A container cannot be followed for now.
    Trouble { pod: String, why: String },
    /// The requests of these Pods are not for whoever asks.
    Forbidden(kube::Error),
}

/// A container that is followed.
struct Follower {
    client: kube::Client,
    namespace: String,
    pod: String,
    container: String,
    /// Its Pod has gone.
    gone: CancellationToken,
    news: mpsc::Sender<News>,
}

impl Follower {
    /// Follows until the Pod goes, from one stream to the next.
    async fn run(self, mut since: Since) {
        let (mut wait, mut said) = (RETRY.0, false);
        loop {
            let trouble = match self.follow(&mut since).await {
                Ok(()) => {
                    (wait, said) = (RETRY.0, false);
                    None
                }
                Err(kube::Error::Api(status)) => match status.code {
                    403 => Some(News::Forbidden(kube::Error::Api(status))),
                    // It is just being started again, or the Pod has gone.
                    404 => None,
                    _ => Some(self.trouble(status.message.clone())),
                },
                Err(error) => Some(self.trouble(error.to_string())),
            };
            if let Some(trouble) = trouble.filter(|_| !said) {
                said = true;
                if self.news.send(trouble).await.is_err() {
                    return;
                }
            }
            if self.gone.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    fn trouble(&self, why: String) -> News {
        News::Trouble { pod: self.pod.clone(), why }
    }

    /// One stream, to its end. `since` is where the next one goes on.
    async fn follow(&self, since: &mut Since) -> Result<(), kube::Error> {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("namespace", &self.namespace)
            .append_pair("name", &self.pod)
            .append_pair("container", &self.container)
            .append_pair("since", &since.to_string())
            .finish();
        let request = http::Request::get(format!("/ui/requests?{query}")).body(Vec::new());
        let request = request.expect("an encoded query is part of a path");
        let stream = self.client.request_stream(request).await?;
        let stream = std::pin::pin!(stream);
        let mut lines = stream.lines();
        loop {
            let left = async {
                self.gone.cancelled().await;
                sleep(LINGER).await;
            };
            let text = tokio::select! {
                text = lines.next() => text,
                () = left => return Ok(()),
            };
            // Where a stream breaks, the next one goes on.
            let Some(Ok(text)) = text else { return Ok(()) };
            let line: Line = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
            *since = Since::Place(line.place);
            let tells = line.seen.is_some() || line.missed > 0;
            let news = News::Line { pod: self.pod.clone(), line };
            if tells && self.news.send(news).await.is_err() {
                return Ok(());
            }
        }
    }
}

struct Tail {
    client: kube::Client,
    namespace: String,
    target: Option<Target>,
    /// Which labels the Pods of the target have.
    selector: Option<LabelSelector>,
    /// Names of Pods by their addresses, of the whole namespace.
    names: HashMap<String, String>,
    /// Containers that are followed: by the Pod's uid and their name.
    followed: BTreeMap<(String, String), CancellationToken>,
    /// That some are not was said.
    is_full: bool,
    tasks: JoinSet<()>,
    news: mpsc::Sender<News>,
}

impl Tail {
    async fn run(
        client: kube::Client,
        namespace: String,
        target: Option<Target>,
    ) -> Result<(), Diagnostic> {
        let (news, mut heard) = mpsc::channel(NEWS_MAX);
        let selector = selector(&client, &namespace, target.as_ref()).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        // Whoever may not, and whoever means a Pod that is not there, is told at once.
        let all = pods.list(&ListParams::default()).await.map_err(api::failed("reading the Pods"));
        let all = all?.items;
        check(target.as_ref(), &all, &namespace)?;
        let mut tail = Tail {
            client,
            namespace,
            target,
            selector,
            names: HashMap::new(),
            followed: BTreeMap::new(),
            is_full: false,
            tasks: JoinSet::new(),
            news,
        };
        all.iter().for_each(|pod| tail.look(pod, Since::Now));
        if tail.followed.is_empty() {
            eprintln!("no Pod runs there yet; waiting for one");
        }
        let events = watcher::watcher(pods, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut listed = BTreeSet::new();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => listed.clear(),
                    Some(Ok(Event::InitApply(pod))) => {
                        listed.extend(pod.metadata.uid.clone());
                        tail.look(&pod, Since::First);
                    }
                    Some(Ok(Event::InitDone)) => tail.leave(|uid| !listed.contains(uid)),
                    Some(Ok(Event::Apply(pod))) => tail.look(&pod, Since::First),
                    Some(Ok(Event::Delete(pod))) => {
                        let gone = pod.metadata.uid.unwrap_or_default();
                        tail.leave(|uid| uid == gone);
                    }
                    // A server may go away for a while; what is known serves meanwhile.
                    Some(Err(_)) => {}
                    None => return Ok(()),
                },
                // `tail` has a sender.
                Some(news) = heard.recv() => {
                    if !tail.show(news)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Follows the containers of a Pod that run, if it is meant. Of one that ran before it was
    /// looked at, what it has answered until then is not news.
    fn look(&mut self, pod: &Pod, since: Since) {
        while self.tasks.try_join_next().is_some() {}
        self.names.extend(name_of_address(pod));
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { return };
        if !self.is_meant(pod, name) {
            return;
        }
        for container in running(pod) {
            let key = (uid.clone(), container.to_owned());
            if self.followed.contains_key(&key) {
                continue;
            }
            if self.followed.len() >= FOLLOWED_MAX {
                if !std::mem::replace(&mut self.is_full, true) {
                    eprintln!("only {FOLLOWED_MAX} containers are shown: name a Pod or workload");
                }
                return;
            }
            let gone = CancellationToken::new();
            self.followed.insert(key, gone.clone());
            let follower = Follower {
                client: self.client.clone(),
                namespace: self.namespace.clone(),
                pod: name.clone(),
                container: container.to_owned(),
                gone,
                news: self.news.clone(),
            };
            self.tasks.spawn(follower.run(since));
        }
    }

    fn is_meant(&self, pod: &Pod, name: &str) -> bool {
        match (&self.target, &self.selector) {
            (Some(Target::Pod(wanted)), _) => wanted == name,
            (_, Some(selector)) => {
                let labels = serde_json::to_value(&pod.metadata.labels).unwrap_or_default();
                selector.matches_labels(Some(&labels))
            }
            (_, None) => true,
        }
    }

    /// Pods have gone.
    fn leave(&mut self, gone: impl Fn(&str) -> bool) {
        self.followed.retain(|(uid, _), token| {
            let stays = !gone(uid);
            if !stays {
                token.cancel();
            }
            stays
        });
        if self.followed.len() < FOLLOWED_MAX {
            self.is_full = false;
        }
    }

    /// Prints it. False: whoever read it has seen enough.
    fn show(&self, news: News) -> Result<bool, Diagnostic> {
        let (pod, line) = match news {
            News::Line { pod, line } => (pod, line),
            News::Trouble { pod, why } => {
                eprintln!("the requests of {pod} cannot be read, trying again: {why}");
                return Ok(true);
            }
            News::Forbidden(error) => return Err(api::failed("reading the requests")(error)),
        };
        let mut out = std::io::stdout().lock();
        if let Some(text) = missed(line.missed, &pod)
            && writeln!(out, "{text}").is_err()
        {
            return Ok(false);
        }
        let Some(seen) = &line.seen else { return Ok(true) };
        Ok(writeln!(out, "{}", self::line(seen, &pod, &self.names)).is_ok())
    }
}

/// Whether a Pod that is meant is there.
fn check(target: Option<&Target>, all: &[Pod], namespace: &str) -> Result<(), Diagnostic> {
    let Some(Target::Pod(wanted)) = target else { return Ok(()) };
    if all.iter().any(|pod| pod.metadata.name.as_ref() == Some(wanted)) {
        return Ok(());
    }
    let list = format!("kubectl get pods -n {namespace}");
    Err(Diagnostic::new("WH0008", format!("there is no Pod {wanted:?}"))
        .help(format!("see which there are:   {list}")))
}

/// Which labels the Pods of a target have, if it has Pods.
async fn selector(
    client: &kube::Client,
    namespace: &str,
    target: Option<&Target>,
) -> Result<Option<LabelSelector>, Diagnostic> {
    let found = match target {
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
    let unusable = |why: &dyn std::fmt::Display| {
        Diagnostic::new("WH0008", "the workload's selector cannot be read").why(why.to_string())
    };
    let typed = serde_json::to_value(found).map_err(|error| unusable(&error))?;
    LabelSelector::from_typed(Some(&typed)).map(Some).map_err(|error| unusable(&error))
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

/// Containers of a Pod that run.
fn running(pod: &Pod) -> impl Iterator<Item = &str> {
    let statuses = pod.status.iter().flat_map(|status| {
        [&status.container_statuses, &status.init_container_statuses].into_iter().flatten()
    });
    let runs = |it: &&ContainerStatus| it.state.as_ref().is_some_and(|it| it.running.is_some());
    statuses.flatten().filter(runs).map(|container| container.name.as_str())
}

fn name_of_address(pod: &Pod) -> Option<(String, String)> {
    Some((pod.status.as_ref()?.pod_ip.clone()?, pod.metadata.name.clone()?))
}

/// That requests were not told, if there were any.
fn missed(missed: u64, pod: &str) -> Option<String> {
    match missed {
        0 => None,
        1 => Some(format!("... 1 more request of {pod}, too many at once to show each")),
        many => Some(format!("... {many} more requests of {pod}, too many at once to show each")),
    }
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
    fn containers_that_run_are_followed() {
        let pod = serde_json::json!({
            "metadata": {"name": "web-1"},
            "status": {
                "podIP": "10.64.0.7",
                "containerStatuses": [
                    {"name": "web", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                     "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
                    {"name": "late", "image": "x", "imageID": "", "ready": false,
                     "restartCount": 0, "state": {"waiting": {}}},
                ],
                "initContainerStatuses": [
                    {"name": "side", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                     "state": {"running": {}}},
                ],
            },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        assert_eq!(running(&pod).collect::<Vec<_>>(), ["web", "side"]);
        let named = ("10.64.0.7".to_owned(), "web-1".to_owned());
        assert_eq!(name_of_address(&pod), Some(named));
        assert_eq!(running(&Pod::default()).count(), 0);
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        assert_eq!(missed(0, "web-1"), None);
        let text = missed(980, "web-1");
        let expected = "... 980 more requests of web-1, too many at once to show each";
        assert_eq!(text.as_deref(), Some(expected));
    }
}
