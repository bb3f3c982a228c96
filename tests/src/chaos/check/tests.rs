//! Histories as text, good ones and ones broken by hand; each checker must catch the latter.
//!
//! A line is `client invoke-return op → outcome`, with a `c` before it if it is about the counter, or
//! `wN …` for what follower N saw.

use expect_test::{Expect, expect};

use super::check;
use crate::chaos::history::*;

/// Values that carry their revision are enough for tests: `a@7` is value a at revision 7.
fn item(key: &str, text: &str) -> Item {
    let (value, revision) = text.split_once('@').expect("VALUE@REVISION");
    let revision = revision.parse().expect("a number");
    Item { key: key.to_owned(), revision, value: value.to_owned() }
}

fn outcome(words: &[&str], key: &str) -> Outcome {
    match words {
        ["at", revision] => Outcome::Written { revision: revision.parse().expect("a number") },
        ["gone"] => Outcome::Deleted,
        ["none"] => Outcome::Found { item: None },
        ["found", text] => Outcome::Found { item: Some(item(key, text)) },
        ["listed", revision, items @ ..] => {
            let items = items.iter().map(|text| {
                let (key, text) = text.split_once('=').expect("KEY=VALUE@REVISION");
                item(key, text)
            });
            let revision = revision.parse().expect("a number");
            Outcome::Listed { revision, items: items.collect() }
        }
        ["exists"] => Outcome::Refused(Refusal::Exists),
        ["conflict"] => Outcome::Refused(Refusal::Conflict),
        ["not-found"] => Outcome::Refused(Refusal::NotFound),
        ["503"] => Outcome::Refused(Refusal::Unserved("503".to_owned())),
        ["unknown"] => Outcome::Unknown { why: "timeout".to_owned() },
        other => panic!("{other:?}"),
    }
}

fn call(line: &str) -> Call {
    let (asked, answered) = line.split_once(" → ").expect("an outcome");
    let words: Vec<&str> = asked.split_whitespace().collect();
    let [client, times, op @ ..] = &words[..] else { panic!("{line}") };
    let (invoke, back) = times.split_once('-').expect("FROM-TO");
    let key = op.get(1).copied().unwrap_or_default().to_owned();
    let op = match op {
        ["create", _, value] => Op::Create { key: key.clone(), value: (*value).to_owned() },
        ["update", _, base, value] => {
            let base = item(&key, base);
            let (base, old) = (base.revision, base.value);
            Op::Update { key: key.clone(), base, old, value: (*value).to_owned() }
        }
        ["delete", _] => Op::Delete { key: key.clone(), base: None },
        ["delete", _, base] => {
            let base = item(&key, base);
            Op::Delete { key: key.clone(), base: Some((base.revision, base.value)) }
        }
        ["get", _] => Op::Get { key: key.clone() },
        ["list", ..] => Op::List { prefix: key.clone() },
        other => panic!("{other:?}"),
    };
    let words: Vec<&str> = answered.split_whitespace().collect();
    let number = |text: &str| text.parse().expect("a number");
    let outcome = outcome(&words, &key);
    let client = client.parse().expect("a number");
    Call { client, member: 0, invoke_us: number(invoke), return_us: number(back), op, outcome }
}

fn watch(line: &str, at_us: u64) -> WatchLine {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| text.parse().expect("a number");
    let saw = match &words[1..] {
        ["restart", revision, items @ ..] => {
            let items = items.iter().map(|text| {
                let (key, text) = text.split_once('=').expect("KEY=VALUE@REVISION");
                item(key, text)
            });
            Saw::Restart { revision: number(revision), items: items.collect() }
        }
        ["open", after] => Saw::Open { after: number(after) },
        ["bookmark", revision] => Saw::Bookmark { revision: number(revision) },
        [how @ ("added" | "modified"), key, text] => {
            let item = item(key, text);
            let (revision, value, created) = (item.revision, Some(item.value), *how == "added");
            Saw::Event { key: item.key, revision, value, created }
        }
        ["deleted", key, revision] => {
            let (key, revision) = ((*key).to_owned(), number(revision));
            Saw::Event { key, revision, value: None, created: false }
        }
        ["end"] => Saw::End { why: "closed".to_owned() },
        other => panic!("{other:?}"),
    };
    let follower = number(&words[0][1..]);
    let follower = u32::try_from(follower).expect("small");
    WatchLine { follower, member: 0, at_us, saw }
}

/// Watch lines are seen a long time after all calls, so that they prove nothing about them.
fn history(text: &str) -> History {
    let mut history = History::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('w') {
            history.watches.push(watch(line, 1_000_000));
        } else if let Some(line) = line.strip_prefix('c') {
            history.counts.push(call(line));
        } else {
            history.calls.push(call(line));
        }
    }
    history
}

#[track_caller]
fn verdict(text: &str, expected: Expect) {
    let findings = check(&history(text));
    let mut rules: Vec<String> =
        findings.violations.iter().map(|violation| violation.rule.to_owned()).collect();
    rules.sort();
    if findings.lost > 0 {
        rules.push(format!("lost: {}", findings.lost));
    }
    assert!(findings.undecided.is_empty());
    expected.assert_eq(&rules.join(", "));
}

#[test]
fn an_ordinary_history_is_clean() {
    verdict(
        "1 10-20 create k a → at 3
         2 12-30 create k b → exists
         2 31-40 get k → found a@3
         1 41-50 update k a@3 c → at 5
         2 42-60 get k → found a@3
         3 43-60 list k → listed 5 k=c@5
         2 61-70 update k a@3 d → conflict
         2 71-80 delete k c@5 → gone
         1 81-90 get k → none
         3 81-95 delete k → not-found
         w1 restart 0
         w1 added k a@3
         w1 modified k c@5
         w1 end
         w1 open 5
         w1 deleted k 8
         w1 bookmark 9",
        expect![""],
    );
}

#[test]
fn unknown_outcomes_may_or_may_not_have_happened() {
    verdict(
        "1 10-20 create k a → at 3
         2 25-90 update k a@3 b → unknown
         3 26-95 update k a@3 c → unknown
         1 91-99 get k → found c@4
         1 100-110 delete k c@4 → unknown
         1 111-120 get k → none",
        expect![""],
    );
    // It happened late, which is as good.
    verdict(
        "1 10-20 create k a → at 3
         2 25-30 update k a@3 b → unknown
         1 31-40 get k → found a@3
         1 41-50 get k → found b@6",
        expect![""],
    );
}

#[test]
fn a_lost_write_is_found() {
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 create other x → at 4
         2 50-60 get k → none
         2 61-70 list  → listed 6 other=x@4",
        expect!["linearizable, stale-read, state-at-revision, lost: 1"],
    );
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 update k a@3 b → at 4
         2 61-70 list k → listed 6 k=a@3",
        expect!["linearizable, state-at-revision, lost: 1"],
    );
}

#[test]
fn a_stale_read_is_found() {
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 update k a@3 b → at 5
         2 50-60 get k → found a@3",
        expect!["linearizable, stale-read"],
    );
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 create other b → at 5
         2 50-60 list k → listed 3 k=a@3",
        expect!["stale-list"],
    );
}

#[test]
fn a_read_ahead_of_its_time_is_found() {
    verdict(
        "2 1-5 get k → found a@3
         1 10-20 create k a → at 3",
        expect!["linearizable, read-of-the-future, writes-in-real-time"],
    );
}

#[test]
fn revisions_out_of_real_time_are_found() {
    verdict(
        "1 10-20 create k a → at 9
         1 30-40 create other b → at 5",
        expect!["writes-in-real-time, writes-in-real-time"],
    );
    verdict(
        "1 10-20 create k a → at 5
         2 10-20 create other b → at 5",
        expect!["one-write-a-revision, own-revision"],
    );
}

#[test]
fn a_swap_of_something_else_is_found() {
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 update k a@3 b → at 4
         2 50-60 update k a@3 c → at 5",
        expect!["linearizable, swap-of-base"],
    );
    verdict(
        "1 10-20 create k a → at 3
         2 30-40 create k b → at 4",
        expect!["create-of-absent, linearizable"],
    );
    verdict(
        "1 10-20 create k a → at 3
         2 30-40 delete k a@3 → gone
         3 30-40 delete k a@3 → gone",
        expect!["linearizable"],
    );
}

#[test]
fn what_was_refused_or_done_twice_is_found() {
    verdict(
        "1 10-20 create k a → 503
         1 30-40 get k → found a@3",
        expect!["linearizable, refused-is-not-done"],
    );
    verdict(
        "1 10-20 create k a → at 3
         1 30-40 delete k → gone
         1 50-60 get k → found a@7",
        expect!["done-once, linearizable"],
    );
    verdict("1 30-40 get k → found z@3", expect!["linearizable, no-value-from-nowhere"]);
}

#[test]
fn a_watch_that_saw_nothing_promised_nothing() {
    verdict(
        "1 10-20 create k a → at 3
         w1 open 5
         w1 end
         w1 open 1
         w1 added k a@3",
        expect![""],
    );
}

#[test]
fn watches_that_lie_are_found() {
    let writes = "1 10-20 create k a → at 3
         1 30-40 update k a@3 b → at 4
         1 50-60 create l c → at 6
         ";
    let with = |watch: &str| format!("{writes}{watch}");
    verdict(&with("w1 restart 0\n w1 added k a@3\n w1 added l c@6"), expect!["watch-complete"]);
    verdict(
        &with("w1 open 3\n w1 modified k b@4\n w1 end\n w1 open 4\n w1 bookmark 7"),
        expect!["watch-complete"],
    );
    verdict(
        &with("w1 open 0\n w1 modified k b@4\n w1 added k a@3\n w1 added l c@6"),
        expect!["watch-ordered"],
    );
    verdict(
        &with("w1 open 3\n w1 modified k b@4\n w1 end\n w1 open 4\n w1 modified k b@4"),
        expect!["watch-unique"],
    );
    verdict(&with("w1 open 4\n w1 bookmark 6\n w1 added l c@6"), expect!["watch-ordered"]);
    verdict(
        &with("w1 open 4\n w1 bookmark 6\n w1 bookmark 5"),
        expect!["watch-bookmark, watch-complete"],
    );
    verdict(&with("w1 restart 3 k=a@3\n w1 added k b@4\n w1 added l c@6"), expect!["watch-atomic"]);
    verdict(
        &with("w1 restart 0\n w1 added k a@3\n w1 modified k z@4"),
        expect!["one-write-a-revision"],
    );
}

/// Many calls at once: the search must not take for ever, and one wrong answer among them is found.
#[test]
fn the_search_copes_with_many_calls_at_once() {
    let mut text = String::new();
    for number in 0..12 {
        text += &format!("{number} 10-900 create k v{number} → unknown\n");
    }
    for number in 0..40 {
        let (from, to) = (20 + number * 10, 28 + number * 10);
        text += &format!("20 {from}-{to} get k → none\n");
    }
    verdict(&text, expect![""]);
    text += "21 950-960 get k → found v3@7\n 21 970-980 get k → found v4@9\n";
    verdict(&text, expect!["linearizable"]);
}

#[test]
fn increments_add_up_whatever_became_of_the_unknown_ones() {
    let begun = "c1 10-20 update counter 0@3 1 → at 5
                 c2 11-21 update counter 0@3 1 → conflict
                 c2 22-30 update counter 1@5 2 → unknown\n";
    let ended = |last: &str| format!("{begun}c1 31-40 get counter → {last}");
    verdict(&ended("found 1@5"), expect![""]);
    verdict(&ended("found 2@7"), expect![""]);
    verdict(&ended("found 0@3"), expect!["counts-add-up"]);
    verdict(&ended("found 3@9"), expect!["counts-add-up"]);
    verdict(&ended("none"), expect!["counts-add-up"]);
    verdict(&ended("503"), expect![""]);
}

/// The bug that unique values hide (DECISIONS.md, D154): the same bytes of another were taken for
/// one's own.
#[test]
fn two_that_count_from_one_revision_have_not_both_counted() {
    verdict(
        "c1 10-20 update counter 0@3 1 → at 5
         c2 11-21 update counter 0@3 1 → at 5
         c1 31-40 get counter → found 1@5",
        expect!["counted-once, counts-add-up"],
    );
}
