//! What this server serves, told to clients in the two forms they know.
//!
//! The *aggregated* form is one document for all groups (`APIGroupDiscoveryList`); a client names
//! it with parameters in `Accept`, and the answer's content type repeats them, or the client takes
//! it for the older form. The *legacy* form is a document for each group and version. Both are
//! rendered from the catalog of what is served.
//!
//! Invariants: documents are a function of the catalog alone, so they are made once for each and
//! carry an entity tag over their bytes; answers to one path differ by `Accept` only, and say so in
//! `Vary`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use wherry_resources::{Group, Kind, Storage, Subresource};

use super::ApiServer;
use super::aggregate::Foreign;
use super::catalog::Catalog;
use super::content;
use super::errors::ApiError;
use super::escape;

/// Media types that `/api` and `/apis` answer in, for the refusal's text.
const MEDIA_TYPES: &str = "application/json, \
    application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList, \
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// The forms of a discovery document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Legacy,
    /// Aggregated, in version `v2` or `v2beta1` of apidiscovery.k8s.io.
    Aggregated(&'static str),
}

impl Form {
    fn content_type(self) -> String {
        match self {
            Form::Legacy => "application/json".to_string(),
            Form::Aggregated(version) => format!(
                "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            ),
        }
    }
}

/// `GET /api`: the core group.
pub async fn api(
    State(server): State<ApiServer>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    core_group(&server.catalog(), &headers, &server.advertise().to_string())
}

/// `GET /apis`: all named groups.
pub async fn apis(
    State(server): State<ApiServer>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let foreign = server.aggregated().foreign(server.store());
    named_groups(&server.catalog(), &foreign, &headers)
}

/// `GET /apis/{group}`.
pub async fn group(
    State(server): State<ApiServer>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let foreign = server.aggregated().foreign(server.store());
    one_group(&server.catalog(), &foreign, &name, &headers).ok_or(ApiError::NoSuchPath)
}

/// `GET /api/v1`.
pub async fn core(
    State(server): State<ApiServer>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    resources(&server.catalog(), "", "v1", &headers).ok_or(ApiError::NoSuchPath)
}

/// `GET /apis/{group}/{version}`.
pub async fn version(
    State(server): State<ApiServer>,
    Path((group, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // The core group has a path of its own.
    let named = Some(group).filter(|group| !group.is_empty()).ok_or(ApiError::NoSuchPath)?;
    resources(&server.catalog(), &named, &version, &headers).ok_or(ApiError::NoSuchPath)
}

fn core_group(catalog: &Catalog, headers: &HeaderMap, address: &str) -> Result<Response, ApiError> {
    let form = form(headers).ok_or(ApiError::NotAcceptable(MEDIA_TYPES))?;
    let document = || match form {
        Form::Legacy => json!({
            "kind": "APIVersions",
            "versions": catalog.groups[0].versions,
            "serverAddressByClientCIDRs": [{
                "clientCIDR": "0.0.0.0/0",
                "serverAddress": address,
            }],
        }),
        Form::Aggregated(version) => aggregated(&catalog.groups[..1], &catalog.kinds, version),
    };
    // The only document with a part that is not in the table.
    let key = format!("/api {address}");
    Ok(answer(&catalog.discovery, &key, form, headers, document))
}

fn named_groups(
    catalog: &Catalog,
    foreign: &[Foreign],
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let form = form(headers).ok_or(ApiError::NotAcceptable(MEDIA_TYPES))?;
    let own = &catalog.groups[1..];
    let document = || match form {
        Form::Legacy => json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": merged(own.iter().map(|it| (it, group_entry(it))), foreign, with_versions),
        }),
        Form::Aggregated(version) => {
            let mut document = aggregated(own, &catalog.kinds, version);
            let items = document["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let items = merged(own.iter().zip(items), foreign, with_resources);
            document["items"] = json!(items);
            document
        }
    };
    if foreign.is_empty() {
        return Ok(answer(&catalog.discovery, "/apis", form, headers, document));
    }
    // What others say changes without the catalog.
    Ok(tagged(&Rendered::of(&document()), form, headers))
}

fn one_group(
    catalog: &Catalog,
    foreign: &[Foreign],
    name: &str,
    headers: &HeaderMap,
) -> Option<Response> {
    let group = catalog.groups[1..].iter().find(|group| group.name == name);
    let foreign = foreign.iter().find(|foreign| foreign.group == name);
    if group.is_none() && foreign.is_none() {
        return None;
    }
    let document = || {
        let mut entry = json!({"kind": "APIGroup", "apiVersion": "v1"});
        let own = group.map_or_else(|| empty_entry(name), group_entry);
        extend(&mut entry, foreign.map_or(own.clone(), |foreign| with_versions(own, foreign)));
        entry
    };
    if foreign.is_some() {
        return Some(tagged(&Rendered::of(&document()), Form::Legacy, headers));
    }
    let key = format!("/apis/{name}");
    Some(answer(&catalog.discovery, &key, Form::Legacy, headers, document))
}

/// The entries of own groups with what others serve of them, and between them the groups that only
/// others serve, by priority.
fn merged<'a>(
    own: impl Iterator<Item = (&'a Group, Value)>,
    foreign: &[Foreign],
    add: fn(Value, &Foreign) -> Value,
) -> Vec<Value> {
    let mut entries: Vec<(i64, Value)> = Vec::new();
    let mut known = Vec::new();
    for (group, entry) in own {
        let others = foreign.iter().find(|foreign| foreign.group == group.name);
        known.push(group.name);
        let entry = others.map_or(entry.clone(), |others| add(entry, others));
        entries.push((group.priority.into(), entry));
    }
    for foreign in foreign.iter().filter(|foreign| !known.contains(&foreign.group.as_str())) {
        let at = entries.iter().position(|(priority, _)| *priority < foreign.priority);
        let entry = add(Value::Null, foreign);
        entries.insert(at.unwrap_or(entries.len()), (foreign.priority, entry));
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn empty_entry(name: &str) -> Value {
    json!({"name": name, "versions": [], "preferredVersion": null})
}

/// Adds versions to a group as `APIGroupList` holds it.
fn with_versions(entry: Value, foreign: &Foreign) -> Value {
    let mut entry = if entry.is_null() { empty_entry(&foreign.group) } else { entry };
    for version in &foreign.versions {
        let row = json!({
            "groupVersion": format!("{}/{}", foreign.group, version.version),
            "version": version.version,
        });
        let versions = entry["versions"].as_array_mut().expect("a list was just made");
        if !versions.contains(&row) {
            versions.push(row);
        }
    }
    entry["preferredVersion"] = entry["versions"][0].clone();
    entry
}

/// Adds versions to a group of the aggregated form.
fn with_resources(entry: Value, foreign: &Foreign) -> Value {
    let mut entry = match entry {
        Value::Null => json!({
            "metadata": {"name": foreign.group, "creationTimestamp": null}, "versions": [],
        }),
        own => own,
    };
    for version in &foreign.versions {
        let versions = entry["versions"].as_array_mut().expect("a list was just made");
        versions.retain(|held| held["version"] != version.version.as_str());
        versions.push(version.aggregated());
    }
    entry
}

fn resources(
    catalog: &Catalog,
    group: &str,
    version: &str,
    headers: &HeaderMap,
) -> Option<Response> {
    let row = catalog.groups.iter().find(|row| row.name == group)?;
    let version = row.versions.iter().find(|served| **served == version)?;
    let document = || resource_list(&catalog.kinds, group, version);
    let key = format!("{group}/{version}");
    Some(answer(&catalog.discovery, &key, Form::Legacy, headers, document))
}

/// The form that the request's `Accept` likes best of those that can be served.
fn form(headers: &HeaderMap) -> Option<Form> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accept = values.collect::<Vec<_>>().join(",");
    if accept.trim().is_empty() {
        return Some(Form::Legacy);
    }
    content::preferred(&accept).into_iter().find_map(media_type_form)
}

fn media_type_form(media_type: &str) -> Option<Form> {
    let mut parts = media_type.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default().to_ascii_lowercase();
    if !matches!(range.as_str(), "application/json" | "application/*" | "*/*") {
        return None;
    }
    let parameters: HashMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
    let named = ["g", "v", "as"].map(|name| parameters.get(name).copied());
    match named {
        [None, None, None] => Some(Form::Legacy),
        [Some("apidiscovery.k8s.io"), Some("v2"), Some("APIGroupDiscoveryList")] => {
            Some(Form::Aggregated("v2"))
        }
        [Some("apidiscovery.k8s.io"), Some("v2beta1"), Some("APIGroupDiscoveryList")] => {
            Some(Form::Aggregated("v2beta1"))
        }
        _ => None,
    }
}

/// A document's bytes with the tag over them.
#[derive(Clone)]
struct Rendered {
    body: Bytes,
    tag: String,
}

/// Documents by path and form. The lock is held for a look-up or an insertion, never across an
/// await; there are as many entries as groups and versions, times three forms.
#[derive(Default)]
pub struct Documents(Mutex<HashMap<(String, Form), Rendered>>);

impl Rendered {
    fn of(document: &Value) -> Rendered {
        let body = encode(document);
        let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
        Rendered { body: body.into(), tag }
    }
}

fn answer(
    documents: &Documents,
    key: &str,
    form: Form,
    headers: &HeaderMap,
    document: impl FnOnce() -> Value,
) -> Response {
    let mut rendered = documents.0.lock().unwrap_or_else(PoisonError::into_inner);
    let entry =
        rendered.entry((key.to_string(), form)).or_insert_with(|| Rendered::of(&document()));
    let entry = entry.clone();
    drop(rendered);
    tagged(&entry, form, headers)
}

/// A document with its tag, or the word that the client has it.
fn tagged(Rendered { body, tag }: &Rendered, form: Form, headers: &HeaderMap) -> Response {
    let mut response = if holds(headers, tag) {
        respond(StatusCode::NOT_MODIFIED, &form.content_type(), Bytes::new())
    } else {
        let mut response = respond(StatusCode::OK, &form.content_type(), body.clone());
        response.extensions_mut().insert(content::Shown(body.clone()));
        response
    };
    let fields = [(ETAG, tag.as_str()), (VARY, "Accept"), (CACHE_CONTROL, "public")];
    for (name, value) in fields {
        let value = value.parse().expect("tags are hexadecimal, the others constants");
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether the client has the document with this tag already.
fn holds(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(','));
    tags.any(|held| held.trim() == "*" || held.trim().trim_start_matches("W/") == tag)
}

fn respond(status: StatusCode, content_type: &str, body: Bytes) -> Response {
    let response = Response::builder().status(status).header(CONTENT_TYPE, content_type);
    response.body(Body::from(body)).expect("status and content type are well-formed")
}

fn encode(document: &Value) -> Vec<u8> {
    let mut body = escape::whole(document.to_string().into_bytes());
    body.push(b'\n');
    body
}

fn aggregated(groups: &[Group], kinds: &[&'static Kind], version: &str) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": groups.iter().map(|group| aggregated_group(group, kinds)).collect::<Vec<_>>(),
    })
}

fn aggregated_group(group: &Group, kinds: &[&'static Kind]) -> Value {
    let mut metadata = Map::new();
    if !group.name.is_empty() {
        metadata.insert("name".to_string(), group.name.into());
    }
    metadata.insert("creationTimestamp".to_string(), Value::Null);
    let version = |version: &&'static str| {
        let rows = rows(kinds, group.name, version);
        json!({
            "version": version,
            "resources": rows.into_iter().map(aggregated_resource).collect::<Vec<_>>(),
            "freshness": "Current",
        })
    };
    json!({
        "metadata": metadata,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    let subresource = |row: &Subresource| {
        json!({
            "subresource": row.name,
            "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
            "verbs": row.verbs,
        })
    };
    let subresources: Vec<Value> = kind.subresources.iter().map(subresource).collect();
    add_list(
        &mut resource,
        "shortNames",
        kind.short_names.iter().copied().map(Value::from).collect(),
    );
    add_list(
        &mut resource,
        "categories",
        kind.categories.iter().copied().map(Value::from).collect(),
    );
    add_list(&mut resource, "subresources", subresources);
    resource
}

/// A group as `APIGroupList` holds it.
fn group_entry(group: &Group) -> Value {
    let version = |version: &&str| {
        let group_version = format!("{}/{version}", group.name);
        json!({"groupVersion": group_version, "version": version})
    };
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(version),
    })
}

fn resource_list(kinds: &[&'static Kind], group: &str, version: &str) -> Value {
    let group_version =
        if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let mut resources = Vec::new();
    for kind in rows(kinds, group, version) {
        resources.push(legacy_resource(kind));
        resources.extend(kind.subresources.iter().map(|row| legacy_subresource(kind, row)));
    }
    resources.sort_by_cached_key(|entry| entry["name"].as_str().unwrap_or_default().to_string());
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    })
}

fn legacy_resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    add_list(
        &mut resource,
        "shortNames",
        kind.short_names.iter().copied().map(Value::from).collect(),
    );
    add_list(
        &mut resource,
        "categories",
        kind.categories.iter().copied().map(Value::from).collect(),
    );
    let stored_as = match kind.storage {
        Storage::Own => Some((kind.group, kind.version)),
        Storage::In { group, version } => Some((group, version)),
        Storage::None => None,
    };
    if let Some((group, version)) = stored_as {
        let custom = kind.custom();
        let version = custom.as_ref().map_or(version, |custom| &custom.storage_version);
        let hash = storage_version_hash(group, version, kind.kind);
        extend(&mut resource, json!({"storageVersionHash": hash}));
    }
    resource
}

fn legacy_subresource(kind: &Kind, row: &Subresource) -> Value {
    let mut resource = json!({
        "name": format!("{}/{}", kind.plural, row.name),
        "singularName": "",
        "namespaced": kind.namespaced,
    });
    if (row.group, row.version) != (kind.group, kind.version) {
        extend(&mut resource, json!({"group": row.group, "version": row.version}));
    }
    extend(&mut resource, json!({"kind": row.kind, "verbs": row.verbs}));
    resource
}

/// The rows of one group and version, by plural.
fn rows(kinds: &[&'static Kind], group: &str, version: &str) -> Vec<&'static Kind> {
    let here = |kind: &&'static Kind| kind.group == group && kind.version == version;
    let mut rows: Vec<&'static Kind> = kinds.iter().copied().filter(here).collect();
    rows.sort_by_key(|kind| kind.plural);
    rows
}

/// Clients compare this to learn that a type's stored form has changed; it is Kubernetes' own
/// digest.
fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    BASE64.encode(&digest[..8])
}

fn add_list(object: &mut Value, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object[key] = Value::Array(list);
    }
}

/// Appends the fields of one object to another.
fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

#[cfg(test)]
mod tests;
