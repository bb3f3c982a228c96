//! The loop's part in logs: which file has which log, and removing those that nobody can ask for.

use std::{collections::BTreeSet, path::Path};

use k8s_openapi::api::core::v1::PodStatus;

use crate::{
    agent::{
        lifecycle::Phase,
        spec::PodSpec,
        status,
        tunnel::{LogQuery, LogRefusal, LogSource},
    },
    beneath, protocol,
};

use super::Pods;

/// How many starts of a container keep their logs: the current one and the one before.
const LOG_STARTS_KEPT: u32 = 2;

impl Pods {
    pub(super) fn forget_old_logs(&mut self, spec: &PodSpec, container: &str, restart: u32) {
        let Some(old) = restart.checked_sub(LOG_STARTS_KEPT) else {
            return;
        };
        let folder = protocol::log_folder(&spec.namespace, &spec.name, &spec.uid);
        let (folder, container) = (self.parts.logs.join(folder), container.to_owned());
        let remove = move || {
            for age in 0..protocol::LOG_FILES_MAX {
                let name = match age {
                    0 => format!("{old}.log"),
                    age => format!("{old}.log.{age}"),
                };
                // The folder is the worker's, whose links lead nowhere. Most starts wrote one file.
                let _ = beneath::remove_file(&folder, &Path::new(&container).join(name));
            }
        };
        self.tasks.spawn(async move {
            let _ = tokio::task::spawn_blocking(remove).await;
        });
    }

    /// Removes the logs of Pods that went away while no agent was there.
    pub(super) fn sweep_logs(&mut self) {
        let known: BTreeSet<String> = self
            .entries
            .values()
            .map(|entry| &entry.desired.spec)
            .map(|spec| protocol::log_folder(&spec.namespace, &spec.name, &spec.uid))
            .chain([protocol::INGRESS_LOGS.to_owned()])
            .collect();
        let root = self.parts.logs.clone();
        self.tasks.spawn(async move {
            let Ok(mut folders) = tokio::fs::read_dir(&root).await else {
                return;
            };
            while let Ok(Some(folder)) = folders.next_entry().await {
                if !known.contains(&*folder.file_name().to_string_lossy()) {
                    let _ = tokio::fs::remove_dir_all(folder.path()).await;
                }
            }
        });
    }

    pub(super) fn answer(&self, query: LogQuery) {
        let answer = self.log_source(&query);
        // Whoever asked may have gone.
        let _ = query.answer.send(answer);
    }

    fn log_source(&self, query: &LogQuery) -> Result<LogSource, LogRefusal> {
        let LogQuery { namespace, pod, container, .. } = query;
        let name = (namespace.clone(), pod.clone());
        let entry = self.names.get(&name).and_then(|uid| self.entries.get(uid));
        let entry = entry.ok_or_else(|| {
            LogRefusal::NotFound(format!("pod \"{pod}\" of namespace {namespace} is not here"))
        })?;
        let spec = &entry.desired.spec;
        let index = spec.container(container).ok_or_else(|| {
            let message = format!("container {container} is not valid for pod {pod}");
            LogRefusal::NotFound(message)
        })?;
        let state = &entry.state.containers[index];
        let last = match state.phase {
            Phase::CrashLoop { .. } => Some(state.restarts),
            _ => state.last.as_ref().and(state.restarts.checked_sub(1)),
        };
        let source = |restart, running| LogSource { uid: spec.uid.clone(), restart, running };
        if query.previous {
            return last.map(|restart| source(restart, false)).ok_or_else(|| {
                LogRefusal::Bad(format!(
                    "previous terminated container \"{container}\" in pod \"{pod}\" not found"
                ))
            });
        }
        match &state.phase {
            Phase::Running { .. } | Phase::Stopping { .. } | Phase::Starting => {
                Ok(source(state.restarts, true))
            }
            Phase::Exited(_) | Phase::Ended(_) => Ok(source(state.restarts, false)),
            _ => last.map(|restart| source(restart, false)).ok_or_else(|| {
                let status = status::status(&entry.state, spec, self.parts.address);
                let reason = waiting_reason(&status, container);
                LogRefusal::Bad(format!(
                    "container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"
                ))
            }),
        }
    }
}

fn waiting_reason(status: &PodStatus, container: &str) -> String {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let all = lists.into_iter().flatten().flatten();
    all.filter(|status| status.name == container)
        .filter_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .next()
        .unwrap_or_else(|| "ContainerCreating".to_owned())
}
