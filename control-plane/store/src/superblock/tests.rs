//! What a superblock finds, and that it comes back as it was written.

use openraft::impls::leader_id_adv::LeaderId;

use super::*;
use crate::raft::{LogId, Vote};

fn vote(term: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn block(vote: Option<Vote>, last: Option<LogId>) -> Superblock {
    let identity = Identity { cluster_id: 7 << 100, member_id: 3 };
    Superblock { promise: Promise { vote, last }, ..Superblock::new(identity) }
}

#[test]
fn a_database_that_is_behind_is_found() {
    let promised = block(Some(vote(4, true)), Some(log_id(4, 90)));
    let lost = |vote, last| promised.promise.missing_from(&Promise { vote, last }).is_some();
    assert!(!lost(Some(vote(4, true)), Some(log_id(4, 90))), "the same");
    assert!(!lost(Some(vote(5, false)), Some(log_id(4, 91))), "further");
    assert!(!lost(Some(vote(5, true)), Some(log_id(5, 60))), "cut by a later leader");
    assert!(lost(Some(vote(4, true)), Some(log_id(4, 89))), "a log entry is missing");
    assert!(lost(Some(vote(4, true)), None), "the log is missing");
    assert!(lost(Some(vote(4, false)), Some(log_id(4, 90))), "the commit of the vote is missing");
    assert!(lost(Some(vote(3, true)), Some(log_id(4, 90))), "the vote is missing");
    assert!(lost(None, None), "everything is missing");
    let nothing = Promise::default();
    assert!(nothing.missing_from(&nothing).is_none(), "there was nothing");
}

#[test]
fn it_comes_back_and_damage_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    assert!(read(folder.path()).expect("an empty folder is fine").is_none());
    let anchor = Anchor::new(Some(folder.path().to_owned()), block(None, None), Faults::default());
    anchor.create().expect("the folder can be written");
    anchor
        .update(|block| block.promise.last = Some(log_id(2, 5)))
        .expect("the folder can be written");
    let found = read(folder.path()).expect("it is sound").expect("it is there");
    assert_eq!(found, block(None, Some(log_id(2, 5))));
    assert_eq!(identity(folder.path()).expect("it is sound"), Some(found.identity));

    let path = folder.path().join(FILE);
    let whole = fs::read(&path).expect("it is there");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        fs::write(&path, damaged).expect("the folder can be written");
        assert!(matches!(read(folder.path()), Err(OpenError::Damaged { .. })), "byte {at}");
    }
    fs::write(&path, &whole[..9]).expect("the folder can be written");
    assert!(matches!(read(folder.path()), Err(OpenError::Damaged { .. })));

    // Nothing is wrong with one that a later version wrote.
    let mut later = whole;
    later[0] += 1;
    let checksum = crc32fast::hash(&[&later[..1], &later[5..]].concat());
    later[1..5].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, &later).expect("the folder can be written");
    assert!(matches!(read(folder.path()), Err(OpenError::OtherVersion { .. })));
}

#[test]
fn only_the_folder_that_counts_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for name in ["db-1", "db-2", "db-30", "db-x", "other"] {
        fs::create_dir(folder.path().join(name)).expect("the folder can be written");
    }
    fs::write(folder.path().join(FILE_NEW), "half").expect("the folder can be written");
    clean(folder.path(), 2).expect("the folder can be written");
    let left = fs::read_dir(folder.path()).expect("the folder can be listed");
    let names = left.map(|entry| entry.expect("it can be listed").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["db-2", "db-x", "other"]);
}
