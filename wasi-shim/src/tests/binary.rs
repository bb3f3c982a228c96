//! Inspecting images. The files are put together byte by byte here, so that broken ones and ones
//! that no tool would make can be tried, too.

use expect_test::{Expect, expect};

use crate::inspect;

fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn name(text: &str) -> Vec<u8> {
    [number(text.len()), text.as_bytes().to_vec()].concat()
}

fn section(id: u8, items: &[Vec<u8>]) -> Vec<u8> {
    let content = [number(items.len()), items.concat()].concat();
    [vec![id], number(content.len()), content].concat()
}

fn import(module: &str, field: &str) -> Vec<u8> {
    [name(module), name(field), vec![0, 0]].concat()
}

fn export(field: &str) -> Vec<u8> {
    [name(field), vec![0, 0]].concat()
}

/// A core module with one function type, these imports, exports, pages and function bodies.
fn module(imports: &[Vec<u8>], exports: &[Vec<u8>], pages: usize, bodies: &[Vec<u8>]) -> Vec<u8> {
    let sized = |body: &Vec<u8>| [number(body.len()), body.clone()].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[vec![0x60, 0, 0]]),
        section(2, imports),
        section(3, &vec![vec![0]; bodies.len()]),
        section(5, &[[vec![0], number(pages)].concat()]),
        section(7, exports),
        section(10, &bodies.iter().map(sized).collect::<Vec<_>>()),
    ]
    .concat()
}

/// A component that imports and exports instances of these names.
fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let import = |text: &&str| [vec![0], name(text), vec![5, 0]].concat();
    let export = |text: &&str| [vec![0], name(text), vec![5, 0, 0]].concat();
    [
        b"\0asm\x0d\0\x01\0".to_vec(),
        section(7, &[vec![0x42, 0]]),
        section(10, &imports.iter().map(import).collect::<Vec<_>>()),
        section(11, &exports.iter().map(export).collect::<Vec<_>>()),
    ]
    .concat()
}

/// A function without locals that returns at once.
fn empty_function() -> Vec<u8> {
    vec![0, 0x0b]
}

/// An image as lines, or the error.
fn describe(wasm: &[u8]) -> String {
    let image = match inspect(wasm) {
        Ok(image) => image,
        Err(error) => return format!("error: {error}"),
    };
    let memory = image.memory_min_bytes;
    let mut text = format!("{:?} {:?} memory {memory}\n", image.form, image.guest);
    for name in &image.imports {
        let mark = if image.missing.contains(name) { " (missing)" } else { "" };
        text += &format!("import {name}{mark}\n");
    }
    for name in &image.exports {
        text += &format!("export {name}\n");
    }
    text
}

#[track_caller]
fn check(wasm: &[u8], expected: Expect) {
    expected.assert_eq(&describe(wasm));
}

#[test]
fn p1_command() {
    let imports = [
        import("wasi_snapshot_preview1", "fd_write"),
        import("wasi_snapshot_preview1", "fd_fancy"),
        import("env", "emscripten_memcpy"),
    ];
    check(
        &module(&imports, &[export("_start")], 17, &[empty_function()]),
        expect![[r#"
            Module Command memory 1114112
            import wasi_snapshot_preview1 fd_write
            import wasi_snapshot_preview1 fd_fancy (missing)
            import env emscripten_memcpy (missing)
            export _start
        "#]],
    );
}

#[test]
fn handlers_and_commands() {
    check(
        &component(
            &["wasi:http/types@0.2.3", "wasi:blobstore/blobstore@0.2.0-draft"],
            &["wasi:http/incoming-handler@0.2.3"],
        ),
        expect![[r#"
            Component Handler memory 0
            import wasi:http/types@0.2.3
            import wasi:blobstore/blobstore@0.2.0-draft (missing)
            export wasi:http/incoming-handler@0.2.3
        "#]],
    );
    check(
        &component(&["wasi:http/client@0.3.0"], &["wasi:http/handler@0.3.0"]),
        expect![[r#"
            Component Handler memory 0
            import wasi:http/client@0.3.0
            export wasi:http/handler@0.3.0
        "#]],
    );
    check(
        &component(&["wasi:cli/stdout@0.2.0"], &["wasi:cli/run@0.2.6"]),
        expect![[r#"
            Component Command memory 0
            import wasi:cli/stdout@0.2.0
            export wasi:cli/run@0.2.6
        "#]],
    );
}

#[test]
fn neither_kind_of_guest() {
    check(
        &module(&[], &[export("add"), export("sub")], 1, &[empty_function()]),
        expect![
            "error: the module does not export `_start`, so there is nothing to run; it exports \
             add, sub"
        ],
    );
    check(
        &component(&[], &["wasi:http/handler@0.3.0-rc-2026-01-06"]),
        expect![
            "error: the component exports neither wasi:cli/run nor wasi:http/incoming-handler of \
             WASI 0.2 or 0.3, so there is nothing to run; it exports \
             wasi:http/handler@0.3.0-rc-2026-01-06"
        ],
    );
    check(
        &component(&[], &[]),
        expect![
            "error: the component exports neither wasi:cli/run nor wasi:http/incoming-handler of \
             WASI 0.2 or 0.3, so there is nothing to run; it exports nothing"
        ],
    );
}

#[test]
fn not_wasm() {
    check(b"", expect!["error: not a Wasm file: it is empty"]);
    check(
        b"(module)",
        expect![
            "error: not a Wasm file: it looks like Wasm's text form; translate it first (wat2wasm)"
        ],
    );
    check(
        b"\x7fELF\x02",
        expect![
            "error: not a Wasm file: it is a program for an operating system; compile it for \
             wasm32-wasip2"
        ],
    );
    check(
        b"\x1f\x8b\x08",
        expect!["error: not a Wasm file: it is compressed, perhaps a container image's layer"],
    );
    check(b"hello", expect!["error: not a Wasm file: it does not start as one"]);
    check(b"\0asm", expect!["error: the Wasm file is damaged"]);
    check(b"\0asm\x01\0\0\0\x01\xff", expect!["error: the Wasm file is damaged"]);
}

#[test]
fn bombs_are_refused_before_they_are_compiled() {
    let start = [export("_start")];
    let many = vec![empty_function(); 50_001];
    check(
        &module(&[], &start, 1, &many),
        expect!["error: the image has more than 50000 functions, which is more than is accepted"],
    );
    let large = [vec![0], vec![1; 300_000], vec![0x0b]].concat();
    check(
        &module(&[], &start, 1, &[large]),
        expect![
            "error: a function has 300002 bytes of code; at most 262144 are accepted (compile for \
             size, or with less inlining)"
        ],
    );
    let imports = vec![import("a", "b"); 1_001];
    check(
        &module(&imports, &start, 1, &[]),
        expect!["error: the image has more than 1000 imports, which is more than is accepted"],
    );
    let mut nested = component(&[], &[]);
    for _ in 0..20 {
        let section = [vec![4], number(nested.len()), nested].concat();
        nested = [b"\0asm\x0d\0\x01\0".to_vec(), section].concat();
    }
    check(
        &nested,
        expect![
            "error: the image has more than 16 nested components, which is more than is accepted"
        ],
    );
    check(
        &[b"\0asm\x01\0\0\0".to_vec(), vec![0; 51 << 20]].concat(),
        expect!["error: the image has 53477384 bytes; at most 52428800 are accepted"],
    );
}

/// Whatever the bytes, inspecting answers; it never panics.
#[test]
fn damaged_files_are_errors() {
    let wasm = module(&[import("a", "b")], &[export("_start")], 1, &[empty_function()]);
    for length in 0..wasm.len() {
        let _ = inspect(&wasm[..length]);
        for bit in 0..8 {
            let mut damaged = wasm.clone();
            damaged[length] ^= 1 << bit;
            let _ = inspect(&damaged);
        }
    }
}

#[test]
fn compiling_names_what_is_missing() {
    let wasm = module(&[import("env", "now")], &[export("_start")], 1, &[empty_function()]);
    let error = crate::compile(&wasm).expect_err("the import does not exist");
    assert_eq!(error.to_string(), "the image imports what this host does not offer: env now");
    let wasm = module(&[], &[export("_start")], 1, &[empty_function()]);
    crate::compile(&wasm).expect("a command that does nothing");
}
