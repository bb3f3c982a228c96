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
use crate::protocol::{
    Backend, Family, GateTable, HttpMatch, HttpRule, Owner, PathMatch, Site, ValueMatch,
};

/// All rules, prepared.
#[derive(Default)]
pub struct Rules {
    ports: HashMap<u16, At>,
    /// For the table that comes next.
    remembered: Remembered,
}

/// Rules of each object, in their order.
type Remembered = HashMap<Owner, Vec<Arc<Prepared>>>;

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
    pub shares: Arc<Shares>,
    /// Which requests are mirrored, for each mirror.
    pub mirrored: Arc<Vec<Shares>>,
}

impl Prepared {
    /// What it remembers goes on from the first of the object's old rules that had the same backends
    /// with the same weights, which is taken out.
    fn new(rule: &HttpRule, old: Option<&mut Vec<Arc<Prepared>>>) -> Prepared {
        let before = old.and_then(|old| {
            let index = old.iter().position(|before| same_shares(&before.rule, rule))?;
            Some(old.remove(index))
        });
        let shares = match &before {
            Some(before) => before.shares.clone(),
            None => Arc::new(Shares::new(rule.backends.iter().map(|backend| backend.weight))),
        };
        let mirrors = &rule.filters.mirrors;
        let mirrored = match before.filter(|before| before.rule.filters.mirrors == *mirrors) {
            Some(before) => before.mirrored.clone(),
            None => Arc::new(mirrors.iter().map(Shares::of_mirror).collect()),
        };
        Prepared { rule: rule.clone(), shares, mirrored }
    }
}

/// Whether two rules divide their requests among the same backends in the same way.
fn same_shares(one: &HttpRule, other: &HttpRule) -> bool {
    let share =
        |backend: &Backend, same: &Backend| backend.to == same.to && backend.weight == same.weight;
    one.backends.len() == other.backends.len()
        && one.backends.iter().zip(&other.backends).all(|(one, other)| share(one, other))
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
    /// Sorts the rules so that the first that fits is the one. What a rule remembers, whose turn it
    /// is, goes on from `before`, where the same object had the same backends with the same weights.
    pub fn new(table: &GateTable, before: &Rules) -> Rules {
        let mut rules = Rules::default();
        // Each old rule goes on as one new one: two that shared their turns would be inexact.
        let mut old = before.remembered.clone();
        let mut remembered = Remembered::default();
        let mut prepare = |rule: &HttpRule| {
            let prepared = Arc::new(Prepared::new(rule, old.get_mut(&rule.owner)));
            remembered.entry(rule.owner.clone()).or_default().push(prepared.clone());
            prepared
        };
        for site in &table.sites {
            match site.family {
                Family::Ingress => {
                    let mut hosts = Hosts::default();
                    hosts.add(site, &mut prepare);
                    hosts.sort();
                    let hosts = Arc::new(hosts);
                    for port in &site.ports {
                        rules.ports.entry(*port).or_default().ingresses = Some(hosts.clone());
                    }
                }
                Family::Gateway => {
                    for port in &site.ports {
                        let at = rules.ports.entry(*port).or_default();
                        let hosts = at.gateways.entry(key_of(&site.host)).or_default();
                        hosts.add(site, &mut prepare);
                    }
                }
            }
        }
        let gateways = rules.ports.values_mut().flat_map(|at| at.gateways.values_mut());
        gateways.for_each(Hosts::sort);
        rules.remembered = remembered;
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
    fn add(&mut self, site: &Site, prepare: &mut impl FnMut(&HttpRule) -> Arc<Prepared>) {
        for rule in &site.rules {
            let prepared = prepare(rule);
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
    use crate::protocol::{Filters, HeaderChange, Target};

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
        Rules::new(&GateTable { ports: Vec::new(), sites }, &Rules::default())
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
    fn turns_go_on_in_the_next_table() {
        let canary = |weights: [u32; 2], path: &str| {
            let mut site = site(Family::Gateway, &[&format!("r foo.com {path} stable")]);
            site.rules[0].backends.push(backend("canary"));
            for (backend, weight) in site.rules[0].backends.iter_mut().zip(weights) {
                backend.weight = weight;
            }
            GateTable { ports: Vec::new(), sites: vec![site] }
        };
        let turn = |rules: &Rules, path: &str| {
            let asked = Asked {
                host: "foo.com",
                path,
                query: None,
                method: &Method::GET,
                headers: &HeaderMap::new(),
            };
            rules.find(80, &asked).expect("a rule").rule.shares.next().expect("a backend")
        };
        // A new table with each request, as other objects change: the part stays exact.
        let mut rules = Rules::new(&canary([3, 1], "/"), &Rules::default());
        let mut got = [0; 2];
        for number in 0..40 {
            let path = if number % 2 == 0 { "/" } else { "/other" };
            rules = Rules::new(&canary([3, 1], path), &rules);
            got[turn(&rules, path)] += 1;
        }
        assert_eq!(got, [30, 10]);
        // Other weights are others' turns.
        let other = Rules::new(&canary([0, 1], "/"), &rules);
        assert!((0..8).all(|_| turn(&other, "/") == 1));
        // Two rules with the same backends keep turns of their own.
        let mut two = canary([1, 1], "/");
        let again = two.sites[0].rules[0].clone();
        two.sites[0].rules.push(again);
        let two = Rules::new(&two, &Rules::new(&canary([1, 1], "/"), &Rules::default()));
        let held: Vec<_> = two.remembered.values().flatten().collect();
        assert_eq!(held.len(), 2);
        assert!(!Arc::ptr_eq(&held[0].shares, &held[1].shares));
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
