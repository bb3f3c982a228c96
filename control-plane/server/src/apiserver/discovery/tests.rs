//! Discovery in both forms, as clients ask for it.

use expect_test::expect;
use http_body_util::BodyExt as _;

use wherry_resources::GROUPS;

use super::*;

/// What kubectl 1.32 sends for `/api` and `/apis`.
const KUBECTL: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// What is served without CRDs.
fn served() -> Catalog {
    Catalog::of(&[])
}

fn accept(value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, value.parse().expect("a header value"));
    headers
}

async fn body(response: Response) -> Value {
    let bytes = response.into_body().collect().await.expect("in memory").to_bytes();
    serde_json::from_slice(&bytes).expect("documents are JSON")
}

fn content_type(response: &Response) -> &str {
    response.headers()[CONTENT_TYPE].to_str().expect("is text")
}

#[test]
fn the_first_media_type_that_can_be_served_wins() {
    let check = |value: &str, expected: Option<Form>| {
        assert_eq!(form(&accept(value)), expected, "{value}");
    };
    check(KUBECTL, Some(Form::Aggregated("v2")));
    check("application/json, */*", Some(Form::Legacy));
    check("application/vnd.kubernetes.protobuf,application/json", Some(Form::Legacy));
    check(
        "Application/JSON; as=APIGroupDiscoveryList; v=v2beta1; g=apidiscovery.k8s.io; q=0.9",
        Some(Form::Aggregated("v2beta1")),
    );
    check("application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList", None);
    check("text/html", None);
    check("", Some(Form::Legacy));
    assert_eq!(form(&HeaderMap::new()), Some(Form::Legacy));
}

#[tokio::test]
async fn the_aggregated_form_names_itself_in_its_content_type() {
    let response = named_groups(&served(), &[], &accept(KUBECTL)).expect("acceptable");
    assert_eq!(
        content_type(&response),
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(response.headers()[VARY], "Accept");
    let document = body(response).await;
    assert_eq!(document["apiVersion"], "apidiscovery.k8s.io/v2");
    let names: Vec<&str> = document["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect();
    let groups: Vec<&str> = GROUPS[1..].iter().map(|group| group.name).collect();
    assert_eq!(names, groups);
    let apps = &document["items"][names.iter().position(|name| *name == "apps").expect("served")];
    let resources = apps["versions"][0]["resources"].as_array().expect("a list");
    let deployments = resources.iter().find(|row| row["resource"] == "deployments");
    expect![[r#"
        {
          "resource": "deployments",
          "responseKind": {
            "group": "apps",
            "version": "v1",
            "kind": "Deployment"
          },
          "scope": "Namespaced",
          "singularResource": "deployment",
          "verbs": [
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch"
          ],
          "shortNames": [
            "deploy"
          ],
          "categories": [
            "all"
          ],
          "subresources": [
            {
              "subresource": "scale",
              "responseKind": {
                "group": "autoscaling",
                "version": "v1",
                "kind": "Scale"
              },
              "verbs": [
                "get",
                "patch",
                "update"
              ]
            },
            {
              "subresource": "status",
              "responseKind": {
                "group": "apps",
                "version": "v1",
                "kind": "Deployment"
              },
              "verbs": [
                "get",
                "patch",
                "update"
              ]
            }
          ]
        }"#]]
    .assert_eq(&format!("{:#}", deployments.expect("served")));
}

#[tokio::test]
async fn the_core_group_stands_alone_under_api() {
    let document =
        body(core_group(&served(), &accept(KUBECTL), "127.0.0.1:6443").expect("acceptable")).await;
    assert_eq!(document["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(document["items"][0]["metadata"], json!({"creationTimestamp": null}));
    let legacy =
        body(core_group(&served(), &HeaderMap::new(), "127.0.0.1:6443").expect("acceptable")).await;
    assert_eq!(legacy["versions"], json!(["v1"]));
    assert_eq!(legacy["serverAddressByClientCIDRs"][0]["serverAddress"], "127.0.0.1:6443");
}

#[tokio::test]
async fn the_legacy_form_says_what_drain_and_can_i_look_for() {
    let headers = HeaderMap::new();
    let core = body(resources(&served(), "", "v1", &headers).expect("served")).await;
    let find = |name: &str| {
        let mut rows = core["resources"].as_array().expect("a list").iter();
        let row = rows.find(|row| row["name"] == name).expect(name);
        format!("{row:#}")
    };
    expect![[r#"
        {
          "name": "pods/eviction",
          "singularName": "",
          "namespaced": true,
          "group": "policy",
          "version": "v1",
          "kind": "Eviction",
          "verbs": [
            "create"
          ]
        }"#]]
    .assert_eq(&find("pods/eviction"));
    expect![[r#"
        {
          "name": "pods",
          "singularName": "pod",
          "namespaced": true,
          "kind": "Pod",
          "verbs": [
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch"
          ],
          "shortNames": [
            "po"
          ],
          "categories": [
            "all"
          ],
          "storageVersionHash": "xPOwRZ+Yhw8="
        }"#]]
    .assert_eq(&find("pods"));
    let scaling = body(one_group(&served(), &[], "autoscaling", &headers).expect("served")).await;
    assert_eq!(scaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
    assert!(
        one_group(&served(), &[], "example.com", &headers).is_none()
            && resources(&served(), "apps", "v9", &headers).is_none()
    );
}

#[test]
fn a_client_with_the_document_gets_304() {
    let first = named_groups(&served(), &[], &accept(KUBECTL)).expect("acceptable");
    let mut headers = accept(KUBECTL);
    headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
    let second = named_groups(&served(), &[], &headers).expect("acceptable");
    assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(second.headers()[ETAG], first.headers()[ETAG]);
    // The other form of the same path is another document.
    headers.insert(ACCEPT, "application/json".parse().expect("a header value"));
    assert_eq!(
        named_groups(&served(), &[], &headers).expect("acceptable").status(),
        StatusCode::OK
    );
}
