//! What is done to the cluster, and when: a pure function of the seed.
//!
//! A run is a row of *blocks*, of four kinds: *kills* of the leader every two seconds; kills with a
//! second fault beside them; two faults each *alone* in a cluster that is well otherwise, so that
//! what they cost can be told apart; and planned *transfers*. [`Mode`] says which there are. Whom a
//! fault hits is part of the plan, except that "the leader" is whoever leads at that moment.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// How often the leader is killed.
pub const KILL_EVERY_MS: u64 = 2000;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Leader,
    Seat(usize),
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9; it is started again at once.
    Kill(Who),
    /// SIGSTOP, then SIGCONT.
    Pause(Who),
    /// Nobody hears the member and it hears nobody: silence, or connections that are refused.
    Isolate(Who),
    /// What the first sends does not reach the second; the other way works.
    OneWay(Who, Who),
    /// Everything from and to the member is late by so many milliseconds.
    Delay(Who, u64),
    /// Its fsyncs are late by so many milliseconds.
    SlowSync(Who, u64),
    /// The file system of its data folder fills up to so many per cent.
    FillDisk(Who, u8),
    /// kill -9 with loss of everything that was not fsynced.
    PowerCut(Who),
    /// It loses its data and is replaced by a new member.
    Replace(Who),
    /// Leadership is handed over as planned.
    Transfer,
}

/// What kind of run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The leader is killed every two seconds; beside that there are only planned transfers.
    Kills,
    /// Everything at once and everything alone.
    Mixed,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Kills => "the leader killed every 2 s",
            Mode::Mixed => "all faults mixed",
        })
    }
}

impl Fault {
    /// Faults of one sort are measured together.
    pub fn sort(&self) -> &'static str {
        match self {
            Fault::Kill(_) => KILL_LEADER,
            Fault::Pause(Who::Leader) => "leader stopped (SIGSTOP)",
            Fault::Pause(_) => "member stopped (SIGSTOP)",
            Fault::Isolate(Who::Leader) => "leader cut off",
            Fault::Isolate(_) => "member cut off",
            Fault::OneWay(..) => "one way cut",
            Fault::Delay(..) => "network late",
            Fault::SlowSync(_, late_ms) if *late_ms > 100 => "fsync 500 ms",
            Fault::SlowSync(..) => "fsync 4 ms",
            Fault::FillDisk(..) => "disk full",
            Fault::PowerCut(_) => "power cut",
            Fault::Replace(_) => "member replaced",
            Fault::Transfer => TRANSFER,
        }
    }
}

/// The sorts with a goal.
pub const KILL_LEADER: &str = "leader killed";
pub const TRANSFER: &str = "planned transfer";

/// A fault with its time, from the beginning of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    pub fault: Fault,
    /// How long it lasts, where it has a length.
    pub for_ms: u64,
    /// Whether connections break when a network fault ends, or what was held arrives; of a member
    /// cut off, whether they are refused meanwhile.
    pub breaks: bool,
}

/// What may be done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub members: usize,
    /// Data folders are on file systems of their own, which can be filled.
    pub small_disks: bool,
    /// File changes are journalled.
    pub power_cuts: bool,
    pub mode: Mode,
}

/// The whole plan of a run, in order of time.
pub fn schedule(seed: u64, length_ms: u64, profile: Profile) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    let mut begin = 2000;
    let mut block = 0;
    while begin < length_ms {
        let end = match (profile.mode, block % 4) {
            (_, 3) if profile.members > 1 => transfers(&mut steps, begin),
            (Mode::Mixed, 1 | 3) => lone(&mut steps, begin, &mut random, profile),
            (Mode::Kills, _) => kills(&mut steps, begin, &mut random),
            (Mode::Mixed, _) => {
                let end = kills(&mut steps, begin, &mut random);
                let at_ms = begin + random.random_range(1000..6000);
                steps.push(second(at_ms, &mut random, profile));
                end
            }
        };
        begin = end;
        block += 1;
    }
    steps.retain(|step| step.at_ms < length_ms);
    steps.sort_by_key(|step| step.at_ms);
    steps
}

const NO_LENGTH: (u64, bool) = (0, false);

fn step(at_ms: u64, fault: Fault, (for_ms, breaks): (u64, bool)) -> Step {
    Step { at_ms, fault, for_ms, breaks }
}

/// Kills of the leader, sixteen seconds long.
fn kills(steps: &mut Vec<Step>, begin: u64, random: &mut StdRng) -> u64 {
    for number in 0..8 {
        // A kill at the same moment of each heartbeat would be no test.
        let at_ms = begin + number * KILL_EVERY_MS + random.random_range(0..200);
        steps.push(step(at_ms, Fault::Kill(Who::Leader), NO_LENGTH));
    }
    begin + 8 * KILL_EVERY_MS + 1000
}

/// Planned transfers in a quiet cluster, eight seconds long.
fn transfers(steps: &mut Vec<Step>, begin: u64) -> u64 {
    for number in 0..10 {
        steps.push(step(begin + 1500 + number * 600, Fault::Transfer, NO_LENGTH));
    }
    begin + 8000
}

/// Two faults after each other, each with time to heal before and behind it.
fn lone(steps: &mut Vec<Step>, begin: u64, random: &mut StdRng, profile: Profile) -> u64 {
    for number in 0..2 {
        let at_ms = begin + 3000 + number * LONE_MS + random.random_range(0..200);
        steps.push(second(at_ms, random, profile));
    }
    begin + 2 * LONE_MS
}

/// A fault alone: seven seconds at most, and until the cluster is well again.
const LONE_MS: u64 = 14_000;

fn second(at_ms: u64, random: &mut StdRng, profile: Profile) -> Step {
    let seat = random.random_range(0..profile.members);
    let other = (seat + random.random_range(1..profile.members.max(2))) % profile.members;
    let who = if random.random_bool(0.5) { Who::Leader } else { Who::Seat(seat) };
    let length = random.random_range(2000..7000);
    let breaks = random.random_bool(0.5);
    let lasting = (length, breaks);
    loop {
        let alone = profile.members == 1;
        return match random.random_range(0..10) {
            0 | 1 => step(at_ms, Fault::Pause(who), (random.random_range(200..5000), false)),
            2 if !alone => step(at_ms, Fault::Isolate(Who::Leader), lasting),
            3 if !alone => step(at_ms, Fault::Isolate(Who::Seat(seat)), lasting),
            4 if !alone => step(at_ms, Fault::OneWay(Who::Seat(seat), Who::Seat(other)), lasting),
            5 if !alone => step(at_ms, Fault::Delay(who, random.random_range(5..120)), lasting),
            6 => {
                let late = if random.random_bool(0.5) { 4 } else { 500 };
                step(at_ms, Fault::SlowSync(who, late), lasting)
            }
            7 if profile.small_disks => {
                let used = if random.random_bool(0.5) { 93 } else { 100 };
                step(at_ms, Fault::FillDisk(who, used), lasting)
            }
            8 if profile.power_cuts => step(at_ms, Fault::PowerCut(who), NO_LENGTH),
            9 if !alone => step(at_ms, Fault::Replace(Who::Seat(seat)), NO_LENGTH),
            _ => continue,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Profile =
        Profile { members: 3, small_disks: true, power_cuts: true, mode: Mode::Mixed };

    #[test]
    fn the_plan_is_the_seed_s() {
        let minute = 60_000;
        assert_eq!(schedule(7, minute, ALL), schedule(7, minute, ALL));
        assert_ne!(schedule(7, minute, ALL), schedule(8, minute, ALL));
        // A longer run begins like a shorter one, so that a failure can be replayed shortened.
        let long = schedule(7, 10 * minute, ALL);
        assert!(long.starts_with(&schedule(7, minute, ALL)));
    }

    #[test]
    fn a_long_mixed_run_has_every_fault() {
        let steps = schedule(1, 20 * 60_000, ALL);
        let count = |is: fn(&Fault) -> bool| steps.iter().filter(|step| is(&step.fault)).count();
        assert!(count(|fault| *fault == Fault::Kill(Who::Leader)) > 250);
        assert!(count(|fault| matches!(fault, Fault::Transfer)) > 100);
        assert!(count(|fault| matches!(fault, Fault::Pause(_))) > 0);
        assert!(count(|fault| matches!(fault, Fault::Isolate(Who::Leader))) > 0);
        assert!(count(|fault| matches!(fault, Fault::Isolate(Who::Seat(_)))) > 0);
        assert!(count(|fault| matches!(fault, Fault::OneWay(..))) > 0);
        assert!(count(|fault| matches!(fault, Fault::Delay(..))) > 0);
        assert!(count(|fault| matches!(fault, Fault::SlowSync(_, 4))) > 0);
        assert!(count(|fault| matches!(fault, Fault::SlowSync(_, 500))) > 0);
        assert!(count(|fault| matches!(fault, Fault::FillDisk(..))) > 0);
        assert!(count(|fault| matches!(fault, Fault::PowerCut(_))) > 0);
        assert!(count(|fault| matches!(fault, Fault::Replace(_))) > 0);
    }

    #[test]
    fn kills_come_every_two_seconds_with_nothing_but_transfers_beside_them() {
        let steps = schedule(1, 20 * 60_000, Profile { mode: Mode::Kills, ..ALL });
        let kills = steps.iter().filter(|step| step.fault == Fault::Kill(Who::Leader)).count();
        let transfers = steps.iter().filter(|step| step.fault == Fault::Transfer).count();
        assert!(kills > 450 && transfers > 150, "{kills} {transfers}");
        assert_eq!(kills + transfers, steps.len());
    }

    #[test]
    fn one_member_alone_gets_what_it_can_have() {
        let alone = Profile { members: 1, small_disks: false, power_cuts: false, ..ALL };
        for step in schedule(3, 10 * 60_000, alone) {
            assert!(
                matches!(step.fault, Fault::Kill(_) | Fault::Pause(_) | Fault::SlowSync(..)),
                "{step:?}"
            );
        }
    }
}
