//! What a request does, one file a verb; the same code for every kind.
//!
//! `prepare` decides what an object becomes, `write` takes it through defaults, admission and
//! validation into the store, `state` says by which state that is judged, `read` finds the snapshot
//! that a read asks for. A verb file puts
//! these together and shapes the answer.

pub mod apply;
pub mod body;
pub mod create;
pub mod custom_metrics;
pub mod delete;
pub mod facts;
pub mod get;
pub mod list;
pub mod logs;
pub mod patch;
pub mod pods;
pub mod prepare;
pub mod quota;
pub mod read;
pub mod review;
pub mod scale;
pub mod select;
mod state;
mod table;
pub mod token;
pub mod update;
pub mod usage;
pub mod watch;
mod write;

use super::errors::{self, ApiError};
use super::request::{Query, Request};
use serde_json::{Map, Value, json};
use wherry_resources::validate::{FieldError, Reason};
use wherry_resources::{is_printed, quoted};

/// Which part of an object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Main,
    /// `status`, labels and annotations.
    Status,
    /// The conditions of a certificate request.
    Approval,
    /// `spec.finalizers` of a Namespace.
    Finalize,
    /// `spec.ephemeralContainers` of a Pod.
    EphemeralContainers,
    /// Resources of a Pod's containers.
    Resize,
    /// `spec.nodeName` of a Pod, set once.
    Binding,
}

impl Part {
    /// The part that a path names.
    fn of(request: &Request) -> Result<Part, ApiError> {
        match request.attributes.subresource.as_str() {
            "" => Ok(Part::Main),
            "status" => Ok(Part::Status),
            "approval" => Ok(Part::Approval),
            "finalize" => Ok(Part::Finalize),
            "ephemeralcontainers" => Ok(Part::EphemeralContainers),
            "resize" => Ok(Part::Resize),
            _ => Err(ApiError::NoSuchPath),
        }
    }
}

/// What to do about fields that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    Strict,
    Warn,
    Ignore,
}

/// Query parameters of a write.
struct WriteOptions {
    dry_run: bool,
    validation: Validation,
    /// Whether an apply takes fields from their owners.
    force: bool,
}

/// Longest field manager name, as in Kubernetes.
const FIELD_MANAGER_BYTES_MAX: usize = 128;

impl WriteOptions {
    /// Reads and checks them; `kind` is the options' own kind, for messages.
    fn parse(query: &Query, kind: &str) -> Result<WriteOptions, ApiError> {
        WriteOptions::checked(query, kind, Vec::new())
    }

    /// Those of a PATCH: an apply must say who applies, nothing else may force.
    fn of_patch(query: &Query, is_apply: bool) -> Result<WriteOptions, ApiError> {
        let mut wrong: Vec<FieldError> = Vec::new();
        if is_apply && query.get("fieldManager").is_none() {
            let message = "Required value: is required for apply patch".to_owned();
            wrong.push(errors::field(Reason::Required, "fieldManager", message));
        }
        if !is_apply && query.get("force").is_some() {
            let message = "Forbidden: may not be specified for non-apply patch".to_owned();
            wrong.push(errors::field(Reason::Forbidden, "force", message));
        }
        WriteOptions::checked(query, "PatchOptions", wrong)
    }

    fn checked(
        query: &Query,
        kind: &str,
        mut wrong: Vec<FieldError>,
    ) -> Result<WriteOptions, ApiError> {
        if let Some(manager) = query.get("fieldManager") {
            if manager.len() > FIELD_MANAGER_BYTES_MAX {
                let message =
                    format!("Too long: may not be more than {FIELD_MANAGER_BYTES_MAX} bytes");
                wrong.push(errors::field(Reason::TooLong, "fieldManager", message));
            } else {
                wrong.extend(unprintable(manager));
            }
        }
        let dry_run = dry_run(query).unwrap_or_else(|error| {
            wrong.push(error);
            false
        });
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => Validation::Warn,
            Some("Strict") => Validation::Strict,
            Some("Ignore") => Validation::Ignore,
            Some(other) => {
                let known = ["", "Ignore", "Strict", "Warn"];
                wrong.push(unsupported("fieldValidation", other, &known));
                Validation::Warn
            }
        };
        if wrong.is_empty() {
            Ok(WriteOptions { dry_run, validation, force: query.flag("force") })
        } else {
            Err(ApiError::invalid_options(kind, wrong))
        }
    }
}

/// Whether the query asks for a dry run. One of another sort, and of none, is refused: it must not
/// become a write.
fn dry_run(query: &Query) -> Result<bool, FieldError> {
    is_dry(&query.all("dryRun").collect::<Vec<_>>())
}

/// What the list of dry runs in options means.
fn is_dry(asked: &[&str]) -> Result<bool, FieldError> {
    if asked.iter().all(|one| *one == "All") {
        return Ok(!asked.is_empty());
    }
    let message = format!("Unsupported value: {}: supported values: \"All\"", json!(asked));
    Err(errors::field(Reason::NotSupported, "dryRun", message))
}

/// Options of a write as the client gave them, in the order in which Kubernetes shows them.
fn given(query: &Query, dry_run: bool) -> Map<String, Value> {
    let mut given = Map::new();
    if dry_run {
        given.insert("dryRun".to_owned(), json!(["All"]));
    }
    for name in ["fieldManager", "fieldValidation"] {
        given.extend(query.get(name).map(|text| (name.to_owned(), text.into())));
    }
    given
}

/// Who writes, for the record of owners: the manager that the request names, else the first word of
/// its user agent.
fn field_manager(request: &Request) -> String {
    if let Some(manager) = request.query.get("fieldManager") {
        return manager.to_owned();
    }
    let agent = request.headers.get(http::header::USER_AGENT);
    let agent = agent.and_then(|value| value.to_str().ok()).unwrap_or("");
    let word = agent.split('/').next().unwrap_or("");
    word.chars().filter(|c| is_printed(*c)).take(FIELD_MANAGER_BYTES_MAX).collect()
}

/// A complaint for each character of a manager's name that does not show.
fn unprintable(manager: &str) -> Vec<FieldError> {
    let value = quoted(manager);
    let complaint = |(at, c): (usize, char)| {
        let code = u32::from(c);
        let message =
            format!("Invalid value: {value}: invalid character U+{code:04X} (at position {at})");
        errors::field(Reason::Invalid, "fieldManager", message)
    };
    manager.char_indices().filter(|(_, c)| !is_printed(*c)).map(complaint).collect()
}

fn unsupported(field: &str, value: &str, supported: &[&str]) -> FieldError {
    let supported: Vec<String> = supported.iter().map(|word| quoted(word)).collect();
    let (value, supported) = (quoted(value), supported.join(", "));
    let message = format!("Unsupported value: {value}: supported values: {supported}");
    errors::field(Reason::NotSupported, field, message)
}
