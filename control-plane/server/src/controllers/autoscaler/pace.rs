//! How fast a size may change: stabilisation windows, policies by period, bounds.
//!
//! A recommendation counts as long as the window of its direction: upwards the lowest of the window
//! wins, downwards the highest. What has been added and taken away within a policy's period counts
//! against what the policy allows, from the size at the period's start. An autoscaler that says
//! nothing of its behaviour has no policies: it at most doubles its size at each look.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};
use wherry_resources::quantity::Quantity;

/// Lowest sizes are waited for so long before Pods go, where nothing else is said.
const DOWN_WINDOW: i32 = 300;
/// Without policies the size at most doubles at a look, and may always become this.
const DOUBLED_LEAST: i32 = 4;
/// Within so much of its target a metric changes nothing, where nothing else is said.
const TOLERANCE: f64 = 0.1;
/// The longest window and period that validation lets through; what is older is forgotten.
const KEPT: SignedDuration = SignedDuration::from_secs(3_600);

/// What an autoscaler keeps in mind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The answers that were judged last, and the generation of the autoscaler then.
    pub judged: Option<Timestamp>,
    pub generation: Option<i64>,
    /// Sizes that the metrics asked for.
    pub recommended: Vec<(Timestamp, i32)>,
    /// Pods added, and taken away.
    pub added: Vec<(Timestamp, i32)>,
    pub removed: Vec<(Timestamp, i32)>,
}

impl Memory {
    /// Begins with the size that there is: who has just begun to look shrinks nothing before the
    /// window has passed.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    /// Notes that the size was changed.
    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.added.push((now, to - from));
        } else {
            self.removed.push((now, from - to));
        }
    }

    fn forget(&mut self, now: Timestamp) {
        for list in [&mut self.recommended, &mut self.added, &mut self.removed] {
            list.retain(|(at, _)| now.duration_since(*at) <= KEPT);
        }
    }
}

fn within(list: &[(Timestamp, i32)], seconds: i32, now: Timestamp) -> i32 {
    let period = SignedDuration::from_secs(seconds.into());
    let young = list.iter().filter(|(at, _)| now.duration_since(*at) < period);
    young.map(|(_, count)| *count).fold(0, i32::saturating_add)
}

/// One direction's rules, complete.
struct Direction {
    window: i32,
    policies: Vec<HPAScalingPolicy>,
    select: String,
    tolerance: f64,
}

/// Both directions' rules, complete.
pub struct Rules {
    up: Direction,
    down: Direction,
    /// Nothing is said of the behaviour.
    doubles: bool,
}

impl Rules {
    pub fn of(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Rules {
        let percent =
            |value| HPAScalingPolicy { type_: "Percent".to_string(), value, period_seconds: 15 };
        let pods =
            |value| HPAScalingPolicy { type_: "Pods".to_string(), value, period_seconds: 15 };
        let up = behavior.and_then(|behavior| behavior.scale_up.as_ref());
        let down = behavior.and_then(|behavior| behavior.scale_down.as_ref());
        Rules {
            up: Direction::of(up, 0, vec![percent(100), pods(4)]),
            down: Direction::of(down, DOWN_WINDOW, vec![percent(100)]),
            doubles: behavior.is_none(),
        }
    }

    /// How far below and above its target a metric may be: shares of the target.
    pub fn tolerance(&self) -> (f64, f64) {
        (self.down.tolerance, self.up.tolerance)
    }
}

impl Direction {
    fn of(
        rules: Option<&HPAScalingRules>,
        window: i32,
        policies: Vec<HPAScalingPolicy>,
    ) -> Direction {
        let given = rules.and_then(|rules| rules.policies.clone()).filter(|all| !all.is_empty());
        let tolerance = rules.and_then(|rules| Quantity::parse(&rules.tolerance.as_ref()?.0).ok());
        Direction {
            window: rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(window),
            policies: given.unwrap_or(policies),
            select: rules.and_then(|rules| rules.select_policy.clone()).unwrap_or_default(),
            tolerance: tolerance.map_or(TOLERANCE, |share| share.millis() as f64 / 1_000.0),
        }
    }

    /// The bound that the policies give, each by `limit`; `Disabled` leaves the size as it is.
    fn bound(&self, current: i32, upwards: bool, limit: impl Fn(&HPAScalingPolicy) -> i32) -> i32 {
        let limits = self.policies.iter().map(limit);
        let bound = match (self.select.as_str(), upwards) {
            ("Disabled", _) => return current,
            ("Min", true) | ("Max" | "", false) => limits.min(),
            _ => limits.max(),
        };
        bound.unwrap_or(current)
    }
}

/// A size and why it is not another one, as conditions say it.
pub struct Paced {
    pub size: i32,
    /// Reason and message of AbleToScale.
    pub stabilized: (&'static str, &'static str),
    /// Status, reason and message of ScalingLimited.
    pub limited: (bool, &'static str, &'static str),
}

/// The size that may follow the current one when the metrics ask for `proposed`. Notes what was
/// asked for.
pub fn pace(
    memory: &mut Memory,
    rules: &Rules,
    (current, proposed): (i32, i32),
    (least, most): (i32, i32),
    now: Timestamp,
) -> Paced {
    memory.forget(now);
    let (steady, stabilized) = stabilize(memory, rules, current, proposed, now);
    memory.recommended.push((now, proposed));
    let (size, limited) = limit(memory, rules, (current, steady), (least, most), now);
    Paced { size, stabilized, limited }
}

fn stabilize(
    memory: &Memory,
    rules: &Rules,
    current: i32,
    proposed: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    let young = |seconds: i32| {
        let window = SignedDuration::from_secs(seconds.into());
        let recommended = memory.recommended.iter();
        recommended.filter(move |(at, _)| now.duration_since(*at) < window).map(|(_, size)| *size)
    };
    let up = young(rules.up.window).fold(proposed, i32::min);
    let down = young(rules.down.window).fold(proposed, i32::max);
    let size = current.max(up).min(down);
    let said = if size == proposed {
        ("ReadyForNewScale", "recommended size matches current size")
    } else if proposed > size {
        (
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent \
             recommendation",
        )
    } else {
        (
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent \
             recommendation",
        )
    };
    (size, said)
}

type Limited = (bool, &'static str, &'static str);

fn limit(
    memory: &Memory,
    rules: &Rules,
    (current, wanted): (i32, i32),
    (least, most): (i32, i32),
    now: Timestamp,
) -> (i32, Limited) {
    let start = |seconds: i32| {
        let before = current.saturating_sub(within(&memory.added, seconds, now));
        before.saturating_add(within(&memory.removed, seconds, now))
    };
    if wanted > current {
        let bound = rules.up.bound(current, true, |policy| {
            let start = start(policy.period_seconds);
            match policy.type_.as_str() {
                "Pods" => start.saturating_add(policy.value),
                _ => rounded(f64::from(start) * (1.0 + f64::from(policy.value) / 100.0), f64::ceil),
            }
        });
        let bound =
            if rules.doubles { current.saturating_mul(2).max(DOUBLED_LEAST) } else { bound };
        // What was added before may already be more than the policies let.
        let bound = bound.max(current);
        if wanted > bound.min(most) {
            return match most > bound {
                true => (bound, UP_LIMIT),
                false => (most, TOO_MANY),
            };
        }
    }
    if wanted < current {
        let bound = rules.down.bound(current, false, |policy| {
            let start = start(policy.period_seconds);
            match policy.type_.as_str() {
                "Pods" => start.saturating_sub(policy.value),
                _ => {
                    rounded(f64::from(start) * (1.0 - f64::from(policy.value) / 100.0), f64::floor)
                }
            }
        });
        let bound = bound.min(current);
        if wanted < bound.max(least) {
            return match least < bound {
                true => (bound, DOWN_LIMIT),
                false => (least, TOO_FEW),
            };
        }
    }
    (wanted, (false, "DesiredWithinRange", "the desired count is within the acceptable range"))
}

const UP_LIMIT: Limited = (
    true,
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Limited = (
    true,
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: Limited =
    (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Limited =
    (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count");

/// A number of Pods from a fraction. Sizes are far below where a float is not exact.
pub fn rounded(number: f64, round: fn(f64) -> f64) -> i32 {
    // A conversion to an integer type ends at its bounds, and NaN is 0.
    round(number) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::at;

    fn rules(yaml: &str) -> Rules {
        let behavior: Option<HorizontalPodAutoscalerBehavior> =
            serde_yaml_ng::from_str(yaml).expect("a behavior");
        Rules::of(behavior.as_ref())
    }

    /// Steps of `(second, proposed) -> size, reason of the limit`, from a size on.
    #[track_caller]
    fn check(behavior: &str, from: i32, steps: &[(i64, i32, i32, &str)]) {
        let (rules, mut memory, mut size) = (rules(behavior), Memory::default(), from);
        for (second, proposed, expected, reason) in steps {
            let now = at(*second);
            let paced = pace(&mut memory, &rules, (size, *proposed), (1, 100), now);
            assert_eq!((paced.size, paced.limited.1), (*expected, *reason), "at {second}");
            if paced.size != size {
                memory.scaled(size, paced.size, now);
            }
            size = paced.size;
        }
    }

    const FINE: &str = "DesiredWithinRange";

    #[test]
    fn by_default_it_grows_fast_and_shrinks_after_five_minutes() {
        check(
            "null",
            1,
            &[
                (0, 50, 4, "ScaleUpLimit"),
                (15, 50, 8, "ScaleUpLimit"),
                (16, 50, 16, "ScaleUpLimit"),
                (45, 500, 32, "ScaleUpLimit"),
                (60, 500, 64, "ScaleUpLimit"),
                (75, 500, 100, "TooManyReplicas"),
                (90, 2, 100, FINE),
                (374, 2, 100, FINE),
                (375, 2, 2, FINE),
                (400, 0, 2, FINE),
                (700, 0, 1, "TooFewReplicas"),
            ],
        );
    }

    #[test]
    fn who_says_anything_of_the_behaviour_has_the_policies_of_both_directions() {
        for behavior in ["{}", "{scaleDown: {stabilizationWindowSeconds: 60}}"] {
            check(
                behavior,
                1,
                &[
                    (0, 50, 5, "ScaleUpLimit"),
                    (1, 50, 5, "ScaleUpLimit"),
                    (15, 50, 10, "ScaleUpLimit"),
                    (30, 50, 20, "ScaleUpLimit"),
                ],
            );
        }
    }

    #[test]
    fn policies_count_what_was_done_in_their_period() {
        let behavior = "{scaleUp: {policies: [{type: Pods, value: 2, periodSeconds: 60}]}, \
            scaleDown: {stabilizationWindowSeconds: 0, policies: \
            [{type: Percent, value: 50, periodSeconds: 60}]}}";
        check(
            behavior,
            4,
            &[
                (0, 10, 6, "ScaleUpLimit"),
                (30, 10, 6, "ScaleUpLimit"),
                (60, 10, 8, "ScaleUpLimit"),
                (200, 1, 4, "ScaleDownLimit"),
                (230, 1, 4, "ScaleDownLimit"),
                (260, 1, 2, "ScaleDownLimit"),
            ],
        );
    }

    #[test]
    fn the_policy_that_is_selected() {
        let up = |select: &str| {
            format!(
                "{{scaleUp: {{selectPolicy: {select}, policies: [{{type: Pods, value: 1, \
                 periodSeconds: 15}}, {{type: Percent, value: 100, periodSeconds: 15}}]}}}}"
            )
        };
        check(&up("Max"), 4, &[(0, 50, 8, "ScaleUpLimit")]);
        check(&up("Min"), 4, &[(0, 50, 5, "ScaleUpLimit")]);
        check(&up("Disabled"), 4, &[(0, 50, 4, "ScaleUpLimit")]);
        let down = "{scaleDown: {selectPolicy: Disabled, stabilizationWindowSeconds: 0}}";
        check(down, 4, &[(0, 1, 4, "ScaleDownLimit")]);
    }

    #[test]
    fn upwards_the_lowest_of_the_window_counts() {
        let behavior = "{scaleUp: {stabilizationWindowSeconds: 60}}";
        check(
            behavior,
            2,
            &[(0, 2, 2, FINE), (15, 4, 2, FINE), (59, 4, 2, FINE), (61, 4, 4, FINE)],
        );
    }

    #[test]
    fn tolerances_of_both_directions() {
        assert_eq!(rules("null").tolerance(), (0.1, 0.1));
        let given = rules("{scaleUp: {tolerance: 50m}, scaleDown: {tolerance: \"0.3\"}}");
        assert_eq!(given.tolerance(), (0.3, 0.05));
    }
}
