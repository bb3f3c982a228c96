//! Which rule of which Ingress a request meets. Pure.
//!
//! The host decides first: exactly named, else below a wildcard (one label), else rules for every
//! host. Among the rules of that host an exact path comes before prefixes and a longer prefix
//! before a shorter one; of equal ones the older Ingress's counts. What meets no rule goes to a
//! default backend: that of an Ingress of the host, else that of the oldest Ingress with one.

use std::collections::HashMap;

use crate::protocol::{IngressRule, IngressTable};

/// All rules, prepared.
#[derive(Default)]
pub struct Rules {
    /// By host; wildcards with their dot at the beginning; every host is empty.
    hosts: HashMap<String, Vec<IngressRule>>,
    /// Rules without a path, in order of age.
    defaults: Vec<IngressRule>,
}

/// Why a request meets no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No Ingress names the host.
    Host,
    /// Some do, but none the path.
    Path,
}

impl Rules {
    /// Sorts the rules so that the first that fits is the one.
    pub fn new(table: &IngressTable) -> Rules {
        let mut rules = Rules::default();
        for rule in &table.rules {
            if rule.path.is_none() {
                rules.defaults.push(rule.clone());
                continue;
            }
            let host = rule.host.as_deref().unwrap_or("").to_ascii_lowercase();
            let host = host.strip_prefix('*').unwrap_or(&host).to_owned();
            rules.hosts.entry(host).or_default().push(rule.clone());
        }
        for all in rules.hosts.values_mut() {
            // Stable: equal ones stay in order of age.
            all.sort_by_key(|rule| {
                let path = rule.path.as_ref().expect("rules without one are defaults");
                (!path.exact, std::cmp::Reverse(path.path.trim_end_matches('/').len()))
            });
        }
        rules
    }

    /// The rule for a request.
    pub fn find(&self, host: &str, path: &str) -> Result<&IngressRule, Missing> {
        let host = host.to_ascii_lowercase();
        let below = host.find('.').map(|dot| &host[dot..]);
        let of_host = self
            .hosts
            .get(&host)
            .filter(|_| !host.is_empty())
            .or_else(|| below.and_then(|below| self.hosts.get(below)))
            .or_else(|| self.hosts.get(""));
        let rules = of_host.map(Vec::as_slice).unwrap_or_default();
        if let Some(rule) = rules.iter().find(|rule| fits(rule, path)) {
            return Ok(rule);
        }
        let own = |it: &&IngressRule| rules.iter().any(|rule| rule.ingress == it.ingress);
        let default = self.defaults.iter().find(own).or_else(|| self.defaults.first());
        default.ok_or(if rules.is_empty() { Missing::Host } else { Missing::Path })
    }
}

/// Prefixes are compared element by element: `/a` is above `/a/b`, not above `/ab`.
fn fits(rule: &IngressRule, path: &str) -> bool {
    let Some(wanted) = &rule.path else { return false };
    if wanted.exact {
        return wanted.path == path;
    }
    let prefix = wanted.path.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
    use crate::protocol::{IngressPath, ServiceKey};

    /// `ingress host path[=]` to `service`; `-` for none, `=` for exactly.
    fn table(lines: &[&str]) -> Rules {
        let rule = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let some = |word: &str| (word != "-").then(|| word.to_owned());
            IngressRule {
                ingress: ServiceKey { namespace: "d".into(), name: words[0].into() },
                host: some(words[1]),
                path: some(words[2]).map(|path| IngressPath {
                    exact: path.ends_with('='),
                    path: path.trim_end_matches('=').to_owned(),
                }),
                service: words[3].into(),
                port: "80".into(),
                redirect: false,
                body_bytes_max: None,
            }
        };
        let rules = lines.iter().map(rule).collect();
        Rules::new(&IngressTable { rules, ..IngressTable::default() })
    }

    #[track_caller]
    fn check(rules: &Rules, url: &str, expected: Result<&str, Missing>) {
        let slash = url.find('/').expect("host/path");
        let found = rules.find(&url[..slash], &url[slash..]);
        assert_eq!(found.map(|rule| rule.service.as_str()), expected, "{url}");
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
        check(&rules, "foo.com/aaa/bbbxyz", Err(Missing::Path));
        check(&rules, "foo.com/end", Ok("slash"));
        check(&rules, "foo.com/", Err(Missing::Path));
        check(&rules, "bar.com/", Err(Missing::Host));
        // Case counts in paths.
        check(&rules, "foo.com/AAA/bbb", Err(Missing::Path));
    }

    #[test]
    fn what_meets_no_rule_goes_to_a_default() {
        let rules = table(&["a foo.com /x x", "b - - oldest", "a - - own"]);
        check(&rules, "foo.com/x", Ok("x"));
        check(&rules, "foo.com/y", Ok("own"));
        check(&rules, "bar.com/y", Ok("oldest"));
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
