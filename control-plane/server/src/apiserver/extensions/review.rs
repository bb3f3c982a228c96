//! The conversation with a webhook: an AdmissionReview goes out, one with the same uid comes back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use json_patch::Patch;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use wherry_resources::{Kind, Object};

use super::Heard;
use super::client::{self, CallError};
use super::hooks::Webhook;
use super::matching::{self, Subject};
use crate::apiserver::asides;
use crate::apiserver::errors::ApiError;
use crate::apiserver::verbs::patch::Patch as ObjectPatch;

/// Warnings of one webhook that reach the client, and their length, as in Kubernetes.
const WARNINGS_MAX: usize = 10;
const WARNING_BYTES_MAX: usize = 256;
/// Most operations of a webhook's patch.
const OPERATIONS_MAX: usize = 10_000;

/// What the audit log is told, under Kubernetes' names: whether a webhook has changed the object,
/// and that it failed, which was ignored.
const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
const FAILED_OPEN: &str = "failed-open.";
const VALIDATING: &str = "validating.webhook.admission.k8s.io/";

/// Lets a webhook change the object, which is in the version of `kind`; None if it left it as it
/// was. The first time that it is asked is round 0.
pub async fn mutate(
    webhook: &Arc<Webhook>,
    kind: &'static Kind,
    subject: &Subject<'_>,
    round: u8,
    heard: &mut Heard,
) -> Result<Option<Object>, ApiError> {
    let place = format!("round_{round}_index_{}", webhook.index);
    let changed = changed(webhook, kind, subject, &place, heard).await;
    let mutated = matches!(&changed, Ok(Some(object)) if Some(object) != subject.object);
    let told = json!({"configuration": webhook.configuration, "webhook": webhook.name,
        "mutated": mutated});
    asides::state(&format!("{MUTATION}{place}"), Some(&told.to_string()));
    changed
}

async fn changed(
    webhook: &Arc<Webhook>,
    kind: &'static Kind,
    subject: &Subject<'_>,
    place: &str,
    heard: &mut Heard,
) -> Result<Option<Object>, ApiError> {
    let failed_open = format!("{FAILED_OPEN}{MUTATION}{place}");
    let Some(answer) = ask(webhook, kind, subject, &failed_open).await? else {
        return Ok(None);
    };
    heard.warnings.extend(warnings(&answer));
    let Some(encoded) = answer["patch"].as_str().filter(|patch| !patch.is_empty()) else {
        return Ok(None);
    };
    let patched = apply(webhook, encoded, kind, subject, place);
    match patched {
        Ok(object) => Ok(Some(object)),
        Err(why) if webhook.ignores_failure => {
            asides::state(&failed_open, Some(&webhook.name));
            tracing::warn!(webhook = webhook.name, why, "a webhook's patch was left out");
            Ok(None)
        }
        Err(why) => Err(failed(webhook, &why)),
    }
}

fn apply(
    webhook: &Webhook,
    encoded: &str,
    kind: &'static Kind,
    subject: &Subject<'_>,
    place: &str,
) -> Result<Object, String> {
    let bytes = BASE64.decode(encoded).map_err(|error| format!("its patch: {error}"))?;
    let patch: Patch =
        serde_json::from_slice(&bytes).map_err(|error| format!("its patch: {error}"))?;
    if patch.0.len() > OPERATIONS_MAX {
        return Err(format!("its patch has more than {OPERATIONS_MAX} operations"));
    }
    let object = subject
        .object
        .ok_or_else(|| format!("{:?} patches an object that is being deleted", webhook.name))?;
    let is_empty = patch.0.is_empty();
    let told = json!({"configuration": webhook.configuration, "webhook": webhook.name,
        "patch": patch, "patchType": "JSONPatch"});
    // The one place that applies JSON patches within bounds: `copy` can double an object.
    let patched = ObjectPatch::Json(patch.0)
        .apply(kind, object)
        .map_err(|error| format!("its patch: {error}"))?;
    let told = told.to_string();
    // The start of one would be no JSON.
    if !is_empty && told.len() <= asides::TEXT_CHARS_MAX {
        asides::state(&format!("{}{place}", asides::PATCHES), Some(&told));
    }
    Ok(patched)
}

/// Lets a webhook refuse the object; its warnings if it does not. It is the one of this index among
/// those that are concerned.
pub async fn validate(
    webhook: &Arc<Webhook>,
    kind: &'static Kind,
    subject: &Subject<'_>,
    index: usize,
) -> Result<Vec<String>, ApiError> {
    let failed_open = format!("{FAILED_OPEN}{VALIDATING}round_0_index_{index}");
    let answer = ask(webhook, kind, subject, &failed_open).await?;
    Ok(answer.map(|answer| warnings(&answer)).unwrap_or_default())
}

/// The response of a webhook that allows the request; None if it failed and that is to be ignored,
/// of which the audit log is told under `failed_open`.
async fn ask(
    webhook: &Arc<Webhook>,
    kind: &'static Kind,
    subject: &Subject<'_>,
    failed_open: &str,
) -> Result<Option<Value>, ApiError> {
    let uid = uuid::Uuid::new_v4().to_string();
    let review = review(webhook, kind, subject, &uid);
    let timeout = Duration::from_secs(webhook.timeout_seconds);
    let called = client::call(subject.asked.api, &webhook.target, &review, timeout).await;
    let response = called.map_err(|error| error.to_string()).and_then(|answer| {
        let response = answer.get("response").cloned().unwrap_or(Value::Null);
        match response["uid"] == uid.as_str() {
            true if response["allowed"].is_boolean() => Ok(response),
            true => Err("the response does not say whether it is allowed".to_owned()),
            false => Err(format!("expected response.uid={uid:?}, got {}", response["uid"])),
        }
    });
    if let Ok(response) = &response {
        for (key, text) in response["auditAnnotations"].as_object().into_iter().flatten() {
            asides::note(format!("{}/{key}", webhook.name), text.as_str().unwrap_or(""));
        }
    }
    match response {
        Ok(response) if response["allowed"] == true => Ok(Some(response)),
        Ok(response) => {
            asides::warn(warnings(&response));
            Err(denied(webhook, &response))
        }
        Err(why) if webhook.ignores_failure => {
            tracing::warn!(webhook = webhook.name, why, "a webhook failed, which is ignored");
            asides::state(failed_open, Some(&webhook.name));
            Ok(None)
        }
        Err(why) => Err(failed(webhook, &why)),
    }
}

fn failed(webhook: &Webhook, why: &str) -> ApiError {
    ApiError::Internal(format!(
        "failed calling webhook {:?}: failed to call webhook: {why}",
        webhook.name
    ))
}

/// The webhook's own status, with its name before the message.
fn denied(webhook: &Webhook, response: &Value) -> ApiError {
    let status = &response["status"];
    let text = |key: &str| status[key].as_str().unwrap_or("");
    let by = format!("admission webhook {:?} denied the request", webhook.name);
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    ApiError::Relayed {
        code: StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST),
        reason: text("reason").to_owned(),
        message,
        details: status.get("details").filter(|details| details.is_object()).cloned(),
    }
}

fn warnings(response: &Value) -> Vec<String> {
    let list = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let cut = |text: &str| -> String {
        let mut end = text.len().min(WARNING_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    list.take(WARNINGS_MAX).map(cut).collect()
}

/// What is sent.
pub fn review(webhook: &Webhook, kind: &'static Kind, subject: &Subject<'_>, uid: &str) -> Value {
    let mut request = matching::request(subject);
    if !std::ptr::eq(kind, subject.asked.kind) {
        let Kind { group, version, kind: name, plural, .. } = kind;
        request["kind"] = json!({"group": group, "version": version, "kind": name});
        request["resource"] = json!({"group": group, "version": version, "resource": plural});
    }
    let mut whole = json!({"uid": uid});
    if let (Value::Object(whole), Value::Object(request)) = (&mut whole, request) {
        whole.extend(request);
    }
    whole["object"] = subject.object.cloned().unwrap_or(Value::Null);
    whole["oldObject"] = subject.old.cloned().unwrap_or(Value::Null);
    json!({
        "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{}", webhook.version),
        "request": whole,
    })
}

impl From<CallError> for String {
    fn from(error: CallError) -> String {
        error.to_string()
    }
}
