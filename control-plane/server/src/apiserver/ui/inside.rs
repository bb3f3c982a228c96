//! `/ui/record`, `/ui/requests` and `/ui/world`: what only the worker of a Pod knows, fetched through
//! its node's tunnel: what its requests were like, each of them as it ends, and what its image
//! wants and gives.
//!
//! A record and requests name paths that clients asked for, as logs do, so they are for those who
//! may read the Pod's log; a world says no more than the image, so it is for those who may read the
//! Pod.

use super::{
    super::{
        ApiServer,
        errors::ApiError,
        request::{Attributes, Query},
    },
    question::Question,
    why::relayed,
};
use axum::{Json, extract::State, response::Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::{Value, json};

/// What a worker may say: a record of a day of 20 containers.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// An agent's refusal is one sentence.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Answers `GET /ui/record?namespace=shop&name=cart-1`.
pub async fn record(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Json<Value>, ApiError> {
    let (place, _) = find(&api, &question, Some("log")).await?;
    let Place { node, namespace, name, uid } = &place;
    let told = ask(&api, node, &format!("/record/{namespace}/{name}?uid={uid}")).await?;
    Ok(Json(json!({ "node": node, "containers": told })))
}

/// Answers `GET /ui/world?namespace=shop&name=cart-1&container=cart`.
pub async fn world(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Json<Value>, ApiError> {
    let (place, pod) = find(&api, &question, None).await?;
    let container = container(&pod, &place, &question.query)?;
    let Place { node, namespace, name, uid } = &place;
    let target = format!("/world/{namespace}/{name}/{container}?uid={uid}");
    Ok(Json(json!({ "node": node, "world": ask(&api, node, &target).await? })))
}

/// Answers `GET /ui/requests?namespace=shop&name=cart-1&container=cart&since=now`: a line of JSON
/// for each request as it ends (`node/src/protocol/requests.rs`), for as long as somebody reads.
pub async fn requests(
    State(api): State<ApiServer>,
    question: Question,
) -> Result<Response, ApiError> {
    let (place, pod) = find(&api, &question, Some("log")).await?;
    let container = container(&pod, &place, &question.query)?;
    let Place { node, namespace, name, uid } = &place;
    let passed_on = form_urlencoded::Serializer::new(String::new())
        .append_pair("uid", uid)
        .append_pair("since", question.query.get("since").unwrap_or("now"))
        .finish();
    let target = format!("/requests/{namespace}/{name}/{container}?{passed_on}");
    let count = api.tunnels().count(node, &question.user)?;
    let mut response = Response::new(count.body(answer(&api, node, &target).await?));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The container that a query names, if the Pod has it.
fn container(pod: &Pod, place: &Place, query: &Query) -> Result<String, ApiError> {
    let wanted = query.get("container").unwrap_or("");
    let spec = pod.spec.iter();
    let mut names =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let found = names.find(|it| it.name == wanted).map(|it| it.name.clone());
    found.ok_or_else(|| {
        let why = format!("container {wanted:?} is not valid for pod {}", place.name);
        ApiError::BadRequest(why)
    })
}

/// Where a Pod is. Its names are those that the API has accepted: they stand in a path as they are.
struct Place {
    node: String,
    namespace: String,
    name: String,
    uid: String,
}

/// Finds a Pod as the person who asks, who needs `get` of `part` of it as well.
async fn find(
    api: &ApiServer,
    Question { user, query }: &Question,
    part: Option<&str>,
) -> Result<(Place, Pod), ApiError> {
    let (Some(namespace), Some(name)) = (query.get("namespace"), query.get("name")) else {
        return Err(ApiError::BadRequest("the query must name a namespace and a name".to_owned()));
    };
    if let Some(part) = part {
        let read = Attributes {
            verb: "get".to_owned(),
            is_resource: true,
            version: "v1".to_owned(),
            namespace: namespace.to_owned(),
            resource: "pods".to_owned(),
            subresource: part.to_owned(),
            name: name.to_owned(),
            path: "/ui/record".to_owned(),
            ..Attributes::default()
        };
        api.authorize(user, &read)?;
    }
    let pods: Api<Pod> = Api::namespaced(api.client(user.clone()), namespace);
    let pod = pods.get(name).await.map_err(relayed)?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let node = node.ok_or_else(|| {
        missing(format!("pod {name} has no node yet, so nothing of it has been measured"))
    })?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Ok((Place { node, namespace, name, uid }, pod))
}

fn missing(message: String) -> ApiError {
    let (code, reason) = (StatusCode::NOT_FOUND, "NotFound".to_owned());
    ApiError::Relayed { code, reason, message, details: None }
}

/// Asks a node's agent for JSON.
pub(super) async fn ask(api: &ApiServer, node: &str, target: &str) -> Result<Value, ApiError> {
    let away = ApiError::Unavailable;
    let body = answer(api, node, target).await?;
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| away(format!("node {node:?}: {error}")))?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| away(format!("node {node:?} answered what is no JSON: {error}")))
}

/// What a node's agent answers, if it does not refuse.
async fn answer(api: &ApiServer, node: &str, target: &str) -> Result<Incoming, ApiError> {
    let away = ApiError::Unavailable;
    let answer = api.tunnels().get(node, target).await.map_err(|it| away(it.to_string()))?;
    let status = answer.status();
    if status != StatusCode::OK {
        let text = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim().to_owned());
        let text = text.unwrap_or_default();
        return Err(match status {
            StatusCode::NOT_FOUND => missing(text),
            // Whatever else an agent may answer is not shown to clients, least of all a redirect.
            _ => away(format!("node {node:?} answered {}: {text}", status.as_u16())),
        });
    }
    Ok(answer.into_body())
}

#[cfg(test)]
mod tests {
    use crate::apiserver::{
        User,
        tests::script::{Server, admin},
    };

    #[tokio::test]
    async fn only_who_may_read_the_log_is_told_and_every_reason_is_named() {
        let server = Server::start().await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = |name: &str, node: &str| {
            format!(
                r#"{{"metadata":{{"name":"{name}"}},
                    "spec":{{{node}"containers":[{{"name":"c","image":"x"}}]}}}}"#
            )
        };
        server.ok("POST", pods, &pod("waits", "")).await;
        server.ok("POST", pods, &pod("runs", r#""nodeName":"east","#)).await;
        let ask = async |user: User, path: &str| {
            let response = server.response(&user, "GET", path, "", "").await;
            let code = response.status().as_u16();
            (code, crate::apiserver::tests::script::text(response).await)
        };
        let record = "/ui/record?namespace=default&name=";
        let (code, text) = ask(admin(), &format!("{record}waits")).await;
        assert!(code == 404 && text.contains("has no node yet"), "{code} {text}");
        let (code, text) = ask(admin(), &format!("{record}runs")).await;
        assert!(code == 503 && text.contains("is not connected"), "{code} {text}");
        let (code, text) = ask(User::new("anna", &[]), &format!("{record}runs")).await;
        assert!(code == 403 && text.contains("pods/log"), "{code} {text}");
        for (user, container, code) in
            [(admin(), "c", 503), (admin(), "other", 400), (User::new("anna", &[]), "c", 403)]
        {
            let path = format!("/ui/requests?namespace=default&name=runs&container={container}");
            assert_eq!(ask(user, &path).await.0, code, "{container}");
        }
        let world = "/ui/world?namespace=default&name=runs&container=";
        let (code, text) = ask(admin(), &format!("{world}other")).await;
        assert!(code == 400 && text.contains("is not valid for pod runs"), "{code} {text}");
        let (code, text) = ask(User::new("anna", &[]), &format!("{world}c")).await;
        assert!(code == 403 && text.contains("cannot get resource"), "{code} {text}");
    }
}
