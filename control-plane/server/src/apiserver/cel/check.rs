//! What can be said about an expression before it runs: names that stand for nothing, fields that a
//! schema does not have, functions that do not exist.
//!
//! Types are inferred as far as a schema goes; where it ends, anything is possible and nothing is
//! said.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SourceInfo};
use wherry_resources::custom::schema::{Additional, Form, Schema};

use super::functions;
use super::values::unescaped;

/// What is known about a value.
#[derive(Clone, Copy, Debug)]
pub enum Type<'a> {
    /// Anything.
    Any,
    /// A value of this kind, such as `bool`.
    Scalar(&'static str),
    /// What a schema describes.
    Schema(&'a Schema),
}

/// The names that an expression may use, and what it must give.
pub struct Types<'a> {
    names: Vec<(&'a str, Type<'a>)>,
    /// `bool` or `string`; empty for anything.
    result: &'static str,
    /// Whether operators must have an overload for what they are given.
    overloads: bool,
}

impl<'a> Types<'a> {
    /// An expression that must give a value of this kind (empty: any), without names.
    pub fn giving(result: &'static str) -> Types<'a> {
        Types { names: Vec::new(), result, overloads: false }
    }

    /// The same, where operators are looked at too: for warnings, since what is not quite certain
    /// must refuse nothing.
    pub fn with_overloads(mut self) -> Types<'a> {
        self.overloads = true;
        self
    }

    /// The same with one more name.
    pub fn with(mut self, name: &'a str, of: Type<'a>) -> Types<'a> {
        self.names.push((name, of));
        self
    }
}

/// What is wrong, and with which part of the tree.
#[derive(Debug)]
pub struct Problem {
    id: u64,
    what: String,
}

impl Problem {
    /// The problem with the place under it, as CEL's own compiler shows it.
    pub fn show(&self, source: &str, positions: &SourceInfo) -> String {
        let start = positions.offset_for(self.id).map_or(0, |(start, _)| start as usize);
        let before: String = source.chars().take(start).collect();
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or("").chars().count();
        let text = source.lines().nth(line).unwrap_or("");
        format!(
            "ERROR: <input>:{}:{}: {}\n | {text}\n | {}^",
            line + 1,
            column + 1,
            self.what,
            ".".repeat(column)
        )
    }
}

/// Looks for mistakes.
pub fn check(tree: &IdedExpr, types: &Types<'_>) -> Result<(), Problem> {
    let scope = Scope { names: &types.names, overloads: types.overloads, outer: None };
    let found = infer(tree, &scope)?;
    let name = name_of(found);
    if !types.result.is_empty() && !name.is_empty() && name != types.result {
        let what = format!("must evaluate to {}", types.result);
        return Err(Problem { id: tree.id, what });
    }
    Ok(())
}

/// The word for a type; empty if it is not known.
fn name_of(of: Type<'_>) -> &'static str {
    match of {
        Type::Any => "",
        Type::Scalar(name) => name,
        Type::Schema(schema) => match schema.form {
            Form::Text if schema.limits.format.is_some() => "",
            Form::Text => "string",
            Form::Integer => "int",
            Form::Number => "double",
            Form::Boolean => "bool",
            Form::Object => "object",
            Form::Array => "list",
            Form::Any | Form::IntOrText => "",
        },
    }
}

/// Names inside an expression: loop variables before what is around them.
struct Scope<'s, 'a> {
    names: &'s [(&'s str, Type<'a>)],
    overloads: bool,
    outer: Option<&'s Scope<'s, 'a>>,
}

impl<'a> Scope<'_, 'a> {
    fn find(&self, name: &str) -> Option<Type<'a>> {
        let own = self.names.iter().rev().find(|(known, _)| *known == name);
        own.map(|(_, of)| *of).or_else(|| self.outer.and_then(|outer| outer.find(name)))
    }
}

/// Names of types, which are values too.
const TYPE_NAMES: [&str; 14] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "google",
    "optional_type",
    "net",
    "kubernetes",
];

fn infer<'a>(tree: &IdedExpr, scope: &Scope<'_, 'a>) -> Result<Type<'a>, Problem> {
    match &tree.expr {
        Expr::Literal(literal) => Ok(Type::Scalar(literal_type(literal))),
        Expr::Ident(name) => match scope.find(name) {
            Some(of) => Ok(of),
            None if TYPE_NAMES.contains(&name.as_str()) || name.starts_with('@') => Ok(Type::Any),
            None => Err(undeclared(tree.id, name)),
        },
        Expr::Select(select) => {
            if let Some(of) = qualified_type(tree) {
                return Ok(of);
            }
            let operand = infer(&select.operand, scope)?;
            let field = select_field(tree.id, operand, &select.field)?;
            Ok(if select.test { Type::Scalar("bool") } else { field })
        }
        Expr::Call(call) => infer_call(tree.id, call, scope),
        Expr::List(list) => {
            for element in &list.elements {
                infer(element, scope)?;
            }
            Ok(Type::Scalar("list"))
        }
        Expr::Map(map) => {
            infer_entries(map.entries.iter().map(|entry| &entry.expr), scope)?;
            Ok(Type::Scalar("map"))
        }
        Expr::Struct(made) => {
            infer_entries(made.entries.iter().map(|entry| &entry.expr), scope)?;
            Ok(Type::Any)
        }
        Expr::Comprehension(loop_) => infer_loop(loop_, scope),
        Expr::Unspecified => Ok(Type::Any),
    }
}

fn undeclared(id: u64, name: &str) -> Problem {
    Problem { id, what: format!("undeclared reference to '{name}' (in container '')") }
}

fn literal_type(literal: &LiteralValue) -> &'static str {
    match literal {
        LiteralValue::Boolean(_) => "bool",
        LiteralValue::Bytes(_) => "bytes",
        LiteralValue::Double(_) => "double",
        LiteralValue::Int(_) => "int",
        LiteralValue::Null => "null_type",
        LiteralValue::String(_) => "string",
        LiteralValue::UInt(_) => "uint",
    }
}

/// `google.protobuf.Timestamp` and the like.
fn qualified_type<'a>(tree: &IdedExpr) -> Option<Type<'a>> {
    let mut at = tree;
    loop {
        match &at.expr {
            Expr::Select(select) => at = &select.operand,
            Expr::Ident(root) => {
                return matches!(root.as_str(), "google" | "net" | "kubernetes")
                    .then_some(Type::Any);
            }
            _ => return None,
        }
    }
}

fn infer_entries<'t, 'a>(
    entries: impl Iterator<Item = &'t EntryExpr>,
    scope: &Scope<'_, 'a>,
) -> Result<(), Problem> {
    for entry in entries {
        match entry {
            EntryExpr::StructField(field) => {
                infer(&field.value, scope)?;
            }
            EntryExpr::MapEntry(entry) => {
                infer(&entry.key, scope)?;
                infer(&entry.value, scope)?;
            }
        }
    }
    Ok(())
}

fn select_field<'a>(id: u64, operand: Type<'a>, field: &str) -> Result<Type<'a>, Problem> {
    let schema = match operand {
        Type::Any => return Ok(Type::Any),
        Type::Scalar("map" | "list") => return Ok(Type::Any),
        Type::Scalar(name) => {
            let what = format!("type '{name}' does not support field selection");
            return Err(Problem { id, what });
        }
        Type::Schema(schema) => schema,
    };
    match schema.form {
        Form::Object | Form::Any => {}
        _ => {
            let what = format!("type '{}' does not support field selection", name_of(operand));
            return Err(Problem { id, what });
        }
    }
    if let Some(child) = schema.properties.get(&unescaped(field)) {
        if field == "metadata" && child.properties.is_empty() {
            return Ok(Type::Any);
        }
        return Ok(Type::Schema(child));
    }
    match &schema.additional {
        Additional::Of(inner) => return Ok(Type::Schema(inner)),
        Additional::Anything => return Ok(Type::Any),
        Additional::Nothing => {}
    }
    let is_meta = matches!(field, "apiVersion" | "kind" | "metadata");
    if is_meta || schema.preserve && schema.properties.is_empty() || schema.form == Form::Any {
        return Ok(Type::Any);
    }
    Err(Problem { id, what: format!("undefined field '{field}'") })
}

fn infer_call<'a>(id: u64, call: &CallExpr, scope: &Scope<'_, 'a>) -> Result<Type<'a>, Problem> {
    let namespace = call.target.as_ref().and_then(|target| functions::namespace(target));
    if let Some(target) = call.target.as_ref().filter(|_| namespace.is_none()) {
        infer(target, scope)?;
    }
    let mut args = Vec::new();
    for argument in &call.args {
        args.push(infer(argument, scope)?);
    }
    let name = match namespace {
        Some(namespace) => format!("{namespace}.{}", call.func_name),
        None => call.func_name.clone(),
    };
    if !functions::exists(&name, call.target.is_some() && namespace.is_none()) {
        return Err(undeclared(id, &name));
    }
    let words: Vec<&'static str> = args.iter().map(|of| name_of(*of)).collect();
    if scope.overloads && !has_overload(&name, &words) {
        let (operands, applied) = (words.join(", "), "found no matching overload for");
        return Err(Problem { id, what: format!("{applied} '{name}' applied to '({operands})'") });
    }
    Ok(match name.as_str() {
        // What is added, multiplied and so on stays what it is.
        "_+_" | "_-_" | "_*_" | "_/_" | "_%_" if scope.overloads && is_scalar(&words) => {
            Type::Scalar(words[0])
        }
        "_[_]" => match args.first() {
            Some(Type::Schema(schema)) => match (&schema.items, &schema.additional) {
                (Some(items), _) => Type::Schema(items),
                (None, Additional::Of(inner)) => Type::Schema(inner),
                _ => Type::Any,
            },
            _ => Type::Any,
        },
        "_?_:_" => args.get(1).copied().unwrap_or(Type::Any),
        other => match functions::result(other) {
            "" => Type::Any,
            name => Type::Scalar(name),
        },
    })
}

/// Types whose values operators take as they are.
const SCALARS: [&str; 6] = ["bool", "bytes", "double", "int", "string", "uint"];
const NUMBERS: [&str; 3] = ["double", "int", "uint"];

fn is_scalar(operands: &[&str]) -> bool {
    !operands.is_empty() && operands.iter().all(|of| SCALARS.contains(of))
}

/// Whether an operator can be applied to operands of these types; what is not known to be wrong may
/// be right.
fn has_overload(operator: &str, operands: &[&str]) -> bool {
    if !is_scalar(operands) {
        return true;
    }
    let all = |of: &[&str]| operands.iter().all(|one| of.contains(one));
    let same = operands.windows(2).all(|two| two[0] == two[1]);
    match operator {
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => same || all(&NUMBERS),
        "_+_" => same && !all(&["bool"]),
        "_-_" | "_*_" | "_/_" => same && all(&NUMBERS),
        "_%_" => same && all(&["int", "uint"]),
        "_&&_" | "_||_" | "!_" => all(&["bool"]),
        _ => true,
    }
}

fn infer_loop<'a>(loop_: &ComprehensionExpr, scope: &Scope<'_, 'a>) -> Result<Type<'a>, Problem> {
    let range = infer(&loop_.iter_range, scope)?;
    let item = match range {
        Type::Schema(schema) if schema.form == Form::Array => {
            schema.items.as_deref().map_or(Type::Any, Type::Schema)
        }
        Type::Schema(schema) if schema.form == Form::Object => Type::Scalar("string"),
        Type::Schema(schema) if !matches!(schema.form, Form::Any | Form::IntOrText) => {
            let what = format!(
                "expression of type '{}' cannot be range of a comprehension (must be list, map, \
                 or dynamic)",
                name_of(range)
            );
            return Err(Problem { id: loop_.iter_range.id, what });
        }
        _ => Type::Any,
    };
    let accumulated = infer(&loop_.accu_init, scope)?;
    let names = [(loop_.accu_var.as_str(), Type::Any), (loop_.iter_var.as_str(), item)];
    let inner = Scope { names: &names, overloads: scope.overloads, outer: Some(scope) };
    infer(&loop_.loop_cond, &inner)?;
    infer(&loop_.loop_step, &inner)?;
    infer(&loop_.result, &inner)?;
    Ok(match accumulated {
        Type::Scalar("bool") => Type::Scalar("bool"),
        _ => Type::Any,
    })
}

/// How deep a tree is.
pub fn depth(tree: &IdedExpr) -> usize {
    let entry = |entry: &EntryExpr| match entry {
        EntryExpr::StructField(field) => depth(&field.value),
        EntryExpr::MapEntry(entry) => depth(&entry.key).max(depth(&entry.value)),
    };
    let below = match &tree.expr {
        Expr::Call(call) => {
            let target = call.target.iter().map(|target| depth(target));
            target.chain(call.args.iter().map(depth)).max()
        }
        Expr::Select(select) => Some(depth(&select.operand)),
        Expr::List(list) => list.elements.iter().map(depth).max(),
        Expr::Map(map) => map.entries.iter().map(|one| entry(&one.expr)).max(),
        Expr::Struct(made) => made.entries.iter().map(|one| entry(&one.expr)).max(),
        Expr::Comprehension(loop_) => {
            let parts = [&loop_.iter_range, &loop_.accu_init, &loop_.loop_step, &loop_.result];
            parts.into_iter().map(depth).max()
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => None,
    };
    below.unwrap_or(0) + 1
}

/// Names of variables in a tree, and of fields of `variables` as `variables.x`.
pub fn variables(tree: &IdedExpr) -> Vec<String> {
    let mut found = Vec::new();
    collect(tree, &mut found);
    found.sort();
    found.dedup();
    found
}

fn collect(tree: &IdedExpr, found: &mut Vec<String>) {
    match &tree.expr {
        Expr::Ident(name) => found.push(name.clone()),
        Expr::Select(select) => {
            if let Expr::Ident(name) = &select.operand.expr {
                found.push(format!("{name}.{}", select.field));
            }
            collect(&select.operand, found);
        }
        Expr::Call(call) => {
            call.target.iter().for_each(|target| collect(target, found));
            call.args.iter().for_each(|argument| collect(argument, found));
        }
        Expr::List(list) => list.elements.iter().for_each(|element| collect(element, found)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| entry_of(&entry.expr, found)),
        Expr::Struct(made) => made.entries.iter().for_each(|entry| entry_of(&entry.expr, found)),
        Expr::Comprehension(loop_) => {
            let parts = [
                &loop_.iter_range,
                &loop_.accu_init,
                &loop_.loop_cond,
                &loop_.loop_step,
                &loop_.result,
            ];
            parts.iter().for_each(|part| collect(part, found));
        }
        Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn entry_of(entry: &EntryExpr, found: &mut Vec<String>) {
    match entry {
        EntryExpr::StructField(field) => collect(&field.value, found),
        EntryExpr::MapEntry(entry) => {
            collect(&entry.key, found);
            collect(&entry.value, found);
        }
    }
}
