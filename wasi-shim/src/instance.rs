//! One running copy of a guest: its host state, what it may use, and how it starts.
//!
//! Everything that must hold before the first instruction of the guest (start functions run during
//! instantiation) is set here, in one place per form: the limiter, the epoch deadline, the bounds
//! on handles and on copied data.

use std::sync::{Arc, Mutex, OnceLock};

use futures::FutureExt;
use tokio::sync::Semaphore;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::clocks::WasiClocksView as _;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{FieldMapError, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::account::{Account, Meter, Metered, Reserved, is_stopped};
use crate::clocks::ClockView;
use crate::engine::{Calls, Engine};
use crate::environment::EnvironmentView;
use crate::files::{Common, FilesView, OpenFiles};
use crate::http::{Hooks, Outgoing};
use crate::input::{Stdin, Term};
use crate::keyvalue::{Answer, Buckets, KeyValueView};
use crate::limits::{
    CORE_INSTANCES_MAX, FIELDS_BYTES_MAX, GuestConfig, HANDLES_MAX, HOSTCALL_BYTES_MAX,
    MEMORIES_MAX, OPEN_FILES_MAX_TOTAL, RANDOM_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX,
};
use crate::logging::LoggingView;
use crate::messages::Messages;
use crate::output::{Output, OutputPipe};
use crate::poll::PollView;
use crate::preopens::{PreopensView, perms};
use crate::sockets::{Sockets, SocketsView};

/// Ticks after which a guest is looked at: each.
const LOOK_TICKS: u64 = 1;

/// A guest as it is configured, shared by its instances.
pub(crate) struct Pod {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<GuestConfig>,
    pub(crate) meter: Arc<Meter>,
    outgoing: Outgoing,
    outgoing_places: Arc<Semaphore>,
    socket_places: Arc<Semaphore>,
    open_files: Arc<Mutex<Common>>,
    /// The environment as `wasi:config` wants it, made for all instances when the first one asks.
    variables: Arc<OnceLock<WasiConfigVariables>>,
    buckets: Arc<Buckets>,
}

/// What sending a guest's requests takes is at its Pod's expense, and waits as its guests do: asking
/// costs those that are asked no more than being asked by a hundred clients elsewhere.
fn errands(engine: &Engine, meter: &Arc<Meter>, outgoing: &Outgoing) -> Outgoing {
    let (engine, meter, outgoing) = (engine.clone(), Arc::clone(meter), Arc::clone(outgoing));
    Arc::new(move |request, timeouts| {
        let sending = outgoing(request, timeouts);
        Metered::new(engine.clone(), Arc::clone(&meter), None, sending).boxed()
    })
}

impl Pod {
    pub(crate) fn new(engine: Engine, config: GuestConfig) -> Pod {
        let meter = match &config.budget {
            Some(budget) => Arc::clone(&budget.0),
            None => Arc::new(Meter::new(config.limits.cpu, config.limits.cpu_weight)),
        };
        let outgoing = errands(&engine, &meter, &config.outgoing);
        let outgoing_places = Arc::new(Semaphore::new(config.limits.outgoing_requests));
        let socket_places = Arc::new(Semaphore::new(config.limits.sockets));
        let buckets = Arc::new(Buckets::new(&config.mounts, &meter.host_memory));
        Pod {
            engine,
            config: Arc::new(config),
            meter,
            outgoing,
            outgoing_places,
            socket_places,
            open_files: Arc::default(),
            variables: Arc::default(),
            buckets,
        }
    }

    fn context(&self) -> WasiCtxBuilder {
        // The machine's sockets and names are never a guest's; its own are in `sockets`. Files, input
        // and the host's own environment are denied by default.
        let mut context = WasiCtx::builder();
        context
            .stdout(self.output(&self.config.stdout))
            .stderr(self.output(&self.config.stderr))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(RANDOM_BYTES_MAX);
        if let Some(input) = &self.config.stdin {
            let (input, term) = (input.clone(), self.config.term.clone());
            context.stdin(Stdin { input, term, terminal: self.config.terminal });
        }
        context
    }

    pub(crate) fn output(&self, output: &Output) -> OutputPipe {
        OutputPipe::new(Arc::clone(output), self.config.room.clone(), self.config.terminal)
    }

    /// Where the memory of its instances is booked: beside that of the guest whose budget it shares.
    pub(crate) fn memory_account(&self) -> &Account {
        match self.config.budget {
            Some(_) => self.meter.account.beside(),
            None => &self.meter.account,
        }
    }

    fn memory(&self) -> MemoryLimiter {
        let limits = &self.config.limits;
        let account = self.memory_account().clone();
        MemoryLimiter::new(account, limits.memory_bytes, limits.memory_bytes_total)
    }

    /// The state of a component that is about to be instantiated.
    pub(crate) fn component_store(&self) -> Store<Host> {
        self.component_store_in(Reserved::default())
    }

    /// The same, with memory that is booked for it.
    pub(crate) fn component_store_in(&self, reserved: Reserved) -> Store<Host> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        let hooks = Hooks {
            outgoing: Arc::clone(&self.outgoing),
            carried: Vec::new(),
            places: Arc::clone(&self.outgoing_places),
            apart: self.engine.calls() == Calls::Concurrent,
        };
        let wasi = self.context().build();
        let sockets = Sockets {
            network: Arc::clone(&self.config.network),
            places: Arc::clone(&self.socket_places),
        };
        let mut memory = self.memory();
        memory.reserved = reserved;
        let messages = Messages::new(self.meter.host_memory.part());
        let answer = Answer::new(self.meter.host_memory.part());
        let log = Arc::clone(&self.config.stderr);
        let host_memory = self.meter.host_memory.clone();
        let files = OpenFiles::new(Arc::clone(&self.open_files), log, host_memory);
        let own = Own {
            config: Arc::clone(&self.config),
            variables: Arc::clone(&self.variables),
            buckets: Arc::clone(&self.buckets),
        };
        let host = Host { wasi, table, http, hooks, messages, answer, sockets, files, own, memory };
        let mut store = Store::new(self.engine.wasmtime(), host);
        store.limiter(|host| &mut host.memory);
        store.set_max_component_handles(HANDLES_MAX);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        set_epochs(&mut store);
        store
    }

    /// The state of a p1 module that is about to be instantiated. Fails if a directory of the guest is
    /// gone.
    pub(crate) fn core_store(&self) -> wasmtime::Result<Store<CoreHost>> {
        // A module of WASI p1 has its arguments, variables and directories in its context.
        let mut context = self.context();
        context.args(&self.config.args).envs(&self.config.env[..]);
        for mount in &self.config.mounts {
            let opened = context.preopened_dir(&mount.host, &mount.guest, perms(mount));
            opened.map_err(|error| {
                error.context(format!("open the volume that is mounted at {}", mount.guest))
            })?;
        }
        let mut wasi = context.build_p1();
        wasi.ctx().table.set_max_capacity(OPEN_FILES_MAX_TOTAL);
        let host = CoreHost { wasi, term: self.config.term.clone(), memory: self.memory() };
        let mut store = Store::new(self.engine.wasmtime(), host);
        store.limiter(|host| &mut host.memory);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        set_epochs(&mut store);
        Ok(store)
    }
}

fn set_epochs<T: 'static>(store: &mut Store<T>) {
    store.set_epoch_deadline(LOOK_TICKS);
    // This says that only async calls are made; what happens at a tick is said again below.
    store.epoch_deadline_async_yield_and_update(LOOK_TICKS);
    store.epoch_deadline_callback(|_| {
        Ok(match is_stopped() {
            true => UpdateDeadline::Yield(LOOK_TICKS),
            false => UpdateDeadline::Continue(LOOK_TICKS),
        })
    });
}

/// The host state of a component.
pub(crate) struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: Hooks,
    messages: Messages,
    /// What a bucket has told it last.
    answer: Answer,
    sockets: Sockets,
    files: OpenFiles,
    own: Own,
    pub(crate) memory: MemoryLimiter,
}

/// What a container has that all its instances share.
struct Own {
    config: Arc<GuestConfig>,
    variables: Arc<OnceLock<WasiConfigVariables>>,
    buckets: Arc<Buckets>,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl Host {
    /// From now on the instance answers a request with these headers.
    pub(crate) fn answers(&mut self, headers: &http::HeaderMap) {
        self.hooks.carry(headers);
    }

    /// The instance has answered a request and waits for another: it has taken what it was told.
    pub(crate) fn rests(&mut self) {
        self.answer.end();
    }

    /// Books so many bytes more of headers and bodies that the guest makes, or says in wasmtime's
    /// words that they are too many.
    pub(crate) fn make_room(&mut self, bytes: usize) -> Result<(), FieldMapError> {
        self.messages.make_room(bytes, &mut self.table)
    }

    /// What `wasi:cli/environment` reads.
    pub(crate) fn own_environment(&mut self) -> EnvironmentView<'_> {
        EnvironmentView(&self.own.config)
    }

    /// The container's directories, for the bindings.
    pub(crate) fn own_preopens(&mut self) -> PreopensView<'_> {
        let mounts = &self.own.config.mounts;
        PreopensView { mounts, files: &mut self.files, table: &mut self.table }
    }

    /// The files that the instance has open, for the bindings.
    pub(crate) fn own_files(&mut self) -> FilesView<'_> {
        FilesView { files: &mut self.files, table: &mut self.table }
    }

    /// What `wasi:io/poll` works on.
    pub(crate) fn own_poll(&mut self) -> PollView<'_> {
        PollView(&mut self.table)
    }

    /// What `wasi:clocks/monotonic-clock` works on.
    pub(crate) fn own_clock(&mut self) -> ClockView<'_> {
        ClockView(self.clocks())
    }

    /// What `wasi:config` reads.
    pub(crate) fn own_config(&mut self) -> WasiConfig<'_> {
        let Own { config, variables, .. } = &self.own;
        WasiConfig::new(variables.get_or_init(|| config.env.iter().cloned().collect()))
    }

    /// The container's buckets, for the bindings.
    pub(crate) fn own_buckets(&mut self) -> KeyValueView<'_> {
        let Host { own, table, answer, .. } = self;
        KeyValueView { buckets: &own.buckets, table, answer }
    }

    /// Where `wasi:logging` goes.
    pub(crate) fn own_log(&mut self) -> LoggingView<'_> {
        let config = &self.own.config;
        LoggingView { output: &config.stderr, room: config.room.as_ref() }
    }

    /// Cancelled when the guest shall end by itself.
    pub(crate) fn term(&self) -> &Term {
        &self.own.config.term
    }

    /// The guest's sockets, for the bindings.
    pub(crate) fn own_sockets(&mut self) -> SocketsView<'_> {
        SocketsView { sockets: &mut self.sockets, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// The host state of a p1 module.
pub(crate) struct CoreHost {
    wasi: WasiP1Ctx,
    pub(crate) term: Term,
    pub(crate) memory: MemoryLimiter,
}

impl CoreHost {
    pub(crate) fn wasi(&mut self) -> &mut WasiP1Ctx {
        &mut self.wasi
    }

    /// A state that no guest ever sees, to list what the linker holds.
    #[cfg(test)]
    pub(crate) fn for_linker_test() -> CoreHost {
        let memory = MemoryLimiter::new(Account::default(), 0, 0);
        CoreHost { wasi: WasiCtx::builder().build_p1(), term: Term::new(), memory }
    }
}

/// What the limiter last had to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Nothing,
    /// More than the instance's own limit.
    OwnMemory,
    /// More than is left for all instances of the Pod.
    CommonMemory,
}

/// Holds one instance to its memory and books it on the Pod's account.
///
/// A refused growth is not yet an error: `memory.grow` says no and the guest decides. Allocators
/// that cannot go on trap, and then `refused` tells why.
pub(crate) struct MemoryLimiter {
    account: Account,
    bytes_max: u64,
    bytes_max_total: u64,
    /// Booked already: taken first as it grows.
    reserved: Reserved,
    /// Bytes of all memories of this instance.
    held: u64,
    /// What the last call granted, in case the allocator then fails.
    last_grant: u64,
    /// What it would have had if others had not had that.
    wanted: u64,
    pub(crate) refused: Refused,
}

impl MemoryLimiter {
    fn new(account: Account, bytes_max: u64, bytes_max_total: u64) -> MemoryLimiter {
        account.instance_started();
        MemoryLimiter {
            reserved: Reserved::default(),
            account,
            bytes_max,
            bytes_max_total,
            held: 0,
            last_grant: 0,
            wanted: 0,
            refused: Refused::Nothing,
        }
    }

    /// Its instance has the memory that it needs for now.
    pub(crate) fn made(&self) {
        self.reserved.give_back();
    }

    /// What is booked for its instance.
    pub(crate) fn reserved(&self) -> &Reserved {
        &self.reserved
    }

    /// Bytes of all memories of this instance.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// What it last asked for in all and did not get, because others had it.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Its instance has ended, and what it has will be gone in a moment.
    pub(crate) fn let_go(&mut self) {
        self.account.give_memory_back(std::mem::take(&mut self.held));
    }

    /// The account that it books on.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.last_grant = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The image's own bound, not ours.
            return Ok(false);
        }
        let more = u64::try_from(desired.saturating_sub(current)).unwrap_or(u64::MAX);
        if self.held.saturating_add(more) > self.bytes_max {
            self.refused = Refused::OwnMemory;
            return Ok(false);
        }
        let booked = self.reserved.take(more);
        let unbooked = more - booked;
        if unbooked > 0 && !self.account.take_memory(unbooked, self.bytes_max_total) {
            self.reserved.put_back(booked);
            self.refused = Refused::CommonMemory;
            self.wanted = self.held.saturating_add(more);
            return Ok(false);
        }
        self.held += more;
        self.last_grant = more;
        // The guest got along after an earlier refusal, so that explains nothing any more.
        self.refused = Refused::Nothing;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.held -= self.last_grant;
        self.account.give_memory_back(self.last_grant);
        self.last_grant = 0;
        self.refused = Refused::OwnMemory;
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.reserved.give_back();
        self.account.give_memory_back(self.held);
        self.account.instance_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bytes_max: u64, bytes_max_total: u64) -> MemoryLimiter {
        MemoryLimiter::new(Account::default(), bytes_max, bytes_max_total)
    }

    #[test]
    fn growth_stops_at_the_instance_and_at_the_pod() {
        let mut limiter = limiter(100, 150);
        assert!(limiter.memory_growing(0, 60, None).expect("never an error"));
        assert!(!limiter.memory_growing(60, 101, None).expect("never an error"));
        assert_eq!(limiter.refused, Refused::OwnMemory);
        assert!(limiter.account.take_memory(90, 150), "another instance");
        assert!(!limiter.memory_growing(60, 70, None).expect("never an error"));
        assert_eq!(limiter.refused, Refused::CommonMemory);
        let account = limiter.account.clone();
        drop(limiter);
        assert_eq!(account.usage().memory_bytes, 90);
    }

    #[test]
    fn what_is_reserved_is_an_instances_own() {
        let account = Account::default();
        let mut limiter = MemoryLimiter::new(account.clone(), 100, 100);
        limiter.reserved = account.reserve(60, 100).expect("all is free");
        assert!(account.take_memory(40, 100), "another instance");
        assert!(account.reserve(1, 100).is_none());
        assert_eq!(account.usage().memory_bytes, 40, "nobody has it yet");
        assert!(limiter.memory_growing(0, 50, None).expect("never an error"));
        assert_eq!(account.usage().memory_bytes, 90);
        assert!(!limiter.memory_growing(50, 70, None).expect("never an error"));
        assert_eq!((account.taken_bytes(), account.usage().memory_bytes), (100, 90), "as before");
        limiter.made();
        assert_eq!(account.taken_bytes(), 90, "what it did not need is free");
        drop(limiter);
        assert_eq!(account.usage().memory_bytes, 40);
    }

    #[test]
    fn what_was_let_go_is_given_back_once() {
        let mut limiter = limiter(100, 100);
        assert!(limiter.memory_growing(0, 60, None).expect("never an error"));
        limiter.let_go();
        let account = limiter.account.clone();
        assert!(account.take_memory(100, 100), "it is another's already");
        assert_eq!(account.usage().instances_live, 1);
        drop(limiter);
        let usage = account.usage();
        assert_eq!((usage.memory_bytes, usage.instances_live), (100, 0));
    }

    #[test]
    fn an_images_own_maximum_is_not_our_refusal() {
        let mut limiter = limiter(100, 100);
        assert!(!limiter.memory_growing(0, 20, Some(10)).expect("never an error"));
        assert_eq!(limiter.refused, Refused::Nothing);
    }

    #[test]
    fn a_failed_growth_is_given_back() {
        let mut limiter = limiter(100, 100);
        assert!(limiter.memory_growing(0, 60, None).expect("never an error"));
        limiter.memory_grow_failed(wasmtime::Error::msg("no")).expect("never an error");
        assert_eq!(limiter.account.usage().memory_bytes, 0);
        assert_eq!(limiter.refused, Refused::OwnMemory);
    }
}
