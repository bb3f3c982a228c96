//! Endpoints must not lead traffic to where their author could not go: loopback, link-local and
//! multicast addresses belong to the machines, not to Pods, and so do the addresses of the nodes and
//! of the control plane, which only administrators may write.

use super::Context;
use crate::apiserver::errors::{self, ApiError};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr};
use wherry_resources::{
    Object, meta,
    validate::{FieldError, Reason},
};

/// Checks every address. The control plane's own tasks may publish its own address, which on a
/// single machine is loopback; administrators may keep it when they change something else.
pub fn admit(context: &Context<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    if context.is_own() {
        return Ok(());
    }
    let held = old.filter(|_| context.is_trusted()).map(addresses).unwrap_or_default();
    let held: BTreeSet<&str> = held.into_iter().map(|(_, address)| address).collect();
    let mut wrong: Vec<FieldError> = Vec::new();
    for (path, address) in addresses(new).into_iter().filter(|(_, it)| !held.contains(it)) {
        let machine = context.facts.machines.iter().any(|machine| same(machine, address));
        let machine = machine.then_some("may not be the address of a node or the control plane");
        if let Some(why) = refused(address).or(machine) {
            let message = format!("Invalid value: {address:?}: {why}");
            wrong.push(errors::field(Reason::Invalid, &path, message));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(context.kind, meta::name(new), wrong))
}

/// Addresses with their paths, of an EndpointSlice or an Endpoints.
fn addresses(object: &Object) -> Vec<(String, &str)> {
    let list = |value: &'_ Value, key: &str| -> usize {
        value.get(key).and_then(Value::as_array).map_or(0, Vec::len)
    };
    let mut found = Vec::new();
    for i in 0..list(object, "endpoints") {
        let endpoint = &object["endpoints"][i];
        for j in 0..list(endpoint, "addresses") {
            let path = format!("endpoints[{i}].addresses[{j}]");
            found.push((path, endpoint["addresses"][j].as_str().unwrap_or("")));
        }
    }
    for i in 0..list(object, "subsets") {
        let subset = &object["subsets"][i];
        for part in ["addresses", "notReadyAddresses"] {
            for j in 0..list(subset, part) {
                let path = format!("subsets[{i}].{part}[{j}].ip");
                found.push((path, subset[part][j]["ip"].as_str().unwrap_or("")));
            }
        }
    }
    found
}

/// The address as it is connected to: `::ffff:127.0.0.1` is 127.0.0.1.
fn parsed(address: &str) -> Option<IpAddr> {
    address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Whether two texts are one address, however they write it.
fn same(one: &str, other: &str) -> bool {
    one == other || parsed(one).is_some_and(|one| parsed(other) == Some(one))
}

fn refused(address: &str) -> Option<&'static str> {
    let address = parsed(address)?;
    let (link_local, broadcast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if address.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if address.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if address.is_multicast() || broadcast {
        Some("may not be a multicast or broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_machines_are_refused() {
        for address in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"] {
            assert!(refused(address).is_some(), "{address}");
        }
        for address in ["::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0"] {
            assert!(refused(address).is_some(), "{address}");
        }
        assert!(same("10.0.0.5", "::ffff:10.0.0.5") && same("fd00::1", "fd00:0:0::1"));
        assert!(!same("10.0.0.5", "10.0.0.6") && !same("node-a", "node-b"));
        for address in ["10.0.0.1", "192.168.1.1", "2001:db8::1"] {
            assert_eq!(refused(address), None, "{address}");
        }
    }
}
