//! Validation rules in CEL, as CRDs have them beside their schemas (`x-kubernetes-validations`).
//!
//! Rules are compiled once for a definition, in a tree of the same form as its schema but only
//! where there are rules. An update does not complain about what it leaves as it was: a rule added
//! later must not keep an old object from being changed elsewhere.

use std::collections::BTreeMap;

use ::cel::common::types::CelOptional;
use serde_json::Value;
use wherry_resources::Object;
use wherry_resources::custom::check;
use wherry_resources::custom::schema::{Additional, Form, List, Rule, Schema};
use wherry_resources::validate::{FieldError, Reason};

use crate::apiserver::cel::{self, Bindings, EvalError, Expression, Meter, Type, Types};

/// The rules of one schema and of those below it.
#[derive(Debug, Default)]
pub struct Rules {
    own: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
}

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Expression,
    message: Option<Expression>,
    /// It compares with the object before.
    is_transition: bool,
}

impl Compiled {
    /// What is said when the rule does not hold.
    fn message(&self, bindings: &Bindings<'_>) -> String {
        let computed = self.message.as_ref().and_then(|message| message.message(bindings));
        computed.unwrap_or_else(|| match self.rule.message.trim() {
            "" => format!("failed rule: {}", one_line(&self.rule.rule)),
            message => message.to_owned(),
        })
    }
}

/// A rule that does not compile.
pub struct Mistake {
    /// Place of the schema, as `.properties[spec].items`.
    pub place: String,
    pub index: usize,
    /// `rule` or `messageExpression`.
    pub field: &'static str,
    pub source: String,
    pub why: String,
}

impl Rules {
    /// Compiles the rules of a schema; rules that do not compile are left out and reported.
    pub fn compile(schema: &Schema, mistakes: &mut Vec<Mistake>) -> Rules {
        Rules::at(schema, "", true, mistakes)
    }

    fn at(schema: &Schema, place: &str, correlates: bool, mistakes: &mut Vec<Mistake>) -> Rules {
        let mut own = Vec::new();
        for (index, rule) in schema.rules.iter().enumerate() {
            let mut wrong = |field, source: &str, why: String| {
                let (place, source) = (place.to_owned(), source.to_owned());
                mistakes.push(Mistake { place, index, field, source, why });
            };
            match compile(schema, rule, correlates) {
                Ok(compiled) => own.push(compiled),
                Err((field, why)) => {
                    let source =
                        if field == "rule" { &rule.rule } else { &rule.message_expression };
                    wrong(field, source, why);
                }
            }
        }
        let mut below = |child: &Schema, step: &str, correlates: bool| {
            let rules = Rules::at(child, &format!("{place}{step}"), correlates, mistakes);
            (!rules.is_empty()).then_some(rules)
        };
        let mut properties = BTreeMap::new();
        for (key, child) in &schema.properties {
            if let Some(rules) = below(child, &format!(".properties[{key}]"), correlates) {
                properties.insert(key.clone(), rules);
            }
        }
        // Only items with keys can be found again in the list before.
        let keyed = correlates && matches!(schema.list, List::Map(_));
        let items = schema.items.as_ref().and_then(|items| below(items, ".items", keyed));
        let additional = match &schema.additional {
            Additional::Of(inner) => below(inner, ".additionalProperties", correlates),
            Additional::Nothing | Additional::Anything => None,
        };
        Rules { own, properties, items: items.map(Box::new), additional: additional.map(Box::new) }
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty()
            && self.properties.is_empty()
            && self.items.is_none()
            && self.additional.is_none()
    }

    /// Everything that the rules complain about in an object.
    pub fn check(&self, schema: &Schema, new: &Object, old: Option<&Object>) -> Vec<FieldError> {
        let mut run = Run { meter: Meter::new(cel::OBJECT_COST_MAX), errors: Vec::new() };
        if !self.is_empty() {
            // Running out of budget has been reported where it happened.
            let _ = run.node(self, schema, new, old, "");
        }
        run.errors
    }
}

fn compile(
    schema: &Schema,
    rule: &Rule,
    correlates: bool,
) -> Result<Compiled, (&'static str, String)> {
    if rule.rule.trim().is_empty() {
        return Err(("rule", "rule is not specified".to_owned()));
    }
    let types = |result| {
        let own = Type::Schema(schema);
        let old = if rule.optional_old_self { Type::Any } else { own };
        Types::giving(result).with("self", own).with("oldSelf", old)
    };
    let program =
        Expression::compile(&rule.rule, &types("bool")).map_err(|error| ("rule", error))?;
    let message = match rule.message_expression.trim() {
        "" => None,
        source => Some(
            Expression::compile(source, &types("string"))
                .map_err(|error| ("messageExpression", error))?,
        ),
    };
    let is_transition = program.uses("oldSelf");
    if is_transition && !correlates {
        let why = "oldSelf cannot be used on the uncorrelatable portion of the schema";
        return Err(("rule", why.to_owned()));
    }
    Ok(Compiled { rule: rule.clone(), program, message, is_transition })
}

/// One validation of one object.
struct Run {
    meter: Meter,
    errors: Vec<FieldError>,
}

/// The budget is spent: nothing more is looked at.
struct Exhausted;

impl Run {
    fn node(
        &mut self,
        rules: &Rules,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        path: &str,
    ) -> Result<(), Exhausted> {
        if new.is_null() {
            return Ok(());
        }
        for rule in &rules.own {
            self.rule(rule, schema, new, old, path)?;
        }
        match new {
            Value::Object(map) => {
                for (key, value) in map {
                    let named = schema.properties.get(key).zip(rules.properties.get(key));
                    let before = old.and_then(|old| old.get(key));
                    if let Some((schema, rules)) = named {
                        self.node(rules, schema, value, before, &join(path, key))?;
                    } else if let (Additional::Of(schema), Some(rules)) =
                        (&schema.additional, &rules.additional)
                    {
                        let path = format!("{path}[{key}]");
                        self.node(rules, schema, value, before, &path)?;
                    }
                }
            }
            Value::Array(items) => {
                let (Some(inner), Some(rules)) = (&schema.items, &rules.items) else {
                    return Ok(());
                };
                let before = check::Counterparts::of(schema, old);
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.node(rules, inner, item, before.find(item), &path)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rule(
        &mut self,
        compiled: &Compiled,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        path: &str,
    ) -> Result<(), Exhausted> {
        let Compiled { rule, is_transition, .. } = compiled;
        if *is_transition && old.is_none() && !rule.optional_old_self {
            return Ok(());
        }
        if !is_transition && old == Some(new) {
            return Ok(());
        }
        let mut bindings = Bindings::new(&self.meter).with("self", cel::value(new, Some(schema)));
        let before = old.map(|old| cel::value(old, Some(schema)));
        match (rule.optional_old_self, before) {
            (true, Some(before)) => bindings.set("oldSelf", Box::new(CelOptional::of(before))),
            (true, None) => bindings.set("oldSelf", Box::new(CelOptional::none())),
            (false, Some(before)) => bindings.set("oldSelf", before),
            (false, None) => {}
        }
        match compiled.program.holds(&bindings) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = compiled.message(&bindings);
                self.complain(rule, schema, path, &text);
                Ok(())
            }
            Err(EvalError::Failed(why)) => {
                let meant = if rule.message.is_empty() { &rule.rule } else { &rule.message };
                let text = format!("{why} evaluating rule: {}", one_line(meant));
                self.invalid(schema, path, &text);
                Ok(())
            }
            Err(EvalError::CostOfExpression) => {
                let text = format!(
                    "no further validation rules will be run due to call cost exceeds limit for \
                     rule: {}",
                    one_line(&rule.rule)
                );
                self.invalid(schema, path, &text);
                Err(Exhausted)
            }
            Err(EvalError::CostOfObject) => {
                let text = "validation failed due to running out of cost budget, no further \
                    validation rules will be run";
                self.invalid(schema, path, text);
                Err(Exhausted)
            }
        }
    }

    fn complain(&mut self, rule: &Rule, schema: &Schema, path: &str, text: &str) {
        let path = &relative(path, &rule.field_path);
        let kind = type_name(schema);
        let (reason, message) = match rule.reason.as_str() {
            "FieldValueForbidden" => (Reason::Forbidden, format!("Forbidden: {text}")),
            "FieldValueRequired" => (Reason::Required, format!("Required value: {text}")),
            "FieldValueDuplicate" => (Reason::Duplicate, format!("Duplicate value: {kind:?}")),
            _ => (Reason::Invalid, format!("Invalid value: {kind:?}: {text}")),
        };
        self.errors.push(FieldError { reason, field: path.clone(), message });
    }

    fn invalid(&mut self, schema: &Schema, path: &str, text: &str) {
        let message = format!("Invalid value: {:?}: {text}", type_name(schema));
        self.errors.push(FieldError { reason: Reason::Invalid, field: path.to_owned(), message });
    }
}

fn type_name(schema: &Schema) -> &'static str {
    match schema.form {
        Form::IntOrText | Form::Any => "",
        form => form.name(),
    }
}

fn one_line(text: &str) -> String {
    text.trim().replace(['\n', '\r'], " ")
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A path with the rule's own `fieldPath` behind it.
fn relative(path: &str, field: &str) -> String {
    if field.is_empty() {
        return path.to_owned();
    }
    let plain = field.replace("['", "[").replace("']", "]");
    let joined = format!("{path}{plain}");
    joined.trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
