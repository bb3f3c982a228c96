//! The arithmetic of a Deployment: how many Pods of which version come next.
//!
//! All functions change sizes in a [`Rollout`] and nothing else. They follow Kubernetes' rules, so
//! that `kubectl rollout status` and people see the steps they know.

use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::share;
use super::{MAX, Rollout, Set, recreates};

/// What `maxSurge` and `maxUnavailable` are when not given.
const QUARTER: i32 = 25;

/// A Deployment's size and how far a rolling update may leave it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub replicas: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    pub fn of(spec: &DeploymentSpec) -> Limits {
        let replicas = spec.replicas.unwrap_or(1);
        if recreates(spec) {
            return Limits { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let surge = amount(surge, replicas, true);
        let mut unavailable = amount(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            // Small percentages of small numbers: without this nothing would ever move.
            unavailable = 1;
        }
        Limits { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    pub fn fewest_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

fn amount(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    let quarter = || share::percent_of(QUARTER, of, up);
    value.and_then(|value| share::of_whole(value, of, up)).unwrap_or_else(quarter)
}

/// Saturating: people may scale ReplicaSets by hand.
fn total(sets: &[Set]) -> i32 {
    sets.iter().map(|set| set.size).fold(0, i32::saturating_add)
}

/// The size with which the new ReplicaSet is created.
pub fn first_size(rollout: &Rollout<'_>) -> i32 {
    grown(rollout, 0)
}

/// How far a new ReplicaSet of this size may grow now.
fn grown(rollout: &Rollout<'_>, size: i32) -> i32 {
    let limits = &rollout.limits;
    if recreates(rollout.spec) {
        return limits.replicas;
    }
    let room = limits.most().saturating_sub(total(&rollout.old)).saturating_sub(size);
    size + room.min(limits.replicas - size).max(0)
}

/// One step of a rolling update: the new one up if there is room, otherwise the old ones down.
pub fn roll(rollout: &mut Rollout<'_>) {
    let Some(size) = rollout.new.as_ref().map(|new| new.size) else { return };
    let wanted = rollout.limits.replicas;
    let next = if size >= wanted { wanted } else { grown(rollout, size) };
    if next != size {
        if let Some(new) = &mut rollout.new {
            new.size = next;
        }
        return;
    }
    shrink_old(rollout);
}

fn shrink_old(rollout: &mut Rollout<'_>) {
    let Some(new) = &rollout.new else { return };
    let limits = rollout.limits;
    let all_pods = total(&rollout.old).saturating_add(new.size);
    // One that was made smaller a moment ago still counts Pods that are about to go.
    let working = |set: &Set| set.available().min(set.size);
    let new_unavailable = new.size - working(new);
    let mut spare = all_pods - limits.fewest_available() - new_unavailable;
    if spare <= 0 {
        return;
    }
    let mut available = rollout.old.iter().map(working).fold(working(new), i32::saturating_add);
    // Pods that do not work go first: nobody misses them.
    for set in &mut rollout.old {
        let broken = (set.size - set.available()).max(0);
        let step = broken.min(spare);
        set.size -= step;
        spare -= step;
    }
    available -= limits.fewest_available();
    for set in &mut rollout.old {
        let step = set.size.min(available).max(0);
        set.size -= step;
        available -= step;
    }
}

/// Shares a changed size out over the ReplicaSets in proportion, so that a rollout that is under
/// way or paused keeps its mix.
pub fn scale(rollout: &mut Rollout<'_>) {
    let wanted = rollout.limits.replicas;
    let desired = wanted.to_string();
    let saturated = rollout.new.as_ref().is_some_and(|new| {
        // One that was sized for another number only happens to be as large.
        let sized_for_it = new.annotation(super::DESIRED) == Some(desired.as_str());
        new.size == wanted && new.available() == wanted && sized_for_it
    });
    if let Some(only) = only_active(rollout) {
        only.size = wanted;
        return;
    }
    if saturated {
        rollout.old.iter_mut().for_each(|set| set.size = 0);
        return;
    }
    if !recreates(rollout.spec) {
        share_out(rollout);
    }
}

/// The one active ReplicaSet; the newest when none is active; nothing when several are.
fn only_active<'r>(rollout: &'r mut Rollout<'_>) -> Option<&'r mut Set> {
    let active = rollout.all().filter(|set| set.size > 0).count();
    if active > 1 {
        return None;
    }
    let any = active == 0;
    let mut sets: Vec<&mut Set> = rollout.old.iter_mut().collect();
    sets.extend(rollout.new.as_mut());
    sets.into_iter().rev().find(|set| any || set.size > 0)
}

fn share_out(rollout: &mut Rollout<'_>) {
    let limits = rollout.limits;
    let most = if limits.replicas > 0 { limits.most() } else { 0 };
    let had = rollout.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let mut sets: Vec<&mut Set> = rollout.new.iter_mut().chain(&mut rollout.old).collect();
    sets.retain(|set| set.size > 0);
    let difference = most - sets.iter().map(|set| set.size).fold(0, i32::saturating_add);
    if difference == 0 {
        return;
    }
    // The largest first; among equals the newest grows and the oldest shrinks first.
    sets.sort_by(|a, b| {
        let age = if difference > 0 {
            b.created().cmp(&a.created())
        } else {
            a.created().cmp(&b.created())
        };
        b.size.cmp(&a.size).then(age)
    });
    let mut left = difference;
    for set in &mut sets {
        let share = share(set, limits.replicas, most, had);
        let share = if difference > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        set.size = set.size.saturating_add(share);
        left -= share;
    }
    if let Some(first) = sets.first_mut() {
        first.size = first.size.saturating_add(left).max(0);
    }
}

/// How much one ReplicaSet should grow to keep its part of the whole.
fn share(set: &Set, replicas: i32, most: i32, had: i32) -> i32 {
    if replicas == 0 {
        return -set.size;
    }
    let before = set.annotation(MAX).and_then(|text| text.parse().ok()).filter(|max| *max > 0);
    let before = i64::from(before.unwrap_or(had.max(1)));
    let scaled = i64::from(set.size) * i64::from(most);
    let rounded = (scaled + before / 2) / before;
    i32::try_from(rounded).unwrap_or(i32::MAX) - set.size
}
