//! Whether all members hold the same: a hash of the whole state, compared through the log.
//!
//! ```text
//!  leader: Check ─▶ log ─▶ every member notes (revision, hash)
//!  leader: asks all for what they noted, judges
//!  leader: Check with the majority's hash ─▶ log ─▶ whoever noted another one quarantines itself
//! ```
//!
//! The verdict goes through the log, so a member that was away judges itself when it comes back.
//! The leader may be the odd one; it then hands its leadership over. Without a majority of equal
//! hashes nobody is quarantined, and the difference is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::members::MemberId;
use crate::state::{Mark, Revision};

/// How often a cluster that changes is compared; a difference is found within two of these.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(3);

/// Members have noted their hash by then, or are judged the next time.
pub(crate) const COLLECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the hashes of the members say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// All have the same.
    Same,
    /// The majority of the voters has this hash; some have another one, or did not answer.
    Majority(Mark),
    /// No hash has a majority, and there are several.
    Split(String),
    /// Too few answered.
    TooFew,
}

/// Judges what members noted at a revision.
pub(crate) fn judge(
    at: Revision,
    members: &BTreeSet<MemberId>,
    voters: &BTreeSet<MemberId>,
    marks: &BTreeMap<MemberId, Mark>,
) -> Judgement {
    let noted = marks.iter().filter(|(_, mark)| mark.revision == at);
    let noted: BTreeMap<MemberId, u128> = noted.map(|(id, mark)| (*id, mark.hash)).collect();
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    for (id, hash) in &noted {
        *votes.entry(*hash).or_default() += usize::from(voters.contains(id));
    }
    let majority = votes.iter().find(|(_, count)| **count * 2 > voters.len());
    match majority {
        Some((&hash, _)) => {
            let same = |id| noted.get(id) == Some(&hash);
            if members.iter().all(same) {
                Judgement::Same
            } else {
                Judgement::Majority(Mark { revision: at, hash })
            }
        }
        None if votes.len() > 1 => {
            let show = |(id, hash): (&MemberId, &u128)| format!("member {id} {hash:032x}");
            let shown: Vec<String> = noted.iter().map(show).collect();
            Judgement::Split(format!(
                "at revision {at} the members' data hashes to {}",
                shown.join(", ")
            ))
        }
        None => Judgement::TooFew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(voters: &[MemberId], marks: &[(MemberId, Revision, u128)]) -> Judgement {
        let voters: BTreeSet<MemberId> = voters.iter().copied().collect();
        let mark =
            |&(id, revision, hash): &(MemberId, Revision, u128)| (id, Mark { revision, hash });
        let marks: BTreeMap<MemberId, Mark> = marks.iter().map(mark).collect();
        let members = voters.iter().chain(marks.keys()).copied().collect();
        judge(9, &members, &voters, &marks)
    }

    #[test]
    fn the_majority_is_right() {
        let majority = |hash| Judgement::Majority(Mark { revision: 9, hash });
        assert_eq!(judged(&[1, 2, 3], &[(1, 9, 7), (2, 9, 7), (3, 9, 7)]), Judgement::Same);
        assert_eq!(judged(&[1, 2, 3], &[(1, 9, 5), (2, 9, 7), (3, 9, 7)]), majority(7));
        assert_eq!(
            judged(&[1, 2, 3], &[(1, 9, 7), (2, 9, 7), (3, 8, 7)]),
            majority(7),
            "one is late"
        );
        assert_eq!(judged(&[1, 2, 3], &[(1, 9, 7), (2, 8, 5)]), Judgement::TooFew);
        let learner = [(1, 9, 7), (2, 9, 7), (3, 9, 7), (4, 9, 5)];
        assert_eq!(judged(&[1, 2, 3], &learner), majority(7), "a learner does not vote");
    }

    #[test]
    fn without_a_majority_nobody_is_judged() {
        let split = judged(&[1, 2], &[(1, 9, 5), (2, 9, 7)]);
        assert!(matches!(&split, Judgement::Split(text) if text.contains("member 2")), "{split:?}");
        let three = judged(&[1, 2, 3], &[(1, 9, 5), (2, 9, 6), (3, 9, 7)]);
        assert!(matches!(three, Judgement::Split(_)));
    }
}
