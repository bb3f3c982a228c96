//! A plain HTTP client that tells what it knows about a request without an answer: it was never
//! sent, or nobody can say. Tests of promises need that difference, and benchmarks want nothing
//! between them and the server, so this is hyper's connection and no more: no retries, no pool.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A member on this machine takes a connection at once, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// One attempt of several, and the time between two.
const GET_TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// What a client shows and whom it trusts.
#[derive(Clone)]
pub struct Credentials {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Credentials {
    /// Those of a kubeconfig's first cluster and user.
    pub fn of_kubeconfig(file: &Path) -> Result<Credentials> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("read the kubeconfig {}", file.display()))?;
        let config: serde_json::Value = serde_yaml_ng::from_str(&text)?;
        let data = |pointer: &str| -> Result<Vec<u8>> {
            let text = config.pointer(pointer).and_then(serde_json::Value::as_str);
            let text = text.with_context(|| format!("{} has no {pointer}", file.display()))?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let ca = data("/clusters/0/cluster/certificate-authority-data")?;
        let certificate = data("/users/0/user/client-certificate-data")?;
        Credentials::of_pem(&ca, &certificate, &data("/users/0/user/client-key-data")?)
    }

    pub fn of_pem(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Credentials> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let with = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Credentials { http1: with(b"http/1.1"), http2: with(b"h2") })
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The request never left.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("no answer: {0}")]
    Lost(String),
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }
}

async fn tls(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connected = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(config.clone()).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connected).await.unwrap_or_else(|_| {
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time"))
    })
}

/// One HTTP/1.1 connection at a time, opened when it is needed.
pub struct Client {
    pub address: SocketAddr,
    credentials: Credentials,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(address: SocketAddr, credentials: Credentials) -> Client {
        Client { address, credentials, connection: None }
    }

    /// A ready connection: the one there is if the server keeps it open, else a new one.
    async fn ready(&mut self) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return Ok(connection);
        }
        let not_sent = |error: &dyn std::fmt::Display| Failure::NotSent(error.to_string());
        let stream = tls(self.address, &self.credentials.http1).await;
        let stream = stream.map_err(|error| not_sent(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| not_sent(&error))?;
        // It ends with its sender or its server; there is nothing to hear from it.
        tokio::spawn(connection);
        sender.ready().await.map_err(|error| not_sent(&error))?;
        Ok(sender)
    }

    /// Sends a request and returns when the head of the answer is there.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::NotSent(error.to_string()))?;
        let mut connection = self.ready().await?;
        let answer = connection.try_send_request(request).await;
        match answer {
            Ok(answer) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Err(error) if error.message().is_some() => {
                Err(Failure::NotSent(error.into_error().to_string()))
            }
            Err(error) => Err(Failure::Lost(error.into_error().to_string())),
        }
    }

    /// Sends a request and waits for the whole answer.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let answer = async {
            let response = self.open(method, path, body).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| Failure::Lost(error.to_string()))?.to_bytes();
            Ok(Answer { status, body })
        };
        let answer = tokio::time::timeout(timeout, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::Lost("no answer in time".to_owned())));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// GET of a path, as JSON, which must succeed.
    pub async fn get(&mut self, path: &str, timeout: Duration) -> Result<serde_json::Value> {
        let answer = self.call(Method::GET, path, Bytes::new(), timeout).await?;
        anyhow::ensure!(
            answer.status == 200,
            "GET {path}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        answer.json()
    }

    /// The same, asked again for so long: a member may know no leader for a while.
    pub async fn get_within(
        &mut self,
        path: &str,
        patience: Duration,
    ) -> Result<serde_json::Value> {
        let begun = Instant::now();
        loop {
            match self.get(path, GET_TIMEOUT).await {
                Err(_) if begun.elapsed() < patience => tokio::time::sleep(PAUSE).await,
                done => return done,
            }
        }
    }
}

/// An HTTP/2 connection, for many requests and streams at once.
pub async fn http2(
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<http2::SendRequest<Full<Bytes>>> {
    /// Lists of 100 MB should not wait for window updates.
    const WINDOW_BYTES: u32 = 8 << 20;
    let stream = tls(address, &credentials.http2).await?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}
