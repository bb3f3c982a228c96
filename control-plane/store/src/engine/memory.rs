//! An engine without a disk: ordered maps under one lock. For tests of everything above the disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::{Batch, Column, Engine, EngineError, Op, Pair, Stage, Visit, Walk, unknown_stage};

type Columns = BTreeMap<Column, BTreeMap<Vec<u8>, Vec<u8>>>;

/// The maps; `None` once closed. The lock is a std mutex: sections are short and never await.
pub(crate) struct Memory {
    columns: Mutex<Option<Columns>>,
    staged: Mutex<(Stage, Columns)>,
}

fn empty() -> Columns {
    Column::ALL.map(|column| (column, BTreeMap::new())).into()
}

/// Makes the changes of a batch.
fn change(columns: &mut Columns, batch: &Batch) {
    for op in &batch.ops {
        let column = match op {
            Op::Put(column, ..) | Op::Delete(column, _) => column,
            Op::DeleteRange(column, ..) => column,
        };
        let map = columns.get_mut(column).expect("all columns are made at the start");
        match op {
            Op::Put(_, key, value) => {
                map.insert(key.to_vec(), value.clone());
            }
            Op::Delete(_, key) => {
                map.remove(key.as_ref());
            }
            Op::DeleteRange(_, from, end) => {
                map.retain(|key, _| key < from || key >= end);
            }
        }
    }
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let staged = Mutex::new((Stage(0), empty()));
        Memory { columns: Mutex::new(Some(empty())), staged }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Columns>> {
        self.columns.lock().expect("no section of this lock panics")
    }

    fn column<T>(
        &self,
        column: Column,
        read: impl FnOnce(&BTreeMap<Vec<u8>, Vec<u8>>) -> T,
    ) -> Result<T, EngineError> {
        let guard = self.lock();
        let columns = guard.as_ref().ok_or(EngineError::Closed)?;
        Ok(read(columns.get(&column).expect("all columns are made at the start")))
    }
}

impl Engine for Memory {
    fn write(&self, batch: &Batch, _durable: bool) -> Result<(), EngineError> {
        let mut guard = self.lock();
        let columns = guard.as_mut().ok_or(EngineError::Closed)?;
        change(columns, batch);
        Ok(())
    }

    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.column(column, |map| map.get(key).cloned())
    }

    fn scan(&self, column: Column, from: &[u8], visit: &mut Visit) -> Result<(), EngineError> {
        // Copied first, so that a visitor may take its time without holding up the writer.
        let pairs: Vec<Pair> = self.column(column, |map| {
            map.range(from.to_vec()..).map(|(key, value)| (key.clone(), value.clone())).collect()
        })?;
        for (key, value) in &pairs {
            if visit(key, value)? == Walk::Enough {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, column: Column) -> Result<Option<Pair>, EngineError> {
        self.column(column, |map| {
            map.last_key_value().map(|(key, value)| (key.clone(), value.clone()))
        })
    }

    fn stage(&self) -> Result<Stage, EngineError> {
        let mut staged = self.staged.lock().expect("no section of this lock panics");
        let stage = Stage(staged.0.0 + 1);
        *staged = (stage, empty());
        Ok(stage)
    }

    fn fill(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        let mut staged = self.staged.lock().expect("no section of this lock panics");
        if staged.0 != stage {
            return Err(unknown_stage());
        }
        change(&mut staged.1, batch);
        Ok(())
    }

    fn adopt(&self, stage: Stage, batch: &Batch) -> Result<(), EngineError> {
        let mut staged = self.staged.lock().expect("no section of this lock panics");
        if staged.0 != stage {
            return Err(unknown_stage());
        }
        let mut guard = self.lock();
        let columns = guard.as_mut().ok_or(EngineError::Closed)?;
        let state = staged.1.remove(&Column::State).expect("all columns are made at the start");
        columns.insert(Column::State, state);
        *staged = (stage, empty());
        change(columns, batch);
        Ok(())
    }

    fn checkpoint(&self, _folder: &Path) -> Result<(), EngineError> {
        Err(EngineError::NoFiles)
    }

    fn close(&self) {
        *self.lock() = None;
    }
}
