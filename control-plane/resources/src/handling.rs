//! How a Pod's handlers take requests: annotations of the Pod, which the node reads and the API
//! server warns about.

use serde::{Deserialize, Serialize};

use crate::{Object, meta};

/// What the annotations say; the node has its own numbers for what they do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Handling {
    /// Seconds from a request to the head of its response, and between two parts of its body.
    pub deadline_seconds: Option<u32>,
    /// Requests that are handled at the same time, each in an instance of its own.
    pub at_once: Option<u32>,
    /// Requests that wait for such a place.
    pub queued: Option<u32>,
    /// Requests that one instance handles, in all.
    pub per_instance: Option<u32>,
    /// Requests that one instance handles at the same time, if it can (WASI 0.3).
    pub at_once_per_instance: Option<u32>,
    /// Seconds without a request after which the handler gives its compiled code back.
    pub idle_after_seconds: Option<u32>,
}

/// An annotation that is a number within bounds.
struct Number {
    annotation: &'static str,
    least: u32,
    most: u32,
}

const DEADLINE: Number =
    Number { annotation: "wherry.dev/request-deadline-seconds", least: 1, most: 86_400 };
const AT_ONCE: Number = Number { annotation: "wherry.dev/requests-at-once", least: 1, most: 5_000 };
const QUEUED: Number = Number { annotation: "wherry.dev/requests-queued", least: 0, most: 10_000 };
const PER_INSTANCE: Number =
    Number { annotation: "wherry.dev/requests-per-instance", least: 1, most: 1_000_000 };

const AT_ONCE_PER_INSTANCE: Number =
    Number { annotation: "wherry.dev/requests-at-once-per-instance", least: 1, most: 1_000 };
const IDLE_AFTER: Number =
    Number { annotation: "wherry.dev/idle-after-seconds", least: 1, most: 86_400 };
/// All of them.
const NUMBERS: [&Number; 6] =
    [&DEADLINE, &AT_ONCE, &QUEUED, &PER_INSTANCE, &AT_ONCE_PER_INSTANCE, &IDLE_AFTER];

impl Number {
    fn read<'a>(
        &self,
        annotation: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<u32>, String> {
        let Number { annotation: name, least, most } = self;
        let Some(text) = annotation(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (*least..=*most).contains(&number) => Ok(Some(number)),
            _ => Err(format!(
                "metadata.annotations[{name}]: {text:?} is ignored: want a whole number from \
                 {least} to {most}"
            )),
        }
    }
}

/// Reads the annotations; one that cannot be meant counts as absent.
pub fn read<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Handling {
    let number = |number: &Number| number.read(&annotation).unwrap_or_default();
    Handling {
        deadline_seconds: number(&DEADLINE),
        at_once: number(&AT_ONCE),
        queued: number(&QUEUED),
        per_instance: number(&PER_INSTANCE),
        at_once_per_instance: number(&AT_ONCE_PER_INSTANCE),
        idle_after_seconds: number(&IDLE_AFTER),
    }
}

/// A sentence for each annotation of a Pod, or of a template at a path, that cannot be meant.
pub fn warnings(at: &str, pod: &Object) -> Vec<String> {
    let wrong = NUMBERS
        .into_iter()
        .filter_map(|number| number.read(|name| meta::annotation(pod, name)).err());
    wrong.map(|why| format!("{at}{why}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_meant_is_ignored_and_said() {
        let pod = json!({"metadata": {"annotations": {
            "wherry.dev/request-deadline-seconds": "0",
            "wherry.dev/requests-at-once": "8",
            "wherry.dev/requests-queued": "0",
            "wherry.dev/requests-per-instance": "many",
            "wherry.dev/requests-at-once-per-instance": "16",
            "wherry.dev/idle-after-seconds": "0",
            "other": "x"}}});
        let handling = read(|name| meta::annotation(&pod, name));
        let expected = Handling {
            at_once: Some(8),
            queued: Some(0),
            at_once_per_instance: Some(16),
            ..Handling::default()
        };
        assert_eq!(handling, expected);
        assert_eq!(
            warnings("", &pod),
            [
                "metadata.annotations[wherry.dev/request-deadline-seconds]: \"0\" is ignored: want \
                 a whole number from 1 to 86400",
                "metadata.annotations[wherry.dev/requests-per-instance]: \"many\" is ignored: want \
                 a whole number from 1 to 1000000",
                "metadata.annotations[wherry.dev/idle-after-seconds]: \"0\" is ignored: want a \
                 whole number from 1 to 86400",
            ]
        );
        assert_eq!(warnings("", &json!({})), Vec::<String>::new());
    }
}
