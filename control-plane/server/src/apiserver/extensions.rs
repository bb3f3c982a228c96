//! Admission by what users have registered: webhooks, and policies in CEL.
//!
//! ```text
//! defaults, built-in admission ─► mutate: policies, then webhooks, in order of their names
//!                                   └─► once more those that ask for it, if others changed the
//! built-in admission again, object validation, built-in checks
//!                                   ─► validate: policies, then all webhooks at once ─► store
//! ```
//!
//! What is registered ([`hooks`]) is compiled once and made anew when it changes. [`matching`]
//! decides, from values alone, what a hook is asked about; [`review`] is the conversation with a
//! webhook, [`client`] how it is held; [`policies`] evaluates, [`typing`] says which expressions do
//! not fit the types of their objects. The kinds by which hooks are registered are themselves never
//! given to hooks: a wrong one must be possible to remove.

mod client;
mod hooks;
mod matching;
mod policies;
mod review;
#[cfg(test)]
mod tests;
mod typing;

pub use client::{all, call};
pub use hooks::{Hooks, Source, mistakes};
pub use typing::settle;

use std::sync::Arc;

use futures::future::join_all;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, defaults, meta};

use super::{ApiServer, admission::Operation, asides, auth::User, errors::ApiError};
use hooks::{Mutator, Webhook};
use matching::Subject;

/// What is asked of hooks.
pub struct Asked<'a> {
    pub api: &'a ApiServer,
    pub user: &'a User,
    pub kind: &'static Kind,
    pub operation: Verb,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: String,
    pub dry_run: bool,
    /// The options of the request, as a review shows them.
    pub options: Value,
}

impl Asked<'_> {
    /// The namespace of the request, as hooks are told: that of one about a Namespace is its own.
    pub fn place(&self) -> &str {
        match self.kind.is("", "Namespace") {
            true => &self.name,
            false => self.namespace,
        }
    }
}

/// What happens to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    Update,
    Delete,
    /// A stream is opened to it: a command, a port, a proxy.
    Connect,
}

impl Verb {
    /// The word of rules and reviews.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Create => "CREATE",
            Verb::Update => "UPDATE",
            Verb::Delete => "DELETE",
            Verb::Connect => "CONNECT",
        }
    }
}

impl From<Operation> for Verb {
    fn from(operation: Operation) -> Verb {
        match operation {
            Operation::Create => Verb::Create,
            Operation::Update => Verb::Update,
        }
    }
}

/// Kinds that no hook is asked about.
fn is_exempt(kind: &Kind) -> bool {
    kind.group == "admissionregistration.k8s.io"
}

/// What hooks said to the client. What nobody has taken when this goes is told with a refusal.
#[derive(Debug, Default)]
pub struct Heard {
    pub warnings: Vec<String>,
}

impl Heard {
    /// For the answer.
    pub fn take(mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        asides::warn(std::mem::take(&mut self.warnings));
    }
}

/// Lets hooks change the object. Returns whether any did.
pub async fn mutate(
    asked: &Asked<'_>,
    object: &mut Object,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<bool, ApiError> {
    let hooks = asked.api.hooks();
    if hooks.mutators.is_empty() || is_exempt(asked.kind) {
        return Ok(false);
    }
    let before = object.clone();
    // The object as it was when each hook had seen it; None for those that were not concerned.
    let mut seen: Vec<Option<Object>> = Vec::with_capacity(hooks.mutators.len());
    for mutator in &hooks.mutators {
        let concerned = one(asked, &hooks, mutator, object, old, heard).await?;
        seen.push(concerned.then(|| object.clone()));
    }
    for (mutator, seen) in hooks.mutators.iter().zip(seen) {
        if mutator.reinvoked() && seen.is_some_and(|seen| seen != *object) {
            one(asked, &hooks, mutator, object, old, heard).await?;
        }
    }
    Ok(before != *object)
}

/// Asks one hook; whether it was concerned.
async fn one(
    asked: &Asked<'_>,
    hooks: &Arc<Hooks>,
    mutator: &Mutator,
    object: &mut Object,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<bool, ApiError> {
    let subject = Subject { asked, object: Some(object), old };
    let changed = match mutator {
        Mutator::Policy(policy) => policies::mutate(hooks, policy, &subject)?,
        Mutator::Webhook(webhook) => match webhook_concerned(webhook, &subject)? {
            Some(kind) => Some(review::mutate(webhook, kind, &subject, heard).await?),
            None => None,
        },
    };
    let Some(changed) = changed else {
        return Ok(false);
    };
    if let Some(mut changed) = changed {
        check_identity(&mutator.name(), &changed, object)?;
        defaults::apply(asked.kind, &mut changed);
        meta::order(&mut changed);
        *object = changed;
    }
    Ok(true)
}

/// A hook may change what an object says, not which object it is.
fn check_identity(hook: &str, changed: &Object, object: &Object) -> Result<(), ApiError> {
    let same = |path: &str| changed.pointer(path) == object.pointer(path);
    let kept = ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"];
    match kept.into_iter().find(|path| !same(path)) {
        None if changed["metadata"].is_object() => Ok(()),
        found => Err(ApiError::Internal(format!(
            "{hook} changed {}, which an admission hook must not do",
            found.unwrap_or("/metadata").trim_start_matches('/').replace('/', ".")
        ))),
    }
}

/// Lets hooks refuse the object.
pub async fn validate(
    asked: &Asked<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    let hooks = asked.api.hooks();
    if is_exempt(asked.kind) || hooks.policies.is_empty() && hooks.validators.is_empty() {
        return Ok(());
    }
    let subject = Subject { asked, object, old };
    policies::validate(&hooks, &subject, heard)?;
    let mut concerned = Vec::new();
    for webhook in &hooks.validators {
        if let Some(kind) = webhook_concerned(webhook, &subject)? {
            concerned.push(review::validate(webhook, kind, &subject));
        }
    }
    let mut refused = None;
    for outcome in join_all(concerned).await {
        match outcome {
            Ok(warnings) => heard.warnings.extend(warnings),
            // The first in order is told, as if they had been asked one after the other.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Lets hooks refuse a deletion. Those that change objects are asked too: they may refuse as well.
pub async fn validate_deletion(
    asked: &Asked<'_>,
    old: &Object,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    refuse(asked, None, Some(old), heard).await
}

/// Lets hooks refuse what is sent to a part of an object: an eviction, the options of a stream.
/// What they would change of it is not heeded.
pub async fn validate_part(
    asked: &Asked<'_>,
    sent: &Object,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    refuse(asked, Some(sent), None, heard).await
}

async fn refuse(
    asked: &Asked<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<(), ApiError> {
    let hooks = asked.api.hooks();
    if is_exempt(asked.kind) {
        return Ok(());
    }
    let subject = Subject { asked, object, old };
    for mutator in &hooks.mutators {
        if let Mutator::Webhook(webhook) = mutator
            && let Some(kind) = webhook_concerned(webhook, &subject)?
        {
            match object {
                Some(_) => {
                    heard.warnings.extend(review::validate(webhook, kind, &subject).await?);
                }
                None => drop(review::mutate(webhook, kind, &subject, heard).await?),
            }
        }
    }
    validate(asked, object, old, heard).await
}

/// The options of a request as reviews show them: what was given, under the kind of what is done. A
/// patch is an update, or creates.
pub fn options(verb: Verb, given: &Map<String, Value>) -> Value {
    let kind = match verb {
        Verb::Connect => return Value::Null,
        Verb::Create => "CreateOptions",
        Verb::Update => "UpdateOptions",
        Verb::Delete => "DeleteOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for (name, value) in given {
        options[name.as_str()] = value.clone();
    }
    options
}

/// In which version a webhook is to be asked about the object; None if it is not concerned.
fn webhook_concerned(
    webhook: &Webhook,
    subject: &Subject<'_>,
) -> Result<Option<&'static Kind>, ApiError> {
    let Some(kind) = webhook.constraints.concerns(subject) else {
        return Ok(None);
    };
    let holds = matching::conditions(&webhook.conditions, subject).map_err(|why| {
        ApiError::forbidden(
            subject.asked.kind,
            &subject.asked.name,
            format!("failed evaluating match conditions of webhook {:?}: {why}", webhook.name),
        )
    });
    match holds {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(_) if webhook.ignores_failure => return Ok(None),
        Err(error) => return Err(error),
    }
    if subject.asked.dry_run && !webhook.without_side_effects {
        return Err(ApiError::BadRequest(format!(
            "admission webhook {:?} does not support dry run",
            webhook.name
        )));
    }
    Ok(Some(kind))
}
