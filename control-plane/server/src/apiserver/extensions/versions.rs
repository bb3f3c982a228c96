//! In which version a hook sees an object: that of the rule by which it is concerned.
//!
//! Between the versions of a custom kind its conversion webhook is asked, as for every reader.

use std::borrow::Cow;

use wherry_resources::{Kind, Object, convert, meta};

use super::Asked;
use super::matching::Subject;
use crate::apiserver::{custom, errors::ApiError};

/// What a request is about, in the version of a kind.
pub struct Seen<'a> {
    pub kind: &'static Kind,
    object: Option<Cow<'a, Object>>,
    old: Option<Cow<'a, Object>>,
}

impl Seen<'_> {
    /// The request about these objects.
    pub fn subject<'s>(&'s self, asked: &'s Asked<'s>) -> Subject<'s> {
        Subject { asked, object: self.object.as_deref(), old: self.old.as_deref() }
    }
}

/// Brings what a request is about into the version of a kind that shows the same objects.
pub async fn seen<'a>(subject: &Subject<'a>, kind: &'static Kind) -> Result<Seen<'a>, ApiError> {
    let (asked, object, old) = (subject.asked, subject.object, subject.old);
    // What is sent to a part of an object is of another kind.
    let is_foreign =
        |object: &Object| meta::kind(object) == kind.kind && custom::is_foreign(kind, object);
    if custom::by_webhook(kind) && [object, old].into_iter().flatten().any(is_foreign) {
        let sent: Vec<Object> = [object, old].into_iter().flatten().cloned().collect();
        let converted = Box::pin(custom::into_version(asked.api, kind, sent)).await?;
        let mut converted = converted.into_iter();
        let object = object.and_then(|_| converted.next()).map(Cow::Owned);
        let old = old.and_then(|_| converted.next()).map(Cow::Owned);
        return Ok(Seen { kind, object, old });
    }
    let renamed = |object: &'a Object| match std::ptr::eq(kind, asked.kind) {
        true => Cow::Borrowed(object),
        false => Cow::Owned(convert::to(asked.kind, kind, object.clone())),
    };
    Ok(Seen { kind, object: object.map(renamed), old: old.map(renamed) })
}

/// An object that a hook has changed in the version of `kind`, in the version of the request.
pub async fn back(
    asked: &Asked<'_>,
    kind: &'static Kind,
    object: Object,
) -> Result<Object, ApiError> {
    if std::ptr::eq(kind, asked.kind) {
        return Ok(object);
    }
    if !custom::by_webhook(kind) {
        return Ok(convert::to(kind, asked.kind, object));
    }
    let mut converted = Box::pin(custom::into_version(asked.api, asked.kind, vec![object])).await?;
    Ok(converted.pop().expect("as many objects come back as are sent"))
}
