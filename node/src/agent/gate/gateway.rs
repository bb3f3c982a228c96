//! What Gateways and their routes become: ports with certificates, and a site for each host that
//! listeners have at a port. Pure.

use std::collections::BTreeMap;

use wherry_resources::gateway::{
    HTTP_PORT, HTTPS_PORT, Place, Settled, SettledGateway, SettledRoute, World,
    objects::{
        BackendRef, Filter, Listener, Match, Method, Mirror as MirrorFilter, Modifier,
        PathModifier, Redirect as RedirectFilter, Route, Rule, ValueMatch as Value,
    },
    rules::{self, EXACT, EXPRESSION, FULL_PATH, duration_ms},
};

use super::Pair;
use crate::{
    agent::pods::Name,
    protocol::{
        Backend, Certificate, Family, Filters, GatePort, GateTable, HeaderChange, HttpMatch,
        HttpRule, Mirror, Owner, PathChange, PathMatch, Redirect, Rewrite, Site, Target,
        ValueMatch,
    },
};

/// Of a redirect that names no status.
const FOUND: u16 = 302;
/// Without a backend an HTTPRoute answers so...
const INTERNAL_ERROR: u16 = 500;
/// ...and a GRPCRoute so, which is UNAVAILABLE to its clients.
const UNAVAILABLE: u16 = 503;

/// Adds all that listens. `http` and `https` are the ports that stand for 80 and 443.
pub fn add(
    table: &mut GateTable,
    world: &World,
    secrets: &BTreeMap<Name, Option<Pair>>,
    ports: (u16, u16),
) {
    let has_certificate = |name: &Name| secrets.get(name).is_some_and(Option::is_some);
    let settled = world.settle(&has_certificate);
    let mut sites: BTreeMap<(u16, String), Vec<HttpRule>> = BTreeMap::new();
    for gateway in &settled.gateways {
        for (index, listener) in gateway.gateway.spec.listeners.iter().enumerate() {
            if let Some(port) = port_of(listener, ports).filter(|_| gateway.serves(index)) {
                listen(table, port, (gateway, index), secrets);
                sites.entry((port, listener.host())).or_default();
            }
        }
    }
    for route in &settled.routes {
        for (gateway, place) in places(&settled, route) {
            let listener = &gateway.gateway.spec.listeners[place.listener];
            let Some(port) = port_of(listener, ports) else { continue };
            let site = sites.entry((port, listener.host())).or_default();
            let of_route = route.route.read.spec.rules.iter();
            site.extend(of_route.map(|rule| http_rule(world, &route.route, rule, listener, place)));
        }
    }
    for ((port, host), rules) in sites {
        table.sites.push(Site { ports: vec![port], family: Family::Gateway, host, rules });
    }
    // Where an Ingress is for the same host, the Gateway's rules count, and so does its certificate.
    for port in &mut table.ports {
        port.certificates.sort_by_key(|certificate| certificate.family == Family::Ingress);
    }
}

/// Where a route is served.
fn places<'s>(
    settled: &'s Settled,
    route: &'s SettledRoute,
) -> Vec<(&'s SettledGateway, &'s Place)> {
    let mut all = Vec::new();
    for parent in &route.parents {
        let gateway = &settled.gateways[parent.gateway];
        let places = parent.accepted.iter().flatten();
        let served = places.filter(|place| gateway.serves(place.listener));
        all.extend(served.map(|place| (gateway, place)));
    }
    all
}

/// Where nodes listen for a listener; nowhere if this node has the port for the other protocol: what
/// is for HTTPS must not be served without.
fn port_of(listener: &Listener, (http, https): (u16, u16)) -> Option<u16> {
    let port = match listener.port {
        HTTP_PORT => http,
        HTTPS_PORT => https,
        port => u16::try_from(port).ok()?,
    };
    let other = if listener.protocol == "HTTPS" { http } else { https };
    (port != other).then_some(port)
}

fn listen(
    table: &mut GateTable,
    port: u16,
    (gateway, index): (&SettledGateway, usize),
    secrets: &BTreeMap<Name, Option<Pair>>,
) {
    let listener = &gateway.gateway.spec.listeners[index];
    let tls = listener.protocol == "HTTPS";
    let at = table.ports.iter().position(|held| held.port == port).unwrap_or_else(|| {
        table.ports.push(GatePort { port, tls, certificates: Vec::new() });
        table.ports.len() - 1
    });
    for (number, name) in gateway.listeners[index].certificates.iter().enumerate() {
        let Some(Some((certificate_pem, key_pem))) = secrets.get(name) else { continue };
        // The first is for whoever asks, further ones for the names in them.
        let hosts = if number == 0 { vec![listener.host()] } else { Vec::new() };
        table.ports[at].certificates.push(Certificate {
            secret: format!("{}/{}", name.0, name.1),
            hosts,
            family: Family::Gateway,
            certificate_pem: certificate_pem.clone(),
            key_pem: key_pem.clone(),
        });
    }
}

fn http_rule(
    world: &World,
    route: &Route,
    rule: &Rule,
    listener: &Listener,
    place: &Place,
) -> HttpRule {
    let owner = Owner {
        kind: route.kind().name().to_owned(),
        namespace: route.read.namespace.clone(),
        name: route.read.name.clone(),
    };
    let everything = [Match::default()];
    let own = rule.matches.as_slice();
    let matches = if own.is_empty() { &everything[..] } else { own };
    let limit = |text: Option<&String>| text.and_then(|text| duration_ms(text));
    let timeouts = rule.timeouts.as_ref();
    HttpRule {
        owner,
        hosts: place.hosts.clone(),
        matches: matches.iter().map(|one| http_match(route.grpc, one)).collect(),
        filters: filters(world, route, &rule.filters, listener),
        backends: rule.backend_refs.iter().map(|to| backend(world, route, to)).collect(),
        absent: if route.grpc { UNAVAILABLE } else { INTERNAL_ERROR },
        broken: rules::refusal(route, rule).map(|why| why.message),
        body_bytes_max: None,
        request_ms: limit(timeouts.and_then(|it| it.request.as_ref())),
        backend_ms: limit(timeouts.and_then(|it| it.backend_request.as_ref())),
    }
}

fn http_match(grpc: bool, one: &Match) -> HttpMatch {
    let values = |all: &[Value]| all.iter().map(value_match).collect();
    let path = one.path.as_ref();
    let text = path.and_then(|path| path.value.clone()).unwrap_or_else(|| "/".to_owned());
    let (path, method) = match &one.method {
        Some(Method::Grpc(method)) => {
            let expression = method.r#type.as_deref() == Some(EXPRESSION);
            let (service, method) = (method.service.clone(), method.method.clone());
            (PathMatch::Grpc { service, method, expression }, None)
        }
        _ if grpc => (PathMatch::Grpc { service: None, method: None, expression: false }, None),
        other => {
            let path = match path.and_then(|path| path.r#type.as_deref()) {
                Some(EXACT) => PathMatch::Exact(text),
                Some(EXPRESSION) => PathMatch::Expression(text),
                _ => PathMatch::Prefix(text),
            };
            let method = match other {
                Some(Method::Http(method)) => Some(method.clone()),
                _ => None,
            };
            (path, method)
        }
    };
    HttpMatch { path, method, headers: values(&one.headers), queries: values(&one.query_params) }
}

fn value_match(one: &Value) -> ValueMatch {
    ValueMatch {
        name: one.name.clone(),
        value: one.value.clone(),
        expression: one.r#type.as_deref() == Some(EXPRESSION),
    }
}

fn filters(world: &World, route: &Route, all: &[Filter], listener: &Listener) -> Filters {
    let mut filters = Filters::default();
    for filter in all {
        if let Some(modifier) = &filter.request_header_modifier {
            add_change(&mut filters.request, modifier);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            add_change(&mut filters.response, modifier);
        }
        if let Some(mirror) = &filter.request_mirror {
            filters.mirrors.extend(self::mirror(world, route, mirror));
        }
        if let Some(redirect) = &filter.request_redirect {
            filters.redirect = Some(self::redirect(redirect, listener));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            let path = rewrite.path.as_ref().map(path_change);
            filters.rewrite = Some(Rewrite { hostname: rewrite.hostname.clone(), path });
        }
    }
    filters
}

fn add_change(change: &mut HeaderChange, modifier: &Modifier) {
    let pairs = |all: &[wherry_resources::gateway::objects::Header]| -> Vec<(String, String)> {
        all.iter().map(|header| (header.name.clone(), header.value.clone())).collect()
    };
    change.set.extend(pairs(&modifier.set));
    change.add.extend(pairs(&modifier.add));
    change.remove.extend(modifier.remove.iter().cloned());
}

/// None where it leads nowhere: the request itself goes on.
fn mirror(world: &World, route: &Route, mirror: &MirrorFilter) -> Option<Mirror> {
    let to = target(world, route, &mirror.backend_ref).ok()?;
    let (numerator, denominator) = match (&mirror.fraction, mirror.percent) {
        (Some(fraction), _) => (fraction.numerator, fraction.denominator.unwrap_or(100).max(1)),
        (None, Some(percent)) => (percent, 100),
        (None, None) => (1, 1),
    };
    Some(Mirror { to, numerator: numerator.min(denominator), denominator })
}

fn redirect(redirect: &RedirectFilter, listener: &Listener) -> Redirect {
    // With another scheme its own port is meant, else the listener's.
    let own = u16::try_from(listener.port).ok().filter(|_| redirect.scheme.is_none());
    Redirect {
        scheme: redirect.scheme.clone(),
        hostname: redirect.hostname.clone(),
        port: redirect.port.or(own),
        path: redirect.path.as_ref().map(path_change),
        status: redirect.status_code.unwrap_or(FOUND),
        plain_only: false,
    }
}

fn path_change(path: &PathModifier) -> PathChange {
    match path.r#type.as_str() {
        FULL_PATH => PathChange::Full(path.replace_full_path.clone().unwrap_or_default()),
        _ => PathChange::Prefix(path.replace_prefix_match.clone().unwrap_or_default()),
    }
}

fn backend(world: &World, route: &Route, to: &BackendRef) -> Backend {
    let (mut request, mut response) = (HeaderChange::default(), HeaderChange::default());
    for filter in &to.filters {
        if let Some(modifier) = &filter.request_header_modifier {
            add_change(&mut request, modifier);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            add_change(&mut response, modifier);
        }
    }
    Backend { to: target(world, route, to), weight: to.weight.unwrap_or(1), request, response }
}

fn target(world: &World, route: &Route, to: &BackendRef) -> Result<Target, String> {
    let backend = world.backend(route, to).map_err(|why| why.message)?;
    Ok(Target {
        namespace: backend.namespace,
        service: backend.service,
        port: backend.port.to_string(),
    })
}
