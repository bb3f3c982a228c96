//! Why a request has no answer of a guest: for the client, for the way between workers, and for whether
//! another endpoint is tried.

use std::net::SocketAddr;

use http::{HeaderValue, StatusCode};
use wherry_wasi_shim::HandleError;

use super::peers::PeerError;
use crate::protocol::Direction;

/// How a worker says that a policy refused a request; the sentence follows.
const WORD_INGRESS: &str = "denied-ingress ";
const WORD_EGRESS: &str = "denied-egress ";

/// Why there is no response of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The Service has nobody who could answer.
    #[error("{service} has no ready Pod{}", elsewhere(.unreachable))]
    NoEndpoint {
        /// Ready ones that no worker is known for.
        unreachable: usize,
        /// `Service namespace/name`
        service: String,
    },
    /// The Pod is not, or no longer, where the table says.
    #[error("no Pod answers at {0}: it is gone, or listens at other ports")]
    Gone(SocketAddr),
    /// There is no connection to an address outside of the cluster.
    #[error("no connection to {to}: {why}")]
    Unconnected {
        /// Where.
        to: SocketAddr,
        /// For people.
        why: String,
        /// Nobody said anything.
        late: bool,
    },
    /// Whoever listens there took the connection, and gave no answer.
    #[error("{0} broke the connection off, or does not speak HTTP")]
    Broken(SocketAddr),
    /// It has as many requests as it may, and as many are waiting.
    #[error("the Pod is busy")]
    Busy,
    /// It did not answer in time.
    #[error("the Pod did not answer within its deadline")]
    Deadline,
    /// Its memory limit was reached.
    #[error("the Pod ran out of memory")]
    OutOfMemory,
    /// It trapped, or ended without an answer. Its log says more.
    #[error("the Pod failed to answer; its log says why")]
    Failed,
    /// The request broke off while it was sent.
    #[error("the request came to no end")]
    Incomplete,
    /// The request cannot be given to any guest.
    #[error("the request is not understood")]
    BadRequest,
    /// A policy says no.
    #[error("{why}")]
    Denied {
        /// The caller's or the Pod's.
        direction: Direction,
        /// Who may not what, and the policy.
        why: String,
    },
    /// It takes requests, and a connection of bytes was wanted.
    #[error("the Pod takes requests, not connections")]
    Handler,
    /// It waited in vain for a Pod of a workload that was at zero.
    #[error("{service} was scaled to zero, and {why}")]
    Asleep {
        /// `Service namespace/name`
        service: String,
        /// What went wrong.
        why: &'static str,
    },
    /// The way to it is broken.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

fn elsewhere(count: &usize) -> String {
    match count {
        0 => String::new(),
        count => format!(" that can be reached from here ({count} elsewhere)"),
    }
}

impl Refusal {
    /// The status for a client outside.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Peer(PeerError::Full(..)) | Refusal::Asleep { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Denied { .. } => StatusCode::FORBIDDEN,
            Refusal::Deadline | Refusal::Unconnected { late: true, .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Refusal::BadRequest | Refusal::Incomplete => StatusCode::BAD_REQUEST,
            Refusal::OutOfMemory | Refusal::Failed | Refusal::Peer(_) | Refusal::Handler => {
                StatusCode::BAD_GATEWAY
            }
            Refusal::Unconnected { .. } | Refusal::Broken(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// Its name between workers.
    pub fn word(&self) -> HeaderValue {
        if let Refusal::Denied { direction, why } = self {
            let word = match direction {
                Direction::Ingress => WORD_INGRESS,
                Direction::Egress => WORD_EGRESS,
            };
            // Names of objects are ASCII; were they not, that it is denied is enough.
            let told = HeaderValue::try_from(format!("{word}{why}"));
            return told.unwrap_or_else(|_| HeaderValue::from_static(WORD_INGRESS));
        }
        HeaderValue::from_static(match self {
            Refusal::Denied { .. } => unreachable!("it was told above"),
            Refusal::Asleep { .. } => "gone",
            Refusal::Handler => "handler",
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Peer(_) => "gone",
            Refusal::Unconnected { .. } => "gone",
            Refusal::Broken(_) => "broken",
            Refusal::Incomplete => "incomplete",
            Refusal::Busy => "busy",
            Refusal::Deadline => "deadline",
            Refusal::OutOfMemory => "memory",
            Refusal::Failed => "failed",
            Refusal::BadRequest => "invalid",
        })
    }

    pub fn from_word(word: &HeaderValue, address: SocketAddr) -> Refusal {
        for (start, direction) in
            [(WORD_INGRESS, Direction::Ingress), (WORD_EGRESS, Direction::Egress)]
        {
            if let Some(why) = word.to_str().ok().and_then(|word| word.strip_prefix(start)) {
                return Refusal::Denied { direction, why: why.to_owned() };
            }
        }
        match word.as_bytes() {
            b"gone" => Refusal::Gone(address),
            b"broken" => Refusal::Broken(address),
            b"incomplete" => Refusal::Incomplete,
            b"busy" => Refusal::Busy,
            b"handler" => Refusal::Handler,
            b"deadline" => Refusal::Deadline,
            b"memory" => Refusal::OutOfMemory,
            b"invalid" => Refusal::BadRequest,
            // A word of a newer worker: it did not answer, whatever the reason.
            _ => Refusal::Failed,
        }
    }

    /// Whether the guest cannot have seen the request.
    pub fn is_unsent(&self) -> bool {
        match self {
            Refusal::NoEndpoint { .. } | Refusal::Gone(_) | Refusal::Busy => true,
            Refusal::Unconnected { .. } => true,
            Refusal::Denied { .. } | Refusal::Asleep { .. } | Refusal::Handler => true,
            Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Full(..)) => true,
            Refusal::Peer(PeerError::Lost { .. }) => false,
            Refusal::Deadline | Refusal::OutOfMemory | Refusal::Failed => false,
            Refusal::Broken(_) | Refusal::Incomplete | Refusal::BadRequest => false,
        }
    }

    /// Whether it speaks against the endpoint. A busy one is not ill, and whom a policy refuses has
    /// not met it.
    pub fn is_failure(&self) -> bool {
        match self {
            Refusal::Gone(_) | Refusal::Deadline | Refusal::OutOfMemory | Refusal::Failed => true,
            Refusal::Peer(PeerError::Unreachable { .. } | PeerError::Lost { .. }) => true,
            Refusal::Unconnected { .. } | Refusal::Broken(_) => true,
            Refusal::Peer(PeerError::Full(..)) | Refusal::Busy | Refusal::BadRequest => false,
            // The client's fault.
            Refusal::Incomplete => false,
            Refusal::NoEndpoint { .. } | Refusal::Denied { .. } => false,
            Refusal::Asleep { .. } | Refusal::Handler => false,
        }
    }

    /// Whether another try may end differently: what a guest itself did wrong it would do again.
    pub fn is_of_the_way(&self) -> bool {
        self.is_unsent() || matches!(self, Refusal::Peer(_) | Refusal::Broken(_))
    }
}

impl From<HandleError> for Refusal {
    /// The shim has said in the container's log what the guest did wrong.
    fn from(error: HandleError) -> Refusal {
        match error {
            HandleError::Busy | HandleError::InstanceLimit => Refusal::Busy,
            // Its log says why; another Pod may be well.
            HandleError::Asleep(_) => Refusal::Busy,
            HandleError::Deadline => Refusal::Deadline,
            HandleError::OutOfMemory | HandleError::NoMemoryLeft => Refusal::OutOfMemory,
            HandleError::Trap(_) | HandleError::NoResponse | HandleError::GuestError(_) => {
                Refusal::Failed
            }
            HandleError::BadRequest(_) => Refusal::BadRequest,
        }
    }
}
