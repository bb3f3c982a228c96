//! A command: one instance that runs until it exits, traps or is stopped.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::ExternType;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{self, Component, Linker, Val};
use wasmtime_wasi::p2::bindings as p2;
use wasmtime_wasi::p3::bindings as p3;

use crate::account::{Account, Budget, Metered};
use crate::arguments;
use crate::engine::Engine;
use crate::fault::{Fault, classify};
use crate::instance::{CoreHost, Host, Pod};
use crate::interfaces::{LIFECYCLE, LIFECYCLE_MODULE, track};
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
    /// One exported function of a module, in an instance of its own.
    CoreCall(wasmtime::InstancePre<CoreHost>, String),
    /// One exported function of a component.
    Call(component::InstancePre<Host>, component::ComponentExportIndex),
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

/// Links one export as the entry, if there is a function of this name. `words` are its parameters.
pub(crate) fn link_core_call(
    linker: &wasmtime::Linker<CoreHost>,
    module: &wasmtime::Module,
    export: &str,
    words: &[String],
) -> wasmtime::Result<Option<Entry>> {
    let Some(ExternType::Func(function)) = module.get_export(export) else {
        return Ok(None);
    };
    check(function.results().len(), arguments::core(function.params(), words))?;
    Ok(Some(Entry::CoreCall(linker.instantiate_pre(module)?, export.to_owned())))
}

/// The same of a component: `name`, or `interface#name`.
pub(crate) fn link_call(
    linker: &Linker<Host>,
    component: &Component,
    export: &str,
    words: &[String],
) -> wasmtime::Result<Option<Entry>> {
    let (parent, name) = match export.split_once('#') {
        Some((interface, name)) => match component.get_export_index(None, interface) {
            Some(parent) => (Some(parent), name),
            None => return Ok(None),
        },
        None => (None, export),
    };
    let found = component.get_export(parent.as_ref(), name);
    let Some((ComponentItem::ComponentFunc(function), index)) = found else {
        return Ok(None);
    };
    let types: Vec<_> = function.params().map(|(_, of)| of).collect();
    check(function.results().len(), arguments::component(&types, words))?;
    Ok(Some(Entry::Call(linker.instantiate_pre(component)?, index)))
}

/// Whether an export can be called with the words that it is given.
fn check<T>(results: usize, given: Result<T, String>) -> wasmtime::Result<()> {
    let why = match given {
        Err(why) => why,
        Ok(_) if results > 1 => "returns more than one value".to_owned(),
        Ok(_) => return Ok(()),
    };
    Err(wasmtime::Error::msg(format!("it {why}")))
}

/// Whether the image asks by itself whether it shall end.
pub(crate) fn core_hears_term(module: &wasmtime::Module) -> bool {
    module.imports().any(|import| import.module() == LIFECYCLE_MODULE)
}

pub(crate) fn hears_term(engine: &wasmtime::Engine, component: &Component) -> bool {
    component
        .component_type()
        .imports(engine)
        .any(|(name, _)| track(name).is_some() && track(name) == track(LIFECYCLE))
}

/// The entry point of a p1 module.
const START: &str = "_start";

/// A command that is ready to run.
pub struct Command {
    pod: Arc<Pod>,
    entry: Entry,
    hears_term: bool,
}

impl Command {
    pub(crate) fn new(
        engine: Engine,
        entry: Entry,
        hears_term: bool,
        config: GuestConfig,
    ) -> Command {
        let hears_term = hears_term || config.stdin.is_some();
        Command { pod: Arc::new(Pod::new(engine, config)), entry, hears_term }
    }

    /// Whether cancelling [`GuestConfig::term`] can have an effect. A command that cannot hear it
    /// gains nothing from time to end.
    pub fn hears_term(&self) -> bool {
        self.hears_term
    }

    /// Account and quota, for a guest that shall share them.
    pub fn budget(&self) -> Budget {
        Budget(Arc::clone(&self.pod.meter))
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
        let guest = Metered::new(pod.engine.clone(), meter, None, {
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
    let words = pod.config.args.get(1..).unwrap_or_default();
    let (result, refused) = match entry {
        Entry::P1(_) | Entry::CoreCall(..) => {
            let mut store = match pod.core_store() {
                Ok(store) => store,
                Err(error) => return Exit::Trap(format!("{error:#}")),
            };
            let result = match entry {
                Entry::CoreCall(entry, export) => {
                    call_core(pod, &mut store, entry, (export.as_str(), words)).await
                }
                Entry::P1(entry) => run_p1(&mut store, entry).await,
                Entry::P2(_) | Entry::P3(_) | Entry::Call(..) => {
                    unreachable!("the outer match has taken core modules only")
                }
            };
            (result, store.data().memory.refused)
        }
        Entry::P2(_) | Entry::P3(_) | Entry::Call(..) => {
            let mut store = pod.component_store();
            let result = match entry {
                Entry::P2(entry) => run_p2(&mut store, entry).await,
                Entry::P3(entry) => run_p3(&mut store, entry).await,
                Entry::Call(entry, export) => call(pod, &mut store, entry, (export, words)).await,
                Entry::P1(_) | Entry::CoreCall(..) => {
                    unreachable!("the outer match has taken components only")
                }
            };
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
    let begun = Instant::now();
    let instance = entry.instantiate_async(&mut *store).await?;
    store.data().memory.account().instantiated(begun.elapsed());
    let start = instance.get_typed_func::<(), ()>(&mut *store, START)?;
    start.call_async(&mut *store, ()).await?;
    Ok(0)
}

async fn run_p2(
    store: &mut wasmtime::Store<Host>,
    entry: &p2::CommandPre<Host>,
) -> wasmtime::Result<i32> {
    let begun = Instant::now();
    let command = entry.instantiate_async(&mut *store).await?;
    store.data().memory.account().instantiated(begun.elapsed());
    let result = command.wasi_cli_run().call_run(&mut *store).await?;
    Ok(i32::from(result.is_err()))
}

async fn run_p3(
    store: &mut wasmtime::Store<Host>,
    entry: &p3::CommandPre<Host>,
) -> wasmtime::Result<i32> {
    let begun = Instant::now();
    let command = entry.instantiate_async(&mut *store).await?;
    store.data().memory.account().instantiated(begun.elapsed());
    let result = store
        .run_concurrent(async move |accessor| command.wasi_cli_run().call_run(accessor).await)
        .await??;
    Ok(i32::from(result.is_err()))
}

async fn call_core(
    pod: &Pod,
    store: &mut wasmtime::Store<CoreHost>,
    entry: &wasmtime::InstancePre<CoreHost>,
    (export, words): (&str, &[String]),
) -> wasmtime::Result<i32> {
    let instance = entry.instantiate_async(&mut *store).await?;
    let missing = || wasmtime::Error::msg("the export is gone since it was linked");
    let function = instance.get_func(&mut *store, export).ok_or_else(missing)?;
    let (given, count) = {
        let of = function.ty(&*store);
        (arguments::core(of.params(), words), of.results().len())
    };
    let given = given.map_err(wasmtime::Error::msg)?;
    let mut results = vec![wasmtime::Val::I32(0); count];
    function.call_async(&mut *store, &given, &mut results).await?;
    Ok(told(pod, arguments::core_outcome(results.first())).await)
}

async fn call(
    pod: &Pod,
    store: &mut wasmtime::Store<Host>,
    entry: &component::InstancePre<Host>,
    (export, words): (&component::ComponentExportIndex, &[String]),
) -> wasmtime::Result<i32> {
    let instance = entry.instantiate_async(&mut *store).await?;
    let missing = || wasmtime::Error::msg("the export is gone since it was linked");
    let function = instance.get_func(&mut *store, export).ok_or_else(missing)?;
    let (given, count) = {
        let of = function.ty(&*store);
        let types: Vec<_> = of.params().map(|(_, of)| of).collect();
        (arguments::component(&types, words), of.results().len())
    };
    let given = given.map_err(wasmtime::Error::msg)?;
    let mut results = vec![Val::Bool(true); count];
    function.call_async(&mut *store, &given, &mut results).await?;
    Ok(told(pod, arguments::outcome(results.first())).await)
}

/// Prints what a call says, as the guest itself would: of a failure on standard error.
async fn told(pod: &Pod, (code, text): (i32, Option<String>)) -> i32 {
    if let Some(text) = text {
        let mut output =
            pod.output(if code == 0 { &pod.config.stdout } else { &pod.config.stderr });
        // A reader that has gone wants no text.
        let _ = output.write_all(format!("{text}\n").as_bytes()).await;
    }
    code
}
