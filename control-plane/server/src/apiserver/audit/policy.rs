//! The audit policy: `audit.k8s.io/v1` Policy, as Kubernetes reads it. The first rule that fits
//! decides; what no rule fits is not told.

use serde::Deserialize;

use crate::apiserver::auth::User;
use crate::apiserver::request::Attributes;

/// What is told when no policy is given: every change, but for what the control plane and the nodes
/// do all the time.
const DEFAULT: &str = include_str!("default-policy.yaml");

/// How much of a request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    /// The word in a policy and an event.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// The policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the audit policy cannot be read: {0}; it must be a Policy of audit.k8s.io/v1 with `rules`, \
     each with a `level`"
)]
pub struct PolicyError(#[from] serde_yaml_ng::Error);

/// Rules in order.
#[derive(Clone, Debug, Deserialize)]
pub struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resources {
    #[serde(default)]
    group: String,
    /// Empty: all of the group.
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    /// Reads a policy.
    pub fn parse(yaml: &str) -> Result<Policy, PolicyError> {
        Ok(serde_yaml_ng::from_str(yaml)?)
    }

    /// What is told when nobody says otherwise.
    pub fn standard() -> Policy {
        Policy::parse(DEFAULT).expect("a test reads this file")
    }

    /// How much of this request is told.
    pub fn level(&self, user: Option<&User>, asked: &Attributes) -> Level {
        let rule = self.rules.iter().find(|rule| rule.fits(user, asked));
        rule.map_or(Level::None, |rule| rule.level)
    }
}

impl Rule {
    fn fits(&self, user: Option<&User>, asked: &Attributes) -> bool {
        let name = user.map_or("", |user| user.name.as_str());
        let listed =
            |list: &[String], word: &str| list.is_empty() || list.iter().any(|one| one == word);
        let in_group =
            || self.user_groups.iter().any(|group| user.is_some_and(|user| user.is_in(group)));
        listed(&self.users, name)
            && (self.user_groups.is_empty() || in_group())
            && listed(&self.verbs, &asked.verb)
            && self.is_about(asked)
    }

    fn is_about(&self, asked: &Attributes) -> bool {
        if self.paths.is_empty() && self.resources.is_empty() && self.namespaces.is_empty() {
            return true;
        }
        if !asked.is_resource {
            return self.paths.iter().any(|path| match path.strip_suffix('*') {
                Some(start) => asked.path.starts_with(start),
                None => *path == asked.path,
            });
        }
        let place = self.namespaces.is_empty() || self.namespaces.contains(&asked.namespace);
        let only_paths = !self.paths.is_empty() && self.resources.is_empty();
        place
            && !only_paths
            && (self.resources.is_empty() || self.resources.iter().any(|one| one.fit(asked)))
    }
}

impl Resources {
    fn fit(&self, asked: &Attributes) -> bool {
        let names = &self.resource_names;
        let fits = |own: &String| match own.split_once('/') {
            _ if own == "*" => true,
            None => asked.subresource.is_empty() && *own == asked.resource,
            Some((name, part)) => {
                (name == "*" || name == asked.resource)
                    && (part == "*" || part == asked.subresource)
            }
        };
        self.group == asked.group
            && (self.resources.is_empty() || self.resources.iter().any(fits))
            && (names.is_empty() || names.contains(&asked.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: &str, group: &str, resource: &str, subresource: &str) -> Attributes {
        Attributes {
            verb: verb.to_owned(),
            is_resource: true,
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: "shop".to_owned(),
            ..Attributes::default()
        }
    }

    #[test]
    fn changes_are_told_and_routine_is_not() {
        let policy = Policy::standard();
        let ann = User::new("ann", &[]);
        let node = User::new("system:node:a", &["system:nodes"]);
        let level = |user: &User, asked: &Attributes| policy.level(Some(user), asked);
        assert_eq!(level(&ann, &asked("create", "apps", "deployments", "")), Level::Metadata);
        assert_eq!(level(&ann, &asked("list", "", "pods", "")), Level::None);
        assert_eq!(level(&node, &asked("patch", "", "pods", "status")), Level::None);
        assert_eq!(level(&node, &asked("delete", "", "pods", "")), Level::Metadata);
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = Policy::parse(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
             - level: None\n  users: [bot]\n\
             - level: Request\n  resources: [{group: apps, resources: [deployments]}]\n\
             \x20 namespaces: [shop]\n\
             - level: Metadata\n  nonResourceURLs: [/metrics*]\n",
        );
        let policy = policy.expect("a policy");
        let (ann, bot) = (User::new("ann", &[]), User::new("bot", &[]));
        let change = asked("update", "apps", "deployments", "");
        assert_eq!(policy.level(Some(&ann), &change), Level::Request);
        assert_eq!(policy.level(Some(&bot), &change), Level::None);
        assert_eq!(policy.level(Some(&ann), &asked("get", "", "pods", "")), Level::None);
        let path = Attributes { path: "/metrics".to_owned(), ..Attributes::default() };
        assert_eq!(policy.level(Some(&ann), &path), Level::Metadata);
        assert!(Policy::parse("{rules: [{level: All}]}").is_err());
    }
}
