//! What is done to the cluster, and when: a pure function of the seed.
//!
//! A run is a row of *blocks*. In each the leader is killed every two seconds, but in those for
//! planned transfers; most have a second fault beside it. Whom a fault hits is part of the plan,
//! except that "the leader" is whoever leads at that moment.

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
    /// Nobody hears the member and it hears nobody.
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

/// A fault with its time, from the beginning of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    pub fault: Fault,
    /// How long it lasts, where it has a length.
    pub for_ms: u64,
    /// Whether connections break when a network fault ends, or what was held arrives.
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
    /// A second fault beside the kills.
    pub second_faults: bool,
}

/// The whole plan of a run, in order of time.
pub fn schedule(seed: u64, length_ms: u64, profile: Profile) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    let mut begin = 2000;
    let mut block = 0;
    while begin < length_ms {
        let end = match block % 4 {
            3 if profile.members > 1 => transfers(&mut steps, begin),
            0 => kills(&mut steps, begin, &mut random),
            _ => {
                let end = kills(&mut steps, begin, &mut random);
                if profile.second_faults {
                    let at_ms = begin + random.random_range(1000..6000);
                    steps.push(second(at_ms, &mut random, profile));
                }
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

/// Planned transfers in a quiet cluster, six seconds long.
fn transfers(steps: &mut Vec<Step>, begin: u64) -> u64 {
    for number in 0..4 {
        steps.push(step(begin + 1500 + number * 1000, Fault::Transfer, NO_LENGTH));
    }
    begin + 6500
}

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
        Profile { members: 3, small_disks: true, power_cuts: true, second_faults: true };

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
    fn a_long_run_has_every_fault_and_a_kill_every_two_seconds() {
        let steps = schedule(1, 20 * 60_000, ALL);
        let count = |is: fn(&Fault) -> bool| steps.iter().filter(|step| is(&step.fault)).count();
        assert!(count(|fault| *fault == Fault::Kill(Who::Leader)) > 450);
        assert!(count(|fault| matches!(fault, Fault::Transfer)) > 50);
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
