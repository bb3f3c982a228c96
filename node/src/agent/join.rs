//! How a node gets its identity, keeps it, and renews it.
//!
//! ```text
//!   token id.secret.pin ──▶ TLS: the server shows its CA, the CA's hash must be the pin
//!                       ──▶ new key, certificate request, sent with the token as bearer
//!                       ──▶ certificate system:node:NAME, group system:nodes
//!   <data dir>/pki/{ca.crt, node.crt, node.key}   files 0600, reused at the next start
//! ```
//!
//! The pin makes the first contact safe: whoever stands between node and server would have to own the
//! cluster's CA. After that the stored CA is the only one that is trusted. At two thirds of its life
//! the certificate is replaced by the same way, authenticated by itself.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use wherry_resources::join_token::JoinToken;

use super::client::{ClientError, Connection, Credential, has_code};

/// Signer of node certificates.
const SIGNER_NODE: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of certificates for traffic between workers.
const SIGNER_TRAFFIC: &str = "wherry.dev/traffic";
/// How often a pending request is looked at; a controller signs it in milliseconds.
const POLL: Duration = Duration::from_millis(200);
/// How long a request may stay pending before it is made anew.
const PENDING_MAX: Duration = Duration::from_secs(60);
/// First and longest wait between attempts to reach a server.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How often the certificate's age is looked at: small against any certificate's life, and short
/// enough that a clock that jumped is noticed.
const RENEW_CHECK: Duration = Duration::from_secs(600);

/// Why a node cannot join or keep its identity.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No usable certificate and no token.
    #[error(
        "this node has no certificate yet and no token was given; make one with `wherry token \
         create` on the control plane and start the node with --token"
    )]
    NoToken,
    /// The token is not one.
    #[error("the join token is not of the form <id>.<secret>.<hash of the cluster's CA>")]
    Token,
    /// No server of the list has the pinned CA.
    #[error(
        "{server} does not show the CA that the token names: the token is of another cluster, or \
         somebody stands in between"
    )]
    WrongCa {
        /// Which server.
        server: String,
    },
    /// The token was refused.
    #[error(
        "the control plane refuses the join token: it has expired, was deleted, or is not one for \
         nodes; make a new one with `wherry token create`"
    )]
    Refused,
    /// A server could not be reached.
    #[error("reach {server}")]
    Reach {
        /// Which server.
        server: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read or written.
    #[error("use {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key or the request could not be made.
    #[error("make a certificate request")]
    Request(#[source] rcgen::Error),
    /// The API did not take or answer the request.
    #[error("send the certificate request")]
    Send(#[source] Box<kube::Error>),
    /// The request was denied.
    #[error("the certificate request was denied: {0}")]
    Denied(String),
    /// Nobody signed in time.
    #[error("nobody signed the certificate request within {} s", PENDING_MAX.as_secs())]
    Pending,
    /// What came back is no certificate.
    #[error("the signed certificate cannot be read: {0}")]
    Certificate(String),
    /// No client could be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The agent is being stopped.
    #[error("stopped before the node had joined")]
    Stopped,
}

/// Key, certificate and the CA that the node trusts.
#[derive(Clone)]
pub struct Identity {
    /// The cluster's CA.
    pub ca_pem: String,
    /// The node's certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    /// First and last moment of its validity.
    pub validity: (Timestamp, Timestamp),
}

impl Identity {
    fn credential(&self) -> Credential {
        Credential::Certificate {
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

/// Whether the node of this data folder has been given an identity.
pub fn has_joined(data_dir: &Path) -> bool {
    data_dir.join("pki/node.crt").exists()
}

/// Finds or gets the node's identity and connects with it. Waits as long as no server can be
/// reached; ends with an error only where waiting does not help.
pub async fn join(
    node: &str,
    data_dir: &Path,
    servers: &[String],
    token: Option<&str>,
    shutdown: &CancellationToken,
) -> Result<(Arc<Connection>, Identity), JoinError> {
    let folder = data_dir.join("pki");
    let token = token.map(|text| JoinToken::parse(text).ok_or(JoinError::Token)).transpose()?;
    if let Some(identity) = load(&folder, node, token.as_ref()) {
        let connection = Connection::new(servers, &identity.ca_pem, &identity.credential())?;
        return Ok((connection, identity));
    }
    let token = token.ok_or(JoinError::NoToken)?;
    let mut wait = RETRY.0;
    loop {
        let attempt = attempt(node, servers, &token);
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
        };
        match outcome {
            Ok(identity) => {
                store(&folder, &identity)?;
                let connection =
                    Connection::new(servers, &identity.ca_pem, &identity.credential())?;
                tracing::info!(node, until = %identity.validity.1, "joined");
                return Ok((connection, identity));
            }
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot join yet");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
        }
        wait = (wait * 2).min(RETRY.1);
    }
}

fn is_final(error: &JoinError) -> bool {
    matches!(
        error,
        JoinError::WrongCa { .. }
            | JoinError::Refused
            | JoinError::Denied(_)
            | JoinError::Client(_)
            | JoinError::File { .. }
    )
}

async fn attempt(node: &str, servers: &[String], token: &JoinToken) -> Result<Identity, JoinError> {
    let ca_pem = pinned_ca(servers, token).await?;
    let credential = Credential::Token(token.bearer.clone());
    let connection = Connection::new(servers, &ca_pem, &credential)?;
    let (certificate_pem, key_pem) = sign_node(&connection.client(), node).await?;
    let validity = validity(&certificate_pem)?;
    Ok(Identity { ca_pem, certificate_pem, key_pem, validity })
}

/// Replaces the certificate in time, until `shutdown`.
pub async fn keep_renewed(
    connection: Arc<Connection>,
    mut identity: Identity,
    node: String,
    data_dir: PathBuf,
    shutdown: CancellationToken,
) {
    loop {
        if is_due(identity.validity, Timestamp::now()) {
            match renew(&connection, &identity, &node, &data_dir).await {
                Ok(renewed) => {
                    tracing::info!(until = %renewed.validity.1, "renewed the node's certificate");
                    identity = renewed;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot renew the node's certificate yet");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW_CHECK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn renew(
    connection: &Arc<Connection>,
    identity: &Identity,
    node: &str,
    data_dir: &Path,
) -> Result<Identity, JoinError> {
    let (certificate_pem, key_pem) = sign_node(&connection.client(), node).await?;
    let validity = validity(&certificate_pem)?;
    let renewed = Identity { ca_pem: identity.ca_pem.clone(), certificate_pem, key_pem, validity };
    store(&data_dir.join("pki"), &renewed)?;
    connection.replace(&renewed.credential())?;
    Ok(renewed)
}

/// Whether two thirds of a certificate's life are over.
pub fn is_due((from, until): (Timestamp, Timestamp), now: Timestamp) -> bool {
    let life = until.as_second() - from.as_second();
    now.as_second() >= from.as_second() + life / 3 * 2
}

/// The certificate of a worker: `(certificate, key, authority)` as PEM and its validity. The signer
/// answers with the leaf and, after it, the traffic authority.
pub async fn sign_traffic(
    client: &kube::Client,
    node: &str,
    namespace: &str,
) -> Result<(crate::protocol::Identity, (Timestamp, Timestamp)), JoinError> {
    let usages = ["digital signature", "client auth", "server auth"];
    let (pem, key_pem) = sign(client, SIGNER_TRAFFIC, node, node, namespace, &usages).await?;
    const END: &str = "-----END CERTIFICATE-----";
    let split = pem.find(END).map(|at| at + END.len()).unwrap_or(pem.len());
    let (leaf, chain) = pem.split_at(split);
    if !chain.contains("BEGIN CERTIFICATE") {
        let problem = "the traffic authority is missing behind the certificate".to_owned();
        return Err(JoinError::Certificate(problem));
    }
    let validity = validity(leaf)?;
    let identity = crate::protocol::Identity {
        certificate_pem: format!("{leaf}\n"),
        key_pem,
        ca_pem: chain.trim_start().to_owned(),
    };
    Ok((identity, validity))
}

async fn sign_node(client: &kube::Client, node: &str) -> Result<(String, String), JoinError> {
    let usages = ["digital signature", "client auth"];
    sign(client, SIGNER_NODE, node, &format!("system:node:{node}"), "system:nodes", &usages).await
}

/// Makes a key, asks for a certificate over it, and waits until somebody signed.
async fn sign(
    client: &kube::Client,
    signer: &str,
    node: &str,
    common_name: &str,
    organization: &str,
    usages: &[&str],
) -> Result<(String, String), JoinError> {
    let key = KeyPair::generate().map_err(JoinError::Request)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let request = params.serialize_request(&key).and_then(|request| request.pem());
    let request = request.map_err(JoinError::Request)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = format!("node-{node}-{:08x}", rand::random::<u32>());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: k8s_openapi::ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let refused = |error: kube::Error| {
        if has_code(&error, 401) || has_code(&error, 403) {
            JoinError::Refused
        } else {
            JoinError::Send(Box::new(error))
        }
    };
    api.create(&PostParams::default(), &object).await.map_err(refused)?;
    let certificate = tokio::time::timeout(PENDING_MAX, signed(&api, &name))
        .await
        .map_err(|_| JoinError::Pending)??;
    Ok((certificate, key.serialize_pem()))
}

async fn signed(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String, JoinError> {
    loop {
        let object = api.get(name).await.map_err(|error| JoinError::Send(Box::new(error)))?;
        let status = object.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            return String::from_utf8(certificate.0)
                .map_err(|_| JoinError::Certificate("it is not PEM".to_owned()));
        }
        let refusal = status
            .conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Denied" || condition.type_ == "Failed");
        if let Some(refusal) = refusal {
            return Err(JoinError::Denied(refusal.message.unwrap_or_default()));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn validity(pem: &str) -> Result<(Timestamp, Timestamp), JoinError> {
    let error = |what: &dyn std::fmt::Display| JoinError::Certificate(what.to_string());
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| error(&e))?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| error(&e))?;
    let validity = certificate.validity();
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|e| error(&e));
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// The stored identity, if it is complete, of this node and cluster, and valid now.
fn load(folder: &Path, node: &str, token: Option<&JoinToken>) -> Option<Identity> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let (ca_pem, certificate_pem, key_pem) =
        (read("ca.crt")?, read("node.crt")?, read("node.key")?);
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok()?;
    if token.is_some_and(|token| Sha256::digest(&ca)[..] != token.pin) {
        tracing::warn!("the token is of another cluster than the stored identity; joining anew");
        return None;
    }
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let common_name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let validity = validity(&certificate_pem).ok()?;
    let valid = Timestamp::now() < validity.1;
    if common_name != format!("system:node:{node}") || !valid {
        tracing::warn!(common_name, until = %validity.1, "the stored identity cannot be used");
        return None;
    }
    Some(Identity { ca_pem, certificate_pem, key_pem, validity })
}

/// Writes the three files; the certificate last, so that a crash leaves either a complete identity
/// or none.
fn store(folder: &Path, identity: &Identity) -> Result<(), JoinError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| JoinError::File { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file(folder))?;
    let files = [
        ("ca.crt", &identity.ca_pem),
        ("node.key", &identity.key_pem),
        ("node.crt", &identity.certificate_pem),
    ];
    // Key and certificate must match: without the old certificate a crash in between means to join
    // again, with it the node would hold a pair that opens nothing.
    let _ = fs::remove_file(folder.join("node.crt"));
    for (name, content) in files {
        let path = folder.join(name);
        write_private(&path, content.as_bytes()).map_err(file(&path))?;
    }
    Ok(())
}

/// Replaces a file by one that only its owner can read, durably.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// The cluster's CA as the first reachable server shows it, checked against the pin.
async fn pinned_ca(servers: &[String], token: &JoinToken) -> Result<String, JoinError> {
    let mut last = JoinError::Pending;
    for server in servers {
        match shown_ca(server, token).await {
            Ok(der) => return Ok(pem(&der)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

async fn shown_ca(server: &str, token: &JoinToken) -> Result<Vec<u8>, JoinError> {
    let reach = |source| JoinError::Reach { server: server.to_owned(), source };
    let bad = || reach(std::io::Error::other("not an address like https://host:6443"));
    let rest = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
    let authority: http::uri::Authority = rest.parse().map_err(|_| bad())?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
    let port = authority.port_u16().unwrap_or(443);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa {
        pin: token.pin,
        provider: provider.clone(),
        seen: Mutex::new(Seen::Nothing),
    });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let connect = async {
        let stream = tokio::net::TcpStream::connect((host.as_str(), port)).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let outcome = tokio::time::timeout(Duration::from_secs(10), connect)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let seen = std::mem::replace(
        &mut *verifier.seen.lock().expect("nobody panics while holding it"),
        Seen::Nothing,
    );
    match (outcome, seen) {
        (Ok(_), Seen::Pinned(der)) => Ok(der),
        (_, Seen::Other) => Err(JoinError::WrongCa { server: server.to_owned() }),
        (Ok(_), Seen::Nothing) => Err(bad()),
        (Err(source), _) => Err(reach(source)),
    }
}

/// Accepts a server whose chain contains the pinned CA and whose leaf that CA has signed.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
    /// Written once during the handshake, read after it: never held across an await.
    seen: Mutex<Seen>,
}

#[derive(Debug)]
enum Seen {
    Nothing,
    Pinned(Vec<u8>),
    Other,
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
        let mut seen = self.seen.lock().expect("nobody panics while holding it");
        let Some(ca) = ca else {
            *seen = Seen::Other;
            return Err(rustls::CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        *seen = Seen::Pinned(ca.to_vec());
        Ok(ServerCertVerified::assertion())
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
    fn renewal_is_due_after_two_thirds() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert!(!is_due((at(0), at(300)), at(199)));
        assert!(is_due((at(0), at(300)), at(200)));
    }
}
