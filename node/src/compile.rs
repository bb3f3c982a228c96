//! The throw-away process that reads and compiles one image.
//!
//! Everything that parses or compiles an image's bytes happens here, because the bytes are hostile
//! until then: a compilation bomb ends this process and nothing else. The agent starts it as
//! `wherry compile IN OUT` with limits on time and memory, an empty environment and no standard
//! input. The outcome is one line of JSON on standard output ([`Report`]); without that line the
//! process was stopped by a limit. `OUT`, and beside it what the image wants and gives, are written
//! only for [`Report::Compiled`].

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};
use wherry_wasi_shim as shim;

use crate::protocol::{Form, Guest};

/// WASI has some fifty interfaces; a core module imports functions one by one.
const NAMES_MAX: usize = 256;
/// The longest name that is kept.
const NAME_CHARS_MAX: usize = 120;

/// What an image is: what the agent keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Core module or component.
    pub form: Form,
    /// How it is run.
    pub guest: Guest,
    /// Names of what it imports and exports, for people; at most [`NAMES_MAX`] of each.
    pub imports: Vec<String>,
    /// See `imports`.
    pub exports: Vec<String>,
    /// Imports that this node does not offer.
    pub missing: Vec<String>,
    /// Memory it has from its first instruction on.
    pub memory_min_bytes: u64,
}

/// How reading and compiling went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// `OUT` holds the code.
    Compiled(Image),
    /// The image wants what this node does not offer; nothing was compiled.
    Missing(Image),
    /// The bytes are no image.
    Invalid(String),
    /// They are, and do not compile.
    Failed(String),
}

/// Reads `input`, writes `output`, reports on standard output. The exit code is 0 whenever there is a
/// report.
pub fn main(input: &Path, output: &Path) -> ExitCode {
    come_last();
    let report = run(input, output);
    let mut stdout = std::io::stdout().lock();
    let written = serde_json::to_writer(&mut stdout, &report)
        .map_err(std::io::Error::from)
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Running guests come first.
fn come_last() {
    // SAFETY: plain system calls on this process.
    let may_more = unsafe {
        let may_more = libc::setpriority(libc::PRIO_PROCESS, 0, -1) == 0;
        libc::setpriority(libc::PRIO_PROCESS, 0, 5);
        may_more
    };
    // From there nobody has a way back who may not ask for more either, as root may: the agent hurries it.
    if may_more {
        shim::give_way_to_all();
    } else {
        shim::give_way();
    }
}

fn run(input: &Path, output: &Path) -> Report {
    let wasm = match std::fs::read(input) {
        Ok(wasm) => wasm,
        Err(error) => return Report::Failed(format!("read {}: {error}", input.display())),
    };
    let image = match shim::inspect(&wasm) {
        Ok(image) => described(image),
        Err(error) => return Report::Invalid(sentence(&error)),
    };
    if !image.missing.is_empty() {
        return Report::Missing(image);
    }
    let shim::Compiled { code, world } = match shim::compile(&wasm) {
        Ok(compiled) => compiled,
        Err(error) => return Report::Failed(sentence(&error)),
    };
    let world = serde_json::to_vec(&told(&image, world)).expect("plain fields become JSON");
    let written = std::fs::write(world_file(output), world);
    match written.and_then(|()| std::fs::write(output, code)) {
        Ok(()) => Report::Compiled(image),
        Err(error) => Report::Failed(format!("write {}: {error}", output.display())),
    }
}

fn described(image: shim::Image) -> Image {
    Image {
        form: match image.form {
            shim::Form::Module => Form::Module,
            shim::Form::Component => Form::Component,
        },
        guest: match image.guest {
            shim::Guest::Command => Guest::Command,
            shim::Guest::Handler => Guest::Handler,
        },
        imports: names(image.imports),
        exports: names(image.exports),
        missing: image.missing,
        memory_min_bytes: image.memory_min_bytes,
    }
}

/// Where it is written what an image wants and gives: beside its code. For people; nothing is
/// decided by it.
pub fn world_file(code: &Path) -> PathBuf {
    code.with_extension("world")
}

/// What an image is, as people are told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct World {
    form: Form,
    guest: Guest,
    memory_min_bytes: u64,
    imports: Vec<Interface>,
    exports: Vec<Interface>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    name: String,
    offered: bool,
    functions: Vec<String>,
    /// Functions that are not told.
    more: usize,
}

fn told(image: &Image, world: shim::World) -> World {
    let side = |list: Vec<shim::Interface>| {
        let tell = |shim::Interface { name, offered, functions, more }| Interface {
            name,
            offered,
            functions,
            more,
        };
        list.into_iter().map(tell).collect()
    };
    World {
        form: image.form,
        guest: image.guest,
        memory_min_bytes: image.memory_min_bytes,
        imports: side(world.imports),
        exports: side(world.exports),
    }
}

/// Names as they are kept: they come from the image, so they are cut and cleaned.
fn names(all: Vec<String>) -> Vec<String> {
    let clean =
        |name: String| name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
    all.into_iter().take(NAMES_MAX).map(clean).collect()
}

/// An error with its causes.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
