//! Which members do not answer this one: one line in the log when somebody has been silent for a
//! while, and one when they answer again. Raft asks a member that is away ten times a second, and its
//! own complaints say the same each time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::members::MemberId;

/// What is shorter is a machine that is busy or a member that is started again, and no news.
const WORTH_TELLING: Duration = Duration::from_secs(3);

/// A member that has not answered since.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    told: bool,
}

/// What is worth a line, and for how long there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Silent(Duration),
    AnswersAgain(Duration),
}

/// The members that do not answer at the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silences(Arc<Mutex<BTreeMap<MemberId, Silence>>>);

impl Silences {
    /// A member was asked: why there is no answer, if there is none.
    pub(crate) fn note(&self, member: MemberId, failure: Option<&dyn std::fmt::Display>) {
        let news = {
            let mut silences = self.0.lock().expect("no section of this lock panics");
            step(&mut silences, member, failure.is_none(), Instant::now())
        };
        match (news, failure) {
            (Some(News::Silent(time)), Some(why)) => {
                tracing::warn!(member, ?time, %why, "a member does not answer");
            }
            (Some(News::AnswersAgain(after)), _) => {
                tracing::warn!(member, ?after, "a member answers again");
            }
            _ => {}
        }
    }
}

fn step(
    silences: &mut BTreeMap<MemberId, Silence>,
    member: MemberId,
    answers: bool,
    now: Instant,
) -> Option<News> {
    if answers {
        let silence = silences.remove(&member).filter(|silence| silence.told)?;
        return Some(News::AnswersAgain(now.duration_since(silence.since)));
    }
    let silence = silences.entry(member).or_insert(Silence { since: now, told: false });
    let time = now.duration_since(silence.since);
    if silence.told || time < WORTH_TELLING {
        return None;
    }
    silence.told = true;
    Some(News::Silent(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_silence_is_told_once_and_its_end_once() {
        let (mut silences, begun) = (BTreeMap::new(), Instant::now());
        let mut at = |millis: u64, member: MemberId, answers: bool| {
            step(&mut silences, member, answers, begun + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 1, false), None);
        assert_eq!(at(2900, 1, false), None, "it may be back any moment");
        assert_eq!(at(3000, 2, true), None, "another one answers");
        assert_eq!(at(3100, 1, false), Some(News::Silent(Duration::from_millis(3100))));
        assert_eq!(at(9000, 1, false), None, "that is known");
        assert_eq!(at(9500, 1, true), Some(News::AnswersAgain(Duration::from_millis(9500))));
        assert_eq!(at(9600, 1, true), None);
        assert_eq!(at(9700, 1, false), None, "a new silence begins");
        assert_eq!(at(9800, 1, true), None, "which was none");
    }
}
