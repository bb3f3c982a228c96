//! FlowSchemas: whether the level to which they lead is there.
//!
//! Owns: the condition `Dangling` of a FlowSchema, which is what `kubectl get flowschemas` shows as
//! MISSINGPL.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use serde_json::json;
use wherry_resources::conditions::{self, Condition};

use super::cache::{Cache, Change, Key};
use super::reconcile::{Controller, Plan, View};
use super::write::Write;

/// What a plan for one schema reads.
pub struct Snapshot {
    pub schema: Arc<FlowSchema>,
    /// Whether its level is there.
    pub leads: bool,
}

pub const CONTROLLER: Controller = Controller { name: "flows", wake, reconcile };

fn wake(cache: &Cache, change: &Change, keys: &mut Vec<Key>) {
    if change.of::<FlowSchema>().is_some() {
        keys.push(change.key.clone());
    }
    // A level that is new, or gone, matters to those that name it.
    if let Some((before, after)) = change.of::<PriorityLevelConfiguration>()
        && before.is_some() != after.is_some()
    {
        let level = change.key.name();
        let all = cache.all::<FlowSchema>();
        let led = all.filter(|schema| schema.spec.priority_level_configuration.name == level);
        keys.extend(led.map(|schema| {
            Key::of::<FlowSchema>("", schema.metadata.name.as_deref().unwrap_or(""))
        }));
    }
}

fn reconcile(view: &View<'_>, key: &Key) -> Plan {
    let Some(schema) = view.cache.get::<FlowSchema>("", key.name()) else {
        return Plan::default();
    };
    let level = &schema.spec.priority_level_configuration.name;
    let leads = view.cache.get::<PriorityLevelConfiguration>("", level).is_some();
    plan(&Snapshot { schema, leads }, view.now).into()
}

/// Says in Kubernetes' words whether the level is there.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Vec<Write> {
    let schema = &*snapshot.schema;
    let level = &schema.spec.priority_level_configuration.name;
    let (status, reason, found) = match snapshot.leads {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {found}"
    );
    let mut object = json!(schema);
    let dangling = Condition { kind: "Dangling", status, reason, message: &message };
    if !conditions::set(&mut object, dangling, now) {
        return Vec::new();
    }
    let list = &object["status"]["conditions"];
    vec![Write::patch_status(schema, json!({"status": {"conditions": list}}))]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, text, yaml};
    use super::*;

    #[test]
    fn a_schema_says_whether_its_level_is_there() {
        let plan_of = |status: &str, leads: bool| {
            let schema = yaml(&format!(
                "{{metadata: {{name: s}}, spec: {{priorityLevelConfiguration: {{name: l}}}}, \
                 status: {{conditions: [{status}]}}}}"
            ));
            text(&plan(&Snapshot { schema: Arc::new(schema), leads }, at(0)))
        };
        let write = |status: &str, reason: &str, found: &str| {
            format!(
                "patch flowschemas.flowcontrol.apiserver.k8s.io s/status {{\"status\":\
                 {{\"conditions\":[{{\"type\":\"Dangling\",\"status\":\"{status}\",\
                 \"lastTransitionTime\":\"2023-11-14T22:13:20Z\",\"reason\":\"{reason}\",\
                 \"message\":\"This FlowSchema references the PriorityLevelConfiguration object \
                 named \\\"l\\\" {found}\"}}]}}}}\n"
            )
        };
        let there = write("False", "Found", "and it exists");
        assert_eq!(plan_of("", true), there);
        assert_eq!(plan_of("", false), write("True", "NotFound", "but there is no such object"));
        let said = "{type: Dangling, status: 'False', lastTransitionTime: \
            '2023-11-14T00:00:00Z', reason: Found, message: 'This FlowSchema references the \
            PriorityLevelConfiguration object named \"l\" and it exists'}";
        assert_eq!(plan_of(said, true), "");
    }
}
