//! The cluster's certificate authorities and what they issue.
//!
//! Three authorities, made at the first member's first start and kept under `pki/` in its data
//! folder, keys readable by their owner only; a member that joins is given them:
//! - `ca` signs the API server's certificate and every client certificate. A client's user name is
//!   the certificate's common name and its groups are the organizations, as in Kubernetes.
//! - `traffic-ca` signs what workers show each other (common name = node, organization = namespace).
//!   The API server does not trust it, so a worker's key opens nothing but worker-to-worker traffic.
//! - `peer-ca` signs what members show each other (common name `wherry-member:ID`). The API server
//!   trusts it for nothing but peer connections, and nothing else is trusted there. It also signs
//!   what the API server shows to the servers behind APIServices ([`FRONT_PROXY`]).
//!
//! Beside them lies `sa.key`, with which the API server signs the tokens of service accounts.
//!
//! Keys are ECDSA P-256. A member's own leaves are made anew at each start and never stored. A
//! certificate for a request carries the subject that the caller decided on; only the public key is
//! taken from the request.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

/// An authority outlives everything it signs; its rotation is an operator's act.
const AUTHORITY_DAYS: i64 = 3650;
/// Leaves are renewed by their holders well before this.
pub const LEAF_DAYS: i64 = 365;
/// Clocks of machines differ; a certificate is valid from this long before it was made.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// Why a certificate or key could not be read, made or stored.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{} is not a usable certificate authority ({source}); restore it from a backup, or start \
         with an empty data folder",
        path.display()
    )]
    Authority { path: PathBuf, source: rcgen::Error },
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
    #[error("the other member did not send {0}; both must run the same version")]
    NotShared(&'static str),
    #[error("making a certificate failed: {0}")]
    Make(#[from] rcgen::Error),
    #[error("setting up TLS failed: {0}")]
    Tls(String),
}

/// What a leaf certificate says and may be used for.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    pub common_name: String,
    pub organization: Option<String>,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub client: bool,
    pub server: bool,
    /// Shorter than usual; never longer.
    pub lifetime: Option<std::time::Duration>,
}

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// The subject that a PKCS#10 request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub has_alternative_names: bool,
    /// The alternative names that are DNS names, and those that are addresses.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// Whether there are alternative names of any other sort.
    pub has_other_names: bool,
}

/// One certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The authorities of a cluster.
pub struct Pki {
    pub cluster: Authority,
    pub traffic: Authority,
    pub peer: Authority,
    folder: PathBuf,
    /// Private key (PKCS#8, PEM) that signs the tokens of service accounts.
    pub token_key_pem: String,
}

/// Files below the folder that all members of a cluster have in common, keys before their
/// certificates: a certificate's file is the sign that its authority is complete.
const SHARED_FILES: [&str; 6] =
    ["ca.key", "ca.crt", "traffic-ca.key", "traffic-ca.crt", "peer-ca.key", "peer-ca.crt"];
/// The same where they are there: the key of service accounts' tokens.
const SHARED_FILES_IF_ANY: [&str; 1] = ["sa.key"];

/// The content of the files that all members of a cluster have in common, by their names. Whoever
/// has it can act as the cluster.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Shared(BTreeMap<String, String>);

impl Pki {
    /// Reads the authorities below `folder`, or makes them there.
    pub fn load_or_create(folder: &Path) -> Result<Pki, PkiError> {
        create_private_folder(folder)?;
        Ok(Pki {
            cluster: Authority::load_or_create(folder, "ca", "wherry-ca")?,
            traffic: Authority::load_or_create(folder, "traffic-ca", "wherry-traffic-ca")?,
            peer: Authority::load_or_create(folder, "peer-ca", "wherry-peer-ca")?,
            folder: folder.to_owned(),
            token_key_pem: load_or_create_key(&folder.join("sa.key"))?,
        })
    }

    /// What another member needs to be one of this cluster.
    pub fn shared(&self) -> Result<Shared, PkiError> {
        let mut files = BTreeMap::new();
        for name in SHARED_FILES.into_iter().chain(SHARED_FILES_IF_ANY) {
            let path = self.folder.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => _ = files.insert(name.to_owned(), text),
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && SHARED_FILES_IF_ANY.contains(&name) => {}
                Err(source) => return Err(PkiError::File { what: "read", path, source }),
            }
        }
        Ok(Shared(files))
    }

    /// Puts what another member has shared below `folder`.
    pub fn adopt(folder: &Path, shared: &Shared) -> Result<(), PkiError> {
        create_private_folder(folder)?;
        for name in SHARED_FILES {
            let text = shared.0.get(name).ok_or(PkiError::NotShared(name))?;
            write_private(&folder.join(name), text.as_bytes())?;
        }
        for name in SHARED_FILES_IF_ANY {
            if let Some(text) = shared.0.get(name) {
                write_private(&folder.join(name), text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// The TLS side of a member's port towards clients: asks for a client certificate, takes a
    /// connection without one.
    pub fn server_config(&self, server: &Profile) -> Result<rustls::ServerConfig, PkiError> {
        let verifier = self.cluster.client_verifier()?.allow_unauthenticated().build();
        let (mut chain, key) = self.cluster.leaf(server)?;
        // Whoever joins knows the authority by its hash only, and finds it here.
        chain.push(certificate_of(&self.cluster.certificate_pem)?);
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier.map_err(tls)?)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The TLS side of a member's port towards other members: nobody else comes in.
    pub fn peer_server_config(&self, member: u64) -> Result<rustls::ServerConfig, PkiError> {
        let verifier = self.peer.client_verifier()?.build().map_err(tls)?;
        let (chain, key) = self.peer.leaf(&peer_profile(member))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// What the API server shows to servers behind APIServices, which believe what it says of its
    /// users. Not under `ca`: there a certificate of any name may be asked for.
    pub fn front_proxy(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let common_name = FRONT_PROXY.to_owned();
        self.peer.leaf(&Profile { common_name, client: true, ..Profile::default() })
    }

    /// The TLS side of a member that calls another one. The other's certificate must carry
    /// [`peer_name`] of the member that is called.
    pub fn peer_client_config(&self, member: u64) -> Result<rustls::ClientConfig, PkiError> {
        let (chain, key) = self.peer.leaf(&peer_profile(member))?;
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(self.peer.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// The common name of the API server as a front proxy.
pub const FRONT_PROXY: &str = "wherry-front-proxy";
/// The end of every name under which members meet each other.
const PEER_DOMAIN: &str = ".peer.wherry.internal";
/// The beginning of the common name in a member's certificate; its id follows.
const PEER_PREFIX: &str = "wherry-member:";

/// The name of a member in the TLS handshake of a peer connection: its certificate carries it, so
/// that a call ends where another member answers.
pub fn peer_name(member: u64) -> String {
    format!("member-{member}{PEER_DOMAIN}")
}

/// Whether a TLS handshake that names this server is one between members.
pub fn is_peer_name(name: &str) -> bool {
    name.ends_with(PEER_DOMAIN)
}

/// The member that a verified peer certificate (DER) belongs to.
pub fn peer_member(certificate: &[u8]) -> Option<u64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    name.strip_prefix(PEER_PREFIX)?.parse().ok()
}

fn peer_profile(member: u64) -> Profile {
    Profile {
        common_name: format!("{PEER_PREFIX}{member}"),
        names: vec![peer_name(member)],
        client: true,
        server: true,
        ..Profile::default()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn tls(error: impl std::fmt::Display) -> PkiError {
    PkiError::Tls(error.to_string())
}

impl Authority {
    /// Reads `STEM.crt` and `STEM.key` in `folder`; makes both when neither is there.
    pub fn load_or_create(
        folder: &Path,
        stem: &str,
        common_name: &str,
    ) -> Result<Authority, PkiError> {
        let certificate_file = folder.join(format!("{stem}.crt"));
        let key_file = folder.join(format!("{stem}.key"));
        if !certificate_file.exists() {
            return Authority::create(&certificate_file, &key_file, common_name);
        }
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| PkiError::File {
                what: "read",
                path: path.to_owned(),
                source,
            })
        };
        let (certificate_pem, key_pem) = (read(&certificate_file)?, read(&key_file)?);
        let bad = |source| PkiError::Authority { path: certificate_file.clone(), source };
        let key = KeyPair::from_pem(&key_pem).map_err(bad)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(bad)?;
        Ok(Authority { certificate_pem, issuer })
    }

    fn create(
        certificate_file: &Path,
        key_file: &Path,
        common_name: &str,
    ) -> Result<Authority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, AUTHORITY_DAYS);
        let certificate_pem = params.self_signed(&key)?.pem();
        // The certificate's file is the sign that the authority exists, so it comes last.
        write_private(key_file, key.serialize_pem().as_bytes())?;
        write_private(certificate_file, certificate_pem.as_bytes())?;
        Ok(Authority { certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Those who trust this authority and nobody else.
    fn roots(&self) -> Result<Arc<rustls::RootCertStore>, PkiError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate_of(&self.certificate_pem)?).map_err(tls)?;
        Ok(Arc::new(roots))
    }

    fn client_verifier(&self) -> Result<ClientCertVerifierBuilder, PkiError> {
        Ok(WebPkiClientVerifier::builder_with_provider(self.roots()?, provider()))
    }

    /// A new leaf in the form that TLS wants.
    fn leaf(
        &self,
        profile: &Profile,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let identity = self.issue(profile)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(tls)?;
        Ok((vec![certificate_of(&identity.certificate_pem)?], key))
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The SHA-256 of the authority's certificate (DER), in hex: what a join token pins.
    pub fn fingerprint(&self) -> Result<String, PkiError> {
        Ok(fingerprint(&certificate_of(&self.certificate_pem)?))
    }

    /// Makes a new key and a certificate for it.
    pub fn issue(&self, profile: &Profile) -> Result<Identity, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = leaf(profile)?.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Makes a certificate for the public key of a PKCS#10 request, whose subject the caller has
    /// checked. What it says comes from `profile` alone.
    pub fn sign_request(&self, request_pem: &str, profile: &Profile) -> Result<String, PkiError> {
        let request = parse_request(request_pem)?;
        Ok(leaf(profile)?.signed_by(&request.public_key, &self.issuer)?.pem())
    }
}

impl Request {
    /// Reads and verifies (proof of possession) a PKCS#10 request in PEM.
    pub fn parse(request_pem: &str) -> Result<Request, PkiError> {
        let params = parse_request(request_pem)?.params;
        let mut request = Request {
            common_name: String::new(),
            organizations: Vec::new(),
            has_alternative_names: !params.subject_alt_names.is_empty(),
            names: Vec::new(),
            addresses: Vec::new(),
            has_other_names: false,
        };
        for name in &params.subject_alt_names {
            match name {
                SanType::DnsName(name) => request.names.push(name.as_str().to_owned()),
                SanType::IpAddress(address) => request.addresses.push(*address),
                _ => request.has_other_names = true,
            }
        }
        for (kind, value) in params.distinguished_name.iter() {
            let text = match value {
                DnValue::Utf8String(text) => text.clone(),
                DnValue::PrintableString(text) => text.as_str().to_owned(),
                DnValue::Ia5String(text) => text.as_str().to_owned(),
                _ => return Err(PkiError::Request(format!("{kind:?} is not plain text"))),
            };
            match kind {
                DnType::CommonName => request.common_name = text,
                DnType::OrganizationName => request.organizations.push(text),
                other => {
                    return Err(PkiError::Request(format!("its subject must not have {other:?}")));
                }
            }
        }
        Ok(request)
    }
}

fn parse_request(request_pem: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    CertificateSigningRequestParams::from_pem(request_pem)
        .map_err(|error| PkiError::Request(error.to_string()))
}

fn leaf(profile: &Profile) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(profile.names.clone())?;
    let addresses = profile.addresses.iter().map(|address| SanType::IpAddress(*address));
    params.subject_alt_names.extend(addresses);
    params.distinguished_name = subject(&profile.common_name, profile.organization.as_deref());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    if profile.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if profile.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    set_validity(&mut params, LEAF_DAYS);
    if let Some(lifetime) = profile.lifetime {
        let end = OffsetDateTime::now_utc() + lifetime;
        params.not_after = params.not_after.min(end);
    }
    Ok(params)
}

fn subject(common_name: &str, organization: Option<&str>) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
}

/// The SHA-256 of a certificate (DER), in hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate.as_ref()))
}

fn certificate_of(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(tls)
}

/// The private key in a file; made when there is none.
fn load_or_create_key(path: &Path) -> Result<String, PkiError> {
    if path.exists() {
        let file = |source| PkiError::File { what: "read", path: path.to_owned(), source };
        return fs::read_to_string(path).map_err(file);
    }
    let pem = KeyPair::generate()?.serialize_pem();
    write_private(path, pem.as_bytes())?;
    Ok(pem)
}

pub fn create_private_folder(folder: &Path) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| {
        PkiError::File { what: "create the folder", path: folder.to_owned(), source }
    })
}

/// Writes a file that only its owner may read, so that a crash leaves the old file or the new one.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let new = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    written().map_err(|source| PkiError::File { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::load_or_create(folder.path(), "ca", "test-ca").expect("a CA");
        (folder, authority)
    }

    fn request_for(common_name: &str, organization: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, Some(organization));
        let key = KeyPair::generate().expect("a key");
        params.serialize_request(&key).expect("a request").pem().expect("PEM")
    }

    #[test]
    fn an_authority_is_made_once_and_read_again() {
        let (folder, first) = authority();
        let again = Authority::load_or_create(folder.path(), "ca", "test-ca").expect("a CA");
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let issued = again.issue(&Profile { common_name: "admin".into(), ..Profile::default() });
        let pem = issued.expect("a leaf").certificate_pem;
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let leaf = pem.parse_x509().expect("a certificate");
        assert_eq!(leaf.subject().to_string(), "CN=admin");
        assert_eq!(leaf.issuer().to_string(), "CN=test-ca");
    }

    #[test]
    fn a_cluster_is_shared_whole() {
        let (first, second) = (tempfile::tempdir(), tempfile::tempdir());
        let (first, second) = (first.expect("a folder"), second.expect("a folder"));
        let made = Pki::load_or_create(first.path()).expect("authorities");
        Pki::adopt(second.path(), &made.shared().expect("files")).expect("written");
        let same = Pki::load_or_create(second.path()).expect("authorities");
        for (made, same) in [
            (&made.cluster, &same.cluster),
            (&made.traffic, &same.traffic),
            (&made.peer, &same.peer),
        ] {
            assert_eq!(made.certificate_pem(), same.certificate_pem());
        }
        let (chain, _) = same.peer.leaf(&peer_profile(7)).expect("a leaf");
        assert_eq!(peer_member(&chain[0]), Some(7));
        let (chain, _) = same.cluster.leaf(&Profile::default()).expect("a leaf");
        assert_eq!(peer_member(&chain[0]), None);
        let broken = Shared(BTreeMap::new());
        let error = Pki::adopt(second.path(), &broken).expect_err("nothing was sent");
        assert!(error.to_string().contains("did not send ca.key"), "{error}");
    }

    #[test]
    fn a_request_says_its_subject_and_gets_only_what_was_decided() {
        let (_folder, authority) = authority();
        let request = request_for("system:node:a", "system:nodes");
        let parsed = Request::parse(&request).expect("a request");
        assert_eq!(parsed.common_name, "system:node:a");
        assert_eq!(parsed.organizations, ["system:nodes"]);
        assert!(!parsed.has_alternative_names);
        let decided = Profile { common_name: "other".into(), client: true, ..Profile::default() };
        let pem = authority.sign_request(&request, &decided).expect("a certificate");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        assert_eq!(pem.parse_x509().expect("a certificate").subject().to_string(), "CN=other");
    }

    #[test]
    fn rubbish_is_refused_with_its_place() {
        let error = Request::parse("nonsense").expect_err("not a request");
        assert!(error.to_string().starts_with("the certificate request cannot be used: "));
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("ca.crt"), "nonsense").expect("written");
        fs::write(folder.path().join("ca.key"), "nonsense").expect("written");
        let error = Authority::load_or_create(folder.path(), "ca", "x").err().expect("refused");
        assert!(error.to_string().contains("ca.crt is not a usable certificate authority"));
    }
}
