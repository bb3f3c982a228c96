//! Files that an instance opens, by the function behind its `open-at`.

use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime::{AsContextMut, Store};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;

use super::engine;
use crate::files::{list_p2, next_p2, open_p2, read_p3};
use crate::instance::{Host, Pod};
use crate::limits::{FILE_HANDLES_MAX, OPEN_FILES_MAX, OPEN_FILES_MAX_TOTAL};
use crate::{GuestConfig, Mount};

/// Opens a file in a directory of the table; it is made if it is not there.
async fn open(
    store: &mut Store<Host>,
    directory: u32,
    path: &str,
) -> Result<Resource<Descriptor>, p2::ErrorCode> {
    let given = (
        Resource::new_borrow(directory),
        p2::PathFlags::empty(),
        path.to_owned(),
        p2::OpenFlags::CREATE,
        p2::DescriptorFlags::READ | p2::DescriptorFlags::WRITE,
    );
    open_p2(store.as_context_mut(), given).await.expect("it is no trap").0
}

#[tokio::test]
async fn an_instance_opens_so_many_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (host, guest) = (folder.path().to_owned(), "/data".to_owned());
    let mounts = vec![Mount { host, guest, read_only: false }];
    let pod = Pod::new(engine(), GuestConfig { mounts, ..GuestConfig::default() });
    let mut store = pod.component_store();
    let listed = store.data_mut().own_preopens().get_directories().expect("the volume is there");
    let data = listed.first().expect("one volume").0.rep();
    let mut held = Vec::new();
    for number in 0..OPEN_FILES_MAX {
        held.push(open(&mut store, data, &number.to_string()).await.expect("there is room"));
    }
    let refused = open(&mut store, data, "more").await;
    assert!(matches!(refused, Err(p2::ErrorCode::InsufficientMemory)));
    assert!(!folder.path().join("more").exists(), "what is refused is not made");
    assert!(store.data_mut().own_preopens().get_directories().is_err(), "nor listed again");
    let last = held.pop().expect("it holds some");
    store.data_mut().own_files().table.delete(last).expect("it is in the table");
    open(&mut store, data, "more").await.expect("there is room again");
}

#[tokio::test]
async fn streams_of_wasi_0_3_count_as_others_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let (host, guest) = (folder.path().to_owned(), "/data".to_owned());
    let mounts = vec![Mount { host, guest, read_only: false }];
    let engine = engine().concurrent().expect("an engine");
    let pod = Pod::new(engine, GuestConfig { mounts, ..GuestConfig::default() });
    let mut store = pod.component_store();
    let listed = store.data_mut().own_preopens().get_directories().expect("the volume is there");
    let data = listed.first().expect("one volume").0.rep();
    let opened = open(&mut store, data, "file").await.expect("there is room").rep();
    for _ in 0..2 * FILE_HANDLES_MAX {
        let given = (Resource::new_borrow(opened), 0);
        // Nobody reads it; what it would hold stays with the store.
        read_p3(store.as_context_mut(), given).map(drop).expect("it is no trap");
    }
    let opened = Resource::<Descriptor>::new_borrow(opened);
    let view = store.data_mut().own_files();
    let Descriptor::File(file) = view.table.get(&opened).expect("it is in the table") else {
        unreachable!("it is a file")
    };
    assert_eq!(Arc::strong_count(&file.file), FILE_HANDLES_MAX);
}

#[tokio::test]
async fn a_directory_is_listed_entry_by_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a", "b", "c"] {
        std::fs::write(folder.path().join(name), "").expect("a file");
    }
    let (host, guest) = (folder.path().to_owned(), "/data".to_owned());
    let mounts = vec![Mount { host, guest, read_only: true }];
    let pod = Pod::new(engine(), GuestConfig { mounts, ..GuestConfig::default() });
    let mut store = pod.component_store();
    let listed = store.data_mut().own_preopens().get_directories().expect("the volume is there");
    let data = listed.first().expect("one volume").0.rep();
    let stream = list_p2(store.as_context_mut(), (Resource::new_borrow(data),)).await;
    let stream = stream.expect("it is no trap").0.expect("it is a directory").rep();
    let mut names = Vec::new();
    loop {
        let next = next_p2(store.as_context_mut(), (Resource::new_borrow(stream),)).await;
        match next.expect("it is no trap").0.expect("it can be read") {
            Some(entry) => names.push(entry.name),
            None => break,
        }
    }
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
}

/// Each open file of a core module is one of them.
#[test]
fn the_resources_of_a_core_module_are_bounded() {
    let pod = Pod::new(engine(), GuestConfig::default());
    let mut store = pod.core_store().expect("it has no volumes");
    let table = store.data_mut().wasi().ctx().table;
    let held = (0..OPEN_FILES_MAX_TOTAL * 2).take_while(|each| table.push(*each).is_ok()).count();
    assert_eq!(held, OPEN_FILES_MAX_TOTAL);
}
