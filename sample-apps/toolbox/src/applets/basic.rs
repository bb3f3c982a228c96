//! Applets that need nothing but their words.

use std::path::Path;

use crate::command::{Command, Failure, Outcome};
use crate::escapes::{self, Octal};
use crate::runtime;

pub async fn echo(command: Command) -> Outcome {
    let is_option = |word: &&String| {
        word.len() > 1 && word.starts_with('-') && word[1..].chars().all(|c| "neE".contains(c))
    };
    let options: String = command.args.iter().take_while(is_option).cloned().collect();
    let skipped = command.args.iter().take_while(is_option).count();
    let text = command.args[skipped..].join(" ");
    let mut goes_on = true;
    let mut bytes = text.clone().into_bytes();
    if options.rfind('e') > options.rfind('E') {
        (bytes, goes_on) = escapes::expand(&text, Octal::Zero);
    }
    if goes_on && !options.contains('n') {
        bytes.push(b'\n');
    }
    command.print(bytes).await?;
    Ok(0)
}

pub async fn basename(command: Command) -> Outcome {
    let mut args = command.args.iter().filter(|word| *word != "--");
    let Some(name) = args.next() else { return Err(Failure::usage("which name?")) };
    let trimmed = name.trim_end_matches('/');
    let base = if trimmed.is_empty() { "/" } else { trimmed.rsplit('/').next().unwrap_or("") };
    let suffix = args.next().map_or("", String::as_str);
    let base = base.strip_suffix(suffix).filter(|rest| !rest.is_empty()).unwrap_or(base);
    command.print(format!("{base}\n")).await?;
    Ok(0)
}

pub async fn dirname(command: Command) -> Outcome {
    for name in command.args.iter().filter(|word| *word != "--") {
        let parent = Path::new(name.trim_end_matches('/')).parent();
        let text = match parent.and_then(Path::to_str) {
            Some("") => ".",
            Some(text) => text,
            None => "/",
        };
        command.print(format!("{text}\n")).await?;
    }
    Ok(0)
}

pub async fn yes(command: Command) -> Outcome {
    let word = if command.args.is_empty() { "y".to_owned() } else { command.args.join(" ") };
    let block = format!("{word}\n").repeat(1 + 4096 / (word.len() + 1));
    loop {
        command.print(&block).await?;
        runtime::yield_now().await;
    }
}

pub async fn seq(command: Command) -> Outcome {
    let mut separator = "\n".to_owned();
    let mut equal_width = false;
    let mut numbers = Vec::new();
    let mut words = command.args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-w" => equal_width = true,
            "-s" => separator = words.next().cloned().unwrap_or_default(),
            word => match word.strip_prefix("-s") {
                Some(text) => separator = text.to_owned(),
                None => numbers.push(word),
            },
        }
    }
    let (first, step, last) = match numbers[..] {
        [last] => ("1", "1", last),
        [first, last] => (first, "1", last),
        [first, step, last] => (first, step, last),
        _ => return Err(Failure::usage("seq [FIRST [STEP]] LAST")),
    };
    let parse = |text: &str| -> Result<f64, Failure> {
        text.parse().map_err(|_| Failure::usage(format!("invalid number {text}")))
    };
    let digits = |text: &str| text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let precision = digits(first).max(digits(step));
    let (from, by, to) = (parse(first)?, parse(step)?, parse(last)?);
    if by == 0.0 {
        return Err(Failure::usage("the step is 0"));
    }
    let width = if equal_width { first.len().max(last.len()) } else { 0 };
    let mut index = 0.0;
    loop {
        let value = from + index * by;
        // Half a step of the last digit is for what binary fractions cannot hold.
        let slack = 0.1_f64.powi(i32::try_from(precision + 2).unwrap_or(9));
        if (by > 0.0 && value > to + slack) || (by < 0.0 && value < to - slack) {
            break;
        }
        let start = if index > 0.0 { separator.as_str() } else { "" };
        command.print(format!("{start}{value:0width$.precision$}")).await?;
        index += 1.0;
    }
    if index > 0.0 {
        command.print("\n").await?;
    }
    Ok(0)
}

/// `printf FORMAT ARGUMENTS`: the format is used again while there are arguments.
pub async fn printf(command: Command) -> Outcome {
    let mut words = command.args.iter().skip_while(|word| *word == "--");
    let Some(format) = words.next() else { return Err(Failure::usage("which format?")) };
    let mut arguments: Vec<&str> = words.map(String::as_str).collect();
    arguments.reverse();
    let mut code = 0;
    loop {
        let before = arguments.len();
        let mut out = Vec::new();
        let goes_on = formatted(format, &mut arguments, &mut out, &mut code);
        command.print(out).await?;
        if !goes_on || arguments.is_empty() || arguments.len() == before {
            return Ok(code);
        }
    }
}

/// One pass over the format; whether output goes on.
fn formatted(format: &str, arguments: &mut Vec<&str>, out: &mut Vec<u8>, code: &mut i32) -> bool {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (bytes, goes_on) = escapes::expand(&rest[..at], Octal::Bare);
        out.extend(bytes);
        if !goes_on {
            return false;
        }
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push(b'%');
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let flags = &rest[..end];
        let kind = rest[end..].chars().next().unwrap_or('s');
        rest = rest[end..].get(1..).unwrap_or("");
        let flags: String = flags
            .split_inclusive('*')
            .map(|part| match part.strip_suffix('*') {
                Some(part) => format!("{part}{}", arguments.pop().unwrap_or("0")),
                None => part.to_owned(),
            })
            .collect();
        let argument = arguments.pop();
        if kind == 'b' {
            let (bytes, goes_on) = escapes::expand(argument.unwrap_or(""), Octal::Zero);
            out.extend(bytes);
            if !goes_on {
                return false;
            }
            continue;
        }
        out.extend(directive(&flags, kind, argument.unwrap_or(""), code).into_bytes());
    }
    let (bytes, goes_on) = escapes::expand(rest, Octal::Bare);
    out.extend(bytes);
    goes_on
}

/// One `%` directive, by its flags, width and precision.
pub(super) fn directive(flags: &str, kind: char, argument: &str, code: &mut i32) -> String {
    let left = flags.contains('-');
    let plus = flags.contains('+');
    let numbers = flags.trim_start_matches(['-', '+', ' ', '#', '0']);
    let zero = flags[..flags.len() - numbers.len()].contains('0') && !left;
    let (width, precision) = match numbers.split_once('.') {
        Some((width, precision)) => (width, Some(precision.parse().unwrap_or(0))),
        None => (numbers, None),
    };
    // No wider than a terminal can be: the width comes from a script.
    let width: usize = width.parse().unwrap_or(0).min(4096);
    let precision: Option<usize> = precision.map(|digits: usize| digits.min(4096));
    let text = match kind {
        's' => argument.chars().take(precision.unwrap_or(usize::MAX)).collect(),
        'c' => argument.chars().take(1).collect(),
        'q' => format!("'{}'", argument.replace('\'', "'\\''")),
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let value = integer(argument).unwrap_or_else(|| {
                *code = 1;
                0
            });
            let digits = match kind {
                'x' => format!("{value:x}"),
                'X' => format!("{value:X}"),
                'o' => format!("{value:o}"),
                _ => value.unsigned_abs().to_string(),
            };
            let digits = format!("{digits:0>count$}", count = precision.unwrap_or(0));
            match kind {
                'd' | 'i' if value < 0 => format!("-{digits}"),
                'd' | 'i' if plus => format!("+{digits}"),
                _ => digits,
            }
        }
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            let value: f64 = argument.trim().parse().unwrap_or(0.0);
            let precision = precision.unwrap_or(6);
            let digits = match kind {
                'e' => scientific(value, precision),
                'E' => scientific(value, precision).to_uppercase(),
                'g' => general(value, precision),
                'G' => general(value, precision).to_uppercase(),
                _ => format!("{value:.precision$}"),
            };
            if plus && value >= 0.0 { format!("+{digits}") } else { digits }
        }
        _ => String::new(),
    };
    if left {
        format!("{text:<width$}")
    } else if zero && kind != 's' {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
        format!("{sign}{digits:0>count$}", count = width.saturating_sub(sign.len()))
    } else {
        format!("{text:>width$}")
    }
}

/// A number as `%e` writes it.
fn scientific(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, number) = match exponent.strip_prefix('-') {
        Some(number) => ('-', number),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{number:0>2}")
}

/// A number as `%g` writes it: so many digits, in the shorter form, without zeros at its end.
pub(super) fn general(value: f64, precision: usize) -> String {
    let digits = precision.max(1);
    let long = scientific(value, digits - 1);
    let Some((head, tail)) = long.split_once('e') else { return long };
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    let exponent: i64 = tail.parse().unwrap_or(0);
    let decimals = i64::try_from(digits).unwrap_or(i64::MAX).saturating_sub(1 + exponent);
    match usize::try_from(decimals) {
        Ok(decimals) if exponent >= -4 => trimmed(&format!("{value:.decimals$}")),
        _ => format!("{}e{tail}", trimmed(head)),
    }
}

fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    if text.is_empty() {
        return Some(0);
    }
    // `'A` is the code of A.
    if let Some(c) = text.strip_prefix(['\'', '"']) {
        return c.chars().next().map(|c| i64::from(u32::from(c)));
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(digits, 8).ok()?
    } else {
        digits.parse().ok()?
    };
    value.checked_mul(sign)
}

/// `expr`: numbers, comparisons, and `:` with a pattern.
pub async fn expr(command: Command) -> Outcome {
    let words: Vec<&str> = command.args.iter().map(String::as_str).collect();
    let mut rest = words.as_slice();
    let value = or(&mut rest)?;
    if !rest.is_empty() {
        return Err(Failure::usage("syntax error"));
    }
    command.print(format!("{value}\n")).await?;
    Ok(i32::from(value.is_empty() || value == "0"))
}

type Words<'a, 'b> = &'a mut &'b [&'b str];

fn next_of<'b>(rest: Words<'_, 'b>, operators: &[&str]) -> Option<&'b str> {
    let (first, others) = rest.split_first()?;
    operators.contains(first).then(|| {
        *rest = others;
        *first
    })
}

fn or(rest: Words<'_, '_>) -> Result<String, Failure> {
    let mut left = and(rest)?;
    while next_of(rest, &["|"]).is_some() {
        let right = and(rest)?;
        if left.is_empty() || left == "0" {
            left = right;
        }
    }
    Ok(left)
}

fn and(rest: Words<'_, '_>) -> Result<String, Failure> {
    let mut left = comparison(rest)?;
    while next_of(rest, &["&"]).is_some() {
        let right = comparison(rest)?;
        let is_false = |text: &str| text.is_empty() || text == "0";
        if is_false(&left) || is_false(&right) {
            left = "0".to_owned();
        }
    }
    Ok(left)
}

fn comparison(rest: Words<'_, '_>) -> Result<String, Failure> {
    let mut left = sum(rest)?;
    while let Some(operator) = next_of(rest, &["=", "==", "!=", "<", "<=", ">", ">="]) {
        let right = sum(rest)?;
        let order = match (left.parse::<i64>(), right.parse::<i64>()) {
            (Ok(left), Ok(right)) => left.cmp(&right),
            _ => left.cmp(&right),
        };
        let holds = match operator {
            "=" | "==" => order.is_eq(),
            "!=" => order.is_ne(),
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            _ => order.is_ge(),
        };
        left = u8::from(holds).to_string();
    }
    Ok(left)
}

fn number(text: &str) -> Result<i64, Failure> {
    text.parse().map_err(|_| Failure::usage("non-integer argument"))
}

fn sum(rest: Words<'_, '_>) -> Result<String, Failure> {
    let mut left = product(rest)?;
    while let Some(operator) = next_of(rest, &["+", "-"]) {
        let (a, b) = (number(&left)?, number(&product(rest)?)?);
        left = if operator == "+" { a.wrapping_add(b) } else { a.wrapping_sub(b) }.to_string();
    }
    Ok(left)
}

fn product(rest: Words<'_, '_>) -> Result<String, Failure> {
    let mut left = pattern(rest)?;
    while let Some(operator) = next_of(rest, &["*", "/", "%"]) {
        let (a, b) = (number(&left)?, number(&pattern(rest)?)?);
        let value = match operator {
            "*" => a.wrapping_mul(b),
            _ if b == 0 => return Err(Failure::usage("division by zero")),
            "/" => a.wrapping_div(b),
            _ => a.wrapping_rem(b),
        };
        left = value.to_string();
    }
    Ok(left)
}

fn pattern(rest: Words<'_, '_>) -> Result<String, Failure> {
    let left = atom(rest)?;
    if next_of(rest, &[":"]).is_none() {
        return Ok(left);
    }
    let expression = super::grep::basic_to_extended(&atom(rest)?);
    let regex = regex_lite::Regex::new(&format!("^(?:{expression})"))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let found = regex.captures(&left);
    Ok(match found {
        Some(groups) if regex.captures_len() > 1 => {
            groups.get(1).map_or(String::new(), |group| group.as_str().to_owned())
        }
        Some(groups) => groups[0].chars().count().to_string(),
        None if regex.captures_len() > 1 => String::new(),
        None => "0".to_owned(),
    })
}

fn atom(rest: Words<'_, '_>) -> Result<String, Failure> {
    let Some((first, others)) = rest.split_first() else {
        return Err(Failure::usage("syntax error"));
    };
    *rest = others;
    if *first != "(" {
        return Ok((*first).to_owned());
    }
    let value = or(rest)?;
    match next_of(rest, &[")"]) {
        Some(_) => Ok(value),
        None => Err(Failure::usage("syntax error")),
    }
}
