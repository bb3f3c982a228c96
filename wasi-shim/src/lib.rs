//! The WASI host: runs Wasm guests on wasmtime, and knows nothing of Kubernetes.
//!
//! Words: an *image* is the Wasm file as it was pulled, a [`Module`] its compiled code, an
//! *instance* one running copy with its own memory. A *command* is an image with an entry point
//! that runs until it exits (a WASI p1 module with `_start`, or a component that exports
//! `wasi:cli/run`); a *handler* answers HTTP requests (a component that exports
//! `wasi:http/incoming-handler` or `wasi:http/handler`) and gets a fresh instance for each.
//!
//! ```text
//!  bytes ─ inspect ─▶ Image            what it is, what it needs, what we lack      (agent)
//!  bytes ─ compile ─▶ machine code     the only place where a compiler runs         (own process)
//!  file  ─ Engine::load ─▶ Module ─┬─ command(config) ─▶ Command::run ─▶ Exit      (worker)
//!                                  └─ handler(config) ─▶ Handler::handle ─▶ response
//! ```
//!
//! What holds for every guest:
//! * It has nothing by default: no files, no sockets, no environment, no input; only the arguments,
//!   variables and directories of its [`GuestConfig`]. Its HTTP requests go to [`Outgoing`], its
//!   sockets to a [`Network`], its output to [`Output`], never to the host's own.
//! * Every loop in it yields at a tick of an OS thread (4 ms), so one guest never keeps a thread,
//!   and its CPU time is counted ([`Account`]) and held to its quota by making it wait. When there is
//!   not enough for all, each gets a share by its weight.
//! * Memory, tables, handles and the data it makes the host allocate are bounded ([`Limits`]).
//! * A deadline outside the guest drops it, whatever it does. A panic in a host function ends that
//!   instance only: each one runs in its own task.
//! * An idle handler holds no instance and no memory but its compiled code, and that can be given back
//!   until the next request ([`Handler::rest`]).

mod account;
mod arguments;
mod clocks;
mod command;
mod engine;
mod environment;
mod fair;
mod fault;
mod files;
mod handler;
mod host_memory;
mod http;
mod input;
mod inspect;
mod instance;
mod interfaces;
mod keyvalue;
mod limits;
mod logging;
mod messages;
mod output;
mod poll;
mod preopens;
mod slice;
mod sockets;
mod ticker;
mod world;

#[cfg(test)]
mod tests;

pub use account::{Account, Budget, Usage};
pub use command::{Command, Exit};
pub use engine::{
    Compiled, Engine, EngineConfig, EngineError, LoadError, Module, compile, engine_hash,
};
pub use handler::{HandleError, Handler, Steps, Wake};
pub use http::{Body, BodyError, Outgoing, OutgoingError, OutgoingTimeouts, no_outgoing};
pub use input::{Input, InputWriter, Term};
pub use inspect::{Form, Guest, Image, ImageError, inspect};
pub use interfaces::offers;
pub use limits::{GuestConfig, Limits, Mount};
pub use output::{Output, Room, no_output};
pub use slice::{give_way, give_way_to_all, place_session};
pub use sockets::{Connection, Datagrams, Listener, Network, NetworkError, Stream, no_network};
pub use world::{Interface, World};
