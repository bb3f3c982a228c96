//! Gathers from a snapshot what admission needs to know, so that admission itself reads nothing.

use super::{Part, write::Call};
use crate::apiserver::{
    admission::{Facts, service::Reservation},
    errors::ApiError,
    stored,
};
use serde_json::Value;
use wherry_resources::{Object, meta};
use wherry_store::Snapshot;

/// What was gathered, and the state it was read from.
pub struct Gathered {
    pub facts: Facts,
    pub snapshot: Snapshot,
    /// Addresses and ports that are taken while this write is on its way.
    pub reservation: Reservation,
}

/// Reads what admission of this object needs.
pub fn gather(
    call: &Call<'_>,
    new: &Object,
    old: Option<&Object>,
    snapshot: Snapshot,
) -> Result<Gathered, ApiError> {
    let find = |plural: &str, group: &str, namespace: &str, name: &str| -> Option<Object> {
        let kind = wherry_resources::kind(group, "v1", plural)?;
        let entry = snapshot.get(&stored::key(kind, namespace, name))?;
        Some(stored::decode(kind, &entry))
    };
    let mut facts = Facts { random: rand::random(), ..Facts::default() };
    let creates = old.is_none();
    if creates && call.kind.namespaced {
        facts.namespace = find("namespaces", "", "", call.namespace);
    }
    if creates && call.kind.is("", "Pod") {
        let text = |path: &str| new.pointer(path).and_then(Value::as_str).unwrap_or("");
        let account = Some(text("/spec/serviceAccountName")).filter(|name| !name.is_empty());
        let account = account.unwrap_or("default");
        facts.service_account = find("serviceaccounts", "", call.namespace, account);
        facts.priority_class = match text("/spec/priorityClassName") {
            "" => default_priority_class(&snapshot),
            name => find("priorityclasses", "scheduling.k8s.io", "", name),
        };
    }
    let mut reservation = Reservation::none();
    if call.part == Part::Main && call.kind.is("", "Service") {
        let latest = || {
            let state = call.api.store().current();
            let services = state.range(&stored::prefix(call.kind, None), None);
            services.map(|(_, entry)| stored::decode(call.kind, &entry)).collect()
        };
        let (taken, held) = call.api.allocations().reserve(latest, new, old, facts.random)?;
        facts.service = Some(taken);
        reservation = held;
    }
    Ok(Gathered { facts, snapshot, reservation })
}

/// The PriorityClass marked as the default; the highest one if several are.
fn default_priority_class(snapshot: &Snapshot) -> Option<Object> {
    let kind = wherry_resources::kind("scheduling.k8s.io", "v1", "priorityclasses")?;
    let classes = snapshot.range(&stored::prefix(kind, None), None);
    let classes = classes.map(|(_, entry)| stored::decode(kind, &entry));
    classes
        .filter(|class| class["globalDefault"] == true && !meta::is_deleting(class))
        .max_by_key(|class| class["value"].as_i64().unwrap_or(0))
}
