//! The one place where a failure becomes a Kubernetes `Status`.
//!
//! Clients compare these bodies byte for byte: key order, empty fields left out, `"metadata":{}`
//! always there, one newline at the end. Every other file of the API server returns [`ApiError`]
//! and never writes a Status itself. A variant names what went wrong; `status` says how it is told.

use super::content;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use wherry_resources::{
    Kind,
    channels::Outcome,
    quoted,
    validate::{self, FieldError, Reason},
};
use wherry_store::{MembershipError, ReadError};

/// Which resource an error is about: `deployments.apps`, written as Kubernetes writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupResource {
    /// API group, empty for core.
    pub group: String,
    /// Plural, as in the path.
    pub plural: String,
}

impl From<&Kind> for GroupResource {
    fn from(kind: &Kind) -> Self {
        GroupResource { group: kind.group.into(), plural: kind.plural.into() }
    }
}

impl std::fmt::Display for GroupResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.is_empty() {
            true => f.write_str(&self.plural),
            false => write!(f, "{}.{}", self.plural, self.group),
        }
    }
}

/// One reason inside a Status, as `details.causes[]` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Stable CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Path of the field, or empty.
    pub field: String,
}

/// Everything that can go wrong between a request and its answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The path leads nowhere: 404 in plain text, as clients that probe for a resource expect.
    #[error("404 page not found")]
    NoSuchPath,
    /// The object is not there.
    #[error("{resource} {} not found", quoted(name))]
    NotFound { resource: GroupResource, name: String },
    /// An object of this name is there already.
    #[error("{resource} {} already exists", quoted(name))]
    AlreadyExists { resource: GroupResource, name: String },
    /// No free name was found for a generateName.
    #[error(
        "{resource} {} already exists, the server was not able to generate a unique name \
         for the object",
        quoted(name)
    )]
    NoUniqueName { resource: GroupResource, name: String },
    /// A precondition did not hold.
    #[error("Operation cannot be fulfilled on {resource} {}: {why}", quoted(name))]
    Conflict { resource: GroupResource, name: String, why: String },
    /// An apply gives other values to fields that others own.
    #[error("{message}")]
    ApplyConflict { message: String, causes: Vec<Cause> },
    /// Fields are wrong; `kind` may differ from the stored one (ListOptions, Scale).
    #[error("{}", invalid_message(group, kind, name, errors))]
    Invalid { group: String, kind: String, name: String, errors: Vec<FieldError> },
    /// The request cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// Credentials are missing or wrong.
    #[error("Unauthorized")]
    Unauthorized,
    /// This user may not do that. `name` may be empty; an empty resource is a plain path.
    #[error("{}", forbidden_message(resource, name, why))]
    Forbidden { resource: GroupResource, name: String, why: String, causes: Vec<Cause> },
    /// The resource is there, the verb is not.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed(GroupResource),
    /// None of the answer's forms was asked for.
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(&'static str),
    /// The body is in a form we cannot read.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(&'static str),
    /// The body, or what it unfolds to, is too large.
    #[error("Request entity too large: {0}")]
    TooLarge(String),
    /// The asked revision has left the window. `continue_token` lets a list go on from here.
    #[error("{message}")]
    Expired { message: String, continue_token: Option<String> },
    /// Refused for now.
    #[error("{message}")]
    TooManyRequests { message: String, causes: Vec<Cause>, retry_after_seconds: u32 },
    /// What an admission hook wants the client to be told.
    #[error("{message}")]
    Relayed { code: StatusCode, reason: String, message: String, details: Option<Value> },
    /// Nobody but us is to blame.
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// The disk of the control plane is nearly full. Deletes and reads go on.
    #[error(
        "the disk of the control plane is nearly full, so nothing can be created or changed: \
         delete objects or make room on it; writes then go on by themselves"
    )]
    Full,
    /// The membership cannot be changed like that.
    #[error("{0}")]
    Membership(#[source] MembershipError),
    /// A member is not where the others look for it.
    #[error(
        "member {name:?} is known to be at {known} and is at {here}, which the others could not be \
         told yet ({why}); let the other one join when they can, or by another member"
    )]
    Moved { name: String, known: String, here: String, why: String },
    /// This member cannot do it at present.
    #[error("{0}")]
    Unavailable(String),
    /// It took too long, or a revision is ahead of the store.
    #[error("Timeout: {message}")]
    Timeout { message: String, causes: Vec<Cause>, retry_after_seconds: u32 },
}

fn invalid_message(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> String {
    let all = validate::summary(errors);
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group} {} is invalid: {all}", quoted(name))
}

fn forbidden_message(resource: &GroupResource, name: &str, why: &str) -> String {
    if resource.plural.is_empty() {
        format!("forbidden: {why}")
    } else if name.is_empty() {
        format!("{resource} is forbidden: {why}")
    } else {
        format!("{resource} {} is forbidden: {why}", quoted(name))
    }
}

/// Kubernetes' sentence for a write that was based on an older state.
const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl ApiError {
    /// Whether it is a judgement on what is stored, which other data might lead to another one: not
    /// a failure to write it, or to learn whether it was written.
    pub fn is_verdict(&self) -> bool {
        !matches!(
            self,
            ApiError::TooLarge(_)
                | ApiError::Internal(_)
                | ApiError::Full
                | ApiError::Unavailable(_)
                | ApiError::Timeout { .. }
        )
    }

    /// The object is not there.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        ApiError::NotFound { resource: kind.into(), name: name.into() }
    }

    /// The write was based on an older state of the object.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        ApiError::Conflict { resource: kind.into(), name: name.into(), why: MODIFIED.into() }
    }

    /// A stated precondition (uid, resourceVersion of a delete) did not hold.
    pub fn conflict(kind: &Kind, name: &str, why: String) -> Self {
        ApiError::Conflict { resource: kind.into(), name: name.into(), why }
    }

    /// Refused by policy, not by validation.
    pub fn forbidden(kind: &Kind, name: &str, why: impl Into<String>) -> Self {
        let resource = kind.into();
        ApiError::Forbidden { resource, name: name.into(), why: why.into(), causes: Vec::new() }
    }

    /// Fields of an object of this kind are wrong.
    pub fn invalid(kind: &Kind, name: &str, mut errors: Vec<FieldError>) -> Self {
        errors.truncate(validate::ERRORS_MAX);
        let (group, kind) = (kind.group.into(), kind.kind.into());
        ApiError::Invalid { group, kind, name: name.into(), errors }
    }

    /// The request's own parameters contradict each other.
    pub fn invalid_options(kind: &str, errors: Vec<FieldError>) -> Self {
        let (group, kind) = ("meta.k8s.io".into(), kind.into());
        ApiError::Invalid { group, kind, name: String::new(), errors }
    }

    /// HTTP status code.
    pub fn code(&self) -> StatusCode {
        self.parts().0
    }

    /// Code and stable reason. One row a variant, so that the table of contract 9 can be read here.
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::NoSuchPath => (StatusCode::NOT_FOUND, "NotFound"),
            ApiError::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            ApiError::AlreadyExists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            ApiError::NoUniqueName { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            ApiError::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            ApiError::ApplyConflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            ApiError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            ApiError::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            ApiError::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            ApiError::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            ApiError::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            ApiError::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType")
            }
            ApiError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            ApiError::Expired { .. } => (StatusCode::GONE, "Expired"),
            ApiError::TooManyRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            ApiError::Relayed { code, .. } => (*code, ""),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            ApiError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            ApiError::Full => (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
            ApiError::Membership(error) => membership(error),
            ApiError::Moved { .. } => (StatusCode::CONFLICT, "Conflict"),
            ApiError::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        }
    }

    /// The Status object, keys in the order in which Kubernetes writes them.
    pub fn status(&self) -> Value {
        let (code, reason) = self.parts();
        let mut metadata = Map::new();
        if let ApiError::Expired { continue_token: Some(token), .. } = self {
            metadata.insert("continue".into(), json!(token));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.to_string(), "reason": reason,
        });
        if let ApiError::Relayed { reason, .. } = self {
            status["reason"] = json!(reason);
        }
        if status["reason"] == "" {
            status.as_object_mut().expect("it was just made").shift_remove("reason");
        }
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status["code"] = json!(code.as_u16());
        status
    }

    fn details(&self) -> Option<Value> {
        match self {
            ApiError::NotFound { resource, name }
            | ApiError::AlreadyExists { resource, name }
            | ApiError::NoUniqueName { resource, name }
            | ApiError::Conflict { resource, name, .. } => {
                Some(details(name, &resource.group, &resource.plural, &[], 0))
            }
            ApiError::Forbidden { resource, name, causes, .. } => {
                Some(details(name, &resource.group, &resource.plural, causes, 0))
            }
            ApiError::Invalid { group, kind, name, errors } => {
                let causes: Vec<Cause> = errors
                    .iter()
                    .map(|error| Cause {
                        reason: error.reason.as_str(),
                        message: error.message.clone(),
                        field: error.field.clone(),
                    })
                    .collect();
                Some(details(name, group, kind, &causes, 0))
            }
            ApiError::ApplyConflict { causes, .. } => Some(details("", "", "", causes, 0)),
            ApiError::MethodNotAllowed(resource) => {
                Some(details("", &resource.group, &resource.plural, &[], 0))
            }
            ApiError::Internal(message) => {
                let cause = Cause { reason: "", message: message.clone(), field: String::new() };
                Some(details("", "", "", &[cause], 0))
            }
            ApiError::TooManyRequests { causes, retry_after_seconds, .. }
            | ApiError::Timeout { causes, retry_after_seconds, .. } => {
                Some(details("", "", "", causes, *retry_after_seconds))
            }
            ApiError::Relayed { details, .. } => details.clone(),
            ApiError::NoSuchPath
            | ApiError::BadRequest(_)
            | ApiError::Unauthorized
            | ApiError::NotAcceptable(_)
            | ApiError::UnsupportedMediaType(_)
            | ApiError::TooLarge(_)
            | ApiError::Expired { .. }
            | ApiError::Full
            | ApiError::Membership(_)
            | ApiError::Moved { .. }
            | ApiError::Unavailable(_) => None,
        }
    }

    fn retry_after_seconds(&self) -> u32 {
        match self {
            ApiError::TooManyRequests { retry_after_seconds, .. }
            | ApiError::Timeout { retry_after_seconds, .. } => *retry_after_seconds,
            // A member without a leader usually has one again after an election.
            ApiError::Unavailable(_) => 1,
            ApiError::Membership(error) if membership(error).0.is_server_error() => 1,
            _ => 0,
        }
    }
}

/// What kept the membership from changing: the wrong question, the wrong moment, or nobody knows.
fn membership(error: &MembershipError) -> (StatusCode, &'static str) {
    match error {
        MembershipError::NoSuchMember { .. } => (StatusCode::NOT_FOUND, "NotFound"),
        MembershipError::NotAVoter { .. }
        | MembershipError::Taken { .. }
        | MembershipError::NotCaughtUp { .. }
        | MembershipError::NotTaken { .. }
        | MembershipError::LosesMajority { .. }
        | MembershipError::TooMany(_)
        | MembershipError::LastVoter => (StatusCode::CONFLICT, "Conflict"),
        MembershipError::NoLeader | MembershipError::Changed | MembershipError::Stopped => {
            (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
        }
        MembershipError::Unknown => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> ApiError {
        ApiError::Unavailable(error.to_string())
    }
}

/// The `details` of a Status; empty parts are left out.
pub fn details(name: &str, group: &str, kind: &str, causes: &[Cause], retry: u32) -> Value {
    let mut details = Map::new();
    for (key, text) in [("name", name), ("group", group), ("kind", kind)] {
        if !text.is_empty() {
            details.insert(key.into(), json!(text));
        }
    }
    let causes: Vec<Value> = causes
        .iter()
        .map(|cause| {
            let mut one = Map::new();
            let parts =
                [("reason", cause.reason), ("message", &cause.message), ("field", &cause.field)];
            for (key, text) in parts {
                if !text.is_empty() {
                    one.insert(key.into(), json!(text));
                }
            }
            Value::Object(one)
        })
        .collect();
    if !causes.is_empty() {
        details.insert("causes".into(), Value::Array(causes));
    }
    if retry > 0 {
        details.insert("retryAfterSeconds".into(), json!(retry));
    }
    Value::Object(details)
}

/// How a remote command ended, as its client is told on the channel for errors.
pub fn command_status(outcome: &Outcome) -> Value {
    let failure = |message: String, reason: &str, cause: Value| {
        json!({
            "metadata": {}, "status": "Failure", "message": message, "reason": reason,
            "details": { "causes": [cause] },
        })
    };
    match outcome {
        Outcome::Code(0) => json!({ "metadata": {}, "status": "Success" }),
        Outcome::Code(code) => failure(
            format!("command terminated with non-zero exit code: exit status {code}"),
            "NonZeroExitCode",
            json!({ "reason": "ExitCode", "message": code.to_string() }),
        ),
        Outcome::Failed(why) => {
            let why = format!("error executing command in container: {why}");
            let message = format!("Internal error occurred: {why}");
            let mut status = failure(message, "InternalError", json!({ "message": why }));
            status["code"] = json!(500);
            status
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let ApiError::NoSuchPath = self {
            let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            return (StatusCode::NOT_FOUND, plain, "404 page not found\n").into_response();
        }
        if let ApiError::Internal(message) = &self {
            tracing::error!(message, "request failed");
        }
        let status = self.status();
        let json = [(header::CONTENT_TYPE, "application/json")];
        let body = Bytes::from(content::rendered(&status, false));
        let mut response = (self.code(), json, body.clone()).into_response();
        response.extensions_mut().insert(content::Shown(body));
        let retry = self.retry_after_seconds();
        if retry > 0 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry));
        }
        response
    }
}

/// A field error of the API server's own; most come from `wherry_resources::validate`.
pub fn field(reason: Reason, field: &str, message: String) -> FieldError {
    FieldError { reason, field: field.to_owned(), message }
}
