//! Between the versions of a custom kind: by name alone, or by the webhook that its CRD names.
//!
//! Objects are stored in the storage version. One that is read in another version comes from the
//! store with its stored `apiVersion` while a webhook has to be asked ([`is_foreign`]), and whoever
//! reads it must bring it over ([`into_version`]) before it is shown or changed.

use std::time::Duration;

use serde_json::{Value, json};
use wherry_resources::custom::Definition;
use wherry_resources::{Kind, Object, meta};

use crate::apiserver::{ApiServer, errors::ApiError, extensions, outbound::Target};

/// A conversion webhook has this long for one request, as in Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one request to a webhook.
const BATCH_MAX: usize = 500;

/// Whether objects of this kind may have to pass a webhook.
pub fn by_webhook(kind: &Kind) -> bool {
    kind.custom().is_some_and(|definition| definition.conversion.is_some())
}

/// Whether an object is not yet in the version of its kind.
pub fn is_foreign(kind: &Kind, object: &Object) -> bool {
    meta::api_version(object) != kind.api_version()
}

/// Brings objects that were read from the store into the version of their kind.
pub async fn into_version(
    api: &ApiServer,
    kind: &'static Kind,
    objects: Vec<Object>,
) -> Result<Vec<Object>, ApiError> {
    let Some(definition) = kind.custom().filter(|definition| definition.conversion.is_some())
    else {
        return Ok(objects);
    };
    let mut converted = convert(api, &definition, &kind.api_version(), objects).await?;
    for object in &mut converted {
        definition.default(object);
    }
    Ok(converted)
}

/// Brings an object into the version in which it is stored.
pub async fn into_storage(
    api: &ApiServer,
    kind: &'static Kind,
    object: &Object,
) -> Result<Object, ApiError> {
    let Some(definition) = kind.custom().filter(|definition| definition.conversion.is_some())
    else {
        return Ok(object.clone());
    };
    let version = format!("{}/{}", kind.group, definition.storage_version);
    if meta::api_version(object) == version {
        return Ok(object.clone());
    }
    let converted = convert(api, &definition, &version, vec![object.clone()]).await?;
    converted.into_iter().next().ok_or_else(|| failed(object, "nothing came back"))
}

/// As a stock server does, it names what was to be converted and not into what.
fn failed(object: &Object, why: &str) -> ApiError {
    ApiError::Internal(format!(
        "conversion webhook for {}, Kind={} failed: {why}",
        meta::api_version(object),
        meta::kind(object)
    ))
}

/// Asks the webhook about those objects that are in another version.
pub async fn convert(
    api: &ApiServer,
    definition: &Definition,
    version: &str,
    mut objects: Vec<Object>,
) -> Result<Vec<Object>, ApiError> {
    let webhook = definition.conversion.as_ref().unwrap_or(&Value::Null);
    let foreign: Vec<usize> =
        (0..objects.len()).filter(|index| meta::api_version(&objects[*index]) != version).collect();
    for batch in foreign.chunks(BATCH_MAX) {
        let sent: Vec<&Object> = batch.iter().map(|index| &objects[*index]).collect();
        let answer =
            ask(api, webhook, version, &sent).await.map_err(|why| failed(sent[0], &why))?;
        if answer.len() != batch.len() {
            let (sent, came) = (batch.len(), answer.len());
            let why = format!("{sent} objects were sent, {came} came back");
            return Err(failed(&objects[batch[0]], &why));
        }
        for (index, new) in batch.iter().zip(answer) {
            let old = &objects[*index];
            objects[*index] = accepted(old, new, version).map_err(|why| failed(old, &why))?;
        }
    }
    Ok(objects)
}

/// A conversion may change anything but what an object is and whose it is; of its metadata only
/// labels and annotations.
fn accepted(old: &Object, mut new: Object, version: &str) -> Result<Object, String> {
    if meta::api_version(&new) != version || meta::kind(&new) != meta::kind(old) {
        return Err(format!(
            "{} came back as {}, Kind={}",
            meta::name(old),
            meta::api_version(&new),
            meta::kind(&new)
        ));
    }
    if !new["metadata"].is_object() || meta::uid(&new) != meta::uid(old) {
        return Err(format!("the metadata of {} was changed", meta::name(old)));
    }
    let mut metadata = old["metadata"].clone();
    for key in ["labels", "annotations"] {
        match new["metadata"].get(key) {
            Some(value) => metadata[key] = value.clone(),
            None => {
                metadata.as_object_mut().and_then(|map| map.shift_remove(key));
            }
        }
    }
    new["metadata"] = metadata;
    meta::order(&mut new);
    Ok(new)
}

async fn ask(
    api: &ApiServer,
    webhook: &Value,
    version: &str,
    objects: &[&Object],
) -> Result<Vec<Object>, String> {
    let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    let review = if versions.into_iter().any(|one| one == "v1") { "v1" } else { "v1beta1" };
    let uid = uuid::Uuid::new_v4().to_string();
    let request = json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{review}"),
        "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects},
    });
    let target = Target::parse(&webhook["clientConfig"]);
    let answer = extensions::call(api, &target, &request, TIMEOUT).await;
    let mut answer = answer.map_err(|error| error.to_string())?;
    let response = &mut answer["response"];
    if response["uid"] != uid.as_str() {
        return Err("the answer is to another request".to_owned());
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().unwrap_or("without explanation");
        return Err(message.to_owned());
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Err("the answer holds no objects".to_owned()),
    }
}
