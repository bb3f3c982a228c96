//! Applets about the bytes of files: `cmp`, `dd`, `fallocate`, `truncate`.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::time::Instant;

use lexopt::prelude::*;

use super::count;
use super::directory::human;
use crate::command::{Command, Failure, On, Outcome};
use crate::files;
use crate::io::{Input, Output};

/// What is held of a file at once; a block may be larger.
const PIECE_BYTES: usize = 64 << 10;
/// What a block is if nothing else is said.
const BLOCK_BYTES: u64 = 512;

/// What `dd` shall do.
struct Task {
    from: Option<String>,
    to: Option<String>,
    block: u64,
    count: Option<u64>,
    skip: u64,
    seek: u64,
    keep: bool,
    append: bool,
    silent: bool,
}

fn operands(command: &Command) -> Result<Task, Failure> {
    let mut task = Task {
        from: None,
        to: None,
        block: BLOCK_BYTES,
        count: None,
        skip: 0,
        seek: 0,
        keep: false,
        append: false,
        silent: false,
    };
    for word in &command.args {
        let unknown = || Failure::usage(format!("{word}: unknown operand"));
        let (name, value) = word.split_once('=').ok_or_else(unknown)?;
        match name {
            "if" => task.from = Some(value.to_owned()),
            "of" => task.to = Some(value.to_owned()),
            "bs" | "ibs" | "obs" => task.block = count(value)?,
            "count" => task.count = Some(count(value)?),
            "skip" | "iseek" => task.skip = count(value)?,
            "seek" | "oseek" => task.seek = count(value)?,
            "status" => task.silent = value == "none",
            "conv" | "iflag" | "oflag" => {
                for flag in value.split(',') {
                    match flag {
                        "notrunc" => task.keep = true,
                        "append" => task.append = true,
                        // How it is here anyway, or nothing that WASI could do otherwise.
                        "fsync" | "fdatasync" | "sync" | "dsync" | "direct" | "fullblock"
                        | "nonblock" | "noerror" => {}
                        _ => return Err(Failure::usage(format!("{flag}: unknown flag"))),
                    }
                }
            }
            _ => return Err(unknown()),
        }
    }
    if task.block == 0 {
        return Err(Failure::usage("a block has at least one byte"));
    }
    Ok(task)
}

/// `dd [if=FILE] [of=FILE] [bs=N] [count=N] [skip=N] [seek=N] [conv=notrunc] [status=none]`
pub async fn dd(command: Command) -> Outcome {
    let task = operands(&command)?;
    let started = Instant::now();
    let (from, input) = match &task.from {
        Some(name) => (name.as_str(), command.open(name)?),
        None => ("standard input", command.stdin.clone()),
    };
    let mut skipped = task.skip.saturating_mul(task.block);
    while skipped > 0 {
        let passed = moved(&input, None, skipped.min(task.block), (from, "")).await?;
        if passed == 0 {
            break;
        }
        skipped -= passed;
    }
    let (to, output) = match &task.to {
        Some(name) => (name.as_str(), target(&command, &task, name).on(name)?),
        None => ("standard output", command.stdout.clone()),
    };
    let (mut full, mut short, mut bytes) = (0u64, 0u64, 0u64);
    while task.count.is_none_or(|count| full < count) {
        let block = moved(&input, Some(&output), task.block, (from, to)).await?;
        bytes += block;
        if block < task.block {
            // The end.
            short = u64::from(block > 0);
            break;
        }
        full += 1;
    }
    if !task.silent {
        let seconds = started.elapsed().as_secs_f64();
        let speed = human((bytes as f64 / seconds.max(1e-6)) as u64);
        let text = format!(
            "{full}+{short} records in\n{full}+{short} records out\n\
             {bytes} bytes ({}B) copied, {seconds:.6} seconds, {speed}B/s\n",
            human(bytes)
        );
        command.stderr.write(text).await?;
    }
    Ok(0)
}

/// Where `dd` writes: at the wanted place, behind which nothing is left unless it shall be kept.
fn target(command: &Command, task: &Task, name: &str) -> io::Result<Output> {
    let mode = if task.append {
        files::Mode::Append
    } else if task.keep || task.seek > 0 {
        files::Mode::ReadWrite
    } else {
        files::Mode::Truncate
    };
    let output = files::create(&command.path(name), mode, &command.stdout, &command.stderr)?;
    if let Some(file) = output.as_file().filter(|_| task.seek > 0 && !task.append) {
        let place = task.seek.saturating_mul(task.block);
        let mut file = file.borrow_mut();
        if !task.keep {
            file.set_len(place)?;
        }
        file.seek(SeekFrom::Start(place))?;
    }
    Ok(output)
}

/// Moves one block, or what is left. Returns how much that was.
async fn moved(
    input: &Input,
    output: Option<&Output>,
    block: u64,
    (from, to): (&str, &str),
) -> Result<u64, Failure> {
    let mut left = block;
    while left > 0 {
        let most = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let piece = input.chunk(most).await.on(from)?;
        if piece.is_empty() {
            break;
        }
        left -= piece.len() as u64;
        if let Some(output) = output {
            output.write(&piece).await.on(to)?;
        }
    }
    Ok(block - left)
}

/// `cmp [-s] FILE FILE`
pub async fn cmp(command: Command) -> Outcome {
    let silent = command.args.iter().any(|word| word == "-s" || word == "-q");
    let names: Vec<&String> =
        command.args.iter().filter(|word| !word.starts_with('-') || *word == "-").collect();
    let [left, right] = names[..] else { return Err(Failure::usage("which two files?")) };
    let inputs = (command.open(left)?, command.open(right)?);
    let (mut place, mut line) = (1u64, 1u64);
    loop {
        let pieces = (piece(&inputs.0, left).await?, piece(&inputs.1, right).await?);
        for (one, other) in pieces.0.iter().zip(&pieces.1) {
            if one != other {
                if !silent {
                    let text = format!("{left} {right} differ: char {place}, line {line}\n");
                    command.print(text).await?;
                }
                return Ok(1);
            }
            place += 1;
            line += u64::from(*one == b'\n');
        }
        if pieces.0.len() != pieces.1.len() {
            let shorter = if pieces.0.len() < pieces.1.len() { left } else { right };
            if !silent {
                command.complain(&format!("EOF on {shorter}")).await;
            }
            return Ok(1);
        }
        if pieces.0.is_empty() {
            return Ok(0);
        }
    }
}

/// As much as is held at once; less only at the end.
async fn piece(input: &Input, name: &str) -> Result<Vec<u8>, Failure> {
    let mut piece = Vec::new();
    while piece.len() < PIECE_BYTES {
        let more = input.chunk(PIECE_BYTES - piece.len()).await.on(name)?;
        if more.is_empty() {
            break;
        }
        piece.extend_from_slice(&more);
    }
    Ok(piece)
}

/// A size and names, as `truncate -s` and `fallocate -l` take them.
fn sized(command: &Command) -> Result<(u64, Vec<String>), Failure> {
    let mut size = None;
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('s' | 'l') | Long("size" | "length") => {
                size = Some(count(&options.value()?.string()?)?);
            }
            Short('c') => {}
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((size.ok_or_else(|| Failure::usage("which size?"))?, names))
}

pub async fn truncate(command: Command) -> Outcome {
    let (size, names) = sized(&command)?;
    for name in &names {
        opened(&command, name).and_then(|file| file.set_len(size)).on(name)?;
    }
    Ok(0)
}

/// Takes the space: what is missing is written.
pub async fn fallocate(command: Command) -> Outcome {
    let (size, names) = sized(&command)?;
    for name in &names {
        let mut file = opened(&command, name).on(name)?;
        let mut length = file.seek(SeekFrom::End(0)).on(name)?;
        let zeros = vec![0; PIECE_BYTES];
        while length < size {
            let most = usize::try_from(size - length).map_or(PIECE_BYTES, |it| it.min(PIECE_BYTES));
            file.write_all(&zeros[..most]).on(name)?;
            length += most as u64;
            crate::runtime::yield_now().await;
        }
    }
    Ok(0)
}

fn opened(command: &Command, name: &str) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(command.path(name))
}
