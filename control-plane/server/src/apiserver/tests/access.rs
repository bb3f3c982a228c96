//! Who may do what, through the whole Router.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use serde_json::json;

use super::script::{Server, admin};
use crate::apiserver::User;

#[tokio::test]
async fn strangers_and_users_without_rights() {
    let server = Server::start().await;
    let out = server
        .script(
            "
            as anonymous
            GET /livez
            GET /version/
            GET /api
            GET /api/v1/pods
            GET /v2/
            as alice
            GET /api/v1/namespaces/default/pods
            GET /api/v1/namespaces/default/pods/a/log
            GET /apis/apps/v1/deployments
            GET /api/v1/namespaces/default
            DELETE /apis/nothing/v1/things/a
            GET /metrics
            ",
        )
        .await;
    expect![[r#"
        GET /livez
          200 ok
        GET /version/
          200 {
          "major": "1",
          "minor": "32",
          "gitVersion": "v1.32.0+wherry.0.1.0",
          "gitCommit": "unknown",
          "gitTreeState": "clean",
          "buildDate": "1970-01-01T00:00:00Z",
          "goVersion": "none",
          "compiler": "rustc",
          "platform": "linux/amd64"
        }
        GET /api
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"forbidden: User \"system:anonymous\" cannot get path \"/api\"","reason":"Forbidden","details":{},"code":403}
        GET /api/v1/pods
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope","reason":"Forbidden","details":{"kind":"pods"},"code":403}
        GET /v2/
          401 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}
        GET /api/v1/namespaces/default/pods
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"","reason":"Forbidden","details":{"kind":"pods"},"code":403}
        GET /api/v1/namespaces/default/pods/a/log
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"a\" is forbidden: User \"alice\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\"","reason":"Forbidden","details":{"name":"a","kind":"pods"},"code":403}
        GET /apis/apps/v1/deployments
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps is forbidden: User \"alice\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope","reason":"Forbidden","details":{"group":"apps","kind":"deployments"},"code":403}
        GET /api/v1/namespaces/default
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespaces \"default\" is forbidden: User \"alice\" cannot get resource \"namespaces\" in API group \"\" in the namespace \"default\"","reason":"Forbidden","details":{"name":"default","kind":"namespaces"},"code":403}
        DELETE /apis/nothing/v1/things/a
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"things.nothing \"a\" is forbidden: User \"alice\" cannot delete resource \"things\" in API group \"nothing\" at the cluster scope","reason":"Forbidden","details":{"name":"a","group":"nothing","kind":"things"},"code":403}
        GET /metrics
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"forbidden: User \"alice\" cannot get path \"/metrics\"","reason":"Forbidden","details":{},"code":403}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need() {
    let server = Server::start().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "other"] {
        server.ok("POST", secrets, &format!(r#"{{"metadata":{{"name":{name:?}}}}}"#)).await;
    }
    let pods = "/api/v1/namespaces/default/pods";
    for (pod, secret, node) in [("p", "mine", "a"), ("q", "other", "b")] {
        let body = format!(
            r#"{{"metadata":{{"name":{pod:?}}},"spec":{{"nodeName":{node:?},
            "containers":[{{"name":"c",
            "image":"i:1","envFrom":[{{"secretRef":{{"name":{secret:?}}}}}]}}]}}}}"#
        );
        server.ok("POST", pods, &body).await;
    }
    let node = User::new("system:node:a", &["system:nodes"]);
    let bound = "/api/v1/pods?fieldSelector=spec.nodeName%3D";
    let cases = [
        ("GET", format!("{secrets}/mine"), 200),
        ("GET", format!("{secrets}/other"), 403),
        ("GET", secrets.to_owned(), 403),
        ("GET", format!("{secrets}?fieldSelector=metadata.name%3Dmine"), 200),
        (
            "GET",
            format!("{secrets}?fieldSelector=metadata.name%21%3Dx%5C%2Cmetadata.name%3Dmine"),
            403,
        ),
        ("GET", format!("{bound}a"), 200),
        ("GET", format!("{bound}b"), 403),
        (
            "GET",
            "/api/v1/pods?fieldSelector=metadata.name%21%3Dx%5C%2Cspec.nodeName%3Da".to_owned(),
            403,
        ),
        ("GET", format!("{pods}/p"), 200),
        ("GET", format!("{pods}/q"), 403),
        ("GET", format!("{pods}/q?fieldSelector=spec.nodeName%3Da"), 403),
        ("GET", "/api/v1/services".to_owned(), 200),
        ("DELETE", format!("{pods}/p"), 403),
        ("DELETE", "/api/v1/nodes/a".to_owned(), 403),
        ("GET", "/wherry/v1/tunnel".to_owned(), 400),
        ("GET", "/wherry/v1/relay/b/default".to_owned(), 400),
        ("POST", "/wherry/v1/relay/b/default".to_owned(), 403),
    ];
    for (method, path, expected) in cases {
        let response = server.response(&node, method, &path, "", "").await;
        assert_eq!(response.status().as_u16(), expected, "{method} {path}");
    }
}

#[tokio::test]
async fn a_node_reads_the_volumes_that_its_pods_have() {
    let server = Server::start().await;
    let volumes = "/api/v1/persistentvolumes";
    let folder = json!({"csi": {"driver": "wherry.dev/local", "volumeHandle": "h"}});
    let export = json!({"nfs": {"server": "files", "path": "/"}});
    let bound = |claim: &str| {
        let claim = json!({"namespace": "default", "name": claim, "uid": "u"});
        json!({"nfs": {"server": "files", "path": "/"}, "claimRef": claim})
    };
    let specs =
        [("mine", bound("mine")), ("other", bound("other")), ("free", export), ("folder", folder)];
    for (name, mut spec) in specs {
        spec["accessModes"] = json!(["ReadWriteOnce"]);
        spec["capacity"] = json!({"storage": "1Gi"});
        let body = json!({"metadata": {"name": name}, "spec": spec});
        server.ok("POST", volumes, &body.to_string()).await;
    }
    for (pod, claim, node) in [("p", "mine", "a"), ("q", "other", "b")] {
        let body = json!({"metadata": {"name": pod}, "spec": {"nodeName": node,
            "containers": [{"name": "c", "image": "i:1"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
        server.ok("POST", "/api/v1/namespaces/default/pods", &body.to_string()).await;
    }
    let node = User::new("system:node:a", &["system:nodes"]);
    let cases = [("mine", 200), ("other", 403), ("free", 403), ("folder", 200), ("gone", 404)];
    for (name, expected) in cases {
        let response = server.response(&node, "GET", &format!("{volumes}/{name}"), "", "").await;
        assert_eq!(response.status().as_u16(), expected, "{name}");
    }
    assert_eq!(server.response(&node, "GET", volumes, "", "").await.status(), 403);
}

#[tokio::test]
async fn a_machine_joins_by_its_own_request() {
    let server = Server::start().await;
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let holder = |id: &str, role: &str| {
        let group = format!("system:bootstrappers:wherry:{role}");
        User::new(&format!("system:bootstrap:{id}"), &["system:bootstrappers", &group])
    };
    let joining = holder("abcdef", "node");
    let block = "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n";
    let body = json!({"metadata": {"name": "r"}, "spec": {
        "request": STANDARD.encode(block), "usages": ["client auth"], "username": "root",
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet"}})
    .to_string();
    let server_to_be = server.response(&holder("mnopqr", "member"), "POST", all, "", &body).await;
    assert_eq!(server_to_be.status(), 403, "a member's token is not one for nodes");
    let response = server.response(&joining, "POST", all, "", &body).await;
    assert_eq!(response.status(), 201);
    let stored = server.ok("GET", &format!("{all}/r"), "").await;
    assert_eq!(stored["spec"]["username"], "system:bootstrap:abcdef");
    let own = server.response(&joining, "GET", &format!("{all}/r"), "", "").await;
    assert_eq!(own.status(), 200);
    let other = holder("ghijkl", "node");
    let foreign = server.response(&other, "GET", &format!("{all}/r"), "", "").await;
    assert_eq!(foreign.status(), 403);
    let approval = format!("{all}/r/approval");
    let body = r#"{"metadata":{"name":"r"},"status":{"conditions":[{"type":"Approved",
        "status":"True","reason":"r","message":"m"}]}}"#;
    let refused = server.response(&joining, "PUT", &approval, "", body).await;
    assert_eq!(refused.status(), 403);
    let approved = server.ok("PUT", &approval, body).await;
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    // The signer's status keeps the decision.
    let status = r#"{"metadata":{"name":"r"},"status":{"certificate":"LS0t"}}"#;
    let signed = server.ok("PUT", &format!("{all}/r/status"), status).await;
    assert_eq!(signed["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(signed["status"]["certificate"], "LS0t");
}

#[tokio::test]
async fn reviews_answer_at_once() {
    let server = super::roles::with_roles().await;
    let out = server
        .script(
            r#"
            POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
            {"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}
            POST /apis/authentication.k8s.io/v1/selfsubjectreviews
            {}
            as alice
            POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
            {"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}
            "#,
        )
        .await;
    expect![[r#"
        POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
          201 {"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}},"status":{"allowed":true}}
        POST /apis/authentication.k8s.io/v1/selfsubjectreviews
          201 {"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1","metadata":{},"status":{"userInfo":{"username":"admin","groups":["system:masters","system:authenticated"]}}}
        POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews
          201 {"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}},"status":{"allowed":false}}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn every_answer_has_an_audit_id() {
    let server = Server::start().await;
    let response = server.response(&admin(), "GET", "/nowhere", "audit-id: x-1", "").await;
    assert_eq!(response.headers().get("audit-id").and_then(|id| id.to_str().ok()), Some("x-1"));
    assert_eq!(response.headers()["cache-control"], "no-cache, private");
}

/// Most clients take long answers compressed.
#[tokio::test]
async fn the_audit_log_is_told_of_answers_that_would_be_compressed() {
    let server = Server::with_audit("{rules: [{level: RequestResponse}]}").await;
    let all = "/api/v1/namespaces/default/serviceaccounts";
    let note = "x".repeat(150 * 1024);
    let body = format!(r#"{{"metadata":{{"name":"a","annotations":{{"note":"{note}"}}}}}}"#);
    server.ok("POST", all, &body).await;
    for asked in ["serviceaccounts", "serviceaccounts/a"] {
        let path = format!("/api/v1/namespaces/default/{asked}");
        let response = server.response(&admin(), "GET", &path, "accept-encoding: gzip", "").await;
        assert_eq!(response.status(), 200);
    }
    let events = server.audited();
    let told = events.iter().rev().take(2).map(|event| &event["responseObject"]["kind"]);
    assert_eq!(told.collect::<Vec<_>>(), ["ServiceAccount", "ServiceAccountList"]);
}
