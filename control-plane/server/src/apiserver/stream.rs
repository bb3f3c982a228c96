//! Streams into Pods: `exec`, `attach`, `portforward`, and the `proxy` subresources.
//!
//! ```text
//!   client ── WebSocket or SPDY ──▶ here ── HTTP/2 through the node's tunnel ──▶ agent ──▶ worker
//! ```
//!
//! What is wrong with a request is answered before the upgrade, as a Status: the Pod is looked up,
//! the rights are checked, and the node has said that it is ready. Only then the connection changes
//! its protocol. No address is ever dialled: a Pod is where its Node's own tunnel leads, whatever
//! its status says, and a node that answers with a redirect or anything else is not followed.
//!
//! A GET that is upgraded needs `create` beside `get`: who may only read must not run commands.
//! Webhooks and policies for the operation CONNECT are asked before anything is opened.

mod command;
mod forward;
mod kubelet;
mod node;
pub mod proxy;
pub mod relay;
mod spdy;
mod websocket;

use super::{
    ApiServer,
    auth::{self, User},
    content,
    errors::ApiError,
    extensions,
    outbound::Stream,
    request::{self, Attributes, Query},
    stored,
};
use axum::{
    body::Body,
    extract::{FromRequestParts as _, ws::WebSocketUpgrade},
    response::Response,
};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use node::NodeStream;
use rand::seq::IndexedRandom as _;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, meta};
use wherry_store::Snapshot;

/// The subresources that are answered here.
const PARTS: [&str; 4] = ["exec", "attach", "portforward", "proxy"];
/// The name of SPDY in `Upgrade`.
const SPDY: &str = "SPDY/3.1";
/// How Kubernetes negotiates what is spoken over SPDY.
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// Whether a request is for this module.
pub fn concerns(asked: &Attributes) -> bool {
    asked.is_resource && asked.group.is_empty() && PARTS.contains(&asked.subresource.as_str())
}

/// Ready Pods of a Service that are tried.
const PODS_TRIED: usize = 3;

/// Why nobody behind a Service was reached.
pub enum Unreached {
    /// As many streams are open for the user as may be.
    Full(ApiError),
    /// None of the Pods that were tried.
    Pods(String),
}

/// A connection to a ready Pod behind a Service's port of this name, counted for the user for whom
/// it is, if it is for one. None: no Pod is ready.
pub async fn to_service(
    api: &ApiServer,
    user: Option<&User>,
    namespace: &str,
    service: &str,
    port: &str,
) -> Option<Result<Box<dyn Stream>, Unreached>> {
    let state = api.store().current();
    let ready = proxy::ready(&state, namespace, service, port);
    let mut failed = None;
    let tried: Vec<_> = ready.sample(&mut rand::rng(), PODS_TRIED).collect();
    for (pod, port) in tried {
        let Ok(place) = find(&state, proxy::pods(), namespace, pod).and_then(|it| Place::of(&it))
        else {
            continue;
        };
        let target = place.target("port", &port.to_string(), &[]);
        let count = match user.map(|user| api.tunnels().count(&place.node, user)).transpose() {
            Ok(count) => count,
            // Another Pod may be on a node to which there are fewer.
            Err(full) => {
                failed = Some(Err(Unreached::Full(full)));
                continue;
            }
        };
        match NodeStream::open(api, &place.node, &target, count).await {
            Ok(node) => return Some(Ok(Box::new(node.into_io()))),
            // Whoever has as many as may be gets there by no other way.
            Err(_) if matches!(failed, Some(Err(Unreached::Full(_)))) => {}
            Err(why) => failed = Some(Err(Unreached::Pods(format!("{pod}: {why}")))),
        }
    }
    failed
}

/// What a request is about, checked.
struct Asked {
    api: ApiServer,
    user: User,
    attributes: Attributes,
    kind: &'static Kind,
    query: Query,
}

/// Answers a request for a stream.
pub async fn serve(api: ApiServer, http: axum::extract::Request) -> Result<Response, ApiError> {
    let missing = || ApiError::Internal("a request went past the guard".to_owned());
    let user = http.extensions().get::<User>().cloned().ok_or_else(missing)?;
    let attributes = http.extensions().get::<Attributes>().cloned().ok_or_else(missing)?;
    let (kind, part) = request::resolve(&attributes, || api.catalog())?;
    let part = part.ok_or(ApiError::NoSuchPath)?;
    let query = Query::parse(http.uri().query().unwrap_or(""));
    let asked = Asked { api, user, attributes, kind, query };
    if part.name != "proxy" && http.method() == Method::GET {
        let create = Attributes { verb: "create".to_owned(), ..asked.attributes.clone() };
        asked.api.authorize(&asked.user, &create)?;
    }
    let warnings = asked.admitted(&asked.options(part.kind)).await?;
    let mut answer = match part.name {
        "proxy" => proxy::proxy(asked, http).await,
        "portforward" => forward::forward(asked, http).await,
        _ => command::command(asked, http).await,
    }?;
    content::warn(answer.headers_mut(), &warnings);
    Ok(answer)
}

/// Where a Pod is.
#[derive(Clone, Debug)]
struct Place {
    node: String,
    namespace: String,
    pod: String,
    uid: String,
}

impl Place {
    fn of(pod: &Object) -> Result<Place, ApiError> {
        let name = meta::name(pod);
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
        if node.is_empty() {
            return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
        }
        Ok(Place {
            node: node.to_owned(),
            namespace: meta::namespace(pod).to_owned(),
            pod: name.to_owned(),
            uid: meta::uid(pod).to_owned(),
        })
    }

    /// Path and query of a stream at the agent.
    fn target(&self, what: &str, part: &str, parameters: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("uid", &self.uid).extend_pairs(parameters);
        let Place { namespace, pod, .. } = self;
        format!("/{what}/{namespace}/{pod}/{part}?{}", query.finish())
    }
}

impl Asked {
    /// What the query and the path say of the stream, as hooks are shown it: PodExecOptions and
    /// their like.
    fn options(&self, kind: &str) -> Object {
        let mut options = json!({"kind": kind, "apiVersion": "v1"});
        let Asked { query, attributes, .. } = self;
        match attributes.subresource.as_str() {
            "proxy" if attributes.rest.is_empty() => {}
            "proxy" => options["path"] = format!("/{}", attributes.rest).into(),
            "portforward" => {
                let ports = query.all("ports").flat_map(|list| list.split(','));
                let ports: Vec<u16> = ports.filter_map(|port| port.trim().parse().ok()).collect();
                if !ports.is_empty() {
                    options["ports"] = json!(ports);
                }
            }
            _ => {
                for flag in ["stdin", "stdout", "stderr", "tty"] {
                    if query.flag(flag) {
                        options[flag] = true.into();
                    }
                }
                if let Some(container) = query.get("container") {
                    options["container"] = container.into();
                }
                let command: Vec<&str> = query.all("command").collect();
                if !command.is_empty() {
                    options["command"] = json!(command);
                }
            }
        }
        options
    }

    /// Asks webhooks and policies whether the stream may be opened; what they say to the client.
    async fn admitted(&self, options: &Object) -> Result<Vec<String>, ApiError> {
        let operation = extensions::Verb::Connect;
        let asked = extensions::Asked {
            api: &self.api,
            user: &self.user,
            kind: self.kind,
            operation,
            subresource: &self.attributes.subresource,
            namespace: &self.attributes.namespace,
            name: self.attributes.name.clone(),
            dry_run: false,
            options: extensions::options(operation, &Map::new()),
        };
        let mut heard = extensions::Heard::default();
        extensions::validate_part(&asked, options, &mut heard).await?;
        Ok(heard.take())
    }

    /// The object that the path names, as it is now.
    async fn object(&self, name: &str) -> Result<Object, ApiError> {
        let state = self.api.latest().await?;
        find(&state, self.kind, &self.attributes.namespace, name)
    }
}

fn find(
    state: &Snapshot,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
) -> Result<Object, ApiError> {
    let entry = state.get(&stored::key(kind, namespace, name));
    let entry = entry.ok_or_else(|| ApiError::not_found(kind, name))?;
    Ok(stored::decode(kind, &entry))
}

/// How a client wants to go on.
enum Upgrade {
    WebSocket(Box<WebSocketUpgrade>),
    Spdy(OnUpgrade),
}

impl Upgrade {
    /// Reads the handshake, and what the client offers to speak, in its order: the extractor of a
    /// WebSocket keeps a sorted set of that, in which what the client likes least may be first.
    async fn of(http: axum::extract::Request) -> Result<(Upgrade, Vec<String>), ApiError> {
        let (mut parts, _) = http.into_parts();
        let wanted = parts.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
        let wanted = wanted.unwrap_or("").to_owned();
        if wanted.eq_ignore_ascii_case("websocket") {
            let offered = auth::subprotocols(&parts.headers).map(str::to_owned).collect();
            let socket = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
            let refused = |error: axum::extract::ws::rejection::WebSocketUpgradeRejection| {
                ApiError::BadRequest(error.to_string())
            };
            return Ok((Upgrade::WebSocket(Box::new(socket.map_err(refused)?)), offered));
        }
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        match upgrade {
            Some(upgrade) if wanted.eq_ignore_ascii_case(SPDY) => {
                let offered = parts.headers.get_all(PROTOCOL_HEADER).iter();
                let offered = offered.filter_map(|value| value.to_str().ok());
                let offered = offered.flat_map(|value| value.split(','));
                let offered = offered.map(|one| one.trim().to_owned()).collect();
                Ok((Upgrade::Spdy(upgrade), offered))
            }
            _ => Err(ApiError::BadRequest("Upgrade request required".to_owned())),
        }
    }
}

/// The first protocol of the client's that is known here.
pub(super) fn choose<T>(
    offered: &[String],
    known: impl Fn(&str) -> Option<T>,
) -> Option<(String, T)> {
    offered.iter().find_map(|name| Some((name.clone(), known(name)?)))
}

/// 101, and what is spoken from now on.
fn switching(protocol: Option<&str>) -> Result<Response, ApiError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
    if let Some(protocol) = protocol {
        let value = HeaderValue::from_str(protocol);
        let value = value.map_err(|_| ApiError::BadRequest("a strange protocol".to_owned()))?;
        headers.insert(PROTOCOL_HEADER, value);
    }
    Ok(response)
}

/// The client and this server have nothing in common.
pub(super) fn no_protocol(offered: &[String], known: &[&str]) -> ApiError {
    ApiError::BadRequest(format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server \
         accepts {known:?}"
    ))
}
