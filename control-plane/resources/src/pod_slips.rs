//! What a Pod may say and hardly means: warnings of a stock API server, in its words.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::quantity::Quantity;

/// One sentence for each; `at` is the path to the Pod or template, with a dot behind.
pub fn warnings(at: &str, template: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let Some(spec) = template.get("spec") else { return found };
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace.is_some_and(|seconds| seconds < 0) {
        found.push(format!(
            "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and \
             will be treated as 1"
        ));
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, list).enumerate() {
            let path = format!("{at}spec.{list}[{index}]");
            hidden_variables(&path, container, &mut found);
            broken_bytes(&path, container, &mut found);
        }
    }
    found
}

fn items<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// A variable that is set twice, unless the second is made of the first.
fn hidden_variables(path: &str, container: &Value, found: &mut Vec<String>) {
    let mut known = BTreeSet::new();
    for (index, variable) in items(container, "env").enumerate() {
        let text = |field: &str| variable.get(field).and_then(Value::as_str).unwrap_or("");
        let (name, value) = (text("name"), text("value"));
        if known.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let is_value = variable.get("valueFrom").is_none_or(Value::is_null);
        if !is_value || value == reference || !value.contains(&reference) {
            found.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped \
                 when using apply"
            ));
        }
    }
}

/// Thousandths of bytes: `128m`, where `128M` was meant.
fn broken_bytes(path: &str, container: &Value, found: &mut Vec<String>) {
    for part in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            let amount = container.get("resources").and_then(|it| it.get(part)?.get(resource));
            let Some(amount) = amount else { continue };
            if Quantity::of(amount).is_some_and(|quantity| !quantity.is_whole()) {
                let shown = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
                found.push(format!(
                    "{path}.resources.{part}[{resource}]: fractional byte value {shown:?} is \
                     invalid, must be an integer"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_hardly_meant_is_said() {
        let pod = json!({"spec": {
            "terminationGracePeriodSeconds": -1,
            "initContainers": [{"env": [{"name": "A", "value": "1"}, {"name": "A"}]}],
            "containers": [{
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"},
                    {"name": "A", "value": "$(A)"}, {"name": "B"}],
                "resources": {"limits": {"memory": "128m", "cpu": "100m"},
                    "requests": {"memory": "64Mi", "ephemeral-storage": 0.5}}}]}});
        expect![[r#"
            spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1
            spec.initContainers[0].env[1]: hides previous definition of "A", which may be dropped when using apply
            spec.containers[0].env[2]: hides previous definition of "A", which may be dropped when using apply
            spec.containers[0].resources.limits[memory]: fractional byte value "128m" is invalid, must be an integer
            spec.containers[0].resources.requests[ephemeral-storage]: fractional byte value "0.5" is invalid, must be an integer"#]]
        .assert_eq(&warnings("", &pod).join("\n"));
        assert_eq!(warnings("spec.template.", &json!({"spec": {}})), Vec::<String>::new());
    }
}
