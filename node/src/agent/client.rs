//! The agent's connection to the control plane.
//!
//! One `kube::Client` for the whole agent. Below it stands one client for each server URL, made with
//! the node's current certificate: a request goes to the server that answered last, a transport
//! error moves on to the next one, and a renewed certificate replaces all of them at once while
//! requests that are under way finish on the old ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use kube::client::Body;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tower::BoxError;

/// A server that does not accept a connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How the agent shows who it is.
#[derive(Clone)]
pub enum Credential {
    /// A bootstrap token, before the node has a certificate.
    Token(String),
    /// The node's certificate and key.
    Certificate {
        /// Leaf first.
        certificate_pem: String,
        /// Its key.
        key_pem: String,
    },
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A server URL does not parse.
    #[error("the server address {0:?} is not a URL like https://host:6443")]
    Url(String),
    /// The cluster's CA certificate does not parse.
    #[error("read the cluster's CA certificate")]
    Ca(#[source] rustls_pki_types::pem::Error),
    /// The client for one server could not be made.
    #[error("make a client for {url}")]
    Client {
        /// Which server.
        url: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// All servers, and who the agent is.
pub struct Connection {
    servers: Vec<Uri>,
    ca: Vec<Vec<u8>>,
    clients: ArcSwap<Vec<kube::Client>>,
    current: AtomicUsize,
}

impl Connection {
    /// Prepares connections to `servers`; nothing is sent yet. Must be called on a runtime.
    pub fn new(
        servers: &[String],
        ca_pem: &str,
        credential: &Credential,
    ) -> Result<Arc<Connection>, ClientError> {
        let servers = servers.iter().map(|text| parse_url(text)).collect::<Result<Vec<_>, _>>()?;
        let ca = CertificateDer::pem_slice_iter(ca_pem.as_bytes())
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(ClientError::Ca)?;
        let clients = clients(&servers, &ca, credential)?;
        let current = AtomicUsize::new(0);
        Ok(Arc::new(Connection { servers, ca, clients: ArcSwap::from_pointee(clients), current }))
    }

    /// Uses another credential for everything that is sent from now on.
    pub fn replace(&self, credential: &Credential) -> Result<(), ClientError> {
        self.clients.store(Arc::new(clients(&self.servers, &self.ca, credential)?));
        Ok(())
    }

    /// The one client that everybody uses.
    pub fn client(self: &Arc<Connection>) -> kube::Client {
        kube::Client::new(Facade(self.clone()), "default")
    }

    /// Number of servers.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// A client for one server only, with the current certificate.
    pub fn server(&self, index: usize) -> kube::Client {
        self.clients.load()[index].clone()
    }

    fn pick(&self) -> (usize, kube::Client) {
        let clients = self.clients.load();
        let index = self.current.load(Ordering::Relaxed) % clients.len();
        (index, clients[index].clone())
    }

    /// Moves on from a server that failed, unless somebody else already did.
    fn failed(&self, index: usize) {
        let next = (index + 1) % self.servers.len();
        let moved =
            self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != index {
            tracing::info!(from = %self.servers[index], to = %self.servers[next], "changed server");
        }
    }
}

fn parse_url(text: &str) -> Result<Uri, ClientError> {
    let error = || ClientError::Url(text.to_owned());
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| error())?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(error());
    }
    Ok(uri)
}

fn clients(
    servers: &[Uri],
    ca: &[Vec<u8>],
    credential: &Credential,
) -> Result<Vec<kube::Client>, ClientError> {
    servers
        .iter()
        .map(|server| {
            let mut config = kube::Config::new(server.clone());
            config.root_cert = Some(ca.to_vec());
            config.connect_timeout = Some(CONNECT_TIMEOUT);
            config.read_timeout = None;
            config.write_timeout = None;
            match credential {
                Credential::Token(token) => config.auth_info.token = Some(token.clone().into()),
                Credential::Certificate { certificate_pem, key_pem } => {
                    config.auth_info.client_certificate_data =
                        Some(STANDARD.encode(certificate_pem));
                    config.auth_info.client_key_data = Some(STANDARD.encode(key_pem).into());
                }
            }
            kube::Client::try_from(config).map_err(|source| ClientError::Client {
                url: server.to_string(),
                source: Box::new(source),
            })
        })
        .collect()
}

/// Sends each request to the current server.
#[derive(Clone)]
struct Facade(Arc<Connection>);

impl tower::Service<Request<Body>> for Facade {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = self.0.clone();
        Box::pin(async move {
            let (index, client) = connection.pick();
            match client.send(request).await {
                Ok(response) => Ok(response),
                Err(error) => {
                    connection.failed(index);
                    Err(error.into())
                }
            }
        })
    }
}

/// Whether an error of the API has this HTTP status.
pub fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
