//! Quantities: `500m`, `1.5Gi`, `2e3`.
//!
//! A quantity is held exactly in billionths (the finest unit that Kubernetes knows; finer ones
//! round up), so that comparing and adding need no floating point. Printing gives the canonical
//! form that a stock API server answers with, in the family of suffixes it was written in: `0.5` is
//! `500m`, `1024Mi` is `1Gi`, `1000` is `1k`.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Add;

use serde_json::Value;

const NANOS: i128 = 1_000_000_000;
/// Beyond this a quantity is cut off, as in Kubernetes: 2^63-1 whole units.
const NANOS_MAX: i128 = i64::MAX as i128 * NANOS;
/// Digits behind which a number cannot matter any more; bounds the work on hostile input.
const DIGITS_MAX: usize = 64;

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Form,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Decimal,
    Binary,
    Exponent,
}

/// An exact amount of something.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    family: Family,
}

/// (suffix, power of ten); without suffix the power is zero.
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

/// (suffix, power of two)
const BINARY: &[(&str, u32)] =
    &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Zero, printed with decimal suffixes.
    pub const ZERO: Quantity = Quantity { nanos: 0, family: Family::Decimal };

    /// Reads the form of the wire.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, suffix) =
            unsigned.split_at(unsigned.find(|c| !is_number(c)).unwrap_or(unsigned.len()));
        if number.is_empty() {
            return Err(QuantityError::Form);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let no_digits = whole.is_empty() && fraction.is_empty();
        if no_digits || fraction.contains('.') || number.len() > DIGITS_MAX {
            return Err(QuantityError::Number);
        }
        let fraction = fraction.trim_end_matches('0');
        let (family, tens, twos) = Self::suffix(suffix)?;
        let digits: String = [whole, fraction].concat();
        // The exponent may be any that a number holds.
        let tens = tens.saturating_add(9).saturating_sub(fraction.len() as i32);
        let nanos = scaled(&digits, tens, twos);
        let nanos = if text.starts_with('-') { -nanos } else { nanos };
        Ok(Self { nanos, family })
    }

    /// Reads a JSON string or number.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text.trim()).ok(),
            Value::Number(number) => Self::parse(&number.to_string()).ok(),
            _ => None,
        }
    }

    /// A whole number of units.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANOS, family: Family::Decimal }
    }

    /// A number of thousandths.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANOS / 1000), family: Family::Decimal }
    }

    /// A number of bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANOS, family: Family::Binary }
    }

    /// Thousandths, rounded up: millicores.
    pub fn millis(&self) -> i64 {
        saturate(divide_up(self.nanos, NANOS / 1000))
    }

    /// Whole units, rounded up: bytes, pods.
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANOS))
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    /// The amount without `other`.
    pub fn minus(self, other: Quantity) -> Self {
        let nanos = (self.nanos - other.nanos).clamp(-NANOS_MAX, NANOS_MAX);
        Self { nanos, family: self.family }
    }

    /// The family of a suffix and the powers of ten and of two that it stands for.
    fn suffix(suffix: &str) -> Result<(Family, i32, u32), QuantityError> {
        if let Some((_, power)) = DECIMAL.iter().find(|(text, _)| *text == suffix) {
            return Ok((Family::Decimal, *power, 0));
        }
        if let Some((_, power)) = BINARY.iter().find(|(text, _)| *text == suffix) {
            return Ok((Family::Binary, 0, *power));
        }
        let Some(exponent) = suffix.strip_prefix(['e', 'E']) else {
            let in_form = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
            let good = suffix.chars().all(in_form);
            return Err(if good { QuantityError::Suffix } else { QuantityError::Form });
        };
        let power: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
        Ok((Family::Exponent, power, 0))
    }
}

/// `digits * 10^tens * 2^twos`, rounded up and cut off at the largest quantity.
fn scaled(digits: &str, tens: i32, twos: u32) -> i128 {
    let Ok(mut amount) = digits.trim_start_matches('0').parse::<i128>().or_else(|error| {
        let empty = *error.kind() == std::num::IntErrorKind::Empty;
        if empty { Ok(0) } else { Err(error) }
    }) else {
        return NANOS_MAX;
    };
    if amount == 0 {
        return 0;
    }
    amount = match amount.checked_mul(1 << twos) {
        Some(amount) => amount,
        None => return NANOS_MAX,
    };
    for _ in 0..tens.max(0) {
        amount = amount.saturating_mul(10);
        if amount > NANOS_MAX {
            return NANOS_MAX;
        }
    }
    // One division, so that rounding up happens once.
    if tens < 0 {
        let divisor = 10_i128.checked_pow(tens.unsigned_abs()).unwrap_or(i128::MAX);
        amount = divide_up(amount, divisor);
    }
    amount.min(NANOS_MAX)
}

fn divide_up(amount: i128, divisor: i128) -> i128 {
    let quotient = amount / divisor;
    if amount % divisor > 0 { quotient + 1 } else { quotient }
}

fn saturate(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return out.write_str("0");
        }
        let is_small = self.nanos.abs() < 1024 * NANOS;
        if self.family == Family::Binary && !is_small && self.is_whole() {
            let units = self.nanos / NANOS;
            let fits = BINARY.iter().rev().find(|(_, power)| units % (1 << power) == 0);
            let (suffix, power) = fits.copied().unwrap_or(("", 0));
            return write!(out, "{}{suffix}", units >> power);
        }
        let unit = |power: i32| 10_i128.pow((power + 9).unsigned_abs());
        let fits = DECIMAL.iter().rev().find(|(_, power)| self.nanos % unit(*power) == 0);
        let (suffix, power) = fits.copied().expect("a billionth divides every quantity");
        let number = self.nanos / unit(power);
        match self.family {
            Family::Exponent if power == 0 => write!(out, "{number}"),
            Family::Exponent => write!(out, "{number}e{power}"),
            Family::Decimal | Family::Binary => write!(out, "{number}{suffix}"),
        }
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// The sum, printed in the family of the left side unless that is zero.
    fn add(self, other: Quantity) -> Quantity {
        let family = if self.nanos == 0 { other.family } else { self.family };
        let nanos = (self.nanos + other.nanos).clamp(-NANOS_MAX, NANOS_MAX);
        Quantity { nanos, family }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1023", "1023"),
            ("1Ki", "1Ki"),
            ("1e3", "1e3"),
            ("12E2", "1200"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            (".5", "500m"),
            ("1.", "1"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("1e2147483647", "9223372036854775807"),
            ("0e2147483647", "0"),
            ("1.5e-2147483648", "1e-9"),
        ];
        for (text, expected) in cases {
            let quantity = Quantity::parse(text).expect("a quantity");
            assert_eq!(quantity.to_string(), expected, "{text}");
        }
        for bad in ["", "a", "1x", "1.2.3", ".", "1Kib", "--1", "1 Gi", "1e"] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts() {
        let quantity = |text| Quantity::parse(text).expect("a quantity");
        assert_eq!(quantity("1500m").value(), 2);
        assert_eq!(quantity("0.0005").millis(), 1);
        assert_eq!(quantity("2").millis(), 2000);
        assert_eq!(quantity("128Mi").value(), 134_217_728);
        assert!(quantity("1Gi") > quantity("1G") && quantity("1000m") == quantity("1"));
        assert_eq!((quantity("1Gi") + quantity("512Mi")).to_string(), "1536Mi");
        assert_eq!(quantity("1Gi").minus(quantity("512Mi")).to_string(), "512Mi");
        assert_eq!(Quantity::of(&serde_json::json!(2)), Some(quantity("2")));
    }
}
