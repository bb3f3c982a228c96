//! Record format, rate and files.

use super::*;

/// Feeds the writes of one stream and shows the records without their time.
fn check_records(writes: &[&[u8]], expected: &[&str]) {
    let at: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
    let (mut out, mut pending) = (Vec::new(), Vec::new());
    for bytes in writes {
        records(&mut out, &mut pending, at, Stream::Stdout, bytes);
    }
    if !pending.is_empty() {
        record(&mut out, at, Stream::Stdout, false, &pending);
    }
    let text = String::from_utf8(out).expect("text");
    let records: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("2026-01-02T03:04:05.000000000Z stdout ")
                .expect("the head of a record")
        })
        .collect();
    assert_eq!(records, expected);
}

#[test]
fn a_write_becomes_whole_lines() {
    check_records(&[b"one\ntwo\n"], &["F one", "F two"]);
    check_records(&[b"on", b"e\n", b"\n", b"two"], &["F one", "F ", "P two"]);
}

#[test]
fn a_line_without_end_becomes_parts() {
    let long = vec![b'x'; LINE_BYTES_MAX + 3];
    let full = format!("P {}", "x".repeat(LINE_BYTES_MAX));
    check_records(&[&long, b"\nnext\n"], &[&full, "F xxx", "F next"]);
    // Exactly as long as allowed is one whole line, even if its end comes later.
    let exact = vec![b'x'; LINE_BYTES_MAX];
    let whole = format!("F {}", "x".repeat(LINE_BYTES_MAX));
    check_records(&[&exact, b"\n"], &[&whole]);
    check_records(&[&exact[1..], b"x", b"\n"], &[&whole]);
}

#[test]
fn the_bucket_allows_a_burst_and_then_the_rate() {
    let start = Instant::now();
    let mut bucket = Bucket::new(start);
    assert!(bucket.take(start, BURST_BYTES));
    assert!(!bucket.take(start, 1));
    // Too soon for the whole second's worth, and a refusal takes nothing.
    assert!(!bucket.take(start + Duration::from_millis(999), RATE_BYTES));
    assert!(bucket.take(start + Duration::from_millis(1000), RATE_BYTES));
    // Long silence gives no more than the burst.
    let later = start + Duration::from_secs(3600);
    assert!(bucket.take(later, BURST_BYTES));
    assert!(!bucket.take(later, 1));
}

#[test]
fn tiny_writes_in_quick_succession_still_gain() {
    let start = Instant::now();
    let mut bucket = Bucket { full_at: start + time_of(BURST_BYTES) };
    let taken = (1..=100_000)
        .filter(|step| bucket.take(start + Duration::from_nanos(500) * *step, 1))
        .count();
    // 50 ms at 1 MiB/s.
    assert!((52_400..=52_500).contains(&taken), "{taken}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("wherry-logs-{name}-{}", std::process::id()));
    fs::remove_dir_all(&folder).ok();
    folder
}

#[test]
fn files_rotate_and_the_oldest_goes() {
    let folder = folder("rotate");
    let path = folder.join("0.log");
    let logs = Logs::start().expect("logs");
    let log = logs.open(path.clone());
    let line = [vec![b'x'; 1022], vec![b'\n']].concat();
    // Straight to the writer thread: the rate limit is tested above.
    for number in 0..4 {
        for _ in 0..(9 << 10) {
            let _ =
                log.0.logs.queued_bytes.fetch_add(line.len() + PIECE_OVERHEAD, Ordering::Relaxed);
            let _ = log.0.logs.queue.send(Command::Piece {
                sink: log.0.clone(),
                stream: Stream::Stdout,
                at: Timestamp::now(),
                dropped: Dropped::default(),
                bytes: line.clone(),
            });
        }
        runtime().block_on(log.close());
        assert!(path.exists(), "round {number}");
    }
    let sizes: Vec<bool> = [path.clone(), rotated(&path, 1), rotated(&path, 2), rotated(&path, 3)]
        .iter()
        .map(|path| fs::metadata(path).is_ok_and(|file| file.len() <= FILE_BYTES_MAX))
        .collect();
    assert_eq!(sizes, [true, true, true, false]);
    assert_eq!(logs.queued_bytes.load(Ordering::Relaxed), 0);
    fs::remove_dir_all(&folder).expect("clean up");
}

#[test]
fn lines_of_several_containers_are_gathered_and_all_arrive_in_order() {
    let root = folder("gathered");
    let logs = Logs::start().expect("a thread");
    let paths = ["a", "b"].map(|name| root.join(name).join("0.log"));
    let opened = paths.clone().map(|path| logs.open(path));
    let outputs = [&opened[0], &opened[1]].map(|log| log.output(Stream::Stdout));
    for number in 0..5_000 {
        for output in &outputs {
            output(format!("line {number}\n").as_bytes());
        }
    }
    for (log, path) in opened.iter().zip(&paths) {
        runtime().block_on(log.close());
        let text = fs::read_to_string(path).expect("it is written");
        assert_eq!(text.lines().count(), 5_000);
        for (number, line) in text.lines().enumerate() {
            assert!(line.ends_with(&format!(" stdout F line {number}")), "{line}");
        }
    }
    fs::remove_dir_all(&root).expect("clean up");
}

#[test]
fn who_prints_nothing_has_no_file() {
    let root = folder("silent");
    let logs = Logs::start().expect("a thread");
    let path = root.join("app/0.log");
    let log = logs.open(path.clone());
    runtime().block_on(log.close());
    assert!(!root.exists());
    log.output(Stream::Stdout)(b"at last");
    runtime().block_on(log.close());
    assert!(path.exists());
    fs::remove_dir_all(&root).expect("clean up");
}

#[test]
fn a_flood_is_cut_off_with_a_note_and_old_starts_are_removed() {
    let folder = folder("flood");
    let logs = Logs::start().expect("logs");
    for restart in 0..3 {
        let log = logs.open(folder.join(format!("{restart}.log")));
        let output = log.output(Stream::Stderr);
        let chunk = b"0123456789abcde\n".repeat(4096);
        for _ in 0..(BURST_BYTES as usize / chunk.len()) + 64 {
            output(&chunk);
        }
        runtime().block_on(log.close());
    }
    assert!(!folder.join("0.log").exists());
    assert!(folder.join("1.log").exists());
    let text = fs::read_to_string(folder.join("2.log")).expect("the newest log");
    let last = text.lines().last().expect("a line");
    assert!(last.contains(" stderr F wherry: dropped "), "{last}");
    fs::remove_dir_all(&folder).expect("clean up");
}

#[test]
fn restart_numbers_are_read_from_file_names() {
    assert_eq!(restart_of("3.log"), Some(3));
    assert_eq!(restart_of("12.log.2"), Some(12));
    assert_eq!(restart_of("x.log"), None);
    assert_eq!(restart_of("3.logs"), None);
}
