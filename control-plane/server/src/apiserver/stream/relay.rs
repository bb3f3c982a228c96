//! Relays: a connection from one node to a worker of another that it cannot reach, because that one
//! is behind NAT or their networks do not meet.
//!
//! ```text
//!   node a ── GET /wherry/v1/relay/{node}/{namespace}, Upgrade ──▶ here ── tunnel of node b ──▶
//!             agent of b ──▶ its worker for the namespace
//! ```
//!
//! Only bytes pass: workers speak TLS to each other through it, under certificates that are none of
//! this member's business. No address is dialled here. Each end holds no more than its windows and
//! one buffer of what the other has not taken; who falls silent keeps a place, of which a member
//! has a bounded number.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::NodeStream;
use crate::apiserver::{ApiServer, auth::User, errors::ApiError};

/// Protocol name in the upgrade.
const PROTOCOL: &str = "wherry-relay";
/// Relays at the same time through one member: each is a connection that carries all requests from
/// one worker to another. A node takes 128 of them, of the 2,048 streams of all kinds of its tunnel.
const RELAYS_MAX: usize = 512;

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(RELAYS_MAX)));

/// What was relayed by this process.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Connections.
    pub connections: AtomicU64,
    /// Bytes of those that have ended, both ways.
    pub bytes: AtomicU64,
}

/// `GET /wherry/v1/relay/{node}/{namespace}`: authorisation has let only node agents through.
pub async fn accept(
    State(api): State<ApiServer>,
    Path((node, namespace)): Path<(String, String)>,
    mut request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let user = request.extensions().get::<User>().cloned().unwrap_or_default();
    let Some(from) = user.node().map(str::to_owned) else {
        return Err(ApiError::BadRequest("only a node's own certificate opens a relay".into()));
    };
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL)) {
        return Err(ApiError::BadRequest(format!("this path needs Upgrade: {PROTOCOL}")));
    }
    let plain = |it: &str| it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if namespace.is_empty() || !plain(&namespace) {
        return Err(ApiError::BadRequest(format!("{namespace:?} is not a namespace")));
    }
    let full = |_| ApiError::TooManyRequests {
        message: format!("{RELAYS_MAX} relays are open"),
        causes: Vec::new(),
        retry_after_seconds: 1,
    };
    let place = Arc::clone(&PLACES).try_acquire_owned().map_err(full)?;
    let far = NodeStream::open(&api, &node, &format!("/relay/{namespace}"), None).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let shutdown = api.shutdown().clone();
    let served = api.clone();
    api.tasks().spawn(async move {
        let near = match upgrade.await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(from, node, %error, "relay upgrade failed"),
        };
        let relayed = &served.metrics().relayed;
        relayed.connections.fetch_add(1, Relaxed);
        tracing::debug!(from, node, namespace, "relay open");
        let (mut near, mut far) = (TokioIo::new(near), far.into_io());
        let passed = tokio::io::copy_bidirectional(&mut near, &mut far);
        if let Some(Ok((up, down))) = shutdown.run_until_cancelled(passed).await {
            relayed.bytes.fetch_add(up + down, Relaxed);
        }
        drop(place);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
