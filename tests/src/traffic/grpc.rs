//! A client of the sample `greeter`: gRPC over HTTP/2 without TLS, one message a request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::encoding::{decode_varint, encode_varint};
use tokio::net::TcpStream;

/// Numbers of fields with their wire types.
const NAME: u64 = (1 << 3) | 2;
const TIMES: u64 = 2 << 3;
const PAUSE_MS: u64 = 3 << 3;

/// One connection.
pub struct Greeter {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Greeter {
    pub async fn connect(address: SocketAddr) -> Result<Greeter> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = shaken.context("HTTP/2")?;
        // Ends with its sender.
        tokio::spawn(connection);
        Ok(Greeter { sender, authority: address.to_string() })
    }

    /// One greeting.
    pub async fn greet(&mut self, name: &str) -> Result<String> {
        let mut all = self.call("SayHello", hello(name, 1, Duration::ZERO)?).await?;
        ensure!(all.len() == 1, "{} greetings", all.len());
        Ok(all.remove(0))
    }

    /// A stream of greetings with a pause between them.
    pub async fn greet_often(
        &mut self,
        name: &str,
        times: u32,
        pause: Duration,
    ) -> Result<Vec<String>> {
        let all = self.call("SayHelloManyTimes", hello(name, times, pause)?).await?;
        ensure!(all.len() == usize::try_from(times)?, "{} of {times} greetings", all.len());
        Ok(all)
    }

    async fn call(&mut self, method: &str, message: Bytes) -> Result<Vec<String>> {
        let request =
            Request::post(format!("http://{}/wherry.sample.Greeter/{method}", self.authority))
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .body(Full::new(message))?;
        self.sender.ready().await.context("the connection")?;
        let response = self.sender.send_request(request).await.context("send")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the answer broke off")?;
        // An answer without messages has its status in the head.
        let status = body.trailers().unwrap_or(&head.headers).get("grpc-status").cloned();
        let said = body.trailers().unwrap_or(&head.headers).get("grpc-message").cloned();
        let fine = head.status == 200 && status.as_ref().is_some_and(|status| status == "0");
        ensure!(fine, "status {}, grpc-status {status:?}: {said:?}", head.status);
        greetings(body.to_bytes())
    }
}

fn hello(name: &str, times: u32, pause: Duration) -> Result<Bytes> {
    let mut message = BytesMut::new();
    encode_varint(NAME, &mut message);
    encode_varint(u64::try_from(name.len())?, &mut message);
    message.put_slice(name.as_bytes());
    for (tag, number) in [(TIMES, u64::from(times)), (PAUSE_MS, u64::try_from(pause.as_millis())?)]
    {
        encode_varint(tag, &mut message);
        encode_varint(number, &mut message);
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(&message);
    Ok(framed.freeze())
}

/// The texts of all messages in a body.
fn greetings(mut body: Bytes) -> Result<Vec<String>> {
    let mut all = Vec::new();
    while body.has_remaining() {
        ensure!(body.remaining() >= 5 && body.get_u8() == 0, "this is no message");
        let length = usize::try_from(body.get_u32())?;
        ensure!(body.remaining() >= length, "a message is cut short");
        let mut message = body.split_to(length);
        ensure!(decode_varint(&mut message)? == NAME, "this is no greeting");
        let length = usize::try_from(decode_varint(&mut message)?)?;
        ensure!(message.remaining() == length, "this is no greeting");
        all.push(crate::text(&message));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_read_out_of_a_body() {
        let one = |text: &str| {
            let mut message = BytesMut::new();
            encode_varint(NAME, &mut message);
            encode_varint(text.len() as u64, &mut message);
            message.put_slice(text.as_bytes());
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(u32::try_from(message.len()).expect("it fits"));
            framed.put_slice(&message);
            framed.freeze()
        };
        let both = [one("Hello"), one("")].concat();
        let read = greetings(Bytes::from(both.clone())).expect("two messages");
        assert_eq!(read, ["Hello", ""]);
        let cut = Bytes::from(both).slice(..8);
        assert!(greetings(cut).is_err());
    }
}
