//! The words behind the name of an export as its parameters, and its result as a program's outcome.
//!
//! An export that takes nothing is called whatever words follow. Else each parameter takes one word,
//! which is a number, a text, a character, `true` or `false`; a list of texts takes all that are left.
//!
//! No result is success, a `bool` or `result` is success or failure, an integer the exit code; every
//! other value, also within a `result`, is printed.

use std::str::FromStr;

use wasmtime::ValType;
use wasmtime::component::Val;
use wasmtime::component::types::Type;

/// The parameters of a core module's function. The error continues "it".
pub(crate) fn core(
    types: impl ExactSizeIterator<Item = ValType>,
    words: &[String],
) -> Result<Vec<wasmtime::Val>, String> {
    let count = types.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    if count != words.len() {
        return Err(wrong_count(count, words));
    }
    let value = |(of, word): (ValType, &String)| match of {
        ValType::I32 => parsed(word, "i32").map(wasmtime::Val::I32),
        ValType::I64 => parsed(word, "i64").map(wasmtime::Val::I64),
        ValType::F32 => parsed(word, "f32").map(f32::to_bits).map(wasmtime::Val::F32),
        ValType::F64 => parsed(word, "f64").map(f64::to_bits).map(wasmtime::Val::F64),
        _ => Err("takes what cannot be said in a word".to_owned()),
    };
    types.zip(words).map(value).collect()
}

/// The parameters of a component's function. The error continues "it".
pub(crate) fn component(types: &[Type], words: &[String]) -> Result<Vec<Val>, String> {
    let mut values = Vec::with_capacity(types.len());
    if types.is_empty() {
        return Ok(values);
    }
    let mut left = words.iter();
    for of in types {
        if let Type::List(list) = of
            && matches!(list.ty(), Type::String)
        {
            let rest = left.by_ref().map(|word| Val::String(word.clone()));
            values.push(Val::List(rest.collect()));
            continue;
        }
        let word = left.next().ok_or_else(|| wrong_count(types.len(), words))?;
        values.push(value(of, word)?);
    }
    match left.next() {
        None => Ok(values),
        Some(_) => Err(wrong_count(types.len(), words)),
    }
}

fn value(of: &Type, word: &str) -> Result<Val, String> {
    match of {
        Type::Bool => parsed(word, "bool").map(Val::Bool),
        Type::S8 => parsed(word, "s8").map(Val::S8),
        Type::U8 => parsed(word, "u8").map(Val::U8),
        Type::S16 => parsed(word, "s16").map(Val::S16),
        Type::U16 => parsed(word, "u16").map(Val::U16),
        Type::S32 => parsed(word, "s32").map(Val::S32),
        Type::U32 => parsed(word, "u32").map(Val::U32),
        Type::S64 => parsed(word, "s64").map(Val::S64),
        Type::U64 => parsed(word, "u64").map(Val::U64),
        Type::Float32 => parsed(word, "f32").map(Val::Float32),
        Type::Float64 => parsed(word, "f64").map(Val::Float64),
        Type::Char => parsed(word, "char").map(Val::Char),
        Type::String => Ok(Val::String(word.to_owned())),
        _ => Err("takes what cannot be said in a word".to_owned()),
    }
}

/// The exit code and the text of what a core module's function returns.
pub(crate) fn core_outcome(result: Option<&wasmtime::Val>) -> (i32, Option<String>) {
    match result {
        None => (0, None),
        Some(wasmtime::Val::I32(code)) => (*code, None),
        Some(wasmtime::Val::I64(code)) => (exit_code(*code), None),
        Some(wasmtime::Val::F32(bits)) => (0, Some(f32::from_bits(*bits).to_string())),
        Some(wasmtime::Val::F64(bits)) => (0, Some(f64::from_bits(*bits).to_string())),
        Some(other) => (0, Some(format!("{other:?}"))),
    }
}

/// The same of a component's function.
pub(crate) fn outcome(result: Option<&Val>) -> (i32, Option<String>) {
    let Some(value) = result else { return (0, None) };
    match value {
        Val::Bool(good) => (i32::from(!good), None),
        Val::Result(Ok(inner)) => (0, inner.as_deref().map(text)),
        Val::Result(Err(inner)) => (1, inner.as_deref().map(text)),
        Val::S8(code) => (i32::from(*code), None),
        Val::U8(code) => (i32::from(*code), None),
        Val::S16(code) => (i32::from(*code), None),
        Val::U16(code) => (i32::from(*code), None),
        Val::S32(code) => (*code, None),
        Val::U32(code) => (exit_code(*code), None),
        Val::S64(code) => (exit_code(*code), None),
        Val::U64(code) => (exit_code(*code), None),
        other => (0, Some(text(other))),
    }
}

/// What is no exit code is one of a failure.
fn exit_code(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(1)
}

fn text(value: &Val) -> String {
    match value {
        Val::Bool(value) => value.to_string(),
        Val::S8(number) => number.to_string(),
        Val::U8(number) => number.to_string(),
        Val::S16(number) => number.to_string(),
        Val::U16(number) => number.to_string(),
        Val::S32(number) => number.to_string(),
        Val::U32(number) => number.to_string(),
        Val::S64(number) => number.to_string(),
        Val::U64(number) => number.to_string(),
        Val::Float32(number) => number.to_string(),
        Val::Float64(number) => number.to_string(),
        Val::Char(value) => value.to_string(),
        Val::String(value) | Val::Enum(value) => value.clone(),
        Val::Option(inner) => inner.as_deref().map_or_else(String::new, text),
        Val::List(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        // What has no plain text of its own is shown as Rust would.
        other => format!("{other:?}"),
    }
}

fn parsed<T: FromStr>(word: &str, name: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("takes a value of type {name}, which {word:?} is not"))
}

fn wrong_count(wanted: usize, words: &[String]) -> String {
    format!("takes {wanted} parameters and is given {}", words.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_exit_codes_or_texts() {
        let text = |text: &str| Val::String(text.to_owned());
        let inner = |value| Some(Box::new(value));
        let cases = [
            (Val::Bool(false), 1, None),
            (Val::U8(7), 7, None),
            (Val::U32(u32::MAX), 1, None),
            (Val::Result(Ok(None)), 0, None),
            (Val::Result(Ok(inner(Val::U32(3)))), 0, Some("3")),
            (Val::Result(Err(inner(text("no such key")))), 1, Some("no such key")),
            (text("hello"), 0, Some("hello")),
            (Val::List(vec![text("a"), text("b")]), 0, Some("a\nb")),
            (Val::Option(None), 0, Some("")),
            (Val::Tuple(vec![Val::U8(1)]), 0, Some("Tuple([U8(1)])")),
        ];
        for (value, code, said) in cases {
            assert_eq!(outcome(Some(&value)), (code, said.map(str::to_owned)), "{value:?}");
        }
        assert_eq!(outcome(None), (0, None));
        assert_eq!(core_outcome(Some(&wasmtime::Val::I64(-1))), (-1, None));
        assert_eq!(
            core_outcome(Some(&wasmtime::Val::F64(1.5_f64.to_bits()))).1.as_deref(),
            Some("1.5")
        );
    }
}
