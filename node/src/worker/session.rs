//! A client at a command: its input, its output, how it ended (`exec` and `attach`).
//!
//! ```text
//!   client ── frames ──▶ listen ──▶ Input of the guest        waits when the guest does not read
//!   client ◀── frames ── tell ◀── queue ◀── guest prints      `exec`: the guest waits (`Room`)
//!                                                             `attach`: the client is cut off
//! ```
//!
//! A session is one task over one connection. When the client goes, a command that was run for it
//! is dropped; a container goes on. The outcome travels in the queue behind all that was printed.

use std::{io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::{
    io::Interest,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};
use tokio_util::{
    codec::{FramedRead, FramedWrite, LengthDelimitedCodec},
    sync::CancellationToken,
};
use wherry_resources::channels::{self, Outcome};
use wherry_wasi_shim::{Command, Exit, GuestConfig, Input, InputWriter, Output, Room};

use super::{
    attached::{Io, PIECE_BYTES_MAX, Piece},
    signals::Signal,
    start::{CODE_INTERRUPTED, CODE_KILLED, CODE_TRAP},
    terminal::{INTERRUPT, Terminal, shown},
};
use crate::protocol::Streams;

/// What a command may print ahead of its client.
const AHEAD_BYTES_MAX: usize = 256 << 10;
/// Echoes that wait for the client's screen.
const ECHOES_MAX: usize = 16;
/// What a client may take to close, after it was told everything.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether a client is still there while its input cannot be taken.
const LOOK: Duration = Duration::from_secs(1);

type Reader = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
type Writer = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

/// The pipes of a command that is run for a client.
pub struct Pipes {
    streams: Streams,
    input: Option<InputWriter>,
    room: Room,
    said: mpsc::UnboundedSender<Said>,
    /// The queue is bounded by `room`.
    saying: mpsc::UnboundedReceiver<Said>,
}

enum Said {
    Printed(Piece),
    Echo(Vec<u8>),
    Over(Outcome),
}

/// Why a client is not listened to any more.
enum Heard {
    Gone,
    Interrupted,
}

impl Pipes {
    /// Connects a guest's configuration.
    pub fn connect(streams: Streams, config: GuestConfig) -> (Pipes, GuestConfig) {
        let (said, saying) = mpsc::unbounded_channel();
        let (writer, input) = streams.stdin.then(Input::pipe).unzip();
        let room = Room::new(AHEAD_BYTES_MAX);
        // A terminal has one screen for both.
        let err = if streams.tty { channels::STDOUT } else { channels::STDERR };
        let stderr = streams.stderr || (streams.tty && streams.stdout);
        let config = GuestConfig {
            stdin: input,
            stdout: printer(&said, &room, channels::STDOUT, streams.stdout),
            stderr: printer(&said, &room, err, stderr),
            room: Some(room.clone()),
            terminal: streams.tty,
            ..config
        };
        (Pipes { streams, input: writer, room, said, saying }, config)
    }
}

fn printer(
    said: &mpsc::UnboundedSender<Said>,
    room: &Room,
    channel: u8,
    connected: bool,
) -> Output {
    if !connected {
        // The guest does not wait for a reader that is not there.
        let room = room.clone();
        return Arc::new(move |bytes: &[u8]| room.give_back(bytes.len()));
    }
    let said = said.clone();
    Arc::new(move |bytes: &[u8]| {
        // Without a listener the session has ended, and the guest ends at its next yield.
        let _ = said.send(Said::Printed((channel, Bytes::copy_from_slice(bytes))));
    })
}

/// Runs a command for a client until it ends, or the client goes, or the container does.
/// `reads_interrupts` is whether it knows what to do with a ^C.
pub async fn exec(
    stream: UnixStream,
    (command, reads_interrupts): (Command, bool),
    pipes: Pipes,
    ended: CancellationToken,
) {
    let (reader, writer) = framed(stream);
    let Pipes { streams, input, room, said, saying } = pipes;
    let stop = CancellationToken::new();
    let echo = |echo: Vec<u8>| {
        let (said, room) = (said.clone(), room.clone());
        async move {
            room.acquire(echo.len()).await;
            // The receiver lives as long as this session.
            let _ = said.send(Said::Echo(echo));
        }
    };
    let terminal = streams.tty.then(|| Terminal::new(reads_interrupts && streams.stdin));
    let mut listening = std::pin::pin!(listen(reader, input, terminal, echo));
    let mut telling = std::pin::pin!(tell(writer, saying, &room, streams.tty));
    let mut running = std::pin::pin!(command.run(stop.clone()));
    let mut interrupted = false;
    let exit = loop {
        tokio::select! {
            biased;
            exit = running.as_mut() => break exit,
            heard = listening.as_mut(), if !interrupted => {
                stop.cancel();
                match heard {
                    Heard::Interrupted => interrupted = true,
                    Heard::Gone => {
                        room.close();
                        running.await;
                        return;
                    }
                }
            }
            // Only a broken connection ends it before the outcome was said.
            _ = telling.as_mut() => {
                stop.cancel();
                running.await;
                return;
            }
            () = ended.cancelled(), if !stop.is_cancelled() => stop.cancel(),
        }
    };
    let (code, why) = match exit {
        Exit::Code(code) => (code, None),
        Exit::Stopped if interrupted => (CODE_INTERRUPTED, None),
        // As a shell tells of a program that was killed or aborted.
        Exit::Stopped => (CODE_KILLED, None),
        Exit::OutOfMemory => (CODE_KILLED, Some("it needed more memory than its limit".to_owned())),
        Exit::Trap(why) => (CODE_TRAP, Some(format!("it trapped: {why}"))),
    };
    if let Some(why) = why {
        let channel = if streams.tty { channels::STDOUT } else { channels::STDERR };
        let _ = said.send(Said::Printed((channel, format!("wherry: {why}\n").into())));
    }
    let _ = said.send(Said::Over(Outcome::Code(code)));
    tokio::select! {
        _ = telling => {}
        _ = listening.as_mut(), if !interrupted => return,
    }
    if !interrupted {
        // What the client still sends is read: closed before, the connection would break, and with
        // it what is on its way to the client.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, listening).await;
    }
}

/// Tells a client how a command ended that no guest has run, and what it complains of, if anything.
pub async fn over(stream: UnixStream, streams: Streams, complaint: &str, outcome: Outcome) {
    let (mut reader, mut writer) = framed(stream);
    // A client that has gone needs neither.
    if streams.tty || streams.stderr {
        let channel = if streams.tty { channels::STDOUT } else { channels::STDERR };
        let _ = send(&mut writer, channel, complaint.as_bytes(), streams.tty).await;
    }
    let _ = send(&mut writer, channels::STATUS, &outcome.encode(), false).await;
    drop(writer);
    let rest = async { while let Some(Ok(_)) = reader.next().await {} };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, rest).await;
}

/// Shows a client what a container prints, and gives it what the client types.
pub async fn attach(stream: UnixStream, io: Arc<Io>, streams: Streams) {
    let (reader, mut writer) = framed(stream);
    let mut pieces = io.watch();
    let input = if streams.stdin { io.input() } else { None };
    let (echoes, mut echoed) = mpsc::channel(ECHOES_MAX);
    let echo = |echo: Vec<u8>| {
        let echoes = echoes.clone();
        async move {
            // The receiver lives as long as this session.
            let _ = echoes.send(echo).await;
        }
    };
    let terminal = streams.tty.then(|| Terminal::new(io.reads_interrupts && input.is_some()));
    let mut listening = std::pin::pin!(listen(reader, input, terminal, echo));
    let mut listens = true;
    loop {
        tokio::select! {
            piece = pieces.recv() => {
                let Some((channel, bytes)) = piece else { break };
                let (channel, wanted) = match channel {
                    channels::STDERR if !streams.tty => (channel, streams.stderr),
                    _ => (channels::STDOUT, streams.stdout),
                };
                if wanted && send(&mut writer, channel, &bytes, streams.tty).await.is_err() {
                    return;
                }
            }
            Some(echo) = echoed.recv() => {
                if send(&mut writer, channels::STDOUT, &echo, false).await.is_err() {
                    return;
                }
            }
            heard = listening.as_mut(), if listens => match heard {
                Heard::Gone => return,
                Heard::Interrupted => {
                    listens = false;
                    io.signal(Signal::Interrupt);
                }
            },
        }
    }
    // What was typed last is shown as well.
    while let Ok(echo) = echoed.try_recv() {
        if send(&mut writer, channels::STDOUT, &echo, false).await.is_err() {
            return;
        }
    }
    let outcome = match io.ended.is_cancelled() {
        true => Outcome::Code(0),
        false => Outcome::Failed("the output was not read fast enough".to_owned()),
    };
    // A client that has gone needs no outcome.
    let _ = send(&mut writer, channels::STATUS, &outcome.encode(), false).await;
    drop(writer);
    if listens {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, listening).await;
    }
}

fn framed(stream: UnixStream) -> (Reader, Writer) {
    let codec =
        || LengthDelimitedCodec::builder().max_frame_length(channels::FRAME_BYTES_MAX).new_codec();
    let (reader, writer) = stream.into_split();
    (FramedRead::new(reader, codec()), FramedWrite::new(writer, codec()))
}

/// Sends what was said, in order, and ends behind the outcome.
async fn tell(
    mut writer: Writer,
    mut saying: mpsc::UnboundedReceiver<Said>,
    room: &Room,
    tty: bool,
) -> io::Result<()> {
    while let Some(said) = saying.recv().await {
        match said {
            Said::Printed((channel, bytes)) => {
                send(&mut writer, channel, &bytes, tty).await?;
                room.give_back(bytes.len());
            }
            Said::Echo(echo) => {
                send(&mut writer, channels::STDOUT, &echo, false).await?;
                room.give_back(echo.len());
            }
            Said::Over(outcome) => {
                return send(&mut writer, channels::STATUS, &outcome.encode(), false).await;
            }
        }
    }
    Ok(())
}

async fn send(writer: &mut Writer, channel: u8, bytes: &[u8], tty: bool) -> io::Result<()> {
    let for_screen;
    let bytes = match tty {
        true => {
            for_screen = shown(bytes);
            &for_screen[..]
        }
        false => bytes,
    };
    for piece in bytes.chunks(PIECE_BYTES_MAX) {
        let mut frame = BytesMut::with_capacity(1 + piece.len());
        frame.put_u8(channel);
        frame.put_slice(piece);
        writer.send(frame.freeze()).await?;
    }
    Ok(())
}

/// Gives the guest what the client sends, until the client goes or interrupts it.
async fn listen<W, E>(
    mut reader: Reader,
    mut input: Option<W>,
    mut terminal: Option<Terminal>,
    echo: impl Fn(Vec<u8>) -> E,
) -> Heard
where
    W: AsRef<InputWriter>,
    E: Future<Output = ()>,
{
    while let Some(Ok(mut frame)) = reader.next().await {
        if frame.is_empty() {
            return Heard::Gone;
        }
        let channel = frame.split_to(1)[0];
        let bytes = frame.freeze();
        match (channel, &mut terminal) {
            (channels::STDIN, None) => {
                if let Some(heard) = give(&mut input, (bytes, false), reader.get_ref()).await {
                    return heard;
                }
            }
            (channels::STDIN, Some(terminal)) => {
                let typed = terminal.typed(&bytes);
                for piece in typed.echo.chunks(PIECE_BYTES_MAX) {
                    echo(piece.to_vec()).await;
                }
                let interrupts = typed.give.contains(&INTERRUPT);
                let piece = (Bytes::from(typed.give), interrupts);
                if let Some(heard) = give(&mut input, piece, reader.get_ref()).await {
                    return heard;
                }
                if typed.interrupted {
                    return Heard::Interrupted;
                }
                if typed.ended {
                    input = None;
                }
            }
            (channels::CLOSE, _) if bytes[..] == [channels::STDIN] => input = None,
            // The size of a screen: WASI has no way to tell it.
            _ => {}
        }
    }
    Heard::Gone
}

/// Writes to the guest's input, for as long as it takes. Some: the client has gone meanwhile, or the
/// piece `interrupts` and there is no room for it: the guest computes and does not look at its input.
async fn give<W: AsRef<InputWriter>>(
    input: &mut Option<W>,
    (bytes, interrupts): (Bytes, bool),
    client: &OwnedReadHalf,
) -> Option<Heard> {
    let taken = {
        let writer = input.as_ref()?;
        let mut writing = std::pin::pin!(writer.as_ref().write(bytes));
        loop {
            tokio::select! {
                taken = writing.as_mut() => break taken,
                () = tokio::time::sleep(LOOK) => {
                    if interrupts {
                        return Some(Heard::Interrupted);
                    }
                    let readiness = client.ready(Interest::READABLE).await;
                    if readiness.is_ok_and(|readiness| readiness.is_read_closed()) {
                        return Some(Heard::Gone);
                    }
                }
            }
        }
    };
    if !taken {
        // The guest has closed its input; what comes is lost, as in a pipe without a reader.
        *input = None;
    }
    None
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_nobody_reads_takes_no_room() {
        let room = Room::new(4);
        let (said, _saying) = mpsc::unbounded_channel();
        let output = printer(&said, &room, channels::STDOUT, false);
        for _ in 0..3 {
            room.acquire(4).now_or_never().expect("there is room again");
            output(b"abcd");
        }
    }
}
