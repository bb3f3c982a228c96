//! What the controllers know of the cluster: one watch a kind, kept in memory, with the indexes
//! they ask for.
//!
//! Words: a *shelf* holds the objects of one kind; a [`Key`] names one object; a [`Change`] is one
//! object before and after. Kinds that a plan reads are held typed, all others as metadata only
//! ([`Bare`]): the garbage collector and namespace deletion need no more; objects of the Gateway API
//! as its controller needs them. Of a Secret's content only a bootstrap token's end is ever in here,
//! and whether it holds a certificate.
//!
//! Invariants:
//! - one owner: the reconcile loop applies events and own writes' results between two plans, so
//!   nothing is locked (but what plans count together) and a plan never sees half a change;
//! - an object never goes back: an event older than what is held is dropped by its revision, and an
//!   object that an own write removed stays removed until its watch has said so too (`buried`);
//! - so own writes are visible to the next plan, and no controller has to count what it expects.

mod labels;

use std::any::{Any, TypeId};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::Metadata;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wherry_resources::{KINDS, Kind, Storage, kind_of};

use super::gateway;
use super::owners::controller_of;
use super::write::Outcome;
use crate::contain;

/// Removed objects kept in mind: more than can be removed while the answer to a write is on its
/// way.
const GONE_MAX: usize = 4_096;
/// The namespace of the nodes' leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Names one object of the cluster. Sorts by kind, namespace, name; a clone shares the text.
#[derive(Clone)]
pub struct Key {
    pub kind: &'static Kind,
    /// `namespace/name`; the namespace is empty for objects of the cluster.
    path: Arc<str>,
}

impl Key {
    pub fn new(kind: &'static Kind, namespace: &str, name: &str) -> Key {
        Key { kind, path: format!("{namespace}/{name}").into() }
    }

    /// The key of an object of a typed kind, which must stand in the table of kinds.
    pub fn of<T: Typed>(namespace: &str, name: &str) -> Key {
        Key::new(kind_row::<T>(), namespace, name)
    }

    pub fn namespace(&self) -> &str {
        self.path.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.path.split_once('/').map_or(&*self.path, |(_, name)| name)
    }

    fn parts(&self) -> (usize, &str) {
        (std::ptr::from_ref(self.kind) as usize, &self.path)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.strip_prefix('/').unwrap_or(&self.path);
        write!(f, "{} {path}", self.kind.qualified())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a shelf can hold: anything with metadata.
pub trait Body: Any + Send + Sync {
    fn meta(&self) -> &ObjectMeta;
}

impl<T: Metadata<Ty = ObjectMeta> + Send + Sync + 'static> Body for T {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// An object of which only the metadata is kept.
#[derive(Debug)]
pub struct Bare(pub ObjectMeta);

impl Body for Bare {
    fn meta(&self) -> &ObjectMeta {
        &self.0
    }
}

/// A kind whose whole objects the cache holds.
pub trait Typed:
    Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
}

impl<T> Typed for T where
    T: Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
}

/// The row of a typed kind.
pub fn kind_row<T: k8s_openapi::Resource>() -> &'static Kind {
    kind_of(T::API_VERSION, T::KIND).expect("every typed kind stands in the table of kinds")
}

/// One object, shared with whoever reads it.
#[derive(Clone)]
pub struct Object(Arc<dyn Body>);

impl Object {
    pub fn new(body: impl Body) -> Object {
        Object(Arc::new(body))
    }

    pub fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    /// The object as its type; `None` when it is of another kind or only its metadata is held.
    pub fn get<T: Typed>(&self) -> Option<&T> {
        let any: &dyn Any = &*self.0;
        any.downcast_ref::<T>()
    }

    fn shared<T: Typed>(&self) -> Option<Arc<T>> {
        let any: Arc<dyn Any + Send + Sync> = self.0.clone();
        any.downcast::<T>().ok()
    }

    /// The object as what it is held as.
    pub fn body<B: Body>(&self) -> Option<Arc<B>> {
        let any: Arc<dyn Any + Send + Sync> = self.0.clone();
        any.downcast::<B>().ok()
    }

    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or("")
    }

    fn revision(&self) -> u64 {
        revision_of(self.meta())
    }
}

/// The revision in an object's metadata; 0 when there is none.
pub fn revision_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// One object before and after. Both are there for a modification; at least one always is.
pub struct Change {
    pub key: Key,
    pub before: Option<Object>,
    pub after: Option<Object>,
}

impl Change {
    /// Before and after, when the change is one of this type.
    pub fn of<T: Typed>(&self) -> Option<(Option<&T>, Option<&T>)> {
        let before = self.before.as_ref().and_then(Object::get::<T>);
        let after = self.after.as_ref().and_then(Object::get::<T>);
        (before.is_some() || after.is_some()).then_some((before, after))
    }

    /// The states this change touches, the newer one last.
    pub fn states<T: Typed>(&self) -> impl Iterator<Item = &T> {
        let both = [self.before.as_ref(), self.after.as_ref()];
        both.into_iter().flatten().filter_map(Object::get::<T>)
    }

    /// Metadata of the newest state.
    pub fn meta(&self) -> &ObjectMeta {
        let newest = self.after.as_ref().or(self.before.as_ref());
        newest.expect("a change has at least one state").meta()
    }
}

/// What a watch says.
pub enum Seen {
    /// A full list begins.
    Begin,
    /// Present in the full list.
    Listed(Object),
    /// The full list is complete: what it lacked is gone.
    End,
    Put(Object),
    Gone(Object),
}

/// Turns the JSON of an object into what its shelf holds.
type Decode = fn(Value) -> Result<Object, serde_json::Error>;

struct Shelf {
    kind: &'static Kind,
    decode: Decode,
    objects: BTreeMap<Arc<str>, Object>,
    /// Uids removed by an own write and not yet by the watch.
    buried: HashSet<String>,
    /// Paths present in the list that is being read.
    listing: Option<HashSet<Arc<str>>>,
    synced: bool,
    /// It has been listed once.
    listed: bool,
}

/// All shelves and their indexes.
#[derive(Default)]
pub struct Cache {
    shelves: Vec<Shelf>,
    typed: HashMap<TypeId, usize>,
    slots: HashMap<usize, usize>,
    by_uid: HashMap<String, Key>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    strays: BTreeSet<Key>,
    by_node: HashMap<String, BTreeSet<Key>>,
    /// Pods, Services, workloads and autoscalers by labels (see `labels`).
    by_label: HashMap<String, BTreeSet<Key>>,
    /// When each node's lease was last seen to change, by this process's own clock.
    renewed: HashMap<String, Instant>,
    revision: u64,
    /// Uids that watches removed last, the newest at the end.
    gone: VecDeque<String>,
    /// When names of Pods of StatefulSets became free, as watches said it last. At most
    /// [`GONE_MAX`]: where more go at once, nobody waits for single ones.
    freed: HashMap<Key, Instant>,
    /// What controllers keep in mind about objects, by what it is.
    memos: HashMap<(TypeId, Key), Memo>,
    /// What was counted over many objects, by what it is, and when.
    counts: Mutex<HashMap<TypeId, (Instant, Memo)>>,
}

/// Something that a controller keeps in mind about an object and that is written nowhere: lost with
/// the leader, and with the object.
#[derive(Clone)]
pub struct Memo(Arc<dyn Any + Send + Sync>);

impl Memo {
    pub fn new<T: Any + Send + Sync>(value: T) -> Memo {
        Memo(Arc::new(value))
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

impl Cache {
    /// A cache with a shelf for every stored kind of the table that can be watched, and for no
    /// other. Events are left out: nothing depends on them and they are the most of all.
    pub fn new() -> Cache {
        let mut cache = Cache::default();
        for kind in KINDS {
            let watched = kind.verbs.contains(&"watch") && kind.storage == Storage::Own;
            if watched && !kind.is("", "Event") {
                cache.slots.insert(std::ptr::from_ref(kind) as usize, cache.shelves.len());
                cache.shelves.push(Shelf {
                    kind,
                    decode: decode_bare,
                    objects: BTreeMap::new(),
                    buried: HashSet::new(),
                    listing: None,
                    synced: false,
                    listed: false,
                });
            }
        }
        cache
    }

    /// Holds objects of this kind whole instead of as metadata. Call before anything is applied.
    pub fn hold<T: Typed>(&mut self) {
        let slot = self.slot(kind_row::<T>()).expect("a typed kind is stored and watched");
        self.shelves[slot].decode = decode_typed::<T>;
        self.typed.insert(TypeId::of::<T>(), slot);
    }

    /// Kinds held as metadata only.
    pub fn bare_kinds(&self) -> Vec<&'static Kind> {
        let typed: HashSet<usize> = self.typed.values().copied().collect();
        let bare = self.shelves.iter().enumerate().filter(|(slot, _)| !typed.contains(slot));
        bare.map(|(_, shelf)| shelf.kind).collect()
    }

    /// Whether every shelf has been listed once.
    pub fn synced(&self) -> bool {
        self.shelves.iter().all(|shelf| shelf.synced)
    }

    /// The highest revision of any object seen.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get<T: Typed>(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let shelf = &self.shelves[*self.typed.get(&TypeId::of::<T>())?];
        shelf.objects.get(format!("{namespace}/{name}").as_str())?.shared::<T>()
    }

    /// All objects of a type, sorted by namespace and name.
    pub fn all<T: Typed>(&self) -> impl Iterator<Item = Arc<T>> {
        let slot = self.typed.get(&TypeId::of::<T>()).copied();
        let objects = slot.into_iter().flat_map(|slot| self.shelves[slot].objects.values());
        objects.filter_map(Object::shared::<T>)
    }

    /// Objects of a type in one namespace, sorted by name.
    pub fn within<T: Typed>(&self, namespace: &str) -> impl Iterator<Item = Arc<T>> {
        self.named(namespace, "")
    }

    /// The same, of those whose names begin like this.
    pub fn named<T: Typed>(&self, namespace: &str, begin: &str) -> impl Iterator<Item = Arc<T>> {
        let slot = self.typed.get(&TypeId::of::<T>()).copied();
        let objects =
            slot.into_iter().flat_map(move |slot| self.shelf_within(slot, namespace, begin));
        objects.filter_map(Object::shared::<T>)
    }

    fn shelf_within(
        &self,
        slot: usize,
        namespace: &str,
        begin: &str,
    ) -> impl Iterator<Item = &Object> {
        let prefix = format!("{namespace}/{begin}");
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let objects = self.shelves[slot].objects.range::<str, _>(from);
        let prefix = prefix.clone();
        objects.take_while(move |(path, _)| path.starts_with(&prefix)).map(|(_, object)| object)
    }

    /// What a namespace holds, kind by kind; kinds without objects there are left out.
    pub fn contents(&self, namespace: &str) -> Vec<(&'static Kind, Vec<&ObjectMeta>)> {
        let namespaced = self.shelves.iter().enumerate().filter(|(_, shelf)| shelf.kind.namespaced);
        let mut contents = Vec::new();
        for (slot, shelf) in namespaced {
            let objects: Vec<_> =
                self.shelf_within(slot, namespace, "").map(Object::meta).collect();
            if !objects.is_empty() {
                contents.push((shelf.kind, objects));
            }
        }
        contents
    }

    pub fn object(&self, key: &Key) -> Option<&Object> {
        self.shelves[self.slot(key.kind)?].objects.get(&key.path)
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<&Key> {
        self.by_uid.get(uid)
    }

    /// Objects that name this uid among their owners.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.by_owner.get(uid).into_iter().flatten()
    }

    /// Objects of a type whose controller has this uid, sorted by name.
    pub fn controlled<T: Typed>(&self, uid: &str) -> Vec<Arc<T>> {
        let objects = self.dependents(uid).filter_map(|key| self.object(key)?.shared::<T>());
        let controlled = |object: &Arc<T>| {
            controller_of(object.metadata()).is_some_and(|owner| owner.uid == uid)
        };
        objects.filter(controlled).collect()
    }

    /// Objects of a type in a namespace that no controller owns.
    pub fn strays<T: Typed>(&self, namespace: &str) -> Vec<Arc<T>> {
        let from = Key::of::<T>(namespace, "");
        let keys = self.strays.range(from.clone()..);
        let near = |key: &&Key| std::ptr::eq(key.kind, from.kind) && key.namespace() == namespace;
        keys.take_while(near).filter_map(|key| self.object(key)?.shared::<T>()).collect()
    }

    /// Pods bound to a node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|key| self.object(key)?.shared::<Pod>()).collect()
    }

    /// How long the name of a StatefulSet's Pod has been free, if a watch said that it became so.
    pub fn free_for(&self, key: &Key, now: Instant) -> Option<Duration> {
        self.freed.get(key).map(|since| now.saturating_duration_since(*since))
    }

    /// How many Pods are bound to a node, those that ended included.
    pub fn count_on(&self, node: &str) -> usize {
        self.by_node.get(node).map_or(0, BTreeSet::len)
    }

    /// How long a node's lease has not changed; `None` when it has none.
    pub fn silent_for(&self, node: &str, now: Instant) -> Option<Duration> {
        self.renewed.get(node).map(|seen| now.saturating_duration_since(*seen))
    }

    /// Leaves a pause of this process out of every lease's silence: nobody knows which were renewed
    /// in it.
    pub fn stood_still(&mut self, lost: Duration, now: Instant) {
        self.renewed.values_mut().for_each(|seen| *seen = (*seen + lost).min(now));
    }

    /// Keeps something in mind about an object, in place of what was kept of its type.
    pub fn remember(&mut self, key: &Key, memo: Memo) {
        self.memos.insert(((*memo.0).type_id(), key.clone()), memo);
    }

    /// What is kept in mind about an object.
    pub fn memo<T: Any + Send + Sync>(&self, key: &Key) -> Option<Arc<T>> {
        let memo = self.memos.get(&(TypeId::of::<T>(), key.clone()))?;
        memo.0.clone().downcast::<T>().ok()
    }

    /// What many plans ask of thousands of objects at the same time: counted by the first one, and again
    /// when that is older than `age_max`.
    pub fn counted<T: Any + Send + Sync>(
        &self,
        now: Instant,
        age_max: Duration,
        count: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counts.get(&TypeId::of::<T>()).filter(|(at, _)| {
            // One of a moment to come is of another run of the clock.
            now.checked_duration_since(*at).is_some_and(|age| age <= age_max)
        });
        if let Some(count) = known.and_then(|(_, memo)| memo.0.clone().downcast::<T>().ok()) {
            return count;
        }
        let count = Arc::new(count());
        counts.insert(TypeId::of::<T>(), (now, Memo(count.clone())));
        count
    }

    /// Takes in what the watch of a kind said and returns what changed by it.
    pub fn observe(&mut self, kind: &'static Kind, seen: Seen, now: Instant) -> Vec<Change> {
        let found = self.slot(kind).or_else(|| self.custom_slot(kind));
        let Some(slot) = found else { return Vec::new() };
        match seen {
            Seen::Begin => {
                self.shelves[slot].listing = Some(HashSet::new());
                Vec::new()
            }
            Seen::Listed(object) => {
                let path = path_of(object.meta());
                if let Some(listing) = &mut self.shelves[slot].listing {
                    listing.insert(path);
                }
                self.put(slot, object, now).into_iter().collect()
            }
            Seen::End => self.end_list(slot),
            Seen::Put(object) => self.put(slot, object, now).into_iter().collect(),
            Seen::Gone(object) => {
                self.shelves[slot].buried.remove(object.uid());
                if self.gone.len() >= GONE_MAX {
                    self.gone.pop_front();
                }
                self.gone.push_back(object.uid().to_string());
                let change = self.remove(slot, &path_of(object.meta()), object.uid());
                if let Some(change) = change.as_ref().filter(|change| name_comes_back(change)) {
                    if self.freed.len() >= GONE_MAX {
                        self.freed.clear();
                    }
                    self.freed.insert(change.key.clone(), now);
                }
                change.into_iter().collect()
            }
        }
    }

    /// Takes in what an own write left behind: what changed by it, and whether its plan may come out
    /// otherwise now.
    pub fn take_in(&mut self, outcome: Outcome, now: Instant) -> (Option<Change>, bool) {
        let change = match outcome {
            Outcome::Object { kind, object } => self.wrote(kind, object, now),
            Outcome::Removed { key, uid } => self.removed(&key, &uid),
            Outcome::Known { key, memo } => {
                self.remember(&key, memo);
                return (None, true);
            }
            Outcome::Nothing => None,
        };
        let changed = change.is_some();
        (change, changed)
    }

    /// Takes in the object that an own write returned.
    fn wrote(&mut self, kind: &'static Kind, object: Value, now: Instant) -> Option<Change> {
        let slot = self.slot(kind)?;
        let decode = self.shelves[slot].decode;
        let object = contain::sync(|| decode(object)).ok()?.ok()?;
        if self.gone.iter().any(|uid| uid == object.uid()) {
            return None;
        }
        self.put(slot, object, now)
    }

    /// Takes in that an own write removed an object.
    fn removed(&mut self, key: &Key, uid: &str) -> Option<Change> {
        let slot = self.slot(key.kind)?;
        let change = self.remove(slot, &key.path, uid);
        if change.is_some() {
            self.shelves[slot].buried.insert(uid.to_string());
        }
        change
    }

    /// The shelf of a custom kind, made at the first word of its watch. Nothing waits for it to be
    /// listed: who finds an object missing asks the API server before acting on it.
    fn custom_slot(&mut self, kind: &'static Kind) -> Option<usize> {
        kind.custom?;
        self.slots.insert(std::ptr::from_ref(kind) as usize, self.shelves.len());
        self.shelves.push(Shelf {
            kind,
            decode: if gateway::kind_of(kind).is_some() { gateway::decode } else { decode_bare },
            objects: BTreeMap::new(),
            buried: HashSet::new(),
            listing: None,
            synced: true,
            listed: false,
        });
        Some(self.shelves.len() - 1)
    }

    /// The custom kind with a shelf that an owner reference means, whatever the version.
    pub fn custom_kind(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let mut kinds = self.shelves.iter().map(|shelf| shelf.kind);
        kinds.find(|row| row.custom().is_some() && row.is(group, kind))
    }

    /// Objects of the custom kinds of a group, with their kinds, sorted by these, namespace and name.
    pub fn all_custom<B: Body>(
        &self,
        group: &str,
    ) -> impl Iterator<Item = (&'static Kind, Arc<B>)> {
        let own = self
            .shelves
            .iter()
            .filter(move |shelf| shelf.kind.custom.is_some() && shelf.kind.group == group);
        own.flat_map(|shelf| {
            let bodies = shelf.objects.values().filter_map(Object::body::<B>);
            bodies.map(move |body| (shelf.kind, body))
        })
    }

    /// Whether the objects of a custom kind have been listed once.
    pub fn is_listed(&self, group: &str, kind: &str) -> bool {
        let mut own = self.shelves.iter().filter(|shelf| shelf.kind.custom.is_some());
        own.any(|shelf| shelf.kind.is(group, kind) && shelf.listed)
    }

    fn slot(&self, kind: &'static Kind) -> Option<usize> {
        self.slots.get(&(std::ptr::from_ref(kind) as usize)).copied()
    }

    fn put(&mut self, slot: usize, object: Object, now: Instant) -> Option<Change> {
        let shelf = &mut self.shelves[slot];
        if shelf.buried.contains(object.uid()) {
            return None;
        }
        let path = path_of(object.meta());
        let held = shelf.objects.get(&path);
        if held.is_some_and(|held| held.revision() >= object.revision()) {
            return None;
        }
        self.revision = self.revision.max(object.revision());
        let before = shelf.objects.insert(path.clone(), object.clone());
        let key = Key { kind: shelf.kind, path };
        if before.as_ref().is_none_or(|before| is_found_elsewhere(before, &object)) {
            if let Some(before) = &before {
                self.unlink(&key, before);
            }
            self.link(&key, &object);
        }
        self.relabel(&key, before.as_ref(), Some(&object));
        if object.get::<Lease>().is_some() && key.namespace() == LEASE_NAMESPACE {
            self.renewed.insert(key.name().to_string(), now);
        }
        Some(Change { key, before, after: Some(object) })
    }

    /// Removes an object unless another one (by uid) has taken its name meanwhile.
    fn remove(&mut self, slot: usize, path: &Arc<str>, uid: &str) -> Option<Change> {
        let shelf = &mut self.shelves[slot];
        if shelf.objects.get(path)?.uid() != uid {
            return None;
        }
        let before = shelf.objects.remove(path)?;
        let key = Key { kind: shelf.kind, path: path.clone() };
        self.unlink(&key, &before);
        self.relabel(&key, Some(&before), None);
        if !self.memos.is_empty() {
            self.memos.retain(|(_, of), _| *of != key);
        }
        if before.get::<Lease>().is_some() && key.namespace() == LEASE_NAMESPACE {
            self.renewed.remove(key.name());
        }
        Some(Change { key, before: Some(before), after: None })
    }

    fn end_list(&mut self, slot: usize) -> Vec<Change> {
        let shelf = &mut self.shelves[slot];
        shelf.synced = true;
        shelf.listed = true;
        shelf.buried.clear();
        let listed = shelf.listing.take().unwrap_or_default();
        let missing = shelf.objects.iter().filter(|(path, _)| !listed.contains(*path));
        let gone: Vec<(Arc<str>, String)> =
            missing.map(|(path, object)| (path.clone(), object.uid().to_string())).collect();
        gone.iter().filter_map(|(path, uid)| self.remove(slot, path, uid)).collect()
    }

    fn link(&mut self, key: &Key, object: &Object) {
        let meta = object.meta();
        self.by_uid.insert(object.uid().to_string(), key.clone());
        for owner in meta.owner_references.iter().flatten() {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        if controller_of(meta).is_none() {
            self.strays.insert(key.clone());
        }
        if let Some(node) = bound_to(object) {
            self.by_node.entry(node.to_string()).or_default().insert(key.clone());
        }
    }

    fn unlink(&mut self, key: &Key, object: &Object) {
        if self.by_uid.get(object.uid()) == Some(key) {
            self.by_uid.remove(object.uid());
        }
        for owner in object.meta().owner_references.iter().flatten() {
            drop_from(&mut self.by_owner, &owner.uid, key);
        }
        self.strays.remove(key);
        if let Some(node) = bound_to(object) {
            drop_from(&mut self.by_node, node, key);
        }
    }
}

/// Whether another object is going to have the name of one that went.
fn name_comes_back(change: &Change) -> bool {
    let is_pod = change.before.as_ref().is_some_and(|before| before.get::<Pod>().is_some());
    is_pod && controller_of(change.meta()).is_some_and(|owner| owner.kind == "StatefulSet")
}

/// Whether some index has an object's new state in another place than the one before. A change of a
/// status or a lease moves nothing, and most changes are such.
fn is_found_elsewhere(before: &Object, after: &Object) -> bool {
    before.uid() != after.uid()
        || before.meta().owner_references != after.meta().owner_references
        || bound_to(before) != bound_to(after)
}

fn bound_to(object: &Object) -> Option<&str> {
    object.get::<Pod>()?.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn drop_from(index: &mut HashMap<String, BTreeSet<Key>>, at: &str, key: &Key) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

fn path_of(meta: &ObjectMeta) -> Arc<str> {
    let namespace = meta.namespace.as_deref().unwrap_or("");
    format!("{namespace}/{}", meta.name.as_deref().unwrap_or("")).into()
}

/// Drops what no plan reads and what is large.
pub fn trim(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
}

fn decode_typed<T: Typed>(value: Value) -> Result<Object, serde_json::Error> {
    let mut object: T = serde_json::from_value(value)?;
    trim(object.metadata_mut());
    Ok(Object::new(object))
}

fn decode_bare(value: Value) -> Result<Object, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Whole {
        metadata: ObjectMeta,
    }
    let mut whole: Whole = serde_json::from_value(value)?;
    trim(&mut whole.metadata);
    Ok(Object::new(Bare(whole.metadata)))
}

#[cfg(test)]
mod tests;
