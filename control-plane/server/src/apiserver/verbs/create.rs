//! POST of a new object.

use super::{
    Part, WriteOptions, body, get, prepare,
    prepare::Stamp,
    write::{self, Call, Failure},
};
use crate::apiserver::{ApiServer, errors::ApiError, request::Request};
use axum::response::Response;
use http::StatusCode;
use wherry_resources::{Object, meta, names};

/// How many generated names are tried before giving up, as in Kubernetes.
const NAME_TRIES: usize = 8;

/// Creates the object in the body.
pub async fn create(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
    let mut warnings = Vec::new();
    let sent = body::object(request, options.validation, &mut warnings)?;
    let draft = prepare::created(request.kind, request.namespace(), sent, &Stamp::new())?;
    let call = Call::of(api, request, Part::Main, options.dry_run);
    let written = named(&call, draft).await?;
    warnings.extend(written.warnings);
    get::respond(request, StatusCode::CREATED, written.object, &warnings)
}

/// Stores a draft; if it wants a generated name, one that is free.
pub async fn named(call: &Call<'_>, draft: Object) -> Result<write::Written, ApiError> {
    let resource = call.kind.into();
    let base = meta::generate_name(&draft).to_owned();
    let mut name = meta::name(&draft).to_owned();
    if !name.is_empty() || base.is_empty() {
        return write::insert(call, draft).await.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Raced => ApiError::AlreadyExists { resource, name },
        });
    }
    for _ in 0..NAME_TRIES {
        let mut object = draft.clone();
        name = names::generate_name(&base, &mut |below| rand::random_range(0..below));
        meta::set(&mut object, "name", &name);
        meta::order(&mut object);
        match write::insert(call, object).await {
            Ok(written) => return Ok(written),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Raced) => {}
        }
    }
    Err(ApiError::NoUniqueName { resource, name })
}
