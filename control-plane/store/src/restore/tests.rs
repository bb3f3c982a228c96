//! From one store's disk to another's, by way of a file.

use bytes::Bytes;

use super::*;
use crate::{Config, Cover, Engine, FOUNDER, Precondition, Store, WindowError};

/// A folder of its own, with a keyring and a file for the backup.
struct Case {
    folder: tempfile::TempDir,
    keys: Arc<Keyring>,
}

impl Case {
    fn new() -> Case {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let keys = keyring(&folder.path().join("keys"));
        Case { folder, keys }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, name: &str, keys: &Arc<Keyring>) -> Config {
        let config = Config::new(Engine::Rocks(self.path(name)), FOUNDER, "127.0.0.1:0");
        Config { keys: Some(keys.clone()), ..config }
    }

    /// Saves a backup while writers go on.
    async fn save(&self, store: &Store, with_keyring: bool) -> PathBuf {
        let path = self.path("backup");
        let backup = store.backup(with_keyring).await.expect("the member leads");
        let mut file = Vec::new();
        for frame in backup {
            file.extend(frame.expect("nothing stands against it"));
            let put = store.put("later".into(), "value".into(), Precondition::Any);
            put.await.expect("nothing stands against it");
        }
        std::fs::write(&path, file).expect("it can be written");
        path
    }

    fn target(&self, name: &str, keys: &Arc<Keyring>) -> RestoreTarget {
        RestoreTarget {
            folder: self.path(name),
            cluster_id: 77,
            member_id: FOUNDER,
            name: "new".to_owned(),
            address: "127.0.0.1:0".to_owned(),
            keys: Some(keys.clone()),
        }
    }
}

fn keyring(path: &Path) -> Arc<Keyring> {
    let cover = Cover::Prefixes(vec![b"secret/".to_vec()]);
    Arc::new(Keyring::open_or_create(path, cover).expect("it can be written").0)
}

async fn fill(store: &Store) {
    for number in 0..300 {
        let kind = if number % 4 == 0 { "secret" } else { "plain" };
        let (key, value) = (format!("{kind}/{}", number % 200), format!("the value {number}"));
        let put = store.put(key.into(), value.into(), Precondition::Any);
        put.await.expect("nothing stands against it");
    }
    store.delete("plain/1".into(), Precondition::Any).await.expect("it is there");
}

fn contents(store: &Store) -> Vec<(Bytes, Entry)> {
    store.current().range(b"", None).collect()
}

#[tokio::test]
async fn everything_comes_back_with_its_revisions_under_another_cluster() {
    let case = Case::new();
    let old = Store::open(case.config("old", &case.keys)).await.expect("it opens");
    fill(&old).await;
    let before = contents(&old);
    let newest = old.current().revision();
    let backup = case.save(&old, false).await;
    let beyond = old.current().revision();
    assert!(beyond > newest, "writes went on");
    let old_cluster = old.cluster_id();
    old.shutdown().await.expect("it stops");

    let new_keys = keyring(&case.path("new keys"));
    let target = case.target("new", &new_keys);
    let restored = restore(&backup, Some(&case.keys), &target).expect("it is sound");
    assert_eq!(restored.content.head.objects as usize, before.len());
    assert_eq!(restored.content.head.cluster_id, old_cluster);
    assert!(restored.content.sealed > 0);

    let new = Store::open(case.config("new", &new_keys)).await.expect("it opens");
    assert_eq!(new.cluster_id(), 77);
    assert!(contents(&new) == before, "keys, values and revisions are equal");
    // Whoever knew a revision of the old cluster, also one from after the backup, must begin anew.
    for known in [newest, beyond] {
        let gone = new.watch(Bytes::new(), known).err();
        assert!(matches!(gone, Some(WindowError::Gone { .. })), "{gone:?}");
    }
    let put = new.put("plain/2".into(), "new".into(), Precondition::Any);
    let entry = put.await.expect("the new cluster takes writes");
    assert!(entry.modified > newest + REVISION_STEP);
    let created = before.iter().find(|(key, _)| key == "plain/2").map(|(_, old)| old.created);
    assert_eq!(Some(entry.created), created);
    let now = contents(&new);
    new.shutdown().await.expect("it stops");

    let again = Store::open(case.config("new", &new_keys)).await.expect("it opens again");
    assert!(contents(&again) == now);
    let content = |store: &Store| store.current().len();
    assert_eq!(content(&again), now.len());
    again.shutdown().await.expect("it stops");
}

/// Two backups of the same state, before and after a restore, have the same content.
#[tokio::test]
async fn the_restored_state_hashes_to_the_same() {
    let case = Case::new();
    let old = Store::open(case.config("old", &case.keys)).await.expect("it opens");
    fill(&old).await;
    let backup = case.save(&old, true).await;
    old.shutdown().await.expect("it stops");
    let new_keys = keyring(&case.path("new keys"));
    let target = case.target("new", &new_keys);
    let restored = restore(&backup, Some(&case.keys), &target).expect("it is sound");

    let new = Store::open(case.config("new", &new_keys)).await.expect("it opens");
    let second = new.backup(false).await.expect("the member leads");
    let frames: Result<Vec<Bytes>, BackupError> = second.collect();
    let file = frames.expect("nothing stands against it").concat();
    let visit = |_: &crate::BackupObject, _| Ok::<(), BackupError>(());
    let content = read_backup(&*file, Some(&new_keys), visit).expect("it is sound");
    assert_eq!(content.content_sha256, restored.content.content_sha256);
    assert_ne!(content.file_sha256, restored.content.file_sha256);
    new.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_backup_that_cannot_be_trusted_or_opened_makes_nothing() {
    let case = Case::new();
    let old = Store::open(case.config("old", &case.keys)).await.expect("it opens");
    fill(&old).await;
    let backup = case.save(&old, false).await;
    old.shutdown().await.expect("it stops");
    let target = case.target("new", &case.keys);

    let other = keyring(&case.path("others"));
    for keys in [None, Some(&*other)] {
        let refused = restore(&backup, keys, &target);
        let needs_key = matches!(&refused, Err(RestoreError::Backup(BackupError::Key(key)))
            if *key == case.keys.newest());
        assert!(needs_key, "{refused:?}");
    }
    let mut file = std::fs::read(&backup).expect("it can be read");
    let middle = file.len() / 2;
    file[middle] ^= 1;
    std::fs::write(&backup, &file).expect("it can be written");
    let refused = restore(&backup, Some(&case.keys), &target);
    let damaged = matches!(refused, Err(RestoreError::Backup(BackupError::Damaged { .. })));
    assert!(damaged, "{refused:?}");
    assert!(!target.folder.exists(), "nothing was made");
}
