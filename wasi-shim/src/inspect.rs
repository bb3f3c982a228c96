//! What an image is, read from its bytes without compiling or running anything.
//!
//! Only the structure is parsed here, with bounds on everything that the compiler's time and memory
//! grow with; whether the code inside is valid is for [`crate::compile`] to find out, in its own
//! process.

use wasmparser::{Encoding, Parser, Payload};

use crate::interfaces::{offers_function, offers_interface, track};

/// The largest image, uncompressed. Language runtimes compiled to Wasm have up to 40 MiB.
const WASM_BYTES_MAX: usize = 50 << 20;
/// Functions of all modules of an image. 200,000 tiny ones took 13 s and 1.1 GiB to compile.
const FUNCTIONS_MAX: u64 = 50_000;
/// One function's body. Compiling is worse than linear: one of 2 MiB took 7 s, of 6 MiB 53 s.
const FUNCTION_BYTES_MAX: usize = 256 << 10;
/// Imports and exports of an image; WASI has some 200 functions in all.
const IMPORTS_MAX: usize = 1_000;
const EXPORTS_MAX: usize = 10_000;
/// Components within components. Tools nest two or three.
const DEPTH_MAX: usize = 16;
/// Names that a message lists.
const NAMES_SHOWN_MAX: usize = 5;
const PAGE_BYTES: u64 = 64 << 10;

/// The form of the Wasm file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A core module (WASI p1).
    Module,
    Component,
}

/// How the image is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// One instance that runs until it exits.
    Command,
    /// An instance for each HTTP request.
    Handler,
}

/// What is known of an image without running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub form: Form,
    pub guest: Guest,
    /// Names as in the file: `wasi:http/types@0.2.3`, or `module function` for a core module.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// Imports that this host does not offer; an image that has any cannot run here.
    pub missing: Vec<String>,
    /// What its memories have before the first instruction.
    pub memory_min_bytes: u64,
}

/// Why bytes are not an image that can run here.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("not a Wasm file: {hint}")]
    NotWasm { hint: &'static str },
    #[error("the image has {bytes} bytes; at most {WASM_BYTES_MAX} are accepted")]
    TooLarge { bytes: usize },
    #[error("the Wasm file is damaged")]
    Malformed(#[source] wasmparser::BinaryReaderError),
    #[error("the image has more than {max} {what}, which is more than is accepted")]
    TooMany { what: &'static str, max: u64 },
    #[error(
        "a function has {bytes} bytes of code; at most {FUNCTION_BYTES_MAX} are accepted \
         (compile for size, or with less inlining)"
    )]
    FunctionTooLarge { bytes: usize },
    #[error("{reason}")]
    NotAGuest { reason: String },
    #[error("the image imports what this host does not offer: {}", list(missing))]
    ImportsMissing { missing: Vec<String> },
    /// An interface is offered, but not as the image wants it.
    #[error("the image's imports do not fit this host: {reason}")]
    Link { reason: String },
    #[error("the image does not compile: {reason}")]
    Compile { reason: String },
}

/// Reads what an image is, and whether this host can run it.
pub fn inspect(wasm: &[u8]) -> Result<Image, ImageError> {
    let form = form(wasm)?;
    if wasm.len() > WASM_BYTES_MAX {
        return Err(ImageError::TooLarge { bytes: wasm.len() });
    }
    let Contents { imports, exports, memory_min_bytes, .. } = read(wasm)?;
    let guest = guest(form, &exports)?;
    let is_missing = |import: &&Import| match form {
        Form::Module => !offers_function(&import.module, &import.name),
        Form::Component => !offers_interface(&import.name),
    };
    let missing = imports.iter().filter(is_missing).map(Import::full_name).collect();
    let imports = imports.iter().map(Import::full_name).collect();
    Ok(Image { form, guest, imports, exports, missing, memory_min_bytes })
}

fn form(wasm: &[u8]) -> Result<Form, ImageError> {
    let not_wasm = |hint| Err(ImageError::NotWasm { hint });
    if !wasm.starts_with(b"\0asm") {
        return not_wasm(match wasm {
            [] => "it is empty",
            [b'(', ..] => "it looks like Wasm's text form; translate it first (wat2wasm)",
            [0x7f, b'E', b'L', b'F', ..] => {
                "it is a program for an operating system; compile it for wasm32-wasip2"
            }
            [0x1f, 0x8b, ..] => "it is compressed, perhaps a container image's layer",
            _ => "it does not start as one",
        });
    }
    match Parser::new(0).parse_all(wasm).next() {
        Some(Ok(Payload::Version { encoding: Encoding::Module, .. })) => Ok(Form::Module),
        Some(Ok(Payload::Version { encoding: Encoding::Component, .. })) => Ok(Form::Component),
        Some(Err(error)) => Err(ImageError::Malformed(error)),
        Some(Ok(_)) | None => not_wasm("it ends after its first bytes"),
    }
}

struct Import {
    /// Empty for a component's import.
    module: String,
    name: String,
}

impl Import {
    fn full_name(&self) -> String {
        if self.module.is_empty() {
            self.name.clone()
        } else {
            format!("{} {}", self.module, self.name)
        }
    }
}

#[derive(Default)]
struct Contents {
    imports: Vec<Import>,
    exports: Vec<String>,
    memory_min_bytes: u64,
    functions: u64,
    /// 0 in the outermost module or component, whose imports and exports are the image's.
    depth: usize,
}

fn read(wasm: &[u8]) -> Result<Contents, ImageError> {
    let mut contents = Contents::default();
    for payload in Parser::new(0).parse_all(wasm) {
        contents.add(payload.map_err(ImageError::Malformed)?)?;
    }
    Ok(contents)
}

impl Contents {
    fn add(&mut self, payload: Payload<'_>) -> Result<(), ImageError> {
        let damaged = ImageError::Malformed;
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                self.depth += 1;
                at_most(self.depth, DEPTH_MAX, "nested components")?;
            }
            // The outermost one ends, too.
            Payload::End(_) => self.depth = self.depth.saturating_sub(1),
            Payload::CodeSectionStart { count, .. } => {
                self.functions += u64::from(count);
                if self.functions > FUNCTIONS_MAX {
                    let max = FUNCTIONS_MAX;
                    return Err(ImageError::TooMany { what: "functions", max });
                }
            }
            Payload::CodeSectionEntry(body) => {
                let bytes = body.range().len();
                if bytes > FUNCTION_BYTES_MAX {
                    return Err(ImageError::FunctionTooLarge { bytes });
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let bytes = memory.map_err(damaged)?.initial.saturating_mul(PAGE_BYTES);
                    self.memory_min_bytes = self.memory_min_bytes.saturating_add(bytes);
                }
            }
            Payload::ImportSection(imports) if self.depth == 0 => {
                for import in imports.into_imports() {
                    let import = import.map_err(damaged)?;
                    self.import(import.module, import.name)?;
                }
            }
            Payload::ComponentImportSection(imports) if self.depth == 0 => {
                for import in imports {
                    self.import("", import.map_err(damaged)?.name.name)?;
                }
            }
            Payload::ExportSection(exports) if self.depth == 0 => {
                for export in exports {
                    self.export(export.map_err(damaged)?.name)?;
                }
            }
            Payload::ComponentExportSection(exports) if self.depth == 0 => {
                for export in exports {
                    self.export(export.map_err(damaged)?.name.name)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, module: &str, name: &str) -> Result<(), ImageError> {
        self.imports.push(Import { module: module.into(), name: name.into() });
        at_most(self.imports.len(), IMPORTS_MAX, "imports")
    }

    fn export(&mut self, name: &str) -> Result<(), ImageError> {
        self.exports.push(name.into());
        at_most(self.exports.len(), EXPORTS_MAX, "exports")
    }
}

fn at_most(count: usize, max: usize, what: &'static str) -> Result<(), ImageError> {
    if count > max {
        return Err(ImageError::TooMany { what, max: max as u64 });
    }
    Ok(())
}

/// Which kind of guest an image is, by what it exports.
fn guest(form: Form, exports: &[String]) -> Result<Guest, ImageError> {
    let has = |name: &str| exports.iter().any(|export| export == name);
    let has_interface = |wanted: &str| exports.iter().any(|export| track(export) == Some(wanted));
    match form {
        Form::Module if has("_start") => Ok(Guest::Command),
        Form::Module => Err(not_a_guest("the module does not export `_start`", exports)),
        Form::Component
            if has_interface("wasi:http/incoming-handler@0.2")
                || has_interface("wasi:http/handler@0.3") =>
        {
            Ok(Guest::Handler)
        }
        Form::Component
            if has_interface("wasi:cli/run@0.2") || has_interface("wasi:cli/run@0.3") =>
        {
            Ok(Guest::Command)
        }
        Form::Component => Err(not_a_guest(
            "the component exports neither wasi:cli/run nor wasi:http/incoming-handler of \
             WASI 0.2 or 0.3",
            exports,
        )),
    }
}

fn not_a_guest(what: &str, exports: &[String]) -> ImageError {
    let exports = if exports.is_empty() { "nothing".into() } else { list(exports) };
    let reason = format!("{what}, so there is nothing to run; it exports {exports}");
    ImageError::NotAGuest { reason }
}

/// The first names, which come from the image, without control characters.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMES_SHOWN_MAX)
        .map(|name| name.chars().filter(|c| !c.is_control()).take(100).collect())
        .collect();
    let mut text = shown.join(", ");
    if names.len() > NAMES_SHOWN_MAX {
        text += &format!(" and {} more", names.len() - NAMES_SHOWN_MAX);
    }
    text
}
