//! `awk`, but for what needs processes: `getline` and `system` are not there, and what is printed
//! to a command reaches it at the end.

mod machine;
mod parse;
mod token;
mod turns;
mod value;

use std::collections::HashMap;

use crate::command::{Command, Failure, On, Outcome};
use crate::files::{self, Mode};
use crate::io::{Input, Output};

use self::machine::{Flow, Machine, Moment};
use self::parse::{Pattern, Program, Target, parse};
use self::token::unescaped;

pub async fn awk(command: Command) -> Outcome {
    let (mut separator, mut texts) = (None, Vec::new());
    let mut assignments = Vec::new();
    let mut words = command.args.iter().cloned().peekable();
    // A parser of options takes the `=` of `-F=` for its own.
    while let Some(word) = words.next_if(|word| word.starts_with('-') && word.len() > 1) {
        if word == "--" {
            break;
        }
        let mut letters = word[1..].chars();
        let option = letters.next();
        let value = match letters.as_str() {
            "" => words.next().ok_or_else(|| Failure::usage(format!("{word} needs a value")))?,
            value => value.to_owned(),
        };
        match option {
            Some('F') => separator = Some(value),
            Some('v') => assignments.push(value),
            Some('f') => {
                let text = command.open(&value)?.rest().await.on(&value)?;
                texts.push(String::from_utf8_lossy(&text).into_owned());
            }
            _ => return Err(Failure::usage(format!("{word}: unknown option"))),
        }
    }
    let mut operands: Vec<String> = words.collect();
    if texts.is_empty() {
        if operands.is_empty() {
            return Err(Failure::usage("which program?"));
        }
        texts.push(operands.remove(0));
    }
    let program = parse(&texts.join("\n"))?;
    let mut machine = Machine::new(&program);
    match separator.as_deref() {
        Some("t") => machine.set("FS", "\t"),
        Some(separator) => machine.set("FS", &unescaped(separator)),
        None => {}
    }
    for (name, value) in &command.env {
        machine.set_element("ENVIRON", name, value);
    }
    machine.set("ARGC", &(operands.len() + 1).to_string());
    machine.set_element("ARGV", "0", "awk");
    for (index, operand) in operands.iter().enumerate() {
        machine.set_element("ARGV", &(index + 1).to_string(), operand);
    }
    for assignment in &assignments {
        if !assign(&mut machine, assignment) {
            return Err(Failure::usage(format!("-v {assignment}: NAME=VALUE is needed")));
        }
    }
    let mut job = Job { command, machine, open: HashMap::new(), turns: 0 };
    let flow = job.records(&program, &operands).await;
    job.flush().await?;
    match flow {
        Err(Flow::Failed(failure)) => Err(failure),
        _ => job.commands().await,
    }
}

/// `NAME=VALUE`; false if it is none.
fn assign(machine: &mut Machine<'_>, text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else { return false };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_name {
        machine.set(name, &unescaped(value));
    }
    is_name
}

struct Job<'a> {
    command: Command,
    machine: Machine<'a>,
    /// Files that were printed to.
    open: HashMap<String, Output>,
    /// Turns of loops since others went on.
    turns: u32,
}

impl Job<'_> {
    async fn records(&mut self, program: &Program, operands: &[String]) -> Result<(), Flow> {
        let begun = self.step(Moment::Begin).await;
        self.flush().await?;
        let reads = program.rules.iter().any(|rule| !matches!(rule.pattern, Pattern::Begin));
        let read = match begun {
            Ok(()) if reads => self.inputs(operands).await,
            begun => begun,
        };
        match read {
            Ok(()) | Err(Flow::Exit) => self.step(Moment::End).await,
            Err(flow) => Err(flow),
        }
    }

    async fn inputs(&mut self, operands: &[String]) -> Result<(), Flow> {
        let mut read = false;
        for operand in operands {
            if assign(&mut self.machine, operand) {
                continue;
            }
            read = true;
            self.file(operand).await?;
        }
        if !read {
            self.file("-").await?;
        }
        Ok(())
    }

    async fn file(&mut self, name: &str) -> Result<(), Flow> {
        let input = self.command.open(name)?;
        self.machine.set("FILENAME", if name == "-" { "" } else { name });
        self.machine.set("FNR", "0");
        while let Some(record) = self.record(&input).await.on(name)? {
            self.machine.take(record);
            self.machine.count("NR");
            self.machine.count("FNR");
            let flow = self.step(Moment::Record).await;
            self.flush().await?;
            flow?;
        }
        Ok(())
    }

    /// What is before the next `RS`; without one, paragraphs.
    async fn record(&mut self, input: &Input) -> std::io::Result<Option<String>> {
        let separator = self.machine.variable("RS").text();
        let Some(end) = separator.bytes().next() else {
            return paragraph(input).await;
        };
        let record = input.until(end).await?;
        Ok(record.map(|mut record| {
            record.pop_if(|last| *last == end);
            String::from_utf8_lossy(&record).into_owned()
        }))
    }

    /// Sends what was printed to where it belongs.
    async fn flush(&mut self) -> Result<(), Failure> {
        let out = std::mem::take(&mut self.machine.out);
        if !out.is_empty() {
            self.command.print(out).await?;
        }
        for ((target, name), text) in &mut self.machine.targets {
            let mode = match target {
                Target::File => Mode::Truncate,
                Target::Appended => Mode::Append,
                Target::Command => continue,
            };
            let output = match self.open.get(name) {
                Some(output) => output.clone(),
                None => {
                    let Command { stdout, stderr, .. } = &self.command;
                    let path = self.command.path(name);
                    let opened = files::create(&path, mode, stdout, stderr).on(name)?;
                    self.open.insert(name.clone(), opened.clone());
                    opened
                }
            };
            if !text.is_empty() {
                output.write(std::mem::take(text)).await.on(name)?;
            }
        }
        Ok(())
    }

    /// Runs the commands that were printed to.
    async fn commands(mut self) -> Outcome {
        for ((target, name), text) in std::mem::take(&mut self.machine.targets) {
            if target == Target::Command {
                let words = ["sh", "-c", &name].map(str::to_owned).to_vec();
                let stdin = Input::text(text);
                let command = Command { stdin, ..self.command.with(words) };
                Box::pin(super::run(command)).await;
            }
        }
        Ok(self.machine.code & 0xff)
    }
}

/// Lines up to an empty one.
async fn paragraph(input: &Input) -> std::io::Result<Option<String>> {
    let mut lines: Vec<String> = Vec::new();
    while let Some(line) = input.line().await? {
        match (line.is_empty(), lines.is_empty()) {
            (true, true) => {}
            (true, false) => break,
            _ => lines.push(String::from_utf8_lossy(&line).into_owned()),
        }
    }
    Ok((!lines.is_empty()).then(|| lines.join("\n")))
}
