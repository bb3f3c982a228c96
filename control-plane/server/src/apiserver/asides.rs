//! What admission, hooks and policies say of a request beside allowing or refusing it: warnings,
//! which a client hears even if it is refused, and annotations of the request's line in the audit
//! log.
//!
//! They are said deep inside of a request and belong to its answer, whatever becomes of it: so they
//! are kept with the task that answers it, and `guard` takes them from there.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Where Kubernetes puts what policies object to that are only to be audited.
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";
/// How annotations begin that have the patch of a webhook, which is content as bodies are.
pub const PATCHES: &str = "patch.webhook.admission.k8s.io/";
/// Longest annotation, as in Kubernetes.
pub const TEXT_CHARS_MAX: usize = 10 * 1024;
/// Annotations of one request; the policies of real clusters have a handful.
const NOTES_MAX: usize = 100;

tokio::task_local! {
    static ASIDES: RefCell<Asides>;
}

/// Everything that was said beside an answer.
#[derive(Debug, Default)]
pub struct Asides {
    /// What a client has to hear that is refused; others hear it with their answer.
    pub warnings: Vec<String>,
    notes: BTreeMap<String, Vec<String>>,
    failures: Vec<Value>,
}

impl Asides {
    /// Annotations for the audit log.
    pub fn annotations(&self) -> Map<String, Value> {
        let notes =
            self.notes.iter().map(|(key, texts)| (key.clone(), Value::from(texts.join(", "))));
        let mut all: Map<String, Value> = notes.collect();
        if !self.failures.is_empty() {
            let failures = Value::from(self.failures.clone());
            all.insert(FAILURES.to_owned(), failures.to_string().into());
        }
        all
    }
}

/// Answers a request; what was said meanwhile comes beside the outcome.
pub async fn beside<F: Future>(work: F) -> (F::Output, Asides) {
    let both = async {
        let outcome = work.await;
        (outcome, ASIDES.with(RefCell::take))
    };
    ASIDES.scope(RefCell::default(), both).await
}

/// Warns the client of a request that is being refused.
pub fn warn(warnings: Vec<String>) {
    say(|asides| asides.warnings.extend(warnings));
}

/// Annotates the request in the audit log. What is said again under a key stands behind it.
pub fn note(key: String, text: &str) {
    say(|asides| {
        if asides.notes.len() >= NOTES_MAX && !asides.notes.contains_key(&key) {
            return;
        }
        let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
        let texts = asides.notes.entry(key).or_default();
        if texts.len() < NOTES_MAX && !texts.contains(&text) {
            texts.push(text);
        }
    });
}

/// Annotates the request with what is so now, if anything, in place of what was so before:
/// admission may judge what a request asks for more than once.
pub fn state(key: &str, text: Option<&str>) {
    say(|asides| drop(asides.notes.remove(key)));
    if let Some(text) = text {
        note(key.to_owned(), text);
    }
}

/// Has the audit log say what a policy objects to.
pub fn objection(objection: Value) {
    say(|asides| {
        if asides.failures.len() < NOTES_MAX && !asides.failures.contains(&objection) {
            asides.failures.push(objection);
        }
    });
}

fn say(say: impl FnOnce(&mut Asides)) {
    // Outside of a request nobody listens.
    let _ = ASIDES.try_with(|asides| say(&mut asides.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn what_is_said_inside_comes_beside_the_outcome() {
        note("nobody/hears".to_owned(), "this");
        let work = async {
            note("p/keys".to_owned(), "2");
            tokio::task::yield_now().await;
            note("p/keys".to_owned(), "3");
            note("p/keys".to_owned(), "2");
            state("p/level", Some("first"));
            state("p/level", Some("last"));
            state("p/other", Some("first"));
            state("p/other", None);
            objection(json!({"message": "no"}));
            warn(vec!["mind the gap".to_owned()]);
            7
        };
        let (outcome, asides) = beside(work).await;
        assert_eq!((outcome, asides.warnings.len()), (7, 1));
        let expected =
            json!({"p/keys": "2, 3", "p/level": "last", FAILURES: "[{\"message\":\"no\"}]"});
        assert_eq!(Value::Object(asides.annotations()), expected);
    }
}
