//! What annotations of a Pod ask of the scheduler: to be in time, and to start together.

use jiff::Timestamp;

use crate::{Object, meta};

/// Pods of one namespace with the same value start together or not at all.
pub const GANG: &str = "scheduling.wherry.dev/gang";
/// How many members a gang needs to start.
pub const GANG_SIZE: &str = "scheduling.wherry.dev/gang-size";
/// When the Pod should run, in the form of RFC 3339. Of Pods with the same priority the earliest
/// deadline goes first.
pub const DEADLINE: &str = "scheduling.wherry.dev/deadline";

/// A sentence for each of them on a Pod, or on a template at a path, that cannot be meant.
pub fn warnings(at: &str, pod: &Object) -> Vec<String> {
    let given = |name: &str| meta::annotation(pod, name);
    let ignored = |name: &str, text: &str, want: &str| {
        format!("{at}metadata.annotations[{name}]: {text:?} is ignored: want {want}")
    };
    let mut found = Vec::new();
    if let Some(text) = given(DEADLINE).filter(|text| text.parse::<Timestamp>().is_err()) {
        found.push(ignored(DEADLINE, text, "a time such as 2030-01-01T00:00:00Z"));
    }
    if let Some(name) = given(GANG) {
        match given(GANG_SIZE) {
            None => found.push(ignored(GANG, name, &format!("{GANG_SIZE} beside it"))),
            Some(size) if size.parse::<usize>().is_err() => {
                found.push(ignored(GANG_SIZE, size, "the number of Pods that start together"));
            }
            Some(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_cannot_be_meant_is_said() {
        let told =
            |annotations: Value| warnings("", &json!({"metadata": {"annotations": annotations}}));
        let meant = json!({GANG: "g", GANG_SIZE: "3", DEADLINE: "2030-01-01T00:00:00Z"});
        assert_eq!(told(meant), Vec::<String>::new());
        assert_eq!(
            told(json!({GANG: "g", GANG_SIZE: "all", DEADLINE: "soon"})),
            [
                "metadata.annotations[scheduling.wherry.dev/deadline]: \"soon\" is ignored: want a \
                 time such as 2030-01-01T00:00:00Z",
                "metadata.annotations[scheduling.wherry.dev/gang-size]: \"all\" is ignored: want \
                 the number of Pods that start together",
            ]
        );
        assert_eq!(
            told(json!({GANG: "g"})),
            ["metadata.annotations[scheduling.wherry.dev/gang]: \"g\" is ignored: want \
              scheduling.wherry.dev/gang-size beside it"]
        );
    }
}
