//! ConfigMaps and Secrets that Pods of this node refer to.
//!
//! Asked of the API each time, so that a Pod gets what is there when it starts; many that want the
//! same at the same time share one request. While the control plane is away, what it said last is
//! used: it lies in the checkpoint.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;

use super::{checkpoint::Checkpoint, client::has_code, spec::Source};

/// How long an answer is waited for if an older one is at hand.
const ANSWER_MAX: Duration = Duration::from_millis(800);

/// Content by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Reads objects.
pub struct Objects {
    client: kube::Client,
    checkpoint: Arc<Checkpoint>,
}

impl Objects {
    /// Made once.
    pub fn new(client: kube::Client, checkpoint: Arc<Checkpoint>) -> Objects {
        Objects { client, checkpoint }
    }

    /// Content of a ConfigMap or Secret; `None` if there is none.
    pub async fn get(&self, namespace: &str, source: &Source) -> Result<Option<Data>, String> {
        let old = self.checkpoint.object(namespace, source).await;
        let asked = self.ask(namespace, source);
        let answer = match &old {
            None => asked.await,
            Some(_) => match tokio::time::timeout(ANSWER_MAX, asked).await {
                Ok(answer) => answer,
                Err(_) => return Ok(old),
            },
        };
        match answer {
            Ok(data) => {
                if old.as_ref() != Some(&data) {
                    self.checkpoint.keep_object(namespace, source, Some(&data)).await;
                }
                Ok(Some(data))
            }
            Err(error) if has_code(&error, 404) => {
                if old.is_some() {
                    self.checkpoint.keep_object(namespace, source, None).await;
                }
                Ok(None)
            }
            // The control plane answered: its word counts, not an old copy.
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => match old {
                Some(old) => {
                    tracing::info!(namespace, ?source, %error, "using what was last known");
                    Ok(Some(old))
                }
                None => Err(error.to_string()),
            },
        }
    }

    /// Forgets what no Pod refers to.
    pub async fn sweep(&self, used: Vec<(String, Source)>) {
        let checkpoint = self.checkpoint.clone();
        let swept = tokio::task::spawn_blocking(move || checkpoint.sweep_objects(&used));
        if let Err(panic) = swept.await {
            tracing::error!(%panic, "sweeping the checkpoint failed");
        }
    }

    async fn ask(&self, namespace: &str, source: &Source) -> Result<Data, kube::Error> {
        match source {
            Source::ConfigMap(name) => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                api.get(name).await.map(|map| {
                    let text = map.data.into_iter().flatten();
                    let binary = map.binary_data.into_iter().flatten();
                    text.map(|(key, value)| (key, value.into_bytes()))
                        .chain(binary.map(|(key, value)| (key, value.0)))
                        .collect()
                })
            }
            Source::Secret(name) => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                api.get(name).await.map(|secret| {
                    let data = secret.data.into_iter().flatten();
                    data.map(|(key, value)| (key, value.0)).collect()
                })
            }
        }
    }
}
