//! Messages of DNS as bytes: questions are read, answers are written (RFC 1035, EDNS by RFC 6891).
//!
//! Read is only what a client may send: one question without compressed names, and of what follows
//! it the OPT record. Whatever the bytes are, reading ends after each of them was seen once.

use std::{collections::HashMap, ops::Range};

use super::zone::{Answer, Code, Data, Record, kind};

/// Length of a message's head.
const HEAD: usize = 12;
/// Length of an OPT record without options.
const OPT_BYTES: usize = 11;
/// Longest name, and label.
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
/// Records behind a question that are looked at.
const RECORDS_READ_MAX: usize = 4;
/// Pointers reach this far.
const POINTER_MAX: usize = 0x3fff;
/// What a datagram may hold: what every way lets through in one piece.
pub const DATAGRAM_BYTES_MAX: u16 = 1232;
/// What it may hold if the client does not say more.
const DATAGRAM_BYTES_MIN: u16 = 512;
/// Class of the Internet.
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
/// Bits of a head.
const RESPONSE: u16 = 0x8000;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is in the head: id, and bits that the answer repeats.
    head: Head,
    /// The name's labels in lower case.
    pub labels: Vec<String>,
    /// Where each label begins.
    places: Vec<usize>,
    /// Type.
    pub wanted: u16,
    /// Its class is that of the Internet.
    pub is_in: bool,
    /// Where it stands.
    at: Range<usize>,
    /// Largest datagram that the client takes, and its version of EDNS.
    edns: Option<(u16, u8)>,
}

/// Of a head what the answer repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    id: u16,
    bits: u16,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A question.
    Question(Question),
    /// Something else, which is told to who sent it.
    Bad(Head, Code),
    /// Not even that.
    Silence,
}

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In a datagram.
    Datagram,
    /// On a stream, with its length before it.
    Stream,
}

/// Reads a message.
pub fn read(message: &[u8]) -> Read {
    let (Some(id), Some(bits)) = (number(message, 0), number(message, 2)) else {
        return Read::Silence;
    };
    if message.len() < HEAD || bits & RESPONSE != 0 {
        // An answer to an answer would be answered.
        return Read::Silence;
    }
    let opcode = bits & 0x7800;
    let head = Head { id, bits: bits & (0x7800 | RECURSION_DESIRED) };
    if opcode != 0 {
        return Read::Bad(head, Code::NotImp);
    }
    match question(message, head) {
        Some(question) => Read::Question(question),
        None => Read::Bad(head, Code::FormErr),
    }
}

fn question(message: &[u8], head: Head) -> Option<Question> {
    if number(message, 4) != Some(1) {
        return None;
    }
    let (mut labels, mut places, mut at) = (Vec::new(), Vec::new(), HEAD);
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            break;
        }
        if length > LABEL_BYTES_MAX || at + 1 + length - HEAD >= NAME_BYTES_MAX {
            return None;
        }
        let label = message.get(at + 1..at + 1 + length)?;
        places.push(at);
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + length;
    }
    let (wanted, class) = (number(message, at + 1)?, number(message, at + 3)?);
    let end = at + 5;
    let edns = edns(message, end)?;
    let is_in = matches!(class, CLASS_IN | CLASS_ANY);
    Some(Question { head, labels, places, wanted, is_in, at: HEAD..end, edns })
}

/// What the OPT record says, if there is one. `None`: what is there is broken.
fn edns(message: &[u8], mut at: usize) -> Option<Option<(u16, u8)>> {
    let counts = (6..HEAD).step_by(2).map(|place| number(message, place).map(usize::from));
    let records = counts.sum::<Option<usize>>()?;
    let mut found = None;
    for _ in 0..records.min(RECORDS_READ_MAX) {
        at = behind_name(message, at)?;
        let (wanted, class) = (number(message, at)?, number(message, at + 2)?);
        let version = *message.get(at + 5)?;
        let length = usize::from(number(message, at + 8)?);
        message.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        if wanted == kind::OPT && found.replace((class, version)).is_some() {
            return None;
        }
    }
    Some(found)
}

/// Where a name ends, which may do so with a pointer.
fn behind_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length if length > LABEL_BYTES_MAX => return None,
            length => at += 1 + length,
        }
    }
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

impl Question {
    /// Whether it speaks an EDNS that is newer than ours.
    pub fn is_newer(&self) -> bool {
        self.edns.is_some_and(|(_, version)| version > 0)
    }

    fn bytes_max(&self, way: Way) -> usize {
        let said = self.edns.map_or(DATAGRAM_BYTES_MIN, |(bytes, _)| bytes);
        usize::from(match way {
            Way::Stream => u16::MAX,
            Way::Datagram => said.clamp(DATAGRAM_BYTES_MIN, DATAGRAM_BYTES_MAX),
        })
    }
}

/// Writes what is said to something that is no question.
pub fn write_bad(head: Head, code: Code) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    put(&mut bytes, 0, head.id);
    put(&mut bytes, 2, RESPONSE | head.bits | code as u16 & 0xf);
    bytes
}

/// Writes an answer; `message` is what the question was read from. What does not fit is cut off,
/// and if it was part of the answer this is said, so that the client asks again on a stream.
pub fn write(question: &Question, message: &[u8], answer: &Answer, way: Way) -> Vec<u8> {
    let opt = if question.edns.is_some() { OPT_BYTES } else { 0 };
    let mut writer = Writer {
        bytes: vec![0; HEAD],
        names: HashMap::new(),
        bytes_max: question.bytes_max(way) - opt,
    };
    writer.bytes.extend_from_slice(&message[question.at.clone()]);
    writer.know(question);
    let records = writer.records(&answer.records);
    let mut truncated = records < answer.records.len();
    let authority = if truncated { 0 } else { writer.records(&answer.authority) };
    truncated |= authority < answer.authority.len();
    let extra = if truncated { 0 } else { writer.records(&answer.extra) };
    let mut bytes = writer.bytes;
    let code = answer.code as u16;
    if question.edns.is_some() {
        bytes.push(0);
        bytes.extend_from_slice(&kind::OPT.to_be_bytes());
        bytes.extend_from_slice(&DATAGRAM_BYTES_MAX.to_be_bytes());
        // The upper bits of the code, version 0, no flags, no options.
        bytes.extend_from_slice(&[(code >> 4) as u8, 0, 0, 0, 0, 0]);
    }
    let mut bits = RESPONSE | question.head.bits | code & 0xf;
    if answer.authoritative {
        bits |= AUTHORITATIVE;
    }
    if truncated {
        bits |= TRUNCATED;
    }
    put(&mut bytes, 0, question.head.id);
    put(&mut bytes, 2, bits);
    let counts = [1, records, authority, extra + usize::from(opt > 0)];
    for (place, count) in (4..).step_by(2).zip(counts) {
        put(&mut bytes, place, u16::try_from(count).unwrap_or(u16::MAX));
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A message that is being written.
struct Writer {
    bytes: Vec<u8>,
    /// Where names stand already.
    names: HashMap<String, usize>,
    bytes_max: usize,
}

impl Writer {
    /// Notes where the question's name and what it ends with stand.
    fn know(&mut self, question: &Question) {
        let mut name = String::new();
        for (label, place) in question.labels.iter().zip(&question.places).rev() {
            if label.contains('.') {
                return;
            }
            name = if name.is_empty() { label.clone() } else { format!("{label}.{name}") };
            self.names.insert(name.clone(), *place);
        }
    }

    /// Writes as many records as fit, each whole, and returns their number.
    fn records(&mut self, records: &[Record]) -> usize {
        for (number, record) in records.iter().enumerate() {
            let before = self.bytes.len();
            if self.record(record).is_none() || self.bytes.len() > self.bytes_max {
                self.bytes.truncate(before);
                self.names.retain(|_, place| *place < before);
                return number;
            }
        }
        records.len()
    }

    fn record(&mut self, record: &Record) -> Option<()> {
        self.name(&record.name)?;
        self.number(record.data.kind());
        self.number(CLASS_IN);
        self.long(record.ttl);
        let length_at = self.bytes.len();
        self.number(0);
        match &record.data {
            Data::A(ip) => self.bytes.extend_from_slice(&ip.octets()),
            Data::Aaaa(ip) => self.bytes.extend_from_slice(&ip.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name)?,
            Data::Srv { weight, port, target } => {
                for number in [0, *weight, *port] {
                    self.number(number);
                }
                // RFC 2782: not compressed.
                self.whole_name(target)?;
            }
            Data::Txt(text) => self.text(text)?,
            Data::Hinfo(text) => {
                self.text(text)?;
                self.text("")?;
            }
            Data::Soa { domain, serial } => {
                self.name(&format!("ns.dns.{domain}"))?;
                self.name(&format!("hostmaster.{domain}"))?;
                // Serial; refresh, retry and expire, which only a copy of the zone would need; and
                // for how long "there is none" is good.
                for number in [*serial, 7200, 1800, 86_400, record.ttl] {
                    self.long(number);
                }
            }
        }
        let length = u16::try_from(self.bytes.len() - length_at - 2).ok()?;
        put(&mut self.bytes, length_at, length);
        Some(())
    }

    fn number(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn long(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn text(&mut self, text: &str) -> Option<()> {
        self.bytes.push(u8::try_from(text.len()).ok()?);
        self.bytes.extend_from_slice(text.as_bytes());
        Some(())
    }

    /// A name, or of it what does not stand somewhere already.
    fn name(&mut self, name: &str) -> Option<()> {
        let mut rest = name;
        while !rest.is_empty() {
            if let Some(place) = self.names.get(rest) {
                let pointer = 0xc000 | u16::try_from(*place).ok()?;
                self.number(pointer);
                return Some(());
            }
            if self.bytes.len() <= POINTER_MAX {
                self.names.insert(rest.to_owned(), self.bytes.len());
            }
            let (label, after) = rest.split_once('.').unwrap_or((rest, ""));
            self.label(label)?;
            rest = after;
        }
        self.bytes.push(0);
        Some(())
    }

    fn whole_name(&mut self, name: &str) -> Option<()> {
        for label in name.split('.') {
            self.label(label)?;
        }
        self.bytes.push(0);
        Some(())
    }

    fn label(&mut self, label: &str) -> Option<()> {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return None;
        }
        self.text(label)
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
