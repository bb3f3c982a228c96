//! Volumes of a Pod and mounts of a container, read from the API.

use std::{collections::BTreeSet, path::PathBuf};

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use super::{EnvValue, PullPolicy, Source, bytes};

/// Mode of files that name none.
const MODE_DEFAULT: i32 = 0o644;
/// Life of a token that names none, and the shortest one.
const TOKEN_SECONDS: (i64, i64) = (3600, 600);

/// A volume of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub content: Content,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory that lives as long as the Pod.
    EmptyDir {
        /// `medium: Memory`
        memory: bool,
        /// `sizeLimit`
        limit: Option<u64>,
    },
    /// Files that the agent writes.
    Files(Files),
    /// A path of the host.
    HostPath {
        /// As written.
        path: PathBuf,
        /// `Directory`, `DirectoryOrCreate` and so on, empty for none.
        kind: String,
    },
    /// A PersistentVolumeClaim.
    Claim {
        /// Its name.
        name: String,
        /// `readOnly`
        read_only: bool,
    },
    /// The file of an image.
    Image {
        /// Its reference.
        reference: String,
        /// `pullPolicy`
        pull: PullPolicy,
    },
    /// Something that this node cannot mount; containers that use it do not start.
    Unsupported(String),
}

/// A volume of files, kept up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `defaultMode`
    pub mode: i32,
    /// Later ones win.
    pub parts: Vec<Part>,
}

/// One source of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A ConfigMap or Secret.
    Object {
        /// Which.
        source: Source,
        /// Which keys go where; all of them under their own names if empty.
        items: Vec<Item>,
        /// Whether object and keys may be absent.
        optional: bool,
    },
    /// Fields of the Pod.
    Fields(Vec<FieldItem>),
    /// A token of the Pod's ServiceAccount.
    Token(TokenItem),
}

/// One key of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: String,
    /// The file, relative.
    pub path: String,
    /// Its mode.
    pub mode: Option<i32>,
}

/// One field of the Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldItem {
    /// The file, relative.
    pub path: String,
    /// Its mode.
    pub mode: Option<i32>,
    /// What it holds.
    pub value: EnvValue,
}

/// A token of the Pod's ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenItem {
    /// The file, relative.
    pub path: String,
    /// Whom it is for; the API server itself if absent.
    pub audience: Option<String>,
    /// How long it is valid.
    pub seconds: i64,
}

/// What a container sees of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Where.
    pub path: String,
    /// `subPath`, or `subPathExpr` with references to the environment.
    pub sub: Option<Sub>,
    /// `readOnly`
    pub read_only: bool,
}

/// A path within a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sub {
    /// As written.
    Path(String),
    /// With `$(NAME)`.
    Expression(String),
}

impl Files {
    /// The ConfigMaps and Secrets that it is made of.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.parts.iter().filter_map(|part| match part {
            Part::Object { source, .. } => Some(source),
            Part::Fields(_) | Part::Token(_) => None,
        })
    }

    /// Whether it must never touch a disk.
    pub fn is_secret(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Object { source, .. } => matches!(source, Source::Secret(_)),
            Part::Token(_) => true,
            Part::Fields(_) => false,
        })
    }

    /// Whether it shows annotations of the Pod.
    pub fn shows_annotations(&self) -> bool {
        let shows = |item: &FieldItem| matches!(&item.value, EnvValue::Field(path) if path.starts_with("metadata.annot"));
        let fields = |part: &Part| matches!(part, Part::Fields(items) if items.iter().any(shows));
        self.parts.iter().any(fields)
    }
}

/// The volumes of a Pod that some container mounts; the others cost nothing.
pub fn volumes(pod: &str, volumes: Vec<core::Volume>, mounted: &BTreeSet<String>) -> Vec<Volume> {
    let used = volumes.into_iter().filter(|volume| mounted.contains(&volume.name));
    let read =
        |volume: core::Volume| Volume { name: volume.name.clone(), content: content(pod, volume) };
    used.map(read).collect()
}

fn content(pod: &str, volume: core::Volume) -> Content {
    let one = |mode: Option<i32>, part: Part| {
        Content::Files(Files { mode: mode.unwrap_or(MODE_DEFAULT), parts: vec![part] })
    };
    if let Some(dir) = volume.empty_dir {
        let memory = dir.medium.as_deref() == Some("Memory");
        let limit = dir.size_limit.as_ref().and_then(bytes).filter(|limit| *limit > 0);
        return Content::EmptyDir { memory, limit };
    }
    if let Some(map) = volume.config_map {
        return one(map.default_mode, object(Source::ConfigMap(map.name), map.items, map.optional));
    }
    if let Some(secret) = volume.secret {
        let source = Source::Secret(secret.secret_name.unwrap_or_default());
        return one(secret.default_mode, object(source, secret.items, secret.optional));
    }
    if let Some(fields) = volume.downward_api {
        return one(fields.default_mode, self::fields(fields.items));
    }
    if let Some(projected) = volume.projected {
        return self::projected(projected);
    }
    if let Some(host) = volume.host_path {
        let kind = host.type_.unwrap_or_default();
        return Content::HostPath { path: PathBuf::from(host.path), kind };
    }
    if let Some(claim) = volume.persistent_volume_claim {
        let read_only = claim.read_only.unwrap_or(false);
        return Content::Claim { name: claim.claim_name, read_only };
    }
    if volume.ephemeral.is_some() {
        // Made by a controller, with the Pod's and the volume's name.
        let name = format!("{pod}-{}", volume.name);
        return Content::Claim { name, read_only: false };
    }
    if let Some(image) = volume.image {
        let reference = image.reference.unwrap_or_default();
        let pull = super::pull_policy(image.pull_policy.as_deref(), &reference);
        return Content::Image { reference, pull };
    }
    if let Some(csi) = volume.csi {
        return Content::Unsupported(no_csi_driver(&csi.driver));
    }
    let why = "it is of a type that Wherry cannot mount; use emptyDir, configMap, secret, \
               projected, downwardAPI, hostPath, image or a persistentVolumeClaim";
    Content::Unsupported(why.to_owned())
}

/// Why a volume of a CSI driver cannot be mounted.
pub fn no_csi_driver(driver: &str) -> String {
    format!(
        "kubernetes.io/csi: driver name {driver} not found in the list of registered CSI drivers; \
         nodes run none, so use a persistentVolumeClaim of the class local, or of a \
         PersistentVolume of type nfs, local or hostPath"
    )
}

fn projected(projected: core::ProjectedVolumeSource) -> Content {
    let mut parts = Vec::new();
    for source in projected.sources.into_iter().flatten() {
        if let Some(map) = source.config_map {
            parts.push(object(Source::ConfigMap(map.name), map.items, map.optional));
        } else if let Some(secret) = source.secret {
            parts.push(object(Source::Secret(secret.name), secret.items, secret.optional));
        } else if let Some(fields) = source.downward_api {
            parts.push(self::fields(fields.items));
        } else if let Some(token) = source.service_account_token {
            let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS.0);
            parts.push(Part::Token(TokenItem {
                path: token.path,
                audience: token.audience.filter(|audience| !audience.is_empty()),
                seconds: seconds.max(TOKEN_SECONDS.1),
            }));
        } else {
            let what = "clusterTrustBundle and podCertificate sources are not supported";
            return Content::Unsupported(what.to_owned());
        }
    }
    Content::Files(Files { mode: projected.default_mode.unwrap_or(MODE_DEFAULT), parts })
}

fn object(source: Source, items: Option<Vec<core::KeyToPath>>, optional: Option<bool>) -> Part {
    let items = items.into_iter().flatten();
    let items = items.map(|item| Item { key: item.key, path: item.path, mode: item.mode });
    Part::Object { source, items: items.collect(), optional: optional.unwrap_or(false) }
}

fn fields(items: Option<Vec<core::DownwardAPIVolumeFile>>) -> Part {
    let items = items.into_iter().flatten().map(|item| FieldItem {
        path: item.path,
        mode: item.mode,
        value: match (item.field_ref, item.resource_field_ref) {
            (Some(field), _) => EnvValue::Field(field.field_path),
            (None, Some(resource)) => super::resource_value(resource),
            (None, None) => EnvValue::Unknown("an item names neither a field nor a resource"),
        },
    });
    Part::Fields(items.collect())
}

/// The mounts of a container.
pub fn mounts(mounts: Option<Vec<core::VolumeMount>>) -> Vec<VolumeMount> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let read = |mount: core::VolumeMount| VolumeMount {
        volume: mount.name,
        // As a kubelet reads one that is relative.
        path: match mount.mount_path.starts_with('/') {
            true => mount.mount_path,
            false => format!("/{}", mount.mount_path),
        },
        sub: match (filled(mount.sub_path), filled(mount.sub_path_expr)) {
            (Some(path), _) => Some(Sub::Path(path)),
            (None, Some(expression)) => Some(Sub::Expression(expression)),
            (None, None) => None,
        },
        read_only: mount.read_only.unwrap_or(false),
    };
    mounts.into_iter().flatten().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_where_they_are_from_the_root() {
        let mount = |path: &str| core::VolumeMount {
            name: "data".to_owned(),
            mount_path: path.to_owned(),
            sub_path: Some(String::new()),
            ..core::VolumeMount::default()
        };
        let read = mounts(Some(vec![mount("/var/data"), mount("data/one")]));
        let paths: Vec<&str> = read.iter().map(|mount| mount.path.as_str()).collect();
        assert_eq!(paths, ["/var/data", "/data/one"]);
        assert_eq!(read[0].sub, None);
    }
}
