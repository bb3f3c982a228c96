//! Events of this node and its Pods, for `kubectl describe` and `kubectl get events`.
//!
//! One task writes them one after the other, so a flood of them cannot become a flood of requests;
//! what does not fit in the queue is dropped, as an event is a hint and not a record. An event that
//! repeats (same Pod, container, reason and text) only counts up: its name is made from those.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{client::has_code, spec::PodSpec};

/// Events that wait to be written: a few for each of some hundred Pods that start together.
const QUEUE: usize = 6144;
/// Events whose count is remembered.
const KNOWN_MAX: usize = 4096;
/// Longest text, as Kubernetes has it.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Where events of nodes are, which have no namespace.
const NODE_NAMESPACE: &str = "default";
/// Who says it.
const COMPONENT: &str = "wherry-node";

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Happening {
    /// `Pod`, `Service` or `Node`.
    pub kind: &'static str,
    /// Namespace of the Pod or Service; of a node the one where its events are.
    pub namespace: String,
    /// Name of the Pod, Service or node.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// The container, if it is about one.
    pub field: Option<String>,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// Whether something is wrong.
    pub warning: bool,
    /// When.
    pub at: Timestamp,
}

/// Where to say what happened.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<Happening>);

impl Recorder {
    /// A recorder and the queue for [`run`].
    pub fn new() -> (Recorder, mpsc::Receiver<Happening>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Recorder(sender), receiver)
    }

    /// Something went its way with a container.
    pub fn normal(&self, pod: &PodSpec, index: usize, reason: &'static str, message: String) {
        self.record(pod, index, reason, message, false);
    }

    /// Something is wrong with a container.
    pub fn warning(&self, pod: &PodSpec, index: usize, reason: &'static str, message: String) {
        self.record(pod, index, reason, message, true);
    }

    /// Something is wrong with a Pod as a whole.
    pub fn warning_of_pod(&self, pod: &PodSpec, reason: &'static str, message: String) {
        self.send(pod, None, reason, message, true);
    }

    /// Something happened to the node itself.
    pub fn of_node(&self, node: &str, reason: &'static str, message: String, warning: bool) {
        self.queue(Happening {
            kind: "Node",
            namespace: NODE_NAMESPACE.to_owned(),
            pod: node.to_owned(),
            // As a kubelet: it knows its name before its object.
            uid: node.to_owned(),
            field: None,
            reason,
            message,
            warning,
            at: Timestamp::now(),
        });
    }

    /// Something is wrong with a Service on this node.
    pub fn warning_of_service(
        &self,
        namespace: &str,
        (name, uid): (&str, String),
        reason: &'static str,
        message: String,
    ) {
        self.queue(Happening {
            kind: "Service",
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            uid,
            field: None,
            reason,
            message,
            warning: true,
            at: Timestamp::now(),
        });
    }

    fn record(
        &self,
        pod: &PodSpec,
        index: usize,
        reason: &'static str,
        message: String,
        warning: bool,
    ) {
        let kind = if pod.is_init(index) {
            "initContainers"
        } else if index >= pod.ephemeral {
            "ephemeralContainers"
        } else {
            "containers"
        };
        let field = format!("spec.{kind}{{{}}}", pod.containers[index].name);
        self.send(pod, Some(field), reason, message, warning);
    }

    fn send(
        &self,
        pod: &PodSpec,
        field: Option<String>,
        reason: &'static str,
        message: String,
        warning: bool,
    ) {
        self.queue(Happening {
            kind: "Pod",
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            field,
            reason,
            message,
            warning,
            at: Timestamp::now(),
        });
    }

    fn queue(&self, happening: Happening) {
        let (pod, reason) = (happening.pod.clone(), happening.reason);
        if self.0.try_send(happening).is_err() {
            tracing::debug!(pod, reason, "an event was dropped, the queue is full");
        }
    }
}

/// Writes events until the queue is closed.
pub async fn run(client: kube::Client, node: String, mut queue: mpsc::Receiver<Happening>) {
    let mut known = Known::default();
    while let Some(happening) = queue.recv().await {
        let name = name(&happening);
        let api: Api<Event> = Api::namespaced(client.clone(), &happening.namespace);
        let count = known.count(&happening.namespace, &name);
        let written = if count == 1 {
            create(&api, &happening, &name, &node).await
        } else {
            update(&api, &happening, &name, count).await
        };
        match written {
            Ok(count) => known.set(&happening.namespace, &name, count),
            Err(error) => {
                // A namespace that is going away takes no events, an absent server none either.
                tracing::debug!(pod = happening.pod, %error, "cannot write an event");
                known.forget(&happening.namespace, &name);
            }
        }
    }
}

async fn create(
    api: &Api<Event>,
    happening: &Happening,
    name: &str,
    node: &str,
) -> Result<i32, kube::Error> {
    let event = event(happening, name, node);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => Ok(1),
        Err(error) if has_code(&error, 409) => {
            // Written by an earlier agent: the answer to a first change says how often.
            let touch = serde_json::json!({"lastTimestamp": Time(happening.at)});
            let params = PatchParams::default();
            let known = api.patch(name, &params, &Patch::Merge(touch)).await?;
            update(api, happening, name, known.count.unwrap_or(1) + 1).await
        }
        Err(error) => Err(error),
    }
}

async fn update(
    api: &Api<Event>,
    happening: &Happening,
    name: &str,
    count: i32,
) -> Result<i32, kube::Error> {
    let patch = serde_json::json!({
        "count": count,
        "lastTimestamp": Time(happening.at),
        "message": shortened(&happening.message),
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(count)
}

/// The API object.
fn event(happening: &Happening, name: &str, node: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(happening.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(happening.kind.to_owned()),
            namespace: (happening.kind != "Node").then(|| happening.namespace.clone()),
            name: Some(happening.pod.clone()),
            uid: Some(happening.uid.clone()),
            field_path: happening.field.clone(),
            ..ObjectReference::default()
        },
        reason: Some(happening.reason.to_owned()),
        message: Some(shortened(&happening.message)),
        type_: Some(if happening.warning { "Warning" } else { "Normal" }.to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(happening.at)),
        last_timestamp: Some(Time(happening.at)),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

/// Messages that hold a changing number of seconds are still the same event.
fn name(happening: &Happening) -> String {
    let mut hash = Sha256::new();
    for part in [&happening.uid, happening.reason, happening.field.as_deref().unwrap_or("")] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(happening.message.replace(|letter: char| letter.is_ascii_digit(), ""));
    let hash = hex::encode(hash.finalize());
    // A Pod's name may have 253 characters, and so may an event's.
    let pod: String = happening.pod.chars().take(230).collect();
    format!("{}.{}", pod.trim_end_matches(['.', '-']), &hash[..16])
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

/// Counts of the events written last.
#[derive(Default)]
struct Known {
    counts: HashMap<(String, String), i32>,
    order: VecDeque<(String, String)>,
}

impl Known {
    /// The count that the next write of this event has.
    fn count(&self, namespace: &str, name: &str) -> i32 {
        self.counts.get(&(namespace.to_owned(), name.to_owned())).map_or(1, |count| count + 1)
    }

    fn set(&mut self, namespace: &str, name: &str, count: i32) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.counts.insert(key.clone(), count).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > KNOWN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.counts.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.counts.remove(&key).is_some() {
            self.order.retain(|known| *known != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(reason: &'static str, message: &str) -> Happening {
        Happening {
            kind: "Pod",
            namespace: "default".to_owned(),
            pod: "web-1".to_owned(),
            uid: "u1".to_owned(),
            field: Some("spec.containers{app}".to_owned()),
            reason,
            message: message.to_owned(),
            warning: true,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_same_event_has_the_same_name() {
        let ten = name(&happening("BackOff", "back-off 10 s"));
        assert_eq!(ten, name(&happening("BackOff", "back-off 20 s")));
        assert_ne!(ten, name(&happening("Failed", "back-off 10 s")));
        assert!(ten.starts_with("web-1."), "{ten}");
    }

    #[test]
    fn nodes_have_events_too() {
        let (recorder, mut queue) = Recorder::new();
        recorder.of_node("n1", "Starting", "Starting the node.".to_owned(), false);
        let happening = queue.try_recv().expect("it is queued");
        let event = event(&happening, &name(&happening), "n1");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let about = event.involved_object;
        assert_eq!(about.kind.as_deref(), Some("Node"));
        assert_eq!((about.namespace, about.uid.as_deref()), (None, Some("n1")));
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }

    #[test]
    fn services_have_events_where_they_are() {
        let (recorder, mut queue) = Recorder::new();
        let service = ("web", "s1".to_owned());
        let message = "port 30080 of node n1 cannot be opened".to_owned();
        recorder.warning_of_service("shop", service, "NodePortUnavailable", message);
        let happening = queue.try_recv().expect("it is queued");
        let event = event(&happening, &name(&happening), "n1");
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        let about = event.involved_object;
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Service"), Some("web")));
        assert_eq!((about.namespace.as_deref(), about.uid.as_deref()), (Some("shop"), Some("s1")));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }

    #[test]
    fn counts_go_up_and_are_bounded() {
        let mut known = Known::default();
        assert_eq!(known.count("n", "e"), 1);
        known.set("n", "e", 1);
        assert_eq!(known.count("n", "e"), 2);
        for index in 0..KNOWN_MAX {
            known.set("n", &format!("x{index}"), 1);
        }
        assert_eq!(known.count("n", "e"), 1, "forgotten");
        known.forget("n", "x1");
        assert_eq!(known.count("n", "x1"), 1);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let text = "é".repeat(1000);
        assert_eq!(shortened(&text).len(), 1024);
        assert_eq!(shortened(&format!("a{text}")).len(), 1023);
    }
}
