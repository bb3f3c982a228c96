//! Puts the budget into a compiled tree.
//!
//! ```text
//! list.all(x, f(x))   becomes   @charge(list).all(x, @charge(f(x)))
//! a.replace(b, c)     becomes   @replace(a, b, c, -1)
//! ```
//!
//! Every list that is iterated over is charged by its length each time, and every value that a call
//! or a literal makes by its size, so a nested loop or a text that doubles again and again runs out
//! of budget in time. Functions whose result can be much larger than what goes in (`replace`,
//! `join`) are replaced by ones that look before they work.
//!
//! The loop step of a comprehension keeps its outermost shape, because the evaluator knows `all`,
//! `exists`, `map` and `filter` by it.

use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapEntryExpr, MapExpr,
    StructExpr, operators,
};

/// Under this name the meter is found.
pub const METER: &str = "@meter";
/// Charges for a value and passes it on.
pub const CHARGE: &str = "@charge";

/// Functions that are called with the meter, by their name in expressions and the number of their
/// arguments without the target.
const GUARDED: &[(&str, usize, &str)] = &[
    ("replace", 2, "@replace"),
    ("replace", 3, "@replace"),
    ("join", 0, "@join"),
    ("join", 1, "@join"),
    ("matches", 1, "@matches"),
];

/// The tree with its charges.
pub fn metered(expression: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = expression;
    match expr {
        Expr::Call(call) => metered_call(id, call),
        Expr::List(list) => {
            let elements = list.elements.into_iter().map(metered).collect();
            let optional = list.optional_indices;
            charged(id, Expr::List(ListExpr::new_with_optionals(elements, optional)))
        }
        Expr::Map(map) => {
            let entries = map.entries.into_iter().map(|mut entry| {
                entry.expr = match entry.expr {
                    EntryExpr::MapEntry(inner) => EntryExpr::MapEntry(MapEntryExpr {
                        key: metered(inner.key),
                        value: metered(inner.value),
                        optional: inner.optional,
                    }),
                    other => other,
                };
                entry
            });
            charged(id, Expr::Map(MapExpr { entries: entries.collect() }))
        }
        Expr::Struct(made) => metered(IdedExpr { id, expr: as_map(made) }),
        Expr::Select(mut select) => {
            // A plain path of names costs next to nothing, and is looked up as a whole.
            if !is_name(&select.operand) {
                select.operand = Box::new(metered(*select.operand));
            }
            IdedExpr { id, expr: Expr::Select(select) }
        }
        Expr::Comprehension(loop_) => {
            let loop_ = Expr::Comprehension(Box::new(metered_loop(*loop_)));
            charged(id, loop_)
        }
        other => IdedExpr { id, expr: other },
    }
}

fn is_name(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Ident(_) => true,
        Expr::Select(select) => !select.test && is_name(&select.operand),
        _ => false,
    }
}

/// Objects that a policy makes (`Object{…}`, `JSONPatch{…}`) are maps here.
fn as_map(made: StructExpr) -> Expr {
    let entries = made.entries.into_iter().map(|mut entry| {
        if let EntryExpr::StructField(field) = entry.expr {
            let name = LiteralValue::String(field.field.into());
            entry.expr = EntryExpr::MapEntry(MapEntryExpr {
                key: IdedExpr { id: entry.id, expr: Expr::Literal(name) },
                value: field.value,
                optional: field.optional,
            });
        }
        entry
    });
    Expr::Map(MapExpr { entries: entries.collect() })
}

fn metered_call(id: u64, call: CallExpr) -> IdedExpr {
    let CallExpr { func_name, target, args } = call;
    let args: Vec<IdedExpr> = args.into_iter().map(metered).collect();
    let target = target.map(|target| match is_name(&target) {
        // It may be the namespace of a function, as in `optional.of`.
        true => target,
        false => Box::new(metered(*target)),
    });
    let operands = args.len() - usize::from(target.is_none() && !args.is_empty());
    let guarded = GUARDED.iter().find(|row| row.0 == func_name && row.1 == operands);
    if let Some((_, _, name)) = guarded {
        let mut all = vec![meter(id)];
        all.extend(target.map(|target| *target));
        all.extend(args);
        return charged(id, call_of(name, all));
    }
    let is_operator = func_name.contains('_') || func_name.starts_with('@') || func_name == "!_";
    let plain = is_operator && func_name != operators::ADD;
    let made = IdedExpr { id, expr: Expr::Call(CallExpr { func_name, target, args }) };
    if plain { made } else { charged(id, made.expr) }
}

fn metered_loop(loop_: ComprehensionExpr) -> ComprehensionExpr {
    ComprehensionExpr {
        iter_range: charged(loop_.iter_range.id, metered(loop_.iter_range).expr),
        accu_init: loop_.accu_init,
        loop_step: step(loop_.loop_step),
        result: match loop_.result.expr {
            Expr::Ident(_) => loop_.result,
            _ => metered(loop_.result),
        },
        ..loop_
    }
}

/// A loop step: its operators stay, what they work on is charged.
fn step(expression: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = expression;
    let Expr::Call(call) = expr else {
        return metered(IdedExpr { id, expr });
    };
    let shapes =
        [operators::ADD, operators::CONDITIONAL, operators::LOGICAL_AND, operators::LOGICAL_OR];
    if call.target.is_some() || !shapes.contains(&call.func_name.as_str()) {
        return metered_call(id, call);
    }
    let args = call.args.into_iter().map(|argument| match argument.expr {
        Expr::Ident(_) => argument,
        Expr::List(list) => {
            let elements = list.elements.into_iter().map(metered).collect();
            let list = ListExpr::new_with_optionals(elements, list.optional_indices);
            IdedExpr { id: argument.id, expr: Expr::List(list) }
        }
        Expr::Call(_) if call.func_name == operators::CONDITIONAL => step(argument),
        _ => metered(argument),
    });
    let args = args.collect();
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: call.func_name, target: None, args }) }
}

fn meter(id: u64) -> IdedExpr {
    IdedExpr { id, expr: Expr::Ident(METER.to_owned()) }
}

fn charged(id: u64, expr: Expr) -> IdedExpr {
    let value = IdedExpr { id, expr };
    IdedExpr { id, expr: call_of(CHARGE, vec![meter(id), value]) }
}

fn call_of(name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args })
}
