//! The agent's connection to the control plane: all members, and who the agent is.
//!
//! The list of members outlives the agent in `<data dir>/members.json`, so that a node finds the
//! control plane again although none of the servers it was once started with is there any more.

use std::{fs, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri, header};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::members::{Make, Members, MembersError};

/// Where the members that were learned last are kept, below the data folder.
const MEMBERS_FILE: &str = "members.json";

/// How the agent names itself: in audit logs, and as the manager of the fields it writes.
const USER_AGENT: &str = concat!("wherry-node/", env!("CARGO_PKG_VERSION"));

/// How the agent shows who it is.
#[derive(Clone)]
pub enum Credential {
    /// A bootstrap token, before the node has a certificate.
    Token(String),
    /// The node's certificate and key.
    Certificate {
        /// Leaf first.
        certificate_pem: String,
        /// Its key.
        key_pem: String,
    },
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A server or a client for it.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// The cluster's CA certificate does not parse.
    #[error("read the cluster's CA certificate")]
    Ca(#[source] rustls_pki_types::pem::Error),
}

/// All members, and who the agent is.
pub struct Connection {
    ca: Vec<Vec<u8>>,
    /// The clients; a renewed certificate replaces all of them at once.
    pub members: Arc<Members>,
}

impl Connection {
    /// Prepares connections to `servers`; nothing is sent yet. Must be called on a runtime.
    pub fn new(
        servers: &[String],
        ca_pem: &str,
        credential: &Credential,
    ) -> Result<Arc<Connection>, ClientError> {
        let ca = CertificateDer::pem_slice_iter(ca_pem.as_bytes())
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(ClientError::Ca)?;
        let members = Members::new(servers, make(ca.clone(), credential))?;
        Ok(Arc::new(Connection { ca, members }))
    }

    /// Uses another credential for everything that is sent from now on.
    pub fn replace(&self, credential: &Credential) -> Result<(), ClientError> {
        Ok(self.members.replace(make(self.ca.clone(), credential))?)
    }

    /// The one client that everybody uses.
    pub fn client(&self) -> kube::Client {
        self.members.client()
    }
}

fn make(ca: Vec<Vec<u8>>, credential: &Credential) -> Make {
    let credential = credential.clone();
    Arc::new(move |url: Uri| {
        let mut config = kube::Config::new(url);
        config.root_cert = Some(ca.clone());
        let agent = HeaderValue::from_static(USER_AGENT);
        config.headers.push((header::USER_AGENT, agent));
        match &credential {
            Credential::Token(token) => config.auth_info.token = Some(token.clone().into()),
            Credential::Certificate { certificate_pem, key_pem } => {
                config.auth_info.client_certificate_data = Some(STANDARD.encode(certificate_pem));
                config.auth_info.client_key_data = Some(STANDARD.encode(key_pem).into());
            }
        }
        config
    })
}

/// The members that were learned last. A file that cannot be read is as if it were not there: the
/// servers of the command line are still known.
pub fn load_members(data_dir: &Path) -> Vec<String> {
    let text = fs::read(data_dir.join(MEMBERS_FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Keeps the members for the next start.
pub fn store_members(data_dir: &Path, urls: &[String]) {
    let path = data_dir.join(MEMBERS_FILE);
    let text = serde_json::to_vec(urls).expect("strings are JSON");
    if let Err(error) = super::join::write_private(&path, &text) {
        tracing::warn!(%error, path = %path.display(), "the list of members is not kept");
    }
}

/// Whether an error of the API has this HTTP status.
pub fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(load_members(folder.path()).is_empty());
        let urls = ["https://10.0.0.1:6443".to_owned(), "https://10.0.0.2:6443".to_owned()];
        store_members(folder.path(), &urls);
        assert_eq!(load_members(folder.path()), urls);
        fs::write(folder.path().join(MEMBERS_FILE), "{half").expect("written");
        assert!(load_members(folder.path()).is_empty());
    }
}
