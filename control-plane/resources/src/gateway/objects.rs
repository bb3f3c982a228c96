//! The objects of the Gateway API, as far as they are honoured. Fields that are not named here are
//! not read.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/>, group `gateway.networking.k8s.io`.

use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Object, meta};

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Class,
    Gateway,
    HttpRoute,
    GrpcRoute,
    Grant,
}

impl Kind {
    pub const ALL: [Kind; 5] =
        [Kind::Class, Kind::Gateway, Kind::HttpRoute, Kind::GrpcRoute, Kind::Grant];

    /// As in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Class => "GatewayClass",
            Kind::Gateway => "Gateway",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::Grant => "ReferenceGrant",
        }
    }

    /// As in a path.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Class => "gatewayclasses",
            Kind::Gateway => "gateways",
            Kind::HttpRoute => "httproutes",
            Kind::GrpcRoute => "grpcroutes",
            Kind::Grant => "referencegrants",
        }
    }

    /// A version that every release of the upstream definitions serves.
    pub fn version(self) -> &'static str {
        match self {
            Kind::Grant => "v1beta1",
            _ => "v1",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An object: who it is, and its spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<S> {
    /// Empty for a GatewayClass.
    pub namespace: String,
    pub name: String,
    pub generation: i64,
    pub born: Option<Timestamp>,
    pub spec: S,
}

impl<S: DeserializeOwned + Default> Read<S> {
    fn of(object: &Object) -> Option<Read<S>> {
        let spec = match object.get("spec") {
            Some(spec) => S::deserialize(spec).ok()?,
            None => S::default(),
        };
        Some(Read {
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
            generation: meta::generation(object),
            born: meta::creation_timestamp(object),
            spec,
        })
    }

    /// The older first; of equal ones by namespace and name.
    pub fn age(&self) -> (Option<Timestamp>, &str, &str) {
        (self.born, &self.namespace, &self.name)
    }
}

pub type Class = Read<ClassSpec>;
pub type Gateway = Read<GatewaySpec>;
pub type Grant = Read<GrantSpec>;

/// An HTTPRoute or a GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub grpc: bool,
    pub read: Read<RouteSpec>,
}

impl Route {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        if self.grpc { Kind::GrpcRoute } else { Kind::HttpRoute }
    }
}

/// An object of any of the kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    Class(Arc<Class>),
    Gateway(Arc<Gateway>),
    Route(Arc<Route>),
    Grant(Arc<Grant>),
}

impl Parsed {
    /// Reads an object; `None` where its spec has another form than the kind's.
    pub fn read(kind: Kind, object: &Object) -> Option<Parsed> {
        Some(match kind {
            Kind::Class => Parsed::Class(Arc::new(Read::of(object)?)),
            Kind::Gateway => Parsed::Gateway(Arc::new(Read::of(object)?)),
            Kind::HttpRoute | Kind::GrpcRoute => {
                let grpc = kind == Kind::GrpcRoute;
                Parsed::Route(Arc::new(Route { grpc, read: Read::of(object)? }))
            }
            Kind::Grant => Parsed::Grant(Arc::new(Read::of(object)?)),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClassSpec {
    pub controller_name: String,
    pub parameters_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<Address>,
    pub infrastructure: Option<Infrastructure>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    pub parameters_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    /// `IPAddress` if absent.
    pub r#type: Option<String>,
    pub value: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    pub name: String,
    pub hostname: Option<String>,
    pub port: i64,
    pub protocol: String,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: Option<AllowedRoutes>,
}

impl Listener {
    /// Its hostname in lower case; empty for every one.
    pub fn host(&self) -> String {
        self.hostname.as_deref().unwrap_or("").to_ascii_lowercase()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    pub mode: Option<String>,
    pub certificate_refs: Vec<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    pub namespaces: Option<RouteNamespaces>,
    pub kinds: Vec<GroupKind>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    pub from: Option<String>,
    pub selector: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupKind {
    pub group: Option<String>,
    pub kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub hostnames: Vec<String>,
    pub rules: Vec<Rule>,
}

/// Written into the route's status as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<Timeouts>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    pub path: Option<PathMatch>,
    pub headers: Vec<ValueMatch>,
    pub query_params: Vec<ValueMatch>,
    pub method: Option<Method>,
}

/// What `method` says: a word in an HTTPRoute, an object in a GRPCRoute.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Method {
    Http(String),
    Grpc(GrpcMethod),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMethod {
    pub r#type: Option<String>,
    pub service: Option<String>,
    pub method: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathMatch {
    pub r#type: Option<String>,
    pub value: Option<String>,
}

/// A header or a parameter of the query.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ValueMatch {
    pub r#type: Option<String>,
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    pub r#type: String,
    pub request_header_modifier: Option<Modifier>,
    pub response_header_modifier: Option<Modifier>,
    pub request_mirror: Option<Mirror>,
    pub request_redirect: Option<Redirect>,
    pub url_rewrite: Option<Rewrite>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Modifier {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mirror {
    pub backend_ref: BackendRef,
    pub percent: Option<u32>,
    pub fraction: Option<Fraction>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
    pub port: Option<u16>,
    pub status_code: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    pub r#type: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<i64>,
    /// 1 if absent.
    pub weight: Option<u32>,
    pub filters: Vec<Filter>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantTo {
    pub group: String,
    pub kind: String,
    pub name: Option<String>,
}
