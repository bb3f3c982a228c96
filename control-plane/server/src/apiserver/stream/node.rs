//! A stream through a node's tunnel: bytes to the agent, bytes back.

use crate::apiserver::{ApiServer, errors::ApiError, tunnel::StreamCount};
use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use http_body_util::{BodyExt as _, BodyStream, Limited};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;

/// Pieces that wait for the tunnel.
const PIECES_MAX: usize = 4;
/// An agent's refusal is one sentence.
const REFUSAL_BYTES_MAX: usize = 4096;

/// An open stream. Dropped, it ends at the node as well.
pub struct NodeStream {
    /// To the node; dropped, this direction ends.
    pub up: mpsc::Sender<Bytes>,
    /// From the node.
    down: Incoming,
    /// Of the user; it goes with `down`.
    count: Option<StreamCount>,
}

/// Why the node did not open a stream.
#[derive(Debug)]
pub enum Refused {
    /// What is asked for is not there, or does not run.
    NotFound(String),
    /// As many are open as may be.
    Busy(String),
    /// The node cannot be asked.
    Away(String),
}

impl NodeStream {
    /// Opens one to a node; `target` is path and query at its agent. `count` is of the user for whom
    /// it is, if it is for one.
    pub async fn open(
        api: &ApiServer,
        node: &str,
        target: &str,
        count: Option<StreamCount>,
    ) -> Result<Self, Refused> {
        let (up, pieces) = mpsc::channel::<Bytes>(PIECES_MAX);
        let body = Body::from_stream(ReceiverStream::new(pieces).map(Ok::<_, Infallible>));
        let answer = api.tunnels().open(node, target, body).await;
        let answer = answer.map_err(|error| Refused::Away(error.to_string()))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(NodeStream { up, down: answer.into_body(), count });
        }
        let text = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim().to_owned());
        let text = text.unwrap_or_default();
        // Whatever else an agent may answer is not shown to clients, least of all a redirect.
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Refused::NotFound(text),
            StatusCode::TOO_MANY_REQUESTS => Refused::Busy(text),
            StatusCode::SERVICE_UNAVAILABLE => Refused::Away(text),
            code => Refused::Away(format!("node {node:?} answered {}", code.as_u16())),
        })
    }

    /// The two directions: a sender, and what can be read.
    pub fn split(self) -> (mpsc::Sender<Bytes>, impl AsyncRead + Unpin + Send) {
        (self.up, reader(self.down, self.count))
    }

    /// As one connection; shutting its writing down ends that direction only.
    pub fn into_io(self) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let sink = PollSender::new(self.up).sink_map_err(gone);
        let down = reader(self.down, self.count);
        tokio::io::join(down, SinkWriter::new(CopyToBytes::new(sink)))
    }
}

fn reader(body: Incoming, count: Option<StreamCount>) -> impl AsyncRead + Unpin + Send + 'static {
    let frames = BodyStream::new(body).inspect(move |_| _ = &count);
    let pieces = frames.try_filter_map(|frame| async { Ok(frame.into_data().ok()) });
    StreamReader::new(Box::pin(pieces.map_err(io::Error::other)))
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::NotFound(message) => ApiError::Relayed {
                code: StatusCode::NOT_FOUND,
                reason: "NotFound".to_owned(),
                message,
                details: None,
            },
            Refused::Busy(message) => {
                ApiError::TooManyRequests { message, causes: Vec::new(), retry_after_seconds: 1 }
            }
            Refused::Away(message) => ApiError::Unavailable(message),
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::NotFound(why) | Refused::Busy(why) | Refused::Away(why) => f.write_str(why),
        }
    }
}
