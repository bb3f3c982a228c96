//! Garbage collection by owner references, over every kind of the table and every custom kind.
//!
//! Owns: deletion of objects whose owners are all gone, and the finalizers `foregroundDeletion` and
//! `orphan` that a deletion with these policies puts on the owner.
//!
//! | an owner is | its dependent |
//! |---|---|
//! | gone | loses the reference; is deleted when it was the last one |
//! | in another namespace | the same, and an event says so: who names it names nobody |
//! | deleting in the foreground | the same, and the owner waits for those that block it |
//! | deleting with `orphan` | loses the reference, and the owner goes when nobody names it |
//! | of a kind that is not served | is left alone |
//!
//! Owners and dependents may go round in a circle. Then each would wait for the next, so the one
//! that closes the circle blocks nobody any more.
//!
//! Invariant: an owner counts as gone only when the API server says so at that moment
//! (`unless_found`): the watches of two kinds may be apart, and the cache alone could take an owner
//! for gone that it has yet to see.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use wherry_resources::{Kind, kind_of};

use super::cache::{Cache, Change, Key};
use super::events::Note;
use super::owners::without_owner;
use super::reconcile::{Controller, Plan, View};
use super::write::{Action, Target, Write};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const COMPONENT: &str = "garbage-collector-controller";

/// What the cache knows of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// There, and not waiting for its dependents. Also an owner of a kind that is not served.
    Solid,
    /// Being deleted in the foreground.
    Waiting,
    /// Not in the cache; this is where to ask for it.
    Absent(Key),
    /// Likewise, and in another namespace there is one with this uid.
    Elsewhere(Key),
}

/// What a plan for one object reads.
pub struct Snapshot {
    pub kind: &'static Kind,
    pub meta: ObjectMeta,
    pub owners: Vec<(OwnerReference, OwnerState)>,
    /// Objects that name this one as an owner.
    pub dependents: Vec<(&'static Kind, ObjectMeta)>,
}

pub const CONTROLLER: Controller = Controller { name: "garbage", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    // An owner that waits for its dependents wants to know of each that goes or lets it go.
    for meta in [&change.before, &change.after].into_iter().flatten().map(|state| state.meta()) {
        for owner in meta.owner_references.iter().flatten() {
            let key = cache.by_uid(&owner.uid);
            let waits = key.and_then(|key| cache.object(key)).is_some_and(|owner| {
                is_deleting_with(owner.meta(), FOREGROUND) || is_deleting_with(owner.meta(), ORPHAN)
            });
            keys.extend(key.filter(|_| waits).cloned());
        }
    }
    let uid = change.meta().uid.as_deref().unwrap_or("");
    let Some(after) = change.after.as_ref().map(|state| state.meta()) else {
        keys.extend(cache.dependents(uid).cloned());
        return;
    };
    let foreground = is_deleting_with(after, FOREGROUND);
    if foreground || is_deleting_with(after, ORPHAN) {
        keys.push(change.key.clone());
    }
    if foreground {
        keys.extend(cache.dependents(uid).cloned());
    }
    let suspicious = |owner: &OwnerReference| state(cache, &change.key, owner) != OwnerState::Solid;
    if after.deletion_timestamp.is_none() && after.owner_references.iter().flatten().any(suspicious)
    {
        keys.push(change.key.clone());
    }
}

fn is_deleting_with(meta: &ObjectMeta, finalizer: &str) -> bool {
    let has = meta.finalizers.iter().flatten().any(|name| name == finalizer);
    has && meta.deletion_timestamp.is_some()
}

fn state(cache: &Cache, dependent: &Key, owner: &OwnerReference) -> OwnerState {
    let kind = kind_of(&owner.api_version, &owner.kind)
        .or_else(|| cache.custom_kind(&owner.api_version, &owner.kind));
    let Some(kind) = kind else { return OwnerState::Solid };
    if kind.namespaced && !dependent.kind.namespaced {
        // Not a reference that can be followed; admission lets it be, and so does this.
        return OwnerState::Solid;
    }
    let namespace = if kind.namespaced { dependent.namespace() } else { "" };
    let key = Key::new(kind, namespace, &owner.name);
    let there = cache.by_uid(&owner.uid);
    if kind.namespaced && there.is_some_and(|there| there.namespace() != namespace) {
        return OwnerState::Elsewhere(key);
    }
    match cache.object(&key).map(|object| object.meta()) {
        Some(meta) if meta.uid.as_ref() != Some(&owner.uid) => OwnerState::Absent(key),
        Some(meta) if is_deleting_with(meta, FOREGROUND) => OwnerState::Waiting,
        Some(_) => OwnerState::Solid,
        None => OwnerState::Absent(key),
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(object) = view.cache.object(key) else { return Plan::default() };
    let meta = object.meta().clone();
    let owners = meta.owner_references.iter().flatten();
    let owners = owners.map(|owner| (owner.clone(), state(view.cache, key, owner))).collect();
    let uid = meta.uid.as_deref().unwrap_or("");
    let held = |key: &Key| Some((key.kind, view.cache.object(key)?.meta().clone()));
    let dependents = view.cache.dependents(uid).filter_map(held).collect();
    plan(&Snapshot { kind: key.kind, meta, owners, dependents }, view.now).into()
}

/// Collects one object or moves its own deletion on. Needs no clock.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Vec<Write> {
    let meta = &snapshot.meta;
    if is_deleting_with(meta, ORPHAN) {
        return orphan_dependents(snapshot);
    }
    if is_deleting_with(meta, FOREGROUND) {
        return finish_foreground(snapshot);
    }
    if meta.deletion_timestamp.is_some() || snapshot.owners.is_empty() {
        return Vec::new();
    }
    collect(snapshot).into_iter().collect()
}

fn patch(kind: &'static Kind, meta: &ObjectMeta, body: serde_json::Value) -> Write {
    Action::Patch { target: Target::new(kind, meta), subresource: "", body }.into()
}

fn without_finalizer(snapshot: &Snapshot, finalizer: &str) -> Write {
    let finalizers = snapshot.meta.finalizers.iter().flatten();
    let rest: Vec<&String> = finalizers.filter(|name| *name != finalizer).collect();
    patch(snapshot.kind, &snapshot.meta, json!({"metadata": {"finalizers": rest}}))
}

fn orphan_dependents(snapshot: &Snapshot) -> Vec<Write> {
    let uid = snapshot.meta.uid.as_deref().unwrap_or("");
    if snapshot.dependents.is_empty() {
        return vec![without_finalizer(snapshot, ORPHAN)];
    }
    let release = |(kind, meta): &(&'static Kind, ObjectMeta)| {
        let body = json!({"metadata": {"ownerReferences": without_owner(meta, uid)}});
        patch(kind, meta, body)
    };
    snapshot.dependents.iter().map(release).collect()
}

fn finish_foreground(snapshot: &Snapshot) -> Vec<Write> {
    let uid = snapshot.meta.uid.as_deref().unwrap_or("");
    let blocks = |meta: &ObjectMeta| {
        let mut owners = meta.owner_references.iter().flatten();
        owners.any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
    };
    // One that names itself has nobody to wait for.
    let mut others = snapshot.dependents.iter().filter(|(_, meta)| meta.uid != snapshot.meta.uid);
    if others.any(|(_, meta)| blocks(meta)) {
        return Vec::new();
    }
    vec![without_finalizer(snapshot, FOREGROUND)]
}

/// Deletes an object without owners left, or takes the references to lost owners off it.
fn collect(snapshot: &Snapshot) -> Option<Write> {
    let mut kept = Vec::new();
    let mut absent = Vec::new();
    let (mut waiting, mut misplaced) = (false, None);
    for (owner, state) in &snapshot.owners {
        match state {
            OwnerState::Solid => kept.push(owner),
            OwnerState::Waiting => waiting = true,
            OwnerState::Absent(key) => absent.push((key.clone(), owner.uid.clone())),
            OwnerState::Elsewhere(key) => {
                absent.push((key.clone(), owner.uid.clone()));
                misplaced = Some(owner);
            }
        }
    }
    if kept.len() == snapshot.owners.len() {
        return None;
    }
    let mut write = if kept.is_empty() {
        // The owner waits for this one, so this one waits for its own dependents.
        let foreground = waiting && !snapshot.dependents.is_empty();
        if let Some(unblocked) = unblocked(snapshot).filter(|_| foreground) {
            return Some(unblocked);
        }
        let policy = policy(&snapshot.meta, foreground);
        let target = Target::new(snapshot.kind, &snapshot.meta);
        Action::Delete { target, grace_seconds: None, policy: Some(policy) }.into()
    } else {
        patch(snapshot.kind, &snapshot.meta, json!({"metadata": {"ownerReferences": kept}}))
    };
    write.unless_found = absent;
    write.note = misplaced.map(|owner| warning(snapshot, owner));
    Some(write)
}

/// Keeps an object from blocking its owners, as Kubernetes does, if a dependent of its own waits as
/// they do: that may be one of them, or wait for one.
fn unblocked(snapshot: &Snapshot) -> Option<Write> {
    let mut dependents = snapshot.dependents.iter();
    let circle = dependents.any(|(_, meta)| is_deleting_with(meta, FOREGROUND));
    let mut owners = snapshot.meta.owner_references.clone().filter(|_| circle)?;
    let blocking = owners.iter_mut().filter_map(|owner| owner.block_owner_deletion.as_mut());
    let mut blocked = false;
    for blocks in blocking {
        blocked |= std::mem::take(blocks);
    }
    let body = json!({"metadata": {"ownerReferences": owners}});
    blocked.then(|| patch(snapshot.kind, &snapshot.meta, body))
}

/// Says that an owner is named that cannot be one.
fn warning(snapshot: &Snapshot, owner: &OwnerReference) -> Note {
    let Snapshot { kind, meta, .. } = snapshot;
    let about = wherry_resources::events::reference(&json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": {"namespace": meta.namespace, "name": meta.name, "uid": meta.uid},
    }));
    let namespace = meta.namespace.as_deref().unwrap_or("");
    let OwnerReference { api_version, kind, name, uid, .. } = owner;
    let message = format!(
        "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does \
         not exist in namespace {namespace:?}"
    );
    Note::about(COMPONENT, about, true, "OwnerRefInvalidNamespace", message)
}

fn policy(meta: &ObjectMeta, foreground: bool) -> &'static str {
    let has = |finalizer| meta.finalizers.iter().flatten().any(|name| name == finalizer);
    if foreground || has(FOREGROUND) {
        "Foreground"
    } else if has(ORPHAN) {
        "Orphan"
    } else {
        "Background"
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::{Bare, Object, Seen};
    use super::super::testing::{at, meta, owner, text};
    use super::*;
    use std::time::Instant;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn kind(name: &str) -> &'static Kind {
        kind_of("v1", name).or_else(|| kind_of("apps/v1", name)).expect("in the table")
    }

    /// A ReplicaSet `web` with owners in these states.
    fn snapshot(states: &[(&str, &str)]) -> Snapshot {
        let state = |name: &str, state: &str| match state {
            "waiting" => OwnerState::Waiting,
            "absent" => OwnerState::Absent(Key::new(kind("Deployment"), "d", name)),
            "elsewhere" => OwnerState::Elsewhere(Key::new(kind("Deployment"), "d", name)),
            _ => OwnerState::Solid,
        };
        let owners = states.iter().map(|(name, word)| (owner(name), state(name, word))).collect();
        Snapshot { kind: kind("ReplicaSet"), meta: meta("d", "web"), owners, dependents: vec![] }
    }

    fn deleting(mut snapshot: Snapshot, finalizers: &[&str]) -> Snapshot {
        snapshot.meta.deletion_timestamp = Some(Time(at(0)));
        snapshot.meta.finalizers = Some(finalizers.iter().map(|name| (*name).into()).collect());
        snapshot
    }

    fn with_pod(mut snapshot: Snapshot, blocks: bool) -> Snapshot {
        let mut pod = meta("d", "pod");
        let mut reference = owner("web");
        reference.block_owner_deletion = Some(blocks);
        pod.owner_references = Some(vec![reference]);
        snapshot.dependents.push((kind("Pod"), pod));
        snapshot
    }

    fn check(snapshot: &Snapshot, expected: &str) {
        assert_eq!(text(&plan(snapshot, at(0))).trim_end(), expected);
    }

    #[test]
    fn the_last_owner_takes_its_dependents_along() {
        check(
            &snapshot(&[("a", "absent")]),
            "delete replicasets.apps d/web policy=Background unless deployments.apps d/a is there",
        );
        check(&snapshot(&[("a", "solid")]), "");
        check(&snapshot(&[]), "");
    }

    #[test]
    fn who_names_an_owner_of_another_namespace_is_told() {
        check(
            &snapshot(&[("a", "elsewhere")]),
            "delete replicasets.apps d/web policy=Background unless deployments.apps d/a is there \
             (Warning OwnerRefInvalidNamespace: ownerRef [/, namespace: d, name: a, uid: uid-a] \
             does not exist in namespace \"d\")",
        );
    }

    #[test]
    fn one_of_two_owners_gone_is_only_forgotten() {
        check(
            &snapshot(&[("a", "absent"), ("b", "solid")]),
            concat!(
                r#"patch replicasets.apps d/web {"metadata":{"ownerReferences":[{"apiVersion":"","#,
                r#""blockOwnerDeletion":true,"controller":true,"kind":"","name":"b","#,
                r#""uid":"uid-b"}]}} unless deployments.apps d/a is there"#,
            ),
        );
    }

    #[test]
    fn foreground_goes_from_the_leaves_up() {
        let policy = |snapshot| text(&plan(&snapshot, at(0)));
        assert_eq!(
            policy(with_pod(snapshot(&[("a", "waiting")]), true)),
            "delete replicasets.apps d/web policy=Foreground\n"
        );
        assert_eq!(
            policy(snapshot(&[("a", "waiting")])),
            "delete replicasets.apps d/web policy=Background\n"
        );
        check(&with_pod(deleting(snapshot(&[]), &[FOREGROUND]), true), "");
        let done = r#"patch replicasets.apps d/web {"metadata":{"finalizers":["keep"]}}"#;
        check(&with_pod(deleting(snapshot(&[]), &[FOREGROUND, "keep"]), false), done);
        check(&deleting(snapshot(&[]), &[FOREGROUND, "keep"]), done);
    }

    #[test]
    fn a_circle_of_owners_goes_too() {
        // a waits for web, and is one of its dependents.
        let mut web = with_pod(snapshot(&[("a", "waiting")]), true);
        web.meta.owner_references = Some(vec![owner("a")]);
        let waiting = &mut web.dependents[0].1;
        waiting.deletion_timestamp = Some(Time(at(0)));
        waiting.finalizers = Some(vec![FOREGROUND.to_string()]);
        check(
            &web,
            concat!(
                r#"patch replicasets.apps d/web {"metadata":{"ownerReferences":[{"apiVersion":"","#,
                r#""blockOwnerDeletion":false,"controller":true,"kind":"","name":"a","#,
                r#""uid":"uid-a"}]}}"#,
            ),
        );
        web.meta.owner_references.iter_mut().flatten().for_each(|owner| {
            owner.block_owner_deletion = Some(false);
        });
        check(&web, "delete replicasets.apps d/web policy=Foreground");
        let mut own = with_pod(deleting(snapshot(&[]), &[FOREGROUND]), true);
        own.dependents[0].1.uid = own.meta.uid.clone();
        check(&own, r#"patch replicasets.apps d/web {"metadata":{"finalizers":[]}}"#);
    }

    #[test]
    fn orphans_are_released_before_their_owner_goes() {
        check(
            &with_pod(deleting(snapshot(&[]), &[ORPHAN]), true),
            r#"patch pods d/pod {"metadata":{"ownerReferences":[]}}"#,
        );
        check(
            &deleting(snapshot(&[]), &[ORPHAN]),
            r#"patch replicasets.apps d/web {"metadata":{"finalizers":[]}}"#,
        );
    }

    #[test]
    fn what_is_being_deleted_is_not_deleted_again() {
        check(&deleting(snapshot(&[("a", "absent")]), &["keep"]), "");
    }

    #[test]
    fn owners_are_looked_for_where_they_may_be() {
        let (now, mut cache) = (Instant::now(), Cache::new());
        let there = |name: &str, uid: &str| {
            let object = ObjectMeta { uid: Some(uid.to_string()), ..meta("x", name) };
            Seen::Put(Object::new(Bare(object)))
        };
        cache.observe(kind("ConfigMap"), there("a", "1"), now);
        let node = ObjectMeta { uid: Some("2".to_string()), ..meta("", "n") };
        cache.observe(kind("Node"), Seen::Put(Object::new(Bare(node))), now);
        let named = |kind: &str, name: &str, uid: &str| OwnerReference {
            api_version: "v1".to_string(),
            kind: kind.to_string(),
            name: name.to_string(),
            uid: uid.to_string(),
            ..OwnerReference::default()
        };
        let map = named("ConfigMap", "a", "1");
        let of = |dependent: Key, owner: &OwnerReference| state(&cache, &dependent, owner);
        let pod = |namespace: &str| Key::new(kind("Pod"), namespace, "p");
        assert_eq!(of(pod("x"), &map), OwnerState::Solid);
        // Whoever names an owner of another namespace names nobody.
        let nobody = Key::new(kind("ConfigMap"), "y", "a");
        assert_eq!(of(pod("y"), &map), OwnerState::Elsewhere(nobody));
        let other = Key::new(kind("ConfigMap"), "x", "a");
        assert_eq!(of(pod("x"), &named("ConfigMap", "a", "9")), OwnerState::Absent(other));
        // Owners of the cluster may have dependents anywhere; the other way round nothing follows.
        assert_eq!(of(pod("y"), &named("Node", "n", "2")), OwnerState::Solid);
        assert_eq!(of(Key::new(kind("Node"), "", "n"), &map), OwnerState::Solid);
        assert_eq!(of(pod("x"), &named("Unheard", "a", "1")), OwnerState::Solid);
    }
}
