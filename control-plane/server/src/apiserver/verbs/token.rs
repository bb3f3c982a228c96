//! Tokens of service accounts: `POST serviceaccounts/NAME/token`, and what others need to check
//! them (OpenID Connect discovery).

use super::{Part, body, read, write::Call};
use crate::apiserver::{
    ApiServer,
    admission::node_restriction,
    auth::User,
    content,
    errors::{self, ApiError},
    extensions,
    request::Request,
    tokens::{Bound, Claims, ISSUER, Named, SECONDS_DEFAULT, SECONDS_MAX, SECONDS_MIN},
};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_resources::{Kind, Object, meta, meta::text, validate::Reason};

/// Makes a token for the account that the path names.
pub async fn create(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let options = super::WriteOptions::parse(&request.query, "CreateOptions")?;
    let mut review = body::other(request, "authentication.k8s.io/v1", "TokenRequest")?;
    let (name, namespace) = (request.name(), request.attributes.namespace.as_str());
    let seconds = seconds(&review)?;
    let bound = wanted(api, request, &review["spec"]["boundObjectRef"]).await?;
    // A token is a thing that is made, whatever else is not stored: policies may forbid it.
    let call = Call::of(api, request, Part::Main, options.dry_run);
    let asked = call.asked(extensions::Verb::Create, name);
    let mut heard = extensions::Heard::default();
    extensions::validate_part(&asked, &review, &mut heard).await?;
    let mut audiences: Vec<String> = meta::items(&review["spec"], "audiences")
        .iter()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let now = Timestamp::now();
    let claims = Claims::new(bound, audiences, now, seconds);
    let token = match options.dry_run {
        true => String::new(),
        false => {
            api.tokens().sign(&claims).map_err(|error| ApiError::Internal(error.to_string()))?
        }
    };
    meta::set(&mut review, "name", name);
    meta::set(&mut review, "namespace", namespace);
    meta::set(&mut review, "creationTimestamp", &meta::time(now));
    let spec = &mut review["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    spec["audiences"] = json!(claims.aud);
    spec["expirationSeconds"] = json!(seconds);
    if spec.get("boundObjectRef").is_none() {
        spec["boundObjectRef"] = Value::Null;
    }
    let end = Timestamp::from_second(claims.exp).unwrap_or(now);
    review["status"] = json!({ "token": token, "expirationTimestamp": meta::time(end) });
    meta::order(&mut review);
    Ok(content::respond(StatusCode::CREATED, &request.accepted, &review, &heard.warnings))
}

/// What the token is to be bound to. The account, or the Pod, may have been made by another member a
/// moment ago: nobody is refused by a state that may be older. A member that is cut off makes none.
async fn wanted(api: &ApiServer, request: &Request, reference: &Value) -> Result<Bound, ApiError> {
    let (name, namespace) = (request.name(), request.attributes.namespace.as_str());
    let look = || {
        let account = api.core_object("serviceaccounts", namespace, name);
        let account = account.ok_or_else(|| ApiError::not_found(request.kind, name))?;
        bind(api, &request.user, &account, reference)
    };
    read::in_touch(api).await?;
    match look() {
        Err(_) if api.others().is_some() => {
            api.latest().await?;
            look()
        }
        found => found,
    }
}

/// Life of the token that is asked for.
fn seconds(review: &Object) -> Result<i64, ApiError> {
    let asked = review.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    let asked = asked.unwrap_or(SECONDS_DEFAULT);
    if asked >= SECONDS_MIN {
        return Ok(asked.min(SECONDS_MAX));
    }
    let why = "may not specify a duration less than 10 minutes";
    let message = format!("Invalid value: {asked}: {why}");
    Err(ApiError::Invalid {
        group: "authentication.k8s.io".to_owned(),
        kind: "TokenRequest".to_owned(),
        name: String::new(),
        errors: vec![errors::field(Reason::Invalid, "spec.expirationSeconds", message)],
    })
}

/// What the token is bound to: the account, and the object that the request names.
fn bind(
    api: &ApiServer,
    user: &User,
    account: &Object,
    reference: &Value,
) -> Result<Bound, ApiError> {
    let namespace = meta::namespace(account).to_owned();
    let mut bound = Bound {
        namespace: namespace.clone(),
        node: None,
        pod: None,
        secret: None,
        serviceaccount: Named::of(account),
    };
    let mut pod = None;
    if !reference.is_null() {
        let (kind, name) = (text(reference, "kind"), text(reference, "name"));
        let find = |plural: &str, namespace: &str| {
            let row = wherry_resources::kind("", "v1", plural).expect("a kind of the core group");
            let found = api.core_object(plural, namespace, name);
            let found = found.ok_or_else(|| ApiError::not_found(row, name))?;
            same(row, &found, text(reference, "uid"))?;
            Ok::<Object, ApiError>(found)
        };
        match (text(reference, "apiVersion"), kind) {
            ("v1", "Pod") => {
                let found = find("pods", &namespace)?;
                let own = found.pointer("/spec/serviceAccountName").and_then(Value::as_str);
                if own != Some(meta::name(account)) {
                    return Err(ApiError::BadRequest(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different \
                         serviceaccount name.",
                        meta::name(account)
                    )));
                }
                bound.pod = Some(Named::of(&found));
                bound.node = node_of(api, &found);
                pod = Some(found);
            }
            ("v1", "Secret") => bound.secret = Some(Named::of(&find("secrets", &namespace)?)),
            ("v1", "Node") => bound.node = Some(Named::of(&find("nodes", "")?)),
            (version, kind) => {
                return Err(ApiError::BadRequest(format!(
                    "cannot bind token to object of type {version}, Kind={kind}"
                )));
            }
        }
    }
    node_restriction::token(user, account, pod.as_ref(), text(reference, "uid"))?;
    Ok(bound)
}

/// The node that a Pod is bound to; without a uid while it has not joined yet.
fn node_of(api: &ApiServer, pod: &Object) -> Option<Named> {
    let name = pod.pointer("/spec/nodeName").and_then(Value::as_str)?;
    let found = api.core_object("nodes", "", name);
    let uid = found.map(|node| meta::uid(&node).to_owned()).unwrap_or_default();
    Some(Named { name: name.to_owned(), uid })
}

fn same(kind: &Kind, found: &Object, uid: &str) -> Result<(), ApiError> {
    if uid.is_empty() || uid == meta::uid(found) {
        return Ok(());
    }
    let why = format!(
        "the UID in the bound object reference ({uid}) does not match the UID in record. The \
         object might have been deleted and then recreated"
    );
    Err(ApiError::conflict(kind, meta::name(found), why))
}

/// `/.well-known/openid-configuration`.
pub async fn configuration(State(api): State<ApiServer>) -> Response {
    let server = format!("https://{}", api.advertise());
    let text = api.tokens().configuration(&server).to_string();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `/openid/v1/jwks`.
pub async fn keys(State(api): State<ApiServer>) -> Response {
    let text = api.tokens().jwks().to_string();
    ([(header::CONTENT_TYPE, "application/jwk-set+json")], text).into_response()
}
