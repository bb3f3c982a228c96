//! ResourceQuotas: a write that would use more than a quota allows is refused; one that fits is
//! counted in the quota's status before it is stored.
//!
//! Invariant: what a quota's status says is never less than what is stored, and what is still on
//! its way there. It holds because
//! - only the leader's process changes the count (`elsewhere.rs` brings it the writes that matter),
//!   and only while it leads in the term in which the write began;
//! - what a write adds is counted before it is stored, what it frees after that, both under the
//!   precondition that nobody else has changed the count;
//! - whoever counts anew, from a linearizable read, waits until no write is between its two steps
//!   ([`Desk::steps`]). That is done for a quota that is new or was changed, before a write is
//!   refused, and when the status is written by anybody: what it says is counted here.
//!
//! A write of which nobody knows whether it is stored stays counted; before the next count the
//! leader stores something behind it, so that it is there by then or never comes.

use super::{Part, write::Call};
use crate::apiserver::{ApiServer, errors::ApiError, stored};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use wherry_resources::quantity::Quantity;
use wherry_resources::quota::{self, Amounts};
use wherry_resources::{Kind, Object, meta};
use wherry_store::{Entry, Leadership, Precondition, Revision, Snapshot, WriteError};

/// How often a count is tried again when others come first: as many writers as may meet at one
/// quota.
const TRIES: usize = 64;
/// A count that was found right is not made anew for so long: who is refused may try again at once,
/// and a count reads the whole namespace.
const RIGHT_FOR: Duration = Duration::from_secs(1);
/// Namespaces that are remembered although nobody writes in them.
const DESKS_MAX: usize = 1024;

/// Writes of this member between counting and storing, by namespace.
#[derive(Clone, Default)]
pub struct Counting(Arc<Mutex<HashMap<String, Arc<Desk>>>>);

/// Where the writes of one namespace are counted.
#[derive(Default)]
struct Desk {
    /// Held for reading by writes between their two steps, for writing by whoever counts anew.
    steps: Arc<RwLock<()>>,
    /// There was a write that may be stored later than its answer was given.
    unsettled: AtomicBool,
    /// Counts that were found right: at which revision of the quota, and when. Held for a look.
    right: Mutex<HashMap<String, (Revision, Instant)>>,
}

/// What a write has taken of the namespace's quotas.
pub struct Taken {
    amounts: Vec<(String, Amounts)>,
    /// What becomes free when the write is stored.
    frees: Amounts,
    between: Between,
}

/// A write that is between its two steps for as long as this lives.
pub struct Between {
    desk: Arc<Desk>,
    term: u64,
    _step: OwnedRwLockReadGuard<()>,
}

/// Nobody is between two steps for as long as this lives.
pub struct Alone {
    desk: Arc<Desk>,
    term: u64,
    _steps: OwnedRwLockWriteGuard<()>,
}

impl Counting {
    fn desk(&self, namespace: &str) -> Arc<Desk> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= DESKS_MAX {
            all.retain(|_, desk| {
                Arc::strong_count(desk) > 1 || desk.unsettled.load(Ordering::Relaxed)
            });
        }
        all.entry(namespace.to_owned()).or_default().clone()
    }

    async fn begin(&self, api: &ApiServer, namespace: &str) -> Result<Between, ApiError> {
        let desk = self.desk(namespace);
        let step = desk.steps.clone().read_owned().await;
        Ok(Between { desk, term: term(api)?, _step: step })
    }

    async fn alone(&self, api: &ApiServer, namespace: &str) -> Result<Alone, ApiError> {
        let desk = self.desk(namespace);
        let steps = desk.steps.clone().write_owned().await;
        Ok(Alone { desk, term: term(api)?, _steps: steps })
    }
}

impl Desk {
    fn right(&self) -> MutexGuard<'_, HashMap<String, (Revision, Instant)>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_right(&self, quota: &str, entry: &Entry) -> bool {
        let found = self.right().get(quota).copied();
        found.is_some_and(|(revision, at)| revision == entry.modified && at.elapsed() < RIGHT_FOR)
    }
}

/// The term in which this member leads, for a handle that does not forward: a write must not be
/// stored in a later one, when others may have counted without it.
fn term(api: &ApiServer) -> Result<u64, ApiError> {
    match *api.store().leadership().borrow() {
        Leadership::Leader { term } if api.acts_as_leader() => Ok(term),
        _ => Err(ApiError::Unavailable(
            "quotas of this namespace are counted by the leader, which this member is not; try \
             again"
                .to_owned(),
        )),
    }
}

fn row() -> &'static Kind {
    wherry_resources::kind("", "v1", "resourcequotas").expect("ResourceQuota is a built-in kind")
}

fn quotas(snapshot: &Snapshot, namespace: &str) -> Vec<Object> {
    let found = snapshot.range(&stored::prefix(row(), Some(namespace)), None);
    found.map(|(_, entry)| stored::decode(row(), &entry)).collect()
}

/// Whether a namespace has any.
pub fn is_any(snapshot: &Snapshot, namespace: &str) -> bool {
    snapshot.range(&stored::prefix(row(), Some(namespace)), None).next().is_some()
}

/// Counts what a write adds, or refuses it. None when no quota is about it.
pub async fn take(
    call: &Call<'_>,
    new: &Object,
    old: Option<&Object>,
) -> Result<Option<Taken>, ApiError> {
    // By its status an object can only come to use less; the quota controller has that counted.
    let counts = matches!(call.part, Part::Main | Part::Resize);
    if !counts || call.namespace.is_empty() || call.kind.is("", "ResourceQuota") && old.is_some() {
        return Ok(None);
    }
    let (adds, frees) = parts(&quota::delta(call.kind, new, old));
    let mut counted_anew = false;
    for _ in 0..TRIES {
        let concerned = concerned(call, new);
        if concerned.is_empty() {
            return Ok(None);
        }
        if old.is_none() && call.kind.is("", "Pod") {
            said(call, &concerned, new)?;
        }
        if let Some(quota) = concerned.iter().find(|quota| !quota::is_counted(quota)) {
            count_anew(call, meta::name(quota)).await?;
            continue;
        }
        let between = call.api.counting().begin(call.api, call.namespace).await?;
        let mut taken = Taken { amounts: Vec::new(), frees: frees.clone(), between };
        let (name, refusal) = match add(call, &concerned, &adds, &mut taken).await {
            Ok(()) => return Ok(Some(taken)),
            Err(refused) => refused,
        };
        give_back(call, taken).await;
        match refusal {
            Refusal::Uncounted => {}
            Refusal::Failed(error) => return Err(error),
            Refusal::Busy => return Err(busy(&name)),
            Refusal::Full(why) => {
                // More may be counted than there is.
                if counted_anew || !count_anew(call, &name).await? {
                    return Err(ApiError::forbidden(call.kind, meta::name(new), why));
                }
                counted_anew = true;
            }
        }
    }
    Err(busy(meta::name(new)))
}

fn busy(quota: &str) -> ApiError {
    let why = "too many writers count in this quota at once; try again".to_owned();
    ApiError::conflict(row(), quota, why)
}

/// What grows, and what shrinks (as a positive amount).
fn parts(delta: &Amounts) -> (Amounts, Amounts) {
    let (mut adds, mut frees) = (Amounts::default(), Amounts::default());
    for (name, amount) in &delta.0 {
        if *amount > Quantity::ZERO {
            adds.add(name, *amount);
        } else if !amount.is_zero() {
            frees.add(name, Quantity::ZERO.minus(*amount));
        }
    }
    (adds, frees)
}

/// The quotas that are about an object.
fn concerned(call: &Call<'_>, object: &Object) -> Vec<Object> {
    let mut quotas = quotas(&call.api.store().current(), call.namespace);
    quotas.retain(|quota| quota::concerns(quota, call.kind, object));
    quotas
}

/// What is limited must be said.
fn said(call: &Call<'_>, quotas: &[Object], pod: &Object) -> Result<(), ApiError> {
    let unsaid = |quota: &Object| {
        let unsaid = quota::unsaid(quota, pod)?;
        Some(format!("failed quota: {}: must specify {unsaid}", meta::name(quota)))
    };
    match quotas.iter().find_map(unsaid) {
        Some(why) => Err(ApiError::forbidden(call.kind, meta::name(pod), why)),
        None => Ok(()),
    }
}

/// Counts in each of the quotas; the first that refuses is named.
async fn add(
    call: &Call<'_>,
    quotas: &[Object],
    adds: &Amounts,
    taken: &mut Taken,
) -> Result<(), (String, Refusal)> {
    for quota in quotas {
        let name = meta::name(quota).to_owned();
        match charge(call, &name, adds, &taken.between, true).await {
            Ok(added) => taken.amounts.push((name, added)),
            Err(refusal) => return Err((name, refusal)),
        }
    }
    Ok(())
}

/// Whether a write may still be stored, having been counted.
pub fn still_counts(call: &Call<'_>, taken: Option<&Taken>) -> Result<(), ApiError> {
    let same = |taken: &Taken| term(call.api).is_ok_and(|term| term == taken.between.term);
    match taken {
        Some(taken) if !same(taken) => Err(ApiError::Unavailable(
            "another member has come to lead while this was counted; try again".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Ends a count with the outcome of its write. What nobody knows to have happened stays counted.
pub async fn settle<T>(
    call: &Call<'_>,
    new: &Object,
    taken: Option<Taken>,
    put: &Result<T, WriteError>,
) {
    let Some(taken) = taken else { return };
    match put {
        Ok(_) => release(call, new, &taken.frees.clone(), taken.between).await,
        Err(WriteError::Unknown) => taken.between.desk.unsettled.store(true, Ordering::Relaxed),
        Err(_) => give_back(call, taken).await,
    }
}

/// To be called before an object is removed, and its result given to [`removed`]. None where no
/// quota is counted by this member.
pub async fn removing(call: &Call<'_>) -> Option<Between> {
    let counted = !call.namespace.is_empty()
        && is_any(&call.api.store().current(), call.namespace)
        && term(call.api).is_ok();
    match counted {
        true => call.api.counting().begin(call.api, call.namespace).await.ok(),
        false => None,
    }
}

/// Counts off what has been removed.
pub async fn removed(call: &Call<'_>, old: &Object, between: Option<Between>) {
    if let Some(between) = between {
        release(call, old, &quota::usage(call.kind, old), between).await;
    }
}

/// Counts off what a stored write has freed.
async fn release(call: &Call<'_>, object: &Object, frees: &Amounts, between: Between) {
    if frees.0.is_empty() {
        return;
    }
    let names = concerned(call, object).into_iter().map(|quota| meta::name(&quota).to_owned());
    let amounts = names.map(|name| (name, frees.clone())).collect();
    give_back(call, Taken { amounts, frees: Amounts::default(), between }).await;
}

/// Counts off. What cannot be counted off now is left to the next count.
async fn give_back(call: &Call<'_>, taken: Taken) {
    for (name, amounts) in &taken.amounts {
        let mut less = Amounts::default();
        for (resource, amount) in &amounts.0 {
            less.add(resource, Quantity::ZERO.minus(*amount));
        }
        if charge(call, name, &less, &taken.between, false).await.is_err() {
            tracing::warn!(quota = name, "what is free stays counted until the next count");
        }
    }
}

enum Refusal {
    Full(String),
    /// Its count says nothing of what it limits.
    Uncounted,
    Busy,
    Failed(ApiError),
}

/// Adds to the count of one quota; with `limited` only if there is room. Returns what was added.
async fn charge(
    call: &Call<'_>,
    name: &str,
    more: &Amounts,
    between: &Between,
    limited: bool,
) -> Result<Amounts, Refusal> {
    let key = stored::key(row(), call.namespace, name);
    for _ in 0..TRIES {
        if term(call.api).map_err(Refusal::Failed)? != between.term {
            let why = "another member has come to lead; try again".to_owned();
            return Err(Refusal::Failed(ApiError::Unavailable(why)));
        }
        let snapshot = call.api.store().current();
        let Some(entry) = snapshot.get(&key) else { return Ok(Amounts::default()) };
        let mut quota = stored::decode(row(), &entry);
        if limited && !quota::is_counted(&quota) {
            return Err(Refusal::Uncounted);
        }
        let hard = Amounts::read(&quota["spec"]["hard"]);
        let mut used = Amounts::read(&quota["status"]["used"]).among(&hard);
        // What was never counted here cannot be counted off either.
        let more = more.among(&used);
        if more.0.values().all(Quantity::is_zero) {
            return Ok(Amounts::default());
        }
        if let Some(why) = quota::exceeded(&quota, &more, &used).filter(|_| limited) {
            return Err(Refusal::Full(why));
        }
        if call.dry_run {
            return Ok(Amounts::default());
        }
        used.add_all(&more);
        quota["status"]["used"] = used.to_json();
        let value = stored::encode(row(), &quota);
        let put = call.api.store().put(key.clone(), value, Precondition::At(entry.modified)).await;
        match put {
            Ok(_) => return Ok(more),
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(Refusal::Failed(ApiError::Unavailable(error.to_string()))),
        }
    }
    Err(Refusal::Busy)
}

/// Counts a quota anew. Whether its status says anything else since.
async fn count_anew(call: &Call<'_>, name: &str) -> Result<bool, ApiError> {
    let key = stored::key(row(), call.namespace, name);
    let desk = call.api.counting().desk(call.namespace);
    let before = call.api.store().current().get(&key);
    if before.as_ref().is_some_and(|entry| desk.was_right(name, entry)) {
        return Ok(false);
    }
    let alone = call.api.counting().alone(call.api, call.namespace).await?;
    for _ in 0..TRIES {
        let latest = count_from(call, &key, &alone).await?;
        let Some(entry) = latest.get(&key) else { return Ok(true) };
        let mut quota = stored::decode(row(), &entry);
        let told = Amounts::read(&quota["status"]["used"]);
        let used = count(&latest, &quota, call.namespace);
        if quota::is_counted(&quota) && told == used {
            desk.right().insert(name.to_owned(), (entry.modified, Instant::now()));
            // Somebody may have put it right while this one waited.
            return Ok(before.is_none_or(|before| before.modified != entry.modified));
        }
        write_status(&mut quota, &used);
        let value = stored::encode(row(), &quota);
        match call.api.store().put(key.clone(), value, Precondition::At(entry.modified)).await {
            Ok(entry) => {
                desk.right().insert(name.to_owned(), (entry.modified, Instant::now()));
                return Ok(true);
            }
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(ApiError::Unavailable(error.to_string())),
        }
    }
    Err(busy(name))
}

/// The state to count from: all that was on its way before is in it, or never comes.
async fn count_from(
    call: &Call<'_>,
    quota: &bytes::Bytes,
    alone: &Alone,
) -> Result<Snapshot, ApiError> {
    while alone.desk.unsettled.load(Ordering::Relaxed) {
        let latest = call.api.latest().await?;
        let Some(entry) = latest.get(quota) else { break };
        let behind = Precondition::At(entry.modified);
        match call.api.store().put(quota.clone(), entry.value.clone(), behind).await {
            Ok(_) => alone.desk.unsettled.store(false, Ordering::Relaxed),
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(ApiError::Unavailable(error.to_string())),
        }
    }
    let latest = call.api.latest().await?;
    match term(call.api)? == alone.term {
        true => Ok(latest),
        false => Err(ApiError::Unavailable("another member has come to lead; try again".into())),
    }
}

/// Makes the status of a quota that somebody writes what is true. What comes back must live until
/// the quota is stored.
pub async fn counted(call: &Call<'_>, new: &mut Object) -> Result<Option<Alone>, ApiError> {
    if !call.kind.is("", "ResourceQuota") || call.part != Part::Status || call.dry_run {
        return Ok(None);
    }
    let alone = call.api.counting().alone(call.api, call.namespace).await?;
    let key = stored::key(row(), call.namespace, meta::name(new));
    let latest = count_from(call, &key, &alone).await?;
    let used = count(&latest, new, call.namespace);
    write_status(new, &used);
    Ok(Some(alone))
}

fn write_status(quota: &mut Object, used: &Amounts) {
    let hard = Amounts::read(&quota["spec"]["hard"]);
    quota["status"] = serde_json::json!({ "hard": hard.to_json(), "used": used.to_json() });
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
        used.add(resource, kept.unwrap_or(Quantity::ZERO));
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
