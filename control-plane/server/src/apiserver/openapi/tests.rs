//! What kubectl reads out of these documents, and how fields are told from misspelt ones.

use http_body_util::BodyExt as _;
use wherry_resources::kind;

use super::*;

fn parsed(path: &str) -> Value {
    let document = VERSION_3.get(path).expect(path);
    serde_json::from_slice(&document.body).expect("documents are JSON")
}

#[test]
fn every_kind_has_a_schema_that_names_it() {
    for kind in KINDS {
        let document = parsed(&group_version_path(kind.group, kind.version));
        let schemas = document["components"]["schemas"].as_object().expect("has schemas");
        let mark = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let named = schemas.values().filter(|schema| {
            let marks = schema["x-kubernetes-group-version-kind"].as_array();
            marks.is_some_and(|marks| marks.contains(&mark))
        });
        assert_eq!(named.count(), 1, "{}", kind.qualified_kind());
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(value: &Value, schemas: &Map<String, Value>, prefix: &str) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    let name = reference.strip_prefix(prefix).expect(reference);
                    assert!(schemas.contains_key(name), "{reference}");
                }
                fields.values().for_each(|value| check(value, schemas, prefix));
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, schemas, prefix)),
            _ => {}
        }
    }
    for path in VERSION_3.keys() {
        let document = parsed(path);
        let schemas = document["components"]["schemas"].as_object().expect("has schemas");
        check(&document, schemas, schemas::REFERENCE);
    }
    let version_2: Value = serde_json::from_slice(&VERSION_2.json.body).expect("is JSON");
    check(&version_2, version_2["definitions"].as_object().expect("has them"), "#/definitions/");
}

#[test]
fn the_patch_of_a_kind_is_what_kubectl_looks_for() {
    let document = parsed("apis/apps/v1");
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let parameters = patch["parameters"].as_array().expect("a list");
    let names: Vec<&str> = parameters.iter().filter_map(|each| each["name"].as_str()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let content = patch["requestBody"]["content"].as_object().expect("an object");
    assert_eq!(
        content.keys().collect::<Vec<_>>(),
        [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ]
    );
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
}

#[test]
fn lists_say_how_they_merge() {
    let document = parsed("apis/apps/v1");
    let schemas = &document["components"]["schemas"];
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(ports["x-kubernetes-list-type"], "map");
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
    assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(
        strategy["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"}])
    );
    assert!(strategy["description"].is_string() && strategy.get("$ref").is_none());
}

fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect()
}

#[tokio::test]
async fn the_index_leads_to_documents_that_may_be_kept() {
    let accept = headers(&[(ACCEPT, "application/json")]);
    let catalog = Arc::new(Catalog::of(&[]));
    let index = index_of(catalog.clone(), Vec::new(), accept.clone()).await.expect("acceptable");
    let body = index.into_body().collect().await.expect("in memory").to_bytes();
    let index: Value = serde_json::from_slice(&body).expect("is JSON");
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("is listed");
    let (path, query) = url.split_once('?').expect("has a hash");
    assert_eq!(path, "/openapi/v3/apis/apps/v1");
    let get = |query: Option<&str>, headers: &HeaderMap| {
        let path = "apis/apps/v1".to_string();
        document_of(catalog.clone(), path, query.map(str::to_string), headers.clone())
    };
    let right = get(Some(query), &accept).await.expect("acceptable");
    assert_eq!(right.status(), StatusCode::OK);
    assert_eq!(right.headers()[CACHE_CONTROL], "public, immutable");
    assert!(right.headers().contains_key(EXPIRES));
    let wrong = get(Some("hash=OLD"), &accept).await.expect("acceptable");
    assert_eq!(wrong.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(wrong.headers()[LOCATION], url);
    let tag = right.headers()[ETAG].to_str().expect("is text").to_string();
    let held = headers(&[(IF_NONE_MATCH, &tag)]);
    assert_eq!(get(None, &held).await.expect("acceptable").status(), StatusCode::NOT_MODIFIED);
    let whole = |accept: &'static str| {
        let catalog = catalog.clone();
        async move {
            let headers = headers(&[(ACCEPT, accept)]);
            whole_of(&headers, move |protobuf| ours(&catalog, |it| it.chosen(protobuf))).await
        }
    };
    for name in [gnostic::MEDIA_TYPE, gnostic::MEDIA_TYPE_BEFORE] {
        let protobuf = whole(name).await.expect("acceptable");
        assert_eq!(protobuf.headers()[CONTENT_TYPE], gnostic::MEDIA_TYPE);
    }
    assert!(whole("application/yaml").await.is_err());
}

#[test]
fn unknown_fields_are_named_by_their_path() {
    let deployment = kind("apps", "v1", "deployments").expect("in the table");
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"nam": 1, "labels": {"any": "x"}},
        "spec": {
            "replica": 1,
            "template": {"spec": {"containers": [
                {"name": "a"},
                {"name": "b", "img": 1, "resources": {"limits": {"any": 1}},
                 "livenessProbe": {"httpGet": {"port": "http", "pth": "/"}}},
            ]}},
        },
    });
    let found = unknown_fields(deployment, &object);
    assert_eq!(
        found,
        [
            "metadata.nam",
            "spec.replica",
            "spec.template.spec.containers[1].img",
            "spec.template.spec.containers[1].livenessProbe.httpGet.pth",
        ]
    );
    let meant: Vec<Option<&str>> =
        found.iter().map(|path| did_you_mean(deployment, path)).collect();
    assert_eq!(meant, [Some("name"), Some("replicas"), None, Some("path")]);
    assert_eq!(
        did_you_mean(deployment, "spec.template.spec.containers[0].imagePullpolicy"),
        Some("imagePullPolicy")
    );
    assert_eq!(did_you_mean(deployment, "Spec"), Some("spec"));
    assert_eq!(did_you_mean(deployment, &"s".repeat(3 << 20)), None);
}

#[test]
fn free_form_values_are_not_looked_into() {
    let revision = kind("apps", "v1", "controllerrevisions").expect("in the table");
    let object =
        json!({"data": {"any": 1}, "metadata": {"managedFields": [{"fieldsV1": {"f:spec": {}}}]}});
    assert_eq!(unknown_fields(revision, &object), [""; 0]);
}

#[test]
fn reports_are_limited() {
    let fields: Map<String, Value> = (0..1_000).map(|n| (format!("x{n}"), Value::Null)).collect();
    let config = kind("", "v1", "configmaps").expect("in the table");
    assert_eq!(unknown_fields(config, &Value::Object(fields)).len(), 100);
}

#[test]
fn what_does_not_fit_is_named() {
    let pods = kind("", "v1", "pods").expect("a built-in kind");
    let cases = [
        (json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}}), ""),
        (
            json!({"spec": {"containers": [{"ports": [{"containerPort": "1"}]}]}}),
            "spec.containers[0].ports[0].containerPort: a string stands where a number belongs",
        ),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            "metadata.labels.a: a number stands where a string belongs",
        ),
        (
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            "metadata.creationTimestamp: a string stands where a time as RFC 3339 writes it \
             belongs",
        ),
        (
            json!({"spec": {"priority": 3_000_000_000_i64}}),
            "spec.priority: a number stands where a whole number of 32 bits belongs",
        ),
        (
            json!({"spec": {"containers": {}}}),
            "spec.containers: an object stands where a list belongs",
        ),
        (json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1}}}]}}), ""),
    ];
    for (pod, expected) in cases {
        assert_eq!(check_type(pods, &pod).err().unwrap_or_default(), expected);
    }
}

#[test]
fn what_is_sent_to_a_part_has_a_type_too() {
    let cases = [
        (
            "authentication.k8s.io/v1",
            "TokenRequest",
            json!({"spec": {"audiences": "vault"}}),
            "spec.audiences: a string stands where a list belongs",
        ),
        (
            "autoscaling/v1",
            "Scale",
            json!({"spec": {"replicas": "2"}}),
            "spec.replicas: a string stands where a number belongs",
        ),
        ("policy/v1", "Eviction", json!({"deleteOptions": {"gracePeriodSeconds": null}}), ""),
    ];
    for (version, kind, sent, expected) in cases {
        assert_eq!(check_part(version, kind, &sent).err().unwrap_or_default(), expected);
    }
}
