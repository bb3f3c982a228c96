//! Which objects a list or watch shows.

use crate::apiserver::{errors::ApiError, request::Request};
use wherry_resources::{
    Kind, Object, fields,
    selectors::{FieldSelector, LabelSelector, Operator},
};

/// How an absent field may read, so that it is not found in the bytes.
const ABSENT: [&str; 2] = ["false", "0"];

/// Label and field selectors of a request.
pub struct Selection {
    kind: &'static Kind,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads the query; bad syntax and unknown fields are 400. A path with a name selects it.
    pub fn of(request: &Request) -> Result<Selection, ApiError> {
        let labels = request.query.get("labelSelector").unwrap_or("");
        let fields = request.query.get("fieldSelector").unwrap_or("");
        let mut selection = Selection::new(request.kind, labels, fields)?;
        if request.attributes.named {
            let (field, value) = ("metadata.name".to_owned(), request.name().to_owned());
            selection.fields.terms.push(wherry_resources::selectors::FieldTerm {
                field,
                value,
                negated: false,
            });
        }
        Ok(selection)
    }

    /// Reads selectors for a kind.
    pub fn new(kind: &'static Kind, labels: &str, fields: &str) -> Result<Selection, ApiError> {
        let bad = |error: &dyn std::fmt::Display| ApiError::BadRequest(error.to_string());
        let labels = LabelSelector::parse(labels).map_err(|error| bad(&error))?;
        let fields = FieldSelector::parse(fields).map_err(|error| bad(&error))?;
        fields::check(kind, &fields).map_err(|error| bad(&error))?;
        Ok(Selection { kind, labels, fields })
    }

    /// Everything matches: objects need not be read.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.terms.is_empty()
    }

    /// Whether an object is shown.
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.matches(object) && fields::matches(self.kind, object, &self.fields)
    }

    /// A quick look at stored bytes: false if no object in them can match. Every node watches its
    /// own Pods among all Pods, so most objects must be passed over without being read.
    pub fn may_match(&self, value: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(value) else {
            return true;
        };
        // Only words that JSON writes as they are can be looked for.
        let plain = |word: &str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
            !word.is_empty() && word.bytes().all(is_plain)
        };
        let exact = self.fields.terms.iter().filter(|term| !term.negated && plain(&term.value));
        let equal = self.labels.requirements().iter().filter(|requirement| {
            let equals = matches!(requirement.operator, Operator::Equals | Operator::In);
            equals && requirement.values.iter().all(|value| plain(value))
        });
        exact
            .into_iter()
            .all(|term| ABSENT.contains(&term.value.as_str()) || text.contains(&term.value))
            && equal.into_iter().all(|one| one.values.iter().any(|value| text.contains(value)))
    }

    /// The one name that can match, if the selector names it.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }
}
