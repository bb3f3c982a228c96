//! Performing a probe's or a hook's action against a container of this worker.
//!
//! A request to the Pod itself goes straight to its guest, without a socket and whatever the tables
//! of the network say: a container is probed before it is an endpoint. With the scheme `HTTPS` it is
//! one over TLS, to a guest that listens, as handlers speak none. Another host is reached as the guest
//! itself would reach it. Failures are in the words of a kubelet, because people and tools
//! search for them.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::{BodyExt, Full, Limited};
use rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use wherry_wasi_shim::{Body, BodyError, Budget, Exit, GuestConfig, LoadError, Output, Term};

use super::reply::Replay;
use super::served::Served;
use super::start::{Code, View};
use super::streams::origin_form;
use super::switch::{Refusal, Switch};
use super::unchecked::{self, PLAIN};
use crate::protocol::{Check, Guest, HttpCheck};

/// What a guest's answer to a probe is read of.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// What a guest may print when it is called; a kubelet keeps as much.
const PRINTED_BYTES_MAX: usize = 10 << 10;
/// Redirects that are followed within the Pod.
const REDIRECTS_MAX: usize = 10;
/// Who asks, in the word that servers know.
const USER_AGENT: &str = concat!("kube-probe/1.32 wherry/", env!("CARGO_PKG_VERSION"));

/// A container that can be probed.
pub struct Target {
    /// The Pod's address.
    pub ip: IpAddr,
    /// The network.
    pub switch: Arc<Switch>,
    /// The container itself, if it is a handler, and the ports it declared.
    pub served: Option<(Arc<Served>, Vec<u16>)>,
    /// For calls.
    pub callee: Callee,
}

/// The code of a container and the view it gets, for what is called or run in it.
pub struct Callee {
    /// Its code, mapped or not.
    pub code: Arc<Code>,
    /// How the image is run.
    pub guest: Guest,
    /// As the container itself got it.
    pub view: Arc<View>,
    /// The container's.
    pub budget: Budget,
    /// For probes and hooks: what they call that the image does not have.
    pub toolbox: Option<Arc<Code>>,
}

impl Callee {
    /// The container's own configuration, for another guest on its budget, without input. A handler's
    /// instances may have all memory of the container, however well it is: all that is called has as
    /// much as one of them beside.
    pub fn config(&self) -> GuestConfig {
        let budget = Some(self.budget.clone());
        let config = self.view.config.clone();
        let mut limits = config.limits.clone();
        limits.memory_bytes_total = limits.memory_bytes;
        GuestConfig { budget, stdin: None, term: Term::new(), limits, ..config }
    }

    /// Whether a word names the image's own command.
    pub fn is_own(&self, name: &str) -> bool {
        let own = self.view.config.args.first().map_or("", String::as_str);
        self.guest == Guest::Command && base(own) == base(name)
    }
}

/// The last part of a path.
fn base(program: &str) -> &str {
    let name = Path::new(program).file_name().and_then(|name| name.to_str());
    name.unwrap_or(program)
}

/// Tries once, for at most `timeout`. The error is for people.
pub async fn perform(target: &Target, check: &Check, timeout: Duration) -> Result<(), String> {
    match check {
        // The agent found no port of that name. A handler that declares none answers at any number.
        Check::Http(HttpCheck { port: 0, .. })
        | Check::Tcp { port: 0, .. }
        | Check::Grpc { port: 0, .. } => {
            Err("the container has no port of the name that is to be asked".to_owned())
        }
        Check::Http(http) => match http_get(target, http, timeout).await?.as_u16() {
            200..400 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        },
        Check::Tcp { host, port } => connect(target, host.as_deref(), *port),
        Check::Grpc { port, service } => grpc(target, *port, service, timeout).await,
        Check::Exec { command } => exec(target, command, timeout).await,
        Check::Sleep { seconds } => {
            tokio::time::sleep(timeout.min(Duration::from_secs(u64::from(*seconds)))).await;
            Ok(())
        }
    }
}

/// Tries a hook once. As by a kubelet, of HTTP any answer will do, and who is to be asked over TLS and
/// speaks none is asked without.
pub async fn perform_hook(target: &Target, check: &Check, timeout: Duration) -> Result<(), String> {
    let http = match check {
        Check::Http(http) if http.port != 0 => http,
        other => return perform(target, other, timeout).await,
    };
    let answered = match http_get(target, http, timeout).await {
        Err(why) if http.https && why.ends_with(PLAIN) => {
            let plain = HttpCheck { https: false, ..http.clone() };
            http_get(target, &plain, timeout).await
        }
        answered => answered,
    };
    answered.map(drop)
}

impl Target {
    /// Who answers at a port of the Pod.
    fn find(&self, port: u16) -> Option<Arc<Served>> {
        let own =
            self.served.as_ref().filter(|(_, ports)| ports.is_empty() || ports.contains(&port));
        let other = || self.switch.served(SocketAddr::new(self.ip, port));
        own.map(|(served, _)| served.clone()).or_else(other)
    }

    fn refused(&self, port: u16) -> String {
        let address = SocketAddr::new(self.ip, port);
        format!("dial tcp {address}: connect: connection refused")
    }

    /// Sends a request to the Pod or to another host.
    async fn send(
        &self,
        host: Option<&str>,
        port: u16,
        request: Request<Body>,
    ) -> Result<Response<Body>, String> {
        let Some(host) = host else {
            let Some(served) = self.find(port) else {
                let address = SocketAddr::new(self.ip, port);
                let answer = self.switch.exchange(address, request, None).await;
                return match answer {
                    Ok(answer) => Ok(answer.map(|reply| Body::new(reply.map_err(BodyError::new)))),
                    Err(Refusal::Gone(_)) => Err(self.refused(port)),
                    Err(refusal) => Err(refusal.to_string()),
                };
            };
            let flight = served.enter();
            let answer = flight.handler().handle(request).await;
            return answer.map_err(|error| error.to_string());
        };
        let destination = self.switch.resolve(host, port).map_err(|error| error.to_string())?;
        let (parts, body) = request.into_parts();
        let caller = self.switch.caller(self.ip);
        let answer = self.switch.send(&caller, &destination, parts, Replay::new(body)).await;
        let answer = answer.map_err(|refusal| refusal.to_string())?;
        Ok(answer.map(|reply| Body::new(reply.map_err(BodyError::new))))
    }

    /// The same over TLS, whatever the certificate is.
    async fn send_tls(
        &self,
        host: Option<&str>,
        port: u16,
        request: Request<Body>,
    ) -> Result<Response<Body>, String> {
        let (switch, address) = (&self.switch, SocketAddr::new(self.ip, port));
        let request = origin_form(request, address);
        let from = SocketAddr::new(self.ip, switch.ports.ephemeral());
        let Some(host) = host else {
            if !switch.ports.is_listening(address) {
                let handler = self.find(port).map(|_| PLAIN.to_owned());
                return Err(handler.unwrap_or_else(|| self.refused(port)));
            }
            let stream = switch.dial(address, from).map_err(|refusal| refusal.to_string())?;
            return unchecked::exchange(stream, self.ip.into(), request, &switch.streams).await;
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let destination = switch.resolve(host, port).map_err(|error| error.to_string())?;
        let stream = switch.open(&switch.caller(self.ip), &destination, from).await;
        let stream = stream.map_err(|refusal| refusal.to_string())?;
        unchecked::exchange(stream, name, request, &switch.streams).await
    }
}

/// The status of the answer that redirects within the Pod lead to.
async fn http_get(
    target: &Target,
    http: &HttpCheck,
    timeout: Duration,
) -> Result<StatusCode, String> {
    let mut path = http.path.clone();
    let authority = match &http.host {
        Some(host) => format!("{host}:{}", http.port),
        None => SocketAddr::new(target.ip, http.port).to_string(),
    };
    let scheme = if http.https { "https" } else { "http" };
    let deadline = tokio::time::Instant::now() + timeout;
    for _ in 0..=REDIRECTS_MAX {
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{authority}{slash}{path}");
        let failed = |why: String| format!("Get {url:?}: {why}");
        let request = request(&url, &http.headers).map_err(&failed)?;
        let (host, port) = (http.host.as_deref(), http.port);
        let sent = async {
            match http.https {
                // Few are asked so, and a handshake is large.
                true => Box::pin(target.send_tls(host, port, request)).await,
                false => target.send(host, port, request).await,
            }
        };
        let answer = match tokio::time::timeout_at(deadline, sent).await {
            Ok(answer) => answer.map_err(&failed)?,
            Err(_) => {
                return Err(failed(
                    "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                        .to_owned(),
                ));
            }
        };
        let status = answer.status();
        match redirect(status, answer.headers(), &authority) {
            Some(next) => path = next,
            None => return Ok(status),
        }
    }
    Err(format!("Get {path:?}: stopped after {REDIRECTS_MAX} redirects"))
}

fn request(url: &str, headers: &[(String, String)]) -> Result<Request<Body>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let authority = uri.authority().map(|authority| authority.as_str().to_owned());
    let mut request = Request::new(body(Bytes::new()));
    *request.uri_mut() = uri;
    let map = request.headers_mut();
    map.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    map.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    for (name, value) in headers {
        let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
        else {
            return Err(format!("the header {name} of the probe is not valid"));
        };
        if name == header::ACCEPT || name == header::USER_AGENT || name == header::HOST {
            map.insert(name, value);
        } else {
            map.append(name, value);
        }
    }
    // The guest is told whom the request names, as a server behind a virtual host would be.
    if let (Some(host), Some(authority)) = (map.get(header::HOST), authority) {
        let named = host.to_str().ok().and_then(|host| host.parse().ok());
        let mut parts = request.uri().clone().into_parts();
        parts.authority = Some(named.unwrap_or_else(|| {
            authority.parse().expect("it was the authority of a URI a moment ago")
        }));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    Ok(request)
}

fn body(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes).map_err(|never| match never {}))
}

/// Where a redirect leads within the same host; elsewhere it counts as an answer.
fn redirect(status: StatusCode, headers: &HeaderMap, authority: &str) -> Option<String> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let uri: Uri = location.parse().ok()?;
    let same = uri.authority().is_none_or(|other| other.as_str() == authority);
    same.then(|| uri.path_and_query().map_or("/".to_owned(), ToString::to_string))
}

fn connect(target: &Target, host: Option<&str>, port: u16) -> Result<(), String> {
    match host {
        None if target.switch.ports.is_listening(SocketAddr::new(target.ip, port)) => Ok(()),
        None => target.find(port).map(drop).ok_or_else(|| target.refused(port)),
        Some(host) => target.switch.resolve(host, port).map(drop).map_err(|e| e.to_string()),
    }
}

async fn grpc(target: &Target, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = SocketAddr::new(target.ip, port);
    let mut request = Request::new(body(health_request(service)));
    *request.method_mut() = Method::POST;
    let url = format!("http://{address}/grpc.health.v1.Health/Check");
    *request.uri_mut() = url.parse().expect("an address makes a URI");
    let map = request.headers_mut();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    map.insert(header::TE, HeaderValue::from_static("trailers"));
    map.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let call = async {
        let answer = target.send(None, port, request).await?;
        let (head, answer) = answer.into_parts();
        let whole = Limited::new(answer, ANSWER_BYTES_MAX).collect().await;
        let whole = whole.map_err(|error| format!("health rpc failed: {error}"))?;
        let trailers = whole.trailers().cloned().unwrap_or_default();
        let status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
        let status = status.and_then(|status| status.to_str().ok()).unwrap_or("2").to_owned();
        Ok::<_, String>((status, whole.to_bytes()))
    };
    match tokio::time::timeout(timeout, call).await {
        Err(_) => {
            Err(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
        }
        Ok(Err(why)) => Err(format!("error: failed to connect service {address}: {why}")),
        Ok(Ok((status, answer))) => match (status.as_str(), serving(&answer)) {
            ("0", Some(1)) => Ok(()),
            ("0", state) => Err(format!(
                "service unhealthy (responded with {:?})",
                ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
                    .get(usize::try_from(state.unwrap_or(0)).unwrap_or(0))
                    .unwrap_or(&"UNKNOWN")
            )),
            ("12", _) => Err("error: this server does not implement the grpc health protocol \
                 (grpc.health.v1.Health)"
                .to_owned()),
            (code, _) => Err(format!("error: health rpc failed: grpc-status {code}")),
        },
    }
}

/// `HealthCheckRequest { string service = 1 }` in a gRPC frame.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a name is short");
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    Bytes::from(frame)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `status` of a framed `HealthCheckResponse { ServingStatus status = 1 }`; absent is 0.
fn serving(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let message = message.get(..usize::try_from(length).ok()?)?;
    match message {
        [] => Some(0),
        // One field with a small number; anything else is not this message.
        [0x08, value] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

async fn exec(target: &Target, command: &[String], timeout: Duration) -> Result<(), String> {
    let callee = &target.callee;
    let name = command.first().map_or("", String::as_str);
    let printed = Printed::default();
    let config = GuestConfig {
        args: command.to_vec(),
        stdout: printed.output(),
        stderr: printed.output(),
        terminal: false,
        ..callee.config()
    };
    let failed = |error: LoadError| format!("exec: {name:?}: {}", super::peers::explain(&error));
    let module = callee.code.map().await.map_err(failed)?;
    let mut linked = module.call(name, config.clone());
    if matches!(linked, Err(LoadError::NoExport { .. })) {
        match &callee.toolbox {
            Some(toolbox) if !callee.is_own(name) => {
                linked = toolbox.map().await.map_err(failed)?.command(config);
            }
            _ if callee.guest == Guest::Command => linked = module.command(config),
            _ => {}
        }
    }
    let call = linked.map_err(failed)?;
    match tokio::time::timeout(timeout, call.run(CancellationToken::new())).await {
        Err(_) => Err(format!("command {:?} timed out", command.join(" "))),
        Ok(Exit::Code(0)) => Ok(()),
        Ok(Exit::Code(code)) => {
            let text = printed.text();
            Err(if text.is_empty() { format!("command exited with code {code}") } else { text })
        }
        Ok(Exit::Trap(why)) => Err(format!("{name} trapped: {why}")),
        Ok(Exit::OutOfMemory) => Err(format!("{name} ran out of memory")),
        Ok(Exit::Stopped) => Err(format!("{name} was stopped")),
    }
}

/// The beginning of what a call prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn output(&self) -> Output {
        let printed = self.0.clone();
        Arc::new(move |bytes: &[u8]| {
            let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
            let room = PRINTED_BYTES_MAX.saturating_sub(printed.len());
            printed.extend_from_slice(&bytes[..bytes.len().min(room)]);
        })
    }

    fn text(&self) -> String {
        let printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&printed).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving(&[0, 0, 0, 0, 9, 8, 1]), None);
        assert_eq!(serving(&[]), None);
    }

    #[test]
    fn redirects_within_the_pod() {
        let headers = |location: &str| {
            HeaderMap::from_iter([(header::LOCATION, location.parse().expect("a header"))])
        };
        let at = "10.0.0.1:80";
        let found = |location| redirect(StatusCode::FOUND, &headers(location), at);
        assert_eq!(found("/ok?x=1").as_deref(), Some("/ok?x=1"));
        assert_eq!(found("http://10.0.0.1:80/ok").as_deref(), Some("/ok"));
        assert_eq!(found("http://elsewhere/ok"), None);
        assert_eq!(redirect(StatusCode::OK, &headers("/ok"), at), None);
    }

    #[test]
    fn a_host_header_names_the_authority() {
        let headers = [("Host".to_owned(), "shop.example".to_owned())];
        let request = request("http://10.0.0.1:80/a?b", &headers).expect("a request");
        assert_eq!(request.uri(), "http://shop.example/a?b");
        assert_eq!(request.headers()[header::ACCEPT], "*/*");
        let bad = [("bad header".to_owned(), String::new())];
        assert!(super::request("http://10.0.0.1/", &bad).is_err());
    }
}
