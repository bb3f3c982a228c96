//! Whoever follows the requests of a container (`wherry tail`): told of each as it ends, line by
//! line, until one of them goes.
//!
//! The record keeps some requests of each second, and the last of them only. Numbers tell what is
//! missing: what a follower is not told, because it was not kept or has been pushed out while the
//! follower was slow, it is told the number of. Between requests nothing runs.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::sleep,
};

use super::record::Record;
use crate::protocol::{Line, Place, Seen, Since};

/// A busy container is looked at this often: the record has room for more than comes meanwhile.
const GATHER: Duration = Duration::from_millis(100);
/// Requests that were not kept are told by the next that is, or after so long without one.
const QUIET: Duration = Duration::from_secs(1);

/// Follows a record until the reader or the Pod goes, or the writer breaks.
pub async fn follow(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    record: Arc<Record>,
    since: Since,
) {
    let gone = async {
        // Nothing is sent but the end.
        let mut sent = [0; 64];
        while reader.read(&mut sent).await.is_ok_and(|length| length > 0) {}
    };
    tokio::select! {
        () = gone => {}
        told = tell(&mut writer, &record, since) => if let Err(error) = told {
            tracing::debug!(%error, "somebody who followed requests has gone");
        },
    }
}

async fn tell(
    writer: &mut (impl AsyncWrite + Unpin),
    record: &Record,
    since: Since,
) -> std::io::Result<()> {
    let mut number = beginning(record, since);
    writer.write_all(&text(record, number, 0, None)).await?;
    let mut overdue = false;
    loop {
        let mut woken = std::pin::pin!(record.news.notified());
        // Registered before the look, so that no end of a request is missed.
        woken.as_mut().enable();
        let closed = record.is_closed();
        let (fresh, ended) = record.behind(number);
        if !fresh.is_empty() {
            let mut lines = Vec::new();
            for seen in fresh {
                let missed = seen.number - number - 1;
                number = seen.number;
                lines.extend(text(record, number, missed, Some(seen)));
            }
            writer.write_all(&lines).await?;
            overdue = false;
            if !closed {
                sleep(GATHER).await;
            }
        } else if ended > number && (overdue || closed) {
            let missed = ended - number;
            number = ended;
            writer.write_all(&text(record, number, missed, None)).await?;
            overdue = false;
        } else if ended > number {
            overdue = true;
            sleep(QUIET).await;
        } else if closed {
            return Ok(());
        } else {
            woken.await;
        }
    }
}

/// The request behind which a follower begins.
fn beginning(record: &Record, since: Since) -> u64 {
    let (_, ended) = record.behind(u64::MAX);
    match since {
        Since::Now => ended,
        Since::Place(place) if place.record == record.began_ms() => place.number.min(ended),
        Since::First | Since::Place(_) => 0,
    }
}

fn text(record: &Record, number: u64, missed: u64, seen: Option<Seen>) -> Vec<u8> {
    let place = Place { record: record.began_ms(), number };
    let line = Line { place, missed, seen };
    let mut text = serde_json::to_vec(&line).expect("plain fields become JSON");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use http::Request;
    use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream, duplex};
    use wherry_wasi_shim::Steps;

    use super::super::record::Outcome;
    use super::*;

    /// A request to a path has ended.
    fn end(record: &Record, path: &str) {
        let request = Request::get(format!("http://a/{path}")).body(()).expect("a request");
        let begun = record.begin(&request, false);
        record.end(begun, &Steps::default(), Outcome::Left, 1);
    }

    struct Follower {
        lines: tokio::io::Lines<BufReader<DuplexStream>>,
        end: DuplexStream,
        task: tokio::task::JoinHandle<()>,
    }

    fn follower(record: &Arc<Record>, since: Since) -> Follower {
        let (end, reader) = duplex(64);
        let (writer, told) = duplex(1 << 16);
        let task = tokio::spawn(follow(reader, writer, record.clone(), since));
        Follower { lines: BufReader::new(told).lines(), end, task }
    }

    impl Follower {
        async fn next(&mut self) -> Option<Line> {
            let line = self.lines.next_line().await.expect("it can be read")?;
            Some(serde_json::from_str(&line).expect("a line"))
        }

        /// As `missed path`.
        async fn shown(&mut self) -> Option<String> {
            let Line { missed, seen, .. } = self.next().await?;
            Some(format!("{missed} {}", seen.map_or("-".to_owned(), |seen| seen.path)))
        }
    }

    #[tokio::test]
    async fn a_follower_is_told_what_ends_from_where_it_wants_on() {
        let record = Arc::new(Record::new(Arc::default()));
        end(&record, "before");
        let mut now = follower(&record, Since::Now);
        assert_eq!(now.shown().await.as_deref(), Some("0 -"));
        end(&record, "after");
        let line = now.next().await.expect("it goes on");
        assert_eq!(line.seen.map(|seen| seen.path).as_deref(), Some("/after"));
        end(&record, "later");

        let mut first = follower(&record, Since::First);
        let mut shown = Vec::new();
        for _ in 0..4 {
            shown.extend(first.shown().await);
        }
        assert_eq!(shown, ["0 -", "0 /before", "0 /after", "0 /later"]);
        let mut again = follower(&record, Since::Place(line.place));
        assert_eq!(again.shown().await.as_deref(), Some("0 -"));
        assert_eq!(again.shown().await.as_deref(), Some("0 /later"));
        // Of another worker nothing is known here, so all is new.
        let elsewhere = Place { record: line.place.record - 1, ..line.place };
        let mut other = follower(&record, Since::Place(elsewhere));
        assert_eq!(other.shown().await.as_deref(), Some("0 -"));
        assert_eq!(other.shown().await.as_deref(), Some("0 /before"));
    }

    #[tokio::test]
    async fn what_is_not_told_is_counted() {
        let record = Arc::new(Record::new(Arc::default()));
        let mut follower = follower(&record, Since::Now);
        assert_eq!(follower.shown().await.as_deref(), Some("0 -"));
        // Far more than are kept of one second, or of two.
        (0..500).for_each(|_| end(&record, "flood"));
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < 500 {
            let line = follower.next().await.expect("it goes on");
            seen += u64::from(line.seen.is_some());
            missed += line.missed;
        }
        assert_eq!(seen + missed, 500);
        assert!((20..=60).contains(&seen), "{seen}");
    }

    #[tokio::test]
    async fn it_ends_with_the_follower_or_the_pod() {
        let record = Arc::new(Record::new(Arc::default()));
        let Follower { end: leaves, task, lines } = follower(&record, Since::Now);
        drop(leaves);
        task.await.expect("it has ended");
        drop(lines);

        let mut last = follower(&record, Since::Now);
        assert_eq!(last.shown().await.as_deref(), Some("0 -"));
        end(&record, "last");
        record.close();
        assert_eq!(last.shown().await.as_deref(), Some("0 /last"));
        assert_eq!(last.shown().await, None);
        last.task.await.expect("it has ended");
        let mut late = follower(&record, Since::First);
        assert_eq!(late.shown().await.as_deref(), Some("0 -"));
        assert_eq!(late.shown().await.as_deref(), Some("0 /last"));
        assert_eq!(late.shown().await, None);
    }
}
