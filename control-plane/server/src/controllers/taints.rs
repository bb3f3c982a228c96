//! Taints and tolerations: which Pods a node's taints keep away, for the scheduler and for
//! eviction.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether a toleration covers a taint. `Gt` and `Lt` are about the taint's value: `Lt` of 5 covers
/// those below 5; what is no number is not covered.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let operator = toleration.operator.as_deref().unwrap_or("");
    if key.is_empty() {
        return operator == "Exists";
    }
    let (held, wanted) = (text(&taint.value), text(&toleration.value));
    let numbers = || held.parse::<i64>().ok().zip(wanted.parse::<i64>().ok());
    key == taint.key
        && match operator {
            "Exists" => true,
            "Gt" => numbers().is_some_and(|(held, wanted)| held > wanted),
            "Lt" => numbers().is_some_and(|(held, wanted)| held < wanted),
            _ => held == wanted,
        }
}

/// Whether any toleration covers a taint.
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toleration: &str, expected: bool) {
        check_value("yes", toleration, expected);
    }

    fn check_value(value: &str, toleration: &str, expected: bool) {
        let taint = Taint {
            key: "gpu".to_string(),
            value: Some(value.to_string()),
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

    #[test]
    fn numbers_are_compared() {
        check_value("950", "{key: gpu, operator: Gt, value: \"900\"}", true);
        check_value("900", "{key: gpu, operator: Gt, value: \"900\"}", false);
        check_value("4", "{key: gpu, operator: Lt, value: \"5\", effect: NoSchedule}", true);
        check_value("15", "{key: gpu, operator: Lt, value: \"5\"}", false);
        check_value("4", "{key: other, operator: Lt, value: \"5\"}", false);
        check("{key: gpu, operator: Gt, value: \"1\"}", false);
        check("{key: gpu, operator: Lt, value: \"1\"}", false);
    }
}
