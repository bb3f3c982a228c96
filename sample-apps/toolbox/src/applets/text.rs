//! Applets that read lines and write lines.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::time::Duration;

use lexopt::prelude::*;

use crate::command::{Command, Failure, On, Outcome};
use crate::files::{self, Mode};
use crate::io::Input;
use crate::runtime;

use super::{count, old_style};

/// What is copied at once.
const CHUNK: usize = 64 << 10;
/// How often `tail -f` looks whether the file has grown.
const FOLLOW_PAUSE: Duration = Duration::from_millis(250);

/// Names of files and the letters among `known` that were given.
fn letters(command: &Command, known: &str) -> Result<(String, Vec<String>), Failure> {
    let mut found = String::new();
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short(letter) if known.contains(letter) => found.push(letter),
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((found, names))
}

pub async fn cat(command: Command) -> Outcome {
    let (options, names) = letters(&command, "nusAvet")?;
    let mut code = 0;
    let mut number = 0;
    for name in command.inputs(&names) {
        let input = match command.open(&name) {
            Ok(input) => input,
            Err(failure) => {
                command.complain(&failure.message).await;
                code = 1;
                continue;
            }
        };
        if options.contains('n') {
            while let Some(line) = input.until(b'\n').await.on(&name)? {
                number += 1;
                command.print(format!("{number:>6}\t")).await?;
                command.print(line).await?;
            }
            continue;
        }
        loop {
            let chunk = input.chunk(CHUNK).await.on(&name)?;
            if chunk.is_empty() {
                break;
            }
            command.print(chunk).await?;
        }
    }
    Ok(code)
}

pub async fn tee(command: Command) -> Outcome {
    let (options, names) = letters(&command, "ai")?;
    let mode = if options.contains('a') { Mode::Append } else { Mode::Truncate };
    let mut outputs = vec![command.stdout.clone()];
    for name in &names {
        let path = command.path(name);
        outputs.push(files::create(&path, mode, &command.stdout, &command.stderr).on(name)?);
    }
    loop {
        let chunk = command.stdin.chunk(CHUNK).await?;
        if chunk.is_empty() {
            return Ok(0);
        }
        for output in &outputs {
            output.write(&chunk).await?;
        }
    }
}

/// How much `head` and `tail` show.
struct Amount {
    number: u64,
    bytes: bool,
    /// `head -n -5`: all but the last; `tail -n +5`: from the fifth on.
    other_end: bool,
    follow: bool,
    quiet: bool,
    names: Vec<String>,
}

fn amount(command: &Command, other_end: char) -> Result<Amount, Failure> {
    let mut amount = Amount {
        number: 10,
        bytes: false,
        other_end: false,
        follow: false,
        quiet: false,
        names: Vec::new(),
    };
    let mut options = lexopt::Parser::from_args(old_style(command.args.clone()));
    while let Some(argument) = options.next()? {
        match argument {
            Short('n' | 'c') | Long("lines" | "bytes") => {
                amount.bytes = matches!(argument, Short('c') | Long("bytes"));
                let text = options.value()?.string()?;
                let rest = text.strip_prefix(other_end);
                amount.other_end = rest.is_some();
                let rest = rest.unwrap_or(&text);
                amount.number = count(rest.strip_prefix(['-', '+']).unwrap_or(rest))?;
            }
            Short('f' | 'F') | Long("follow") => amount.follow = true,
            Short('q') => amount.quiet = true,
            Short('v') => {}
            Value(name) => amount.names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(amount)
}

async fn title(command: &Command, amount: &Amount, index: usize) -> Result<(), Failure> {
    if amount.names.len() < 2 || amount.quiet {
        return Ok(());
    }
    let start = if index > 0 { "\n" } else { "" };
    command.print(format!("{start}==> {} <==\n", amount.names[index])).await
}

pub async fn head(command: Command) -> Outcome {
    let amount = amount(&command, '-')?;
    for (index, name) in command.inputs(&amount.names).iter().enumerate() {
        title(&command, &amount, index).await?;
        let input = command.open(name)?;
        let mut left = amount.number;
        if amount.bytes && !amount.other_end {
            while left > 0 {
                let max = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let chunk = input.chunk(max).await.on(name)?;
                if chunk.is_empty() {
                    break;
                }
                left -= chunk.len() as u64;
                command.print(chunk).await?;
            }
        } else if amount.other_end {
            let mut held = VecDeque::new();
            while let Some(line) = input.until(b'\n').await.on(name)? {
                held.push_back(line);
                if held.len() as u64 > left
                    && let Some(line) = held.pop_front()
                {
                    command.print(line).await?;
                }
            }
        } else {
            while left > 0
                && let Some(line) = input.until(b'\n').await.on(name)?
            {
                command.print(line).await?;
                left -= 1;
            }
        }
    }
    Ok(0)
}

pub async fn tail(command: Command) -> Outcome {
    let amount = amount(&command, '+')?;
    let mut followed = Vec::new();
    for (index, name) in command.inputs(&amount.names).iter().enumerate() {
        title(&command, &amount, index).await?;
        let input = command.open(name)?;
        tail_of(&command, &amount, &input).await?;
        followed.push(input);
    }
    while amount.follow {
        runtime::sleep(FOLLOW_PAUSE).await;
        for input in &followed {
            loop {
                let chunk = input.chunk(CHUNK).await?;
                if chunk.is_empty() {
                    break;
                }
                command.print(chunk).await?;
            }
        }
    }
    Ok(0)
}

async fn tail_of(command: &Command, amount: &Amount, input: &Input) -> Result<(), Failure> {
    let number = usize::try_from(amount.number).unwrap_or(usize::MAX);
    if amount.bytes {
        let all = input.rest().await?;
        let from = match amount.other_end {
            true => number.saturating_sub(1).min(all.len()),
            false => all.len().saturating_sub(number),
        };
        return command.print(&all[from..]).await;
    }
    let mut held = VecDeque::new();
    let mut seen = 0;
    while let Some(line) = input.until(b'\n').await? {
        seen += 1;
        if amount.other_end {
            if seen >= number.max(1) {
                command.print(line).await?;
            }
            continue;
        }
        held.push_back(line);
        if held.len() > number {
            held.pop_front();
        }
    }
    for line in held {
        command.print(line).await?;
    }
    Ok(())
}

pub async fn wc(command: Command) -> Outcome {
    let (options, names) = letters(&command, "lwcm")?;
    let all = options.is_empty();
    let mut total = [0_u64; 4];
    let shown = |counts: [u64; 4], name: &str| {
        let wanted = [
            (all || options.contains('l'), counts[0]),
            (all || options.contains('w'), counts[1]),
            (options.contains('m'), counts[2]),
            (all || options.contains('c'), counts[3]),
        ];
        let numbers: Vec<String> =
            wanted.iter().filter(|(on, _)| *on).map(|(_, number)| number.to_string()).collect();
        let end = if name == "-" { String::new() } else { format!(" {name}") };
        format!("{}{end}\n", numbers.join(" "))
    };
    let inputs = command.inputs(&names);
    for name in &inputs {
        let input = command.open(name)?;
        let mut counts = [0_u64; 4];
        let mut in_word = false;
        loop {
            let chunk = input.chunk(CHUNK).await.on(name)?;
            if chunk.is_empty() {
                break;
            }
            counts[3] += chunk.len() as u64;
            for byte in chunk {
                counts[0] += u64::from(byte == b'\n');
                counts[2] += u64::from(byte & 0xc0 != 0x80);
                let blank = byte.is_ascii_whitespace();
                counts[1] += u64::from(!blank && !in_word);
                in_word = !blank;
            }
        }
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
        command.print(shown(counts, name)).await?;
    }
    if inputs.len() > 1 {
        command.print(shown(total, "total")).await?;
    }
    Ok(0)
}

async fn lines(command: &Command, names: &[String]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut all = Vec::new();
    for name in command.inputs(names) {
        let text = command.open(&name)?.rest().await.on(&name)?;
        let text = text.strip_suffix(b"\n").map(<[u8]>::to_vec).unwrap_or(text);
        if !text.is_empty() || all.is_empty() {
            all.extend(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
        }
    }
    if all.len() == 1 && all[0].is_empty() {
        all.clear();
    }
    Ok(all)
}

async fn print_lines<'a>(
    command: &Command,
    lines: impl IntoIterator<Item = &'a Vec<u8>>,
) -> Result<(), Failure> {
    let mut block = Vec::new();
    for line in lines {
        block.extend_from_slice(line);
        block.push(b'\n');
        if block.len() >= CHUNK {
            command.print(std::mem::take(&mut block)).await?;
        }
    }
    command.print(block).await
}

pub async fn sort(command: Command) -> Outcome {
    let mut flags = String::new();
    let mut keys: Vec<(usize, usize, String)> = Vec::new();
    let mut separator = None;
    let mut output = None;
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short(letter @ ('n' | 'r' | 'u' | 'f' | 'b' | 's' | 'h' | 'V' | 'c' | 'd' | 'g')) => {
                flags.push(letter);
            }
            Short('k') => keys.push(key(&options.value()?.string()?)?),
            Short('t') => separator = options.value()?.string()?.chars().next(),
            Short('o') => output = Some(options.value()?.string()?),
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut all = lines(&command, &names).await?;
    let compare = |a: &Vec<u8>, b: &Vec<u8>| {
        let (a, b) = (String::from_utf8_lossy(a), String::from_utf8_lossy(b));
        for (from, to, own) in &keys {
            let kind = if own.is_empty() { &flags } else { own };
            let order = by_kind(
                &fields(&a, separator, *from, *to),
                &fields(&b, separator, *from, *to),
                kind,
            );
            if order.is_ne() {
                return order;
            }
        }
        match keys.is_empty() {
            true => by_kind(&a, &b, &flags),
            false if flags.contains('s') => std::cmp::Ordering::Equal,
            false => a.cmp(&b),
        }
    };
    if flags.contains('c') {
        return Ok(i32::from(!all.is_sorted_by(|a, b| compare(a, b).is_le())));
    }
    all.sort_by(compare);
    if flags.contains('u') {
        all.dedup_by(|a, b| compare(a, b).is_eq());
    }
    let command = match output {
        Some(name) => Command { stdout: command.create(&name)?, ..command },
        None => command,
    };
    print_lines(&command, &all).await?;
    Ok(0)
}

/// `-k 2,3n` as first and last field and the key's own flags.
fn key(text: &str) -> Result<(usize, usize, String), Failure> {
    let bad = || Failure::usage(format!("-k {text}: not a key"));
    let number = |text: &str| -> Result<(usize, String), Failure> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let field = text[..end].split('.').next().unwrap_or("");
        Ok((field.parse().map_err(|_| bad())?, text[end..].to_owned()))
    };
    let (from, to) = text.split_once(',').unwrap_or((text, ""));
    let (from, mut own) = number(from)?;
    let mut last = usize::MAX;
    if !to.is_empty() {
        let (to, more) = number(to)?;
        last = to;
        own.push_str(&more);
    }
    Ok((from.max(1), last, own))
}

fn fields(line: &str, separator: Option<char>, from: usize, to: usize) -> String {
    let count = to.saturating_sub(from).saturating_add(1);
    match separator {
        Some(separator) => {
            let parts = line.split(separator).skip(from - 1).take(count);
            parts.collect::<Vec<&str>>().join(&separator.to_string())
        }
        None => {
            let parts = line.split_whitespace().skip(from - 1).take(count);
            parts.collect::<Vec<&str>>().join(" ")
        }
    }
}

fn by_kind(a: &str, b: &str, kind: &str) -> std::cmp::Ordering {
    let number = |text: &str| -> f64 {
        let text = text.trim_start();
        let end =
            text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
        let value: f64 = text[..end].parse().unwrap_or(0.0);
        let unit = kind.contains('h').then(|| text[end..].chars().next()).flatten();
        value * unit.and_then(|c| "KMGT".find(c)).map_or(1.0, |at| 1024_f64.powi(at as i32 + 1))
    };
    let order = if kind.contains(['n', 'h', 'g']) {
        number(a).total_cmp(&number(b)).then_with(|| a.cmp(b))
    } else if kind.contains('V') {
        by_version(a, b)
    } else if kind.contains('f') {
        a.to_lowercase().cmp(&b.to_lowercase())
    } else {
        a.cmp(b)
    };
    if kind.contains('r') { order.reverse() } else { order }
}

/// `v1.10` after `v1.9`: runs of digits count as numbers.
fn by_version(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (x, y) = (digits(a), digits(b));
        if x > 0 && y > 0 {
            let (left, right) = (a[..x].trim_start_matches('0'), b[..y].trim_start_matches('0'));
            let order = left.len().cmp(&right.len()).then_with(|| left.cmp(right));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[x..], &b[y..]);
            continue;
        }
        let (mut left, mut right) = (a.chars(), b.chars());
        match (left.next(), right.next()) {
            (Some(c), Some(d)) if c == d => (a, b) = (left.as_str(), right.as_str()),
            (c, d) => return c.cmp(&d),
        }
    }
}

pub async fn uniq(command: Command) -> Outcome {
    let (options, names) = letters(&command, "cdui")?;
    let all = lines(&command, &names[..names.len().min(1)]).await?;
    let same = |a: &[u8], b: &[u8]| match options.contains('i') {
        true => a.eq_ignore_ascii_case(b),
        false => a == b,
    };
    for group in all.chunk_by(|a, b| same(a, b)) {
        let shown = match (options.contains('d'), options.contains('u')) {
            (true, false) => group.len() > 1,
            (false, true) => group.len() == 1,
            _ => true,
        };
        if !shown {
            continue;
        }
        if options.contains('c') {
            command.print(format!("{:>7} ", group.len())).await?;
        }
        print_lines(&command, &group[..1]).await?;
    }
    Ok(0)
}

pub async fn tac(command: Command) -> Outcome {
    let all = lines(&command, &command.args.clone()).await?;
    print_lines(&command, all.iter().rev()).await?;
    Ok(0)
}

pub async fn rev(command: Command) -> Outcome {
    let all = lines(&command, &command.args.clone()).await?;
    let reversed = |line: &Vec<u8>| -> Vec<u8> {
        String::from_utf8_lossy(line).chars().rev().collect::<String>().into_bytes()
    };
    print_lines(&command, &all.iter().map(reversed).collect::<Vec<_>>()).await?;
    Ok(0)
}

pub async fn nl(command: Command) -> Outcome {
    let (_, names) = letters(&command, "")?;
    let mut number = 0;
    for line in lines(&command, &names).await? {
        let text = String::from_utf8_lossy(&line);
        if text.is_empty() {
            command.print("\n").await?;
            continue;
        }
        number += 1;
        command.print(format!("{number:>6}\t{text}\n")).await?;
    }
    Ok(0)
}

/// The characters of a set of `tr`: ranges, classes and escapes.
fn set(text: &str) -> Vec<u8> {
    let mut text = text.to_owned();
    for (class, range) in [
        ("[:lower:]", "a-z"),
        ("[:upper:]", "A-Z"),
        ("[:digit:]", "0-9"),
        ("[:alpha:]", "A-Za-z"),
        ("[:alnum:]", "0-9A-Za-z"),
        ("[:space:]", " \\t\\n\\v\\f\\r"),
        ("[:blank:]", " \\t"),
        ("[:punct:]", "!-/:-@\\[-`{-~"),
        ("[:xdigit:]", "0-9A-Fa-f"),
        ("[:cntrl:]", "\\000-\\037\\177"),
        ("[:graph:]", "!-~"),
        ("[:print:]", " -~"),
    ] {
        text = text.replace(class, range);
    }
    let bytes = crate::escapes::expand(&text, crate::escapes::Octal::Bare).0;
    let mut all = Vec::new();
    let mut index = 0;
    while index < bytes.len() {
        match bytes[index..] {
            [b'\\', c, ..] => {
                all.push(c);
                index += 2;
            }
            [from, b'-', to, ..] if from <= to => {
                all.extend(from..=to);
                index += 3;
            }
            _ => {
                all.push(bytes[index]);
                index += 1;
            }
        }
    }
    all
}

pub async fn tr(command: Command) -> Outcome {
    let mut options = String::new();
    let mut sets = Vec::new();
    for word in &command.args {
        match word.strip_prefix('-').filter(|rest| !rest.is_empty() && sets.is_empty()) {
            Some(letters) => options.push_str(letters),
            None => sets.push(word.as_str()),
        }
    }
    let Some(first) = sets.first() else { return Err(Failure::usage("which characters?")) };
    let mut from = set(first);
    if options.contains(['c', 'C']) {
        let kept: HashSet<u8> = from.iter().copied().collect();
        from = (0..=255).filter(|byte| !kept.contains(byte)).collect();
    }
    let to = sets.get(1).map(|text| set(text)).unwrap_or_default();
    let deletes = options.contains('d');
    let squeezes = options.contains('s');
    let squeezed: HashSet<u8> = match to.is_empty() {
        true => from.iter().copied().collect(),
        false => to.iter().copied().collect(),
    };
    let mut table: Vec<Option<u8>> = (0..=255).map(Some).collect();
    for (index, byte) in from.iter().enumerate() {
        table[usize::from(*byte)] = match (deletes, to.get(index).or(to.last())) {
            (true, _) => None,
            (false, Some(other)) => Some(*other),
            (false, None) => Some(*byte),
        };
    }
    let mut last = None;
    loop {
        let chunk = command.stdin.chunk(CHUNK).await?;
        if chunk.is_empty() {
            return Ok(0);
        }
        let mut out = Vec::with_capacity(chunk.len());
        for byte in chunk.iter().filter_map(|byte| table[usize::from(*byte)]) {
            if squeezes && last == Some(byte) && squeezed.contains(&byte) {
                continue;
            }
            last = Some(byte);
            out.push(byte);
        }
        command.print(out).await?;
    }
}

pub async fn cut(command: Command) -> Outcome {
    let mut delimiter = '\t';
    let mut list: Option<(char, String)> = None;
    let mut only_delimited = false;
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('d') => {
                delimiter = options.value()?.string()?.chars().next().unwrap_or('\0');
            }
            Short(kind @ ('f' | 'c' | 'b')) => list = Some((kind, options.value()?.string()?)),
            Short('s') => only_delimited = true,
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some((kind, list)) = list else { return Err(Failure::usage("which fields? -f or -c")) };
    let ranges = ranges(&list)?;
    let wanted = |index: usize| ranges.iter().any(|(from, to)| (*from..=*to).contains(&index));
    for name in command.inputs(&names) {
        let input = command.open(&name)?;
        while let Some(line) = input.line().await.on(&name)? {
            let line = String::from_utf8_lossy(&line);
            let text: String = if kind == 'f' {
                if !line.contains(delimiter) {
                    if !only_delimited {
                        command.print(format!("{line}\n")).await?;
                    }
                    continue;
                }
                let parts = line.split(delimiter).enumerate();
                let kept: Vec<&str> =
                    parts.filter(|(at, _)| wanted(at + 1)).map(|(_, part)| part).collect();
                kept.join(&delimiter.to_string())
            } else {
                let characters = line.chars().enumerate();
                characters.filter(|(at, _)| wanted(at + 1)).map(|(_, c)| c).collect()
            };
            command.print(format!("{text}\n")).await?;
        }
    }
    Ok(0)
}

/// `1,3-5,7-` as ranges.
fn ranges(list: &str) -> Result<Vec<(usize, usize)>, Failure> {
    let bad = || Failure::usage(format!("{list}: not a list of numbers"));
    let number = |text: &str, otherwise: usize| match text {
        "" => Ok(otherwise),
        text => text.parse::<usize>().map_err(|_| bad()),
    };
    list.split(',')
        .map(|part| match part.split_once('-') {
            Some((from, to)) => Ok((number(from, 1)?, number(to, usize::MAX)?)),
            None => {
                let at = part.parse().map_err(|_| bad())?;
                Ok((at, at))
            }
        })
        .collect()
}
