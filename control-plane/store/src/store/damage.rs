//! Data that is not what it was: bits turned over in memory and in files, and a folder put back to
//! an older copy.

use super::net::{HANG, Net, agree, end, eventually, put};
use super::*;
use crate::faults::Fault;

/// Turns a bit over in each table file of a store, where its first objects lie.
fn damage_tables(store: &Store, folder: &Path) {
    let disk = &store.inner.disk;
    disk.compact(crate::engine::Column::State).expect("the folder can be written");
    let files = std::fs::read_dir(superblock::database(folder, store.inner.anchor.folder()));
    let files = files.expect("the folder is there").map(|file| file.expect("it is listed").path());
    for table in files.filter(|path| path.extension().is_some_and(|e| e == "sst")) {
        let mut content = std::fs::read(&table).expect("it can be read");
        content[20] ^= 4;
        std::fs::write(&table, content).expect("it can be written");
    }
}

/// Nobody else has the data, so it goes on with what it has in memory, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_of_a_member_that_is_alone_are_told() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = Engine::Rocks(folder.path().to_owned());
    let store = Store::open(Config::founder(engine.clone(), "127.0.0.1:0")).await;
    let store = store.expect("the folder can be opened");
    for number in 0..50 {
        put(&store, &format!("{number}"), "value").await;
    }
    damage_tables(&store, folder.path());
    eventually("the files are looked at", async || store.health().suspicion.is_some()).await;
    let suspicion = store.health().suspicion.expect("it was there a moment ago");
    assert!(suspicion.contains("damaged") && suspicion.contains("backup save"), "{suspicion}");
    put(&store, "later", "value").await;
    assert_eq!(store.read().await.expect("the member leads").len(), 51);
    store.shutdown().await.expect("it stops");
    let refused = Store::open(Config::founder(engine, "127.0.0.1:0")).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { .. })), "{refused:?}");
}

/// A bit that turns over in a member's memory ends the member; its files are sound, and with them
/// it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_memory_is_damaged_stops() {
    let net = Net::default();
    let mut stores = net.cluster(2).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = Engine::Rocks(folder.path().to_owned());
    let faults = Faults::default();
    let odd = net.join(&stores[0].clone(), engine.clone(), &faults).await;
    put(&stores[0], "key", "value").await;
    // Where nothing is held yet, no bit can be turned over.
    agree(&[&stores[0], &odd]).await;
    faults.set("machine.flip", Fault::Error, Some(1));
    put(&stores[0], "another", "value").await;
    let reason = tokio::time::timeout(HANG, odd.stopped()).await.expect("it is found");
    assert!(reason.starts_with("the state is damaged in memory"), "{reason}");
    net.kill(&odd).await;

    let config = net.config(odd.member_id(), engine, &Faults::default());
    let again = Store::join(config, net.transport(odd.member_id())).await.expect("it goes on");
    net.plug(&again);
    stores.push(again);
    put(&stores[2], "later", "value").await;
    agree(&stores.iter().collect::<Vec<_>>()).await;
    end(stores).await;
}

/// While it runs a member reads its files again, and does not go on with damaged ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_files_are_damaged_stops() {
    let net = Net::default();
    let stores = net.cluster(2).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = Engine::Rocks(folder.path().to_owned());
    let odd = net.join(&stores[0], engine, &Faults::default()).await;
    for number in 0..30 {
        put(&stores[0], &format!("{number}"), "value").await;
    }
    agree(&[&stores[0], &odd]).await;
    damage_tables(&odd, folder.path());
    let reason = tokio::time::timeout(HANG, odd.stopped()).await.expect("it is found");
    assert!(reason.contains("damaged"), "{reason}");
    net.kill(&odd).await;
    put(&stores[1], "later", "value").await;
    end(stores).await;
}

/// A damaged log is found when its member starts, also where nobody needs it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_damaged_log_is_refused() {
    let net = Net::default();
    let stores = net.cluster(2).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = Engine::Rocks(folder.path().to_owned());
    let odd = net.join(&stores[0], engine.clone(), &Faults::default()).await;
    let entry = put(&stores[0], "key", "value").await;
    let (disk, key) = (odd.inner.disk.clone(), entry.modified.to_be_bytes());
    let record = || disk.get(crate::engine::Column::Log, &key).expect("it can be read");
    eventually("the entry is there", async || record().is_some()).await;
    let mut record = record().expect("it was there a moment ago");
    *record.last_mut().expect("a record is not empty") ^= 1;
    let mut batch = crate::engine::Batch::default();
    batch.put(crate::engine::Column::Log, Bytes::copy_from_slice(&key), record);
    disk.write(&batch, true).expect("the folder can be written");
    let id = odd.member_id();
    net.kill(&odd).await;

    let config = net.config(id, engine, &Faults::default());
    let refused = Store::join(config, net.transport(id)).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { .. })), "{refused:?}");
    end(stores).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("it can be made");
    for entry in std::fs::read_dir(from).expect("it can be listed") {
        let entry = entry.expect("it can be listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

/// The folder of a member that was stopped is put back to an older copy. Where the others remember
/// more of it, it does not start, or stops once it can ask them; a copy of all it has promised is
/// as good as the folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_put_back_to_an_older_copy_is_refused() {
    let net = Net::default();
    let stores = net.cluster(2).await;
    let place = tempfile::tempdir().expect("a temporary folder can be made");
    let (folder, older) = (place.path().join("store"), place.path().join("older"));
    let engine = || Engine::Rocks(folder.clone());
    let third = net.join(&stores[0], engine(), &Faults::default()).await;
    let id = third.member_id();
    let start = async || {
        let opened = Store::join(net.config(id, engine(), &Faults::default()), net.transport(id));
        opened.await.inspect(|store| net.plug(store))
    };
    put(&stores[0], "before", "value").await;
    agree(&[&stores[0], &third]).await;
    net.kill(&third).await;
    copy(&folder, &older);
    std::fs::remove_dir_all(&folder).expect("it is there");
    std::fs::rename(&older, &folder).expect("it is there");
    let third = start().await.expect("a copy of everything is as good");
    put(&stores[0], "since", "value").await;
    agree(&[&stores[0], &third]).await;
    net.kill(&third).await;
    copy(&folder, &older);

    let third = start().await.expect("it goes on");
    put(&stores[0], "after", "value").await;
    agree(&[&stores[0], &third]).await;
    net.kill(&third).await;
    std::fs::remove_dir_all(&folder).expect("it is there");
    std::fs::rename(&older, &folder).expect("it is there");
    let refused = start().await.err().expect("it is refused");
    assert!(matches!(refused, OpenError::Older { .. }), "{refused}");

    let others: Vec<MemberId> = stores.iter().map(Store::member_id).collect();
    net.isolate_id(id, &others);
    let third = start().await.expect("nobody can say yet what is missing");
    net.heal();
    let reason = tokio::time::timeout(HANG, third.stopped()).await.expect("it is told");
    assert!(reason.contains("older than what this member has done"), "{reason}");
    net.kill(&third).await;
    end(stores).await;
}
