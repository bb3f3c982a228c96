//! Images of the built-in registry, with a control plane of a few lines that is slow or silent.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::client::Body;

use crate::agent::spec;

use super::*;

const ALWAYS: PullPolicy = PullPolicy::Always;

/// The images of a node whose control plane answers a path with a status and a text, after a while.
fn images(
    folder: &tempfile::TempDir,
    answer: impl Fn(&str) -> (Duration, u16, String) + Send + 'static,
) -> Arc<Images> {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (after, status, text) = answer(request.uri().path());
        async move {
            tokio::time::sleep(after).await;
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            Ok::<_, Infallible>(response)
        }
    });
    let asking = (kube::Client::new(service, "default"), Arc::new(Away::default()));
    let choices = (false, Thresholds::default());
    let root = folder.path().to_owned();
    let images = Images::open(asking, root, "e1".to_owned(), PathBuf::new(), choices);
    Arc::new(images.expect("a folder"))
}

fn pod() -> Arc<PodSpec> {
    let text = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},
        "spec":{"nodeName":"n","containers":[{"name":"c","image":"i"}]}}"#;
    let pod = serde_json::from_str(text).expect("a Pod");
    spec::read(pod).expect("a Pod of a node").0.spec
}

/// The image as it was when a Pod ran here; its layer.
fn ran(images: &Images, image: &str) -> String {
    let layer = pull::sha256(b"older");
    std::fs::write(images.cache.blob(&layer), b"older").expect("written");
    let resolved = Resolved { manifest: layer.clone(), layer: layer.clone(), bytes: 5 };
    images.cache.remember("", image, &resolved, None).expect("remembered");
    layer
}

#[tokio::test]
async fn what_the_registry_has_said_runs_however_long_its_layer_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let layer = pull::sha256(b"newer");
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": layer, "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": layer, "size": 5}],
    });
    let images = images(&folder, move |path| match path {
        "/v2/app/manifests/latest" => (Duration::ZERO, 200, manifest.to_string()),
        _ if path.starts_with("/v2/app/blobs/") => (ANSWER_MAX * 2, 200, "newer".to_owned()),
        _ => (Duration::ZERO, 404, String::new()),
    });
    ran(&images, "app:latest");
    let found = images.resolve(&pod(), "app:latest", ALWAYS, || ()).await.expect("it is there");
    assert_eq!((found.layer, found.pulled), (layer, true));
    assert!(!images.away.is_likely(), "a long download is no silence");
}

#[tokio::test]
async fn a_silent_registry_takes_no_permits() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images(&folder, |_| (Duration::from_secs(3600), 200, String::new()));
    let (pod, names) = (pod(), (0..=PULLS_MAX).map(|index| format!("app:{index}")));
    let names: Vec<String> = names.collect();
    let older: Vec<String> = names.iter().map(|name| ran(&images, name)).collect();
    let starts = names.iter().map(|name| images.resolve(&pod, name, ALWAYS, || ()));
    let found = futures::future::try_join_all(starts).await.expect("what is here runs");
    assert_eq!(found.into_iter().map(|found| found.layer).collect::<Vec<_>>(), older);
    assert!(images.away.is_likely());
    assert_eq!(images.pulls.available_permits(), PULLS_MAX, "others can be pulled");
}
