//! Addresses of one's own for Services of type LoadBalancer.
//!
//! The ConfigMap [`CONFIG_MAP`] names them: `addresses: 192.0.2.10-192.0.2.20, 198.51.100.0/28`.
//! The network must lead them to nodes; a node listens at those that are its machine's. A Service
//! keeps the address that it has; a new one gets what it asks for, if that is free, else the first
//! that is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Namespace and name of the ConfigMap.
pub const CONFIG_MAP: (&str, &str) = ("kube-system", "wherry-load-balancer");
/// The key in it.
pub const KEY: &str = "addresses";

/// Ranges of addresses, first and last included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool(Vec<(u32, u32)>);

impl Pool {
    /// Reads ranges (`a-b`), blocks (`a/n`) and single addresses with commas or spaces between. What
    /// cannot be read is left out.
    pub fn read(text: &str) -> Pool {
        let parts = text.split([',', ' ', '\n']).filter(|part| !part.is_empty());
        Pool(parts.filter_map(range).collect())
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&ip.to_bits()))
    }

    /// The address of a Service: `held` is what it has, `asked` what it asks for. `older` are the
    /// addresses of Services that come first, `others` those of all others.
    pub fn choose(
        &self,
        held: &[IpAddr],
        asked: Option<IpAddr>,
        older: &BTreeSet<IpAddr>,
        others: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        let keeps = |ip: &&IpAddr| {
            self.contains(**ip) && !older.contains(ip) && asked.is_none_or(|asked| asked == **ip)
        };
        if let Some(ip) = held.iter().find(keeps) {
            return Some(*ip);
        }
        if let Some(asked) = asked {
            return (self.contains(asked) && !others.contains(&asked)).then_some(asked);
        }
        let all = self.0.iter().flat_map(|(first, last)| *first..=*last);
        all.map(|ip| IpAddr::V4(Ipv4Addr::from_bits(ip))).find(|ip| !others.contains(ip))
    }
}

fn range(part: &str) -> Option<(u32, u32)> {
    let ip = |text: &str| text.trim().parse::<Ipv4Addr>().ok().map(Ipv4Addr::to_bits);
    if let Some((first, last)) = part.split_once('-') {
        return ip(first).zip(ip(last)).filter(|(first, last)| first <= last);
    }
    let Some((address, length)) = part.split_once('/') else {
        return ip(part).map(|ip| (ip, ip));
    };
    let length: u32 = length.parse().ok().filter(|length| (1..=32).contains(length))?;
    let mask = u32::MAX << (32 - length);
    let network = ip(address)? & mask;
    Some((network, network | !mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[track_caller]
    fn check(held: &[&str], asked: &str, older: &[&str], others: &[&str], expected: &str) {
        let pool = Pool::read("192.0.2.10-192.0.2.11, 198.51.100.4/31 nonsense 203.0.113.1");
        let held: Vec<IpAddr> = ips(held).into_iter().collect();
        let found = pool.choose(&held, asked.parse().ok(), &ips(older), &ips(others));
        assert_eq!(found.map(|ip| ip.to_string()).unwrap_or_default(), expected);
    }

    #[test]
    fn a_service_keeps_its_address_and_a_new_one_gets_a_free_one() {
        check(&[], "", &[], &[], "192.0.2.10");
        check(&[], "", &[], &["192.0.2.10", "192.0.2.11"], "198.51.100.4");
        check(&["192.0.2.11"], "", &[], &["192.0.2.10"], "192.0.2.11");
        // What it has was given to an older one too, or is not of the pool.
        check(&["192.0.2.11"], "", &["192.0.2.11"], &["192.0.2.11"], "192.0.2.10");
        check(&["10.0.0.1"], "", &[], &[], "192.0.2.10");
        check(&["192.0.2.10"], "203.0.113.1", &[], &[], "203.0.113.1");
        check(&[], "203.0.113.1", &[], &["203.0.113.1"], "");
        check(&[], "10.9.9.9", &[], &[], "");
        let all = ["192.0.2.10", "192.0.2.11", "198.51.100.4", "198.51.100.5", "203.0.113.1"];
        check(&[], "", &[], &all, "");
    }
}
