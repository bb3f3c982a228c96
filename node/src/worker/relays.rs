//! Ways to workers that no connection reaches (nodes behind NAT): through the agent and a member of
//! the control plane, see `agent/relay.rs`.
//!
//! ```text
//!   peers: `open` ─▶ asked ─▶ main task ─▶ ToAgent::Relay       agent ─▶ Open::Relayed ─▶ `opened`
//!      ▲                                                                                    │
//!      └──────────────────────────── bytes both ways ◀──────────────────────────────────────┘
//! ```
//!
//! TLS goes from worker to worker through it. Without an agent nobody answers, and whoever waits
//! gives up after [`OPEN_MAX`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{Notify, oneshot},
};

use super::traffic::{Connected, Named, Pair};
use crate::protocol::Relay;

/// How long somebody waits for a way; a request still has time for another endpoint then.
const OPEN_MAX: Duration = Duration::from_millis(1500);
/// Ways that are waited for at the same time: one for each worker elsewhere.
const ASKED_MAX: usize = 64;
/// Nodes that are told apart in metrics.
const NODES_MAX: usize = 500;

/// All ways of a worker. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Relays(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether somebody asks the agent: without it nobody waits.
    served: AtomicBool,
    next: AtomicU64,
    /// Locked for an entry.
    state: Mutex<State>,
    asked: Notify,
    counters: Counters,
}

/// Ways by the node that they lead to.
#[derive(Debug)]
struct Counters(Named<Pair>);

impl Default for Counters {
    fn default() -> Counters {
        Counters(Named::new(NODES_MAX))
    }
}

type Outcome = Result<UnixStream, String>;

#[derive(Debug, Default)]
struct State {
    /// Not told to the agent yet.
    asked: VecDeque<Relay>,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
}

/// Somebody waits, until it is dropped.
struct Waiting<'a>(&'a Relays, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting.remove(&self.1);
        state.asked.retain(|relay| relay.id != self.1);
    }
}

impl Relays {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on somebody asks the agent for what is wanted.
    pub fn serve(&self) {
        self.0.served.store(true, Ordering::Relaxed);
    }

    /// A way to the worker of a namespace on a node. The error is for people.
    pub async fn open(&self, node: &str, namespace: &str) -> Result<Connected<UnixStream>, String> {
        let counters = self.0.counters.0.of(node);
        let opened = self.wait(node, namespace).await;
        match opened {
            Ok(stream) => Ok(counters.opened(stream)),
            Err(why) => {
                counters.refused();
                Err(why)
            }
        }
    }

    async fn wait(&self, node: &str, namespace: &str) -> Outcome {
        if !self.0.served.load(Ordering::Relaxed) {
            return Err("there is nobody to ask for a relay".to_owned());
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, outcome) = oneshot::channel();
        {
            let mut state = self.state();
            if state.waiting.len() >= ASKED_MAX {
                return Err(format!("{ASKED_MAX} relays are waited for already"));
            }
            state.waiting.insert(id, sender);
            let (node, namespace) = (node.to_owned(), namespace.to_owned());
            state.asked.push_back(Relay { id, node, namespace });
        }
        let _waiting = Waiting(self, id);
        self.0.asked.notify_one();
        match tokio::time::timeout(OPEN_MAX, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("the relay was given up".to_owned()),
            Err(_) => Err(format!("no relay within {OPEN_MAX:?}")),
        }
    }

    /// What the agent is to be asked next. For one listener; cancel safe.
    pub async fn asked(&self) -> Relay {
        loop {
            if let Some(relay) = self.state().asked.pop_front() {
                return relay;
            }
            self.0.asked.notified().await;
        }
    }

    /// The agent has a way, or has none. Whom nobody waits for is closed.
    pub fn opened(&self, id: u64, outcome: Outcome) {
        let waiting = self.state().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // Who has just given up does not need it.
            let _ = waiting.send(outcome);
        }
    }

    /// What there was, by node.
    pub fn counters(&self) -> &Named<Pair> {
        &self.0.counters.0
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_way_comes_to_whoever_asked_for_it() {
        let relays = Relays::default();
        let nobody = relays.open("node-2", "shop").await;
        assert_eq!(nobody.err().as_deref(), Some("there is nobody to ask for a relay"));
        relays.serve();
        let agent = async {
            let wanted = relays.asked().await;
            assert_eq!((wanted.node.as_str(), wanted.namespace.as_str()), ("node-2", "shop"));
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            // An answer to a question that nobody has asked.
            relays.opened(wanted.id + 100, Err("no".to_owned()));
            relays.opened(wanted.id, Ok(ours));
            theirs.write_all(b"hello").await.expect("written");
        };
        let (way, ()) = tokio::join!(relays.open("node-2", "shop"), agent);
        let mut said = String::new();
        way.expect("there is one").read_to_string(&mut said).await.expect("read");
        assert_eq!(said, "hello");
        let agent = async {
            let wanted = relays.asked().await;
            relays.opened(wanted.id, Err("node-2 is not connected".to_owned()));
        };
        let (way, ()) = tokio::join!(relays.open("node-2", "shop"), agent);
        assert_eq!(way.err().as_deref(), Some("node-2 is not connected"));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let relays = Relays::default();
        relays.serve();
        let way = relays.open("node-2", "shop").await;
        assert_eq!(way.err().as_deref(), Some("no relay within 1.5s"));
        assert!(relays.state().asked.is_empty() && relays.state().waiting.is_empty());
    }
}
