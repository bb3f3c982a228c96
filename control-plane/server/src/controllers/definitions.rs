//! CustomResourceDefinitions: their names, and their deletion.
//!
//! Owns: the status of a CRD, as far as it follows from its spec and from the CRDs beside it, and
//! its finalizer.
//!
//! ```text
//!  written ─► names accepted? (also asked when another CRD of the group changes) ─► Established
//!  deleted ─► Terminating ─► every object deleted ─► none left by the API server's word ─► gone
//! ```
//!
//! Invariant: the finalizer goes only after the API server found no object left; it refuses new
//! ones while the CRD is being deleted.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use serde_json::{Value, json};
use wherry_resources::custom::{CLEANUP_FINALIZER, names};

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::{Action, Target, Write};

type Definition = apiextensions::CustomResourceDefinition;

/// What a plan for one CRD reads.
pub struct Snapshot {
    pub definition: Arc<Definition>,
    /// The other CRDs of its group.
    pub others: Vec<Arc<Definition>>,
}

pub const CONTROLLER: Controller = Controller { name: "definitions", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    let Some((before, after)) = change.of::<Definition>() else {
        return;
    };
    let Some(changed) = after.or(before) else {
        return;
    };
    keys.push(change.key.clone());
    // Names that this one gives up may be what another one waits for, and those that it has got may
    // be another one's, too.
    if before.and_then(accepted) != after.and_then(accepted) {
        let group = &changed.spec.group;
        let same = cache.all::<Definition>().filter(|other| other.spec.group == *group);
        keys.extend(same.filter_map(|other| Some(key(other.metadata.name.as_deref()?))));
    }
}

fn accepted(definition: &Definition) -> Option<&apiextensions::CustomResourceDefinitionNames> {
    definition.status.as_ref()?.accepted_names.as_ref()
}

fn key(name: &str) -> Key {
    Key::of::<Definition>("", name)
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(definition) = view.cache.get::<Definition>("", key.name()) else {
        return Plan::default();
    };
    let others = view.cache.all::<Definition>().filter(|other| {
        other.spec.group == definition.spec.group && other.metadata.name != definition.metadata.name
    });
    plan(&Snapshot { others: others.collect(), definition }, view.now).into()
}

/// Puts the status right, or deletes the objects of a CRD that goes.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Vec<Write> {
    let definition = &*snapshot.definition;
    let old = without_schemas(definition);
    if definition.metadata.deletion_timestamp.is_some() {
        let held = definition.metadata.finalizers.iter().flatten();
        return match held.into_iter().any(|name| name == CLEANUP_FINALIZER) {
            true => vec![clean_up(definition, &old)],
            false => Vec::new(),
        };
    }
    let others: Vec<Value> = snapshot.others.iter().map(|other| without_schemas(other)).collect();
    let new = names::decide(&old, &others, now);
    if new["status"] == old["status"] {
        return Vec::new();
    }
    vec![Write::patch_status(definition, json!({"status": new["status"]}))]
}

/// What of a definition matters for its names, as JSON. Schemas are large, and each definition of a
/// group is compared with all others.
fn without_schemas(definition: &Definition) -> Value {
    let spec = &definition.spec;
    let versions: Vec<Value> = spec
        .versions
        .iter()
        .map(|version| json!({"name": version.name, "storage": version.storage}))
        .collect();
    let mut light = json!({
        "metadata": {"name": definition.metadata.name},
        "spec": {"group": spec.group, "names": spec.names, "versions": versions},
    });
    if let Some(status) = &definition.status {
        light["status"] = json!(status);
    }
    light
}

/// Deletes all objects, and takes the finalizer off if none is left.
fn clean_up(definition: &Definition, old: &Value) -> Write {
    let served = definition.spec.versions.iter().find(|version| version.served);
    // What was never established has no objects.
    let collection = served.filter(|_| names::is_established(old)).map(|version| {
        let names = definition.status.as_ref().and_then(|status| status.accepted_names.as_ref());
        let plural = names.map_or(definition.spec.names.plural.as_str(), |names| &names.plural);
        format!("/apis/{}/{}/{plural}", definition.spec.group, version.name)
    });
    Action::CleanUp { target: Target::of(definition), collection }.into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::cache::{Object, Seen, kind_row};
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn definition(plural: &str, status: &str) -> Arc<Definition> {
        Arc::new(yaml(&format!(
            "metadata: {{name: {plural}.example.com}}\n\
             spec: {{group: example.com, scope: Namespaced, names: {{plural: {plural}, kind: Shirt, \
             singular: shirt, listKind: ShirtList}}, \
             versions: [{{name: v1, served: true, storage: true}}]}}\nstatus: {status}"
        )))
    }

    fn check(definition: &Arc<Definition>, others: &[&Arc<Definition>], expected: &str) {
        let others = others.iter().map(|other| (*other).clone()).collect();
        let writes = plan(&Snapshot { definition: definition.clone(), others }, at(0));
        assert_eq!(text(&writes), expected);
    }

    const FREE: &str = "{acceptedNames: {plural: shirts, singular: shirt, kind: Shirt, \
        listKind: ShirtList}, storedVersions: [v1], conditions: [\
        {type: NamesAccepted, status: 'True', reason: NoConflicts, message: no conflicts found}, \
        {type: Established, status: 'True', reason: InitialNamesAccepted, \
        message: the initial names have been accepted}]}";

    #[test]
    fn a_settled_definition_is_left_alone() {
        check(&definition("shirts", FREE), &[], "");
    }

    #[test]
    fn a_name_that_another_one_holds_is_refused() {
        let first = definition("shirts", FREE);
        let second = definition("blouses", "{}");
        let writes = plan(&Snapshot { definition: second, others: vec![first] }, at(0));
        let shown = text(&writes);
        assert!(shown.contains("\"reason\":\"SingularConflict\""), "{shown}");
        assert!(shown.contains("\\\"Shirt\\\" is already in use"), "{shown}");
        assert!(shown.contains("\"reason\":\"NotAccepted\""), "{shown}");
    }

    #[test]
    fn only_news_about_names_concern_the_others_of_a_group() {
        let mut cache = Cache::new();
        cache.hold::<Definition>();
        for plural in ["shirts", "blouses"] {
            let seen = Seen::Put(Object::new(Definition::clone(&definition(plural, FREE))));
            cache.observe(kind_row::<Definition>(), seen, Instant::now());
        }
        let woken = |before: &str, after: &str| {
            let state =
                |status| Some(Object::new(Definition::clone(&definition("shirts", status))));
            let key = super::key("shirts.example.com");
            let change = Change { key, before: state(before), after: state(after) };
            let mut keys = Vec::new();
            wake(&cache, &change, &mut keys);
            keys.contains(&super::key("blouses.example.com"))
        };
        assert!(!woken(FREE, FREE));
        assert!(woken("{}", FREE));
        assert!(woken(FREE, "{}"));
    }

    #[test]
    fn objects_go_before_their_definition() {
        let mut going = definition("shirts", FREE);
        let meta = &mut Arc::make_mut(&mut going).metadata;
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0));
        meta.deletion_timestamp = Some(now);
        check(&going, &[], "");
        Arc::make_mut(&mut going).metadata.finalizers = Some(vec![CLEANUP_FINALIZER.to_owned()]);
        let kind = "customresourcedefinitions.apiextensions.k8s.io";
        check(
            &going,
            &[],
            &format!("clean up {kind} shirts.example.com at /apis/example.com/v1/shirts\n"),
        );
    }
}
