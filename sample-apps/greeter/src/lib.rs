//! `greeter`: a gRPC service as a `wasi:http` handler. gRPC is HTTP/2 with messages in the bodies and
//! the status in the trailers; a handler sees neither frames nor connections.
//!
//! ```text
//! service Greeter {                            // package wherry.sample
//!   rpc SayHello (Hello) returns (Greeting);
//!   rpc SayHelloManyTimes (Hello) returns (stream Greeting);
//! }
//! message Hello    { string name = 1; uint32 times = 2; uint32 pause_ms = 3; }
//! message Greeting { string message = 1; }
//! ```
//!
//! A greeting names the Pod (`POD_NAME`). With the variable `TARGET`, a Service, `SayHello` asks that
//! one and repeats what it said.

mod message;

use std::io::{Read as _, Write};

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::{InputStream, OutputStream};

use self::message::{Hello, framed, text_of, unframed_length};

wasip2::http::proxy::export!(Greeter);

struct Greeter;

const SERVICE: &str = "/wherry.sample.Greeter/";
/// Larger messages are refused.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A status of gRPC other than OK, and why.
struct Refused(u32, String);

const INVALID_ARGUMENT: u32 = 3;
const UNIMPLEMENTED: u32 = 12;
const UNAVAILABLE: u32 = 14;

impl wasip2::exports::http::incoming_handler::Guest for Greeter {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let response = OutgoingResponse::new(fields(&[("content-type", "application/grpc")]));
        let body = response.body().expect("the body is taken once");
        // The status comes in the trailers, so the head can go at once.
        ResponseOutparam::set(outparam, Ok(response));
        let mut out = body.write().expect("the stream is taken once");
        let outcome = answer(&request, &mut out);
        drop(out);
        let trailers = match outcome {
            Ok(()) => fields(&[("grpc-status", "0")]),
            Err(Refused(status, why)) => {
                let status = status.to_string();
                fields(&[("grpc-status", status.as_str()), ("grpc-message", why.as_str())])
            }
        };
        // A client that went away is not this handler's failure.
        let _ = OutgoingBody::finish(body, Some(trailers));
    }
}

fn fields(all: &[(&str, &str)]) -> Fields {
    let entry = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
    let entries: Vec<_> = all.iter().map(entry).collect();
    Fields::from_list(&entries).expect("plain names and values are legal headers")
}

fn answer(request: &IncomingRequest, out: &mut OutputStream) -> Result<(), Refused> {
    let path = request.path_with_query().unwrap_or_default();
    let method = path.strip_prefix(SERVICE).unwrap_or_default();
    let body = request.consume().map_err(|()| invalid("the request has no body"))?;
    let stream = body.stream().map_err(|()| invalid("the request's body was taken"))?;
    let hello = Hello::read(&read_message(stream)?).ok_or_else(|| invalid("this is no Hello"))?;
    match (method, std::env::var("TARGET")) {
        ("SayHello", Ok(target)) => say(out, &format!("{target} said: {}", ask(&target, &hello)?)),
        ("SayHello", Err(_)) => say(out, &greeting(&hello)),
        ("SayHelloManyTimes", _) => {
            for number in 0..hello.times {
                if number > 0 {
                    subscribe_duration(u64::from(hello.pause_ms) * 1_000_000).block();
                }
                say(out, &greeting(&hello))?;
            }
            Ok(())
        }
        _ => Err(Refused(UNIMPLEMENTED, format!("there is no method {path}"))),
    }
}

fn invalid(why: &str) -> Refused {
    Refused(INVALID_ARGUMENT, why.to_owned())
}

fn greeting(hello: &Hello) -> String {
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "an unnamed Pod".to_owned());
    format!("Hello {} from {pod}", hello.name)
}

/// Sends one greeting.
fn say(out: &mut OutputStream, text: &str) -> Result<(), Refused> {
    let gone = |_| Refused(UNAVAILABLE, "the client is gone".to_owned());
    Write::write_all(out, &framed(&message::text(text))).map_err(gone)?;
    // It must not wait for the next one.
    Write::flush(out).map_err(gone)
}

/// The one message of a body.
fn read_message(mut stream: InputStream) -> Result<Vec<u8>, Refused> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).map_err(|_| invalid("the message is cut short"))?;
    let length = unframed_length(head).ok_or_else(|| invalid("the message is compressed"))?;
    if length > MESSAGE_BYTES_MAX {
        return Err(invalid("the message is too large"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).map_err(|_| invalid("the message is cut short"))?;
    Ok(message)
}

/// Asks another greeter, and returns its greeting.
fn ask(target: &str, hello: &Hello) -> Result<String, Refused> {
    let failed = |why: String| Refused(UNAVAILABLE, format!("{target} did not answer: {why}"));
    let request = OutgoingRequest::new(fields(&[("content-type", "application/grpc")]));
    request
        .set_method(&Method::Post)
        .and_then(|()| request.set_scheme(Some(&Scheme::Http)))
        .and_then(|()| request.set_authority(Some(target)))
        .and_then(|()| request.set_path_with_query(Some(&format!("{SERVICE}SayHello"))))
        .map_err(|()| failed("it is no Service's name".to_owned()))?;
    let body = request.body().map_err(|()| failed("the request has no body".to_owned()))?;
    let future =
        outgoing_handler::handle(request, None).map_err(|code| failed(format!("{code:?}")))?;
    {
        let mut out = body.write().map_err(|()| failed("the body was taken".to_owned()))?;
        let written = out.write_all(&framed(&hello.write()));
        written.map_err(|error| failed(error.to_string()))?;
    }
    OutgoingBody::finish(body, None).map_err(|code| failed(format!("{code:?}")))?;
    future.subscribe().block();
    let response = future
        .get()
        .ok_or_else(|| failed("the response was not ready".to_owned()))?
        .map_err(|()| failed("the response was taken twice".to_owned()))?
        .map_err(|code| failed(format!("{code:?}")))?;
    if response.status() != 200 {
        return Err(failed(format!("status {}", response.status())));
    }
    let body = response.consume().map_err(|()| failed("the answer has no body".to_owned()))?;
    let stream = body.stream().map_err(|()| failed("its body was taken".to_owned()))?;
    let said = read_message(stream);
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    let trailers = trailers
        .get()
        .ok_or_else(|| failed("there was no status".to_owned()))?
        .map_err(|()| failed("the trailers were taken twice".to_owned()))?
        .map_err(|code| failed(format!("{code:?}")))?
        .ok_or_else(|| failed("there was no status".to_owned()))?;
    let status = trailers.get("grpc-status");
    if status.first().map(Vec::as_slice) != Some(&b"0"[..]) {
        let why = trailers.get("grpc-message").concat();
        return Err(failed(String::from_utf8_lossy(&why).into_owned()));
    }
    text_of(&said?).ok_or_else(|| failed("that is no Greeting".to_owned()))
}
