//! Where scheduled backups go: a folder, or a bucket of S3 or of anything that speaks its protocol.
//!
//! The crate `object_store` knows both. What it sends goes through hyper and rustls as everything
//! else here does, so that no second HTTP client and no second crypto library comes in.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector as TcpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind,
    HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

/// Connecting takes milliseconds; this is for a host that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One request, a part of a backup at most, over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Where backups go.
#[derive(Clone, Debug)]
pub struct Destination {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Before the names of backups.
    pub(super) prefix: Path,
    url: String,
}

/// As it was named. Credentials are never part of it.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Why backups cannot go there.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    #[error("{url:?} is not a place for backups: {why}; say file:///FOLDER or s3://BUCKET/PREFIX")]
    Url { url: String, why: String },
    #[error("the folder {} cannot be used: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the bucket of {url} cannot be used")]
    Bucket { url: String, source: object_store::Error },
}

impl Destination {
    /// One that is there already.
    #[cfg(test)]
    pub(super) fn of(store: Arc<dyn ObjectStore>, prefix: Path, url: &str) -> Destination {
        Destination { store, prefix, url: url.to_owned() }
    }

    /// Reads a URL; for a bucket, `environment` holds region, endpoint and credentials under the
    /// names that all tools for S3 use (`AWS_ACCESS_KEY_ID` and so on). Makes a folder that is not
    /// there; a bucket is first asked when the first backup is due.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Destination, DestinationError> {
        let bad = |why: String| DestinationError::Url { url: text.to_owned(), why };
        let url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            // Said without them: errors are logged.
            let url = format!("{}://…@{}", url.scheme(), url.host_str().unwrap_or_default());
            let why = "credentials belong into the environment".to_owned();
            return Err(DestinationError::Url { url, why });
        }
        let (scheme, path) =
            ObjectStoreScheme::parse(&url).map_err(|error| bad(error.to_string()))?;
        match scheme {
            ObjectStoreScheme::Local => {
                let folder = url.to_file_path().map_err(|()| bad("it is not a path".to_owned()))?;
                folder_destination(folder, text)
            }
            ObjectStoreScheme::AmazonS3 => {
                let store = bucket(text, environment);
                let store = store
                    .map_err(|source| DestinationError::Bucket { url: text.to_owned(), source })?;
                Ok(Destination { store, prefix: path, url: text.to_owned() })
            }
            _ => Err(bad("only folders and S3 buckets are supported".to_owned())),
        }
    }
}

fn folder_destination(folder: PathBuf, url: &str) -> Result<Destination, DestinationError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    let bad = |source| DestinationError::Folder { path: folder.clone(), source };
    made.map_err(bad)?;
    let store = LocalFileSystem::new_with_prefix(&folder);
    let store = store.map_err(|error| bad(std::io::Error::other(error)))?.with_fsync(true);
    Ok(Destination { store: Arc::new(store), prefix: Path::default(), url: url.to_owned() })
}

fn bucket(
    url: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment {
        // Other variables of that prefix mean something to other tools.
        if name.starts_with("AWS_")
            && let Ok(key) = name.to_ascii_lowercase().parse()
        {
            builder = builder.with_config(key, value);
        }
    }
    let built = builder.with_url(url).with_http_connector(Hyper).build()?;
    Ok(Arc::new(built))
}

/// Makes HTTP clients for `object_store`.
#[derive(Debug)]
struct Hyper;

impl HttpConnector for Hyper {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed = |source: std::io::Error| object_store::Error::Generic {
            store: "S3",
            source: source.into(),
        };
        let allow = options.get_config_value(&ClientConfigKey::AllowHttp);
        let tls = HttpsConnectorBuilder::new().with_native_roots().map_err(failed)?;
        let tls = match allow.as_deref() {
            Some("true") => tls.https_or_http(),
            _ => tls.https_only(),
        };
        let mut tcp = TcpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        let connector = tls.enable_http1().wrap_connector(tcp);
        let client =
            Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(HttpClient::new(Service(client)))
    }
}

/// One HTTP client.
#[derive(Debug)]
struct Service(Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.0.request(request)).await;
        let answer = answer.map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?;
        let answer = answer.map_err(|error| {
            let kind = match error.is_connect() {
                true => HttpErrorKind::Connect,
                false => HttpErrorKind::Request,
            };
            HttpError::new(kind, Whole(error))
        })?;
        let body = |error: hyper::Error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(answer.map(|answer| HttpResponseBody::new(answer.map_err(body))))
    }
}

/// hyper's errors name their cause as a source only, which does not reach the log.
#[derive(Debug)]
struct Whole(hyper_util::client::legacy::Error);

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl Error for Whole {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_checked_before_anything_starts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let check = |url: &str| {
            let environment = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
            let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
            match Destination::parse(url, environment) {
                Ok(destination) => format!("{destination} under {:?}", destination.prefix.as_ref()),
                Err(error) => error.to_string(),
            }
        };
        let seen = [
            "s3://backups/wherry/prod",
            "s3://backups",
            "backups",
            "gs://backups",
            "https://example.com/backups",
            "s3://key:secret@backups",
        ];
        expect_test::expect![[r#"
            s3://backups/wherry/prod under "wherry/prod"
            s3://backups under ""
            "backups" is not a place for backups: relative URL without a base; say file:///FOLDER or s3://BUCKET/PREFIX
            "gs://backups" is not a place for backups: only folders and S3 buckets are supported; say file:///FOLDER or s3://BUCKET/PREFIX
            "https://example.com/backups" is not a place for backups: only folders and S3 buckets are supported; say file:///FOLDER or s3://BUCKET/PREFIX
            "s3://…@backups" is not a place for backups: credentials belong into the environment; say file:///FOLDER or s3://BUCKET/PREFIX"#]]
        .assert_eq(&seen.map(check).join("\n"));
        let new = folder.path().join("a/b");
        let made = check(&format!("file://{}", new.display()));
        assert!(made.ends_with("under \"\"") && new.is_dir(), "{made}");
        let blocked = check(&format!("file://{}/c", file.display()));
        assert!(blocked.contains("cannot be used"), "{blocked}");
    }
}
