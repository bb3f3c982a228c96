//! URLs and addresses in expressions.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use cel::common::types::{CelBool, CelInt, CelList, CelMap, CelMapKey, CelString};
use cel::common::value::Val;
use cel::{DeclarationError, Env, ExecutionError};

use super::functions::{failed, opaque};

opaque!(
    /// An absolute URL or an absolute path.
    Url(Parts), "kubernetes.URL"
);
opaque!(
    /// An IP address.
    Ip(IpAddr), "net.IP"
);
opaque!(
    /// A range of addresses: the address as written, and the length of its prefix.
    Cidr((IpAddr, u8)), "net.CIDR"
);

/// The parts of a URL, as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

/// Registers the functions.
pub fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn url: (CelString) -> Result<Url>)?;
    cel::add_overload!(env, fn is_url: (CelString) -> CelBool, name = "isURL")?;
    cel::add_member_overload!(env, fn get_scheme: (Url) -> CelString)?;
    cel::add_member_overload!(env, fn get_host: (Url) -> CelString)?;
    cel::add_member_overload!(env, fn get_hostname: (Url) -> CelString)?;
    cel::add_member_overload!(env, fn get_port: (Url) -> CelString)?;
    cel::add_member_overload!(env, fn get_escaped_path: (Url) -> CelString)?;
    cel::add_member_overload!(env, fn get_query: (Url) -> CelMap)?;
    cel::add_overload!(env, fn ip: (CelString) -> Result<Ip>)?;
    cel::add_overload!(env, fn is_ip: (CelString) -> CelBool, name = "isIP")?;
    cel::add_overload!(env, fn is_canonical: (CelString) -> Result<CelBool>,
        name = "ip.isCanonical")?;
    cel::add_overload!(env, fn ip_to_string: (Ip) -> CelString, name = "string")?;
    cel::add_member_overload!(env, fn family: (Ip) -> CelInt)?;
    cel::add_member_overload!(env, fn is_unspecified: (Ip) -> CelBool)?;
    cel::add_member_overload!(env, fn is_loopback: (Ip) -> CelBool)?;
    cel::add_member_overload!(env, fn is_link_local_multicast: (Ip) -> CelBool)?;
    cel::add_member_overload!(env, fn is_link_local_unicast: (Ip) -> CelBool)?;
    cel::add_member_overload!(env, fn is_global_unicast: (Ip) -> CelBool)?;
    cel::add_overload!(env, fn cidr: (CelString) -> Result<Cidr>)?;
    cel::add_overload!(env, fn is_cidr: (CelString) -> CelBool, name = "isCIDR")?;
    cel::add_overload!(env, fn cidr_to_string: (Cidr) -> CelString, name = "string")?;
    cel::add_member_overload!(env, fn contains_ip: (Cidr, Ip) -> CelBool, name = "containsIP")?;
    cel::add_member_overload!(env, fn contains_text: (Cidr, CelString) -> Result<CelBool>,
        name = "containsIP")?;
    cel::add_member_overload!(env, fn contains_cidr: (Cidr, Cidr) -> CelBool,
        name = "containsCIDR")?;
    cel::add_member_overload!(env, fn contains_cidr_text: (Cidr, CelString) -> Result<CelBool>,
        name = "containsCIDR")?;
    cel::add_member_overload!(env, fn cidr_ip: (Cidr) -> Ip, name = "ip")?;
    cel::add_member_overload!(env, fn masked: (Cidr) -> Cidr)?;
    cel::add_member_overload!(env, fn prefix_length: (Cidr) -> CelInt)
}

fn parse_url(text: &str) -> Result<Parts, String> {
    let wrong = |why: &str| format!("URL parse error during conversion from string: {why}");
    let uri: http::Uri =
        text.parse().map_err(|error| wrong(&format!("parse {text:?}: {error}")))?;
    let relative = uri.scheme().is_none() && !text.starts_with('/');
    if relative {
        return Err(wrong(&format!("parse {text:?}: invalid URI for request")));
    }
    Ok(Parts {
        scheme: uri.scheme_str().unwrap_or("").to_owned(),
        host: uri
            .authority()
            .map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or(""))
            .to_owned(),
        path: match uri.scheme() {
            // A URL without a path has none; the parser fills in a slash.
            Some(_) if !text.split_once("://").is_some_and(|(_, rest)| rest.contains('/')) => {
                String::new()
            }
            _ => uri.path().to_owned(),
        },
        query: uri.query().unwrap_or("").to_owned(),
    })
}

fn url(text: &CelString<'_>) -> Result<Url, ExecutionError> {
    parse_url(text.inner()).map(Url).map_err(|why| failed("url", why))
}

fn is_url(text: &CelString<'_>) -> CelBool {
    CelBool::from(parse_url(text.inner()).is_ok())
}

fn get_scheme(this: &Url) -> CelString<'static> {
    CelString::from(this.0.scheme.clone())
}

fn get_host(this: &Url) -> CelString<'static> {
    CelString::from(this.0.host.clone())
}

/// The host without its port, and without the brackets of an address.
fn split_host(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[') {
        let (name, tail) = rest.split_once(']').unwrap_or((rest, ""));
        return (name, tail.strip_prefix(':').unwrap_or(""));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn get_hostname(this: &Url) -> CelString<'static> {
    CelString::from(split_host(&this.0.host).0.to_owned())
}

fn get_port(this: &Url) -> CelString<'static> {
    CelString::from(split_host(&this.0.host).1.to_owned())
}

fn get_escaped_path(this: &Url) -> CelString<'static> {
    CelString::from(this.0.path.clone())
}

fn get_query(this: &Url) -> CelMap<'static> {
    let mut grouped: HashMap<String, Vec<Box<dyn Val>>> = HashMap::new();
    for (key, value) in form_urlencoded::parse(this.0.query.as_bytes()) {
        let value = Box::new(CelString::from(value.into_owned()));
        grouped.entry(key.into_owned()).or_default().push(value);
    }
    let entries = grouped.into_iter().map(|(key, values)| -> (CelMapKey<'static>, Box<dyn Val>) {
        (CelMapKey::String(CelString::from(key)), Box::new(CelList::from(values)))
    });
    CelMap::from(entries.collect::<HashMap<_, _>>())
}

/// An address; ones that could be taken for two are refused, as in Kubernetes.
fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text
        .parse()
        .map_err(|_| format!("IP Address {text:?} parse error during conversion from string"))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

fn ip(text: &CelString<'_>) -> Result<Ip, ExecutionError> {
    parse_ip(text.inner()).map(Ip).map_err(|why| failed("ip", why))
}

fn is_ip(text: &CelString<'_>) -> CelBool {
    CelBool::from(parse_ip(text.inner()).is_ok())
}

fn is_canonical(text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let ip = parse_ip(text.inner()).map_err(|why| failed("ip.isCanonical", why))?;
    Ok(CelBool::from(ip.to_string() == text.inner()))
}

fn ip_to_string(this: &Ip) -> CelString<'static> {
    CelString::from(this.0.to_string())
}

fn family(this: &Ip) -> CelInt {
    CelInt::from(if this.0.is_ipv4() { 4 } else { 6 })
}

fn is_unspecified(this: &Ip) -> CelBool {
    CelBool::from(this.0.is_unspecified())
}

fn is_loopback(this: &Ip) -> CelBool {
    CelBool::from(this.0.is_loopback())
}

fn is_link_local_multicast(this: &Ip) -> CelBool {
    CelBool::from(match this.0 {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    })
}

fn is_link_local_unicast(this: &Ip) -> CelBool {
    CelBool::from(link_local(this.0))
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_global_unicast(this: &Ip) -> CelBool {
    let broadcast = matches!(this.0, IpAddr::V4(v4) if v4.is_broadcast());
    let other = this.0.is_unspecified() || this.0.is_loopback() || this.0.is_multicast();
    CelBool::from(!(other || broadcast || link_local(this.0)))
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("network address parse error during conversion from string: {text:?}");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address = parse_ip(address)?;
    let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if length > most { Err(wrong()) } else { Ok((address, length)) }
}

fn cidr(text: &CelString<'_>) -> Result<Cidr, ExecutionError> {
    parse_cidr(text.inner()).map(Cidr).map_err(|why| failed("cidr", why))
}

fn is_cidr(text: &CelString<'_>) -> CelBool {
    CelBool::from(parse_cidr(text.inner()).is_ok())
}

fn cidr_to_string(this: &Cidr) -> CelString<'static> {
    CelString::from(format!("{}/{}", this.0.0, this.0.1))
}

/// The address with all bits behind the prefix cleared.
fn mask(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let bits = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & bits).into())
        }
        IpAddr::V6(v6) => {
            let bits = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & bits))
        }
    }
}

fn within((network, length): (IpAddr, u8), ip: IpAddr) -> bool {
    network.is_ipv4() == ip.is_ipv4() && mask(network, length) == mask(ip, length)
}

fn contains_ip(this: &Cidr, ip: &Ip) -> CelBool {
    CelBool::from(within(this.0, ip.0))
}

fn contains_text(this: &Cidr, text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let ip = parse_ip(text.inner()).map_err(|why| failed("containsIP", why))?;
    Ok(CelBool::from(within(this.0, ip)))
}

fn contains_cidr(this: &Cidr, other: &Cidr) -> CelBool {
    CelBool::from(other.0.1 >= this.0.1 && within(this.0, other.0.0))
}

fn contains_cidr_text(this: &Cidr, text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let other = parse_cidr(text.inner()).map_err(|why| failed("containsCIDR", why))?;
    Ok(contains_cidr(this, &Cidr(other)))
}

fn cidr_ip(this: &Cidr) -> Ip {
    Ip(this.0.0)
}

fn masked(this: &Cidr) -> Cidr {
    let (ip, length) = this.0;
    Cidr((mask(ip, length), length))
}

fn prefix_length(this: &Cidr) -> CelInt {
    CelInt::from(i64::from(this.0.1))
}
