//! A bucket in the host's memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Ask, Error, KEYS_PAGE, Told, incremented};
use crate::host_memory::Part;
use crate::limits::HOST_BYTES_MAX;

/// What an entry costs beside its key and value, so that empty ones are bounded too.
pub(super) const ENTRY_BYTES: usize = 64;

/// Locked for one operation, which never waits.
pub(super) struct Memory(Mutex<Content>);

struct Content {
    values: BTreeMap<String, Vec<u8>>,
    booked: Part,
}

impl Content {
    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        let cost = |value: &Vec<u8>| key.len() + value.len() + ENTRY_BYTES;
        let freed = self.values.get(&key).map_or(0, cost);
        if !self.booked.resize(self.booked.bytes() - freed + cost(&value)) {
            let text = format!(
                "the host holds at most {HOST_BYTES_MAX} bytes for a container, its bucket in \
                 memory among them; use a volume's"
            );
            return Err(Error::Other(text));
        }
        self.values.insert(key, value);
        Ok(())
    }
}

impl Memory {
    pub(super) fn new(booked: Part) -> Memory {
        Memory(Mutex::new(Content { values: BTreeMap::new(), booked }))
    }

    pub(super) fn ask(&self, ask: Ask) -> Result<Told, Error> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match ask {
            Ask::Get(key) => Told::Value(content.values.get(&key).cloned()),
            Ask::Set(key, value) => {
                content.set(key, value)?;
                Told::Done
            }
            Ask::Delete(key) => {
                if let Some(value) = content.values.remove(&key) {
                    let freed = key.len() + value.len() + ENTRY_BYTES;
                    let left = content.booked.bytes() - freed;
                    content.booked.resize(left);
                }
                Told::Done
            }
            Ask::List(from) => {
                let page = content.values.keys().skip(from).take(KEYS_PAGE + 1);
                Told::Keys(page.cloned().collect())
            }
            Ask::Increment(key, delta) => {
                let value = content.values.get(&key).map(Vec::as_slice);
                let number = incremented(value, delta)?;
                content.set(key, number.to_string().into_bytes())?;
                Told::Number(number)
            }
        })
    }
}
