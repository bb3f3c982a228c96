//! DELETE of one object or a collection.
//!
//! ```text
//! DELETE --+-- nothing holds the object -------------> gone, Status with its uid
//!          +-- finalizers, or a Pod's grace period ---> deletionTimestamp set, object lingers
//! later:   an update takes the last finalizer, or the agent deletes with grace 0 --> gone
//! ```
//!
//! [`decide`] is pure; it is asked anew after each race.

use super::{
    Part, body, get, list, quota,
    select::Selection,
    table::Include,
    update::RACE_TRIES,
    write::{self, Call, Failure},
};
use crate::apiserver::{
    ApiServer, admission, content,
    custom::into_version,
    errors::{self, ApiError},
    extensions,
    request::Request,
    stored,
};
use axum::response::Response;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use wherry_resources::validate::{FieldError, Reason};
use wherry_resources::{Kind, Object, custom, meta, quoted};
use wherry_store::{Entry, Precondition};

/// Longest grace, a hundred years: Kubernetes lets a Pod ask for more, and the calendar ends.
const GRACE_SECONDS_MAX: i64 = 100 * 365 * 24 * 60 * 60;

/// What a client asks of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
    /// `orphanDependents: false`: whoever asks in this old form is told by 202 that the object is
    /// not gone yet.
    pub orphans_not: bool,
}

impl Options {
    /// As hooks are shown them.
    fn shown(&self) -> Map<String, Value> {
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let policy = |policy| match policy {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        let policy = self.propagation.filter(|_| !self.orphans_not).map(policy);
        let same =
            given([("uid", text(&self.uid)), ("resourceVersion", text(&self.resource_version))]);
        given([
            ("gracePeriodSeconds", self.grace_seconds.map(Value::from)),
            ("preconditions", (!same.is_empty()).then_some(Value::Object(same))),
            ("orphanDependents", self.orphans_not.then_some(Value::Bool(false))),
            ("propagationPolicy", policy.map(Value::from)),
            ("dryRun", self.dry_run.then(|| json!(["All"]))),
        ])
    }
}

/// Those fields that there are.
fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    let there = |(name, value): (&str, Option<Value>)| Some((name.to_owned(), value?));
    fields.into_iter().filter_map(there).collect()
}

/// What becomes of dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What a deletion does to an object.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// It goes at once.
    Remove,
    /// It stays for now, in this state.
    Mark(Object),
}

/// Deletes the object that the path names.
pub async fn delete(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = options(request)?;
    let mut call = Call::of(api, request, Part::Main, options.dry_run);
    call.options = options.shown();
    let mut warnings = Vec::new();
    let deleted = one(&call, request.name(), &options, &mut warnings).await?;
    match deleted {
        Deleted::Gone(last) => {
            let status = gone(request.kind, &last);
            Ok(content::respond(StatusCode::OK, &request.accepted, &status, &warnings))
        }
        Deleted::Lingers(object) => {
            let code = if options.orphans_not { StatusCode::ACCEPTED } else { StatusCode::OK };
            let mut shown = into_version(api, request.kind, vec![object]).await?;
            let object = shown.pop().expect("as many objects come back as are sent");
            get::respond(request, code, object, &warnings)
        }
    }
}

/// Deletes what a list with the same query would show, and answers with that list.
pub async fn delete_collection(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = options(request)?;
    let selection = Selection::of(request)?;
    let include = Include::of(&request.query)?;
    let page = list::page(api, request, selection).await?;
    let (mut deleted, mut warnings) = (Vec::new(), Vec::new());
    for (_, entry) in &page.items {
        let object = stored::decode(request.kind, entry);
        let mut call = Call::of(api, request, Part::Main, options.dry_run);
        call.namespace = meta::namespace(&object);
        call.options = options.shown();
        match one(&call, meta::name(&object), &options, &mut warnings).await {
            Ok(Deleted::Gone(last) | Deleted::Lingers(last)) => deleted.push(last),
            // Somebody else was faster; that is what was wanted.
            Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let deleted = into_version(api, request.kind, deleted).await?;
    Ok(list::respond(request, &page, deleted, include, &warnings))
}

/// What has become of an object.
pub enum Deleted {
    /// Its last state.
    Gone(Object),
    /// Its state while it waits for finalizers or its grace period.
    Lingers(Object),
}

/// Deletes one object, trying again when others write to it meanwhile. What hooks say to the client
/// goes to `warnings`.
pub async fn one(
    call: &Call<'_>,
    name: &str,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Deleted, ApiError> {
    for _ in 0..RACE_TRIES {
        let (old, entry) = call.find(&call.api.latest().await?, name)?;
        check(call.kind, &old, options)?;
        admission::deletion(call.kind, call.user, &old, options)?;
        // An eviction was admitted as such.
        if call.subresource.is_empty() {
            let asked = call.asked(extensions::Verb::Delete, name);
            let mut heard = extensions::Heard::default();
            extensions::validate_deletion(&asked, &old, &mut heard).await?;
            warnings.append(&mut heard.warnings);
        }
        let decision = decide(call.kind, &old, options, Timestamp::now());
        match perform(call, &old, &entry, decision, options.dry_run).await {
            Ok(deleted) => return Ok(deleted),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(ApiError::modified(call.kind, name))
}

async fn perform(
    call: &Call<'_>,
    old: &Object,
    entry: &Entry,
    decision: Decision,
    dry_run: bool,
) -> Result<Deleted, Failure> {
    let (name, store) = (meta::name(old), call.api.store());
    let key = stored::key(call.kind, call.namespace, name);
    let precondition = Precondition::At(entry.modified);
    match decision {
        Decision::Remove if dry_run => Ok(Deleted::Gone(old.clone())),
        Decision::Mark(new) if dry_run || new == *old => Ok(Deleted::Lingers(new)),
        Decision::Remove => {
            let between = quota::removing(call).await;
            let (revision, last) = store
                .delete(key, precondition)
                .await
                .map_err(|error| write::failure(call.kind, name, error))?;
            call.wrote(revision);
            quota::removed(call, old, between).await;
            Ok(Deleted::Gone(stored::decode_at(call.kind, &last.value, revision)))
        }
        Decision::Mark(new) => {
            let entry = store
                .making_room()
                .put(key, stored::encode(call.kind, &new), precondition)
                .await
                .map_err(|error| write::failure(call.kind, name, error))?;
            call.wrote(entry.modified);
            Ok(Deleted::Lingers(stored::decode(call.kind, &entry)))
        }
    }
}

/// The answer for an object that is gone: clients read the uid to know when to stop waiting.
fn gone(kind: &Kind, last: &Object) -> Value {
    let mut details = errors::details(meta::name(last), kind.group, kind.plural, &[], 0);
    details["uid"] = meta::uid(last).into();
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })
}

/// Options from the body, or from the query if there is none.
fn options(request: &Request) -> Result<Options, ApiError> {
    let query = &request.query;
    let dry_run = super::dry_run(query).map_err(|error| refused(vec![error]))?;
    if !request.body.iter().all(u8::is_ascii_whitespace) {
        return told(&delete_options(request)?, dry_run);
    }
    let orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
    let mut wrong = Vec::new();
    let propagation = propagation(query.get("propagationPolicy"), orphan, &mut wrong);
    if !wrong.is_empty() {
        return Err(refused(wrong));
    }
    Ok(Options {
        grace_seconds: grace(query.number("gracePeriodSeconds")?),
        propagation,
        dry_run,
        orphans_not: orphan == Some(false),
        ..Options::default()
    })
}

/// What DeleteOptions tell; `dry_run` is what the query says, which counts if they say nothing.
pub fn told(sent: &Value, dry_run: bool) -> Result<Options, ApiError> {
    check_types(sent)?;
    let text = |path: &str| sent.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let orphan = sent.get("orphanDependents").and_then(Value::as_bool);
    let mut wrong = Vec::new();
    let propagation = propagation(text("/propagationPolicy").as_deref(), orphan, &mut wrong);
    let asked: Vec<&str> =
        meta::items(sent, "dryRun").iter().map(|one| one.as_str().unwrap_or("")).collect();
    let is_dry = super::is_dry(&asked).unwrap_or_else(|error| {
        wrong.push(error);
        false
    });
    if !wrong.is_empty() {
        return Err(refused(wrong));
    }
    Ok(Options {
        grace_seconds: grace(sent.get("gracePeriodSeconds").and_then(Value::as_i64)),
        propagation,
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        dry_run: dry_run || is_dry,
        orphans_not: orphan == Some(false),
    })
}

fn refused(wrong: Vec<FieldError>) -> ApiError {
    ApiError::invalid_options("DeleteOptions", wrong)
}

/// Refuses options of a wrong type: they would be taken for none, and what they are to prevent
/// would happen.
fn check_types(sent: &Value) -> Result<(), ApiError> {
    type Fits = fn(&Value) -> bool;
    let rows: [(&str, &str, Fits); 8] = [
        ("", "an object", Value::is_object),
        ("/gracePeriodSeconds", "a whole number", Value::is_i64),
        ("/preconditions", "an object", Value::is_object),
        ("/preconditions/uid", "a string", Value::is_string),
        ("/preconditions/resourceVersion", "a string", Value::is_string),
        ("/orphanDependents", "true or false", Value::is_boolean),
        ("/propagationPolicy", "a string", Value::is_string),
        ("/dryRun", "a list", Value::is_array),
    ];
    let given = |path: &str| sent.pointer(path).filter(|value| !value.is_null());
    match rows.iter().find(|(path, _, fits)| given(path).is_some_and(|value| !fits(value))) {
        None => Ok(()),
        Some((path, word, _)) => {
            let field = path.trim_start_matches('/').replace('/', ".");
            let why = format!("{field} must be {word}");
            Err(body::undecodable("v1", "DeleteOptions", why.trim_start()))
        }
    }
}

/// A negative grace period is the shortest one that is no force.
fn grace(asked: Option<i64>) -> Option<i64> {
    asked.map(|seconds| if seconds < 0 { 1 } else { seconds })
}

/// DeleteOptions come under `v1`, `meta.k8s.io/v1` or what is deleted's group, or without kind.
fn delete_options(request: &Request) -> Result<Object, ApiError> {
    let decoded = content::decode(&request.content_type(), &request.body, "DeleteOptions")?;
    let kind = decoded.value.get("kind").and_then(Value::as_str).unwrap_or("");
    if !decoded.value.is_object() || !matches!(kind, "" | "DeleteOptions") {
        return Err(body::undecodable("v1", "DeleteOptions", "the body holds another type"));
    }
    Ok(decoded.value)
}

/// What both ways of asking for it mean; what is wrong with them goes to `wrong`.
fn propagation(
    policy: Option<&str>,
    orphan: Option<bool>,
    wrong: &mut Vec<FieldError>,
) -> Option<Propagation> {
    let policy = policy.filter(|policy| !policy.is_empty());
    if let Some((policy, _)) = policy.zip(orphan) {
        let message = format!(
            "Invalid value: {}: orphanDependents and deletionPropagation cannot be both set",
            quoted(policy)
        );
        wrong.push(errors::field(Reason::Invalid, "propagationPolicy", message));
    }
    match policy {
        None => orphan.map(|orphan| match orphan {
            true => Propagation::Orphan,
            false => Propagation::Background,
        }),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            wrong.push(super::unsupported("propagationPolicy", other, &known));
            None
        }
    }
}

/// Preconditions of the options.
fn check(kind: &Kind, old: &Object, options: &Options) -> Result<(), ApiError> {
    let pairs = [
        ("UID", &options.uid, meta::uid(old)),
        ("ResourceVersion", &options.resource_version, meta::resource_version(old)),
    ];
    for (word, asked, found) in pairs {
        if let Some(asked) = asked.as_deref().filter(|asked| *asked != found) {
            let why = format!(
                "Precondition failed: {word} in precondition: {asked}, \
                 {word} in object meta: {found}"
            );
            return Err(ApiError::conflict(kind, meta::name(old), why));
        }
    }
    Ok(())
}

/// Decides what a deletion does: pure.
pub fn decide(kind: &Kind, old: &Object, options: &Options, now: Timestamp) -> Decision {
    let mut new = old.clone();
    let first = !meta::is_deleting(old);
    if first || options.propagation.is_some() {
        hold(kind, &mut new, options.propagation);
    }
    let grace = grace_seconds(kind, old, options);
    let held = !meta::finalizers(&new).is_empty()
        || is_held_namespace(kind, &new)
        || kind.is("apiextensions.k8s.io", "CustomResourceDefinition");
    if grace == 0 && !held {
        return Decision::Remove;
    }
    let kept = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if first || grace < kept.unwrap_or(0) {
        // A later call counts from the time of the first one.
        let begun = meta::deletion_timestamp(old)
            .map_or(now, |end| end - SignedDuration::from_secs(kept.unwrap_or(0)));
        let end = begun + SignedDuration::from_secs(grace);
        meta::set(&mut new, "deletionTimestamp", &meta::time(end));
        meta::metadata_mut(&mut new).insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if first && meta::generation(old) > 0 {
        meta::set_generation(&mut new, meta::generation(old) + 1);
    }
    if first && kind.is("apiextensions.k8s.io", "CustomResourceDefinition") {
        // Its objects go before it does.
        let mut finalizers = meta::finalizers(&new);
        finalizers.push(custom::CLEANUP_FINALIZER);
        let finalizers: Vec<String> = finalizers.into_iter().map(str::to_owned).collect();
        let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).collect();
        meta::set_finalizers(&mut new, &finalizers);
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will \
            begin soon";
        custom::names::terminating(&mut new, "InstanceDeletionPending", message, now);
    }
    if kind.is("", "Namespace") {
        new["status"]["phase"] = "Terminating".into();
        meta::metadata_mut(&mut new).shift_remove("deletionGracePeriodSeconds");
    }
    meta::order(&mut new);
    Decision::Mark(new)
}

fn is_held_namespace(kind: &Kind, object: &Object) -> bool {
    let finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array);
    kind.is("", "Namespace") && finalizers.is_some_and(|list| !list.is_empty())
}

/// Sets the finalizers of the propagation policy.
fn hold(kind: &Kind, object: &mut Object, asked: Option<Propagation>) {
    let finalizers = meta::finalizers(object);
    let has = |name: &str| finalizers.contains(&name);
    let policy = asked.unwrap_or_else(|| {
        if has(meta::ORPHAN_FINALIZER)
            || kind.orphans_by_default && !has(meta::FOREGROUND_FINALIZER)
        {
            Propagation::Orphan
        } else if has(meta::FOREGROUND_FINALIZER) {
            Propagation::Foreground
        } else {
            Propagation::Background
        }
    });
    let ours = [meta::ORPHAN_FINALIZER, meta::FOREGROUND_FINALIZER];
    let mut wanted: Vec<String> =
        finalizers.iter().filter(|name| !ours.contains(name)).map(ToString::to_string).collect();
    match policy {
        Propagation::Background => {}
        Propagation::Foreground => wanted.push(meta::FOREGROUND_FINALIZER.to_owned()),
        Propagation::Orphan => wanted.push(meta::ORPHAN_FINALIZER.to_owned()),
    }
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    meta::set_finalizers(object, &wanted);
}

/// Only Pods have a grace period: their agent stops them and then deletes with 0. What no agent
/// runs goes at once.
fn grace_seconds(kind: &Kind, old: &Object, options: &Options) -> i64 {
    if !kind.is("", "Pod") {
        return 0;
    }
    let text = |path: &str| old.pointer(path).and_then(Value::as_str).unwrap_or("");
    let runs = !text("/spec/nodeName").is_empty()
        && !matches!(text("/status/phase"), "Succeeded" | "Failed");
    if !runs {
        return 0;
    }
    let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let asked = options.grace_seconds.or(own).unwrap_or(30).clamp(0, GRACE_SECONDS_MAX);
    let kept = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    match kept {
        Some(kept) if meta::is_deleting(old) => match options.grace_seconds {
            Some(asked) => asked.max(0).min(kept),
            None => kept,
        },
        _ => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(plural: &str, object: Value, options: Options) -> String {
        let kind = wherry_resources::kind("", "v1", plural)
            .or_else(|| wherry_resources::kind("apps", "v1", plural))
            .expect("a built-in kind");
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        match decide(kind, &object, &options, now) {
            Decision::Remove => "remove".to_owned(),
            Decision::Mark(new) => {
                let metadata = &new["metadata"];
                let mut text = format!(
                    "{} {} {}",
                    metadata["deletionTimestamp"].as_str().unwrap_or("-"),
                    metadata["deletionGracePeriodSeconds"],
                    meta::finalizers(&new).join(",")
                );
                if let Some(phase) = new.pointer("/status/phase").and_then(Value::as_str) {
                    text.push_str(&format!(" {phase}"));
                }
                text
            }
        }
    }

    #[test]
    fn hooks_are_shown_what_was_asked() {
        let shown = |sent: Value| Value::Object(told(&sent, false).expect("options").shown());
        assert_eq!(shown(json!({})), json!({}));
        let all = json!({"gracePeriodSeconds": 5, "preconditions": {"uid": "u"},
            "propagationPolicy": "Foreground", "dryRun": ["All"]});
        assert_eq!(shown(all.clone()).to_string(), all.to_string());
        let old = json!({"orphanDependents": false});
        assert_eq!(shown(old.clone()), old);
    }

    #[test]
    fn options_of_a_wrong_type_are_refused() {
        let wrong = [
            json!("now"),
            json!({"gracePeriodSeconds": "5"}),
            json!({"preconditions": {"uid": 5}}),
            json!({"preconditions": "u"}),
            json!({"dryRun": "All"}),
        ];
        for sent in wrong {
            let refused = told(&sent, false).expect_err("it is refused");
            assert_eq!(refused.code(), StatusCode::BAD_REQUEST, "{sent}");
        }
        assert_eq!(
            told(&json!({"gracePeriodSeconds": null}), false).ok(),
            Some(Options::default())
        );
    }

    #[test]
    fn decisions() {
        let grace = |seconds| Options { grace_seconds: Some(seconds), ..Options::default() };
        let policy = |policy| Options { propagation: Some(policy), ..Options::default() };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n",
            "terminationGracePeriodSeconds": 5}});
        assert_eq!(decided("pods", pod.clone(), grace(0)), "remove");
        assert_eq!(decided("pods", pod.clone(), Options::default()), "2026-01-01T00:00:05Z 5 ");
        assert_eq!(decided("pods", pod, grace(i64::MAX)), "2125-12-08T00:00:00Z 3153600000 ");
        let unbound = json!({"metadata": {"name": "p"}, "spec": {}});
        assert_eq!(decided("pods", unbound, Options::default()), "remove");
        let finished = json!({"metadata": {}, "spec": {"nodeName": "n"},
            "status": {"phase": "Failed"}});
        assert_eq!(decided("pods", finished, Options::default()), "remove");
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:20Z",
            "deletionGracePeriodSeconds": 30}, "spec": {"nodeName": "n"}});
        assert_eq!(decided("pods", ending.clone(), grace(10)), "2026-01-01T00:00:00Z 10 ");
        assert_eq!(decided("pods", ending.clone(), grace(60)), "2026-01-01T00:00:20Z 30 ");
        assert_eq!(decided("pods", ending, grace(0)), "remove");
        let plain = json!({"metadata": {"name": "c"}});
        assert_eq!(decided("configmaps", plain.clone(), Options::default()), "remove");
        assert_eq!(
            decided("deployments", plain.clone(), policy(Propagation::Foreground)),
            "2026-01-01T00:00:00Z 0 foregroundDeletion"
        );
        assert_eq!(
            decided("replicationcontrollers", plain, Options::default()),
            "2026-01-01T00:00:00Z 0 orphan"
        );
        let space = json!({"metadata": {"name": "s"}, "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"}});
        assert_eq!(
            decided("namespaces", space, Options::default()),
            "2026-01-01T00:00:00Z null  Terminating"
        );
    }
}
