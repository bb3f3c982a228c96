//! Makes the table of messages (`messages.txt`) from the sources of two crates, and holds it
//! against them.
//!
//! `k8s-pb` has every message with its field numbers and types as prost structs, but neither JSON
//! names nor descriptors; `k8s-openapi` has the JSON names. Both are read as text, so that neither
//! has to be compiled here for the table. What no source says is whether a zero means something
//! (the `*` of the table): that is kept from the table as it stands, and a field that is new gets a
//! `*`, because new fields of Kubernetes are pointers.
//!
//! The test runs where cargo's registry holds the sources of [`K8S_PB`]; elsewhere it has nothing
//! to compare with. With `UPDATE_EXPECT=1` it writes the table instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The crate whose messages the table holds.
const K8S_PB: &str = "k8s-pb-0.9.0";
/// The crate whose JSON names the table holds, and the newest version of the API inside it.
const K8S_OPENAPI: &str = "k8s-openapi-0.29.0";
const K8S_OPENAPI_FOLDER: &str = "src/v1_37";

/// Every message with object metadata in these folders is in the table, and what it refers to.
const FOLDERS: &[&str] = &[
    "api/admissionregistration/v1",
    "api/apps/v1",
    "api/authentication/v1",
    "api/authorization/v1",
    "api/autoscaling/v1",
    "api/autoscaling/v2",
    "api/batch/v1",
    "api/certificates/v1",
    "api/coordination/v1",
    "api/core/v1",
    "api/discovery/v1",
    "api/events/v1",
    "api/flowcontrol/v1",
    "api/networking/v1",
    "api/node/v1",
    "api/policy/v1",
    "api/rbac/v1",
    "api/scheduling/v1",
    "api/storage/v1",
    "apiextensions_apiserver/pkg/apis/apiextensions/v1",
    "kube_aggregator/pkg/apis/apiregistration/v1",
];

/// Messages without object metadata that clients send as bodies of their own.
const OTHER_ROOTS: &[&str] = &["apimachinery/pkg/apis/meta/v1/DeleteOptions"];

/// Messages whose JSON is not an object of their fields: the last segments of the name, the word of
/// the table.
const LEAVES: &[(&str, &str)] = &[
    ("meta/v1/Time", "Time"),
    ("meta/v1/MicroTime", "MicroTime"),
    ("meta/v1/FieldsV1", "Json"),
    ("runtime/RawExtension", "Json"),
    ("apiextensions/v1/Json", "Json"),
    ("apiextensions/v1/JsonSchemaPropsOrBool", "SchemaOrBool"),
    ("apiextensions/v1/JsonSchemaPropsOrArray", "SchemaOrArray"),
    ("apiextensions/v1/JsonSchemaPropsOrStringArray", "SchemaOrStrings"),
    ("resource/Quantity", "Quantity"),
    ("intstr/IntOrString", "IntOrString"),
    ("v1/ExtraValue", "Strings"),
];

const HEAD: &str = "\
# Protobuf messages of the built-in kinds, made from the sources of k8s-pb and k8s-openapi by
# generate.rs. A message stands alone on its line, its fields below it: number, JSON name (`-`: the
# fields of the message belong to the parent), type. `[]T` is a list, `{}T` a map, `*T` a value
# whose zero or emptiness means something; of the others a zero or an empty message says nothing
# and is left out. Which is which comes from Kubernetes' own types and is kept by hand.
";

/// One field of a message as the source of `k8s-pb` has it.
struct Field {
    number: String,
    /// Lower case without underscores, so that spellings of one name compare equal.
    name: String,
    /// The name in lower camel case, for messages of which no JSON names are known.
    camel: String,
    /// `[]`, `{}` or nothing.
    many: &'static str,
    /// A scalar's word, or a message's path such as `api/core/v1/PodSpec`.
    kind: String,
}

type Messages = BTreeMap<String, Vec<Field>>;
/// Message path in lower case -> JSON names.
type JsonNames = BTreeMap<String, Vec<String>>;

/// The whole table: everything that can be reached from the roots.
fn render(messages: &Messages, names: &JsonNames, weak: &BTreeSet<String>) -> String {
    let mut waiting: Vec<&str> = OTHER_ROOTS.to_vec();
    for (path, fields) in messages {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let has_metadata = fields.iter().any(|field| field.kind.ends_with("meta/v1/ObjectMeta"));
        if FOLDERS.contains(&folder) && has_metadata {
            waiting.push(path);
        }
    }
    let mut reached = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        if leaf(path).is_some() || !reached.insert(path) {
            continue;
        }
        let refers = messages[path].iter().filter(|field| field.kind.contains('/'));
        waiting.extend(refers.map(|field| field.kind.as_str()));
    }
    let mut table = HEAD.to_string();
    for path in reached {
        let short = short(path);
        let _ = writeln!(table, "\n{short}");
        for field in &messages[path] {
            let name = json_name(path, field, messages, names);
            let kind =
                field_type(path, field, name == "-", weak.contains(&format!("{short} {name}")));
            let _ = writeln!(table, "{} {name} {kind}", field.number);
        }
    }
    table
}

fn field_type(path: &str, field: &Field, inline: bool, weak: bool) -> String {
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_string());
    let word = match leaf(&field.kind) {
        Some(word) => word.to_string(),
        None if !field.kind.contains('/') => field.kind.clone(),
        None if folder(&field.kind) == folder(path) => {
            short(&field.kind).rsplit_once('.').map_or(String::new(), |(_, name)| name.to_string())
        }
        None => short(&field.kind),
    };
    let star = if field.many.is_empty() && !inline && !weak { "*" } else { "" };
    format!("{}{star}{word}", field.many)
}

/// The JSON name of a field; `-` when its message's fields stand in the parent.
fn json_name(path: &str, field: &Field, messages: &Messages, names: &JsonNames) -> String {
    let of = |path: &str| names.get(&path.to_lowercase());
    let known = |path: &str, name: &str| {
        of(path).and_then(|names| names.iter().find(|json| plain(json) == name))
    };
    if let Some(json) = known(path, &field.name) {
        return json.clone();
    }
    let inner = messages.get(&field.kind).filter(|_| of(path).is_some() && field.many.is_empty());
    // A nested message all of whose fields (or nested messages) the parent has by name stands in
    // the parent.
    let inlined = |inner: &Vec<Field>| inner.iter().any(|inner| known(path, &inner.name).is_some());
    if inner.is_some_and(inlined) {
        return "-".to_string();
    }
    // A message that only ever stands in a parent has no definition of its own; its names do,
    // somewhere.
    let anywhere = || names.values().flatten().find(|json| plain(json) == field.name);
    anywhere().unwrap_or(&field.camel).clone()
}

/// A JSON name without case and signs: `$ref` and `x-kubernetes-map-type` are `ref` and
/// `xKubernetesMapType` in messages.
fn plain(json: &str) -> String {
    json.replace(['$', '-'], "").to_lowercase()
}

fn leaf(path: &str) -> Option<&'static str> {
    let leaf = LEAVES.iter().find(|(tail, _)| path.ends_with(&format!("/{tail}")));
    leaf.map(|(_, word)| *word)
}

/// `api/core/v1/PodSpec` -> `core/v1.PodSpec`.
fn short(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        [.., group, version, name] => format!("{group}/{version}.{name}"),
        _ => path.to_string(),
    }
}

/// All messages of one source file of `k8s-pb`; `folder` is where the file is, below `src`.
fn parse_messages(folder: &str, source: &str, messages: &mut Messages) {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{} ", line.trim()))
        .collect();
    for part in code.split("::prost::Message)] ").skip(1) {
        let Some((name, body)) =
            part.strip_prefix("pub struct ").and_then(|rest| rest.split_once('{'))
        else {
            continue;
        };
        let body = body.split_once('}').map_or(body, |(body, _)| body);
        let fields = body.split("#[prost(").skip(1).filter_map(|text| parse_field(folder, text));
        messages.insert(format!("{folder}/{}", name.trim()), fields.collect());
    }
}

/// A field from `message, optional, tag = "1")] pub metadata: Option<..>,`.
fn parse_field(folder: &str, text: &str) -> Option<Field> {
    let (attributes, declaration) = text.split_once(")] pub ")?;
    let (name, rust_type) = declaration.split_once(':')?;
    let name = name.trim().trim_start_matches("r#");
    let number = attributes.split("tag = \"").nth(1)?.split('"').next()?.to_string();
    let map =
        attributes.strip_prefix("btree_map = \"string, ").and_then(|rest| rest.split('"').next());
    let scalar = map.unwrap_or_else(|| attributes.split([',', ' ']).next().unwrap_or_default());
    let many = match map {
        Some(_) => "{}",
        None if attributes.contains("repeated") => "[]",
        None => "",
    };
    let kind = match scalar {
        "message" => resolve(folder, rust_type),
        scalar => scalar.to_string(),
    };
    let mut camel = String::new();
    for (index, word) in name.split('_').enumerate() {
        let head = word.get(..1).unwrap_or_default();
        let tail = word.get(1..).unwrap_or_default();
        camel += &if index == 0 { word.to_string() } else { head.to_uppercase() + tail };
    }
    Some(Field { number, name: name.replace('_', ""), camel, many, kind })
}

/// The path of the message that a Rust type names, seen from a folder:
/// `super::super::core::v1::PodSpec`.
fn resolve(folder: &str, rust_type: &str) -> String {
    let cleaned = rust_type.trim().trim_end_matches(',').replace(['>', ' '], "").replace(',', "<");
    let inner = cleaned.trim_end_matches('<').rsplit('<').next().unwrap_or_default();
    let mut path: Vec<&str> = folder.split('/').collect();
    for segment in inner.split("::").filter(|segment| !segment.is_empty()) {
        if segment == "super" {
            path.pop();
        } else {
            path.push(segment);
        }
    }
    path.join("/")
}

/// The JSON names in one source file of `k8s-openapi`.
fn parse_names(source: &str, names: &mut JsonNames) {
    let Some(definition) =
        source.lines().find_map(|line| line.strip_prefix("// Generated from definition io.k8s."))
    else {
        return;
    };
    let fields = source.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix('"')?.split_once('"')?;
        rest.starts_with(" => Field::Key_").then(|| name.to_string())
    });
    let path = definition.replace('.', "/").replace('-', "_").to_lowercase();
    names.entry(path).or_default().extend(fields);
}

/// Fields of the table as it stands whose zero says nothing: `core/v1.Container image`.
fn weak_fields(table: &str) -> BTreeSet<String> {
    let mut weak = BTreeSet::new();
    let mut message = "";
    for line in table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some(_), Some(name), Some(kind)) if !kind.starts_with(['*', '[', '{']) => {
                weak.insert(format!("{message} {name}"));
            }
            (Some(head), None, None) => message = head,
            _ => {}
        }
    }
    weak
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The unpacked sources of a crate in cargo's registry, if they are on this machine.
fn registry_source(name: &str) -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let indexes = fs::read_dir(home.join("registry/src")).ok()?;
    indexes.flatten().map(|index| index.path().join(name)).find(|path| path.is_dir())
}

fn table_from(k8s_pb: &Path, k8s_openapi: &Path, old: &str) -> io::Result<String> {
    let (mut messages, mut names) = (Messages::new(), JsonNames::new());
    let mut files = Vec::new();
    rust_files(&k8s_pb.join("src"), &mut files)?;
    for file in files {
        let below = file.strip_prefix(k8s_pb.join("src")).expect("found below this folder");
        let folder = below.parent().and_then(Path::to_str).unwrap_or_default().to_string();
        parse_messages(&folder, &fs::read_to_string(&file)?, &mut messages);
    }
    let mut files = Vec::new();
    rust_files(&k8s_openapi.join(K8S_OPENAPI_FOLDER), &mut files)?;
    for file in files {
        parse_names(&fs::read_to_string(&file)?, &mut names);
    }
    Ok(render(&messages, &names, &weak_fields(old)))
}

#[test]
fn table_is_what_the_crates_say() {
    let (Some(k8s_pb), Some(k8s_openapi)) = (registry_source(K8S_PB), registry_source(K8S_OPENAPI))
    else {
        return;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protobuf/messages.txt");
    let old = fs::read_to_string(&file).unwrap_or_default();
    let new = table_from(&k8s_pb, &k8s_openapi, &old).expect("sources are readable");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&file, &new).expect("the table is writable");
    } else {
        assert!(old == new, "messages.txt is out of date: run this test with UPDATE_EXPECT=1");
    }
}
