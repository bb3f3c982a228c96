//! `pods/log`: the API server checks what is asked for, the Pod's agent answers through its tunnel.

use super::{Part, read, write::Call};
use crate::apiserver::{
    ApiServer,
    errors::{self, ApiError},
    request::{Query, Request},
    tunnel::TunnelError,
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use wherry_resources::{
    Object, meta,
    validate::{FieldError, Reason},
};

/// Parameters that are passed on to the agent.
const FORWARDED: [&str; 7] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "timestamps"];
/// An agent's refusal is one sentence.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Answers GET of a Pod's log.
pub async fn logs(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    check(&request.query, request.name())?;
    let snapshot = read::snapshot(api, read::Wanted::Newest).await?;
    let (pod, _) = Call::of(api, request, Part::Main, false).find(&snapshot, request.name())?;
    let previous = request.query.flag("previous");
    let container = container(&pod, request.query.get("container"), previous)?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    let target = target(&pod, &container, &request.query);
    let answer = api.tunnels().get(node, &target).await.map_err(unreachable)?;
    match answer.status() {
        StatusCode::OK => {
            let mut response = Response::new(Body::new(answer.into_body()));
            let plain = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            Ok(response)
        }
        code if code.is_client_error() => {
            let text = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
            let text = text.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
            Err(ApiError::BadRequest(text.unwrap_or_else(|_| "the node refused".to_owned())))
        }
        // Whatever else an agent may answer is not shown to clients, least of all a redirect.
        code => Err(ApiError::Internal(format!("node {node:?} answered {}", code.as_u16()))),
    }
}

fn unreachable(error: TunnelError) -> ApiError {
    ApiError::Unavailable(error.to_string())
}

fn target(pod: &Object, container: &str, query: &Query) -> String {
    let mut parameters = form_urlencoded::Serializer::new(String::new());
    for name in FORWARDED {
        let switch = matches!(name, "follow" | "previous" | "timestamps");
        if switch && query.flag(name) {
            parameters.append_pair(name, "true");
        } else if let Some(value) = query.get(name).filter(|_| !switch) {
            parameters.append_pair(name, value);
        }
    }
    let (namespace, name) = (meta::namespace(pod), meta::name(pod));
    format!("/logs/{namespace}/{name}/{container}?{}", parameters.finish())
}

/// Checks the parameters: numbers in range, one beginning.
fn check(query: &Query, name: &str) -> Result<(), ApiError> {
    let mut wrong: Vec<FieldError> = Vec::new();
    for (key, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = query.number(key)?.filter(|value| *value < least) {
            let why = format!("Invalid value: {value}: must be greater than or equal to {least}");
            wrong.push(errors::field(Reason::Invalid, key, why));
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        let why = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified";
        wrong.push(errors::field(Reason::Forbidden, "", why.to_owned()));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let (group, kind) = (String::new(), "PodLogOptions".to_owned());
    Err(ApiError::Invalid { group, kind, name: name.to_owned(), errors: wrong })
}

/// Chooses the container that is asked for, or the only one: pure.
pub fn choose(pod: &Object, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<&str> {
        let containers = pod["spec"].get(list).and_then(Value::as_array).into_iter().flatten();
        containers.filter_map(|container| container.get("name")?.as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let name = meta::name(pod);
    let chosen = match (asked, main.as_slice()) {
        (Some(asked), _) => asked,
        (None, [only]) => only,
        (None, _) => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            return Err(ApiError::BadRequest(text));
        }
    };
    let ephemeral = names("ephemeralContainers");
    if ![&main, &init, &ephemeral].iter().any(|list| list.contains(&chosen)) {
        return Err(ApiError::BadRequest(format!(
            "container {chosen} is not valid for pod {name}"
        )));
    }
    Ok(chosen.to_owned())
}

/// Chooses the container and makes sure that it has a log: pure.
fn container(pod: &Object, asked: Option<&str>, previous: bool) -> Result<String, ApiError> {
    let chosen = choose(pod, asked)?;
    let name = meta::name(pod);
    let status = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .filter_map(|list| pod["status"].get(list)?.as_array())
        .flatten()
        .find(|status| status.get("name").and_then(Value::as_str) == Some(&chosen));
    let ended = status.is_some_and(|status| status.pointer("/lastState/terminated").is_some());
    if previous && !ended {
        return Err(ApiError::BadRequest(format!(
            "previous terminated container {chosen:?} in pod {name:?} not found"
        )));
    }
    let state = |word: &str| status.and_then(|status| status["state"].get(word));
    if !ended && state("running").is_none() && state("terminated").is_none() {
        let reason = state("waiting").and_then(|waiting| waiting.get("reason")?.as_str());
        let reason = reason.unwrap_or("ContainerCreating");
        return Err(ApiError::BadRequest(format!(
            "container {chosen:?} in pod {name:?} is waiting to start: {reason}"
        )));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_chosen() {
        let of = |containers: &[&str], state: Value, asked: Option<&str>, previous| {
            let list: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": list},
                "status": {"containerStatuses": [{"name": "a", "state": state}]}});
            container(&pod, asked, previous).unwrap_or_else(|error| error.to_string())
        };
        let running = json!({"running": {}});
        assert_eq!(of(&["a"], running.clone(), None, false), "a");
        assert_eq!(
            of(&["a", "b"], running.clone(), None, false),
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(
            of(&["a"], running.clone(), Some("x"), false),
            "container x is not valid for pod p"
        );
        assert_eq!(
            of(&["a"], json!({"waiting": {"reason": "Compiling"}}), None, false),
            "container \"a\" in pod \"p\" is waiting to start: Compiling"
        );
        assert_eq!(
            of(&["a"], running, None, true),
            "previous terminated container \"a\" in pod \"p\" not found"
        );
    }
}
