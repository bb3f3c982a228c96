//! A registry elsewhere, asked for one image.
//!
//! oci-client, which people push with, reads manifests, tokens and errors whole before it looks at
//! their size, and lets nothing between itself and the network. So nodes have this client: what a
//! registry answers is read to a limit of size and of time, and a layer comes as a stream.
//!
//! At `/v2/` a registry says what it wants to be shown: nothing, the credentials themselves, or a
//! token, which those get elsewhere.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_auth::parser::ChallengeParser;
use oci_client::{errors::OciEnvelope, secrets::RegistryAuth, token_cache::RegistryToken};
use reqwest::{Client, RequestBuilder, Response};

use super::{
    pull::{ANSWER_BYTES_MAX, IDLE_MAX, PullError, failed, with_causes},
    reference::{Reference, is_local},
};

/// A registry that takes no connection for this long is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("wherry/", env!("CARGO_PKG_VERSION"));

/// An image in a registry, and what is shown there to get it.
#[derive(Clone)]
pub struct Remote {
    client: Client,
    host: String,
    /// The image's name.
    name: String,
    shown: RegistryAuth,
}

/// What a registry wants to be shown.
#[derive(Debug, PartialEq, Eq)]
enum Wants {
    Nothing,
    Credentials,
    Token { realm: String, service: Option<String> },
}

impl Remote {
    /// Asks nothing yet, and would show nothing.
    pub fn new(reference: &Reference) -> Result<Remote, PullError> {
        let host = reference.host.clone().unwrap_or_default();
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_MAX)
            .read_timeout(IDLE_MAX)
            .build()
            .map_err(|error| failed(&host, &with_causes(&error)))?;
        Ok(Remote { client, host, name: reference.name.clone(), shown: RegistryAuth::Anonymous })
    }

    /// The same image, asked for with credentials.
    pub async fn login(&self, image: &str, auth: &RegistryAuth) -> Result<Remote, PullError> {
        let asked = self.send(self.client.get(self.url(""))).await?;
        let shown = match wants(asked.headers()) {
            Wants::Nothing => RegistryAuth::Anonymous,
            Wants::Credentials => auth.clone(),
            Wants::Token { realm, service } => {
                RegistryAuth::Bearer(self.token(image, auth, &realm, service.as_deref()).await?)
            }
        };
        Ok(Remote { shown, ..self.clone() })
    }

    /// Reads a manifest of one of the types in `accept`.
    pub async fn manifest(
        &self,
        image: &str,
        version: &str,
        accept: &str,
    ) -> Result<Bytes, PullError> {
        let response = self.get(image, &format!("manifests/{version}"), accept).await?;
        self.read(response).await
    }

    /// Begins to read a layer.
    pub async fn blob(&self, image: &str, digest: &str) -> Result<Response, PullError> {
        self.get(image, &format!("blobs/{digest}"), "*/*").await
    }

    /// A token to read the image with.
    async fn token(
        &self,
        image: &str,
        auth: &RegistryAuth,
        realm: &str,
        service: Option<&str>,
    ) -> Result<String, PullError> {
        let scope = format!("repository:{}:pull", self.name);
        let mut query = vec![("scope", scope.as_str())];
        query.extend(service.map(|service| ("service", service)));
        let request = showing(self.client.get(realm).query(&query), auth);
        let response = self.send(request).await?;
        let status = response.status();
        // Registries have many a status for credentials that they do not know.
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            return Err(self.denied(image));
        }
        let body = self.read(self.checked(image, response).await?).await?;
        let token: RegistryToken = serde_json::from_slice(&body)
            .map_err(|error| failed(&self.host, &format!("its token cannot be read ({error})")))?;
        Ok(token.token().to_owned())
    }

    async fn get(&self, image: &str, path: &str, accept: &str) -> Result<Response, PullError> {
        let url = self.url(&format!("{}/{path}", self.name));
        let request = self.client.get(url).header(header::ACCEPT, accept);
        let response = self.send(showing(request, &self.shown)).await?;
        self.checked(image, response).await
    }

    fn url(&self, path: &str) -> String {
        let scheme = if is_local(&self.host) { "http" } else { "https" };
        // Docker's own is known by another name than it has.
        let host = match self.host.as_str() {
            "docker.io" => "index.docker.io",
            host => host,
        };
        format!("{scheme}://{host}/v2/{path}")
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, PullError> {
        match tokio::time::timeout(IDLE_MAX, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(&self.host, &with_causes(&error))),
            Err(_) => Err(failed(&self.host, &"no answer")),
        }
    }

    /// The response, if it has what was asked for.
    async fn checked(&self, image: &str, response: Response) -> Result<Response, PullError> {
        match response.status().as_u16() {
            200 => Ok(response),
            401 | 403 => Err(self.denied(image)),
            404 => {
                Err(PullError::NotFound { image: image.to_owned(), registry: self.host.clone() })
            }
            status => {
                let body = self.read(response).await.unwrap_or_default();
                let said = match serde_json::from_slice::<OciEnvelope>(&body) {
                    Ok(envelope) => format!("status {status}, {envelope}"),
                    Err(_) => format!("status {status}"),
                };
                Err(failed(&self.host, &said))
            }
        }
    }

    fn denied(&self, image: &str) -> PullError {
        PullError::Denied { image: image.to_owned(), registry: self.host.clone() }
    }

    /// Reads an answer to its end, if that comes.
    async fn read(&self, mut response: Response) -> Result<Bytes, PullError> {
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| with_causes(&error))? {
                if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(format!("an answer has more than {ANSWER_BYTES_MAX} bytes"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<Bytes, String>(body.freeze())
        };
        let read = tokio::time::timeout(IDLE_MAX, read).await;
        let read = read.unwrap_or_else(|_| Err("an answer does not come to its end".to_owned()));
        read.map_err(|message| failed(&self.host, &message))
    }
}

fn showing(request: RequestBuilder, auth: &RegistryAuth) -> RequestBuilder {
    match auth {
        RegistryAuth::Anonymous => request,
        RegistryAuth::Basic(user, password) => request.basic_auth(user, Some(password)),
        RegistryAuth::Bearer(token) => request.bearer_auth(token),
    }
}

fn wants(headers: &HeaderMap) -> Wants {
    let mut wants = Wants::Nothing;
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        wants = Wants::Credentials;
        for challenge in ChallengeParser::new(value.to_str().unwrap_or_default()).flatten() {
            let named = |name: &str| {
                let mut params = challenge.params.iter();
                let (_, value) = params.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("Bearer")
                && let Some(realm) = named("realm")
            {
                return Wants::Token { realm, service: named("service") };
            }
        }
    }
    wants
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::{Router, body::Body, extract::Request};

    use super::super::{pull::resolve_elsewhere, reference::Version};
    use super::*;

    const MANIFEST: &str = r#"{"schemaVersion":2,
        "mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"x","size":2},
        "layers":[{"mediaType":"application/wasm","size":7,"digest":
        "sha256:0000000000000000000000000000000000000000000000000000000000000000"}]}"#;

    /// A registry on loopback that lets `user` with the password `right` read `team/app:1`, and
    /// everybody `team/open:1`. What it answers at the path `endless` has no end.
    async fn serve(endless: &'static str) -> Reference {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("bound").to_string();
        let realm = format!("Bearer realm=\"http://{host}/token\",service=\"tests\"");
        let answers = move |request: Request| {
            let realm = realm.clone();
            async move { answer(&request, endless, &realm) }
        };
        let app = Router::new().fallback(answers);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Reference::parse(&format!("{host}/team/app:1")).expect("a reference")
    }

    fn answer(request: &Request, endless: &str, realm: &str) -> http::Response<Body> {
        let path = request.uri().path();
        let shown = request.headers().get(header::AUTHORIZATION);
        let shown = shown.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let with = |status: u16, body: Body| {
            let response = http::Response::builder().status(status);
            response.header(header::WWW_AUTHENTICATE, realm).body(body).expect("well-formed")
        };
        if path == endless {
            let same = || Ok::<_, Infallible>(Bytes::from_static(&[b' '; 1 << 16]));
            return with(200, Body::from_stream(futures::stream::repeat_with(same)));
        }
        let query = request.uri().query().unwrap_or_default();
        let (own, open) = (
            "scope=repository%3Ateam%2Fapp%3Apull&service=tests",
            "scope=repository%3Ateam%2Fopen%3Apull&service=tests",
        );
        match (path, shown) {
            ("/v2/", _) => with(401, Body::empty()),
            // `user:right`
            ("/token", "Basic dXNlcjpyaWdodA==") if query == own => {
                with(200, Body::from(r#"{"access_token":"t"}"#))
            }
            ("/token", "") if query == open => with(200, Body::from(r#"{"token":"o"}"#)),
            ("/v2/team/app/manifests/1", "Bearer t") => with(200, Body::from(MANIFEST)),
            ("/v2/team/open/manifests/1", "Bearer o") => with(200, Body::from(MANIFEST)),
            ("/v2/team/app/manifests/2", "Bearer t") => with(404, Body::empty()),
            ("/v2/team/app/manifests/3", "Bearer t") => {
                let said = r#"{"errors":[{"code":"UNKNOWN","message":"the disk is full"}]}"#;
                with(500, Body::from(said))
            }
            _ => with(401, Body::empty()),
        }
    }

    fn login(password: &str) -> RegistryAuth {
        RegistryAuth::Basic("user".to_owned(), password.to_owned())
    }

    #[tokio::test]
    async fn who_shows_the_right_credentials_gets_a_token_and_reads() {
        let remote = Remote::new(&serve("").await).expect("a client");
        let known = remote.login("app", &login("right")).await.expect("let in");
        let read = async |version: &str| known.manifest("app", version, "*/*").await;
        assert_eq!(read("1").await.expect("read"), MANIFEST);
        assert!(matches!(read("2").await, Err(PullError::NotFound { .. })));
        let error = read("3").await.expect_err("broken").to_string();
        assert!(error.ends_with("status 500, OCI API errors: [OCI API error: the disk is full]"));
        let denied = remote.login("app", &login("wrong")).await;
        assert!(matches!(denied, Err(PullError::Denied { .. })));
        let denied = remote.manifest("app", "1", "*/*").await;
        assert!(matches!(denied, Err(PullError::Denied { .. })));
    }

    #[tokio::test]
    async fn the_first_login_that_may_read_is_taken() {
        let mut reference = serve("").await;
        let (wrong, right) = (login("wrong"), login("right"));
        let logins = [wrong.clone(), right.clone()];
        let asked = resolve_elsewhere("app", &reference, &logins).await;
        assert_eq!(asked.ok().map(|(.., auth)| auth), Some(right));
        let asked = resolve_elsewhere("app", &reference, &logins[..1]).await;
        assert!(matches!(asked, Err(PullError::Denied { .. })));
        // That somebody else, or nobody, may not know whether there is one says nothing.
        reference.version = Version::Tag("2".to_owned());
        let asked = resolve_elsewhere("app", &reference, &logins).await;
        assert!(matches!(asked, Err(PullError::NotFound { .. })));
        // Nobody has to log in for this one, and who cannot may have it.
        reference.version = Version::Tag("1".to_owned());
        reference.name = "team/open".to_owned();
        let asked = resolve_elsewhere("open", &reference, &[wrong]).await;
        assert_eq!(asked.ok().map(|(.., auth)| auth), Some(RegistryAuth::Anonymous));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_kept() {
        for endless in ["/token", "/v2/team/app/manifests/1"] {
            let remote = Remote::new(&serve(endless).await).expect("a client");
            let read = async {
                let known = remote.login("app", &login("right")).await?;
                known.manifest("app", "1", "*/*").await
            };
            let error = read.await.expect_err(endless).to_string();
            assert!(error.ends_with("an answer has more than 1048576 bytes"), "{error}");
        }
    }

    #[test]
    fn registries_say_what_they_want() {
        let wanted = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for &value in values {
                headers.append(header::WWW_AUTHENTICATE, http::HeaderValue::from_static(value));
            }
            wants(&headers)
        };
        assert_eq!(wanted(&[]), Wants::Nothing);
        assert_eq!(wanted(&["Basic realm=\"r\""]), Wants::Credentials);
        assert_eq!(wanted(&["Bearer"]), Wants::Credentials);
        let token = Wants::Token { realm: "https://r/t".to_owned(), service: None };
        assert_eq!(wanted(&["Basic realm=\"r\"", "bearer Realm=\"https://r/t\""]), token);
    }
}
