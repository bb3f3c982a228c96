//! Everything written comes back as it was, and nothing else comes back at all.

use super::*;

fn entries() -> Vec<LogEntry> {
    let log_id = |index| LogId { leader_id: LeaderId { term: 7, node_id: 3 }, index };
    let command = |precondition, action| Command {
        time_ms: 1_700_000_000_000,
        id: 0,
        key: Bytes::from_static(b"key"),
        precondition,
        action,
    };
    let put = || Action::Put(Bytes::from_static(b"value"));
    let node = |name: &str| Place { name: name.to_owned(), address: format!("{name}:1") };
    let nodes = BTreeMap::from([(1, node("a")), (2, node("b")), (3, node(""))]);
    let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2])];
    let membership = Membership::new(configs, nodes).expect("the membership is valid");
    vec![
        LogEntry::new(log_id(0), EntryPayload::Blank),
        LogEntry::new(log_id(1), EntryPayload::Normal(command(Precondition::Any, put()))),
        LogEntry::new(log_id(2), EntryPayload::Normal(command(Precondition::Absent, put()))),
        LogEntry::new(log_id(3), EntryPayload::Normal(command(Precondition::At(9), put()))),
        LogEntry::new(
            log_id(u64::MAX),
            EntryPayload::Normal(command(Precondition::Present, Action::Delete)),
        ),
        LogEntry::new(
            log_id(4),
            EntryPayload::Normal(command(Precondition::Any, Action::Check { verdict: None })),
        ),
        LogEntry::new(
            log_id(7),
            EntryPayload::Normal(command(
                Precondition::Any,
                Action::Check { verdict: Some(Mark { revision: 4, hash: 1 << 127 }) },
            )),
        ),
        LogEntry::new(
            log_id(8),
            EntryPayload::Normal(Command { id: 5, ..command(Precondition::At(9), put()) }),
        ),
        LogEntry::new(
            log_id(9),
            EntryPayload::Normal(Command {
                id: u64::MAX,
                ..command(Precondition::Any, Action::Delete)
            }),
        ),
        LogEntry::new(log_id(5), EntryPayload::Membership(membership)),
        LogEntry::new(log_id(6), EntryPayload::Membership(Membership::default())),
    ]
}

#[test]
fn log_entries_come_back() {
    for entry in entries() {
        let record = encode(0, &entry, Encoder::log_entry);
        assert_eq!(decode(&record, Decoder::log_entry), Ok(entry));
    }
}

#[test]
fn votes_come_back() {
    for committed in [false, true] {
        let vote = Vote { leader_id: LeaderId { term: u64::MAX, node_id: 1 }, committed };
        let record = encode(0, &vote, Encoder::vote);
        assert_eq!(decode(&record, Decoder::vote), Ok(vote));
    }
}

#[test]
fn any_changed_byte_is_noticed() {
    for entry in entries() {
        let record = encode(0, &entry, Encoder::log_entry);
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged, Decoder::log_entry), Err(CodecError::Checksum));
        }
    }
}

#[test]
fn any_missing_byte_is_noticed() {
    for entry in entries() {
        let record = encode(0, &entry, Encoder::log_entry);
        for length in 0..record.len() {
            assert!(decode(&record[..length], Decoder::log_entry).is_err());
        }
    }
}

/// Even with the right checksum: fields that end early, go on too long, or name unknown choices.
#[test]
fn sealed_nonsense_is_refused() {
    let sealed = |payload: &[u8]| {
        let mut encoder = Encoder::new(0);
        payload.iter().for_each(|byte| encoder.u8(*byte));
        encoder.seal()
    };
    let vote = |payload: &[u8]| decode(&sealed(payload), Decoder::vote);
    assert_eq!(vote(&[0; 16]), Err(CodecError::Short));
    assert_eq!(vote(&[0; 18]), Err(CodecError::Long(1)));
    let mut payload = [0; 17];
    payload[16] = 2;
    assert_eq!(vote(&payload), Err(CodecError::Choice("a vote", 2)));
    // A length beyond the end is not a reason to allocate.
    assert_eq!(decode(&sealed(&[0xff; 4]), Decoder::bytes), Err(CodecError::Short));
}

#[test]
fn another_version_is_named() {
    let payload = [0u8; 3];
    let mut record = vec![9];
    record.extend(checksum(9, &payload).to_le_bytes());
    record.extend(payload);
    let read = decode(&record, |decoder| decoder.u8());
    assert_eq!(read, Err(CodecError::Version(9)));
}
