//! The words behind the name of an export as its parameters.
//!
//! An export that takes nothing is called whatever words follow. Else each parameter takes one word,
//! which is a number, a text, a character, `true` or `false`; a list of texts takes all that are left.

use std::str::FromStr;

use wasmtime::ValType;
use wasmtime::component::Val;
use wasmtime::component::types::Type;

/// The parameters of a core module's function. The error continues "its function f".
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

/// The parameters of a component's function. The error continues "its function f".
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

fn parsed<T: FromStr>(word: &str, name: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("takes a value of type {name}, which {word:?} is not"))
}

fn wrong_count(wanted: usize, words: &[String]) -> String {
    format!("takes {wanted} parameters and is given {}", words.len())
}
