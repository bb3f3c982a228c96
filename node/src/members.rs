//! A client that knows every member of the control plane and goes to another when one is away.
//!
//! Below it stands one plain client for each member's URL. A request goes to the member that
//! answered last. What becomes of it decides whether it is sent again, to the next one:
//!
//! | outcome | was it done? | sent again |
//! |---|---|---|
//! | no connection came about | no | always |
//! | 503 | no: a member that cannot serve says so before it does anything | always |
//! | the connection broke, 504, no answer in time | perhaps | reads only |
//! | any other answer | it is the answer | never |
//!
//! The list of members is learned from the EndpointSlices of the Service `kubernetes`; the URLs
//! that the client was made with stay behind it as a last resort. A new list or a new credential
//! replaces the clients while requests that are under way finish on the old ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::client::{Body, ConfigExt as _};
use tokio::sync::watch;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

/// A member that has not taken a connection and shaken hands by then is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A read that has no answer by then is asked elsewhere: longer than any read of a healthy member,
/// which refuses within 2 s what it cannot serve.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request is sent again while members answer that they cannot serve: a new leader is
/// there within 2 s.
const RETRY_FOR: Duration = Duration::from_secs(5);
/// The same while none can be reached at all: long enough for one that is just restarting.
const RETRY_UNREACHABLE_FOR: Duration = Duration::from_secs(1);
/// First and longest pause after all members were tried.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A connection on which nothing comes back is noticed by the kernel after these, so that a watch
/// does not wait for a machine that is gone.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(3), 3);
/// Sent data that is not acknowledged by then breaks the connection.
const SENT_TIMEOUT: Duration = Duration::from_secs(12);
/// Namespace and name of the Service behind which the members are.
const SERVICE: (&str, &str) = ("default", "kubernetes");
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What a client for one member is made of, but for its URL.
pub type Make = Arc<dyn Fn(Uri) -> kube::Config + Send + Sync>;

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// A URL does not parse.
    #[error("the server address {0:?} is not a URL like https://host:6443")]
    Url(String),
    /// The client for one member could not be made.
    #[error("make a client for {url}")]
    Client {
        /// Which member.
        url: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What a request came to that no member answered, and at which it was tried last.
#[derive(Debug, thiserror::Error)]
#[error("{member}: {source}")]
struct NoAnswer {
    member: String,
    source: BoxError,
}

/// All members, and how clients for them are made.
pub struct Members {
    list: ArcSwap<List>,
    /// Index of the member that answered last.
    current: AtomicUsize,
    /// Where each member is, for those who keep a connection to every one.
    each: watch::Sender<Vec<Uri>>,
}

struct List {
    make: Make,
    /// As the caller named them.
    given: Vec<Uri>,
    /// As the cluster names them.
    learned: Vec<Uri>,
    members: Vec<(Uri, kube::Client)>,
}

impl List {
    fn new(make: Make, given: Vec<Uri>, learned: Vec<Uri>) -> Result<List, MembersError> {
        let mut urls = learned.clone();
        for url in &given {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        let members = urls.into_iter().map(|url| {
            let client = client(make(url.clone())).map_err(|source| MembersError::Client {
                url: url.to_string(),
                source: Box::new(source),
            })?;
            Ok((url, client))
        });
        let members = members.collect::<Result<Vec<_>, _>>()?;
        Ok(List { make, given, learned, members })
    }

    /// One URL for each member: a given one may be another name of a learned one.
    fn each(&self) -> Vec<Uri> {
        if self.learned.is_empty() { self.given.clone() } else { self.learned.clone() }
    }
}

impl Members {
    /// Prepares clients for `urls`; nothing is sent yet. Must be called on a runtime.
    pub fn new(urls: &[String], make: Make) -> Result<Arc<Members>, MembersError> {
        let given = urls.iter().map(|text| parse_url(text)).collect::<Result<Vec<_>, _>>()?;
        let list = List::new(make, given, Vec::new())?;
        let each = watch::Sender::new(list.each());
        Ok(Arc::new(Members {
            list: ArcSwap::from_pointee(list),
            current: AtomicUsize::new(0),
            each,
        }))
    }

    /// Makes clients in another way for everything that is sent from now on.
    pub fn replace(&self, make: Make) -> Result<(), MembersError> {
        let old = self.list.load_full();
        let list = List::new(make, old.given.clone(), old.learned.clone())?;
        self.list.store(Arc::new(list));
        Ok(())
    }

    /// Takes the cluster's own list of its members; true if it is a new one. An empty list and
    /// addresses that are none are left out: a client that knows nobody could never learn again.
    pub fn learn(&self, urls: &[String]) -> bool {
        let mut learned: Vec<Uri> = urls.iter().filter_map(|text| parse_url(text).ok()).collect();
        learned.sort_by_key(Uri::to_string);
        learned.dedup();
        let old = self.list.load_full();
        if learned.is_empty() || learned == old.learned {
            return false;
        }
        let list = match List::new(old.make.clone(), old.given.clone(), learned) {
            Ok(list) => list,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the new list of members cannot be used");
                return false;
            }
        };
        let before = old.members.get(self.current.load(Ordering::Relaxed)).map(|(url, _)| url);
        let same = list.members.iter().position(|(url, _)| Some(url) == before);
        let each = list.each();
        tracing::info!(members = ?each.iter().map(Uri::to_string).collect::<Vec<_>>(), "members");
        self.list.store(Arc::new(list));
        self.current.store(same.unwrap_or(0), Ordering::Relaxed);
        self.each.send_replace(each);
        true
    }

    /// The one client that everybody uses.
    pub fn client(self: &Arc<Members>) -> kube::Client {
        kube::Client::new(Facade(self.clone()), "default")
    }

    /// One URL for each member, and what becomes of them.
    pub fn each(&self) -> watch::Receiver<Vec<Uri>> {
        self.each.subscribe()
    }

    /// The client for one member only, made as all are now.
    pub fn only(&self, url: &Uri) -> Option<kube::Client> {
        let list = self.list.load();
        list.members.iter().find(|(held, _)| held == url).map(|(_, client)| client.clone())
    }

    fn pick(&self) -> (Arc<List>, usize) {
        let list = self.list.load_full();
        let index = self.current.load(Ordering::Relaxed) % list.members.len().max(1);
        (list, index)
    }

    /// Moves on from a member that failed, unless somebody else already did.
    fn leave(&self, list: &List, index: usize) {
        let next = (index + 1) % list.members.len();
        let moved =
            self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != index {
            let (from, to) = (&list.members[index].0, &list.members[next].0);
            tracing::info!(%from, %to, "changed member");
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, mut body) = request.into_parts();
        let begun = Instant::now();
        let (mut tried, mut pause, mut reached) = (0, PAUSE.0, false);
        loop {
            let (list, index) = self.pick();
            let Some((_, client)) = list.members.get(index) else {
                return Err("no member of the control plane is known".into());
            };
            // A body that is a stream can be sent once only.
            let copy = body.try_clone();
            let request = Request::from_parts(parts.clone(), body);
            let answer = ask(client, request).await;
            let outcome = outcome(&answer);
            reached |= outcome != Outcome::NotSent;
            let limit = if reached { RETRY_FOR } else { RETRY_UNREACHABLE_FOR };
            let again = is_sent_again(outcome, &parts.method) && begun.elapsed() < limit;
            if outcome != Outcome::Answered {
                self.leave(&list, index);
            }
            match copy {
                Some(copy) if again => body = copy,
                _ => {
                    return answer.map_err(|source| {
                        let member = list.members[index].0.to_string();
                        let member = member.trim_end_matches('/').to_owned();
                        NoAnswer { member, source }.into()
                    });
                }
            }
            tried += 1;
            if tried % list.members.len() == 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// The URLs of all members that the EndpointSlices of the Service `kubernetes` name.
pub fn of_slices<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Vec<String> {
    let mut urls = Vec::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_LABEL));
        let namespace = slice.metadata.namespace.as_deref();
        if (namespace, service.map(String::as_str)) != (Some(SERVICE.0), Some(SERVICE.1)) {
            continue;
        }
        let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
        // Also those that are not ready: whoever looks for a member tries them in turn.
        let endpoints = slice.endpoints.iter().flatten();
        for address in endpoints.flat_map(|endpoint| &endpoint.addresses) {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            urls.extend(ports.iter().map(|port| format!("https://{host}:{port}")));
        }
    }
    urls
}

/// Parses the URL of a member; the scheme may be left out.
pub fn parse_url(text: &str) -> Result<Uri, MembersError> {
    let error = || MembersError::Url(text.to_owned());
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| error())?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(error());
    }
    Ok(uri)
}

/// A client for one server that reports every failure at once: retries are made above it, at
/// another server.
fn client(config: kube::Config) -> Result<kube::Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEP_ALIVE.0));
    http.set_keepalive_interval(Some(KEEP_ALIVE.1));
    http.set_keepalive_retries(Some(KEEP_ALIVE.2));
    http.set_tcp_user_timeout(Some(SENT_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let connector = tower::service_fn(move |uri: Uri| {
        let https = https.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, https.oneshot(uri)).await {
                Ok(connected) => connected,
                Err(late) => Err(late.into()),
            }
        })
    });
    let hyper: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper);
    Ok(kube::Client::new(service, config.default_namespace))
}

async fn ask(client: &kube::Client, request: Request<Body>) -> Result<Response<Body>, BoxError> {
    if !is_read(request.method()) {
        return client.send(request).await.map_err(bare);
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await {
        Ok(answer) => answer.map_err(bare),
        Err(late) => Err(late.into()),
    }
}

/// What went wrong, without the client's own word for it.
fn bare(error: kube::Error) -> BoxError {
    match error {
        kube::Error::Service(cause) => cause,
        error => error.into(),
    }
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It never left.
    NotSent,
    /// The member said that it did nothing.
    Refused,
    /// Nobody knows.
    Unknown,
    /// This is the answer.
    Answered,
}

fn outcome(answer: &Result<Response<Body>, BoxError>) -> Outcome {
    match answer {
        Ok(response) => match response.status() {
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Refused,
            StatusCode::GATEWAY_TIMEOUT => Outcome::Unknown,
            _ => Outcome::Answered,
        },
        Err(error) if was_not_sent(&**error) => Outcome::NotSent,
        Err(_) => Outcome::Unknown,
    }
}

/// Whether the error is one of connecting, or of a connection that was gone before the request was
/// written to it.
fn was_not_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let connect = error.downcast_ref::<hyper_util::client::legacy::Error>();
        let canceled = error.downcast_ref::<hyper::Error>();
        if connect.is_some_and(|error| error.is_connect())
            || canceled.is_some_and(hyper::Error::is_canceled)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_sent_again(outcome: Outcome, method: &Method) -> bool {
    match outcome {
        Outcome::NotSent | Outcome::Refused => true,
        Outcome::Unknown => is_read(method),
        Outcome::Answered => false,
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Sends each request to the current member.
#[derive(Clone)]
struct Facade(Arc<Members>);

impl tower::Service<Request<Body>> for Facade {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let members = self.0.clone();
        Box::pin(async move { members.send(request).await })
    }
}

#[cfg(test)]
mod tests;
