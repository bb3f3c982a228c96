//! Which objects a list or watch shows.

use crate::apiserver::{errors::ApiError, request::Request, stored};
use bytes::Bytes;
use memchr::memmem::Finder;
use wherry_resources::{
    Kind, Object, fields,
    selectors::{FieldSelector, LabelSelector, Operator},
};
use wherry_store::Mark;

/// How an absent field may read, so that it is not found in the bytes.
const ABSENT: [&str; 2] = ["false", "0"];

/// What stands in the bytes of a Pod before the name of its node. Without its first quote, of which
/// there are very many.
const NODE_NAME: &[u8] = b"nodeName\":\"";

/// Label and field selectors of a request.
pub struct Selection {
    kind: &'static Kind,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Of each list one word stands in the bytes of an object, or it cannot match. Made once a
    /// look, for it may go over all objects, and once a watch, for every event passes it.
    words: Vec<Vec<Finder<'static>>>,
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
            selection.words = words(&selection.labels, &selection.fields);
        }
        Ok(selection)
    }

    /// Reads selectors for a kind.
    pub fn new(kind: &'static Kind, labels: &str, fields: &str) -> Result<Selection, ApiError> {
        let bad = |error: &dyn std::fmt::Display| ApiError::BadRequest(error.to_string());
        let labels = LabelSelector::parse(labels).map_err(|error| bad(&error))?;
        let fields = FieldSelector::parse(fields).map_err(|error| bad(&error))?;
        fields::check(kind, &fields).map_err(|error| bad(&error))?;
        let words = words(&labels, &fields);
        Ok(Selection { kind, labels, fields, words })
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
        self.words.iter().all(|one_of| one_of.iter().any(|word| word.find(value).is_some()))
    }

    /// What stands in the bytes of every object that matches, if these are the Pods of one node: each
    /// of thousands of nodes watches its own.
    pub fn mark(&self) -> Option<Mark> {
        let node = self.fields.exact("spec.nodeName").filter(|node| plain(node))?;
        let value = Bytes::copy_from_slice(node.as_bytes());
        self.kind.is("", "Pod").then_some(Mark { lead: NODE_NAME, value })
    }

    /// What the keys of all that can match begin with. Most who look for a name look for one
    /// object: its key is prefix enough.
    pub fn prefix(&self, namespace: Option<&str>) -> Bytes {
        match (self.name(), namespace) {
            (Some(name), Some(namespace)) => stored::key(self.kind, namespace, name),
            (Some(name), None) if !self.kind.namespaced => stored::key(self.kind, "", name),
            (_, namespace) => stored::prefix(self.kind, namespace),
        }
    }

    /// The one name that can match, if the selector names it.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }
}

/// Whether JSON writes a word as it is, so that it can be looked for.
fn plain(word: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
    !word.is_empty() && word.bytes().all(is_plain)
}

/// The words of selectors that stand in every object that they match.
fn words(labels: &LabelSelector, fields: &FieldSelector) -> Vec<Vec<Finder<'static>>> {
    let finder = |word: &str| Finder::new(word.as_bytes()).into_owned();
    let exact = fields.terms.iter().filter(|term| {
        !term.negated && plain(&term.value) && !ABSENT.contains(&term.value.as_str())
    });
    let equal = labels.requirements().iter().filter(|requirement| {
        let equals = matches!(requirement.operator, Operator::Equals | Operator::In);
        equals && requirement.values.iter().all(|value| plain(value))
    });
    let exact = exact.map(|term| vec![finder(&term.value)]);
    let equal = equal.map(|one| one.values.iter().map(|value| finder(value)).collect::<Vec<_>>());
    exact.chain(equal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_node_have_a_mark() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let mark = |fields: &str| {
            let selection = Selection::new(kind, "", fields).expect("selectors");
            selection.mark().map(|mark| mark.value)
        };
        let east = Some(Bytes::from_static(b"east"));
        assert_eq!(mark("spec.nodeName=east"), east);
        assert_eq!(mark("status.phase=Running,spec.nodeName=east"), east);
        for without in ["", "spec.nodeName=", "spec.nodeName!=east", "status.phase=Running"] {
            assert_eq!(mark(without), None, "{without}");
        }
        let pod = serde_json::json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "uid": "u"}, "spec": {"nodeName": "east"}});
        let stored = crate::apiserver::stored::encode(kind, &pod);
        let lead = Finder::new(NODE_NAME).find(&stored).expect("it is bound");
        assert!(stored[lead + NODE_NAME.len()..].starts_with(b"east\""));
    }

    #[test]
    fn a_quick_look_passes_over_what_cannot_match() {
        let kind = wherry_resources::kind("", "v1", "pods").expect("a built-in kind");
        let pod = br#"{"metadata":{"labels":{"app":"web"}},"spec":{"nodeName":"east"}}"#;
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "spec.nodeName=east", true),
            ("app=api", "", false),
            ("app in (api,web)", "", true),
            ("app in (api,none)", "", false),
            ("", "spec.nodeName=west", false),
            // What is not there may be written, and what is not wanted says nothing.
            ("", "spec.hostNetwork=false", true),
            ("app!=web", "spec.nodeName!=east", true),
            ("", "spec.nodeName=", true),
        ] {
            let selection = Selection::new(kind, labels, fields).expect("selectors");
            assert_eq!(selection.may_match(pod), expected, "{labels} {fields}");
        }
    }
}
