//! `hello-http`: a `wasi:http` handler that answers every request with the name of the Pod that
//! served it.
//!
//! The name comes from the variable `POD_NAME`, which `app.yaml` fills through the downward API.
//! Each request runs in a fresh instance, so nothing is kept between two of them.

use std::io::Write as _;

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "an unnamed Pod".to_owned());
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        if path != "/bench" {
            println!("{pod} serves {path}");
        }

        let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())])
            .expect("a plain content type is a legal header");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));
        let mut out = body.write().expect("the stream is taken once");
        // A client that went away is not this handler's failure.
        let _ = out.write_all(format!("Hello from {pod}\n").as_bytes());
        drop(out);
        let _ = OutgoingBody::finish(body, None);
    }
}
