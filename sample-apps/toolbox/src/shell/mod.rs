//! The shell: POSIX `sh` with the usual extensions of bash, on the syntax tree of `brush-parser`.
//!
//! ```text
//!   text ─ parse ─▶ Program ─ run ─▶ expand words ─▶ function, builtin or applet
//! ```
//!
//! WASI has no processes, so a command is a future, and a subshell a copy of [`Shell`]. The parts
//! of a pipeline run side by side over bounded pipes; `&` starts a task that `wait` can join.
//! `exit`, `break`, `return` and errors that end the shell travel as [`Flow`].

mod arithmetic;
mod builtins;
mod expand;
mod run;
mod test;

pub use self::expand::name_matches;
pub use self::test::evaluate;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use brush_parser::ParserOptions;
use brush_parser::ast::{FunctionBody, Program};
use futures::future::{AbortHandle, Either, select};

use crate::command::{Command, Failure, Outcome};
use crate::io::{Input, Output};
use crate::signals::Signal;

/// Functions and `eval` within each other: more is a recursion without end, and the stack is small.
const DEPTH_MAX: u32 = 64;

/// One shell, or the copy that a subshell has.
#[derive(Clone)]
pub struct Shell {
    /// `$0`
    name: String,
    variables: BTreeMap<String, Variable>,
    functions: BTreeMap<String, Rc<FunctionBody>>,
    aliases: BTreeMap<String, String>,
    /// `$1`, `$2`, …
    parameters: Vec<String>,
    cwd: PathBuf,
    options: Options,
    status: i32,
    /// Variables that `local` hides, for each function that runs.
    locals: Vec<BTreeMap<String, Option<Variable>>>,
    /// Where numbered streams go; 0, 1 and 2 are always there unless closed.
    fds: BTreeMap<i32, Stream>,
    jobs: Rc<RefCell<Vec<Job>>>,
    last_job: Option<usize>,
    traps: Traps,
    depth: u32,
    /// How many conditions (`if`, `&&`, `!`) are around: in them a failure does not end the shell.
    conditions: u32,
    /// `$RANDOM`'s state.
    random: u32,
    started: std::time::Instant,
    getopts: (usize, usize),
}

#[derive(Clone, Default)]
struct Variable {
    value: String,
    /// A list, if it is one; `value` is then its first element.
    list: Option<Vec<String>>,
    exported: bool,
    readonly: bool,
}

#[derive(Clone, Default)]
struct Options {
    /// `-e`
    exit_on_error: bool,
    /// `-u`
    error_on_unset: bool,
    /// `-x`
    trace: bool,
    /// `-f`
    no_glob: bool,
    /// `-C`
    no_clobber: bool,
    /// `-o pipefail`
    pipe_fail: bool,
    /// `-a`
    export_all: bool,
    /// `-n`
    parse_only: bool,
}

/// What a number stands for.
#[derive(Clone)]
enum Stream {
    In(Input),
    Out(Output),
}

/// Something in the background.
struct Job {
    state: Rc<RefCell<JobState>>,
    abort: AbortHandle,
}

#[derive(Default)]
struct JobState {
    /// Its exit code, once it has ended.
    code: Option<i32>,
    waiting: Vec<std::task::Waker>,
}

/// What `trap` has set; a copy of the shell begins without.
#[derive(Clone, Default)]
struct Traps {
    exit: Option<String>,
    /// An empty text: the signal is ignored.
    signals: BTreeMap<Signal, String>,
}

/// Why a list of commands does not go on.
#[derive(Debug)]
enum Flow {
    /// `exit`, or an error that ends a script.
    Exit(i32),
    /// `return`
    Return(i32),
    /// `break`, out of so many loops.
    Break(u32),
    /// `continue`, of the loop so many levels up.
    Continue(u32),
}

type Run<T> = Result<T, Flow>;

fn parser_options() -> ParserOptions {
    ParserOptions { tilde_expansion_after_colon: false, ..ParserOptions::default() }
}

fn parse(text: &str) -> Result<Program, String> {
    let mut parser = brush_parser::Parser::new(text.as_bytes(), &parser_options());
    parser.parse_program().map_err(|error| format!("syntax error: {error}"))
}

/// `sh [-eux…] [-c TEXT [NAME [ARGUMENTS]] | FILE [ARGUMENTS]]`, or a script on standard input.
pub async fn sh(command: Command) -> Outcome {
    let mut shell = Shell::new(&command);
    let mut text = None;
    let mut words = command.args.iter().peekable();
    let (mut interactive, mut reads_input) = (false, false);
    while let Some(word) = words.next_if(|word| word.starts_with(['-', '+']) && word.len() > 1) {
        if word == "--" {
            break;
        }
        let on = word.starts_with('-');
        if word[1..].starts_with('-') {
            continue; // --login and the like mean nothing here
        }
        for letter in word[1..].chars() {
            match letter {
                'c' => text = Some(String::new()),
                'i' => interactive = true,
                's' => reads_input = true,
                'l' => {}
                'o' => {
                    let name = words.next().map_or("", String::as_str);
                    if !shell.options.set_name(name, on) {
                        return Err(Failure::usage(format!("-o: unknown option {name}")));
                    }
                }
                letter if shell.options.set_letter(letter, on) => {}
                letter => return Err(Failure::usage(format!("-{letter}: unknown option"))),
            }
        }
    }
    if text.is_some() {
        let given = words.next().ok_or_else(|| Failure::usage("-c needs a text"))?;
        text = Some(given.clone());
    }
    let from_file = text.is_none() && !reads_input && words.peek().is_some();
    if !reads_input && let Some(name) = words.next() {
        shell.name = name.clone();
    }
    shell.parameters = words.cloned().collect();
    if from_file {
        let file = command.open(&shell.name)?;
        text = Some(String::from_utf8_lossy(&file.rest().await?).into_owned());
    }
    let code = match text {
        Some(text) => shell.script(&text).await,
        None => shell.from_stdin(&command, interactive).await,
    };
    Ok(code)
}

impl Shell {
    fn new(command: &Command) -> Shell {
        let variable =
            |(name, value): (&String, &String)| (name.clone(), Variable::exported(value));
        let mut shell = Shell {
            name: command.name.clone(),
            variables: command.env.iter().map(variable).collect(),
            functions: BTreeMap::new(),
            aliases: BTreeMap::new(),
            parameters: Vec::new(),
            cwd: command.cwd.clone(),
            options: Options::default(),
            status: 0,
            locals: Vec::new(),
            fds: BTreeMap::from([
                (0, Stream::In(command.stdin.clone())),
                (1, Stream::Out(command.stdout.clone())),
                (2, Stream::Out(command.stderr.clone())),
            ]),
            jobs: Rc::default(),
            last_job: None,
            traps: Traps::default(),
            depth: 0,
            conditions: 0,
            random: seed(),
            started: std::time::Instant::now(),
            getopts: (0, 0),
        };
        for (name, value) in [("IFS", " \t\n"), ("PS1", "$ "), ("PS2", "> "), ("PS4", "+ ")] {
            shell.variables.insert(
                name.to_owned(),
                Variable { value: value.to_owned(), ..Variable::default() },
            );
        }
        shell.variables.entry("PATH".to_owned()).or_insert_with(|| Variable::exported("/bin"));
        let cwd = shell.cwd.to_string_lossy().into_owned();
        shell.variables.insert("PWD".to_owned(), Variable::exported(&cwd));
        shell
    }

    /// Runs a whole script, and the exit trap after it. Returns the exit code.
    async fn script(&mut self, text: &str) -> i32 {
        let flow = self.text(text).await;
        self.finish(flow).await
    }

    async fn finish(&mut self, flow: Run<()>) -> i32 {
        let mut code = match flow {
            Ok(()) | Err(Flow::Break(_) | Flow::Continue(_)) => self.status,
            Err(Flow::Exit(code) | Flow::Return(code)) => code,
        };
        if let Some(trap) = self.traps.exit.take() {
            self.status = code;
            if let Err(Flow::Exit(other)) = self.text(&trap).await {
                code = other;
            }
        }
        code & 0xff
    }

    /// Parses and runs a text in this shell.
    async fn text(&mut self, text: &str) -> Run<()> {
        match parse(text) {
            Ok(_) if self.options.parse_only => Ok(()),
            Ok(program) => self.program(&program).await,
            Err(message) => {
                self.complain(&message).await;
                self.status = 2;
                Err(Flow::Exit(2))
            }
        }
    }

    /// Reads commands line by line: each is run before the next is read, so that a command can read
    /// what follows it, and a person sees what each one says.
    async fn from_stdin(&mut self, command: &Command, interactive: bool) -> i32 {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let prompts = interactive || terminal;
        if terminal {
            Signal::Interrupt.handle(true);
        }
        let mut text = String::new();
        loop {
            if prompts {
                let name = if text.is_empty() { "PS1" } else { "PS2" };
                let prompt = self.get(name).unwrap_or_default();
                if command.stderr.write(prompt).await.is_err() {
                    break;
                }
            }
            let line = match unless_interrupted(terminal, command.stdin.until(b'\n')).await {
                Some(Ok(Some(line))) => line,
                Some(Ok(None)) => break,
                None => {
                    text.clear();
                    self.status = i32::from(Signal::Interrupt.code());
                    continue;
                }
                Some(Err(error)) => {
                    self.complain(&error.to_string()).await;
                    return 2;
                }
            };
            text.push_str(&String::from_utf8_lossy(&line));
            if !is_complete(&text) {
                continue;
            }
            // What is interrupted leaves the shell as it was, with its streams, out of functions.
            let before = terminal.then(|| self.clone());
            let line = std::mem::take(&mut text);
            let Some(flow) = unless_interrupted(terminal, self.text(&line)).await else {
                *self = before.expect("only a terminal interrupts");
                self.status = i32::from(Signal::Interrupt.code());
                continue;
            };
            match flow {
                Err(Flow::Exit(2)) if prompts && self.status == 2 => {}
                Err(flow) => return self.finish(Err(flow)).await,
                Ok(()) => {}
            }
        }
        let rest = std::mem::take(&mut text);
        let flow = if rest.is_empty() { Ok(()) } else { self.text(&rest).await };
        self.finish(flow).await
    }

    fn stdin(&self) -> Input {
        match self.fds.get(&0) {
            Some(Stream::In(input)) => input.clone(),
            _ => Input::null(),
        }
    }

    fn output(&self, fd: i32) -> Output {
        match self.fds.get(&fd) {
            Some(Stream::Out(output)) => output.clone(),
            _ => Output::null(),
        }
    }

    /// A line on standard error, in the shell's name.
    async fn complain(&self, message: &str) {
        // Where that cannot be written nobody can be told.
        let _ = self.output(2).write(format!("{}: {message}\n", self.name)).await;
    }

    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|variable| variable.value.clone())
    }

    /// Sets a variable; the error is a sentence.
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let variable = self.variables.entry(name.to_owned()).or_default();
        if variable.readonly {
            return Err(format!("{name}: is read only"));
        }
        variable.value = value;
        variable.list = None;
        variable.exported |= self.options.export_all;
        Ok(())
    }

    /// Sets a variable to a list; its first element is what it is without an index.
    fn set_list(&mut self, name: &str, list: Vec<String>) -> Result<(), String> {
        self.set(name, list.first().cloned().unwrap_or_default())?;
        if let Some(variable) = self.variables.get_mut(name) {
            variable.list = Some(list);
        }
        Ok(())
    }

    fn unset(&mut self, name: &str) -> Result<(), String> {
        if self.variables.get(name).is_some_and(|variable| variable.readonly) {
            return Err(format!("{name}: is read only"));
        }
        self.variables.remove(name);
        Ok(())
    }

    /// What commands inherit.
    fn environment(&self) -> BTreeMap<String, String> {
        let exported = self.variables.iter().filter(|(_, variable)| variable.exported);
        exported.map(|(name, variable)| (name.clone(), variable.value.clone())).collect()
    }
}

/// The outcome of some work, or None if somebody types ^C at the terminal meanwhile.
async fn unless_interrupted<T>(terminal: bool, work: impl Future<Output = T>) -> Option<T> {
    if !terminal {
        return Some(work.await);
    }
    match select(Box::pin(work), Box::pin(Signal::Interrupt.comes())).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}

/// Whether a text can be run, or needs more lines. A text that cannot become right is complete: it
/// is reported when it is run.
fn is_complete(text: &str) -> bool {
    use brush_parser::ParseError;
    if text.ends_with("\\\n") {
        return false;
    }
    let mut parser = brush_parser::Parser::new(text.as_bytes(), &parser_options());
    match parser.parse_program() {
        Ok(_) => true,
        Err(ParseError::ParsingAtEndOfInput) => false,
        Err(ParseError::Tokenizing { inner, .. }) => !inner.is_incomplete(),
        Err(_) => true,
    }
}

/// Where `$RANDOM` begins: good enough to spread things in time.
fn seed() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.subsec_nanos())
}

impl Variable {
    fn exported(value: &str) -> Variable {
        Variable { value: value.to_owned(), exported: true, ..Variable::default() }
    }
}

impl Options {
    /// `set -LETTER`; false if there is no such option.
    fn set_letter(&mut self, letter: char, on: bool) -> bool {
        match letter {
            'e' => self.exit_on_error = on,
            'u' => self.error_on_unset = on,
            'x' => self.trace = on,
            'f' => self.no_glob = on,
            'C' => self.no_clobber = on,
            'a' => self.export_all = on,
            'n' => self.parse_only = on,
            // What is asked for is how it is here anyway, or makes no difference to a script.
            'm' | 'b' | 'h' | 'v' | 'B' | 'E' | 'T' => {}
            _ => return false,
        }
        true
    }

    /// `set -o NAME`; false if there is no such option.
    fn set_name(&mut self, name: &str, on: bool) -> bool {
        match name {
            "errexit" => self.exit_on_error = on,
            "nounset" => self.error_on_unset = on,
            "xtrace" => self.trace = on,
            "noglob" => self.no_glob = on,
            "noclobber" => self.no_clobber = on,
            "pipefail" => self.pipe_fail = on,
            "allexport" => self.export_all = on,
            "noexec" => self.parse_only = on,
            "posix" | "monitor" | "notify" | "verbose" | "vi" | "emacs" | "errtrace" => {}
            _ => return false,
        }
        true
    }

    /// `$-`
    fn letters(&self) -> String {
        let all = [
            (self.export_all, 'a'),
            (self.exit_on_error, 'e'),
            (self.no_glob, 'f'),
            (self.error_on_unset, 'u'),
            (self.trace, 'x'),
            (self.no_clobber, 'C'),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, letter)| letter).collect()
    }
}

#[cfg(test)]
mod tests;
