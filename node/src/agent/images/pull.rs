//! Fetching one image from a registry: its manifest, and the Wasm layer in it.
//!
//! Whatever comes from a registry is hostile until its digest has been checked. A manifest is used
//! only by the digest of the bytes that were read; of it only digest, size and type of the layers are
//! looked at; names and annotations never reach the host.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::Request;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use oci_client::{
    manifest::{OciDescriptor, OciManifest},
    secrets::RegistryAuth,
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::{
    reference::{Reference, Version, is_digest},
    remote::Remote,
};

/// A manifest or a token has a few kilobytes at most; more than this is an attack, or neither.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The largest compressed or plain layer; the compiler takes no larger one.
pub const LAYER_BYTES_MAX: u64 = 50 << 20;
/// A registry that sends nothing for this long is given up.
pub const IDLE_MAX: Duration = Duration::from_secs(30);
/// Credentials that are tried for one image: each of a few projects has its own.
const LOGINS_MAX: usize = 16;
/// Longest message of a registry that is shown.
const MESSAGE_MAX: usize = 300;

/// Types of a layer that holds Wasm.
const LAYER_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];
/// Manifests that are asked for.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Why an image could not be fetched. The texts are shown in the Pod's status.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The registry has no such image.
    #[error("{image} is not in {registry}; push it with `wherry push`, or check its name and tag")]
    NotFound {
        /// Reference as written.
        image: String,
        /// Which registry.
        registry: String,
    },
    /// The registry wants other credentials.
    #[error("{registry} does not let this node read {image}; name an imagePullSecret that may")]
    Denied {
        /// Reference as written.
        image: String,
        /// Which registry.
        registry: String,
    },
    /// Something on the way failed.
    #[error("{registry} cannot be read: {message}")]
    Failed {
        /// Which registry.
        registry: String,
        /// What failed.
        message: String,
    },
    /// The image was fetched and is not Wasm, or not as announced.
    #[error("{0}")]
    Invalid(String),
}

/// Where images come from.
pub enum Registry<'a> {
    /// The one in the control plane, over the agent's own connection.
    BuiltIn(&'a kube::Client),
    /// Any other.
    Remote(&'a Remote),
}

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Digest of the manifest.
    pub manifest: String,
    /// Digest of the Wasm layer.
    pub layer: String,
    /// Size of the layer.
    pub bytes: u64,
}

/// Reads the manifest and finds the layer that holds the Wasm.
pub async fn resolve(
    registry: &Registry<'_>,
    image: &str,
    reference: &Reference,
) -> Result<Resolved, PullError> {
    let mut reference = reference.clone();
    // An index may lead to a manifest, a manifest to nothing else.
    for _ in 0..2 {
        let body = manifest(registry, image, &reference).await?;
        let digest = sha256(&body);
        if let Version::Digest(wanted) = &reference.version
            && *wanted != digest
        {
            return Err(PullError::Invalid(format!(
                "{image}: the registry sent a manifest with digest {digest}, not {wanted}"
            )));
        }
        match choose(image, &body)? {
            Choice::Layer(layer) => {
                let bytes = size(image, &layer)?;
                return Ok(Resolved { manifest: digest, layer: layer.digest, bytes });
            }
            Choice::Manifest(digest) => reference.version = Version::Digest(digest),
        }
    }
    Err(PullError::Invalid(format!("{image}: an index that leads to another index")))
}

/// Asks a registry elsewhere with one login after the other, and at last with none, until it says
/// what the image is; and which login that was.
pub async fn resolve_elsewhere(
    image: &str,
    reference: &Reference,
    logins: &[RegistryAuth],
) -> Result<(Remote, Resolved, RegistryAuth), PullError> {
    let registry = Remote::new(reference)?;
    let host = reference.host.clone().unwrap_or_default();
    let mut refused = PullError::Denied { image: image.to_owned(), registry: host };
    for auth in logins.iter().chain([&RegistryAuth::Anonymous]) {
        let asked = async {
            let remote = registry.login(image, auth).await?;
            let resolved = resolve(&Registry::Remote(&remote), image, reference).await?;
            Ok::<_, PullError>((remote, resolved))
        };
        match asked.await {
            Ok((remote, resolved)) => return Ok((remote, resolved, auth.clone())),
            Err(PullError::Denied { .. }) => {}
            // Who is let in and does not find the image knows more than who is not.
            Err(error @ PullError::NotFound { .. }) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// The size of a layer, if it is not too large.
fn size(image: &str, layer: &OciDescriptor) -> Result<u64, PullError> {
    let bytes = u64::try_from(layer.size).unwrap_or(u64::MAX);
    if bytes > LAYER_BYTES_MAX {
        return Err(PullError::Invalid(format!(
            "{image} has {bytes} bytes; at most {LAYER_BYTES_MAX} are accepted"
        )));
    }
    Ok(bytes)
}

/// What a manifest leads to.
#[derive(Debug)]
enum Choice {
    Layer(OciDescriptor),
    Manifest(String),
}

/// Finds the Wasm in a manifest.
fn choose(image: &str, body: &[u8]) -> Result<Choice, PullError> {
    let invalid = |what: String| PullError::Invalid(format!("{image}: {what}"));
    let manifest: OciManifest = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("its manifest cannot be read ({error})")))?;
    let checked = |digest: String| {
        if is_digest(&digest) { Ok(digest) } else { Err(invalid("it has no sha256 digest".into())) }
    };
    match manifest {
        OciManifest::Image(manifest) => {
            let types: Vec<&str> =
                manifest.layers.iter().map(|layer| layer.media_type.as_str()).collect();
            let Some(index) = types.iter().position(|kind| LAYER_TYPES.contains(kind)) else {
                return Err(invalid(format!(
                    "it is not a Wasm artifact (its layers are {}); build it for Wasm and push it \
                     with `wherry push`",
                    types.join(", ")
                )));
            };
            let layer = manifest.layers[index].clone();
            checked(layer.digest.clone())?;
            Ok(Choice::Layer(layer))
        }
        OciManifest::ImageIndex(index) => {
            let wasm = index.manifests.iter().find(|entry| {
                entry.platform.as_ref().is_some_and(|platform| {
                    let (os, arch) = (platform.os.to_string(), platform.architecture.to_string());
                    os.starts_with("wasi") || arch.starts_with("wasm")
                })
            });
            let entry = wasm.or(match index.manifests.as_slice() {
                [only] => Some(only),
                _ => None,
            });
            match entry {
                Some(entry) => checked(entry.digest.clone()).map(Choice::Manifest),
                None => Err(invalid("none of its platforms is wasi or wasm".to_owned())),
            }
        }
    }
}

async fn manifest(
    registry: &Registry<'_>,
    image: &str,
    reference: &Reference,
) -> Result<Bytes, PullError> {
    match registry {
        Registry::BuiltIn(client) => {
            let path = format!("/v2/{}/manifests/{}", reference.name, reference.version());
            let body = built_in(client, image, &path, Some(&MANIFEST_TYPES.join(", "))).await?;
            let read = Limited::new(body, ANSWER_BYTES_MAX).collect();
            let collected = tokio::time::timeout(IDLE_MAX, read).await;
            match collected {
                Ok(Ok(collected)) => Ok(collected.to_bytes()),
                Ok(Err(error)) => Err(failed(BUILT_IN, &error)),
                Err(_) => Err(failed(BUILT_IN, &"no answer")),
            }
        }
        Registry::Remote(remote) => {
            remote.manifest(image, reference.version(), &MANIFEST_TYPES.join(", ")).await
        }
    }
}

/// Fetches the layer into `target`. The file appears there only when its digest was right.
pub async fn fetch(
    registry: &Registry<'_>,
    image: &str,
    reference: &Reference,
    resolved: &Resolved,
    target: &Path,
) -> Result<(), PullError> {
    match registry {
        Registry::BuiltIn(client) => {
            let path = format!("/v2/{}/blobs/{}", reference.name, resolved.layer);
            let body = built_in(client, image, &path, None).await?;
            let stream = body.into_data_stream().map_err(|error| error.to_string());
            receive(BUILT_IN, image, stream, resolved, target).await
        }
        Registry::Remote(remote) => {
            let host = reference.host.as_deref().unwrap_or_default();
            let stream = remote.blob(image, &resolved.layer).await?.bytes_stream();
            let stream = stream.map_err(|error| with_causes(&error));
            receive(host, image, stream, resolved, target).await
        }
    }
}

/// Writes a stream to a file beside `target`, checks size and digest, then moves it there.
async fn receive(
    registry: &str,
    image: &str,
    stream: impl Stream<Item = Result<Bytes, String>> + Send,
    resolved: &Resolved,
    target: &Path,
) -> Result<(), PullError> {
    let disk = |error: std::io::Error| PullError::Failed {
        registry: "this node's disk".to_owned(),
        message: error.to_string(),
    };
    let name = format!("{:08x}.tmp", rand::random::<u32>());
    let temporary = Temporary(target.with_extension(name));
    let mut file = tokio::fs::File::create(&temporary.0).await.map_err(disk)?;
    let mut stream = std::pin::pin!(stream);
    let mut hash = Sha256::new();
    let mut bytes = 0u64;
    let outcome = loop {
        let chunk = match tokio::time::timeout(IDLE_MAX, stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => break Err(failed(registry, &error)),
            Ok(None) => break Ok(()),
            Err(_) => break Err(failed(registry, &"it stopped sending")),
        };
        bytes += chunk.len() as u64;
        if bytes > resolved.bytes {
            break Err(PullError::Invalid(format!(
                "{image}: the registry sent more than the {} bytes of its manifest",
                resolved.bytes
            )));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(disk)?;
    };
    let digest = format!("sha256:{}", hex::encode(hash.finalize()));
    let outcome = outcome.and_then(|()| {
        if digest == resolved.layer {
            Ok(())
        } else {
            let wanted = &resolved.layer;
            Err(PullError::Invalid(format!("{image}: got digest {digest}, wanted {wanted}")))
        }
    });
    outcome?;
    file.sync_all().await.map_err(disk)?;
    tokio::fs::rename(&temporary.0, target).await.map_err(disk)
}

/// A file that is removed unless it was moved away, also when its download is given up half way.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const BUILT_IN: &str = "the built-in registry";

/// One GET to the registry in the control plane.
async fn built_in(
    client: &kube::Client,
    image: &str,
    path: &str,
    accept: Option<&str>,
) -> Result<Body, PullError> {
    let mut request = Request::get(path);
    if let Some(accept) = accept {
        request = request.header(http::header::ACCEPT, accept);
    }
    let request = request.body(Body::empty()).map_err(|error| failed(BUILT_IN, &error))?;
    let response = tokio::time::timeout(IDLE_MAX, client.send(request)).await;
    let response = match response {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(failed(BUILT_IN, &error)),
        Err(_) => return Err(failed(BUILT_IN, &"no answer")),
    };
    match response.status().as_u16() {
        200 => Ok(response.into_body()),
        404 => Err(PullError::NotFound { image: image.to_owned(), registry: BUILT_IN.to_owned() }),
        401 | 403 => {
            Err(PullError::Denied { image: image.to_owned(), registry: BUILT_IN.to_owned() })
        }
        status => Err(failed(BUILT_IN, &format!("status {status}"))),
    }
}

/// What failed, with as much of why as is shown.
pub fn failed(registry: &str, error: &dyn std::fmt::Display) -> PullError {
    let mut message = error.to_string();
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_MAX) {
        message.truncate(end);
    }
    PullError::Failed { registry: registry.to_owned(), message }
}

/// An error and what caused it: that a request could not be sent says little by itself.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The credentials for an image in the contents of Secrets of type `kubernetes.io/dockerconfigjson`,
/// or of the older `kubernetes.io/dockercfg`: those of all entries that cover it, the longest path
/// first, then as they are written.
pub fn credentials(configs: &[Vec<u8>], host: &str, name: &str) -> Vec<RegistryAuth> {
    let mut covering = Vec::new();
    for config in configs {
        let config: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
        let entries = config.get("auths").unwrap_or(&config).as_object();
        for (key, entry) in entries.into_iter().flatten() {
            if let Some(length) = covers(key, host, name)
                && let Some(auth) = login(entry)
            {
                covering.push((length, auth));
            }
        }
    }
    covering.sort_by_key(|(length, _)| Reverse(*length));
    let mut found = Vec::new();
    for (_, auth) in covering {
        if found.len() < LOGINS_MAX && !found.contains(&auth) {
            found.push(auth);
        }
    }
    found
}

/// What an entry has to show.
fn login(entry: &serde_json::Value) -> Option<RegistryAuth> {
    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    let field = |name: &str| entry.get(name).and_then(|value| value.as_str());
    let Some(auth) = field("auth").filter(|auth| !auth.is_empty()) else {
        return Some(RegistryAuth::Basic(field("username")?.into(), field("password")?.into()));
    };
    let decoded = STANDARD_NO_PAD.decode(auth.trim_end_matches('=')).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Whether an entry is for an image, as a kubelet reads its key (`*.example.com/team`); how long the
/// path in it is.
fn covers(key: &str, host: &str, name: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (registry, path) = key.split_once('/').unwrap_or((key, ""));
    // Docker's own is known by the address that its tools had first.
    let host = if host == "docker.io" { "index.docker.io" } else { host };
    let registry = if registry == "docker.io" { "index.docker.io" } else { registry };
    let path = match path.trim_end_matches('/') {
        "v1" | "v2" => "",
        path => path,
    };
    let mut labels = registry.split('.').zip(host.split('.'));
    let is_same = labels.all(|(pattern, label)| match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.strip_prefix(before).is_some_and(|rest| rest.ends_with(after))
        }
    });
    let as_many = registry.split('.').count() == host.split('.').count();
    (is_same && as_many && name.starts_with(path)).then_some(path.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layers: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
               "config":{{"mediaType":"application/vnd.wasm.config.v0+json","digest":"x","size":2}},
               "layers":[{layers}]}}"#
        )
    }

    #[test]
    fn takes_the_wasm_layer() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let body = manifest(&format!(
            r#"{{"mediaType":"application/wasm","digest":"{digest}","size":7}}"#
        ));
        match choose("a", body.as_bytes()) {
            Ok(Choice::Layer(layer)) => assert_eq!((layer.digest, layer.size), (digest, 7)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn says_what_a_container_image_is() {
        let body = manifest(
            r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"x","size":7}"#,
        );
        let error = choose("nginx:1", body.as_bytes()).expect_err("not Wasm").to_string();
        assert_eq!(
            error,
            "nginx:1: it is not a Wasm artifact (its layers are \
             application/vnd.oci.image.layer.v1.tar+gzip); build it for Wasm and push it with \
             `wherry push`"
        );
    }

    #[test]
    fn refuses_a_digest_that_could_be_a_path() {
        let body =
            manifest(r#"{"mediaType":"application/wasm","digest":"sha256:../../x","size":7}"#);
        assert!(choose("a", body.as_bytes()).is_err());
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("error sending request")]
        struct NotSent(#[source] std::io::Error);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(with_causes(&NotSent(refused)), "error sending request: connection refused");
    }

    #[test]
    fn layers_have_a_largest_size() {
        let layer = |size| OciDescriptor { size, ..OciDescriptor::default() };
        let largest = i64::try_from(LAYER_BYTES_MAX).expect("it is small");
        assert_eq!(size("a", &layer(largest)).expect("it fits"), LAYER_BYTES_MAX);
        for size_bytes in [largest + 1, -1] {
            let error = size("a", &layer(size_bytes)).expect_err("too large").to_string();
            assert!(error.ends_with("at most 52428800 are accepted"), "{error}");
        }
    }

    /// What a registry sends is a file only if it has the announced size and digest.
    #[tokio::test]
    async fn only_what_was_announced_becomes_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("blob.wasm");
        let resolved = Resolved { manifest: String::new(), layer: sha256(b"wasm code"), bytes: 9 };
        let receive = async |chunks: &[&'static str]| {
            let chunks: Vec<_> =
                chunks.iter().map(|it| Ok(Bytes::from_static(it.as_bytes()))).collect();
            let stream = futures::stream::iter(chunks);
            let received = receive("r", "a", stream, &resolved, &target).await;
            received.map_err(|error| error.to_string())
        };
        let more = receive(&["wasm ", "code", "!"]).await.expect_err("too much");
        assert_eq!(more, "a: the registry sent more than the 9 bytes of its manifest");
        let other = receive(&["wasm ", "edoc"]).await.expect_err("something else");
        assert!(other.starts_with("a: got digest sha256:"), "{other}");
        let left = || folder.path().read_dir().expect("listed").count();
        assert_eq!(left(), 0, "nothing is left");
        // A registry that sends the rest so slowly that it is given up.
        let begun = Ok(Bytes::from_static(b"wasm "));
        let slow = futures::stream::iter([begun]).chain(futures::stream::pending());
        let given_up = super::receive("r", "a", slow, &resolved, &target);
        let given_up = tokio::time::timeout(Duration::from_secs(1), given_up).await;
        assert!(given_up.is_err() && left() == 0, "nothing is left");
        receive(&["wasm ", "code"]).await.expect("as announced");
        assert_eq!(std::fs::read(&target).expect("a file"), b"wasm code");
    }

    #[test]
    fn finds_credentials_by_host_and_name() {
        let config = br#"{"auths":{"https://ghcr.io/v1/":{"auth":"dTpwOnc="},
                          "x.io":{"username":"a","password":"b"}}}"#;
        let basic = |user: &str, password: &str| {
            vec![RegistryAuth::Basic(user.to_owned(), password.to_owned())]
        };
        let configs = [config.to_vec()];
        assert_eq!(credentials(&configs, "ghcr.io", "app"), basic("u", "p:w"));
        assert_eq!(credentials(&configs, "x.io", "app"), basic("a", "b"));
        assert!(credentials(&configs, "y.io", "app").is_empty());
        // The older form; the longest path comes first, labels may have a `*`.
        let config = br#"{"x.io:5000":{"username":"all","password":"1"},
            "x.io:5000/team":{"username":"team","password":"2"},
            "*.cloud.io":{"username":"","password":"","auth":"dTpwOnc"},
            "https://index.docker.io/v1/":{"username":"hub","password":"3"}}"#;
        // Another Secret for the same registry, and one that cannot be read.
        let second = br#"{"auths":{"x.io:5000":{"username":"other","password":"4"},
            "http://x.io:5000":{"username":"all","password":"1"}}}"#;
        let configs = [b"{".to_vec(), config.to_vec(), second.to_vec()];
        let users = |host: &str, name: &str| {
            let found = credentials(&configs, host, name);
            let users = found.into_iter().map(|auth| match auth {
                RegistryAuth::Basic(user, _) => user,
                other => panic!("{other:?}"),
            });
            users.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(users("x.io:5000", "team/app"), "team all other");
        assert_eq!(users("x.io:5000", "app"), "all other");
        assert_eq!(users("x.io", "app") + &users("cloud.io", "app"), "");
        assert_eq!(users("a.cloud.io", "app"), "u");
        assert_eq!(users("docker.io", "team/app"), "hub");
    }

    #[test]
    fn credentials_that_are_tried_are_counted() {
        let entries = (0..100).map(|index| {
            let path = "a".repeat(index);
            format!(r#""x.io/{path}":{{"username":"u{index}","password":"p"}}"#)
        });
        let config = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        let found = credentials(&[config.into_bytes()], "x.io", &"a".repeat(200));
        assert_eq!(found.len(), LOGINS_MAX);
        assert_eq!(found[0], RegistryAuth::Basic("u99".to_owned(), "p".to_owned()));
    }
}
