//! The scale of a workload: a small object (autoscaling/v1 Scale) over its replicas.

use super::{
    Part, WriteOptions, apply, body,
    patch::{self, Patch},
    read,
    table::{self, Include},
    update::RACE_TRIES,
    write::{self, Call, Failure, Record},
};
use crate::apiserver::{
    ApiServer,
    content::{self, Form},
    errors::{self, ApiError},
    request::Request,
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use wherry_resources::validate::Reason;
use wherry_resources::{Kind, Object, custom, meta, selectors::LabelSelector};

/// Answers GET.
pub async fn get(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let snapshot = read::snapshot(api, read::Wanted::of_one(&request.query)?).await?;
    let call = Call::of(api, request, Part::Main, false);
    let (object, _) = call.load(&snapshot, request.name()).await?;
    answer(request, scale_of(request.kind, &object), &[])
}

/// A Scale in the form that the client asked for.
fn answer(request: &Request, scale: Object, warnings: &[String]) -> Result<Response, ApiError> {
    let shown = match request.accepted.form {
        Form::Object => scale,
        Form::Metadata { version } => content::metadata_only(scale, version),
        Form::Table { version } => {
            let include = Include::of(&request.query)?;
            table::of_scale(scale, include, version, jiff::Timestamp::now())
        }
    };
    Ok(content::respond(StatusCode::OK, &request.accepted, &shown, warnings))
}

/// Answers PUT and PATCH: only `spec.replicas` is taken.
pub async fn change(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let is_apply = request.content_type() == apply::CONTENT_TYPE;
    let options = match request.attributes.verb.as_str() {
        "patch" => WriteOptions::of_patch(&request.query, is_apply)?,
        _ => WriteOptions::parse(&request.query, "UpdateOptions")?,
    };
    let mut call = Call::of(api, request, Part::Main, options.dry_run);
    if is_apply {
        call.record = Record::Given;
    }
    let change = Change::of(request, &options)?;
    for _ in 0..RACE_TRIES {
        let (old, entry) = call.load(&api.latest().await?, request.name()).await?;
        let new = match &change {
            Change::Apply(config) => {
                let config = of_parent(request, config)?;
                apply::merged(&call, Some(&old), &config, options.force).await?
            }
            change => {
                let wanted = change.apply(&scale_of(request.kind, &old))?;
                let mut new = old.clone();
                set_replicas(request.kind, &mut new, replicas(&wanted, request.name())?);
                meta::set(&mut new, "resourceVersion", meta::resource_version(&wanted));
                new
            }
        };
        let version = meta::resource_version(&new);
        if !version.is_empty() && version != meta::resource_version(&old) {
            return Err(ApiError::modified(request.kind, request.name()));
        }
        match write::replace(&call, &old, &entry, new).await {
            Ok(written) => {
                let scale = scale_of(request.kind, &written.object);
                return answer(request, scale, &written.warnings);
            }
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(ApiError::modified(request.kind, request.name()))
}

/// What a client sent.
enum Change {
    Whole(Object),
    Patch(Patch),
    Apply(Object),
}

/// A configuration of a Scale as one of what it scales: the owner of the replicas is recorded
/// there.
fn of_parent(request: &Request, config: &Object) -> Result<Object, ApiError> {
    let kind = request.kind;
    let mut parent = json!({
        "kind": kind.kind, "apiVersion": kind.api_version(),
        "metadata": { "resourceVersion": meta::resource_version(config) },
    });
    if config.pointer("/spec/replicas").is_some_and(|count| !count.is_null()) {
        set_replicas(kind, &mut parent, replicas(config, request.name())?);
    }
    if meta::resource_version(config).is_empty() {
        meta::metadata_mut(&mut parent).shift_remove("resourceVersion");
    }
    Ok(parent)
}

impl Change {
    fn of(request: &Request, options: &WriteOptions) -> Result<Change, ApiError> {
        if request.content_type() == apply::CONTENT_TYPE {
            let config = apply::configuration(request, options.validation, &mut Vec::new())?;
            if (meta::api_version(&config), meta::kind(&config)) != ("autoscaling/v1", "Scale") {
                return Err(ApiError::BadRequest(format!(
                    "invalid object type: {}, Kind={}",
                    meta::api_version(&config),
                    meta::kind(&config)
                )));
            }
            return Ok(Change::Apply(config));
        }
        if request.attributes.verb == "patch" {
            let is_custom = request.kind.custom.is_some();
            let (patch, _) = patch::decode(&request.content_type(), &request.body, is_custom)?;
            return Ok(Change::Patch(patch));
        }
        let scale = body::other(request, "autoscaling/v1", "Scale")?;
        let sent = meta::name(&scale);
        if !sent.is_empty() && sent != request.name() {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({sent}) does not match the name on the URL ({})",
                request.name()
            )));
        }
        Ok(Change::Whole(scale))
    }

    fn apply(&self, old: &Object) -> Result<Object, ApiError> {
        let mut new = old.clone();
        match self {
            Change::Whole(scale) | Change::Apply(scale) => new = scale.clone(),
            Change::Patch(Patch::Json(operations)) => {
                let refused = |why| invalid(meta::name(old), "patch", why);
                patch::run(operations, &mut new, refused)?;
            }
            Change::Patch(Patch::Merge(patch) | Patch::Strategic(patch)) => {
                json_patch::merge(&mut new, patch);
            }
        }
        Ok(new)
    }
}

/// The Scale of an object: same name, uid and revision.
fn scale_of(kind: &Kind, object: &Object) -> Object {
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let places = kind
        .custom()
        .and_then(|custom| custom.scale.as_ref().map(|scale| custom::scale(scale, object)));
    if let Some((replicas, status)) = places {
        return json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
            "spec": { "replicas": replicas }, "status": status,
        });
    }
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": number("/spec/replicas") },
        "status": { "replicas": number("/status/replicas"), "selector": selector(object) },
    })
}

fn set_replicas(kind: &Kind, object: &mut Object, replicas: i64) {
    let custom = kind.custom();
    match custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(scale) => scale.spec_replicas.set(object, replicas.into()),
        None => object["spec"]["replicas"] = replicas.into(),
    }
}

/// The workload's selector in the form of queries; ReplicationControllers have a plain map.
fn selector(object: &Object) -> String {
    let selector = object.pointer("/spec/selector");
    let labels = selector
        .and_then(Value::as_object)
        .filter(|map| !map.contains_key("matchLabels") && !map.contains_key("matchExpressions"));
    match labels {
        Some(labels) => LabelSelector::from_map(labels).to_string(),
        None => LabelSelector::from_typed(selector).map(|s| s.to_string()).unwrap_or_default(),
    }
}

fn replicas(scale: &Object, name: &str) -> Result<i64, ApiError> {
    match scale.pointer("/spec/replicas") {
        // Zero is left out by clients.
        None | Some(Value::Null) => Ok(0),
        Some(value) => match value.as_i64() {
            Some(count) if (0..=i64::from(i32::MAX)).contains(&count) => Ok(count),
            Some(count) => {
                let why = "must be greater than or equal to 0";
                Err(invalid(name, "spec.replicas", format!("Invalid value: {count}: {why}")))
            }
            None => Err(body::undecodable(
                "autoscaling/v1",
                "Scale",
                &format!("spec.replicas: {value} is not a whole number"),
            )),
        },
    }
}

fn invalid(name: &str, field: &str, message: String) -> ApiError {
    ApiError::Invalid {
        group: "autoscaling".to_owned(),
        kind: "Scale".to_owned(),
        name: name.to_owned(),
        errors: vec![errors::field(Reason::Invalid, field, message)],
    }
}
