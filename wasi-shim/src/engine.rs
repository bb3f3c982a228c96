//! The engine: how code is compiled and loaded, and the pool that instances come from.
//!
//! Compiling happens in a throw-away process ([`compile`]), running in workers ([`Engine`]). Both
//! use [`settings`], so what one makes the other loads; [`engine_hash`] names those settings
//! together with wasmtime's version and the CPU, for caches.
//!
//! One pool serves commands and handlers alike. Its slots are address space, 4 GiB each so that the
//! guard pages make bounds checks free; what a guest may really touch is the limiter's business. A
//! slot costs memory mappings, of which a process has a limited number, and a process that reaches
//! the limit is aborted by wasmtime: so the pool is sized from the kernel's limit, and a setting
//! that could reach it is refused at the start.
//!
//! Where the kernel can tell which pages were touched (`PAGEMAP_SCAN`), the first part of a slot is
//! kept and wiped instead of being given back to the kernel: half as many system calls and page
//! faults a request. A pool serves one trust domain, so a wiping that failed would leak to a
//! neighbour only. Stacks are wiped for the same reason.
//!
//! wasmtime can run several calls in one instance at a time, as WASI 0.3 wants it; that costs a task
//! in a table for each call from guest to host, whether a guest makes use of it or not. So there are
//! two of everything: an engine without it for WASI p1 and 0.2, and beside it one for WASI 0.3, made
//! when the first such image is loaded. Code knows which of them it was compiled for.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::component::{Component, Linker};
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Precompiled, Strategy,
    WasmBacktraceDetails,
};

use crate::command::{self, Command};
use crate::fair::Fair;
use crate::fault::describe;
use crate::handler::{self, Handler, Wake};
use crate::inspect::{Form, ImageError, inspect};
use crate::instance::{CoreHost, Host};
use crate::interfaces::{component_linker, core_linker};
use crate::limits::{
    CORE_INSTANCES_MAX, GuestConfig, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX,
    TABLES_PER_MODULE_MAX,
};
use crate::ticker::Ticker;
use crate::world::{self, World};

/// Mappings of the process that are not the pool's: code, libraries, threads, files.
const MAPPINGS_OUTSIDE_POOL: u64 = 10_000;
/// Mappings of one live instance: two for its stack and its guard page (made with the pool), one or
/// two for its memory. Measured: 3.1 on average.
const MAPPINGS_PER_INSTANCE: u64 = 4;
/// The kernel's own default, for where it cannot be read.
const MAP_COUNT_DEFAULT: u64 = 65_530;
/// Instances if nobody asks for a number: a node's whole design size of Pods in one namespace.
const INSTANCES_DEFAULT: u32 = 5_000;

/// What remains of a slot's memory and tables between two instances, where pages can be scanned.
const MEMORY_BYTES_KEPT: usize = 1 << 20;
const TABLE_BYTES_KEPT: usize = 64 << 10;
/// What remains of a stack: few guests and host calls go deeper.
const STACK_BYTES_KEPT: usize = 32 << 10;

/// The guest's part of a stack, and all of it. Host functions run on the rest, and overflowing that
/// aborts the process, so it is three times as much as theirs.
const GUEST_STACK_BYTES: usize = 512 << 10;
const STACK_BYTES: usize = 2 << 20;

/// What an [`Engine`] is made of; the default is right for a worker.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Instances that may live at the same time. None: as many as a node is designed for, or as
    /// the kernel's limit of mappings allows if that is less.
    pub instances: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "{wanted} instances would need {needed} memory mappings, and this machine allows a \
         process {allowed}; ask for at most {possible}, or raise vm.max_map_count"
    )]
    TooManyInstances { wanted: u32, needed: u64, allowed: u64, possible: u32 },
    #[error("this machine allows a process only {allowed} memory mappings; raise vm.max_map_count")]
    TooFewMappings { allowed: u64 },
    #[error("could not create the Wasm engine")]
    Create(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("could not start the thread that interrupts guests")]
    Ticker(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path} is not compiled code of the expected form", path = path.display())]
    Form { path: PathBuf },
    #[error("could not load compiled code from {path}", path = path.display())]
    Load { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the image is not a {wanted}")]
    Guest { wanted: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the image exports no function {export}, and nothing else can be called")]
    NoExport { export: String },
    #[error("its export {export} cannot be called")]
    Call { export: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Runs guests of one trust domain. Cheap to clone; the last clone stops the ticker.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    calls: Calls,
    ticker: Ticker,
    fair: Arc<Fair>,
    components: Linker<Host>,
    cores: wasmtime::Linker<CoreHost>,
    /// Of the one for WASI p1 and 0.2: the one for 0.3, once it was needed. Locked while it is made.
    concurrent: Mutex<Option<Engine>>,
    /// How many instances that one may have.
    concurrent_instances: u32,
}

/// Whether several calls may run in one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// One after the other: WASI p1 and 0.2.
    Serial,
    /// At the same time: WASI 0.3.
    Concurrent,
}

impl Engine {
    pub fn new(config: &EngineConfig) -> Result<Engine, EngineError> {
        let instances = pool_instances(config.instances, map_count_max())?;
        let concurrent = pool_instances_concurrent(instances, map_count_max());
        Engine::with(Calls::Serial, instances, concurrent, Arc::new(Fair::new()))
    }

    fn with(
        calls: Calls,
        instances: u32,
        concurrent_instances: u32,
        fair: Arc<Fair>,
    ) -> Result<Engine, EngineError> {
        let create = |error: wasmtime::Error| EngineError::Create(error.into());
        let mut settings = settings(calls);
        settings.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
        let wasmtime = wasmtime::Engine::new(&settings).map_err(create)?;
        let ticker = Ticker::start(&wasmtime).map_err(EngineError::Ticker)?;
        let components = component_linker(&wasmtime, calls).map_err(create)?;
        let cores = core_linker(&wasmtime).map_err(create)?;
        let concurrent = Mutex::new(None);
        Ok(Engine(Arc::new(Inner {
            wasmtime,
            calls,
            ticker,
            fair,
            components,
            cores,
            concurrent,
            concurrent_instances,
        })))
    }

    /// The engine for WASI 0.3 beside this one.
    pub(crate) fn concurrent(&self) -> Result<Engine, EngineError> {
        let mut made = self.0.concurrent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*made {
            return Ok(engine.clone());
        }
        let instances = self.0.concurrent_instances;
        let engine = Engine::with(Calls::Concurrent, instances, 0, Arc::clone(&self.0.fair))?;
        Ok(made.insert(engine).clone())
    }

    /// Maps compiled code from a file.
    ///
    /// The file becomes machine code of this process: it must come from [`compile`] with the same
    /// [`engine_hash`], and the caller must have verified that nobody changed it since (by its MAC)
    /// and that nobody can change it while it is loaded. wasmtime refuses code of other settings,
    /// but cannot recognise malice.
    pub fn load(&self, path: &Path, form: Form) -> Result<Module, LoadError> {
        let load =
            |error: wasmtime::Error| LoadError::Load { path: path.into(), source: error.into() };
        let wasmtime = &self.0.wasmtime;
        let found = wasmtime::Engine::detect_precompiled_file(path).map_err(load)?;
        match (found, form) {
            (Some(Precompiled::Module), Form::Module) => {
                // SAFETY: the caller vouches for the file, see above.
                let module = unsafe { wasmtime::Module::deserialize_file(wasmtime, path) };
                Ok(Module { engine: self.clone(), code: Code::Core(module.map_err(load)?) })
            }
            (Some(Precompiled::Component), Form::Component) => {
                // SAFETY: as above.
                if let Ok(component) = unsafe { Component::deserialize_file(wasmtime, path) } {
                    return Ok(Module { engine: self.clone(), code: Code::Component(component) });
                }
                // Not for this engine: what is wrong with it otherwise, the other one says.
                let engine = self
                    .concurrent()
                    .map_err(|error| LoadError::Load { path: path.into(), source: error.into() })?;
                // SAFETY: as above.
                let component = unsafe { Component::deserialize_file(&engine.0.wasmtime, path) };
                Ok(Module { code: Code::Component(component.map_err(load)?), engine })
            }
            _ => Err(LoadError::Form { path: path.into() }),
        }
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.wasmtime
    }

    pub(crate) fn calls(&self) -> Calls {
        self.0.calls
    }

    pub(crate) fn fair(&self) -> &Fair {
        &self.0.fair
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }
}

/// Compiled code. Cheap to clone; holds no instance.
#[derive(Clone)]
pub struct Module {
    engine: Engine,
    code: Code,
}

#[derive(Clone)]
enum Code {
    Core(wasmtime::Module),
    Component(Component),
}

impl Module {
    /// Links the module as a command; nothing runs yet.
    pub fn command(&self, config: GuestConfig) -> Result<Command, LoadError> {
        let linked = match &self.code {
            Code::Core(module) => command::link_core(&self.engine.0.cores, module),
            Code::Component(component) => {
                command::link_component(&self.engine.0.components, component)
            }
        };
        match linked {
            Ok(entry) => {
                let hears_term = self.hears_term();
                Ok(Command::new(self.engine.clone(), entry, hears_term, config))
            }
            Err(error) => Err(LoadError::Guest { wanted: "command", source: error.into() }),
        }
    }

    /// Links one exported function (`name`, or `interface#name`) as a command: it is called in an
    /// instance of its own, and what it returns becomes the exit code or is printed. Its parameters
    /// are the arguments behind the first.
    pub fn call(&self, export: &str, config: GuestConfig) -> Result<Command, LoadError> {
        let words = config.args.get(1..).unwrap_or_default();
        let linked = match &self.code {
            Code::Core(module) => {
                command::link_core_call(&self.engine.0.cores, module, export, words)
            }
            Code::Component(component) => {
                command::link_call(&self.engine.0.components, component, export, words)
            }
        };
        let export = export.to_owned();
        match linked {
            Ok(Some(entry)) => {
                Ok(Command::new(self.engine.clone(), entry, self.hears_term(), config))
            }
            Ok(None) => Err(LoadError::NoExport { export }),
            Err(error) => Err(LoadError::Call { export, source: error.into() }),
        }
    }

    fn hears_term(&self) -> bool {
        match &self.code {
            Code::Core(module) => command::core_hears_term(module),
            Code::Component(component) => command::hears_term(self.engine.wasmtime(), component),
        }
    }

    /// Links the module as a handler; instances are made when requests come.
    pub fn handler(&self, config: GuestConfig) -> Result<Handler, LoadError> {
        let code = handler::Code::kept(self.entry()?);
        Ok(Handler::new(self.engine.clone(), code, config))
    }

    /// The same; this handler can give its code back, see [`Handler::rest`]. `wake` gets the same
    /// code again, and is called once for all requests that wait for it.
    pub fn resting_handler(
        self: &Arc<Module>,
        config: GuestConfig,
        wake: Wake,
    ) -> Result<Handler, LoadError> {
        let code = handler::Code::shared(self.entry()?, Arc::clone(self), wake);
        Ok(Handler::new(self.engine.clone(), code, config))
    }

    /// Where it is entered as a handler.
    pub(crate) fn entry(&self) -> Result<handler::Entry, LoadError> {
        let linked = match &self.code {
            Code::Core(_) => Err(wasmtime::Error::msg("a WASI p1 module cannot serve HTTP")),
            Code::Component(component) => handler::link(&self.engine.0.components, component),
        };
        linked.map_err(|error| LoadError::Guest { wanted: "handler", source: error.into() })
    }
}

/// What compiling an image gives.
#[derive(Debug)]
pub struct Compiled {
    /// Machine code for [`Engine::load`].
    pub code: Vec<u8>,
    /// What the image wants and gives, for people.
    pub world: World,
}

/// Compiles an image to machine code for [`Engine::load`].
///
/// Call this in a process made for it, with limits on its time and memory: compiling hostile code
/// can take minutes and gigabytes. The image is checked by [`inspect`] first, and that everything
/// it imports exists with the right type.
pub fn compile(wasm: &[u8]) -> Result<Compiled, ImageError> {
    let image = inspect(wasm)?;
    if !image.missing.is_empty() {
        return Err(ImageError::ImportsMissing { missing: image.missing });
    }
    compile_checked(wasm, image.form)
}

/// [`compile`] without the checks of the image as a whole; also takes the text form.
pub(crate) fn compile_checked(wasm: &[u8], form: Form) -> Result<Compiled, ImageError> {
    // What needs calls at the same time is refused by the first engine, mostly before it compiles:
    // such functions have types of their own.
    match (compile_for(Calls::Serial, wasm, form), form) {
        (Err(_), Form::Component) => compile_for(Calls::Concurrent, wasm, form),
        (compiled, _) => compiled,
    }
}

fn compile_for(calls: Calls, wasm: &[u8], form: Form) -> Result<Compiled, ImageError> {
    let failed = |error: wasmtime::Error| ImageError::Compile { reason: describe(&error) };
    let unlinkable = |error: wasmtime::Error| ImageError::Link { reason: format!("{error:#}") };
    // Without the pool: its address space does not count against the limits of this process.
    let engine = wasmtime::Engine::new(&settings(calls)).map_err(failed)?;
    match form {
        Form::Module => {
            let module = wasmtime::Module::new(&engine, wasm).map_err(failed)?;
            let linker = core_linker(&engine).map_err(unlinkable)?;
            linker.instantiate_pre(&module).map_err(unlinkable)?;
            let code = module.serialize().map_err(failed)?;
            Ok(Compiled { code, world: world::of_module(&module) })
        }
        Form::Component => {
            let component = Component::new(&engine, wasm).map_err(failed)?;
            let linker = component_linker(&engine, calls).map_err(unlinkable)?;
            linker.instantiate_pre(&component).map_err(unlinkable)?;
            let code = component.serialize().map_err(failed)?;
            Ok(Compiled { code, world: world::of_component(&engine, &component) })
        }
    }
}

/// Names what compiled code depends on besides the image: settings, wasmtime's version, the CPU.
/// Equal hashes load each other's code.
pub fn engine_hash() -> String {
    // Not keyed: the same in every process of this build.
    let mut hasher = DefaultHasher::new();
    for calls in [Calls::Serial, Calls::Concurrent] {
        let engine = wasmtime::Engine::new(&settings(calls));
        let engine = engine.expect("the settings are constant and valid");
        engine.precompile_compatibility_hash().hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// What code is compiled for. Threads, garbage collection and exceptions are not even built in.
fn settings(calls: Calls) -> Config {
    let concurrent = calls == Calls::Concurrent;
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .epoch_interruption(true)
        .wasm_memory64(false)
        .wasm_component_model(true)
        .wasm_component_model_async(concurrent)
        .concurrency_support(concurrent)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(STACK_BYTES)
        .async_stack_zeroing(true)
        // Line numbers would mean parsing an attacker's debug information in the worker; function
        // names come without it.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_PER_MODULE_MAX))
        .total_stacks(instances)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_memories_per_module(1)
        .max_tables_per_module(TABLES_PER_MODULE_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        // All that 32 bits can address; the Pod's own limit is held by its limiter.
        .max_memory_size(4 << 30)
        .async_stack_keep_resident(STACK_BYTES_KEPT);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(MEMORY_BYTES_KEPT)
            .table_keep_resident(TABLE_BYTES_KEPT);
    }
    pool
}

fn map_count_max() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(MAP_COUNT_DEFAULT)
}

/// How many instances the pool gets, or why the wanted number cannot be.
fn pool_instances(wanted: Option<u32>, allowed: u64) -> Result<u32, EngineError> {
    let possible = allowed.saturating_sub(MAPPINGS_OUTSIDE_POOL) / MAPPINGS_PER_INSTANCE;
    let possible = u32::try_from(possible).unwrap_or(u32::MAX);
    if possible == 0 {
        return Err(EngineError::TooFewMappings { allowed });
    }
    match wanted {
        None => Ok(INSTANCES_DEFAULT.min(possible)),
        Some(wanted) if wanted <= possible => Ok(wanted.max(1)),
        Some(wanted) => {
            let needed = MAPPINGS_OUTSIDE_POOL + u64::from(wanted) * MAPPINGS_PER_INSTANCE;
            Err(EngineError::TooManyInstances { wanted, needed, allowed, possible })
        }
    }
}

/// How many instances the pool for WASI 0.3 gets: as many, where the kernel's limit has room for
/// both.
fn pool_instances_concurrent(serial: u32, allowed: u64) -> u32 {
    let mappings = MAPPINGS_OUTSIDE_POOL + u64::from(serial) * MAPPINGS_PER_INSTANCE;
    let left = allowed.saturating_sub(mappings) / MAPPINGS_PER_INSTANCE;
    u32::try_from(left).unwrap_or(u32::MAX).clamp(1, serial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_fits_the_kernels_limit() {
        assert_eq!(pool_instances(None, 65_530).expect("fits"), 5_000);
        assert_eq!(pool_instances(None, 14_000).expect("fits"), 1_000);
        assert_eq!(pool_instances(Some(13_882), 65_530).expect("fits"), 13_882);
        let error = pool_instances(Some(20_000), 65_530).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "20000 instances would need 90000 memory mappings, and this machine allows a process \
             65530; ask for at most 13882, or raise vm.max_map_count"
        );
        assert!(matches!(pool_instances(None, 9_000), Err(EngineError::TooFewMappings { .. })));
        assert_eq!(pool_instances_concurrent(5_000, 65_530), 5_000);
        assert_eq!(pool_instances_concurrent(12_000, 65_530), 1_882);
        assert_eq!(pool_instances_concurrent(13_882, 65_530), 1);
    }

    #[test]
    fn the_hash_is_stable() {
        assert_eq!(engine_hash(), engine_hash());
        assert_eq!(engine_hash().len(), 16);
    }

    /// What tenants do not get, whatever features other crates may one day switch on in wasmtime.
    #[test]
    fn proposals_for_tenants_stay_off() {
        let cases = [
            ("64-bit memory", "(module (memory i64 1))"),
            ("shared memory", "(module (memory 1 1 shared))"),
            ("garbage collection", "(module (type (struct (field i32))))"),
            ("exceptions", "(module (tag))"),
        ];
        for (name, text) in cases {
            let result = compile_checked(text.as_bytes(), Form::Module);
            assert!(matches!(result, Err(ImageError::Compile { .. })), "{name}");
        }
    }
}
