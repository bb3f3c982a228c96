//! Streams between agent and worker: each is a connection of its own to the worker's socket.
//!
//! ```text
//!   agent                                  worker
//!     | connect, Open -----------------------> |
//!     | <------------------------- Answer      |   then, if it is `Open`, until either side closes:
//!     | <==== Exec, Attach: frames of =======> |   `wherry_resources::channels`
//!     | <==== Port: bytes ===================> |   as they come and go at the port
//!     | <==== Relayed: bytes ================> |   to and from a worker of another node
//!     | <= Record, Lately, Metrics, World: JSON |   and the end
//!     | <==== Requests: lines of JSON ======== |   as requests end (`requests.rs`)
//! ```
//!
//! `Open` and `Answer` are frames of the protocol as all others. Of a command the end of the
//! agent's half of the connection means that whoever asked for it has gone; of `Requests` as well.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Form, Since};

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Open {
    /// Runs a command in the view of a container that runs.
    Exec {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// The whole argument list; the first names what is run.
        command: Vec<String>,
        /// What is connected.
        streams: Streams,
        /// What runs the commands that the container's own image does not have.
        toolbox: Option<Code>,
    },
    /// Connects to the input and output of a container that runs.
    Attach {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// What is connected.
        streams: Streams,
    },
    /// Connects to a port of the Pod.
    Port {
        /// Pod uid.
        uid: String,
        /// The port.
        port: u16,
    },
    /// Reads what the requests of a Pod were like: JSON, then the end.
    Record {
        /// Pod uid.
        uid: String,
    },
    /// Reads requests of a container as they end: lines of JSON, until the Pod goes.
    Requests {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
        /// From where on.
        since: Since,
    },
    /// Reads how many requests each workload of the worker has had: JSON, then the end.
    Lately {
        /// Of the minutes from this one on, since 1970.
        since: i64,
    },
    /// Reads the counters of all traffic: JSON, then the end.
    Metrics,
    /// Bytes to and from a worker of another node, which this worker asked for.
    Relayed {
        /// Its own number for it.
        id: u64,
        /// Why there are none: then the stream ends with the answer.
        failed: Option<String>,
    },
    /// Reads what a container's image wants and gives: JSON, then the end.
    World {
        /// Pod uid.
        uid: String,
        /// Container name.
        container: String,
    },
}

/// Which streams of a command are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Streams {
    /// Its input.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its errors; never of a terminal.
    pub stderr: bool,
    /// A terminal is at the other end.
    pub tty: bool,
}

/// Compiled code that the worker may load: the agent has checked its MAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Code {
    /// The file.
    pub module: PathBuf,
    /// What it holds.
    pub form: Form,
}

/// Whether a stream is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It is.
    Open,
    /// What it is for is not here, or does not run.
    NotFound(String),
    /// As many are open as may be.
    Busy(String),
}
