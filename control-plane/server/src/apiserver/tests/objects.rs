//! Writes: what each verb answers and stores.

use super::script::{Server, admin};
use expect_test::expect;
use serde_json::json;

#[tokio::test]
async fn a_pod_waits_for_the_account_of_its_new_namespace() {
    let server = Server::start().await;
    let namespace = r#"{"metadata":{"name":"new"}}"#;
    server.ok("POST", "/api/v1/namespaces", namespace).await;
    let pod = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i:1"}]}}"#;
    let account = r#"{"metadata":{"name":"default"}}"#;
    // The Pod is asked for first.
    tokio::join!(
        server.ok("POST", "/api/v1/namespaces/new/pods", pod),
        server.ok("POST", "/api/v1/namespaces/new/serviceaccounts", account),
    );
}

#[tokio::test]
async fn the_audit_log_is_told_what_pods_ask_for_beyond_their_levels() {
    let server = Server::with_audit("{rules: [{level: Metadata}]}").await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/warn": "privileged",
        "pod-security.kubernetes.io/audit": "restricted"});
    let namespace = json!({"metadata": {"name": "open", "labels": labels}});
    server.ok("POST", "/api/v1/namespaces", &namespace.to_string()).await;
    let at = "/api/v1/namespaces/open";
    server.ok("POST", &format!("{at}/serviceaccounts"), r#"{"metadata":{"name":"default"}}"#).await;
    let containers = json!([{"name": "c", "image": "i:1"}]);
    let as_root = json!({"containers": containers, "securityContext": {"runAsUser": 0}});
    let specs = [
        json!({"containers": containers}),
        as_root.clone(),
        json!({"containers": containers, "hostPID": true}),
    ];
    for (spec, expected) in specs.into_iter().zip([201_u16, 201, 403]) {
        let pod = json!({"metadata": {"generateName": "p-"}, "spec": spec});
        let (code, text) = server.send("POST", &format!("{at}/pods"), &pod.to_string()).await;
        assert_eq!(code, expected, "{text}");
    }
    let template = json!({"metadata": {"name": "t"}, "template": {"spec": as_root}});
    server.ok("POST", &format!("{at}/podtemplates"), &template.to_string()).await;
    let events = server.audited();
    let root = "would violate PodSecurity \"restricted:latest\": runAsUser=0 (pod must not set \
        securityContext.runAsUser=0)";
    let machine = "would violate PodSecurity \"restricted:latest\": host namespaces (hostPID=true)";
    let expected = [
        json!(["baseline:latest", null]),
        json!(["baseline:latest", root]),
        json!(["baseline:latest", machine]),
        json!([null, root]),
    ];
    for (event, expected) in events[events.len() - 4..].iter().zip(expected) {
        let notes = &event["annotations"];
        let told = ["enforce-policy", "audit-violations"]
            .map(|key| &notes[format!("pod-security.kubernetes.io/{key}")]);
        assert_eq!(json!(told), expected);
    }
}

#[tokio::test]
async fn who_tightens_a_namespace_hears_of_the_pods_inside() {
    let server = Server::start().await;
    let at = "/api/v1/namespaces/default";
    let level = |level: &str| {
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}}).to_string()
    };
    let patch = "application/merge-patch+json";
    server.response(&admin(), "PATCH", at, patch, &level("privileged")).await;
    let spec = json!({"hostPID": true, "containers": [{"name": "c", "image": "i:1"}]});
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        server.ok("POST", &format!("{at}/pods"), &pod.to_string()).await;
    }
    let answer = server.response(&admin(), "PATCH", at, patch, &level("baseline")).await;
    assert_eq!(answer.status(), 200);
    let warnings = answer.headers().get_all("warning").iter();
    let warnings: Vec<&str> = warnings.map(|one| one.to_str().expect("text")).collect();
    assert_eq!(
        warnings,
        [
            r#"299 - "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"baseline:latest\"""#,
            r#"299 - "a (and 1 other pod): host namespaces""#,
        ]
    );
}

#[tokio::test]
async fn a_config_map_from_create_to_delete() {
    let server = Server::start().await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a","labels":{"x":"y"}},"data":{"k":"v"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a"}}
            GET /api/v1/namespaces/default/configmaps/a
            PUT /api/v1/namespaces/default/configmaps/a
            {"metadata":{"name":"a"},"data":{"k":"w"}}
            PUT /api/v1/namespaces/default/configmaps/a
            {"metadata":{"name":"a","resourceVersion":"1"},"data":{"k":"x"}}
            PUT /api/v1/namespaces/default/configmaps/b
            {"metadata":{"name":"b"}}
            PUT /api/v1/namespaces/default/configmaps/a
            {"metadata":{"name":"b"}}
            PATCH /api/v1/namespaces/default/configmaps/a application/merge-patch+json
            {"data":{"k":null,"l":"1"}}
            PATCH /api/v1/namespaces/default/configmaps/a application/json-patch+json
            [{"op":"test","path":"/data/l","value":"2"}]
            PATCH /api/v1/namespaces/default/configmaps/a application/apply-patch+yaml
            data: {}
            PATCH /api/v1/namespaces/default/configmaps/a application/strategic-merge-patch+json
            {"metadata":{"labels":{"x":"z"}}}
            DELETE /api/v1/namespaces/default/configmaps/a
            {"preconditions":{"uid":"other"}}
            DELETE /api/v1/namespaces/default/configmaps/a
            DELETE /api/v1/namespaces/default/configmaps/a
            "#,
        )
        .await;
    expect![[r#"
        POST /api/v1/namespaces/default/configmaps
          201 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","labels":{"x":"y"}},"data":{"k":"v"}}
        POST /api/v1/namespaces/default/configmaps
          409 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"a\" already exists","reason":"AlreadyExists","details":{"name":"a","kind":"configmaps"},"code":409}
        GET /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","labels":{"x":"y"}},"data":{"k":"v"}}
        PUT /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"data":{"k":"w"}}
        PUT /api/v1/namespaces/default/configmaps/a
          409 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again","reason":"Conflict","details":{"name":"a","kind":"configmaps"},"code":409}
        PUT /api/v1/namespaces/default/configmaps/b
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"b\" not found","reason":"NotFound","details":{"name":"b","kind":"configmaps"},"code":404}
        PUT /api/v1/namespaces/default/configmaps/a
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the name of the object (b) does not match the name on the URL (a)","reason":"BadRequest","code":400}
        PATCH /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"data":{"l":"1"}}
        PATCH /api/v1/namespaces/default/configmaps/a
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap \"a\" is invalid: patch: the server rejected our request: operation '/0' failed at path '/data/l': value did not match","reason":"Invalid","details":{"name":"a","kind":"ConfigMap","causes":[{"reason":"FieldValueInvalid","message":"the server rejected our request: operation '/0' failed at path '/data/l': value did not match","field":"patch"}]},"code":422}
        PATCH /api/v1/namespaces/default/configmaps/a
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"PatchOptions","causes":[{"reason":"FieldValueRequired","message":"Required value: is required for apply patch","field":"fieldManager"}]},"code":422}
        PATCH /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","labels":{"x":"z"}},"data":{"l":"1"}}
        DELETE /api/v1/namespaces/default/configmaps/a
          409 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on configmaps \"a\": Precondition failed: UID in precondition: other, UID in object meta: UID","reason":"Conflict","details":{"name":"a","kind":"configmaps"},"code":409}
        DELETE /api/v1/namespaces/default/configmaps/a
          200 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"a","kind":"configmaps","uid":"UID"}}
        DELETE /api/v1/namespaces/default/configmaps/a
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"a\" not found","reason":"NotFound","details":{"name":"a","kind":"configmaps"},"code":404}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn creation_is_checked() {
    let server = Server::start().await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/nowhere/configmaps
            {"metadata":{"name":"a"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a","namespace":"other"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"A_b"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a","resourceVersion":"7"}}
            POST /api/v1/namespaces/default/configmaps
            {"kind":"Secret","metadata":{"name":"a"}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a"},"data":[]}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":
            POST /api/v1/namespaces/default/configmaps text/plain
            hello
            POST /api/v1/namespaces/default/configmaps?dryRun=maybe
            {"metadata":{"name":"a"}}
            POST /api/v1/namespaces/default/configmaps?dryRun=All
            {"metadata":{"name":"a"}}
            GET /api/v1/namespaces/default/configmaps/a
            POST /api/v1/namespaces/default/configmaps application/yaml
            {metadata: {name: from-yaml}, data: {a: "1"}}
            "#,
        )
        .await;
    expect![[r#"
        POST /api/v1/namespaces/nowhere/configmaps
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespaces \"nowhere\" not found","reason":"NotFound","details":{"name":"nowhere","kind":"namespaces"},"code":404}
        POST /api/v1/namespaces/default/configmaps
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the namespace of the provided object does not match the namespace sent on the request","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')","reason":"Invalid","details":{"name":"A_b","kind":"ConfigMap","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')","field":"metadata.name"}]},"code":422}
        POST /api/v1/namespaces/default/configmaps
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required","reason":"Invalid","details":{"kind":"ConfigMap","causes":[{"reason":"FieldValueRequired","message":"Required value: name or generateName is required","field":"metadata.name"}]},"code":422}
        POST /api/v1/namespaces/default/configmaps
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"resourceVersion should not be set on objects to be created","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Secret in version \"v1\" cannot be handled as a ConfigMap: the kind in the data does not match the path","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap in version \"v1\" cannot be handled as a ConfigMap: data: a list stands where an object belongs","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the object provided is unrecognized (must be of type ConfigMap): EOF while parsing a value at line 1 column 12","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps
          415 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf","reason":"UnsupportedMediaType","code":415}
        POST /api/v1/namespaces/default/configmaps?dryRun=maybe
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"maybe\"]: supported values: \"All\"","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"CreateOptions","causes":[{"reason":"FieldValueNotSupported","message":"Unsupported value: [\"maybe\"]: supported values: \"All\"","field":"dryRun"}]},"code":422}
        POST /api/v1/namespaces/default/configmaps?dryRun=All
          201 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","creationTimestamp":"-"}}
        GET /api/v1/namespaces/default/configmaps/a
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"a\" not found","reason":"NotFound","details":{"name":"a","kind":"configmaps"},"code":404}
        POST /api/v1/namespaces/default/configmaps
          201 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"from-yaml","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"data":{"a":"1"}}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn fields_that_are_unknown_or_sent_twice() {
    let server = Server::start().await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/default/configmaps?fieldValidation=Strict
            {"metadata":{"name":"a"},"dat":{},"data":{"k":"1","k":"2"}}
            POST /api/v1/namespaces/default/configmaps?fieldValidation=Ignore
            {"metadata":{"name":"a"},"dat":{}}
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"b"},"dat":{},"data":{"k":"1","k":"2"}}
            "#,
        )
        .await;
    expect![[r#"
        POST /api/v1/namespaces/default/configmaps?fieldValidation=Strict
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\" (did you mean \"data\"?), duplicate field \"data.k\"","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/configmaps?fieldValidation=Ignore
          201 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"}}
        POST /api/v1/namespaces/default/configmaps
          201 warning: 299 - "unknown field \"dat\" (did you mean \"data\"?)" warning: 299 - "duplicate field \"data.k\"" {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"b","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"data":{"k":"2"}}
    "#]].assert_eq(&out);
}

const DEPLOYMENT: &str = r#"{"metadata":{"name":"web"},"spec":{"replicas":2,
    "selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},
    "spec":{"containers":[{"name":"c","image":"hello:1"}]}}},"status":{"replicas":9}}"#;

#[tokio::test]
async fn generation_counts_the_spec_and_status_has_its_own_endpoint() {
    let server = Server::start().await;
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let one = format!("{all}/web");
    let created = server.ok("POST", all, DEPLOYMENT).await;
    assert_eq!(created["metadata"]["generation"], 1);
    assert!(created.get("status").is_none_or(|status| status.get("replicas").is_none()));
    let status = r#"{"metadata":{"name":"web"},"spec":{"replicas":7},"status":{"replicas":2}}"#;
    let updated = server.ok("PUT", &format!("{one}/status"), status).await;
    assert_eq!(updated["status"]["replicas"], 2);
    assert_eq!(updated["spec"]["replicas"], 2);
    assert_eq!(updated["metadata"]["generation"], 1);
    // The same again changes nothing, not even the revision.
    let again = server.ok("PUT", &format!("{one}/status"), status).await;
    assert_eq!(again, updated);
    let out = server
        .script(
            r#"
            GET /apis/apps/v1/namespaces/default/deployments/web/scale
            PATCH /apis/apps/v1/namespaces/default/deployments/web/scale application/merge-patch+json
            {"spec":{"replicas":5}}
            PATCH /apis/apps/v1/namespaces/default/deployments/web/scale application/merge-patch+json
            {"spec":{"replicas":-1}}
            PATCH /apis/apps/v1/namespaces/default/deployments/web application/strategic-merge-patch+json
            {"spec":{"replicas":-1}}
            PATCH /apis/apps/v1/namespaces/default/deployments/web application/strategic-merge-patch+json
            {"spec":{"replicas":"many"}}
            PATCH /apis/apps/v1/namespaces/default/deployments/web application/strategic-merge-patch+json
            {"metadata":{"resourceVersion":"1"}}
            "#,
        )
        .await;
    expect![[r#"
        GET /apis/apps/v1/namespaces/default/deployments/web/scale
          200 {"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"web","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"spec":{"replicas":2},"status":{"replicas":2,"selector":"app=web"}}
        PATCH /apis/apps/v1/namespaces/default/deployments/web/scale
          200 {"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"web","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"spec":{"replicas":5},"status":{"replicas":2,"selector":"app=web"}}
        PATCH /apis/apps/v1/namespaces/default/deployments/web/scale
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0","reason":"Invalid","details":{"name":"web","group":"autoscaling","kind":"Scale","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: -1: must be greater than or equal to 0","field":"spec.replicas"}]},"code":422}
        PATCH /apis/apps/v1/namespaces/default/deployments/web
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0","reason":"Invalid","details":{"name":"web","group":"apps","kind":"Deployment","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: -1: must be greater than or equal to 0","field":"spec.replicas"}]},"code":422}
        PATCH /apis/apps/v1/namespaces/default/deployments/web
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Deployment in version \"v1\" cannot be handled as a Deployment: spec.replicas: a string stands where a number belongs","reason":"BadRequest","code":400}
        PATCH /apis/apps/v1/namespaces/default/deployments/web
          409 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; please apply your changes to the latest version and try again","reason":"Conflict","details":{"name":"web","group":"apps","kind":"deployments"},"code":409}
    "#]].assert_eq(&out);
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"hello:2"}]}}}}"#;
    let kind = "application/strategic-merge-patch+json";
    let admin = super::script::admin();
    let response = server.response(&admin, "PATCH", &one, kind, patch).await;
    assert_eq!(response.status(), 200);
    let patched = server.ok("GET", &one, "").await;
    assert_eq!(patched["metadata"]["generation"], 3);
    assert_eq!(patched["spec"]["replicas"], 5);
    let image = patched.pointer("/spec/template/spec/containers/0/image");
    assert_eq!(image.and_then(serde_json::Value::as_str), Some("hello:2"));
}

#[tokio::test]
async fn a_pod_is_bound_runs_and_ends() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = r#"{"metadata":{"generateName":"p-"},"spec":{"containers":[{"name":"c",
        "image":"hello:1"}]}}"#;
    let created = server.ok("POST", pods, pod).await;
    let name = created["metadata"]["name"].as_str().unwrap_or("").to_owned();
    assert!(name.starts_with("p-") && name.len() == 7, "{name}");
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(created["status"]["phase"], "Pending");
    let binding = r#"{"metadata":{"name":"NAME"},"target":{"kind":"Node","name":"n"}}"#;
    let binding = binding.replace("NAME", &name);
    let bind = format!("{pods}/{name}/binding");
    let wrong =
        [r#"{"target":{"kind":"Pod"}}"#, r#"{"metadata":{"name":"other"},"target":{"name":"n"}}"#];
    let bodies = wrong.into_iter().chain([binding.as_str(); 2]);
    let script: String = bodies.map(|body| format!("POST {bind}\n{body}\n")).collect();
    let out = server.script(&script).await;
    expect![[r#"
        POST /api/v1/namespaces/default/pods/NAME/binding
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Binding \"NAME\" is invalid: [target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"\u003cempty\u003e\", target.name: Required value]","reason":"Invalid","details":{"name":"NAME","kind":"Binding","causes":[{"reason":"FieldValueNotSupported","message":"Unsupported value: \"Pod\": supported values: \"Node\", \"\u003cempty\u003e\"","field":"target.kind"},{"reason":"FieldValueRequired","message":"Required value","field":"target.name"}]},"code":422}
        POST /api/v1/namespaces/default/pods/NAME/binding
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"name in URL does not match name in Binding object","reason":"BadRequest","code":400}
        POST /api/v1/namespaces/default/pods/NAME/binding
          201 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","code":201}
        POST /api/v1/namespaces/default/pods/NAME/binding
          409 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on pods/binding \"NAME\": pod NAME is already assigned to node \"n\"","reason":"Conflict","details":{"name":"NAME","kind":"pods/binding"},"code":409}
    "#]].assert_eq(&out.replace(&name, "NAME"));
    let one = format!("{pods}/{name}");
    let ending = server.ok("DELETE", &one, r#"{"gracePeriodSeconds":20}"#).await;
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 20);
    let uid = ending["metadata"]["uid"].as_str().unwrap_or("");
    let options = format!("{{\"gracePeriodSeconds\":0,\"preconditions\":{{\"uid\":{uid:?}}}}}");
    let gone = server.ok("DELETE", &one, &options).await;
    assert_eq!(gone["details"]["uid"], uid);
    assert_eq!(server.send("GET", &one, "").await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let server = Server::start().await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces/default/configmaps
            {"metadata":{"name":"a","finalizers":["example.com/x"]}}
            DELETE /api/v1/namespaces/default/configmaps/a
            PATCH /api/v1/namespaces/default/configmaps/a application/merge-patch+json
            {"metadata":{"finalizers":["example.com/x","example.com/y"]}}
            PATCH /api/v1/namespaces/default/configmaps/a application/merge-patch+json
            {"metadata":{"finalizers":null}}
            GET /api/v1/namespaces/default/configmaps/a
            "#,
        )
        .await;
    expect![[r#"
        POST /api/v1/namespaces/default/configmaps
          201 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","finalizers":["example.com/x"]}}
        DELETE /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","deletionTimestamp":"-","deletionGracePeriodSeconds":0,"finalizers":["example.com/x"]}}
        PATCH /api/v1/namespaces/default/configmaps/a
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/y\"}","reason":"Invalid","details":{"name":"a","kind":"ConfigMap","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/y\"}","field":"metadata.finalizers"}]},"code":422}
        PATCH /api/v1/namespaces/default/configmaps/a
          200 {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","deletionTimestamp":"-","deletionGracePeriodSeconds":0}}
        GET /api/v1/namespaces/default/configmaps/a
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"a\" not found","reason":"NotFound","details":{"name":"a","kind":"configmaps"},"code":404}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn a_namespace_ends_with_its_finalizer() {
    let server = Server::start().await;
    let out = server
        .script(
            r#"
            POST /api/v1/namespaces
            {"metadata":{"name":"a"}}
            DELETE /api/v1/namespaces/a
            POST /api/v1/namespaces/a/configmaps
            {"metadata":{"name":"late"}}
            PUT /api/v1/namespaces/a/finalize
            {"metadata":{"name":"a"},"spec":{"finalizers":[]}}
            GET /api/v1/namespaces/a
            DELETE /api/v1/namespaces/default
            "#,
        )
        .await;
    expect![[r#"
        POST /api/v1/namespaces
          201 {"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","labels":{"kubernetes.io/metadata.name":"a"}},"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}
        DELETE /api/v1/namespaces/a
          200 {"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","deletionTimestamp":"-","labels":{"kubernetes.io/metadata.name":"a"}},"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Terminating"}}
        POST /api/v1/namespaces/a/configmaps
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps \"late\" is forbidden: unable to create new content in namespace a because it is being terminated","reason":"Forbidden","details":{"name":"late","kind":"configmaps","causes":[{"reason":"NamespaceTerminating","message":"namespace a is being terminated","field":"metadata.namespace"}]},"code":403}
        PUT /api/v1/namespaces/a/finalize
          200 {"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","deletionTimestamp":"-","labels":{"kubernetes.io/metadata.name":"a"}},"spec":{"finalizers":[]},"status":{"phase":"Terminating"}}
        GET /api/v1/namespaces/a
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespaces \"a\" not found","reason":"NotFound","details":{"name":"a","kind":"namespaces"},"code":404}
        DELETE /api/v1/namespaces/default
          403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespaces \"default\" is forbidden: this namespace may not be deleted","reason":"Forbidden","details":{"name":"default","kind":"namespaces"},"code":403}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn services_get_addresses() {
    let server = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = r#"{"metadata":{"name":"a"},"spec":{"type":"NodePort","ports":[{"port":80}]}}"#;
    let created = server.ok("POST", services, service).await;
    let address = created["spec"]["clusterIP"].as_str().unwrap_or("");
    assert!(address.starts_with("172.20."), "{address}");
    let port = created.pointer("/spec/ports/0/nodePort").and_then(serde_json::Value::as_u64);
    assert!(port.is_some_and(|port| (30_000..=32_767).contains(&port)), "{port:?}");
    let same = format!(
        r#"{{"metadata":{{"name":"b"}},
            "spec":{{"clusterIP":{address:?},"ports":[{{"port":80}}]}}}}"#
    );
    let (code, text) = server.send("POST", services, &same).await;
    assert_eq!(code, 422);
    assert!(text.contains("provided IP is already allocated"), "{text}");
    // A replacement without the address keeps it.
    let updated = server.ok("PUT", &format!("{services}/a"), service).await;
    assert_eq!(updated["spec"]["clusterIP"], address);
    assert_eq!(updated["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    server.ok("DELETE", &format!("{services}/a"), "").await;
    server.ok("POST", services, &same).await;
}

#[tokio::test]
async fn a_collection_is_deleted_by_its_selector() {
    let server = Server::start().await;
    let all = "/api/v1/namespaces/default/configmaps";
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let body = format!(r#"{{"metadata":{{"name":{name:?},"labels":{{"app":{app:?}}}}}}}"#);
        server.ok("POST", all, &body).await;
    }
    let deleted = server.ok("DELETE", &format!("{all}?labelSelector=app%3Dx"), "").await;
    assert_eq!(deleted["items"].as_array().map(Vec::len), Some(2));
    let left = server.ok("GET", all, "").await;
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn new_pods_have_the_priority_of_the_default_class() {
    let server = Server::start().await;
    for class in [
        r#"{"metadata":{"name":"high"},"value":9}"#,
        r#"{"metadata":{"name":"usual"},"value":7,"globalDefault":true}"#,
    ] {
        server.ok("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    }
    let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"hello:1"}]}}"#;
    let made = server.ok("POST", "/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(made["spec"]["priorityClassName"], "usual");
    assert_eq!(made["spec"]["priority"], 7);
}
