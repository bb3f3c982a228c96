//! Real guests on the real engine, written as Wasm text. Nothing here waits for a fixed time: tests
//! wait for what a guest did, or for the limit that ends it.

mod binary;
mod command;
mod files;
mod guests;
pub(crate) mod handler;
mod services;
mod sockets;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::engine::compile_checked;
use crate::{Engine, EngineConfig, Form, GuestConfig, Module, Output};

/// One engine for all tests: pools reserve mappings of the process.
fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let config = EngineConfig { instances: Some(64) };
    ENGINE.get_or_init(|| Engine::new(&config).expect("an engine")).clone()
}

/// An engine that nobody else uses.
fn own_engine() -> Engine {
    let config = EngineConfig { instances: Some(80) };
    Engine::new(&config).expect("an engine")
}

/// Compiles a text and loads it as a worker would, from a file.
#[track_caller]
fn load_into(engine: &Engine, text: &str, form: Form) -> Module {
    let compiled = compile_checked(text.as_bytes(), form).expect("the guest compiles");
    let file = tempfile::NamedTempFile::new().expect("a file for the code");
    std::fs::write(file.path(), compiled.code).expect("the code can be written");
    engine.load(file.path(), form).expect("the code can be loaded")
}

#[track_caller]
fn load(text: &str, form: Form) -> Module {
    load_into(&engine(), text, form)
}

/// Collects what a guest prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn output(&self) -> Output {
        let printed = Arc::clone(&self.0);
        Arc::new(move |bytes| printed.lock().expect("not poisoned").extend_from_slice(bytes))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("not poisoned")).into_owned()
    }
}

/// A guest that prints into the given places.
fn config(stdout: &Printed, stderr: &Printed) -> GuestConfig {
    GuestConfig { stdout: stdout.output(), stderr: stderr.output(), ..GuestConfig::default() }
}

/// Far more than any of these tests takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(180);

/// Lets other tasks run until the condition holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        tokio::task::yield_now().await;
    }
}
