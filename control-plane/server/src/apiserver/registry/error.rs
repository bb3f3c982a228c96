//! What goes wrong in the registry, and how the specification wants to be told.

use std::io;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, RANGE, RETRY_AFTER};
use serde_json::json;

use super::reference::Digest;
use super::{BLOB_BYTES_MAX, MANIFEST_BYTES_MAX, UPLOADS_MAX};

/// Seconds after which a client that found too many uploads may try again.
const RETRY_AFTER_S: &str = "5";

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the repository name is not valid")]
    NameInvalid,
    #[error("the repository is not known to this registry")]
    NameUnknown,
    #[error("the tag is not valid")]
    TagInvalid,
    #[error("the path is not known to this registry")]
    PathUnknown,
    #[error("the blob is not known to this registry")]
    BlobUnknown,
    #[error("the manifest is not known to this registry")]
    ManifestUnknown,
    #[error("the manifest {0}")]
    ManifestInvalid(&'static str),
    #[error("the manifest names {0}, which is not in this repository")]
    ManifestBlobUnknown(Digest),
    #[error("a manifest may have at most {MANIFEST_BYTES_MAX} bytes")]
    ManifestSize,
    #[error("a blob may have at most {BLOB_BYTES_MAX} bytes")]
    BlobSize,
    #[error("the digest is not valid; this registry uses sha256")]
    DigestInvalid,
    #[error("the content does not have the digest that was named")]
    DigestMismatch,
    #[error("the upload is not known to this registry")]
    UploadUnknown,
    #[error("the request ended before its body was complete")]
    Interrupted,
    #[error("the range cannot be served or does not continue the upload ({0})")]
    RangeInvalid(String),
    #[error("{UPLOADS_MAX} uploads are under way in this repository")]
    TooManyUploads,
    #[error("the operation is not offered by this registry")]
    Unsupported,
    #[error("the registry could not {operation}")]
    Disk {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub fn disk(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Disk { operation, source }
    }

    /// The specification's code for this error, and its status.
    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Error::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Error::NameUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Error::TagInvalid => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::PathUnknown => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Error::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Error::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ManifestBlobUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
            Error::ManifestSize | Error::BlobSize => {
                (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID")
            }
            Error::DigestInvalid | Error::DigestMismatch => {
                (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
            }
            Error::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::Interrupted => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Error::RangeInvalid(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Error::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Error::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Error::Disk { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }

    /// The answer that tells the client.
    pub fn response(&self) -> Response {
        if let Error::Disk { operation, source } = self {
            tracing::error!(operation, error = %source, "registry disk error");
        }
        let (status, code) = self.code();
        let document = json!({"errors": [{"code": code, "message": self.to_string()}]});
        let mut response = Response::new(Body::from(document.to_string()));
        *response.status_mut() = status;
        let mut fields = vec![(CONTENT_TYPE, "application/json")];
        match self {
            Error::RangeInvalid(range) => fields.push((RANGE, range)),
            Error::TooManyUploads => fields.push((RETRY_AFTER, RETRY_AFTER_S)),
            _ => {}
        }
        for (name, value) in fields {
            response
                .headers_mut()
                .insert(name, value.parse().expect("made of digits and constants"));
        }
        response
    }
}
