//! Where a guest's stdout and stderr go: straight into a function of the embedder, nothing is
//! buffered here. The function must not block; it drops what it cannot take (rate limits and files
//! are the worker's business). Where nothing may be lost, a [`Room`] makes the guest wait instead.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Takes what a guest prints, in order, in pieces that need not be lines. Must not block.
pub type Output = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Forgets everything.
pub fn no_output() -> Output {
    Arc::new(|_| {})
}

/// What one write may hand over; the guest's own buffer is copied before the call.
pub(crate) const WRITE_BYTES_MAX: usize = 64 << 10;
/// What all streams of a guest may have printed beyond their room: each is told what is free, and
/// several may then make use of it. Only a guest that does not ask prints more.
const OWED_BYTES_MAX: usize = 4 * WRITE_BYTES_MAX;

/// How many bytes a guest may print ahead of whoever reads them, on all its streams together.
#[derive(Clone)]
pub struct Room {
    free: Arc<Semaphore>,
    /// What was printed without room for it: paid by what is read, before anything is free again.
    owed: Arc<AtomicUsize>,
}

impl Room {
    /// Room for so many bytes. A few more writes of at most 64 KiB can be on their way beyond them.
    pub fn new(bytes: usize) -> Room {
        Room { free: Arc::new(Semaphore::new(bytes)), owed: Arc::default() }
    }

    /// Takes room for what the embedder adds to the guest's output; waits until there is any.
    pub async fn acquire(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Closed: nobody reads it.
        if let Ok(taken) = self.free.acquire_many(bytes).await {
            taken.forget();
        }
    }

    /// So many bytes have been read.
    pub fn give_back(&self, bytes: usize) {
        let pay = |owed: usize| Some(owed.saturating_sub(bytes));
        let owed = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        let owed = owed.expect("the update always has a value");
        self.free.add_permits(bytes.saturating_sub(owed));
    }

    /// Nobody reads any more: what the guest prints from now on fails.
    pub fn close(&self) {
        self.free.close();
    }

    /// Takes up to `bytes` of what is free; says how much.
    fn take(&self, bytes: usize) -> usize {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let free = || u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
        // Another stream of the guest may take at the same time.
        let mut wanted = bytes.min(free());
        while wanted > 0 {
            match self.free.try_acquire_many(wanted) {
                Ok(taken) => {
                    taken.forget();
                    return wanted as usize;
                }
                Err(_) => wanted = bytes.min(free()).min(wanted - 1),
            }
        }
        0
    }

    /// Takes `bytes`, more than is free if need be; says whether that is still tolerable.
    fn take_all(&self, bytes: usize) -> bool {
        let taken = self.take(bytes);
        let missing = bytes - taken;
        let owe = |owed: usize| owed.checked_add(missing).filter(|sum| *sum <= OWED_BYTES_MAX);
        let owed = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owe);
        if owed.is_err() {
            self.free.add_permits(taken);
        }
        owed.is_ok()
    }
}

/// An [`Output`] as wasmtime's streams want it. All streams of a guest share the one function, so
/// that several handles to stdout write to the same place.
#[derive(Clone)]
pub(crate) struct OutputPipe {
    output: Output,
    room: Option<(Room, PollSemaphore)>,
    terminal: bool,
}

impl OutputPipe {
    pub(crate) fn new(output: Output, room: Option<Room>, terminal: bool) -> OutputPipe {
        let room = room.map(|room| (room.clone(), PollSemaphore::new(room.free)));
        OutputPipe { output, room, terminal }
    }
}

impl IsTerminal for OutputPipe {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for OutputPipe {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for OutputPipe {
    async fn ready(&mut self) {
        if let Some((room, _)) = &self.room {
            // Closed is ready as well: the write then says so.
            let _ = room.free.acquire().await;
        }
    }
}

impl OutputStream for OutputPipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if let Some((room, _)) = &self.room {
            if room.free.is_closed() {
                return Err(StreamError::Closed);
            }
            if !room.take_all(bytes.len()) {
                return Err(StreamError::trap("more was printed than was permitted"));
            }
        }
        (self.output)(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match &self.room {
            None => Ok(WRITE_BYTES_MAX),
            Some((room, _)) if room.free.is_closed() => Err(StreamError::Closed),
            Some((room, _)) => Ok(room.free.available_permits().min(WRITE_BYTES_MAX)),
        }
    }
}

impl AsyncWrite for OutputPipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut count = bytes.len();
        if let Some((room, poll)) = &mut self.room
            && count > 0
        {
            let Some(first) = ready!(poll.poll_acquire(cx)) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            first.forget();
            count = 1 + room.take(count.min(WRITE_BYTES_MAX) - 1);
        }
        (self.output)(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use std::sync::Mutex;
    use tokio::io::AsyncWriteExt as _;

    fn pipe(bytes: usize) -> (OutputPipe, Room, Arc<Mutex<Vec<u8>>>) {
        let printed = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&printed);
        let output: Output =
            Arc::new(move |bytes| kept.lock().expect("no panic").extend_from_slice(bytes));
        let room = Room::new(bytes);
        (OutputPipe::new(output, Some(room.clone()), false), room, printed)
    }

    #[tokio::test]
    async fn a_guest_waits_until_its_output_is_read() {
        let (mut pipe, room, printed) = pipe(4);
        assert_eq!(pipe.check_write().expect("open"), 4);
        OutputStream::write(&mut pipe, Bytes::from_static(b"abcd")).expect("open");
        assert_eq!(pipe.check_write().expect("open"), 0);
        assert!(pipe.ready().now_or_never().is_none());
        room.give_back(2);
        pipe.ready().await;
        assert_eq!(pipe.check_write().expect("open"), 2);
        assert_eq!(pipe.write_all(b"efg").now_or_never().map(|done| done.is_ok()), None);
        assert_eq!(*printed.lock().expect("no panic"), b"abcdef");
    }

    /// Several streams may have been told of the same room; one that does not ask gets no more.
    #[tokio::test]
    async fn what_is_printed_beyond_the_room_is_paid_first() {
        let (mut pipe, room, _) = pipe(4);
        OutputStream::write(&mut pipe, Bytes::from_static(b"abcdefg")).expect("tolerable");
        room.give_back(5);
        assert_eq!(pipe.check_write().expect("open"), 2);
        room.give_back(2);
        assert_eq!(pipe.check_write().expect("open"), 4);
        let piece = Bytes::from(vec![b'a'; WRITE_BYTES_MAX]);
        let mut taken = 0;
        while OutputStream::write(&mut pipe, piece.clone()).is_ok() {
            taken += piece.len();
            assert!(taken <= 4 + OWED_BYTES_MAX, "it prints without end");
        }
        let nothing = tokio::io::AsyncWriteExt::write(&mut pipe, b"").now_or_never();
        assert!(nothing.is_some(), "nothing needs no room");
    }

    #[tokio::test]
    async fn nobody_who_reads_is_a_closed_stream() {
        let (mut pipe, room, printed) = pipe(4);
        room.close();
        pipe.ready().await;
        assert!(matches!(pipe.check_write(), Err(StreamError::Closed)));
        assert!(matches!(
            OutputStream::write(&mut pipe, Bytes::from_static(b"a")),
            Err(StreamError::Closed)
        ));
        let failed = pipe.write_all(b"a").await.expect_err("closed");
        assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
        assert!(printed.lock().expect("no panic").is_empty());
    }
}
