//! Whether the control plane is away, so that nobody waits for what somebody else has just waited
//! for in vain.
//!
//! A start needs a handful of answers: an image's digest, ConfigMaps, Secrets, claims. Each may be
//! at hand from before. While the control plane is away, waiting for each in turn would make a Pod
//! that has died wait for seconds; so the first silence speaks for all, for a while.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long an answer is waited for where an older one is at hand.
pub const ANSWER_MAX: Duration = Duration::from_millis(800);
/// For how long one silence speaks for all.
const TRUSTED: Duration = Duration::from_secs(5);

/// Shared by all who ask. Locked for a copy only.
#[derive(Debug, Default)]
pub struct Away(Mutex<Option<Instant>>);

impl Away {
    fn silent_since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody has answered.
    pub fn note_silence(&self) {
        *self.silent_since() = Some(Instant::now());
    }

    /// Somebody has.
    pub fn note_answer(&self) {
        *self.silent_since() = None;
    }

    /// Whether there was silence a moment ago, and no answer since.
    pub fn is_likely(&self) -> bool {
        self.silent_since().is_some_and(|since| since.elapsed() < TRUSTED)
    }

    /// Asks the control plane, and waits as long as it takes unless something is `known`. Returns
    /// that when nobody answers; an answer is returned whatever it is.
    pub async fn ask<T>(
        &self,
        known: Option<T>,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        let Some(known) = known else {
            let answer = asked.await;
            self.note(&answer);
            return answer;
        };
        if self.is_likely() {
            return Ok(known);
        }
        let Ok(answer) = tokio::time::timeout(ANSWER_MAX, asked).await else {
            self.note_silence();
            return Ok(known);
        };
        self.note(&answer);
        match answer {
            Ok(_) | Err(kube::Error::Api(_)) => answer,
            Err(error) => {
                tracing::info!(%error, "no server answers; using what was last known");
                Ok(known)
            }
        }
    }

    fn note<T>(&self, answer: &Result<T, kube::Error>) {
        match answer {
            Ok(_) | Err(kube::Error::Api(_)) => self.note_answer(),
            Err(_) => self.note_silence(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> Result<u8, kube::Error> {
        Err(kube::Error::Service("nobody".into()))
    }

    #[tokio::test]
    async fn the_first_silence_speaks_for_all() {
        let away = Away::default();
        let never = || std::future::pending::<Result<u8, kube::Error>>();
        let begun = Instant::now();
        assert_eq!(away.ask(Some(7), never()).await.expect("known"), 7);
        assert!(begun.elapsed() >= ANSWER_MAX);
        // Who would wait again would wait for ever.
        assert!(away.is_likely());
        assert_eq!(away.ask(Some(8), never()).await.expect("known"), 8);
        // An answer that somebody gets who has nothing at hand ends it.
        assert_eq!(away.ask(None, async { Ok(1) }).await.expect("answered"), 1);
        assert!(!away.is_likely());
        assert_eq!(away.ask(Some(9), async { Ok(2) }).await.expect("answered"), 2);
        assert_eq!(away.ask(Some(9), async { unreachable() }).await.expect("known"), 9);
        assert!(away.is_likely());
        assert!(away.ask(None, async { unreachable() }).await.is_err());
    }
}
