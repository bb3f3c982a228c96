//! ResourceQuotas: what a namespace uses, counted from what there is.
//!
//! The API server counts each write before it is stored, and each removal after it
//! (`apiserver/verbs/quota.rs`). This controller sees what that misses: a quota that is new or was
//! changed, Pods that have ended, a member that died between counting and storing.
//!
//! Owns: nothing. What it writes into the status of a ResourceQuota is a reason to count: the API
//! server puts there what is true at that moment, because writes that are on their way can be known
//! to it alone. So a count here need not be exact, and is made when a quota has not changed for
//! [`SETTLED`], not at each change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use serde_json::{Value, json};
use wherry_resources::quantity::Quantity;
use wherry_resources::quota::{Amounts, concerns, is_counted, usage};
use wherry_resources::{Kind, kind};

use super::cache::{Cache, Change, Key, Memo};
use super::reconcile::{Controller, Plan, View};
use super::write::{Action, Write};

/// While writers come and go, what one has counted is not yet seen here.
const SETTLED: Duration = Duration::from_secs(1);

/// What a plan for one quota reads.
pub struct Snapshot {
    pub quota: Arc<ResourceQuota>,
    /// What the namespace holds of kinds that the quota may be about.
    pub objects: Vec<(&'static Kind, Value)>,
    /// How long the quota has been as it is; none when it has just been seen so.
    pub unchanged_for: Option<Duration>,
}

/// Since when a quota has had its revision.
struct Seen {
    revision: String,
    since: Instant,
}

pub const CONTROLLER: Controller = Controller { name: "quota", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<ResourceQuota>().is_some() {
        keys.push(change.key.clone());
        return;
    }
    // What comes is counted by the API server; what goes or ends is looked at here too.
    let ended = match change.of::<Pod>() {
        Some((Some(before), Some(after))) => {
            super::pods::is_finished(after) && !super::pods::is_finished(before)
        }
        _ => change.after.is_none(),
    };
    let namespace = change.key.namespace();
    if ended && !namespace.is_empty() {
        let quotas = cache.within::<ResourceQuota>(namespace);
        let key = |name: &str| Key::of::<ResourceQuota>(namespace, name);
        keys.extend(quotas.filter_map(|quota| Some(key(quota.metadata.name.as_deref()?))));
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(quota) = view.cache.get::<ResourceQuota>(key.namespace(), key.name()) else {
        return Plan::default();
    };
    let revision = quota.metadata.resource_version.clone().unwrap_or_default();
    let seen = view.cache.memo::<Seen>(key).filter(|seen| seen.revision == revision);
    let unchanged_for = seen.map(|seen| view.instant.saturating_duration_since(seen.since));
    // Not counted at each change: what matters is what is true when things have settled.
    let waits = unchanged_for.is_none_or(|time| time < SETTLED) && is_counted(&json(&quota));
    let objects = if waits { Vec::new() } else { objects(view.cache, key.namespace()) };
    let is_new = unchanged_for.is_none();
    let mut plan = plan(&Snapshot { quota, objects, unchanged_for }, view.now);
    if is_new {
        let memo = Memo::new(Seen { revision, since: view.instant });
        plan.writes.push(Action::Remember { about: key.clone(), memo }.into());
    }
    plan
}

fn json<T: serde::Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("typed objects are JSON")
}

/// The objects of a namespace as quotas count them: whole where their content counts.
fn objects(cache: &Cache, namespace: &str) -> Vec<(&'static Kind, Value)> {
    let row = |plural: &str| kind("", "v1", plural).expect("a built-in kind");
    let mut objects = Vec::new();
    for pod in cache.within::<Pod>(namespace) {
        objects.push((row("pods"), json(&*pod)));
    }
    for service in cache.within::<Service>(namespace) {
        objects.push((row("services"), json(&*service)));
    }
    for claim in cache.within::<PersistentVolumeClaim>(namespace) {
        objects.push((row("persistentvolumeclaims"), json(&*claim)));
    }
    let whole = ["pods", "services", "persistentvolumeclaims"];
    for (kind, metas) in cache.contents(namespace) {
        if !kind.group.is_empty() || !whole.contains(&kind.plural) {
            objects.extend(metas.iter().map(|_| (kind, json!({}))));
        }
    }
    objects
}

/// Writes what is used, if the status says anything else and nothing is on its way.
pub fn plan(snapshot: &Snapshot, _now: Timestamp) -> Plan {
    let quota = &*snapshot.quota;
    if quota.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let as_json = json(quota);
    let counted = is_counted(&as_json);
    if let Some(left) = snapshot
        .unchanged_for
        .map_or(Some(SETTLED), |time| SETTLED.checked_sub(time).filter(|left| !left.is_zero()))
        && counted
    {
        return Plan { writes: Vec::new(), again: Some(left) };
    }
    let hard = Amounts::read(&as_json["spec"]["hard"]);
    let told = Amounts::read(&as_json["status"]["used"]);
    let used = count(&as_json, &hard, &told, &snapshot.objects);
    if counted && used == told {
        return Plan::default();
    }
    // The whole maps: a merge must take away what the quota limits no more.
    let map = |amounts: &Amounts, held: &str| {
        let mut map = amounts.to_json();
        for name in as_json["status"][held].as_object().into_iter().flat_map(|held| held.keys()) {
            if !amounts.0.contains_key(name) {
                map[name] = Value::Null;
            }
        }
        map
    };
    let status = json!({"hard": map(&hard, "hard"), "used": map(&used, "used")});
    vec![Write::patch_status(quota, json!({"status": status}))].into()
}

/// What is used of what is limited. Kinds that nobody holds here keep the count that they have.
fn count(
    quota: &Value,
    hard: &Amounts,
    told: &Amounts,
    objects: &[(&'static Kind, Value)],
) -> Amounts {
    let mut used = Amounts::default();
    for name in hard.0.keys() {
        let known = name.strip_prefix("count/").is_none_or(|counted| {
            wherry_resources::KINDS.iter().any(|kind| kind.qualified() == counted)
        });
        let kept = told.get(name).filter(|_| !known);
        used.add(name, kept.unwrap_or(Quantity::ZERO));
    }
    for (kind, object) in objects {
        if concerns(quota, kind, object) {
            used.add_all(&usage(kind, object).among(hard));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    fn snapshot(status: &str, pods: &[&str], seconds: Option<u64>) -> Snapshot {
        let quota: ResourceQuota = yaml(&format!(
            "metadata: {{name: q, namespace: d}}\n\
             spec: {{hard: {{pods: \"9\", requests.cpu: \"2\", count/secrets: \"5\"}}}}\n{status}"
        ));
        let row = |plural: &str| kind("", "v1", plural).expect("a kind");
        let pod = |phase: &&str| {
            let requests = json!({"requests": {"cpu": "500m"}});
            let spec = json!({"containers": [{"name": "c", "resources": requests}]});
            (row("pods"), json!({"spec": spec, "status": {"phase": phase}}))
        };
        let mut objects: Vec<_> = pods.iter().map(pod).collect();
        objects.push((row("secrets"), json!({})));
        let unchanged_for = seconds.map(Duration::from_secs);
        Snapshot { quota: Arc::new(quota), objects, unchanged_for }
    }

    const COUNTED: &str = "status: {hard: {pods: \"9\", requests.cpu: \"2\", count/secrets: \"5\"}, \
        used: {pods: \"2\", requests.cpu: \"1\", count/secrets: \"1\"}}";

    #[test]
    fn a_new_quota_is_counted_at_once() {
        let shown = text(&plan(&snapshot("", &["Running", "Running"], None), at(0)).writes);
        assert!(shown.contains(r#""used":{"count/secrets":"1","pods":"2","requests.cpu":"1"}"#));
        assert!(shown.contains(r#""hard":{"count/secrets":"5","pods":"9","requests.cpu":"2"}"#));
    }

    #[test]
    fn what_has_ended_is_counted_off_when_nothing_is_on_its_way() {
        let pods = ["Running", "Succeeded"];
        let waits = plan(&snapshot(COUNTED, &pods, Some(0)), at(0));
        assert_eq!((waits.writes.len(), waits.again), (0, Some(SETTLED)));
        let shown = text(&plan(&snapshot(COUNTED, &pods, Some(5)), at(0)).writes);
        assert!(shown.contains(r#""pods":"1","requests.cpu":"500m""#), "{shown}");
    }

    #[test]
    fn a_right_count_is_left_alone_and_what_is_limited_no_more_goes() {
        let right = snapshot(COUNTED, &["Running", "Pending"], Some(9));
        assert_eq!(text(&plan(&right, at(0)).writes), "");
        let more = "status: {hard: {pods: \"9\", services: \"1\"}, used: {pods: \"0\", \
            services: \"1\"}}";
        let shown = text(&plan(&snapshot(more, &[], None), at(0)).writes);
        assert!(shown.contains(r#""services":null"#), "{shown}");
    }
}
