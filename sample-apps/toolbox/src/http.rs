//! As much HTTP/1.1 as `wget`, `httpd` and a test server need.

use std::io;
use std::net::SocketAddr;

use futures::future::LocalBoxFuture;

use crate::https;
use crate::io::{Input, Output};
use crate::net::{Connection, Listener, connect};
use crate::runtime;

/// The head of a request or response.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 100;
/// The body of a request that is taken.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// What is copied at once.
const CHUNK: usize = 32 << 10;

pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub peer: Option<SocketAddr>,
}

pub struct Response {
    pub status: u16,
    pub kind: &'static str,
    pub body: Vec<u8>,
    pub headers: Vec<(String, String)>,
}

impl Response {
    pub fn text(status: u16, text: impl Into<String>) -> Response {
        let body = text.into().into_bytes();
        Response { status, kind: "text/plain; charset=utf-8", body, headers: Vec::new() }
    }
}

/// The value of a header.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

pub fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The lines up to the empty one; None if the peer has gone before the first.
async fn head(input: &Input) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let Some(line) = input.until(b'\n').await? else {
            return if head.is_empty() { Ok(None) } else { Err(invalid("the head is cut off")) };
        };
        head.extend_from_slice(&line);
        if line == b"\r\n" || line == b"\n" {
            return Ok(Some(head));
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(invalid("the head is too long"));
        }
    }
}

fn owned(headers: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    let pair = |it: &httparse::Header<'_>| {
        (it.name.to_owned(), String::from_utf8_lossy(it.value).into_owned())
    };
    headers.iter().map(pair).collect()
}

/// Where a URL leads.
pub struct Url {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> io::Result<Url> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(invalid(&format!("unknown scheme {scheme}"))),
            None => (false, text),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let authority = authority.rsplit('@').next().unwrap_or(authority);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| invalid("bad port"))?)
            }
            _ => (authority, if tls { 443 } else { 80 }),
        };
        if host.is_empty() {
            return Err(invalid("the URL names no host"));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Url { tls, host, port, path: format!("{slash}{path}") })
    }

    pub fn authority(&self) -> String {
        match (self.port, self.tls) {
            (80, false) | (443, true) => self.host.clone(),
            (port, _) => format!("{}:{port}", self.host),
        }
    }
}

/// The head of an answer, and where its body comes from.
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub head: Vec<u8>,
    input: Input,
    /// The other side of the connection, kept open; none where the host has the connection.
    output: Option<Output>,
    bodiless: bool,
}

/// Sends a request and reads the head of the answer.
pub async fn request(
    url: &Url,
    method: &str,
    headers: &[String],
    body: &[u8],
) -> io::Result<Answer> {
    let mut lines = headers.to_vec();
    for (name, value) in
        [("Host", &*url.authority()), ("User-Agent", "wherry-toolbox"), ("Accept", "*/*")]
    {
        let is_it = |line: &String| {
            line.split_once(':').is_some_and(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        if !headers.iter().any(is_it) {
            lines.push(format!("{name}: {value}"));
        }
    }
    if url.tls {
        return https::request(url, method, &lines, body).await;
    }
    let connection = connect(&url.host, url.port).await?;
    let mut text = format!("{method} {} HTTP/1.1\r\n", url.path);
    for line in lines {
        text += &format!("{line}\r\n");
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "Connection: close\r\n\r\n";
    connection.output.write(text).await?;
    connection.output.write(body).await?;
    loop {
        let Some(head) = head(&connection.input).await? else {
            return Err(io::ErrorKind::ConnectionReset.into());
        };
        let mut parsed = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut parsed);
        response.parse(&head).map_err(|error| invalid(&error.to_string()))?;
        let status = response.code.unwrap_or(0);
        if (100..200).contains(&status) {
            continue;
        }
        let reason = response.reason.unwrap_or("").to_owned();
        let headers = owned(response.headers);
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        let (input, output) = (connection.input, Some(connection.output));
        return Ok(Answer { status, reason, headers, head, input, output, bodiless });
    }
}

impl Answer {
    /// As the host tells it: its body is all that comes.
    pub fn of_host(
        status: u16,
        headers: Vec<(String, String)>,
        input: Input,
        bodiless: bool,
    ) -> Answer {
        let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let head = format!("HTTP/1.1 {status}\r\n{}\r\n", lines.collect::<String>()).into();
        Answer { status, reason: String::new(), headers, head, input, output: None, bodiless }
    }

    /// Copies the body.
    pub async fn body_to(&self, output: &Output) -> io::Result<()> {
        let input = &self.input;
        if self.bodiless {
            return Ok(());
        }
        if self.output.is_none() {
            return copy(input, output, None).await;
        }
        let coding = header(&self.headers, "transfer-encoding").unwrap_or("");
        if coding.eq_ignore_ascii_case("chunked") {
            loop {
                let line = input.line().await?.unwrap_or_default();
                let text = String::from_utf8_lossy(&line);
                let digits = text.split(';').next().unwrap_or("").trim();
                let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("a bad chunk"))?;
                if size == 0 {
                    return Ok(());
                }
                copy(input, output, Some(size)).await?;
                input.line().await?;
            }
        }
        let length = header(&self.headers, "content-length");
        copy(input, output, length.and_then(|text| text.trim().parse().ok())).await
    }
}

async fn copy(input: &Input, output: &Output, size: Option<u64>) -> io::Result<()> {
    let mut left = size.unwrap_or(u64::MAX);
    while left > 0 {
        let chunk = input.chunk(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)).await?;
        if chunk.is_empty() {
            return match size {
                Some(_) => Err(io::ErrorKind::ConnectionReset.into()),
                None => Ok(()),
            };
        }
        left -= chunk.len() as u64;
        output.write(chunk).await?;
    }
    Ok(())
}

/// What a server does with each request.
pub trait Serve: Clone + 'static {
    fn answer(&self, request: Request) -> LocalBoxFuture<'static, Response>;
}

/// Serves until the listener fails.
pub async fn serve(listener: Listener, server: impl Serve) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        let server = server.clone();
        runtime::spawn(async move {
            // A client that breaks off is its own business.
            let _ = converse(connection, server).await;
        });
    }
}

async fn converse(connection: Connection, server: impl Serve) -> io::Result<()> {
    while let Some(head) = head(&connection.input).await? {
        let mut parsed = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut parsed);
        if request.parse(&head).is_err() {
            let bad = Response::text(400, "400 Bad Request\n");
            return respond(&connection.output, &bad, false, true).await;
        }
        let method = request.method.unwrap_or("GET").to_owned();
        let path = request.path.unwrap_or("/").to_owned();
        let old = request.version == Some(0);
        let headers = owned(request.headers);
        let length = header(&headers, "content-length").and_then(|text| text.trim().parse().ok());
        let length: u64 = length.unwrap_or(0);
        let chunked = header(&headers, "transfer-encoding").is_some();
        if length > BODY_BYTES_MAX || chunked {
            let large = Response::text(413, "413 the body must have a length of at most 1 MiB\n");
            return respond(&connection.output, &large, false, true).await;
        }
        let memory = Output::memory();
        copy(&connection.input, &memory, Some(length)).await?;
        let asked = header(&headers, "connection").unwrap_or("").to_ascii_lowercase();
        let closes = asked.contains("close") || (old && !asked.contains("keep-alive"));
        let bodiless = method == "HEAD";
        let peer = connection.peer;
        let request = Request { method, path, headers, body: memory.take(), peer };
        let response = server.answer(request).await;
        respond(&connection.output, &response, bodiless, closes).await?;
        if closes {
            break;
        }
    }
    Ok(())
}

async fn respond(
    output: &Output,
    response: &Response,
    bodiless: bool,
    closes: bool,
) -> io::Result<()> {
    let reason = match response.status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        500 => "Internal Server Error",
        _ => "",
    };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
        response.status,
        response.kind,
        response.body.len()
    );
    for (name, value) in &response.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += if closes { "Connection: close\r\n\r\n" } else { "\r\n" };
    let mut bytes = text.into_bytes();
    if !bodiless {
        bytes.extend_from_slice(&response.body);
    }
    output.write(bytes).await
}

/// A query's value, decoded.
pub fn query(path: &str, name: &str) -> Option<String> {
    let (_, query) = path.split_once('?')?;
    let value = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })?;
    Some(decoded(value))
}

/// Without `%XX` and `+`.
pub fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let code = std::str::from_utf8(&digits).ok();
                out.extend(code.and_then(|code| u8::from_str_radix(code, 16).ok()));
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
