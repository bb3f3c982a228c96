//! Connections that users can have the API server make: to webhooks, and to the servers behind
//! APIServices.
//!
//! Whoever may register one decides where the API server connects to, so that is bounded: a fresh
//! connection for each request, the name resolved once and the connection made to what was found.
//! Addresses inside (loopback, link-local, private) are refused unless they belong to a Service of
//! the cluster or to a network that the operator named.
//!
//! | a Service | is reached |
//! |---|---|
//! | with a selector | at a ready Pod, through its node's tunnel; else at a ready node's port |
//! | `ExternalName` | by its name |
//! | without a selector | at the addresses of its EndpointSlices |
//!
//! TLS is spoken to all of them, with one exception: where the Service's port has `appProtocol:
//! http`, what comes through the tunnel is given to the Pod as it is. The tunnel is encrypted and
//! proves the node, and a guest that only answers requests has no TLS of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock, RwLock};

use base64::Engine as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use wherry_resources::{Object, conditions};

use super::stream::{self, Unreached};
use super::{ApiServer, auth::User, errors::ApiError, extensions};

/// Addresses of one name or Service that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why nobody was reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error("{0}")]
    Target(String),
    #[error("service {name:?} not found")]
    NoService { name: String },
    #[error("no service port {port} found for service {name:?}")]
    NoPort { name: String, port: u16 },
    #[error(
        "no endpoints available for service {name:?}: it has neither a ready Pod nor endpoints of \
         its own"
    )]
    NoEndpoints { name: String },
    #[error("lookup {host}: {source}")]
    Resolve { host: String, source: std::io::Error },
    #[error(
        "{host} is at {address}, which the control plane does not connect to for users: name a \
         Service, or let the operator allow the network"
    )]
    Inside { host: String, address: IpAddr },
    #[error("connect to {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("connect to a Pod of {host}: {why}")]
    Pod { host: String, why: String },
    /// To be told to the user for whom it was.
    #[error("too many streams are open for the user")]
    Full(ApiError),
    #[error("TLS with {host}: {source}")]
    Tls { host: String, source: std::io::Error },
    #[error("caBundle: {0}")]
    Authority(String),
}

/// Where a server is, and how it proves that it is the one that is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty for a Service.
    url: String,
    service: Option<Service>,
    /// PEM; empty: the system's authorities.
    ca_bundle: String,
    /// Whatever certificate it shows is good.
    trusts_anybody: bool,
    /// It is told who the API server is, so that it believes what it hears about users.
    proves_itself: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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
            trusts_anybody: false,
            proves_itself: false,
        }
    }

    /// Reads the `spec` of an APIService; None where that names no Service.
    pub fn of_api_service(spec: &Value) -> Option<Target> {
        let target = Target::parse(spec);
        target.service.is_some().then(|| Target {
            trusts_anybody: spec["insecureSkipTLSVerify"] == true,
            proves_itself: true,
            ..target
        })
    }

    /// As messages name it.
    pub fn shown(&self) -> String {
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
        IpAddr::V6(v6) => match within(v6) {
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

/// The IPv4 address that this one leads to: a mapped one, one behind a translator (NAT64, RFC 6052),
/// or one behind a 6to4 relay (RFC 3056).
fn within(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(embedded(high, low))
        }
        _ => v6.to_ipv4_mapped(),
    }
}

/// Where to connect, and as whom the other side must prove itself.
struct Place {
    way: Way,
    host: String,
    authority: String,
    path: String,
}

enum Way {
    /// A connection to a Pod; `plain`: without TLS.
    Tunnel { connection: Box<dyn Stream>, plain: bool },
    /// The first that answers.
    Addresses(Vec<SocketAddr>),
}

/// A byte stream, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection on which HTTP/1.1 can be spoken.
pub struct Reached {
    pub stream: Box<dyn Stream>,
    /// What belongs into `Host`.
    pub authority: String,
    /// The path of the target, at least `/`.
    pub path: String,
}

/// Makes the connections.
pub struct Outbound {
    /// Networks inside that may be reached; set once at start.
    allowed: RwLock<Vec<Network>>,
    /// What the API server shows of itself to who is to believe it.
    identity: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
}

impl Outbound {
    pub fn new(identity: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)) -> Outbound {
        Outbound { allowed: RwLock::default(), identity }
    }

    /// Lets targets be in these networks though they are inside.
    pub fn allow(&self, networks: &[Network]) {
        let mut allowed = self.allowed.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        networks.clone_into(&mut allowed);
    }

    /// Connects, and shakes hands. A stream to a node counts for `user`, if it is for one.
    pub async fn reach(
        &self,
        api: &ApiServer,
        target: &Target,
        user: Option<&User>,
    ) -> Result<Reached, ReachError> {
        let place = match &target.service {
            Some(service) => self.place_of_service(api, service, user).await?,
            None => self.place_of_url(&target.url).await?,
        };
        let Place { way, host, authority, path } = place;
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let stream: Box<dyn Stream> = match way {
            Way::Tunnel { connection, plain: true } => {
                return Ok(Reached { stream: connection, authority, path });
            }
            Way::Tunnel { connection, plain: false } => connection,
            Way::Addresses(addresses) => Box::new(connect(&addresses).await?),
        };
        let tls = tokio_rustls::TlsConnector::from(self.tls_config(target)?);
        let name = ServerName::try_from(host.clone())
            .map_err(|error| ReachError::Target(format!("{host}: {error}")))?;
        let stream = tls.connect(name, stream).await;
        let stream = stream.map_err(|source| ReachError::Tls { host, source })?;
        Ok(Reached { stream: Box::new(stream), authority, path })
    }

    async fn place_of_url(&self, url: &str) -> Result<Place, ReachError> {
        let uri: http::Uri =
            url.parse().map_err(|error| ReachError::Target(format!("url {url:?}: {error}")))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"));
        let authority = authority
            .ok_or_else(|| ReachError::Target(format!("url {url:?} is not an https address")))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let addresses = self.resolve(&host, authority.port_u16().unwrap_or(443)).await?;
        Ok(Place {
            way: Way::Addresses(addresses),
            host,
            authority: authority.as_str().to_owned(),
            path: uri.path().to_owned(),
        })
    }

    /// Resolves a name once; every address must be one that may be connected to.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ReachError> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found =
            found.map_err(|source| ReachError::Resolve { host: host.to_owned(), source })?;
        let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
        let refused = found.iter().map(SocketAddr::ip).find(|ip| !self.may_reach(*ip));
        match refused {
            Some(address) => Err(ReachError::Inside { host: host.to_owned(), address }),
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
        user: Option<&User>,
    ) -> Result<Place, ReachError> {
        let Service { namespace, name, path, port } = service;
        let host = format!("{name}.{namespace}.svc");
        let object = api.core_object("services", namespace, name);
        let object = object.ok_or_else(|| ReachError::NoService { name: name.clone() })?;
        let ports = object["spec"]["ports"].as_array().into_iter().flatten();
        let wanted = ports.into_iter().find(|one| one["port"] == *port);
        let no_port = || ReachError::NoPort { name: name.clone(), port: *port };
        let way = if object["spec"]["type"] == "ExternalName" {
            let external = object["spec"]["externalName"].as_str().unwrap_or("");
            Way::Addresses(self.resolve(external, *port).await?)
        } else {
            let wanted = wanted.ok_or_else(no_port)?;
            match object["spec"].get("selector").and_then(Value::as_object) {
                Some(selector) if !selector.is_empty() => {
                    way_to_pods((api, user), (namespace, name), wanted, &host).await?
                }
                _ => Way::Addresses(endpoints(api, namespace, name, wanted)),
            }
        };
        if matches!(&way, Way::Addresses(addresses) if addresses.is_empty()) {
            return Err(ReachError::NoEndpoints { name: name.clone() });
        }
        let authority = format!("{host}:{port}");
        Ok(Place { way, authority, host, path: path.clone() })
    }

    fn tls_config(&self, target: &Target) -> Result<Arc<rustls::ClientConfig>, ReachError> {
        if !target.trusts_anybody && !target.proves_itself && target.ca_bundle.trim().is_empty() {
            return Ok(SYSTEM.clone());
        }
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the ciphers of TLS 1.2 and 1.3");
        let builder = if target.trusts_anybody {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider())))
        } else if target.ca_bundle.trim().is_empty() {
            builder.with_root_certificates(SYSTEM_ROOTS.clone())
        } else {
            let bundle = Bundle::read(&target.ca_bundle)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(bundle))
        };
        if !target.proves_itself {
            return Ok(Arc::new(builder.with_no_client_auth()));
        }
        let (chain, key) = &self.identity;
        let config = builder.with_client_auth_cert(chain.clone(), key.clone_key());
        let config = config.map_err(|error| ReachError::Authority(error.to_string()))?;
        Ok(Arc::new(config))
    }
}

/// A ready Pod by its node's tunnel, or the node ports of a Service that no Pod can be reached of
/// from this member.
async fn way_to_pods(
    (api, user): (&ApiServer, Option<&User>),
    (namespace, name): (&str, &str),
    port: &Value,
    host: &str,
) -> Result<Way, ReachError> {
    let port_name = port["name"].as_str().unwrap_or("");
    let plain = port["appProtocol"].as_str().is_some_and(|it| it.eq_ignore_ascii_case("http"));
    match stream::to_service(api, user, namespace, name, port_name).await {
        Some(Ok(connection)) => Ok(Way::Tunnel { connection, plain }),
        // A node port would be a way around the bound.
        Some(Err(Unreached::Full(why))) => Err(ReachError::Full(why)),
        Some(Err(Unreached::Pods(why))) => match node_ports(api, port) {
            addresses if addresses.is_empty() || plain => {
                Err(ReachError::Pod { host: host.to_owned(), why })
            }
            addresses => Ok(Way::Addresses(addresses)),
        },
        None => Ok(Way::Addresses(if plain { Vec::new() } else { node_ports(api, port) })),
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
    let all = extensions::all(api, nodes, "", usize::MAX);
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
    for slice in extensions::all(api, slices, namespace, usize::MAX).into_iter().filter(own) {
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
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, ReachError> {
    let mut last = ReachError::Target("the name has no address".to_owned());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => last = ReachError::Connect { address: *address, source },
        }
    }
    Err(last)
}

/// What the system trusts, read once.
static SYSTEM_ROOTS: LazyLock<Arc<rustls::RootCertStore>> = LazyLock::new(|| {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(roots)
});

static SYSTEM: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .with_root_certificates(SYSTEM_ROOTS.clone())
        .with_no_client_auth();
    Arc::new(config)
});

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Takes what an authority of a `caBundle` has signed, and the certificates of the bundle itself. A
/// server's own certificate may stand there as an authority, which is what `openssl req -x509` makes
/// of it, or without its authority: rustls takes neither from a server, Kubernetes takes both.
#[derive(Debug)]
struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
}

impl Bundle {
    fn read(pem: &str) -> Result<Bundle, ReachError> {
        let mut roots = rustls::RootCertStore::empty();
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate =
                certificate.map_err(|error| ReachError::Authority(error.to_string()))?;
            roots
                .add(certificate.clone())
                .map_err(|error| ReachError::Authority(error.to_string()))?;
            certificates.push(certificate);
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| ReachError::Authority(error.to_string()))?;
        Ok(Bundle { certificates, authorities })
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.authorities.verify_server_cert(
            certificate,
            intermediates,
            name,
            ocsp_response,
            now,
        );
        // That its time is not over was looked at before either of these is found.
        let by_role = matches!(
            judged,
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer | rustls::CertificateError::Other(_)
            ))
        );
        if !by_role || !self.certificates.iter().any(|own| own.as_ref() == certificate.as_ref()) {
            return judged;
        }
        let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
        rustls::client::verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Takes any certificate, where an APIService says so; that its holder has the key is still proved.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_may_hold_the_servers_own_certificate() {
        let made = |ca: bool| -> rcgen::Certificate {
            let names = vec!["localhost".to_owned()];
            let mut params = rcgen::CertificateParams::new(names).expect("a name");
            if ca {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }
            let key = rcgen::KeyPair::generate().expect("a key");
            params.self_signed(&key).expect("a certificate")
        };
        let judged =
            |bundle: &rcgen::Certificate, shown: &rcgen::Certificate, name: &'static str, now| {
                let bundle = Bundle::read(&bundle.pem()).expect("a bundle");
                let name = ServerName::try_from(name).expect("a name");
                bundle.verify_server_cert(shown.der(), &[], &name, &[], now).is_ok()
            };
        let now = UnixTime::now();
        let long_ago = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        for ca in [true, false] {
            let (own, other) = (made(ca), made(ca));
            assert!(judged(&own, &own, "localhost", now));
            assert!(!judged(&own, &own, "elsewhere", now));
            assert!(!judged(&own, &own, "localhost", long_ago));
            assert!(!judged(&own, &other, "localhost", now));
        }
        assert!(Bundle::read("no certificate").is_err());
    }

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
            "64:ff9b::169.254.169.254",
            "2002:a00:1::1",
        ];
        let outside = ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1", "64:ff9b::1.1.1.1"];
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(inside.iter().all(|text| is_inside(ip(text))));
        assert!(!outside.iter().any(|text| is_inside(ip(text))));
        let network: Network = "127.0.0.0/8".parse().expect("a network");
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        assert!(network.contains(ip("127.9.9.9")) && !network.contains(ip("128.0.0.1")));
        assert!(!network.contains(ip("::1")));
    }
}
