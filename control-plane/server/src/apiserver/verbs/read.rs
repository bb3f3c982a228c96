//! The snapshot that a read asks for with `resourceVersion` and `resourceVersionMatch`.

use crate::apiserver::{
    ApiServer,
    errors::{self, ApiError, Cause},
    request::Query,
};
use std::time::Duration;
use wherry_resources::quoted;
use wherry_resources::validate::{FieldError, Reason};
use wherry_store::{ReadError, Revision, Snapshot, WindowError};

/// How long a read waits for a revision that this member has not applied yet, as in Kubernetes.
const AHEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Which state a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything that was written before the request.
    Newest,
    /// Whatever this member has.
    Any,
    /// At least this revision.
    AtLeast(Revision),
    /// Exactly this revision.
    Exactly(Revision),
}

/// Reads the parameters of a GET or list. `continues` says that a continue token came with it.
pub fn wanted(query: &Query, continues: bool) -> Result<Wanted, ApiError> {
    let version = query.get("resourceVersion");
    let rule = query.get("resourceVersionMatch");
    let mut wrong: Vec<FieldError> = Vec::new();
    if query.get("sendInitialEvents").is_some() {
        wrong.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    match (rule, version) {
        (Some(_), _) if continues => wrong.push(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden when continue is provided",
        )),
        (Some(_), None) => wrong.push(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        (Some("Exact"), Some("0")) => wrong.push(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        )),
        (None | Some("Exact" | "NotOlderThan"), _) => {}
        (Some(other), _) => {
            let supported = ["Exact", "NotOlderThan"];
            wrong.push(super::unsupported("resourceVersionMatch", other, &supported));
        }
    }
    if !wrong.is_empty() {
        return Err(ApiError::invalid_options("ListOptions", wrong));
    }
    match (version.map(revision).transpose()?, rule) {
        (None, _) => Ok(Wanted::Newest),
        // Whatever there is: clients that always say so may go on.
        (Some(0), _) => Ok(Wanted::Any),
        (Some(_), _) if continues => Err(ApiError::BadRequest(
            "specifying resource version is not allowed when using continue".to_owned(),
        )),
        (Some(revision), Some("Exact")) => Ok(Wanted::Exactly(revision)),
        // A first page of exactly that revision was the meaning before the match parameter.
        (Some(revision), None) if query.get("limit").is_some_and(|limit| limit != "0") => {
            Ok(Wanted::Exactly(revision))
        }
        (Some(revision), _) => Ok(Wanted::AtLeast(revision)),
    }
}

fn forbidden(field: &str, detail: &str) -> FieldError {
    errors::field(Reason::Forbidden, field, format!("Forbidden: {detail}"))
}

/// A resourceVersion as a number.
pub fn revision(text: &str) -> Result<Revision, ApiError> {
    text.parse().map_err(|_| {
        let text = quoted(text);
        let message =
            format!("Invalid value: {text}: strconv.ParseUint: parsing {text}: invalid syntax");
        let error = errors::field(Reason::Invalid, "resourceVersion", message);
        ApiError::invalid_options("ListOptions", vec![error])
    })
}

/// Finds that snapshot, waiting for it if it lies ahead.
pub async fn snapshot(api: &ApiServer, wanted: Wanted) -> Result<Snapshot, ApiError> {
    if wanted != Wanted::Newest {
        in_touch(api).await?;
    }
    match wanted {
        Wanted::Newest => api.latest().await,
        Wanted::Any => Ok(api.store().current()),
        Wanted::AtLeast(revision) => {
            reach(api, revision).await?;
            Ok(api.store().current())
        }
        Wanted::Exactly(revision) => {
            reach(api, revision).await?;
            api.store().at(revision).map_err(|error| window(error, revision))
        }
    }
}

/// Makes sure that this member hears of what happens in the cluster. One that is cut off from the
/// others, or whose data is not to be trusted, answers nothing from what it has: clients that take
/// old data would stay with it, and those that watch would see nothing happen.
pub async fn in_touch(api: &ApiServer) -> Result<(), ApiError> {
    match api.store().fresh() {
        Some(_) => Ok(()),
        None => api.latest().await.map(drop),
    }
}

async fn reach(api: &ApiServer, revision: Revision) -> Result<(), ApiError> {
    let current = api.store().current().revision();
    if current >= revision {
        return Ok(());
    }
    match tokio::time::timeout(AHEAD_TIMEOUT, api.store().reached(revision)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ReadError::Stopped.into()),
        Err(_) => Err(ahead(revision, api.store().current().revision())),
    }
}

fn ahead(revision: Revision, current: Revision) -> ApiError {
    ApiError::Timeout {
        message: format!("Too large resource version: {revision}, current: {current}"),
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".to_owned(),
            field: String::new(),
        }],
        retry_after_seconds: 1,
    }
}

/// A revision that has left the window, or is not there yet.
pub fn window(error: WindowError, revision: Revision) -> ApiError {
    match error {
        WindowError::Gone { oldest } => ApiError::Expired {
            message: format!("too old resource version: {revision} ({oldest})"),
            continue_token: None,
        },
        WindowError::Future { current } => ahead(revision, current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let of = |query: &str| match wanted(&Query::parse(query), query.contains("continue")) {
            Ok(wanted) => format!("{wanted:?}"),
            Err(error) => error.code().as_u16().to_string(),
        };
        assert_eq!(of(""), "Newest");
        assert_eq!(of("resourceVersion=0"), "Any");
        assert_eq!(of("resourceVersion=7"), "AtLeast(7)");
        assert_eq!(of("resourceVersion=7&limit=5"), "Exactly(7)");
        assert_eq!(of("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5"), "AtLeast(7)");
        assert_eq!(of("resourceVersion=7&resourceVersionMatch=Exact"), "Exactly(7)");
        assert_eq!(of("resourceVersion=0&resourceVersionMatch=Exact"), "422");
        assert_eq!(of("resourceVersionMatch=Exact"), "422");
        assert_eq!(of("resourceVersion=7&continue=x"), "400");
        assert_eq!(of("resourceVersion=0&continue=x"), "Any");
        assert_eq!(of("resourceVersion=abc"), "422");
        assert_eq!(of("sendInitialEvents=true"), "422");
    }
}
