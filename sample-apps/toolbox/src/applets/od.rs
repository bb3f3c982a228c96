//! `od`: the bytes of files as numbers and characters.

use std::fmt::Write as _;

use lexopt::prelude::*;

use super::count;
use crate::command::{Command, Failure, On, Outcome};

/// Bytes that a line shows.
const ROW: usize = 16;
/// What is gathered before it is printed.
const TEXT_BYTES: usize = 16 << 10;

/// How bytes are shown: `o`, `x`, `u`, `d` or `c`, and how many at a time.
type Form = (char, usize);

struct Dump {
    /// Of offsets: `o`, `d`, `x`, or `n` for none.
    radix: char,
    forms: Vec<Form>,
    /// Lines like the one before are shown as well.
    all: bool,
    offset: u64,
    last: Vec<u8>,
    /// The lines before were left out.
    starred: bool,
    text: String,
}

/// `od [-A RADIX] [-t TYPE] [-bcdox] [-j SKIP] [-N COUNT] [-v] [FILE …]`
pub async fn od(command: Command) -> Outcome {
    let (mut radix, mut forms, mut all) = ('o', Vec::new(), false);
    let (mut skip, mut left, mut names) = (0, u64::MAX, Vec::new());
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('A') => radix = radix_of(&options.value()?.string()?)?,
            Short('t') => forms.extend(forms_of(&options.value()?.string()?)?),
            Short('b') => forms.push(('o', 1)),
            Short('c') => forms.push(('c', 1)),
            Short('d') => forms.push(('u', 2)),
            Short('o') => forms.push(('o', 2)),
            Short('x') => forms.push(('x', 2)),
            Short('v') => all = true,
            Short('j') => skip = count(&options.value()?.string()?)?,
            Short('N') => left = count(&options.value()?.string()?)?,
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if forms.is_empty() {
        forms.push(('o', 2));
    }
    let (last, text) = (Vec::new(), String::new());
    let mut dump = Dump { radix, forms, all, offset: skip, last, starred: false, text };
    let mut row = Vec::with_capacity(ROW);
    for name in command.inputs(&names) {
        let input = command.open(&name)?;
        while left > 0 {
            let wanted = if skip > 0 { skip } else { left.min((ROW - row.len()) as u64) };
            let wanted = usize::try_from(wanted).unwrap_or(TEXT_BYTES).min(TEXT_BYTES);
            let chunk = input.chunk(wanted).await.on(&name)?;
            if chunk.is_empty() {
                break;
            }
            if skip > 0 {
                skip -= chunk.len() as u64;
                continue;
            }
            left -= chunk.len() as u64;
            row.extend_from_slice(&chunk);
            if row.len() == ROW {
                dump.add(&row);
                row.clear();
            }
            if dump.text.len() >= TEXT_BYTES {
                command.print(std::mem::take(&mut dump.text)).await?;
            }
        }
    }
    if !row.is_empty() {
        dump.add(&row);
    }
    dump.line("");
    command.print(dump.text).await?;
    Ok(0)
}

impl Dump {
    /// The lines of one row.
    fn add(&mut self, row: &[u8]) {
        if !self.all && row.len() == ROW && row == self.last {
            if !self.starred {
                self.text.push_str("*\n");
            }
            self.starred = true;
        } else {
            self.starred = false;
            for (index, (kind, bytes)) in self.forms.clone().into_iter().enumerate() {
                let cells: String = row.chunks(bytes).map(|it| cell(kind, bytes, it)).collect();
                if index == 0 {
                    self.line(&cells);
                } else {
                    let indent = if self.radix == 'n' { "" } else { "       " };
                    self.text.push_str(&format!("{indent}{cells}\n"));
                }
            }
            self.last = row.to_vec();
        }
        self.offset += row.len() as u64;
    }

    /// A line with its offset. Without offsets there is none at the end.
    fn line(&mut self, cells: &str) {
        let offset = self.offset;
        // Writing to a String cannot fail.
        let _ = match self.radix {
            'o' => writeln!(self.text, "{offset:07o}{cells}"),
            'd' => writeln!(self.text, "{offset:07}{cells}"),
            'x' => writeln!(self.text, "{offset:06x}{cells}"),
            _ if cells.is_empty() => Ok(()),
            _ => writeln!(self.text, "{cells}"),
        };
    }
}

fn radix_of(text: &str) -> Result<char, Failure> {
    let known = text.chars().next().filter(|first| "odxn".contains(*first));
    known.ok_or_else(|| Failure::usage(format!("{text}: no radix; one of o, d, x, n")))
}

/// `x1`, `u2`, `c`, also several.
fn forms_of(text: &str) -> Result<Vec<Form>, Failure> {
    let bad = || Failure::usage(format!("{text}: no type; o, x, u or d with 1, 2, 4 or 8, or c"));
    let mut forms = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(kind) = letters.next() {
        let size = letters.next_if(char::is_ascii_digit).and_then(|digit| digit.to_digit(10));
        match (kind, size) {
            ('c', None) => forms.push(('c', 1)),
            ('o' | 'x' | 'u' | 'd', None) => forms.push((kind, 4)),
            ('o' | 'x' | 'u' | 'd', Some(size @ (1 | 2 | 4 | 8))) => {
                forms.push((kind, size as usize));
            }
            _ => return Err(bad()),
        }
    }
    if forms.is_empty() { Err(bad()) } else { Ok(forms) }
}

/// Some bytes, the lowest first; those that are missing at the end are zero.
fn cell(kind: char, size: usize, bytes: &[u8]) -> String {
    let number = bytes.iter().rev().fold(0, |sum: u64, byte| (sum << 8) | u64::from(*byte));
    let bits = size * 8;
    let (octal, hexadecimal) = (bits.div_ceil(3), bits / 4);
    let decimal = [0, 3, 5, 0, 10, 0, 0, 0, 20][size];
    match kind {
        'o' => format!(" {number:0octal$o}"),
        'x' => format!(" {number:0hexadecimal$x}"),
        'u' => format!(" {number:>decimal$}"),
        'd' => {
            let unused = 64 - bits;
            let signed = (number << unused).cast_signed() >> unused;
            let with_sign = decimal + usize::from(size < 8);
            format!(" {signed:>with_sign$}")
        }
        _ => format!(" {:>3}", character(bytes[0])),
    }
}

fn character(byte: u8) -> String {
    let escape = match byte {
        0 => "\\0",
        7 => "\\a",
        8 => "\\b",
        b'\t' => "\\t",
        b'\n' => "\\n",
        0x0b => "\\v",
        0x0c => "\\f",
        b'\r' => "\\r",
        b' '..=b'~' => return char::from(byte).to_string(),
        _ => return format!("{byte:03o}"),
    };
    escape.to_owned()
}
