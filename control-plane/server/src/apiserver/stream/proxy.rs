//! `proxy`: HTTP through the API server, to a Pod, a Service, or a node's agent.
//!
//! A Pod's port is reached like a forwarded one: a byte stream through the node's tunnel, on which
//! HTTP/1.1 is spoken. So upgrades pass as they are, and each request has a connection of its own,
//! which is never used again. A Service leads to one of its ready Pods; an endpoint that is no Pod
//! of this cluster is not reached. Of a node only the paths of [`NODE_PATHS`] are answered.
//!
//! What comes back is a guest's word under this server's name: cookies of the dashboard do not go
//! there, and to a browser that is signed in to the dashboard it is sandboxed.

use super::{Asked, Place, find, kubelet, node::NodeStream};
use crate::apiserver::{
    ApiServer, content, errors::ApiError, request::Attributes, stored, tunnel::StreamCount, ui,
};
use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use wherry_resources::{Kind, Object, meta};
use wherry_store::Snapshot;

/// From the request to the head of the answer; Kubernetes gives a proxied request as long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// What a node's agent may answer.
const NODE_ANSWER_BYTES_MAX: usize = 16 << 20;
/// What may be read of a node, and the subresource whose `get` it needs beside `proxy`.
const NODE_PATHS: [(&str, &str); 5] = [
    ("healthz", "proxy"),
    ("metrics", "metrics"),
    ("metrics/resource", "metrics"),
    ("pods", "proxy"),
    ("stats/summary", "stats"),
];
/// Headers between two neighbours.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// `[scheme:]name[:port]`
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Named<'a>> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme @ ("" | "http" | "https"), name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (!name.is_empty()).then_some(Named { scheme, name, port })
    }
}

/// Answers a request for a proxy.
pub(super) async fn proxy(
    asked: Asked,
    http: axum::extract::Request,
) -> Result<Response, ApiError> {
    let text = asked.attributes.name.clone();
    let wrong = || ApiError::BadRequest(format!("invalid {} request {text:?}", asked.kind.plural));
    let named = Named::parse(&text).ok_or_else(wrong)?;
    if named.scheme == "https" {
        let why = "within the cluster traffic is encrypted by Wherry: name no scheme, or http";
        return Err(ApiError::BadRequest(why.to_owned()));
    }
    if asked.kind.plural == "nodes" {
        // A node that was taken over must not get at its visitor's session either.
        let signed_in = ui::is_signed_in(http.headers());
        let mut answer = of_node(&asked, &named, http.method()).await?;
        if signed_in {
            sandbox(answer.headers_mut());
        }
        return Ok(answer);
    }
    let path = http.uri().path();
    let (prefix, rest) = split_path(path).ok_or(ApiError::NoSuchPath)?;
    if rest.is_empty() && !http.headers().contains_key(header::UPGRADE) {
        // Relative links in the answer need the slash.
        let query = http.uri().query().map_or(String::new(), |query| format!("?{query}"));
        return redirect(&format!("{path}/{query}"));
    }
    let state = asked.api.latest().await?;
    let namespace = &asked.attributes.namespace;
    let (place, port) = match asked.kind.plural {
        "services" => behind(&state, asked.kind, namespace, &named)?,
        _ => {
            let pod = find(&state, asked.kind, namespace, named.name)?;
            (Place::of(&pod)?, pod_port(&pod, named.port)?)
        }
    };
    let prefix = prefix.to_owned();
    let count = asked.api.tunnels().count(&place.node, &asked.user)?;
    send(&asked.api, (&place, port), count, &prefix, http).await
}

/// What stands before and behind `/proxy` in a path, as it was sent.
fn split_path(path: &str) -> Option<(&str, &str)> {
    // /api/v1/namespaces/NS/pods/NAME/proxy: the seventh segment.
    let mut at = 0;
    for _ in 0..7 {
        at += 1 + path.get(at + 1..)?.find('/').unwrap_or(path.len() - at - 1);
    }
    let (prefix, rest) = path.split_at_checked(at)?;
    prefix.ends_with("/proxy").then_some((prefix, rest))
}

fn redirect(to: &str) -> Result<Response, ApiError> {
    let to = HeaderValue::from_str(to).map_err(|_| ApiError::NoSuchPath)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

/// The port of a Pod that is meant: a number, a name, or the first that it declares.
fn pod_port(pod: &Object, port: &str) -> Result<u16, ApiError> {
    let containers = pod["spec"].get("containers").and_then(Value::as_array).into_iter().flatten();
    let mut ports = containers.flat_map(|it| it.get("ports").and_then(Value::as_array)).flatten();
    let number = |port: &Value| port.get("containerPort")?.as_u64()?.try_into().ok();
    let found = match port {
        "" => ports.next().and_then(number).or(Some(80)),
        text => text.parse().ok().filter(|port| *port > 0).or_else(|| {
            let named = |port: &&Value| port.get("name").and_then(Value::as_str) == Some(text);
            ports.find(named).and_then(number)
        }),
    };
    found.ok_or_else(|| {
        ApiError::BadRequest(format!("pod {:?} has no port {port:?}", meta::name(pod)))
    })
}

/// A ready Pod behind a Service, and its port.
fn behind(
    state: &Snapshot,
    kind: &'static Kind,
    namespace: &str,
    named: &Named<'_>,
) -> Result<(Place, u16), ApiError> {
    let service = find(state, kind, namespace, named.name)?;
    let nobody = || unavailable(format!("no endpoints available for service {:?}", named.name));
    let port = service_port(&service, named.port).ok_or_else(nobody)?;
    let ready = ready(state, namespace, named.name, &port);
    let (pod, port) = ready.choose(&mut rand::rng()).ok_or_else(nobody)?;
    let pod = find(state, pods(), namespace, pod).map_err(|_| nobody())?;
    Ok((Place::of(&pod)?, *port))
}

/// The kind of Pods.
pub(super) fn pods() -> &'static Kind {
    wherry_resources::kind("", "v1", "pods").expect("Pod is a built-in kind")
}

/// The ready Pods behind a Service's port of this name, each with its number there.
pub(super) fn ready(
    state: &Snapshot,
    namespace: &str,
    service: &str,
    port: &str,
) -> Vec<(String, u16)> {
    let slices = wherry_resources::kind("discovery.k8s.io", "v1", "endpointslices");
    let slices = slices.expect("EndpointSlice is a built-in kind");
    let mut ready = Vec::new();
    for (_, entry) in state.range(&stored::prefix(slices, Some(namespace)), None) {
        let slice = stored::decode(slices, &entry);
        let of = meta::labels(&slice).find(|(key, _)| *key == "kubernetes.io/service-name");
        if of.is_some_and(|(_, name)| name == service) {
            ready.extend(ready_pods(&slice, port));
        }
    }
    ready
}

/// 503 without a word on trying again: whether that helps only the Pod knows.
fn unavailable(message: String) -> ApiError {
    let (code, reason) = (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable".to_owned());
    ApiError::Relayed { code, reason, message, details: None }
}

/// Name of the Service's port that is meant by a name or number, or its only one.
fn service_port(service: &Object, port: &str) -> Option<String> {
    let ports = service["spec"].get("ports")?.as_array()?;
    let name = |port: &Value| port.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let number = |one: &Value| one.get("port").and_then(Value::as_u64);
    match port {
        "" if ports.len() == 1 => ports.first().map(name),
        "" => ports.iter().map(name).find(String::is_empty),
        text => {
            let wanted = text.parse().ok();
            let found = ports.iter().find(|one| name(one) == text);
            let found = found
                .or_else(|| ports.iter().find(|one| wanted.is_some() && number(one) == wanted));
            found.map(name)
        }
    }
}

/// The Pods of a slice that are ready, with the number of the named port.
fn ready_pods(slice: &Object, port: &str) -> Vec<(String, u16)> {
    let ports = slice.get("ports").and_then(Value::as_array).into_iter().flatten();
    let name = |port: &Value| port.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let mut numbers = ports.filter(|one| name(one) == port).filter_map(|one| {
        one.get("port").and_then(Value::as_u64).and_then(|number| number.try_into().ok())
    });
    let Some(number) = numbers.next() else {
        return Vec::new();
    };
    let endpoints = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    let ready = |one: &&Value| one.pointer("/conditions/ready") != Some(&Value::Bool(false));
    let pod = |one: &Value| {
        let target = one.get("targetRef")?;
        let is_pod = target.get("kind").and_then(Value::as_str) == Some("Pod");
        let name = target.get("name").and_then(Value::as_str).filter(|_| is_pod)?;
        Some((name.to_owned(), number))
    };
    endpoints.filter(ready).filter_map(pod).collect()
}

/// Sends a request to a port of a Pod and returns its answer.
async fn send(
    api: &ApiServer,
    (place, port): (&Place, u16),
    count: StreamCount,
    prefix: &str,
    http: axum::extract::Request,
) -> Result<Response, ApiError> {
    let target = place.target("port", &port.to_string(), &[]);
    let failed = |why: &dyn std::fmt::Display| {
        unavailable(format!("error trying to reach pod {:?}: {why}", place.pod))
    };
    let node = NodeStream::open(api, &place.node, &target, Some(count)).await;
    let node = node.map_err(|why| failed(&why))?;
    let (mut parts, body) = http.into_parts();
    let signed_in = ui::is_signed_in(&parts.headers);
    let upgrade = Wanted::take(&mut parts);
    let host = format!("{}:{port}", place.pod);
    outgoing(&mut parts, prefix, &host, upgrade.as_ref())?;
    let request = http::Request::from_parts(parts, body);
    let answer = exchange(api, node.into_io(), request, upgrade);
    match tokio::time::timeout(HEAD_TIMEOUT, answer).await {
        Ok(Ok(Answer::Switched(response))) => Ok(response),
        Ok(Ok(Answer::Ordinary(answer))) => Ok(incoming(answer, prefix, &host, signed_in)),
        Ok(Err(why)) => Err(failed(&why)),
        Err(_) => Err(failed(&"it did not answer in time")),
    }
}

/// A change of protocol that a client asks for.
pub struct Wanted {
    ours: OnUpgrade,
    protocol: HeaderValue,
}

impl Wanted {
    /// Takes it out of a request.
    pub fn take(parts: &mut Parts) -> Option<Wanted> {
        let ours = parts.extensions.remove::<OnUpgrade>()?;
        let protocol = parts.headers.get(header::UPGRADE)?.clone();
        Some(Wanted { ours, protocol })
    }

    /// Asks for it at the next hop, too.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }
}

/// What came back.
pub enum Answer {
    /// The protocol has changed; from here on bytes are passed on.
    Switched(Response),
    Ordinary(http::Response<Incoming>),
}

/// Sends one request over a connection that is used for nothing else.
pub async fn exchange(
    api: &ApiServer,
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Body>,
    upgrade: Option<Wanted>,
) -> Result<Answer, String> {
    let made = http1::handshake(TokioIo::new(connection)).await;
    let (mut sender, connection) = made.map_err(|error| error.to_string())?;
    api.tasks().spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended early");
        }
    });
    let answer = sender.send_request(request).await;
    let mut answer = answer.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::Ordinary(answer));
    }
    let Some(Wanted { ours, .. }) = upgrade else {
        return Err("it changed the protocol without having been asked".to_owned());
    };
    let theirs = hyper::upgrade::on(&mut answer);
    api.tasks().spawn(join(ours, theirs, api.shutdown().clone()));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(Answer::Switched(response))
}

/// Passes the bytes of two upgraded connections on until both have ended.
async fn join(ours: OnUpgrade, theirs: OnUpgrade, shutdown: tokio_util::sync::CancellationToken) {
    let both = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs).map_err(std::io::Error::other)?;
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        tokio::io::copy_bidirectional(&mut ours, &mut theirs).await
    };
    tokio::select! {
        copied = both => if let Err(error) = copied {
            tracing::debug!(%error, "an upgraded connection ended early");
        },
        () = shutdown.cancelled() => {}
    }
}

/// Makes a client's request the Pod's.
fn outgoing(
    parts: &mut Parts,
    prefix: &str,
    host: &str,
    upgrade: Option<&Wanted>,
) -> Result<(), ApiError> {
    let whole = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let rest = whole.strip_prefix(prefix).unwrap_or("/");
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let strange = |_| ApiError::BadRequest("the path is not understood".to_owned());
    let uri: Uri = format!("{slash}{rest}").parse().map_err(strange)?;
    let asked = parts.headers.get(header::HOST).cloned();
    let asked = asked.or_else(|| {
        let authority = parts.uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    parts.uri = uri;
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    let headers = &mut parts.headers;
    strip_hop(headers);
    // Whoever may reach a Pod does not thereby give it their own rights.
    headers.remove(header::AUTHORIZATION);
    ui::hide_cookie(headers);
    if let Some(upgrade) = upgrade {
        upgrade.ask(headers);
    }
    if let Some(asked) = asked {
        headers.insert(FORWARDED_HOST, asked);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    let path = format!("{prefix}{}", parts.uri.path());
    for (name, text) in [(FORWARDED_URI, path.as_str()), (header::HOST, host)] {
        headers.insert(name, HeaderValue::from_str(text).map_err(|_| ApiError::NoSuchPath)?);
    }
    Ok(())
}

/// Makes a Pod's answer the client's.
fn incoming(
    mut answer: http::Response<Incoming>,
    prefix: &str,
    host: &str,
    signed_in: bool,
) -> Response {
    let headers = answer.headers_mut();
    strip_hop(headers);
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    if let Some(moved) = location.and_then(|location| rewritten(location, prefix, host)) {
        headers.insert(header::LOCATION, moved);
    }
    if signed_in {
        sandbox(headers);
    }
    answer.map(Body::new)
}

/// A page from elsewhere must not act with the session of the dashboard.
pub fn sandbox(headers: &mut HeaderMap) {
    let sandbox = HeaderValue::from_static("sandbox allow-forms allow-scripts allow-popups");
    headers.insert(header::CONTENT_SECURITY_POLICY, sandbox);
    headers.remove(header::SET_COOKIE);
}

/// Where a redirect within the Pod leads from outside; None: it leads elsewhere.
fn rewritten(location: &str, prefix: &str, host: &str) -> Option<HeaderValue> {
    let uri: Uri = location.parse().ok()?;
    let same = uri.authority().is_none_or(|authority| authority.as_str() == host);
    let path = uri.path_and_query().map(|path| path.as_str()).filter(|path| path.starts_with('/'));
    HeaderValue::from_str(&format!("{prefix}{}", path.filter(|_| same)?)).ok()
}

/// Takes out what is between two neighbours only.
pub fn strip_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What a node's agent says about itself.
async fn of_node(asked: &Asked, named: &Named<'_>, method: &Method) -> Result<Response, ApiError> {
    if !named.port.is_empty() {
        let why = "a node is reached through its tunnel: name no port";
        return Err(ApiError::BadRequest(why.to_owned()));
    }
    let node = asked.object(named.name).await?;
    let path = asked.attributes.rest.as_str();
    let found = NODE_PATHS.iter().find(|(known, _)| *known == path);
    let (path, part) = found.ok_or(ApiError::NoSuchPath)?;
    if ![Method::GET, Method::HEAD].contains(method) {
        return Err(ApiError::MethodNotAllowed(asked.kind.into()));
    }
    let subresource = (*part).to_owned();
    let need = Attributes { verb: "get".into(), subresource, ..asked.attributes.clone() };
    asked.api.authorize(&asked.user, &need)?;
    let json = match *path {
        "pods" => {
            let list = || kubelet::pods(&asked.api.store().current(), named.name);
            Some(asked.api.fairness().compute(list).await?)
        }
        "stats/summary" => Some(kubelet::summary(&asked.api, &node).await?),
        _ => None,
    };
    if let Some(json) = json {
        return Ok(content::respond_bytes(StatusCode::OK, "application/json", json, &[]));
    }
    let answer = asked.api.tunnels().get(named.name, &format!("/{path}")).await;
    let answer = answer.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    if answer.status() != StatusCode::OK {
        return Err(ApiError::NoSuchPath);
    }
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let body = Limited::new(answer.into_body(), NODE_ANSWER_BYTES_MAX).collect().await;
    let broken = |_| ApiError::Unavailable("the node's answer broke off".to_owned());
    let mut response = Response::new(Body::from(body.map_err(broken)?.to_bytes()));
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_have_schemes_and_ports() {
        let of =
            |text| Named::parse(text).map(|it| format!("{}|{}|{}", it.scheme, it.name, it.port));
        assert_eq!(of("web").as_deref(), Some("|web|"));
        assert_eq!(of("web:80").as_deref(), Some("|web|80"));
        assert_eq!(of("http:web:http").as_deref(), Some("http|web|http"));
        assert_eq!(of("https:web:").as_deref(), Some("https|web|"));
        for wrong in ["", ":80", "ftp:web:80", "a:b:c:d"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths_are_split_as_they_were_sent() {
        let prefix = "/api/v1/namespaces/a/pods/b:80/proxy";
        let of = |rest: &str| {
            let path = format!("{prefix}{rest}");
            split_path(&path).map(|(found, rest)| (found == prefix, rest.to_owned()))
        };
        assert_eq!(of(""), Some((true, String::new())));
        assert_eq!(of("/"), Some((true, "/".to_owned())));
        assert_eq!(of("/x%2Fy/z/"), Some((true, "/x%2Fy/z/".to_owned())));
        assert_eq!(split_path("/api/v1/namespaces/a/pods/b"), None);
    }

    #[test]
    fn ports_of_pods() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"ports": [{"containerPort": 8080, "name": "http"}]}, {}]}});
        let of = |port: &str| pod_port(&pod, port).map_err(|error| error.to_string());
        assert_eq!(of(""), Ok(8080));
        assert_eq!(of("http"), Ok(8080));
        assert_eq!(of("9"), Ok(9));
        assert_eq!(of("x"), Err("pod \"p\" has no port \"x\"".to_owned()));
    }

    #[test]
    fn ports_of_services() {
        let two = json!({"spec": {"ports": [
            {"name": "http", "port": 80}, {"name": "admin", "port": 81}]}});
        let one = json!({"spec": {"ports": [{"port": 80}]}});
        assert_eq!(service_port(&two, "81").as_deref(), Some("admin"));
        assert_eq!(service_port(&two, "http").as_deref(), Some("http"));
        assert_eq!(service_port(&two, ""), None);
        assert_eq!(service_port(&one, "").as_deref(), Some(""));
        assert_eq!(service_port(&one, "82"), None);
    }

    #[test]
    fn only_ready_pods_are_reached() {
        let slice = json!({"ports": [{"name": "", "port": 8080}], "endpoints": [
            {"targetRef": {"kind": "Pod", "name": "a"}, "conditions": {"ready": true}},
            {"targetRef": {"kind": "Pod", "name": "b"}, "conditions": {"ready": false}},
            {"addresses": ["169.254.169.254"]}]});
        assert_eq!(ready_pods(&slice, ""), [("a".to_owned(), 8080)]);
        assert!(ready_pods(&slice, "x").is_empty());
    }

    #[test]
    fn redirects_stay_below_the_proxy() {
        let of = |location| rewritten(location, "/p/proxy", "web:80");
        assert_eq!(of("/login?x=1").expect("within"), "/p/proxy/login?x=1");
        assert_eq!(of("http://web:80/login").expect("within"), "/p/proxy/login");
        assert_eq!(of("http://elsewhere/login"), None);
    }

    #[test]
    fn a_pod_gets_no_credentials() {
        let request = http::Request::get("/p/proxy/a%20b?c=d")
            .header("authorization", "Bearer secret")
            .header("cookie", "wherry-session=secret; theme=dark")
            .header("connection", "x-mine")
            .header("x-mine", "1")
            .header("host", "server:6443");
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        outgoing(&mut parts, "/p/proxy", "web:80", None).expect("understood");
        assert_eq!(parts.uri, "/a%20b?c=d");
        let mut headers: Vec<String> = parts
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        headers.sort();
        expect_test::expect![[r#"
            cookie: theme=dark
            host: web:80
            x-forwarded-host: server:6443
            x-forwarded-proto: https
            x-forwarded-uri: /p/proxy/a%20b"#]]
        .assert_eq(&headers.join("\n"));
    }
}
