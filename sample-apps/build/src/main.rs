//! Builds the sample guests: every member of this workspace with `[package.metadata.wherry]`
//! becomes `dist/NAME.wasm`.
//!
//! All guests are compiled to core modules for `wasm32-wasip1`, the one target for which each way
//! of getting a toolchain below works, and those that are components (`guest = "handler"` or
//! `"command"`) are then lifted by `wit-component` with the preview-1 adapter of the wasmtime
//! release that runs them. `guest = "module"` stays a core module.
//!
//! Toolchains are tried in this order: the target installed for this cargo; `rustup target add`;
//! Debian's own cargo and standard library sources (packages rustc-web, cargo-web, rust-web-src,
//! wasi-libc) with rustup's linker. Outputs are kept by the hash of all sources: a second run does
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const TARGET: &str = "wasm32-wasip1";
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "wasi-libc"];
/// Where Debian's wasi-libc puts `libc.a` and the start files.
const WASI_LIBC: &str = "/usr/lib/wasm32-wasi";

/// What a guest's manifest says it becomes.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    Module,
    Command,
    Handler,
}

fn main() -> Result<()> {
    // As `cargo run` says it, not as it was compiled: clones share their target folder.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").context("start this by `make apps`")?;
    let root = Path::new(&here).parent().context("build/ has a parent")?;
    let dist = root.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("creating {}", dist.display()))?;
    let guests = guests(root)?;
    let stamp = hash_of_sources(root)?;
    let stamp_file = dist.join(".sources");
    let built = guests.iter().all(|(name, _)| dist.join(format!("{name}.wasm")).exists());
    if built && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        println!("sample apps are up to date in {}", dist.display());
        return Ok(());
    }

    let toolchain = Toolchain::find()?;
    for (name, guest) in &guests {
        let module = toolchain.build(root, name, *guest)?;
        let bytes = fs::read(&module).with_context(|| format!("reading {}", module.display()))?;
        let image = lift(&bytes, *guest).with_context(|| format!("making {name} a component"))?;
        let file = dist.join(format!("{name}.wasm"));
        fs::write(&file, &image).with_context(|| format!("writing {}", file.display()))?;
        println!("{:>9} bytes  {}", image.len(), file.display());
    }
    fs::write(stamp_file, stamp)?;
    Ok(())
}

/// The guests of the workspace: each folder whose manifest names a guest kind.
fn guests(root: &Path) -> Result<Vec<(String, Guest)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let folder = entry?.path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let guest = match manifest.lines().find_map(|line| line.strip_prefix("guest = ")) {
            Some("\"module\"") => Guest::Module,
            Some("\"command\"") => Guest::Command,
            Some("\"handler\"") => Guest::Handler,
            Some(other) => bail!("{}: unknown guest kind {other}", folder.display()),
            None => continue,
        };
        let name = folder.file_name().context("a folder has a name")?;
        found.push((name.to_string_lossy().into_owned(), guest));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// A hash over every file that the outputs depend on.
fn hash_of_sources(root: &Path) -> Result<String> {
    let mut files = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    for entry in fs::read_dir(root)? {
        let folder = entry?.path();
        files.push(folder.join("Cargo.toml"));
        sources_below(&folder.join("src"), &mut files);
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files.iter().filter(|file| file.is_file()) {
        hash.update(file.to_string_lossy().as_bytes());
        hash.update(fs::read(file)?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The files of a folder and of those in it; none if there is no folder.
fn sources_below(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            sources_below(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// Makes a component of a core module, unless the guest is one.
fn lift(module: &[u8], guest: Guest) -> Result<Vec<u8>> {
    use wasi_preview1_component_adapter_provider as adapters;
    let adapter = match guest {
        Guest::Module => return Ok(module.to_vec()),
        Guest::Command => adapters::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Guest::Handler => adapters::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
    };
    wit_component::ComponentEncoder::default()
        .module(module)?
        .validate(true)
        .adapter(adapters::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter)?
        .encode()
}

/// A way to compile for `wasm32-wasip1`.
enum Toolchain {
    /// The cargo that runs this has the target.
    Own,
    /// Debian's cargo builds the standard library too; the linker's folders are rustup's.
    Debian { linker: Vec<PathBuf> },
}

impl Toolchain {
    fn find() -> Result<Toolchain> {
        if own_target_installed() {
            return Ok(Toolchain::Own);
        }
        let added = Command::new("rustup").args(["target", "add", TARGET]).output();
        if added.is_ok_and(|output| output.status.success()) && own_target_installed() {
            return Ok(Toolchain::Own);
        }
        let debian = Path::new("/usr/bin/cargo").exists() && Path::new(WASI_LIBC).exists();
        if !debian {
            bail!(
                "no toolchain for {TARGET}: `rustup target add {TARGET}` failed, and Debian's \
                 packages are not there. Install them with: apt-get install {}",
                DEBIAN_PACKAGES.join(" ")
            );
        }
        let sysroot = output_of(Command::new("rustc").args(["--print", "sysroot"]))?;
        let host = output_of(Command::new("rustc").arg("-vV"))?;
        let host = host.lines().find_map(|line| line.strip_prefix("host: "));
        let tools = Path::new(sysroot.trim())
            .join("lib/rustlib")
            .join(host.context("rustc -vV names its host")?)
            .join("bin");
        Ok(Toolchain::Debian { linker: vec![tools.join("gcc-ld"), tools] })
    }

    /// Compiles one guest and returns the core module's path.
    fn build(&self, root: &Path, name: &str, guest: Guest) -> Result<PathBuf> {
        let target_dir = root.join("target/guests");
        let mut cargo = match self {
            Toolchain::Own => {
                Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            }
            Toolchain::Debian { linker } => debian_cargo(linker, guest)?,
        };
        cargo
            .current_dir(root)
            .args(["build", "--release", "--locked", "--target", TARGET, "-p", name])
            .arg("--target-dir")
            .arg(&target_dir)
            .env_remove("CARGO_TARGET_DIR");
        let status = cargo.status().with_context(|| format!("starting {cargo:?}"))?;
        if !status.success() {
            bail!("building {name} failed: {cargo:?} ended with {status}");
        }
        let file = match guest {
            Guest::Handler => format!("{}.wasm", name.replace('-', "_")),
            Guest::Module | Guest::Command => format!("{name}.wasm"),
        };
        Ok(target_dir.join(TARGET).join("release").join(file))
    }
}

fn debian_cargo(linker: &[PathBuf], guest: Guest) -> Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(linker.iter().cloned().chain(std::env::split_paths(&path)))?;
    let mut flags = format!("-L {WASI_LIBC} -C link-arg=-L{WASI_LIBC} -C link-self-contained=no");
    if guest != Guest::Handler {
        flags.push_str(&format!(" -C link-arg={WASI_LIBC}/crt1-command.o"));
    }
    let mut cargo = Command::new("/usr/bin/cargo");
    cargo
        .env("PATH", path)
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_WASM32_WASIP1_LINKER", "rust-lld")
        .env_remove("RUSTUP_TOOLCHAIN")
        .arg("-Zbuild-std=std,panic_abort");
    Ok(cargo)
}

/// Whether the rustc on PATH has a standard library for the target.
fn own_target_installed() -> bool {
    output_of(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))
        .is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
