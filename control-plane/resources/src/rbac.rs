//! Rules of roles: what one allows, and whether some rules cover others.
//!
//! The authoriser asks the first question at every request, the guard against escalation the second
//! at every write of a role or binding, and the controllers that keep the default roles whole ask
//! the second too. All answers are Kubernetes' own.
//!
//! To compare rules they are broken down into the smallest ones (one verb on one resource of one
//! group, of one name if it names any), each of which one rule covers as a whole or not at all.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Object;
use crate::meta::items;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// Everything: as a verb, a group, a resource or a path.
pub const ALL: &str = "*";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty: all names.
    pub names: Vec<String>,
    /// Paths that are no resources; a rule has these or the three above.
    pub urls: Vec<String>,
}

/// What is asked for: a resource, or a plain path.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    Resource { group: &'a str, resource: &'a str, subresource: &'a str, name: &'a str },
    Path(&'a str),
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    items(value, key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == wanted)
}

fn has_all(list: &[String], wanted: &[String]) -> bool {
    wanted.iter().all(|one| has(list, one))
}

impl Rule {
    /// Reads a rule as it stands in a role.
    pub fn read(value: &Value) -> Rule {
        Rule {
            verbs: texts(value, "verbs"),
            groups: texts(value, "apiGroups"),
            resources: texts(value, "resources"),
            names: texts(value, "resourceNames"),
            urls: texts(value, "nonResourceURLs"),
        }
    }

    /// A rule about resources.
    pub fn of(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        Rule {
            verbs: owned(verbs),
            groups: owned(groups),
            resources: owned(resources),
            ..Rule::default()
        }
    }

    /// A rule about plain paths.
    pub fn on_paths(verbs: &[&str], urls: &[&str]) -> Rule {
        Rule { verbs: owned(verbs), urls: owned(urls), ..Rule::default() }
    }

    /// As it stands in a role.
    pub fn to_json(&self) -> Value {
        let mut rule = Map::new();
        rule.insert("verbs".to_owned(), json!(self.verbs));
        let rest = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        for (key, list) in rest.into_iter().filter(|(_, list)| !list.is_empty()) {
            rule.insert(key.to_owned(), json!(list));
        }
        Value::Object(rule)
    }

    /// Whether the rule allows this.
    pub fn allows(&self, verb: &str, wanted: Wanted<'_>) -> bool {
        let verb_fits = self.verbs.iter().any(|own| own == ALL || own == verb);
        verb_fits
            && match wanted {
                Wanted::Path(path) => self.urls.iter().any(|url| path_fits(url, path)),
                Wanted::Resource { group, resource, subresource, name } => {
                    let fits = |own: &String| resource_fits(own, resource, subresource);
                    self.groups.iter().any(|own| own == ALL || own == group)
                        && self.resources.iter().any(fits)
                        && (self.names.is_empty() || has(&self.names, name))
                }
            }
    }

    /// Whether this rule covers a smallest one.
    fn covers(&self, small: &Rule) -> bool {
        let names = match small.names.is_empty() {
            true => self.names.is_empty(),
            false => self.names.is_empty() || has_all(&self.names, &small.names),
        };
        let verbs = has(&self.verbs, ALL) || has_all(&self.verbs, &small.verbs);
        let groups = has(&self.groups, ALL) || has_all(&self.groups, &small.groups);
        let resources = has(&self.resources, ALL)
            || small.resources.iter().all(|one| {
                let part = one.split_once('/').map(|(_, part)| format!("*/{part}"));
                has(&self.resources, one) || part.is_some_and(|any| has(&self.resources, &any))
            });
        let urls = small.urls.iter().all(|url| {
            self.urls.iter().any(|own| {
                own == url || own.ends_with('*') && url.starts_with(own.trim_end_matches('*'))
            })
        });
        verbs && groups && resources && names && urls
    }

    /// The smallest rules that together are this one.
    fn broken_down(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut smallest = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let rule = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        smallest.push(rule);
                        continue;
                    }
                    let named = |name| Rule { names: one(name), ..rule.clone() };
                    smallest.extend(self.names.iter().map(named));
                }
            }
        }
        for url in &self.urls {
            let on = |verb| Rule { verbs: one(verb), urls: one(url), ..Rule::default() };
            smallest.extend(self.verbs.iter().map(on));
        }
        smallest
    }

    /// The rule in one line, as in refusals.
    fn line(&self) -> String {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
        let parts: Vec<String> =
            parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        format!("{{{}}}", parts.join(", "))
    }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// `/livez/*` is everything that begins so, `*` is every path.
fn path_fits(url: &str, path: &str) -> bool {
    url == ALL || url == path || url.ends_with('*') && path.starts_with(url.trim_end_matches('*'))
}

/// `pods`, `pods/log`, `*` and `*/scale`.
fn resource_fits(own: &str, resource: &str, subresource: &str) -> bool {
    if own == ALL {
        return true;
    }
    match own.split_once('/') {
        None => subresource.is_empty() && own == resource,
        Some((name, part)) => {
            !subresource.is_empty() && part == subresource && (name == resource || name == ALL)
        }
    }
}

/// A list of texts as Go prints it: `["a" "b"]`.
pub fn quoted(list: &[String]) -> String {
    let all: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", all.join(" "))
}

/// The rules of a role.
pub fn rules(role: &Object) -> Vec<Rule> {
    items(role, "rules").iter().map(Rule::read).collect()
}

/// The smallest rules of `wanted` that no rule of `held` covers.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let smallest = wanted.iter().flat_map(Rule::broken_down);
    smallest.filter(|small| !held.iter().any(|own| own.covers(small))).collect()
}

/// Smallest rules about the same resource (and name) as one, with all their verbs.
pub fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut compacted: Vec<Rule> = Vec::new();
    for rule in rules {
        let simple = rule.urls.is_empty() && rule.names.len() <= 1;
        let same = |other: &&mut Rule| {
            simple
                && other.urls.is_empty()
                && (&other.groups, &other.resources, &other.names)
                    == (&rule.groups, &rule.resources, &rule.names)
        };
        match compacted.iter_mut().find(same) {
            Some(twin) => {
                for verb in rule.verbs {
                    if !has(&twin.verbs, &verb) {
                        twin.verbs.push(verb);
                    }
                }
            }
            None => compacted.push(rule),
        }
    }
    compacted
}

/// Missing rules as the text of a refusal, one a line.
pub fn lines(missing: Vec<Rule>) -> String {
    let lines: BTreeSet<String> = compact(missing).iter().map(Rule::line).collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// Rules for everything: what it takes to make a role that gathers others.
pub fn everything() -> Vec<Rule> {
    vec![Rule::of(&[ALL], &[ALL], &[ALL]), Rule::on_paths(&[ALL], &[ALL])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource<'a>(group: &'a str, path: &'a str, name: &'a str) -> Wanted<'a> {
        let (resource, subresource) = path.split_once('/').unwrap_or((path, ""));
        Wanted::Resource { group, resource, subresource, name }
    }

    #[test]
    fn what_a_rule_allows() {
        let rule = Rule::of(&["get", "list"], &["", "apps"], &["pods", "pods/log", "*/scale"]);
        for (verb, group, path, allowed) in [
            ("get", "", "pods", true),
            ("get", "", "pods/log", true),
            ("get", "", "pods/exec", false),
            ("create", "", "pods", false),
            ("list", "apps", "deployments/scale", true),
            ("list", "apps", "deployments", false),
            ("list", "batch", "jobs/scale", false),
        ] {
            let found = rule.allows(verb, resource(group, path, "x"));
            assert_eq!(found, allowed, "{verb} {path}.{group}");
        }
        let named = Rule { names: owned(&["a"]), ..rule };
        assert!(named.allows("get", resource("", "pods", "a")));
        assert!(!named.allows("get", resource("", "pods", "b")));
        assert!(!named.allows("list", resource("", "pods", "")));
        let all = Rule::of(&["*"], &["*"], &["*"]);
        assert!(all.allows("x", resource("any", "thing/part", "n")));
        assert!(!all.allows("get", Wanted::Path("/metrics")));
    }

    #[test]
    fn paths() {
        let rule = Rule::on_paths(&["get"], &["/healthz", "/api/*"]);
        for (path, allowed) in [
            ("/healthz", true),
            ("/healthz/", false),
            ("/api/v1", true),
            ("/api/", true),
            ("/api", false),
            ("/apis", false),
        ] {
            assert_eq!(rule.allows("get", Wanted::Path(path)), allowed, "{path}");
        }
    }

    #[test]
    fn what_is_not_covered_is_told_in_lines() {
        let held = [Rule::of(&["get", "list"], &[""], &["pods", "*/status"])];
        let wanted = [
            Rule::of(&["get", "create", "delete"], &[""], &["pods", "pods/status"]),
            Rule::on_paths(&["get"], &["/metrics"]),
        ];
        assert_eq!(
            lines(uncovered(&held, &wanted)),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}\n\
             {APIGroups:[\"\"], Resources:[\"pods/status\"], Verbs:[\"create\" \"delete\"]}\n\
             {NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}"
        );
        assert!(uncovered(&everything(), &wanted).is_empty());
        let one = [Rule { names: owned(&["a"]), ..Rule::of(&["get"], &[""], &["secrets"]) }];
        let all = [Rule::of(&["get"], &[""], &["secrets"])];
        assert!(uncovered(&all, &one).is_empty());
        assert_eq!(uncovered(&one, &all), all);
    }

    #[test]
    fn a_path_is_covered_by_its_beginning() {
        let held = [Rule::on_paths(&["get"], &["/api/*"])];
        let wanted = |url: &str| [Rule::on_paths(&["get"], &[url])];
        assert!(uncovered(&held, &wanted("/api/v1")).is_empty());
        assert!(uncovered(&held, &wanted("/api/*")).is_empty());
        assert!(!uncovered(&held, &wanted("/*")).is_empty());
        assert!(!uncovered(&held, &wanted("*")).is_empty());
    }
}
