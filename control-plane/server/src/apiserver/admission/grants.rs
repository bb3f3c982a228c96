//! Nobody gives what they do not have: a role may only say, and a binding only give, what its
//! writer holds in that place, unless they hold `escalate` on roles or `bind` on the role.
//!
//! A cluster role that gathers others (`aggregationRule`) can come to say anything, so it takes all
//! rights to write one.

use super::Context;
use crate::apiserver::{errors::ApiError, rbac::RoleKey};
use serde_json::Value;
use wherry_resources::{
    Object, meta,
    rbac::{self, Rule},
};

/// What the writer of a role or binding holds.
pub struct Grant {
    /// They may give what they do not hold.
    pub unlimited: bool,
    /// Their rules where the object is.
    pub held: Vec<Rule>,
    /// What a binding would give; the role that it names if that is not there.
    pub given: Result<Vec<Rule>, RoleKey>,
}

/// Checks a new or changed role or binding.
pub fn admit(context: &Context<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let Some(grant) = &context.facts.grant else {
        return Ok(());
    };
    if grant.unlimited || old.is_some_and(|old| differs_in_collection_only(new, old)) {
        return Ok(());
    }
    match context.kind.plural {
        "roles" | "clusterroles" => {
            let gathers =
                |object: &Object| object.get("aggregationRule").is_some_and(|rule| !rule.is_null());
            let gathers = gathers(new) || old.is_some_and(gathers);
            if gathers && !rbac::uncovered(&grant.held, &rbac::everything()).is_empty() {
                let why = "must have cluster-admin privileges to use an aggregationRule";
                return Err(ApiError::forbidden(context.kind, meta::name(new), why));
            }
            covered(context, new, &grant.held, &rbac::rules(new))
        }
        _ => match &grant.given {
            Ok(given) => covered(context, new, &grant.held, given),
            Err(role) => Err(role.not_found()),
        },
    }
}

fn covered(
    context: &Context<'_>,
    new: &Object,
    held: &[Rule],
    given: &[Rule],
) -> Result<(), ApiError> {
    let missing = rbac::uncovered(held, given);
    if missing.is_empty() {
        return Ok(());
    }
    let user = context.user;
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        rbac::quoted(&user.groups),
        rbac::lines(missing)
    );
    Err(ApiError::forbidden(context.kind, meta::name(new), why))
}

/// Whether only what the garbage collector writes has changed: it must be able to take apart what
/// it could not have written.
fn differs_in_collection_only(new: &Object, old: &Object) -> bool {
    let rest = |object: &Object| -> Value {
        let mut object = object.clone();
        let metadata = meta::metadata_mut(&mut object);
        for key in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
            metadata.shift_remove(key);
        }
        object
    };
    rest(new) == rest(old)
}
