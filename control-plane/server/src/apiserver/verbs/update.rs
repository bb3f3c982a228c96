//! PUT: the whole object, or one of its parts.

use super::{
    Part, WriteOptions, body, create, get, prepare,
    prepare::Stamp,
    state::States,
    write::{self, Call, Failure, Written},
};
use crate::apiserver::{
    ApiServer,
    errors::{self, ApiError},
    request::Request,
};
use axum::response::Response;
use http::StatusCode;
use wherry_resources::validate::Reason;
use wherry_resources::{Object, meta};
use wherry_store::Snapshot;

/// How often a write without a precondition is tried again when others come first.
pub const RACE_TRIES: usize = 5;

/// Replaces the object that the path names.
pub async fn update(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&request.query, "UpdateOptions")?;
    let part = Part::of(request)?;
    let mut warnings = Vec::new();
    let mut sent = body::object(request, options.validation, &mut warnings)?;
    if part == Part::Main && meta::name(&sent).is_empty() {
        // An empty body would otherwise empty the object.
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            request.name()
        )));
    }
    prepare::addressed(request.name(), request.namespace(), &mut sent)?;
    let call = Call::of(api, request, part, options.dry_run);
    if part == Part::Main
        && request.kind.create_on_update
        && let Err(ApiError::NotFound { .. }) = call.find(&api.latest().await?, request.name())
    {
        let mut asked = request.attributes.clone();
        asked.verb = "create".to_owned();
        api.authorize(&request.user, &asked)?;
        let uid = meta::uid(&sent);
        if !uid.is_empty() {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
            return Err(ApiError::conflict(request.kind, request.name(), why));
        }
        // Of what was there before: what is not there now has no version.
        meta::set(&mut sent, "resourceVersion", "");
        let draft = prepare::created(request.kind, request.namespace(), sent, &Stamp::new())?;
        let written = create::named(&call, draft).await?;
        warnings.extend(written.warnings);
        return get::respond(request, StatusCode::CREATED, written.object, &warnings);
    }
    let written = replace(&call, request.name(), sent).await?;
    warnings.extend(written.warnings);
    get::respond(request, StatusCode::OK, written.object, &warnings)
}

/// Writes `sent` over the stored object. With a resourceVersion it must be the stored one; without,
/// the last writer wins where the kind allows it.
async fn replace(call: &Call<'_>, name: &str, sent: Object) -> Result<Written, ApiError> {
    let version = meta::resource_version(&sent);
    let unconditional = version.is_empty() || version == "0";
    let attempt = async |snapshot: &Snapshot| -> Result<Written, Failure> {
        let (old, entry) = call.load(snapshot, name).await?;
        if unconditional && !call.kind.unconditional_update {
            let message = "Invalid value: 0: must be specified for an update".to_owned();
            let error = errors::field(Reason::Invalid, "metadata.resourceVersion", message);
            return Err(ApiError::invalid(call.kind, name, vec![error]).into());
        }
        if !unconditional && version != meta::resource_version(&old) {
            return Err(ApiError::modified(call.kind, name).into());
        }
        write::replace(call, &old, &entry, sent.clone()).await
    };
    let mut states = States::of(call.api);
    while let Some(snapshot) = states.next().await? {
        if let Some(done) = states.settle(attempt(&snapshot).await) {
            return done;
        }
    }
    Err(ApiError::modified(call.kind, name))
}
