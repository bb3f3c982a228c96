//! Tokens of service accounts: made, read, and checked against what they are bound to.
//!
//! A token is a JSON Web Token (RFC 7519) signed with the cluster's own ECDSA P-256 key (ES256, RFC
//! 7518). It says whose it is, for whom (audiences) and until when, and which Pod, Secret or Node
//! it is bound to. It counts only while its account and what it is bound to are the same objects
//! (by uid) and not on their way out, so deleting a Pod ends its tokens.
//!
//! Only the signature is remembered between two requests with the same token; what it is bound to
//! is looked at each time.
//!
//! Signing is ring's; there is one algorithm and it is never taken from the token, so the traps of
//! "alg" are not there to step into.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wherry_resources::{Object, meta};

use super::auth::{self, User};
use super::rbac::service_account;

/// Who issues, and the audience that the API server itself is.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shorter tokens would be renewed all the time.
pub const SECONDS_MIN: i64 = 600;
/// A longer life is cut to this: a token is renewed by its holder, not kept.
pub const SECONDS_MAX: i64 = 24 * 3600;
/// Life of a token that asks for none.
pub const SECONDS_DEFAULT: i64 = 3600;
/// An object that is being deleted goes on counting for so long after its deletion time, and
/// members' clocks may differ by so much.
const LEEWAY_SECONDS: i64 = 60;
/// Longer ones are not ours.
const BYTES_MAX: usize = 16 * 1024;
/// Tokens whose signature is remembered; one is about 1 KiB.
const REMEMBERED_MAX: usize = 4096;

/// The key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("the key of service accounts' tokens cannot be used: {0}")]
pub struct KeyError(String);

/// Name and uid of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub uid: String,
}

impl Named {
    /// Of an object.
    pub fn of(object: &Object) -> Named {
        Named { name: meta::name(object).to_owned(), uid: meta::uid(object).to_owned() }
    }
}

/// What the token says beyond the registered claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Named>,
    pub serviceaccount: Named,
}

/// Everything a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

impl Claims {
    /// A token for what is bound, from now on.
    pub fn new(bound: Bound, aud: Vec<String>, now: Timestamp, seconds: i64) -> Claims {
        let iat = now.as_second();
        Claims {
            aud,
            exp: iat.saturating_add(seconds),
            iat,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: iat,
            sub: service_account(&bound.namespace, &bound.serviceaccount.name),
            bound,
        }
    }

    /// The audiences of the token that are among these.
    pub fn audiences_among(&self, wanted: &[String]) -> Vec<String> {
        self.aud.iter().filter(|own| wanted.contains(own)).cloned().collect()
    }

    /// Whether it is a token of ours and in its time.
    fn is_current(&self, now: Timestamp) -> bool {
        let now = now.as_second();
        let subject = service_account(&self.bound.namespace, &self.bound.serviceaccount.name);
        self.iss == ISSUER
            && self.sub == subject
            && now < self.exp
            && self.nbf <= now.saturating_add(LEEWAY_SECONDS)
    }

    /// The user whom the token speaks for, if all that it is bound to is there. `find` looks up an
    /// object of the core group by plural, namespace and name.
    pub fn user(
        &self,
        find: impl Fn(&str, &str, &str) -> Option<Object>,
        now: Timestamp,
    ) -> Option<User> {
        if !self.is_current(now) {
            return None;
        }
        let bound = &self.bound;
        let alive = |plural: &str, namespace: &str, named: &Named| {
            find(plural, namespace, &named.name).is_some_and(|object| {
                let end = meta::deletion_timestamp(&object).map(Timestamp::as_second);
                let ended = end.is_some_and(|end| end < now.as_second() - LEEWAY_SECONDS);
                meta::uid(&object) == named.uid && !ended
            })
        };
        let optional = |plural: &str, namespace: &str, named: &Option<Named>| match named {
            Some(named) => alive(plural, namespace, named),
            None => true,
        };
        // The node of a Pod is told, not a condition: the Pod goes with it in time.
        let node = if bound.pod.is_none() { &bound.node } else { &None };
        let counts = alive("serviceaccounts", &bound.namespace, &bound.serviceaccount)
            && optional("pods", &bound.namespace, &bound.pod)
            && optional("secrets", &bound.namespace, &bound.secret)
            && optional("nodes", "", node);
        if !counts {
            return None;
        }
        let mut groups = auth::service_account_groups(&bound.namespace);
        groups.push(auth::AUTHENTICATED.to_owned());
        let mut user = User { name: self.sub.clone(), groups, ..User::default() };
        user.uid.clone_from(&bound.serviceaccount.uid);
        let mut tell = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        tell("credential-id", format!("JTI={}", self.jti));
        if let Some(pod) = &bound.pod {
            tell("pod-name", pod.name.clone());
            tell("pod-uid", pod.uid.clone());
        }
        if let Some(node) = &bound.node {
            tell("node-name", node.name.clone());
            tell("node-uid", node.uid.clone());
        }
        Some(user)
    }
}

/// The key with which tokens are signed and checked.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    /// Uncompressed point: 4, x, y.
    public: Vec<u8>,
    id: String,
    random: SystemRandom,
}

impl TokenKey {
    /// Reads a private key (PKCS#8, PEM, P-256).
    pub fn from_pem(pem: &str) -> Result<TokenKey, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|error| KeyError(error.to_string()))?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        );
        let pair = pair.map_err(|error| KeyError(error.to_string()))?;
        let public = pair.public_key().as_ref().to_vec();
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&public));
        Ok(TokenKey { pair, public, id, random })
    }

    /// Signs.
    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(&json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }));
        let claims = serde_json::to_value(claims).expect("claims have only string keys");
        let signed = format!("{header}.{}", part(&claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|error| KeyError(error.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// What a token says, if this key has signed it.
    fn read(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        if header["alg"] != "ES256" || header["kid"] != self.id.as_str() {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public);
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        serde_json::from_slice(&decode(claims)?).ok()
    }

    /// The public key as others fetch it.
    fn jwks(&self) -> Value {
        let (x, y) = self.public[1..].split_at(32);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": text(x), "y": text(y),
        }] })
    }
}

/// Makes and reads tokens.
pub struct Tokens {
    key: Arc<TokenKey>,
    /// By the token's hash. A std mutex: held for a look-up only.
    remembered: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl Tokens {
    pub fn new(key: Arc<TokenKey>) -> Tokens {
        Tokens { key, remembered: Mutex::default() }
    }

    /// Makes a token.
    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        self.key.sign(claims)
    }

    /// What a token says, if it is one of ours; nothing else about it has been checked.
    pub fn read(&self, token: &str) -> Option<Arc<Claims>> {
        if token.len() > BYTES_MAX {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let lock = || self.remembered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(claims) = lock().get(&hash) {
            return Some(claims.clone());
        }
        let claims = Arc::new(self.key.read(token)?);
        let mut remembered = lock();
        if remembered.len() >= REMEMBERED_MAX {
            // Rare, and the price is one check of a signature each.
            remembered.clear();
        }
        remembered.insert(hash, claims.clone());
        Some(claims)
    }

    /// `/.well-known/openid-configuration`; `server` is the URL under which this member is found.
    pub fn configuration(&self, server: &str) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        self.key.jwks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        Tokens::new(Arc::new(TokenKey::from_pem(&pem).expect("a P-256 key")))
    }

    fn claims(now: Timestamp) -> Claims {
        let named = |name: &str| Named { name: name.to_owned(), uid: format!("uid-{name}") };
        let bound = Bound {
            namespace: "shop".to_owned(),
            node: None,
            pod: Some(named("web-1")),
            secret: None,
            serviceaccount: named("web"),
        };
        Claims::new(bound, vec![ISSUER.to_owned()], now, SECONDS_MIN)
    }

    fn object(name: &str, end: Option<Timestamp>) -> Object {
        let mut object = json!({"metadata": {"name": name, "uid": format!("uid-{name}")}});
        if let Some(end) = end {
            object["metadata"]["deletionTimestamp"] = json!(meta::time(end));
        }
        object
    }

    #[test]
    fn a_token_is_read_by_its_own_key_only() {
        let (ours, theirs) = (tokens(), tokens());
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let token = ours.sign(&claims(now)).expect("signed");
        assert_eq!(ours.read(&token).expect("ours").sub, "system:serviceaccount:shop:web");
        assert!(theirs.read(&token).is_none());
        let (head, _) = token.rsplit_once('.').expect("three parts");
        assert!(ours.read(&format!("{head}.")).is_none());
        assert!(ours.read(head).is_none());
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let body = token.split('.').nth(1).expect("three parts");
        assert!(ours.read(&format!("{none}.{body}.")).is_none());
        assert_eq!(ours.jwks()["keys"][0]["kty"], "EC");
    }

    #[test]
    fn a_token_ends_with_its_time_and_with_what_it_is_bound_to() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let claims = claims(now);
        let later = |seconds| Timestamp::from_second(now.as_second() + seconds).expect("a time");
        let all = |_: &str, _: &str, name: &str| Some(object(name, None));
        let user = claims.user(all, now).expect("valid");
        assert_eq!(user.uid, "uid-web");
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web-1"]);
        assert!(claims.user(all, later(SECONDS_MIN)).is_none());
        assert!(claims.user(all, later(-61)).is_none());
        let gone =
            |plural: &str, _: &str, name: &str| (plural != "pods").then(|| object(name, None));
        assert!(claims.user(gone, now).is_none());
        let another = |plural: &str, _: &str, name: &str| {
            Some(object(if plural == "pods" { "web-2" } else { name }, None))
        };
        assert!(claims.user(another, now).is_none());
        let ending = |_: &str, _: &str, name: &str| Some(object(name, Some(now)));
        assert!(claims.user(ending, later(60)).is_some());
        assert!(claims.user(ending, later(61)).is_none());
    }
}
