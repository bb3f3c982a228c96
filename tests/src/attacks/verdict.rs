//! What stopped an attack, read from the Pod's status and its log.

use serde_json::Value;

/// Whether and how an attack has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is over: this is why.
    Over(String),
    /// It still runs.
    Running,
    /// Nothing is known of it yet.
    Unknown,
}

/// Reads a Pod's status. `log` is what it printed.
pub fn verdict(pod: &Value, log: &str) -> Verdict {
    let status = &pod["status"];
    if status["reason"] == "Evicted" {
        return Verdict::Over(format!("Evicted: {}", text(&status["message"])));
    }
    let container = &status["containerStatuses"][0];
    let state = &container["state"];
    if let Some(ended) = state.get("terminated") {
        return Verdict::Over(ended_as(ended, log));
    }
    if let Some(waiting) = state.get("waiting") {
        let reason = text(&waiting["reason"]);
        return match reason.as_str() {
            "ContainerCreating" | "PodInitializing" | "Compiling" | "" => Verdict::Unknown,
            // On a busy machine a registry may answer too late; it is asked again.
            "ErrImagePull" | "ImagePullBackOff" => Verdict::Unknown,
            "CrashLoopBackOff" => Verdict::Over(format!(
                "{reason}: {}",
                ended_as(&container["lastState"]["terminated"], log)
            )),
            _ => Verdict::Over(format!("{reason}: {}", text(&waiting["message"]))),
        };
    }
    match state.get("running") {
        Some(_) => Verdict::Running,
        None => Verdict::Unknown,
    }
}

fn ended_as(ended: &Value, log: &str) -> String {
    // What it counted itself says more than that it ended.
    let counted = log.lines().rev().find(|line| line.contains(" refused: "));
    if ended["exitCode"] == 0
        && let Some(counted) = counted
    {
        let counted = counted.trim_end_matches([':', ' ']);
        return format!("refused: {counted}");
    }
    let (reason, message) = (text(&ended["reason"]), text(&ended["message"]));
    let first = message.lines().next().unwrap_or_default();
    format!("{reason} ({}) {first}", ended["exitCode"]).trim().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(status: Value, log: &str, expected: Verdict) {
        assert_eq!(verdict(&json!({"status": status}), log), expected);
    }

    fn over(why: &str) -> Verdict {
        Verdict::Over(why.to_owned())
    }

    #[test]
    fn verdicts() {
        let state = |state: Value| json!({"containerStatuses": [{"state": state}]});
        check(json!({}), "", Verdict::Unknown);
        check(state(json!({"running": {}})), "", Verdict::Running);
        check(state(json!({"waiting": {"reason": "Compiling"}})), "", Verdict::Unknown);
        check(state(json!({"waiting": {"reason": "ErrImagePull"}})), "", Verdict::Unknown);
        let refused = json!({"waiting": {"reason": "InvalidImage", "message": "too many"}});
        check(state(refused), "", over("InvalidImage: too many"));
        let killed = json!({"terminated": {"reason": "OOMKilled", "exitCode": 137,
                                           "message": "more\nlines"}});
        check(state(killed), "", over("OOMKilled (137) more"));
        let done = json!({"terminated": {"reason": "Completed", "exitCode": 0}});
        let log = "noise\n256 succeeded, 9 refused: quota\n";
        check(state(done.clone()), log, over("refused: 256 succeeded, 9 refused: quota"));
        check(state(done), "", over("Completed (0)"));
        check(json!({"reason": "Evicted", "message": "disk "}), "", over("Evicted: disk"));
    }
}
