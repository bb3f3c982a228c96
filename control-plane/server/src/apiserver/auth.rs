//! Who sends a request.
//!
//! In the order in which they count: the in-process caller's own [`User`], the client certificate
//! that the listener has verified, a bearer token (of a service account, see `tokens`, or of a
//! machine about to join). Whoever shows nothing is `system:anonymous`; whoever shows something
//! wrong is refused, never taken for anonymous.

use super::errors::ApiError;
use base64::Engine as _;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use wherry_resources::{Object, meta};
use x509_parser::prelude::parse_x509_certificate;

/// Name of whoever shows no credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group of everybody who proved an identity.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of the node agents; a member's name is `system:node:` and the node's name.
pub const NODES: &str = "system:nodes";
/// Group of whoever holds a bootstrap token; by itself it lets nobody join.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Group of machines that hold a bootstrap token made for nodes.
pub const JOINING_NODES: &str = "system:bootstrappers:wherry:node";
/// Group of servers that hold a bootstrap token made for members.
pub const JOINING_MEMBERS: &str = "system:bootstrappers:wherry:member";

/// A browser cannot set headers of a WebSocket, so the token comes as a subprotocol.
const SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
const NODE_PREFIX: &str = "system:node:";
/// Of Secrets that hold bootstrap tokens.
pub const TOKEN_SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// An authenticated (or anonymous) user.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// As `system:admin`.
    pub name: String,
    /// As `system:masters`.
    pub groups: Vec<String>,
    /// Empty if the authenticator knows none.
    pub uid: String,
    /// Further attributes of the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with an identity: everybody of these is in `system:authenticated`.
    pub fn new(name: &str, groups: &[&str]) -> User {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        User { name: name.to_owned(), groups, ..User::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> User {
        User {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..User::default()
        }
    }

    /// Membership in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Name of the node whose agent this is.
    pub fn node(&self) -> Option<&str> {
        let name = self.name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty())?;
        self.is_in(NODES).then_some(name)
    }
}

/// Request extension of the TLS listener: whom the client's certificate names, which rustls has
/// verified against the cluster's authority; nobody, if it names none. No header can set it. It is
/// read once a connection.
#[derive(Clone, Debug)]
pub struct PeerCertificate(Arc<Option<User>>);

impl PeerCertificate {
    /// Reads a certificate (DER).
    pub fn of(der: &[u8]) -> PeerCertificate {
        PeerCertificate(Arc::new(of_certificate(der)))
    }
}

/// The groups of a service account's user.
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// Request extension of the listener: where the client is, for the audit log.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub std::net::SocketAddr);

/// Reads the user out of a request; `token` knows whose a bearer token is.
pub fn authenticate(
    extensions: &http::Extensions,
    headers: &http::HeaderMap,
    token: impl FnOnce(&str) -> Option<User>,
) -> Result<User, ApiError> {
    if let Some(user) = extensions.get::<User>() {
        let mut user = user.clone();
        if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        return Ok(user);
    }
    if let Some(PeerCertificate(user)) = extensions.get::<PeerCertificate>() {
        return user.as_ref().clone().ok_or(ApiError::Unauthorized);
    }
    match bearer(headers)? {
        Some(shown) => token(&shown).ok_or(ApiError::Unauthorized),
        None => Ok(User::anonymous()),
    }
}

/// The bearer token of a request, if it shows one.
pub fn bearer(headers: &http::HeaderMap) -> Result<Option<String>, ApiError> {
    if let Some(header) = headers.get(http::header::AUTHORIZATION) {
        let parts = header.to_str().ok().and_then(|text| text.split_once(' '));
        return match parts {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(token.trim().to_owned()))
            }
            _ => Err(ApiError::Unauthorized),
        };
    }
    let Some(encoded) = subprotocols(headers).find_map(|one| one.strip_prefix(SUBPROTOCOL)) else {
        return Ok(None);
    };
    if subprotocols(headers).all(|one| one.starts_with(SUBPROTOCOL)) {
        return Err(ApiError::BadRequest(
            "a token as a subprotocol needs another subprotocol beside it, to answer with"
                .to_owned(),
        ));
    }
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded);
    let token = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    token.map(Some).ok_or(ApiError::Unauthorized)
}

/// The subprotocols that a WebSocket's client offers.
pub fn subprotocols(headers: &http::HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

/// Takes a token out of the subprotocols, so that none behind the guard sees or answers with it.
pub fn hide_token(headers: &mut http::HeaderMap) {
    hide_subprotocol(headers, SUBPROTOCOL);
}

/// Takes the subprotocols out that begin so.
pub fn hide_subprotocol(headers: &mut http::HeaderMap, start: &str) {
    if !subprotocols(headers).any(|one| one.starts_with(start)) {
        return;
    }
    let rest: Vec<&str> = subprotocols(headers).filter(|one| !one.starts_with(start)).collect();
    let rest = http::HeaderValue::from_str(&rest.join(", "));
    let rest = rest.expect("parts of a header's value are a header's value");
    headers.remove(http::header::SEC_WEBSOCKET_PROTOCOL);
    if !rest.is_empty() {
        headers.insert(http::header::SEC_WEBSOCKET_PROTOCOL, rest);
    }
}

/// Common name = user, each organisation = a group, as in Kubernetes.
fn of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Option<Vec<&str>> =
        subject.iter_organization().map(|group| group.as_str().ok()).collect();
    (!name.is_empty()).then_some(User::new(name, &groups?))
}

/// `id.secret`, or the join form `id.secret.fingerprint` whose last part is the client's to check.
pub fn bootstrap(
    token: &str,
    secret: impl FnOnce(&str) -> Option<Object>,
    now: Timestamp,
) -> Option<User> {
    let (id, shown) = bootstrap_parts(token)?;
    let kept = secret(&format!("bootstrap-token-{id}"))?;
    of_bootstrap_secret(&kept, id, shown, now)
}

/// Id and secret of a token that has the form of a bootstrap token.
fn bootstrap_parts(token: &str) -> Option<(&str, &str)> {
    let mut parts = token.split('.');
    let (id, shown) = (parts.next()?, parts.next()?);
    let plain = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(shown, 16)).then_some((id, shown))
}

/// Whether a token has the form of a bootstrap token.
pub fn is_bootstrap(token: &str) -> bool {
    bootstrap_parts(token).is_some()
}

/// Checks a bootstrap token against its Secret.
fn of_bootstrap_secret(kept: &Object, id: &str, shown: &str, now: Timestamp) -> Option<User> {
    let text = |key: &str| -> Option<String> {
        let encoded = kept.get("data")?.get(key).and_then(Value::as_str)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
        String::from_utf8(bytes).ok()
    };
    let right_type = kept.get("type").and_then(Value::as_str) == Some(TOKEN_SECRET_TYPE);
    // Digests are compared, so that the time of the comparison says nothing about the secret.
    let right_secret = Sha256::digest(text("token-secret")?) == Sha256::digest(shown);
    let right_id = text("token-id")? == id;
    let usable = text("usage-bootstrap-authentication").as_deref() == Some("true");
    let alive = match text("expiration") {
        None => true,
        Some(time) => meta::parse_time(&time).is_some_and(|end| end > now),
    };
    if !(right_type && right_secret && right_id && usable && alive && !meta::is_deleting(kept)) {
        return None;
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    let more = text("auth-extra-groups").unwrap_or_default();
    groups.extend(
        more.split(',')
            .map(str::trim)
            .filter(|g| g.starts_with("system:bootstrappers:"))
            .map(String::from),
    );
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Some(User::new(&format!("system:bootstrap:{id}"), &groups))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token_secret(expiration: &str) -> Object {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        json!({
            "kind": "Secret", "apiVersion": "v1", "type": TOKEN_SECRET_TYPE,
            "metadata": {"name": "bootstrap-token-abcdef"},
            "data": {
                "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"),
                "expiration": encode(expiration),
            },
        })
    }

    fn name(authorization: &str, expiration: &str) -> Option<String> {
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", authorization.parse().expect("a header"));
        let secret =
            |name: &str| (name == "bootstrap-token-abcdef").then(|| token_secret(expiration));
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let token = |shown: &str| bootstrap(shown, secret, now);
        authenticate(&http::Extensions::new(), &headers, token).ok().map(|user| user.name)
    }

    #[test]
    fn bootstrap_tokens() {
        let later = "2026-01-02T00:00:00Z";
        let good = Some("system:bootstrap:abcdef".to_owned());
        assert_eq!(name("Bearer abcdef.0123456789abcdef", later), good);
        assert_eq!(name("bearer abcdef.0123456789abcdef.00ff", later), good);
        assert_eq!(name("Bearer abcdef.0123456789abcdee", later), None);
        assert_eq!(name("Bearer abcdeg.0123456789abcdef", later), None);
        assert_eq!(name("Bearer abcdef.0123456789abcdef", "2025-12-31T00:00:00Z"), None);
        assert_eq!(name("Bearer abcdef.0123456789abcdef", "never"), None);
        assert_eq!(name("Basic abc", later), None);
    }

    #[test]
    fn a_token_may_come_as_a_subprotocol_and_is_not_passed_on() {
        let mut headers = http::HeaderMap::new();
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("secret");
        let line = format!("{SUBPROTOCOL}{encoded}, v5.channel.k8s.io");
        headers.insert("sec-websocket-protocol", line.parse().expect("a header"));
        let token = |shown: &str| (shown == "secret").then(|| User::new("bot", &[]));
        let user = authenticate(&http::Extensions::new(), &headers, token).expect("a user");
        assert_eq!(user.name, "bot");
        hide_token(&mut headers);
        assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
        let alone = format!("{SUBPROTOCOL}{encoded}");
        headers.insert("sec-websocket-protocol", alone.parse().expect("a header"));
        assert!(authenticate(&http::Extensions::new(), &headers, token).is_err());
    }
}
