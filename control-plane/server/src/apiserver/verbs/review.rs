//! Kinds that are computed and never stored: who am I, may I, what may I, is this token good.

use super::{body, pods, usage};
use crate::apiserver::{
    ApiServer,
    auth::User,
    authorize::{self, Decision},
    content::{self, Form},
    errors::{self, ApiError},
    request::{Attributes, Request},
    tokens::ISSUER,
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wherry_resources::{
    Kind, Object,
    meta::items,
    validate::{FieldError, Reason},
};

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
    let path = Some(request.attributes.namespace.as_str());
    review["status"] = match kind.kind {
        "SelfSubjectReview" => json!({ "userInfo": user_info(user) }),
        "SelfSubjectAccessReview" => access(api, kind, user, &review, None)?,
        "SubjectAccessReview" => access(api, kind, &subject(kind, &review)?, &review, None)?,
        "LocalSubjectAccessReview" => access(api, kind, &subject(kind, &review)?, &review, path)?,
        "SelfSubjectRulesReview" => rules(api, user, &review)?,
        "TokenReview" => token(api, &review)?,
        _ => return Err(ApiError::NoSuchPath),
    };
    Ok(content::respond(StatusCode::CREATED, &request.accepted, &review, &[]))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn text<'a>(object: &'a Object, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn invalid(kind: &Kind, field: &str, value: &str, why: &str) -> ApiError {
    let message = format!("Invalid value: {value}: {why}");
    let error: FieldError = errors::field(Reason::Invalid, field, message);
    ApiError::invalid(kind, "", vec![error])
}

fn texts(list: &[Value]) -> Vec<String> {
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The user that a review is about.
fn subject(kind: &Kind, review: &Object) -> Result<User, ApiError> {
    let spec = &review["spec"];
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| (key.clone(), texts(items(&spec["extra"], key))))
        .collect();
    let user = User {
        name: text(review, "/spec/user").to_owned(),
        groups: texts(items(spec, "groups")),
        uid: text(review, "/spec/uid").to_owned(),
        extra,
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(kind, "spec.user", "\"\"", why));
    }
    Ok(user)
}

/// Asks the authoriser what it would say. Its `*` in a question means every verb or resource, which
/// only a rule for everything covers.
fn access(
    api: &ApiServer,
    kind: &Kind,
    user: &User,
    review: &Object,
    namespace: Option<&str>,
) -> Result<Value, ApiError> {
    let asked = question(kind, review)?;
    if namespace.is_some_and(|namespace| !asked.is_resource || namespace != asked.namespace) {
        let path = namespace.unwrap_or("");
        return Err(ApiError::BadRequest(format!(
            "spec.resourceAttributes.namespace must match namespace: {path}"
        )));
    }
    let mut status = Map::new();
    match api.decide(user, &asked) {
        Decision::Allowed => {
            status.insert("allowed".to_owned(), json!(true));
            // Those who may do everything do it by who they are, not by a binding.
            let by_role = !authorize::is_unlimited(user);
            if let Some(reason) = api.roles().reason(user, &asked).filter(|_| by_role) {
                status.insert("reason".to_owned(), json!(reason));
            }
        }
        Decision::Denied(reason) => {
            status.insert("allowed".to_owned(), json!(false));
            if !reason.is_empty() {
                status.insert("reason".to_owned(), json!(reason));
            }
        }
    }
    Ok(Value::Object(status))
}

/// What a review asks about.
fn question(kind: &Kind, review: &Object) -> Result<Attributes, ApiError> {
    let resource = review.pointer("/spec/resourceAttributes").filter(|value| !value.is_null());
    let path = review.pointer("/spec/nonResourceAttributes").filter(|value| !value.is_null());
    match (resource, path) {
        (Some(resource), None) => Ok(Attributes {
            verb: text(resource, "/verb").to_owned(),
            is_resource: true,
            group: text(resource, "/group").to_owned(),
            version: text(resource, "/version").to_owned(),
            namespace: text(resource, "/namespace").to_owned(),
            resource: text(resource, "/resource").to_owned(),
            subresource: text(resource, "/subresource").to_owned(),
            name: text(resource, "/name").to_owned(),
            named: !text(resource, "/name").is_empty(),
            field_selector: text(resource, "/fieldSelector/rawSelector").to_owned(),
            ..Attributes::default()
        }),
        (None, Some(path)) => Ok(Attributes {
            verb: text(path, "/verb").to_owned(),
            path: text(path, "/path").to_owned(),
            ..Attributes::default()
        }),
        (Some(_), Some(path)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            Err(invalid(kind, "spec.nonResourceAttributes", &path.to_string(), why))
        }
        (None, None) => {
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            Err(invalid(kind, "spec.resourceAttributes", "null", why))
        }
    }
}

fn rules(api: &ApiServer, user: &User, review: &Object) -> Result<Value, ApiError> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(ApiError::BadRequest("no namespace on request".to_owned()));
    }
    Ok(authorize::rules(user, namespace, &api.roles()))
}

fn token(api: &ApiServer, review: &Object) -> Result<Value, ApiError> {
    let shown = text(review, "/spec/token");
    if shown.is_empty() {
        return Err(ApiError::BadRequest(
            "token is required for TokenReview in authentication".to_owned(),
        ));
    }
    let mut wanted = texts(items(&review["spec"], "audiences"));
    if wanted.is_empty() {
        wanted.push(ISSUER.to_owned());
    }
    Ok(match api.bearer_for(shown, &wanted) {
        Some(bearer) => json!({
            "authenticated": true,
            "user": user_info(&bearer.user),
            "audiences": bearer.audiences,
        }),
        None => json!({ "user": {}, "error": "invalid bearer token" }),
    })
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
