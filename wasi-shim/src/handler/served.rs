//! A call from its caller's side, which may leave before it has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;

use super::{Call, Inner, Spent};
use crate::account::{Meter, Waiting};

/// How a call ended, if its host did not fail: with an instance to be wiped, or with nothing left.
pub(super) type Ended = std::thread::Result<Option<Spent>>;

/// A call until it has ended. Dropped before, it ends at its Pod's expense; when many are dropped at
/// once, their clients being gone, others have their turns between.
pub(super) struct Served {
    handler: Arc<Inner>,
    asker: Arc<Meter>,
    guest: Option<BoxFuture<'static, Ended>>,
    waiting: Waiting,
    call: Arc<Call>,
}

impl Served {
    pub(super) fn new(
        handler: &Arc<Inner>,
        asker: Arc<Meter>,
        guest: BoxFuture<'static, Ended>,
        waiting: Waiting,
        call: Arc<Call>,
    ) -> Served {
        let handler = Arc::clone(handler);
        Served { handler, asker, guest: Some(guest), waiting, call }
    }
}

impl Future for Served {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let guest = self.guest.as_mut().expect("it is not polled after its end");
        let ended = ready!(guest.as_mut().poll(cx));
        self.guest = None;
        self.waiting.let_go();
        Poll::Ready(ended)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(guest) = self.guest.take() else { return };
        let (handler, asker) = (Arc::clone(&self.handler), Arc::clone(&self.asker));
        let fair = handler.pod.engine.fair();
        let end = |handler: &Inner, asker: &Arc<Meter>, guest| {
            handler.pod.meter.charged(&handler.pod.engine, asker, || drop(guest));
        };
        match tokio::runtime::Handle::try_current() {
            // Who has no instance yet has nothing to be wiped, and may be the one for whom others wait.
            Ok(runtime)
                if self.call.progress.has_begun() && fair.lets_others_go_first(&asker.share) =>
            {
                let seat = fair.end();
                self.waiting.let_go();
                runtime.spawn(async move {
                    let _seat = seat.await;
                    end(&handler, &asker, guest);
                });
            }
            _ => end(&handler, &asker, guest),
        }
    }
}
