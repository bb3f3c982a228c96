//! The loop's part in what is left of Pods: their volumes go when nothing of them runs any more.
//!
//! Also where the object stays, as that of an evicted Pod: the room is needed. Its logs stay with it.

use std::sync::Arc;

use crate::agent::{
    spec::{Content, Source},
    volumes::Volumes,
};

use super::{Pods, env_sources};

impl Pods {
    /// Removes the volumes of a Pod.
    pub(super) fn unmount(&mut self, uid: &str) {
        self.tasks.spawn(Arc::clone(&self.parts.volumes).remove(uid.to_owned()));
    }

    /// A preparer was heard. If its Pod has ended meanwhile, or is gone, nobody else removes what it made.
    pub(super) fn unmount_late(&mut self, uid: &str) {
        if self.entries.get(uid).is_none_or(|entry| !entry.state.needs_worker()) {
            self.unmount(uid);
        }
    }

    /// Removes what is left of Pods that ended or went away while no agent was there.
    pub(super) fn sweep_volumes(&mut self) {
        let lives = self.entries.iter().filter(|(_, entry)| entry.state.needs_worker());
        let known = lives.map(|(uid, _)| uid.clone()).collect();
        // Listed here, once for each agent: nobody whose folders these are can come meanwhile. What
        // is kept of objects is forgotten here, too, as it may be kept again for who comes.
        let left = self.parts.volumes.left(&known);
        let mut used: Vec<(String, Source)> = Vec::new();
        let mut claims = Vec::new();
        for entry in self.entries.values() {
            let spec = &entry.desired.spec;
            let of_env = spec.containers.iter().flat_map(env_sources);
            let files = spec.volumes.iter().filter_map(|volume| match &volume.content {
                Content::Files(files) => Some(files),
                _ => None,
            });
            let of_files = files.flat_map(|files| files.sources().cloned());
            used.extend(of_env.chain(of_files).map(|source| (spec.namespace.clone(), source)));
            claims.extend(spec.volumes.iter().filter_map(|volume| match &volume.content {
                Content::Claim { name, .. } => Some(format!("{}/{name}", spec.namespace)),
                _ => None,
            }));
        }
        self.parts.volumes.forget(&used, &claims);
        self.tasks.spawn(Volumes::sweep(left));
    }
}
