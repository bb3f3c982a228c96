//! Messages byte by byte, good and broken ones.

use super::*;

/// A question as clients write it; `edns` is the largest datagram that it takes.
fn asked(name: &str, wanted: u16, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&wanted.to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    if let Some(size) = edns {
        bytes.extend_from_slice(&[0, 0, 41]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    }
    bytes
}

fn read_question(bytes: &[u8]) -> Question {
    match read(bytes) {
        Read::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

fn answer(records: Vec<Record>) -> Answer {
    Answer { authoritative: true, records, ..Answer::only(Code::NoError) }
}

fn address(name: &str, last: u8) -> Record {
    Record { name: name.to_owned(), ttl: 5, data: Data::A([10, 0, 0, last].into()) }
}

#[test]
fn a_question_is_read_and_its_name_compared_in_lower_case() {
    let question = read_question(&asked("Web.SHOP.local", kind::A, Some(4096)));
    assert_eq!(question.labels, ["web", "shop", "local"]);
    assert_eq!((question.wanted, question.is_in, question.edns), (kind::A, true, Some((4096, 0))));
    assert!(!question.is_newer());
    assert_eq!(read_question(&asked("", kind::NS, None)).labels, [""; 0]);
}

#[test]
fn an_answer_repeats_the_question_and_points_to_its_name() {
    let bytes = asked("Web.local", kind::A, Some(4096));
    let question = read_question(&bytes);
    let written = write(&question, &bytes, &answer(vec![address("web.local", 7)]), Way::Datagram);
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
    let bytes = asked("alias.local", kind::A, None);
    let alias = Data::Cname("web.local".to_owned());
    let alias = Record { name: "alias.local".to_owned(), ttl: 5, data: alias };
    let records = vec![alias, address("web.local", 7)];
    let written = write(&read_question(&bytes), &bytes, &answer(records), Way::Datagram);
    let end = bytes.len();
    // The target is `web` and a pointer to `local` in the question; the address points to it.
    assert_eq!(written[end + 10..end + 18], [0, 6, 3, b'w', b'e', b'b', 0xc0, 18]);
    assert_eq!(written[end + 18..end + 20], [0xc0, u8::try_from(end + 12).expect("small")]);
}

#[test]
fn what_does_not_fit_is_cut_off_between_records_and_said() {
    let records: Vec<Record> = (0..100).map(|last| address("web.local", last)).collect();
    let length = |edns, way| {
        let bytes = asked("web.local", kind::A, edns);
        let written = write(&read_question(&bytes), &bytes, &answer(records.clone()), way);
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
    let bytes = asked("web.local", kind::SRV, None);
    let target = format!("{}.local", "x".repeat(64));
    let data = Data::Srv { weight: 1, port: 1, target };
    let records = vec![Record { name: "web.local".to_owned(), ttl: 5, data }];
    let written = write(&read_question(&bytes), &bytes, &answer(records), Way::Datagram);
    assert_eq!(written.len(), bytes.len());
}

#[test]
fn what_is_no_question_is_refused_or_not_answered() {
    let good = asked("web.local", kind::A, Some(1232));
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        read(&bytes)
    };
    let head = Head { id: 0x1234, bits: RECURSION_DESIRED };
    assert_eq!(changed(2, 0x81), Read::Silence, "an answer");
    assert_eq!(changed(2, 0x29), Read::Bad(Head { bits: 0x2900, ..head }, Code::NotImp));
    assert_eq!(changed(5, 2), Read::Bad(head, Code::FormErr), "two questions");
    assert_eq!(changed(12, 0xc0), Read::Bad(head, Code::FormErr), "a pointer in the question");
    assert_eq!(changed(12, 200), Read::Bad(head, Code::FormErr), "a label that is too long");
    let long = asked(&vec!["x".repeat(63); 4].join("."), kind::A, None);
    assert_eq!(read(&long), Read::Bad(head, Code::FormErr), "a name that is too long");
    assert_eq!(write_bad(head, Code::FormErr)[..4], [0x12, 0x34, 0x81, 1]);
    let newer = good.len() - 5;
    assert!(matches!(changed(newer, 1), Read::Question(question) if question.is_newer()));
}

#[test]
fn no_bytes_are_too_odd_to_be_read() {
    let good = asked("web.shop.svc.cluster.local", kind::A, Some(1232));
    for length in 0..good.len() {
        assert!(!matches!(read(&good[..length]), Read::Question(_)), "{length} bytes");
    }
    for at in 0..good.len() {
        for value in [0, 1, 11, 63, 64, 127, 128, 191, 192, 255] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Read::Question(question) = read(&bytes) {
                let all = answer(vec![address("web.shop.svc.cluster.local", 1)]);
                let written = write(&question, &bytes, &all, Way::Datagram);
                assert!(written.len() <= usize::from(DATAGRAM_BYTES_MAX));
            }
        }
    }
}
