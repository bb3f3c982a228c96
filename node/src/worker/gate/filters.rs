//! What a rule does with a request and its answer on the way. Pure.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use crate::protocol::{HeaderChange, PathChange, Redirect, Rewrite};

/// Where a message ends, and what its connection is for. No rule changes them: whoever comes next on
/// a connection that many share would be given a part of another's message.
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Changes headers. What is no header, or is not for rules to change, is left out.
pub fn change(headers: &mut HeaderMap, change: &HeaderChange) {
    let read = |(name, value): &(String, String)| {
        Some((changeable(name)?, HeaderValue::try_from(value.as_str()).ok()?))
    };
    for (name, value) in change.set.iter().filter_map(read) {
        headers.insert(name, value);
    }
    for (name, value) in change.add.iter().filter_map(read) {
        headers.append(name, value);
    }
    for name in change.remove.iter().filter_map(|name| changeable(name)) {
        headers.remove(name);
    }
}

fn changeable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::try_from(name).ok()?;
    (!FRAMING.contains(&name)).then_some(name)
}

/// Another path, with a slash at its beginning. `prefix` is the one that fitted, without a slash at
/// its end.
fn changed(path: &str, change: &PathChange, prefix: Option<&str>) -> String {
    let changed = match change {
        PathChange::Full(path) => path.clone(),
        PathChange::Prefix(by) => {
            let rest = prefix.and_then(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
            format!("{}{rest}", by.trim_end_matches('/'))
        }
    };
    if changed.starts_with('/') { changed } else { format!("/{changed}") }
}

fn with_query(mut path: String, uri: &Uri) -> String {
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// Where a client is sent that asked a host for something.
pub fn location(
    redirect: &Redirect,
    prefix: Option<&str>,
    (tls, host): (bool, &str),
    uri: &Uri,
) -> String {
    let own = if tls { "https" } else { "http" };
    let scheme = redirect.scheme.as_deref().unwrap_or(own);
    let host = redirect.hostname.as_deref().unwrap_or(host);
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = redirect.port.filter(|port| *port != usual);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = match &redirect.path {
        Some(change) => changed(uri.path(), change, prefix),
        None => uri.path().to_owned(),
    };
    format!("{scheme}://{host}{port}{}", with_query(path, uri))
}

/// Makes a request one for another host or path. What would be no address stays as it is.
pub fn rewrite(parts: &mut Parts, rewrite: &Rewrite, prefix: Option<&str>) {
    let mut uri = parts.uri.clone().into_parts();
    if let Some(path) = &rewrite.path {
        let path = with_query(changed(parts.uri.path(), path, prefix), &parts.uri);
        if let Ok(path) = PathAndQuery::try_from(path) {
            uri.path_and_query = Some(path);
        }
    }
    if let Some(host) = &rewrite.hostname {
        if let Ok(host) = HeaderValue::try_from(host.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
        if uri.authority.is_some()
            && let Ok(host) = Authority::try_from(host.as_str())
        {
            uri.authority = Some(host);
        }
    }
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-set", "old"), ("x-add", "old"), ("x-gone", "old")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let change_of = HeaderChange {
            set: vec![pair("X-Set", "new"), pair("bad name", "x")],
            add: vec![pair("X-Add", "new")],
            remove: vec!["X-Gone".to_owned(), "x-never".to_owned()],
        };
        change(&mut headers, &change_of);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        lines.sort();
        assert_eq!(lines, ["x-add: \"new\"", "x-add: \"old\"", "x-set: \"new\""]);
    }

    #[test]
    fn where_a_message_ends_is_not_changed() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
        let change_of = HeaderChange {
            set: vec![pair("Content-Length", "0"), pair("Connection", "close")],
            add: vec![pair("content-length", "0"), pair("Transfer-Encoding", "chunked")],
            remove: vec!["Content-Length".to_owned()],
        };
        change(&mut headers, &change_of);
        let lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        assert_eq!(lines, ["content-length: \"5\""]);
    }

    /// The table of the specification for `ReplacePrefixMatch`, with prefix `/foo`.
    #[test]
    fn prefixes_are_replaced() {
        for (path, by, expected) in [
            ("/foo/bar", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/xyz/", "/xyz/bar"),
            ("/foo", "/xyz", "/xyz"),
            ("/foo/", "/xyz", "/xyz/"),
            ("/foo/bar", "", "/bar"),
            ("/foo/", "", "/"),
            ("/foo", "", "/"),
            ("/foo/", "/", "/"),
            ("/foo", "/", "/"),
        ] {
            let by = PathChange::Prefix(by.to_owned());
            assert_eq!(changed(path, &by, Some("/foo")), expected, "{path} {by:?}");
        }
        let by = PathChange::Prefix("/v2".to_owned());
        assert_eq!(changed("/a/b", &by, Some("")), "/v2/a/b");
    }

    #[test]
    fn clients_are_sent_elsewhere() {
        let uri: Uri = "/foo/bar?x=1".parse().expect("an address");
        let check = |redirect: Redirect, tls: bool, expected: &str| {
            assert_eq!(location(&redirect, Some("/foo"), (tls, "a.com"), &uri), expected);
        };
        let none = Redirect::default();
        check(none.clone(), false, "http://a.com/foo/bar?x=1");
        check(none.clone(), true, "https://a.com/foo/bar?x=1");
        let scheme = Redirect { scheme: Some("https".to_owned()), ..none.clone() };
        check(scheme.clone(), false, "https://a.com/foo/bar?x=1");
        check(Redirect { port: Some(443), ..scheme.clone() }, false, "https://a.com/foo/bar?x=1");
        check(Redirect { port: Some(8443), ..scheme }, false, "https://a.com:8443/foo/bar?x=1");
        check(Redirect { port: Some(80), ..none.clone() }, false, "http://a.com/foo/bar?x=1");
        let path = Some(PathChange::Full("/new".to_owned()));
        let hostname = Some("b.com".to_owned());
        check(Redirect { hostname, path, ..none.clone() }, false, "http://b.com/new?x=1");
        let path = Some(PathChange::Prefix("/new".to_owned()));
        check(Redirect { path, ..none }, false, "http://a.com/new/bar?x=1");
    }

    #[test]
    fn requests_become_others() {
        let check = |uri: &str, expected: (&str, &str)| {
            let request = Request::get(uri).header("host", "a.com").body(());
            let (mut parts, ()) = request.expect("a request").into_parts();
            let to = Rewrite {
                hostname: Some("b.com".to_owned()),
                path: Some(PathChange::Prefix("/new".to_owned())),
            };
            rewrite(&mut parts, &to, Some("/foo"));
            let host = parts.headers["host"].to_str().expect("text");
            assert_eq!((parts.uri.to_string().as_str(), host), expected);
        };
        check("/foo/bar?x=1", ("/new/bar?x=1", "b.com"));
        check("http://a.com/foo", ("http://b.com/new", "b.com"));
    }
}
