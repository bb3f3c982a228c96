//! What a link asks a follower whose log openraft looks for the end of, and when it tells one of a
//! commit.

use openraft::entry::{EntryPayload, RaftEntry};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt;

use super::*;
use crate::engine::memory::Memory;
use crate::raft::{LogEntry, LogId};
use crate::superblock::{Anchor, Superblock};
use crate::writer::{Stop, Writer};

const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 1 };
const FOLLOWER: MemberId = 2;

/// For each question the index before its entries, and how many entries there were.
type Asked = Arc<Mutex<Vec<(u64, usize)>>>;

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(log_id: LogId) -> LogEntry {
    LogEntry::new(log_id, EntryPayload::Blank)
}

/// The log of a member that came to lead in term 2, with entries of term 1 up to 999.
async fn log() -> Log {
    let (engine, faults) = (Arc::new(Memory::new()), Faults::default());
    let (writer, _) = Writer::start(engine.clone(), Stop::new(), faults.clone())
        .expect("a thread can be started");
    let anchor = Arc::new(Anchor::new(None, Superblock::new(IDENTITY), Faults::default()));
    let mut log = Log::open(engine, writer, anchor, faults).expect("the log is sound");
    let ids = (0..1000).map(|index| log_id(1, index)).chain([log_id(2, 1000)]);
    let entries: Vec<LogEntry> = ids.map(entry).collect();
    let (sender, flushed) = Types::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await.expect("the writer runs");
    flushed.await.expect("the callback is called").expect("memory does not fail");
    log
}

/// A link to a follower that has everything up to an index.
async fn link(has: u64) -> (Link, Asked) {
    let asked = Asked::default();
    let noted = asked.clone();
    let transport: Transport = Arc::new(move |_, request: Bytes| {
        let (_, request) = codec::decode(&request, Request::decode).expect("it can be read");
        let Request::Append(request) = request else {
            panic!("nothing else is asked here");
        };
        let before = request.prev_log_id.expect("no question is about an empty log").index;
        noted.lock().expect("nothing panics here").push((before, request.entries.len()));
        let answer = match before <= has {
            true => AppendEntriesResponse::Success,
            false => AppendEntriesResponse::Conflict,
        };
        futures::future::ready(Ok(Answer::Append(answer).encode())).boxed()
    });
    let places = Places::default();
    places.learn(FOLLOWER, &Place { name: "two".to_owned(), address: "two:1".to_owned() });
    let link = Link {
        caller: Caller::new(IDENTITY, transport, Faults::default()),
        places,
        target: FOLLOWER,
        log: log().await,
        transfers: Arc::default(),
        lacks: false,
    };
    (link, asked)
}

fn request(before: LogId, ids: Vec<LogId>) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: Vote { leader_id: LeaderId { term: 2, node_id: 1 }, committed: true },
        prev_log_id: Some(before),
        entries: ids.into_iter().map(entry).collect(),
        leader_commit: None,
    }
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_secs(1))
}

/// Sends entries as openraft does, eight at most.
async fn send(link: &mut Link, ids: Vec<LogId>) -> AppendEntriesResponse<Types> {
    let request = request(log_id(1, ids[0].index - 1), ids);
    link.append_entries(request, option()).await.expect("it answers")
}

/// Streams requests to a follower that has everything, as openraft does; returns how many entries
/// there were in each that was sent.
async fn streamed(clients_wait: bool, requests: Vec<AppendEntriesRequest<Types>>) -> Vec<usize> {
    let (mut link, asked) = link(9999).await;
    if clients_wait {
        link.caller.waiting.note(FOLLOWER);
    }
    let answers = link.stream_append(stream::iter(requests), option()).await;
    let answers: Vec<_> = answers.expect("it begins").collect().await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))), "{answers:?}");
    let asked = asked.lock().expect("nothing panics here");
    asked.iter().map(|(_, entries)| *entries).collect()
}

fn from(index: u64) -> Vec<LogId> {
    (index..index + 8).map(|index| log_id(1, index)).collect()
}

#[tokio::test]
async fn a_follower_that_has_everything_is_asked_once() {
    if cfg!(debug_assertions) {
        return;
    }
    let (mut link, asked) = link(999).await;
    let answer = send(&mut link, from(500)).await;
    let end = Some(log_id(1, 999));
    assert!(matches!(answer, AppendEntriesResponse::PartialSuccess(upto) if upto == end));
    assert_eq!(*asked.lock().expect("nothing panics here"), [(999, 0)]);
    assert_eq!(link.caller.ledger.of(FOLLOWER).last, end, "it has promised all of it");

    // What the leader wrote itself is sent as ever.
    assert!(send(&mut link, vec![log_id(2, 1000)]).await.is_success());
    assert_eq!(*asked.lock().expect("nothing panics here"), [(999, 0), (999, 1)]);
}

#[tokio::test]
async fn a_follower_that_lacks_something_is_searched() {
    if cfg!(debug_assertions) {
        return;
    }
    let (mut link, asked) = link(700).await;
    assert!(send(&mut link, from(500)).await.is_success());
    assert!(send(&mut link, from(750)).await.is_conflict());
    assert!(send(&mut link, from(625)).await.is_success());
    let asked = asked.lock().expect("nothing panics here");
    assert_eq!(*asked, [(999, 0), (499, 8), (749, 8), (624, 8)], "the end is asked for once");
}

#[tokio::test]
async fn a_commit_is_told_with_entries_that_come_at_once() {
    let last = log_id(2, 1000);
    let (commit, entries) = (request(last, Vec::new()), request(last, vec![log_id(2, 1001)]));
    assert_eq!(streamed(false, vec![commit.clone(), entries.clone()]).await, [1]);
    assert_eq!(streamed(false, vec![entries.clone(), commit.clone()]).await, [1, 0]);
    assert_eq!(streamed(true, vec![commit, entries]).await, [0, 1], "somebody waits for it");
}

#[tokio::test]
async fn a_commit_is_told_without_entries_when_none_come() {
    let (mut link, asked) = link(9999).await;
    let commit = request(log_id(2, 1000), Vec::new());
    let requests = stream::iter([commit]).chain(stream::pending()).boxed();
    let mut answers = link.stream_append(requests, option()).await.expect("it begins");
    assert!(matches!(answers.next().await, Some(Ok(Ok(_)))));
    assert_eq!(*asked.lock().expect("nothing panics here"), [(1000, 0)]);
}
