//! What a container says and hears beside its log: whoever is attached to it.
//!
//! Attached clients see what is printed from then on. They never slow the guest: one that reads too
//! slowly is cut off. Input goes into the guest's own pipe, and there a client waits.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use wherry_resources::channels;
use wherry_wasi_shim::{Input, InputWriter, Output};

use super::signals::Signal;
use crate::protocol::{Container, Guest, TOOLBOX_REPOSITORY};

/// Pieces that wait for an attached client: a burst of 1 MiB.
const PIECES_MAX: usize = 32;
/// Commands and attached clients of one container at the same time; each may hold an instance.
const SESSIONS_MAX: usize = 32;
/// One piece of output: a frame holds it with its channel.
pub const PIECE_BYTES_MAX: usize = channels::FRAME_BYTES_MAX - 1;

/// Output of a container: its channel and a piece.
pub type Piece = (u8, Bytes);

/// The ends of one container start that others can hold.
pub struct Io {
    // Sections are short and never wait.
    watchers: Mutex<Vec<mpsc::Sender<Piece>>>,
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
        for piece in bytes.chunks(PIECE_BYTES_MAX) {
            let piece = Bytes::copy_from_slice(piece);
            watchers.retain(|watcher| watcher.try_send((channel, piece.clone())).is_ok());
        }
        self.watched.store(watchers.len(), Ordering::Relaxed);
    }

    /// What is printed from now on. It ends with the container, or earlier if it is not read.
    pub fn watch(&self) -> mpsc::Receiver<Piece> {
        let (watcher, pieces) = mpsc::channel(PIECES_MAX);
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.ended.is_cancelled() {
            watchers.push(watcher);
        }
        self.watched.store(watchers.len(), Ordering::Relaxed);
        pieces
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
        watchers.clear();
        self.watched.store(0, Ordering::Relaxed);
    }
}
