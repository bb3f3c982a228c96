//! HTTPS requests. The host sends them (`wasi:http`): it speaks TLS, and knows whom to trust.

use std::io;
use std::rc::Rc;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, Method, OutgoingBody, OutgoingRequest, Scheme};

use crate::http::{Answer, Url, invalid};
use crate::io::Input;
use crate::net::Receiver;
use crate::runtime::ready;

/// What the host takes of a body at once.
const PIECE_BYTES: usize = 4096;

/// Sends a request and waits for the head of the answer. `headers` are lines.
pub async fn request(
    url: &Url,
    method: &str,
    headers: &[String],
    body: &[u8],
) -> io::Result<Answer> {
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for line in headers {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header has no value"))?;
        // The host says by itself whom it asks.
        if !name.eq_ignore_ascii_case("host") {
            fields.push((name.to_ascii_lowercase(), value.trim().as_bytes().to_vec()));
        }
    }
    if !body.is_empty() {
        fields.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
    }
    let fields = Fields::from_list(&fields).map_err(|error| invalid(&format!("{error:?}")))?;
    let request = OutgoingRequest::new(fields);
    request
        .set_method(&named(method))
        .and_then(|()| request.set_scheme(Some(&Scheme::Https)))
        .and_then(|()| request.set_authority(Some(&url.authority())))
        .and_then(|()| request.set_path_with_query(Some(&url.path)))
        .map_err(|()| invalid("the host sends no such request"))?;
    let outgoing = request.body().expect("the body is taken once");
    let future = outgoing_handler::handle(request, None).map_err(failed)?;
    let stream = outgoing.write().expect("the stream is taken once");
    // A server that does not want all of it answers all the same.
    let sent = body.chunks(PIECE_BYTES).try_for_each(|it| stream.blocking_write_and_flush(it));
    drop(stream);
    if sent.is_ok() {
        OutgoingBody::finish(outgoing, None).map_err(failed)?;
    }
    ready(future.subscribe()).await;
    let Some(Ok(response)) = future.get() else {
        return Err(io::ErrorKind::ConnectionReset.into());
    };
    let response = response.map_err(failed)?;
    let text = |(name, value): (String, Vec<u8>)| {
        let value = String::from_utf8_lossy(&value).into_owned();
        (name, value)
    };
    let headers = response.headers().entries().into_iter().map(text).collect();
    let body = response.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    let input = Input::stream(Receiver::new(stream, Rc::new(body)));
    Ok(Answer::of_host(response.status(), headers, input, method == "HEAD"))
}

fn named(method: &str) -> Method {
    match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    }
}

fn failed(code: ErrorCode) -> io::Error {
    match code {
        ErrorCode::DnsError(_) => io::Error::other("Name does not resolve"),
        ErrorCode::ConnectionRefused => io::ErrorKind::ConnectionRefused.into(),
        ErrorCode::ConnectionTimeout => io::ErrorKind::TimedOut.into(),
        ErrorCode::HttpRequestDenied | ErrorCode::HttpProtocolError => {
            io::Error::other("refused; the log of the container says why")
        }
        other => io::Error::other(format!("{other:?}")),
    }
}
