//! Whose turn it is to make the next piece of a long answer: each user's in turn, however many
//! answers each of them waits for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

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
pub struct Turn(Arc<Turns>);

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
                return Turn(self.turns.clone());
            }
            let (sender, receiver) = oneshot::channel();
            waiting.push(self.user, sender);
            receiver
        };
        given.await.expect("who waits is given a turn")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        match waiting.next() {
            None => waiting.free += 1,
            Some(next) => {
                drop(waiting);
                // Who has gone in this moment drops it, and so gives it on.
                drop(next.send(Turn(self.0.clone())));
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
