//! Taints and tolerations: which Pods a node's taints keep away, for the scheduler and for
//! eviction.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let exists = toleration.operator.as_deref() == Some("Exists");
    if key.is_empty() {
        return exists;
    }
    key == taint.key && (exists || text(&toleration.value) == text(&taint.value))
}

/// Whether any toleration covers a taint.
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toleration: &str, expected: bool) {
        let taint = Taint {
            key: "gpu".to_string(),
            value: Some("yes".to_string()),
            effect: "NoSchedule".to_string(),
            time_added: None,
        };
        let toleration: Toleration = serde_yaml_ng::from_str(toleration).expect("a toleration");
        assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?}");
    }

    #[test]
    fn tolerations_match_as_kubernetes_does() {
        check("{key: gpu, operator: Exists}", true);
        check("{key: gpu, operator: Equal, value: \"yes\"}", true);
        check("{key: gpu, value: \"yes\", effect: NoSchedule}", true);
        check("{key: gpu, value: \"no\"}", false);
        check("{key: gpu, operator: Exists, effect: NoExecute}", false);
        check("{operator: Exists}", true);
        check("{key: other, operator: Exists}", false);
        check("{}", false);
    }
}
