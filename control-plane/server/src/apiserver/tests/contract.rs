//! The API's contract as conversations: one script a section, what clients send and what they get.
//!
//! A script (`contract/*.txt`) is a row of cases, separated by empty lines, against one server:
//!
//! ```text
//! # Why this case is here.
//! as alice developers            who sends from here on (an administrator without it)
//! POST /api/v1/...               the request
//! Accept: application/json       its headers
//! {"metadata":{"name":"a"}}      its body
//! show content-type etag         headers of the answer to print
//! pick /metadata/labels          only these parts of the answer
//! = 201 ...                      the answer, made anew with UPDATE_EXPECT=1
//! ```
//!
//! `hex 6b38…` is a binary body, `repeat N text` a long one, `owners` prints who owns which field of
//! the object in the answer. What differs from run to run is masked.

use super::script::{Server, admin, masked};
use crate::apiserver::User;
use axum::{body::Body, response::Response};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use tower::ServiceExt as _;

/// Longest answer that is printed whole.
const SHOWN_MAX: usize = 4000;

fn folder() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apiserver/tests/contract")
}

/// One case, read.
#[derive(Default)]
struct Case {
    user: Option<User>,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    show: Vec<String>,
    pick: Vec<String>,
    owners: bool,
}

impl Case {
    fn read(block: &str) -> Case {
        let mut case = Case::default();
        let lines = block.lines().filter(|line| !line.starts_with(['#', '=']));
        for line in lines {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "as" => {
                    let (name, groups) = rest.split_once(' ').unwrap_or((rest, ""));
                    let groups: Vec<&str> = groups.split_whitespace().collect();
                    case.user = Some(match name {
                        "admin" => admin(),
                        "anonymous" => User::anonymous(),
                        name => User::new(name, &groups),
                    });
                }
                "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS" => {
                    (case.method, case.path) = (word.to_owned(), rest.to_owned());
                }
                "show" => case.show = rest.split_whitespace().map(str::to_owned).collect(),
                "pick" => case.pick = rest.split_whitespace().map(str::to_owned).collect(),
                "owners" => case.owners = true,
                "hex" => case.body.extend(hex::decode(rest.replace(' ', "")).expect("hex digits")),
                "repeat" => {
                    let (count, text) = rest.split_once(' ').expect("a count and a text");
                    let count = count.parse().expect("a number");
                    case.body.extend(text.repeat(count).into_bytes());
                }
                word if word.len() > 1 && word.ends_with(':') && !word.starts_with(['{', '"']) => {
                    let is_header = case.body.is_empty() && word.as_bytes()[0].is_ascii_uppercase();
                    if is_header {
                        case.headers.push((word.trim_end_matches(':').into(), rest.into()));
                    } else {
                        case.text(line);
                    }
                }
                _ => case.text(line),
            }
        }
        case
    }

    fn text(&mut self, line: &str) {
        // Lines of YAML may be indented with a leading bar, which is taken off.
        self.body.extend_from_slice(line.strip_prefix('|').unwrap_or(line).as_bytes());
        self.body.push(b'\n');
    }

    async fn send(&self, server: &Server, user: &User) -> Response {
        let mut request = Request::builder()
            .method(Method::from_bytes(self.method.as_bytes()).expect("a method"))
            .uri(&self.path)
            .extension(user.clone());
        for (name, value) in &self.headers {
            let name = HeaderName::try_from(name.as_str()).expect("a header name");
            request = request.header(name, HeaderValue::try_from(value).expect("a header value"));
        }
        // A single line's end belongs to the script.
        let body = self.body.strip_suffix(b"\n").unwrap_or(&self.body).to_vec();
        let request = request.body(Body::from(body)).expect("a request");
        server.api.router().oneshot(request).await.expect("the router is infallible")
    }

    async fn answer(&self, response: Response) -> String {
        let mut out = response.status().as_u16().to_string();
        for warning in response.headers().get_all("warning") {
            let _ = write!(out, "\nWarning: {}", warning.to_str().unwrap_or("?"));
        }
        for name in &self.show {
            for value in response.headers().get_all(name.as_str()) {
                let _ = write!(out, "\n{name}: {}", value.to_str().unwrap_or("?"));
            }
        }
        let bytes = response.into_body().collect().await.expect("the body ends").to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        if self.owners {
            let object: Value = serde_json::from_str(&text).unwrap_or_default();
            // Within one operation entries are ordered by the second of their write, which differs
            // from run to run.
            let mut entries = wherry_resources::meta::managed_fields(&object).to_vec();
            entries.sort_by_key(|entry| {
                let keys = ["operation", "manager", "apiVersion", "subresource"];
                keys.map(|key| entry[key].as_str().unwrap_or("").to_owned())
            });
            for entry in &entries {
                let word = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
                let _ = write!(
                    out,
                    "\n{} {} {} {} {}",
                    word("operation"),
                    word("manager"),
                    word("apiVersion"),
                    word("subresource"),
                    entry["fieldsV1"]
                );
            }
            return out;
        }
        if self.pick.is_empty() {
            let text = masked_lines(&masked(&text));
            let text = match text.char_indices().nth(SHOWN_MAX) {
                Some((end, _)) => format!("{} ... {} bytes", &text[..end], bytes.len()),
                None => text,
            };
            if !text.trim_end().is_empty() {
                let _ = write!(out, "\n{}", text.trim_end());
            }
            return out;
        }
        let object: Value = serde_json::from_str(&text).unwrap_or_default();
        for path in &self.pick {
            let shown = object.pointer(path).cloned().map(|value| match path.ends_with("/cells") {
                true => young(value).to_string(),
                false => value.to_string(),
            });
            let shown = shown.unwrap_or("-".to_owned());
            let _ = write!(out, "\n{path} {}", masked(&shown));
        }
        out
    }
}

/// Cells of a table in which what was made by the script has the age of its first second.
fn young(cells: Value) -> Value {
    match cells {
        Value::Array(cells) => cells.into_iter().map(young).collect(),
        Value::String(text) if is_age(&text) => "0s".into(),
        other => other,
    }
}

fn is_age(text: &str) -> bool {
    text.strip_suffix('s').is_some_and(|age| age.parse::<u8>().is_ok())
}

/// Masks the lines of YAML and of indented JSON that differ from run to run.
fn masked_lines(text: &str) -> String {
    let keys = ["resourceVersion", "creationTimestamp", "time"];
    let mask = |line: &str| {
        let name = line.trim_start().trim_start_matches('"').split(['"', ':']).next();
        match line.split_once(": ") {
            Some((key, _)) if keys.contains(&name.unwrap_or("")) => format!("{key}: -"),
            _ => match line.split_once("- \"") {
                Some((indent, cell)) if is_age(cell.trim_end_matches('"')) => {
                    format!("{indent}- \"0s\"")
                }
                _ => line.to_owned(),
            },
        }
    };
    text.lines().map(mask).collect::<Vec<_>>().join("\n")
}

/// A request of a script, for those who damage them.
pub struct Sent {
    pub method: String,
    pub path: String,
    pub content_type: String,
    pub accept: String,
    pub body: Vec<u8>,
}

/// Every request of every script.
pub fn sent() -> Vec<Sent> {
    let mut found = Vec::new();
    for name in names() {
        let script = std::fs::read_to_string(folder().join(name)).expect("the script is readable");
        for case in script.split("\n\n").map(Case::read).filter(|case| !case.method.is_empty()) {
            let header = |name: &str| {
                let mut headers = case.headers.iter();
                let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone())
            };
            found.push(Sent {
                content_type: header("content-type").unwrap_or("application/json".to_owned()),
                accept: header("accept").unwrap_or_default(),
                method: case.method,
                path: case.path,
                body: case.body,
            });
        }
    }
    found
}

/// The scripts, in their order.
fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("the scripts are there")
        .map(|entry| entry.expect("a readable folder").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".txt"))
        .collect();
    names.sort();
    names
}

/// Runs one script; returns how many cases it has.
async fn check(name: &str) -> usize {
    let path = folder().join(name);
    let script = std::fs::read_to_string(&path).expect("the script is readable");
    let server = Server::start().await;
    let mut user = admin();
    let (mut rendered, mut count) = (Vec::new(), 0);
    for block in script.trim_end().split("\n\n") {
        let mut lines: Vec<&str> = block.lines().filter(|line| !line.starts_with('=')).collect();
        let case = Case::read(block);
        user = case.user.clone().unwrap_or(user);
        let mut answer = String::new();
        if !case.method.is_empty() {
            count += 1;
            answer = case.answer(case.send(&server, &user).await).await;
        }
        let answer: Vec<String> = answer.lines().map(|line| format!("= {line}")).collect();
        lines.extend(answer.iter().map(String::as_str));
        rendered.push(lines.join("\n"));
    }
    expect_test::expect_file![path].assert_eq(&(rendered.join("\n\n") + "\n"));
    count
}

/// All scripts, each against its own server; prints how many cases each section has.
#[tokio::test]
async fn contract() {
    let mut total = 0;
    for name in names() {
        let count = check(&name).await;
        println!("{count:5}  {}", name.trim_end_matches(".txt"));
        total += count;
    }
    println!("{total:5}  cases");
}
