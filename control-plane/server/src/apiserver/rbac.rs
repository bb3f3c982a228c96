//! Roles and bindings, indexed by who has them.
//!
//! [`Index`] follows the store (`follow`), so a request costs a few look-ups and no list. A role's
//! key is its namespace and name; cluster roles and cluster bindings have the namespace `""`.
//! A binding counts at once when its role is made, and stops counting when the role goes.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use wherry_resources::keys::Key;
use wherry_resources::meta::{items, text};
use wherry_resources::rbac::{self, GROUP, Rule, Wanted};
use wherry_store::Entry;

use super::{auth::User, errors::ApiError, errors::GroupResource, follow::Fold};
use crate::apiserver::request::Attributes;

/// Which role a binding gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleKey {
    /// Empty for a ClusterRole.
    pub namespace: String,
    pub name: String,
}

impl RoleKey {
    /// The role that a binding in this namespace (empty: a cluster binding) refers to.
    pub fn of(binding: &Value, namespace: &str) -> RoleKey {
        let role = &binding["roleRef"];
        let of_namespace = text(role, "kind") == "Role";
        let namespace = if of_namespace { namespace } else { "" };
        RoleKey { namespace: namespace.to_owned(), name: text(role, "name").to_owned() }
    }

    /// `clusterroles` or `roles`.
    pub fn plural(&self) -> &'static str {
        if self.namespace.is_empty() { "clusterroles" } else { "roles" }
    }

    /// That the role is not there.
    pub fn not_found(&self) -> ApiError {
        let resource = GroupResource { group: GROUP.to_owned(), plural: self.plural().to_owned() };
        ApiError::NotFound { resource, name: self.name.clone() }
    }

    /// The word of Kubernetes' own sentence about a role that is not there.
    fn singular(&self) -> &'static str {
        if self.namespace.is_empty() { "clusterrole" } else { "role" }
    }
}

#[derive(Debug)]
struct Binding {
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    name: String,
    role: RoleKey,
    users: Vec<String>,
    groups: Vec<String>,
}

/// The bindings of one namespace, by subject.
#[derive(Clone, Default)]
struct Bindings {
    by_name: HashMap<String, Arc<Binding>>,
    by_user: HashMap<String, Vec<Arc<Binding>>>,
    by_group: HashMap<String, Vec<Arc<Binding>>>,
}

/// All roles and bindings.
#[derive(Clone, Default)]
pub struct Index {
    /// By namespace, then by name.
    roles: HashMap<String, HashMap<String, Arc<Vec<Rule>>>>,
    bindings: HashMap<String, Bindings>,
}

/// Prefix of the store's keys of all four kinds.
pub fn prefix() -> Vec<u8> {
    format!("{GROUP}/").into_bytes()
}

/// The user name of a service account.
pub fn service_account(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Namespace and name of a service account's user name.
pub fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
    plain.then_some((namespace, name))
}

impl Fold for Index {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        // What is read here is the stored form; its revision does not matter.
        let Ok(object) = serde_json::from_slice::<Value>(&entry.value) else { return };
        match key.plural {
            "roles" | "clusterroles" => {
                let rules = Arc::new(rbac::rules(&object));
                let roles = self.roles.entry(key.namespace.to_owned()).or_default();
                roles.insert(key.name.to_owned(), rules);
            }
            "rolebindings" | "clusterrolebindings" => {
                let bindings = self.bindings.entry(key.namespace.to_owned()).or_default();
                bindings.remove(key.name);
                bindings.insert(binding(key, &object));
            }
            _ => {}
        }
    }

    fn remove(&mut self, key: &Key<'_>) {
        match key.plural {
            "roles" | "clusterroles" => {
                if let Some(roles) = self.roles.get_mut(key.namespace) {
                    roles.remove(key.name);
                }
            }
            "rolebindings" | "clusterrolebindings" => {
                if let Some(bindings) = self.bindings.get_mut(key.namespace) {
                    bindings.remove(key.name);
                }
            }
            _ => {}
        }
    }
}

fn binding(key: &Key<'_>, object: &Value) -> Binding {
    let mut binding = Binding {
        namespace: key.namespace.to_owned(),
        name: key.name.to_owned(),
        role: RoleKey::of(object, key.namespace),
        users: Vec::new(),
        groups: Vec::new(),
    };
    for subject in items(object, "subjects") {
        let name = text(subject, "name");
        match text(subject, "kind") {
            "User" => binding.users.push(name.to_owned()),
            "Group" => binding.groups.push(name.to_owned()),
            "ServiceAccount" => {
                let own = text(subject, "namespace");
                let namespace = if own.is_empty() { key.namespace } else { own };
                if !namespace.is_empty() {
                    binding.users.push(service_account(namespace, name));
                }
            }
            _ => {}
        }
    }
    binding
}

impl Bindings {
    fn insert(&mut self, binding: Binding) {
        let binding = Arc::new(binding);
        for user in &binding.users {
            self.by_user.entry(user.clone()).or_default().push(binding.clone());
        }
        for group in &binding.groups {
            self.by_group.entry(group.clone()).or_default().push(binding.clone());
        }
        self.by_name.insert(binding.name.clone(), binding);
    }

    fn remove(&mut self, name: &str) {
        let Some(binding) = self.by_name.remove(name) else { return };
        let forget = |index: &mut HashMap<String, Vec<Arc<Binding>>>, subject: &String| {
            if let Some(list) = index.get_mut(subject) {
                list.retain(|held| held.name != name);
                if list.is_empty() {
                    index.remove(subject);
                }
            }
        };
        binding.users.iter().for_each(|user| forget(&mut self.by_user, user));
        binding.groups.iter().for_each(|group| forget(&mut self.by_group, group));
    }

    fn of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Arc<Binding>> {
        let by_name = self.by_user.get(&user.name).into_iter().flatten();
        let groups = user.groups.iter().filter_map(|group| self.by_group.get(group));
        by_name.chain(groups.flatten())
    }
}

/// What the roles say about a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Opinion {
    Allowed,
    /// No rule allows it. The text says what went wrong on the way, or is empty.
    None(String),
}

impl Index {
    /// The rules of a role.
    pub fn role(&self, key: &RoleKey) -> Option<&Arc<Vec<Rule>>> {
        self.roles.get(&key.namespace)?.get(&key.name)
    }

    /// Whether a binding gives the user a rule that allows the request.
    pub fn decide(&self, user: &User, asked: &Attributes) -> Opinion {
        let mut missing: Vec<&RoleKey> = Vec::new();
        for binding in self.bindings_of(user, place(asked)) {
            match self.role(&binding.role) {
                Some(rules) if allow(rules, asked) => return Opinion::Allowed,
                Some(_) => {}
                None if missing.contains(&&binding.role) => {}
                None => missing.push(&binding.role),
            }
        }
        Opinion::None(explain(&missing))
    }

    /// Kubernetes' words about the binding that allows the request.
    pub fn reason(&self, user: &User, asked: &Attributes) -> Option<String> {
        let binding = self
            .bindings_of(user, place(asked))
            .find(|binding| self.role(&binding.role).is_some_and(|rules| allow(rules, asked)))?;
        let Binding { namespace, name, role, .. } = &**binding;
        let what = match namespace.as_str() {
            "" => format!("ClusterRoleBinding {name:?}"),
            namespace => format!("RoleBinding {:?}", format!("{name}/{namespace}")),
        };
        let kind = if role.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let subject = match (binding.users.contains(&user.name), service_account_of(&user.name)) {
            (true, Some((namespace, name))) => {
                format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
            (true, None) => format!("User {:?}", user.name),
            (false, _) => {
                let group = user.groups.iter().find(|group| binding.groups.contains(*group));
                format!("Group {:?}", group.map_or("", String::as_str))
            }
        };
        Some(format!("RBAC: allowed by {what} of {kind} {:?} to {subject}", role.name))
    }

    /// All rules that a user has in a namespace (empty: in the whole cluster).
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let bindings = self.bindings_of(user, namespace);
        let roles = bindings.filter_map(|binding| self.role(&binding.role));
        roles.flat_map(|rules| rules.iter().cloned()).collect()
    }

    fn bindings_of<'a>(
        &'a self,
        user: &'a User,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<Binding>> + use<'a> {
        let cluster = self.bindings.get("");
        let own = self.bindings.get(namespace).filter(|_| !namespace.is_empty());
        cluster.into_iter().chain(own).flat_map(|bindings| bindings.of(user))
    }
}

/// Whose bindings count besides the cluster's.
fn place(asked: &Attributes) -> &str {
    if asked.is_resource { &asked.namespace } else { "" }
}

fn allow(rules: &[Rule], asked: &Attributes) -> bool {
    let wanted = match asked.is_resource {
        false => Wanted::Path(&asked.path),
        true => Wanted::Resource {
            group: &asked.group,
            resource: &asked.resource,
            subresource: &asked.subresource,
            name: &asked.name,
        },
    };
    rules.iter().any(|rule| rule.allows(&asked.verb, wanted))
}

/// Kubernetes' words for bindings whose role is not there.
fn explain(missing: &[&RoleKey]) -> String {
    let sentences: Vec<String> = missing
        .iter()
        .map(|role| format!("{}.{GROUP} {:?} not found", role.singular(), role.name))
        .collect();
    match sentences.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        several => format!("RBAC: [{}]", several.join(", ")),
    }
}

#[cfg(test)]
mod tests;
