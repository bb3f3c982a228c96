//! Writes on their way to another member that leads. Those that come at the same time go in one
//! request: a request of its own would cost both members more than the write in it.
//!
//! ```text
//!  Inner::forward ─▶ queue ─▶ pass_on: groups ─▶ Caller::ask ~~~▶ the leader proposes all of them
//!        ▲                                            │
//!        └────────────── each its own answer ◀────────┘
//! ```

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use crate::errors::WriteError;
use crate::network::{AskError, Caller, PEER_BYTES_MAX, Peer};
use crate::store::WRITE_BYTES_MAX;
use crate::tasks;
use crate::wire::{Answer, Request, Write, Written};

/// Writes that may wait to be passed on; behind them whoever writes waits.
pub(crate) const PASSED_MAX: usize = 4096;

/// Writes in one request: as many as fit into its answer, if each brings the largest object back.
const GROUP_MAX: usize = PEER_BYTES_MAX / WRITE_BYTES_MAX;

/// A write that was passed on is answered by then; the leader itself says `Unknown` a little
/// earlier.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(12);

/// What the leader made of a write, or why it said nothing.
pub(crate) type Answered = Result<Result<Written, WriteError>, AskError>;

/// A write to be passed on.
pub(crate) struct Passed {
    pub(crate) leader: Peer,
    pub(crate) write: Write,
    pub(crate) answer: oneshot::Sender<Answered>,
}

/// The task that passes writes on.
pub(crate) async fn pass_on(caller: Caller, mut queue: mpsc::Receiver<Passed>) {
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            first = queue.recv() => {
                let Some(first) = first else {
                    return;
                };
                // Others that are ready to write add theirs.
                tasks::step_back().await;
                asked.extend(groups(first, &mut queue).into_iter().map(|group| ask(&caller, group)));
            }
            Some(()) = asked.next(), if !asked.is_empty() => {}
        }
    }
}

/// The first write and all that wait behind it, as they go together.
fn groups(first: Passed, queue: &mut mpsc::Receiver<Passed>) -> Vec<Vec<Passed>> {
    let mut groups = vec![vec![first]];
    let waiting = std::iter::from_fn(|| queue.try_recv().ok());
    for next in waiting.take(PASSED_MAX) {
        match groups.last_mut() {
            Some(group) if group.len() < GROUP_MAX && group[0].leader == next.leader => {
                group.push(next);
            }
            _ => groups.push(vec![next]),
        }
    }
    groups
}

/// Asks for a group, and tells each who waits.
async fn ask(caller: &Caller, group: Vec<Passed>) {
    let leader = group[0].leader.clone();
    let parts = group.into_iter().map(|passed| (passed.write, passed.answer));
    let (writes, answers): (Vec<Write>, Vec<oneshot::Sender<Answered>>) = parts.unzip();
    let answer = caller.ask(leader, &Request::Writes(writes), FORWARD_TIMEOUT).await;
    let answered: Vec<Answered> = match answer {
        Ok(Answer::Written(written)) if written.len() == answers.len() => {
            written.into_iter().map(Ok).collect()
        }
        Ok(_) => vec![Err(AskError::Lost("it answered another question".into())); answers.len()],
        Err(error) => vec![Err(error); answers.len()],
    };
    for (answer, answered) in answers.into_iter().zip(answered) {
        // Whoever waits no longer knows what to make of that.
        let _ = answer.send(answered);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use futures::FutureExt as _;

    use super::*;
    use crate::codec;
    use crate::faults::Faults;
    use crate::network::Transport;
    use crate::state::{Action, Command, Precondition};
    use crate::superblock::Identity;

    /// What each request was about: its member, and the fences of its writes, by which they are told
    /// apart here.
    type Seen = Arc<Mutex<Vec<(u64, Vec<u64>)>>>;

    fn caller() -> (Caller, Seen) {
        let seen = Seen::default();
        let noted = seen.clone();
        let transport: Transport = Arc::new(move |peer: Peer, request: Bytes| {
            let (_, request) = codec::decode(&request, Request::decode).expect("it can be read");
            let Request::Writes(writes) = request else {
                panic!("nothing else is asked here");
            };
            let fences: Vec<u64> = writes.iter().map(|write| write.fence).collect();
            let written = |fence: &u64| Ok(Written::Put { created: 1, modified: *fence });
            let answer = Answer::Written(fences.iter().map(written).collect());
            noted.lock().expect("nothing panics here").push((peer.id, fences));
            futures::future::ready(Ok(answer.encode())).boxed()
        });
        let identity = Identity { cluster_id: 1, member_id: 1 };
        (Caller::new(identity, transport, Faults::default()), seen)
    }

    fn write(fence: u64) -> Write {
        let command = Command {
            time_ms: 0,
            id: fence,
            key: Bytes::from_static(b"key"),
            precondition: Precondition::Any,
            action: Action::Delete,
        };
        Write { command, makes_room: false, fence }
    }

    #[tokio::test]
    async fn writes_of_one_moment_go_together_and_each_hears_its_own_answer() {
        let (caller, seen) = caller();
        let (queue, waiting) = mpsc::channel(PASSED_MAX);
        let mut answers = Vec::new();
        for (id, fence) in [2, 2, 2, 2, 2, 2, 3, 2].into_iter().zip(1..) {
            let leader = Peer { id, address: format!("{id}:1") };
            let (answer, answered) = oneshot::channel();
            let passed = Passed { leader, write: write(fence), answer };
            assert!(queue.send(passed).await.is_ok());
            answers.push((fence, answered));
        }
        let passing = tokio::spawn(pass_on(caller, waiting));
        for (fence, answered) in answers {
            let answered = answered.await.expect("it is answered");
            assert_eq!(answered, Ok(Ok(Written::Put { created: 1, modified: fence })));
        }
        drop(queue);
        passing.await.expect("it does not panic");
        let mut seen = seen.lock().expect("nothing panics here").clone();
        seen.sort_by_key(|(_, fences)| fences.first().copied());
        let expected: [(u64, Vec<u64>); 4] =
            [(2, vec![1, 2, 3, 4, 5]), (2, vec![6]), (3, vec![7]), (2, vec![8])];
        assert_eq!(seen, expected);
    }
}
