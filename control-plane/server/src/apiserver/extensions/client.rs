//! The connection to a webhook, and what hooks may look up in the cluster.
//!
//! Whoever may register a webhook decides where the API server connects to, so that is bounded: one
//! request on a fresh TLS connection, the name resolved once and the connection made to what was
//! found, no redirects followed, an answer of limited size within a limited time, nothing of the
//! answer's body repeated in errors. Addresses inside (loopback, link-local, private) are refused
//! unless they belong to a Service of the cluster or to a network that the operator named.
//!
//! A Service is reached from outside, as the API server is not on the Pods' network: an
//! `ExternalName` by its name; one without a selector at the addresses of its EndpointSlices; any
//! other at a node port on a node that is ready.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, RwLock};
use std::time::Duration;

use base64::Engine as _;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::net::TcpStream;
use wherry_resources::{Kind, Object, conditions};

use crate::apiserver::auth::User;
use crate::apiserver::cel::Check;
use crate::apiserver::request::Attributes;
use crate::apiserver::{ApiServer, stored};

/// Largest answer of a webhook.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Addresses of one name or Service that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why a webhook could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Target(String),
    #[error("lookup {host}: {source}")]
    Resolve { host: String, source: std::io::Error },
    #[error(
        "{host} is at {address}, which the control plane does not connect to for users: name a \
         Service, or let the operator allow the network"
    )]
    Inside { host: String, address: IpAddr },
    #[error("connect to {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("TLS with {host}: {source}")]
    Tls { host: String, source: std::io::Error },
    #[error("caBundle: {0}")]
    Authority(String),
    #[error("Post {url:?}: {why}")]
    Http { url: String, why: String },
    #[error("Post {url:?}: the answer has status {status}")]
    Status { url: String, status: u16 },
    #[error("Post {url:?}: context deadline exceeded")]
    Timeout { url: String },
    #[error("Post {url:?}: the answer is not JSON")]
    Answer { url: String },
}

/// Where a webhook is.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Empty for a Service.
    url: String,
    service: Option<Service>,
    /// PEM; empty: the system's authorities.
    ca_bundle: String,
}

#[derive(Clone, Debug)]
struct Service {
    namespace: String,
    name: String,
    path: String,
    port: u16,
}

impl Target {
    /// Reads a `clientConfig`.
    pub fn parse(source: &Value) -> Target {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("").to_owned();
        let bundle = base64::engine::general_purpose::STANDARD.decode(text(source, "caBundle"));
        let service = source.get("service").filter(|service| service.is_object());
        Target {
            url: text(source, "url"),
            service: service.map(|service| Service {
                namespace: text(service, "namespace"),
                name: text(service, "name"),
                path: text(service, "path"),
                port: service["port"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(443),
            }),
            ca_bundle: String::from_utf8(bundle.unwrap_or_default()).unwrap_or_default(),
        }
    }

    /// As messages name it.
    fn shown(&self) -> String {
        match &self.service {
            Some(Service { namespace, name, path, port }) => {
                format!("https://{name}.{namespace}.svc:{port}{path}")
            }
            None => self.url.clone(),
        }
    }
}

/// A network: an address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        let ((own, length), (other, _)) = (bits(self.address), bits(ip));
        let prefix = u32::from(self.prefix.min(length));
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        self.address.is_ipv4() == ip.is_ipv4() && own & mask == other & mask
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    /// `10.1.0.0/16`, or one address.
    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("{text:?} is not a network: want ADDRESS/PREFIX, as 10.1.0.0/16");
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" => most,
            prefix => prefix.parse().ok().filter(|n| *n <= most).ok_or_else(wrong)?,
        };
        Ok(Network { address, prefix })
    }
}

/// Whether users must not make the control plane connect there.
fn is_inside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_inside(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    || v6.is_unique_local()
            }
        },
    }
}

/// Calls webhooks.
#[derive(Default)]
pub struct Client {
    /// Networks inside that may be reached; set once at start.
    allowed: RwLock<Vec<Network>>,
}

/// Where to connect, and as whom the other side must prove itself.
struct Place {
    addresses: Vec<SocketAddr>,
    host: String,
    authority: String,
    path: String,
}

impl Client {
    /// Lets webhooks be in these networks though they are inside.
    pub fn allow(&self, networks: &[Network]) {
        let mut allowed = self.allowed.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        networks.clone_into(&mut allowed);
    }

    /// Sends JSON and reads JSON.
    pub async fn call(
        &self,
        api: &ApiServer,
        target: &Target,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let called = tokio::time::timeout(timeout, self.attempt(api, target, body)).await;
        called.unwrap_or_else(|_| Err(CallError::Timeout { url: target.shown() }))
    }

    async fn attempt(
        &self,
        api: &ApiServer,
        target: &Target,
        body: &Value,
    ) -> Result<Value, CallError> {
        let place = match &target.service {
            Some(service) => self.place_of_service(api, service).await?,
            None => self.place_of_url(&target.url).await?,
        };
        let stream = connect(&place.addresses).await?;
        let tls = tokio_rustls::TlsConnector::from(tls_config(&target.ca_bundle)?);
        let name = ServerName::try_from(place.host.clone())
            .map_err(|error| CallError::Target(format!("{}: {error}", place.host)))?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|source| CallError::Tls { host: place.host.clone(), source })?;
        let url = target.shown();
        exchange(stream, &place, body, &url).await
    }

    async fn place_of_url(&self, url: &str) -> Result<Place, CallError> {
        let uri: http::Uri =
            url.parse().map_err(|error| CallError::Target(format!("url {url:?}: {error}")))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"));
        let authority = authority
            .ok_or_else(|| CallError::Target(format!("url {url:?} is not an https address")))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let addresses = self.resolve(&host, authority.port_u16().unwrap_or(443)).await?;
        Ok(Place {
            addresses,
            host,
            authority: authority.as_str().to_owned(),
            path: uri.path().to_owned(),
        })
    }

    /// Resolves a name once; every address must be one that may be connected to.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, CallError> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|source| CallError::Resolve { host: host.to_owned(), source })?;
        let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
        let refused = found.iter().map(SocketAddr::ip).find(|ip| !self.may_reach(*ip));
        match refused {
            Some(address) => Err(CallError::Inside { host: host.to_owned(), address }),
            None => Ok(found),
        }
    }

    fn may_reach(&self, ip: IpAddr) -> bool {
        let allowed = self.allowed.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        !is_inside(ip) || allowed.iter().any(|network| network.contains(ip))
    }

    async fn place_of_service(
        &self,
        api: &ApiServer,
        service: &Service,
    ) -> Result<Place, CallError> {
        let Service { namespace, name, path, port } = service;
        let host = format!("{name}.{namespace}.svc");
        let object = find(api, "", "services", namespace, name)
            .ok_or_else(|| CallError::Target(format!("service \"{name}\" not found")))?;
        let wanted = object["spec"]["ports"].as_array().into_iter().flatten();
        let wanted = wanted.into_iter().find(|one| one["port"] == *port);
        let addresses = if object["spec"]["type"] == "ExternalName" {
            let external = object["spec"]["externalName"].as_str().unwrap_or("");
            self.resolve(external, *port).await?
        } else {
            let wanted = wanted.ok_or_else(|| {
                CallError::Target(format!("no service port {port} found for service {name:?}"))
            })?;
            match object["spec"].get("selector").and_then(Value::as_object) {
                Some(selector) if !selector.is_empty() => node_ports(api, wanted),
                _ => endpoints(api, namespace, name, wanted),
            }
        };
        if addresses.is_empty() {
            return Err(CallError::Target(format!(
                "service {name:?} has no address that the control plane can reach: give it a node \
                 port, or endpoints of its own"
            )));
        }
        let path = if path.is_empty() { "/".to_owned() } else { path.clone() };
        Ok(Place { addresses, authority: format!("{host}:{port}"), host, path })
    }
}

/// The Service's node port on nodes that are ready.
fn node_ports(api: &ApiServer, port: &Value) -> Vec<SocketAddr> {
    let Some(port) = port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let nodes = wherry_resources::kind("", "v1", "nodes").expect("Node is a built-in kind");
    let ready = |node: &Object| conditions::is_true(conditions::of(node), "Ready");
    let address = |node: Object| -> Option<SocketAddr> {
        let list = node["status"]["addresses"].as_array()?;
        let internal = list.iter().find(|one| one["type"] == "InternalIP")?;
        let ip: IpAddr = internal["address"].as_str()?.parse().ok()?;
        Some((ip, port).into())
    };
    let all = all(api, nodes, "", usize::MAX);
    all.into_iter().filter(ready).filter_map(address).take(ADDRESSES_MAX).collect()
}

/// The addresses that somebody has written for a Service without a selector. Admission has looked
/// at them.
fn endpoints(api: &ApiServer, namespace: &str, name: &str, port: &Value) -> Vec<SocketAddr> {
    let slices = wherry_resources::kind("discovery.k8s.io", "v1", "endpointslices")
        .expect("EndpointSlice is a built-in kind");
    let own = |slice: &Object| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() == Some(name)
    };
    let mut found = Vec::new();
    for slice in all(api, slices, namespace, usize::MAX).into_iter().filter(own) {
        let same = |one: &&Value| {
            one["name"].as_str().unwrap_or("") == port["name"].as_str().unwrap_or("")
        };
        let number = slice["ports"].as_array().into_iter().flatten().find(same);
        let number = number.and_then(|one| u16::try_from(one["port"].as_u64()?).ok());
        let ready = slice["endpoints"].as_array().into_iter().flatten();
        let ready = ready.filter(|one| one["conditions"]["ready"] != false);
        for endpoint in ready {
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            let addresses = addresses.filter_map(|one| one.as_str()?.parse::<IpAddr>().ok());
            found.extend(
                number
                    .into_iter()
                    .flat_map(|port| addresses.clone().map(move |ip| SocketAddr::from((ip, port)))),
            );
        }
    }
    found.truncate(ADDRESSES_MAX);
    found
}

/// The first address that answers.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, CallError> {
    let mut last = CallError::Target("the name has no address".to_owned());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => last = CallError::Connect { address: *address, source },
        }
    }
    Err(last)
}

async fn exchange(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    place: &Place,
    body: &Value,
    url: &str,
) -> Result<Value, CallError> {
    let wrong = |why: String| CallError::Http { url: url.to_owned(), why };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| wrong(error.to_string()))?;
    let path = if place.path.is_empty() { "/" } else { &place.path };
    let request = Request::post(path)
        .header(header::HOST, &place.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "wherry-admission")
        .body(Full::<bytes::Bytes>::from(body.to_string()))
        .map_err(|error| wrong(error.to_string()))?;
    let answer = async {
        let answer =
            sender.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
        let status = answer.status();
        // A redirect is an answer like any other that is not a success.
        if !status.is_success() {
            return Err(CallError::Status { url: url.to_owned(), status: status.as_u16() });
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| CallError::Answer { url: url.to_owned() })
    };
    tokio::select! {
        answer = answer => answer,
        // The connection never ends before the answer is read, unless it breaks.
        never = until_dropped(connection) => match never {},
    }
}

/// Drives a connection; whoever waits for an answer hears of its end.
async fn until_dropped<T>(connection: impl Future<Output = T>) -> Infallible {
    connection.await;
    std::future::pending().await
}

/// What the system trusts, read once.
static SYSTEM: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    config(roots)
});

fn tls_config(bundle: &str) -> Result<Arc<rustls::ClientConfig>, CallError> {
    if bundle.trim().is_empty() {
        return Ok(SYSTEM.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let certificate = certificate.map_err(|error| CallError::Authority(error.to_string()))?;
        roots.add(certificate).map_err(|error| CallError::Authority(error.to_string()))?;
    }
    Ok(config(roots))
}

fn config(roots: rustls::RootCertStore) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// An object of a built-in kind in version 1, as this member sees it now.
pub fn find(
    api: &ApiServer,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Option<Object> {
    find_of(api, wherry_resources::kind(group, "v1", plural)?, namespace, name)
}

/// An object of any kind.
pub fn find_of(
    api: &ApiServer,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
) -> Option<Object> {
    let entry = api.store().current().get(&stored::key(kind, namespace, name))?;
    Some(stored::decode(kind, &entry))
}

/// Objects of a kind in one namespace, or in all when it is empty; at most so many.
pub fn all(api: &ApiServer, kind: &'static Kind, namespace: &str, most: usize) -> Vec<Object> {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    let snapshot = api.store().current();
    let range = snapshot.range(&stored::prefix(kind, namespace), None).take(most);
    range.map(|(_, entry)| stored::decode(kind, &entry)).collect()
}

/// Whether the user, or the account that a check names, may do that.
pub fn allowed(api: &ApiServer, user: &User, check: &Check, verb: &str) -> bool {
    let account = check.account.as_ref().map(|(namespace, name)| {
        let groups =
            ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        User::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups)
    });
    let is_resource = check.path.is_empty();
    let asked = Attributes {
        verb: verb.to_owned(),
        is_resource,
        group: check.group.clone(),
        version: "*".to_owned(),
        namespace: check.namespace.clone(),
        resource: check.resource.clone(),
        subresource: check.subresource.clone(),
        name: check.name.clone(),
        named: !check.name.is_empty(),
        path: check.path.clone(),
        ..Attributes::default()
    };
    api.may(account.as_ref().unwrap_or(user), &asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_known() {
        let inside = [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ];
        let outside = ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1"];
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(inside.iter().all(|text| is_inside(ip(text))));
        assert!(!outside.iter().any(|text| is_inside(ip(text))));
        let network: Network = "127.0.0.0/8".parse().expect("a network");
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        assert!(network.contains(ip("127.9.9.9")) && !network.contains(ip("128.0.0.1")));
        assert!(!network.contains(ip("::1")));
    }
}
