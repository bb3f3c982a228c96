//! Messages byte by byte, good and broken ones.

use super::*;

const CLASS_IN: u16 = 1;

/// A question as clients write it; `edns` is the largest datagram that it takes.
fn asked(name: &str, wanted: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&wanted.to_int().to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    if let Some(size) = edns {
        bytes.extend_from_slice(&[0, 0, 41]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    }
    bytes
}

fn read_question(bytes: &[u8]) -> Question<'_> {
    match read(bytes) {
        Read::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

/// What a question was answered with, without the length that stands before it on streams.
fn written(asked: &[u8], answer: &Answer, way: Way) -> Vec<u8> {
    let written = write(&read_question(asked), answer, way).expect("it can be written");
    let (stream, datagram) = (written.as_stream_slice(), written.as_dgram_slice());
    let length = u16::try_from(datagram.len()).expect("it fits");
    assert_eq!((&stream[..2], &stream[2..]), (&length.to_be_bytes()[..], datagram));
    datagram.to_vec()
}

fn answer(records: Vec<Record>) -> Answer {
    Answer { authoritative: true, records, ..Answer::only(OptRcode::NOERROR) }
}

fn address(name: &str, last: u8) -> Record {
    Record { name: name.to_owned(), ttl: 5, data: Data::A([10, 0, 0, last].into()) }
}

#[test]
fn a_question_is_read_and_its_name_compared_in_lower_case() {
    let bytes = asked("Web.SHOP.local", Rtype::A, Some(4096));
    let question = read_question(&bytes);
    assert_eq!(question.labels, ["web", "shop", "local"]);
    assert_eq!((question.wanted, question.is_in, question.edns), (Rtype::A, true, Some((4096, 0))));
    assert!(!question.is_newer());
    assert_eq!(read_question(&asked("", Rtype::NS, None)).labels, [""; 0]);
}

#[test]
fn an_answer_repeats_the_question_and_points_to_its_name() {
    let bytes = asked("Web.local", Rtype::A, Some(4096));
    let written = written(&bytes, &answer(vec![address("web.local", 7)]), Way::Datagram);
    let end = bytes.len() - OPT_BYTES;
    assert_eq!(written[..4], [0x12, 0x34, 0x85, 0], "the id, an answer, by who knows");
    assert_eq!(written[4..12], [0, 1, 0, 1, 0, 0, 0, 1]);
    assert_eq!(written[12..end], bytes[12..end], "letters as they were asked");
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 7];
    assert_eq!(written[end..end + 16], record);
    assert_eq!(written[end + 16..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn names_within_records_are_written_once() {
    let bytes = asked("alias.local", Rtype::A, None);
    let alias = Data::Cname("web.local".to_owned());
    let alias = Record { name: "alias.local".to_owned(), ttl: 5, data: alias };
    let records = vec![alias, address("web.local", 7)];
    let written = written(&bytes, &answer(records), Way::Datagram);
    let end = bytes.len();
    // The target is `web` and a pointer to `local` in the question; the address points to it.
    assert_eq!(written[end + 10..end + 18], [0, 6, 3, b'w', b'e', b'b', 0xc0, 18]);
    assert_eq!(written[end + 18..end + 20], [0xc0, u8::try_from(end + 12).expect("small")]);
}

#[test]
fn what_does_not_fit_is_cut_off_between_records_and_said() {
    let records: Vec<Record> = (0..100).map(|last| address("web.local", last)).collect();
    let length = |edns, way| {
        let bytes = asked("web.local", Rtype::A, edns);
        let written = written(&bytes, &answer(records.clone()), way);
        let truncated = written[2] & 0x02 != 0;
        (written.len(), u16::from_be_bytes([written[6], written[7]]), truncated)
    };
    let head = 12 + 11 + 4;
    assert_eq!(length(None, Way::Datagram), (head + 30 * 16, 30, true));
    assert_eq!(length(Some(100), Way::Datagram), (head + 29 * 16 + 11, 29, true));
    assert_eq!(length(Some(65_000), Way::Datagram), (head + 74 * 16 + 11, 74, true));
    assert_eq!(length(None, Way::Stream), (head + 100 * 16, 100, false));
}

#[test]
fn names_that_are_no_names_are_not_written() {
    let bytes = asked("web.local", Rtype::SRV, None);
    let target = format!("{}.local", "x".repeat(64));
    let data = Data::Srv { weight: 1, port: 1, target };
    let records = vec![Record { name: "web.local".to_owned(), ttl: 5, data }];
    let written = written(&bytes, &answer(records), Way::Datagram);
    assert_eq!(written.len(), bytes.len());
}

#[test]
fn what_is_no_question_is_refused_or_not_answered() {
    let good = asked("web.local", Rtype::A, Some(1232));
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        match read(&bytes) {
            Read::Question(question) => format!("newer: {}", question.is_newer()),
            Read::Bad(header, code) => {
                let written = write_bad(header, code).expect("it can be written");
                format!("{code} {:02x?}", &written.as_dgram_slice()[..4])
            }
            Read::Silence => "silence".to_owned(),
        }
    };
    assert_eq!(changed(2, 0x81), "silence", "an answer");
    assert_eq!(changed(2, 0x29), "NOTIMP [12, 34, a9, 04]", "another operation");
    let broken = "FORMERR [12, 34, 81, 01]";
    assert_eq!(changed(5, 2), broken, "two questions");
    assert_eq!(changed(5, 0), broken, "no question");
    assert_eq!(changed(12, 0xc0), broken, "a pointer to nowhere");
    assert_eq!(changed(12, 200), broken, "a label that is too long");
    assert_eq!(changed(good.len() - 5, 0), "newer: false");
    assert_eq!(changed(good.len() - 5, 1), "newer: true");
    let long = asked(&vec!["x".repeat(63); 4].join("."), Rtype::A, None);
    assert!(matches!(read(&long), Read::Bad(_, OptRcode::FORMERR)), "a name that is too long");
    let mut twice = good.clone();
    twice.extend_from_slice(&good[good.len() - OPT_BYTES..]);
    twice[11] = 2;
    assert!(matches!(read(&twice), Read::Bad(_, OptRcode::FORMERR)), "EDNS twice");
}

#[test]
fn a_newer_edns_is_told_in_both_halves_of_the_code() {
    let bytes = asked("web.local", Rtype::A, Some(1232));
    let written = written(&bytes, &Answer::only(OptRcode::BADVERS), Way::Datagram);
    assert_eq!(written[3] & 0xf, 0);
    assert_eq!(written[written.len() - OPT_BYTES..][..6], [0, 0, 41, 4, 208, 1]);
}

#[test]
fn no_bytes_are_too_odd_to_be_read() {
    let good = asked("web.shop.svc.cluster.local", Rtype::A, Some(1232));
    for length in 0..good.len() {
        assert!(!matches!(read(&good[..length]), Read::Question(_)), "{length} bytes");
    }
    for at in 0..good.len() {
        for value in [0, 1, 11, 63, 64, 127, 128, 191, 192, 255] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Read::Question(question) = read(&bytes) {
                let all = answer(vec![address("web.shop.svc.cluster.local", 1)]);
                let written = write(&question, &all, Way::Datagram).expect("it can be written");
                assert!(written.as_dgram_slice().len() <= usize::from(DATAGRAM_BYTES_MAX));
            }
        }
    }
}
