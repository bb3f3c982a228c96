//! The image registry inside the control plane: the OCI distribution protocol under `/v2/`, over a
//! folder.
//!
//! Words, as the specification has them: a *repository* is a name such as `team/hello`; it holds
//! *blobs* (bytes by digest), *manifests* (small documents by digest that name blobs) and *tags*
//! (names for manifests). A push uploads blobs, in one request or in chunks, and then the manifest;
//! a pull reads the manifest, then its blobs.
//!
//! ```text
//! Route::parse  ->  handle  ->  Files: <folder>/<repository>/{blobs,manifests,tags,uploads}
//! (reference.rs)    (here)      (files.rs)
//! ```
//!
//! Invariants: nothing becomes visible before it is whole, its digest is verified and it is on the
//! disk; a path on the disk is made of checked words only; who may push and pull is decided by the
//! caller before a request gets here.

mod error;
mod files;
mod reference;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::Response;
use futures::StreamExt as _;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderName, LINK, LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};

use self::error::Error;
use self::files::{Files, Upload};
use self::reference::{Digest, Name, Reference, Route};
use super::{ApiServer, elsewhere};

/// Where the registry keeps its files, below the data folder.
const FOLDER: &str = "registry";
/// Largest blob. A Wasm module may have 50 MiB; this leaves room for other layers of an artifact.
const BLOB_BYTES_MAX: u64 = 200 << 20;
/// Largest manifest, as the specification suggests.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Uploads that may be under way in one repository: bounds the disk that unfinished pushes take.
const UPLOADS_MAX: usize = 32;
/// Tags in one answer; the `Link` header leads to the rest.
const TAGS_PAGE_MAX: usize = 1_000;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Everything below `/v2`. Request bodies are streamed and have their own limits here, so no
/// smaller limit and no short deadline may stand in front. What is not here another member may
/// have.
pub async fn serve(State(server): State<ApiServer>, request: Request<Body>) -> Response {
    let files = Files::new(server.data_dir().join(FOLDER));
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return answer(&files, request).await;
    }
    let (parts, body) = request.into_parts();
    let response = answer(&files, Request::from_parts(parts.clone(), body)).await;
    if response.status() == StatusCode::NOT_FOUND
        && let Some(found) = elsewhere::ask_around(&server, &parts).await
    {
        return found;
    }
    response
}

async fn answer(files: &Files, request: Request<Body>) -> Response {
    let mut response = match handle(files, request).await {
        Ok(response) => response,
        Err(error) => error.response(),
    };
    // The media type and the bytes are a pusher's word under the dashboard's own address: a browser
    // must not make a page of them.
    let fixed = [
        (API_VERSION, "registry/2.0"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn handle(files: &Files, request: Request<Body>) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix("/v2").unwrap_or_default();
    let method = &parts.method;
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match Route::parse(path)? {
        Route::Base if reads => Ok(reply(StatusCode::OK, &[], Body::from("{}"))),
        Route::Tags(name) if reads => tags(files, &name, &query(&parts)).await,
        Route::Manifest(name, reference) if reads => {
            manifest(files, &name, &reference, method).await
        }
        Route::Manifest(name, reference) if *method == Method::PUT => {
            put_manifest(files, &name, &reference, &parts.headers, body).await
        }
        Route::Blob(name, digest) if reads => blob(files, &name, &digest, &parts).await,
        Route::Uploads(name) if *method == Method::POST => {
            start_upload(files, &name, &query(&parts), body).await
        }
        Route::Upload(name, upload) => match *method {
            Method::GET => {
                upload_status(files.upload(&name, &upload).await?, StatusCode::NO_CONTENT)
            }
            Method::PATCH => {
                add_chunk(files.upload(&name, &upload).await?, &parts.headers, body).await
            }
            Method::PUT => {
                let upload = files.upload(&name, &upload).await?;
                finish_upload(files, upload, &parts, body).await
            }
            Method::DELETE => {
                files.upload(&name, &upload).await?.cancel().await?;
                Ok(reply(StatusCode::NO_CONTENT, &[], Body::empty()))
            }
            _ => Err(Error::Unsupported),
        },
        _ => Err(Error::Unsupported),
    }
}

async fn tags(files: &Files, name: &Name, query: &[(String, String)]) -> Result<Response, Error> {
    let asked = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(TAGS_PAGE_MAX);
    let (tags, last) = (files.tags(name).await?, parameter(query, "last").unwrap_or_default());
    let rest: Vec<String> = tags.into_iter().filter(|tag| tag.as_str() > last).collect();
    let page = &rest[..rest.len().min(asked).min(TAGS_PAGE_MAX)];
    let mut fields = vec![(CONTENT_TYPE, "application/json".to_string())];
    if let Some(last) = page.last().filter(|_| page.len() < rest.len()) {
        let link = format!("</v2/{name}/tags/list?n={}&last={last}>; rel=\"next\"", page.len());
        fields.push((LINK, link));
    }
    let document = json!({"name": name.as_str(), "tags": page}).to_string();
    Ok(reply(StatusCode::OK, &fields, Body::from(document)))
}

async fn manifest(
    files: &Files,
    name: &Name,
    reference: &Reference,
    method: &Method,
) -> Result<Response, Error> {
    let digest = match reference {
        Reference::Digest(digest) => digest.clone(),
        Reference::Tag(tag) => files.tagged(name, tag).await?,
    };
    let manifest = files.manifest(name, &digest).await?;
    let fields = [
        (CONTENT_TYPE, manifest.media_type),
        (CONTENT_LENGTH, manifest.content.len().to_string()),
        (CONTENT_DIGEST, digest.to_string()),
        (ETAG, format!("\"{digest}\"")),
    ];
    let body = if *method == Method::HEAD { Body::empty() } else { Body::from(manifest.content) };
    Ok(reply(StatusCode::OK, &fields, body))
}

async fn put_manifest(
    files: &Files,
    name: &Name,
    reference: &Reference,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let content = to_bytes(body, MANIFEST_BYTES_MAX).await.map_err(|_| Error::ManifestSize)?;
    let media_type = text_header(headers, &CONTENT_TYPE).unwrap_or_default();
    let digest = Digest::of(&content);
    if matches!(reference, Reference::Digest(expected) if *expected != digest) {
        return Err(Error::DigestMismatch);
    }
    for (kind, needed) in referenced(&content, media_type)? {
        let there = match kind {
            Referenced::Blob => files.blob(name, &needed).await.is_ok(),
            Referenced::Manifest => files.manifest(name, &needed).await.is_ok(),
        };
        if !there {
            return Err(Error::ManifestBlobUnknown(needed));
        }
    }
    files.put_manifest(name, &digest, media_type, &content).await?;
    if let Reference::Tag(tag) = reference {
        files.put_tag(name, tag, &digest).await?;
    }
    let fields = [
        (LOCATION, format!("/v2/{name}/manifests/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    Ok(reply(StatusCode::CREATED, &fields, Body::empty()))
}

/// What a manifest or an index names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Referenced {
    Blob,
    Manifest,
}

/// Everything that has to be here before a manifest that names it.
fn referenced(content: &[u8], media_type: &str) -> Result<Vec<(Referenced, Digest)>, Error> {
    let manifest: Value =
        serde_json::from_slice(content).map_err(|_| Error::ManifestInvalid("is not JSON"))?;
    if media_type.is_empty() || !manifest.is_object() {
        return Err(Error::ManifestInvalid("must be a JSON object sent with its media type"));
    }
    if manifest["mediaType"].as_str().is_some_and(|own| own != media_type) {
        return Err(Error::ManifestInvalid("has another media type than its request"));
    }
    let list = |key: &str| manifest[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let blobs = list("layers").iter().chain(manifest.get("config"));
    // A layer with addresses of its own need not be here.
    let blobs = blobs.filter(|descriptor| descriptor["urls"].as_array().is_none_or(Vec::is_empty));
    let blobs = blobs.map(|descriptor| (Referenced::Blob, descriptor));
    let manifests = list("manifests").iter().map(|descriptor| (Referenced::Manifest, descriptor));
    let mut found = Vec::new();
    for (kind, descriptor) in blobs.chain(manifests) {
        let digest = descriptor["digest"].as_str().and_then(Digest::parse);
        found.push((kind, digest.ok_or(Error::ManifestInvalid("names a digest that is none"))?));
    }
    Ok(found)
}

async fn blob(
    files: &Files,
    name: &Name,
    digest: &Digest,
    parts: &Parts,
) -> Result<Response, Error> {
    let blob = files.blob(name, digest).await?;
    let range = match text_header(&parts.headers, &RANGE) {
        Some(text) => parse_range(text, blob.length),
        None => Some(None),
    };
    let Some(range) = range else {
        return Err(Error::RangeInvalid(format!("bytes */{}", blob.length)));
    };
    let (start, end) = range.unwrap_or((0, blob.length));
    let mut fields = vec![
        (CONTENT_TYPE, "application/octet-stream".to_string()),
        (CONTENT_LENGTH, (end - start).to_string()),
        (CONTENT_DIGEST, digest.to_string()),
        (ETAG, format!("\"{digest}\"")),
        (ACCEPT_RANGES, "bytes".to_string()),
    ];
    let mut status = StatusCode::OK;
    if range.is_some() {
        status = StatusCode::PARTIAL_CONTENT;
        fields.push((CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, blob.length)));
    }
    let body =
        if parts.method == Method::HEAD { Body::empty() } else { blob.stream(start, end).await? };
    Ok(reply(status, &fields, body))
}

/// The half-open range of a `Range` header: `None` when it cannot be satisfied, `Some(None)` when
/// it is to be ignored (another unit, several ranges).
fn parse_range(text: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Some(None);
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => (first, length),
        (Err(_), Ok(suffix)) if first.is_empty() => (length.saturating_sub(suffix), length),
        _ => return Some(None),
    };
    (start < end.min(length)).then_some(Some((start, end.min(length))))
}

async fn start_upload(
    files: &Files,
    name: &Name,
    query: &[(String, String)],
    body: Body,
) -> Result<Response, Error> {
    let from = parameter(query, "from").and_then(Name::parse);
    let mount = parameter(query, "mount").and_then(Digest::parse);
    if let (Some(from), Some(digest)) = (from, mount)
        && files.mount(name, &from, &digest).await?
    {
        return Ok(created(name, &digest));
    }
    let expected =
        parameter(query, "digest").map(|text| Digest::parse(text).ok_or(Error::DigestInvalid));
    let expected = expected.transpose()?;
    let upload = files.start_upload(name, UPLOADS_MAX).await?;
    let Some(digest) = expected else {
        return upload_status(upload, StatusCode::ACCEPTED);
    };
    let upload = receive(upload, body).await?;
    files.finish_upload(upload, &digest).await?;
    Ok(created(name, &digest))
}

async fn add_chunk(upload: Upload, headers: &HeaderMap, body: Body) -> Result<Response, Error> {
    check_chunk(&upload, headers)?;
    let upload = receive(upload, body).await?;
    upload_status(upload, StatusCode::ACCEPTED)
}

async fn finish_upload(
    files: &Files,
    upload: Upload,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    let query = query(parts);
    let digest = parameter(&query, "digest").and_then(Digest::parse).ok_or(Error::DigestInvalid)?;
    check_chunk(&upload, &parts.headers)?;
    let upload = receive(upload, body).await?;
    let name = upload.name.clone();
    files.finish_upload(upload, &digest).await?;
    Ok(created(&name, &digest))
}

/// A chunk that says where it belongs must belong at the end.
fn check_chunk(upload: &Upload, headers: &HeaderMap) -> Result<(), Error> {
    let Some(range) = text_header(headers, &CONTENT_RANGE) else {
        return Ok(());
    };
    let range = range.trim_start_matches("bytes ");
    let start = range.split('-').next().and_then(|start| start.parse::<u64>().ok());
    if start == Some(upload.length) {
        return Ok(());
    }
    Err(Error::RangeInvalid(upload_range(upload)))
}

/// Appends a request's body. What arrived before a break stays, so that the client can go on from
/// there; an upload that grows too large is removed.
async fn receive(mut upload: Upload, body: Body) -> Result<Upload, Error> {
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::Interrupted)?;
        if upload.length + chunk.len() as u64 > BLOB_BYTES_MAX {
            upload.cancel().await?;
            return Err(Error::BlobSize);
        }
        upload.append(&chunk).await?;
    }
    upload.flush().await?;
    Ok(upload)
}

fn upload_range(upload: &Upload) -> String {
    format!("0-{}", upload.length.saturating_sub(1))
}

fn upload_status(upload: Upload, status: StatusCode) -> Result<Response, Error> {
    let fields = [
        (LOCATION, format!("/v2/{}/blobs/uploads/{}", upload.name, upload.id)),
        (RANGE, upload_range(&upload)),
        (UPLOAD_ID, upload.id.to_string()),
    ];
    Ok(reply(status, &fields, Body::empty()))
}

fn created(name: &Name, digest: &Digest) -> Response {
    let fields =
        [(LOCATION, format!("/v2/{name}/blobs/{digest}")), (CONTENT_DIGEST, digest.to_string())];
    reply(StatusCode::CREATED, &fields, Body::empty())
}

fn reply(status: StatusCode, fields: &[(HeaderName, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in fields {
        // Media types come from clients; the header parser they passed allows what this one allows.
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn query(parts: &Parts) -> Vec<(String, String)> {
    let query = parts.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn parameter<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn text_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests;
