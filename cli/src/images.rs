//! Pushing a folder of `.wasm` files into the cluster's built-in registry, as OCI Wasm artifacts.
//!
//! The artifact is the one of the CNCF's Wasm OCI layout: a config of type
//! `application/vnd.wasm.config.v0+json` and one layer `application/wasm`, pushed by the OCI
//! distribution protocol.

use std::path::Path;

use http::{Method, Request, StatusCode, header};
use kube::client::Body;
use sha2::Digest as _;

use crate::api;
use crate::diagnostic::Diagnostic;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";
/// A component's first bytes are the magic number and then this; a core module's layer field is 0.
const COMPONENT_LAYER: [u8; 4] = [0x0d, 0x00, 0x01, 0x00];

/// Pushes each `NAME.wasm` of `folder` as image `NAME:dev` and returns the names.
pub async fn push_folder(client: &kube::Client, folder: &Path) -> Result<Vec<String>, Diagnostic> {
    let unreadable = |error: std::io::Error| {
        Diagnostic::new("WH0009", format!("cannot read the images in {}", folder.display()))
            .why(error)
            .help("name a folder with NAME.wasm files:   wherry dev --images DIR")
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let wasm = std::fs::read(&path).map_err(unreadable)?;
        push(client, name, "dev", wasm).await?;
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

async fn push(
    client: &kube::Client,
    name: &str,
    tag: &str,
    wasm: Vec<u8>,
) -> Result<(), Diagnostic> {
    let layer = descriptor(LAYER_TYPE, &wasm);
    let os = if wasm.get(4..8) == Some(&COMPONENT_LAYER) { "wasip2" } else { "wasip1" };
    let config = serde_json::json!({
        "architecture": "wasm",
        "os": os,
        "layerDigests": [layer["digest"]],
    });
    let config = config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config),
        "layers": [layer],
    });
    put_blob(client, name, config).await?;
    put_blob(client, name, wasm).await?;
    let request = Request::put(format!("/v2/{name}/manifests/{tag}"))
        .header(header::CONTENT_TYPE, MANIFEST_TYPE)
        .body(Body::from(manifest.to_string().into_bytes()));
    send(client, name, request, StatusCode::CREATED).await?;
    Ok(())
}

fn descriptor(media_type: &str, content: &[u8]) -> serde_json::Value {
    serde_json::json!({
        "mediaType": media_type,
        "digest": digest(content),
        "size": content.len(),
    })
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(content)))
}

/// Uploads a blob in one piece, unless the registry has it.
async fn put_blob(client: &kube::Client, name: &str, content: Vec<u8>) -> Result<(), Diagnostic> {
    let digest = digest(&content);
    let head = Request::builder().method(Method::HEAD).uri(format!("/v2/{name}/blobs/{digest}"));
    let head = head.body(Body::empty()).expect("a checked name makes a URI");
    let there = client.send(head).await.map_err(api::failed("asking the built-in registry"))?;
    if there.status() == StatusCode::OK {
        return Ok(());
    }
    let start = Request::post(format!("/v2/{name}/blobs/uploads/")).body(Body::empty());
    let started = send(client, name, start, StatusCode::ACCEPTED).await?;
    let location = started.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
    let location =
        location.ok_or_else(|| refused(name, "the registry named no upload location"))?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let put = Request::put(format!("{location}{separator}digest={digest}"))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(Body::from(content));
    send(client, name, put, StatusCode::CREATED).await?;
    Ok(())
}

async fn send(
    client: &kube::Client,
    name: &str,
    request: Result<Request<Body>, http::Error>,
    want: StatusCode,
) -> Result<http::Response<Body>, Diagnostic> {
    let request = request.map_err(|error| refused(name, &error.to_string()))?;
    let response = client.send(request).await.map_err(api::failed("pushing an image"))?;
    if response.status() == want {
        return Ok(response);
    }
    let status = response.status();
    let body = response.into_body().collect_bytes().await.unwrap_or_default();
    Err(refused(name, &format!("{status}: {}", String::from_utf8_lossy(&body).trim())))
}

fn refused(name: &str, why: &str) -> Diagnostic {
    Diagnostic::new("WH0010", format!("the image {name} could not be pushed"))
        .why(why)
        .help("image names are lower-case letters, digits, and . _ - between them")
}
