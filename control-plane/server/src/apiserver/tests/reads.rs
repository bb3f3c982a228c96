//! Reads: lists, pages, selectors, forms of answers, paths that lead nowhere.

use super::script::{Server, admin, masked, text};
use expect_test::expect;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde_json::Value;
use wherry_store::Window;

async fn config_maps(server: &Server, count: usize) {
    for index in 0..count {
        let app = if index % 2 == 0 { "even" } else { "odd" };
        let body = format!(r#"{{"metadata":{{"name":"c{index}","labels":{{"app":"{app}"}}}}}}"#);
        server.ok("POST", "/api/v1/namespaces/default/configmaps", &body).await;
    }
}

fn names(list: &Value) -> String {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let names: Vec<String> = items
        .iter()
        .filter_map(|item| Some(item["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    names.join(" ")
}

#[tokio::test]
async fn lists_are_paged_at_one_revision() {
    let server = Server::start().await;
    config_maps(&server, 5).await;
    let all = "/api/v1/namespaces/default/configmaps";
    let first = server.ok("GET", &format!("{all}?limit=2"), "").await;
    assert_eq!(names(&first), "c0 c1");
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between pages does not show in them.
    server.ok("DELETE", &format!("{all}/c3"), "").await;
    let token = first["metadata"]["continue"].as_str().unwrap_or("").to_owned();
    let second = server.ok("GET", &format!("{all}?limit=2&continue={token}"), "").await;
    assert_eq!(names(&second), "c2 c3");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap_or("").to_owned();
    let last = server.ok("GET", &format!("{all}?limit=2&continue={token}"), "").await;
    assert_eq!(names(&last), "c4");
    assert!(last["metadata"].get("continue").is_none());
    assert!(last["metadata"].get("remainingItemCount").is_none());
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap_or("");
    let exact = format!("{all}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(names(&server.ok("GET", &exact, "").await), "c0 c1 c2 c3 c4");
    let (code, _) = server.send("GET", &format!("{all}?limit=2&continue=rubbish"), "").await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn long_lists_flow_and_say_the_same() {
    let server = Server::start().await;
    let all = "/api/v1/namespaces/default/configmaps";
    let long = "x".repeat(70 * 1024);
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let metadata = format!(r#""metadata":{{"name":"{name}","labels":{{"app":"{app}"}}}}"#);
        server.ok("POST", all, &format!(r#"{{{metadata},"data":{{"k":"{long}"}}}}"#)).await;
    }
    for query in ["", "limit=2", "labelSelector=app%3Dx"] {
        let response = server.response(&admin(), "GET", &format!("{all}?{query}"), "", "").await;
        assert!(response.body().size_hint().exact().is_none(), "it is made while it is sent");
        // What is shown to people is made of values.
        let shown = server.ok("GET", &format!("{all}?pretty=true&{query}"), "").await;
        let said = text(response).await;
        assert!(said == format!("{shown}\n"), "{query}: {} bytes", said.len());
    }
    let response = server.response(&admin(), "GET", all, "accept-encoding: gzip", "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let packed = response.into_body().collect().await.expect("the body ends").to_bytes();
    assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() < long.len());
    let response = server.response(&admin(), "GET", &format!("{all}?limit=x"), "", "").await;
    assert_eq!(response.status(), 400);
    assert!(text(response).await.starts_with("{\"kind\":\"Status\""));
}

#[tokio::test]
async fn a_page_whose_revision_is_gone_says_how_to_go_on() {
    let window = Window { revisions: 2, ..Window::default() };
    let server = Server::with_window(window).await;
    config_maps(&server, 4).await;
    let all = "/api/v1/namespaces/default/configmaps";
    let first = server.ok("GET", &format!("{all}?limit=2"), "").await;
    for name in ["x", "y", "z"] {
        server.ok("POST", all, &format!(r#"{{"metadata":{{"name":{name:?}}}}}"#)).await;
    }
    let token = first["metadata"]["continue"].as_str().unwrap_or("").to_owned();
    let (code, text) = server.send("GET", &format!("{all}?limit=9&continue={token}"), "").await;
    assert_eq!(code, 410);
    let status: Value = serde_json::from_str(&text).expect("a Status");
    assert_eq!(status["reason"], "Expired");
    let token = status["metadata"]["continue"].as_str().unwrap_or("").to_owned();
    let rest = server.ok("GET", &format!("{all}?limit=9&continue={token}"), "").await;
    assert_eq!(names(&rest), "c2 c3 x y z");
}

#[tokio::test]
async fn selectors() {
    let server = Server::start().await;
    config_maps(&server, 4).await;
    let all = "/api/v1/namespaces/default/configmaps";
    let cases = [
        ("labelSelector=app%3Deven", "c0 c2"),
        ("labelSelector=app%21%3Deven", "c1 c3"),
        ("labelSelector=app+in+(odd,even)", "c0 c1 c2 c3"),
        ("labelSelector=%21app", ""),
        ("fieldSelector=metadata.name%3Dc1&limit=500&resourceVersion=0", "c1"),
        ("fieldSelector=metadata.name%21%3Dc1", "c0 c2 c3"),
        ("fieldSelector=metadata.namespace%3Dother", ""),
    ];
    for (query, expected) in cases {
        let list = server.ok("GET", &format!("{all}?{query}"), "").await;
        assert_eq!(names(&list), expected, "{query}");
    }
    let out = server
        .script(
            "GET /api/v1/configmaps?labelSelector=a%3D%3D%3D\nGET /api/v1/pods?fieldSelector=spec.x%3D1",
        )
        .await;
    expect![[r#"
        GET /api/v1/configmaps?labelSelector=a%3D%3D%3D
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"unable to parse requirement: found '=', expected: identifier","reason":"BadRequest","code":400}
        GET /api/v1/pods?fieldSelector=spec.x%3D1
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"field label not supported: spec.x","reason":"BadRequest","code":400}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn forms_of_answers() {
    let server = Server::start().await;
    config_maps(&server, 1).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let mut out = String::new();
    for accept in [
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        "application/yaml",
        "application/vnd.kubernetes.protobuf,application/json",
        "text/html",
    ] {
        let header = format!("accept: {accept}");
        let response = server.response(&admin(), "GET", path, &header, "").await;
        let media = response.headers().get("content-type").cloned();
        out.push_str(&format!(
            "{accept}\n  {media:?}\n  {}\n",
            masked(text(response).await.trim_end())
        ));
    }
    let out = out.replace(char::is_numeric, "0");
    expect![[r#"
        application/json;as=Table;v=v0;g=meta.k0s.io,application/json
          Some("application/json")
          {"kind":"Table","apiVersion":"meta.k0s.io/v0","metadata":{"resourceVersion":"R0"},"columnDefinitions":[{"name":"Name","type":"string","format":"name","description":"The name of the object, unique within its kind and namespace","priority":0},{"name":"Data","type":"integer","format":"","description":"The number of values","priority":0},{"name":"Age","type":"string","format":"","description":"The time since the object was created","priority":0}],"rows":[{"cells":["c0",0,"0s"],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k0s.io/v0","metadata":{"name":"c0","namespace":"default","uid":"UID","resourceVersion":"R0","creationTimestamp":"-","labels":{"app":"even"}}}}]}
        application/json;as=PartialObjectMetadataList;v=v0;g=meta.k0s.io
          Some("application/json")
          {"kind":"PartialObjectMetadataList","apiVersion":"meta.k0s.io/v0","metadata":{"resourceVersion":"R0"},"items":[{"kind":"PartialObjectMetadata","apiVersion":"meta.k0s.io/v0","metadata":{"name":"c0","namespace":"default","uid":"UID","resourceVersion":"R0","creationTimestamp":"-","labels":{"app":"even"}}}]}
        application/yaml
          Some("application/yaml")
          kind: ConfigMapList
        apiVersion: v0
        metadata:
          resourceVersion: "0"
        items:
        - metadata:
            name: c0
            namespace: default
            uid: UID
            resourceVersion: "0"
            creationTimestamp: "0000-00-00T00:00:00Z"
            labels:
              app: even
            managedFields:
            - manager: unknown
              operation: Update
              apiVersion: v0
              time: "0000-00-00T00:00:00Z"
              fieldsType: FieldsV0
              fieldsV0:
                f:metadata:
                  f:labels:
                    .: {}
                    f:app: {}
        application/vnd.kubernetes.protobuf,application/json
          Some("application/json")
          {"kind":"ConfigMapList","apiVersion":"v0","metadata":{"resourceVersion":"R0"},"items":[{"metadata":{"name":"c0","namespace":"default","uid":"UID","resourceVersion":"R0","creationTimestamp":"-","labels":{"app":"even"}}}]}
        text/html
          Some("application/json")
          {"kind":"Status","apiVersion":"v0","metadata":{},"status":"Failure","message":"only the following media types are accepted: application/json, application/yaml","reason":"NotAcceptable","code":000}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn paths_that_lead_nowhere_and_methods_that_are_not_there() {
    let server = Server::start().await;
    let out = server
        .script(
            "
            GET /nowhere
            GET /api/v1/unknown
            GET /apis/apps/v2/deployments
            GET /api/v1/pods/a
            GET /api/v1/namespaces/default/nodes
            GET /api/v1/namespaces/default/pods/a/nothing
            POST /api/v1/pods
            DELETE /version
            GET /api/v1/namespaces/default/pods?limit=x
            GET /api/v1/nodes?resourceVersionMatch=Exact
            GET /livez
            GET /readyz?verbose
            GET /readyz/store
            GET /readyz/nothing
            ",
        )
        .await;
    expect![[r#"
        GET /nowhere
          404 404 page not found
        GET /api/v1/unknown
          404 404 page not found
        GET /apis/apps/v2/deployments
          404 404 page not found
        GET /api/v1/pods/a
          404 404 page not found
        GET /api/v1/namespaces/default/nodes
          404 404 page not found
        GET /api/v1/namespaces/default/pods/a/nothing
          404 404 page not found
        POST /api/v1/pods
          405 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server does not allow this method on the requested resource","reason":"MethodNotAllowed","details":{"kind":"pods"},"code":405}
        DELETE /version
          405 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server does not allow this method on the requested resource","reason":"MethodNotAllowed","details":{},"code":405}
        GET /api/v1/namespaces/default/pods?limit=x
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"limit: \"x\" is not a whole number","reason":"BadRequest","code":400}
        GET /api/v1/nodes?resourceVersionMatch=Exact
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided","field":"resourceVersionMatch"}]},"code":422}
        GET /livez
          200 ok
        GET /readyz?verbose
          200 [+]ping ok
        [+]store ok
        [+]disk ok
        [+]data ok
        [+]shutdown ok
        readyz check passed
        GET /readyz/store
          200 ok
        GET /readyz/nothing
          404 404 page not found
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn a_revision_ahead_is_waited_for_and_then_refused() {
    let server = Server::start().await;
    let (code, body) = server.send("GET", "/api/v1/nodes?resourceVersion=1000000", "").await;
    assert_eq!(code, 504);
    let status: Value = serde_json::from_str(&body).expect("a Status");
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(status["details"]["retryAfterSeconds"], 1);
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let server = Server::start().await;
    let body = format!(r#"{{"metadata":{{"name":"a"}},"data":{{"k":"{}"}}}}"#, "x".repeat(3 << 20));
    let (code, body) = server.send("POST", "/api/v1/namespaces/default/configmaps", &body).await;
    assert_eq!(code, 413);
    assert!(body.contains("\"reason\":\"RequestEntityTooLarge\""), "{body}");
}

#[tokio::test]
async fn documents_are_there_with_and_without_a_slash_behind() {
    let server = Server::start().await;
    for path in ["/api", "/apis", "/apis/apps", "/api/v1", "/apis/apps/v1", "/openapi/v3"] {
        let plain = server.ok("GET", path, "").await;
        assert_eq!(server.ok("GET", &format!("{path}/"), "").await, plain, "{path}");
    }
}
