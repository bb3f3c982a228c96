//! The world outside of the cluster, for Pods that a policy lets out.
//!
//! A name is resolved here, once, and the connection goes to the addresses that were found and
//! judged: what the name says a moment later does not matter. Addresses of the machine (all that it
//! has, not only the one that it is known by), its link, the nodes, the control plane and the virtual
//! network are left out, by whatever name they come (an answer that points inwards is an attack).
//! Redirects are the guest's: each request is judged anew.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wherry_wasi_shim::{Body, BodyError, NetworkError, OutgoingError, Stream};

use super::{
    network::forbidden,
    policy::Caller,
    switch::{Refusal, Switch},
};
use crate::protocol::Protocol;

/// To resolve a name: the machine's resolver asks a few servers in turn.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// To connect to one address, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why there is no way out. The texts go into the container's log.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// A policy, or the lack of one.
    #[error("{0}")]
    Denied(String),
    /// No address for it.
    #[error("{0} has no address")]
    NoName(String),
    /// Nobody answers.
    #[error("connect to {to}: {why}")]
    Connect {
        /// Where.
        to: String,
        /// For people.
        why: String,
    },
    /// It answered something else than HTTP.
    #[error("the answer of {0} is not understood")]
    Http(String),
}

impl OutsideError {
    /// For `wasi:http`.
    pub fn code(&self) -> OutgoingError {
        match self {
            OutsideError::Denied(_) => OutgoingError::Denied,
            OutsideError::NoName(_) => OutgoingError::NameNotFound,
            OutsideError::Connect { .. } => OutgoingError::ConnectionRefused,
            OutsideError::Http(_) => OutgoingError::Failed(self.to_string()),
        }
    }

    /// For `wasi:sockets`.
    pub fn network(&self) -> NetworkError {
        match self {
            OutsideError::Denied(_) => NetworkError::Denied,
            OutsideError::NoName(_) => NetworkError::NoName,
            OutsideError::Connect { .. } | OutsideError::Http(_) => NetworkError::Refused,
        }
    }
}

/// Why an address is not one of the outside. Pure.
fn inward(ip: IpAddr, is_machine: bool, is_virtual: bool) -> Option<&'static str> {
    let ip = ip.to_canonical();
    forbidden(ip).or({
        if is_machine {
            Some("an address of a node or of the control plane")
        } else if is_virtual {
            Some("an address within the cluster")
        } else {
            None
        }
    })
}

/// Whether this machine has an address, whatever it has it for. Nothing is sent: the kernel is asked
/// from where it would send, and to itself it sends from the same address.
pub fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket for datagrams is connected by a look at the routes; any port will do.
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    asked.is_ok_and(|from| from.ip() == ip)
}

/// Whether a Pod may connect there; `host` is the name by which it asked.
fn judge(
    switch: &Switch,
    caller: &Caller,
    to: SocketAddr,
    host: Option<&str>,
) -> Result<(), OutsideError> {
    let Some(pod) = &caller.pod else {
        return Err(OutsideError::Denied("the Pod is not known any more".to_owned()));
    };
    let policies = switch.policies().clone();
    let is_virtual = switch.table().is_virtual(to.ip());
    let is_machine = policies.is_machine(to.ip()) || is_own(to.ip().to_canonical());
    if let Some(what) = inward(to.ip(), is_machine, is_virtual) {
        let why = format!("{to} is {what}, which is not reached from a Pod this way");
        return Err(OutsideError::Denied(why));
    }
    let verdict = policies.judge_outside(pod, to, host, Protocol::Tcp);
    switch.heed(verdict, Some(pod), None).map_err(|refusal| match refusal {
        Refusal::Denied { why, .. } => OutsideError::Denied(why),
        other => OutsideError::Denied(other.to_string()),
    })
}

/// Connects a Pod to an address.
pub async fn connect(
    switch: &Switch,
    caller: &Caller,
    to: SocketAddr,
) -> Result<TcpStream, OutsideError> {
    judge(switch, caller, to, None)?;
    dial(to).await
}

async fn dial(to: SocketAddr) -> Result<TcpStream, OutsideError> {
    let failed = |why: String| OutsideError::Connect { to: to.to_string(), why };
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => {
            // A socket that cannot do it is broken and will say so on the first read.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {CONNECT_TIMEOUT:?}"))),
    }
}

/// The addresses of a name or address. Names that no policy could allow are not even looked up:
/// a name server must not hear from a guest that may not speak.
async fn resolve(
    switch: &Switch,
    caller: &Caller,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, OutsideError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip.to_canonical(), port)]);
    }
    let Some(pod) = &caller.pod else {
        return Err(OutsideError::Denied("the Pod is not known any more".to_owned()));
    };
    if let Err(why) = switch.policies().may_look_up(pod, host, port) {
        switch.denials.note(&pod.uid, crate::protocol::Direction::Egress, &why, false);
        return Err(OutsideError::Denied(why));
    }
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    match found {
        Ok(Ok(all)) => Ok(all.take(ADDRESSES_MAX).collect()),
        Ok(Err(_)) | Err(_) => Err(OutsideError::NoName(host.to_owned())),
    }
}

/// Connects to the first of some names that may be asked for and has an address.
async fn reach<'a>(
    switch: &Switch,
    caller: &Caller,
    hosts: &'a [String],
    port: u16,
) -> Result<(&'a str, TcpStream), OutsideError> {
    let mut last = OutsideError::NoName(hosts.join(", "));
    for host in hosts {
        match resolve(switch, caller, host, port).await {
            Ok(found) if !found.is_empty() => {
                let stream = connect_any(switch, caller, host, found).await?;
                return Ok((host.as_str(), stream));
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_any(
    switch: &Switch,
    caller: &Caller,
    host: &str,
    addresses: Vec<SocketAddr>,
) -> Result<TcpStream, OutsideError> {
    let mut last = OutsideError::NoName(host.to_owned());
    let name = host.parse::<IpAddr>().is_err().then_some(host);
    for to in addresses {
        let connected = match judge(switch, caller, to, name) {
            Ok(()) => dial(to).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends a guest's request out, to the first of some names that leads somewhere.
pub async fn send(
    switch: &Arc<Switch>,
    caller: &Caller,
    hosts: &[String],
    port: u16,
    https: bool,
    request: Request<Body>,
) -> Result<Response<Body>, OutsideError> {
    let (host, stream) = reach(switch, caller, hosts, port).await?;
    let stream: Box<dyn Stream> = match https {
        true => Box::new(encrypt(stream, host).await?),
        false => Box::new(stream),
    };
    let http = |_| OutsideError::Http(host.to_owned());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    switch.streams.spawn(async move {
        // What went wrong shows in the answer, or in its absence.
        let _ = connection.await;
    });
    let response = sender.send_request(origin_form(request, host, port, https)).await;
    let response = response.map_err(http)?;
    Ok(response.map(|body| Body::new(body.map_err(BodyError::new))))
}

/// HTTP/1.1: a path, the host that was judged in its header, nothing of ours.
fn origin_form(mut request: Request<Body>, host: &str, port: u16, https: bool) -> Request<Body> {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    *request.uri_mut() = path.parse::<Uri>().unwrap_or_else(|_| Uri::from_static("/"));
    *request.version_mut() = http::Version::HTTP_11;
    let usual = if https { 443 } else { 80 };
    let name = if port == usual { host.to_owned() } else { format!("{host}:{port}") };
    if let Ok(name) = HeaderValue::try_from(name) {
        request.headers_mut().insert(header::HOST, name);
    }
    request
}

pub async fn encrypt(
    stream: TcpStream,
    host: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, OutsideError> {
    let failed = |why: String| OutsideError::Connect { to: host.to_owned(), why };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
    let connector = TlsConnector::from(roots().clone());
    match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no TLS within {CONNECT_TIMEOUT:?}"))),
    }
}

/// The machine's certificate authorities, read once.
fn roots() -> &'static Arc<ClientConfig> {
    static ROOTS: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_, ignored) = roots.add_parsable_certificates(found.certs);
        if ignored > 0 {
            tracing::debug!(ignored, "certificate authorities of the machine cannot be read");
        }
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_points_inwards_is_not_outside() {
        let inside = |ip: &str, machine, is_virtual| {
            inward(ip.parse().expect("an address"), machine, is_virtual).unwrap_or("-")
        };
        assert_eq!(inside("203.0.113.1", false, false), "-");
        assert_eq!(inside("127.0.0.1", false, false), "a loopback address");
        assert_eq!(inside("::ffff:127.0.0.1", false, false), "a loopback address");
        assert_eq!(inside("169.254.169.254", false, false), "a link-local address");
        let node = "an address of a node or of the control plane";
        assert_eq!(inside("192.0.2.1", true, false), node);
        assert_eq!(inside("172.20.0.1", false, true), "an address within the cluster");
    }

    #[test]
    fn the_machine_knows_its_addresses() {
        let is_own = |ip: &str| is_own(ip.parse().expect("an address"));
        assert!(is_own("127.0.0.1"));
        assert!(!is_own("203.0.113.1") && !is_own("2001:db8::1"));
    }

    #[test]
    fn requests_name_the_host_that_was_judged() {
        let body = || Body::new(http_body_util::Empty::new().map_err(|never| match never {}));
        let request = Request::get("http://api.example.com:8080/a?b=c").header("host", "evil");
        let request = request.body(body()).expect("a request");
        let sent = origin_form(request, "api.example.com", 8080, false);
        assert_eq!(sent.uri(), "/a?b=c");
        assert_eq!(sent.headers()["host"], "api.example.com:8080");
        let bare = Request::get("https://api.example.com").body(body()).expect("a request");
        let sent = origin_form(bare, "api.example.com", 443, true);
        assert_eq!(
            (sent.uri().path(), &sent.headers()["host"]),
            ("/", &"api.example.com".parse().expect("text"))
        );
    }
}
