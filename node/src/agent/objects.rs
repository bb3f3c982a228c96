//! ConfigMaps and Secrets that Pods of this node refer to.
//!
//! Asked of the API each time, so that a Pod gets what is there when it starts. While the control
//! plane is away, what it said last is used: it lies in the checkpoint.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    away::Away,
    checkpoint::{Asked, Checkpoint},
    client::has_code,
    spec::Source,
};

/// Content by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Reads objects.
pub struct Objects {
    client: kube::Client,
    checkpoint: Arc<Checkpoint>,
    away: Arc<Away>,
}

impl Objects {
    /// Made once.
    pub fn new(client: kube::Client, checkpoint: Arc<Checkpoint>, away: Arc<Away>) -> Objects {
        Objects { client, checkpoint, away }
    }

    /// Content of a ConfigMap or Secret; `None` if there is none.
    pub async fn get(&self, namespace: &str, source: &Source) -> Result<Option<Data>, String> {
        let old = self.checkpoint.object(namespace, source).await;
        match self.away.ask(old.clone(), self.ask(namespace, source)).await {
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
            Err(error) => Err(error.to_string()),
        }
    }

    /// Something else that the control plane says, kept under a key of a kind for when it is away.
    pub async fn kept<T: Clone + PartialEq + Serialize + DeserializeOwned>(
        &self,
        (kind, key): (Asked, &str),
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, String> {
        let old: Option<T> = self.checkpoint.answer(kind, key).await;
        let answer = self.away.ask(old.clone(), asked).await.map_err(|error| error.to_string())?;
        if old.as_ref() != Some(&answer) {
            self.checkpoint.keep_answer(kind, key, &answer).await;
        }
        Ok(answer)
    }

    /// Forgets what no Pod refers to. Nothing is kept meanwhile for a Pod that is not among those:
    /// they are small files, and whoever knows the Pods waits for it.
    pub fn sweep(&self, used: &[(String, Source)], claims: &[String]) {
        self.checkpoint.sweep_objects(used);
        self.checkpoint.sweep(Asked::Claims, claims);
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
