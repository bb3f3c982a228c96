//! Owner references decide what the garbage collector deletes, so they are a way to have things
//! deleted: who changes them must be allowed to delete the object, and who lets an object hold up
//! its owner's deletion must be allowed to set the owner's finalizers.

use super::{Context, Operation};
use crate::apiserver::{errors::ApiError, request::Attributes};
use serde_json::Value;
use wherry_resources::{Kind, Object, meta};

/// What the writer may do, as far as owner references make it matter.
pub struct Rights {
    pub delete: bool,
    /// The finalizers of every owner whose deletion the object newly holds up.
    pub finalize_owners: bool,
}

/// Whether the owner references are others than before.
pub fn change(new: &Object, old: Option<&Object>) -> bool {
    let list = |object: &Object| -> Vec<Value> {
        let list = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    list(new) != old.map(list).unwrap_or_default()
}

/// What must be allowed for each owner whose deletion the object newly holds up. Owners of kinds
/// that are not in the table cannot be asked about.
pub fn asked(kind: &Kind, namespace: &str, new: &Object, old: Option<&Object>) -> Vec<Attributes> {
    let blocks = |object: &Object, uid: &str| {
        meta::owner_references(object).iter().any(|one| one.uid == uid && one.block_owner_deletion)
    };
    let before = |uid: &str| old.is_some_and(|old| blocks(old, uid));
    let references = meta::owner_references(new);
    let newly = references.iter().filter(|one| one.block_owner_deletion && !before(one.uid));
    newly
        .filter_map(|owner| {
            let row = wherry_resources::kind_of(owner.api_version, owner.kind)?;
            let namespace = if row.namespaced && kind.namespaced { namespace } else { "" };
            Some(Attributes {
                verb: "update".to_owned(),
                is_resource: true,
                group: row.group.to_owned(),
                version: row.version.to_owned(),
                namespace: namespace.to_owned(),
                resource: row.plural.to_owned(),
                subresource: "finalizers".to_owned(),
                name: owner.name.to_owned(),
                named: true,
                ..Attributes::default()
            })
        })
        .collect()
}

/// Checks the owner references of an object.
pub fn admit(context: &Context<'_>, new: &Object) -> Result<(), ApiError> {
    let Some(rights) = &context.facts.owners else {
        return Ok(());
    };
    let refuse = |why: &str| Err(ApiError::forbidden(context.kind, meta::name(new), why));
    // Nothing can go by the references of an object that was not there before.
    if context.operation == Operation::Update && !rights.delete {
        return refuse("cannot set an ownerRef on a resource you can't delete: , <nil>");
    }
    if !rights.finalize_owners {
        return refuse(
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set \
             finalizers on: , <nil>",
        );
    }
    Ok(())
}
