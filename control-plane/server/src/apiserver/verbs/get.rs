//! GET of one object, and the answer that every verb gives that returns one object.

use super::{
    Part, read,
    table::{self, Include},
};
use crate::apiserver::{
    ApiServer,
    content::{self, Form},
    custom,
    errors::ApiError,
    request::Request,
    stored,
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, meta};

/// Answers GET of a named object; its status and other parts are read as the whole object.
pub async fn get(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    Part::of(request)?;
    let snapshot = read::snapshot(api, read::Wanted::of_one(&request.query)?).await?;
    let namespace = request.namespace().unwrap_or("");
    let entry = snapshot.get(&stored::key(request.kind, namespace, request.name()));
    let entry = entry.ok_or_else(|| ApiError::not_found(request.kind, request.name()))?;
    if request.accepted.is_plain() && !custom::by_webhook(request.kind) {
        let mut json = stored::json(request.kind, &entry.value, entry.modified);
        json.push(b'\n');
        return Ok(content::respond_bytes(StatusCode::OK, "application/json", json, &[]));
    }
    let object = vec![stored::decode(request.kind, &entry)];
    let mut converted = custom::into_version(api, request.kind, object).await?;
    let object = converted.pop().expect("as many objects come back as are sent");
    respond(request, StatusCode::OK, object, &[])
}

/// Answers with an object in the form that the client asked for.
pub fn respond(
    request: &Request,
    code: StatusCode,
    mut object: Object,
    warnings: &[String],
) -> Result<Response, ApiError> {
    let include = Include::of(&request.query)?;
    if !request.accepted.managers {
        meta::take_managed_fields(&mut object);
    }
    let value = match request.accepted.form {
        Form::Object => shown(request.kind, object),
        Form::Metadata { version } => content::metadata_only(object, version),
        Form::Table { version } => one_row(request.kind, object, include, version),
    };
    Ok(content::respond(code, &request.accepted, &value, warnings))
}

/// Answers GET of one or all of the objects that were computed for a request and that it selects.
pub fn respond_computed(request: &Request, mut items: Vec<Object>) -> Result<Response, ApiError> {
    let kind = request.kind;
    if request.attributes.named {
        let one = items.pop().ok_or_else(|| ApiError::not_found(kind, request.name()))?;
        return respond(request, StatusCode::OK, one, &[]);
    }
    let value = match request.accepted.form {
        Form::Table { version } => {
            let include = Include::of(&request.query)?;
            let now = jiff::Timestamp::now();
            let rows = items.into_iter().map(|item| table::row(kind, item, include, version, now));
            table::table(kind, version, Map::new(), true, rows.collect())
        }
        Form::Metadata { version } => {
            let bare = items.into_iter().map(|item| content::metadata_only(item, version));
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": {}, "items": Value::from_iter(bare),
            })
        }
        Form::Object => json!({
            "kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": {},
            "items": items,
        }),
    };
    Ok(content::respond(StatusCode::OK, &request.accepted, &value, &[]))
}

/// Custom objects are shown with their keys in alphabetical order.
pub fn shown(kind: &Kind, mut object: Object) -> Object {
    if kind.custom.is_some() {
        object.sort_all_objects();
    }
    object
}

fn one_row(kind: &Kind, object: Object, include: Include, version: &str) -> Object {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), meta::resource_version(&object).into());
    let row = table::row(kind, object, include, version, jiff::Timestamp::now());
    table::table(kind, version, metadata, true, vec![row])
}
