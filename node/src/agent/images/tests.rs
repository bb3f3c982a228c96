//! Images as Pods ask for them, with a control plane of a few lines.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::client::Body;

use tokio::sync::mpsc;

use crate::agent::{events::Happening, spec};

use super::*;

const ALWAYS: PullPolicy = PullPolicy::Always;

/// The images of a node whose control plane answers a path with a status and a text, after a while;
/// and what is told of them.
fn images(
    folder: &tempfile::TempDir,
    answer: impl Fn(&str) -> (Duration, u16, String) + Send + 'static,
) -> (Arc<Images>, mpsc::Receiver<Happening>) {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (after, status, text) = answer(request.uri().path());
        async move {
            tokio::time::sleep(after).await;
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            Ok::<_, Infallible>(response)
        }
    });
    let (recorder, told) = Recorder::new();
    let client = kube::Client::new(service, "default");
    let asking = (client, Arc::new(Away::default()), recorder);
    let choices = (false, Thresholds::default());
    let root = folder.path().to_owned();
    let images = Images::open(asking, root, "e1".to_owned(), PathBuf::new(), choices);
    (Arc::new(images.expect("a folder")), told)
}

/// A Pod with two pull secrets.
fn pod() -> Arc<PodSpec> {
    let text = r#"{"metadata":{"name":"a","namespace":"b","uid":"u"},
        "spec":{"nodeName":"n","containers":[{"name":"c","image":"i"}],
        "imagePullSecrets":[{"name":"one"},{"name":"two"}]}}"#;
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

/// The manifest of an image with a layer of five bytes.
fn manifest(layer: &str) -> String {
    let text = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": layer, "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": layer, "size": 5}],
    });
    text.to_string()
}

#[tokio::test]
async fn what_the_registry_has_said_runs_however_long_its_layer_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let layer = pull::sha256(b"newer");
    let text = manifest(&layer);
    let (images, _told) = images(&folder, move |path| match path {
        "/v2/app/manifests/latest" => (Duration::ZERO, 200, text.clone()),
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
    let (images, _told) = images(&folder, |_| (Duration::from_secs(3600), 200, String::new()));
    let (pod, names) = (pod(), (0..=PULLS_MAX).map(|index| format!("app:{index}")));
    let names: Vec<String> = names.collect();
    let older: Vec<String> = names.iter().map(|name| ran(&images, name)).collect();
    let starts = names.iter().map(|name| images.resolve(&pod, name, ALWAYS, || ()));
    let found = futures::future::try_join_all(starts).await.expect("what is here runs");
    assert_eq!(found.into_iter().map(|found| found.layer).collect::<Vec<_>>(), older);
    assert!(images.away.is_likely());
    assert_eq!(images.pulls.available_permits(), PULLS_MAX, "others can be pulled");
}

#[tokio::test]
async fn registries_elsewhere_keep_nobody_from_the_built_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let layer = pull::sha256(b"code!");
    let text = manifest(&layer);
    let (images, _told) = images(&folder, move |path| match path {
        "/v2/app/manifests/latest" => (Duration::ZERO, 200, text.clone()),
        _ => (Duration::ZERO, 200, "code!".to_owned()),
    });
    let permits = u32::try_from(PULLS_MAX).expect("a few");
    let _all = images.pulls_elsewhere.acquire_many(permits).await.expect("they are free");
    let pod = pod();
    let asked = images.resolve(&pod, "app:latest", ALWAYS, || ());
    let found = tokio::time::timeout(Duration::from_secs(20), asked).await;
    assert_eq!(found.expect("it does not wait").expect("it is there").layer, layer);
}

#[tokio::test]
async fn a_namespace_that_waits_for_registries_keeps_no_other_from_them() {
    // Another test may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let (images, _told) = images(&folder, |_| (Duration::ZERO, 404, String::new()));
    let pod = pod();
    let other = PodSpec { namespace: "other".to_owned(), ..PodSpec::clone(&pod) };
    let turns = (0..PULLS_OF_NAMESPACE_MAX).map(|_| images.turns_elsewhere.take(&pod.namespace));
    let _all = futures::future::join_all(turns).await;
    let names: Vec<String> = (0..=PULLS_MAX).map(|it| format!("127.0.0.1:1/app:{it}")).collect();
    let starts = names.iter().map(|name| images.resolve(&pod, name, ALWAYS, || ()));
    let waiting = futures::future::select_all(starts.map(Box::pin));
    let waited = tokio::time::timeout(Duration::from_millis(200), waiting).await;
    assert!(waited.is_err(), "its namespace has all of its turns");
    assert_eq!(images.pulls_elsewhere.available_permits(), PULLS_MAX, "who waits holds none");
    // Nobody listens there.
    let asked = images.resolve(&other, &names[0], ALWAYS, || ());
    let found = tokio::time::timeout(Duration::from_secs(20), asked).await;
    assert_eq!(found.expect("it does not wait").expect_err("no registry").reason, "ErrImagePull");
}

#[tokio::test]
async fn a_registry_that_never_ends_is_given_up() {
    let forever = std::future::pending::<Result<(), Problem>>();
    let late = in_time("slow.io", Duration::from_millis(10), forever).await;
    let late = late.expect_err("it never ends");
    assert_eq!(late.reason, "ErrImagePull");
    assert!(late.message.starts_with("slow.io cannot be read: the image takes"), "{late:?}");
    let short = in_time("quick.io", Duration::from_secs(20), async { Ok(7) }).await;
    assert_eq!(short.expect("it is there"), 7);
}

#[tokio::test]
async fn starts_take_turns_to_read_their_pull_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (images, _told) = images(&folder, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        (Duration::from_secs(3600), 404, String::new())
    });
    let (pod, reference) = (pod(), Reference::parse("x.io/app:1").expect("a reference"));
    let starts = (0..SECRETS_MAX * 2).map(|_| images.credentials(&reference, &pod));
    let all = futures::future::join_all(starts);
    assert!(tokio::time::timeout(Duration::from_secs(1), all).await.is_err(), "nobody answers");
    assert_eq!(asked.load(Ordering::Relaxed), SECRETS_MAX);
}

#[tokio::test]
async fn pull_secrets_that_are_not_there_are_told() {
    // Another test may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let (images, mut told) = images(&folder, |_| (Duration::ZERO, 404, String::new()));
    // Nobody listens there.
    let found = images.resolve(&pod(), "127.0.0.1:1/team/app:1", ALWAYS, || ()).await;
    assert_eq!(found.expect_err("no registry").reason, "ErrImagePull");
    let happening = told.try_recv().expect("an event");
    assert_eq!(happening.reason, "FailedToRetrieveImagePullSecret");
    assert_eq!(
        happening.message,
        "Unable to retrieve some image pull secrets (one, two); attempting to pull the image may \
         not succeed."
    );
    assert!(happening.warning && happening.field.is_none());
}

#[tokio::test]
async fn an_image_that_is_here_is_for_whoever_has_the_credentials_in_any_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let (images, _told) = images(&folder, |path| {
        let user = path.rsplit('/').next().unwrap_or_default();
        let config = serde_json::json!({"x.io": {"username": user, "password": "p"}}).to_string();
        let data = serde_json::json!({".dockercfg": k8s_openapi::ByteString(config.into_bytes())});
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": user}, "data": data,
        });
        (Duration::ZERO, 200, secret.to_string())
    });
    let (pod, reference) = (pod(), Reference::parse("x.io/app:1").expect("a reference"));
    let may_use = async |user: &str| {
        let auth = RegistryAuth::Basic(user.to_owned(), "p".to_owned());
        let layer = pull::sha256(b"");
        let resolved = Resolved { manifest: layer.clone(), layer, bytes: 0 };
        let access = images.access("x.io", &auth, &[]);
        images.may_use(&reference, &pod, &Known { resolved, access }).await
    };
    assert!(may_use("one").await);
    assert!(may_use("two").await);
    assert!(!may_use("three").await);
}
