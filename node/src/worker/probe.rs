//! When a container's probes are tried, and what their results mean. Pure: times are durations
//! since the container's start, results are arguments.
//!
//! ```text
//!   startup ──succeeds──▶ liveness, readiness begin     (without a startup probe: at once)
//!     │fails `failureThreshold` times in a row           liveness likewise
//!     └──────────────▶ `failed`: the agent restarts the container; nothing more is tried
//! ```
//!
//! Rules of a kubelet: the first attempt comes after the initial delay, the next one a period after
//! the last began, never two at once; a result counts when it came `threshold` times in a row; a
//! container is not ready before its readiness probe has succeeded; one that was asked to end can
//! no longer fail.

use std::time::Duration;

use crate::protocol::{Health, Probe, ProbeKind, Probes};

/// The probes of one running container.
#[derive(Debug)]
pub struct Watch {
    probes: Probes,
    health: Health,
    tracks: Vec<Track>,
}

/// One probe.
#[derive(Debug)]
struct Track {
    kind: ProbeKind,
    /// Earliest next attempt.
    due: Duration,
    /// An attempt is under way.
    trying: bool,
    last: Option<bool>,
    in_a_row: u32,
}

impl Watch {
    /// Of a container that starts now.
    pub fn new(probes: &Probes) -> Watch {
        let track = |kind: ProbeKind| {
            let due = seconds(probes.get(kind)?.initial_delay_s);
            Some(Track { kind, due, trying: false, last: None, in_a_row: 0 })
        };
        let tracks = ProbeKind::ALL.into_iter().filter_map(track).collect();
        Watch { health: Health::new(probes), probes: probes.clone(), tracks }
    }

    /// What is known.
    pub fn health(&self) -> Health {
        self.health
    }

    /// The probe of a kind that this container has.
    pub fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        self.probes.get(kind)
    }

    fn is_held(&self, kind: ProbeKind) -> bool {
        self.health.failed.is_some() || (kind == ProbeKind::Startup) == self.health.started
    }

    /// When the next attempt is due; None while nothing but a result can change anything.
    pub fn wake(&self) -> Option<Duration> {
        let waiting = |track: &&Track| !track.trying && !self.is_held(track.kind);
        self.tracks.iter().filter(waiting).map(|track| track.due).min()
    }

    /// The probes that are due: each is to be tried once and answered by [`Watch::finish`].
    pub fn begin(&mut self, now: Duration) -> Vec<ProbeKind> {
        let mut due = Vec::new();
        for index in 0..self.tracks.len() {
            let kind = self.tracks[index].kind;
            if self.tracks[index].trying || self.tracks[index].due > now || self.is_held(kind) {
                continue;
            }
            let period = self.probes.get(kind).map_or(Duration::ZERO, |p| seconds(p.period_s));
            let track = &mut self.tracks[index];
            track.trying = true;
            track.due = now + period;
            due.push(kind);
        }
        due
    }

    /// Takes a result. Says whether the container's health changed.
    pub fn finish(&mut self, kind: ProbeKind, success: bool) -> bool {
        let Some(track) = self.tracks.iter_mut().find(|track| track.kind == kind) else {
            return false;
        };
        track.trying = false;
        track.in_a_row = if track.last == Some(success) { track.in_a_row + 1 } else { 1 };
        track.last = Some(success);
        let in_a_row = track.in_a_row;
        let Some(probe) = self.probes.get(kind) else {
            return false;
        };
        let needed = if success { probe.success_threshold } else { probe.failure_threshold };
        if in_a_row < needed || self.is_held(kind) {
            return false;
        }
        let before = self.health;
        match (kind, success) {
            (ProbeKind::Startup, true) => {
                self.health.started = true;
                self.health.ready = self.probes.readiness.is_none();
            }
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Readiness, ready) => self.health.ready = ready,
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                self.health.failed = Some(kind);
                self.health.ready = false;
            }
        }
        self.health != before
    }

    /// The container was asked to end: only its readiness still matters.
    pub fn ending(&mut self) {
        self.tracks.retain(|track| track.kind == ProbeKind::Readiness);
    }
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;
    use crate::protocol::Check;

    /// `delay/period/success/failure`
    fn probe(text: &str) -> Option<Probe> {
        let numbers: Vec<u32> =
            text.split('/').map(|number| number.parse().expect("a number")).collect();
        let [initial_delay_s, period_s, success_threshold, failure_threshold] = numbers[..] else {
            panic!("four numbers");
        };
        Some(Probe {
            check: Check::Sleep { seconds: 0 },
            initial_delay_s,
            timeout_s: 1,
            period_s,
            success_threshold,
            failure_threshold,
            grace_s: None,
        })
    }

    /// Each attempt ends at once with the next result of its kind; `.` is success, `x` failure.
    fn check(probes: &Probes, results: &[(ProbeKind, &str)], until: u64, expected: Expect) {
        let mut watch = Watch::new(probes);
        let mut results: Vec<(ProbeKind, std::str::Chars<'_>)> =
            results.iter().map(|(kind, text)| (*kind, text.chars())).collect();
        let mut out = format!("{}\n", shown(watch.health()));
        let mut now = Duration::ZERO;
        while let Some(at) = watch.wake().filter(|at| at.as_secs() <= until) {
            now = now.max(at);
            for kind in watch.begin(now) {
                let next = results.iter_mut().find(|(of, _)| *of == kind).expect("results");
                let success = next.1.next().unwrap_or('.') == '.';
                let mark = if success { "ok" } else { "failed" };
                write!(out, "{} {kind:?} {mark}", now.as_secs()).expect("a string");
                if watch.finish(kind, success) {
                    write!(out, " -> {}", shown(watch.health())).expect("a string");
                }
                out.push('\n');
            }
        }
        expected.assert_eq(&out);
    }

    fn shown(health: Health) -> String {
        let mut words = vec![if health.started { "started" } else { "starting" }.to_owned()];
        words.extend(health.ready.then(|| "ready".to_owned()));
        words.extend(health.failed.map(|kind| format!("to restart: {kind:?}")));
        words.join(", ")
    }

    #[test]
    fn startup_holds_the_others_back() {
        let probes = Probes {
            startup: probe("1/2/1/3"),
            liveness: probe("0/10/1/3"),
            readiness: probe("4/5/2/1"),
        };
        check(
            &probes,
            &[
                (ProbeKind::Startup, "xx."),
                (ProbeKind::Liveness, ""),
                (ProbeKind::Readiness, "..x.."),
            ],
            30,
            expect![[r#"
                starting
                1 Startup failed
                3 Startup failed
                5 Startup ok -> started
                5 Liveness ok
                5 Readiness ok
                10 Readiness ok -> started, ready
                15 Liveness ok
                15 Readiness failed -> started
                20 Readiness ok
                25 Liveness ok
                25 Readiness ok -> started, ready
                30 Readiness ok
            "#]],
        );
    }

    #[test]
    fn failures_in_a_row_restart() {
        let probes = Probes { liveness: probe("5/10/1/2"), ..Probes::default() };
        check(
            &probes,
            &[(ProbeKind::Liveness, ".x.xx.")],
            100,
            expect![[r#"
                started, ready
                5 Liveness ok
                15 Liveness failed
                25 Liveness ok
                35 Liveness failed
                45 Liveness failed -> started, to restart: Liveness
            "#]],
        );
        let probes = Probes { startup: probe("0/1/1/2"), ..Probes::default() };
        check(
            &probes,
            &[(ProbeKind::Startup, "xx")],
            100,
            expect![[r#"
                starting
                0 Startup failed
                1 Startup failed -> starting, to restart: Startup
            "#]],
        );
    }

    #[test]
    fn without_probes_there_is_nothing_to_do() {
        let watch = Watch::new(&Probes::default());
        assert_eq!(watch.wake(), None);
        assert!(watch.health().ready && watch.health().started);
    }

    #[test]
    fn what_is_ending_cannot_fail_any_more() {
        let probes = Probes { liveness: probe("0/1/1/1"), ..Probes::default() };
        let mut watch = Watch::new(&probes);
        assert_eq!(watch.begin(Duration::ZERO), [ProbeKind::Liveness]);
        watch.ending();
        assert!(!watch.finish(ProbeKind::Liveness, false));
        assert_eq!(watch.health().failed, None);
        assert_eq!(watch.wake(), None);
    }
}
