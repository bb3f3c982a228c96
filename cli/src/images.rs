//! Wasm files as OCI Wasm artifacts, and pushing them into the cluster's built-in registry.
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

pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";
/// A component's first bytes are the magic number and then this; a core module has another version.
pub const COMPONENT: &[u8] = &[0x0d, 0x00, 0x01, 0x00];

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
        push(client, name, "dev", Artifact::of(wasm)).await?;
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

/// An image, whole.
pub struct Artifact {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Artifact {
    /// The image of a Wasm file.
    pub fn of(wasm: Vec<u8>) -> Artifact {
        let layer = descriptor(LAYER_TYPE, &wasm);
        let os = if wasm.get(4..8) == Some(COMPONENT) { "wasip2" } else { "wasip1" };
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
        Artifact { config, layer: wasm, manifest: manifest.to_string().into_bytes() }
    }

    /// By which a Pod may name exactly this image.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

/// Pushes an image into the built-in registry.
pub async fn push(
    client: &kube::Client,
    name: &str,
    tag: &str,
    artifact: Artifact,
) -> Result<(), Diagnostic> {
    put_blob(client, name, artifact.config).await?;
    put_blob(client, name, artifact.layer).await?;
    let request = Request::put(format!("/v2/{name}/manifests/{tag}"))
        .header(header::CONTENT_TYPE, MANIFEST_TYPE)
        .body(Body::from(artifact.manifest));
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

/// `sha256:` and the hash of some bytes.
pub fn digest(content: &[u8]) -> String {
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
    let why = format!("{status}: {}", said(&body));
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Diagnostic::new("WH0010", format!("you may not push the image {name}"))
                .why(why)
                .help("name the kubeconfig of somebody who may:   --kubeconfig FILE")
        }
        _ => refused(name, &why),
    })
}

/// The sentence in an error of the API or of the registry.
fn said(body: &[u8]) -> String {
    let parsed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let sentence = parsed["message"].as_str().or(parsed["errors"][0]["message"].as_str());
    sentence.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

fn refused(name: &str, why: &str) -> Diagnostic {
    Diagnostic::new("WH0010", format!("the image {name} could not be pushed"))
        .why(why)
        .help("image names are lower-case letters, digits, and . _ - between them")
}
