//! Journals as lists of changes, and what is left of them after a cut at their end.

use expect_test::{Expect, expect};

use super::disk::{Disk, Keep};
use super::journal::{Change, Record};
use super::{Promise, State, majority, promised};

/// Folder 1 is the root; the journal's place of a change is its number.
fn left(changes: &[Change<'static>], keep: Keep) -> String {
    let root = Change::Create { folder: 0, inode: 1, is_folder: true, name: "" };
    let mut disk = Disk::default();
    for (end, change) in (0..).zip([root].iter().chain(changes)) {
        disk.apply(&Record { end, at_us: 0, change: change.clone() });
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    disk.cut(folder.path(), keep).expect("it can be laid out");
    let mut lines = Vec::new();
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("laid out").map(|entry| entry.expect("read")) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder.path()).expect("below").display().to_string();
            lines.push(format!("{name}={}", crate::text(&std::fs::read(&path).expect("read"))));
        }
    }
    lines.sort();
    lines.join(" ")
}

#[track_caller]
fn check(changes: &[Change<'static>], expected: Expect) {
    expected.assert_eq(&left(changes, Keep::Nothing));
}

fn create(inode: u64, name: &'static str) -> Change<'static> {
    Change::Create { folder: 1, inode, is_folder: false, name }
}

fn write(inode: u64, offset: u64, data: &'static str) -> Change<'static> {
    Change::Write { inode, offset, data: data.as_bytes() }
}

fn sync(inode: u64, began: u64) -> Change<'static> {
    Change::Sync { inode, began }
}

fn rename(old: &'static str, new: &'static str, inode: u64) -> Change<'static> {
    Change::Rename { from: 1, to: 1, inode, old, new }
}

#[test]
fn nothing_stays_without_an_fsync_of_file_and_folder() {
    check(&[create(2, "a"), write(2, 0, "hello")], expect![""]);
    check(&[create(2, "a"), write(2, 0, "hello"), sync(2, 2)], expect![""]);
    check(&[create(2, "a"), write(2, 0, "hello"), sync(1, 2)], expect!["a="]);
    check(&[create(2, "a"), write(2, 0, "hello"), sync(1, 2), sync(2, 3)], expect!["a=hello"]);
}

#[test]
fn an_fsync_covers_what_was_written_before_it_began() {
    let file = [create(2, "a"), sync(1, 1), write(2, 0, "one"), write(2, 3, "two")];
    let with = |began| [&file[..], &[sync(2, began)]].concat();
    check(&with(2), expect!["a="]);
    check(&with(3), expect!["a=one"]);
    check(&with(4), expect!["a=onetwo"]);
    check(&[&with(4)[..], &[Change::Truncate { inode: 2, size: 3 }]].concat(), expect!["a=onetwo"]);
    check(
        &[&with(4)[..], &[Change::Truncate { inode: 2, size: 3 }, sync(2, 6)]].concat(),
        expect!["a=one"],
    );
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let both = [
        create(2, "a"),
        write(2, 0, "old"),
        sync(2, 2),
        create(3, "b"),
        write(3, 0, "new"),
        sync(3, 5),
        sync(1, 6),
        rename("b", "a", 3),
    ];
    check(&both, expect!["a=old b=new"]);
    check(&[&both[..], &[sync(1, 8)]].concat(), expect!["a=new"]);
}

#[test]
fn an_inode_number_may_be_used_again() {
    check(
        &[
            create(2, "a"),
            write(2, 0, "first"),
            sync(2, 2),
            sync(1, 3),
            Change::Unlink { folder: 1, name: "a" },
            create(2, "b"),
            write(2, 0, "second"),
            sync(2, 7),
        ],
        expect!["a=first"],
    );
}

#[test]
fn a_torn_cut_keeps_a_beginning() {
    let file = [create(2, "a"), sync(1, 1), write(2, 0, "0123456789")];
    assert_eq!(left(&file, Keep::All), "a=0123456789");
    let kept: Vec<String> = (0..40).map(|seed| left(&file, Keep::Torn(seed))).collect();
    let is_beginning =
        |text: &String| text.strip_prefix("a=").is_some_and(|text| "0123456789".starts_with(text));
    assert!(kept.iter().all(is_beginning), "{kept:?}");
    assert!(kept.iter().any(|text| text.len() == 2) && kept.iter().any(|text| text.len() == 12));
}

#[test]
fn a_promise_counts_once_every_journal_has_come_so_far() {
    let promise = |from: [u64; 2]| {
        let state = State::from([("n".to_owned(), (format!("{from:?}"), String::new()))]);
        Promise { from: from.to_vec(), state, next: None }
    };
    let promises = [promise([10, 10]), promise([20, 30])];
    let at = |lengths: [u64; 2]| {
        let promise = promised(&promises, &lengths);
        promise.state.get("n").map(|(from, _)| from.clone()).unwrap_or_default()
    };
    assert_eq!(at([9, 50]), "");
    assert_eq!(at([10, 10]), "[10, 10]");
    assert_eq!(at([50, 29]), "[10, 10]");
    assert_eq!(at([20, 30]), "[20, 30]");
}

#[test]
fn a_majority_is_as_small_as_it_can_be_and_changes() {
    assert_eq!(majority(3, 1, 0), [1, 2]);
    assert_eq!(majority(3, 1, 1), [0, 1]);
    assert_eq!(majority(5, 4, 2), [2, 3, 4]);
}
