//! Pod addresses of this node.
//!
//! Addresses come from the node's `podCIDR`. Nothing is stored: a starting agent takes back the
//! addresses that its workers and the Pods' statuses name. A freed address is not given out again
//! before all others were, so that a late packet does not meet a stranger.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
};

/// Hands out addresses of one IPv4 block.
#[derive(Debug, Default)]
pub struct Addresses {
    /// First and last address, as numbers; `None` until the node has a `podCIDR`.
    block: Option<(u32, u32)>,
    used: HashSet<u32>,
    next: u32,
}

impl Addresses {
    /// Takes the node's block. `false` if the text is not an IPv4 block.
    pub fn set_block(&mut self, cidr: &str) -> bool {
        let Some(block) = parse(cidr) else {
            return false;
        };
        if self.block != Some(block) {
            self.block = Some(block);
            self.next = block.0;
        }
        true
    }

    /// Whether there is a block.
    pub fn is_ready(&self) -> bool {
        self.block.is_some()
    }

    /// Marks an address as in use. `false` if it is taken or not of the block.
    pub fn claim(&mut self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else {
            return false;
        };
        let number = u32::from(address);
        let inside = self.block.is_none_or(|(first, last)| (first..=last).contains(&number));
        inside && self.used.insert(number)
    }

    /// A free address; `None` if there is no block, or none is left.
    pub fn allocate(&mut self) -> Option<IpAddr> {
        let (first, last) = self.block?;
        for _ in first..=last {
            let candidate = self.next;
            self.next = if candidate == last { first } else { candidate + 1 };
            if self.used.insert(candidate) {
                return Some(IpAddr::V4(Ipv4Addr::from(candidate)));
            }
        }
        None
    }

    /// Frees an address.
    pub fn release(&mut self, address: IpAddr) {
        if let IpAddr::V4(address) = address {
            self.used.remove(&u32::from(address));
        }
    }
}

/// First and last address that a Pod may have: not the network's, not the broadcast address, and not
/// the first host, which is kept for the node itself.
fn parse(cidr: &str) -> Option<(u32, u32)> {
    let (address, length) = cidr.split_once('/')?;
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let length: u32 = length.parse().ok().filter(|length| (8..=29).contains(length))?;
    let mask = u32::MAX << (32 - length);
    let network = address & mask;
    let broadcast = network | !mask;
    Some((network + 2, broadcast - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_out_each_address_once_and_reuses_late() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.allocate(), None);
        assert!(addresses.claim("10.1.0.3".parse().expect("an address")));
        assert!(addresses.set_block("10.1.0.0/29"));
        let given: Vec<String> =
            std::iter::from_fn(|| addresses.allocate()).map(|ip| ip.to_string()).collect();
        assert_eq!(given, ["10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        addresses.release("10.1.0.4".parse().expect("an address"));
        assert_eq!(addresses.allocate(), Some("10.1.0.4".parse().expect("an address")));
        assert!(!addresses.claim("10.9.0.1".parse().expect("an address")));
    }

    #[test]
    fn refuses_what_is_no_block() {
        let mut addresses = Addresses::default();
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "x/8"] {
            assert!(!addresses.set_block(text), "{text}");
        }
    }
}
