//! Connections whose client must begin to speak in time, and go on listening.
//!
//! Which version of HTTP a client speaks is decided by its first bytes, and hyper waits for these as
//! long as they take: its limits begin with the version. So a client that says nothing, or only a
//! part of HTTP/2's preface, would keep its place for ever. So would one that asks for much and reads
//! nothing of it: for writing hyper has no limits at all.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that fails if its client does not begin in time, or later takes nothing for too long.
pub struct Opening<S> {
    stream: S,
    /// Bytes of the preface that have come.
    seen: usize,
    /// Until the version is known.
    silent: Option<Pin<Box<Sleep>>>,
    /// How long the client may take nothing, if that is bounded.
    patience: Option<Duration>,
    /// Since it takes nothing.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    /// From now on.
    pub fn new(stream: S, silence_max: Duration) -> Opening<S> {
        let silent = Some(Box::pin(tokio::time::sleep(silence_max)));
        Opening { stream, seen: 0, silent, patience: None, stuck: None }
    }

    /// Fails also if the client does not take on for so long what is written.
    pub fn read_within(mut self, patience: Duration) -> Opening<S> {
        self.patience = Some(patience);
        self
    }

    /// Takes note of whether the client took what was written.
    fn taken<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(patience) = self.patience.filter(|_| written.is_pending()) else {
            self.stuck = None;
            return written;
        };
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stuck.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Takes note of what has come; nothing is the end.
    fn note(&mut self, new: &[u8]) {
        let expected = &PREFACE[self.seen..];
        let is_part = !new.is_empty() && new.len() < expected.len() && expected.starts_with(new);
        match is_part {
            true => self.seen += new.len(),
            false => self.silent = None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some(silent) = &mut this.silent else { return polled };
        match polled {
            Poll::Ready(Ok(())) => this.note(&buffer.filled()[before..]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending if silent.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.taken(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // Where nothing is left to be flushed, a writer may still be stuck.
        if flushed.is_pending() { self.taken(cx, flushed) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    /// What becomes of a connection whose client says this and then nothing: `closed`, or `open`.
    async fn after(said: &[u8]) -> &'static str {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Opening::new(server, SHORT);
        client.write_all(said).await.expect("there is room");
        let mut heard = vec![0; said.len()];
        server.read_exact(&mut heard).await.expect("it was said");
        assert_eq!(heard, said);
        match tokio::time::timeout(SHORT * 10, server.read_u8()).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => "closed",
            Ok(other) => panic!("nothing more was said: {other:?}"),
            Err(_) => "open",
        }
    }

    #[tokio::test]
    async fn who_says_nothing_of_use_is_closed() {
        assert_eq!(after(b"").await, "closed");
        assert_eq!(after(b"PRI * HTT").await, "closed");
        assert_eq!(after(b"G").await, "open", "HTTP/1 has limits of its own");
        assert_eq!(after(b"PRIVATE").await, "open");
        assert_eq!(after(PREFACE).await, "open", "so has HTTP/2");
        assert_eq!(after(&[PREFACE, b"more"].concat()).await, "open");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_closed() {
        let (_client, server) = tokio::io::duplex(64);
        let mut server = Opening::new(server, SHORT).read_within(SHORT);
        server.write_all(&[7; 64]).await.expect("there is room");
        let error = server.write_all(&[7; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Who reads on is waited for.
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Opening::new(server, SHORT).read_within(Duration::from_secs(60));
        let writing = async { server.write_all(&[7; 640]).await.expect("it is read") };
        let mut heard = [0; 640];
        let (_, read) = tokio::join!(writing, client.read_exact(&mut heard));
        read.expect("it was written");
        // Without a bound nobody is.
        let (_client, server) = tokio::io::duplex(64);
        let mut server = Opening::new(server, SHORT);
        let writing = tokio::time::timeout(SHORT * 2, server.write_all(&[7; 65]));
        assert!(writing.await.is_err(), "it waits");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_no_error() {
        let (client, server) = tokio::io::duplex(64);
        drop(client);
        let mut server = Opening::new(server, SHORT);
        assert_eq!(server.read(&mut [0; 8]).await.expect("the end"), 0);
    }
}
