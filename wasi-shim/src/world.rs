//! What an image wants of its host and what it gives, function by function, in the words of WIT.
//!
//! Read from the compiled image's own types, in the process that compiled it. The text is for people:
//! it is bounded, because an image may nest types as deep as it likes, and it names a type where the
//! image gives it a name.

use wasmtime::Engine;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, ResourceType, Type};
use wasmtime::{ExternType, FuncType, ValType};

use crate::interfaces::{offers_function, offers_interface};

/// Functions that are told of one interface; WASI's largest has 60.
const FUNCTIONS_MAX: usize = 120;
/// Interfaces that are told of each side.
const INTERFACES_MAX: usize = 200;
/// Longest signature.
const SIGNATURE_BYTES_MAX: usize = 300;
/// Types within types that are told.
const DEPTH_MAX: usize = 8;
/// Types whose names are looked for: each is compared with each that is told.
const NAMES_MAX: usize = 300;

/// Both sides of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// What it wants.
    pub imports: Vec<Interface>,
    /// What it gives.
    pub exports: Vec<Interface>,
}

/// An interface, or a function that stands alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// `wasi:http/types@0.2.3`; of a core module the module that it imports from.
    pub name: String,
    /// Whether this host has it; of an export always.
    pub offered: bool,
    /// `get: func(key: string) -> option<string>`
    pub functions: Vec<String>,
    /// Functions beyond [`FUNCTIONS_MAX`].
    pub more: usize,
}

/// The world of a component.
pub(crate) fn of_component(engine: &Engine, component: &Component) -> World {
    let world = component.component_type();
    let mut names = Names::default();
    for (_, item) in world.imports(engine).chain(world.exports(engine)) {
        names.gather(engine, &item.ty);
    }
    let tell = |(name, item): (&str, ComponentItem), offered| {
        interface(engine, &names, name, &item, offered)
    };
    let imports = world.imports(engine).take(INTERFACES_MAX);
    let exports = world.exports(engine).take(INTERFACES_MAX);
    World {
        imports: imports.map(|(name, it)| tell((name, it.ty), offers_interface(name))).collect(),
        exports: exports.map(|(name, it)| tell((name, it.ty), true)).collect(),
    }
}

/// The world of a core module: what it imports by module, and its functions.
pub(crate) fn of_module(module: &wasmtime::Module) -> World {
    let mut world = World::default();
    for import in module.imports() {
        let found = world.imports.iter().position(|it| it.name == import.module());
        let at = found.unwrap_or_else(|| {
            let (name, offered) = (import.module().to_owned(), true);
            world.imports.push(Interface { name, offered, ..Interface::default() });
            world.imports.len() - 1
        });
        let interface = &mut world.imports[at];
        interface.offered &= offers_function(import.module(), import.name());
        if let ExternType::Func(ty) = import.ty() {
            interface.add(core_signature(import.name(), &ty));
        }
    }
    world.imports.truncate(INTERFACES_MAX);
    let mut own = Interface { name: "module".to_owned(), offered: true, ..Interface::default() };
    for export in module.exports() {
        if let ExternType::Func(ty) = export.ty() {
            own.add(core_signature(export.name(), &ty));
        }
    }
    world.exports.push(own);
    world
}

impl Interface {
    fn add(&mut self, signature: String) {
        if self.functions.len() < FUNCTIONS_MAX {
            self.functions.push(signature);
        } else {
            self.more += 1;
        }
    }
}

fn interface(
    engine: &Engine,
    names: &Names,
    name: &str,
    item: &ComponentItem,
    offered: bool,
) -> Interface {
    let mut told = Interface { name: name.to_owned(), offered, ..Interface::default() };
    match item {
        ComponentItem::ComponentInstance(instance) => {
            for (name, item) in instance.exports(engine) {
                if let ComponentItem::ComponentFunc(function) = item.ty {
                    told.add(signature(names, name, &function));
                }
            }
        }
        ComponentItem::ComponentFunc(function) => told.add(signature(names, name, function)),
        _ => {}
    }
    told
}

/// `[method]request.path` as `request.path`, `[constructor]fields` as `fields.new`.
fn plain(name: &str) -> String {
    match name.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some(("constructor", resource)) => format!("{resource}.new"),
        Some((_, rest)) => rest.to_owned(),
        None => name.to_owned(),
    }
}

fn signature(names: &Names, name: &str, function: &ComponentFunc) -> String {
    let mut text = Text::default();
    text.push(&plain(name));
    text.push(if function.async_() { ": async func(" } else { ": func(" });
    // Of a method the first parameter is what stands before the dot.
    let own = name.starts_with("[method]");
    for (at, (name, ty)) in function.params().enumerate().skip(usize::from(own)) {
        text.push(if at > usize::from(own) { ", " } else { "" });
        text.push(name);
        text.push(": ");
        text.ty(names, &ty, 0);
    }
    text.push(")");
    for ty in function.results() {
        text.push(" -> ");
        text.ty(names, &ty, 0);
    }
    text.end()
}

fn core_signature(name: &str, ty: &FuncType) -> String {
    let list = |types: &mut dyn Iterator<Item = ValType>| {
        types.map(|ty| ty.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut text = Text::default();
    text.push(name);
    text.push(&format!(": func({})", list(&mut ty.params())));
    if ty.results().len() > 0 {
        text.push(&format!(" -> {}", list(&mut ty.results())));
    }
    text.end()
}

/// Which types the image has names for.
#[derive(Default)]
struct Names {
    types: Vec<(Type, String)>,
    resources: Vec<(ResourceType, String)>,
}

impl Names {
    fn gather(&mut self, engine: &Engine, item: &ComponentItem) {
        let ComponentItem::ComponentInstance(instance) = item else { return };
        for (name, item) in instance.exports(engine) {
            if self.types.len() + self.resources.len() >= NAMES_MAX {
                return;
            }
            match item.ty {
                ComponentItem::Type(
                    ty @ (Type::Record(_) | Type::Variant(_) | Type::Enum(_) | Type::Flags(_)),
                ) => self.types.push((ty, name.to_owned())),
                ComponentItem::Resource(ty) => self.resources.push((ty, name.to_owned())),
                _ => {}
            }
        }
    }

    fn of(&self, ty: &Type) -> Option<&str> {
        self.types.iter().find(|(known, _)| known == ty).map(|(_, name)| name.as_str())
    }

    fn of_resource(&self, ty: &ResourceType) -> &str {
        let found = self.resources.iter().find(|(known, _)| known == ty);
        found.map_or("resource", |(_, name)| name)
    }
}

/// A text that stops growing.
#[derive(Default)]
struct Text(String);

impl Text {
    fn is_full(&self) -> bool {
        self.0.len() > SIGNATURE_BYTES_MAX
    }

    fn push(&mut self, text: &str) {
        if !self.is_full() {
            self.0.push_str(text);
        }
    }

    fn end(mut self) -> String {
        if self.is_full() {
            self.0.truncate(self.0.floor_char_boundary(SIGNATURE_BYTES_MAX));
            self.0.push('…');
        }
        self.0
    }

    fn of(&mut self, names: &Names, word: &str, inner: &[Option<Type>], depth: usize) {
        self.push(word);
        self.push("<");
        for (at, ty) in inner.iter().enumerate() {
            self.push(if at > 0 { ", " } else { "" });
            match ty {
                Some(ty) => self.ty(names, ty, depth + 1),
                None => self.push("_"),
            }
        }
        self.push(">");
    }

    fn words<'a>(&mut self, word: &str, list: impl Iterator<Item = &'a str>) {
        self.push(word);
        self.push(" { ");
        self.push(&list.take(NAMES_MAX).collect::<Vec<_>>().join(", "));
        self.push(" }");
    }

    fn ty(&mut self, names: &Names, ty: &Type, depth: usize) {
        if self.is_full() || depth > DEPTH_MAX {
            return self.push("…");
        }
        if let Some(name) = names.of(ty) {
            return self.push(name);
        }
        match ty {
            Type::Bool => self.push("bool"),
            Type::S8 => self.push("s8"),
            Type::U8 => self.push("u8"),
            Type::S16 => self.push("s16"),
            Type::U16 => self.push("u16"),
            Type::S32 => self.push("s32"),
            Type::U32 => self.push("u32"),
            Type::S64 => self.push("s64"),
            Type::U64 => self.push("u64"),
            Type::Float32 => self.push("f32"),
            Type::Float64 => self.push("f64"),
            Type::Char => self.push("char"),
            Type::String => self.push("string"),
            Type::ErrorContext => self.push("error-context"),
            Type::List(list) => self.of(names, "list", &[Some(list.ty())], depth),
            Type::FixedLengthList(list) => self.of(names, "list", &[Some(list.ty())], depth),
            Type::Map(map) => self.of(names, "map", &[Some(map.key()), Some(map.value())], depth),
            Type::Tuple(tuple) => {
                let inner: Vec<_> = tuple.types().map(Some).collect();
                self.of(names, "tuple", &inner, depth);
            }
            Type::Option(option) => self.of(names, "option", &[Some(option.ty())], depth),
            Type::Result(result) => match (result.ok(), result.err()) {
                (None, None) => self.push("result"),
                (ok, None) => self.of(names, "result", &[ok], depth),
                (ok, err) => self.of(names, "result", &[ok, err], depth),
            },
            Type::Future(future) => self.of(names, "future", &[future.ty()], depth),
            Type::Stream(stream) => self.of(names, "stream", &[stream.ty()], depth),
            Type::Record(record) => self.words("record", record.fields().map(|it| it.name)),
            Type::Variant(variant) => self.words("variant", variant.cases().map(|it| it.name)),
            Type::Enum(words) => self.words("enum", words.names()),
            Type::Flags(words) => self.words("flags", words.names()),
            Type::Own(resource) => self.push(names.of_resource(resource)),
            Type::Borrow(resource) => {
                self.push("borrow<");
                self.push(names.of_resource(resource));
                self.push(">");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn told(world: &World) -> String {
        let side = |word: &str, list: &[Interface]| {
            let mut text = String::new();
            for it in list {
                let lacking = if it.offered { "" } else { " (not offered)" };
                text.push_str(&format!("{word} {}{lacking}\n", it.name));
                for function in &it.functions {
                    text.push_str(&format!("  {function}\n"));
                }
            }
            text
        };
        side("import", &world.imports) + &side("export", &world.exports)
    }

    #[test]
    fn a_component_is_told_in_words_of_wit() {
        let engine = Engine::default();
        let text = r#"(component
            (import "wasi:clocks/monotonic-clock@0.2.0" (instance
                (export "now" (func (result u64)))))
            (import "own:things/store@1.0.0" (instance
                (export "bucket" (type $bucket (sub resource)))
                (type $kind (enum "plain" "sealed"))
                (export "kind" (type $named (eq $kind)))
                (export "[method]bucket.get" (func
                    (param "self" (borrow $bucket)) (param "key" string) (param "as" $named)
                    (result (result (option (list u8)) (error string)))))
                (export "open" (func (param "name" string) (result (own $bucket))))))
        )"#;
        let component = Component::new(&engine, text).expect("a component");
        expect![[r#"
            import wasi:clocks/monotonic-clock@0.2.0
              now: func() -> u64
            import own:things/store@1.0.0 (not offered)
              bucket.get: func(key: string, as: kind) -> result<option<list<u8>>, string>
              open: func(name: string) -> bucket
        "#]]
        .assert_eq(&told(&of_component(&engine, &component)));
    }

    #[test]
    fn a_core_module_is_told_by_module() {
        let text = r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")))"#;
        let module = wasmtime::Module::new(&Engine::default(), text).expect("a module");
        expect![[r#"
            import wasi_snapshot_preview1
              fd_write: func(i32, i32, i32, i32) -> i32
            export module
              _start: func()
        "#]]
        .assert_eq(&told(&of_module(&module)));
    }
}
