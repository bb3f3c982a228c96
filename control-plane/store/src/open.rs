//! Opening a store's folder: whose it is, whether all is there that must be, and the state in it.
//!
//! A folder that is not sound is refused, and never repaired: what was acknowledged may be missing
//! from it, and a member that forgets is worse than one that is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::memory::Memory;
use crate::engine::rocks::{self, Rocks};
use crate::engine::{Engine as Disk, EngineError, sealed};
use crate::errors::OpenError;
use crate::keyring::Keyring;
use crate::log::{self, Found, read_meta};
use crate::machine::{APPLIED, Machine, Restored, read_applied};
use crate::promise::Promise;
use crate::space::Space;
use crate::state::Revision;
use crate::store::{Config, Engine};
use crate::superblock::{self, Anchor, Identity, Superblock};

/// An open folder.
pub(crate) struct Opened {
    pub(crate) base: Option<PathBuf>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) anchor: Arc<Anchor>,
    pub(crate) space: Space,
    pub(crate) restored: Restored,
    /// What the member must have, by its own data.
    pub(crate) held: Promise,
}

/// What is wrong with the data in a folder.
pub(crate) fn damaged(base: Option<&Path>, error: EngineError) -> OpenError {
    let path = base.unwrap_or(Path::new("(memory)")).to_owned();
    match error {
        EngineError::UnknownKey { key, keyring, .. } => OpenError::Key { path, key, keyring },
        error => OpenError::Damaged { path, detail: error.to_string() },
    }
}

/// Opens what `config` names. Blocks.
pub(crate) fn open(config: &Config, founds: bool) -> Result<Opened, OpenError> {
    match &config.engine {
        Engine::Rocks(base) => open_rocks(config, base, founds),
        Engine::Memory => {
            let identity = new_identity(config, Path::new("(memory)"), founds)?;
            let block = Superblock::new(identity);
            let anchor = Arc::new(Anchor::new(None, block, config.faults.clone()));
            let disk = sealed::wrap(Arc::new(Memory::new()), config.keys.clone());
            let space = Space::before_open(None);
            let restored = Machine::read(&*disk, &config.faults);
            let restored = restored.map_err(|error| damaged(None, error))?;
            let held = Promise::default();
            Ok(Opened { base: None, disk, anchor, space, restored, held })
        }
    }
}

fn open_rocks(config: &Config, base: &Path, founds: bool) -> Result<Opened, OpenError> {
    let folder = |source| OpenError::Folder { path: base.to_owned(), source };
    rocks::make_folder(base).map_err(folder)?;
    let space = Space::before_open(Some(base.to_owned()));
    let found = superblock::read(base)?;
    if let Some(found) = &found {
        check_identity(config, base, found.identity)?;
    }
    let block = match found {
        Some(block) => block,
        None => Superblock::new(new_identity(config, base, founds)?),
    };
    if found.is_none() && base.join("CURRENT").exists() {
        let detail = "it has the layout of an earlier one".to_owned();
        return Err(OpenError::OtherVersion { path: base.to_owned(), detail });
    }
    // A new one would count the first database, and rid the folder of the one with the data.
    if found.is_none() && superblock::has_later_database(base).map_err(folder)? {
        let detail = "its superblock is missing".to_owned();
        return Err(OpenError::Damaged { path: base.to_owned(), detail });
    }
    if found.is_some() && !superblock::database(base, block.folder).exists() {
        let promised = format!("the database db-{}", block.folder);
        let (path, found) = (base.to_owned(), "no such folder".to_owned());
        return Err(OpenError::Behind { path, promised, found });
    }

    let anchor = Arc::new(Anchor::new(Some(base.to_owned()), block, config.faults.clone()));
    let disk = Rocks::open(base, anchor.clone(), found.is_none(), config.faults.clone())?;
    // From here on no other process has the folder.
    let disk = sealed::wrap(Arc::new(disk), config.keys.clone());
    let engine = |error| damaged(Some(base), error);
    let log = log::find(&*disk).map_err(engine)?;
    let restored = Machine::read(&*disk, &config.faults).map_err(engine)?;
    if !restored.others(config.member_id).is_empty() {
        // Found later, it would end the member again and again. One that is alone goes on with what
        // it can read: nobody else has it.
        log::verify(&*disk).map_err(engine)?;
    }
    let mut held = log.promise();
    held.add(None, restored.applied.log_id);
    if found.is_none() {
        if held != Promise::default() {
            let detail = "its superblock is missing".to_owned();
            return Err(OpenError::Damaged { path: base.to_owned(), detail });
        }
        anchor.create().map_err(folder)?;
    } else if let Some((promised, found)) = block.promise.missing_from(&log.promise()) {
        return Err(OpenError::Behind { path: base.to_owned(), promised, found });
    }
    superblock::clean(base, block.folder).map_err(folder)?;
    Ok(Opened { base: Some(base.to_owned()), disk, anchor, space, restored, held })
}

fn check_identity(config: &Config, base: &Path, found: Identity) -> Result<(), OpenError> {
    let path = || base.to_owned();
    if found.member_id != config.member_id {
        let (found, wanted) = (found.member_id, config.member_id);
        return Err(OpenError::OtherMember { path: path(), found, wanted });
    }
    match config.cluster_id {
        Some(wanted) if wanted != found.cluster_id => {
            Err(OpenError::OtherCluster { path: path(), found: found.cluster_id, wanted })
        }
        _ => Ok(()),
    }
}

/// Whose data an empty folder will hold.
fn new_identity(config: &Config, base: &Path, founds: bool) -> Result<Identity, OpenError> {
    let cluster_id = match config.cluster_id {
        Some(id) => id,
        None if founds => rand::random(),
        None => return Err(OpenError::NoCluster { path: base.to_owned() }),
    };
    Ok(Identity { cluster_id, member_id: config.member_id })
}

/// What a database that nobody has open holds: vote and log, and the revision of its state. Blocks.
pub(crate) fn look(
    database: &Path,
    keys: Option<Arc<Keyring>>,
) -> Result<(Found, Revision), EngineError> {
    let disk = sealed::wrap(Arc::new(Rocks::open_to_read(database)?), keys);
    let applied = read_meta(&*disk, APPLIED, read_applied)?.unwrap_or_default();
    let found = log::find(&*disk)?;
    disk.close();
    Ok((found, applied.log_id.map_or(0, |log_id| log_id.index)))
}
