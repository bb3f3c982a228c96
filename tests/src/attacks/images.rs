//! Images that are attacks themselves: hostile before their first instruction runs.

use anyhow::{Context, Result};

/// Wasm's magic number and the version of core modules.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// The same of components.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const FUNCTIONS: usize = 1_000_000;
const IMPORTS: usize = 100_000;
const NESTED: usize = 10_000;
/// So many functions of so many steps each take longer to compile than anybody may.
const LONG_FUNCTIONS: usize = 200;
const LONG_STEPS: usize = 16_000;

/// The images by their names.
pub fn all() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut images = vec![
        ("attack-functions", functions()),
        ("attack-imports", imports()),
        ("attack-nested", nested()),
        ("attack-compile", long_to_compile()),
        ("attack-gzip", [&[0x1f, 0x8b, 8, 0][..], &[0; 64]].concat()),
    ];
    for (name, text) in TEXTS {
        let wasm = wat::parse_str(text).with_context(|| format!("the text of {name}"))?;
        images.push((name, wasm));
    }
    Ok(images)
}

/// Modules that are a few lines of text.
const TEXTS: [(&str, &str); 5] = [
    (
        "attack-start",
        r#"(module (func $spin (loop $again (br $again))) (start $spin)
             (func (export "_start")))"#,
    ),
    (
        "attack-table",
        r#"(module (table $t 1 funcref) (func (export "_start")
             (loop $more (br_if $more (i32.ne
               (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
             unreachable))"#,
    ),
    (
        "attack-fill",
        r#"(module (memory (export "memory") 2000) (func (export "_start")
             (loop $again
               (memory.fill (i32.const 0) (i32.const 7) (i32.const 131072000))
               (br $again))))"#,
    ),
    ("attack-memory", r#"(module (memory 65536) (func (export "_start")))"#),
    ("attack-crash", r#"(module (func (export "_start") unreachable))"#),
];

/// A number as Wasm writes it.
fn leb(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn section(id: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(id);
    leb(content.len(), out);
    out.extend_from_slice(content);
}

/// A type section with the one type `[] -> []`.
fn types(out: &mut Vec<u8>) {
    section(1, &[1, 0x60, 0, 0], out);
}

/// A section that holds `count` and then this for each.
fn repeated(id: u8, count: usize, each: &[u8], out: &mut Vec<u8>) {
    let mut content = Vec::new();
    leb(count, &mut content);
    content.extend(each.repeat(count));
    section(id, &content, out);
}

/// The export of function 0 as the entry point.
fn exported(out: &mut Vec<u8>) {
    section(7, &[&[1, 6][..], b"_start", &[0, 0]].concat(), out);
}

fn functions() -> Vec<u8> {
    let mut out = MODULE.to_vec();
    types(&mut out);
    repeated(3, FUNCTIONS, &[0], &mut out);
    exported(&mut out);
    repeated(10, FUNCTIONS, &[2, 0, 0x0b], &mut out);
    out
}

fn imports() -> Vec<u8> {
    let mut out = MODULE.to_vec();
    types(&mut out);
    let import = [&[22][..], b"wasi_snapshot_preview1", &[11], b"sched_yield", &[0, 0]].concat();
    repeated(2, IMPORTS, &import, &mut out);
    exported(&mut out);
    out
}

fn nested() -> Vec<u8> {
    let mut out = COMPONENT.to_vec();
    for _ in 0..NESTED {
        let mut outer = COMPONENT.to_vec();
        section(4, &out, &mut outer);
        out = outer;
    }
    out
}

/// Functions of many small blocks, each of which depends on the one before.
fn long_to_compile() -> Vec<u8> {
    let mut body = Vec::new();
    // Eight locals of i32.
    body.extend([1, 8, 0x7f]);
    for step in 0..LONG_STEPS {
        let (a, b) = ((step % 8) as u8, ((step * 5 + 3) % 8) as u8);
        // block; local.get a; br_if 0; local.get a; local.get b; i32.mul; local.set b; end
        body.extend([0x02, 0x40, 0x20, a, 0x0d, 0, 0x20, a, 0x20, b, 0x6c, 0x21, b, 0x0b]);
    }
    body.push(0x0b);
    let mut function = Vec::new();
    leb(body.len(), &mut function);
    function.extend(body);
    let mut out = MODULE.to_vec();
    types(&mut out);
    repeated(3, LONG_FUNCTIONS, &[0], &mut out);
    exported(&mut out);
    repeated(10, LONG_FUNCTIONS, &function, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_wasi_shim::{ImageError, inspect};

    #[test]
    fn images_are_what_they_claim() {
        let refused = |name: &str| {
            let images = all().expect("all can be made");
            let (_, wasm) = images.into_iter().find(|(known, _)| *known == name).expect(name);
            inspect(&wasm).map(drop)
        };
        assert!(matches!(refused("attack-functions"), Err(ImageError::TooMany { .. })));
        assert!(matches!(refused("attack-imports"), Err(ImageError::TooMany { .. })));
        assert!(matches!(refused("attack-nested"), Err(ImageError::TooMany { .. })));
        assert!(matches!(refused("attack-gzip"), Err(ImageError::NotWasm { .. })));
        // These are found out only later: by the compiler's limits, and while they run.
        for name in ["attack-compile", "attack-start", "attack-table", "attack-crash"] {
            refused(name).expect(name);
        }
    }
}
