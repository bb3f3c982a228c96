//! How much CPU Pods of one owner really use: what the next one of them is likely to use.
//!
//! Nodes name their heaviest Pods by uid; which owner these have is known when both the Node and the
//! Pod have been heard of, in whatever order.

use std::collections::{BTreeMap, HashMap};

/// Measured CPU, in thousandths of a core.
#[derive(Default)]
pub struct Appetites {
    /// By Pod.
    heavy: HashMap<String, i64>,
    /// Those whose owner is known: by owner, then by Pod.
    by_owner: HashMap<String, HashMap<String, i64>>,
}

impl Appetites {
    /// Takes what a node says in place of what it said before. `owner` tells a Pod's owner.
    pub fn measured<'a>(
        &mut self,
        before: &BTreeMap<String, i64>,
        after: &BTreeMap<String, i64>,
        owner: impl Fn(&str) -> Option<&'a str>,
    ) {
        for uid in before.keys() {
            self.heavy.remove(uid);
            self.gone(uid, owner(uid));
        }
        for (uid, cpu) in after {
            self.heavy.insert(uid.clone(), *cpu);
            self.came(uid, owner(uid));
        }
    }

    /// A Pod has a node.
    pub fn came(&mut self, uid: &str, owner: Option<&str>) {
        if let (Some(cpu), Some(owner)) = (self.heavy.get(uid), owner) {
            self.by_owner.entry(owner.to_string()).or_default().insert(uid.to_string(), *cpu);
        }
    }

    /// A Pod has none any more.
    pub fn gone(&mut self, uid: &str, owner: Option<&str>) {
        let Some(owner) = owner else { return };
        let Some(pods) = self.by_owner.get_mut(owner) else { return };
        pods.remove(uid);
        if pods.is_empty() {
            self.by_owner.remove(owner);
        }
    }

    /// What a Pod of this owner is likely to use: as much as the heaviest of its siblings does.
    pub fn of(&self, owner: &str) -> i64 {
        let pods = self.by_owner.get(owner).into_iter().flat_map(HashMap::values);
        pods.copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_tell_what_a_pod_will_use() {
        let said = |pods: &[(&str, i64)]| -> BTreeMap<String, i64> {
            pods.iter().map(|(uid, cpu)| (uid.to_string(), *cpu)).collect()
        };
        let mut appetites = Appetites::default();
        let owner = |uid: &str| (uid != "late").then_some("web");
        appetites.measured(&said(&[]), &said(&[("a", 300), ("b", 700), ("late", 900)]), owner);
        assert_eq!((appetites.of("web"), appetites.of("db")), (700, 0));
        appetites.came("late", Some("web"));
        assert_eq!(appetites.of("web"), 900, "the Pod was heard of after its node");
        appetites.gone("late", Some("web"));
        appetites.measured(&said(&[("a", 300), ("b", 700)]), &said(&[("a", 200)]), owner);
        assert_eq!(appetites.of("web"), 200);
    }
}
