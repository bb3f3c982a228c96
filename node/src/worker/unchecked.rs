//! TLS to whoever is there: certificates are not looked at.
//!
//! For probes and hooks alone, as a kubelet: they ask a Pod how it is and trust it with nothing.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use wherry_wasi_shim::{Body, BodyError};

/// Why there is no TLS with somebody who speaks HTTP without it, in the words of a kubelet.
pub const PLAIN: &str = "http: server gave HTTP response to HTTPS client";

/// Sends one request over TLS on a connection of its own, which one of the tasks drives.
pub async fn exchange<S>(
    stream: S,
    name: ServerName<'static>,
    request: Request<Body>,
    tasks: &TaskTracker,
) -> Result<Response<Body>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connector = TlsConnector::from(config().clone());
    let stream = connector.connect(name, stream).await.map_err(|error| explain(&error))?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    tasks.spawn(async move {
        // What went wrong shows in the answer, or in its absence.
        let _ = connection.await;
    });
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    Ok(answer.map(|body| Body::new(body.map_err(BodyError::new))))
}

fn explain(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        // Who knows no TLS takes its first message for a request that is none, and says so.
        Some(rustls::Error::InvalidMessage(_)) => PLAIN.to_owned(),
        _ => error.to_string(),
    }
}

/// HTTP/1.1, in which guests that listen are asked.
fn config() -> &'static Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(algorithms)))
            .with_no_client_auth();
        Arc::new(config)
    })
}

/// Takes every certificate, of whose key the handshake must still be proof.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{Empty, Full};
    use hyper::{body::Incoming, server, service::service_fn};
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::io::{AsyncWriteExt, DuplexStream};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    async fn ask(stream: DuplexStream) -> Result<Bytes, String> {
        let nothing = Body::new(Empty::new().map_err(|never| match never {}));
        let request = Request::get("/ready").header("host", "app").body(nothing);
        let name = ServerName::try_from("app".to_owned()).expect("a name");
        let request = request.expect("a request");
        let answer = exchange(stream, name, request, &TaskTracker::new()).await?;
        Ok(answer.into_body().collect().await.expect("a body").to_bytes())
    }

    #[tokio::test]
    async fn any_certificate_will_do() {
        let made = rcgen::generate_simple_self_signed(vec!["elsewhere".to_owned()]);
        let made = made.expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("they belong together");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(async move {
            let stream = TlsAcceptor::from(Arc::new(config)).accept(theirs).await.expect("TLS");
            let service = service_fn(|request: Request<Incoming>| async move {
                let path = Bytes::from(request.uri().to_string());
                Ok::<_, Infallible>(Response::new(Full::new(path)))
            });
            let connection = server::conn::http1::Builder::new();
            connection.serve_connection(TokioIo::new(stream), service).await
        });
        assert_eq!(ask(ours).await.as_deref(), Ok(b"/ready".as_slice()));
        serving.abort();
    }

    #[tokio::test]
    async fn an_answer_without_tls_is_told_as_such() {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("there is room");
        assert_eq!(ask(ours).await, Err(PLAIN.to_owned()));
    }
}
