//! Which rule a request meets. Pure.
//!
//! Of Ingresses the host decides first: exactly named, else below a wildcard (one label), else rules
//! for every host. What meets none of its rules goes to a default backend: that of an Ingress of the
//! host, else that of the oldest Ingress with one.
//!
//! Of Gateways the listener whose host fits best has the request; among its rules those for a more
//! exact host come first.
//!
//! Among the rules of a host an exact path comes before expressions and these before prefixes, a
//! longer one before a shorter one; then one with a method, with more headers, with more parameters
//! of the query; of equal ones the older object's counts. Where Ingresses and Gateways have a rule
//! each, the more exact host counts, then the Gateway's.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap, sync::Arc};

use http::{HeaderMap, HeaderName, Method};
use wherry_resources::gateway::rules::Expression;

use super::shares::Shares;
use crate::protocol::{Family, GateTable, HttpMatch, HttpRule, PathMatch, Site, ValueMatch};

/// All rules, prepared.
#[derive(Default)]
pub struct Rules {
    ports: HashMap<u16, At>,
}

/// What is at a port.
#[derive(Default)]
struct At {
    ingresses: Option<Arc<Hosts>>,
    /// By the listener's host (see [`key_of`]).
    gateways: HashMap<String, Hosts>,
}

/// Rules by host (see [`key_of`]), each list in the order in which it is tried.
#[derive(Default)]
struct Hosts {
    lists: HashMap<String, Vec<Entry>>,
    /// Default backends, in order of age.
    defaults: Vec<Entry>,
}

/// One way to meet a rule.
#[derive(Clone)]
pub struct Entry {
    /// The rule.
    pub rule: Arc<Prepared>,
    fit: Arc<Fit>,
}

/// A rule and what it remembers.
pub struct Prepared {
    /// As it was sent.
    pub rule: HttpRule,
    /// Whose turn it is among the backends.
    pub shares: Shares,
    /// Which requests are mirrored, for each mirror.
    pub mirrored: Vec<Shares>,
}

/// A request, as far as rules look at it.
pub struct Asked<'a> {
    /// Without its port.
    pub host: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// GET and the like.
    pub method: &'a Method,
    /// All of them.
    pub headers: &'a HeaderMap,
}

/// Why a request meets no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// Nobody names the host.
    Host,
    /// Some do, but none of their rules fits.
    Rule,
}

/// How exactly a host was named: in full or not, and with how many letters.
type Exactness = (bool, usize);

impl Rules {
    /// Sorts the rules so that the first that fits is the one.
    pub fn new(table: &GateTable) -> Rules {
        let mut rules = Rules::default();
        for site in &table.sites {
            match site.family {
                Family::Ingress => {
                    let mut hosts = Hosts::default();
                    hosts.add(site);
                    hosts.sort();
                    let hosts = Arc::new(hosts);
                    for port in &site.ports {
                        rules.ports.entry(*port).or_default().ingresses = Some(hosts.clone());
                    }
                }
                Family::Gateway => {
                    for port in &site.ports {
                        let at = rules.ports.entry(*port).or_default();
                        at.gateways.entry(key_of(&site.host)).or_default().add(site);
                    }
                }
            }
        }
        let gateways = rules.ports.values_mut().flat_map(|at| at.gateways.values_mut());
        gateways.for_each(Hosts::sort);
        rules
    }

    /// The rule for a request that came in at a port.
    pub fn find(&self, port: u16, asked: &Asked<'_>) -> Result<&Entry, Missing> {
        let host = asked.host.to_ascii_lowercase();
        let at = self.ports.get(&port).ok_or(Missing::Host)?;
        match (at.of_gateways(&host, asked), at.of_ingresses(&host, asked)) {
            (Ok((entry, exactness)), Ok((_, other))) if exactness >= other => Ok(entry),
            (_, Ok((entry, _))) | (Ok((entry, _)), Err(_)) => Ok(entry),
            (Err(one), Err(other)) => Err(one.max(other)),
        }
    }

    /// What has rules at a port, for people.
    pub fn kinds(&self, port: u16) -> &'static str {
        let at = self.ports.get(&port);
        let gateways = at.is_some_and(|at| !at.gateways.is_empty());
        match (at.is_some_and(|at| at.ingresses.is_some()), gateways) {
            (true, true) => "Ingress or route",
            (false, true) => "route",
            (_, false) => "Ingress",
        }
    }
}

impl At {
    fn of_ingresses(&self, host: &str, asked: &Asked<'_>) -> Result<(&Entry, Exactness), Missing> {
        let hosts = self.ingresses.as_ref().ok_or(Missing::Host)?;
        let below = host.find('.').map_or("", |dot| &host[dot..]);
        let found = [host, below, ""].into_iter().find_map(|key| hosts.lists.get_key_value(key));
        let (key, list) =
            found.map_or(("", &[][..]), |(key, list)| (key.as_str(), list.as_slice()));
        if let Some(entry) = list.iter().find(|entry| entry.fit.fits(asked)) {
            return Ok((entry, exactness(key)));
        }
        let own = |default: &&Entry| {
            list.iter().any(|entry| entry.rule.rule.owner == default.rule.rule.owner)
        };
        let default = hosts.defaults.iter().find(own).or_else(|| hosts.defaults.first());
        let missing = if list.is_empty() { Missing::Host } else { Missing::Rule };
        default.map(|entry| (entry, (false, 0))).ok_or(missing)
    }

    fn of_gateways(&self, host: &str, asked: &Asked<'_>) -> Result<(&Entry, Exactness), Missing> {
        let site = keys(host).find_map(|key| self.gateways.get(key)).ok_or(Missing::Host)?;
        let mut missing = Missing::Host;
        for key in keys(host) {
            let Some(list) = site.lists.get(key) else { continue };
            if let Some(entry) = list.iter().find(|entry| entry.fit.fits(asked)) {
                return Ok((entry, exactness(key)));
            }
            missing = Missing::Rule;
        }
        Err(missing)
    }
}

/// A pattern of hosts as it is looked up: `*.foo.com` is `.foo.com`.
fn key_of(pattern: &str) -> String {
    pattern.strip_prefix('*').unwrap_or(pattern).to_ascii_lowercase()
}

/// The keys of all patterns that a host fits, the most exact first.
fn keys(host: &str) -> impl Iterator<Item = &str> {
    let below = host.match_indices('.').map(|(dot, _)| &host[dot..]);
    std::iter::once(host).chain(below).chain((!host.is_empty()).then_some(""))
}

fn exactness(key: &str) -> Exactness {
    (!key.is_empty() && !key.starts_with('.'), key.len())
}

impl Hosts {
    fn add(&mut self, site: &Site) {
        for rule in &site.rules {
            let prepared = Arc::new(Prepared {
                shares: Shares::new(rule.backends.iter().map(|backend| backend.weight)),
                mirrored: rule.filters.mirrors.iter().map(Shares::of_mirror).collect(),
                rule: rule.clone(),
            });
            if rule.matches.is_empty() {
                let fit = Arc::new(Fit::everything());
                self.defaults.push(Entry { rule: prepared, fit });
                continue;
            }
            for one in &rule.matches {
                let fit = Arc::new(Fit::new(one));
                for host in &rule.hosts {
                    let entry = Entry { rule: prepared.clone(), fit: fit.clone() };
                    self.lists.entry(key_of(host)).or_default().push(entry);
                }
            }
        }
    }

    /// Stable: equal ones stay in order of age.
    fn sort(&mut self) {
        for list in self.lists.values_mut() {
            list.sort_by_key(|entry| Reverse(entry.fit.rank));
        }
    }
}

impl Entry {
    /// The prefix by which a path fitted.
    pub fn prefix(&self) -> Option<&str> {
        match &self.fit.path {
            PathFit::Prefix(prefix) => Some(prefix),
            _ => None,
        }
    }
}

/// Which of two that fit counts: the greater. Kind of path, letters of the path (of a gRPC service),
/// letters of a gRPC method, whether there is a method, headers, parameters.
type Rank = (u8, usize, usize, bool, usize, usize);

/// A match, prepared.
struct Fit {
    rank: Rank,
    path: PathFit,
    method: Option<Method>,
    headers: Vec<(HeaderName, ValueFit)>,
    queries: Vec<(String, ValueFit)>,
    /// It says something that nothing fits.
    never: bool,
}

enum PathFit {
    Exact(String),
    /// Without a slash at its end.
    Prefix(String),
    Expression(ValueFit),
    Grpc {
        service: Option<ValueFit>,
        method: Option<ValueFit>,
    },
}

enum ValueFit {
    Exact(String),
    Expression(Expression),
    Never,
}

impl ValueFit {
    fn new(text: &str, expression: bool) -> ValueFit {
        if !expression {
            return ValueFit::Exact(text.to_owned());
        }
        // One that is no expression was refused where its route was settled.
        Expression::new(text).map_or(ValueFit::Never, ValueFit::Expression)
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            ValueFit::Exact(own) => own == text,
            ValueFit::Expression(expression) => expression.fits(text),
            ValueFit::Never => false,
        }
    }
}

impl Fit {
    fn everything() -> Fit {
        Fit {
            rank: (0, 0, 0, false, 0, 0),
            path: PathFit::Prefix(String::new()),
            method: None,
            headers: Vec::new(),
            queries: Vec::new(),
            never: false,
        }
    }

    fn new(one: &HttpMatch) -> Fit {
        let (kind, letters, of_method, path) = match &one.path {
            PathMatch::Exact(path) => (3, path.len(), 0, PathFit::Exact(path.clone())),
            PathMatch::Expression(text) => {
                (2, text.len(), 0, PathFit::Expression(ValueFit::new(text, true)))
            }
            PathMatch::Prefix(path) => {
                let prefix = path.trim_end_matches('/');
                (1, prefix.len(), 0, PathFit::Prefix(prefix.to_owned()))
            }
            PathMatch::Grpc { service, method, expression } => {
                let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                let lengths = (length(service), length(method));
                let fit = |text: &Option<String>| {
                    text.as_ref().map(|text| ValueFit::new(text, *expression))
                };
                (
                    0,
                    lengths.0,
                    lengths.1,
                    PathFit::Grpc { service: fit(service), method: fit(method) },
                )
            }
        };
        let method = one.method.as_ref().map(|method| Method::from_bytes(method.as_bytes()));
        let mut fit = Fit {
            rank: (
                kind,
                letters,
                of_method,
                method.is_some(),
                one.headers.len(),
                one.queries.len(),
            ),
            path,
            never: matches!(method, Some(Err(_))),
            method: method.and_then(Result::ok),
            headers: Vec::new(),
            queries: Vec::new(),
        };
        for ValueMatch { name, value, expression } in &one.headers {
            match HeaderName::try_from(name.as_str()) {
                // Of entries with the same name the first counts.
                Ok(name) if fit.headers.iter().any(|(held, _)| *held == name) => {}
                Ok(name) => fit.headers.push((name, ValueFit::new(value, *expression))),
                Err(_) => fit.never = true,
            }
        }
        for ValueMatch { name, value, expression } in &one.queries {
            if !fit.queries.iter().any(|(held, _)| held == name) {
                fit.queries.push((name.clone(), ValueFit::new(value, *expression)));
            }
        }
        fit
    }

    fn fits(&self, asked: &Asked<'_>) -> bool {
        !self.never
            && self.path.fits(asked.path)
            && self.method.as_ref().is_none_or(|method| method == asked.method)
            && self.headers.iter().all(|(name, value)| {
                let mut held = asked.headers.get_all(name).iter();
                held.any(|held| held.to_str().is_ok_and(|held| value.fits(held)))
            })
            && self.queries.iter().all(|(name, value)| {
                let held = parameter(asked.query.unwrap_or(""), name);
                held.is_some_and(|held| value.fits(&held))
            })
    }
}

/// The first parameter of a query with that name, decoded.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    let mut all = form_urlencoded::parse(query.as_bytes());
    all.find(|(own, _)| own == name).map(|(_, value)| value)
}

impl PathFit {
    fn fits(&self, path: &str) -> bool {
        match self {
            PathFit::Exact(own) => own == path,
            // Element by element: `/a` is above `/a/b`, not above `/ab`.
            PathFit::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathFit::Expression(value) => value.fits(path),
            PathFit::Grpc { service, method } => {
                let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
                let fits = |value: &Option<ValueFit>, text| {
                    value.as_ref().is_none_or(|value| value.fits(text))
                };
                parts.is_some_and(|(own, called)| fits(service, own) && fits(method, called))
            }
        }
    }
}

/// The host of an authority, without port and brackets' contents untouched.
pub fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').map_or(authority, |end| &authority[..=end]);
    }
    authority.split(':').next().unwrap_or(authority).trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Backend, Filters, HeaderChange, Owner, Target};

    fn backend(service: &str) -> Backend {
        let to = Target { namespace: "d".into(), service: service.into(), port: "80".into() };
        let none = HeaderChange::default();
        Backend { to: Ok(to), weight: 1, request: none.clone(), response: none }
    }

    /// `owner host path[=]` to `service`; `-` for none, `=` for exactly.
    fn site(family: Family, lines: &[&str]) -> Site {
        let rule = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let path = match words[2].strip_suffix('=') {
                Some(path) => PathMatch::Exact(path.to_owned()),
                None => PathMatch::Prefix(words[2].to_owned()),
            };
            let one = HttpMatch { path, method: None, headers: Vec::new(), queries: Vec::new() };
            HttpRule {
                owner: Owner { name: words[0].into(), ..Owner::default() },
                hosts: vec![words[1].trim_start_matches('-').to_owned()],
                matches: if words[2] == "-" { Vec::new() } else { vec![one] },
                backends: vec![backend(words[3])],
                filters: Filters::default(),
                ..HttpRule::default()
            }
        };
        let rules = lines.iter().map(rule).collect();
        Site { ports: vec![80], family, rules, ..Site::default() }
    }

    fn rules(sites: Vec<Site>) -> Rules {
        Rules::new(&GateTable { ports: Vec::new(), sites })
    }

    fn table(lines: &[&str]) -> Rules {
        rules(vec![site(Family::Ingress, lines)])
    }

    #[track_caller]
    fn check(rules: &Rules, url: &str, expected: Result<&str, Missing>) {
        let slash = url.find('/').expect("host/path");
        let asked = Asked {
            host: &url[..slash],
            path: &url[slash..],
            query: None,
            method: &Method::GET,
            headers: &HeaderMap::new(),
        };
        let found = rules.find(80, &asked).map(|entry| {
            let to = entry.rule.rule.backends[0].to.as_ref().expect("a Service");
            to.service.as_str()
        });
        assert_eq!(found, expected, "{url}");
    }

    #[test]
    fn hosts_from_the_exact_to_the_open() {
        let rules = table(&["a foo.com / exact", "a *.foo.com / wild", "b - / any"]);
        check(&rules, "foo.com/x", Ok("exact"));
        check(&rules, "FOO.com/x", Ok("exact"));
        check(&rules, "bar.foo.com/", Ok("wild"));
        // A wildcard stands for one label.
        check(&rules, "baz.bar.foo.com/", Ok("any"));
        check(&rules, "example.org/", Ok("any"));
    }

    #[test]
    fn paths_element_by_element() {
        let rules = table(&[
            "a foo.com /aaa/bbb prefix",
            "a foo.com /aaa/bbb/ccc= exact",
            "a foo.com /aaa/bbb/ccc longer",
            "a foo.com /end/ slash",
            "b foo.com /aaa/bbb younger",
        ]);
        check(&rules, "foo.com/aaa/bbb", Ok("prefix"));
        check(&rules, "foo.com/aaa/bbb/", Ok("prefix"));
        check(&rules, "foo.com/aaa/bbb/ccc", Ok("exact"));
        check(&rules, "foo.com/aaa/bbb/ccc/", Ok("longer"));
        check(&rules, "foo.com/aaa/bbb/ccc/d", Ok("longer"));
        check(&rules, "foo.com/aaa/bbbxyz", Err(Missing::Rule));
        check(&rules, "foo.com/end", Ok("slash"));
        check(&rules, "foo.com/", Err(Missing::Rule));
        check(&rules, "bar.com/", Err(Missing::Host));
        // Case counts in paths.
        check(&rules, "foo.com/AAA/bbb", Err(Missing::Rule));
    }

    #[test]
    fn what_meets_no_rule_goes_to_a_default() {
        let rules = table(&["a foo.com /x x", "b - - oldest", "a - - own"]);
        check(&rules, "foo.com/x", Ok("x"));
        check(&rules, "foo.com/y", Ok("own"));
        check(&rules, "bar.com/y", Ok("oldest"));
    }

    #[test]
    fn an_ingress_and_a_gateway_share_a_port() {
        let ingresses = site(Family::Ingress, &["i foo.com / ingress", "i - - default"]);
        let routes = ["r - / any", "r foo.com /x= same", "r *.foo.com / below"];
        let rules = rules(vec![ingresses, site(Family::Gateway, &routes)]);
        // The more exact host counts, then the Gateway.
        check(&rules, "foo.com/", Ok("ingress"));
        check(&rules, "foo.com/x", Ok("same"));
        check(&rules, "a.b.foo.com/", Ok("below"));
        check(&rules, "bar.com/", Ok("any"));
        assert_eq!(rules.kinds(80), "Ingress or route");
    }

    #[test]
    fn hosts_are_read_out_of_authorities() {
        for (authority, host) in
            [("foo.com:80", "foo.com"), ("foo.com.", "foo.com"), ("[::1]:80", "[::1]"), ("", "")]
        {
            assert_eq!(host_of(authority), host);
        }
    }
}
