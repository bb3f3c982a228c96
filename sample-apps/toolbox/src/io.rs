//! Byte streams between commands: what a file descriptor stands for.
//!
//! Streams are shared handles: whoever holds one reads on where the last reader stopped, also
//! what was buffered, so that `read` takes one line and the next command gets the rest. A pipe holds
//! at most [`PIPE_BYTES_MAX`]; its writer waits for its reader, and learns when that is gone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};

use crate::runtime::{spawn, yield_now};
use crate::signals::Signal;

/// What a pipe holds before its writer waits; a kernel's pipe holds as much.
const PIPE_BYTES_MAX: usize = 64 << 10;
/// What one read asks for.
const CHUNK_BYTES: usize = 32 << 10;
/// ^C, as a terminal of Wherry passes it on.
const INTERRUPT: u8 = 0x03;
/// The longest line that is held in memory, and the most that `$(...)`, `sort` and `sed` take.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// Something to read. Clones share position and buffer.
#[derive(Clone)]
pub struct Input(Rc<Source>);

struct Source {
    buffer: RefCell<BytesMut>,
    raw: RawInput,
}

enum RawInput {
    Null,
    Zero,
    Random,
    Stdin,
    File(RefCell<File>),
    Pipe(PipeReader),
    #[cfg(target_family = "wasm")]
    Stream(crate::net::Receiver),
}

/// Somewhere to write. Clones write to the same place.
#[derive(Clone)]
pub struct Output(Rc<RawOutput>);

enum RawOutput {
    Null,
    Stdout,
    Stderr,
    File(RefCell<File>),
    Pipe(PipeWriter),
    Memory(RefCell<Vec<u8>>),
    #[cfg(target_family = "wasm")]
    Stream(crate::net::Sender),
}

impl Input {
    fn new(raw: RawInput) -> Input {
        Input(Rc::new(Source { buffer: RefCell::default(), raw }))
    }

    /// Nothing to read.
    pub fn null() -> Input {
        Input::new(RawInput::Null)
    }

    /// Zeros without end.
    pub fn zero() -> Input {
        Input::new(RawInput::Zero)
    }

    /// Random bytes without end.
    pub fn random() -> Input {
        Input::new(RawInput::Random)
    }

    /// The program's own input.
    pub fn stdin() -> Input {
        Input::new(RawInput::Stdin)
    }

    /// What is typed at a terminal: read also while nobody asks for it, so that a ^C is heard.
    pub fn typed() -> Input {
        let (input, output) = pipe();
        spawn(async move {
            let stdin = Input::stdin();
            while let Ok(bytes) = stdin.chunk(CHUNK_BYTES).await
                && !bytes.is_empty()
                && output.write(without_interrupts(bytes)).await.is_ok()
            {}
        });
        input
    }

    /// An open file.
    pub fn file(file: File) -> Input {
        Input::new(RawInput::File(RefCell::new(file)))
    }

    /// A text.
    pub fn text(text: impl AsRef<[u8]>) -> Input {
        let input = Input::null();
        input.0.buffer.borrow_mut().extend_from_slice(text.as_ref());
        input
    }

    /// What a peer sends.
    #[cfg(target_family = "wasm")]
    pub fn stream(receiver: crate::net::Receiver) -> Input {
        Input::new(RawInput::Stream(receiver))
    }

    /// Reads more into the buffer; false at the end.
    async fn fill(&self) -> io::Result<bool> {
        let more = match &self.0.raw {
            RawInput::Null => Bytes::new(),
            RawInput::Zero => {
                yield_now().await;
                Bytes::from(vec![0; CHUNK_BYTES])
            }
            RawInput::Random => {
                yield_now().await;
                random_bytes(CHUNK_BYTES)
            }
            RawInput::Stdin => stdin_chunk().await?,
            RawInput::File(file) => {
                yield_now().await;
                let mut chunk = vec![0; CHUNK_BYTES];
                let count = file.borrow_mut().read(&mut chunk)?;
                chunk.truncate(count);
                Bytes::from(chunk)
            }
            RawInput::Pipe(pipe) => pipe.read().await,
            #[cfg(target_family = "wasm")]
            RawInput::Stream(receiver) => receiver.read().await?,
        };
        self.0.buffer.borrow_mut().extend_from_slice(&more);
        Ok(!more.is_empty())
    }

    /// Some bytes; none at the end.
    pub async fn chunk(&self, bytes_max: usize) -> io::Result<Bytes> {
        if self.0.buffer.borrow().is_empty() {
            self.fill().await?;
        }
        let mut buffer = self.0.buffer.borrow_mut();
        let count = buffer.len().min(bytes_max);
        Ok(buffer.split_to(count).freeze())
    }

    /// What comes next, without taking it; nothing at the end.
    pub async fn peek(&self) -> io::Result<Bytes> {
        if self.0.buffer.borrow().is_empty() {
            self.fill().await?;
        }
        Ok(Bytes::copy_from_slice(&self.0.buffer.borrow()))
    }

    /// Bytes up to and with `end`; what is left at the end of the input; None after that.
    pub async fn until(&self, end: u8) -> io::Result<Option<Vec<u8>>> {
        let mut seen = 0;
        loop {
            {
                let mut buffer = self.0.buffer.borrow_mut();
                let found = buffer[seen..].iter().position(|byte| *byte == end);
                if let Some(position) = found {
                    let line = buffer.split_to(seen + position + 1);
                    return Ok(Some(line.to_vec()));
                }
                seen = buffer.len();
            }
            too_long(seen)?;
            if !self.fill().await? {
                let rest = self.0.buffer.borrow_mut().split().to_vec();
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    /// A line without its end.
    pub async fn line(&self) -> io::Result<Option<Vec<u8>>> {
        let line = self.until(b'\n').await?;
        Ok(line.map(|mut line| {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            line
        }))
    }

    /// All that is left.
    pub async fn rest(&self) -> io::Result<Vec<u8>> {
        while self.fill().await? {
            too_long(self.0.buffer.borrow().len())?;
        }
        Ok(self.0.buffer.borrow_mut().split().to_vec())
    }
}

/// Refuses to hold more than [`TEXT_BYTES_MAX`].
pub fn too_long(bytes: usize) -> io::Result<()> {
    if bytes > TEXT_BYTES_MAX {
        let what = format!("more than {TEXT_BYTES_MAX} bytes would have to be held in memory");
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
    }
    Ok(())
}

impl Output {
    fn new(raw: RawOutput) -> Output {
        Output(Rc::new(raw))
    }

    /// Forgets everything.
    pub fn null() -> Output {
        Output::new(RawOutput::Null)
    }

    /// The program's own output.
    pub fn stdout() -> Output {
        Output::new(RawOutput::Stdout)
    }

    /// The program's own error output.
    pub fn stderr() -> Output {
        Output::new(RawOutput::Stderr)
    }

    /// An open file.
    pub fn file(file: File) -> Output {
        Output::new(RawOutput::File(RefCell::new(file)))
    }

    /// Kept until [`Output::take`].
    pub fn memory() -> Output {
        Output::new(RawOutput::Memory(RefCell::default()))
    }

    /// To a peer.
    #[cfg(target_family = "wasm")]
    pub fn stream(sender: crate::net::Sender) -> Output {
        Output::new(RawOutput::Stream(sender))
    }

    /// Writes all of it, or fails. A reader that is gone is `BrokenPipe`.
    pub async fn write(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = bytes.as_ref();
        // Who only writes must let others go on; a pipe sees to that by itself.
        if !matches!(*self.0, RawOutput::Pipe(_)) {
            yield_now().await;
        }
        match &*self.0 {
            RawOutput::Null => Ok(()),
            RawOutput::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            RawOutput::Stderr => io::stderr().lock().write_all(bytes),
            RawOutput::File(file) => file.borrow_mut().write_all(bytes),
            RawOutput::Pipe(pipe) => pipe.write(bytes).await,
            RawOutput::Memory(memory) => {
                too_long(memory.borrow().len() + bytes.len())?;
                memory.borrow_mut().extend_from_slice(bytes);
                Ok(())
            }
            #[cfg(target_family = "wasm")]
            RawOutput::Stream(sender) => sender.write(bytes).await,
        }
    }

    /// What was written to memory.
    pub fn take(&self) -> Vec<u8> {
        match &*self.0 {
            RawOutput::Memory(memory) => memory.take(),
            _ => Vec::new(),
        }
    }

    /// The file behind it.
    pub fn as_file(&self) -> Option<&RefCell<File>> {
        match &*self.0 {
            RawOutput::File(file) => Some(file),
            _ => None,
        }
    }
}

/// What is left of typed bytes behind their last ^C.
fn without_interrupts(bytes: Bytes) -> Bytes {
    let Some(last) = bytes.iter().rposition(|byte| *byte == INTERRUPT) else { return bytes };
    Signal::Interrupt.raise();
    bytes.slice(last + 1..)
}

#[cfg(not(target_family = "wasm"))]
async fn stdin_chunk() -> io::Result<Bytes> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let count = io::stdin().lock().read(&mut chunk)?;
    chunk.truncate(count);
    Ok(Bytes::from(chunk))
}

/// Waits without keeping other tasks from going on.
#[cfg(target_family = "wasm")]
async fn stdin_chunk() -> io::Result<Bytes> {
    use wasip2::io::streams::{InputStream, StreamError};
    thread_local! {
        static STDIN: InputStream = wasip2::cli::stdin::get_stdin();
    }
    loop {
        crate::runtime::ready(STDIN.with(InputStream::subscribe)).await;
        match STDIN.with(|stdin| stdin.read(CHUNK_BYTES as u64)) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => return Ok(Bytes::from(bytes)),
            Err(StreamError::Closed) => return Ok(Bytes::new()),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(io::Error::other(error.to_debug_string()));
            }
        }
    }
}

#[cfg(target_family = "wasm")]
fn random_bytes(count: usize) -> Bytes {
    Bytes::from(wasip2::random::random::get_random_bytes(count as u64))
}

#[cfg(not(target_family = "wasm"))]
fn random_bytes(count: usize) -> Bytes {
    let mut bytes = vec![0; count];
    let opened = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    opened.expect("every Unix has random bytes");
    Bytes::from(bytes)
}

#[derive(Default)]
struct Pipe {
    held: VecDeque<u8>,
    writer_gone: bool,
    reader_gone: bool,
    waiting: Vec<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

struct PipeReader(Rc<RefCell<Pipe>>);
struct PipeWriter(Rc<RefCell<Pipe>>);

/// A pipe: what is written to the one is read from the other.
pub fn pipe() -> (Input, Output) {
    let pipe = Rc::new(RefCell::new(Pipe::default()));
    let input = Input::new(RawInput::Pipe(PipeReader(pipe.clone())));
    (input, Output::new(RawOutput::Pipe(PipeWriter(pipe))))
}

impl PipeReader {
    async fn read(&self) -> Bytes {
        poll_fn(|cx| {
            let mut pipe = self.0.borrow_mut();
            if pipe.held.is_empty() && !pipe.writer_gone {
                pipe.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let count = pipe.held.len();
            let bytes = pipe.held.copy_to_bytes(count);
            pipe.wake();
            Poll::Ready(bytes)
        })
        .await
    }
}

impl PipeWriter {
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| {
            let mut pipe = self.0.borrow_mut();
            if pipe.reader_gone {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let room = PIPE_BYTES_MAX - pipe.held.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            pipe.held.extend(now);
            pipe.wake();
            bytes = later;
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            pipe.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.reader_gone = true;
        pipe.wake();
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.writer_gone = true;
        pipe.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures::future::FutureExt;

    use super::*;

    #[test]
    fn interrupts_are_no_text() {
        Signal::Interrupt.handle(true);
        let mut waiting = Box::pin(Signal::Interrupt.comes());
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(without_interrupts(Bytes::from_static(b"one")), "one");
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(without_interrupts(Bytes::from_static(b"one\x03two")), "two");
        assert!(waiting.now_or_never().is_some());
        assert!(Signal::Interrupt.comes().now_or_never().is_none(), "each is heard once");
        assert!(Signal::Interrupt.take() && !Signal::Interrupt.take());
    }
}
