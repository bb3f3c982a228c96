//! What others serve, among what this server serves itself.

use super::{Aggregated, Said};
use crate::apiserver::openapi::Part;
use serde_json::{Value, json};
use wherry_store::Store;

/// A group of which others serve versions.
#[derive(Debug)]
pub struct Foreign {
    pub group: String,
    pub priority: i64,
    /// The preferred one first.
    pub versions: Vec<ForeignVersion>,
}

/// A version that others serve.
#[derive(Debug)]
pub struct ForeignVersion {
    pub version: String,
    said: Said,
    priority: i64,
}

impl ForeignVersion {
    /// As the aggregated form has it. A server that does not answer has the resources that it said
    /// before, marked as stale: clients warn, and go on with the other groups.
    pub fn aggregated(&self) -> Value {
        let mut entry = match &self.said.version {
            Value::Null => json!({"version": self.version, "resources": []}),
            said => said.clone(),
        };
        entry["freshness"] = json!(if self.said.fresh { "Current" } else { "Stale" });
        entry
    }
}

impl Aggregated {
    /// Everything that others serve, by group; the first of equal priority is the first by name.
    pub fn foreign(&self, store: &Store) -> Vec<Foreign> {
        let mut groups: Vec<Foreign> = Vec::new();
        for remote in self.remotes(store).iter() {
            let at = groups.iter().position(|held| held.group == remote.group);
            let at = at.unwrap_or_else(|| {
                let (group, versions) = (remote.group.clone(), Vec::new());
                groups.push(Foreign { group, priority: remote.group_priority, versions });
                groups.len() - 1
            });
            let group = &mut groups[at];
            group.priority = group.priority.max(remote.group_priority);
            group.versions.push(ForeignVersion {
                version: remote.version.clone(),
                said: self.said().get(&remote.name).cloned().unwrap_or_default(),
                priority: remote.version_priority,
            });
        }
        for group in &mut groups {
            group.versions.sort_by(|one, other| {
                let by_version =
                    || wherry_resources::custom::compare_versions(&one.version, &other.version);
                other.priority.cmp(&one.priority).then_with(by_version)
            });
        }
        groups.sort_by(|one, other| {
            other.priority.cmp(&one.priority).then_with(|| one.group.cmp(&other.group))
        });
        groups
    }

    /// The OpenAPI documents of others: path in the index, and address.
    pub fn openapi(&self, store: &Store) -> Vec<(String, String)> {
        let said = self.said();
        let entry = |remote: &std::sync::Arc<super::Remote>| {
            let address = said.get(&remote.name)?.openapi_v3.clone()?;
            Some((format!("apis/{}/{}", remote.group, remote.version), address))
        };
        self.remotes(store).iter().filter_map(entry).collect()
    }
    /// What others say in version 2 of OpenAPI.
    pub fn openapi_v2(&self, store: &Store) -> Vec<Part> {
        let said = self.said();
        let part =
            |remote: &std::sync::Arc<super::Remote>| said.get(&remote.name)?.openapi_v2.clone();
        self.remotes(store).iter().filter_map(part).collect()
    }
}
