//! What a page asks by a request of its own: who asks, and the query. Whoever has not signed in is
//! refused before that is looked at.

use super::super::{
    auth::{self, User},
    errors::ApiError,
    request::Query,
};
use axum::extract::FromRequestParts;
use http::request::Parts;

/// Taken out of a request in front of its handler.
pub struct Question {
    pub user: User,
    pub query: Query,
}

impl Question {
    /// A parameter that is a list with commas between; without it nothing.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let text = self.query.get(name).unwrap_or("");
        text.split(',').filter(|one| !one.is_empty()).collect()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Question {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Question, ApiError> {
        // The guard has left it there.
        let user = parts.extensions.get::<User>();
        let user = user.filter(|user| !user.is_in(auth::UNAUTHENTICATED)).cloned();
        let query = Query::parse(parts.uri.query().unwrap_or(""));
        Ok(Question { user: user.ok_or(ApiError::Unauthorized)?, query })
    }
}

#[cfg(test)]
mod tests {
    use crate::apiserver::{User, tests::script::Server};

    #[tokio::test]
    async fn whoever_has_not_signed_in_is_told_nothing() {
        let server = Server::start().await;
        for page in ["history", "past", "why", "record", "requests", "world", "lately", "traffic"] {
            let path = format!("/ui/{page}");
            let response = server.response(&User::anonymous(), "GET", &path, "", "").await;
            assert_eq!(response.status(), 401, "{path}");
        }
    }
}
