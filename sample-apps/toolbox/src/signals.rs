//! Signals, of which WASI has none. What becomes one here: a terminal of Wherry passes ^C on as a
//! byte of the input, and the input of a container that reads none ends when the container shall. A
//! signal ends the program, unless a shell says that it handles it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Interrupt,
    Terminate,
}

#[derive(Default)]
struct State {
    handled: bool,
    /// It was raised, and nobody has taken it yet.
    pending: bool,
    count: u64,
    /// By a number of their own.
    waiting: BTreeMap<u64, Waker>,
    next: u64,
}

thread_local! {
    static STATES: RefCell<[State; 2]> = RefCell::default();
}

fn with<T>(signal: Signal, work: impl FnOnce(&mut State) -> T) -> T {
    STATES.with_borrow_mut(|states| work(&mut states[signal as usize]))
}

impl Signal {
    pub const ALL: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

    /// As `trap` and `kill` name it.
    pub fn named(name: &str) -> Option<Signal> {
        match name.strip_prefix("SIG").unwrap_or(name) {
            "INT" | "2" => Some(Signal::Interrupt),
            "TERM" | "15" => Some(Signal::Terminate),
            _ => None,
        }
    }

    /// What a program ends with that it ends: 128 + its number.
    pub fn code(self) -> u8 {
        match self {
            Signal::Interrupt => 130,
            Signal::Terminate => 143,
        }
    }

    /// Whether the program goes on from now on when it comes.
    pub fn handle(self, handled: bool) {
        with(self, |state| {
            state.handled = handled;
            state.pending = false;
        });
    }

    /// It comes.
    pub fn raise(self) {
        with(self, |state| {
            if !state.handled {
                crate::exit(self.code());
            }
            state.pending = true;
            state.count += 1;
            std::mem::take(&mut state.waiting).into_values().for_each(Waker::wake);
        });
    }

    /// Whether it has come since it was taken last.
    pub fn take(self) -> bool {
        with(self, |state| std::mem::take(&mut state.pending))
    }

    /// Waits until it comes.
    pub async fn comes(self) {
        struct Place(Signal, u64);
        impl Drop for Place {
            fn drop(&mut self) {
                with(self.0, |state| state.waiting.remove(&self.1));
            }
        }
        let (place, before) = with(self, |state| {
            state.next += 1;
            (Place(self, state.next), state.count)
        });
        poll_fn(|cx| {
            with(self, |state| {
                if state.count != before {
                    return Poll::Ready(());
                }
                state.waiting.insert(place.1, cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }
}
