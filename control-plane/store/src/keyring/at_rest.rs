//! The promise itself, over real files: with a keyring a covered value is nowhere on disk, however
//! the store moves it about; with the wrong one the store does not open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{Cover, Keyring};
use crate::{Config, Engine, OpenError, Precondition, Store};

fn config(folder: &Path, keys: Option<&Arc<Keyring>>) -> Config {
    let config = Config::founder(Engine::Rocks(folder.join("store")), "127.0.0.1:0");
    Config { keys: keys.cloned(), ..config }
}

fn keyring(path: &Path) -> Arc<Keyring> {
    let cover = Cover::Prefixes(vec![b"secret/".to_vec()]);
    Arc::new(Keyring::open_or_create(path, cover).expect("it can be written").0)
}

/// What every value of a kind holds: found nowhere by chance, and left alone by compression where it
/// comes first.
fn mark(kind: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, kind.as_bytes()))
}

fn value(kind: &str, number: u32) -> String {
    format!("{kind} {number}: {}", mark(kind))
}

async fn put(store: &Store, kind: &str, number: u32) {
    let (key, value) = (format!("{kind}/{number}"), value(kind, number));
    let put = store.put(key.into(), value.into(), Precondition::Any);
    put.await.expect("nothing stands against it");
}

/// Files below a folder that contain some bytes.
fn files_with(folder: &Path, bytes: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else {
            let content = std::fs::read(&path).expect("it can be read");
            if content.windows(bytes.len()).any(|window| window == bytes.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

/// The files that hold a value of a kind.
fn leaks(folder: &Path, kind: &str) -> Vec<PathBuf> {
    files_with(folder, &mark(kind))
}

async fn fill(store: &Store) {
    for number in 0..40 {
        put(store, "secret", number).await;
        put(store, "plain", number).await;
    }
}

#[tokio::test]
async fn no_file_ever_holds_a_covered_value() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("keys");
    let keys = keyring(&path);
    let store = Store::open(config(folder.path(), Some(&keys))).await.expect("it opens");
    fill(&store).await;
    assert_eq!(leaks(folder.path(), "secret"), Vec::<PathBuf>::new(), "in the log and its WAL");

    // A rotation moves everything into files of its own.
    Keyring::rotate(&path).expect("it can be written");
    assert!(keys.reload().expect("it is sound"));
    let resealed = store.reseal().await.expect("the store runs");
    assert!(resealed >= 40, "{resealed}");
    assert_eq!(leaks(folder.path(), "secret"), Vec::<PathBuf>::new(), "after a rotation");
    assert!(!leaks(folder.path(), "plain").is_empty(), "what is not covered can be found");
    store.shutdown().await.expect("it stops");

    let store = Store::open(config(folder.path(), Some(&keyring(&path)))).await;
    let store = store.expect("it opens again");
    for number in 0..40 {
        let entry = store.current().get(format!("secret/{number}").as_bytes());
        assert_eq!(entry.expect("it is there").value, Bytes::from(value("secret", number)));
    }
    assert_eq!(store.reseal().await.expect("the store runs"), 0, "all is under the newest key");
    assert_eq!(leaks(folder.path(), "secret"), Vec::<PathBuf>::new(), "after a restart");
    store.shutdown().await.expect("it stops");
}

/// Data from before there was a keyring: found at first, gone once it was sealed.
#[tokio::test]
async fn what_was_written_in_the_open_is_sealed_and_swept_away() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let store = Store::open(config(folder.path(), None)).await.expect("it opens");
    fill(&store).await;
    store.shutdown().await.expect("it stops");
    assert!(!leaks(folder.path(), "secret").is_empty(), "the search finds what is there");

    let keys = keyring(&folder.path().join("keys"));
    let store = Store::open(config(folder.path(), Some(&keys))).await.expect("it opens");
    assert!(store.reseal().await.expect("the store runs") >= 40);
    store.shutdown().await.expect("it stops");
    // The write-ahead log of the last start goes with the next one.
    let store = Store::open(config(folder.path(), Some(&keys))).await.expect("it opens");
    store.shutdown().await.expect("it stops");
    assert_eq!(leaks(folder.path(), "secret"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_store_does_not_open_without_its_keys() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("keys");
    let keys = keyring(&path);
    let store = Store::open(config(folder.path(), Some(&keys))).await.expect("it opens");
    fill(&store).await;
    store.shutdown().await.expect("it stops");

    let other = keyring(&folder.path().join("others"));
    let refused = Store::open(config(folder.path(), Some(&other))).await.err();
    let refused = refused.expect("the key is missing");
    assert!(matches!(refused, OpenError::Key { key, .. } if key == keys.newest()), "{refused}");
    let shown = refused.to_string();
    assert!(shown.contains(&keys.newest().to_string()) && shown.contains("others"), "{shown}");
    let refused = Store::open(config(folder.path(), None)).await.err();
    let shown = refused.expect("there are no keys").to_string();
    assert!(shown.contains("it is encrypted, and there is no keyring"), "{shown}");

    let store = Store::open(config(folder.path(), Some(&keys))).await.expect("nothing was changed");
    assert_eq!(store.current().len(), 80);
    store.shutdown().await.expect("it stops");
}
