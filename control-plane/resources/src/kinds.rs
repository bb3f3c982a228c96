//! The table of kinds: every built-in type this API server answers for, one row each.
//!
//! Words: a *kind* is a type (`Pod`), its *plural* is the resource in a path (`pods`), its *group*
//! is the API group (`""` is the core group). Rows stand in discovery order: groups by priority,
//! versions by preference, plurals by name. A row says what is served; what happens inside is in
//! `defaults`, `validate` and `table`.
//!
//! Invariants (held by the tests below): no two rows share group, version and plural; every row's
//! group and version stand in [`GROUPS`]; a kind with another kind's storage names a row that
//! exists.

mod rows;

use std::borrow::Cow;
use std::sync::Arc;

use crate::custom::{Definition, Slot};
use crate::names::NameRule;
pub use rows::{GROUPS, KINDS};

/// One API group with its versions, the preferred one first.
#[derive(Debug)]
pub struct Group {
    /// The group's name; empty for the core group.
    pub name: &'static str,
    /// Served versions in order of preference.
    pub versions: Cow<'static, [&'static str]>,
    /// The minimum priority that an APIService of this group carries; higher wins a name conflict.
    pub priority: u32,
}

/// How objects of a kind are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Stored as they are, under their own group and plural.
    Own,
    /// Stored in the form of this other group and version (same plural); see `convert`.
    In { group: &'static str, version: &'static str },
    /// Never stored: computed at each request (reviews, bindings, metrics).
    None,
}

/// One kind of object: the row that discovery, routing and admission read.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Type name, such as `Deployment`.
    pub kind: &'static str,
    /// Resource name in paths, such as `deployments`.
    pub plural: &'static str,
    /// Singular name that kubectl accepts and prints.
    pub singular: &'static str,
    /// Short names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs in discovery's order.
    pub verbs: &'static [&'static str],
    /// Subresources by name.
    pub subresources: &'static [Subresource],
    /// What a name of this kind may look like.
    pub name_rule: NameRule,
    /// Whether there is a `/status` subresource: then the main endpoint ignores `status`.
    pub has_status: bool,
    /// Whether `metadata.generation` counts changes of anything but metadata and status.
    pub generation: bool,
    /// How objects of this kind are kept.
    pub storage: Storage,
    /// Whether PUT without a resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Whether PUT of an absent object creates it.
    pub create_on_update: bool,
    /// Whether DELETE without a propagation policy orphans dependents instead of deleting them.
    pub orphans_by_default: bool,
    /// Position of the kind's group among all groups: higher wins a name conflict between
    /// resources.
    pub priority: u32,
    /// Kind of a list, where it is not the kind with `List` behind it.
    pub list_kind: &'static str,
    /// Where a custom kind's definition lies; None for built-in kinds.
    pub custom: Option<&'static Slot>,
}

/// A subresource as discovery shows it.
#[derive(Debug)]
pub struct Subresource {
    /// Last segment of the path.
    pub name: &'static str,
    /// Group of the object it exchanges.
    pub group: &'static str,
    /// Version of the object it exchanges.
    pub version: &'static str,
    /// Kind of the object it exchanges.
    pub kind: &'static str,
    /// Verbs in discovery's order.
    pub verbs: &'static [&'static str],
}

impl Subresource {
    pub(crate) const fn new(
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        verbs: &'static [&'static str],
    ) -> Self {
        Self { name, group, version, kind, verbs }
    }
}

impl Kind {
    /// A namespaced, stored kind with all verbs and the commonest rules; the methods below change
    /// one thing each.
    pub(crate) const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            verbs: rows::ALL_VERBS,
            subresources: &[],
            name_rule: NameRule::Subdomain,
            has_status: false,
            generation: false,
            storage: Storage::Own,
            unconditional_update: true,
            create_on_update: false,
            orphans_by_default: false,
            priority: group_priority(group),
            list_kind: "",
            custom: None,
        }
    }

    pub(crate) const fn short(mut self, short_names: &'static [&'static str]) -> Self {
        self.short_names = short_names;
        self
    }

    pub(crate) const fn categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }

    pub(crate) const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    pub(crate) const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    pub(crate) const fn named(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    pub(crate) const fn counted(mut self) -> Self {
        self.generation = true;
        self
    }

    pub(crate) const fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    pub(crate) const fn upsert(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    pub(crate) const fn orphans(mut self) -> Self {
        self.orphans_by_default = true;
        self
    }

    pub(crate) const fn stored(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    pub(crate) const fn with(mut self, subresources: &'static [Subresource]) -> Self {
        let mut index = 0;
        while index < subresources.len() {
            if is(subresources[index].name, "status") {
                self.has_status = true;
            }
            index += 1;
        }
        self.subresources = subresources;
        self
    }

    /// `v1` or `apps/v1`, as in an object's `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            return self.version.to_string();
        }
        format!("{}/{}", self.group, self.version)
    }

    /// Kind of a list of these objects, such as `PodList`.
    pub fn list_kind(&self) -> String {
        if self.list_kind.is_empty() {
            return format!("{}List", self.kind);
        }
        self.list_kind.to_string()
    }

    /// The definition of a custom kind, as it is now; None for built-in kinds, and when the CRD has
    /// gone since the row was looked up.
    pub fn custom(&self) -> Option<Arc<Definition>> {
        self.custom.and_then(Slot::get)
    }

    /// `pods` or `deployments.apps`, as in error messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            return self.plural.to_string();
        }
        format!("{}.{}", self.plural, self.group)
    }

    /// `Pod` or `Deployment.apps`, as in messages about invalid objects.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() {
            return self.kind.to_string();
        }
        format!("{}.{}", self.kind, self.group)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// The row whose group and plural form the store key; `None` when objects of this kind are not
    /// stored.
    pub fn stored_as(&'static self) -> Option<&'static Kind> {
        match self.storage {
            Storage::Own => Some(self),
            Storage::In { group, version } => kind(group, version, self.plural),
            Storage::None => None,
        }
    }

    /// Whether this is the row for that group and kind, whatever the version.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }
}

/// The row for a path's group, version and plural.
pub fn kind(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|row| row.plural == plural && row.group == group && row.version == version)
}

/// The row for an object's `apiVersion` and `kind`.
pub fn kind_of(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    KINDS.iter().find(|row| row.kind == kind && row.group == group && row.version == version)
}

/// String equality in constant evaluation, where `==` on strings is not available.
const fn is(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

const fn group_priority(name: &str) -> u32 {
    let mut index = 0;
    while index < GROUPS.len() {
        if is(GROUPS[index].name, name) {
            return GROUPS[index].priority;
        }
        index += 1;
    }
    panic!("a kind's group must stand in GROUPS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_their_groups_exist() {
        for (index, row) in KINDS.iter().enumerate() {
            let twins = KINDS[..index].iter().filter(|other| {
                (other.group, other.version, other.plural) == (row.group, row.version, row.plural)
            });
            assert_eq!(twins.count(), 0, "{} is in the table twice", row.qualified());
            let group = GROUPS.iter().find(|group| group.name == row.group).expect("group exists");
            assert!(group.versions.contains(&row.version), "{}", row.qualified());
            if row.storage != Storage::None {
                assert!(row.stored_as().is_some(), "{} has no storage row", row.qualified());
            }
        }
    }

    #[test]
    fn rows_stand_in_discovery_order() {
        let place = |row: &Kind| {
            let group = GROUPS.iter().position(|group| group.name == row.group);
            let version = GROUPS[group.expect("group exists")]
                .versions
                .iter()
                .position(|version| *version == row.version);
            (group, version)
        };
        assert!(KINDS.windows(2).all(|pair| place(&pair[0]) <= place(&pair[1])));
    }

    #[test]
    fn names_of_a_kind() {
        let row = kind("apps", "v1", "deployments").expect("in the table");
        assert_eq!(row.api_version(), "apps/v1");
        assert_eq!(row.list_kind(), "DeploymentList");
        assert_eq!(row.qualified(), "deployments.apps");
        assert_eq!(row.qualified_kind(), "Deployment.apps");
        assert!(row.has_status && row.generation && row.namespaced);
        assert_eq!(kind_of("v1", "Pod").map(|row| row.qualified()), Some("pods".to_string()));
        assert!(kind_of("apps/v1", "Pod").is_none());
    }

    #[test]
    fn events_share_one_storage() {
        let row = kind("events.k8s.io", "v1", "events").expect("in the table");
        let stored = row.stored_as().expect("events are stored");
        assert_eq!((stored.group, stored.version), ("", "v1"));
    }
}
