//! Which requests a hook is asked about: rules, selectors, conditions. Decided from values alone.

use std::sync::Arc;

use serde_json::{Value, json};
use wherry_resources::{Kind, Object, meta, selectors::LabelSelector};

use super::Asked;
use crate::apiserver::cel::{self, Bindings, EvalError, Expression, Meter};
use crate::apiserver::extensions::client;

/// A request with what it is about.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub asked: &'a Asked<'a>,
    pub object: Option<&'a Object>,
    pub old: Option<&'a Object>,
}

impl Subject<'_> {
    /// The Namespace of a namespaced object; a Namespace is in none.
    pub fn namespace(&self) -> Option<Object> {
        let asked = self.asked;
        let find = || client::find(asked.api, "", "namespaces", "", asked.namespace);
        asked.kind.namespaced.then(find).flatten()
    }
}

/// One rule: any of the operations, and any of the resources.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

/// What a hook is asked about.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    /// A rule for one version also means the others of the same objects.
    equivalent: bool,
}

impl Rule {
    fn parse(source: &Value) -> Rule {
        let list = |key: &str| -> Vec<String> {
            let list = source[key].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Rule {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            names: list("resourceNames"),
            scope: source["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    fn matches(&self, asked: &Asked<'_>, kind: &Kind) -> bool {
        let holds = |list: &[String], word: &str| list.iter().any(|one| one == "*" || one == word);
        let scope = match self.scope.as_str() {
            "Namespaced" => kind.namespaced,
            "Cluster" => !kind.namespaced,
            _ => true,
        };
        scope
            && holds(&self.operations, asked.operation.word())
            && holds(&self.groups, kind.group)
            && holds(&self.versions, kind.version)
            && (self.names.is_empty() || self.names.contains(&asked.name))
            && self.resources.iter().any(|one| resource(one, kind.plural, asked.subresource))
    }
}

/// `pods`, `pods/*`, `*/scale`, `*`, `*/*`.
fn resource(written: &str, plural: &str, subresource: &str) -> bool {
    let (first, second) = written.split_once('/').unwrap_or((written, ""));
    (first == "*" || first == plural) && (second == "*" || second == subresource)
}

impl Constraints {
    /// Reads the rules and selectors of a webhook or the constraints of a policy; `rules` is the
    /// key under which the rules stand.
    pub fn parse(source: &Value, rules: &str) -> Constraints {
        let list = |key: &str| -> Vec<Rule> {
            source[key].as_array().into_iter().flatten().map(Rule::parse).collect()
        };
        let selector = |key: &str| {
            let typed = source.get(key).filter(|typed| !typed.is_null())?;
            // One that cannot be read selects nothing.
            let found = LabelSelector::from_typed(Some(typed));
            Some(found.unwrap_or_else(|_| LabelSelector::nothing()))
        };
        Constraints {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: source["matchPolicy"] != "Exact",
        }
    }

    /// Whether there is a rule at all.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The kind in whose version the hook wants to see the object; None if it is not concerned.
    pub fn concerns(&self, subject: &Subject<'_>) -> Option<&'static Kind> {
        let asked = subject.asked;
        let kind = self.kind(asked)?;
        if self.excluded.iter().any(|rule| rule.matches(asked, asked.kind)) {
            return None;
        }
        self.selects(subject).then_some(kind)
    }

    fn kind(&self, asked: &Asked<'_>) -> Option<&'static Kind> {
        let matches = |kind: &Kind| self.rules.iter().any(|rule| rule.matches(asked, kind));
        if matches(asked.kind) {
            return Some(asked.kind);
        }
        if !self.equivalent {
            return None;
        }
        let catalog = asked.api.catalog();
        let same = |other: &&&'static Kind| {
            !std::ptr::eq(**other, asked.kind) && same_objects(other, asked.kind)
        };
        catalog.kinds.iter().filter(same).find(|other| matches(other)).copied()
    }

    /// Whether the selectors alone let the request pass.
    pub fn selects(&self, subject: &Subject<'_>) -> bool {
        self.selects_object(subject) && self.selects_namespace(subject)
    }

    fn selects_object(&self, subject: &Subject<'_>) -> bool {
        let Some(selector) = self.objects.as_ref().filter(|one| !one.is_everything()) else {
            return true;
        };
        [subject.object, subject.old].into_iter().flatten().any(|object| selector.matches(object))
    }

    fn selects_namespace(&self, subject: &Subject<'_>) -> bool {
        let Some(selector) = self.namespaces.as_ref().filter(|one| !one.is_everything()) else {
            return true;
        };
        let kind = subject.asked.kind;
        if kind.is("", "Namespace") {
            let own = subject.object.or(subject.old);
            return own.is_none_or(|namespace| selector.matches(namespace));
        }
        if !kind.namespaced {
            return true;
        }
        match subject.namespace() {
            Some(namespace) => selector.matches(&namespace),
            None => selector.matches(&json!({})),
        }
    }
}

/// Whether two kinds show the same stored objects.
fn same_objects(left: &'static Kind, right: &'static Kind) -> bool {
    match (left.stored_as(), right.stored_as()) {
        (Some(left), Some(right)) => left.group == right.group && left.plural == right.plural,
        _ => false,
    }
}

/// A named condition.
#[derive(Debug)]
pub struct Condition {
    pub name: String,
    pub expression: Expression,
}

/// Whether all conditions hold. An error counts only if none is false.
pub fn conditions(conditions: &[Condition], subject: &Subject<'_>) -> Result<bool, String> {
    if conditions.is_empty() {
        return Ok(true);
    }
    let request = request(subject);
    let meter = Meter::new(cel::CONDITIONS_COST_MAX);
    let bindings = bindings(&meter, subject, &request);
    let mut failed = None;
    for condition in conditions {
        match condition.expression.holds(&bindings) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(EvalError::Failed(why)) => {
                failed = failed.or(Some(format!("{}: {why}", condition.name)));
            }
            Err(spent) => return Err(spent.to_string()),
        }
    }
    failed.map_or(Ok(true), Err)
}

/// The variables that every expression about a request has.
pub fn bindings<'v>(meter: &Meter, subject: &'v Subject<'_>, request: &'v Value) -> Bindings<'v> {
    let absent = || Box::new(::cel::common::types::CelNull) as Box<dyn ::cel::common::value::Val>;
    let of = |object: Option<&'v Object>| match object {
        Some(object) => cel::value(object, None),
        None => absent(),
    };
    Bindings::new(meter)
        .with("object", of(subject.object))
        .with("oldObject", of(subject.old))
        .with("request", cel::value(request, None))
        .with("authorizer", Box::new(authorizer(subject)))
        .with("authorizer.requestResource", Box::new(own_resource(subject)))
}

/// Asks the cluster's own rules.
fn authorizer(subject: &Subject<'_>) -> cel::Authorizer {
    let (api, user) = (subject.asked.api.clone(), subject.asked.user.clone());
    cel::Authorizer::new(Arc::new(move |check, verb| client::allowed(&api, &user, check, verb)))
}

fn own_resource(subject: &Subject<'_>) -> cel::Authorizer {
    let asked = subject.asked;
    authorizer(subject).about(cel::Check {
        group: asked.kind.group.to_owned(),
        resource: asked.kind.plural.to_owned(),
        subresource: asked.subresource.to_owned(),
        namespace: asked.place().to_owned(),
        name: asked.name.clone(),
        ..cel::Check::default()
    })
}

/// The kind that a request is about: that of its path, or of what is sent to a part of it (an
/// Eviction, the options of a command).
fn kind_of(subject: &Subject<'_>) -> Value {
    let Kind { group, version, kind, .. } = subject.asked.kind;
    let other = |object: &&Object| !["", *kind].contains(&meta::kind(object));
    match subject.object.filter(other) {
        None => json!({"group": group, "version": version, "kind": kind}),
        Some(sent) => {
            let written = meta::api_version(sent);
            let (group, version) = written.split_once('/').unwrap_or(("", written));
            json!({"group": group, "version": version, "kind": meta::kind(sent)})
        }
    }
}

/// `request`, as expressions and reviews have it, without the objects.
pub fn request(subject: &Subject<'_>) -> Value {
    let asked = subject.asked;
    let Kind { group, version, plural, .. } = asked.kind;
    let kind = kind_of(subject);
    let resource = json!({"group": group, "version": version, "resource": plural});
    let mut user = json!({"username": asked.user.name, "groups": asked.user.groups});
    if !asked.user.uid.is_empty() {
        user["uid"] = asked.user.uid.as_str().into();
    }
    if !asked.user.extra.is_empty() {
        user["extra"] = json!(asked.user.extra);
    }
    let mut request = json!({"kind": kind, "resource": resource});
    let mut set = |key: &str, value: &str| {
        if !value.is_empty() {
            request[key] = value.into();
        }
    };
    set("subResource", asked.subresource);
    set("requestSubResource", asked.subresource);
    set("name", &asked.name);
    set("namespace", asked.place());
    set("operation", asked.operation.word());
    request["requestKind"] = kind;
    request["requestResource"] = resource;
    request["userInfo"] = user;
    request["dryRun"] = asked.dry_run.into();
    request["options"] = asked.options.clone();
    request
}
