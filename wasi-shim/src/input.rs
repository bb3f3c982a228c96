//! A guest's standard input, and how it is told to end.
//!
//! WASI has no signals. A guest can learn that it shall end in two ways, and both hang on one
//! [`Term`]: an open standard input ends, or the interface `wherry:pod/lifecycle` says so (see
//! `interfaces.rs`). A guest that uses neither cannot be asked and is simply dropped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};

/// The request to end, as a guest sees it. Cancelled once, never taken back.
pub type Term = CancellationToken;

/// An input that has nothing to read and ends when the guest shall.
pub(crate) struct UntilTerm(pub(crate) Term);

impl IsTerminal for UntilTerm {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for UntilTerm {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        let term = self.0.clone();
        let ended: BoxFuture<'static, ()> = Box::pin(async move { term.cancelled().await });
        Box::new(Silence(std::sync::Mutex::new(ended)))
    }
}

/// Reads nothing until the end. The mutex makes it `Sync`; only its one reader ever locks it.
struct Silence(std::sync::Mutex<BoxFuture<'static, ()>>);

impl AsyncRead for Silence {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        ready!(ended.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }
}
