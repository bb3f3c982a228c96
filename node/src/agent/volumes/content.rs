//! What the files of a volume hold. Pure: objects and tokens are arguments.

use std::collections::BTreeMap;

use crate::agent::{
    env,
    spec::{Files, Part, PodSpec, Source, TokenItem},
};

use super::atomic::{Entry, Payload, is_valid_path};

/// Contents of a ConfigMap or Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// A volume is at most this large: as much as an object of the API may be, from every source.
const BYTES_MAX: usize = 16 << 20;

/// What the sources of a volume hold at the moment.
pub struct Known<'a> {
    /// `None` for an object that does not exist.
    pub objects: &'a BTreeMap<Source, Option<Data>>,
    /// Tokens by what was asked for.
    pub tokens: &'a BTreeMap<TokenItem, String>,
    /// For fields of the Pod.
    pub context: &'a env::Context<'a>,
}

/// The files of a volume, or a sentence that says what is missing.
pub fn payload(files: &Files, pod: &PodSpec, known: &Known<'_>) -> Result<Payload, String> {
    let mut payload = Payload::new();
    let mut total = 0;
    let mut add = |path: &str, bytes: Vec<u8>, mode: Option<i32>| {
        if !is_valid_path(path) {
            return Err(format!("the path {path:?} does not stay inside of the volume"));
        }
        total += bytes.len();
        if total > BYTES_MAX {
            return Err(format!("its files have more than {} MiB", BYTES_MAX >> 20));
        }
        let mode = u32::try_from(mode.unwrap_or(files.mode)).unwrap_or(0o644) & 0o777;
        payload.insert(path.to_owned(), Entry { bytes, mode });
        Ok(())
    };
    for part in &files.parts {
        match part {
            Part::Object { source, items, optional } => {
                let (kind, name) = match source {
                    Source::ConfigMap(name) => ("configmap", name),
                    Source::Secret(name) => ("secret", name),
                };
                let Some(data) = known.objects.get(source).and_then(Option::as_ref) else {
                    if *optional {
                        continue;
                    }
                    return Err(format!("{kind} {name:?} not found"));
                };
                for (key, value) in data.iter().filter(|_| items.is_empty()) {
                    add(key, value.clone(), None)?;
                }
                for item in items {
                    match data.get(&item.key) {
                        Some(value) => add(&item.path, value.clone(), item.mode)?,
                        None if *optional => {}
                        None => {
                            let key = &item.key;
                            return Err(format!("{kind} {name:?} has no key {key:?}"));
                        }
                    }
                }
            }
            Part::Fields(items) => {
                for item in items {
                    let value = env::value(pod, &item.value, known.context);
                    let value =
                        value.ok_or_else(|| format!("{:?} cannot be read by a Pod", item.value))?;
                    add(&item.path, value.into_bytes(), item.mode)?;
                }
            }
            Part::Token(item) => {
                let token = known.tokens.get(item).ok_or("its token was not issued")?;
                // Who reads it is the guest alone.
                add(&item.path, token.clone().into_bytes(), None)?;
            }
        }
    }
    Ok(payload)
}
