//! What a plan asks for, and the one place that does it.
//!
//! A [`Write`] is data: it names its object by uid and revision, so that a plan made from an old
//! view of the cluster is refused by the API server instead of undoing what happened since. Doing a
//! write never retries: the reconcile loop plans again from what is true by then.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
use wherry_resources::{KINDS, Kind, Storage, meta};

use super::cache::{Key, Memo, Typed, kind_row};
use super::errands::{Call, Measure};
use super::events::{Note, Recorder};
use crate::contain::Panic;
use crate::pki::{Pki, Profile};

/// Requests in flight at once, over all controllers: enough to fill the store's group commit, few
/// enough that a client's request still finds its turn.
const REQUESTS_MAX: usize = 128;
/// Longer than the API server's own limit of a request (60 s), so that it is the one who answers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);
/// Requests of CronJobs that wait to be sent: more than there are plans at once.
const CALLS_WAITING_MAX: usize = 1_024;
/// Letters that may not stand in one segment of a path.
const NOT_IN_A_SEGMENT: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%').add(b'/');

/// One object at one revision.
#[derive(Clone, Debug)]
pub struct Target {
    pub key: Key,
    pub uid: String,
    /// Empty where any revision will do.
    pub revision: String,
}

impl Target {
    pub fn new(kind: &'static Kind, meta: &ObjectMeta) -> Target {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = Key::new(kind, &text(&meta.namespace), &text(&meta.name));
        Target { key, uid: text(&meta.uid), revision: text(&meta.resource_version) }
    }

    pub fn of<T: Typed>(object: &T) -> Target {
        Target::new(kind_row::<T>(), object.metadata())
    }
}

/// Which of the cluster's authorities signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    Cluster,
    Traffic,
}

/// What a write does.
#[derive(Clone, Debug)]
pub enum Action {
    Create {
        kind: &'static Kind,
        namespace: String,
        object: Value,
    },
    /// Server-side apply in somebody's name, whoever had the fields: from then on it is as if they
    /// had applied it, so that they can apply something else.
    Apply {
        kind: &'static Kind,
        object: Value,
        manager: &'static str,
    },
    /// A JSON merge patch; uid and revision of the target are added to it.
    Patch {
        target: Target,
        subresource: &'static str,
        body: Value,
    },
    Delete {
        target: Target,
        grace_seconds: Option<i64>,
        policy: Option<&'static str>,
    },
    /// Deletes all objects of a kind in a namespace.
    DeleteAll {
        kind: &'static Kind,
        namespace: String,
    },
    /// Takes the finalizer `kubernetes` off a namespace, if the API server finds nothing left in
    /// it.
    Finalize {
        target: Target,
    },
    /// Deletes what a CRD defines; when nothing is left, takes its finalizer off it.
    CleanUp {
        target: Target,
        /// Path of its objects, if it ever had any.
        collection: Option<String>,
    },
    /// Signs a request and puts the certificate into the status of its object.
    Sign {
        target: Target,
        signer: Signer,
        profile: Profile,
        request_pem: String,
    },
    /// Asks for the scale of a workload and for metrics; the answers are kept in mind.
    Measure(Box<Measure>),
    /// Gives a workload another size, and keeps something in mind about `about` when that was done.
    Scale {
        target: Target,
        replicas: i32,
        about: Key,
        memo: Memo,
    },
    /// Keeps something in mind about an object.
    Remember {
        about: Key,
        memo: Memo,
    },
    /// Notes when a CronJob was due, then sends its request.
    Call(Box<Call>),
    /// Deletes Events that were last seen before a time.
    ExpireEvents {
        before: Timestamp,
    },
    /// Nothing but the note.
    Tell,
}

/// One write of a plan.
#[derive(Clone, Debug)]
pub struct Write {
    pub action: Action,
    /// These objects must be gone when asked for afresh, or nothing is done: those with these uids,
    /// or any of that name where the uid is empty.
    pub unless_found: Vec<(Key, String)>,
    /// Recorded as an event when the write was done.
    pub note: Option<Note>,
}

impl From<Action> for Write {
    fn from(action: Action) -> Write {
        Write { action, unless_found: Vec::new(), note: None }
    }
}

impl Write {
    pub fn create<T: Typed + Serialize>(object: &T) -> Write {
        let namespace = object.metadata().namespace.clone().unwrap_or_default();
        let object = serde_json::to_value(object).expect("typed objects are JSON");
        Action::Create { kind: kind_row::<T>(), namespace, object }.into()
    }

    pub fn patch<T: Typed>(object: &T, body: Value) -> Write {
        Action::Patch { target: Target::of(object), subresource: "", body }.into()
    }

    pub fn patch_status<T: Typed>(object: &T, body: Value) -> Write {
        Action::Patch { target: Target::of(object), subresource: "status", body }.into()
    }

    /// Deletes an object as long as it is the same one (by uid), whatever has changed in it.
    pub fn delete<T: Typed>(object: &T) -> Write {
        let target = Target { revision: String::new(), ..Target::of(object) };
        Action::Delete { target, grace_seconds: None, policy: None }.into()
    }

    pub fn tell(note: Note) -> Write {
        Write { action: Action::Tell, unless_found: Vec::new(), note: Some(note) }
    }

    pub fn noting(mut self, note: Note) -> Write {
        self.note = Some(note);
        self
    }
}

/// The merge patch that turns one status into another; `None` when they are the same. Fields that
/// the new one lacks are removed.
pub fn status_patch<T: Serialize + PartialEq + Default>(old: Option<&T>, new: &T) -> Option<Value> {
    let default = T::default();
    let old = old.unwrap_or(&default);
    if old == new {
        return None;
    }
    let json = |status: &T| serde_json::to_value(status).expect("a status is JSON");
    Some(json!({"status": difference(&json(old), &json(new))}))
}

/// The merge patch from one object to another, at any depth; lists are replaced.
fn difference(old: &Value, new: &Value) -> Value {
    let (Some(old), Some(fields)) = (old.as_object(), new.as_object()) else { return new.clone() };
    let mut patch = Map::new();
    for name in old.keys().filter(|name| !fields.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in fields {
        match old.get(name) {
            Some(held) if held == value => {}
            Some(held) => _ = patch.insert(name.clone(), difference(held, value)),
            None => _ = patch.insert(name.clone(), value.clone()),
        }
    }
    Value::Object(patch)
}

impl fmt::Display for Write {
    /// One line, without the preconditions; what is created shows as its name alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Create { kind, namespace, object } => {
                let name = object["metadata"]["name"].as_str().unwrap_or("");
                write!(f, "create {}", Key::new(kind, namespace, name))?;
            }
            Action::Apply { kind, object, manager } => {
                let (namespace, name) = (meta::namespace(object), meta::name(object));
                write!(f, "apply {} as {manager}", Key::new(kind, namespace, name))?;
            }
            Action::Patch { target, subresource, body } => {
                let slash = if subresource.is_empty() { "" } else { "/" };
                write!(f, "patch {}{slash}{subresource} {body}", target.key)?;
            }
            Action::Delete { target, grace_seconds, policy } => {
                write!(f, "delete {}", target.key)?;
                if let Some(seconds) = grace_seconds {
                    write!(f, " grace={seconds}")?;
                }
                if let Some(policy) = policy {
                    write!(f, " policy={policy}")?;
                }
            }
            Action::DeleteAll { kind, namespace } => {
                write!(f, "delete all {} in {namespace}", kind.qualified())?;
            }
            Action::Finalize { target } => write!(f, "finalize {}", target.key)?,
            Action::CleanUp { target, collection } => {
                let at = collection.as_deref().unwrap_or("nothing");
                write!(f, "clean up {} at {at}", target.key)?;
            }
            Action::Sign { target, signer, profile, .. } => {
                write!(f, "sign {} by {signer:?} as {}", target.key, profile.common_name)?;
            }
            Action::Measure(measure) => write!(f, "measure {measure}")?,
            Action::Scale { target, replicas, .. } => {
                write!(f, "scale {} to {replicas}", target.key)?;
            }
            Action::Remember { about, .. } => write!(f, "remember {about}")?,
            Action::Call(call) => write!(f, "call {call}")?,
            Action::ExpireEvents { before } => write!(f, "expire events before {before}")?,
            Action::Tell => {}
        }
        for (key, _) in &self.unless_found {
            write!(f, " unless {key} is there")?;
        }
        if let Some(note) = &self.note {
            let gap = if matches!(self.action, Action::Tell) { "" } else { " " };
            write!(f, "{gap}({note})")?;
        }
        Ok(())
    }
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object is not what the plan thought it was. The watch brings what it is.
    #[error("{0}")]
    Stale(String),
    /// The API server will not do it.
    #[error("{message}")]
    Refused { code: u16, message: String },
    /// The certificate could not be made.
    #[error("cannot sign the request: {0}")]
    Sign(#[from] crate::pki::PkiError),
    /// Nobody knows whether it was done.
    #[error("no answer from the API server: {0}")]
    NoAnswer(Box<dyn std::error::Error + Send + Sync>),
    /// Planning or doing it has panicked.
    #[error(transparent)]
    Bug(#[from] Panic),
}

/// What a write that was done left behind.
#[derive(Debug)]
pub enum Outcome {
    /// The object as it is now.
    Object {
        kind: &'static Kind,
        object: Value,
    },
    /// The object is gone.
    Removed {
        key: Key,
        uid: String,
    },
    /// Something to keep in mind about an object.
    Known {
        key: Key,
        memo: Memo,
    },
    Nothing,
}

/// Does writes.
#[derive(Clone)]
pub struct Writer {
    client: kube::Client,
    permits: Arc<Semaphore>,
    pki: Arc<Pki>,
    recorder: Recorder,
    calls: mpsc::Sender<Call>,
}

impl Writer {
    /// A writer, and the requests of CronJobs that somebody else is to send.
    pub fn new(
        client: kube::Client,
        pki: Arc<Pki>,
        recorder: Recorder,
    ) -> (Writer, mpsc::Receiver<Call>) {
        let (calls, queue) = mpsc::channel(CALLS_WAITING_MAX);
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        (Writer { client, permits, pki, recorder, calls }, queue)
    }

    /// Does one write. The note is recorded when it succeeded.
    pub async fn perform(&self, write: Write) -> Result<Outcome, WriteError> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        for (key, uid) in &write.unless_found {
            if self.is_there(key, uid).await? {
                return Ok(Outcome::Nothing);
            }
        }
        tracing::debug!(%write, "write");
        let outcome = self.act(write.action).await?;
        drop(permit);
        if let Some(note) = write.note {
            self.recorder.record(note);
        }
        Ok(outcome)
    }

    async fn act(&self, action: Action) -> Result<Outcome, WriteError> {
        match action {
            Action::Create { kind, namespace, object } => {
                let path = collection(kind, &namespace);
                let object = self.send(Method::POST, &path, JSON, Some(&object)).await?;
                Ok(Outcome::Object { kind, object })
            }
            Action::Apply { kind, object, manager } => {
                let (namespace, name) = (meta::namespace(&object), meta::name(&object));
                let path = member(&Key::new(kind, namespace, name));
                let path = format!("{path}?fieldManager={manager}&force=true");
                let object = self.send(Method::PATCH, &path, APPLY_PATCH, Some(&object)).await?;
                Ok(Outcome::Object { kind, object })
            }
            Action::Patch { target, subresource, body } => {
                self.patch(&target, subresource, body).await
            }
            Action::Delete { target, grace_seconds, policy } => {
                self.delete(target, grace_seconds, policy).await
            }
            Action::DeleteAll { kind, namespace } => {
                let path = collection(kind, &namespace);
                let options = json!({"propagationPolicy": "Background"});
                self.send(Method::DELETE, &path, JSON, Some(&options)).await?;
                Ok(Outcome::Nothing)
            }
            Action::Finalize { target } => self.finalize(target).await,
            Action::CleanUp { target, collection } => self.clean_up(target, collection).await,
            Action::Sign { target, signer, profile, request_pem } => {
                let authority = match signer {
                    Signer::Cluster => &self.pki.cluster,
                    Signer::Traffic => &self.pki.traffic,
                };
                let mut certificate = authority.sign_request(&request_pem, &profile)?;
                if signer == Signer::Traffic {
                    // Nothing else tells a worker whom to trust: the API's CA is another one.
                    certificate.push_str(authority.certificate_pem());
                }
                let certificate = k8s_openapi::ByteString(certificate.into_bytes());
                let body = json!({"status": {"certificate": certificate}});
                self.patch(&target, "status", body).await
            }
            Action::Measure(measure) => {
                let key = measure.about.clone();
                let memo = Memo::new(self.measure(*measure).await);
                Ok(Outcome::Known { key, memo })
            }
            Action::Scale { target, replicas, about, memo } => {
                self.patch(&target, "scale", json!({"spec": {"replicas": replicas}})).await?;
                Ok(Outcome::Known { key: about, memo })
            }
            Action::Remember { about, memo } => Ok(Outcome::Known { key: about, memo }),
            Action::Call(call) => {
                let body = json!({"status": {"lastScheduleTime": Time(call.due)}});
                let noted = self.patch(&call.target, "status", body).await?;
                // The queue holds more than there are plans, so it is never full.
                let queued = self.calls.try_send(*call);
                queued.map_err(|_| WriteError::Stale("this member is stopping".to_string()))?;
                Ok(noted)
            }
            Action::ExpireEvents { before } => {
                self.expire_events(before).await?;
                Ok(Outcome::Nothing)
            }
            Action::Tell => Ok(Outcome::Nothing),
        }
    }

    async fn patch(
        &self,
        target: &Target,
        subresource: &str,
        mut body: Value,
    ) -> Result<Outcome, WriteError> {
        body["metadata"]["uid"] = target.uid.clone().into();
        if !target.revision.is_empty() {
            body["metadata"]["resourceVersion"] = target.revision.clone().into();
        }
        let mut path = member(&target.key);
        if !subresource.is_empty() {
            path = format!("{path}/{subresource}");
        }
        let object = self.send(Method::PATCH, &path, MERGE_PATCH, Some(&body)).await?;
        match object["kind"] == "Scale" {
            // Not the object, only its size; the watch brings the object.
            true => Ok(Outcome::Nothing),
            false => Ok(Outcome::Object { kind: target.key.kind, object }),
        }
    }

    async fn delete(
        &self,
        target: Target,
        grace_seconds: Option<i64>,
        policy: Option<&str>,
    ) -> Result<Outcome, WriteError> {
        let mut options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": target.uid},
            "propagationPolicy": policy.unwrap_or("Background"),
        });
        if !target.revision.is_empty() {
            options["preconditions"]["resourceVersion"] = target.revision.into();
        }
        if let Some(seconds) = grace_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        let answer = self.send(Method::DELETE, &member(&target.key), JSON, Some(&options)).await?;
        if answer["kind"] == "Status" {
            return Ok(Outcome::Removed { key: target.key, uid: target.uid });
        }
        Ok(Outcome::Object { kind: target.key.kind, object: answer })
    }

    async fn finalize(&self, target: Target) -> Result<Outcome, WriteError> {
        let namespace = target.key.name();
        for kind in namespaced_kinds() {
            let path = format!("{}?limit=1", collection(kind, namespace));
            let list = self.send(Method::GET, &path, JSON, None).await?;
            if list["items"].as_array().is_some_and(|items| !items.is_empty()) {
                return Err(WriteError::Stale(format!("{} are left in it", kind.qualified())));
            }
        }
        self.empty_of_custom(namespace).await?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace, "uid": target.uid, "resourceVersion": target.revision,
            },
            "spec": {"finalizers": []},
        });
        let path = format!("{}/finalize", member(&target.key));
        self.send(Method::PUT, &path, JSON, Some(&object)).await?;
        Ok(Outcome::Removed { key: target.key, uid: target.uid })
    }

    /// Deletes the objects of a CRD; without any left, the CRD may go.
    async fn clean_up(
        &self,
        target: Target,
        collection: Option<String>,
    ) -> Result<Outcome, WriteError> {
        if let Some(path) = collection {
            let options = json!({"propagationPolicy": "Background"});
            self.send(Method::DELETE, &path, JSON, Some(&options)).await?;
            self.must_be_empty(&path, target.key.name()).await?;
        }
        let path = member(&target.key);
        let definition = self.send(Method::GET, &path, JSON, None).await?;
        let finalizers = definition["metadata"]["finalizers"].as_array().into_iter().flatten();
        let kept: Vec<&Value> = finalizers
            .filter(|name| **name != wherry_resources::custom::CLEANUP_FINALIZER)
            .collect();
        let body = json!({"metadata": {"finalizers": kept}});
        self.patch(&target, "", body).await
    }

    async fn must_be_empty(&self, path: &str, what: &str) -> Result<(), WriteError> {
        let list = self.send(Method::GET, &format!("{path}?limit=1"), JSON, None).await?;
        match list["items"].as_array().is_some_and(|items| !items.is_empty()) {
            true => Err(WriteError::Stale(format!("{what} are left"))),
            false => Ok(()),
        }
    }

    /// Deletes what custom kinds have in a namespace; an error while anything is left.
    async fn empty_of_custom(&self, namespace: &str) -> Result<(), WriteError> {
        let path = collection(kind_row::<CustomResourceDefinition>(), "");
        let definitions = self.send(Method::GET, &path, JSON, None).await?;
        for definition in definitions["items"].as_array().into_iter().flatten() {
            let spec = &definition["spec"];
            let versions = spec["versions"].as_array().into_iter().flatten();
            let served = versions.into_iter().find(|version| version["served"] == true);
            let established = wherry_resources::custom::names::is_established(definition);
            let Some(version) = served.filter(|_| established && spec["scope"] == "Namespaced")
            else {
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
            let (group, version) = (text(&spec["group"]), text(&version["name"]));
            let plural = text(&definition["status"]["acceptedNames"]["plural"]);
            let path = format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}");
            let options = json!({"propagationPolicy": "Background"});
            self.send(Method::DELETE, &path, JSON, Some(&options)).await?;
            self.must_be_empty(&path, &plural).await?;
        }
        Ok(())
    }

    async fn is_there(&self, key: &Key, uid: &str) -> Result<bool, WriteError> {
        match self.send(Method::GET, &member(key), JSON, None).await {
            Ok(object) => Ok(uid.is_empty() || object["metadata"]["uid"] == uid),
            Err(WriteError::Stale(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, WriteError> {
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, JSON)
            .body(body)
            .expect("kinds and names make valid paths");
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(match status.code {
                404 | 409 => WriteError::Stale(status.message),
                code => WriteError::Refused { code, message: status.message },
            }),
            Ok(Err(error)) => Err(WriteError::NoAnswer(error.into())),
            Err(elapsed) => Err(WriteError::NoAnswer(elapsed.into())),
        }
    }
}

pub(super) const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// JSON is YAML, too.
const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Stored kinds whose objects live in namespaces.
pub fn namespaced_kinds() -> impl Iterator<Item = &'static Kind> {
    let deletable = |kind: &&Kind| kind.verbs.contains(&"deletecollection");
    KINDS.iter().filter(|kind| kind.namespaced && kind.storage == Storage::Own).filter(deletable)
}

/// The path of a kind's objects, in one namespace if they live in any.
pub fn collection(kind: &Kind, namespace: &str) -> String {
    let root = if kind.group.is_empty() { "/api" } else { "/apis" };
    let plural = kind.plural;
    if kind.namespaced && !namespace.is_empty() {
        return format!("{root}/{}/namespaces/{namespace}/{plural}", kind.api_version());
    }
    format!("{root}/{}/{plural}", kind.api_version())
}

pub(super) fn member(key: &Key) -> String {
    let name = utf8_percent_encode(key.name(), NOT_IN_A_SEGMENT);
    format!("{}/{name}", collection(key.kind, key.namespace()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_resources::kind;

    #[test]
    fn paths() {
        let row = |group, plural| kind(group, "v1", plural).expect("in the table");
        let path =
            |group, plural, namespace, name| member(&Key::new(row(group, plural), namespace, name));
        assert_eq!(path("", "pods", "a", "b"), "/api/v1/namespaces/a/pods/b");
        assert_eq!(path("", "nodes", "", "n"), "/api/v1/nodes/n");
        assert_eq!(
            path("apps", "deployments", "a", "b"),
            "/apis/apps/v1/namespaces/a/deployments/b"
        );
        let role = path("rbac.authorization.k8s.io", "clusterroles", "", "system:a/b");
        assert_eq!(role, "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:a%2Fb");
    }

    #[test]
    fn a_status_patch_names_only_what_differs() {
        use k8s_openapi::api::apps::v1::ReplicaSetStatus;
        let old = ReplicaSetStatus {
            replicas: 2,
            ready_replicas: Some(1),
            observed_generation: Some(3),
            ..ReplicaSetStatus::default()
        };
        let new = ReplicaSetStatus { replicas: 3, ready_replicas: None, ..old.clone() };
        let patch = status_patch(Some(&old), &new).map(|patch| patch.to_string());
        assert_eq!(patch.as_deref(), Some(r#"{"status":{"readyReplicas":null,"replicas":3}}"#));
        assert_eq!(status_patch(Some(&new), &new), None);
        let deep = difference(
            &serde_json::json!({"a": {"b": [1], "c": 1}, "d": 1}),
            &serde_json::json!({"a": {"c": 2}, "d": 1}),
        );
        assert_eq!(deep.to_string(), r#"{"a":{"b":null,"c":2}}"#);
    }
}
