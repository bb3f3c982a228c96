//! Requests and answers come back as they were, and a snapshot arrives whole or not at all.

use openraft::entry::{EntryPayload, RaftEntry};
use openraft::impls::leader_id_adv::LeaderId;

use super::*;
use crate::raft::{LogEntry, LogId};

fn vote() -> Vote {
    Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true }
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 4, node_id: 2 }, index }
}

/// Through the encoding and back.
fn sent(request: Request) -> Request {
    codec::decode(&request.encode(), Request::decode).expect("what was encoded can be decoded")
}

fn answered(answer: Answer) -> Answer {
    codec::decode(&answer.encode(), Answer::decode).expect("what was encoded can be decoded")
}

#[test]
fn requests_come_back() {
    let append = AppendEntriesRequest {
        vote: vote(),
        prev_log_id: Some(log_id(8)),
        entries: vec![LogEntry::new(log_id(9), EntryPayload::Blank)],
        leader_commit: None,
    };
    match sent(Request::Append(append.clone())) {
        Request::Append(back) => assert_eq!(format!("{back:?}"), format!("{append:?}")),
        _ => panic!("another request"),
    }
    let ask = VoteRequest { vote: vote(), last_log_id: Some(log_id(3)), leadership_transfer: true };
    assert!(matches!(sent(Request::Vote(ask.clone())), Request::Vote(back) if back == ask));
    assert!(matches!(sent(Request::PreVote(ask.clone())), Request::PreVote(back) if back == ask));
    let transfer = TransferLeaderRequest::new(vote(), 3, None);
    let back = sent(Request::Transfer(transfer.clone()));
    assert!(matches!(back, Request::Transfer(back) if back == transfer));
}

#[test]
fn answers_come_back() {
    let appends = [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(log_id(1))),
        AppendEntriesResponse::PartialSuccess(None),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(vote()),
    ];
    for append in appends {
        let back = answered(Answer::Append(append.clone()));
        assert!(matches!(back, Answer::Append(back) if back == append));
    }
    let response = VoteResponse { vote: vote(), vote_granted: true, last_log_id: None };
    let back = answered(Answer::Vote(response.clone()));
    assert!(matches!(back, Answer::Vote(back) if back == response));
    let refusal =
        Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id(1)), actual: None });
    let back = answered(Answer::Transfer(refusal.clone()));
    assert!(matches!(back, Answer::Transfer(back) if back == refusal));
    assert!(matches!(answered(Answer::Piece(None)), Answer::Piece(None)));
    assert!(matches!(answered(Answer::Piece(Some(vote()))), Answer::Piece(Some(_))));
    assert!(matches!(answered(Answer::Failed("why".into())), Answer::Failed(why) if why == "why"));
}

fn snapshot(objects: u64, value_bytes: usize) -> Snapshot {
    let mut root = Root::new();
    for object in 0..objects {
        let value = Bytes::from(vec![object as u8; value_bytes]);
        let entry = Entry { value, created: object, modified: object };
        root.insert(Bytes::copy_from_slice(&object.to_be_bytes()), entry);
    }
    let meta = SnapshotMeta { last_log_id: Some(log_id(99)), ..SnapshotMeta::default() };
    Snapshot { meta, snapshot: Image { root, time_ms: 5 } }
}

fn incoming(piece: &Piece) -> Incoming {
    Incoming {
        vote: piece.vote,
        transfer: piece.transfer,
        next: 0,
        root: Root::new(),
        hasher: crc32fast::Hasher::new(),
    }
}

#[test]
fn a_snapshot_is_cut_into_bounded_pieces_and_put_together() {
    for (objects, pieces_expected) in [(0, 1), (1, 1), (4, 2), (9, 5)] {
        let snapshot = snapshot(objects, 1 << 20);
        let pieces: Vec<Piece> = pieces(vote(), &snapshot, 1).collect();
        assert_eq!(pieces.len(), pieces_expected, "{objects} objects of 1 MiB");
        let mut incoming = incoming(&pieces[0]);
        for piece in pieces {
            let last = piece.last;
            let Request::Piece(piece) = sent(Request::Piece(piece)) else {
                panic!("another request");
            };
            assert!(incoming.add(&piece));
            assert_eq!(last, incoming.root.len() as u64 == objects);
        }
        assert_eq!(incoming.root, snapshot.snapshot.root);
    }
}

#[test]
fn a_piece_that_does_not_follow_is_refused() {
    let snapshot = snapshot(9, 1 << 20);
    let of = |transfer| pieces(vote(), &snapshot, transfer).collect::<Vec<_>>();
    let (first, second) = (of(1), of(2));

    let mut lost = incoming(&first[0]);
    assert!(lost.add(&first[0]));
    assert!(!lost.add(&first[2]), "a piece is missing");
    assert!(!lost.add(&first[0]), "a piece came twice");
    assert!(!lost.add(&second[1]), "a piece of another transfer");

    let mut changed = first;
    changed[0].objects[0].1.value = Bytes::from_static(b"changed");
    let mut incoming = incoming(&changed[0]);
    assert!(incoming.add(&changed[0]));
    assert!(!incoming.add(&changed[1]), "what came before is not what was sent");
}
