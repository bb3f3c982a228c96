//! Images and compiled code on this node's disk.
//!
//! ```text
//! images/
//!   mac.key                         32 random bytes, 0600: signs compiled code
//!   blobs/<hex>.wasm                layers by their digest
//!   refs/<hash>.json                what a namespace's reference resolved to
//!   cache/<engine hash>/<hex>.cwasm compiled code, by the layer's digest
//!   cache/<engine hash>/<hex>.json  what the image is, and the MAC over that and the code
//!   cache/<engine hash>/<hex>.world what the image wants and gives, for people
//! ```
//!
//! Loading compiled code runs it. So code is used only if its MAC under this node's key is right:
//! checked when it is first used by an agent, and after that as long as the file is unchanged (same
//! inode, size and change time, which a writer cannot set).

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::Read as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    agent::join::write_private,
    compile::{Image, world_file},
};

use super::{collect::Kept, pull::Resolved};

type HmacSha256 = Hmac<Sha256>;

/// The folder of all images.
pub struct Cache {
    root: PathBuf,
    engine: String,
    key: [u8; 32],
    /// Code whose MAC was checked. Short lookups without an await.
    checked: Mutex<HashMap<String, (Stamp, Image)>>,
    /// Digest of the one image that comes with the binary.
    laid: Mutex<Option<String>>,
}

/// What changes when a file's content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The file beside compiled code.
#[derive(Serialize, Deserialize)]
struct Seal {
    image: Image,
    mac: String,
}

/// The content of a file in `refs`.
#[derive(Serialize, Deserialize)]
struct Remembered {
    reference: String,
    manifest: String,
    layer: String,
    bytes: u64,
    /// With which credentials it was pulled; none: everybody may.
    #[serde(default)]
    access: Option<Access>,
}

/// The credentials that an image was pulled with. Who shows others asks the registry anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Names of the Pod's pull secrets.
    pub secrets: Vec<String>,
    /// What [`Cache::fingerprint`] makes of the credentials.
    pub fingerprint: String,
}

/// What a reference resolved to, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The image.
    pub resolved: Resolved,
    /// Who pulled it.
    pub access: Option<Access>,
}

impl Cache {
    /// Opens or makes the folder. Files that an interrupted download left are removed.
    pub fn open(root: PathBuf, engine: String) -> std::io::Result<Cache> {
        for folder in ["blobs", "refs", &format!("cache/{engine}")] {
            let path = root.join(folder);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            for entry in fs::read_dir(&path)? {
                let path = entry?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "tmp" || extension == "compiling")
                {
                    fs::remove_file(path)?;
                }
            }
        }
        let key_file = root.join("mac.key");
        let key = match fs::read(&key_file).ok().and_then(|bytes| bytes.try_into().ok()) {
            Some(key) => key,
            None => {
                let key: [u8; 32] = rand::random();
                write_private(&key_file, &key)?;
                key
            }
        };
        let checked = Mutex::new(HashMap::new());
        Ok(Cache { root, engine, key, checked, laid: Mutex::new(None) })
    }

    /// Removes code of engines that this binary is not any more, once no worker has them either.
    pub fn forget_other_engines(&self) {
        for entry in fs::read_dir(self.root.join("cache")).into_iter().flatten().flatten() {
            if entry.file_name() != self.engine.as_str()
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::debug!(%error, "cannot remove code of another engine");
            }
        }
    }

    /// Where a layer is or shall be.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{}.wasm", hex_of(digest)))
    }

    /// Lays the layer that comes with the binary, if it is not there; its digest.
    pub fn lay(&self, wasm: &'static [u8]) -> std::io::Result<String> {
        // Held while it is written: several containers want it at the same time.
        let mut laid = self.laid.lock().expect("nobody panics while holding it");
        let digest =
            laid.get_or_insert_with(|| format!("sha256:{}", hex::encode(Sha256::digest(wasm))));
        let blob = self.blob(digest);
        if !blob.exists() {
            write_private(&blob, wasm)?;
            // As those that were pulled: a volume may show it.
            fs::set_permissions(&blob, fs::Permissions::from_mode(0o644))?;
        }
        Ok(digest.clone())
    }

    /// Where compiled code is or shall be.
    pub fn code(&self, digest: &str) -> PathBuf {
        self.root.join("cache").join(&self.engine).join(format!("{}.cwasm", hex_of(digest)))
    }

    /// Where the compiler writes; a file beside it that no other file's name comes near.
    pub fn draft(&self, digest: &str) -> PathBuf {
        self.code(digest).with_extension("draft.tmp")
    }

    /// What a reference resolved to when `scope` last pulled it. `scope` is the namespace for a
    /// foreign registry: a namespace without the credentials does not get what another one pulled.
    pub fn remembered(&self, scope: &str, reference: &str) -> Option<Known> {
        let text = fs::read(self.remembered_file(scope, reference)).ok()?;
        let known: Remembered = serde_json::from_slice(&text).ok()?;
        let valid = known.reference == reference && self.blob(&known.layer).exists();
        let Remembered { manifest, layer, bytes, access, .. } = known;
        valid.then_some(Known { resolved: Resolved { manifest, layer, bytes }, access })
    }

    /// Credentials in a form that says nothing about them but whether others are the same.
    pub fn fingerprint(&self, credentials: &str) -> String {
        let mut mac = HmacSha256::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(b"pull credentials\0");
        mac.update(credentials.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }

    /// Notes that an image is wanted now.
    pub fn touch(&self, layer: &str) {
        let touched = fs::File::open(self.blob(layer));
        if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(layer, %error, "cannot note the use of an image");
        }
    }

    /// The images that are here.
    pub fn kept(&self) -> std::io::Result<Vec<Kept>> {
        let mut manifests: HashMap<String, BTreeSet<String>> = HashMap::new();
        for known in self.all_remembered() {
            manifests.entry(known.1.layer).or_default().insert(known.1.manifest);
        }
        let mut kept = Vec::new();
        for entry in fs::read_dir(self.root.join("blobs"))? {
            let path = entry?.path();
            let is_blob = path.extension().is_some_and(|extension| extension == "wasm");
            let Some(hex) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_blob)
            else {
                continue;
            };
            let layer = format!("sha256:{hex}");
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let code = fs::metadata(self.code(&layer)).map_or(0, |code| code.len());
            let used = metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
            kept.push(Kept {
                manifests: manifests.remove(&layer).unwrap_or_default(),
                bytes: metadata.len() + code,
                used: used.unwrap_or(Timestamp::UNIX_EPOCH),
                layer,
            });
        }
        Ok(kept)
    }

    fn all_remembered(&self) -> Vec<(PathBuf, Remembered)> {
        let entries = fs::read_dir(self.root.join("refs")).into_iter().flatten().flatten();
        let read = |entry: fs::DirEntry| {
            let path = entry.path();
            let known = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            Some((path, known))
        };
        entries.filter_map(read).collect()
    }

    /// Removes an image with everything that was made of it.
    pub fn remove(&self, layer: &str) -> std::io::Result<()> {
        // What leads to it goes first: nobody finds half an image.
        for (path, _) in self.all_remembered().iter().filter(|(_, it)| it.layer == layer) {
            fs::remove_file(path)?;
        }
        self.checked().remove(layer);
        let code = self.code(layer);
        for path in [seal_file(&code), code, self.blob(layer)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Digest of the image that comes with the binary, if it was laid.
    pub fn laid(&self) -> Option<String> {
        self.laid.lock().expect("nobody panics while holding it").clone()
    }

    /// Remembers what a reference resolved to.
    pub fn remember(
        &self,
        scope: &str,
        reference: &str,
        resolved: &Resolved,
        access: Option<Access>,
    ) -> std::io::Result<()> {
        let content = Remembered {
            reference: reference.to_owned(),
            manifest: resolved.manifest.clone(),
            layer: resolved.layer.clone(),
            bytes: resolved.bytes,
            access,
        };
        let text = serde_json::to_vec(&content).map_err(std::io::Error::other)?;
        write_private(&self.remembered_file(scope, reference), &text)
    }

    fn remembered_file(&self, scope: &str, reference: &str) -> PathBuf {
        let name = hex::encode(Sha256::digest(format!("{scope}\n{reference}")));
        self.root.join("refs").join(format!("{name}.json"))
    }

    /// Compiled code that may be loaded. `None` if there is none or it is not what this node made;
    /// then it is removed.
    pub fn load(&self, digest: &str) -> Option<Image> {
        let path = self.code(digest);
        let stamp = stamp(&path)?;
        let known = self.checked().get(digest).cloned();
        if let Some((known, image)) = known
            && known == stamp
        {
            return Some(image);
        }
        // Compiled by a version that did not write what the image is made of.
        if !world_file(&path).exists() {
            return None;
        }
        let seal: Seal = serde_json::from_slice(&fs::read(seal_file(&path)).ok()?).ok()?;
        let mac = self.mac(digest, &seal.image, &path).ok()?;
        let given = hex::decode(&seal.mac).ok()?;
        if mac.verify_slice(&given).is_err() {
            tracing::warn!(digest, "compiled code is not what this node made; compiling it again");
            let _ = fs::remove_file(&path);
            return None;
        }
        self.checked().insert(digest.to_owned(), (stamp, seal.image.clone()));
        Some(seal.image)
    }

    /// Takes in what the compiler wrote to [`Cache::draft`].
    pub fn seal(&self, digest: &str, image: &Image) -> std::io::Result<()> {
        let (path, output) = (self.code(digest), self.draft(digest));
        let mac = self.mac(digest, image, &output)?;
        let seal = Seal { image: image.clone(), mac: hex::encode(mac.finalize().into_bytes()) };
        let text = serde_json::to_vec(&seal).map_err(std::io::Error::other)?;
        write_private(&seal_file(&path), &text)?;
        fs::rename(world_file(&output), world_file(&path))?;
        fs::rename(output, &path)
    }

    /// The MAC covers everything that decides how the code is used.
    fn mac(&self, digest: &str, image: &Image, code: &Path) -> std::io::Result<HmacSha256> {
        let mut mac = HmacSha256::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        let head = serde_json::to_vec(&(&self.engine, digest, image));
        let head = head.map_err(std::io::Error::other)?;
        mac.update(&(head.len() as u64).to_be_bytes());
        mac.update(&head);
        let mut file = fs::File::open(code)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(mac);
            }
            mac.update(&buffer[..read]);
        }
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Stamp, Image)>> {
        self.checked.lock().expect("nobody panics while holding it")
    }
}

fn seal_file(code: &Path) -> PathBuf {
    code.with_extension("json")
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        bytes: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Form, Guest};

    fn image() -> Image {
        Image {
            form: Form::Component,
            guest: Guest::Handler,
            imports: vec!["wasi:http/types@0.2.0".to_owned()],
            exports: Vec::new(),
            missing: Vec::new(),
            memory_min_bytes: 65536,
        }
    }

    #[test]
    fn loads_only_what_it_sealed() {
        let folder = tempfile::tempdir().expect("a folder");
        let digest = format!("sha256:{}", "ab".repeat(32));
        let open = || Cache::open(folder.path().to_owned(), "e1".to_owned()).expect("a cache");
        let cache = open();
        assert_eq!(cache.load(&digest), None);
        fs::write(cache.draft(&digest), b"code").expect("written");
        fs::write(world_file(&cache.draft(&digest)), b"{}").expect("written");
        cache.seal(&digest, &image()).expect("sealed");
        assert_eq!(cache.load(&digest), Some(image()));
        assert_eq!(open().load(&digest), Some(image()), "the key is kept");
        let other = format!("sha256:{}", "cd".repeat(32));
        fs::copy(cache.code(&digest), cache.code(&other)).expect("copied");
        for file in [seal_file, world_file] {
            fs::copy(file(&cache.code(&digest)), file(&cache.code(&other))).expect("copied");
        }
        assert_eq!(cache.load(&other), None, "a seal is for one digest");
        fs::write(cache.code(&digest), b"edoc").expect("written");
        assert_eq!(cache.load(&digest), None, "changed after it was checked");
    }

    #[test]
    fn code_of_an_engine_stays_as_long_as_workers_have_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |engine: &str| {
            Cache::open(folder.path().to_owned(), engine.to_owned()).expect("a cache")
        };
        let digest = format!("sha256:{}", "ab".repeat(32));
        let before = open("e1").code(&digest);
        fs::write(&before, b"code").expect("written");
        let upgraded = open("e2");
        assert!(before.exists());
        fs::write(upgraded.code(&digest), b"edoc").expect("written");
        upgraded.forget_other_engines();
        assert!(!before.exists());
        assert!(upgraded.code(&digest).exists());
    }

    #[test]
    fn remembers_references_for_each_scope() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().to_owned(), "e1".to_owned()).expect("a cache");
        let layer = format!("sha256:{}", "ab".repeat(32));
        let resolved = Resolved { manifest: layer.clone(), layer, bytes: 4 };
        let access = Some(Access { secrets: Vec::new(), fingerprint: cache.fingerprint("a:b") });
        assert_ne!(cache.fingerprint("a:b"), cache.fingerprint("a:c"));
        cache.remember("team-a", "x.io/a:1", &resolved, access.clone()).expect("remembered");
        assert_eq!(cache.remembered("team-a", "x.io/a:1"), None, "its blob is not there");
        fs::write(cache.blob(&resolved.layer), b"wasm").expect("written");
        let known = Known { resolved: resolved.clone(), access };
        assert_eq!(cache.remembered("team-a", "x.io/a:1"), Some(known));
        assert_eq!(cache.remembered("team-b", "x.io/a:1"), None);

        let kept = cache.kept().expect("listed");
        assert_eq!((kept.len(), kept[0].bytes), (1, 4));
        assert!(kept[0].manifests.contains(&resolved.manifest));
        cache.remove(&resolved.layer).expect("removed");
        assert_eq!(cache.remembered("team-a", "x.io/a:1"), None);
        assert!(cache.kept().expect("listed").is_empty());
    }
}
