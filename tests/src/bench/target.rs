//! What is measured, behind one face: a key-value service that takes puts, linearizable gets, whole
//! lists and watches. Both kinds are spoken to by the same HTTP/2 connection over TLS with a client
//! certificate, a stream a request; Wherry gets JSON ConfigMaps through its API, etcd its own gRPC.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use serde_json::Value;
use wherry_tests::http::{Credentials, http2};

use crate::etcd;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A cluster without a leader for longer is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// What etcd says when nobody leads, or an outcome is not known (`google.rpc.Code`).
const GRPC_DEADLINE: &str = "4";
const GRPC_UNAVAILABLE: &str = "14";

/// Which service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Wherry,
    Etcd,
}

/// One connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    kind: Kind,
    authority: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub async fn open(
        kind: Kind,
        address: SocketAddr,
        credentials: &Credentials,
    ) -> Result<Connection> {
        let sender = http2(address, credentials).await?;
        Ok(Connection { kind, authority: address.to_string(), sender })
    }

    /// Asks until somebody leads, as clients do: where nobody does, nothing was done (503), or
    /// nobody knows what was (504). A new name that is there when asked again was made the time
    /// before. What a caller waits for all that is part of what he measures.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let begun = Instant::now();
        let mut unknown = false;
        loop {
            let response = self.send_once(method.clone(), path, body.clone()).await?;
            match response.status() {
                StatusCode::SERVICE_UNAVAILABLE if begun.elapsed() < PATIENCE => {}
                StatusCode::GATEWAY_TIMEOUT if begun.elapsed() < PATIENCE => unknown = true,
                StatusCode::CONFLICT if unknown => return Ok(response),
                status if status.is_success() => return Ok(response),
                _ => bail!("{path}: {}", told(response).await),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn send_once(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .body(Full::new(body))?;
        let kind = match self.kind {
            Kind::Wherry => "application/json",
            Kind::Etcd => "application/grpc",
        };
        request.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
        if self.kind == Kind::Etcd {
            request.headers_mut().insert("te", http::HeaderValue::from_static("trailers"));
        }
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    async fn json(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let response = self.send(method, path, body).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    async fn grpc(&self, method: &str, request: &[u8]) -> Result<Bytes> {
        let body = etcd::framed(request);
        let path = format!("/etcdserverpb.KV/{method}");
        let begun = Instant::now();
        let mut bytes = loop {
            let response = self.send(Method::POST, &path, body.clone()).await?;
            let in_headers = response.headers().get("grpc-status").cloned();
            let answer = response.into_body().collect().await?;
            let in_trailers = answer.trailers().and_then(|all| all.get("grpc-status")).cloned();
            let status = in_headers.or(in_trailers);
            match status.as_ref().and_then(|status| status.to_str().ok()).unwrap_or("0") {
                "0" => break answer.to_bytes(),
                // As above: a put and a read may be made again.
                GRPC_DEADLINE | GRPC_UNAVAILABLE if begun.elapsed() < PATIENCE => {}
                status => bail!("{method}: gRPC status {status}"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        };
        ensure!(bytes.len() >= etcd::FRAME_HEADER, "{method}: no message");
        bytes.advance(etcd::FRAME_HEADER);
        Ok(bytes)
    }

    /// Stores 1 KiB under a new name.
    pub async fn put(&self, name: &str, value: &str) -> Result<()> {
        match self.kind {
            Kind::Wherry => {
                let object = format!(
                    r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"value":"{value}"}}}}"#
                );
                self.json(Method::POST, MAPS, object.into()).await?;
            }
            Kind::Etcd => {
                self.grpc("Put", &etcd::put(name, value)).await?;
            }
        }
        Ok(())
    }

    /// A linearizable read of a name that is there.
    pub async fn get(&self, name: &str) -> Result<()> {
        match self.kind {
            Kind::Wherry => {
                self.json(Method::GET, &format!("{MAPS}/{name}"), Bytes::new()).await?;
            }
            Kind::Etcd => {
                let found = self.grpc("Range", &etcd::range_of(name)).await?;
                ensure!(etcd::found(found)? == 1, "{name} is not there");
            }
        }
        Ok(())
    }

    /// All objects at once; returns the bytes of the answer, which is not decoded.
    pub async fn list(&self) -> Result<usize> {
        match self.kind {
            Kind::Wherry => Ok(self.json(Method::GET, MAPS, Bytes::new()).await?.len()),
            Kind::Etcd => Ok(self.grpc("Range", &etcd::range_of_all()).await?.len()),
        }
    }

    /// Follows all changes from now on.
    pub async fn watch(&self) -> Result<Watch> {
        match self.kind {
            Kind::Wherry => {
                let list = self.json(Method::GET, &format!("{MAPS}?limit=1"), Bytes::new()).await?;
                let list: Value = serde_json::from_slice(&list)?;
                let revision = list["metadata"]["resourceVersion"].as_str();
                let revision = revision.context("a list has a resourceVersion")?;
                let path = format!("{MAPS}?watch=true&resourceVersion={revision}");
                let body = self.send(Method::GET, &path, Bytes::new()).await?.into_body();
                Ok(Watch { kind: self.kind, body, buffer: BytesMut::new() })
            }
            Kind::Etcd => {
                let body = etcd::framed(&etcd::watch_all());
                let path = "/etcdserverpb.Watch/Watch";
                let body = self.send(Method::POST, path, body).await?.into_body();
                let mut watch = Watch { kind: self.kind, body, buffer: BytesMut::new() };
                let created = etcd::created(watch.message().await?)?;
                ensure!(created, "the watch was not made");
                Ok(watch)
            }
        }
    }
}

async fn told(response: Response<Incoming>) -> String {
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes());
    format!("{status} {}", wherry_tests::text(&body.unwrap_or_default()))
}

/// An open watch.
pub struct Watch {
    kind: Kind,
    body: Incoming,
    buffer: BytesMut,
}

impl Watch {
    /// Waits for the next change of a name that contains this text.
    pub async fn wait_for(&mut self, name: &str) -> Result<()> {
        loop {
            let is_it = match self.kind {
                Kind::Wherry => contains(&self.line().await?, name.as_bytes()),
                Kind::Etcd => {
                    let keys = etcd::changed_keys(self.message().await?)?;
                    keys.iter().any(|key| contains(key, name.as_bytes()))
                }
            };
            if is_it {
                return Ok(());
            }
        }
    }

    async fn more(&mut self) -> Result<()> {
        let frame = self.body.frame().await.context("the watch ended")??;
        if let Ok(data) = frame.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<BytesMut> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(self.buffer.split_to(end + 1));
            }
            self.more().await?;
        }
    }

    async fn message(&mut self) -> Result<Bytes> {
        loop {
            if let Some(message) = etcd::unframe(&mut self.buffer) {
                return Ok(message);
            }
            self.more().await?;
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
