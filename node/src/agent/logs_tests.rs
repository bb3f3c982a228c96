//! Log files in, what `kubectl logs` shows out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use expect_test::{Expect, expect};
use futures::FutureExt;

use super::*;

fn now() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().expect("a time")
}

fn line(second: u32, stream: &str, tag: &str, text: &str) -> String {
    format!("2026-11-21T07:59:{second:02}.000000001Z {stream} {tag} {text}\n")
}

/// Ten records in three files: 0 to 2 in the oldest, 3 to 6, 7 to 9 in the live one.
fn files() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("0.log");
    let text = |range: std::ops::Range<u32>| -> String {
        range.map(|n| line(n, "stdout", "F", &format!("line {n}"))).collect()
    };
    for (name, range) in [("0.log.2", 0..3), ("0.log.1", 3..7), ("0.log", 7..10)] {
        std::fs::write(folder.path().join(name), text(range)).expect("written");
    }
    (folder, live)
}

async fn shown(live: &Path, query: &str) -> String {
    let options = match Options::parse(query, now()) {
        Ok(options) => options,
        Err(message) => return format!("400 {message}"),
    };
    let (output, mut pieces) = mpsc::channel(4);
    let ended: StillRuns = Box::new(|| async { false }.boxed());
    let reading = tokio::spawn(stream(live.to_owned(), options, ended, output));
    let mut text = Vec::new();
    while let Some(piece) = pieces.recv().await {
        text.extend_from_slice(&piece.expect("readable"));
    }
    reading.await.expect("no panic");
    String::from_utf8(text).expect("text")
}

async fn check(query: &str, expected: Expect) {
    let (_folder, live) = files();
    expected.assert_eq(&shown(&live, query).await);
}

#[tokio::test]
async fn all_files_in_order() {
    check(
        "",
        expect![[r#"
            line 0
            line 1
            line 2
            line 3
            line 4
            line 5
            line 6
            line 7
            line 8
            line 9
        "#]],
    )
    .await;
}

#[tokio::test]
async fn the_tail_spans_files() {
    check(
        "tailLines=5",
        expect![[r#"
            line 5
            line 6
            line 7
            line 8
            line 9
        "#]],
    )
    .await;
    check(
        "tailLines=3&timestamps=true",
        expect![[r#"
            2026-11-21T07:59:07.000000001Z line 7
            2026-11-21T07:59:08.000000001Z line 8
            2026-11-21T07:59:09.000000001Z line 9
        "#]],
    )
    .await;
    check("tailLines=0", expect![[r#""#]]).await;
    let (_folder, live) = files();
    assert_eq!(shown(&live, "tailLines=500").await.lines().count(), 10);
}

#[tokio::test]
async fn since_and_limit() {
    check(
        "sinceSeconds=52",
        expect![[r#"
            line 8
            line 9
        "#]],
    )
    .await;
    check(
        "sinceTime=2026-11-21T07%3A59%3A09Z",
        expect![[r#"
            line 9
        "#]],
    )
    .await;
    check(
        "limitBytes=10",
        expect![[r#"
            line 0
            lin"#]],
    )
    .await;
    check(
        "tailLines=1&limitBytes=500&follow=true",
        expect![[r#"
            line 9
        "#]],
    )
    .await;
}

#[tokio::test]
async fn bad_queries_are_explained() {
    check("tailLines=-1", expect!["400 tailLines must be a whole number, not -1"]).await;
    check(
        "sinceTime=yesterday",
        expect!["400 sinceTime must be a time like 2026-11-21T08:00:00Z, not yesterday"],
    )
    .await;
    check("follow=perhaps", expect!["400 follow must be true or false, not perhaps"]).await;
}

#[tokio::test]
async fn parts_of_a_line_are_joined_and_rubbish_is_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("0.log");
    let text = [
        line(1, "stdout", "P", "one "),
        line(1, "stdout", "F", "two"),
        "what is this\n".to_owned(),
        line(2, "stderr", "F", ""),
        line(3, "stderr", "F", "with  spaces "),
    ];
    std::fs::write(&live, text.concat()).expect("written");
    expect![[r#"
        2026-11-21T07:59:01.000000001Z one two
        2026-11-21T07:59:02.000000001Z 
        2026-11-21T07:59:03.000000001Z with  spaces 
    "#]]
    .assert_eq(&shown(&live, "timestamps=1").await);
}

#[tokio::test]
async fn a_log_that_is_not_there_is_empty() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(shown(&folder.path().join("0.log"), "").await, "");
    assert_eq!(shown(&folder.path().join("0.log"), "follow=true").await, "");
}

#[tokio::test]
async fn following_begins_before_the_first_line_and_has_the_last_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("app/0.log");
    // It prints its only line while it ends.
    let path = live.clone();
    let still_runs: StillRuns = Box::new(move || {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, line(1, "stdout", "F", "done")).expect("written");
        std::future::ready(false).boxed()
    });
    let options = Options::parse("follow=true", now()).expect("options");
    let (output, mut pieces) = mpsc::channel(4);
    let reading = tokio::spawn(stream(live, options, still_runs, output));
    let piece = pieces.recv().await.expect("a piece").expect("readable");
    assert_eq!(piece, "done\n");
    assert!(pieces.recv().await.is_none());
    reading.await.expect("no panic");
}

#[tokio::test]
async fn following_survives_a_rotation_and_ends_with_the_container() {
    let (folder, live) = files();
    let running = Arc::new(AtomicBool::new(true));
    let still = running.clone();
    let still_runs: StillRuns = Box::new(move || {
        let runs = still.load(Ordering::SeqCst);
        async move { runs }.boxed()
    });
    let options = Options::parse("follow=true&tailLines=1", now()).expect("options");
    let (output, mut pieces) = mpsc::channel(4);
    let reading = tokio::spawn(stream(live.clone(), options, still_runs, output));
    let next = async |pieces: &mut mpsc::Receiver<Result<Bytes, io::Error>>| {
        let piece = pieces.recv().await.expect("a piece").expect("readable");
        String::from_utf8(piece.to_vec()).expect("text")
    };
    assert_eq!(next(&mut pieces).await, "line 9\n");
    std::fs::rename(&live, folder.path().join("0.log.1")).expect("renamed");
    std::fs::write(&live, line(20, "stdout", "F", "after")).expect("written");
    assert_eq!(next(&mut pieces).await, "after\n");
    running.store(false, Ordering::SeqCst);
    assert!(pieces.recv().await.is_none());
    reading.await.expect("no panic");
}

#[tokio::test]
async fn following_misses_nothing_of_two_rotations_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("0.log");
    let older = [rotated(&live, 1), rotated(&live, 2)];
    let write = |number: u32| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&live)?;
        let text = line(number, "stdout", "F", &format!("line {number}"));
        std::io::Write::write_all(&mut file, text.as_bytes())
    };
    let rotate = || {
        let _ = std::fs::rename(&older[0], &older[1]);
        std::fs::rename(&live, &older[0])
    };
    write(1).expect("written");
    let (output, mut pieces) = mpsc::channel(4);
    let runs = Arc::new(AtomicBool::new(true));
    let running = runs.clone();
    let still_runs: StillRuns = Box::new(move || {
        let runs = running.load(Ordering::SeqCst);
        async move { runs }.boxed()
    });
    let options = Options::parse("follow=true", now()).expect("options");
    let reading = tokio::spawn(stream(live.clone(), options, still_runs, output));
    let first = pieces.recv().await.expect("it goes on").expect("readable");
    let mut text = first.to_vec();
    // All of it between two looks.
    write(2).expect("written");
    rotate().expect("moved");
    write(3).expect("written");
    rotate().expect("moved");
    write(4).expect("written");
    runs.store(false, Ordering::SeqCst);
    while let Some(piece) = pieces.recv().await {
        text.extend_from_slice(&piece.expect("readable"));
    }
    reading.await.expect("no panic");
    let text = String::from_utf8(text).expect("text");
    assert_eq!(text, "line 1\nline 2\nline 3\nline 4\n");
}

/// A worker that somebody has taken over may put into its Pods' folders what it likes.
#[tokio::test]
async fn a_link_leads_to_no_other_pods_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for below in ["ours/app", "theirs/app"] {
        std::fs::create_dir_all(path(below)).expect("made");
    }
    std::fs::write(path("theirs/app/0.log"), line(0, "stdout", "F", "secret")).expect("written");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, path(name)).expect("a link");
    };
    link("../../theirs/app/0.log", "ours/app/0.log");
    link("../theirs/app", "ours/side");
    for name in ["ours/app/0.log", "ours/side/0.log"] {
        assert!(open_one(&path(name)).await.is_err(), "{name}");
    }
    assert!(open_one(&path("ours/app")).await.is_ok_and(|found| found.is_none()), "a folder");
    assert!(open_one(&path("theirs/app/0.log")).await.is_ok_and(|found| found.is_some()));
}
