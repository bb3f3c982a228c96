//! Kubernetes' channels over a WebSocket: a frame is one byte for the channel, and data.
//!
//! | subprotocol | what is special |
//! |---|---|
//! | none, `channel.k8s.io` | no terminal sizes, the end is text |
//! | `v2.…`, `v3.…` | `v3`: terminal sizes |
//! | `v4.…` | the end is a Status |
//! | `v5.…` | channel 255 says that a channel has ended |
//! | with `base64` before `channel` | text frames, the channel is a digit, the data base64 |

use super::command::{Hear, Heard, Tell};
use super::spdy::Gone;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink as _, SinkExt as _, Stream as _, StreamExt as _};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wherry_resources::channels;

/// What a client may send at once; kubectl sends 32 KiB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A client that has gone without a word is found out by writing to it.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);

/// One of the subprotocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub version: u8,
    pub base64: bool,
}

impl Protocol {
    /// The one of a client that names none.
    pub const PLAIN: Protocol = Protocol { version: 1, base64: false };

    pub fn named(name: &str) -> Option<Protocol> {
        let (version, rest) = match name.split_once('.')? {
            (version @ ("v2" | "v3" | "v4" | "v5"), rest) => (version.as_bytes()[1] - b'0', rest),
            _ => (1, name),
        };
        match rest {
            "channel.k8s.io" => Some(Protocol { version, base64: false }),
            "base64.channel.k8s.io" => Some(Protocol { version, base64: true }),
            _ => None,
        }
    }
}

/// Bounds for messages and what waits to be written.
pub fn bounded(socket: WebSocketUpgrade) -> WebSocketUpgrade {
    socket.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX)
}

/// The two halves of a WebSocket that speaks channels.
pub fn channels(socket: WebSocket, protocol: Protocol) -> (Receiver, Sender) {
    let (sink, stream) = socket.split();
    (Receiver { stream, protocol }, Sender { sink, protocol })
}

/// What the client sends.
pub struct Receiver {
    stream: SplitStream<WebSocket>,
    protocol: Protocol,
}

/// What the client gets.
pub struct Sender {
    sink: SplitSink<WebSocket, Message>,
    protocol: Protocol,
}

impl Receiver {
    /// The next channel and its data; None when the client has gone or speaks another language.
    pub async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = self.stream.next().await?.ok()?;
            let mut bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                // Pings are answered by themselves.
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => return None,
            };
            if bytes.is_empty() {
                continue;
            }
            let channel = bytes.split_to(1)[0];
            if !self.protocol.base64 {
                return Some((channel, bytes));
            }
            let channel = channel.checked_sub(b'0').filter(|channel| *channel < 10)?;
            return Some((channel, STANDARD.decode(&bytes).ok()?.into()));
        }
    }
}

impl Sender {
    /// Sends data on a channel; waits for the connection.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        let message = if self.protocol.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            Message::Text(text.into())
        } else {
            let mut frame = BytesMut::with_capacity(1 + bytes.len());
            frame.put_u8(channel);
            frame.put_slice(bytes);
            Message::Binary(frame.freeze())
        };
        self.sink.send(message).await.map_err(|_| Gone)
    }

    /// Writes to find out whether the client is there.
    pub async fn ping(&mut self) -> Result<(), Gone> {
        self.sink.send(Message::Ping(Bytes::new())).await.map_err(|_| Gone)
    }

    /// Says that all was said.
    pub async fn close(&mut self) {
        let normal = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        // A client that has gone needs no farewell.
        let _ = self.sink.send(Message::Close(Some(normal))).await;
    }
}

impl Hear for Receiver {
    async fn hear(&mut self) -> Option<Heard> {
        loop {
            return Some(match self.next().await? {
                (channels::STDIN, bytes) => Heard::Stdin(bytes),
                (channels::RESIZE, bytes) => Heard::Resize(bytes),
                (channels::CLOSE, bytes)
                    if self.protocol.version >= 5 && bytes[..] == [channels::STDIN] =>
                {
                    Heard::StdinEnd
                }
                // A client has nothing to say on the other channels.
                _ => continue,
            });
        }
    }
}

impl Tell for Sender {
    async fn tell(&mut self, channel: u8, bytes: Bytes) -> Result<(), Gone> {
        self.send(channel, &bytes).await
    }

    async fn beat(&mut self) -> Result<(), Gone> {
        self.ping().await
    }

    async fn end(&mut self, status: Bytes) {
        if !status.is_empty() {
            let _ = self.send(channels::STATUS, &status).await;
        }
        self.close().await;
    }
}

/// A WebSocket whose binary messages are the bytes of one connection.
pub struct Tunnel {
    socket: WebSocket,
    /// What is left of the last message.
    left: Bytes,
}

impl Tunnel {
    pub fn new(socket: WebSocket) -> Tunnel {
        Tunnel { socket, left: Bytes::new() }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.left = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let count = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.left.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
        let piece = &bytes[..bytes.len().min(channels::FRAME_BYTES_MAX)];
        let message = Message::Binary(Bytes::copy_from_slice(piece));
        socket.start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subprotocols() {
        let of = |name| Protocol::named(name).map(|it| (it.version, it.base64));
        assert_eq!(of("channel.k8s.io"), Some((1, false)));
        assert_eq!(of("base64.channel.k8s.io"), Some((1, true)));
        assert_eq!(of("v4.channel.k8s.io"), Some((4, false)));
        assert_eq!(of("v5.channel.k8s.io"), Some((5, false)));
        assert_eq!(of("v4.base64.channel.k8s.io"), Some((4, true)));
        for unknown in ["v6.channel.k8s.io", "v1.channel.k8s.io", "x", "v4.", ""] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }
}
