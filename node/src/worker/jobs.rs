//! Streams that the agent opens to a container or a port of a Pod (see `protocol/stream.rs`).
//!
//! The main task finds what a stream is for; everything else happens in a task of the stream's own,
//! which ends with its connection or with the container. What a command's first word names: an
//! export of the container's image, the image's own command, or a program of the toolbox. A `kill` is
//! none of these: see `signals.rs`.

use std::{path::PathBuf, sync::Arc};

use futures::SinkExt;
use tokio::{io::AsyncWriteExt as _, net::UnixStream, sync::OwnedSemaphorePermit, task::JoinSet};
use tokio_util::codec::Framed;
use wherry_resources::channels::Outcome;
use wherry_wasi_shim::{Command, GuestConfig, LoadError};

use super::{
    attached::Io,
    checks::{Callee, Target},
    peers::explain,
    pipe::End,
    record::Record,
    session::{self, Pipes},
    signals::{self, Signal},
    start::Runtime,
    tail,
};
use crate::metrics::SPANS_LOST;
use crate::protocol::{self, Answer, Code, ProtocolError, Since, Streams};

/// Connections to ports at the same time, of all Pods of this worker: each costs two descriptors.
const PORTS_MAX: usize = 512;
/// Followers of requests at the same time, of all Pods of this worker.
const FOLLOWERS_MAX: usize = 128;

/// A container that runs.
pub struct Running {
    /// Its input and output.
    pub io: Arc<Io>,
    /// Its code and view.
    pub target: Arc<Target>,
}

/// What a stream was opened for.
pub enum Job {
    /// A command in a container's view.
    Exec {
        /// In which.
        running: Running,
        /// A place among its sessions.
        place: OwnedSemaphorePermit,
        /// As asked for.
        command: Vec<String>,
        /// As asked for.
        streams: Streams,
        /// As given by the agent.
        toolbox: Option<Code>,
    },
    /// A container itself.
    Attach {
        /// Which.
        io: Arc<Io>,
        /// A place among its sessions.
        place: OwnedSemaphorePermit,
        /// As asked for.
        streams: Streams,
    },
    /// A port that is served: whoever serves it is at the other end.
    Port(End),
    /// The requests of a container, as they end.
    Requests {
        /// Which.
        record: Arc<Record>,
        /// From where on.
        since: Since,
    },
    /// A text.
    Text(Vec<u8>),
    /// The counters of all traffic.
    Metrics,
    /// A way to another worker, which this one has asked for, or why there is none.
    Relayed(u64, Option<String>),
    /// A file that the agent has made.
    File(PathBuf),
}

/// The open streams of a worker. Dropped, they end.
#[derive(Default)]
pub struct Tasks {
    sessions: JoinSet<()>,
    ports: JoinSet<()>,
    followers: JoinSet<()>,
}

impl Tasks {
    /// Answers the agent, and serves the stream if there is a job.
    pub fn start(&mut self, stream: UnixStream, job: Result<Job, Answer>, runtime: &Runtime) {
        while self.sessions.try_join_next().is_some() {}
        while self.ports.try_join_next().is_some() {}
        while self.followers.try_join_next().is_some() {}
        let runtime = runtime.clone();
        match job {
            Err(answer) => _ = self.sessions.spawn(refuse(stream, answer)),
            Ok(Job::Port(_)) if self.ports.len() >= PORTS_MAX => {
                let why = format!("{PORTS_MAX} connections to ports are open");
                self.sessions.spawn(refuse(stream, Answer::Busy(why)));
            }
            Ok(Job::Port(inner)) => {
                self.ports.spawn(async move {
                    if let Ok(stream) = answer(stream, &Answer::Open).await {
                        port(stream, inner).await;
                    }
                });
            }
            Ok(Job::Requests { .. }) if self.followers.len() >= FOLLOWERS_MAX => {
                let why = format!("{FOLLOWERS_MAX} clients follow requests");
                self.sessions.spawn(refuse(stream, Answer::Busy(why)));
            }
            Ok(Job::Requests { record, since }) => {
                self.followers.spawn(async move {
                    if let Ok(stream) = answer(stream, &Answer::Open).await {
                        let (reader, writer) = stream.into_split();
                        tail::follow(reader, writer, record, since).await;
                    }
                });
            }
            Ok(Job::Text(text)) => _ = self.sessions.spawn(tell(stream, text)),
            Ok(Job::Metrics) => {
                let switch = runtime.switch.clone();
                self.sessions.spawn(async move {
                    let table = switch.table().clone();
                    let mut samples = switch.traffic.tell(&table);
                    if switch.tracer.is_on() {
                        let lost = vec![format!(" {}", switch.tracer.lost())];
                        samples.insert(SPANS_LOST.to_owned(), lost);
                    }
                    let text = serde_json::to_vec(&samples).expect("lines by name become JSON");
                    tell(stream, text).await;
                });
            }
            Ok(Job::Relayed(id, failed)) => {
                let relays = runtime.switch.traffic.relays.clone();
                self.sessions.spawn(async move {
                    let stream = answer(stream, &Answer::Open).await;
                    let stream = stream.map_err(|error| explain(&error));
                    relays.opened(id, failed.map_or(stream, Err));
                });
            }
            Ok(Job::File(path)) => {
                self.sessions.spawn(async move {
                    match tokio::fs::read(&path).await {
                        Ok(text) => tell(stream, text).await,
                        Err(error) => {
                            let why = format!("read {}: {error}", path.display());
                            refuse(stream, Answer::NotFound(why)).await;
                        }
                    }
                });
            }
            Ok(Job::Attach { io, place, streams }) => {
                self.sessions.spawn(async move {
                    if let Ok(stream) = answer(stream, &Answer::Open).await {
                        session::attach(stream, io, streams).await;
                    }
                    drop(place);
                });
            }
            Ok(Job::Exec { running, place, command, streams, toolbox }) => {
                self.sessions.spawn(async move {
                    let run = Run { runtime, running, command, streams, toolbox };
                    exec(stream, run).await;
                    drop(place);
                });
            }
        }
    }
}

struct Run {
    runtime: Runtime,
    running: Running,
    command: Vec<String>,
    streams: Streams,
    toolbox: Option<Code>,
}

async fn exec(stream: UnixStream, run: Run) {
    let Run { runtime, running, command, streams, toolbox } = run;
    let callee = &running.target.callee;
    let config = GuestConfig { args: command, ..callee.config() };
    let (pipes, config) = Pipes::connect(streams, config);
    let runs_toolbox = running.io.reads_interrupts;
    let program = program(&runtime, (callee, runs_toolbox), toolbox.as_ref(), config).await;
    let Ok(stream) = answer(stream, &Answer::Open).await else {
        return;
    };
    let (complaint, outcome) = match program {
        Ok(Program::Guest(program, is_tool)) => {
            let program = (program, is_tool || runs_toolbox);
            return session::exec(stream, program, pipes, running.io.ended.clone()).await;
        }
        Ok(Program::Kill(Ok(signal))) => {
            if let Some(signal) = signal {
                running.io.signal(signal);
            }
            (String::new(), Outcome::Code(0))
        }
        Ok(Program::Kill(Err(why))) => (format!("kill: {why}\n"), Outcome::Code(1)),
        Err(why) => (String::new(), Outcome::Failed(why)),
    };
    session::over(stream, streams, &complaint, outcome).await;
}

/// What a command's words name.
enum Program {
    /// A guest, linked; whether it is one of the toolbox.
    Guest(Command, bool),
    /// A `kill`, which is the worker's own.
    Kill(Result<Option<Signal>, String>),
}

/// Finds what the words name, and links it.
async fn program(
    runtime: &Runtime,
    (callee, runs_toolbox): (&Callee, bool),
    toolbox: Option<&Code>,
    config: GuestConfig,
) -> Result<Program, String> {
    let name = config.args.first().cloned().unwrap_or_default();
    let failed = |why: &dyn std::error::Error| format!("exec: {name:?}: {}", explain(why));
    let module = callee.code.map().await.map_err(|error| failed(&error))?;
    match module.call(&name, config.clone()) {
        Err(LoadError::NoExport { .. }) => {}
        call => {
            let call = call.map_err(|error| failed(&error))?;
            return Ok(Program::Guest(call, false));
        }
    }
    let is_own = callee.is_own(&name);
    if (runs_toolbox || !is_own)
        && let Some(kill) = signals::kill(&config.args)
    {
        return Ok(Program::Kill(kill));
    }
    if is_own {
        let own = module.command(config).map_err(|error| failed(&error))?;
        return Ok(Program::Guest(own, false));
    }
    let Some(code) = toolbox else {
        return Err(format!("exec: {name:?}: executable file not found in $PATH"));
    };
    let toolbox = runtime.modules.code(&runtime.engine, &code.module, code.form);
    let toolbox = toolbox.map().await.map_err(|error| failed(&error))?;
    let tool = toolbox.command(config).map_err(|error| failed(&error))?;
    Ok(Program::Guest(tool, true))
}

/// Passes the bytes of a connection to a port on.
async fn port(mut stream: UnixStream, mut inner: End) {
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut inner).await {
        inner.breaker().break_off();
        tracing::debug!(%error, "a connection to a port ended early");
    }
}

async fn tell(stream: UnixStream, text: Vec<u8>) {
    if let Ok(mut stream) = answer(stream, &Answer::Open).await {
        // An agent that has gone needs no text.
        let _ = stream.write_all(&text).await;
    }
}

async fn refuse(stream: UnixStream, why: Answer) {
    // An agent that has gone needs no answer.
    let _ = answer(stream, &why).await;
}

async fn answer(stream: UnixStream, answer: &Answer) -> Result<UnixStream, ProtocolError> {
    let mut frames = Framed::new(stream, protocol::codec());
    frames.send(protocol::encode(answer)?).await.map_err(ProtocolError::Send)?;
    Ok(frames.into_inner())
}
