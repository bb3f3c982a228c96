//! Questions to all nodes that are connected to this member, asked once for everybody who looks.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Mutex;

use super::super::ApiServer;
use super::inside;

/// Nodes that are asked; of a larger cluster the answer says that it is of these.
const NODES_MAX: usize = 500;
/// Of them at a time.
const AT_ONCE: usize = 16;
/// A node that is not heard by then is left out, and counted as silent.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Charts step, they do not run.
const KEPT: Duration = Duration::from_secs(5);

/// Of how many nodes an answer is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Those that are connected.
    pub nodes: usize,
    pub asked: usize,
    /// Of these, those that did not answer.
    pub silent: usize,
}

impl Asked {
    /// Puts it into what a browser is told.
    pub fn tell(self, told: &mut Value) {
        told["nodes"] = self.nodes.into();
        told["asked"] = self.asked.into();
        told["silent"] = self.silent.into();
    }
}

/// What the nodes answer to a GET, as far as they do.
pub async fn ask<T: DeserializeOwned + Send>(api: &ApiServer, target: &str) -> (Vec<T>, Asked) {
    let nodes = api.tunnels().nodes();
    let mut asked = Asked { nodes: nodes.len(), ..Asked::default() };
    let questions = nodes.into_iter().take(NODES_MAX).map(|node| {
        let (api, target) = (api.clone(), target.to_owned());
        async move {
            let answer = tokio::time::timeout(ANSWER_MAX, inside::ask(&api, &node, &target)).await;
            serde_json::from_value::<T>(answer.ok()?.ok()?).ok()
        }
    });
    let mut answers = futures::stream::iter(questions).buffer_unordered(AT_ONCE);
    let mut told = Vec::new();
    while let Some(answer) = answers.next().await {
        asked.asked += 1;
        match answer {
            Some(answer) => told.push(answer),
            None => asked.silent += 1,
        }
    }
    (told, asked)
}

/// An answer that is kept for [`KEPT`].
pub struct Once<T> {
    /// Held while the nodes are asked, so that whoever comes meanwhile waits for their answer and
    /// does not ask them as well; bounded by [`ANSWER_MAX`] a round.
    last: Mutex<Option<(Instant, Arc<T>)>>,
}

impl<T> Default for Once<T> {
    fn default() -> Once<T> {
        Once { last: Mutex::new(None) }
    }
}

impl<T> Once<T> {
    /// The answer, asked for if the last one is too old.
    pub async fn get(&self, ask: impl Future<Output = T>) -> Arc<T> {
        let mut last = self.last.lock().await;
        if let Some((at, heard)) = &*last
            && at.elapsed() < KEPT
        {
            return heard.clone();
        }
        let heard = Arc::new(ask.await);
        *last = Some((Instant::now(), heard.clone()));
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_answer_is_for_all_who_ask_meanwhile() {
        let once = Once::default();
        assert_eq!(*once.get(async { 1 }).await, 1);
        let other = once.get(async { unreachable!("it is kept") }).await;
        assert_eq!(*other, 1);
        let old = Instant::now().checked_sub(KEPT).expect("the machine runs for longer");
        *once.last.lock().await = Some((old, Arc::new(1)));
        assert_eq!(*once.get(async { 2 }).await, 2);
    }
}
