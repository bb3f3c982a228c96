//! Server-side apply, and the record of who owns which field that all writes keep for it.
//!
//! ```text
//! create, update, patch ── track ──► the writer owns what it changed
//! apply ── lay the configuration ── take away what it ── conflicts? ──► the applier owns
//!          over the live object     no longer says                      what it says
//! ```
//!
//! Which parts of an object are owned separately is said by its type (`structure`): built-in types
//! by the table, custom resources by their schema. A manager may have written in another version of
//! the type; [`Types`] brings the object into that version, so that its fields are compared where
//! they mean something. The algorithm is that of Kubernetes' structured merge diff, down to the
//! texts that clients print.
//!
//! Invariants: nothing here reads a clock ([`Writer`] brings the time); `managedFields` of an
//! object changes only when the ownership or an owned field changes ([`settle_times`]).

mod managers;
mod set;
mod walk;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

pub use managers::{Manager, Operation};
pub use set::{Element, FieldSet};

use crate::structure::Place;
use crate::{Kind, Object, convert, meta};
use walk::Difference;

/// What kubectl keeps of what it applied itself.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose applies take over from kubectl's own.
const KUBECTL: &str = "kubectl";
/// Who owns what was written before anything was tracked.
const BEFORE: &str = "before-first-apply";

const UNOWNED_PATHS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Fields that nobody owns.
static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    let mut set = FieldSet::default();
    for path in UNOWNED_PATHS {
        let path: Vec<Element> = path.iter().map(|name| Element::field(name)).collect();
        set.insert(&path);
    }
    set
});

/// The types in which an object's managers may have written it.
pub trait Types {
    /// The type in that version; None when the version is not served any more: then its managers
    /// own nothing.
    fn place(&self, api_version: &str) -> Option<Place<'_>>;

    /// The object, whose own version stands in it, in that version. Who is not able to say it yet
    /// says None, and has the outcome made anew when it is.
    fn convert(&self, object: &Object, api_version: &str) -> Option<Object>;
}

/// A built-in kind and the other versions of it in the table of kinds.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn(pub &'static Kind);

impl BuiltIn {
    fn row(&self, api_version: &str) -> Option<&'static Kind> {
        let row = crate::kind_of(api_version, self.0.kind)?;
        let same = |kind: &'static Kind| kind.stored_as().map(|home| (home.group, home.plural));
        (same(row) == same(self.0)).then_some(row)
    }
}

impl Types for BuiltIn {
    fn place(&self, api_version: &str) -> Option<Place<'_>> {
        self.row(api_version).map(Place::built_in)
    }

    fn convert(&self, object: &Object, api_version: &str) -> Option<Object> {
        let to = self.row(api_version)?;
        let from = self.row(meta::api_version(object)).unwrap_or(to);
        let same = (from.group, from.version) == (to.group, to.version);
        Some(if same { object.clone() } else { convert::to(from, to, object.clone()) })
    }
}

/// A custom resource: its schema in each version, without conversion between them.
#[derive(Clone, Debug, Default)]
pub struct Custom {
    /// `openAPIV3Schema` by `group/version`.
    pub schemas: BTreeMap<String, Value>,
}

impl Types for Custom {
    fn place(&self, api_version: &str) -> Option<Place<'_>> {
        self.schemas.get(api_version).map(Place::custom)
    }

    fn convert(&self, object: &Object, api_version: &str) -> Option<Object> {
        self.schemas.get(api_version)?;
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut().filter(|map| map.contains_key("apiVersion")) {
            map.insert("apiVersion".to_owned(), api_version.into());
        }
        Some(object)
    }
}

/// Who writes, where and when.
#[derive(Clone, Debug)]
pub struct Writer {
    pub manager: String,
    pub api_version: String,
    /// Empty for the main endpoint.
    pub subresource: String,
    /// RFC 3339.
    pub time: String,
}

impl Writer {
    fn owner(&self, operation: Operation, fields: FieldSet) -> Manager {
        let name = if self.manager.is_empty() { "unknown" } else { &self.manager };
        Manager {
            name: name.to_owned(),
            operation,
            api_version: self.api_version.clone(),
            time: self.time.clone(),
            subresource: self.subresource.clone(),
            fields,
        }
    }
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The configuration does not fit its type; sentences that begin with a path.
    #[error("{}", mistyped(.0))]
    Mistyped(Vec<String>),
    /// Others own fields to which the configuration gives other values.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The live object's own record cannot be read, or its version is not served.
    #[error("the object's managed fields cannot be read: {0}")]
    Unreadable(&'static str),
}

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As messages name it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`
    pub path: String,
}

fn mistyped(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [Conflict { manager, path }] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {manager}: {path}");
    }
    let mut managers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Conflict { manager, path } in conflicts {
        managers.entry(manager).or_default().push(path);
    }
    let mut lines = Vec::new();
    for (manager, paths) in managers {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(paths.iter().map(|path| format!("- {path}")));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Records what a create, update or patch changed: the writer owns it, and nobody else does any
/// more. `new` may bring its own record, which then counts instead of the old one; `[{}]` ends the
/// tracking of this object.
pub fn track(types: &dyn Types, old: Option<&Object>, new: &mut Object, writer: &Writer) {
    let Some(mut managers) = recorded(old, new, writer) else {
        meta::set_managed_fields(new, Vec::new());
        return;
    };
    meta::set_managed_fields(new, Vec::new());
    if managers.is_empty() && old.is_some() {
        return;
    }
    let nothing = Value::Object(Map::new());
    let mut states = States::new(types, writer, old.unwrap_or(&nothing), new);
    lose(&mut managers, &mut states, |_| false);
    let Some(own) = states.into_difference(&writer.api_version) else {
        return;
    };
    let mut taken = own.added;
    taken.add(&own.modified);
    taken.take_away(&UNOWNED);
    if !taken.is_empty() {
        give(&mut managers, writer.owner(Operation::Update, taken));
        managers::cap(&mut managers);
    }
    meta::set_managed_fields(new, managers::encode(managers));
    meta::order(new);
}

/// The record that a write starts from; None ends the tracking.
fn recorded(old: Option<&Object>, new: &Object, writer: &Writer) -> Option<Vec<Manager>> {
    let of = |object: &Object| managers::decode(meta::managed_fields(object));
    let live = || old.and_then(of).unwrap_or_default();
    if !writer.subresource.is_empty() {
        return Some(live());
    }
    let sent = meta::managed_fields(new);
    if let [Value::Object(only)] = sent
        && only.is_empty()
    {
        return None;
    }
    Some(of(new).filter(|managers| !managers.is_empty()).unwrap_or_else(live))
}

/// Adds fields to a manager's entry, or the entry.
fn give(managers: &mut Vec<Manager>, owner: Manager) {
    match managers.iter_mut().find(|known| known.is(&owner)) {
        Some(known) => {
            known.fields.add(&owner.fields);
            known.time = owner.time;
        }
        None => managers.push(owner),
    }
}

/// Takes from all managers but `spared` what has changed between the two states.
fn lose(managers: &mut Vec<Manager>, states: &mut States<'_>, spared: impl Fn(&Manager) -> bool) {
    managers.retain_mut(|manager| {
        if spared(manager) {
            return true;
        }
        let Some(changed) = states.difference(&manager.api_version) else {
            return false;
        };
        for gone in [&changed.modified, &changed.added, &changed.removed] {
            manager.fields.take_away(gone);
        }
        !manager.fields.is_empty()
    });
}

/// Two states of an object, compared in each version that is asked for.
struct States<'a> {
    types: &'a dyn Types,
    version: &'a str,
    old: &'a Object,
    new: &'a Object,
    compared: BTreeMap<String, Option<Difference>>,
}

impl<'a> States<'a> {
    fn new(types: &'a dyn Types, writer: &'a Writer, old: &'a Object, new: &'a Object) -> Self {
        States { types, version: &writer.api_version, old, new, compared: BTreeMap::new() }
    }

    fn difference(&mut self, version: &str) -> Option<&Difference> {
        if !self.compared.contains_key(version) {
            let found = self.compare(version);
            self.compared.insert(version.to_owned(), found);
        }
        self.compared[version].as_ref()
    }

    fn into_difference(mut self, version: &str) -> Option<Difference> {
        match self.compared.remove(version) {
            Some(found) => found,
            None => self.compare(version),
        }
    }

    fn compare(&self, version: &str) -> Option<Difference> {
        let place = self.types.place(version)?;
        if version == self.version {
            return Some(walk::difference(place, self.old, self.new));
        }
        let old = self.types.convert(self.old, version);
        let new = self.types.convert(self.new, version);
        Some(walk::difference(place, &old?, &new?))
    }
}

/// Applies a configuration to the live object, or makes a new one of it. What `config` holds beside
/// what its endpoint may change must have been taken out before. The result carries the live
/// object's metadata and the new record.
pub fn apply(
    types: &dyn Types,
    live: Option<&Object>,
    config: &Object,
    writer: &Writer,
    force: bool,
) -> Result<Object, ApplyError> {
    let nothing = Value::Object(Map::new());
    let base = live.unwrap_or(&nothing);
    let recorded = managers::decode(meta::managed_fields(base));
    let mut managers = recorded.ok_or(ApplyError::Unreadable("an entry is malformed"))?;
    let place = types.place(&writer.api_version);
    let place = place.ok_or(ApplyError::Unreadable("this version has no type"))?;
    if managers.is_empty() && live.is_some() {
        let all = walk::difference(place, &nothing, base).added.difference(&UNOWNED);
        if !all.is_empty() {
            let before = Writer { manager: BEFORE.into(), ..writer.clone() };
            managers.push(before.owner(Operation::Update, all));
        }
    }
    for manager in &mut managers {
        if let Some(place) = types.place(&manager.api_version) {
            manager.fields = walk::collapsed(place, &manager.fields);
        }
    }
    let fields = walk::fields(place, config).map_err(ApplyError::Mistyped)?;
    let mut object = walk::merge(place, base, config);
    let own = writer.owner(Operation::Apply, fields);
    let last = managers.iter().position(|known| known.is(&own)).map(|at| managers.remove(at));
    managers.push(own.clone());
    if let Some(last) = last {
        object = prune(types, writer, object, &managers, &last);
    }
    let mut states = States::new(types, writer, base, &object);
    let found = conflicts(&managers, &mut states, &own);
    if !found.is_empty() && !force {
        let found = unforgiven(place, base, writer, found);
        if !found.is_empty() {
            return Err(ApplyError::Conflicts(found));
        }
    }
    lose(&mut managers, &mut states, |manager| manager.is(&own));
    for manager in managers.iter_mut().filter(|manager| manager.is(&own)) {
        manager.fields = manager.fields.difference(&UNOWNED);
    }
    managers.retain(|manager| !manager.fields.is_empty());
    if writer.manager == KUBECTL && meta::annotation(&object, LAST_APPLIED).is_some() {
        let text = last_applied(config);
        meta::set_annotation(&mut object, LAST_APPLIED, &text);
    }
    meta::set_managed_fields(&mut object, managers::encode(managers));
    meta::order(&mut object);
    Ok(object)
}

/// What kubectl would have written into its annotation had it applied this itself.
fn last_applied(config: &Object) -> String {
    let mut config = config.clone();
    meta::remove_annotation(&mut config, LAST_APPLIED);
    config.sort_all_objects();
    format!("{config}\n")
}

/// Fields of other managers to which the new state gives other values, manager by manager.
fn conflicts(
    managers: &[Manager],
    states: &mut States<'_>,
    own: &Manager,
) -> Vec<(String, Vec<Element>)> {
    let mut found = Vec::new();
    let mut others: Vec<&Manager> = managers.iter().filter(|other| !other.is(own)).collect();
    others.sort_by_key(|manager| manager.describe());
    for other in others {
        if let Some(changed) = states.difference(&other.api_version) {
            let lost = other.fields.intersection(&changed.modified.union(&changed.added));
            found.extend(lost.paths().into_iter().map(|path| (other.describe(), path)));
        }
    }
    found
}

/// Conflicts that stay. When kubectl applies on the server what it used to apply itself, the fields
/// of its last own configuration are not others' fields.
fn unforgiven(
    place: Place<'_>,
    live: &Object,
    writer: &Writer,
    found: Vec<(String, Vec<Element>)>,
) -> Vec<Conflict> {
    let text = meta::annotation(live, LAST_APPLIED).filter(|_| writer.manager == KUBECTL);
    let last = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let last = last.filter(|last| meta::api_version(last) == writer.api_version);
    let owned = last.and_then(|last| walk::fields(place, &last).ok()).unwrap_or_default();
    let mut ours = FieldSet::default();
    found.iter().for_each(|(_, path)| ours.insert(path));
    let kept = ours.difference(&owned).paths();
    let stays = found.into_iter().filter(|(_, path)| kept.contains(path));
    stays.map(|(manager, path)| Conflict { manager, path: set::display(&path) }).collect()
}

/// Takes away what the applier's last configuration said, this one does not say, and nobody else
/// owns. `merged` is the object with the configuration laid over it.
fn prune(
    types: &dyn Types,
    writer: &Writer,
    merged: Object,
    managers: &[Manager],
    last: &Manager,
) -> Object {
    let converted = types.convert(&merged, &last.api_version);
    let (Some(place), Some(in_last)) = (types.place(&last.api_version), converted) else {
        return merged;
    };
    let mut owned: BTreeMap<&str, FieldSet> = BTreeMap::new();
    for manager in managers {
        owned.entry(&manager.api_version).or_default().add(&manager.fields);
    }
    let was_owned = walk::with_named(place, &last.fields);
    let bare = walk::without(place, &in_last, &was_owned).unwrap_or(Value::Null);
    let mut stays = walk::with_named(place, &walk::fields_of_live(place, &bare));
    if let Some(owned) = owned.remove(last.api_version.as_str()) {
        stays.add(&walk::with_named(place, &owned));
    }
    let there = walk::with_named(place, &walk::fields_of_live(place, &in_last));
    let mut goes = there.difference(&stays).intersection(&was_owned);
    // What is owned in another version is found there, where it may have another name.
    for (version, owned) in owned {
        if goes.is_empty() {
            break;
        }
        let pruned = walk::without(place, &in_last, &goes).unwrap_or(Value::Null);
        if let Some(kept) = kept_by(types, version, &owned, &in_last, &pruned) {
            stays.add(&walk::with_named(place, &walk::fields_of_live(place, &kept)));
            goes = there.difference(&stays).intersection(&was_owned);
        }
    }
    if goes.is_empty() {
        return merged;
    }
    let pruned = walk::without(place, &in_last, &goes).unwrap_or(Value::Null);
    if last.api_version == writer.api_version {
        return pruned;
    }
    types.convert(&pruned, &writer.api_version).unwrap_or(merged)
}

/// What is left of an object, and what of the whole is owned by managers of another version.
fn kept_by(
    types: &dyn Types,
    version: &str,
    owned: &FieldSet,
    whole: &Object,
    left: &Object,
) -> Option<Object> {
    let place = types.place(version)?;
    let own = meta::api_version(whole);
    let (whole, left) = (types.convert(whole, version), types.convert(left, version));
    let (whole, left) = (whole?, left?);
    let there = walk::with_named(place, &walk::fields_of_live(place, &whole));
    let mut stays = walk::with_named(place, &walk::fields_of_live(place, &left));
    stays.add(&walk::with_named(place, owned));
    let kept = walk::without(place, &whole, &there.difference(&stays))?;
    types.convert(&kept, own)
}

/// Keeps the old record when a write has changed nothing but the times in it, so that the write as
/// a whole changes nothing.
pub fn settle_times(old: &Object, new: &mut Object) {
    let (before, after) = (meta::managed_fields(old), meta::managed_fields(new));
    if before != after && managers::differ_in_times_only(before, after) && same_but_record(old, new)
    {
        let before = before.to_vec();
        meta::set_managed_fields(new, before);
        meta::order(new);
    }
}

fn same_but_record(left: &Object, right: &Object) -> bool {
    let same = |left: Option<&Value>, right: Option<&Value>, skipped: &str| {
        rest(left, skipped) == rest(right, skipped)
    };
    same(Some(left), Some(right), "metadata")
        && same(left.get("metadata"), right.get("metadata"), "managedFields")
}

/// The fields of an object but one, by name.
fn rest<'a>(object: Option<&'a Value>, skipped: &str) -> BTreeMap<&'a String, &'a Value> {
    let fields = object.and_then(Value::as_object).into_iter().flatten();
    fields.filter(|(key, _)| *key != skipped).collect()
}

/// How an apply names fields that its type does not have. The paths name list items by their
/// index (`spec.containers[0].x`); here they are named by their keys where they have some.
pub fn undeclared(place: Place<'_>, config: &Object, paths: &[String]) -> Vec<String> {
    let name = |path: &String| {
        let shown = walk::locate(place, config, path).unwrap_or_else(|| format!(".{path}"));
        format!("{shown}: field not declared in schema")
    };
    paths.iter().map(name).collect()
}

#[cfg(test)]
mod tests;
