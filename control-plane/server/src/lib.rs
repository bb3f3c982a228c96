//! The control plane of Wherry: one member of the cluster.
//!
//! `apiserver` answers the Kubernetes API over the store; `scheduler` and `controllers` run on the
//! Raft leader and reach objects through a client only; `member` puts them together behind one
//! listening port; `peer` is how members talk to each other; `pki` holds the cluster's certificate
//! authorities, `at_rest` the keys of encryption at rest, `backup` what is done with backups;
//! `contain` keeps single panics from ending the process. ARCHITECTURE.md follows one request
//! through these files.

pub mod apiserver;
pub mod at_rest;
pub mod backup;
pub mod contain;
pub mod controllers;
pub mod member;
pub mod peer;
pub mod pki;
mod reports;
pub mod scheduler;
