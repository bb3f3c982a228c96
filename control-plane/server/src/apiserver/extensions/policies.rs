//! Admission policies: expressions that refuse objects, warn of them, or change them.

use std::sync::Arc;

use ::cel::common::types::{CelMap, CelMapKey, CelNull, CelString};
use ::cel::common::value::Val;
use http::StatusCode;
use serde_json::{Value, json};
use wherry_resources::custom::schema::{List, Schema};
use wherry_resources::structure::{self, Apply, Type};
use wherry_resources::{Kind, Object, selectors::LabelSelector};

use super::Heard;
use super::client;
use super::hooks::{Binding, Hooks, Mutation, Policy, Validation};
use super::matching::{self, Subject};
use super::versions;
use crate::apiserver::asides;
use crate::apiserver::cel::{self, Bindings, EvalError, Expression, Meter};
use crate::apiserver::errors::ApiError;
use crate::apiserver::verbs::patch::Patch as ObjectPatch;

/// Parameters that one binding may select.
const PARAMS_MAX: usize = 1_000;

/// Why a policy refuses.
struct Refusal {
    message: String,
    reason: String,
    /// Which of the policy's validations it is. None: the policy or its binding cannot do their
    /// work, which denies the request whatever the binding asks for.
    index: Option<usize>,
}

impl Refusal {
    fn new(message: String, index: Option<usize>) -> Refusal {
        Refusal { message, reason: String::new(), index }
    }
}

/// Evaluates all validating policies. The first refusal counts; what others say is heard too.
pub async fn validate(
    hooks: &Hooks,
    subject: &Subject<'_>,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    let mut refused = Ok(());
    for policy in &hooks.policies {
        let Some(kind) = policy.constraints.concerns(subject) else {
            continue;
        };
        let seen = versions::seen(subject, kind).await?;
        let subject = seen.subject(subject.asked);
        for binding in concerned(policy, &subject) {
            for refusal in evaluate(policy, binding, &subject) {
                refused = refused.and(act(policy, binding, refusal, &subject, heard));
            }
        }
    }
    refused
}

/// Bindings of the policy that hold for this request.
fn concerned<'p>(policy: &'p Policy, subject: &Subject<'_>) -> Vec<&'p Binding> {
    let holds = |binding: &&Binding| match &binding.constraints {
        Some(constraints) if constraints.has_rules() => constraints.concerns(subject).is_some(),
        Some(constraints) => constraints.selects(subject),
        None => true,
    };
    policy.bindings.iter().filter(holds).collect()
}

/// Does what the binding says should follow.
fn act(
    policy: &Policy,
    binding: &Binding,
    refusal: Refusal,
    subject: &Subject<'_>,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    let (policy_name, binding_name) = (&policy.name, &binding.name);
    let Refusal { message, reason, index } = refusal;
    let is_asked_to = |action: &str| match index {
        Some(_) => binding.actions.iter().any(|one| one == action),
        None => action == "Deny",
    };
    if is_asked_to("Warn") {
        heard.warnings.push(format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy_name}' with binding \
             '{binding_name}': {message}"
        ));
    }
    if is_asked_to("Audit") {
        asides::objection(json!({"message": message, "policy": policy_name,
            "binding": binding_name, "expressionIndex": index,
            "validationActions": binding.actions}));
    }
    if is_asked_to("Deny") {
        let why = format!(
            "ValidatingAdmissionPolicy '{policy_name}' with binding '{binding_name}' denied \
             request: {message}"
        );
        return Err(denied(subject, why, &reason));
    }
    Ok(())
}

/// Worded like any refusal, with the code that the policy chose.
fn denied(subject: &Subject<'_>, why: String, reason: &str) -> ApiError {
    let (code, reason) = match reason {
        "Unauthorized" => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        "Forbidden" => (StatusCode::FORBIDDEN, "Forbidden"),
        "RequestEntityTooLarge" => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
    };
    let asked = subject.asked;
    let message = ApiError::forbidden(asked.kind, &asked.name, why.clone()).to_string();
    let mut details = json!({"name": asked.name, "group": asked.kind.group,
        "kind": asked.kind.plural, "causes": [{"message": why}]});
    if let Some(fields) = details.as_object_mut() {
        fields.retain(|_, value| *value != "");
    }
    ApiError::Relayed { code, reason: reason.to_owned(), message, details: Some(details) }
}

/// What a policy has against the request, for one binding.
fn evaluate(policy: &Policy, binding: &Binding, subject: &Subject<'_>) -> Vec<Refusal> {
    let failed = |why: String, index: Option<usize>| match policy.ignores_failure {
        true => Vec::new(),
        false => vec![Refusal::new(why, index)],
    };
    if let Some(why) = &policy.broken {
        return failed(format!("compilation error: {why}"), Some(0));
    }
    let params = match params(policy, binding, subject) {
        Ok(params) => params,
        Err(why) => return failed(format!("failed to configure binding: {why}"), None),
    };
    let request = matching::request(subject);
    let namespace = subject.namespace();
    let mut refusals = Vec::new();
    for params in &params {
        let meter = Meter::new(cel::OBJECT_COST_MAX);
        let mut bindings =
            all_bindings(&meter, subject, &request, params.as_ref(), namespace.as_ref());
        match conditions_hold(policy, &bindings) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                refusals.extend(failed(why, Some(0)));
                continue;
            }
        }
        let broken = variables(policy, &mut bindings);
        for (index, validation) in policy.validations.iter().enumerate() {
            refusals.extend(refusal(policy, validation, index, &bindings, &broken));
        }
        for (key, expression) in &policy.annotations {
            match annotation(expression, &bindings, &broken) {
                Ok(None) => {}
                Ok(Some(text)) => asides::note(format!("{}/{key}", policy.name), &text),
                Err(why) => refusals.extend(failed(why, None)),
            }
        }
    }
    refusals
}

/// What an expression has the audit log say. With null, or no text, it says that it has nothing to
/// tell.
fn annotation(
    expression: &Expression,
    bindings: &Bindings<'_>,
    broken: &Broken,
) -> Result<Option<String>, String> {
    let value = expression.value(bindings).map_err(|error| broken.error(expression, &error))?;
    if value.downcast_ref::<CelNull>().is_some() {
        return Ok(None);
    }
    let Some(text) = value.downcast_ref::<CelString>() else {
        return Err(format!(
            "valueExpression '{}' resulted in unsupported return type: {}. Return type must be \
             either string or null.",
            expression.source.trim(),
            value.get_type().name()
        ));
    };
    let text = text.inner().trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn refusal(
    policy: &Policy,
    validation: &Validation,
    index: usize,
    bindings: &Bindings<'_>,
    broken: &Broken,
) -> Option<Refusal> {
    let expression = &validation.expression;
    match expression.holds(bindings) {
        Ok(true) => None,
        Ok(false) => {
            let computed = validation.message_expression.as_ref();
            let computed = computed.and_then(|message| message.message(bindings));
            let message = computed.unwrap_or_else(|| match validation.message.trim() {
                "" => {
                    format!("failed expression: {}", expression.source.trim().replace('\n', " "))
                }
                message => message.to_owned(),
            });
            let reason = validation.reason.clone();
            Some(Refusal { reason, ..Refusal::new(message, Some(index)) })
        }
        Err(_) if policy.ignores_failure => None,
        Err(error) => Some(Refusal::new(broken.error(expression, &error), Some(index))),
    }
}

fn conditions_hold(policy: &Policy, bindings: &Bindings<'_>) -> Result<bool, String> {
    let mut failed = None;
    for condition in &policy.conditions {
        match condition.expression.holds(bindings) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => failed = failed.or(Some(format!("{}: {error}", condition.name))),
        }
    }
    match failed {
        Some(why) => Err(format!("failed evaluating match conditions: {why}")),
        None => Ok(true),
    }
}

fn all_bindings<'v>(
    meter: &Meter,
    subject: &'v Subject<'_>,
    request: &'v Value,
    params: Option<&'v Object>,
    namespace: Option<&'v Object>,
) -> Bindings<'v> {
    let of = |object: Option<&'v Object>| -> Box<dyn Val + 'v> {
        match object {
            Some(object) => cel::value(object, None),
            None => Box::new(CelNull),
        }
    };
    matching::bindings(meter, subject, request)
        .with("params", of(params))
        .with("namespaceObject", of(namespace))
}

/// Variables that could not be computed, and why. It matters only to those who use them.
struct Broken(Vec<(String, EvalError)>);

impl Broken {
    /// What a client is told of an expression that has no value.
    fn error(&self, expression: &Expression, error: &EvalError) -> String {
        let why = self.explain(expression, error);
        format!("expression '{}' resulted in error: {why}", expression.source.trim())
    }

    fn explain(&self, expression: &Expression, error: &EvalError) -> String {
        let used = |name: &str| expression.uses(&format!("variables.{name}"));
        match self.0.iter().find(|(name, _)| used(name)) {
            Some((name, why)) => format!("composited variable {name:?} fails to evaluate: {why}"),
            None => error.to_string(),
        }
    }
}

/// Computes the variables that anything uses, in their order, and binds them.
fn variables(policy: &Policy, bindings: &mut Bindings<'_>) -> Broken {
    let mut values: Vec<(String, Value)> = Vec::new();
    let mut broken = Vec::new();
    for (name, expression) in &policy.variables {
        if !is_used(policy, name) {
            continue;
        }
        bind(bindings, &values);
        let found = expression.value(bindings).map(|value| cel::json(value.as_ref()));
        match found {
            Ok(Some(value)) => values.push((name.clone(), value)),
            Ok(None) => {
                let why = "the value has no JSON form".to_owned();
                broken.push((name.clone(), EvalError::Failed(why)));
            }
            Err(error) => broken.push((name.clone(), error)),
        }
    }
    bind(bindings, &values);
    Broken(broken)
}

fn is_used(policy: &Policy, name: &str) -> bool {
    let field = format!("variables.{name}");
    let validations = policy.validations.iter().flat_map(|validation| {
        [Some(&validation.expression), validation.message_expression.as_ref()]
    });
    let mutations = policy.mutations.iter().map(|mutation| match mutation {
        Mutation::Apply(expression) | Mutation::JsonPatch(expression) => Some(expression),
    });
    let others = policy.variables.iter().chain(&policy.annotations).map(|(_, one)| Some(one));
    let mut all = validations.chain(mutations).chain(others).flatten();
    all.any(|expression| expression.uses(&field))
}

fn bind(bindings: &mut Bindings<'_>, values: &[(String, Value)]) {
    let entries = values.iter().map(|(name, value)| {
        let key = CelMapKey::String(::cel::common::types::CelString::from(name.clone()));
        (key, cel::owned(value))
    });
    bindings.set(
        "variables",
        Box::new(CelMap::from(entries.collect::<std::collections::HashMap<_, _>>())),
    );
}

/// The parameters of a binding: one None where there are no parameters to have.
fn params(
    policy: &Policy,
    binding: &Binding,
    subject: &Subject<'_>,
) -> Result<Vec<Option<Object>>, String> {
    let (Some((api_version, kind)), Some(reference)) = (&policy.param_kind, &binding.params) else {
        return Ok(vec![None]);
    };
    let api = subject.asked.api;
    let Some(kind) = api.catalog().kind_of(api_version, kind) else {
        return Err(format!(
            "failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"
        ));
    };
    let text = |key: &str| reference[key].as_str().unwrap_or("");
    let namespace = match (kind.namespaced, text("namespace")) {
        (false, "") => "",
        (false, _) => {
            let why = "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
            return Err(why.to_owned());
        }
        (true, "") if subject.asked.place().is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches \
                cluster-scoped resources"
                .to_owned());
        }
        (true, "") => subject.asked.place(),
        (true, namespace) => namespace,
    };
    let found: Vec<Object> = match text("name") {
        "" => {
            let selector = LabelSelector::from_typed(reference.get("selector"));
            let selector = selector.map_err(|error| error.to_string())?;
            let all = client::all(api, kind, namespace, PARAMS_MAX);
            all.into_iter().filter(|object| selector.matches(object)).collect()
        }
        name => client::find_of(api, kind, namespace, name).into_iter().collect(),
    };
    match (found.is_empty(), text("parameterNotFoundAction")) {
        (true, "Allow") => Ok(Vec::new()),
        (true, _) => Err("no params found for policy binding with `Deny` \
            parameterNotFoundAction"
            .to_owned()),
        (false, _) => Ok(found.into_iter().map(Some).collect()),
    }
}

/// Lets one mutating policy change the object, which is in the version of `kind`. None: not
/// concerned; Some(None): left as it was.
pub fn mutate(
    policy: &Policy,
    kind: &Kind,
    subject: &Subject<'_>,
) -> Result<Option<Option<Object>>, ApiError> {
    let Some(object) = subject.object else {
        return Ok(None);
    };
    let bindings = concerned(policy, subject);
    if bindings.is_empty() {
        return Ok(None);
    }
    let mut current = object.clone();
    for binding in bindings {
        match changed(policy, binding, subject, kind, &current) {
            Ok(Some(object)) => current = object,
            Ok(None) => {}
            Err(_) if policy.ignores_failure => {}
            Err(why) => {
                let why = format!(
                    "policy '{}' with binding '{}' denied request: {why}",
                    policy.name, binding.name
                );
                return Err(denied(subject, why, ""));
            }
        }
    }
    Ok(Some((current != *object).then_some(current)))
}

/// The object after all mutations of one binding.
fn changed(
    policy: &Policy,
    binding: &Binding,
    subject: &Subject<'_>,
    kind: &Kind,
    current: &Object,
) -> Result<Option<Object>, String> {
    if let Some(why) = &policy.broken {
        return Err(format!("compilation error: {why}"));
    }
    let mut object = current.clone();
    let namespace = subject.namespace();
    let mut is_concerned = false;
    for params in params(policy, binding, subject)? {
        for (index, mutation) in policy.mutations.iter().enumerate() {
            let before = object.clone();
            let at = Subject { asked: subject.asked, object: Some(&before), old: subject.old };
            let request = matching::request(&at);
            let meter = Meter::new(cel::OBJECT_COST_MAX);
            let mut bindings =
                all_bindings(&meter, &at, &request, params.as_ref(), namespace.as_ref());
            // A mutation may well end what the policy looks for; the others are still made.
            if index == 0 && !conditions_hold(policy, &bindings)? {
                break;
            }
            is_concerned = true;
            let broken = variables(policy, &mut bindings);
            let (Mutation::Apply(expression) | Mutation::JsonPatch(expression)) = mutation;
            let found = expression.value(&bindings);
            let found = found.map_err(|error| broken.explain(expression, &error))?;
            let patch = cel::json(found.as_ref())
                .ok_or_else(|| "the expression gave a value that is not JSON".to_owned())?;
            match mutation {
                Mutation::JsonPatch(_) => object = patched(kind, &before, patch)?,
                Mutation::Apply(_) => {
                    merge(&mut object, &patch, &Shape::of(kind));
                }
            }
        }
    }
    Ok(is_concerned.then_some(object))
}

fn patched(kind: &Kind, object: &Object, patch: Value) -> Result<Object, String> {
    let operations: json_patch::Patch = serde_json::from_value(patch)
        .map_err(|error| format!("the JSON patch cannot be read: {error}"))?;
    let patched = ObjectPatch::Json(operations.0).apply(kind, object);
    patched.map_err(|error| error.to_string())
}

/// How lists merge, of built-in and of custom kinds.
enum Shape {
    BuiltIn(Type),
    Custom(Arc<wherry_resources::custom::Definition>, Vec<String>),
}

enum Merge {
    Replace,
    Union,
    Keyed(Vec<String>),
}

impl Shape {
    fn of(kind: &Kind) -> Shape {
        match kind.custom() {
            Some(definition) => Shape::Custom(definition, Vec::new()),
            None => Shape::BuiltIn(structure::of(kind)),
        }
    }

    fn child(&self, key: &str) -> Shape {
        match self {
            Shape::BuiltIn(own) => Shape::BuiltIn(own.child(key)),
            Shape::Custom(definition, path) => {
                let path = path.iter().cloned().chain([key.to_owned()]).collect();
                Shape::Custom(definition.clone(), path)
            }
        }
    }

    fn list(&self, key: &str) -> Merge {
        match self {
            Shape::BuiltIn(own) => match own.field(key).map(|field| field.apply) {
                Some(Apply::Set) => Merge::Union,
                Some(Apply::Keyed(keys)) => {
                    Merge::Keyed(keys.iter().map(ToString::to_string).collect())
                }
                _ => Merge::Replace,
            },
            Shape::Custom(definition, path) => {
                match find(&definition.schema, path, key).map(|schema| &schema.list) {
                    Some(List::Set) => Merge::Union,
                    Some(List::Map(keys)) => Merge::Keyed(keys.clone()),
                    _ => Merge::Replace,
                }
            }
        }
    }
}

/// The schema at a path through objects and lists.
fn find<'s>(schema: &'s Schema, path: &[String], last: &str) -> Option<&'s Schema> {
    let mut at = schema;
    for key in path.iter().map(String::as_str).chain([last]) {
        at = at.items.as_deref().unwrap_or(at).child(key)?;
    }
    Some(at)
}

/// Puts what a policy made over an object.
fn merge(into: &mut Value, from: &Value, shape: &Shape) {
    let (Value::Object(target), Value::Object(source)) = (&mut *into, from) else {
        *into = from.clone();
        return;
    };
    for (key, value) in source {
        let held = target.entry(key.clone()).or_insert(Value::Null);
        match (held, value) {
            (Value::Array(held), Value::Array(new)) => match shape.list(key) {
                Merge::Replace => new.clone_into(held),
                Merge::Union => {
                    for item in new {
                        if !held.contains(item) {
                            held.push(item.clone());
                        }
                    }
                }
                Merge::Keyed(keys) => {
                    for item in new {
                        let same = |other: &&mut Value| {
                            keys.iter().all(|key| other.get(key) == item.get(key))
                        };
                        match held.iter_mut().find(same) {
                            Some(other) => merge(other, item, &shape.child(key)),
                            None => held.push(item.clone()),
                        }
                    }
                }
            },
            (held, value) => merge(held, value, &shape.child(key)),
        }
    }
}
