//! The interfaces that this host offers: one table, from which the linkers are built and against
//! which an image's imports are checked, so that the two cannot disagree.
//!
//! All but sockets (see `sockets`), the environment, the list of directories, the opening of files,
//! what messages hold, timers and polling (see `environment`, `preopens`, `files`, `messages`, `clocks`
//! and `poll`) is wasmtime's own implementation, linked interface by interface; what a guest may do through them
//! is decided by the context of its instance.
//!
//! `wasi:config` is the container's environment, in which a Pod names its ConfigMaps and Secrets;
//! `wasi:keyvalue` is its buckets (see `keyvalue`), `wasi:logging` its standard error.
//!
//! One interface is ours, because WASI has no signals: by `wherry:pod/lifecycle` a guest learns that
//! it shall end, as a process learns it by SIGTERM.
//!
//! ```wit
//! interface lifecycle {                  // core modules: imports of the module `wherry:pod`
//!     stopping: func() -> bool;          //   stopping () -> i32
//!     wait-for-stop: func();             //   wait_for_stop ()
//! }
//! ```
//!
//! Versions match as in wasmtime: an interface serves every import of the same major version, or
//! for 0.x of the same minor version, older or newer; pre-releases match only themselves.

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::p2::bindings::{self as p2, sockets as p2_sockets};
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};
use wasmtime_wasi_http::p2::bindings::http as p2_http;
use wasmtime_wasi_http::p3::bindings::http as p3_http;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};

use crate::clocks::HasClock;
use crate::engine::Calls;
use crate::environment;
use crate::files;
use crate::instance::{CoreHost, Host};
use crate::keyvalue::{self, HasKeyValue};
use crate::logging::{self, HasLogging};
use crate::messages;
use crate::poll::HasPoll;
use crate::preopens::HasPreopens;
use crate::sockets::HasSockets;

type Add = fn(&mut Linker<Host>) -> wasmtime::Result<()>;

/// Borrows the resource table alone, which is all that streams and errors of `wasi:io` work on.
struct HasIo;

impl HasData for HasIo {
    type Data<'a> = &'a mut ResourceTable;
}

fn io(host: &mut Host) -> &mut ResourceTable {
    host.ctx().table
}

/// Every interface for components, and how it is linked.
#[rustfmt::skip] // a table
const INTERFACES: &[(&str, Add)] = &[
    ("wasi:io/error@0.2.12", |l| p2::io::error::add_to_linker::<_, HasIo>(l, io)),
    ("wasi:io/poll@0.2.12", |l| p2::io::poll::add_to_linker::<_, HasPoll>(l, Host::own_poll)),
    ("wasi:io/streams@0.2.12", |l| p2::io::streams::add_to_linker::<_, HasIo>(l, io)),
    ("wasi:clocks/wall-clock@0.2.12",
        |l| p2::clocks::wall_clock::add_to_linker::<_, WasiClocks>(l, Host::clocks)),
    ("wasi:clocks/monotonic-clock@0.2.12",
        |l| p2::clocks::monotonic_clock::add_to_linker::<_, HasClock>(l, Host::own_clock)),
    ("wasi:random/random@0.2.12",
        |l| p2::random::random::add_to_linker::<_, WasiRandom>(l, Host::random)),
    ("wasi:random/insecure@0.2.12",
        |l| p2::random::insecure::add_to_linker::<_, WasiRandom>(l, Host::random)),
    ("wasi:random/insecure-seed@0.2.12",
        |l| p2::random::insecure_seed::add_to_linker::<_, WasiRandom>(l, Host::random)),
    ("wasi:cli/environment@0.2.12", environment::add_p2),
    ("wasi:cli/exit@0.2.12", |l| p2::cli::exit::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stdin@0.2.12", |l| p2::cli::stdin::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stdout@0.2.12", |l| p2::cli::stdout::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stderr@0.2.12", |l| p2::cli::stderr::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-input@0.2.12",
        |l| p2::cli::terminal_input::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-output@0.2.12",
        |l| p2::cli::terminal_output::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stdin@0.2.12",
        |l| p2::cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stdout@0.2.12",
        |l| p2::cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stderr@0.2.12",
        |l| p2::cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:filesystem/types@0.2.12", files::add_p2),
    ("wasi:filesystem/preopens@0.2.12",
        |l| p2::filesystem::preopens::add_to_linker::<_, HasPreopens>(l, Host::own_preopens)),
    ("wasi:sockets/network@0.2.12",
        |l| p2_sockets::network::add_to_linker::<_, HasSockets>(
            l, &Default::default(), Host::own_sockets)),
    ("wasi:sockets/instance-network@0.2.12",
        |l| p2_sockets::instance_network::add_to_linker::<_, WasiSockets>(l, Host::sockets)),
    ("wasi:sockets/ip-name-lookup@0.2.12",
        |l| p2_sockets::ip_name_lookup::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:sockets/tcp@0.2.12",
        |l| p2_sockets::tcp::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:sockets/tcp-create-socket@0.2.12",
        |l| p2_sockets::tcp_create_socket::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:sockets/udp@0.2.12",
        |l| p2_sockets::udp::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:sockets/udp-create-socket@0.2.12",
        |l| p2_sockets::udp_create_socket::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:http/types@0.2.12", messages::add_p2),
    ("wasi:http/outgoing-handler@0.2.12",
        |l| p2_http::outgoing_handler::add_to_linker::<_, WasiHttp>(l, Host::http)),
    ("wasi:clocks/types@0.3.0",
        |l| p3::clocks::types::add_to_linker::<_, WasiClocks>(l, Host::clocks)),
    ("wasi:clocks/system-clock@0.3.0",
        |l| p3::clocks::system_clock::add_to_linker::<_, WasiClocks>(l, Host::clocks)),
    ("wasi:clocks/monotonic-clock@0.3.0",
        |l| p3::clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(l, Host::clocks)),
    ("wasi:random/random@0.3.0",
        |l| p3::random::random::add_to_linker::<_, WasiRandom>(l, Host::random)),
    ("wasi:random/insecure@0.3.0",
        |l| p3::random::insecure::add_to_linker::<_, WasiRandom>(l, Host::random)),
    ("wasi:random/insecure-seed@0.3.0",
        |l| p3::random::insecure_seed::add_to_linker::<_, WasiRandom>(l, Host::random)),
    // Types only, as wasi:clocks/types: nothing to link, and wasmtime asks for nothing.
    ("wasi:cli/types@0.3.0", |_| Ok(())),
    ("wasi:cli/environment@0.3.0", environment::add_p3),
    ("wasi:cli/exit@0.3.0", |l| p3::cli::exit::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stdin@0.3.0", |l| p3::cli::stdin::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stdout@0.3.0", |l| p3::cli::stdout::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/stderr@0.3.0", |l| p3::cli::stderr::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-input@0.3.0",
        |l| p3::cli::terminal_input::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-output@0.3.0",
        |l| p3::cli::terminal_output::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stdin@0.3.0",
        |l| p3::cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stdout@0.3.0",
        |l| p3::cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:cli/terminal-stderr@0.3.0",
        |l| p3::cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, Host::cli)),
    ("wasi:filesystem/types@0.3.0", files::add_p3),
    ("wasi:filesystem/preopens@0.3.0",
        |l| p3::filesystem::preopens::add_to_linker::<_, HasPreopens>(l, Host::own_preopens)),
    ("wasi:sockets/types@0.3.0",
        |l| p3::sockets::types::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:sockets/ip-name-lookup@0.3.0",
        |l| p3::sockets::ip_name_lookup::add_to_linker::<_, HasSockets>(l, Host::own_sockets)),
    ("wasi:http/types@0.3.0", messages::add_p3),
    ("wasi:http/client@0.3.0", |l| p3_http::client::add_to_linker::<_, WasiHttp>(l, Host::http)),
    ("wasi:config/store@0.2.0-rc.1", |l| wasmtime_wasi_config::add_to_linker(l, Host::own_config)),
    ("wasi:keyvalue/store@0.2.0-draft",
        |l| keyvalue::store_interface::add_to_linker::<_, HasKeyValue>(l, Host::own_buckets)),
    ("wasi:keyvalue/atomics@0.2.0-draft",
        |l| keyvalue::atomics_interface::add_to_linker::<_, HasKeyValue>(l, Host::own_buckets)),
    ("wasi:keyvalue/batch@0.2.0-draft",
        |l| keyvalue::batch_interface::add_to_linker::<_, HasKeyValue>(l, Host::own_buckets)),
    ("wasi:logging/logging@0.1.0-draft",
        |l| logging::interface::add_to_linker::<_, HasLogging>(l, Host::own_log)),
    (LIFECYCLE, lifecycle),
];

/// How a component learns that it shall end.
pub(crate) const LIFECYCLE: &str = "wherry:pod/lifecycle@0.1.0";
/// The same for core modules.
pub(crate) const LIFECYCLE_MODULE: &str = "wherry:pod";
const LIFECYCLE_FUNCTIONS: &[&str] = &["stopping", "wait_for_stop"];

fn lifecycle(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(LIFECYCLE)?;
    interface.func_wrap("stopping", |store, (): ()| Ok((store.data().term().is_cancelled(),)))?;
    interface.func_wrap_async("wait-for-stop", |store, (): ()| {
        let term = store.data().term().clone();
        Box::new(async move {
            term.cancelled().await;
            Ok(())
        })
    })
}

fn core_lifecycle(linker: &mut wasmtime::Linker<CoreHost>) -> wasmtime::Result<()> {
    type Caller<'a> = wasmtime::Caller<'a, CoreHost>;
    linker.func_wrap(LIFECYCLE_MODULE, "stopping", |caller: Caller<'_>| {
        i32::from(caller.data().term.is_cancelled())
    })?;
    linker.func_wrap_async(LIFECYCLE_MODULE, "wait_for_stop", |caller: Caller<'_>, (): ()| {
        let term = caller.data().term.clone();
        Box::new(async move { term.cancelled().await })
    })?;
    Ok(())
}

/// The module of WASI that core guests import from, and its functions (a test holds this list
/// against the linker).
const P1_MODULE: &str = "wasi_snapshot_preview1";
#[rustfmt::skip] // a table
const P1_FUNCTIONS: &[&str] = &[
    "args_get", "args_sizes_get", "clock_res_get", "clock_time_get", "environ_get",
    "environ_sizes_get", "fd_advise", "fd_allocate", "fd_close", "fd_datasync", "fd_fdstat_get",
    "fd_fdstat_set_flags", "fd_fdstat_set_rights", "fd_filestat_get", "fd_filestat_set_size",
    "fd_filestat_set_times", "fd_pread", "fd_prestat_dir_name", "fd_prestat_get", "fd_pwrite",
    "fd_read", "fd_readdir", "fd_renumber", "fd_seek", "fd_sync", "fd_tell", "fd_write",
    "path_create_directory", "path_filestat_get", "path_filestat_set_times", "path_link",
    "path_open", "path_readlink", "path_remove_directory", "path_rename", "path_symlink",
    "path_unlink_file", "poll_oneoff", "proc_exit", "proc_raise", "random_get", "sched_yield",
    "sock_accept", "sock_recv", "sock_send", "sock_shutdown",
];

/// The linker for components. Interfaces of WASI 0.3 are there only where calls may be concurrent.
pub(crate) fn component_linker(
    engine: &wasmtime::Engine,
    calls: Calls,
) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    for (name, add) in INTERFACES {
        let concurrent = track(name).is_some_and(|track| track.ends_with("@0.3"));
        if calls == Calls::Concurrent || !concurrent {
            add(&mut linker)?;
        }
    }
    Ok(linker)
}

/// The linker for WASI p1 modules.
pub(crate) fn core_linker(
    engine: &wasmtime::Engine,
) -> wasmtime::Result<wasmtime::Linker<CoreHost>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, CoreHost::wasi)?;
    core_lifecycle(&mut linker)?;
    Ok(linker)
}

/// Engine features beyond the first version of Wasm that guests may use.
const FEATURES: &[&str] =
    &["wasm:simd", "wasm:bulk-memory", "wasm:component-model", "wasm:component-model-async"];

/// What guests may import here and which engine features they may use, by name: of interfaces that
/// serve all compatible versions without the last part of the version.
pub fn offers() -> Vec<String> {
    let interfaces = INTERFACES.iter().map(|(name, _)| track(name).unwrap_or(name));
    let others = [P1_MODULE, LIFECYCLE_MODULE];
    let mut all: Vec<String> =
        interfaces.chain(others).chain(FEATURES.iter().copied()).map(str::to_owned).collect();
    all.sort();
    all.dedup();
    all
}

/// Whether a component's import of this name can be linked.
pub(crate) fn offers_interface(import: &str) -> bool {
    INTERFACES.iter().any(|(name, _)| {
        *name == import || track(import).is_some_and(|wanted| track(name) == Some(wanted))
    })
}

/// Whether a p1 module's import can be linked.
pub(crate) fn offers_function(module: &str, name: &str) -> bool {
    match module {
        P1_MODULE => P1_FUNCTIONS.contains(&name),
        LIFECYCLE_MODULE => LIFECYCLE_FUNCTIONS.contains(&name),
        _ => false,
    }
}

/// The part of an interface's name that all compatible versions share: `a:b/c@0.2.7` is on the
/// track `a:b/c@0.2`. None if nothing but the name itself is compatible.
pub(crate) fn track(name: &str) -> Option<&str> {
    let (interface, version) = name.split_once('@')?;
    let without_build = version.split('+').next()?;
    let numbers: Vec<&str> = without_build.split('.').collect();
    let [major, minor, patch] = numbers[..] else {
        return None;
    };
    let is_number =
        |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A pre-release fails here: its patch is not a number.
    if ![major, minor, patch].iter().all(is_number) {
        return None;
    }
    let shared = match (major, minor) {
        ("0", "0") => return None,
        ("0", minor) => 1 + 1 + minor.len(),
        (major, _) => major.len(),
    };
    Some(&name[..interface.len() + 1 + shared])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn versions_share_a_track_as_in_wasmtime() {
        let cases = [
            ("x:y/z@1.1.2", Some("x:y/z@1")),
            ("x:y/z@2.1.2+abc", Some("x:y/z@2")),
            ("x:y/z@0.2.3", Some("x:y/z@0.2")),
            ("x:y/z@0.12.0", Some("x:y/z@0.12")),
            ("x:y/z@0.0.1", None),
            ("x:y/z@0.3.0-rc-2026", None),
            ("x:y/z@1.2", None),
            ("x:y/z", None),
            ("x", None),
        ];
        for (name, expected) in cases {
            assert_eq!(track(name), expected, "{name}");
        }
    }

    #[test]
    fn imports_match_any_compatible_version() {
        assert!(offers_interface("wasi:http/types@0.2.0"));
        assert!(offers_interface("wasi:http/types@0.2.99"));
        assert!(offers_interface("wasi:http/client@0.3.1"));
        assert!(!offers_interface("wasi:http/types@0.3.0-rc-2026-01-06"));
        assert!(!offers_interface("wasi:http/types@0.1.0"));
        assert!(!offers_interface("wasi:keyvalue/store@0.2.0"));
        assert!(!offers_interface("host"));
        assert!(offers_function("wasi_snapshot_preview1", "fd_write"));
        assert!(!offers_function("env", "fd_write"));
    }

    /// Interfaces without functions leave no trace in a linker.
    const TYPES_ONLY: [&str; 2] = ["wasi:clocks/types@0.3.0", "wasi:cli/types@0.3.0"];

    /// A row links the interface of its name and no other. A linker does not list what it holds,
    /// but it refuses a second definition, and that names the interface.
    #[test]
    fn rows_link_what_they_name() {
        let engine = wasmtime::Engine::default();
        for (name, add) in INTERFACES {
            let mut linker = Linker::<Host>::new(&engine);
            add(&mut linker).expect(name);
            let again = add(&mut linker);
            assert_eq!(again.is_err(), !TYPES_ONLY.contains(name), "{name}");
        }
        component_linker(&engine, Calls::Concurrent).expect("no two rows collide");
        let mut config = wasmtime::Config::new();
        config.wasm_component_model_async(false).concurrency_support(false);
        let engine = wasmtime::Engine::new(&config).expect("an engine");
        component_linker(&engine, Calls::Serial).expect("nothing in it is concurrent");
    }

    /// The names of the rows are those under which the functions lie: a component that imports the
    /// interface with a function nobody has is refused for the function, not for the interface.
    #[test]
    fn rows_are_found_by_their_name() {
        let engine = wasmtime::Engine::default();
        let linker = component_linker(&engine, Calls::Concurrent).expect("it links");
        for (name, _) in INTERFACES {
            let text =
                format!(r#"(component (import "{name}" (instance (export "nobody" (func)))))"#);
            let component = wasmtime::component::Component::new(&engine, text).expect(name);
            let error = linker.instantiate_pre(&component).map(drop).expect_err(name);
            let reason = format!("{error:#}");
            assert!(reason.contains("nobody"), "{name}: {reason}");
        }
    }

    #[test]
    fn p1_functions_are_those_of_the_linker() {
        let engine = wasmtime::Engine::default();
        let linker = core_linker(&engine).expect("p1 can be linked");
        let mut store = wasmtime::Store::new(&engine, CoreHost::for_linker_test());
        let linked: BTreeSet<String> =
            linker.iter(&mut store).map(|(module, name, _)| format!("{module} {name}")).collect();
        let wasi = P1_FUNCTIONS.iter().map(|name| format!("{P1_MODULE} {name}"));
        let ours = LIFECYCLE_FUNCTIONS.iter().map(|name| format!("{LIFECYCLE_MODULE} {name}"));
        let listed: BTreeSet<String> = wasi.chain(ours).collect();
        assert_eq!(linked, listed);
    }
}
