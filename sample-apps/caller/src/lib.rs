//! `caller`: a `wasi:http` handler that asks another Service and repeats what it said.
//!
//! The other Service's URL is `TARGET` (default `http://hello-http`); its name is resolved by the
//! virtual network, in the caller's own namespace. An answer that cannot be had becomes a 502 that
//! says why.

use std::io::{Read as _, Write as _};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

wasip2::http::proxy::export!(Caller);

struct Caller;

/// More than this of the other Service's answer is not repeated.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

impl wasip2::exports::http::incoming_handler::Guest for Caller {
    fn handle(_request: IncomingRequest, outparam: ResponseOutparam) {
        let target = std::env::var("TARGET").unwrap_or_else(|_| "http://hello-http".to_owned());
        match ask(&target) {
            Ok((200, said)) => answer(outparam, 200, &format!("{target} said: {said}")),
            Ok((status, said)) => {
                answer(outparam, 502, &format!("{target} answered {status}: {said}"))
            }
            Err(reason) => answer(outparam, 502, &format!("{target} did not answer: {reason}\n")),
        }
    }
}

/// Sends one GET and returns the status with the body as text.
fn ask(target: &str) -> Result<(u16, String), String> {
    let rest = target
        .strip_prefix("http://")
        .ok_or_else(|| format!("TARGET must start with http://, got {target:?}"))?;
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, "/".to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&path)))
        .map_err(|()| format!("{target:?} is not a URL"))?;

    let body = request.body().map_err(|()| "the request has no body".to_owned())?;
    let future = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    OutgoingBody::finish(body, None).map_err(|code| format!("{code:?}"))?;
    future.subscribe().block();
    let response = future
        .get()
        .ok_or("the response was not ready")?
        .map_err(|()| "the response was taken twice".to_owned())?
        .map_err(|code| format!("{code:?}"))?;

    let status = response.status();
    let body = response.consume().map_err(|()| "the answer has no body".to_owned())?;
    let stream = body.stream().map_err(|()| "the answer's body was taken".to_owned())?;
    let mut said = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut said)
        .map_err(|error| format!("its answer broke off: {error}"))?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

fn answer(outparam: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("200 and 502 are legal statuses");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(outparam, Ok(response));
    let mut out = body.write().expect("the stream is taken once");
    // A client that went away is not this handler's failure.
    let _ = out.write_all(text.as_bytes());
    drop(out);
    let _ = OutgoingBody::finish(body, None);
}
