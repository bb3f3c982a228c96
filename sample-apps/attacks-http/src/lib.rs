//! `attacks-http`: a handler whose path says how it shall misbehave; `make attacks` calls them all.
//!
//! - `/loop` never answers and keeps the processor busy, `/sleep` never answers and waits;
//! - `/headers` answers with more headers than anybody takes, `/trailers` ends with as many;
//! - `/unread` answers without reading the body that it is sent;
//! - `/endless` answers with a body that never ends;
//! - `/self` asks itself, through its own Service, which does the same.

use std::hint::black_box;
use std::io::Write as _;

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

wasip2::http::proxy::export!(Attacks);

struct Attacks;

/// More than the 32 KiB that anybody takes.
const HEADERS: usize = 4_000;

impl wasip2::exports::http::incoming_handler::Guest for Attacks {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        match path.as_str() {
            "/loop" => loop {
                black_box(0);
            },
            "/sleep" => subscribe_duration(u64::MAX / 4).block(),
            "/headers" => answer(outparam, many(), None),
            "/trailers" => answer(outparam, Fields::new(), Some(many())),
            "/endless" => endless(outparam),
            "/self" => {
                ask_itself();
                answer(outparam, Fields::new(), None);
            }
            // `/unread` and all others: the request is dropped with its body.
            _ => answer(outparam, Fields::new(), None),
        }
    }
}

fn many() -> Fields {
    let fields = Fields::new();
    for number in 0..HEADERS {
        // Traps or refuses when it is too much.
        if fields.append(&format!("x-{number}"), &[b'v'; 100]).is_err() {
            break;
        }
    }
    fields
}

fn answer(outparam: ResponseOutparam, headers: Fields, trailers: Option<Fields>) {
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(outparam, Ok(response));
    let mut out = body.write().expect("the stream is taken once");
    // A client that went away is not this handler's failure.
    let _ = out.write_all(b"attacked\n");
    drop(out);
    let _ = OutgoingBody::finish(body, trailers);
}

fn endless(outparam: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(outparam, Ok(response));
    let mut out = body.write().expect("the stream is taken once");
    let block = [b'x'; 16 << 10];
    while out.write_all(&block).is_ok() {}
}

fn ask_itself() {
    let service = std::env::var("SELF").unwrap_or_else(|_| "attacks-http".to_owned());
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(&service)))
        .and_then(|()| request.set_path_with_query(Some("/self")));
    if set.is_err() {
        return;
    }
    if let Ok(future) = outgoing_handler::handle(request, None) {
        future.subscribe().block();
    }
}
