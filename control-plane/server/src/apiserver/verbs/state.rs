//! Which state a write is judged by.
//!
//! A linearizable read costs a question to the leader, and one of the leader to a majority: as much
//! as the write itself. So a write is judged by this member's own state first, if that is known to
//! be fresh (`Store::fresh`; in Kubernetes admission reads caches without any bound). That is safe:
//!
//! - The write carries what it was judged by as its precondition, so it does not happen if somebody
//!   else wrote the object since.
//! - What the own state refuses, and what changes nothing by it, is judged again by the newest
//!   state: nobody is told what only this member still believes.

use super::{
    update::RACE_TRIES,
    write::{Failure, Written},
};
use crate::apiserver::{ApiServer, errors::ApiError};
use wherry_store::Snapshot;

/// The states by which one write is judged, one attempt after the other.
pub struct States<'a> {
    api: &'a ApiServer,
    tries: usize,
    judge: Judge,
}

/// By what the present attempt is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judge {
    /// There was no attempt yet.
    Nobody,
    /// By this member's own state.
    Own,
    /// By the newest state.
    Newest,
}

/// What an attempt leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Settled,
    Again,
}

/// How an attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    Stored,
    Unchanged,
    /// Somebody else wrote the object first.
    Raced,
    /// By a rule, on the grounds of what is stored.
    Refused,
    /// By the store, or for want of an answer.
    Failed,
}

fn decide(judge: Judge, went: Went) -> Verdict {
    match (judge, went) {
        (_, Went::Stored | Went::Failed) => Verdict::Settled,
        (_, Went::Raced) => Verdict::Again,
        (Judge::Newest, Went::Unchanged | Went::Refused) => Verdict::Settled,
        (Judge::Own | Judge::Nobody, Went::Unchanged | Went::Refused) => Verdict::Again,
    }
}

impl<'a> States<'a> {
    pub fn of(api: &'a ApiServer) -> States<'a> {
        States { api, tries: 0, judge: Judge::Nobody }
    }

    /// The state for the next attempt; `None` when others were faster too often.
    pub async fn next(&mut self) -> Result<Option<Snapshot>, ApiError> {
        if self.judge == Judge::Nobody
            && let Some(own) = self.api.store().fresh()
        {
            self.judge = Judge::Own;
            return Ok(Some(own));
        }
        if self.tries == RACE_TRIES {
            return Ok(None);
        }
        self.tries += 1;
        self.judge = Judge::Newest;
        Ok(Some(self.api.latest().await?))
    }

    /// What the client is told; `None` if there is to be another attempt.
    pub fn settle(&self, attempt: Result<Written, Failure>) -> Option<Result<Written, ApiError>> {
        let went = match &attempt {
            Ok(written) if written.stored => Went::Stored,
            Ok(_) => Went::Unchanged,
            Err(Failure::Raced) => Went::Raced,
            Err(Failure::Refused(error)) if error.is_verdict() => Went::Refused,
            Err(Failure::Refused(_)) => Went::Failed,
        };
        match (decide(self.judge, went), attempt) {
            (Verdict::Again, _) | (_, Err(Failure::Raced)) => None,
            (Verdict::Settled, Ok(written)) => Some(Ok(written)),
            (Verdict::Settled, Err(Failure::Refused(error))) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_state_refuses() {
        use {Verdict::Again, Verdict::Settled};
        let by = |judge| {
            [Went::Stored, Went::Unchanged, Went::Raced, Went::Refused, Went::Failed]
                .map(|went| decide(judge, went))
        };
        assert_eq!(by(Judge::Own), [Settled, Again, Again, Again, Settled]);
        assert_eq!(by(Judge::Newest), [Settled, Settled, Again, Settled, Settled]);
    }
}
