//! A snapshot arrives whole or not at all.

use bytes::Bytes;
use openraft::impls::leader_id_adv::LeaderId;

use super::*;
use crate::engine::memory::Memory;
use crate::engine::{Column, Walk};
use crate::raft::{LogId, SnapshotMeta};

fn vote() -> Vote {
    Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true }
}

fn snapshot(objects: u64, value_bytes: usize) -> Snapshot {
    let mut root = Root::new();
    for object in 0..objects {
        let value = Bytes::from(vec![object as u8; value_bytes]);
        let entry = Entry { value, created: object, modified: object };
        root.insert(Bytes::copy_from_slice(&object.to_be_bytes()), entry);
    }
    let log_id = LogId { leader_id: LeaderId { term: 4, node_id: 2 }, index: 99 };
    let meta = SnapshotMeta { last_log_id: Some(log_id), ..SnapshotMeta::default() };
    let hash = state::hash(&root);
    Snapshot { meta, snapshot: Image { root, hash, time_ms: 5, mark: None, stage: None } }
}

fn receiver() -> (Receiver, Arc<Memory>) {
    let engine = Arc::new(Memory::new());
    (Receiver::new(engine.clone(), Faults::default()), engine)
}

#[tokio::test]
async fn a_snapshot_is_cut_into_bounded_pieces_and_put_together() {
    for (objects, pieces_expected) in [(0, 1), (1, 1), (4, 2), (9, 5)] {
        let snapshot = snapshot(objects, 1 << 20);
        let pieces: Vec<Piece> = pieces(vote(), &snapshot, 1).collect();
        assert_eq!(pieces.len(), pieces_expected, "{objects} objects of 1 MiB");
        let (receiver, engine) = receiver();
        let mut whole = None;
        for piece in pieces {
            let last = piece.last;
            whole = receiver.take_in(piece).await.expect("it follows");
            assert_eq!(whole.is_some(), last);
        }
        let (_, received) = whole.expect("the last piece came");
        assert_eq!(received.snapshot.root, snapshot.snapshot.root);
        assert_eq!(received.meta.last_log_id, snapshot.meta.last_log_id);
        let stage = received.snapshot.stage.expect("it lies on disk");
        engine.adopt(stage, &Batch::default()).expect("memory does not fail");
        let mut count = 0;
        let counted = engine.scan(Column::State, &[], &mut |_, _| {
            count += 1;
            Ok(Walk::On)
        });
        counted.expect("memory does not fail");
        assert_eq!(count, objects);
    }
}

#[tokio::test]
async fn a_piece_that_does_not_follow_is_refused() {
    let snapshot = snapshot(9, 1 << 20);
    let piece = |transfer, number: usize| {
        pieces(vote(), &snapshot, transfer).nth(number).expect("there are five")
    };
    for next in [piece(1, 2), piece(2, 1), piece(1, 4)] {
        let (receiver, _) = receiver();
        assert!(receiver.take_in(piece(1, 0)).await.expect("it begins").is_none());
        let refused = receiver.take_in(next).await;
        assert!(matches!(refused, Err(ReceiveError::Order)), "it does not follow");
        let refused = receiver.take_in(piece(1, 1)).await;
        assert!(matches!(refused, Err(ReceiveError::Nothing)), "the transfer is over");
        assert!(receiver.take_in(piece(3, 0)).await.expect("a new one begins").is_none());
    }
    let (receiver, _) = receiver();
    assert!(receiver.take_in(piece(1, 0)).await.expect("it begins").is_none());
    assert!(receiver.take_in(piece(2, 0)).await.expect("another begins").is_none());
    assert!(matches!(receiver.take_in(piece(1, 1)).await, Err(ReceiveError::Order)));
}

#[tokio::test]
async fn a_snapshot_that_is_not_what_was_sent_is_refused() {
    let snapshot = snapshot(9, 1 << 20);
    let (receiver, _) = receiver();
    let mut changed: Vec<Piece> = pieces(vote(), &snapshot, 1).collect();
    changed[0].objects[0].1.value = Bytes::from_static(b"changed");
    let mut changed = changed.into_iter();
    let first = changed.next().expect("there are five");
    assert!(receiver.take_in(first).await.expect("it begins").is_none());
    let second = changed.next().expect("there are five");
    assert!(matches!(receiver.take_in(second).await, Err(ReceiveError::Order)));

    // What the running checksum does not cover is in the hash.
    let mut changed: Vec<Piece> = pieces(vote(), &snapshot, 2).collect();
    changed[4].objects[0].1.created = 1000;
    let mut result = None;
    for piece in changed {
        result = Some(receiver.take_in(piece).await);
    }
    assert!(matches!(result, Some(Err(ReceiveError::Hash))));

    // Nor does it arrive what the sender's own memory has damaged.
    let mut damaged = snapshot;
    let key = Bytes::copy_from_slice(&3u64.to_be_bytes());
    let entry = Entry { value: Bytes::from_static(b"damaged"), created: 3, modified: 3 };
    damaged.snapshot.root.insert(key, entry);
    let mut result = None;
    for piece in pieces(vote(), &damaged, 3) {
        result = Some(receiver.take_in(piece).await);
    }
    assert!(matches!(result, Some(Err(ReceiveError::Hash))));
}
