//! Requests and answers come back as they were.

use openraft::entry::{EntryPayload, RaftEntry};
use openraft::impls::leader_id_adv::LeaderId;

use super::*;
use crate::codec;
use crate::raft::{LogEntry, LogId};
use crate::state::{Action, Precondition};

fn vote() -> Vote {
    Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true }
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 4, node_id: 2 }, index }
}

/// Through the encoding and back.
fn sent(request: Request) -> Request {
    let envelope = Envelope { cluster_id: 1 << 90, from: 3, to: 7 };
    let record = request.encode(envelope);
    let back = codec::decode(&record, Request::decode).expect("what was encoded can be decoded");
    assert_eq!(back.0, envelope);
    back.1
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

#[test]
fn questions_of_the_store_come_back() {
    let command = Command {
        time_ms: 4,
        id: 7,
        key: Bytes::from_static(b"key"),
        precondition: Precondition::At(9),
        action: Action::Delete,
    };
    let writes: Vec<Write> = [(true, 9), (false, 8)]
        .map(|(makes_room, fence)| Write { command: command.clone(), makes_room, fence })
        .into();
    let back = sent(Request::Writes(writes.clone()));
    assert!(matches!(back, Request::Writes(back) if back == writes));
    assert!(matches!(sent(Request::ReadIndex), Request::ReadIndex));
    assert!(matches!(sent(Request::Status), Request::Status));
    assert!(matches!(sent(Request::Promised), Request::Promised));
    let promise = Promise { vote: Some(vote()), last: Some(log_id(7)) };
    let back = answered(Answer::Promised(promise));
    assert!(matches!(back, Answer::Promised(back) if back == promise));
    let (name, address) = ("m".to_owned(), "a:1".to_owned());
    for change in [
        Change::Add { name, address },
        Change::Promote(4),
        Change::Remove(5),
        Change::Transfer(None),
        Change::Transfer(Some(6)),
        Change::Move { id: 6, name: "m".to_owned(), address: "host:2".to_owned() },
    ] {
        let back = sent(Request::Change(change.clone()));
        assert!(matches!(back, Request::Change(back) if back == change));
    }
}

#[test]
fn answers_of_the_store_come_back() {
    let entry = Entry { value: Bytes::from_static(b"v"), created: 1, modified: 2 };
    let leader = (Some(3), Some("a:1".to_owned()));
    let writes = [
        Ok(Written::Put { created: 1, modified: 2 }),
        Ok(Written::Deleted { revision: 3, last: entry.clone() }),
        Err(WriteError::Conflict { current: Some(entry) }),
        Err(WriteError::Conflict { current: None }),
        Err(WriteError::NotLeader { leader: leader.0, address: leader.1.clone() }),
        Err(WriteError::Unknown),
        Err(WriteError::Full),
        Err(WriteError::TooLarge { size: 9, limit: 8 }),
        Err(WriteError::Stopped),
    ];
    let back = answered(Answer::Written(writes.to_vec()));
    assert!(matches!(back, Answer::Written(back) if back == writes));
    let reads = [
        Ok(77),
        Err(ReadError::NotLeader { leader: leader.0, address: leader.1 }),
        Err(ReadError::NoMajority),
        Err(ReadError::Behind),
        Err(ReadError::Quarantined),
        Err(ReadError::Stopped),
    ];
    for read in reads {
        let back = answered(Answer::Index(read.clone()));
        assert!(matches!(back, Answer::Index(back) if back == read));
    }
    let now = Mark { revision: 4, hash: 1 << 120 };
    for quarantine in [None, Some("it differs".to_owned())] {
        let status = Status { now, mark: Some(now), quarantine, room: Room::Full, knows_you: true };
        let back = answered(Answer::Status(status.clone()));
        assert!(matches!(back, Answer::Status(back) if back == status));
    }
}

#[test]
fn errors_of_changes_come_back() {
    let (id, name, address) = (4, "m".to_owned(), "a:1".to_owned());
    let errors = [
        MembershipError::NoLeader,
        MembershipError::NoSuchMember { id },
        MembershipError::NotAVoter { id },
        MembershipError::Taken { id, name, address },
        MembershipError::NotCaughtUp { id, behind: 9 },
        MembershipError::LosesMajority { id },
        MembershipError::LastVoter,
        MembershipError::TooMany(9),
        MembershipError::Changed,
        MembershipError::Unknown,
        MembershipError::NotTaken { id },
        MembershipError::Stopped,
    ];
    for changed in errors.into_iter().map(Err).chain([Ok(4)]) {
        let back = answered(Answer::Changed(changed.clone()));
        assert!(matches!(back, Answer::Changed(back) if back == changed));
    }
}
