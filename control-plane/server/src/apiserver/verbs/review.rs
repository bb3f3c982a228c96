//! Kinds that are computed and never stored: who am I, may I, what may I, is this token good.

use super::{body, pods, usage};
use crate::apiserver::{
    ApiServer,
    auth::{self, User},
    authorize,
    content::{self, Form},
    errors::ApiError,
    request::{Attributes, Request},
};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use wherry_resources::Object;

/// Answers every verb of the kinds that are not stored.
pub async fn answer(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind;
    // What is asked once has no rows.
    if kind.verbs == ["create"] && request.accepted.form != Form::Object {
        return Err(ApiError::NotAcceptable(content::WRITABLE));
    }
    match kind.kind {
        "Binding" => return pods::bind(api, request).await,
        "ComponentStatus" => return components(api, request),
        "NodeMetrics" | "PodMetrics" => return usage::usage(api, request).await,
        _ => {}
    }
    let mut review = body::other(request, &kind.api_version(), kind.kind)?;
    let user = &request.user;
    review["status"] = match kind.kind {
        "SelfSubjectReview" => json!({ "userInfo": user_info(user) }),
        "SelfSubjectAccessReview" => access(api, user, &review, None)?,
        "SubjectAccessReview" => access(api, &subject(&review), &review, None)?,
        "LocalSubjectAccessReview" => {
            access(api, &subject(&review), &review, Some(&request.attributes.namespace))?
        }
        "SelfSubjectRulesReview" => authorize::rules(user),
        "TokenReview" => token(api, &review),
        _ => return Err(ApiError::NoSuchPath),
    };
    Ok(content::respond(StatusCode::CREATED, &request.accepted, &review, &[]))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn text<'a>(object: &'a Object, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn subject(review: &Object) -> User {
    let groups = review.pointer("/spec/groups").and_then(Value::as_array).into_iter().flatten();
    User {
        name: text(review, "/spec/user").to_owned(),
        groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
        uid: text(review, "/spec/uid").to_owned(),
        ..User::default()
    }
}

/// Asks the authoriser what it would say. Its `*` in a question means every verb or resource, which
/// only a rule for everything covers.
fn access(
    api: &ApiServer,
    user: &User,
    review: &Object,
    namespace: Option<&str>,
) -> Result<Value, ApiError> {
    let resource = review.pointer("/spec/resourceAttributes").filter(|value| !value.is_null());
    let path = review.pointer("/spec/nonResourceAttributes").filter(|value| !value.is_null());
    let asked = match (resource, path) {
        (Some(resource), None) => {
            if namespace.is_some_and(|namespace| namespace != text(resource, "/namespace")) {
                return Err(ApiError::BadRequest(
                    "spec.resourceAttributes.namespace must be the namespace of the path"
                        .to_owned(),
                ));
            }
            Attributes {
                verb: text(resource, "/verb").to_owned(),
                is_resource: true,
                group: text(resource, "/group").to_owned(),
                version: text(resource, "/version").to_owned(),
                namespace: text(resource, "/namespace").to_owned(),
                resource: text(resource, "/resource").to_owned(),
                subresource: text(resource, "/subresource").to_owned(),
                name: text(resource, "/name").to_owned(),
                ..Attributes::default()
            }
        }
        (None, Some(path)) => Attributes {
            verb: text(path, "/verb").to_owned(),
            path: text(path, "/path").to_owned(),
            ..Attributes::default()
        },
        _ => {
            return Err(ApiError::BadRequest(
                "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be set"
                    .to_owned(),
            ));
        }
    };
    Ok(json!({ "allowed": authorize::allowed(user, &asked, &api.store().current()) }))
}

fn token(api: &ApiServer, review: &Object) -> Value {
    let bearer = HeaderValue::try_from(format!("Bearer {}", text(review, "/spec/token")));
    let user = bearer.ok().and_then(|bearer| {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]);
        let secret = |name: &str| api.kube_system_secret(name);
        let now = jiff::Timestamp::now();
        auth::authenticate(&http::Extensions::new(), &headers, secret, now).ok()
    });
    match user {
        Some(user) => json!({ "authenticated": true, "user": user_info(&user) }),
        None => json!({ "user": {}, "error": "the token is not valid" }),
    }
}

/// Components that old tools look for; all of them are this process.
fn components(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let (health, message) = match api.store().health().reason {
        None => ("True", "ok".to_owned()),
        Some(problem) => ("False", problem),
    };
    let component = |name: &str| {
        json!({
            "metadata": { "name": name },
            "conditions": [{ "type": "Healthy", "status": health, "message": message }],
        })
    };
    let names = ["controller-manager", "etcd-0", "scheduler"];
    let value = if request.attributes.named {
        let name = request.name();
        if !names.contains(&name) {
            return Err(ApiError::not_found(request.kind, name));
        }
        let mut one = json!({ "kind": "ComponentStatus", "apiVersion": "v1" });
        for (key, value) in component(name).as_object().cloned().unwrap_or_default() {
            one[key] = value;
        }
        one
    } else {
        let items: Vec<Value> = names.iter().map(|name| component(name)).collect();
        json!({ "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items })
    };
    Ok(content::respond(StatusCode::OK, &request.accepted, &value, &[]))
}
