//! The named formats that a string of a schema may have. Names that are not in the list mean
//! nothing and are let pass, as in Kubernetes.

use std::sync::LazyLock;

use regex::Regex;

use crate::names;

/// Whether a text has the format.
pub type Format = fn(&str) -> bool;

/// (name, test)
const FORMATS: &[(&str, Format)] = &[
    ("bsonobjectid", |text| text.len() == 24 && is_hex(text)),
    ("uri", is_uri),
    ("email", |text| EMAIL.is_match(text)),
    ("hostname", |text| !text.is_empty() && text.len() <= 255 && HOSTNAME.is_match(text)),
    ("ipv4", |text| text.parse::<std::net::Ipv4Addr>().is_ok()),
    ("ipv6", |text| text.parse::<std::net::Ipv6Addr>().is_ok()),
    ("cidr", is_cidr),
    ("mac", |text| MAC.is_match(text)),
    ("uuid", |text| UUID.is_match(text)),
    ("uuid3", |text| UUID.is_match(text) && digit(text, 12) == '3'),
    ("uuid4", |text| UUID.is_match(text) && digit(text, 12) == '4' && is_variant(text)),
    ("uuid5", |text| UUID.is_match(text) && digit(text, 12) == '5' && is_variant(text)),
    ("isbn", |text| is_isbn10(text) || is_isbn13(text)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("creditcard", is_credit_card),
    ("ssn", |text| SSN.is_match(text)),
    ("hexcolor", |text| HEX_COLOR.is_match(text)),
    ("rgbcolor", |text| RGB_COLOR.is_match(text)),
    ("byte", is_base64),
    ("password", |_| true),
    ("date", |text| text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()),
    ("duration", is_duration),
    ("date-time", is_date_time),
    ("k8s-short-name", |text| names::label(text).is_empty()),
    ("k8s-long-name", |text| names::subdomain(text).is_empty()),
];

/// The test of a format; None for names without meaning.
pub fn named(name: &str) -> Option<Format> {
    // `datetime` and `date-time` are one format, as are `bson-object-id` and its short form.
    let plain = |name: &str| name.replace('-', "").to_ascii_lowercase();
    let row = FORMATS.iter().find(|(known, _)| plain(known) == plain(name))?;
    Some(row.1)
}

macro_rules! patterns {
    ($($name:ident = $pattern:expr;)*) => {
        $(static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($pattern).expect("a constant pattern"));)*
    };
}

patterns! {
    EMAIL = r"^[^\s@<>]+@[^\s@<>]+$";
    HOSTNAME = concat!(
        r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?",
        r"(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*\.?$"
    );
    MAC = r"^([0-9a-fA-F]{2}[:-]){5}([0-9a-fA-F]{2}|([0-9a-fA-F]{2}[:-]){2}[0-9a-fA-F]{2})$";
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    HEX_COLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = concat!(
        r"^rgb\(\s*(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\s*,",
        r"\s*(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\s*,",
        r"\s*(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\s*\)$"
    );
    DURATION = r"^(\d+)\s*(ns|us|µs|ms|s|m|h|hr|hour|minute|min|second|sec|day|d|week|w|wk)s?$";
    GO_DURATION = r"^[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+$";
    DATE_TIME = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$";
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hexadecimal digit of a UUID at this place, not counting dashes.
fn digit(text: &str, at: usize) -> char {
    text.chars().filter(|c| *c != '-').nth(at).unwrap_or(' ')
}

fn is_variant(text: &str) -> bool {
    matches!(digit(text, 16).to_ascii_lowercase(), '8' | '9' | 'a' | 'b')
}

/// An absolute address or an absolute path.
fn is_uri(text: &str) -> bool {
    if text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    let scheme = text.split_once(':').is_some_and(|(scheme, rest)| {
        let mut letters = scheme.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
            && !rest.is_empty()
    });
    scheme || text.starts_with('/')
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let Ok(length) = length.parse::<u8>() else {
        return false;
    };
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => length <= 32,
        Ok(std::net::IpAddr::V6(_)) => length <= 128,
        Err(_) => false,
    }
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_duration(text: &str) -> bool {
    text == "0" || GO_DURATION.is_match(text) || DURATION.is_match(&text.to_lowercase())
}

fn is_date_time(text: &str) -> bool {
    DATE_TIME.is_match(text) && text.parse::<jiff::Timestamp>().is_ok()
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

fn is_isbn10(text: &str) -> bool {
    let bare: Vec<char> = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let value = |(index, c): (usize, &char)| match c {
        'X' if index == 9 => Some(10),
        c => c.to_digit(10),
    };
    let found: Option<Vec<u32>> = bare.iter().enumerate().map(value).collect();
    // The sum of a very long one would be more than a number holds.
    found.filter(|digits| digits.len() == 10).is_some_and(|digits| {
        let sum: u32 = digits.iter().zip(1..).map(|(digit, weight): (_, u32)| digit * weight).sum();
        sum.is_multiple_of(11)
    })
}

fn is_isbn13(text: &str) -> bool {
    let bare: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let digits = digits(&bare);
    let weighted = digits.iter().enumerate();
    let sum: u32 = weighted.map(|(at, digit)| if at % 2 == 0 { *digit } else { digit * 3 }).sum();
    bare.len() == 13 && digits.len() == 13 && sum.is_multiple_of(10)
}

/// A number of 13 to 19 digits whose Luhn checksum holds.
fn is_credit_card(text: &str) -> bool {
    let bare: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let digits = digits(&bare);
    if digits.len() != bare.len() || !(13..=19).contains(&digits.len()) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}
