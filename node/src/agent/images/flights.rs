//! Work that is under way, by its key: whoever wants the same waits for the same outcome.
//!
//! The work is a task of its own. It ends also when nobody waits for it any more: what it holds, a permit or a child
//! process, would be held for good otherwise. It leaves the map by itself, so whoever comes after it begins anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};

type UnderWay<T> = HashMap<String, Shared<BoxFuture<'static, T>>>;

/// All work of one sort.
pub struct Flights<T: Clone>(Arc<Mutex<UnderWay<T>>>);

impl<T: Clone> Default for Flights<T> {
    fn default() -> Self {
        Flights(Arc::new(Mutex::new(HashMap::new())))
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Waits for the work of this key, which begins now if it is not under way. Who stops waiting
    /// does not stop the work.
    pub async fn join(&self, key: String, make: impl FnOnce() -> BoxFuture<'static, T>) -> T {
        let flight =
            locked(&self.0).entry(key.clone()).or_insert_with(|| self.start(key, make())).clone();
        flight.await
    }

    fn start(&self, key: String, work: BoxFuture<'static, T>) -> Shared<BoxFuture<'static, T>> {
        let flights = self.0.clone();
        let task = tokio::spawn(async move {
            // Made by the task: a runtime that is ending drops it unpolled, while the map is locked.
            let _leaving = Leaving { flights, key };
            work.await
        });
        let outcome = async move {
            match task.await {
                Ok(outcome) => outcome,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is ending, and with it whoever waits.
                    Err(_) => std::future::pending().await,
                },
            }
        };
        outcome.boxed().shared()
    }
}

/// Takes work that has ended, however it did, out of the map.
struct Leaving<T: Clone> {
    flights: Arc<Mutex<UnderWay<T>>>,
    key: String,
}

impl<T: Clone> Drop for Leaving<T> {
    fn drop(&mut self) {
        locked(&self.flights).remove(&self.key);
    }
}

/// Never held across an await.
fn locked<T: Clone>(flights: &Mutex<UnderWay<T>>) -> MutexGuard<'_, UnderWay<T>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_without_whoever_asked() {
        let flights = Flights::<u8>::default();
        let (go, told) = oneshot::channel::<()>();
        let (done, seen) = oneshot::channel::<()>();
        let work = async move {
            told.await.expect("told");
            done.send(()).expect("somebody looks");
            7
        };
        let asked = flights.join("a".to_owned(), || work.boxed());
        let impatient = tokio::time::timeout(Duration::from_millis(10), asked).await;
        assert!(impatient.is_err(), "it has not been told to go on");
        go.send(()).expect("it is still there");
        let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
        seen.expect("it goes on").expect("to its end");
        // Whoever comes after it has ended does not get what was true once.
        while !locked(&flights.0).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(flights.join("a".to_owned(), || async { 8 }.boxed()).await, 8);
    }

    #[tokio::test]
    async fn those_who_want_the_same_get_the_same() {
        let flights = Flights::<u8>::default();
        let first = flights.join("a".to_owned(), || async { 7 }.boxed());
        let second = flights.join("a".to_owned(), || panic!("it is under way"));
        assert_eq!(futures::join!(first, second), (7, 7));
    }
}
