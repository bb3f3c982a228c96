//! From a store, by way of a file, to the data folder of another cluster.

use wherry_store::{Config, Engine, Precondition, Store};

use super::*;

struct Case {
    folder: tempfile::TempDir,
    backup: PathBuf,
    keyring: PathBuf,
}

impl Case {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, name: &str) -> RestoreOptions {
        RestoreOptions {
            data_dir: self.path(name),
            pki: None,
            keyring: Some(self.keyring.clone()),
            name: "new".to_owned(),
            advertise: None,
        }
    }
}

async fn case() -> Case {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keyring = folder.path().join("keys");
    let encryption = at_rest::Config { keyring: Some(keyring.clone()), everything: false };
    let (keys, _) = encryption.open(folder.path()).expect("it can be written");
    let config = Config::new(Engine::Memory, FOUNDER, "");
    let store = Store::open(Config { keys: Some(keys), ..config }).await.expect("it opens");
    for (plural, name) in [("secrets", "a"), ("secrets", "b"), ("pods", "c")] {
        let key = keys::object("", plural, "default", name);
        let put = store.put(key.into(), "the value".into(), Precondition::Any);
        put.await.expect("nothing stands against it");
    }
    let frames: Result<Vec<_>, _> = store.backup(false).await.expect("it leads").collect();
    let backup = folder.path().join("backup");
    fs::write(&backup, frames.expect("it can be made").concat()).expect("it can be written");
    store.shutdown().await.expect("it stops");
    Case { folder, backup, keyring }
}

async fn objects_in(data_dir: &Path) -> usize {
    let encryption = at_rest::Config::default();
    let (keys, made) = encryption.open(data_dir).expect("it is sound");
    assert!(!made, "the keyring is there");
    let config = Config::new(Engine::Rocks(data_dir.join("store")), FOUNDER, "");
    let store = Store::open(Config { keys: Some(keys), ..config }).await.expect("it opens");
    let objects = store.current().len();
    store.shutdown().await.expect("it stops");
    objects
}

#[tokio::test]
async fn a_backup_is_counted_by_type() {
    let case = case().await;
    let found = inspect(&case.backup, None).expect("it is sound");
    let shown: Vec<String> = found
        .kinds
        .iter()
        .map(|(name, kind)| format!("{name} {} {}", kind.objects, kind.encrypted))
        .collect();
    assert_eq!(shown, ["/pods 1 0", "/secrets 2 2"]);
    assert_eq!(found.content.content_sha256, None);
    let with_keys = inspect(&case.backup, Some(&case.keyring)).expect("it is sound");
    assert!(with_keys.content.content_sha256.is_some());
}

#[tokio::test]
async fn a_new_cluster_has_new_keys_and_the_old_objects() {
    let case = case().await;
    let options = case.options("new");
    let restored = restore(&case.backup, &options).expect("it is sound");
    assert_eq!(restored.content.head.objects, 3);
    assert_eq!(objects_in(&options.data_dir).await, 3);
    let keyring = |path: &Path| fs::read_to_string(path).expect("it can be read");
    let own = options.data_dir.join("pki").join(KEYRING_FILE);
    assert_ne!(keyring(&own), keyring(&case.keyring));

    let refused = restore(&case.backup, &options);
    assert!(matches!(refused, Err(RestoreFailed::NotEmpty(_))), "{refused:?}");
}

/// As somebody does who knows two commands.
#[tokio::test]
async fn the_keyring_is_found_where_the_backup_was_made() {
    let case = case().await;
    let named = case.options("new");
    let options = RestoreOptions { keyring: None, ..named };
    restore(&case.backup, &options).expect("it is sound");
    assert_eq!(objects_in(&options.data_dir).await, 3);

    // What is no keyring, or not that one, is as good as none.
    let options = RestoreOptions { data_dir: case.path("other"), ..options };
    for text in ["something else", ""] {
        fs::write(&case.keyring, text).expect("it can be written");
        let refused = restore(&case.backup, &options);
        assert!(matches!(refused, Err(RestoreFailed::Backup(BackupError::Key(_)))), "{refused:?}");
    }
    fs::remove_file(&case.keyring).expect("it is there");
    let refused = restore(&case.backup, &options);
    assert!(matches!(refused, Err(RestoreFailed::Backup(BackupError::Key(_)))), "{refused:?}");
    let encryption = at_rest::Config { keyring: Some(case.keyring.clone()), everything: false };
    encryption.open(case.folder.path()).expect("it can be written");
    let refused = restore(&case.backup, &options);
    assert!(matches!(refused, Err(RestoreFailed::Backup(BackupError::Key(_)))), "{refused:?}");
}

#[tokio::test]
async fn with_the_old_authorities_it_goes_on_with_them_and_their_keyring() {
    let case = case().await;
    let old = case.path("old-pki");
    pki::Pki::load_or_create(&old).expect("it can be made");
    fs::copy(&case.keyring, old.join(KEYRING_FILE)).expect("it can be copied");
    let mut options =
        RestoreOptions { pki: Some(old.clone()), keyring: None, ..case.options("new") };
    restore(&case.backup, &options).expect("it is sound");
    assert_eq!(objects_in(&options.data_dir).await, 3);
    for name in ["ca.crt", "ca.key", "traffic-ca.crt", "traffic-ca.key", KEYRING_FILE] {
        let read = |folder: &Path| fs::read(folder.join(name)).expect("it can be read");
        assert_eq!(read(&options.data_dir.join("pki")), read(&old), "{name}");
    }
    options.data_dir = case.path("other");
    options.pki = Some(case.folder.path().to_owned());
    let refused = restore(&case.backup, &options);
    assert!(matches!(refused, Err(RestoreFailed::NoAuthority { .. })), "{refused:?}");
    fs::remove_file(old.join(KEYRING_FILE)).expect("it is there");
    options.pki = Some(old);
    let refused = restore(&case.backup, &options);
    assert!(matches!(refused, Err(RestoreFailed::Backup(BackupError::Key(_)))), "{refused:?}");
}

/// Nothing is left behind by a restore that failed.
#[tokio::test]
async fn a_failed_restore_leaves_nothing() {
    let case = case().await;
    let mut file = fs::read(&case.backup).expect("it can be read");
    *file.last_mut().expect("it is not empty") ^= 1;
    fs::write(&case.backup, file).expect("it can be written");
    let options = case.options("new");
    let refused = restore(&case.backup, &options);
    let damaged = matches!(refused, Err(RestoreFailed::Backup(BackupError::Damaged { .. })));
    assert!(damaged, "{refused:?}");
    let mut left: Vec<_> = fs::read_dir(case.folder.path())
        .expect("it is there")
        .map(|entry| entry.expect("it can be listed").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["backup", "keys"]);
}
