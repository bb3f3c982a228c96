//! What a command gets and how it ends: the one shape of all applets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use futures::future::LocalBoxFuture;

use crate::files;
use crate::io::{Input, Output};

/// The exit code of a command whose reader went away: 128 + SIGPIPE.
pub const CODE_PIPE: i32 = 141;

/// All that a command has of the world.
#[derive(Clone)]
pub struct Command {
    /// Its name.
    pub name: String,
    /// Its arguments, without the name.
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: PathBuf,
    pub stdin: Input,
    pub stdout: Output,
    pub stderr: Output,
}

/// How a command fails: a message for standard error, and its exit code.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: i32,
}

pub type Outcome = Result<i32, Failure>;
pub type Running = LocalBoxFuture<'static, Outcome>;

impl Failure {
    /// With exit code 1.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1 }
    }

    /// Wrong arguments.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 2 }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { message: String::new(), code: CODE_PIPE };
        }
        Failure::new(files::reason(&error))
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Failure {
        Failure::usage(error.to_string())
    }
}

/// Says what a file operation failed on.
pub trait On<T> {
    fn on(self, name: &str) -> Result<T, Failure>;
}

impl<T> On<T> for io::Result<T> {
    fn on(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => error.into(),
            _ => Failure::new(format!("{name}: {}", files::reason(&error))),
        })
    }
}

impl Command {
    /// A path as this command means it.
    pub fn path(&self, name: &str) -> PathBuf {
        files::absolute(&self.cwd, name)
    }

    /// Opens a file for reading; `-` is standard input.
    pub fn open(&self, name: &str) -> Result<Input, Failure> {
        if name == "-" {
            return Ok(self.stdin.clone());
        }
        files::open(&self.path(name), &self.stdin).on(name)
    }

    /// Opens a file for writing; `-` is standard output.
    pub fn create(&self, name: &str) -> Result<Output, Failure> {
        if name == "-" {
            return Ok(self.stdout.clone());
        }
        files::create(&self.path(name), files::Mode::Truncate, &self.stdout, &self.stderr).on(name)
    }

    /// Standard input if no file is named.
    pub fn inputs(&self, names: &[String]) -> Vec<String> {
        if names.is_empty() { vec!["-".to_owned()] } else { names.to_vec() }
    }

    pub async fn print(&self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        Ok(self.stdout.write(text).await?)
    }

    /// A line on standard error. Where that cannot be written nobody can be told.
    pub async fn complain(&self, text: &str) {
        let _ = self.stderr.write(format!("{}: {text}\n", self.name)).await;
    }

    /// The options and operands, for `lexopt`.
    pub fn options(&self) -> lexopt::Parser {
        lexopt::Parser::from_args(self.args.iter().cloned())
    }

    /// The same command with other words.
    pub fn with(&self, words: Vec<String>) -> Command {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        Command { name, args: words.collect(), ..self.clone() }
    }
}

/// The last part of a path: what names an applet.
pub fn base_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}
