//! What a Pod's guests mean by a name: an entry of `hostAliases`, a name of the cluster, a name
//! behind which one of the Pod's own search domains is tried (`dnsPolicy`, `dnsConfig`).
//!
//! In the cluster the order does not matter, because a name is looked up in a table and nobody hears
//! of it. Outside it does: there names are asked for one after the other, as a resolver would.

use std::net::IpAddr;

use super::{
    network::{Destination, ResolveError},
    switch::Switch,
};
use crate::protocol::{Dns, HostAlias};

/// Search domains that are tried outside; each costs a question to name servers.
const OUTSIDE_MAX: usize = 6;

/// The names of one Pod.
#[derive(Debug, Default)]
pub struct Names {
    /// `hostAliases`: they come first.
    pub hosts: Vec<HostAlias>,
    /// How others are searched.
    pub dns: Dns,
}

impl Names {
    /// Where `host:port` leads within the cluster.
    pub fn resolve(
        &self,
        switch: &Switch,
        host: &str,
        port: u16,
    ) -> Result<Destination, ResolveError> {
        let alias = self.hosts.iter().find(|alias| alias.name.eq_ignore_ascii_case(host));
        match alias {
            Some(alias) => switch.resolve(&alias.ip.to_string(), port),
            None => self.search(host, |name| switch.resolve(name, port)),
        }
    }

    /// The addresses of a name. Without any it does not exist.
    pub fn lookup(&self, switch: &Switch, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let alias = self.hosts.iter().filter(|alias| alias.name.eq_ignore_ascii_case(name));
        let own: Vec<IpAddr> = alias.map(|alias| alias.ip).collect();
        if !own.is_empty() {
            return Ok(own);
        }
        self.search(name, |name| match switch.lookup(name) {
            Ok(found) if found.is_empty() => Err(ResolveError::NoName { host: name.to_owned() }),
            other => other,
        })
    }

    /// Finds a name as it is or behind a search domain, else says what is wrong with it as it is.
    fn search<T>(
        &self,
        host: &str,
        find: impl Fn(&str) -> Result<T, ResolveError>,
    ) -> Result<T, ResolveError> {
        let whole = is_whole(host);
        let found = match whole || self.dns.cluster_first {
            // The cluster's own search domains are part of the look-up.
            true => find(host),
            false => find(&format!("{host}.")),
        };
        match found {
            Err(ResolveError::Forbidden { .. } | ResolveError::NoPort { .. }) | Ok(_) => found,
            Err(_) if whole => found,
            Err(_) => self.searched(host).find_map(|name| find(&name).ok()).map_or(found, Ok),
        }
    }

    /// A name behind each of the Pod's own search domains.
    fn searched<'a>(&'a self, host: &'a str) -> impl Iterator<Item = String> + 'a {
        let domains = self.dns.searches.iter().map(|domain| domain.trim_end_matches('.'));
        domains.filter(|domain| !domain.is_empty()).map(move |domain| format!("{host}.{domain}."))
    }

    /// The names by which a host that was not found in the cluster is asked for outside, in order;
    /// `error` is why it was not found, `find` looks up in the cluster.
    pub fn outside<T>(
        &self,
        host: &str,
        error: &ResolveError,
        find: impl Fn(&str) -> Result<T, ResolveError>,
    ) -> Vec<String> {
        let outside = |error: &ResolveError| match error {
            ResolveError::Outside { host } => Some(host.clone()),
            _ => None,
        };
        let as_it_is = outside(error);
        let plain = host.to_ascii_lowercase();
        let stands_for_another = as_it_is.as_ref().is_some_and(|name| *name != plain);
        if is_whole(host) || stands_for_another {
            return as_it_is.into_iter().collect();
        }
        let searched = self.searched(host).filter_map(|name| outside(&find(&name).err()?));
        let searched = searched.take(OUTSIDE_MAX);
        let dots = host.bytes().filter(|byte| *byte == b'.').count();
        match dots >= usize::from(self.dns.ndots) {
            true => as_it_is.into_iter().chain(searched).collect(),
            false => searched.chain(as_it_is).collect(),
        }
    }
}

/// An address, or a name with a dot at its end: nothing is tried behind it.
fn is_whole(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.ends_with('.') || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster with the Services `web` and `web` of `other`, for a caller in `shop`.
    fn find(name: &str) -> Result<&'static str, ResolveError> {
        let host = name.trim_end_matches('.').to_owned();
        match name {
            "web" | "web.shop.svc.cluster.local." => Ok("web.shop"),
            "web.other" | "web.other.svc.cluster.local." => Ok("web.other"),
            "alias" => Err(ResolveError::Outside { host: "www.example.com".to_owned() }),
            _ if host.ends_with("cluster.local") => Err(ResolveError::NoName { host }),
            _ if !name.contains(['.', ':']) => {
                Err(ResolveError::NoService { namespace: "shop".to_owned(), name: host })
            }
            _ => Err(ResolveError::Outside { host }),
        }
    }

    /// What a name leads to: within, or by which names it is asked for outside.
    fn shown(names: &Names, host: &str) -> String {
        match names.search(host, find) {
            Ok(found) => found.to_owned(),
            Err(error) => format!("{:?}", names.outside(host, &error, find)),
        }
    }

    fn names(policy: &str, searches: &[&str], ndots: &str) -> Names {
        let searches = searches.iter().map(|it| (*it).to_owned()).collect();
        let options = [("ndots", Some(ndots).filter(|it| !it.is_empty()))];
        Names { hosts: Vec::new(), dns: Dns::new(Some(policy), searches, options.into_iter()) }
    }

    #[test]
    fn the_cluster_comes_first_where_the_pod_does_not_say_else() {
        let usual = Names::default();
        assert_eq!(shown(&usual, "web"), "web.shop");
        assert_eq!(shown(&usual, "web.other"), "web.other");
        assert_eq!(shown(&usual, "nobody"), "[]");
        assert_eq!(shown(&usual, "api.example.com"), r#"["api.example.com"]"#);
        let other = names("ClusterFirst", &["other.svc.cluster.local"], "");
        assert_eq!(shown(&other, "web"), "web.shop");
        let alone = names("None", &["other.svc.cluster.local."], "");
        assert_eq!(shown(&alone, "web"), "web.other");
        assert_eq!(shown(&alone, "web.shop.svc.cluster.local"), "web.shop");
        assert_eq!(shown(&alone, "web.other"), r#"["web.other"]"#, "it is no name any more");
        assert_eq!(shown(&names("Default", &[], ""), "web.other"), r#"["web.other"]"#);
    }

    #[test]
    fn names_outside_are_searched_as_a_resolver_would() {
        let corp = names("ClusterFirst", &["corp.example", "svc.cluster.local", "."], "");
        assert_eq!(shown(&corp, "wiki"), r#"["wiki.corp.example"]"#);
        let searched_first = r#"["api.example.com.corp.example", "api.example.com"]"#;
        assert_eq!(shown(&corp, "api.example.com"), searched_first);
        assert_eq!(shown(&corp, "api.example.com."), r#"["api.example.com"]"#);
        assert_eq!(shown(&corp, "192.0.2.1"), r#"["192.0.2.1"]"#);
        assert_eq!(shown(&corp, "[2001:db8::1]"), r#"["[2001:db8::1]"]"#);
        assert_eq!(shown(&corp, "alias"), r#"["www.example.com"]"#);
        assert_eq!(shown(&corp, "gone.shop.svc.cluster.local."), "[]", "it stays within");
        let few = names("ClusterFirst", &["corp.example"], "2");
        let as_it_is_first = r#"["api.example.com", "api.example.com.corp.example"]"#;
        assert_eq!(shown(&few, "api.example.com"), as_it_is_first);
        let both = r#"["a.b.corp.example", "a.b"]"#;
        assert_eq!(shown(&few, "a.b"), both);
    }
}
