//! A Secret of the type `kubernetes.io/service-account-token` is given the account's token, for
//! programs that cannot ask for one. The token is bound to the Secret: it ends when the Secret or
//! the account goes, and after a year. Nobody makes such Secrets by themselves.

use super::{Context, Operation};
use crate::apiserver::errors::ApiError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wherry_resources::{Object, meta};

/// The type of such Secrets.
pub const TYPE: &str = "kubernetes.io/service-account-token";
/// Names the account.
pub const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Life of the token: as long as a certificate's.
pub const SECONDS: i64 = 365 * 24 * 3600;

/// What goes into the Secret.
pub struct Content {
    pub account: Object,
    pub token: String,
    pub ca_pem: String,
}

/// Fills a new Secret of that type.
pub fn admit(context: &Context<'_>, secret: &mut Object) -> Result<(), ApiError> {
    let is_one = secret["type"] == TYPE;
    if context.operation != Operation::Create || !is_one || has(secret, "token") {
        return Ok(());
    }
    let name = meta::annotation(secret, ACCOUNT).unwrap_or("").to_owned();
    let Some(content) = &context.facts.token else {
        if name.is_empty() {
            // Validation says what is missing.
            return Ok(());
        }
        let why = format!("service account {name:?} is not there: create it first");
        return Err(ApiError::forbidden(context.kind, meta::name(secret), why));
    };
    meta::set_annotation(secret, ACCOUNT_UID, meta::uid(&content.account));
    if !secret["data"].is_object() {
        secret["data"] = json!({});
    }
    let pairs = [
        ("ca.crt", content.ca_pem.as_str()),
        ("namespace", context.namespace),
        ("token", content.token.as_str()),
    ];
    for (key, text) in pairs {
        secret["data"][key] = json!(STANDARD.encode(text));
    }
    // The collector takes it away with its account.
    let mut owner = meta::controller_reference(&content.account);
    for flag in ["controller", "blockOwnerDeletion"] {
        if let Some(owner) = owner.as_object_mut() {
            owner.shift_remove(flag);
        }
    }
    meta::set_owner_references(secret, vec![owner]);
    meta::order(secret);
    Ok(())
}

fn has(secret: &Object, key: &str) -> bool {
    secret["data"].get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
}
