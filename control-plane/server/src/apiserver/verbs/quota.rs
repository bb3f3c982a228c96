//! ResourceQuotas: a write that would use more than a quota allows is refused; one that fits is
//! counted in the quota's status before it is stored.
//!
//! The count is changed under the precondition that nobody else has changed it, so two writes at
//! once cannot both take the last place. A write that then fails gives back what it took. Before a
//! write is refused, what the namespace holds is counted anew, unless another write is between the
//! two steps; that only one process can know, so the leader answers all writes in a namespace with
//! quotas (`elsewhere.rs`).

use super::write::Call;
use crate::apiserver::{errors::ApiError, stored};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use wherry_resources::quota::{self, Amounts};
use wherry_resources::{Kind, Object, meta};
use wherry_store::{Entry, Precondition, Snapshot, WriteError};

/// How often a count is tried again when others come first: as many writers as may meet at one
/// quota.
const TRIES: usize = 64;

/// Writes of this member between counting and storing, by namespace.
#[derive(Clone, Default)]
pub struct Counting(Arc<Mutex<HashMap<String, Writes>>>);

/// Those of one namespace, while there are any.
#[derive(Default)]
struct Writes {
    between: usize,
    /// How many have begun.
    begun: u64,
}

/// A moment in which a write was the only one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Alone(u64);

/// What a write has taken of the namespace's quotas.
pub struct Taken {
    amounts: Vec<(String, Amounts)>,
    _between: Between,
}

/// A write that is between its two steps for as long as this lives.
pub struct Between {
    counting: Counting,
    namespace: String,
}

impl Counting {
    fn begin(&self, namespace: &str) -> Between {
        let mut all = self.lock();
        let writes = all.entry(namespace.to_owned()).or_default();
        writes.between += 1;
        writes.begun += 1;
        Between { counting: self.clone(), namespace: namespace.to_owned() }
    }

    /// Whether the asker's write is the only one. Asked twice with the same answer, no other has
    /// begun between.
    fn alone(&self, namespace: &str) -> Option<Alone> {
        let all = self.lock();
        all.get(namespace).filter(|writes| writes.between == 1).map(|writes| Alone(writes.begun))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Writes>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let mut counting = self.counting.lock();
        if let Some(writes) = counting.get_mut(&self.namespace) {
            writes.between -= 1;
            if writes.between == 0 {
                counting.remove(&self.namespace);
            }
        }
    }
}

fn row() -> &'static Kind {
    wherry_resources::kind("", "v1", "resourcequotas").expect("ResourceQuota is a built-in kind")
}

fn quotas(snapshot: &Snapshot, namespace: &str) -> Vec<(Object, Entry)> {
    let found = snapshot.range(&stored::prefix(row(), Some(namespace)), None);
    found.map(|(_, entry)| (stored::decode(row(), &entry), entry)).collect()
}

/// Whether a namespace has any.
pub fn is_any(snapshot: &Snapshot, namespace: &str) -> bool {
    snapshot.range(&stored::prefix(row(), Some(namespace)), None).next().is_some()
}

/// Counts what a write uses, or refuses it. None when no quota is about it.
pub async fn take(
    call: &Call<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Option<Taken>, ApiError> {
    if call.namespace.is_empty() || call.kind.is("", "ResourceQuota") && old.is_some() {
        return Ok(None);
    }
    let snapshot = call.api.store().current();
    let mut quotas = quotas(&snapshot, call.namespace);
    quotas.retain(|(quota, _)| quota::concerns(quota, call.kind, new));
    if quotas.is_empty() {
        return Ok(None);
    }
    let delta = quota::delta(call.kind, new, old);
    for (quota, _) in quotas.iter().filter(|_| old.is_none() && call.kind.is("", "Pod")) {
        if let Some(unsaid) = quota::unsaid(quota, new) {
            let name = meta::name(quota);
            let why = format!("failed quota: {name}: must specify {unsaid}");
            return Err(ApiError::forbidden(call.kind, meta::name(new), why));
        }
    }
    let between = call.api.counting().begin(call.namespace);
    let mut taken = Taken { amounts: Vec::new(), _between: between };
    for (quota, _) in &quotas {
        let name = meta::name(quota);
        let more = delta.among(&Amounts::read(&quota["spec"]["hard"]));
        if more.0.values().all(|amount| amount.is_zero()) {
            continue;
        }
        match charge(call, name, &more, true).await {
            Ok(()) => taken.amounts.push((name.to_owned(), more)),
            Err(why) => {
                give_back(call, taken).await;
                return Err(match why {
                    Refusal::Full(why) => ApiError::forbidden(call.kind, meta::name(new), why),
                    Refusal::Busy => ApiError::conflict(
                        row(),
                        name,
                        "too many writers count in this quota at once; try again".to_owned(),
                    ),
                    Refusal::Failed(error) => error,
                });
            }
        }
    }
    Ok(Some(taken))
}

/// Ends a count with the outcome of its write. What nobody knows to have happened stays counted.
pub async fn settle<T>(call: &Call<'_>, taken: Option<Taken>, put: &Result<T, WriteError>) {
    match (taken, put) {
        (Some(_), Ok(_) | Err(WriteError::Unknown)) | (None, _) => {}
        (Some(taken), Err(_)) => give_back(call, taken).await,
    }
}

/// To be called before an object is removed, and its result given to [`release`].
pub fn removing(call: &Call<'_>) -> Between {
    call.api.counting().begin(call.namespace)
}

/// Counts off what has been removed.
pub async fn release(call: &Call<'_>, old: &Object, between: Between) {
    if call.namespace.is_empty() {
        return;
    }
    let snapshot = call.api.store().current();
    let used = quota::usage(call.kind, old);
    let mut taken = Taken { amounts: Vec::new(), _between: between };
    for (quota, _) in quotas(&snapshot, call.namespace) {
        if quota::concerns(&quota, call.kind, old) {
            let less = used.among(&Amounts::read(&quota["spec"]["hard"]));
            taken.amounts.push((meta::name(&quota).to_owned(), less));
        }
    }
    give_back(call, taken).await;
}

/// Gives back what a write took that did not happen. What cannot be given back now is counted off
/// by the quota controller.
async fn give_back(call: &Call<'_>, taken: Taken) {
    for (name, amounts) in &taken.amounts {
        let mut less = Amounts::default();
        for (resource, amount) in &amounts.0 {
            let none = wherry_resources::quantity::Quantity::ZERO;
            less.add(resource, none.minus(*amount));
        }
        if charge(call, name, &less, false).await.is_err() {
            tracing::warn!(quota = name, "a refused write stays counted until the next count");
        }
    }
}

enum Refusal {
    Full(String),
    Busy,
    Failed(ApiError),
}

/// Adds to the count of one quota; with `limited` only if there is room.
async fn charge(call: &Call<'_>, name: &str, more: &Amounts, limited: bool) -> Result<(), Refusal> {
    let key = stored::key(row(), call.namespace, name);
    let counting = call.api.counting();
    // Why there is no room by the count as it stands.
    let mut full: Option<String> = None;
    for _ in 0..TRIES {
        let snapshot = call.api.store().current();
        let Some(entry) = snapshot.get(&key) else { return Ok(()) };
        let mut quota = stored::decode(row(), &entry);
        let hard = Amounts::read(&quota["spec"]["hard"]);
        let mut used = Amounts::read(&quota["status"]["used"]).among(&hard);
        let is_new = hard.0.keys().any(|resource| used.get(resource).is_none());
        if is_new && !limited {
            // What is given back was never taken of it.
            return Ok(());
        }
        if is_new || full.is_some() {
            // Others may be stored in the count and counted once more, or the other way round, so a
            // count holds only if nobody else was between their steps while it was made.
            let alone = counting.alone(call.namespace);
            // A new leader must not count before it has seen what the last one stored.
            let latest = call.api.latest().await.map_err(Refusal::Failed)?;
            used = count(&latest, &quota, call.namespace);
            let holds = alone.is_some() && counting.alone(call.namespace) == alone;
            if let Some(why) = full.take_if(|_| !holds) {
                return Err(Refusal::Full(why));
            }
        }
        if let Some(why) = quota::exceeded(&quota, more, &used).filter(|_| limited) {
            if full.is_some() {
                return Err(Refusal::Full(why));
            }
            full = Some(why);
            continue;
        }
        if call.dry_run {
            return Ok(());
        }
        used.add_all(more);
        quota["status"] = serde_json::json!({ "hard": hard.to_json(), "used": used.to_json() });
        let value = stored::encode(row(), &quota);
        let put = call.api.store().put(key.clone(), value, Precondition::At(entry.modified)).await;
        match put {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(Refusal::Failed(ApiError::Unavailable(error.to_string()))),
        }
    }
    Err(Refusal::Busy)
}

/// What a namespace holds of what a quota counts.
fn count(snapshot: &Snapshot, quota: &Object, namespace: &str) -> Amounts {
    let hard = Amounts::read(&quota["spec"]["hard"]);
    let mut used = Amounts::default();
    let told = Amounts::read(&quota["status"]["used"]);
    for resource in hard.0.keys() {
        // Custom resources are not among the kinds below: what was counted stays.
        let custom = resource.strip_prefix("count/").is_some_and(|name| {
            wherry_resources::KINDS.iter().all(|kind| kind.qualified() != name)
        });
        let kept = told.get(resource).filter(|_| custom);
        used.add(resource, kept.unwrap_or(wherry_resources::quantity::Quantity::ZERO));
    }
    let kinds = wherry_resources::KINDS.iter().filter(|kind| {
        kind.namespaced && kind.storage == wherry_resources::Storage::Own && !kind.is("", "Event")
    });
    for kind in kinds {
        for (_, entry) in snapshot.range(&stored::prefix(kind, Some(namespace)), None) {
            let object = stored::decode(kind, &entry);
            if quota::concerns(quota, kind, &object) {
                used.add_all(&quota::usage(kind, &object).among(&hard));
            }
        }
    }
    used
}
