//! Names and dates as text; whole rounds against folders and memory, and against a real S3 server
//! where one runs (`WHERRY_S3`, see the Makefile).

use object_store::PutPayload;
use object_store::memory::InMemory;
use wherry_store::{Config, Engine, FOUNDER, Precondition};

use super::*;

const CLUSTER: u128 = 0x5f3a_90c1_0000_0000_0000_0000_0000_0007;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

#[test]
fn names_are_read_back_and_others_are_left_alone() {
    let made = at("2026-11-21T08:00:05Z");
    let name = name(CLUSTER, made);
    assert_eq!(name, "wherry-5f3a90c1-20261121T080005Z.backup");
    assert_eq!(made_at(CLUSTER, &name), Some(made));
    let others = [
        "wherry-5f3a90c2-20261121T080005Z.backup",
        "wherry-5f3a90c1-20261121T080005Z.backup.part",
        "wherry-5f3a90c1-20261321T080005Z.backup",
        "wherry-5f3a90c1-.backup",
        "notes.txt",
    ];
    assert_eq!(others.map(|name| made_at(CLUSTER, name)), [None; 5]);
}

#[test]
fn the_next_one_is_due_an_interval_after_the_newest() {
    let every = Duration::from_secs(3600);
    let now = at("2026-11-21T08:00:00Z");
    let wait = |newest: Option<&str>| due_in(newest.map(at), every, now).as_secs();
    assert_eq!(wait(None), 0);
    assert_eq!(wait(Some("2026-11-21T05:00:00Z")), 0);
    assert_eq!(wait(Some("2026-11-21T07:00:00Z")), 0);
    assert_eq!(wait(Some("2026-11-21T07:59:00Z")), 3540);
    assert_eq!(wait(Some("2026-11-21T09:30:00Z")), 3600, "clocks of members differ");
}

#[test]
fn the_oldest_are_too_many() {
    let found = |second| Found {
        made: Timestamp::from_second(second).expect("a time"),
        path: Path::from(second.to_string()),
        bytes: 1,
    };
    let all: Vec<Found> = (0..5).map(found).collect();
    assert_eq!(surplus(&all, 3), &all[..2]);
    assert_eq!(surplus(&all, 5), &[]);
    assert_eq!(surplus(&all, 9), &[]);
}

async fn store() -> Store {
    let config = Config::new(Engine::Memory, FOUNDER, "");
    let store = Store::open(config).await.expect("a store in memory opens");
    for number in 0..200 {
        let value = bytes::Bytes::from(vec![number as u8; 50_000]);
        let put = store.put(format!("key/{number:03}").into(), value, Precondition::Any);
        put.await.expect("nothing stands against it");
    }
    store
}

fn memory(store: Arc<InMemory>, prefix: &str) -> Destination {
    Destination::of(store, Path::from(prefix), "memory:")
}

/// Reads a backup back from where it was put.
async fn check(to: &Destination, path: &Path) -> wherry_store::BackupContent {
    let file = to.store.get(path).await.expect("it is there").bytes().await.expect("it is whole");
    let visit = |_: &wherry_store::BackupObject, _| Ok::<(), BackupError>(());
    wherry_store::read_backup(&*file, None, visit).expect("it is sound")
}

/// Backups up to three, and only three are kept, whatever else lies in the same place.
async fn rounds(to: Destination) {
    let store = store().await;
    let (reports, stop) = (Reports::default(), CancellationToken::new());
    let foreign = to.prefix.clone().join("wherry-00000000-20200101T000000Z.backup");
    to.store.put(&foreign, PutPayload::from_static(b"other")).await.expect("it can be put");
    let hour = Duration::from_secs(3600);
    for hours_ago in [9, 8, 7] {
        let made = Timestamp::now() - jiff::SignedDuration::from_hours(hours_ago);
        let old = to.prefix.clone().join(name(store.cluster_id(), made).as_str());
        to.store.put(&old, PutPayload::from_static(b"old")).await.expect("it can be put");
    }
    let schedule = Schedule { to: to.clone(), every: hour, keep: 3 };
    let wait = round(&store, &schedule, &reports, &stop).await.expect("nothing stands against it");
    assert_eq!(wait, hour);
    let found = list(&to, store.cluster_id()).await.expect("it can be listed");
    assert_eq!(found.len(), 3, "{found:?}");
    let newest = found.last().expect("there are three");
    let content = check(&to, &newest.path).await;
    assert_eq!(content.head.objects, 200);
    assert_eq!(content.head.cluster_id, store.cluster_id());
    assert!(to.store.head(&foreign).await.is_ok(), "another cluster's is left alone");
    assert!(reports.text().contains("wherry_backup_made_total 1\n"), "{}", reports.text());

    let wait = round(&store, &schedule, &reports, &stop).await.expect("nothing stands against it");
    assert!(wait > hour / 2, "none is due: {wait:?}");
    stop.cancel();
    let often = Schedule { every: Duration::ZERO, ..schedule };
    let stopped = round(&store, &often, &reports, &stop).await;
    assert!(matches!(stopped, Err(RoundError::Stopped)), "{stopped:?}");
    let after = list(&to, store.cluster_id()).await.expect("it can be listed");
    assert_eq!(after, found, "what was given up does not appear");
    store.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn rounds_in_memory() {
    rounds(memory(Arc::new(InMemory::new()), "")).await;
    rounds(memory(Arc::new(InMemory::new()), "clusters/prod")).await;
}

#[tokio::test]
async fn rounds_in_a_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("file://{}/backups", folder.path().display());
    rounds(Destination::parse(&url, []).expect("the folder can be made")).await;
}

/// Against a server that speaks S3, started by `make test-s3`.
#[tokio::test]
async fn rounds_in_a_bucket() {
    let Ok(endpoint) = std::env::var("WHERRY_S3") else {
        eprintln!("left out: runs against an S3 server with `make test-s3`");
        return;
    };
    let environment = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let to = Destination::parse("s3://wherry/clusters/prod", environment.clone());
    rounds(to.expect("the variables are complete")).await;

    // Not without being allowed to, since credentials and data would be readable on the way.
    let strict = environment.into_iter().filter(|(name, _)| name != "AWS_ALLOW_HTTP");
    let to = Destination::parse("s3://wherry/clusters/prod", strict);
    let refused = list(&to.expect("the variables are complete"), 7).await;
    assert!(refused.is_err(), "plain HTTP is refused");
}

#[tokio::test]
async fn what_is_empty_is_not_kept() {
    let store = Store::open(Config::new(Engine::Memory, FOUNDER, "")).await;
    let store = store.expect("a store in memory opens");
    let to = memory(Arc::new(InMemory::new()), "");
    let schedule = Schedule { to: to.clone(), every: Duration::from_secs(3600), keep: 3 };
    let (reports, stop) = (Reports::default(), CancellationToken::new());
    let wait = round(&store, &schedule, &reports, &stop).await.expect("nothing stands against it");
    assert_eq!(wait, FOUNDED_WAIT);
    let put = store.put("key".into(), "value".into(), Precondition::Any);
    put.await.expect("nothing stands against it");
    let wait = round(&store, &schedule, &reports, &stop).await.expect("nothing stands against it");
    assert_eq!(wait, schedule.every);
    assert_eq!(list(&to, store.cluster_id()).await.expect("it can be listed").len(), 1);
    store.shutdown().await.expect("it stops");
}

fn count(reports: &Reports, name: &str) -> u64 {
    let text = reports.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn a_failure_is_counted_and_tried_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gone = folder.path().join("gone");
    let url = format!("file://{}", gone.display());
    let to = Destination::parse(&url, []).expect("the folder can be made");
    std::fs::remove_dir(&gone).expect("it is empty");
    std::fs::write(&gone, "in the way").expect("it can be written");
    let (reports, stop) = (Arc::<Reports>::default(), CancellationToken::new());
    let every = Duration::from_millis(1);
    let schedule = Schedule { to, every, keep: 1 };
    let store = store().await;
    let running = tokio::spawn(run(store.clone(), schedule, reports.clone(), stop.clone()));
    let failed_twice = async {
        while count(&reports, "wherry_backup_failures_total") < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let failed_twice = tokio::time::timeout(Duration::from_secs(120), failed_twice).await;
    failed_twice.expect("it fails and tries again");
    std::fs::remove_file(&gone).expect("it is there");
    std::fs::create_dir(&gone).expect("it can be made");
    let made = async {
        while count(&reports, "wherry_backup_made_total") < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let made = tokio::time::timeout(Duration::from_secs(120), made).await;
    made.expect("it succeeds once the folder is back");
    stop.cancel();
    running.await.expect("it does not panic");
    store.shutdown().await.expect("it stops");
}
