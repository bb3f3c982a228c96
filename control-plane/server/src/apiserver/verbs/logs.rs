//! `pods/log`: the API server checks what is asked for, the Pod's agent answers through its tunnel.
//! A browser may take a log over a WebSocket: then each piece is a message.

use super::{Part, read, write::Call};
use crate::apiserver::{
    ApiServer, auth,
    errors::{self, ApiError},
    request::{Query, Request},
    stream,
    tunnel::TunnelError,
};
use axum::{
    body::Body,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use wherry_resources::{
    Object, meta,
    validate::{FieldError, Reason},
};

/// Parameters that are passed on to the agent.
const FORWARDED: [&str; 7] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "timestamps"];
/// An agent's refusal is one sentence.
const REFUSAL_BYTES_MAX: usize = 4096;

/// What may be spoken over a WebSocket, and whether its messages are base64 in text frames. Who
/// names nothing gets binary frames.
const SUBPROTOCOLS: [(&str, bool); 2] = [("binary.k8s.io", false), ("base64.binary.k8s.io", true)];

/// Answers GET of a Pod's log, over a WebSocket if the client asked for one.
pub async fn logs(
    api: &ApiServer,
    request: &Request,
    socket: Option<WebSocketUpgrade>,
) -> Result<Response, ApiError> {
    check(&request.query, request.name())?;
    let socket = socket.map(|socket| framed(socket, &request.headers)).transpose()?;
    let snapshot = read::snapshot(api, read::Wanted::Newest).await?;
    let (pod, _) = Call::of(api, request, Part::Main, false).find(&snapshot, request.name())?;
    let previous = request.query.flag("previous");
    let container = container(&pod, request.query.get("container"), previous)?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    let target = target(&pod, &container, &request.query);
    let count = api.tunnels().count(node, &request.user)?;
    let answer = api.tunnels().get(node, &target).await.map_err(unreachable)?;
    match answer.status() {
        StatusCode::OK => Ok(match socket {
            Some((socket, base64)) => {
                let shutdown = api.shutdown().clone();
                let log = count.body(answer.into_body());
                socket.on_upgrade(move |socket| over(socket, log, base64, shutdown))
            }
            None => {
                let mut response = Response::new(count.body(answer.into_body()));
                let plain = HeaderValue::from_static("text/plain");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                response
            }
        }),
        code if code.is_client_error() => {
            let text = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
            let text = text.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
            Err(ApiError::BadRequest(text.unwrap_or_else(|_| "the node refused".to_owned())))
        }
        // Whatever else an agent may answer is not shown to clients, least of all a redirect.
        code => Err(ApiError::Internal(format!("node {node:?} answered {}", code.as_u16()))),
    }
}

/// Chooses what is spoken over a WebSocket; whether its messages are base64.
fn framed(
    socket: WebSocketUpgrade,
    headers: &HeaderMap,
) -> Result<(WebSocketUpgrade, bool), ApiError> {
    let offered: Vec<String> = auth::subprotocols(headers).map(str::to_owned).collect();
    let known = |name: &str| {
        let found = SUBPROTOCOLS.iter().find(|(own, _)| *own == name);
        found.map(|(_, base64)| *base64)
    };
    let chosen = stream::choose(&offered, known);
    if chosen.is_none() && !offered.is_empty() {
        return Err(stream::no_protocol(&offered, &SUBPROTOCOLS.map(|(name, _)| name)));
    }
    let (name, base64) = chosen.unzip();
    Ok((socket.protocols(name), base64.unwrap_or(false)))
}

/// Sends each piece of a log as a message, until the log ends or one side has had enough.
async fn over(mut socket: WebSocket, mut log: Body, base64: bool, shutdown: CancellationToken) {
    let message = |bytes: Bytes| match base64 {
        true => Message::Text(STANDARD.encode(bytes).into()),
        false => Message::Binary(bytes),
    };
    // Clients take an empty message as the sign that the log is there.
    if socket.send(message(Bytes::new())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            frame = log.frame() => {
                let Some(Ok(frame)) = frame else { break };
                let Ok(bytes) = frame.into_data() else { continue };
                if socket.send(message(bytes)).await.is_err() {
                    return;
                }
            }
            heard = socket.recv() => {
                // Clients have nothing to say but that they go; pings answer themselves.
                if matches!(heard, None | Some(Err(_) | Ok(Message::Close(_)))) {
                    return;
                }
            }
            () = shutdown.cancelled() => break,
        }
    }
    // The client may be gone already; then there is nobody to tell.
    let _ = socket.send(Message::Close(None)).await;
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
    let bounds = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    for (key, least, why) in bounds {
        if let Some(value) = query.number(key)?.filter(|value| *value < least) {
            let why = format!("Invalid value: {value}: {why}");
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
