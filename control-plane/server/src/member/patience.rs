//! A connection that nobody waits for without end: for a client that has shaken hands and then says
//! nothing, and for one that takes nothing more of what it asked for. Nor do others wait for long
//! while one is sent much: what is written is encrypted on the way, and a socket takes megabytes.
//!
//! What comes later has limits of its own: hyper bounds the heads of HTTP/1.1 and asks HTTP/2
//! clients whether they are still there, but only once it knows which of the two is spoken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;
use tokio::time::Sleep;

/// With what HTTP/2 begins; whatever differs from it is HTTP/1.1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// So much is written before everything else runs that can: some 100 µs of encrypting.
const AT_ONCE_MAX: usize = 64 * 1024;

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until it is known which HTTP the client speaks.
    pub first: Duration,
    /// While nothing can be written.
    pub stalled: Duration,
}

/// The connection.
pub struct Patient<T> {
    io: T,
    stalled_max: Duration,
    /// Runs until it is known which HTTP the client speaks.
    first: Option<Pin<Box<Sleep>>>,
    /// How much of the preface has come.
    preface: usize,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
    /// How much was written since others could run.
    at_once: usize,
}

impl<T> Patient<T> {
    /// Begins to wait for what the client says first.
    pub fn new(io: T, limits: Limits) -> Patient<T> {
        let first = Some(Box::pin(tokio::time::sleep(limits.first)));
        Patient { io, stalled_max: limits.stalled, first, preface: 0, stalled: None, at_once: 0 }
    }

    /// Looks at what the client says first.
    fn hear(&mut self, said: &[u8]) {
        let rest = &PREFACE[self.preface..];
        let known = said.len().min(rest.len());
        let goes_on = known > 0 && known < rest.len() && said[..known] == rest[..known];
        match goes_on {
            true => self.preface += known,
            false => self.first = None,
        }
    }

    /// Whether others are to run first; then this one is woken behind them.
    fn yields(&mut self, context: &mut Context<'_>) -> bool {
        if self.at_once < AT_ONCE_MAX {
            return false;
        }
        self.at_once = 0;
        std::pin::pin!(yield_now()).poll(context).is_pending()
    }

    /// Counts what was written.
    fn counted(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.at_once = match &written {
            Poll::Ready(Ok(bytes)) => self.at_once.saturating_add(*bytes),
            // It waits for its client, and others run.
            Poll::Pending | Poll::Ready(Err(_)) => 0,
        };
        written
    }

    /// What writing came to, if it was not kept waiting for too long.
    fn written<V>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<V>>,
    ) -> Poll<io::Result<V>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let most = self.stalled_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(late("takes nothing of what it is sent"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the client {what}"))
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        let Some(first) = &mut this.first else {
            return read;
        };
        if read.is_pending() {
            return match first.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(late("says nothing"))),
                Poll::Pending => Poll::Pending,
            };
        }
        this.hear(&buffer.filled()[before..]);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.yields(context) {
            return Poll::Pending;
        }
        let bytes = &bytes[..bytes.len().min(AT_ONCE_MAX)];
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        let written = this.counted(written);
        this.written(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.yields(context) {
            return Poll::Pending;
        }
        // TLS takes no more of them than that either.
        let written = Pin::new(&mut this.io).poll_write_vectored(context, parts);
        let written = this.counted(written);
        this.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(context);
        this.written(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = Pin::new(&mut this.io).poll_shutdown(context);
        this.written(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn who_begins_and_says_no_more_is_left() {
        for said in [&PREFACE[..0], &PREFACE[..5]] {
            let (mut client, server) = duplex(64);
            let mut server = Patient::new(server, Limits { first: SHORT, stalled: LONG });
            client.write_all(said).await.expect("there is room");
            let mut heard = Vec::new();
            let error = server.read_to_end(&mut heard).await.expect_err("it is cut off");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(heard, said);
        }
    }

    #[tokio::test]
    async fn who_speaks_http_is_known() {
        let cases: [(&[u8], bool); 5] = [
            (b"GET / HTTP/1.1\r\n", true),
            (b"P", false),
            (b"PO", true),
            (&PREFACE[..23], false),
            (PREFACE, true),
        ];
        for (said, expected) in cases {
            let (mut client, server) = duplex(64);
            let mut server = Patient::new(server, Limits { first: LONG, stalled: LONG });
            for byte in said {
                client.write_u8(*byte).await.expect("there is room");
                assert_eq!(server.read_u8().await.expect("it was sent"), *byte);
            }
            assert_eq!(server.first.is_none(), expected, "{said:?}");
        }
    }

    #[tokio::test]
    async fn who_is_sent_much_lets_others_run() {
        let (mut client, server) = duplex(4 * AT_ONCE_MAX);
        let mut server = Patient::new(server, Limits { first: LONG, stalled: LONG });
        let much = vec![7; 3 * AT_ONCE_MAX];
        let mut sent = Box::pin(server.write_all(&much));
        // There is room for all of it, but it is not written at once.
        assert!(futures::poll!(sent.as_mut()).is_pending());
        sent.await.expect("it is woken");
        let mut taken = vec![0; much.len()];
        client.read_exact(&mut taken).await.expect("all of it was sent");
        assert_eq!(taken, much);
    }

    #[tokio::test]
    async fn who_takes_nothing_is_left() {
        let (_client, server) = duplex(4);
        let mut server = Patient::new(server, Limits { first: LONG, stalled: SHORT });
        let error = server.write_all(&[0; 16]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
