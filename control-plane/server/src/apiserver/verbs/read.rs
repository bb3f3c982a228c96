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

impl Wanted {
    /// What a resourceVersion alone asks for.
    pub fn since(version: Option<Revision>) -> Wanted {
        match version {
            None => Wanted::Newest,
            // Whatever there is: clients that always say so may go on.
            Some(0) => Wanted::Any,
            Some(revision) => Wanted::AtLeast(revision),
        }
    }

    /// Reads the parameter of a GET of one object. Rules are for lists, and say nothing here.
    pub fn of_one(query: &Query) -> Result<Wanted, ApiError> {
        let version = query.get("resourceVersion").map(revision).transpose()?;
        Ok(Wanted::since(version))
    }
}

/// How a resourceVersion is to be matched.
const RULE: &str = "resourceVersionMatch";

/// Reads the parameters of a list. `continues` says that a continue token came with it.
pub fn wanted(query: &Query, continues: bool) -> Result<Wanted, ApiError> {
    let (rule, version) = (query.get(RULE), query.get("resourceVersion"));
    let mut wrong: Vec<FieldError> = Vec::new();
    if let Some(rule) = rule {
        if version.is_none() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            wrong.push(forbidden(RULE, why));
        }
        if continues {
            wrong.push(forbidden(RULE, CONTINUES));
        }
        if !["Exact", "NotOlderThan"].contains(&rule) {
            wrong.push(super::unsupported(RULE, rule, &["Exact", "NotOlderThan", ""]));
        }
        if (rule, version) == ("Exact", Some("0")) {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            wrong.push(forbidden(RULE, why));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        wrong.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    refuse(wrong)?;
    match (version.map(revision).transpose()?, rule) {
        (Some(1..), _) if continues => Err(ApiError::BadRequest(
            "specifying resource version is not allowed when using continue".to_owned(),
        )),
        (Some(revision @ 1..), Some("Exact")) => Ok(Wanted::Exactly(revision)),
        // A first page of exactly that revision was the meaning before the match parameter.
        (Some(revision @ 1..), None) if query.get("limit").is_some_and(|limit| limit != "0") => {
            Ok(Wanted::Exactly(revision))
        }
        (version, _) => Ok(Wanted::since(version)),
    }
}

/// Checks the rule of a watch: it has one if, and only if, it asks for initial events or for none.
pub fn check_watch(query: &Query) -> Result<(), ApiError> {
    let (rule, initial) = (query.get(RULE), query.get("sendInitialEvents").is_some());
    let mut wrong: Vec<FieldError> = Vec::new();
    if initial && rule != Some("NotOlderThan") {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        wrong.push(forbidden(RULE, why));
    }
    if let Some(rule) = rule {
        if !initial {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            wrong.push(forbidden(RULE, why));
        }
        if rule != "NotOlderThan" {
            wrong.push(super::unsupported(RULE, rule, &["NotOlderThan"]));
        }
        if query.get("continue").is_some() {
            wrong.push(forbidden(RULE, CONTINUES));
        }
    }
    refuse(wrong)
}

const CONTINUES: &str = "resourceVersionMatch is forbidden when continue is provided";

fn refuse(wrong: Vec<FieldError>) -> Result<(), ApiError> {
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid_options("ListOptions", wrong)),
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
        // One object has no rule.
        let one = Query::parse("resourceVersion=7&resourceVersionMatch=Exact&limit=1");
        assert_eq!(Wanted::of_one(&one).expect("a number"), Wanted::AtLeast(7));
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let list = wanted(&Query::parse("resourceVersionMatch=x&sendInitialEvents=1"), true);
        let expected = "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: \
            resourceVersionMatch is forbidden unless resourceVersion is provided, \
            resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is \
            provided, resourceVersionMatch: Unsupported value: \"x\": supported values: \"Exact\", \
            \"NotOlderThan\", \"\", sendInitialEvents: Forbidden: sendInitialEvents is forbidden \
            for list]";
        assert_eq!(list.expect_err("it is refused").to_string(), expected);
        let watch = check_watch(&Query::parse("sendInitialEvents=1&resourceVersionMatch=Exact"));
        let expected = "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: \
            sendInitialEvents requires setting resourceVersionMatch to NotOlderThan, \
            resourceVersionMatch: Unsupported value: \"Exact\": supported values: \
            \"NotOlderThan\"]";
        assert_eq!(watch.expect_err("it is refused").to_string(), expected);
    }
}
