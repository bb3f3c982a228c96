//! What a ValidatingAdmissionPolicy's status says: which of its expressions do not fit the types of
//! the objects that it is about.
//!
//! These are warnings. A type may be more than its schema says, and a policy may be about kinds
//! that come later; what is a mistake whatever the objects are is refused when the policy is
//! written ([`hooks`](super::hooks)).

use std::sync::Arc;

use serde_json::{Value, json};
use wherry_resources::custom::{Definition, schema::Schema};
use wherry_resources::{Kind, Object, meta, meta::items, meta::text};

use crate::apiserver::cel::{Expression, Type, Types};
use crate::apiserver::{ApiServer, openapi};

/// Types that a policy is held against, as in Kubernetes.
const TYPES_MAX: usize = 10;

/// Brings the status of a policy up to its generation.
pub fn settle(api: &ApiServer, kind: &Kind, policy: &mut Object) {
    let generation = meta::generation(policy);
    let told = policy.pointer("/status/observedGeneration").and_then(Value::as_i64);
    let is_policy = kind.is("admissionregistration.k8s.io", "ValidatingAdmissionPolicy");
    if !is_policy || told == Some(generation) {
        return;
    }
    let warnings = warnings(&api.catalog().kinds, &policy["spec"]);
    policy["status"]["observedGeneration"] = generation.into();
    policy["status"]["typeChecking"] = match warnings.is_empty() {
        true => json!({}),
        false => json!({"expressionWarnings": warnings}),
    };
}

/// What the objects of a kind look like.
enum Known {
    BuiltIn(Schema),
    Custom(Arc<Definition>),
}

impl Known {
    fn of(kind: &Kind) -> Option<Known> {
        match kind.custom() {
            Some(definition) => Some(Known::Custom(definition)),
            None => openapi::schema(kind).map(Known::BuiltIn),
        }
    }

    fn schema(&self) -> &Schema {
        match self {
            Known::BuiltIn(schema) => schema,
            Known::Custom(definition) => &definition.schema,
        }
    }
}

fn warnings(kinds: &[&'static Kind], spec: &Value) -> Vec<Value> {
    let concerned = concerned(kinds, spec);
    let known: Vec<(&Kind, Known)> =
        concerned.into_iter().filter_map(|kind| Some((kind, Known::of(kind)?))).collect();
    let mut found = Vec::new();
    for (index, validation) in items(spec, "validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = text(validation, field);
            let said: Vec<String> =
                known.iter().filter_map(|(kind, known)| misfit(source, kind, known)).collect();
            if !said.is_empty() {
                let place = format!("spec.validations[{index}].{field}");
                found.push(json!({"fieldRef": place, "warning": said.join("\n")}));
            }
        }
    }
    found
}

/// Why an expression does not fit objects of a kind.
fn misfit(source: &str, kind: &Kind, known: &Known) -> Option<String> {
    let object = Type::Schema(known.schema());
    let types = Types::giving("").with_overloads().with("object", object).with("oldObject", object);
    let others = ["request", "authorizer", "params", "namespaceObject", "variables"];
    let types = others.into_iter().fold(types, |types, name| types.with(name, Type::Any));
    let why = match source.trim().is_empty() {
        true => return None,
        false => Expression::compile(source, &types).err()?,
    };
    let why = why.strip_prefix("compilation failed: ").unwrap_or(&why);
    let Kind { group, version, kind, .. } = kind;
    Some(format!("{group}/{version}, Kind={kind}: {why}\n"))
}

/// The kinds that a policy names. Rules with wildcards name none, and parts of objects have types
/// of their own.
fn concerned(kinds: &[&'static Kind], spec: &Value) -> Vec<&'static Kind> {
    let mut found: Vec<&'static Kind> = Vec::new();
    for rule in items(&spec["matchConstraints"], "resourceRules") {
        let lists = ["apiGroups", "apiVersions", "resources"].map(|key| items(rule, key));
        if lists.iter().any(|list| list.iter().any(|one| one == "*")) {
            continue;
        }
        let [groups, versions, resources] = lists;
        let has = |list: &[Value], word: &str| list.iter().any(|one| one == word);
        found.extend(kinds.iter().filter(|kind| {
            has(groups, kind.group) && has(versions, kind.version) && has(resources, kind.plural)
        }));
    }
    found.sort_by_key(|kind| (kind.group, kind.version, kind.kind));
    found.dedup_by_key(|kind| (kind.group, kind.version, kind.plural));
    found.truncate(TYPES_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tests::script::Server;

    fn spec(resource: &str, validations: Value) -> Value {
        json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": [resource]}]},
            "validations": validations,
        })
    }

    #[test]
    fn what_does_not_fit_the_types_is_told() {
        let kinds: Vec<&Kind> = wherry_resources::KINDS.iter().collect();
        let validations = json!([
            {"expression": "object.spec.replicas > '1'",
                "messageExpression": "'wants more, got ' + object.spec.replicas"},
            {"expression": "object.spec.replicas > 1 && object.metadata.name.startsWith('a') \
                && object.spec.template.spec.containers.all(c, c.ports.size() < 3) \
                && object.metadata.labels['a'] + 'b' != string(object.spec.replicas + 1) \
                && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z') \
                && variables.x > 'y'"},
            {"expression": "oldObject == null || object.spec.nope"},
        ]);
        let found = warnings(&kinds, &spec("deployments", validations.clone()));
        let told: Vec<(&str, &str)> =
            found.iter().map(|one| (text(one, "fieldRef"), text(one, "warning"))).collect();
        let expected = [
            ("spec.validations[0].expression", "overload for '_>_' applied to '(int, string)'"),
            ("spec.validations[0].messageExpression", "'_+_' applied to '(string, int)'"),
            ("spec.validations[2].expression", "undefined field 'nope'"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for ((place, warning), (wanted, part)) in told.into_iter().zip(expected) {
            assert_eq!(place, wanted);
            assert!(
                warning.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:"),
                "{warning}"
            );
            assert!(warning.contains(part), "{warning}");
        }
        assert!(warnings(&kinds, &spec("*", validations)).is_empty(), "it names no type");
    }

    #[tokio::test]
    async fn each_generation_of_a_policy_is_told_once() {
        let server = Server::start().await;
        let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        let policy = |expression: &str, version: &Value| {
            let spec = spec("deployments", json!([{"expression": expression}]));
            json!({"metadata": {"name": "p", "resourceVersion": version}, "spec": spec}).to_string()
        };
        let good = "object.spec.replicas > 1";
        let made = server.ok("POST", path, &policy(good, &Value::Null)).await;
        assert_eq!(made["status"], json!({"observedGeneration": 1, "typeChecking": {}}));
        let own = format!("{path}/p");
        let version = &made["metadata"]["resourceVersion"];
        let same = server.ok("PUT", &own, &policy(good, version)).await;
        assert_eq!(same["metadata"]["resourceVersion"], *version);
        let other = server.ok("PUT", &own, &policy("object.spec.nope > 1", version)).await;
        assert_eq!(other["status"]["observedGeneration"], 2);
        let warnings = items(&other["status"]["typeChecking"], "expressionWarnings");
        assert_eq!(text(&warnings[0], "fieldRef"), "spec.validations[0].expression");
    }
}
