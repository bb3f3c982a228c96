//! The stored form of objects, and the way between it and the wire.
//!
//! The store holds compact JSON in the wire's key order (`kind`, `apiVersion`, `metadata` with the
//! `uid` before everything that a user may fill, …) without `resourceVersion`: that is the
//! revision of the write, which only the store knows. Since the order is fixed, the revision is
//! spliced in behind the uid without reading the rest, so a list or a watch event of plain JSON
//! never parses an object.
//!
//! Objects of custom kinds are stored the same way, in their storage version. They are read in
//! another version, get defaults that came after them, and are shown with their keys in
//! alphabetical order, so each of them is parsed.

use std::borrow::Cow;
use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use wherry_resources::read::{self, Paths};
use wherry_resources::{Kind, Object, Storage, convert, keys, meta};
use wherry_store::{Entry, Revision};

use super::content::Accepted;
use super::escape;

/// `,"resourceVersion":"18446744073709551615"`
const RESOURCE_VERSION_BYTES_MAX: usize = 41;

/// The row under which objects of this kind are kept (HPA v1 is kept as v2, and so on).
fn home(kind: &'static Kind) -> &'static Kind {
    kind.stored_as().expect("only stored kinds have routes that read or write the store")
}

/// Store key of one object; `namespace` is empty for cluster-scoped kinds.
pub fn key(kind: &'static Kind, namespace: &str, name: &str) -> Bytes {
    let home = home(kind);
    keys::object(home.group, home.plural, namespace, name).into()
}

/// Store prefix of a kind, or of one of its namespaces.
pub fn prefix(kind: &'static Kind, namespace: Option<&str>) -> Bytes {
    let home = home(kind);
    match namespace {
        Some(namespace) => keys::in_namespace(home.group, home.plural, namespace).into(),
        None => keys::of_type(home.group, home.plural).into(),
    }
}

/// Bytes for the store.
pub fn encode(kind: &'static Kind, object: &Object) -> Bytes {
    into_bytes(kind, object.clone())
}

/// The same, of an object that nobody needs any more.
pub fn into_bytes(kind: &'static Kind, mut object: Object) -> Bytes {
    if kind.storage != Storage::Own {
        object = convert::to(kind, home(kind), object);
    }
    if let Some(definition) = kind.custom().filter(|definition| definition.conversion.is_none()) {
        object["apiVersion"] = format!("{}/{}", kind.group, definition.storage_version).into();
    }
    plain_bytes(&mut object)
}

/// The same, of a kind that is stored as it is shown ([`is_plain`]). Takes the resourceVersion out.
pub fn plain_bytes(object: &mut Object) -> Bytes {
    assert!(!meta::uid(object).is_empty(), "an object has a uid before it is stored");
    meta::set(object, "resourceVersion", "");
    meta::order(object);
    serde_json::to_vec(object).expect("an object has only string keys").into()
}

/// The object in an entry, with its resourceVersion.
pub fn decode(kind: &'static Kind, entry: &Entry) -> Object {
    decode_at(kind, &entry.value, entry.modified)
}

/// The same with another revision: a deleted object shows the revision of its deletion.
pub fn decode_at(kind: &'static Kind, value: &[u8], revision: Revision) -> Object {
    let bytes = splice(value, revision);
    into_kind(kind, read::object(&bytes).expect("encode wrote JSON"))
}

/// Who manages which fields is half of what there is to read, and no table shows it.
const UNPRINTED: Paths = &[&["metadata", "managedFields"]];
/// Of Pods, which there are most of, also what is given to each of them and is in no table, no
/// state and no selector.
const UNPRINTED_OF_PODS: Paths = &[
    &["metadata", "managedFields"],
    &["spec", "volumes"],
    &["spec", "tolerations"],
    &["spec", "affinity"],
    &["spec", "topologySpreadConstraints"],
];

/// What others say of an object: how it is, and who manages which fields.
const SAID: Paths = &[&["metadata", "managedFields"], &["status"]];

/// What is wanted of an object: as it is stored, without a revision and without what is said of it.
pub fn decode_wanted(value: &[u8]) -> Object {
    read::without(SAID, value).expect("encode wrote JSON objects")
}

/// The object without what printing does not need.
pub fn decode_to_print(kind: &'static Kind, value: &[u8], revision: Revision) -> Object {
    let paths = if is_pod(kind) { UNPRINTED_OF_PODS } else { UNPRINTED };
    decode_without(paths, kind, value, revision)
}

/// What is stored of an object, as far as a client wants to read it. Of kinds that are stored as
/// they are shown ([`is_plain`]) the record of managers can be left out.
pub fn accepted<'a>(kind: &Kind, accepted: Accepted, value: &'a [u8]) -> Cow<'a, [u8]> {
    let leaves_out = !accepted.managers && is_plain(kind);
    match leaves_out.then(|| managers(value)).flatten() {
        Some(record) => [&value[..record.start], &value[record.end..]].concat().into(),
        None => value.into(),
    }
}

/// Where the record of managers stands among an object's metadata, with the comma before it.
fn managers(value: &[u8]) -> Option<Range<usize>> {
    const KEY: &[u8] = b"\"managedFields\":[";
    let mut at = start_of_metadata(value) + 1;
    loop {
        match value.get(at)? {
            b'"' if value[at..].starts_with(KEY) => {
                return Some(at - 1..end_of_value(value, at + KEY.len() - 1)?);
            }
            b'"' => at = end_of_text(value, at)? + 1,
            b'{' | b'[' => at = end_of_value(value, at)?,
            b'}' => return None,
            _ => at += 1,
        }
    }
}

/// Where the metadata begin. Before them stand only kind and apiVersion, which hold no quotes.
fn start_of_metadata(value: &[u8]) -> usize {
    const METADATA: &[u8] = b"\"metadata\":";
    find(value, METADATA).expect("encode wrote metadata") + METADATA.len()
}

/// The place behind the object or list that begins at `at`.
fn end_of_value(value: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match value.get(at)? {
            b'"' => at = end_of_text(value, at)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// The quote that ends the text which begins with the one at `at`.
fn end_of_text(value: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += 1;
        match value.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 1,
            _ => {}
        }
    }
}

/// Whether objects of this kind are stored as they are shown, but for their revision.
pub fn is_plain(kind: &Kind) -> bool {
    kind.custom.is_none() && kind.storage == Storage::Own
}

fn is_pod(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("", "pods")
}

fn decode_without(paths: Paths, kind: &'static Kind, value: &[u8], revision: Revision) -> Object {
    let bytes = splice(value, revision);
    into_kind(kind, read::without(paths, &bytes).expect("encode wrote JSON objects"))
}

fn into_kind(kind: &'static Kind, mut object: Object) -> Object {
    if kind.custom.is_some() {
        object = crate::apiserver::custom::read(kind, object);
    }
    if kind.storage != Storage::Own {
        object = convert::to(home(kind), kind, object);
        meta::order(&mut object);
    }
    object
}

/// JSON of the object with its resourceVersion, as it is sent.
pub fn json(kind: &'static Kind, value: &[u8], revision: Revision) -> Vec<u8> {
    escape::whole(match kind.storage {
        _ if kind.custom.is_some() => {
            let mut object = decode_at(kind, value, revision);
            object.sort_all_objects();
            object.to_string().into_bytes()
        }
        Storage::Own => splice(value, revision),
        _ => decode_at(kind, value, revision).to_string().into_bytes(),
    })
}

/// Writes JSON as an item of a list, where kind and apiVersion are not repeated, except of custom
/// kinds.
pub fn write_item(kind: &'static Kind, value: &[u8], revision: Revision, out: &mut Vec<u8>) {
    if kind.custom.is_some() {
        out.extend_from_slice(&json(kind, value, revision));
        return;
    }
    let own;
    let value = match kind.storage {
        Storage::Own => value,
        _ => {
            own = json(kind, value, revision);
            &own
        }
    };
    let metadata = find(value, b"\"metadata\":").expect("encode wrote metadata");
    let start = out.len();
    out.push(b'{');
    match kind.storage {
        Storage::Own => write_spliced(&value[metadata..], revision, out),
        _ => out.extend_from_slice(&value[metadata..]),
    }
    escape::tail(out, start);
}

/// Writes the metadata of an object alone, of a kind that is stored as it is shown ([`is_plain`]).
pub fn write_metadata(entry: &Entry, version: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    let from = start_of_metadata(&entry.value);
    let end = end_of_value(&entry.value, from).expect("encode wrote metadata");
    write_spliced(&entry.value[from..end], entry.modified, out);
    out.push(b'}');
    escape::tail(out, start);
}

/// Puts `"resourceVersion":"N"` behind the uid. Before the uid stand only kind, apiVersion, name,
/// generateName and namespace, none of which can hold a quote, so the first match is the right one.
fn splice(value: &[u8], revision: Revision) -> Vec<u8> {
    let mut json = Vec::with_capacity(value.len() + RESOURCE_VERSION_BYTES_MAX);
    write_spliced(value, revision, &mut json);
    json
}

fn write_spliced(value: &[u8], revision: Revision, out: &mut Vec<u8>) {
    const UID: &[u8] = b"\"uid\":\"";
    let start = find(value, UID).expect("encode wrote a uid") + UID.len();
    let end = value[start..].iter().position(|byte| *byte == b'"').expect("the uid ends");
    let end = start + end + 1;
    out.extend_from_slice(&value[..end]);
    write!(out, ",\"resourceVersion\":\"{revision}\"").expect("memory takes what is written");
    out.extend_from_slice(&value[end..]);
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, pattern)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::content::{self, Form};
    use serde_json::{Value, json};

    #[test]
    fn clients_without_managers_get_the_same_without_them() {
        let kind = wherry_resources::kind("apps", "v1", "deployments").expect("a built-in kind");
        let wants =
            |managers: bool| Accepted { form: Form::Object, yaml: false, pretty: false, managers };
        let managers = json!([
            {"manager": "]}\"", "fieldsV1": {"k:{\"name\":\"[\"}": {".": {}}}}, {"x": [[]]},
        ]);
        let object = |metadata: Value| {
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1", "metadata": metadata,
                "spec": {"template": {"metadata": {"a": 1, "managedFields": managers}}},
            })
        };
        let said = json!({"a": ",\"managedFields\":[", "managedFields": "[\\"});
        let bare = json!({"name": "managedFields", "uid": "u", "annotations": said});
        let mut managed = bare.clone();
        managed["managedFields"] = managers.clone();
        let mut followed = managed.clone();
        followed["other"] = json!([1]);
        let mut left = bare.clone();
        left["other"] = json!([1]);
        let cases = [(bare.clone(), bare.clone()), (managed, bare), (followed, left)];
        for (metadata, expected) in cases {
            let stored = object(metadata).to_string();
            let shown = accepted(kind, wants(false), stored.as_bytes());
            assert_eq!(String::from_utf8_lossy(&shown), object(expected).to_string());
            assert_eq!(&*accepted(kind, wants(true), stored.as_bytes()), stored.as_bytes());
        }
    }

    #[test]
    fn what_is_printed_is_the_object_without_its_managers() {
        let kind = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        let mut object = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "n", "uid": "u-1", "resourceVersion": "7",
                "labels": {"managedFields": "x"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}]},
            "data": {"managedFields": "y", "metadata": "z"},
        });
        let stored = encode(kind, &object);
        assert_eq!(decode_at(kind, &stored, 7), object);
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        assert_eq!(decode_to_print(kind, &stored, 7), object);
    }

    #[test]
    fn what_is_left_out_of_a_pod_is_in_no_table_and_no_selector() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "n", "uid": "u-1", "labels": {"app": "a"},
                "managedFields": [{"manager": "m"}]},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "nodeName": "east",
                "containers": [{"name": "c", "image": "i"}], "tolerations": [{"key": "k"}],
                "affinity": {"nodeAffinity": {}}, "restartPolicy": "Always",
                "readinessGates": [{"conditionType": "g"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}}}]},
        });
        let stored = encode(kind, &pod);
        let (whole, short) = (decode_at(kind, &stored, 7), decode_to_print(kind, &stored, 7));
        assert!(short["spec"].get("volumes").is_none() && short["spec"]["nodeName"] == "east");
        let now = jiff::Timestamp::UNIX_EPOCH;
        let cells = |object| wherry_resources::table::cells(kind, object, now);
        assert_eq!(cells(&short), cells(&whole));
        let state = |object| wherry_resources::state::of(kind, object);
        assert_eq!(state(&short), state(&whole));
        let selectable = |object| wherry_resources::fields::selectable(kind, object);
        assert_eq!(selectable(&short), selectable(&whole));
    }

    #[test]
    fn metadata_is_written_alone_as_it_is_with_the_rest() {
        let kind = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "n", "uid": "u-1",
                "annotations": {"b": "}\\\"<{", "\"c\"": "]"}, "finalizers": ["x/y", "}"],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}]},
            "data": {"metadata": "{\"uid\":\"x\"}"},
        });
        let entry = Entry { value: encode(kind, &object), created: 3, modified: 7 };
        let mut alone = b"[".to_vec();
        write_metadata(&entry, "v1", &mut alone);
        let shown = content::metadata_only(decode(kind, &entry), "v1");
        assert_eq!(shown["metadata"]["resourceVersion"], "7");
        let expected = escape::whole(shown.to_string().into_bytes());
        assert_eq!(alone[1..], expected);
    }

    #[test]
    fn revision_stands_behind_the_uid() {
        let kind = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        let object = json!({
            "data": {"uid": "\"uid\":\"x\""}, "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"labels": {"uid": "y"}, "uid": "u-1", "name": "uid", "namespace": "n",
                "resourceVersion": "3"},
        });
        let stored = encode(kind, &object);
        assert_eq!(
            String::from_utf8_lossy(&json(kind, &stored, 7)),
            "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"uid\",\
             \"namespace\":\"n\",\"uid\":\"u-1\",\"resourceVersion\":\"7\",\
             \"labels\":{\"uid\":\"y\"}},\
             \"data\":{\"uid\":\"\\\"uid\\\":\\\"x\\\"\"}}"
        );
        let mut item = Vec::new();
        write_item(kind, &stored, 7, &mut item);
        let whole = json(kind, &stored, 7);
        assert_eq!(item[1..], whole[whole.len() - item.len() + 1..]);
        assert!(item.starts_with(b"{\"metadata\":{\"name\":\"uid\""));
    }

    #[test]
    fn what_is_sent_is_escaped_and_what_is_stored_is_not() {
        let kind = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "n", "uid": "u-1", "resourceVersion": "7"},
            "data": {"k": "a<b&c>d"},
        });
        let stored = encode(kind, &object);
        assert!(find(&stored, b"a<b&c>d").is_some());
        assert_eq!(decode_at(kind, &stored, 7), object);
        let whole = json(kind, &stored, 7);
        assert!(find(&whole, b"a\\u003cb\\u0026c\\u003ed").is_some());
        assert_eq!(serde_json::from_slice::<Value>(&whole).expect("JSON"), object);
        let mut items = b"[".to_vec();
        write_item(kind, &stored, 7, &mut items);
        assert_eq!(items[2..], whole[whole.len() + 2 - items.len()..]);
    }
}
