//! Kinds that are computed and never stored: who am I, may I, what may I, is this token good.

use super::{body, get, pods, select::Selection, usage};
use crate::apiserver::{
    ApiServer,
    auth::User,
    authorize::{self, Decision},
    content::{self, Form},
    errors::{self, ApiError},
    openapi,
    request::{Attributes, Request},
    tokens::ISSUER,
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wherry_resources::{
    Kind, Object,
    meta::{self, items},
    validate::{FieldError, Reason},
};
use wherry_store::MemberStatus;

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
    let options = super::WriteOptions::parse(&request.query, "CreateOptions")?;
    let mut warnings = Vec::new();
    let mut review = body::object(request, options.validation, &mut warnings)?;
    openapi::check_type(kind, &review)
        .map_err(|why| body::undecodable(&kind.api_version(), kind.kind, &why))?;
    let judged_by = api.store().current().revision();
    let mut status = judged(api, request, &review)?;
    // What another member has just stored may be what it takes.
    let is_no = status["allowed"] == false || status.get("error").is_some();
    if is_no && api.others().is_some() && api.latest().await?.revision() != judged_by {
        status = judged(api, request, &review)?;
    }
    review["status"] = status;
    Ok(content::respond(StatusCode::CREATED, &request.accepted, &review, &warnings))
}

/// What this member says by its own state.
fn judged(api: &ApiServer, request: &Request, review: &Object) -> Result<Value, ApiError> {
    let (kind, user) = (request.kind, &request.user);
    let path = Some(request.attributes.namespace.as_str());
    match kind.kind {
        "SelfSubjectReview" => Ok(json!({ "userInfo": user_info(user) })),
        "SelfSubjectAccessReview" => access(api, kind, user, review, None),
        "SubjectAccessReview" => access(api, kind, &subject(kind, review)?, review, None),
        "LocalSubjectAccessReview" => access(api, kind, &subject(kind, review)?, review, path),
        "SelfSubjectRulesReview" => rules(api, user, review),
        "TokenReview" => token(api, review),
        _ => Err(ApiError::NoSuchPath),
    }
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

/// Components that operators and old tools look for: the two that are a part of every member, and
/// the stores of all members as `etcd-N`, in the order of their ids.
fn components(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let health = api.store().health();
    let members = api.others().map(|others| others.members.borrow().clone()).unwrap_or_default();
    let problem = health.reason.as_deref().or(health.suspicion.as_deref());
    let own = Condition::of_store(problem, health.disk_full);
    let mut found = vec![
        component("controller-manager", &Condition::of_store(health.reason.as_deref(), false)),
        component("scheduler", &Condition::of_store(health.reason.as_deref(), false)),
    ];
    match members.is_empty() {
        true => found.push(component("etcd-0", &own)),
        false => found.extend(members.iter().enumerate().map(|(number, member)| {
            let is_own = member.id == api.store().member_id();
            let condition = if is_own { own.clone() } else { Condition::of_member(member) };
            component(&format!("etcd-{number}"), &condition.told_of(member))
        })),
    }
    found.sort_by_key(|component| meta::name(component).to_owned());
    let selection = Selection::of(request)?;
    found.retain(|component| selection.matches(component));
    get::respond_computed(request, found)
}

/// How a component is.
#[derive(Clone, Debug)]
struct Condition {
    /// What is wrong, if anything is.
    problem: Option<String>,
    disk_full: bool,
    /// Of whom it is told.
    of: String,
}

impl Condition {
    fn of_store(problem: Option<&str>, disk_full: bool) -> Condition {
        Condition { problem: problem.map(str::to_owned), disk_full, of: String::new() }
    }

    fn of_member(member: &MemberStatus) -> Condition {
        let problem = match (&member.quarantined, member.applied) {
            (Some(why), _) => Some(format!("quarantined: {why}")),
            (None, None) => Some("it does not answer".to_owned()),
            (None, Some(_)) => None,
        };
        Condition { problem, disk_full: member.disk_full, of: String::new() }
    }

    fn told_of(self, member: &MemberStatus) -> Condition {
        Condition { of: format!("member {} (id {}): ", member.name, member.id), ..self }
    }
}

/// A component with its conditions: `Healthy`, which tools look at, and `DiskPressure` as nodes
/// have it. With a full disk a component is not healthy: creates and updates are refused.
fn component(name: &str, condition: &Condition) -> Value {
    const FULL: &str = "the disk under its store is nearly full; while that is so on the leader or \
        on a majority, creates and updates are refused (507), reads and deletes go on";
    let Condition { problem, disk_full, of } = condition;
    let wrong = problem.as_deref().or(disk_full.then_some(FULL));
    let status = |is: bool| if is { "True" } else { "False" };
    let mut healthy = json!({ "type": "Healthy", "status": status(wrong.is_none()) });
    healthy["message"] = format!("{of}{}", wrong.unwrap_or("ok")).into();
    let mut conditions = vec![healthy];
    if name.starts_with("etcd-") {
        let message = if *disk_full { FULL } else { "there is room on the disk" };
        let (kind, status) = ("DiskPressure", status(*disk_full));
        let message = format!("{of}{message}");
        conditions.push(json!({ "type": kind, "status": status, "message": message }));
    }
    json!({
        "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": name },
        "conditions": conditions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_condition_of_the_member_s_store() {
        let member = |applied, disk_full| MemberStatus {
            id: 7,
            name: "m7".to_owned(),
            address: "10.0.0.7:6443".to_owned(),
            role: wherry_store::Role::Voter,
            applied,
            hash: None,
            quarantined: None,
            disk_full,
        };
        let told = |member: &MemberStatus| {
            let condition = Condition::of_member(member).told_of(member);
            let component = component("etcd-1", &condition);
            let conditions = component["conditions"].as_array().cloned().unwrap_or_default();
            let line = |condition: &Value| {
                let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
                format!("{}={} {}", text("type"), text("status"), text("message"))
            };
            conditions.iter().map(line).collect::<Vec<_>>().join("\n")
        };
        expect_test::expect![[r#"
            Healthy=True member m7 (id 7): ok
            DiskPressure=False member m7 (id 7): there is room on the disk"#]]
        .assert_eq(&told(&member(Some(9), false)));
        let full = told(&member(Some(9), true));
        assert!(full.starts_with("Healthy=False member m7 (id 7): the disk under its"), "{full}");
        assert!(full.contains("\nDiskPressure=True member m7 (id 7): the disk"), "{full}");
        let away = told(&member(None, false));
        assert!(away.starts_with("Healthy=False member m7 (id 7): it does not answer"), "{away}");
    }
}
