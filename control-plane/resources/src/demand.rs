//! Words between the traffic layer and autoscalers: how a workload comes back from zero.
//!
//! ```text
//!  autoscaler with minReplicas 0 ─► HOLD on the Service's EndpointSlices ─► nodes let requests wait
//!  requests wait on a node ─► WAITING on its Node ─► the workload gets a Pod
//! ```
//!
//! The Node is the agent's own to annotate, so what waits needs no object and no right of its own.
//! It is written when the first request comes and when the last has gone.

use std::collections::BTreeMap;

/// Annotation of an EndpointSlice: `true` where requests are to wait for a Pod while there is none.
pub const HOLD: &str = "wherry.dev/hold";
/// Annotation of a Node: the requests that wait there, as JSON of [`Waiting`].
pub const WAITING: &str = "wherry.dev/demand";
/// Services of one Node that are looked at. The others' turn comes when these have been served.
pub const SERVICES_MAX: usize = 100;

/// Requests that wait, by [`key`].
pub type Waiting = BTreeMap<String, u64>;

/// A Service in [`Waiting`].
pub fn key(namespace: &str, service: &str) -> String {
    format!("{namespace}/{service}")
}

/// Reads the annotation; what cannot be read says nothing.
pub fn read(text: &str) -> Waiting {
    let all: Waiting = serde_json::from_str(text).unwrap_or_default();
    all.into_iter().filter(|(_, count)| *count > 0).take(SERVICES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_read() {
        let text = r#"{"d/web":3,"d/idle":0}"#;
        assert_eq!(read(text), Waiting::from([(key("d", "web"), 3)]));
        for wrong in ["", "[]", r#"{"d/web":-1}"#] {
            assert_eq!(read(wrong), Waiting::new(), "{wrong}");
        }
        let many: Waiting = (0..200).map(|number| (key("d", &format!("s{number}")), 1)).collect();
        assert_eq!(read(&serde_json::json!(many).to_string()).len(), SERVICES_MAX);
    }
}
