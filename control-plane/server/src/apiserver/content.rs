//! Forms of bodies: which one a client sent, which one it wants, and the way between them.
//!
//! Bodies come as JSON, YAML or protobuf and are one `serde_json::Value` afterwards. JSON and YAML
//! go through one visitor that remembers keys that stood twice, because a client that sends a
//! field twice must hear of it. Answers are JSON (or YAML when asked), as the object itself, as a
//! Table, or as metadata only. Lists and watch events are assembled from stored bytes where
//! nothing about an object has to be known (`stored.rs`).

use super::errors::ApiError;
use super::{escape, yaml};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};
use std::cmp::Reverse;
use std::time::Duration;

/// Largest body of a request, as in Kubernetes: an object has at most half of it.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Deepest nesting of a body: far above any manifest, far below what a stack can bear.
pub const DEPTH_MAX: usize = 128;
/// Most values in a body; the largest real objects have tens of thousands. A YAML alias repeats what
/// it names, so bytes alone bound nothing.
const VALUES_MAX: usize = 400_000;
/// Most characters of a YAML body at which a value may begin or end. The reader keeps the whole
/// document as events of a hundred bytes before we see the first of them.
const YAML_MARKS_MAX: usize = 2 * VALUES_MAX;

const TOO_LARGE: &str = "the body is nested too deeply or too large";

/// Most keys sent twice that are reported: each may become a header of the answer.
const DUPLICATES_MAX: usize = 100;

/// Room for warnings in an answer, as in Kubernetes; beyond it each is cut to this many characters.
const WARNINGS_BYTES_MAX: usize = 4 * 1024;
const LONG_WARNING_CHARS: usize = 256;

/// How long, and how much of, a body that nobody wants is listened to.
const UNWANTED_MAX: (Duration, usize) = (Duration::from_secs(2), BODY_BYTES_MAX);

/// What we can read; named when we cannot read something.
pub const READABLE: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// What we can write.
pub const WRITABLE: &str = "application/json, application/yaml";

/// What an answer shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object.
    Object,
    /// Columns for people, in the group version `meta.k8s.io/v1` or the older `v1beta1`.
    Table { version: &'static str },
    /// PartialObjectMetadata or its list.
    Metadata { version: &'static str },
}

/// How a client wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// What to show.
    pub form: Form,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// Indented, for people.
    pub pretty: bool,
    /// With the record of who manages which fields ([`WithoutManagers`]).
    pub managers: bool,
}

/// Request extension of clients inside the process that never read who manages which fields. That
/// is much of most objects, and is left out of what they get where that is cheaper than to read it.
#[derive(Clone, Copy, Debug)]
pub struct WithoutManagers;

impl Accepted {
    /// Compact JSON of the object itself: stored bytes can be used as they are.
    pub fn is_plain(&self) -> bool {
        self.form == Form::Object && self.is_compact()
    }

    /// JSON for programs.
    pub fn is_compact(&self) -> bool {
        !self.yaml && !self.pretty
    }
}

/// Chooses the form that an `Accept` header likes best.
pub fn negotiate(
    accept: &str,
    user_agent: &str,
    pretty: Option<&str>,
) -> Result<Accepted, ApiError> {
    let pretty = is_for_people(user_agent, pretty);
    let json = Accepted { form: Form::Object, yaml: false, pretty, managers: true };
    if accept.trim().is_empty() {
        return Ok(json);
    }
    for range in preferred(accept) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or("").to_ascii_lowercase();
        let parameter = |name: &str| {
            let mut pairs = range.split(';').skip(1).filter_map(|part| part.trim().split_once('='));
            pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let yaml = match media.as_str() {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            _ => continue,
        };
        let form = match (parameter("as"), parameter("g"), parameter("v")) {
            (None, _, _) => Form::Object,
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Form::Table { version: "v1" },
            (Some("Table"), Some("meta.k8s.io"), Some("v1beta1")) => {
                Form::Table { version: "v1beta1" }
            }
            (Some(name), Some("meta.k8s.io"), Some(version))
                if name.starts_with("PartialObjectMetadata") =>
            {
                let version = if version == "v1beta1" { "v1beta1" } else { "v1" };
                Form::Metadata { version }
            }
            _ => continue,
        };
        return Ok(Accepted { form, yaml, ..json });
    }
    Err(ApiError::NotAcceptable(WRITABLE))
}

/// Whether a client shows its answers to people: it says so, or is known for it.
pub fn is_for_people(user_agent: &str, pretty: Option<&str>) -> bool {
    match pretty {
        Some(text) => !matches!(text, "0" | "false"),
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|word| user_agent.starts_with(word)),
    }
}

/// Stands among the extensions of an answer that was made without knowing for whom: its JSON.
#[derive(Clone)]
pub struct Shown(pub Bytes);

/// Such an answer with indents, for people; any other one as it is.
pub fn for_people(mut answer: Response) -> Response {
    let is_compressed = answer.headers().contains_key(header::CONTENT_ENCODING);
    if let Some(Shown(json)) = answer.extensions_mut().remove::<Shown>()
        && !is_compressed
        && let Ok(value) = serde_json::from_slice::<Value>(&json)
    {
        *answer.body_mut() = Body::from(rendered(&value, true));
    }
    answer
}

/// The media ranges of an `Accept` header in the order in which the client likes them: by their
/// quality, then what is named before what is any, then as they stand. What it does not want at all
/// is left out.
pub fn preferred(accept: &str) -> Vec<&str> {
    let anys = |range: &str| range.split(';').next().unwrap_or("").matches('*').count();
    let rated = accept.split(',').map(|range| (quality(range), range));
    let mut wanted: Vec<(u32, &str)> = rated.filter(|(quality, _)| *quality > 0).collect();
    wanted.sort_by_key(|(quality, range)| (Reverse(*quality), anys(range)));
    wanted.into_iter().map(|(_, range)| range).collect()
}

/// The parameter `q` of a media range, in thousandths; what cannot be read says nothing.
fn quality(range: &str) -> u32 {
    const BEST: u32 = 1_000;
    let mut parameters = range.split(';').skip(1).filter_map(|part| part.trim().split_once('='));
    let found = parameters.find(|(name, _)| name.eq_ignore_ascii_case("q"));
    let text = found.map_or("1", |(_, text)| text.trim());
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{rest:0<3}");
    match (whole, digits.get(..3).and_then(|digits| digits.parse().ok())) {
        ("0", Some(thousandths)) => thousandths,
        _ => BEST,
    }
}

/// A body and the paths of the keys that stood in it more than once.
#[derive(Debug)]
pub struct Decoded {
    /// The body.
    pub value: Value,
    /// As `spec.replicas`.
    pub duplicates: Vec<String>,
}

/// Reads a body of a known content type. `expected` names the kind in messages.
pub fn decode(content_type: &str, body: &[u8], expected: &str) -> Result<Decoded, ApiError> {
    let unreadable = |error: String| {
        ApiError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {expected}): {error}"
        ))
    };
    match content_type {
        "application/json" | "text/json" => decode_json(body).map_err(unreadable),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            decode_yaml(body).map_err(unreadable)
        }
        "application/vnd.kubernetes.protobuf" => {
            let value = wherry_resources::protobuf::decode(body)
                .map_err(|error| unreadable(error.to_string()))?;
            Ok(Decoded { value, duplicates: Vec::new() })
        }
        _ => Err(ApiError::UnsupportedMediaType(READABLE)),
    }
}

/// Reads JSON; an error names the place.
pub fn decode_json(body: &[u8]) -> Result<Decoded, String> {
    let mut reading = Reading::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = At { reading: &mut reading, depth: 0 }.deserialize(&mut deserializer);
    let value = value.map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(Decoded { value, duplicates: reading.duplicates })
}

/// Reads one YAML document.
pub fn decode_yaml(body: &[u8]) -> Result<Decoded, String> {
    let marks = body.iter().filter(|byte| b"-,:[{\n".contains(byte)).count();
    if marks > YAML_MARKS_MAX {
        return Err(TOO_LARGE.to_owned());
    }
    let mut reading = Reading::default();
    let value = At { reading: &mut reading, depth: 0 }
        .deserialize(serde_yaml_ng::Deserializer::from_slice(body))
        .map_err(|error| error.to_string())?;
    Ok(Decoded { value, duplicates: reading.duplicates })
}

/// What is remembered while a body is read.
#[derive(Default)]
struct Reading {
    path: Vec<String>,
    duplicates: Vec<String>,
    values: usize,
}

/// A place in the body.
struct At<'a> {
    reading: &'a mut Reading,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.reading.values += 1;
        if self.depth > DEPTH_MAX || self.reading.values > VALUES_MAX {
            return Err(serde::de::Error::custom(TOO_LARGE));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.reading.path.push(format!("[{}]", items.len()));
            let next =
                access.next_element_seed(At { reading: self.reading, depth: self.depth + 1 })?;
            self.reading.path.pop();
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.reading.path.push(key.clone());
            let value =
                access.next_value_seed(At { reading: self.reading, depth: self.depth + 1 })?;
            let twice = object.insert(key, value).is_some();
            if twice && self.reading.duplicates.len() < DUPLICATES_MAX {
                self.reading.duplicates.push(self.reading.path.join(".").replace(".[", "["));
            }
            self.reading.path.pop();
        }
        Ok(Value::Object(object))
    }
}

/// Reads what is left of a body that nobody wants. Over HTTP/1.1 a connection ends with the answer
/// when the request was not read, and a client that is still sending would lose the answer with it.
pub async fn drain(mut body: Body) {
    let (time, most) = UNWANTED_MAX;
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if read > most {
                return;
            }
        }
    };
    // Whoever is slower than that has to live with it.
    let _ = tokio::time::timeout(time, reading).await;
}

/// An answer made of an object, in the form and with the warnings that go with it.
pub fn respond(
    code: StatusCode,
    accepted: &Accepted,
    value: &Value,
    warnings: &[String],
) -> Response {
    let (media, bytes) = if accepted.yaml {
        ("application/yaml", yaml::text(value).into_bytes())
    } else {
        ("application/json", rendered(value, accepted.pretty))
    };
    respond_bytes(code, media, bytes, warnings)
}

/// A value as answers have it, indented or not.
pub fn rendered(value: &Value, pretty: bool) -> Vec<u8> {
    let text = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut text = text.expect("a value has only string keys");
    text.push(b'\n');
    escape::whole(text)
}

/// An answer whose bytes are ready.
pub fn respond_bytes(
    code: StatusCode,
    media: &'static str,
    bytes: Vec<u8>,
    warnings: &[String],
) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    warn(response.headers_mut(), warnings);
    response
}

/// Adds warnings to an answer.
pub fn warn(headers: &mut http::HeaderMap, warnings: &[String]) {
    for warning in warning_headers(warnings) {
        headers.append(header::WARNING, warning);
    }
}

/// `299 - "text"`, quoted and escaped, each text once, without control characters.
fn warning_headers(warnings: &[String]) -> Vec<HeaderValue> {
    let mut texts: Vec<String> = Vec::new();
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let is_long = texts.iter().map(String::len).sum::<usize>() > WARNINGS_BYTES_MAX;
    let mut left = WARNINGS_BYTES_MAX;
    let mut headers = Vec::new();
    for text in texts {
        let text: String = match is_long {
            true => text.chars().take(LONG_WARNING_CHARS).collect(),
            false => text,
        };
        if text.len() > left {
            break;
        }
        left -= text.len();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        headers.extend(HeaderValue::try_from(format!("299 - \"{text}\"")).ok());
    }
    headers
}

/// The metadata-only form of an object.
pub fn metadata_only(mut object: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get_mut("metadata").map_or_else(|| json!({}), Value::take),
    })
}

#[cfg(test)]
mod tests {
    use super::preferred;

    #[test]
    fn what_a_client_likes_best_comes_first() {
        for (accept, expected) in [
            ("a/b,c/d", "a/b c/d"),
            ("a/b;q=0.5,c/d", "c/d a/b;q=0.5"),
            ("*/*,a/*,a/b", "a/b a/* */*"),
            ("a/b;q=0.25,c/d;q=0.3,*/*;q=1.0", "*/*;q=1.0 c/d;q=0.3 a/b;q=0.25"),
            ("a/b;q=0,c/d;q=0.000,e/f", "e/f"),
            ("a/b;q=x,c/d;Q=0.1", "a/b;q=x c/d;Q=0.1"),
        ] {
            assert_eq!(preferred(accept).join(" "), expected, "{accept}");
        }
    }
}
