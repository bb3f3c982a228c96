//! `/ui/why`: why a Pod is on its node, or on none, as `wherry why` tells it.
//!
//! The scheduler's own code decides once more over the objects that the person may read: they are
//! read through the ordinary API as that person, so a missing right is an answer, not a leak.

use super::super::{ApiServer, errors::ApiError};
use super::question::Question;
use crate::scheduler::why::{Situation, why};
use axum::extract::State;
use http::StatusCode;
use kube::api::{Api, ListParams};

/// Answers `GET /ui/why?namespace=shop&name=cart-1` with text.
pub async fn explain(
    State(api): State<ApiServer>,
    Question { user, query }: Question,
) -> Result<String, ApiError> {
    let (Some(namespace), Some(name)) = (query.get("namespace"), query.get("name")) else {
        return Err(ApiError::BadRequest("the query must name a namespace and a name".to_owned()));
    };
    let client = api.client(user);
    let pods = Api::namespaced(client.clone(), namespace);
    let pod = pods.get(name).await.map_err(relayed)?;
    let situation = Situation {
        nodes: list(&client).await?,
        pods: list(&client).await?,
        namespaces: list(&client).await?,
        budgets: list(&client).await?,
        claims: list(&client).await?,
        volumes: list(&client).await?,
        classes: list(&client).await?,
    };
    Ok(api.fairness().compute(|| why(&situation, &pod)).await)
}

async fn list<K>(client: &kube::Client) -> Result<Vec<K>, ApiError>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(list.map_err(relayed)?.items)
}

/// What the API answered is what the person is told.
pub(super) fn relayed(error: kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => ApiError::Relayed {
            code: StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            reason: status.reason.clone(),
            message: status.message.clone(),
            details: None,
        },
        other => ApiError::Internal(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use crate::apiserver::{
        User,
        tests::script::{Server, admin},
    };
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_pod_without_nodes_is_explained_to_who_may_read_it() {
        let server = Server::start().await;
        let pod = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"x"}]}}"#;
        server.ok("POST", "/api/v1/namespaces/default/pods", pod).await;
        let ask = async |user: User| {
            let path = "/ui/why?namespace=default&name=p";
            let response = server.response(&user, "GET", path, "", "").await;
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
            (code, String::from_utf8_lossy(&body).into_owned())
        };
        let (code, text) = ask(admin()).await;
        assert_eq!(code, 200, "{text}");
        assert!(text.contains("node"), "{text}");
        let (code, text) = ask(User::new("anna", &[])).await;
        assert_eq!(code, 403, "{text}");
        assert!(text.contains("cannot get resource"), "{text}");
    }
}
