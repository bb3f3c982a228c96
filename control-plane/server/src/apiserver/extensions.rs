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
//! not fit the types of their objects, [`versions`] brings objects into the version of a hook's
//! rule. The kinds by which hooks are registered are themselves never given to hooks: a wrong one
//! must be possible to remove.

mod client;
mod hooks;
mod matching;
mod policies;
mod review;
#[cfg(test)]
mod tests;
mod typing;
mod versions;

pub use client::{all, call};
pub use hooks::{Hooks, Source, mistakes};
pub use typing::settle;

use futures::future::join_all;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, defaults, meta};

use super::{ApiServer, admission::Operation, asides, auth::User, errors::ApiError};
use hooks::{Mutator, Webhook};
use matching::Subject;
use versions::Seen;

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
        let concerned = one(asked, mutator, 0, object, old, heard).await?;
        seen.push(concerned.then(|| object.clone()));
    }
    for (mutator, seen) in hooks.mutators.iter().zip(seen) {
        if mutator.reinvoked() && seen.is_some_and(|seen| seen != *object) {
            one(asked, mutator, 1, object, old, heard).await?;
        }
    }
    Ok(before != *object)
}

/// Asks one hook, the first time or once more; whether it was concerned.
async fn one(
    asked: &Asked<'_>,
    mutator: &Mutator,
    round: u8,
    object: &mut Object,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<bool, ApiError> {
    let Some((kind, changed)) = ask(asked, mutator, round, object, old, heard).await? else {
        return Ok(false);
    };
    if let Some(changed) = changed {
        let mut changed = versions::back(asked, kind, changed).await?;
        check_identity(&mutator.name(), &changed, object)?;
        defaults::apply(asked.kind, &mut changed);
        meta::order(&mut changed);
        *object = changed;
    }
    Ok(true)
}

/// What a hook makes of an object, in the version of its rule. None: it was not concerned; the
/// object None: it left it as it was.
async fn ask(
    asked: &Asked<'_>,
    mutator: &Mutator,
    round: u8,
    object: &Object,
    old: Option<&Object>,
    heard: &mut Heard,
) -> Result<Option<(&'static Kind, Option<Object>)>, ApiError> {
    let subject = Subject { asked, object: Some(object), old };
    let seen = match mutator {
        Mutator::Policy(policy) => match policy.constraints.concerns(&subject) {
            Some(kind) => Some(versions::seen(&subject, kind).await?),
            None => None,
        },
        Mutator::Webhook(webhook) => webhook_concerned(webhook, &subject).await?,
    };
    let Some(seen) = seen else { return Ok(None) };
    let (kind, subject) = (seen.kind, seen.subject(asked));
    let changed = match mutator {
        Mutator::Policy(policy) => policies::mutate(policy, kind, &subject)?,
        Mutator::Webhook(webhook) => {
            let asked = review::mutate(webhook, kind, &subject, round, heard);
            Some(Box::pin(asked).await?)
        }
    };
    Ok(changed.map(|changed| (kind, changed)))
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
    policies::validate(&hooks, &subject, heard).await?;
    let mut concerned = Vec::new();
    for webhook in &hooks.validators {
        if let Some(seen) = webhook_concerned(webhook, &subject).await? {
            concerned.push((webhook, seen));
        }
    }
    let subjects: Vec<Subject<'_>> =
        concerned.iter().map(|(_, seen)| seen.subject(asked)).collect();
    let mut questions = Vec::new();
    for (index, ((webhook, seen), subject)) in concerned.iter().zip(&subjects).enumerate() {
        questions.push(review::validate(webhook, seen.kind, subject, index));
    }
    let mut refused = None;
    for outcome in join_all(questions).await {
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
        let Mutator::Webhook(webhook) = mutator else { continue };
        let Some(seen) = webhook_concerned(webhook, &subject).await? else { continue };
        let subject = seen.subject(asked);
        match object {
            Some(_) => {
                let question = review::validate(webhook, seen.kind, &subject, webhook.index);
                heard.warnings.extend(question.await?);
            }
            None => drop(review::mutate(webhook, seen.kind, &subject, 0, heard).await?),
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

/// What a webhook is to be asked about; None if it is not concerned.
async fn webhook_concerned<'a>(
    webhook: &Webhook,
    subject: &Subject<'a>,
) -> Result<Option<Seen<'a>>, ApiError> {
    let Some(kind) = webhook.constraints.concerns(subject) else {
        return Ok(None);
    };
    let seen = versions::seen(subject, kind).await?;
    let matched = matching::conditions(&webhook.conditions, &seen.subject(subject.asked));
    let holds = matched.map_err(|why| {
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
    Ok(Some(seen))
}
