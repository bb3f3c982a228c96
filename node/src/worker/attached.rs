//! What a container says and hears beside its log: whoever is attached to it.
//!
//! Attached clients see what is printed from then on. They never slow the guest: one that reads too
//! slowly is cut off. Input goes into the guest's own pipe, and there a client waits.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use wherry_resources::channels;
use wherry_wasi_shim::{Input, InputWriter, Output};

use super::signals::Signal;
use crate::protocol::{Container, Guest, TOOLBOX_REPOSITORY};

/// What waits for an attached client: a burst of so many bytes, in lines as short as they like.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// What a piece counts beside its bytes, so that pieces that cannot be joined are bounded, too.
const PIECE_COST: usize = 64;
/// Commands and attached clients of one container at the same time; each may hold an instance.
const SESSIONS_MAX: usize = 32;
/// One piece of output: a frame holds it with its channel.
pub const PIECE_BYTES_MAX: usize = channels::FRAME_BYTES_MAX - 1;

/// Output of a container: its channel and a piece.
pub type Piece = (u8, Bytes);

/// An attached client, as the container sees it.
#[derive(Default)]
struct Watcher {
    /// Locked to add a piece or to take one.
    waiting: Mutex<Waiting>,
    /// Something was added, or nothing more will be.
    changed: Notify,
}

/// What waits for an attached client.
#[derive(Default)]
struct Waiting {
    /// Their channels, and at most [`PIECE_BYTES_MAX`] each.
    pieces: VecDeque<(u8, Vec<u8>)>,
    /// Of all pieces, with what each counts.
    bytes: usize,
    /// Nothing is added any more.
    closed: bool,
}

impl Waiting {
    /// Adds a piece, to the last one if that has room. Says whether there was room for it.
    fn add(&mut self, channel: u8, bytes: &[u8]) -> bool {
        let last = self.pieces.back_mut();
        let last = last
            .filter(|(of, piece)| *of == channel && piece.len() + bytes.len() <= PIECE_BYTES_MAX);
        let cost = bytes.len() + if last.is_some() { 0 } else { PIECE_COST };
        if self.bytes + cost > WAITING_BYTES_MAX {
            return false;
        }
        self.bytes += cost;
        match last {
            Some((_, piece)) => piece.extend_from_slice(bytes),
            None => self.pieces.push_back((channel, bytes.to_vec())),
        }
        true
    }
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the client still reads, and fast enough.
    fn show(&self, channel: u8, bytes: &[u8]) -> bool {
        let mut waiting = self.lock();
        let taken = !waiting.closed
            && bytes.chunks(PIECE_BYTES_MAX).all(|piece| waiting.add(channel, piece));
        waiting.closed = !taken;
        drop(waiting);
        self.changed.notify_one();
        taken
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }
}

/// What a container prints, for a client that is attached to it.
pub struct Watch(Arc<Watcher>);

impl Watch {
    /// The next piece; None at the end. Cancel safe.
    pub async fn recv(&mut self) -> Option<Piece> {
        loop {
            {
                let mut waiting = self.0.lock();
                if let Some((channel, bytes)) = waiting.pieces.pop_front() {
                    waiting.bytes -= bytes.len() + PIECE_COST;
                    return Some((channel, bytes.into()));
                }
                if waiting.closed {
                    return None;
                }
            }
            // What came in between has left its word.
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The ends of one container start that others can hold.
pub struct Io {
    // Sections are short and never wait.
    watchers: Mutex<Vec<Arc<Watcher>>>,
    /// How many there are, so that a container that nobody watches pays nothing.
    watched: AtomicUsize,
    input: Mutex<Option<Arc<InputWriter>>>,
    once: bool,
    /// It runs the toolbox, which reads ^C itself.
    pub reads_interrupts: bool,
    /// Its input is not for anybody to write to: its end tells the toolbox to end.
    pub ends_with_input: bool,
    /// Cancelled when the container has ended.
    pub ended: CancellationToken,
    /// The greatest that was sent.
    signals: watch::Sender<Option<Signal>>,
    /// Places for sessions.
    pub sessions: Arc<Semaphore>,
}

impl Io {
    /// For one start, with the pipe that its guest reads.
    pub fn new(container: &Container) -> (Arc<Io>, Option<Input>) {
        let runs_toolbox = container.image_id.starts_with(TOOLBOX_REPOSITORY);
        let ends_with_input = runs_toolbox && !container.stdin && !container.tty;
        let open = (container.stdin || ends_with_input) && container.guest == Guest::Command;
        let (writer, input) = open.then(Input::pipe).unzip();
        let io = Io {
            watchers: Mutex::default(),
            watched: AtomicUsize::new(0),
            input: Mutex::new(writer.map(Arc::new)),
            once: container.stdin_once,
            reads_interrupts: runs_toolbox,
            ends_with_input,
            ended: CancellationToken::new(),
            signals: watch::Sender::new(None),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
        };
        (Arc::new(io), input)
    }

    /// An output that goes to `log` and to whoever is attached.
    pub fn output(self: &Arc<Io>, channel: u8, log: Output) -> Output {
        let io = self.clone();
        Arc::new(move |bytes: &[u8]| {
            log(bytes);
            io.show(channel, bytes);
        })
    }

    fn show(&self, channel: u8, bytes: &[u8]) {
        if self.watched.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.show(channel, bytes));
        self.watched.store(watchers.len(), Ordering::Relaxed);
    }

    /// What is printed from now on. It ends with the container, or earlier if it is not read.
    pub fn watch(&self) -> Watch {
        let watcher = Arc::<Watcher>::default();
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended.is_cancelled() {
            watcher.close();
        } else {
            watchers.push(watcher.clone());
        }
        self.watched.store(watchers.len(), Ordering::Relaxed);
        Watch(watcher)
    }

    /// The guest's input, if it is open. With `stdinOnce` the first who asks keeps it, and it ends
    /// with him.
    pub fn input(&self) -> Option<Arc<InputWriter>> {
        if self.ends_with_input {
            return None;
        }
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if self.once { input.take() } else { input.clone() }
    }

    /// Tells the container's program to end.
    pub fn signal(&self, signal: Signal) {
        self.signals.send_if_modified(|sent| {
            let is_more = *sent < Some(signal);
            *sent = (*sent).max(Some(signal));
            is_more
        });
    }

    /// Waits for a signal that is greater than `heard`. Cancel safe.
    pub async fn signalled(&self, heard: Option<Signal>) -> Signal {
        let mut signals = self.signals.subscribe();
        let sent = *signals.wait_for(|sent| *sent > heard).await.expect("its sender is this");
        sent.expect("greater than none is one")
    }

    /// The container has ended.
    pub fn end(&self) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.cancel();
        for watcher in watchers.drain(..) {
            watcher.close();
        }
        self.watched.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn all(watch: &mut Watch) -> Vec<Piece> {
        std::iter::from_fn(|| watch.recv().now_or_never().flatten()).collect()
    }

    #[test]
    fn a_burst_of_short_lines_is_shown() {
        let watcher = Arc::<Watcher>::default();
        let mut watch = Watch(watcher.clone());
        let lines = 40_000;
        assert!(
            (0..lines).all(|line| watcher.show(1, format!("this is line {line:05}\n").as_bytes()))
        );
        let pieces = all(&mut watch);
        assert!(pieces.iter().all(|(_, bytes)| bytes.len() <= PIECE_BYTES_MAX));
        let shown: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(shown.iter().filter(|byte| **byte == b'\n').count(), lines);
        assert!(shown.ends_with(b"line 39999\n"));
        assert_eq!(watcher.lock().bytes, 0, "all room is there again");
        assert!(watcher.show(2, &vec![0; 900_000]), "in one go as well");
    }

    #[test]
    fn who_does_not_read_is_cut_off() {
        let watcher = Arc::<Watcher>::default();
        let mut watch = Watch(watcher.clone());
        // None of them can be joined to the one before.
        let shown = (0..WAITING_BYTES_MAX).take_while(|at| watcher.show((at % 2) as u8, b"x"));
        let shown = shown.count();
        assert_eq!(shown, WAITING_BYTES_MAX / (1 + PIECE_COST));
        assert_eq!(all(&mut watch).len(), shown, "what was there before is shown");
        assert!(!watcher.show(1, b"x"), "there is room again, but some is lost");
        let watcher = Arc::<Watcher>::default();
        drop(Watch(watcher.clone()));
        assert!(!watcher.show(1, b"x"), "it has gone");
    }
}
