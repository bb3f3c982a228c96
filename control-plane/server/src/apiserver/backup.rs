//! `GET /wherry/v1/backup`: a backup of the cluster while it runs, streamed.
//!
//! Only administrators may ask for it, since no rule but theirs names the path. With
//! `?keyring=include` the keys of encryption at rest go into the file as well; that gives away
//! nothing that an administrator could not read through the API. The authorities' keys never leave
//! by this way.
//!
//! The backup is made piece by piece as the client takes it, from a state that is held in memory
//! until then; [`BACKUPS_AT_ONCE`] bounds how many of these there are.

use super::{ApiServer, errors::ApiError, request::Query};
use axum::{
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use http::header;

/// Backups on their way: each holds back the memory of one past state.
pub const BACKUPS_AT_ONCE: usize = 2;

/// When to ask again, if too many are on their way.
const RETRY_AFTER_SECONDS: u32 = 10;

/// Answers with the file.
pub async fn save(
    State(api): State<ApiServer>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let with_keyring = match Query::parse(query.as_deref().unwrap_or("")).get("keyring") {
        None => false,
        Some("include") => true,
        Some(other) => {
            let message = format!("keyring={other:?} is not known; leave it out, or say include");
            return Err(ApiError::BadRequest(message));
        }
    };
    let permit = api.backups().clone().try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::TooManyRequests {
        message: format!("{BACKUPS_AT_ONCE} backups are being made already, try again later"),
        causes: Vec::new(),
        retry_after_seconds: RETRY_AFTER_SECONDS,
    })?;
    let backup = api.store().backup(with_keyring).await;
    let backup = backup.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    let revision = backup.head().revision;
    tracing::info!(revision, with_keyring, "backup asked for");
    let frames = futures::stream::iter(backup).map(move |frame| {
        // Held until the last frame is out or the client is gone.
        let _ = &permit;
        frame.inspect_err(|error| tracing::error!(%error, "backup failed"))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(frames)).into_response())
}

#[cfg(test)]
mod tests {
    use crate::apiserver::{
        User,
        tests::script::{Server, admin},
    };
    use axum::response::Response;
    use http::StatusCode;
    use http_body_util::BodyExt as _;
    use wherry_store::{BackupContent, BackupError, BackupObject};

    const PATH: &str = "/wherry/v1/backup";

    async fn content(response: Response) -> BackupContent {
        assert_eq!(response.status(), StatusCode::OK);
        let file = response.into_body().collect().await.expect("the body ends").to_bytes();
        let visit = |_: &BackupObject, _| Ok::<(), BackupError>(());
        wherry_store::read_backup(&*file, None, visit).expect("it is sound")
    }

    #[tokio::test]
    async fn an_administrator_gets_it_and_nobody_else() {
        let server = Server::start().await;
        let answer = server.response(&admin(), "GET", PATH, "", "").await;
        let content = content(answer).await;
        assert_eq!(content.head.objects as usize, server.api.store().current().len());
        assert_eq!(content.head.revision, server.api.store().current().revision());
        let others = [
            User::anonymous(),
            User::new("bob", &[]),
            User::new("system:node:a", &["system:nodes"]),
        ];
        for other in others {
            let answer = server.response(&other, "GET", PATH, "", "").await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{}", other.name);
        }
        let unknown = format!("{PATH}?keyring=some");
        let answer = server.response(&admin(), "GET", &unknown, "", "").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }

    /// It is the state of the moment it was asked for, however slowly it is taken.
    #[tokio::test]
    async fn writes_go_on_and_do_not_show() {
        let server = Server::start().await;
        let before = server.api.store().current();
        let answer = server.response(&admin(), "GET", PATH, "", "").await;
        let body = "{\"metadata\":{\"name\":\"later\"}}";
        server.ok("POST", "/api/v1/namespaces", body).await;
        let content = content(answer).await;
        assert_eq!(content.head.revision, before.revision());
        assert_eq!(content.head.objects as usize, before.len());
    }

    #[tokio::test]
    async fn a_few_at_a_time() {
        let server = Server::start().await;
        let first = server.response(&admin(), "GET", PATH, "", "").await;
        let second = server.response(&admin(), "GET", PATH, "", "").await;
        let third = server.response(&admin(), "GET", PATH, "", "").await;
        assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
        drop(first);
        let fourth = server.response(&admin(), "GET", PATH, "", "").await;
        content(fourth).await;
        content(second).await;
    }
}
