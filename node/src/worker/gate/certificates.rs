//! Which certificate a client of an Ingress or Gateway gets, by the name that it asks for.
//!
//! Certificates are replaced while connections go on; a new connection gets the newest. A name that
//! no Secret is for gets a certificate that nobody trusts, so that the handshake works and the
//! browser says what is wrong.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use crate::protocol::{Certificate, Family};

/// Name in the certificate for names that nobody knows.
const NOBODY: &str = "ingress.wherry.invalid";

/// Why a Secret cannot be used.
#[derive(Debug, thiserror::Error)]
enum SecretError {
    #[error("tls.crt holds no certificate")]
    NoCertificate,
    #[error("tls.key holds no key: {0}")]
    NoKey(rustls::pki_types::pem::Error),
    #[error("certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// The newest certificates.
#[derive(Debug)]
pub struct Certificates {
    /// By host; wildcards for one label with their dot at the beginning, those for any number with
    /// their asterisk, one for every name empty.
    known: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
    nobody: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// With none yet.
    pub fn new() -> Arc<Certificates> {
        Arc::new(Certificates { known: ArcSwap::default(), nobody: nobody() })
    }

    /// Replaces all.
    pub fn publish(&self, certificates: &[Certificate]) {
        let mut known: HashMap<String, Arc<CertifiedKey>> = HashMap::new();
        for certificate in certificates {
            match read(certificate) {
                Ok(key) => {
                    let (hosts, family) = match certificate.hosts.is_empty() {
                        true => (names(&key), Family::Ingress),
                        false => (certificate.hosts.clone(), certificate.family),
                    };
                    for host in hosts {
                        // The older object's stays.
                        known.entry(entry_of(&host, family)).or_insert_with(|| key.clone());
                    }
                }
                Err(error) => {
                    tracing::warn!(secret = certificate.secret, %error, "Secret for TLS");
                }
            }
        }
        self.known.store(Arc::new(known));
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let known = self.known.load();
        let name = name.map(str::to_ascii_lowercase);
        let exact = name.as_ref().and_then(|name| known.get(name));
        let below = || {
            let name = name.as_ref()?;
            known.get(&name[name.find('.')?..])
        };
        let far_below = || {
            let name = name.as_ref()?;
            name.match_indices('.').find_map(|(dot, _)| known.get(&format!("*{}", &name[dot..])))
        };
        let found = exact.or_else(below).or_else(far_below).or_else(|| known.get(""));
        found.or(self.nobody.as_ref()).cloned()
    }

    /// TLS for clients: HTTP/2 or HTTP/1.1.
    pub fn config(self: &Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

fn entry_of(host: &str, family: Family) -> String {
    let host = host.to_ascii_lowercase();
    match host.strip_prefix('*') {
        Some(below) if family == Family::Ingress => below.to_owned(),
        _ => host,
    }
}

fn read(certificate: &Certificate) -> Result<Arc<CertifiedKey>, SecretError> {
    let chain = CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes());
    let chain: Vec<CertificateDer<'static>> =
        chain.collect::<Result<_, _>>().map_err(|_| SecretError::NoCertificate)?;
    if chain.is_empty() {
        return Err(SecretError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes());
    let key = key.map_err(SecretError::NoKey)?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider());
    key.map(Arc::new).map_err(SecretError::Unusable)
}

/// The DNS names in a certificate.
fn names(key: &CertifiedKey) -> Vec<String> {
    let leaf = key.cert.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let extensions = leaf.iter().flat_map(|(_, leaf)| leaf.extensions());
    let mut found = Vec::new();
    for extension in extensions {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            found.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            }));
        }
    }
    found
}

fn nobody() -> Option<Arc<CertifiedKey>> {
    let mut wanted = CertificateParams::new(vec![NOBODY.to_owned()]).ok()?;
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, "Wherry Ingress default certificate");
    let key = KeyPair::generate().ok()?;
    let chain = vec![wanted.self_signed(&key).ok()?.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).ok()?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(hosts: &[&str], names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Certificate {
            secret: "d/tls".to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            family: Family::Ingress,
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        }
    }

    #[test]
    fn a_name_gets_its_certificate_and_strangers_a_useless_one() {
        let certificates = Certificates::new();
        let first = |name| {
            let found = certificates.find(name).expect("there is always one");
            names(&found).remove(0)
        };
        assert_eq!(first(Some("foo.com")), NOBODY);
        let default = certificates.find(None).expect("there is always one");
        let (_, default) = X509Certificate::from_der(&default.cert[0]).expect("a certificate");
        assert_eq!(default.subject().to_string(), "CN=Wherry Ingress default certificate");
        certificates.publish(&[
            certificate(&["foo.com"], &["a.example"]),
            certificate(&["*.bar.com"], &["b.example"]),
            certificate(&[], &["named.example"]),
            Certificate { key_pem: "no key".to_owned(), ..certificate(&["bad.com"], &["x"]) },
        ]);
        assert_eq!(first(Some("FOO.com")), "a.example");
        assert_eq!(first(Some("x.bar.com")), "b.example");
        assert_eq!(first(Some("named.example")), "named.example");
        for stranger in [Some("bad.com"), Some("x.y.bar.com"), None] {
            assert_eq!(first(stranger), NOBODY);
        }
        // A Gateway's asterisk stands for any number of labels, and an empty name for every one.
        let far = Certificate {
            family: Family::Gateway,
            ..certificate(&["*.far.com"], &["far.example"])
        };
        certificates.publish(&[far, certificate(&[""], &["open.example"])]);
        assert_eq!(first(Some("x.y.far.com")), "far.example");
        assert_eq!(first(Some("far.com")), "open.example");
        assert_eq!(first(None), "open.example");
        // A Secret that changed counts for the next connection.
        certificates.publish(&[certificate(&["foo.com"], &["new.example"])]);
        assert_eq!(first(Some("foo.com")), "new.example");
    }
}
