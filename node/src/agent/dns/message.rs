//! Messages of DNS: bytes to a question, an answer to bytes, both by the crate `domain` (RFC 1035,
//! EDNS by RFC 6891). Ours is which messages are answered, and what is left out of one that is
//! full.
//!
//! Whatever a client sends, reading it ends: names are followed through a bounded number of
//! pointers, and records are as many as fit in the message. An answer knows a bounded number of
//! names to point to, so that writing takes time in proportion to its length.

use bytes::{Bytes, BytesMut};
use domain::{
    base::{
        CharStr, Header, Message, MessageBuilder, Name, RecordSectionBuilder, Serial,
        StaticCompressor, StreamTarget, Ttl,
        iana::{Class, Opcode, OptRcode, Rtype},
        message_builder::PushError,
        opt::{Opt, OptRecord},
        wire::{Composer, ParseError},
    },
    rdata::{A, Aaaa, Cname, Hinfo, Ns, Ptr, Soa, Srv, Txt},
};

use super::zone::{Answer, Data, Record};

/// Length of an OPT record without options.
const OPT_BYTES: usize = 11;
/// What a datagram may hold: what every way lets through in one piece.
pub const DATAGRAM_BYTES_MAX: u16 = 1232;
/// What it may hold if the client does not say more.
const DATAGRAM_BYTES_MIN: u16 = 512;

/// A message to be sent: as a datagram, or with its length before it on a stream.
pub type Written = StreamTarget<BytesMut>;

/// A question.
#[derive(Debug)]
pub struct Question<'a> {
    /// What it was read from.
    message: &'a Message<[u8]>,
    /// The name's labels in lower case, without the root.
    pub labels: Vec<String>,
    /// Type.
    pub wanted: Rtype,
    /// Its class is that of the Internet.
    pub is_in: bool,
    /// Largest datagram that the client takes, and its version of EDNS.
    edns: Option<(u16, u8)>,
}

/// What was read.
#[derive(Debug)]
pub enum Read<'a> {
    /// A question.
    Question(Question<'a>),
    /// Something else, which is told to who sent it.
    Bad(Header, OptRcode),
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
pub fn read(bytes: &[u8]) -> Read<'_> {
    let Ok(message) = Message::from_slice(bytes) else { return Read::Silence };
    let header = message.header();
    if header.qr() {
        // An answer to an answer would be answered.
        return Read::Silence;
    }
    if header.opcode() != Opcode::QUERY {
        return Read::Bad(header, OptRcode::NOTIMP);
    }
    match question(message) {
        Ok(question) => Read::Question(question),
        Err(_) => Read::Bad(header, OptRcode::FORMERR),
    }
}

fn question(message: &Message<[u8]>) -> Result<Question<'_>, ParseError> {
    let asked = message.sole_question()?;
    let labels = asked.qname().iter().filter(|label| !label.is_root());
    let text = |label: &[u8]| String::from_utf8_lossy(label).to_ascii_lowercase();
    let labels = labels.map(|label| text(label.as_slice())).collect();
    let mut edns = None;
    for record in message.additional()?.limit_to::<Opt<_>>() {
        let record = OptRecord::from(record?);
        if edns.replace((record.udp_payload_size(), record.version())).is_some() {
            return Err(ParseError::form_error("EDNS twice"));
        }
    }
    let is_in = matches!(asked.qclass(), Class::IN | Class::ANY);
    Ok(Question { message, labels, wanted: asked.qtype(), is_in, edns })
}

impl Question<'_> {
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

/// An empty message.
fn builder() -> Option<MessageBuilder<StaticCompressor<Written>>> {
    MessageBuilder::from_target(StaticCompressor::new(StreamTarget::new_bytes())).ok()
}

/// Writes what is said to something that is no question. `None` never happens.
pub fn write_bad(asked: Header, code: OptRcode) -> Option<Written> {
    let mut builder = builder()?;
    let header = builder.header_mut();
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_rcode(code.rcode());
    Some(builder.finish().into_target())
}

/// Writes an answer. What does not fit is cut off between records, and if it was part of the answer
/// this is said, so that the client asks again on a stream. `None` never happens: a question fits.
pub fn write(question: &Question<'_>, answer: &Answer, way: Way) -> Option<Written> {
    let bytes_max = question.bytes_max(way);
    let kept = if question.edns.is_some() { OPT_BYTES } else { 0 };
    let mut builder = builder()?;
    // The limit is the first length that is too much.
    builder.set_push_limit(bytes_max - kept + 1);
    let mut section = builder.start_answer(question.message, answer.code.rcode()).ok()?;
    section.header_mut().set_aa(answer.authoritative);
    let mut whole = put_all(&mut section, &answer.records);
    let mut section = section.authority();
    whole = whole && put_all(&mut section, &answer.authority);
    let mut section = section.additional();
    if whole {
        put_all(&mut section, &answer.extra);
    }
    section.header_mut().set_tc(!whole);
    if question.edns.is_some() {
        section.set_push_limit(bytes_max + 1);
        let opt = section.opt(|opt| {
            opt.set_udp_payload_size(DATAGRAM_BYTES_MAX);
            opt.set_rcode(answer.code);
            Ok(())
        });
        opt.ok()?;
    }
    Some(section.finish().into_target())
}

/// Adds as many records as fit, each whole; whether these were all. One with a name that is none
/// counts for nothing.
fn put_all<T: Composer>(section: &mut impl RecordSectionBuilder<T>, records: &[Record]) -> bool {
    records.iter().all(|record| !matches!(put(section, record), Some(Err(_))))
}

fn put<T: Composer>(
    section: &mut impl RecordSectionBuilder<T>,
    record: &Record,
) -> Option<Result<(), PushError>> {
    let (owner, ttl) = (name(&record.name)?, Ttl::from_secs(record.ttl));
    Some(match &record.data {
        Data::A(ip) => section.push((owner, ttl, A::new(*ip))),
        Data::Aaaa(ip) => section.push((owner, ttl, Aaaa::new(*ip))),
        Data::Cname(it) => section.push((owner, ttl, Cname::new(name(it)?))),
        Data::Ptr(it) => section.push((owner, ttl, Ptr::new(name(it)?))),
        Data::Ns(it) => section.push((owner, ttl, Ns::new(name(it)?))),
        Data::Srv { weight, port, target } => {
            section.push((owner, ttl, Srv::new(0, *weight, *port, name(target)?)))
        }
        Data::Txt(text) => {
            let text = Txt::<Bytes>::build_from_slice(text.as_bytes()).ok()?;
            section.push((owner, ttl, text))
        }
        Data::Hinfo(text) => section.push((owner, ttl, Hinfo::new(part(text)?, part("")?))),
        Data::Soa { domain, serial } => {
            let server = name(&format!("ns.dns.{domain}"))?;
            let people = name(&format!("hostmaster.{domain}"))?;
            // Refresh, retry and expire, which only a copy of the zone would need; and for how
            // long "there is none" is good.
            let [refresh, retry, expire] = [7200, 1800, 86_400].map(Ttl::from_secs);
            let serial = Serial::from(*serial);
            let soa = Soa::new(server, people, serial, refresh, retry, expire, ttl);
            section.push((owner, ttl, soa))
        }
    })
}

fn part(text: &str) -> Option<CharStr<&[u8]>> {
    CharStr::from_octets(text.as_bytes()).ok()
}

fn name(text: &str) -> Option<Name<Bytes>> {
    text.parse().ok()
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
