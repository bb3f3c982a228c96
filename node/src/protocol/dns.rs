//! How a Pod's guests search for names: what remains of a `resolv.conf`.

use serde::{Deserialize, Serialize};

/// `dnsPolicy` and `dnsConfig` of a Pod. Name servers are left out: names of the cluster are a table
/// of the worker, others are asked for where the machine asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Dns {
    /// `dnsConfig.searches`: tried behind a name, after the cluster's own.
    pub searches: Vec<String>,
    /// The cluster's own search domains are tried (`ClusterFirst`): not with `Default` and `None`.
    pub cluster_first: bool,
    /// `ndots` of `dnsConfig.options`: a name with so many dots is asked for as it is before it is
    /// searched. It matters outside only: in the cluster one of both is there at most.
    pub ndots: u8,
}

/// `ndots` where the cluster comes first, as kubelets write it.
const NDOTS_CLUSTER: u8 = 5;
/// `ndots` where nobody says it, as resolvers have it.
const NDOTS: u8 = 1;
/// As many as resolvers take.
const NDOTS_MAX: u8 = 15;

impl Default for Dns {
    fn default() -> Dns {
        Dns { searches: Vec::new(), cluster_first: true, ndots: NDOTS_CLUSTER }
    }
}

impl Dns {
    /// Of a policy and, of a configuration, its search domains and options with their values. An
    /// option that is not understood is ignored, as by resolvers.
    pub fn new<'a>(
        policy: Option<&str>,
        searches: Vec<String>,
        options: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Dns {
        let cluster_first = !matches!(policy, Some("Default" | "None"));
        let usual = if cluster_first { NDOTS_CLUSTER } else { NDOTS };
        let said = options.filter(|(name, _)| *name == "ndots").filter_map(|(_, value)| value);
        let ndots = said.filter_map(|value| value.parse::<u8>().ok()).last();
        Dns { searches, cluster_first, ndots: ndots.unwrap_or(usual).min(NDOTS_MAX) }
    }

    /// As the lines of a `resolv.conf`, for programs that look there.
    pub fn resolv_conf(&self, namespace: &str, domain: &str) -> String {
        let own = match self.cluster_first {
            true => {
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.into()]
            }
            false => Vec::new(),
        };
        let searches: Vec<&str> = own.iter().chain(&self.searches).map(String::as_str).collect();
        let search = match searches[..] {
            [] => String::new(),
            _ => format!("search {}\n", searches.join(" ")),
        };
        format!("{search}options ndots:{}\n", self.ndots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_how_its_names_are_searched() {
        let read = |policy, searches: &[&str], options: &[(&str, Option<&str>)]| {
            let searches = searches.iter().map(|it| (*it).to_owned()).collect();
            let options = options.iter().copied();
            Dns::new(policy, searches, options).resolv_conf("shop", "cluster.local")
        };
        assert_eq!(
            read(None, &["corp.example"], &[("timeout", Some("2")), ("ndots", Some("2"))]),
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
             options ndots:2\n"
        );
        assert_eq!(read(Some("None"), &["a", "b"], &[]), "search a b\noptions ndots:1\n");
        let odd = [("ndots", Some("many")), ("ndots", None), ("ndots", Some("200"))];
        assert_eq!(read(Some("Default"), &[], &odd), "options ndots:15\n");
        let cluster = Dns::new(Some("ClusterFirstWithHostNet"), Vec::new(), std::iter::empty());
        assert_eq!(cluster, Dns::default());
    }

    #[test]
    fn older_agents_and_workers_understand_each_other() {
        let said: Dns = serde_json::from_str(r#"{"searches":["a"]}"#).expect("what agents said");
        assert_eq!(said, Dns { searches: vec!["a".to_owned()], ..Dns::default() });
    }
}
