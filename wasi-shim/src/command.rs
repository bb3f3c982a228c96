//! A command: one instance that runs until it exits, traps or is stopped.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::p2::bindings as p2;
use wasmtime_wasi::p3::bindings as p3;

use crate::account::{Account, Metered};
use crate::engine::Engine;
use crate::fault::{Fault, classify};
use crate::instance::{CoreHost, Host, Pod};
use crate::limits::GuestConfig;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned (0), failed (1) or named its own code.
    Code(i32),
    /// It did what no program may, or could not be started; with the guest's call stack. May have
    /// several lines.
    Trap(String),
    /// It needed more memory than its limit and could not go on.
    OutOfMemory,
    /// It was told to stop.
    Stopped,
}

/// Where a command is entered, linked.
pub(crate) enum Entry {
    P1(wasmtime::InstancePre<CoreHost>),
    P2(p2::CommandPre<Host>),
    P3(p3::CommandPre<Host>),
}

pub(crate) fn link_core(
    linker: &wasmtime::Linker<CoreHost>,
    module: &wasmtime::Module,
) -> wasmtime::Result<Entry> {
    if module.get_export(START).is_none() {
        return Err(wasmtime::Error::msg("it does not export the function _start"));
    }
    Ok(Entry::P1(linker.instantiate_pre(module)?))
}

pub(crate) fn link_component(
    linker: &Linker<Host>,
    component: &Component,
) -> wasmtime::Result<Entry> {
    let linked = linker.instantiate_pre(component)?;
    match p3::CommandPre::new(linked.clone()) {
        Ok(entry) => Ok(Entry::P3(entry)),
        Err(_) => Ok(Entry::P2(p2::CommandPre::new(linked)?)),
    }
}

/// The entry point of a p1 module.
const START: &str = "_start";

/// A command that is ready to run.
pub struct Command {
    pod: Arc<Pod>,
    entry: Entry,
}

impl Command {
    pub(crate) fn new(engine: Engine, entry: Entry, config: GuestConfig) -> Command {
        Command { pod: Arc::new(Pod::new(engine, config)), entry }
    }

    /// The account of this command; keep it to read it while the command runs.
    pub fn account(&self) -> Account {
        self.pod.meter.account.clone()
    }

    /// Runs to the end. When `stop` is cancelled the guest is dropped at its next yield, within
    /// about one tick, however it behaves: WASI has no signals, so there is nothing to ask it.
    /// Dropping the future stops it in the same way, without waiting for it.
    pub async fn run(self, stop: CancellationToken) -> Exit {
        let pod = Arc::clone(&self.pod);
        let meter = Arc::clone(&pod.meter);
        let entry = self.entry;
        let guest = Metered::new(pod.engine.clone(), meter, {
            let pod = Arc::clone(&pod);
            async move { execute(&pod, &entry).await }
        });
        let stopped = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => Exit::Stopped,
                exit = guest => exit,
            }
        };
        // A task, so that a panic in a host function ends it alone.
        match AbortOnDropHandle::new(tokio::spawn(stopped)).await {
            Ok(exit) => exit,
            Err(error) => Exit::Trap(format!("the host failed while it ran the guest: {error}")),
        }
    }
}

async fn execute(pod: &Pod, entry: &Entry) -> Exit {
    let (result, refused) = match entry {
        Entry::P1(entry) => {
            let mut store = pod.core_store();
            let result = run_p1(&mut store, entry).await;
            (result, store.data().memory.refused)
        }
        Entry::P2(entry) => {
            let mut store = pod.component_store();
            let result = run_p2(&mut store, entry).await;
            (result, store.data().memory.refused)
        }
        Entry::P3(entry) => {
            let mut store = pod.component_store();
            let result = run_p3(&mut store, entry).await;
            (result, store.data().memory.refused)
        }
    };
    let error = match result {
        Ok(code) => return Exit::Code(code),
        Err(error) => error,
    };
    match classify(&error, refused) {
        Fault::Exit(code) => Exit::Code(code),
        Fault::OutOfMemory | Fault::NoMemoryLeft => Exit::OutOfMemory,
        Fault::NoInstanceLeft => Exit::Trap("all instances of this worker are taken".into()),
        Fault::Trap(text) => Exit::Trap(text),
    }
}

async fn run_p1(
    store: &mut wasmtime::Store<CoreHost>,
    entry: &wasmtime::InstancePre<CoreHost>,
) -> wasmtime::Result<i32> {
    let instance = entry.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, START)?;
    start.call_async(&mut *store, ()).await?;
    Ok(0)
}

async fn run_p2(
    store: &mut wasmtime::Store<Host>,
    entry: &p2::CommandPre<Host>,
) -> wasmtime::Result<i32> {
    let command = entry.instantiate_async(&mut *store).await?;
    let result = command.wasi_cli_run().call_run(&mut *store).await?;
    Ok(i32::from(result.is_err()))
}

async fn run_p3(
    store: &mut wasmtime::Store<Host>,
    entry: &p3::CommandPre<Host>,
) -> wasmtime::Result<i32> {
    let command = entry.instantiate_async(&mut *store).await?;
    let result = store
        .run_concurrent(async move |accessor| command.wasi_cli_run().call_run(accessor).await)
        .await??;
    Ok(i32::from(result.is_err()))
}
