//! Scripts of CronJobs: what a plan asks for, by what is there and what time it is.

use super::super::testing::{check_lines, yaml};
use super::*;

/// A CronJob of 09:00 with Jobs by short texts: `NAME [DUE] [done|failed] [active]`.
fn snapshot(spec: &str, last: &str, jobs: &[&str]) -> Snapshot {
    let active: Vec<String> = jobs
        .iter()
        .filter(|words| words.contains("active"))
        .map(|words| words.split(' ').next().unwrap_or(""))
        .map(|name| format!("{{name: {name}, uid: uid-{name}}}"))
        .collect();
    let active = match active.is_empty() {
        true => String::new(),
        false => format!("active: [{}], ", active.join(", ")),
    };
    let last = if last.is_empty() { String::new() } else { format!("lastScheduleTime: {last}") };
    let cron_job: CronJob = yaml(&format!(
        "metadata: {{name: nightly, namespace: d, creationTimestamp: 2024-03-01T00:30:00Z}}\n\
         spec:\n  jobTemplate: {{metadata: {{labels: {{a: b}}}}, spec: {{template: {{}}}}}}\n{spec}\n\
         status: {{{active}{last}}}"
    ));
    let job = |words: &&str| {
        let mut words = words.split(' ');
        let name = words.next().expect("a name");
        let (mut due, mut condition) = (String::new(), "");
        for word in words {
            match word {
                "done" => condition = "{type: Complete, status: \"True\"}",
                "failed" => condition = "{type: Failed, status: \"True\"}",
                "active" => {}
                time => due = format!(", annotations: {{{DUE}: \"{time}\"}}"),
            }
        }
        Arc::new(yaml(&format!(
            "metadata: {{name: {name}, namespace: d{due}}}\n\
             spec: {{template: {{}}}}\nstatus: {{conditions: [{condition}]}}"
        )))
    };
    Snapshot { cron_job: Arc::new(cron_job), jobs: jobs.iter().map(job).collect() }
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

#[track_caller]
fn check(snapshot: &Snapshot, now: &str, expected: &[&str]) -> Option<Duration> {
    let plan = plan(snapshot, time(now));
    check_lines(&plan.writes, expected);
    plan.again
}

const HOURLY: &str = "  schedule: \"0 * * * *\"";
const NOW: &str = "2024-03-01T02:00:01Z";
const ONE: &str = "2024-03-01T01:00:00Z";
const MADE: &str = "create jobs.batch d/nightly-28487640 (Normal SuccessfulCreate";

#[test]
fn a_job_is_made_when_it_is_due_and_the_next_time_is_waited_for() {
    let again = check(&snapshot(HOURLY, ONE, &[]), NOW, &[MADE]);
    assert_eq!(again, Some(Duration::from_secs(3_599)));
    let again = check(&snapshot(HOURLY, "2024-03-01T02:00:00Z", &[]), NOW, &[]);
    assert_eq!(again, Some(Duration::from_secs(3_599)));
    check(&snapshot(HOURLY, "", &[]), "2024-03-01T00:59:59Z", &[]);
}

#[test]
fn the_status_follows_from_the_jobs() {
    let jobs = ["nightly-1 2024-03-01T02:00:00+00:00"];
    check(&snapshot(HOURLY, ONE, &jobs), NOW, &[r#""lastScheduleTime":"2024-03-01T02:00:00Z""#]);
    let jobs = ["nightly-1 2024-03-01T02:00:00Z done active"];
    check(
        &snapshot(HOURLY, "2024-03-01T02:00:00Z", &jobs),
        NOW,
        &["Saw completed job: nightly-1, condition: Complete", r#"{"status":{"active":null}}"#],
    );
    let mut gone = snapshot(HOURLY, "2024-03-01T02:00:00Z", &["nightly-1 active"]);
    gone.jobs.clear();
    check(&gone, NOW, &["Active job went missing: nightly-1", r#""active":null"#]);
    // Who was replaced is not missed.
    let spec = format!("{HOURLY}\n  concurrencyPolicy: Replace");
    let jobs = ["nightly-1 active", "nightly-2 2024-03-01T02:00:00Z"];
    let mut replaced = snapshot(&spec, ONE, &jobs);
    replaced.jobs.remove(0);
    check(&replaced, NOW, &[r#""lastScheduleTime":"2024-03-01T02:00:00Z""#]);
}

#[test]
fn of_missed_times_the_latest_is_caught_up_on() {
    check(&snapshot(HOURLY, "", &[]), NOW, &[MADE]);
    let every_minute = snapshot("  schedule: \"* * * * *\"", "2024-02-01T00:00:00Z", &[]);
    check(&every_minute, NOW, &["Warning TooManyMissedTimes: too many missed start times", MADE]);
    // Those before the deadline are not counted.
    let spec = "  schedule: \"* * * * *\"\n  startingDeadlineSeconds: 300";
    check(&snapshot(spec, "2024-02-01T00:00:00Z", &[]), NOW, &[MADE]);
}

#[test]
fn too_late_is_told_and_not_started() {
    let spec = "  schedule: \"0 * * * *\"\n  startingDeadlineSeconds: 60";
    check(&snapshot(spec, ONE, &[]), "2024-03-01T02:01:00Z", &[MADE]);
    check(&snapshot(spec, ONE, &[]), "2024-03-01T02:01:01Z", &["Warning MissSchedule"]);
}

#[test]
fn concurrency_policies() {
    let spec = |policy: &str| format!("{HOURLY}\n  concurrencyPolicy: {policy}");
    let running = |policy: &str| {
        let mut world = snapshot(&spec(policy), ONE, &["run 2024-03-01T01:00:00Z active"]);
        // As the status says it.
        let job = world.jobs[0].clone();
        let cron_job = Arc::make_mut(&mut world.cron_job);
        cron_job.status.as_mut().expect("has one").active = Some(vec![reference(&job)]);
        world
    };
    check(&running("Allow"), NOW, &[MADE]);
    check(&running("Forbid"), NOW, &["Normal JobAlreadyActive"]);
    check(&running("Replace"), NOW, &["delete jobs.batch d/run (Normal SuccessfulDelete", MADE]);
}

#[test]
fn suspended_makes_nothing_but_cleans_up() {
    let spec = format!("{HOURLY}\n  suspend: true\n  successfulJobsHistoryLimit: 0");
    let jobs = ["old 2024-03-01T01:00:00Z done"];
    assert_eq!(check(&snapshot(&spec, ONE, &jobs), NOW, &["delete jobs.batch d/old"]), None);
}

#[test]
fn the_history_keeps_the_newest() {
    let spec = format!("{HOURLY}\n  successfulJobsHistoryLimit: 2\n  failedJobsHistoryLimit: 1");
    let last = "2024-03-01T02:00:00Z";
    let jobs = ["a done", "b done", "c done", "x failed", "y failed"];
    let gone = ["a", "x"].map(|name| {
        format!("delete jobs.batch d/{name} (Normal SuccessfulDelete: Deleted job {name})")
    });
    check(&snapshot(&spec, last, &jobs), NOW, &gone.each_ref().map(String::as_str));
}

#[test]
fn a_schedule_in_its_time_zone() {
    let spec = "  schedule: \"0 9 * * *\"\n  timeZone: Europe/Berlin";
    let world = snapshot(spec, "", &[]);
    check(&world, "2024-03-01T07:59:59Z", &[]);
    let plan = plan(&world, time("2024-03-01T08:00:00Z"));
    let Action::Create { object, .. } = &plan.writes[0].action else { panic!("a Job") };
    assert_eq!(object["metadata"]["annotations"][DUE], "2024-03-01T09:00:00+01:00");
    assert_eq!(object["metadata"]["labels"]["a"], "b");
    assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    let spec = "  schedule: \"0 9 * * *\"\n  timeZone: Mars/Olympus";
    check(&snapshot(spec, "", &[]), NOW, &["Warning UnknownTimeZone: invalid timeZone"]);
    check(&snapshot("  schedule: often", "", &[]), NOW, &["Warning UnparseableSchedule"]);
}

#[test]
fn a_request_instead_of_a_job() {
    let with = |request: &str| {
        let mut world = snapshot(HOURLY, ONE, &[]);
        let annotations = [(REQUEST.to_string(), request.to_string())];
        Arc::make_mut(&mut world.cron_job).metadata.annotations = Some(annotations.into());
        world
    };
    check(
        &with("POST http://reports:8080/nightly?full=1"),
        NOW,
        &["call POST /api/v1/namespaces/d/services/reports:8080/proxy/nightly?full=1 for \
           cronjobs.batch d/nightly of 2024-03-01T02:00:00Z"],
    );
    check(&with("GET http://reports"), NOW, &["services/reports/proxy/ for"]);
    for wrong in ["http://reports", "POST https://reports/", "POST http://../secrets", "X Y http:"]
    {
        check(&with(wrong), NOW, &["Warning InvalidRequest"]);
    }
}

#[test]
fn a_request_waits_until_it_is_answered_and_no_longer_than_a_minute() {
    let waits = |request: &str, now: &str, answered: &str| {
        let mut world = snapshot(HOURLY, ONE, &[]);
        let cron_job = Arc::make_mut(&mut world.cron_job);
        let annotations = [(REQUEST.to_string(), request.to_string())];
        cron_job.metadata.annotations = Some(annotations.into());
        let answered = (!answered.is_empty()).then(|| Time(time(answered)));
        cron_job.status.as_mut().expect("has one").last_successful_time = answered;
        waits_for(cron_job, time(now)).map(str::to_string)
    };
    let (get, soon) = ("GET http://reports:80/a", "2024-03-01T01:00:59Z");
    assert_eq!(waits(get, soon, "").as_deref(), Some("reports"));
    assert_eq!(waits(get, soon, "2024-03-01T00:00:02Z").as_deref(), Some("reports"));
    assert_eq!(waits(get, soon, ONE), None, "answered");
    assert_eq!(waits(get, "2024-03-01T01:01:00Z", ""), None, "too late");
    assert_eq!(waits("GET nowhere", soon, ""), None);
}
