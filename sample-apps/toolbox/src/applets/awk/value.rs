//! Values: numbers, texts, and texts that were read and are numbers too if they look like them.

use std::cmp::Ordering;

use crate::applets::basic::general;

/// Whole numbers below it are written with all their digits: an `i64` holds them.
const WHOLE_MAX: f64 = 9e18;
/// Digits of other numbers, as `CONVFMT` and `OFMT` begin with.
const DIGITS: usize = 6;

#[derive(Clone, Debug, Default)]
pub enum Value {
    #[default]
    Unset,
    Number(f64),
    Text(String),
    Read(String),
}

impl Value {
    pub fn number(&self) -> f64 {
        match self {
            Value::Unset => 0.0,
            Value::Number(number) => *number,
            Value::Text(text) | Value::Read(text) => {
                let text = text.trim_start();
                text[..numeric_length(text)].parse().unwrap_or(0.0)
            }
        }
    }

    pub fn text(&self) -> String {
        match self {
            Value::Unset => String::new(),
            Value::Number(number) if number.fract() == 0.0 && number.abs() < WHOLE_MAX => {
                format!("{}", *number as i64)
            }
            Value::Number(number) => general(*number, DIGITS),
            Value::Text(text) | Value::Read(text) => text.clone(),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Text(text) => !text.is_empty(),
            Value::Read(text) if !self.is_numeric() => !text.is_empty(),
            number => number.number() != 0.0,
        }
    }

    fn is_numeric(&self) -> bool {
        match self {
            Value::Unset | Value::Number(_) => true,
            Value::Text(_) => false,
            Value::Read(text) => {
                let text = text.trim();
                !text.is_empty() && numeric_length(text) == text.len()
            }
        }
    }

    pub fn compare(&self, other: &Value) -> Ordering {
        if self.is_numeric() && other.is_numeric() {
            return self.number().partial_cmp(&other.number()).unwrap_or(Ordering::Equal);
        }
        self.text().cmp(&other.text())
    }

    /// Numbers by their size, before texts. (`compare` orders pairs only: by it 9 is before 10, 10
    /// before `1a`, and `1a` before 9.)
    pub fn order(&self, other: &Value) -> Ordering {
        match (self.is_numeric(), other.is_numeric()) {
            (true, true) => self.number().total_cmp(&other.number()),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self.text().cmp(&other.text()),
        }
    }
}

impl From<bool> for Value {
    fn from(holds: bool) -> Value {
        Value::Number(f64::from(u8::from(holds)))
    }
}

/// How many bytes at the beginning of a text are a number.
pub fn numeric_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits =
        |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let sign = usize::from(text.starts_with(['+', '-']));
    let whole = digits(sign);
    let mut end = sign + whole;
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        fraction = digits(end + 1);
        end += 1 + fraction;
    }
    if whole + fraction == 0 {
        return 0;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits((end + 1 + sign).min(bytes.len()));
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    end
}
