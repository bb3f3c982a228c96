//! Indexes of a Job: their text form, which are open, and the Pods that have one.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::owners::seeded_name;
use super::super::replicaset::{name_of, pod_of as pod_of_template};
use super::TRACKING;
use super::count::Tally;

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the Pods of an index have failed before this one.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// The index of a Pod.
pub fn of_pod(meta: &ObjectMeta) -> Option<i32> {
    meta.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Failures of its index before this Pod. Users can write that, too: a number to which one can be
/// added.
pub fn failures_before(meta: &ObjectMeta) -> usize {
    let annotations = meta.annotations.as_ref();
    let count = annotations.and_then(|annotations| annotations.get(FAILURES));
    let count = count.and_then(|count| count.parse::<u32>().ok());
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

/// Reads `1,3-5`; what cannot be read and what is not below `completions` is left out.
pub fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    ranges(text, completions).into_iter().flatten().collect()
}

/// The same, not counted out: a user may name very many.
pub fn ranges(text: &str, completions: i32) -> Vec<RangeInclusive<i32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<i32>().ok()?, last.trim().parse::<i32>().ok()?);
        let range = first.max(0)..=last.min(completions.saturating_sub(1));
        (!range.is_empty()).then_some(range)
    };
    text.split(',').filter_map(range).collect()
}

/// How many indexes a range has.
pub fn length(range: &RangeInclusive<i32>) -> usize {
    let length = i64::from(*range.end()) - i64::from(*range.start()) + 1;
    usize::try_from(length).unwrap_or(0)
}

/// Writes `1,3-5`.
pub fn text(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in indexes.iter().copied() {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let part = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Indexes that need a Pod, from the lowest. There may be more than memory can hold.
pub fn open(spec: &JobSpec, tally: &Tally<'_>) -> impl Iterator<Item = i32> {
    let held = tally.held_indexes(spec);
    let all = 0..spec.completions.unwrap_or(0);
    all.filter(move |index| {
        let closed = tally.completed.contains(index) || tally.failed_indexes.contains(index);
        !closed && !held.contains(index)
    })
}

/// A Pod of a Job; one with an index knows it, and is called by it.
pub fn pod_of(job: &Job, spec: &JobSpec, index: Option<(i32, usize)>, seed: &str) -> Pod {
    let mut pod = pod_of_template(job, &spec.template, seed);
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.to_string());
    let Some((index, failures)) = index else { return pod };
    let base = format!("{}-{index}", name_of(&job.metadata));
    pod.metadata.name = Some(seeded_name(&base, seed));
    pod.metadata.generate_name = Some(format!("{base}-"));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_string(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_string(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        annotations.insert(FAILURES.to_string(), failures.to_string());
    }
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(base);
    pod_spec.containers.iter_mut().for_each(knows_its_index);
    pod_spec.init_containers.iter_mut().flatten().for_each(knows_its_index);
    pod
}

fn knows_its_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == VARIABLE) {
        return;
    }
    variables.push(EnvVar {
        name: VARIABLE.to_string(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_have_a_short_text() {
        for form in ["", "0", "0,2", "0,1", "0-2,4,6-8"] {
            assert_eq!(text(&parse(form, 100)), form);
        }
        assert_eq!(text(&parse("0-9,x,50", 4)), "0-3");
        let many = ranges("0-2147483646,7-3", i32::MAX);
        assert_eq!(many.iter().map(length).collect::<Vec<_>>(), [2_147_483_647]);
    }
}
