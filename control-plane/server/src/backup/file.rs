//! Backup files offline: looking into one, and restoring one into the data folder of a new cluster.
//!
//! A data folder is `store/` and `pki/`. The objects come from the backup. The authorities do not:
//! either the folder with the old cluster's is given, and then nodes, kubeconfigs and tokens go on
//! as they are, or the new cluster makes its own, and then they are issued anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wherry_resources::keys;
use wherry_store::{
    BackupContent, BackupError, Cover, FOUNDER, Keyring, KeyringError, RestoreError, RestoreTarget,
};

use crate::at_rest::{self, KEYRING_FILE};
use crate::pki::{self, PkiError};

/// Read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Files of a folder of authorities are a few kilobytes each.
const PKI_FILE_BYTES_MAX: u64 = 1 << 20;

/// What was found in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    pub content: BackupContent,
    /// By the store's name of the type: `apps/deployments`, `/pods`.
    pub kinds: BTreeMap<String, Kind>,
}

/// The objects of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    pub objects: u64,
    pub bytes: u64,
    pub encrypted: u64,
}

/// How a backup is restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The new data folder; must not exist, or be empty.
    pub data_dir: PathBuf,
    /// The old cluster's folder of authorities, to go on with.
    pub pki: Option<PathBuf>,
    /// The old cluster's keyring, if it is neither in that folder nor in the backup, nor where the
    /// backup says that it lies.
    pub keyring: Option<PathBuf>,
    /// Name of the first member.
    pub name: String,
    /// Where nodes and other members will reach it; others can join only if it is said.
    pub advertise: Option<SocketAddr>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredCluster {
    pub content: BackupContent,
    pub cluster_id: u128,
    /// The new cluster's first revision.
    pub revision: u64,
}

/// Why a backup cannot be inspected or restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailed {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the folder {} is not empty; restore into a new one", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "there is no {name} in {}, so it is not a cluster's folder of authorities",
        folder.display()
    )]
    NoAuthority { folder: PathBuf, name: &'static str },
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Restore(RestoreError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl From<RestoreError> for RestoreFailed {
    fn from(error: RestoreError) -> RestoreFailed {
        match error {
            RestoreError::Backup(error) => RestoreFailed::Backup(error),
            error => RestoreFailed::Restore(error),
        }
    }
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreFailed {
    let path = path.to_owned();
    move |source| RestoreFailed::File { what, path, source }
}

fn open(backup: &Path) -> Result<BufReader<File>, RestoreFailed> {
    let file = File::open(backup).map_err(file_error("read", backup))?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// The keyring that opens a backup: the one named, else the one it carries.
fn keyring_for(backup: &Path, named: Option<&Path>) -> Result<Option<Keyring>, RestoreFailed> {
    if let Some(path) = named {
        return Ok(Some(Keyring::open(path, Cover::Everything)?));
    }
    let carried = wherry_store::keyring_of_backup(open(backup)?)?;
    let origin = format!("the keyring in {}", backup.display());
    let keyring = carried.map(|text| Keyring::parse(&text, &origin, Cover::Everything));
    Ok(keyring.transpose()?)
}

/// The keyring of the cluster that a backup was made from, if this is the machine where it lies.
fn keyring_at_its_place(backup: &Path) -> Result<Option<Keyring>, RestoreFailed> {
    let place = wherry_store::keyring_place_of_backup(open(backup)?)?;
    // The file may be anybody's, so what it names is only looked at if it can be a keyring.
    let can_be = |meta: fs::Metadata| meta.is_file() && meta.len() <= PKI_FILE_BYTES_MAX;
    let place = place.filter(|path| fs::metadata(path).is_ok_and(can_be));
    Ok(place.and_then(|path| Keyring::open(&path, Cover::Everything).ok()))
}

/// Reads a backup to its end and tells what is in it. Without a keyring, encrypted values are
/// checked for damage only.
pub fn inspect(backup: &Path, keyring: Option<&Path>) -> Result<Inspection, RestoreFailed> {
    let keyring = keyring_for(backup, keyring)?;
    let mut kinds = BTreeMap::<String, Kind>::new();
    let visit = |object: &wherry_store::BackupObject, _| {
        let name = match keys::parse(&object.key) {
            Some(key) => format!("{}/{}", key.group, key.plural),
            None => "?".to_owned(),
        };
        let kind = kinds.entry(name).or_default();
        kind.objects += 1;
        kind.bytes += object.size() as u64;
        kind.encrypted += u64::from(object.is_sealed());
        Ok::<(), RestoreFailed>(())
    };
    let content = wherry_store::read_backup(open(backup)?, keyring.as_ref(), visit)?;
    Ok(Inspection { content, kinds })
}

/// Makes the data folder of a new cluster. It appears in one step, complete.
pub fn restore(backup: &Path, options: &RestoreOptions) -> Result<RestoredCluster, RestoreFailed> {
    let data_dir = &options.data_dir;
    if !is_empty(data_dir)? {
        return Err(RestoreFailed::NotEmpty(data_dir.clone()));
    }
    let in_pki = options.pki.as_ref().map(|pki| pki.join(KEYRING_FILE));
    let named = options.keyring.clone().or(in_pki.filter(|path| path.exists()));
    let mut keyring = keyring_for(backup, named.as_deref())?;
    // A copy of the authorities that lacks the keyring is a mistake to hear of.
    if keyring.is_none() && options.pki.is_none() {
        keyring = keyring_at_its_place(backup)?;
    }

    let building = data_dir.with_extension("restoring");
    if building.exists() {
        fs::remove_dir_all(&building).map_err(file_error("remove", &building))?;
    }
    let built = build(backup, keyring.as_ref(), options, &building);
    if built.is_err() {
        // What stays is removed by the next attempt.
        let _ = fs::remove_dir_all(&building);
    }
    let restored = built?;
    fs::rename(&building, data_dir).map_err(file_error("make", data_dir))?;
    let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(file_error("sync", parent))?;
    }
    Ok(restored)
}

fn is_empty(folder: &Path) -> Result<bool, RestoreFailed> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(file_error("look into", folder)(error)),
    }
}

fn build(
    backup: &Path,
    keyring: Option<&Keyring>,
    options: &RestoreOptions,
    building: &Path,
) -> Result<RestoredCluster, RestoreFailed> {
    let pki = building.join("pki");
    pki::create_private_folder(&pki)?;
    if let Some(old) = &options.pki {
        copy_authorities(old, &pki)?;
    }
    // With the old cluster's keyring it goes on with that; else with a new one.
    if let (Some(path), true) = (&options.keyring, options.pki.is_some()) {
        let text = fs::read(path).map_err(file_error("read", path))?;
        pki::write_private(&pki.join(KEYRING_FILE), &text)?;
    }
    let (keys, _) = at_rest::Config::default().open(building)?;
    let cluster_id = rand::random();
    let target = RestoreTarget {
        folder: building.join("store"),
        cluster_id,
        member_id: FOUNDER,
        name: options.name.clone(),
        address: options.advertise.map_or_else(String::new, |address| address.to_string()),
        keys: Some(Arc::clone(&keys)),
    };
    let restored = wherry_store::restore(backup, keyring, &target)?;
    let synced = File::open(building).and_then(|building| building.sync_all());
    synced.map_err(file_error("sync", building))?;
    Ok(RestoredCluster { content: restored.content, cluster_id, revision: restored.revision })
}

/// Copies what a cluster's identity consists of: every file of the folder, for its owner alone.
fn copy_authorities(from: &Path, to: &Path) -> Result<(), RestoreFailed> {
    for name in ["ca.crt", "ca.key"] {
        if !from.join(name).is_file() {
            return Err(RestoreFailed::NoAuthority { folder: from.to_owned(), name });
        }
    }
    for entry in fs::read_dir(from).map_err(file_error("look into", from))? {
        let path = entry.map_err(file_error("look into", from))?.path();
        let meta = fs::metadata(&path).map_err(file_error("read", &path))?;
        let Some(name) = path.file_name().filter(|_| meta.is_file()) else { continue };
        if meta.len() > PKI_FILE_BYTES_MAX {
            let error = io::Error::other("it is far too large for a certificate or key");
            return Err(file_error("copy", &path)(error));
        }
        let content = fs::read(&path).map_err(file_error("read", &path))?;
        pki::write_private(&to.join(name), &content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
