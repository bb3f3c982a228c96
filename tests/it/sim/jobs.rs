//! Work that ends, and people who take Pods away: Jobs, a CronJob, a budget, a drain.

use super::*;

/// Completions of a Job, and Pods of it at once.
const COMPLETIONS: i64 = 4;
const PARALLELISM: i64 = 2;

impl Sim {
    pub(super) fn user_of_jobs(&mut self) {
        if self.chance(25) {
            return self.user_of_cron_jobs();
        }
        let which = self.rng.random_range(0..JOBS.len());
        let name = JOBS[which];
        let key = Key::of::<BatchJob>(NAMESPACE, name);
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        let Some(held) = self.api.objects.get(&key) else {
            self.show(|| format!("user creates {key}"));
            self.api.create(&key, new_job(name, which == 1)).expect("nobody has this name");
            return;
        };
        let suspended = held["spec"]["suspend"] == true;
        let done = match self.rng.random_range(0..10) {
            0..2 => {
                self.show(|| format!("user suspends or resumes {key}"));
                self.api.patch(&target, &json!({"spec": {"suspend": !suspended}}))
            }
            2..4 => {
                let parallelism = self.rng.random_range(1..=3);
                self.show(|| format!("user lets {parallelism} Pods of {key} run at once"));
                self.api.patch(&target, &json!({"spec": {"parallelism": parallelism}}))
            }
            4..7 if is_over(held) => {
                let policy = if self.chance(30) { "Foreground" } else { "Background" };
                self.show(|| format!("user deletes {key}, {policy}"));
                self.api.delete(&target, None, Some(policy))
            }
            _ => return,
        };
        done.expect("users name no revision");
    }

    fn user_of_cron_jobs(&mut self) {
        let key = Key::of::<CronJob>(NAMESPACE, CRON_JOB);
        let target = Target { key: key.clone(), uid: String::new(), revision: String::new() };
        if !self.api.objects.contains_key(&key) {
            self.show(|| format!("user creates {key}"));
            self.api.create(&key, new_cron_job()).expect("nobody has this name");
        } else if self.chance(20) {
            self.show(|| format!("user deletes {key}"));
            let done = self.api.delete(&target, None, Some("Background"));
            done.expect("users name no revision");
        }
    }

    /// From here on nothing begins by the clock, and nothing waits for a person.
    pub(super) fn stop_the_clockwork(&mut self) {
        let keys: Vec<Key> = self.api.objects.keys().cloned().collect();
        for key in keys {
            let suspend = match key.kind.kind {
                "CronJob" => true,
                "Job" => false,
                _ => continue,
            };
            let target = Target { key, uid: String::new(), revision: String::new() };
            let patched = self.api.patch(&target, &json!({"spec": {"suspend": suspend}}));
            patched.expect("it is there");
        }
    }

    /// Somebody drains a node, a Pod at a time.
    pub(super) fn drain(&mut self) {
        let bound = self.api.briefs.iter().filter(|(_, brief)| {
            !brief.node.is_empty() && brief.is_active() && DEPLOYMENTS.contains(&&*brief.app)
        });
        let bound: Vec<Key> = bound.map(|(key, _)| key.clone()).collect();
        if bound.is_empty() {
            return;
        }
        let key = &bound[self.rng.random_range(0..bound.len())];
        let healthy = self.healthy();
        let disturbed = self.disturbed;
        if !self.api.evict(key) {
            self.show(|| format!("no disruption of {key} is allowed"));
            return;
        }
        self.show(|| format!("{key} is evicted"));
        let left = self.healthy();
        assert!(
            disturbed || left == healthy || left >= BUDGET_LEAST,
            "evicting {key} leaves {left} Pods of {BUDGET_APP}, and {BUDGET_LEAST} have to work"
        );
        // What the eviction took is known to the budget.
        self.disturbed = disturbed;
        self.healthy_before = left;
        self.check();
    }

    /// Pods of the app with a budget that work.
    fn healthy(&self) -> usize {
        let works = |brief: &&Brief| brief.app == BUDGET_APP && brief.is_healthy();
        self.api.briefs.values().filter(works).count()
    }

    /// Notes whether the app with a budget lost Pods that nobody evicted, and forgets it when the
    /// leader knows everything and its word about the budget is true again.
    pub(super) fn watch_budget(&mut self) {
        let healthy = self.healthy();
        if healthy < self.healthy_before {
            self.disturbed = true;
        }
        self.healthy_before = healthy;
        if !self.disturbed {
            return;
        }
        let key = Key::of::<PodDisruptionBudget>(NAMESPACE, BUDGET);
        let knows = |kind: &'static Kind| {
            let log = WATCHED.iter().position(|watched| std::ptr::eq(watched.kind, kind));
            let log = log.expect("a kind of the model");
            self.leader.seen[log] == self.api.logs[log].len()
        };
        let known = [kind_row::<Pod>(), kind_row::<PodDisruptionBudget>()].into_iter().all(knows);
        let idle = !self.leader.busy.keys().any(|(_, busy)| *busy == key);
        let says = number(&self.api.objects[&key], "/status/currentHealthy");
        self.disturbed = !known || !idle || usize::try_from(says) != Ok(healthy);
    }

    /// A Job's numbers are true, and its Pods are few enough.
    pub(super) fn check_jobs(&mut self) {
        let mut active: BTreeMap<&str, i64> = BTreeMap::new();
        for brief in self.api.briefs.values().filter(|brief| brief.is_active()) {
            *active.entry(&brief.owner).or_default() += 1;
        }
        let mut running: BTreeMap<&str, usize> = BTreeMap::new();
        for key in self.api.briefs.keys().filter(|key| key.kind.kind == "Job") {
            let (brief, job) = (&self.api.briefs[key], &self.api.objects[key]);
            let has = active.get(brief.uid.as_str()).copied().unwrap_or(0);
            let settled = self.leader.has_settled::<BatchJob>(key, brief);
            check::bounded(&mut self.most, key, brief, (has, brief.size), settled);
            let really = self.succeeded.iter().filter(|(_, owner)| **owner == brief.uid);
            let really: BTreeSet<&str> = match key.name() == JOBS[1] {
                true => really.map(|((_, index), _)| index.as_str()).collect(),
                false => really.map(|((uid, _), _)| uid.as_str()).collect(),
            };
            let says = number(job, "/status/succeeded");
            let most = i64::try_from(really.len()).expect("few");
            assert!(says <= most, "{key} counts {says} successes of {most}");
            if !brief.owner.is_empty() && !is_over(job) {
                *running.entry(&brief.owner).or_default() += 1;
            }
        }
        let most = running.into_values().max().unwrap_or(0);
        assert!(most <= 1, "{most} Jobs of {CRON_JOB} run at once");
    }

    /// Jobs that are not over, and Pods that nobody counts.
    pub(super) fn missing_of_jobs(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (key, object) in &self.api.objects {
            match key.kind.kind {
                "Job" if !is_over(object) => missing.push(format!("{key}: {}", object["status"])),
                "Job" => {
                    let says = number(object, "/status/succeeded");
                    let wanted = number(object, "/spec/completions");
                    if says < wanted {
                        missing.push(format!("{key} is over with {says} of {wanted}"));
                    }
                }
                "Pod" if self.api.briefs[key].tracked => {
                    missing.push(format!("{key} is not counted"));
                }
                _ => {}
            }
        }
        missing
    }
}

fn is_over(job: &Value) -> bool {
    let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    let ends = |held: &&Value| matches!(text(held, "/type"), "Complete" | "Failed");
    conditions.filter(ends).any(|held| text(held, "/status") == "True")
}

fn new_job(name: &str, indexed: bool) -> Value {
    let labels = json!({JOB_LABEL: name});
    json!({"spec": {
        "completions": COMPLETIONS,
        "parallelism": PARALLELISM,
        "completionMode": if indexed { "Indexed" } else { "NonIndexed" },
        // Nodes that die cost tries, and the Job is to succeed in the end.
        "backoffLimit": 1_000,
        "template": {"metadata": {"labels": labels}, "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "hello:1"}],
            "tolerations": user::leaves_lost_nodes(),
        }},
    }})
}

fn new_cron_job() -> Value {
    let mut job = new_job(CRON_JOB, false);
    job["spec"]["completions"] = 1.into();
    json!({"spec": {
        "schedule": "* * * * *",
        "concurrencyPolicy": "Forbid",
        "jobTemplate": job,
    }})
}
