//! What a container start is made of, beside its code: volumes, probes, hooks, its last words.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A directory of the host in the guest's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Root of the volume on the host.
    pub root: PathBuf,
    /// A directory below it, resolved by the worker without leaving the root.
    pub sub: Option<PathBuf>,
    /// `mountPath`
    pub guest: String,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// A fixed entry of the Pod's name resolution, from `hostAliases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAlias {
    /// In lower case.
    pub name: String,
    /// Where it leads.
    pub ip: IpAddr,
}

/// Something that can be tried and succeeds or fails: a probe's or a hook's action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// A request that must be answered, that of a probe with a status from 200 to 399.
    Http(HttpCheck),
    /// A port that must be served.
    Tcp {
        /// The Pod itself if absent.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` must answer SERVING.
    Grpc {
        /// The port.
        port: u16,
        /// The service to ask for, mostly empty.
        service: String,
    },
    /// An export of the image, a program of the toolbox, or the image's command once more must end
    /// with 0.
    Exec {
        /// The whole argument list; its first word is what is called.
        command: Vec<String>,
    },
    /// Succeeds after this time; hooks only.
    Sleep {
        /// How long.
        seconds: u32,
    },
}

/// `httpGet`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The Pod itself if absent.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
    /// With its query.
    pub path: String,
    /// Whether the scheme is `HTTPS`: TLS is spoken, and the certificate not looked at.
    pub https: bool,
    /// `httpHeaders`
    pub headers: Vec<(String, String)>,
}

/// One probe with its rhythm; every value is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// What is tried.
    pub check: Check,
    /// After the start, before the first attempt.
    pub initial_delay_s: u32,
    /// For one attempt.
    pub timeout_s: u32,
    /// Between attempts.
    pub period_s: u32,
    /// Successes in a row that make it succeed.
    pub success_threshold: u32,
    /// Failures in a row that make it fail.
    pub failure_threshold: u32,
    /// Grace of the restart that follows, if it differs from the Pod's.
    pub grace_s: Option<u32>,
}

/// The probes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// Holds back the others until it has succeeded once.
    pub startup: Option<Probe>,
    /// Its failure restarts the container.
    pub liveness: Option<Probe>,
    /// Its failure takes the container out of its Services.
    pub readiness: Option<Probe>,
}

impl Probes {
    /// The probe of a kind.
    pub fn get(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// `startupProbe`
    Startup,
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// As events write it.
    pub fn word(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// What probes have found out about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe's last result, true if there is none.
    pub ready: bool,
    /// The probe because of which the container has to be restarted.
    pub failed: Option<ProbeKind>,
}

impl Health {
    /// Of a container that was just started.
    pub fn new(probes: &Probes) -> Health {
        let started = probes.startup.is_none();
        Health { started, ready: started && probes.readiness.is_none(), failed: None }
    }
}

/// `lifecycle`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// `postStart`: the container counts as started when it has succeeded.
    pub post_start: Option<Check>,
    /// `preStop`: before it is asked to end, within its grace.
    pub pre_stop: Option<Check>,
}

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookKind {
    /// `postStart`
    PostStart,
    /// `preStop`
    PreStop,
}

/// Where a container leaves its last words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWords {
    /// The file of `terminationMessagePath` on the host. None: the guest has no such file.
    pub file: Option<PathBuf>,
    /// A directory beside that file, in which it is instead, resolved as that of a [`Mount`].
    pub sub: Option<PathBuf>,
    /// `terminationMessagePolicy: FallbackToLogsOnError`
    pub from_log: bool,
}
