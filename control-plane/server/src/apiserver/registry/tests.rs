//! Pushes and pulls over a folder, as clients make them, and requests that nobody should make.

use http_body_util::BodyExt as _;

use super::reference::Tag;
use super::*;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Registry {
    folder: tempfile::TempDir,
    files: Files,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &HeaderName) -> &str {
        text_header(&self.headers, name).unwrap_or_default()
    }
}

impl Registry {
    fn new() -> Registry {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = Files::new(folder.path().join("registry"));
        Registry { folder, files }
    }

    async fn ask(
        &self,
        method: &str,
        uri: &str,
        fields: &[(HeaderName, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let request = request.body(body.into()).expect("a request");
        let response = answer(&self.files, request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.ask("GET", uri, &[], Body::empty()).await
    }

    async fn push_blob(&self, name: &str, content: &'static str) -> Digest {
        let digest = Digest::of(content.as_bytes());
        let uri = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        assert_eq!(self.ask("POST", &uri, &[], content).await.status, 201);
        digest
    }

    async fn push_manifest(&self, uri: &str, layers: &[&Digest]) -> (Answer, String) {
        let layers: Vec<Value> =
            layers.iter().map(|digest| json!({"digest": digest.to_string()})).collect();
        let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
        let fields = [(CONTENT_TYPE, MANIFEST_TYPE)];
        (self.ask("PUT", uri, &fields, manifest.clone()).await, manifest)
    }
}

#[tokio::test]
async fn what_was_pushed_can_be_pulled() {
    let registry = Registry::new();
    assert_eq!(registry.get("/v2/").await.status, 200);
    let layer = registry.push_blob("team/hello", "\0asm code").await;
    let (pushed, manifest) =
        registry.push_manifest("/v2/team/hello/manifests/dev", &[&layer]).await;
    assert_eq!(pushed.status, 201, "{}", pushed.body);
    let digest = pushed.header(&CONTENT_DIGEST).to_string();
    assert_eq!(digest, Digest::of(manifest.as_bytes()).to_string());
    for reference in ["dev", &digest] {
        let uri = format!("/v2/team/hello/manifests/{reference}");
        let pulled = registry.get(&uri).await;
        assert_eq!((pulled.status, pulled.body.as_str()), (200, manifest.as_str()));
        assert_eq!(pulled.header(&CONTENT_TYPE), MANIFEST_TYPE);
        assert_eq!(pulled.header(&CONTENT_DIGEST), digest);
        assert_eq!(pulled.header(&X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert!(pulled.header(&CONTENT_SECURITY_POLICY).contains("sandbox"));
        let head = registry.ask("HEAD", &uri, &[], Body::empty()).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(head.header(&CONTENT_LENGTH), manifest.len().to_string());
    }
    let blob = registry.get(&format!("/v2/team/hello/blobs/{layer}")).await;
    assert_eq!((blob.status, blob.body.as_str()), (200, "\0asm code"));
    assert_eq!(
        registry.get("/v2/team/hello/tags/list").await.body,
        r#"{"name":"team/hello","tags":["dev"]}"#
    );
    // Only whole files are left, and no upload.
    let uploads = registry.folder.path().join("registry/team+hello/uploads");
    assert_eq!(std::fs::read_dir(uploads).expect("was made").count(), 0);
}

#[tokio::test]
async fn a_blob_can_come_in_chunks_and_go_on_after_a_break() {
    let registry = Registry::new();
    let started = registry.ask("POST", "/v2/a/blobs/uploads/", &[], Body::empty()).await;
    assert_eq!(started.status, 202);
    let upload = started.header(&LOCATION).to_string();
    let first = registry.ask("PATCH", &upload, &[(CONTENT_RANGE, "0-4")], "01234").await;
    assert_eq!((first.status, first.header(&RANGE)), (202, "0-4"));
    let gap = registry.ask("PATCH", &upload, &[(CONTENT_RANGE, "7-8")], "78").await;
    assert_eq!((gap.status, gap.header(&RANGE)), (416, "0-4"));
    let status = registry.get(&upload).await;
    assert_eq!((status.status, status.header(&RANGE)), (204, "0-4"));
    let second = registry.ask("PATCH", &upload, &[(CONTENT_RANGE, "5-6")], "56").await;
    assert_eq!(second.status, 202);
    let digest = Digest::of(b"0123456789");
    let last = registry.ask("PUT", &format!("{upload}?digest={digest}"), &[], "789").await;
    assert_eq!(
        (last.status, last.header(&LOCATION)),
        (201, format!("/v2/a/blobs/{digest}").as_str())
    );
    assert_eq!(registry.get(&upload).await.status, 404);
    let blob = format!("/v2/a/blobs/{digest}");
    for (range, status, body) in [
        ("bytes=2-4", 206, "234"),
        ("bytes=7-", 206, "789"),
        ("bytes=-2", 206, "89"),
        ("bytes=8-99", 206, "89"),
        ("bytes=1-2,4-5", 200, "0123456789"),
        ("lines=1-2", 200, "0123456789"),
    ] {
        let part = registry.ask("GET", &blob, &[(RANGE, range)], Body::empty()).await;
        assert_eq!((part.status, part.body.as_str()), (status, body), "{range}");
    }
    let past = registry.ask("GET", &blob, &[(RANGE, "bytes=10-")], Body::empty()).await;
    assert_eq!(past.status, 416);
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing_behind() {
    let registry = Registry::new();
    let other = Digest::of(b"other");
    let uri = format!("/v2/a/blobs/uploads/?digest={other}");
    let refused = registry.ask("POST", &uri, &[], "content").await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.body,
        r#"{"errors":[{"code":"DIGEST_INVALID","#.to_string()
            + r#""message":"the content does not have the digest that was named"}]}"#
    );
    assert_eq!(registry.get(&format!("/v2/a/blobs/{other}")).await.status, 404);
    let uploads = registry.folder.path().join("registry/a/uploads");
    assert_eq!(std::fs::read_dir(uploads).expect("was made").count(), 0);
    let (refused, _) = registry.push_manifest(&format!("/v2/a/manifests/{other}"), &[]).await;
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn a_manifest_needs_its_blobs_and_its_media_type() {
    let registry = Registry::new();
    let missing = Digest::of(b"missing");
    let (refused, _) = registry.push_manifest("/v2/a/manifests/dev", &[&missing]).await;
    assert!(refused.status == 404 && refused.body.contains("MANIFEST_BLOB_UNKNOWN"));
    for (media_type, manifest) in [
        ("", "{}"),
        (MANIFEST_TYPE, "no JSON"),
        (MANIFEST_TYPE, r#"{"mediaType":"other/type"}"#),
        (MANIFEST_TYPE, r#"{"layers":[{"digest":"md5:1"}]}"#),
    ] {
        let fields = [(CONTENT_TYPE, media_type)];
        let refused = registry.ask("PUT", "/v2/a/manifests/dev", &fields, manifest).await;
        assert!(refused.status == 400 && refused.body.contains("MANIFEST_INVALID"), "{manifest}");
    }
    assert_eq!(registry.get("/v2/a/manifests/dev").await.status, 404);
}

#[tokio::test]
async fn a_blob_can_be_mounted_from_another_repository() {
    let registry = Registry::new();
    let digest = registry.push_blob("a", "shared").await;
    let mount = format!("/v2/b/c/blobs/uploads/?mount={digest}&from=a");
    assert_eq!(registry.ask("POST", &mount, &[], Body::empty()).await.status, 201);
    assert_eq!(registry.get(&format!("/v2/b/c/blobs/{digest}")).await.body, "shared");
    let absent = format!("/v2/b/c/blobs/uploads/?mount={}&from=a", Digest::of(b"absent"));
    assert_eq!(registry.ask("POST", &absent, &[], Body::empty()).await.status, 202);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = Registry::new();
    for tag in ["v2", "v1", "v3"] {
        registry.push_manifest(&format!("/v2/a/manifests/{tag}"), &[]).await;
    }
    let page = registry.get("/v2/a/tags/list?n=2").await;
    assert_eq!(page.body, r#"{"name":"a","tags":["v1","v2"]}"#);
    assert_eq!(page.header(&LINK), "</v2/a/tags/list?n=2&last=v2>; rel=\"next\"");
    let page = registry.get("/v2/a/tags/list?n=2&last=v2").await;
    assert_eq!((page.body.as_str(), page.header(&LINK)), (r#"{"name":"a","tags":["v3"]}"#, ""));
    assert_eq!(registry.get("/v2/unknown/tags/list").await.status, 404);
}

#[tokio::test]
async fn limits_are_told() {
    let registry = Registry::new();
    for _ in 0..UPLOADS_MAX {
        let started = registry.ask("POST", "/v2/a/blobs/uploads/", &[], Body::empty()).await;
        assert_eq!(started.status, 202);
    }
    let refused = registry.ask("POST", "/v2/a/blobs/uploads/", &[], Body::empty()).await;
    assert!(refused.status == 429 && refused.body.contains("TOOMANYREQUESTS"));
    let large = vec![b' '; MANIFEST_BYTES_MAX + 1];
    let refused =
        registry.ask("PUT", "/v2/a/manifests/dev", &[(CONTENT_TYPE, MANIFEST_TYPE)], large).await;
    assert!(refused.status == 413 && refused.body.contains("SIZE_INVALID"));
    assert_eq!(registry.ask("DELETE", "/v2/a/manifests/dev", &[], Body::empty()).await.status, 405);
}

#[test]
fn paths_are_read_strictly() {
    let digest = Digest::of(b"");
    let name = |text: &str| Name::parse(text).expect(text);
    let tag = |text: &str| Reference::Tag(Tag::parse(text).expect(text));
    let good = [
        ("", Route::Base),
        ("/", Route::Base),
        ("/a/tags/list", Route::Tags(name("a"))),
        ("/a/b-c/d__e.f/manifests/v1.0_x", Route::Manifest(name("a/b-c/d__e.f"), tag("v1.0_x"))),
        ("/blobs/uploads/blobs/uploads/", Route::Uploads(name("blobs/uploads"))),
        (&format!("/a/blobs/{digest}"), Route::Blob(name("a"), digest.clone())),
    ];
    for (path, route) in good {
        assert_eq!(Route::parse(path).ok(), Some(route), "{path}");
    }
    let bad = [
        "/../manifests/x",
        "/a/../b/manifests/x",
        "/a//b/manifests/x",
        "/a/%2e%2e/manifests/x",
        "/A/manifests/x",
        "/a+b/manifests/x",
        "/-a/manifests/x",
        "/a-/manifests/x",
        "/a___b/manifests/x",
        "/a..b/manifests/x",
        "/ä/manifests/x",
        "/a/manifests/..",
        "/a/manifests/.x",
        "/a/manifests/a%2fb",
        "/manifests/x",
        "/a/blobs/sha256:00",
        "/a/blobs/sha256:../../../../../../../../../../../../../../../../../../../../etc/pa",
        "/a/blobs/uploads/../x",
        "/a",
    ];
    for path in bad {
        assert!(Route::parse(path).is_err(), "{path}");
    }
    assert!(Route::parse(&format!("/{}/tags/list", "a".repeat(201))).is_err());
}
