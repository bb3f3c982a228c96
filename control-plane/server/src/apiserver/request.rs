//! From an HTTP request to values that the rest decides on; nothing here awaits or looks at state.
//!
//! [`Attributes`] is what a request is about, read from method, path and query alone, exactly as
//! Kubernetes reads it. Authorisation sees only that, so that an unknown resource is refused before
//! it is found to be unknown. [`Request`] is the same with the row of the table of kinds.

use super::{auth::User, catalog::Catalog, content::Accepted, errors::ApiError};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use wherry_resources::{Kind, Subresource, selectors::FieldSelector};

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Kubernetes verb (get, list, …), or the method in lower case on a plain path.
    pub verb: String,
    /// Whether the path names a resource; if not, only `verb` and `path` count.
    pub is_resource: bool,
    /// API group, empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; of a Namespace itself its own name.
    pub namespace: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// What follows the subresource (proxy paths), without its first slash.
    pub rest: String,
    /// Object's name; for lists the one that a `metadata.name` field selector allows.
    pub name: String,
    /// Whether the name stands in the path and not in a selector.
    pub named: bool,
    /// Path as sent.
    pub path: String,
    /// The query's field selector as sent.
    pub field_selector: String,
}

/// Decoded query parameters in order; the first of a name counts.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`; tolerates empty parts, as `?&a=b`.
    pub fn parse(query: &str) -> Query {
        Query(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Value of a parameter; empty ones count as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// `1`, `true` and a bare name are true, as Kubernetes reads booleans in queries.
    pub fn flag(&self, name: &str) -> bool {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.is_some_and(|(_, value)| !matches!(value.as_str(), "0" | "false" | "False"))
    }

    /// A whole number, or 400 naming the parameter.
    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let wrong = |_| ApiError::BadRequest(format!("{name}: {text:?} is not a whole number"));
        text.parse().map(Some).map_err(wrong)
    }
}

/// A request for a resource, complete and understood.
pub struct Request {
    /// Who asks.
    pub user: User,
    /// What it is about.
    pub attributes: Attributes,
    /// Row of the kind in the path.
    pub kind: &'static Kind,
    /// Row of the subresource in the path.
    pub subresource: Option<&'static Subresource>,
    /// Query parameters.
    pub query: Query,
    /// Form of the answer.
    pub accepted: Accepted,
    /// Headers as sent.
    pub headers: HeaderMap,
    /// Whole body, at most the body limit.
    pub body: Bytes,
}

impl Request {
    /// Namespace in the path; None for cluster-scoped kinds and for lists over all namespaces.
    pub fn namespace(&self) -> Option<&str> {
        let namespace = self.attributes.namespace.as_str();
        (self.kind.namespaced && !namespace.is_empty()).then_some(namespace)
    }

    /// Name in the path.
    pub fn name(&self) -> &str {
        &self.attributes.name
    }

    /// Content type of the body without its parameters, in lower case; JSON when none is given.
    pub fn content_type(&self) -> String {
        let sent = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let bare = sent.and_then(|value| value.split(';').next()).unwrap_or("").trim();
        if bare.is_empty() { "application/json".into() } else { bare.to_ascii_lowercase() }
    }
}

/// Subresources of a Namespace; any other word after its name is a resource inside it.
const NAMESPACE_PARTS: [&str; 2] = ["status", "finalize"];

/// Reads method, path and query as Kubernetes' RequestInfo does.
pub fn attributes(method: &Method, path: &str, query: &Query) -> Attributes {
    let plain = || Attributes {
        verb: method.as_str().to_ascii_lowercase(),
        path: path.into(),
        ..Attributes::default()
    };
    let decoded: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into())
        .collect();
    // No name is empty or holds the byte that separates the parts of a key. What lies behind a
    // proxy is not ours.
    let proxy = if decoded.get(2).is_some_and(|word| word == "namespaces") { 6 } else { 4 };
    let is_proxy = decoded.get(proxy).is_some_and(|word| word == "proxy");
    let ours = if is_proxy { &decoded[..=proxy] } else { &decoded[..] };
    if ours.iter().any(|segment| segment.is_empty() || segment.contains('\0')) {
        return plain();
    }
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let (group, version, segments) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return plain(),
    };
    let mut found = Attributes {
        is_resource: true,
        group: group.into(),
        version: version.into(),
        path: path.into(),
        field_selector: query.get("fieldSelector").unwrap_or("").into(),
        ..Attributes::default()
    };
    // An old form of a watch: the word stands before the path of what is watched.
    let (watches, segments) = match segments {
        ["watch", rest @ ..] if !rest.is_empty() && *method == Method::GET => (true, rest),
        _ => (false, segments),
    };
    let parts = match segments {
        ["namespaces", name, rest @ ..] => {
            found.namespace = (*name).into();
            match rest {
                [] => segments,
                [part, ..] if NAMESPACE_PARTS.contains(part) => segments,
                inside => inside,
            }
        }
        other => other,
    };
    found.resource = parts[0].into();
    if let Some(name) = parts.get(1) {
        found.name = (*name).into();
        found.named = true;
    }
    if let Some(subresource) = parts.get(2) {
        found.subresource = (*subresource).into();
        found.rest = parts[3..].join("/");
    }
    found.verb = if watches { "watch" } else { verb(method, found.named, query) }.into();
    if !found.named && matches!(found.verb.as_str(), "list" | "watch" | "deletecollection") {
        found.name = selected_name(&found.field_selector).unwrap_or_default();
    }
    found
}

fn verb(method: &Method, named: bool, query: &Query) -> &'static str {
    match (method, named) {
        (&Method::GET | &Method::HEAD, true) if !query.flag("watch") => "get",
        (&Method::GET | &Method::HEAD, false) if !query.flag("watch") => "list",
        (&Method::GET | &Method::HEAD, _) => "watch",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "",
    }
}

/// The name in `metadata.name=x`, if the selector has that part. It counts for authorisation, so it
/// is read with the parser that later selects.
fn selected_name(field_selector: &str) -> Option<String> {
    let selector = FieldSelector::parse(field_selector).ok()?;
    selector.exact("metadata.name").map(str::to_owned)
}

/// Finds the row of what is served. A cluster kind under a namespace, or a named object of a
/// namespaced kind without one, is a path that leads nowhere.
pub fn resolve(
    attributes: &Attributes,
    catalog: impl FnOnce() -> std::sync::Arc<Catalog>,
) -> Result<(&'static Kind, Option<&'static Subresource>), ApiError> {
    let Attributes { group, version, resource, .. } = attributes;
    let found = wherry_resources::kind(group, version, resource)
        .or_else(|| catalog().kind(group, version, resource));
    let kind = found.ok_or(ApiError::NoSuchPath)?;
    let own_namespace = attributes.resource == "namespaces" && attributes.group.is_empty();
    let has_namespace = !attributes.namespace.is_empty();
    if !kind.namespaced && has_namespace && !own_namespace {
        return Err(ApiError::NoSuchPath);
    }
    if kind.namespaced && !has_namespace && attributes.named {
        return Err(ApiError::NoSuchPath);
    }
    let subresource = match attributes.subresource.as_str() {
        "" => None,
        name => {
            let found = kind.subresources.iter().find(|subresource| subresource.name == name);
            Some(found.ok_or(ApiError::NoSuchPath)?)
        }
    };
    let verbs = subresource.map_or(kind.verbs, |subresource| subresource.verbs);
    let everywhere = kind.namespaced && !has_namespace && attributes.verb == "create";
    let of_collection = attributes.verb == "create" && subresource.is_none();
    let of_one = matches!(attributes.verb.as_str(), "update" | "patch");
    let misplaced = of_collection && attributes.named || of_one && !attributes.named;
    if !verbs.contains(&attributes.verb.as_str()) || everywhere || misplaced {
        return Err(ApiError::MethodNotAllowed(kind.into()));
    }
    Ok((kind, subresource))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        let (method, target) = line.split_once(' ').expect("method and path");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let found = attributes(&method, path, &Query::parse(query));
        let Attributes { verb, group, version, namespace, resource, subresource, .. } = &found;
        match found.is_resource {
            true => format!(
                "{verb} {group}/{version} ns={namespace} {resource}/{subresource} name={} rest={}",
                found.name, found.rest
            ),
            false => format!("{verb} {}", found.path),
        }
    }

    #[test]
    fn paths() {
        let cases = [
            ("GET /", "get /"),
            ("GET /api/v1", "get /api/v1"),
            ("GET /api/v1/pods", "list /v1 ns= pods/ name= rest="),
            ("GET /api/v1/pods/?watch=true", "watch /v1 ns= pods/ name= rest="),
            ("GET /api/v1/namespaces/a/pods/b", "get /v1 ns=a pods/ name=b rest="),
            ("GET /api/v1/namespaces/a/pods/b?watch=1", "watch /v1 ns=a pods/ name=b rest="),
            ("GET /api/v1/watch/namespaces/a/pods", "watch /v1 ns=a pods/ name= rest="),
            ("GET /apis/apps/v1/watch/deployments", "watch apps/v1 ns= deployments/ name= rest="),
            ("GET /api/v1/namespaces/a/pods/b/log", "get /v1 ns=a pods/log name=b rest="),
            ("GET /api/v1/namespaces/a", "get /v1 ns=a namespaces/ name=a rest="),
            (
                "PUT /api/v1/namespaces/a/finalize",
                "update /v1 ns=a namespaces/finalize name=a rest=",
            ),
            (
                "PATCH /apis/apps/v1/namespaces/a/deployments/b/scale",
                "patch apps/v1 ns=a deployments/scale name=b rest=",
            ),
            ("DELETE /api/v1/namespaces/a/pods", "deletecollection /v1 ns=a pods/ name= rest="),
            ("GET /api/v1/nodes/n/proxy//x%00", "get /v1 ns= nodes/proxy name=n rest=/x\0"),
            ("GET /api/v1/nodes/n/proxy/x/y", "get /v1 ns= nodes/proxy name=n rest=x/y"),
            ("GET /api/v1/pods?fieldSelector=metadata.name%3Db", "list /v1 ns= pods/ name=b rest="),
            ("GET /api/v1/pods?fieldSelector=metadata.name!%3Db", "list /v1 ns= pods/ name= rest="),
            ("GET /api/v1/namespaces/a%00b/pods", "get /api/v1/namespaces/a%00b/pods"),
            ("GET /api/v1/namespaces//pods", "get /api/v1/namespaces//pods"),
        ];
        for (line, expected) in cases {
            assert_eq!(read(line), expected, "{line}");
        }
    }
}
