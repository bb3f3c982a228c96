//! The dashboard's built files, embedded. The application itself is TypeScript and Svelte beside
//! this file; it is a client of the public API without privileges.

use std::borrow::Cow;

#[derive(rust_embed::RustEmbed)]
#[folder = "dist/"]
#[allow_missing = true]
struct Dist;

const NOT_BUILT: &str = "<!doctype html><title>Wherry</title><h1>The dashboard is not built</h1>\
    <p>This binary was built without it. Run <code>make dashboard</code>, then build again.";

/// One file, as it goes over the wire.
pub struct File {
    pub content: Cow<'static, [u8]>,
    pub content_type: &'static str,
    /// The value of Content-Encoding, where the content is compressed.
    pub encoding: Option<&'static str>,
    /// A strong validator, quotes included.
    pub etag: String,
    /// Whether the name contains a hash of the content, so that it never changes.
    pub immutable: bool,
}

/// Looks a file up by its path below `/ui/`; the empty path is the page itself. Takes the best
/// encoding that `accept_encoding` (a header's value) names.
pub fn file(path: &str, accept_encoding: &str) -> Option<File> {
    let path = if path.is_empty() { "index.html" } else { path };
    let accepts = |name: &str| accept_encoding.split(',').any(|item| item.trim().starts_with(name));
    let encodings = [("br", ".br"), ("gzip", ".gz")];
    let compressed = encodings.into_iter().filter(|(name, _)| accepts(name));
    let compressed = compressed
        .filter_map(|(name, ending)| Some((Some(name), Dist::get(&format!("{path}{ending}"))?)))
        .next();
    let plain = || Some((None, Dist::get(path)?));
    let Some((encoding, found)) = compressed.or_else(plain) else {
        return (path == "index.html").then(not_built);
    };
    let hash = found.metadata.sha256_hash();
    let etag: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(File {
        content: found.data,
        content_type: content_type(path),
        encoding,
        etag: format!("\"{etag}\""),
        immutable: path.starts_with("assets/"),
    })
}

fn not_built() -> File {
    File {
        content: Cow::Borrowed(NOT_BUILT.as_bytes()),
        content_type: "text/html; charset=utf-8",
        encoding: None,
        etag: "\"not-built\"".to_owned(),
        immutable: false,
    }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("woff2") => "font/woff2",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::file;

    #[test]
    fn the_page_is_always_there_and_nothing_else_is_made_up() {
        let page = file("", "").expect("a page");
        assert_eq!(page.content_type, "text/html; charset=utf-8");
        assert!(page.encoding.is_none() && !page.immutable);
        assert!(file("no/such/file.js", "br").is_none());
        assert!(file("../Cargo.toml", "").is_none());
    }
}
