//! The default priority levels and flow schemas (`flow.yaml`), and the plan that keeps them.
//!
//! As in Kubernetes: the levels and schemas `exempt` and `catch-all` are always as they stand here;
//! the others are too, until somebody sets the annotation `apf.kubernetes.io/autoupdate-spec` of
//! one to `false`.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::write::Write;

const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

#[derive(Deserialize)]
struct Tables {
    levels: Vec<LevelRow>,
    schemas: Vec<SchemaRow>,
}

#[derive(Deserialize)]
struct LevelRow {
    name: String,
    spec: Value,
}

#[derive(Deserialize)]
struct SchemaRow {
    name: String,
    precedence: i32,
    by: Option<String>,
    level: String,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    /// `namespace/name`.
    #[serde(default)]
    accounts: Vec<String>,
    rules: Rules,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rules {
    All,
    Leases,
    Nodes,
    Probes,
}

/// The default objects, as they are when nobody has changed them.
pub struct Defaults {
    pub levels: Vec<PriorityLevelConfiguration>,
    pub schemas: Vec<FlowSchema>,
}

/// Parsed once.
pub static DEFAULTS: LazyLock<Defaults> = LazyLock::new(|| {
    let tables: Tables =
        serde_yaml_ng::from_str(include_str!("flow.yaml")).expect("a test reads this file");
    let level = |row: &LevelRow| {
        let level = json!({ "metadata": metadata(&row.name), "spec": row.spec });
        serde_json::from_value(level).expect("a test reads this table")
    };
    Defaults {
        levels: tables.levels.iter().map(level).collect(),
        schemas: tables.schemas.iter().map(schema).collect(),
    }
});

fn metadata(name: &str) -> Value {
    json!({ "name": name, "annotations": { AUTOUPDATE: "true" } })
}

fn schema(row: &SchemaRow) -> FlowSchema {
    let mut subjects: Vec<Value> = Vec::new();
    subjects.extend(row.users.iter().map(|name| json!({"kind": "User", "user": {"name": name}})));
    subjects
        .extend(row.groups.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})));
    subjects.extend(row.accounts.iter().filter_map(|account| {
        let (namespace, name) = account.split_once('/')?;
        let account = json!({"namespace": namespace, "name": name});
        Some(json!({"kind": "ServiceAccount", "serviceAccount": account}))
    }));
    let everywhere = |verbs: &[&str], groups: &[&str], resources: &[&str], cluster: bool| {
        let mut rule = json!({
            "verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"],
        });
        if cluster {
            rule["clusterScope"] = json!(true);
        }
        rule
    };
    let paths = |paths: &[&str], verbs: &[&str]| json!({"verbs": verbs, "nonResourceURLs": paths});
    let mut rules = match row.rules {
        Rules::All => json!({
            "resourceRules": [everywhere(&["*"], &["*"], &["*"], true)],
            "nonResourceRules": [paths(&["*"], &["*"])],
        }),
        Rules::Leases => json!({
            "resourceRules": [everywhere(
                &["get", "create", "update"], &["coordination.k8s.io"], &["leases"], false,
            )],
        }),
        Rules::Nodes => json!({ "resourceRules": [
            everywhere(&["*"], &[""], &["nodes", "nodes/status"], true),
            everywhere(&["*"], &["coordination.k8s.io"], &["leases"], false),
        ] }),
        Rules::Probes => json!({
            "nonResourceRules": [paths(&["/healthz", "/readyz", "/livez"], &["get"])],
        }),
    };
    rules["subjects"] = json!(subjects);
    let mut spec = json!({
        "matchingPrecedence": row.precedence,
        "priorityLevelConfiguration": { "name": row.level },
        "rules": [rules],
    });
    if let Some(by) = &row.by {
        spec["distinguisherMethod"] = json!({ "type": by });
    }
    let schema = json!({ "metadata": metadata(&row.name), "spec": spec });
    serde_json::from_value(schema).expect("a test reads this table")
}

/// Whether a change of an object of this name may need the plan.
pub fn is_default(kind: &str, name: &str) -> bool {
    let is = |meta: &ObjectMeta| meta.name.as_deref() == Some(name);
    match kind {
        "PriorityLevelConfiguration" => DEFAULTS.levels.iter().any(|level| is(&level.metadata)),
        "FlowSchema" => DEFAULTS.schemas.iter().any(|schema| is(&schema.metadata)),
        _ => false,
    }
}

/// Makes what is missing, and puts right what may not be changed. `level` and `schema` look up what
/// there is.
pub fn plan(
    level: impl Fn(&str) -> Option<Arc<PriorityLevelConfiguration>>,
    schema: impl Fn(&str) -> Option<Arc<FlowSchema>>,
) -> Vec<Write> {
    let mut writes = Vec::new();
    for wanted in &DEFAULTS.levels {
        match level(wanted.metadata.name.as_deref().unwrap_or("")) {
            None => writes.push(Write::create(wanted)),
            Some(held) if held.spec != wanted.spec && is_ours(&held.metadata) => {
                writes.push(Write::patch(&*held, json!({ "spec": wanted.spec })));
            }
            Some(_) => {}
        }
    }
    for wanted in &DEFAULTS.schemas {
        match schema(wanted.metadata.name.as_deref().unwrap_or("")) {
            None => writes.push(Write::create(wanted)),
            Some(held) if held.spec != wanted.spec && is_ours(&held.metadata) => {
                writes.push(Write::patch(&*held, json!({ "spec": wanted.spec })));
            }
            Some(_) => {}
        }
    }
    writes
}

fn is_ours(meta: &ObjectMeta) -> bool {
    let mandatory = meta.name.as_deref().is_some_and(|name| MANDATORY.contains(&name));
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(AUTOUPDATE));
    let handed_over = annotation.is_some_and(|value| value == "false");
    (mandatory || !handed_over) && meta.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::text;
    use super::*;

    #[test]
    fn what_is_missing_is_made_and_what_was_changed_is_put_right() {
        let all = text(&plan(|_| None, |_| None));
        let created = DEFAULTS.levels.len() + DEFAULTS.schemas.len();
        assert_eq!(all.lines().filter(|line| line.starts_with("create ")).count(), created);
        let changed = |handed_over: bool| {
            let level = |name: &str| {
                let all = &DEFAULTS.levels;
                let found = all.iter().find(|one| one.metadata.name.as_deref() == Some(name));
                found.cloned().map(|mut level| {
                    if let Some(limited) = level.spec.limited.as_mut().filter(|_| name == "system")
                    {
                        limited.nominal_concurrency_shares = Some(1);
                    }
                    if handed_over {
                        let notes = level.metadata.annotations.get_or_insert_default();
                        notes.insert(AUTOUPDATE.to_owned(), "false".to_owned());
                    }
                    Arc::new(level)
                })
            };
            let schema = |name: &str| {
                let all = &DEFAULTS.schemas;
                let found = all.iter().find(|one| one.metadata.name.as_deref() == Some(name));
                found.cloned().map(Arc::new)
            };
            text(&plan(level, schema))
        };
        let patch = "patch prioritylevelconfigurations.flowcontrol.apiserver.k8s.io system ";
        assert!(changed(false).starts_with(patch), "{}", changed(false));
        assert_eq!(changed(true), "");
    }
}
