//! `wasi:keyvalue`: buckets of a container, in memory or in its volumes.
//!
//! A bucket is opened by its name:
//! - an empty name or `default` is the container's bucket in memory: all its instances share it, so
//!   a handler's requests see each other's values; it is gone with the container;
//! - a path at which a volume is mounted is a bucket in that volume, with a file for each key: it
//!   lives as long as the volume, and everybody who mounts that sees the same values.
//!
//! Nobody gets more by a bucket than by the directory itself: a volume that is mounted read-only is
//! a bucket that cannot be written.
//!
//! What a bucket answers lies in the host until the guest has taken it, which it may do slowly. So a
//! large [`Answer`] is booked until the instance asks its next question.

mod folder;
mod memory;

use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::component::{HasData, Resource, ResourceTable, ResourceTableError};

use self::bindings::wasi::keyvalue::{atomics, batch, store};
pub(crate) use self::bindings::wasi::keyvalue::{
    atomics as atomics_interface, batch as batch_interface, store as store_interface,
};
use self::folder::Folder;
use self::memory::{ENTRY_BYTES, Memory};
use crate::host_memory::{HostMemory, Part};
use crate::limits::{ANSWER_BYTES_FREE, HOST_BYTES_MAX, Mount};

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        inline: "
            package wasi:keyvalue@0.2.0-draft;

            interface store {
                variant error { no-such-store, access-denied, other(string) }
                record key-response { keys: list<string>, cursor: option<u64> }
                open: func(identifier: string) -> result<bucket, error>;
                resource bucket {
                    get: func(key: string) -> result<option<list<u8>>, error>;
                    set: func(key: string, value: list<u8>) -> result<_, error>;
                    delete: func(key: string) -> result<_, error>;
                    exists: func(key: string) -> result<bool, error>;
                    list-keys: func(cursor: option<u64>) -> result<key-response, error>;
                }
            }

            interface atomics {
                use store.{bucket, error};
                increment: func(bucket: borrow<bucket>, key: string, delta: u64)
                    -> result<u64, error>;
            }

            interface batch {
                use store.{bucket, error};
                get-many: func(bucket: borrow<bucket>, keys: list<string>)
                    -> result<list<option<tuple<string, list<u8>>>>, error>;
                set-many: func(bucket: borrow<bucket>, key-values: list<tuple<string, list<u8>>>)
                    -> result<_, error>;
                delete-many: func(bucket: borrow<bucket>, keys: list<string>) -> result<_, error>;
            }

            world imports {
                import store;
                import atomics;
                import batch;
            }
        ",
        world: "imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": crate::keyvalue::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => crate::keyvalue::Error },
    });
}

/// The longest key: as a file's name it must fit.
const KEY_BYTES_MAX: usize = 200;
/// The largest value.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys in one answer; the cursor leads on.
const KEYS_PAGE: usize = 1_000;

/// Why a guest does not get what it wants of a bucket.
#[derive(Debug)]
pub(crate) enum Error {
    NoSuchStore,
    AccessDenied,
    Other(String),
}

impl From<ResourceTableError> for Error {
    fn from(error: ResourceTableError) -> Error {
        Error::Other(error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Error::AccessDenied,
            _ => Error::Other(error.to_string()),
        }
    }
}

/// The buckets of a container, shared by its instances.
pub(crate) struct Buckets {
    memory: Arc<Memory>,
    /// Mount path, folder and whether it is read-only.
    folders: Vec<(String, PathBuf, bool)>,
    host_memory: HostMemory,
}

impl Buckets {
    pub(crate) fn new(mounts: &[Mount], host_memory: &HostMemory) -> Buckets {
        let folder = |mount: &Mount| (mount.guest.clone(), mount.host.clone(), mount.read_only);
        let folders = mounts.iter().map(folder).collect();
        let memory = Arc::new(Memory::new(host_memory.part()));
        Buckets { memory, folders, host_memory: host_memory.clone() }
    }

    fn open(&self, name: &str) -> Result<Bucket, Error> {
        if matches!(name, "" | "default") {
            return Ok(Bucket::Memory(Arc::clone(&self.memory)));
        }
        let path = name.trim_end_matches('/');
        let known = self.folders.iter().find(|(guest, _, _)| guest.trim_end_matches('/') == path);
        let (_, folder, read_only) = known.ok_or(Error::NoSuchStore)?;
        let host_memory = self.host_memory.clone();
        Ok(Bucket::Folder(Arc::new(Folder::new(folder.clone(), *read_only, host_memory))))
    }
}

/// What an instance was told last, as long as the host may hold it.
pub(crate) struct Answer {
    bytes: usize,
    /// What of it is beyond the part that is free.
    booked: Part,
}

impl Answer {
    pub(crate) fn new(booked: Part) -> Answer {
        Answer { bytes: 0, booked }
    }

    /// Nothing of it is held any more.
    pub(crate) fn end(&mut self) {
        self.bytes = 0;
        self.booked.resize(0);
    }

    /// Adds so many bytes. Where there is no room for them, none of it is kept.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.booked.resize(self.bytes.saturating_sub(ANSWER_BYTES_FREE)) {
            return Ok(());
        }
        self.end();
        Err(too_much())
    }
}

fn too_much() -> Error {
    Error::Other(format!(
        "the host holds at most {HOST_BYTES_MAX} bytes for a container, what buckets tell all its \
         instances among them; ask for less at once, or later"
    ))
}

/// An open bucket.
#[derive(Clone)]
pub enum Bucket {
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "the bindings want the type public, nobody else names it")]
    Memory(Arc<Memory>),
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "the bindings want the type public, nobody else names it")]
    Folder(Arc<Folder>),
}

/// One operation on a bucket.
enum Ask {
    Get(String),
    Set(String, Vec<u8>),
    Delete(String),
    /// The keys from this place on, in order: as many as are told at once, and one more if there is.
    List(usize),
    Increment(String, u64),
}

/// Its outcome.
enum Told {
    Value(Option<Vec<u8>>),
    Keys(Vec<String>),
    Number(u64),
    Done,
}

impl Bucket {
    /// Files are read and written on threads made for waiting.
    async fn ask(&self, ask: Ask) -> Result<Told, Error> {
        check(&ask)?;
        match self {
            Bucket::Memory(memory) => memory.ask(ask),
            Bucket::Folder(folder) => {
                let folder = Arc::clone(folder);
                let asked = tokio::task::spawn_blocking(move || folder.ask(ask));
                asked.await.map_err(|error| Error::Other(error.to_string()))?
            }
        }
    }

    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        match self.ask(Ask::Get(key)).await? {
            Told::Value(value) => Ok(value),
            Told::Keys(_) | Told::Number(_) | Told::Done => {
                unreachable!("a get is answered by a value")
            }
        }
    }
}

fn check(ask: &Ask) -> Result<(), Error> {
    let (key, value) = match ask {
        Ask::Get(key) | Ask::Delete(key) | Ask::Increment(key, _) => (key, 0),
        Ask::Set(key, value) => (key, value.len()),
        Ask::List(_) => return Ok(()),
    };
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::Other(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
    }
    if value > VALUE_BYTES_MAX {
        return Err(Error::Other(format!("a value has at most {VALUE_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// The number after `delta` was added to what a value holds; no value is 0.
fn incremented(value: Option<&[u8]>, delta: u64) -> Result<u64, Error> {
    let number = match value {
        None => 0,
        Some(bytes) => {
            let text = std::str::from_utf8(bytes).ok();
            let number = text.and_then(|text| text.trim().parse::<u64>().ok());
            number.ok_or_else(|| Error::Other("the value is not a number".into()))?
        }
    };
    let sum = number.checked_add(delta);
    sum.ok_or_else(|| Error::Other("the number would be too large".into()))
}

/// What the bindings work on.
pub(crate) struct KeyValueView<'a> {
    pub(crate) buckets: &'a Arc<Buckets>,
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) answer: &'a mut Answer,
}

pub(crate) struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

impl KeyValueView<'_> {
    /// The bucket that is asked now. So the guest has taken what it was told before.
    fn bucket(&mut self, bucket: &Resource<Bucket>) -> Result<Bucket, Error> {
        self.answer.end();
        Ok(self.table.get(bucket)?.clone())
    }
}

impl store::Host for KeyValueView<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        let bucket = self.buckets.open(&identifier)?;
        Ok(self.table.push(bucket)?)
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        Ok(match error {
            Error::NoSuchStore => store::Error::NoSuchStore,
            Error::AccessDenied => store::Error::AccessDenied,
            Error::Other(text) => store::Error::Other(text),
        })
    }
}

impl store::HostBucket for KeyValueView<'_> {
    async fn get(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> Result<Option<Vec<u8>>, Error> {
        let value = self.bucket(&bucket)?.get(key).await?;
        self.answer.add(value.as_ref().map_or(0, Vec::len))?;
        Ok(value)
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        self.bucket(&bucket)?.ask(Ask::Set(key, value)).await.map(drop)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Error> {
        self.bucket(&bucket)?.ask(Ask::Delete(key)).await.map(drop)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Error> {
        Ok(self.bucket(&bucket)?.get(key).await?.is_some())
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Result<store::KeyResponse, Error> {
        let from = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let Told::Keys(mut keys) = self.bucket(&bucket)?.ask(Ask::List(from)).await? else {
            unreachable!("a list is answered by keys")
        };
        // There is a key behind these, so this is less than their number.
        let cursor = (keys.len() > KEYS_PAGE).then(|| (from + KEYS_PAGE) as u64);
        keys.truncate(KEYS_PAGE);
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for KeyValueView<'_> {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<u64, Error> {
        match self.bucket(&bucket)?.ask(Ask::Increment(key, delta)).await? {
            Told::Number(number) => Ok(number),
            Told::Value(_) | Told::Keys(_) | Told::Done => {
                unreachable!("an increment is answered by a number")
            }
        }
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        let bucket = self.bucket(&bucket)?;
        let mut found = Vec::new();
        for key in keys {
            let value = bucket.get(key.clone()).await.inspect_err(|_| self.answer.end())?;
            self.answer.add(ENTRY_BYTES + key.len() + value.as_ref().map_or(0, Vec::len))?;
            found.push(value.map(|value| (key, value)));
        }
        Ok(found)
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        for (key, value) in key_values {
            bucket.ask(Ask::Set(key, value)).await?;
        }
        Ok(())
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(&bucket)?;
        for key in keys {
            bucket.ask(Ask::Delete(key)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::atomics::Host as _;
    use super::batch::Host as _;
    use super::store::{Host as _, HostBucket as _};
    use super::*;

    fn mount(folder: &std::path::Path, guest: &str, read_only: bool) -> Mount {
        Mount { host: folder.to_owned(), guest: guest.to_owned(), read_only }
    }

    fn answer() -> Answer {
        Answer::new(HostMemory::default().part())
    }

    async fn exercise(name: &str, buckets: &Arc<Buckets>) {
        let (mut table, mut answer) = (ResourceTable::new(), answer());
        let mut view = KeyValueView { buckets, table: &mut table, answer: &mut answer };
        let bucket = view.open(name.into()).await.expect("the bucket is there");
        let again = || Resource::<Bucket>::new_borrow(bucket.rep());
        assert_eq!(view.get(again(), "a/b".into()).await.expect("get"), None);
        view.set(again(), "a/b".into(), b"1".to_vec()).await.expect("set");
        view.set(again(), "..".into(), b"dots".to_vec()).await.expect("set");
        assert!(view.exists(again(), "a/b".into()).await.expect("exists"));
        assert_eq!(view.increment(again(), "a/b".into(), 41).await.expect("add"), 42);
        assert_eq!(view.increment(again(), "new".into(), 1).await.expect("add"), 1);
        assert!(matches!(view.increment(again(), "..".into(), 1).await, Err(Error::Other(_))));
        // Another opening, as of the next request of a handler.
        let other = view.open(name.into()).await.expect("the bucket is there");
        let found = view.get(other, "a/b".into()).await.expect("get");
        assert_eq!(found.as_deref(), Some(&b"42"[..]));
        let listed = view.list_keys(again(), None).await.expect("list");
        assert_eq!((listed.keys.join(" ").as_str(), listed.cursor), (".. a/b new", None));
        let past = view.list_keys(again(), Some(u64::MAX)).await.expect("list");
        assert!(past.keys.is_empty());
        let many = view.get_many(again(), vec!["new".into(), "none".into()]).await.expect("get");
        assert_eq!(many, [Some(("new".to_owned(), b"1".to_vec())), None]);
        view.delete_many(again(), vec!["new".into(), "..".into()]).await.expect("delete");
        assert_eq!(view.list_keys(again(), None).await.expect("list").keys, ["a/b"]);
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert!(matches!(view.get(again(), long).await, Err(Error::Other(_))));
        let large = vec![0; VALUE_BYTES_MAX + 1];
        assert!(matches!(view.set(again(), "x".into(), large).await, Err(Error::Other(_))));
    }

    #[tokio::test]
    async fn buckets_in_memory_and_in_volumes_are_the_same_to_a_guest() {
        let folder = tempfile::tempdir().expect("a folder");
        let buckets =
            Arc::new(Buckets::new(&[mount(folder.path(), "/data", false)], &HostMemory::default()));
        exercise("", &buckets).await;
        exercise("/data", &buckets).await;
        let (mut table, mut answer) = (ResourceTable::new(), answer());
        let mut view = KeyValueView { buckets: &buckets, table: &mut table, answer: &mut answer };
        assert!(matches!(view.open("/other".into()).await, Err(Error::NoSuchStore)));
        assert!(matches!(view.open("other".into()).await, Err(Error::NoSuchStore)));
    }

    #[tokio::test]
    async fn a_volume_gives_no_more_as_a_bucket_than_as_a_directory() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("plain"), b"text").expect("a file");
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).expect("a link");
        let mounts = [mount(folder.path(), "/ro", true), mount(folder.path(), "/rw", false)];
        let buckets = Arc::new(Buckets::new(&mounts, &HostMemory::default()));
        let (mut table, mut answer) = (ResourceTable::new(), answer());
        let mut view = KeyValueView { buckets: &buckets, table: &mut table, answer: &mut answer };
        let bucket = view.open("/ro/".into()).await.expect("the bucket is there");
        let again = || Resource::<Bucket>::new_borrow(bucket.rep());
        let plain = view.get(again(), "plain".into()).await.expect("get");
        assert_eq!(plain.as_deref(), Some(&b"text"[..]));
        let refused = view.set(again(), "plain".into(), b"x".to_vec()).await;
        assert!(matches!(refused, Err(Error::AccessDenied)));
        assert!(view.get(again(), "link".into()).await.is_err(), "links are not followed");
        let bucket = view.open("/rw".into()).await.expect("the bucket is there");
        view.set(bucket, "link".into(), b"own".to_vec()).await.expect("the link is replaced");
        let written = std::fs::symlink_metadata(folder.path().join("link")).expect("it is there");
        assert!(written.is_file());
    }

    #[tokio::test]
    async fn a_bucket_in_memory_is_bounded() {
        let buckets = Arc::new(Buckets::new(&[], &HostMemory::default()));
        let bucket = buckets.open("default").expect("it is there");
        let value = vec![0; VALUE_BYTES_MAX];
        let mut taken = 0;
        while bucket.ask(Ask::Set(taken.to_string(), value.clone())).await.is_ok() {
            taken += 1;
            assert!(taken < 1000, "it takes everything");
        }
        assert_eq!(taken, HOST_BYTES_MAX / VALUE_BYTES_MAX - 1);
        bucket.ask(Ask::Delete("0".into())).await.expect("delete");
        bucket.ask(Ask::Set("again".into(), value)).await.expect("there is room again");
    }

    #[tokio::test]
    async fn what_instances_are_told_is_bounded_for_all_of_them() {
        const VALUES: usize = HOST_BYTES_MAX / VALUE_BYTES_MAX;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("large"), vec![0; VALUE_BYTES_MAX]).expect("a file");
        let memory = HostMemory::default();
        let buckets = Arc::new(Buckets::new(&[mount(folder.path(), "/data", false)], &memory));
        let (mut table, mut told) = (ResourceTable::new(), Answer::new(memory.part()));
        let mut one = KeyValueView { buckets: &buckets, table: &mut table, answer: &mut told };
        let (mut table, mut told) = (ResourceTable::new(), Answer::new(memory.part()));
        let mut other = KeyValueView { buckets: &buckets, table: &mut table, answer: &mut told };
        let ours = one.open("/data".into()).await.expect("the bucket is there").rep();
        let theirs = other.open("/data".into()).await.expect("the bucket is there").rep();
        let (ours, theirs) =
            (|| Resource::<Bucket>::new_borrow(ours), || Resource::<Bucket>::new_borrow(theirs));
        let keys = |count: usize| vec!["large".to_owned(); count];
        let many = one.get_many(ours(), keys(VALUES + 1)).await;
        assert!(matches!(many, Err(Error::Other(_))));
        let many = one.get_many(ours(), keys(VALUES)).await.expect("it is what there is");
        assert_eq!(many.len(), VALUES);
        // Whoever has it may not have taken it yet.
        assert!(matches!(other.get(theirs(), "large".into()).await, Err(Error::Other(_))));
        assert!(one.exists(ours(), "large".into()).await.expect("exists"));
        assert!(other.get(theirs(), "large".into()).await.is_ok());
    }

    #[tokio::test]
    async fn keys_that_a_list_gathers_are_booked() {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..KEYS_PAGE + 500 {
            let name = format!("{number:0>KEY_BYTES_MAX$}");
            std::fs::write(folder.path().join(name), b"").expect("a file");
        }
        let memory = HostMemory::default();
        let buckets = Arc::new(Buckets::new(&[mount(folder.path(), "/data", false)], &memory));
        let (mut table, mut answer) = (ResourceTable::new(), answer());
        let mut view = KeyValueView { buckets: &buckets, table: &mut table, answer: &mut answer };
        let bucket = view.open("/data".into()).await.expect("the bucket is there").rep();
        let bucket = || Resource::<Bucket>::new_borrow(bucket);
        let mut full = memory.part();
        assert!(full.resize(HOST_BYTES_MAX));
        let first = view.list_keys(bucket(), None).await.expect("one page is always told");
        assert_eq!((first.keys.len(), first.cursor), (KEYS_PAGE, Some(KEYS_PAGE as u64)));
        assert!(first.keys.is_sorted());
        assert!(matches!(view.list_keys(bucket(), first.cursor).await, Err(Error::Other(_))));
        drop(full);
        let rest = view.list_keys(bucket(), first.cursor).await.expect("there is room again");
        assert_eq!((rest.keys.len(), rest.cursor), (500, None));
        assert!(first.keys.last() < rest.keys.first());
    }
}
