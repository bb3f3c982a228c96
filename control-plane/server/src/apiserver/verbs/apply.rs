//! Server-side apply: PATCH with a configuration, of which the applier then owns every field.
//!
//! What it does to an object is decided in `wherry_resources::apply`; here the body is read, an
//! absent object is created, and the outcome goes the way of every other write.

use super::{
    Part, Validation, WriteOptions, get,
    prepare::{self, Stamp},
    update::RACE_TRIES,
    write::{self, Call, Failure, Record, Written},
};
use crate::apiserver::{
    ApiServer, content,
    custom::OwnTypes,
    errors::{ApiError, Cause},
    openapi,
    request::Request,
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use wherry_resources::{
    Kind, Object,
    apply::{self, ApplyError, Conflict, Types},
    meta,
    structure::Place,
};

/// Content type of an apply. JSON is YAML too.
pub const CONTENT_TYPE: &str = "application/apply-patch+yaml";

/// Applies the configuration in the body.
pub async fn apply(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = WriteOptions::of_patch(&request.query, true)?;
    let part = Part::of(request)?;
    let mut warnings = Vec::new();
    let sent = configuration(request, options.validation, &mut warnings)?;
    declared(request.kind, &sent)?;
    let config = relevant(request.kind, part, sent);
    let mut call = Call::of(api, request, part, options.dry_run);
    call.record = Record::Given;
    for _ in 0..RACE_TRIES {
        let snapshot = api.latest().await?;
        let (code, done) = match call.load(&snapshot, request.name()).await {
            Ok((old, entry)) => {
                let new = merged(&call, Some(&old), &config, options.force).await?;
                let new = addressed(request, new)?;
                let version = meta::resource_version(&new);
                if !version.is_empty() && version != meta::resource_version(&old) {
                    return Err(ApiError::modified(request.kind, request.name()));
                }
                (StatusCode::OK, write::replace(&call, &old, &entry, new).await)
            }
            Err(ApiError::NotFound { .. }) if part == Part::Main => {
                (StatusCode::CREATED, create(&call, request, &config).await)
            }
            Err(error) => return Err(error),
        };
        match done {
            Ok(Written { object, warnings: more, .. }) => {
                warnings.extend(more);
                return get::respond(request, code, object, &warnings);
            }
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(ApiError::modified(request.kind, request.name()))
}

/// An apply of what is not there creates it, if the user may do that too.
async fn create(call: &Call<'_>, request: &Request, config: &Object) -> Result<Written, Failure> {
    let mut asked = request.attributes.clone();
    asked.verb = "create".to_owned();
    call.api.authorize(&request.user, &asked)?;
    let uid = meta::uid(config);
    if !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was \
             found"
        );
        return Err(ApiError::conflict(request.kind, request.name(), why).into());
    }
    let mut new = addressed(request, merged(call, None, config, true).await?)?;
    meta::set(&mut new, "resourceVersion", "");
    let new = prepare::created(request.kind, request.namespace(), new, &Stamp::new())?;
    write::insert(call, new).await
}

fn addressed(request: &Request, mut new: Object) -> Result<Object, ApiError> {
    prepare::addressed(request.name(), request.namespace(), &mut new)?;
    Ok(new)
}

/// The live object under the configuration.
pub async fn merged(
    call: &Call<'_>,
    live: Option<&Object>,
    config: &Object,
    force: bool,
) -> Result<Object, ApiError> {
    let writer = call.writer();
    let decide = |types: &OwnTypes| apply::apply(types, live, config, &writer, force);
    let applied = Box::pin(call.types().decide(call.api, decide)).await?;
    applied.map_err(|error| refusal(call.kind, config, error))
}

fn refusal(kind: &Kind, config: &Object, error: ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::Mistyped(_) => untypable(kind, config, &message),
        ApplyError::Unreadable(_) => ApiError::Internal(message),
        ApplyError::Conflicts(conflicts) => {
            let cause = |conflict: Conflict| Cause {
                reason: "FieldManagerConflict",
                message: format!("conflict with {}", conflict.manager),
                field: conflict.path,
            };
            ApiError::ApplyConflict { message, causes: conflicts.into_iter().map(cause).collect() }
        }
    }
}

/// Kubernetes' sentence for a configuration that does not fit its type.
fn untypable(kind: &Kind, config: &Object, why: &str) -> ApiError {
    ApiError::BadRequest(format!(
        "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {why}",
        meta::namespace(config),
        meta::name(config),
        kind.group,
        kind.version,
        kind.kind
    ))
}

/// Reads the body. Unlike elsewhere it must say what it is.
pub fn configuration(
    request: &Request,
    validation: Validation,
    warnings: &mut Vec<String>,
) -> Result<Object, ApiError> {
    let decoded = content::decode_yaml(&request.body)
        .map_err(|error| ApiError::BadRequest(format!("error decoding YAML: {error}")))?;
    let mut config = decoded.value;
    if !config.is_object() || !config.get("metadata").is_none_or(|m| m.is_object() || m.is_null()) {
        return Err(ApiError::BadRequest(
            "error decoding YAML: a configuration is an object with metadata".to_owned(),
        ));
    }
    let twice: Vec<String> =
        decoded.duplicates.iter().map(|path| twice(&request.body, path)).collect();
    match validation {
        Validation::Strict if !twice.is_empty() => {
            return Err(ApiError::BadRequest(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal \
                 errors:\n  {}",
                twice.join("\n  ")
            )));
        }
        Validation::Warn => warnings.extend(twice),
        Validation::Strict | Validation::Ignore => {}
    }
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(ApiError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    if let Some(metadata) = config.get_mut("metadata").filter(|metadata| metadata.is_null()) {
        *metadata = json!({});
    }
    Ok(config)
}

/// Where a key stands for the second time; the line is counted in the text of the body.
fn twice(body: &[u8], path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let text = String::from_utf8_lossy(body);
    let is_key = |line: &str| {
        let line = line.trim_start_matches([' ', '-']);
        line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
            || line.contains(&format!("{key:?}"))
    };
    let line = text.lines().enumerate().filter(|(_, line)| is_key(line)).last();
    let line = line.map_or(1, |(index, _)| index + 1);
    format!("line {line}: key {key:?} already set in map")
}

/// Refuses another type and fields that the type does not have: an apply drops nothing silently,
/// whatever the field validation.
fn declared(kind: &'static Kind, config: &Object) -> Result<(), ApiError> {
    let (version, name) = (meta::api_version(config), meta::kind(config));
    if name != kind.kind || version.is_empty() {
        return Err(ApiError::BadRequest(format!("invalid object type: {version}, Kind={name}")));
    }
    if version != kind.api_version() {
        return Err(ApiError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, \
             expected: {}",
            kind.api_version()
        )));
    }
    if let Some(custom) = kind.custom() {
        let unknown = custom.prune(&mut config.clone());
        if unknown.is_empty() {
            return Ok(());
        }
        let errors = apply::undeclared(Place::custom(&custom.source), config, &unknown);
        return Err(refusal(kind, config, ApplyError::Mistyped(errors)));
    }
    let unknown = openapi::unknown_fields(kind, config);
    if unknown.is_empty() {
        return Ok(());
    }
    let types = apply::BuiltIn(kind);
    let place = types.place(version).expect("the version in the path is served");
    let errors = apply::undeclared(place, config, &unknown);
    Err(refusal(kind, config, ApplyError::Mistyped(errors)))
}

/// What of a configuration the endpoint takes; the rest is not owned either.
fn relevant(kind: &Kind, part: Part, mut config: Object) -> Object {
    let map = config.as_object_mut().expect("a configuration is an object");
    match part {
        Part::Main if kind.has_status => {
            map.shift_remove("status");
        }
        Part::Status | Part::Approval => {
            map.retain(|key, _| {
                matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")
            });
            if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
                metadata.retain(|key, _| !matches!(key.as_str(), "ownerReferences" | "finalizers"));
            }
        }
        _ => {}
    }
    config
}
