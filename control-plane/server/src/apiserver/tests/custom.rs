//! Custom resources: what clients see from the CRD's creation to its end.

use super::script::{Server, admin};
use expect_test::expect;
use serde_json::{Value, json};

/// A CRD with all that a definition may have.
pub fn shirts() -> Value {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "properties": {
            "color": {"type": "string", "enum": ["red", "blue"]},
            "size": {"type": "integer", "default": 40, "minimum": 1},
            "replicas": {"type": "integer"},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        }, "x-kubernetes-validations": [
            {"rule": "self.size < 60", "message": "no shirt is that large"},
            {"rule": "!has(oldSelf.color) || self.color == oldSelf.color",
                "message": "color is fixed"},
        ]},
        "status": {"type": "object", "properties": {
            "replicas": {"type": "integer"}, "selector": {"type": "string"},
            "phase": {"type": "string"},
        }},
    }});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector"}},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [
                {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1}]})
    };
    let mut old = version("v1beta1", false);
    old["deprecated"] = json!(true);
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "shirts.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "shirts", "kind": "Shirt", "shortNames": ["sh"],
                "categories": ["all"]},
            "versions": [old, version("v1", true)]}})
}

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const SHIRTS: &str = "/apis/example.com/v1/namespaces/default/shirts";

async fn with_shirts() -> Server {
    let server = Server::start().await;
    server.ok("POST", DEFINITIONS, &shirts().to_string()).await;
    server
}

#[tokio::test]
async fn a_definition_is_served_as_soon_as_it_is_written() {
    let server = Server::start().await;
    let (code, _) = server.send("GET", SHIRTS, "").await;
    assert_eq!(code, 404);
    let made = server.ok("POST", DEFINITIONS, &shirts().to_string()).await;
    let conditions = made["status"]["conditions"].as_array().expect("has conditions");
    let shown: Vec<String> = conditions
        .iter()
        .map(|one| format!("{} {} {}", one["type"], one["status"], one["reason"]))
        .collect();
    expect![[r#"
        [
            "\"NamesAccepted\" \"True\" \"NoConflicts\"",
            "\"Established\" \"True\" \"InitialNamesAccepted\"",
        ]
    "#]]
    .assert_debug_eq(&shown);
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["spec"]["names"]["listKind"], "ShirtList");
    let out = server
        .script(
            r#"
            GET /apis/example.com/v1/namespaces/default/shirts
            GET /apis/example.com
            GET /apis/example.com/v1
            GET /apis/example.com/v1/namespaces/default/shirts/a
            "#,
        )
        .await;
    expect![[r#"
        GET /apis/example.com/v1/namespaces/default/shirts
          200 {"apiVersion":"example.com/v1","items":[],"kind":"ShirtList","metadata":{"resourceVersion":"R1"}}
        GET /apis/example.com
          200 {"kind":"APIGroup","apiVersion":"v1","name":"example.com","versions":[{"groupVersion":"example.com/v1","version":"v1"},{"groupVersion":"example.com/v1beta1","version":"v1beta1"}],"preferredVersion":{"groupVersion":"example.com/v1","version":"v1"}}
        GET /apis/example.com/v1
          200 {"kind":"APIResourceList","apiVersion":"v1","groupVersion":"example.com/v1","resources":[{"name":"shirts","singularName":"shirt","namespaced":true,"kind":"Shirt","verbs":["delete","deletecollection","get","list","patch","create","update","watch"],"shortNames":["sh"],"categories":["all"],"storageVersionHash":"k6DqwPV7kEQ="},{"name":"shirts/scale","singularName":"","namespaced":true,"group":"autoscaling","version":"v1","kind":"Scale","verbs":["get","patch","update"]},{"name":"shirts/status","singularName":"","namespaced":true,"kind":"Shirt","verbs":["get","patch","update"]}]}
        GET /apis/example.com/v1/namespaces/default/shirts/a
          404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"shirts.example.com \"a\" not found","reason":"NotFound","details":{"name":"a","group":"example.com","kind":"shirts"},"code":404}
    "#]].assert_eq(&out);
    let index = server.ok("GET", "/openapi/v3", "").await;
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().expect("listed");
    let document = server.ok("GET", url, "").await;
    let schema = &document["components"]["schemas"]["com.example.v1.Shirt"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["default"], 40);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Shirt");
    let path = "/apis/example.com/v1/namespaces/{namespace}/shirts/{name}";
    let body = &document["paths"][path]["patch"]["requestBody"]["content"];
    assert!(body.get("application/strategic-merge-patch+json").is_none(), "{body}");
    let swagger = server.ok("GET", "/openapi/v2", "").await;
    assert!(swagger["definitions"].get("com.example.v1.Shirt").is_some());
}

#[tokio::test]
async fn objects_are_pruned_defaulted_checked_and_shown_in_order() {
    let server = with_shirts().await;
    let out = server
        .script(
            r#"
            POST /apis/example.com/v1/namespaces/default/shirts
            {"metadata":{"name":"a"},"spec":{"color":"red","collar":"wide"},"status":{"phase":"x"}}
            POST /apis/example.com/v1/namespaces/default/shirts?fieldValidation=Strict
            {"metadata":{"name":"b"},"spec":{"collar":"wide"}}
            POST /apis/example.com/v1/namespaces/default/shirts
            {"metadata":{"name":"b"},"spec":{"color":"green","size":"40","tags":["x","x"]}}
            POST /apis/example.com/v1/namespaces/default/shirts
            {"metadata":{"name":"b"},"spec":{"size":70}}
            PATCH /apis/example.com/v1/namespaces/default/shirts/a application/merge-patch+json
            {"spec":{"color":"blue"}}
            PATCH /apis/example.com/v1/namespaces/default/shirts/a application/strategic-merge-patch+json
            {"spec":{"size":41}}
            PATCH /apis/example.com/v1/namespaces/default/shirts/a application/json-patch+json
            [{"op":"replace","path":"/spec/size","value":41}]
            PATCH /apis/example.com/v1/namespaces/default/shirts/a/status application/merge-patch+json
            {"status":{"phase":"worn","replicas":2},"spec":{"size":1},"metadata":{"labels":{"a":"b"}}}
            PUT /apis/example.com/v1/namespaces/default/shirts/a
            {"metadata":{"name":"a"},"spec":{"color":"red"}}
            GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.color%3Dred
            GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.color%3Dblue
            GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.size%3D1
            "#,
        )
        .await;
    expect![[r#"
        POST /apis/example.com/v1/namespaces/default/shirts
          201 warning: 299 - "unknown field \"spec.collar\"" {"apiVersion":"example.com/v1","kind":"Shirt","metadata":{"creationTimestamp":"-","generation":1,"name":"a","namespace":"default","resourceVersion":"R1","uid":"UID"},"spec":{"color":"red","size":40}}
        POST /apis/example.com/v1/namespaces/default/shirts?fieldValidation=Strict
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Shirt in version \"v1\" cannot be handled as a Shirt: strict decoding error: unknown field \"spec.collar\"","reason":"BadRequest","code":400}
        POST /apis/example.com/v1/namespaces/default/shirts
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Shirt.example.com \"b\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\", spec.tags[1]: Duplicate value: \"x\"]","reason":"Invalid","details":{"name":"b","group":"example.com","kind":"Shirt","causes":[{"reason":"FieldValueNotSupported","message":"Unsupported value: \"green\": supported values: \"red\", \"blue\"","field":"spec.color"},{"reason":"FieldValueTypeInvalid","message":"Invalid value: \"string\": spec.size in body must be of type integer: \"string\"","field":"spec.size"},{"reason":"FieldValueDuplicate","message":"Duplicate value: \"x\"","field":"spec.tags[1]"}]},"code":422}
        POST /apis/example.com/v1/namespaces/default/shirts
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Shirt.example.com \"b\" is invalid: spec: Invalid value: \"object\": no shirt is that large","reason":"Invalid","details":{"name":"b","group":"example.com","kind":"Shirt","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"object\": no shirt is that large","field":"spec"}]},"code":422}
        PATCH /apis/example.com/v1/namespaces/default/shirts/a
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Shirt.example.com \"a\" is invalid: spec: Invalid value: \"object\": color is fixed","reason":"Invalid","details":{"name":"a","group":"example.com","kind":"Shirt","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"object\": color is fixed","field":"spec"}]},"code":422}
        PATCH /apis/example.com/v1/namespaces/default/shirts/a
          415 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml","reason":"UnsupportedMediaType","code":415}
        PATCH /apis/example.com/v1/namespaces/default/shirts/a
          200 {"apiVersion":"example.com/v1","kind":"Shirt","metadata":{"creationTimestamp":"-","generation":2,"name":"a","namespace":"default","resourceVersion":"R1","uid":"UID"},"spec":{"color":"red","size":41}}
        PATCH /apis/example.com/v1/namespaces/default/shirts/a/status
          200 {"apiVersion":"example.com/v1","kind":"Shirt","metadata":{"creationTimestamp":"-","generation":2,"name":"a","namespace":"default","resourceVersion":"R1","uid":"UID"},"spec":{"color":"red","size":41},"status":{"phase":"worn","replicas":2}}
        PUT /apis/example.com/v1/namespaces/default/shirts/a
          422 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Shirt.example.com \"a\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update","reason":"Invalid","details":{"name":"a","group":"example.com","kind":"Shirt","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: 0: must be specified for an update","field":"metadata.resourceVersion"}]},"code":422}
        GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.color%3Dred
          200 {"apiVersion":"example.com/v1","items":[{"apiVersion":"example.com/v1","kind":"Shirt","metadata":{"creationTimestamp":"-","generation":2,"name":"a","namespace":"default","resourceVersion":"R1","uid":"UID"},"spec":{"color":"red","size":41},"status":{"phase":"worn","replicas":2}}],"kind":"ShirtList","metadata":{"resourceVersion":"R1"}}
        GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.color%3Dblue
          200 {"apiVersion":"example.com/v1","items":[],"kind":"ShirtList","metadata":{"resourceVersion":"R1"}}
        GET /apis/example.com/v1/namespaces/default/shirts?fieldSelector=spec.size%3D1
          400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"field label not supported: spec.size","reason":"BadRequest","code":400}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn versions_scale_and_tables() {
    let server = with_shirts().await;
    let body = r#"{"metadata":{"name":"a"},"spec":{"color":"red","replicas":3}}"#;
    server.ok("POST", SHIRTS, body).await;
    let out = server
        .script(
            r#"
            GET /apis/example.com/v1beta1/namespaces/default/shirts/a
            GET /apis/example.com/v1/namespaces/default/shirts/a/scale
            PATCH /apis/example.com/v1/namespaces/default/shirts/a/scale application/merge-patch+json
            {"spec":{"replicas":5}}
            GET /apis/example.com/v1/shirts?limit=1 accept: application/json;as=Table;v=v1;g=meta.k8s.io
            GET /apis/example.com/v1/shirts accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io
            "#,
        )
        .await;
    expect![[r#"
        GET /apis/example.com/v1beta1/namespaces/default/shirts/a
          200 warning: 299 - "example.com/v1beta1 Shirt is deprecated; use example.com/v1 Shirt" {"apiVersion":"example.com/v1beta1","kind":"Shirt","metadata":{"creationTimestamp":"-","generation":1,"name":"a","namespace":"default","resourceVersion":"R1","uid":"UID"},"spec":{"color":"red","replicas":3,"size":40}}
        GET /apis/example.com/v1/namespaces/default/shirts/a/scale
          200 {"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"spec":{"replicas":3},"status":{"replicas":0}}
        PATCH /apis/example.com/v1/namespaces/default/shirts/a/scale
          200 {"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-"},"spec":{"replicas":5},"status":{"replicas":0}}
        GET /apis/example.com/v1/shirts?limit=1
          200 {"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"R1"},"columnDefinitions":[{"name":"Name","type":"string","format":"name","description":"The name of the object, unique within its kind and namespace","priority":0},{"name":"Color","type":"string","format":"","description":"","priority":0},{"name":"Size","type":"integer","format":"","description":"","priority":1}],"rows":[{"cells":["a","red",40],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","generation":2,"creationTimestamp":"-"}}}]}
        GET /apis/example.com/v1/shirts
          200 {"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"R1"},"items":[{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","generation":2,"creationTimestamp":"-"}}]}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn a_definition_may_change_and_names_are_held_once() {
    let server = with_shirts().await;
    server.ok("POST", SHIRTS, r#"{"metadata":{"name":"a"},"spec":{}}"#).await;
    let patch = json!([
        {"op": "add",
            "path": "/spec/versions/1/schema/openAPIV3Schema/properties/spec/properties/note",
            "value": {"type": "string", "default": "new"}},
    ]);
    let path = format!("{DEFINITIONS}/shirts.example.com");
    let kind = "application/json-patch+json";
    let answer = server.response(&admin(), "PATCH", &path, kind, &patch.to_string()).await;
    assert_eq!(answer.status(), 200);
    // What is stored gets the default when it is read.
    let read = server.ok("GET", &format!("{SHIRTS}/a"), "").await;
    assert_eq!(read["spec"], json!({"note": "new", "size": 40}));
    let mut rival = shirts();
    rival["metadata"]["name"] = json!("tops.example.com");
    rival["spec"]["names"]["plural"] = json!("tops");
    let made = server.ok("POST", DEFINITIONS, &rival.to_string()).await;
    assert_eq!(made["status"]["conditions"][0]["reason"], "SingularConflict");
    assert_eq!(made["status"]["conditions"][1]["status"], "False");
    assert_eq!(server.send("GET", "/apis/example.com/v1/tops", "").await.0, 404);
}

#[tokio::test]
async fn a_definition_that_goes_takes_no_new_objects() {
    let server = with_shirts().await;
    server.ok("POST", SHIRTS, r#"{"metadata":{"name":"a"},"spec":{}}"#).await;
    let path = format!("{DEFINITIONS}/shirts.example.com");
    let going = server.ok("DELETE", &path, "").await;
    assert_eq!(
        going["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let (code, _) = server.send("POST", SHIRTS, r#"{"metadata":{"name":"b"},"spec":{}}"#).await;
    assert_eq!(code, 405);
    server.ok("DELETE", SHIRTS, "").await;
    let body = r#"{"metadata":{"finalizers":[]}}"#;
    let kind = "application/merge-patch+json";
    let answer = server.response(&admin(), "PATCH", &path, kind, body).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(server.send("GET", SHIRTS, "").await.0, 404);
    assert_eq!(server.send("GET", "/apis/example.com", "").await.0, 404);
    let index = server.ok("GET", "/openapi/v3", "").await;
    assert!(index["paths"].get("apis/example.com/v1").is_none());
    // Again, with the same names.
    server.ok("POST", DEFINITIONS, &shirts().to_string()).await;
    assert_eq!(server.ok("GET", SHIRTS, "").await["items"], json!([]));
}

#[tokio::test]
async fn wrong_definitions_are_refused_with_reasons() {
    let server = Server::start().await;
    let mut wrong = shirts();
    wrong["spec"]["versions"][1]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.sice > 1"}]);
    let (code, text) = server.send("POST", DEFINITIONS, &wrong.to_string()).await;
    assert_eq!(code, 422);
    assert!(text.contains("undefined field 'sice'"), "{text}");
    let path =
        "spec.versions[1].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    assert!(text.contains(path), "{text}");
}

/// The shape of a controller written with kube-rs: a derived type, its CRD, apply, status, watch.
#[tokio::test]
async fn kube_clients_use_custom_resources_as_any_other() {
    use futures::StreamExt as _;
    use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
    let server = with_shirts().await;
    let client = server.api.client(admin());
    let discovered = kube::discovery::group(&client, "example.com").await.expect("is served");
    let (resource, capabilities) = discovered.recommended_kind("Shirt").expect("has the kind");
    assert_eq!((resource.version.as_str(), resource.plural.as_str()), ("v1", "shirts"));
    assert!(capabilities.supports_operation("watch"));
    let shirts: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    let mut shirt = DynamicObject::new("a", &resource);
    shirt.data = json!({"spec": {"color": "red"}});
    let made = shirts.create(&PostParams::default(), &shirt).await.expect("is created");
    assert_eq!(made.data["spec"]["size"], 40);
    let from = made.metadata.resource_version.expect("has a revision");
    let events = shirts.watch(&WatchParams::default(), &from).await.expect("can be watched");
    let mut events = std::pin::pin!(events);
    let status = Patch::Merge(json!({"status": {"phase": "worn"}}));
    shirts.patch_status("a", &PatchParams::default(), &status).await.expect("is patched");
    match events.next().await.expect("comes").expect("is an event") {
        WatchEvent::Modified(object) => assert_eq!(object.data["status"]["phase"], "worn"),
        other => panic!("{other:?}"),
    }
}

/// With the controllers: what a custom object owns goes with it, and a definition takes its objects
/// along.
#[tokio::test]
async fn the_controllers_know_custom_resources() {
    use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
    use kube::runtime::{conditions::is_deleted, wait::await_condition};
    let server = with_shirts().await;
    let client = server.api.client(admin());
    let folder = tempfile::tempdir().expect("a folder");
    let config = crate::controllers::Config {
        pki: crate::pki::Pki::load_or_create(folder.path()).expect("authorities are made").into(),
        cluster_cidr: "10.0.0.0/8".to_owned(),
        api_members: tokio::sync::watch::channel(Vec::new()).1,
        watch_every: std::time::Duration::ZERO,
    };
    let run = crate::controllers::run(client.clone(), config, server.shutdown.clone());
    let controllers = tokio::spawn(run);
    let shirt = server.ok("POST", SHIRTS, r#"{"metadata":{"name":"a"},"spec":{}}"#).await;
    let owner = json!({"apiVersion": "example.com/v1", "kind": "Shirt", "name": "a",
        "uid": shirt["metadata"]["uid"]});
    let button = json!({"metadata": {"name": "button", "ownerReferences": [owner]}});
    let config_maps = "/api/v1/namespaces/default/configmaps";
    let button = server.ok("POST", config_maps, &button.to_string()).await;
    server.ok("DELETE", &format!("{SHIRTS}/a"), "").await;
    let api = |group: &str, kind: &str, namespace: Option<&str>| -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        }
    };
    let limit = std::time::Duration::from_secs(120);
    let button = button["metadata"]["uid"].as_str().expect("has a uid");
    let config_maps = api("", "ConfigMap", Some("default"));
    let gone = await_condition(config_maps, "button", is_deleted(button));
    tokio::time::timeout(limit, gone).await.expect("is collected").expect("is watched");
    server.ok("POST", SHIRTS, r#"{"metadata":{"name":"b"},"spec":{}}"#).await;
    let definitions = api("apiextensions.k8s.io", "CustomResourceDefinition", None);
    let name = "shirts.example.com";
    let definition = definitions.get(name).await.expect("is there");
    definitions.delete(name, &DeleteParams::default()).await.expect("may be deleted");
    let uid = definition.metadata.uid.expect("has a uid");
    let gone = await_condition(definitions, name, is_deleted(&uid));
    tokio::time::timeout(limit, gone).await.expect("goes").expect("is watched");
    assert_eq!(server.send("GET", SHIRTS, "").await.0, 404);
    server.shutdown.cancel();
    controllers.await.expect("the controllers end");
}
