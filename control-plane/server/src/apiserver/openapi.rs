//! The description of the API that clients read before they write: kubectl checks manifests, merges
//! and explains by it.
//!
//! Version 3 is an index and one document for each group and version; version 2 is one document for
//! all. Both are rendered from three sources: the types of `k8s-openapi` ([`schemas`]), the table
//! of kinds ([`paths`]) and the table of merge structure (`wherry_resources::structure`). The same
//! types tell which fields an object may have ([`fields`]).
//!
//! Custom kinds have documents of their own ([`custom`]), which live as long as the catalog that
//! they describe. Aggregated APIs describe themselves: theirs are in the index of version 3, and
//! merged into version 2 ([`merged`]).
//!
//! Invariants: documents of built-in kinds are a function of the binary, so they are made once, at
//! the first request that needs them, away from the threads that serve others; the index names each
//! by a hash of its bytes, and a document asked for by its right hash may be kept for ever.

mod custom;
mod fields;
mod gnostic;
mod merged;
mod paths;
mod schemas;
mod swagger;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, HeaderName, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use wherry_resources::{GROUPS, KINDS, Kind};

pub use self::custom::Custom;
pub use self::fields::{
    REPORTED_MAX, check_part, check_type, did_you_mean, drop_unknown, fill_nulls, schema,
    unknown_fields,
};
pub use self::merged::{Merged, Part};
use super::ApiServer;
use super::catalog::Catalog;
use super::content;
use super::errors::ApiError;
use super::escape;
use crate::contain;

/// How long a document with its hash in the address may be kept: a year, the most that caches
/// honour.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(365 * 24);
const JSON: &str = "application/json";

/// A document and the hash of its bytes.
#[derive(Clone, Debug)]
struct Document {
    media_type: &'static str,
    body: Bytes,
    hash: String,
}

impl Document {
    fn new(document: &Value) -> Document {
        Document::of(JSON, escape::whole(document.to_string().into_bytes()))
    }

    fn of(media_type: &'static str, body: Vec<u8>) -> Document {
        let hash = hex::encode_upper(Sha256::digest(&body));
        Document { media_type, hash, body: body.into() }
    }
}

/// The version 2 document in the two forms that clients ask for.
#[derive(Debug)]
struct Version2 {
    json: Document,
    protobuf: Document,
}

impl Version2 {
    fn of(version_3: &Value) -> Version2 {
        Version2::of_swagger(&swagger::document(version_3))
    }

    fn of_swagger(swagger: &Value) -> Version2 {
        let protobuf = gnostic::encode(swagger);
        Version2 {
            json: Document::new(swagger),
            protobuf: Document::of(gnostic::MEDIA_TYPE, protobuf),
        }
    }

    fn chosen(&self, protobuf: bool) -> Document {
        if protobuf { self.protobuf.clone() } else { self.json.clone() }
    }
}

/// Documents of version 3 by path (`api/v1`, `apis/apps/v1`).
type Version3 = BTreeMap<String, Document>;

static VERSION_3: LazyLock<Version3> = LazyLock::new(make_version_3);
static VERSION_2: LazyLock<Version2> = LazyLock::new(|| Version2::of(&whole_document()));

/// `GET /openapi/v3`.
pub async fn v3(State(server): State<ApiServer>, headers: HeaderMap) -> Result<Response, ApiError> {
    index_of(server.catalog(), server.aggregated().openapi(server.store()), headers).await
}

async fn index_of(
    catalog: Arc<Catalog>,
    foreign: Vec<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    accepts_json(&headers)?;
    let index = off_thread(move || with_foreign(&catalog.openapi().index, foreign)).await?;
    Ok(document_response(&headers, index, &[(CACHE_CONTROL, "no-cache, private".to_string())]))
}

/// `GET /openapi/v3/{group and version}`.
pub async fn v3_document(
    State(server): State<ApiServer>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    document_of(server.catalog(), path, query, headers).await
}

async fn document_of(
    catalog: Arc<Catalog>,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    accepts_json(&headers)?;
    let key = path.clone();
    let document = off_thread(move || {
        let built_in = VERSION_3.get(&key).cloned();
        built_in.or_else(|| catalog.openapi().documents.get(&key).cloned())
    })
    .await?;
    let document = document.ok_or(ApiError::NoSuchPath)?;
    let query = query.unwrap_or_default();
    let pairs = form_urlencoded::parse(query.as_bytes());
    let asked =
        pairs.into_iter().find(|(name, _)| name == "hash").map(|(_, hash)| hash.into_owned());
    Ok(match asked.filter(|hash| !hash.is_empty()) {
        None => {
            let fields = [(CACHE_CONTROL, "no-cache, private".to_string())];
            document_response(&headers, document, &fields)
        }
        Some(hash) if hash == document.hash => {
            let expires = Timestamp::now() + KEPT_FOR;
            let fields = [
                (CACHE_CONTROL, "public, immutable".to_string()),
                (EXPIRES, expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()),
            ];
            document_response(&headers, document, &fields)
        }
        Some(_) => {
            let location = address(&path, &document.hash);
            respond(StatusCode::MOVED_PERMANENTLY, &[(LOCATION, location)], Bytes::new())
        }
    })
}

/// `GET /openapi/v2`, in JSON or protobuf, whichever is liked better.
pub async fn v2(State(server): State<ApiServer>, headers: HeaderMap) -> Result<Response, ApiError> {
    let foreign = server.aggregated().openapi_v2(server.store());
    let catalog = server.catalog();
    if foreign.is_empty() {
        return whole_of(&headers, move |protobuf| ours(&catalog, |ours| ours.chosen(protobuf)))
            .await;
    }
    let merged = move |protobuf| {
        let merged = &server.aggregated().merged;
        ours(&catalog, |ours| merged.of(ours, &foreign)).chosen(protobuf)
    };
    whole_of(&headers, merged).await
}

/// Answers with a form of version 2; `render` is told whether it is to be protobuf.
async fn whole_of(
    headers: &HeaderMap,
    render: impl FnOnce(bool) -> Document + Send + 'static,
) -> Result<Response, ApiError> {
    let protobuf = wants_protobuf(headers)?;
    let document = off_thread(move || render(protobuf)).await?;
    Ok(document_response(headers, document, &[(CACHE_CONTROL, "no-cache, private".to_string())]))
}

/// Reads version 2 of everything that is served here.
fn ours<T>(catalog: &Catalog, read: impl FnOnce(&Version2) -> T) -> T {
    match catalog.custom.is_empty() {
        true => read(&VERSION_2),
        false => read(catalog.openapi().version_2()),
    }
}

/// Rendering takes a good part of a second, once.
async fn off_thread<T: Send + 'static>(
    render: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let rendered = tokio::task::spawn_blocking(|| contain::sync(render)).await;
    let rendered = rendered
        .map_err(|error| ApiError::Internal(format!("rendering the OpenAPI documents: {error}")))?;
    Ok(rendered.unwrap_or_else(|panic| panic.resume()))
}

fn accepts_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if accepted(headers).iter().any(|range| is_json(range)) {
        return Ok(());
    }
    Err(ApiError::NotAcceptable(JSON))
}

/// Whether the first acceptable form of version 2 is protobuf.
fn wants_protobuf(headers: &HeaderMap) -> Result<bool, ApiError> {
    const BOTH: &str =
        "application/json, application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let protobuf = |range: &str| [gnostic::MEDIA_TYPE, gnostic::MEDIA_TYPE_BEFORE].contains(&range);
    let ranges = accepted(headers);
    let first = ranges.iter().find(|range| is_json(range) || protobuf(range));
    first.map(|range| protobuf(range)).ok_or(ApiError::NotAcceptable(BOTH))
}

/// The media ranges of a request, without parameters, the best liked first.
fn accepted(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accept = values.collect::<Vec<_>>().join(",");
    let bare = |range: &str| range.split(';').next().unwrap_or_default().trim().to_owned();
    content::preferred(&accept).into_iter().map(bare).collect()
}

fn is_json(range: &str) -> bool {
    matches!(range, JSON | "application/*" | "*/*" | "")
}

fn document_response(
    headers: &HeaderMap,
    document: Document,
    fields: &[(HeaderName, String)],
) -> Response {
    let tag = format!("\"{}\"", document.hash);
    let held = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut held = held.flat_map(|value| value.split(',')).map(str::trim);
    let known = held.any(|held| held == "*" || held.trim_start_matches("W/") == tag);
    let mut all = vec![
        (CONTENT_TYPE, document.media_type.to_string()),
        (ETAG, tag),
        (VARY, "Accept".to_string()),
    ];
    all.extend_from_slice(fields);
    if known {
        return respond(StatusCode::NOT_MODIFIED, &all, Bytes::new());
    }
    respond(StatusCode::OK, &all, document.body)
}

fn respond(status: StatusCode, fields: &[(HeaderName, String)], body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for (name, value) in fields {
        let value = value.parse().expect("made of constants, hashes, dates and known paths");
        response.headers_mut().insert(name, value);
    }
    response
}

/// The index with the documents of others.
fn with_foreign(index: &Document, foreign: Vec<(String, String)>) -> Document {
    if foreign.is_empty() {
        return index.clone();
    }
    let mut whole: Value = serde_json::from_slice(&index.body).expect("the index is JSON");
    for (path, address) in foreign {
        whole["paths"][path] = json!({"serverRelativeURL": address});
    }
    Document::new(&whole)
}

/// Where the document of a group and version is.
fn address(path: &str, hash: &str) -> String {
    format!("/openapi/v3/{path}?hash={hash}")
}

/// Documents of the built-in kinds.
fn make_version_3() -> Version3 {
    let schemas = schemas::Schemas::generate();
    let mut documents = BTreeMap::new();
    for group in GROUPS {
        for version in group.versions.iter() {
            let only = Some((group.name, *version));
            let document = Document::new(&document(&schemas, KINDS.iter(), only));
            documents.insert(group_version_path(group.name, version), document);
        }
    }
    documents
}

/// The index over documents.
fn index<'a>(documents: impl Iterator<Item = (&'a String, &'a Document)>) -> Document {
    let entry = |(path, document): (&String, &Document)| {
        (path.clone(), json!({"serverRelativeURL": address(path, &document.hash)}))
    };
    let paths: Map<String, Value> = documents.map(entry).collect();
    Document::new(&json!({"paths": paths}))
}

/// The whole API in one version 3 document.
fn whole_document() -> Value {
    document(&schemas::Schemas::generate(), KINDS.iter(), None)
}

/// The document of one group and version, or of all.
fn document<'a>(
    schemas: &schemas::Schemas,
    kinds: impl Iterator<Item = &'a Kind>,
    only: Option<(&str, &str)>,
) -> Value {
    let mut paths = Map::new();
    let mut roots = Vec::new();
    for kind in kinds {
        if only.is_none_or(|only| only == (kind.group, kind.version)) {
            paths::add(schemas, kind, &mut paths, &mut roots);
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": super::GIT_VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas.reachable(roots),
            "securitySchemes": {
                "BearerToken": {
                    "type": "apiKey",
                    "description": "Bearer Token authentication",
                    "in": "header",
                    "name": "authorization",
                },
            },
        },
    })
}

/// `api/v1` or `apis/apps/v1`.
fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}
