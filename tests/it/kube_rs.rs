//! kube-rs as its users write it: a custom resource of their own, server-side apply, a status
//! patch, pages, and a watcher that sees each change once.

use std::borrow::Cow;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wherry_tests::{Dev, l3};

/// What somebody wants of a [`Document`].
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
struct DocumentSpec {
    /// What stands above it.
    title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default)]
    hide: bool,
}

/// What became of a [`Document`].
#[derive(Deserialize, Serialize, Clone, Debug, Default, JsonSchema, PartialEq)]
struct DocumentStatus {
    hidden: bool,
}

/// A document that must be shown to somebody, as `#[derive(CustomResource)]` would make it. The
/// derive itself is not used: its crate would have half of the workspace's build tools compiled
/// once more.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: DocumentSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<DocumentStatus>,
}

impl Document {
    fn new(name: &str, spec: DocumentSpec) -> Document {
        Document {
            api_version: Document::api_version(&()).into_owned(),
            kind: Document::kind(&()).into_owned(),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec,
            status: None,
        }
    }
}

impl Resource for Document {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Document".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "clux.dev".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "documents".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The CRD that the derive makes: its schema comes from the Rust type.
fn definition() -> CustomResourceDefinition {
    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is wanted")]
    struct Whole {
        spec: DocumentSpec,
        status: Option<DocumentStatus>,
    }
    let settings = schemars::generate::SchemaSettings::openapi3()
        .with(|settings| settings.inline_subschemas = true)
        .with_transform(schemars::transform::AddNullable::default());
    let mut schema = settings.into_generator().into_root_schema_for::<Whole>().to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('$'));
    }
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "documents.clux.dev"},
        "spec": {
            "group": "clux.dev", "scope": "Namespaced",
            "names": {"categories": [], "kind": "Document", "plural": "documents",
                "shortNames": ["doc"], "singular": "document"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "additionalPrinterColumns":
                    [{"name": "Title", "type": "string", "jsonPath": ".spec.title"}],
                "selectableFields": [{"jsonPath": ".spec.title"}],
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
            }],
        },
    });
    serde_json::from_value(definition).expect("a CRD")
}

async fn client(kubeconfig: &Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await;
    Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
}

/// The status goes its own way; what the main endpoint is sent of it does not count.
async fn status(documents: &Api<Document>) {
    let status = json!({"status": {"hidden": true}});
    let patched = documents
        .patch_status("guide", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("patched");
    assert_eq!(patched.status, Some(DocumentStatus { hidden: true }));
    assert_eq!(patched.metadata.generation, Some(2));
    let ignored = documents
        .patch(
            "guide",
            &PatchParams::default(),
            &Patch::Merge(json!({"status": {"hidden": false}})),
        )
        .await
        .expect("patched");
    assert_eq!(ignored.status, Some(DocumentStatus { hidden: true }));
}

/// Without what the schema requires it is refused.
async fn a_title_is_needed(documents: &Api<Document>, by: &PatchParams) {
    let empty = json!({"apiVersion": "clux.dev/v1", "kind": "Document", "spec": {}});
    let refused = documents.patch("empty", by, &Patch::Apply(&empty)).await;
    match refused {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422);
            assert!(status.message.contains("spec.title: Required value"), "{}", status.message);
        }
        other => panic!("a document needs a title: {other:?}"),
    }
}

/// Pages, a selectable field, metadata alone.
async fn pages(documents: &Api<Document>) {
    for number in 0..5 {
        let spec = DocumentSpec { title: format!("t{number}"), content: None, hide: false };
        let document = Document::new(&format!("more-{number}"), spec);
        documents.create(&PostParams::default(), &document).await.expect("created");
    }
    let page = documents.list(&ListParams::default().limit(4)).await.expect("a page");
    assert_eq!(page.metadata.remaining_item_count, Some(2));
    let token = page.metadata.continue_.expect("there is more");
    let rest = ListParams::default().limit(4).continue_token(&token);
    assert_eq!(documents.list(&rest).await.expect("the rest").items.len(), 2);
    let by_title = ListParams::default().fields("spec.title=t3");
    let found = documents.list(&by_title).await.expect("a list").items;
    assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["more-3"]);
    let metadata = documents.get_metadata("guide").await.expect("metadata");
    assert_eq!(metadata.types.expect("a type").kind, "PartialObjectMetadata");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_derive_example() {
    if !l3() {
        return;
    }
    let provider = rustls::crypto::ring::default_provider();
    // Another test of this process may have been first.
    let _ = provider.install_default();
    let cluster = tokio::task::block_in_place(Dev::start);
    let client = client(&cluster.kubeconfig).await;

    // The CRD by server-side apply, twice: the second changes nothing.
    let ours = PatchParams::apply("documents").force();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "documents.clux.dev";
    let first = crds.patch(name, &ours, &Patch::Apply(&definition())).await.expect("applied");
    let established = conditions::is_crd_established();
    await_condition(crds.clone(), name, established).await.expect("it is established");
    let again = crds.patch(name, &ours, &Patch::Apply(&definition())).await.expect("applied");
    assert_eq!(first.metadata.generation, again.metadata.generation);

    let documents: Api<Document> = Api::default_namespaced(client.clone());
    let mut events = watcher(documents.clone(), watcher::Config::default()).boxed();
    loop {
        let event = events.try_next().await.expect("a watch").expect("it does not end");
        if matches!(event, Event::InitDone) {
            break;
        }
    }

    // Create and apply: the manager that applies owns what it says.
    let spec = DocumentSpec { title: "hello".to_owned(), content: None, hide: false };
    let made = documents.create(&PostParams::default(), &Document::new("guide", spec)).await;
    assert_eq!(made.expect("created").metadata.generation, Some(1));
    let hidden = json!({
        "apiVersion": "clux.dev/v1", "kind": "Document", "spec": {"title": "hello", "hide": true}
    });
    let shy = PatchParams::apply("shy");
    let conflict = documents.patch("guide", &shy, &Patch::Apply(&hidden)).await;
    match conflict {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 409);
            assert!(status.message.contains(".spec.hide"), "{}", status.message);
        }
        other => panic!("two managers, two values: {other:?}"),
    }
    let forced = documents.patch("guide", &shy.force(), &Patch::Apply(&hidden)).await;
    assert!(forced.expect("forced").spec.hide);

    status(&documents).await;
    a_title_is_needed(&documents, &ours).await;
    pages(&documents).await;

    // Each change was seen once, in order.
    documents.delete("guide", &DeleteParams::default()).await.expect("deleted");
    let mut seen = Vec::new();
    loop {
        match events.try_next().await.expect("a watch").expect("it does not end") {
            Event::Apply(document) => seen.push((document.name_any(), document.spec.hide)),
            Event::Delete(document) => {
                assert_eq!(document.name_any(), "guide");
                break;
            }
            other => panic!("the watch began anew: {other:?}"),
        }
    }
    let guides: Vec<bool> = seen.iter().filter(|(name, _)| name == "guide").map(|e| e.1).collect();
    assert_eq!(guides, [false, true, true], "{seen:?}");
    assert_eq!(seen.len(), 8, "{seen:?}");
}
