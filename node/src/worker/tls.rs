//! Who workers are to each other: the TLS of the traffic between them.
//!
//! A worker's certificate is signed by the traffic authority, with the node as its common name and
//! the namespace as its organisation; addresses are not in it, because a worker's port changes
//! with every start. So both sides check the chain during the handshake, and then compare the
//! [`PeerIdentity`] with the one they expect. The API server does not trust this authority.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::protocol::Identity;

/// HTTP/2 and nothing else is spoken between workers.
const ALPN: &[u8] = b"h2";

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// One of the three is not PEM of its kind.
    #[error("read the {what} of the traffic identity")]
    Pem {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate in it.
    #[error("the traffic identity has no certificate")]
    Empty,
    /// rustls refuses it: key and certificate do not belong together, or the authority is unusable.
    #[error("use the traffic identity for TLS")]
    Tls(#[source] rustls::Error),
    /// The authority's certificate cannot verify clients.
    #[error("use the traffic authority to check peers")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Its subject does not say who it is.
    #[error(transparent)]
    Subject(#[from] SubjectError),
}

/// A certificate that does not name a worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a traffic certificate {0}")]
pub struct SubjectError(&'static str);

/// What a traffic certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// Common name.
    pub node: String,
    /// Organisation.
    pub namespace: String,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the worker of namespace {} on node {}", self.namespace, self.node)
    }
}

/// An identity ready for connections.
#[derive(Clone)]
pub struct Credentials {
    /// For accepting peers; demands a certificate of theirs.
    pub server: Arc<ServerConfig>,
    /// For connecting to peers. Checks the chain only: compare [`peer_identity`] afterwards.
    pub client: Arc<ClientConfig>,
    /// Who this is.
    pub holder: PeerIdentity,
    /// When it ends.
    pub until: Timestamp,
}

impl Credentials {
    /// Checks the parts of an identity and builds both sides of TLS from it.
    pub fn new(identity: &Identity) -> Result<Credentials, IdentityError> {
        let chain = certificates("certificate", &identity.certificate_pem)?;
        let leaf = chain.first().ok_or(IdentityError::Empty)?;
        let (holder, until) = read(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
            .map_err(|source| IdentityError::Pem { what: "key", source })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates("authority", &identity.ca_pem)? {
            roots.add(authority).map_err(IdentityError::Tls)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        Ok(Credentials {
            server: server(&provider, &roots, chain.clone(), key.clone_key())?,
            client: client(&provider, roots, chain, key)?,
            holder,
            until,
        })
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(IdentityError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(IdentityError::Tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long; resumed ones would carry identities from before a renewal.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier { roots, algorithms }))
        .with_client_auth_cert(chain, key)
        .map_err(IdentityError::Tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Checks that the traffic authority signed a server's certificate; the name in it is compared by
/// the caller, who knows which worker it wanted.
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| IdentityError::Pem { what, source })
}

/// Who the other side of a finished handshake is.
pub fn peer_identity(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<PeerIdentity, SubjectError> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(SubjectError("is missing"))?;
    read(leaf).map(|(identity, _)| identity)
}

fn read(leaf: &CertificateDer<'_>) -> Result<(PeerIdentity, Timestamp), SubjectError> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| SubjectError("is not X.509"))?;
    let subject = certificate.subject();
    // Exactly one of each: a second value could mean something else to another reader.
    let one = |mut values: Vec<&str>, missing| match values.pop() {
        Some(value) if values.is_empty() && !value.is_empty() => Ok(value.to_owned()),
        _ => Err(SubjectError(missing)),
    };
    let node = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let namespace = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
    let identity = PeerIdentity {
        node: one(node, "does not name one node")?,
        namespace: one(namespace, "does not name one namespace")?,
    };
    let until = Timestamp::from_second(certificate.validity().not_after.timestamp())
        .map_err(|_| SubjectError("has an end that is no time"))?;
    Ok((identity, until))
}
