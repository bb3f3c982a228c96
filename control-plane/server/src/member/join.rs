//! How a server becomes a member: it asks one with a token, and is told everything.
//!
//! ```text
//!   token id.secret.pin ──▶ TLS: the member shows its CA, the CA's hash must be the pin
//!                       ──▶ POST /wherry/v1/members {name, address}, the token as bearer
//!                       ──▶ an id never used before, the cluster's id, its authorities
//!   <data dir>/pki/…, <data dir>/member.json, then the store of a learner
//! ```
//!
//! What comes back can act as the whole cluster. It is sent only to a token made for members, over
//! a connection whose other end owns the authority that the token names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wherry_resources::join_token::JoinToken;
use wherry_store::MemberId;

use crate::pki::Shared;

/// Where members are asked for, and asked to take another one in.
pub const PATH: &str = "/wherry/v1/members";
/// How long members that are away or without a leader are asked again.
const JOIN_FOR: Duration = Duration::from_secs(60);
/// Pause after all were asked in vain.
const PAUSE: Duration = Duration::from_millis(500);
/// One attempt: a connection, and a change of the membership.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// The answer holds a few keys and certificates.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Whom to ask, and what to show.
#[derive(Clone)]
pub struct Join {
    /// URLs of members.
    pub members: Vec<String>,
    /// Of `wherry token create --for member`; empty if none was given.
    pub token: String,
}

/// What a server asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    pub name: String,
    pub address: SocketAddr,
}

/// What a new member is told.
#[derive(Serialize, Deserialize)]
pub struct Answer {
    /// The cluster's id in hex.
    pub cluster: String,
    /// Its own id.
    pub id: MemberId,
    /// Everything below `pki/`.
    pub authorities: Shared,
    /// The text of the keyring of encryption at rest, wherever the asked member has it.
    pub keyring: Option<String>,
}

/// Why a server was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("no token was given")]
    NoToken,
    #[error("the token is not of the form <id>.<secret>.<hash of the cluster's CA>")]
    Token,
    #[error("{0:?} is not a URL like https://host:6443")]
    Url(String),
    #[error(
        "{0} does not show the CA that the token names: the token is of another cluster, or \
         somebody stands in between"
    )]
    WrongCa(String),
    #[error("{0} refuses the token: it has expired, was deleted, or is not one for members")]
    Refused(String),
    #[error("{member} does not take this server in: {why}")]
    NotTaken { member: String, why: String },
    #[error("no member took this server in within {JOIN_FOR:?}; the last one said: {0}")]
    NoAnswer(String),
}

/// The outcome of one attempt that was not a success.
enum Attempt {
    Again(String),
    Final(JoinError),
}

/// Asks until a member takes this server in. `address` says where the others reach it; one without
/// an IP gets the one by which the asked member is reached.
pub async fn ask(
    join: &Join,
    name: &str,
    address: SocketAddr,
) -> Result<(Answer, SocketAddr), JoinError> {
    if join.token.is_empty() {
        return Err(JoinError::NoToken);
    }
    let token = JoinToken::parse(&join.token).ok_or(JoinError::Token)?;
    let begun = Instant::now();
    loop {
        let mut last = String::new();
        for member in &join.members {
            let attempt = attempt(member, &token, name, address);
            match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(Ok(taken)) => return Ok(taken),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Again(why))) => last = why,
                Err(_) => last = format!("{member} does not answer"),
            }
            tracing::info!(member, why = last, "not taken in yet");
        }
        if begun.elapsed() > JOIN_FOR {
            return Err(JoinError::NoAnswer(last));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(
    member: &str,
    token: &JoinToken,
    name: &str,
    address: SocketAddr,
) -> Result<(Answer, SocketAddr), Attempt> {
    let again = |error: &dyn std::fmt::Display| Attempt::Again(format!("{member}: {error}"));
    let (host, port) = parse_url(member).map_err(Attempt::Final)?;
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| again(&e))?;
    let own = stream.local_addr().map_err(|error| again(&error))?;
    let address = match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(own.ip(), address.port()),
        _ => address,
    };
    let server = ServerName::try_from(host).map_err(|error| again(&error))?;
    let stream = pinned(token.pin).connect(server, stream).await.map_err(|error| {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                Attempt::Final(JoinError::WrongCa(member.to_owned()))
            }
            _ => again(&error),
        }
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| again(&error))?;
    let question = Question { name: name.to_owned(), address };
    let body = serde_json::to_vec(&question).expect("plain fields are JSON");
    let request = http::Request::post(PATH)
        .header(
            header::HOST,
            member.trim_start_matches("https://").trim_end_matches('/').to_owned(),
        )
        .header(header::AUTHORIZATION, format!("Bearer {}", token.bearer))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from(body)))
        .map_err(|error| again(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| again(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| again(&error))?.to_bytes()))
    };
    let driven = async {
        // How the connection ends does not matter once the answer is there.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let (status, body) = tokio::select! {
        exchanged = exchange => exchanged?,
        () = driven => unreachable!("it only drives the connection"),
    };
    Ok((read(member, status, &body)?, address))
}

fn read(member: &str, status: StatusCode, body: &[u8]) -> Result<Answer, Attempt> {
    if status == StatusCode::CREATED {
        let wrong = |error| Attempt::Again(format!("{member}: {error}"));
        return serde_json::from_slice(body).map_err(wrong);
    }
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let why = answer["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Attempt::Final(JoinError::Refused(member.to_owned())))
        }
        _ if status.is_client_error() => {
            Err(Attempt::Final(JoinError::NotTaken { member: member.to_owned(), why }))
        }
        _ => Err(Attempt::Again(format!("{member}: {why}"))),
    }
}

fn parse_url(text: &str) -> Result<(String, u16), JoinError> {
    let error = || JoinError::Url(text.to_owned());
    let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let authority: http::uri::Authority = rest.parse().map_err(|_| error())?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() || rest.contains('/') {
        return Err(error());
    }
    Ok((host, authority.port_u16().unwrap_or(443)))
}

fn pinned(pin: [u8; 32]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa { pin, provider: provider.clone() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Accepts a member whose chain contains the pinned CA and whose leaf that CA has signed.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|der| Sha256::digest(der)[..] == self.pin);
        let ca = ca.ok_or(rustls::CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = |text| parse_url(text).map_err(|error| error.to_string());
        assert_eq!(url("https://10.0.0.1:6443/"), Ok(("10.0.0.1".to_owned(), 6443)));
        assert_eq!(url("https://[fd00::1]:7"), Ok(("fd00::1".to_owned(), 7)));
        assert_eq!(url("m1.example"), Ok(("m1.example".to_owned(), 443)));
        assert!(url("https://a:6443/x").is_err() && url("").is_err());
    }

    #[test]
    fn answers() {
        let of = |code: u16, body: &str| {
            let status = StatusCode::from_u16(code).expect("a code");
            match read("m", status, body.as_bytes()) {
                Ok(answer) => format!("taken in as {}", answer.id),
                Err(Attempt::Again(why)) => format!("again: {why}"),
                Err(Attempt::Final(error)) => error.to_string(),
            }
        };
        assert_eq!(of(201, r#"{"cluster":"05","id":7,"authorities":{}}"#), "taken in as 7");
        assert_eq!(of(503, r#"{"message":"no leader"}"#), "again: m: no leader");
        assert_eq!(of(504, ""), "again: m: 504 Gateway Timeout");
        let refused = "m refuses the token: it has expired, was deleted, or is not one for members";
        assert_eq!(of(403, ""), refused);
        let taken = "m does not take this server in: the name is taken";
        assert_eq!(of(409, r#"{"message":"the name is taken"}"#), taken);
    }
}
