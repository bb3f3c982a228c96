//! Pod addresses of this node.
//!
//! Addresses come from the node's `podCIDRs`; the control plane adds another block when they run
//! out. Nothing is stored: a starting agent takes back the addresses that its workers and the Pods'
//! statuses name. What a worker names is kept for that Pod until the agent has heard of it: it runs
//! with that address and cannot take another one. A freed address is not given out again before all
//! others were, so that a late packet does not meet a stranger.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

/// Hands out addresses of IPv4 blocks.
#[derive(Debug, Default)]
pub struct Addresses {
    /// First and last address of each block, as numbers; none until the node has one.
    blocks: Vec<(u32, u32)>,
    used: HashSet<u32>,
    /// Uids of Pods that run and have not claimed their address yet.
    promised: HashMap<u32, String>,
    /// Where the next search begins, counted over all blocks.
    next: u32,
}

impl Addresses {
    /// Takes the node's blocks. An error names the text that is not an IPv4 block; the others count.
    pub fn set_blocks<'a>(&mut self, cidrs: &'a [String]) -> Result<(), &'a str> {
        let mut wrong = Ok(());
        for cidr in cidrs {
            match parse(cidr) {
                Some(block) if !self.blocks.contains(&block) => self.blocks.push(block),
                Some(_) => {}
                None => wrong = Err(cidr.as_str()),
            }
        }
        let held: Vec<(u32, u32)> = cidrs.iter().filter_map(|cidr| parse(cidr)).collect();
        self.blocks.retain(|block| held.contains(block));
        wrong
    }

    /// Whether there is a block.
    pub fn is_ready(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// How many addresses there are in all.
    pub fn count(&self) -> u32 {
        self.blocks.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Keeps addresses for Pods, by uid, that run with them.
    pub fn promised<'a>(pods: impl Iterator<Item = (IpAddr, &'a str)>) -> Addresses {
        let promise = |(address, uid): (IpAddr, &str)| match address {
            IpAddr::V4(address) => Some((u32::from(address), uid.to_owned())),
            IpAddr::V6(_) => None,
        };
        Addresses { promised: pods.filter_map(promise).collect(), ..Addresses::default() }
    }

    /// All Pods are known: what none of them has claimed is free.
    pub fn end_promises(&mut self) {
        self.promised.clear();
    }

    /// Marks an address as in use by a Pod. `false` if it is taken, kept for another one, or not of
    /// the blocks.
    pub fn claim(&mut self, address: IpAddr, uid: &str) -> bool {
        let IpAddr::V4(address) = address else {
            return false;
        };
        let number = u32::from(address);
        match self.promised.get(&number) {
            Some(owner) if owner != uid => return false,
            Some(_) => _ = self.promised.remove(&number),
            None => {}
        }
        let holds = |(first, last): &(u32, u32)| (*first..=*last).contains(&number);
        let inside = self.blocks.is_empty() || self.blocks.iter().any(holds);
        inside && self.used.insert(number)
    }

    /// A free address; `None` if there is no block, or none is left.
    pub fn allocate(&mut self) -> Option<IpAddr> {
        let count = self.count();
        for _ in 0..count {
            let candidate = self.address(self.next % count)?;
            self.next = (self.next + 1) % count;
            if !self.promised.contains_key(&candidate) && self.used.insert(candidate) {
                return Some(IpAddr::V4(Ipv4Addr::from(candidate)));
            }
        }
        None
    }

    /// The address with this number.
    fn address(&self, mut number: u32) -> Option<u32> {
        for (first, last) in &self.blocks {
            let count = last - first + 1;
            if number < count {
                return Some(first + number);
            }
            number -= count;
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

    fn blocks(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn rest(addresses: &mut Addresses) -> Vec<String> {
        std::iter::from_fn(|| addresses.allocate()).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn gives_out_each_address_once_and_reuses_late() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.allocate(), None);
        assert!(addresses.claim("10.1.0.3".parse().expect("an address"), "a"));
        assert_eq!(addresses.set_blocks(&blocks(&["10.1.0.0/29"])), Ok(()));
        assert_eq!(rest(&mut addresses), ["10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        addresses.release("10.1.0.4".parse().expect("an address"));
        assert_eq!(addresses.allocate(), Some("10.1.0.4".parse().expect("an address")));
        assert!(!addresses.claim("10.9.0.1".parse().expect("an address"), "a"));
    }

    #[test]
    fn who_runs_keeps_its_address_whoever_comes_first() {
        let two: IpAddr = "10.1.0.2".parse().expect("an address");
        let four: IpAddr = "10.1.0.4".parse().expect("an address");
        let reported = [(two, "runs"), (four, "nobody knows it")];
        let mut addresses = Addresses::promised(reported.into_iter());
        assert_eq!(addresses.set_blocks(&blocks(&["10.1.0.0/29"])), Ok(()));
        assert!(!addresses.claim(two, "dead, by the checkpoint"));
        assert_eq!(rest(&mut addresses), ["10.1.0.3", "10.1.0.5", "10.1.0.6"]);
        assert!(addresses.claim(two, "runs"));
        assert!(!addresses.claim(two, "runs too"));
        // It ends: the address is anybody's.
        addresses.release(two);
        assert_eq!(rest(&mut addresses), ["10.1.0.2"]);
        addresses.end_promises();
        assert_eq!(rest(&mut addresses), ["10.1.0.4"]);
    }

    #[test]
    fn a_further_block_is_used_when_it_comes() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.set_blocks(&blocks(&["10.1.0.0/29"])), Ok(()));
        assert_eq!(rest(&mut addresses).len(), 5);
        assert_eq!(addresses.set_blocks(&blocks(&["10.1.0.0/29", "10.9.0.0/29"])), Ok(()));
        assert_eq!(addresses.count(), 10);
        assert_eq!(rest(&mut addresses)[0], "10.9.0.2");
    }

    #[test]
    fn refuses_what_is_no_block() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "x/8"] {
            let mut addresses = Addresses::default();
            assert_eq!(addresses.set_blocks(&blocks(&[text, "10.1.0.0/29"])), Err(text));
            assert!(addresses.is_ready(), "{text}");
        }
    }
}
