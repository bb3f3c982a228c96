//! Streams into Pods: commands, attached clients, ports.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use wherry_resources::channels::{self, Outcome};

use super::{guests::serve_hello, harness::*};
use crate::protocol::{self, Answer, Code, Container, ExitReason, Form, Open, Streams, ToWorker};

/// A p1 module that copies its input to its output until the input ends, then exits with 7.
const CAT: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read"
        (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 64))
        (loop $more
            (i32.store (i32.const 4) (i32.const 1024))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (i32.eqz (i32.load (i32.const 8))) (then (call $exit (i32.const 7))))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br $more))))"#;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

/// One stream, as the agent opens it.
struct Stream(Framed<UnixStream, LengthDelimitedCodec>);

impl Stream {
    async fn open(fixture: &Fixture, open: Open) -> (Stream, Answer) {
        let stream = UnixStream::connect(fixture.socket()).await.expect("connect");
        let mut frames = Framed::new(stream, protocol::codec());
        let open = protocol::encode(&ToWorker::Open(open)).expect("encode");
        frames.send(open).await.expect("send");
        let answer = frames.next().await.expect("an answer").expect("a frame");
        (Stream(frames), protocol::decode(&answer).expect("decode"))
    }

    async fn exec(fixture: &Fixture, command: &[&str], streams: Streams) -> Stream {
        let (uid, container) = ("p".to_owned(), "main".to_owned());
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let open = Open::Exec { uid, container, command, streams, toolbox: toolbox(fixture) };
        let (stream, answer) = Stream::open(fixture, open).await;
        assert_eq!(answer, Answer::Open);
        stream
    }

    async fn say(&mut self, channel: u8, bytes: &[u8]) {
        let frame = Bytes::from([&[channel], bytes].concat());
        self.0.send(frame).await.expect("the worker listens");
    }

    /// All that comes until the end: output, errors, how it ended.
    async fn rest(&mut self) -> (String, String, Option<Outcome>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(Ok(frame)) = self.0.next().await {
            let (channel, bytes) = frame.split_first().expect("a channel");
            match *channel {
                channels::STDOUT => out.extend_from_slice(bytes),
                channels::STDERR => err.extend_from_slice(bytes),
                _ => return (text(&out), text(&err), Outcome::decode(bytes)),
            }
        }
        (text(&out), text(&err), None)
    }

    /// What comes until it ends with `end`.
    async fn until(&mut self, end: &str) -> String {
        let mut out = String::new();
        while !out.ends_with(end) {
            let frame = self.0.next().await.expect("more").expect("a frame");
            out.push_str(&text(&frame[1..]));
        }
        out
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A toolbox whose only tool is `cat`.
fn toolbox(fixture: &Fixture) -> Option<Code> {
    Some(Code { module: fixture.module(&wat(CAT)), form: Form::Module })
}

/// A Pod `p` whose container runs until it is told to end.
async fn start(fixture: &Fixture, agent: &mut Agent, adjust: impl FnOnce(&mut Container)) {
    let module = fixture.module(&probed());
    let mut container = command(&module, 0);
    adjust(&mut container);
    agent.say(pod(fixture, "p", "10.0.0.1", container)).await;
    agent.started("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_the_view_of_a_container() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;

    let mut stream = Stream::exec(&fixture, &["cat"], ALL).await;
    stream.say(channels::STDIN, b"one ").await;
    stream.say(channels::STDIN, b"two").await;
    stream.say(channels::CLOSE, &[channels::STDIN]).await;
    assert_eq!(stream.rest().await, ("one two".into(), String::new(), Some(Outcome::Code(7))));

    // An export of the container's own image comes before the toolbox.
    let mut stream = Stream::exec(&fixture, &["sick"], ALL).await;
    assert_eq!(stream.rest().await, ("not well".into(), String::new(), Some(Outcome::Code(1))));

    // Without input there is nothing to read.
    let streams = Streams { stdin: false, ..ALL };
    let mut stream = Stream::exec(&fixture, &["cat"], streams).await;
    assert_eq!(stream.rest().await.2, Some(Outcome::Code(7)));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_client_and_with_its_container() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    // They wait for input that never comes; the places come back when their clients go.
    let (uid, container) = ("p".to_owned(), "main".to_owned());
    let (command, toolbox) = (vec!["cat".to_owned()], toolbox(&fixture));
    let open = Open::Exec { uid, container, command, streams: ALL, toolbox };
    for _ in 0..40 {
        while let (_, Answer::Busy(_)) = Stream::open(&fixture, open.clone()).await {}
    }
    let mut stream = loop {
        if let (stream, Answer::Open) = Stream::open(&fixture, open.clone()).await {
            break stream;
        }
    };
    agent.say(ToWorker::RemovePod { uid: "p".to_owned() }).await;
    assert_eq!(stream.rest().await.2, Some(Outcome::Code(137)));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    let (uid, container) = ("p".to_owned(), "other".to_owned());
    let (_, answer) = Stream::open(&fixture, Open::Attach { uid, container, streams: ALL }).await;
    assert_eq!(answer, Answer::NotFound("container not found (\"other\")".to_owned()));
    let (_, answer) = Stream::open(&fixture, Open::Port { uid: "p".to_owned(), port: 81 }).await;
    let Answer::NotFound(why) = answer else { panic!("{answer:?}") };
    assert!(why.ends_with("dial tcp 10.0.0.1:81: connect: connection refused"), "{why}");
    let (uid, container) = ("p".to_owned(), "main".to_owned());
    let command = vec!["no-such".to_owned()];
    let open = Open::Exec { uid, container, command, streams: ALL, toolbox: None };
    let (mut stream, answer) = Stream::open(&fixture, open).await;
    assert_eq!(answer, Answer::Open);
    let why = "exec: \"no-such\": executable file not found in $PATH";
    assert_eq!(stream.rest().await.2, Some(Outcome::Failed(why.to_owned())));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_edits_echoes_and_interrupts() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    let streams = Streams { stderr: false, tty: true, ..ALL };
    let mut stream = Stream::exec(&fixture, &["cat"], streams).await;
    stream.say(channels::STDIN, b"hx\x7fi\r").await;
    let screen = stream.until("\r\nhi\r\n").await;
    assert_eq!(screen, "hx\u{8} \u{8}i\r\nhi\r\n");
    // A program of the toolbox is given what others are ended by.
    stream.say(channels::STDIN, b"\x03").await;
    assert_eq!(stream.until("\x03").await, "^C\r\n\x03");
    stream.say(channels::STDIN, b"\x04").await;
    assert_eq!(stream.rest().await.2, Some(Outcome::Code(7)));
    let mut stream = Stream::exec(&fixture, &["_start"], streams).await;
    stream.say(channels::STDIN, b"\x03").await;
    assert_eq!(stream.rest().await, ("^C\r\n".into(), String::new(), Some(Outcome::Code(130))));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_reads_nothing_is_interrupted_all_the_same() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    let (uid, container) = ("p".to_owned(), "main".to_owned());
    let toolbox = Some(Code { module: fixture.module(&spinning()), form: Form::Module });
    let streams = Streams { stderr: false, tty: true, ..ALL };
    let open = Open::Exec { uid, container, command: vec!["awk".to_owned()], streams, toolbox };
    let (mut stream, _) = Stream::open(&fixture, open).await;
    // More than it has room for.
    for _ in 0..6 {
        stream.say(channels::STDIN, b"\x03").await;
    }
    assert_eq!(stream.rest().await.2, Some(Outcome::Code(130)));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_toolbox_without_input_hears_by_it_that_it_shall_end() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    // It reads until its input ends.
    let mut container = command(&fixture.module(&wat(CAT)), 0);
    container.image_id = format!("{}@sha256:00", protocol::TOOLBOX_REPOSITORY);
    agent.say(pod(&fixture, "p", "10.0.0.1", container)).await;
    agent.started("p").await;
    let (uid, container) = ("p".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 60_000 }).await;
    assert_eq!(agent.exited("p", 0).await.code, 7);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_the_containers_program() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    let mut stream = Stream::exec(&fixture, &["kill", "7"], ALL).await;
    let complaint = "kill: can't kill pid 7: No such process\n".to_owned();
    assert_eq!(stream.rest().await, (String::new(), complaint, Some(Outcome::Code(1))));
    let mut stream = Stream::exec(&fixture, &["sh", "-c", "kill -9 1"], ALL).await;
    assert_eq!(stream.rest().await, (String::new(), String::new(), Some(Outcome::Code(0))));
    let exit = agent.exited("p", 0).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Error));

    // One that cannot hear is terminated, one that can ends as it likes.
    let mut container = command(&fixture.module(&probed()), 1);
    for code in [143, 7] {
        let restart = container.restart;
        agent.say(pod(&fixture, "p", "10.0.0.1", container)).await;
        agent.started("p").await;
        let mut stream = Stream::exec(&fixture, &["kill", "1"], ALL).await;
        assert_eq!(stream.rest().await.2, Some(Outcome::Code(0)));
        let exit = agent.exited("p", restart).await;
        assert_eq!((exit.code, exit.reason), (code, ExitReason::Error));
        container = command(&fixture.module(&wat(CAT)), restart + 1);
        container.image_id = format!("{}@sha256:00", protocol::TOOLBOX_REPOSITORY);
    }
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_waits_for_a_client_that_does_not_read() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    start(&fixture, &mut agent, |_| {}).await;
    let stream = Stream::exec(&fixture, &["cat"], ALL).await;
    let (mut sink, mut source) = stream.0.split();
    let total = 8 << 20;
    let flood = tokio::spawn(async move {
        let mut piece = vec![b'x'; 32 << 10];
        piece[0] = channels::STDIN;
        let piece = Bytes::from(piece);
        for _ in 0..total / ((32 << 10) - 1) {
            sink.send(piece.clone()).await.expect("the worker listens");
        }
        let end = Bytes::from_static(&[channels::CLOSE, channels::STDIN]);
        sink.send(end).await.expect("the worker listens");
    });
    // It cannot be done: eight MiB fit in no buffer on the way.
    tokio::task::yield_now().await;
    assert!(!flood.is_finished());
    let mut got = 0;
    while let Some(Ok(frame)) = source.next().await {
        match frame[0] {
            channels::STDOUT => got += frame.len() - 1,
            _ => break,
        }
    }
    assert_eq!(got, total / ((32 << 10) - 1) * ((32 << 10) - 1));
    flood.await.expect("all was taken");
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_share_a_containers_input_and_output() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&wat(CAT));
    let container = Container { stdin: true, ..command(&module, 0) };
    agent.say(pod(&fixture, "p", "10.0.0.1", container)).await;
    agent.started("p").await;
    let attach = || async {
        let (uid, container) = ("p".to_owned(), "main".to_owned());
        let open = Open::Attach { uid, container, streams: ALL };
        let (stream, answer) = Stream::open(&fixture, open).await;
        assert_eq!(answer, Answer::Open);
        stream
    };
    let mut first = attach().await;
    first.say(channels::STDIN, b"a").await;
    assert_eq!(first.until("a").await, "a");
    drop(first);
    // The input stays open without `stdinOnce`.
    let mut second = attach().await;
    second.say(channels::STDIN, b"b").await;
    assert_eq!(second.until("b").await, "b");
    agent.say(ToWorker::RemovePod { uid: "p".to_owned() }).await;
    assert_eq!(second.rest().await.2, Some(Outcome::Code(0)));
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_for_one_ends_with_the_first() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&wat(CAT));
    let container = Container { stdin: true, stdin_once: true, ..command(&module, 0) };
    agent.say(pod(&fixture, "p", "10.0.0.1", container)).await;
    agent.started("p").await;
    let (uid, container) = ("p".to_owned(), "main".to_owned());
    let open = Open::Attach { uid, container, streams: ALL };
    let (mut stream, _) = Stream::open(&fixture, open).await;
    stream.say(channels::STDIN, b"a").await;
    assert_eq!(stream.until("a").await, "a");
    drop(stream);
    assert_eq!(agent.exited("p", 0).await.code, 7);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_lead_to_the_guests_behind_them() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    if !serve_hello(&fixture, &mut agent, ("p", "10.0.0.1")).await {
        return;
    }
    let (stream, answer) =
        Stream::open(&fixture, Open::Port { uid: "p".to_owned(), port: 80 }).await;
    assert_eq!(answer, Answer::Open);
    let mut stream = stream.0.into_inner();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: localhost:8080\r\n\r\n").await.expect("sent");
    // A client that has said all it has to say is still answered.
    stream.shutdown().await.expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("Hello from p"),
        "{answer}"
    );
    fixture.stop(agent).await;
}
