//! Whose turn it is to make the next piece of a long answer: each user's in turn, however many
//! answers each of them waits for.
//!
//! While others wait, one turn would follow the other and no thread would ever sleep: the kernel takes
//! a processor from such a thread at its ticks only, every few milliseconds, and whoever needs one for
//! a short answer would wait until then. So turns that have followed each other for a while are followed
//! by a rest.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// Turns that others wait for follow each other for so long: what somebody else may wait for a processor.
const STRETCH: Duration = Duration::from_micros(500);
/// And then they rest: the shortest time that tokio's clock knows.
const REST: Duration = Duration::from_millis(1);

/// Turns that nobody has, and who waits for one. A std mutex: its sections are short and never await.
pub struct Turns(Mutex<Waiting>);

struct Waiting {
    free: usize,
    /// The users that wait; the first one is next.
    order: VecDeque<u64>,
    /// Who waits for each of them.
    waiters: HashMap<u64, VecDeque<oneshot::Sender<Turn>>>,
}

/// The right to compute; the next one has it when it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    /// Since when it has been used without a rest, by one after the other.
    since: Instant,
}

/// One user's part in the turns.
pub struct Share {
    turns: Arc<Turns>,
    user: u64,
}

impl Turns {
    /// So many at a time.
    pub fn new(count: usize) -> Arc<Turns> {
        let waiting = Waiting { free: count, order: VecDeque::new(), waiters: HashMap::new() };
        Arc::new(Turns(Mutex::new(waiting)))
    }

    /// The part of a user, by a number that stands for the name.
    pub fn share(self: &Arc<Self>, user: u64) -> Share {
        Share { turns: self.clone(), user }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn push(&mut self, user: u64, waiter: oneshot::Sender<Turn>) {
        let own = self.waiters.entry(user).or_default();
        if own.is_empty() {
            self.order.push_back(user);
        }
        own.push_back(waiter);
    }

    /// Whoever is next and still waits.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        while let Some(user) = self.order.pop_front() {
            let Some(own) = self.waiters.get_mut(&user) else { continue };
            let next = own.pop_front();
            match own.is_empty() {
                true => drop(self.waiters.remove(&user)),
                false => self.order.push_back(user),
            }
            if next.as_ref().is_some_and(|waiter| !waiter.is_closed()) {
                return next;
            }
        }
        None
    }
}

impl Share {
    /// Waits for a turn. For tasks of their own only: a turn that is given to who is not polled is
    /// nobody's.
    pub async fn turn(&self) -> Turn {
        let given = {
            let mut waiting = self.turns.waiting();
            if waiting.free > 0 {
                waiting.free -= 1;
                return Turn { turns: self.turns.clone(), since: Instant::now() };
            }
            let (sender, receiver) = oneshot::channel();
            waiting.push(self.user, sender);
            receiver
        };
        given.await.expect("who waits is given a turn")
    }
}

impl Turn {
    /// Ends it, after a rest if it is time for one.
    pub async fn end(mut self) {
        let is_wanted = !self.turns.waiting().order.is_empty();
        if is_wanted && self.since.elapsed() >= STRETCH {
            sleep(REST).await;
            self.since = Instant::now();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting();
        match waiting.next() {
            None => waiting.free += 1,
            Some(next) => {
                drop(waiting);
                // Who has gone in this moment drops it, and so gives it on.
                drop(next.send(Turn { turns: self.turns.clone(), since: self.since }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn users_take_turns_however_many_answers_they_wait_for() {
        let turns = Turns::new(1);
        let (loud, quiet) = (turns.share(1), turns.share(2));
        let mut turn = loud.turn().now_or_never();
        let mut waiting: Vec<_> = (0..4).map(|_| ("loud", Box::pin(loud.turn()))).collect();
        waiting.push(("quiet", Box::pin(quiet.turn())));
        let mut next = |turn: Option<Turn>| {
            drop(turn);
            (0..waiting.len()).find_map(|at| {
                let turn = (&mut waiting[at].1).now_or_never()?;
                Some((waiting.swap_remove(at).0, turn))
            })
        };
        // All begin to wait, in this order, before the first turn is given on.
        assert!(next(None).is_none());
        let mut order = Vec::new();
        while let Some((user, given)) = next(turn.take()) {
            order.push(user);
            turn = Some(given);
        }
        assert_eq!(order, ["loud", "quiet", "loud", "loud", "loud"]);
        assert!(loud.turn().now_or_never().is_some(), "nobody has it");
    }

    #[tokio::test]
    async fn turns_that_follow_each_other_rest() {
        let turns = Turns::new(1);
        let share = turns.share(1);
        let now = Instant::now();
        let long_ago = now.checked_sub(STRETCH).expect("the machine has run for so long");
        let mut turn = share.turn().await;
        turn.since = long_ago;
        assert!(turn.end().now_or_never().is_some(), "nobody waits for it");
        let mut turn = share.turn().await;
        let mut next = Box::pin(share.turn());
        assert!((&mut next).now_or_never().is_none());
        turn.since = now + Duration::from_secs(60);
        assert!(turn.end().now_or_never().is_some(), "it has just begun");
        let mut turn = next.await;
        let mut after = Box::pin(share.turn());
        assert!((&mut after).now_or_never().is_none());
        turn.since = long_ago;
        let mut end = Box::pin(turn.end());
        assert!((&mut end).now_or_never().is_none(), "it rests");
        end.await;
        assert!(after.await.since >= now, "from there on it counts anew");
    }

    #[test]
    fn who_has_gone_gives_its_turn_on() {
        let turns = Turns::new(1);
        let share = turns.share(1);
        let turn = share.turn().now_or_never();
        let (mut gone, mut left) = (Box::pin(share.turn()), Box::pin(share.turn()));
        assert!((&mut gone).now_or_never().is_none() && (&mut left).now_or_never().is_none());
        // The first goes while it waits, the second after it was given its turn.
        drop(gone);
        drop(turn);
        drop(left);
        assert!(share.turn().now_or_never().is_some());
    }
}
