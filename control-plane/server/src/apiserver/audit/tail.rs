//! `GET /wherry/v1/audit`: the newest events of this member's audit log, as the dashboard shows them.
//!
//! Only administrators may ask for it, since no rule but theirs names the path. Bodies of requests
//! and answers stay in the file.

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde_json::{Value, json};

use super::log;
use crate::apiserver::{ApiServer, errors::ApiError, request::Query};

/// Events of one answer, if nobody says otherwise, and at most.
const EVENTS: usize = 50;
const EVENTS_MAX: usize = 500;

/// Answers `GET /wherry/v1/audit?count=20`, the newest event first.
pub async fn newest(
    State(api): State<ApiServer>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let count = Query::parse(query.as_deref().unwrap_or("")).number("count")?;
    let count = count.map_or(EVENTS, |count| usize::try_from(count).unwrap_or(0)).min(EVENTS_MAX);
    // Whether something is told is the policy's; a server in a test has no log.
    let Some(log) = api.audit() else { return Ok(Json(json!({ "events": [] }))) };
    let path = log.path().to_owned();
    let read = tokio::task::spawn_blocking(move || log::newest(&path, count)).await;
    let events = read.map_err(|error| ApiError::Internal(error.to_string()))?;
    let events = events.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(Json(json!({ "events": events })))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use crate::apiserver::{
        User,
        tests::script::{Server, admin},
    };

    #[tokio::test]
    async fn an_administrator_may_read_it_and_nobody_else() {
        let server = Server::start().await;
        let code = async |user: User| {
            let path = "/wherry/v1/audit?count=5";
            server.response(&user, "GET", path, "", "").await.status()
        };
        assert_eq!(code(admin()).await, StatusCode::OK);
        assert_eq!(code(User::new("bob", &[])).await, StatusCode::FORBIDDEN);
        let node = User::new("system:node:a", &["system:nodes"]);
        assert_eq!(code(node).await, StatusCode::FORBIDDEN);
    }
}
