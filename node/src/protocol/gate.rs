//! What comes in from outside by HTTP: the table of rules that Ingresses and the routes of Gateways
//! both become.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The namespace whose worker serves Ingresses and Gateways. It is the administrators' own, so keys
/// of certificates lie in no process with tenants' guests.
pub const INGRESS_NAMESPACE: &str = "kube-system";

/// The folder of its access log, below the log root. No Pod's folder has such a name.
pub const INGRESS_LOGS: &str = "ingress";

/// Where to listen, and who gets what arrives. Sent whole to the one worker that serves it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GateTable {
    /// Where to listen; nowhere without any Ingress or Gateway.
    pub ports: Vec<GatePort>,
    /// Rules, by where and for whom they are.
    pub sites: Vec<Site>,
}

/// A port of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatePort {
    /// Where to listen.
    pub port: u16,
    /// HTTPS.
    pub tls: bool,
    /// Certificates: Gateways' before Ingresses', and those of older objects first.
    pub certificates: Vec<Certificate>,
}

/// A certificate for some hosts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// `namespace/name` of its Secret.
    pub secret: String,
    /// For which names: `*.domain` of an Ingress for one label before it, of a Gateway for any
    /// number; empty for every name; those in the certificate if the list is empty.
    pub hosts: Vec<String>,
    /// How far a `*` reaches.
    pub family: Family,
    /// Leaf first.
    pub certificate_pem: String,
    /// Its key. Never logged.
    pub key_pem: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} for {:?})", self.secret, self.hosts)
    }
}

/// How hosts are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// `*.domain` is one label before the domain. The rules of the host that fits best count alone;
    /// what fits none goes to a default backend.
    #[default]
    Ingress,
    /// `*.domain` is everything below the domain. Rules of a less exact host count after those of
    /// a more exact one.
    Gateway,
}

/// What is at some ports for a host: all Ingresses, or the listeners of Gateways for one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Site {
    /// Where (see [`GatePort::port`]).
    pub ports: Vec<u16>,
    /// Whose.
    pub family: Family,
    /// For which hosts a listener is; empty for every one. Of all listeners of a port only the one
    /// whose host fits best counts.
    pub host: String,
    /// Those of older objects first.
    pub rules: Vec<HttpRule>,
}

/// An object that has a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// `Ingress`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Some requests, and what becomes of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// Whose rule it is.
    pub owner: Owner,
    /// For these hosts; an empty one is every host.
    pub hosts: Vec<String>,
    /// Which requests: those that fit any of these. None: the default backend of an Ingress.
    pub matches: Vec<HttpMatch>,
    /// What is done with them on the way.
    pub filters: Filters,
    /// Who gets them, by weight.
    pub backends: Vec<Backend>,
    /// The status when there is no such backend.
    pub absent: u16,
    /// Nothing of this can be honoured, and why: its requests are answered with an error.
    pub broken: Option<String>,
    /// The largest body of a request, if the object says it.
    pub body_bytes_max: Option<u64>,
    /// From the request to the end of the answer; 0 for as long as it takes.
    pub request_ms: Option<u64>,
    /// From the request to the head of the backend's answer; 0 for as long as it takes.
    pub backend_ms: Option<u64>,
}

/// One way to fit: everything in it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The path.
    pub path: PathMatch,
    /// The method, if it matters.
    pub method: Option<String>,
    /// Headers that must be there.
    pub headers: Vec<ValueMatch>,
    /// Parameters of the query that must be there.
    pub queries: Vec<ValueMatch>,
}

/// Which paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// This one alone.
    Exact(String),
    /// What is below it, element by element.
    Prefix(String),
    /// The whole path fits.
    Expression(String),
    /// `/SERVICE/METHOD`; all that are not named fit.
    Grpc {
        /// With its package.
        service: Option<String>,
        /// Without.
        method: Option<String>,
        /// Both are regular expressions.
        expression: bool,
    },
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueMatch {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// The value is a regular expression.
    pub expression: bool,
}

/// What is done with a request and its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filters {
    /// Headers of the request.
    pub request: HeaderChange,
    /// Headers of the answer.
    pub response: HeaderChange,
    /// The answer is to go elsewhere.
    pub redirect: Option<Redirect>,
    /// The backend is asked for something else.
    pub rewrite: Option<Rewrite>,
    /// Others that are asked as well, whose answers nobody sees.
    pub mirrors: Vec<Mirror>,
}

/// Changes of headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderChange {
    /// These instead of what there is.
    pub set: Vec<(String, String)>,
    /// These besides what there is.
    pub add: Vec<(String, String)>,
    /// Without these.
    pub remove: Vec<String>,
}

/// Where a client is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// `http` or `https`; the request's own if there is none.
    pub scheme: Option<String>,
    /// The request's own if there is none.
    pub hostname: Option<String>,
    /// Not said if there is none, or if it is the scheme's own.
    pub port: Option<u16>,
    /// The request's own if there is none.
    pub path: Option<PathChange>,
    /// Of the answer.
    pub status: u16,
    /// Only requests without TLS.
    pub plain_only: bool,
}

/// What a backend is asked for instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// Another host.
    pub hostname: Option<String>,
    /// Another path.
    pub path: Option<PathChange>,
}

/// Another path; the query stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathChange {
    /// This one.
    Full(String),
    /// This one in place of the prefix that fitted.
    Prefix(String),
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Namespace.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// Its port, by name or number.
    pub port: String,
}

/// Somebody who gets some of the requests too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Who.
    pub to: Target,
    /// So many of...
    pub numerator: u32,
    /// ...so many.
    pub denominator: u32,
}

/// Somebody who gets a share of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Who, or why there is nobody.
    pub to: Result<Target, String>,
    /// Its share, against the others'.
    pub weight: u32,
    /// Headers of requests to it.
    pub request: HeaderChange,
    /// Headers of its answers.
    pub response: HeaderChange,
}
