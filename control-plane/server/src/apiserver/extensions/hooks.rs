//! What is registered, compiled: webhooks and policies with their bindings.

use std::sync::Arc;

use serde_json::Value;
use wherry_resources::validate::{FieldError, Reason};
use wherry_resources::{Kind, Object, meta};
use wherry_store::{Snapshot, Store};

use super::matching::{Condition, Constraints};
use crate::apiserver::cel::{Expression, Type, Types};
use crate::apiserver::derived::Derived;
use crate::apiserver::outbound::Target;
use crate::apiserver::{errors, stored};

const GROUP: &str = "admissionregistration.k8s.io";
/// A webhook has this long to answer, unless it says otherwise.
const TIMEOUT_SECONDS: u64 = 10;
const TIMEOUT_SECONDS_MAX: u64 = 30;
/// One object has less expressions than this: each is compiled when it is written, for each of the
/// types that it is about.
const EXPRESSIONS_MAX: usize = 1_000;

const PLURALS: [&str; 6] = [
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

/// Everything that is registered.
#[derive(Debug, Default)]
pub struct Hooks {
    /// In the order in which they are asked.
    pub mutators: Vec<Mutator>,
    pub policies: Vec<Arc<Policy>>,
    pub validators: Vec<Arc<Webhook>>,
}

/// Something that may change objects.
#[derive(Debug)]
pub enum Mutator {
    Policy(Arc<Policy>),
    Webhook(Arc<Webhook>),
}

impl Mutator {
    /// Whether it wants to see the object again after others have changed it.
    pub fn reinvoked(&self) -> bool {
        match self {
            Mutator::Policy(policy) => policy.reinvoked,
            Mutator::Webhook(webhook) => webhook.reinvoked,
        }
    }

    /// For messages.
    pub fn name(&self) -> String {
        match self {
            Mutator::Policy(policy) => format!("mutating admission policy {:?}", policy.name),
            Mutator::Webhook(webhook) => format!("admission webhook {:?}", webhook.name),
        }
    }
}

/// One webhook of a configuration.
#[derive(Debug)]
pub struct Webhook {
    pub name: String,
    /// The name of the object that it is a part of.
    pub configuration: String,
    /// Its place among all of its sort.
    pub index: usize,
    pub target: Target,
    pub constraints: Constraints,
    pub conditions: Vec<Condition>,
    pub ignores_failure: bool,
    /// It may be asked about requests that change nothing.
    pub without_side_effects: bool,
    pub timeout_seconds: u64,
    pub reinvoked: bool,
    /// The version of reviews that it is sent: `v1` or `v1beta1`.
    pub version: &'static str,
}

/// A policy with its bindings.
#[derive(Debug)]
pub struct Policy {
    pub name: String,
    pub ignores_failure: bool,
    pub constraints: Constraints,
    pub conditions: Vec<Condition>,
    /// (apiVersion, kind) of parameters.
    pub param_kind: Option<(String, String)>,
    pub variables: Vec<(String, Expression)>,
    pub validations: Vec<Validation>,
    pub mutations: Vec<Mutation>,
    pub annotations: Vec<(String, Expression)>,
    pub bindings: Vec<Binding>,
    pub reinvoked: bool,
    /// An expression did not compile: whoever stored it could, an older server.
    pub broken: Option<String>,
}

/// One thing that a policy asks for.
#[derive(Debug)]
pub struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: String,
}

/// One change that a policy makes.
#[derive(Debug)]
pub enum Mutation {
    Apply(Expression),
    JsonPatch(Expression),
}

/// Where a policy holds, and what follows from it.
#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub constraints: Option<Constraints>,
    pub actions: Vec<String>,
    /// `paramRef` as written.
    pub params: Option<Value>,
}

/// Where the registered hooks come from.
pub struct Source(Derived<Hooks>);

impl Default for Source {
    fn default() -> Source {
        Source(Derived::new(PLURALS.map(|plural| stored::prefix(kind(plural), None)).into()))
    }
}

fn kind(plural: &str) -> &'static Kind {
    wherry_resources::kind(GROUP, "v1", plural).expect("a built-in kind")
}

impl Source {
    /// What is registered in the present state of the store.
    pub fn get(&self, store: &Store) -> Arc<Hooks> {
        self.0.get(store, |snapshot, _| read(snapshot))
    }
}

fn read(snapshot: &Snapshot) -> Hooks {
    let all = |plural: &str| -> Vec<Object> {
        let kind = kind(plural);
        let range = snapshot.range(&stored::prefix(kind, None), None);
        range.map(|(_, entry)| stored::decode(kind, &entry)).collect()
    };
    let webhooks = |plural: &str| -> Vec<Arc<Webhook>> {
        let configurations = all(plural);
        let list = configurations.iter().flat_map(|one| {
            let name = meta::name(one);
            meta::items(one, "webhooks").iter().map(move |source| (name, source))
        });
        list.enumerate()
            .map(|(index, (name, source))| Arc::new(Webhook::parse(name, index, source)))
            .collect()
    };
    let policies = |plural: &str, bindings: &str| -> Vec<Arc<Policy>> {
        let bindings = all(bindings);
        let policies = all(plural);
        policies.iter().map(|policy| Arc::new(Policy::parse(policy, &bindings))).collect()
    };
    let [mutating, validating, changing, changing_at, refusing, refusing_at] = PLURALS;
    let first = policies(changing, changing_at).into_iter().map(Mutator::Policy);
    Hooks {
        mutators: first.chain(webhooks(mutating).into_iter().map(Mutator::Webhook)).collect(),
        policies: policies(refusing, refusing_at),
        validators: webhooks(validating),
    }
}

fn text(source: &Value, key: &str) -> String {
    source[key].as_str().unwrap_or("").to_owned()
}

fn list<'v>(source: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    source[key].as_array().into_iter().flatten()
}

/// The names that expressions about a request may use; policies have some more.
fn types(result: &'static str, is_policy: bool) -> Types<'static> {
    let names = ["object", "oldObject", "request", "authorizer"];
    let names = names
        .into_iter()
        .chain(["params", "namespaceObject", "variables"].into_iter().filter(|_| is_policy));
    names.fold(Types::giving(result), |types, name| types.with(name, Type::Any))
}

fn conditions(source: &Value, is_policy: bool) -> Result<Vec<Condition>, String> {
    let parse = |condition: &Value| -> Result<Condition, String> {
        let expression =
            Expression::compile(&text(condition, "expression"), &types("bool", is_policy))?;
        Ok(Condition { name: text(condition, "name"), expression })
    };
    list(source, "matchConditions").map(parse).collect()
}

impl Webhook {
    fn parse(configuration: &str, index: usize, source: &Value) -> Webhook {
        let seconds = source["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS);
        let v1 = list(source, "admissionReviewVersions").any(|version| version == "v1");
        Webhook {
            name: text(source, "name"),
            configuration: configuration.to_owned(),
            index,
            target: Target::parse(&source["clientConfig"]),
            constraints: Constraints::parse(source, "rules"),
            // What does not compile was refused when it was written.
            conditions: conditions(source, false).unwrap_or_default(),
            ignores_failure: source["failurePolicy"] == "Ignore",
            without_side_effects: matches!(
                source["sideEffects"].as_str(),
                Some("None" | "NoneOnDryRun")
            ),
            timeout_seconds: seconds.clamp(1, TIMEOUT_SECONDS_MAX),
            reinvoked: source["reinvocationPolicy"] == "IfNeeded",
            version: if v1 { "v1" } else { "v1beta1" },
        }
    }
}

impl Policy {
    fn parse(source: &Object, bindings: &[Object]) -> Policy {
        let spec = &source["spec"];
        let name = meta::name(source).to_owned();
        let mine = bindings.iter().filter(|one| one["spec"]["policyName"] == name.as_str());
        let param_kind =
            spec.get("paramKind").map(|kind| (text(kind, "apiVersion"), text(kind, "kind")));
        let mut policy = Policy {
            ignores_failure: spec["failurePolicy"] == "Ignore",
            constraints: Constraints::parse(&spec["matchConstraints"], "resourceRules"),
            conditions: Vec::new(),
            param_kind,
            variables: Vec::new(),
            validations: Vec::new(),
            mutations: Vec::new(),
            annotations: Vec::new(),
            bindings: mine.map(Binding::parse).collect(),
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
            broken: None,
            name,
        };
        policy.broken = policy.compile(spec).err();
        policy
    }

    fn compile(&mut self, spec: &Value) -> Result<(), String> {
        self.conditions = conditions(spec, true)?;
        for variable in list(spec, "variables") {
            let expression = Expression::compile(&text(variable, "expression"), &types("", true))?;
            self.variables.push((text(variable, "name"), expression));
        }
        for validation in list(spec, "validations") {
            let message = text(validation, "messageExpression");
            let message = Some(message).filter(|source| !source.trim().is_empty());
            self.validations.push(Validation {
                expression: Expression::compile(
                    &text(validation, "expression"),
                    &types("bool", true),
                )?,
                message: text(validation, "message"),
                message_expression: message
                    .map(|source| Expression::compile(&source, &types("string", true)))
                    .transpose()?,
                reason: text(validation, "reason"),
            });
        }
        for mutation in list(spec, "mutations") {
            let compile = |key: &str| {
                Expression::compile(&text(&mutation[key], "expression"), &types("", true))
            };
            self.mutations.push(match mutation["patchType"].as_str() {
                Some("JSONPatch") => Mutation::JsonPatch(compile("jsonPatch")?),
                _ => Mutation::Apply(compile("applyConfiguration")?),
            });
        }
        for annotation in list(spec, "auditAnnotations") {
            let expression =
                Expression::compile(&text(annotation, "valueExpression"), &types("", true))?;
            self.annotations.push((text(annotation, "key"), expression));
        }
        Ok(())
    }
}

impl Binding {
    fn parse(source: &Object) -> Binding {
        let spec = &source["spec"];
        let actions = list(spec, "validationActions").filter_map(Value::as_str);
        Binding {
            name: meta::name(source).to_owned(),
            constraints: spec
                .get("matchResources")
                .map(|resources| Constraints::parse(resources, "resourceRules")),
            actions: actions.map(str::to_owned).collect(),
            params: spec.get("paramRef").cloned(),
        }
    }
}

/// Expressions of a webhook configuration or a policy that do not compile.
pub fn mistakes(kind: &Kind, object: &Object) -> Vec<FieldError> {
    if kind.group != GROUP {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut count = 0;
    let mut check = |path: String, source: &Value, result: &'static str, is_policy: bool| {
        let Some(source) = source.as_str().filter(|source| !source.trim().is_empty()) else {
            return;
        };
        count += 1;
        if count >= EXPRESSIONS_MAX {
            if count == EXPRESSIONS_MAX {
                let message =
                    format!("Too many: must have less than {EXPRESSIONS_MAX} expressions");
                found.push(errors::field(Reason::TooMany, &path, message));
            }
            return;
        }
        if let Err(why) = Expression::compile(source, &types(result, is_policy)) {
            let message = format!("Invalid value: {source:?}: {why}");
            found.push(errors::field(Reason::Invalid, &path, message));
        }
    };
    for (index, webhook) in list(object, "webhooks").enumerate() {
        for (at, condition) in list(webhook, "matchConditions").enumerate() {
            let path = format!("webhooks[{index}].matchConditions[{at}].expression");
            check(path, &condition["expression"], "bool", false);
        }
    }
    let spec = &object["spec"];
    let lists = [
        ("matchConditions", "expression", "bool"),
        ("variables", "expression", ""),
        ("validations", "expression", "bool"),
        ("validations", "messageExpression", "string"),
        ("auditAnnotations", "valueExpression", ""),
    ];
    for (key, field, result) in lists {
        for (index, one) in list(spec, key).enumerate() {
            check(format!("spec.{key}[{index}].{field}"), &one[field], result, true);
        }
    }
    for (index, mutation) in list(spec, "mutations").enumerate() {
        for key in ["applyConfiguration", "jsonPatch"] {
            let path = format!("spec.mutations[{index}].{key}.expression");
            check(path, &mutation[key]["expression"], "", true);
        }
    }
    found
}
