//! Objects of the Gateway API as the cache holds them, and whether a Secret holds a certificate.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::sign::CertifiedKey;
use serde::Deserialize as _;
use serde::de::Error as _;
use serde_json::Value;
use wherry_resources::gateway::GROUP;
use wherry_resources::gateway::objects::{Kind, Parsed};
use wherry_resources::meta::text;

use crate::controllers::cache::{Body, Object, trim};

/// The key in a Secret's data that is kept, without its content, where it holds a certificate with
/// its key.
pub const CERTIFICATE: &str = "tls.crt";

/// An object with its spec read and its status as it is.
#[derive(Debug)]
pub struct Held {
    pub meta: ObjectMeta,
    /// `None` where the spec is not understood.
    pub parsed: Option<Parsed>,
    pub status: Value,
}

impl Body for Held {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

/// Which of the kinds that the controller reads a kind is.
pub fn kind_of(kind: &wherry_resources::Kind) -> Option<Kind> {
    Kind::named(kind.kind).filter(|_| kind.group == GROUP)
}

/// What the cache holds of an object.
pub fn hold(kind: Kind, mut meta: ObjectMeta, object: &Value) -> Object {
    trim(&mut meta);
    let parsed = Parsed::read(kind, object);
    Object::new(Held { meta, parsed, status: object["status"].clone() })
}

/// The same of an object that the API has answered a write with.
pub fn decode(object: Value) -> Result<Object, serde_json::Error> {
    let kind = Kind::named(text(&object, "kind"));
    let kind = kind.ok_or_else(|| serde_json::Error::custom("no kind of the Gateway API"))?;
    let meta = ObjectMeta::deserialize(&object["metadata"])?;
    Ok(hold(kind, meta, &object))
}

/// Whether a Secret's data are a certificate with its key.
pub fn holds_certificate(data: &BTreeMap<String, ByteString>) -> bool {
    let (Some(chain), Some(key)) = (data.get("tls.crt"), data.get("tls.key")) else {
        return false;
    };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(&chain.0).collect();
    let (Ok(chain), Ok(key)) = (chain, PrivateKeyDer::from_pem_slice(&key.0)) else {
        return false;
    };
    !chain.is_empty() && CertifiedKey::from_der(chain, key, &ring::default_provider()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key() {
        let made = |name: &str| {
            rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate")
        };
        let (one, other) = (made("a.example"), made("b.example"));
        let check = |certificate: &str, key: &str| {
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            let data =
                [("tls.crt".to_owned(), bytes(certificate)), ("tls.key".to_owned(), bytes(key))];
            holds_certificate(&data.into())
        };
        let key = one.signing_key.serialize_pem();
        assert!(check(&one.cert.pem(), &key));
        assert!(!check(&other.cert.pem(), &key));
        assert!(!check("Hello world", &key) && !check(&one.cert.pem(), "") && !check("", &key));
        assert!(!holds_certificate(&BTreeMap::new()));
    }
}
