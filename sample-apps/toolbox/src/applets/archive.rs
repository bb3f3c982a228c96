//! `tar` and `gzip`. Archives are read and written as they flow: a file never lies in memory as a
//! whole. An archive is a stranger's work: names that lead out of the target are refused.

use std::fs;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use tar::{EntryType, Header};

use crate::command::{Command, Failure, On, Outcome};
use crate::files;
use crate::io::{Input, Output, pipe};

use super::directory::{DEPTH_MAX, create_all, too_deep};

const BLOCK: usize = 512;
const CHUNK: usize = 64 << 10;
/// The longest name and the longest list of attributes in an archive.
const NAME_BYTES_MAX: u64 = 64 << 10;

/// What was asked of `tar`.
#[derive(Default)]
struct Tar {
    mode: Option<char>,
    file: Option<String>,
    verbose: bool,
    gzip: bool,
    to_stdout: bool,
    keep_times: bool,
    strip: usize,
    folder: Option<PathBuf>,
    excluded: Vec<String>,
    names: Vec<String>,
}

fn options(command: &Command) -> Result<Tar, Failure> {
    let mut tar = Tar { keep_times: true, ..Tar::default() };
    let mut words = command.args.iter().cloned().enumerate();
    while let Some((index, word)) = words.next() {
        let mut value = || {
            let missing = || Failure::usage(format!("{word} needs a value"));
            words.next().map(|(_, value)| value).ok_or_else(missing)
        };
        if let Some(long) = word.strip_prefix("--") {
            match long.split_once('=').unwrap_or((long, "")) {
                ("create", _) => tar.mode = Some('c'),
                ("extract" | "get", _) => tar.mode = Some('x'),
                ("list", _) => tar.mode = Some('t'),
                ("gzip", _) => tar.gzip = true,
                ("verbose", _) => tar.verbose = true,
                ("file", "") => tar.file = Some(value()?),
                ("file", name) => tar.file = Some(name.to_owned()),
                ("directory", "") => tar.folder = Some(command.path(&value()?)),
                ("directory", name) => tar.folder = Some(command.path(name)),
                ("strip-components", count) => {
                    tar.strip = count.parse().map_err(|_| Failure::usage("how many parts?"))?;
                }
                ("exclude", pattern) => tar.excluded.push(pattern.to_owned()),
                ("to-stdout", _) => tar.to_stdout = true,
                ("touch", _) => tar.keep_times = false,
                // Owners, rights and links to be followed: there are none here.
                ("no-same-permissions" | "no-same-owner" | "same-permissions", _)
                | ("same-owner" | "preserve-permissions" | "overwrite" | "numeric-owner", _)
                | ("dereference" | "no-recursion" | "keep-old-files" | "owner" | "group", _) => {}
                _ => return Err(Failure::usage(format!("{word}: unknown option"))),
            }
            continue;
        }
        // The first word may lack its dash.
        let letters = match word.strip_prefix('-') {
            Some(letters) if !letters.is_empty() => letters.to_owned(),
            None if index == 0 => word.clone(),
            _ => {
                tar.names.push(word.clone());
                continue;
            }
        };
        for letter in letters.chars() {
            match letter {
                'c' | 'x' | 't' => tar.mode = Some(letter),
                'z' => tar.gzip = true,
                'v' => tar.verbose = true,
                'm' => tar.keep_times = false,
                'O' => tar.to_stdout = true,
                'f' => tar.file = Some(value()?),
                'C' => tar.folder = Some(command.path(&value()?)),
                'p' | 'o' | 'h' | 'P' | 'k' | 'U' => {}
                other => return Err(Failure::usage(format!("-{other}: unknown option"))),
            }
        }
    }
    Ok(tar)
}

pub async fn tar(command: Command) -> Outcome {
    let tar = options(&command)?;
    let mut inner = command.clone();
    if let Some(folder) = &tar.folder {
        inner.cwd = folder.clone();
    }
    let file = tar.file.clone().unwrap_or_else(|| "-".to_owned());
    match tar.mode {
        Some('c') => {
            let output = command.create(&file)?;
            if tar.gzip {
                let (reader, writer) = pipe();
                let made = create(inner, &tar, writer);
                let (made, pressed) = futures::join!(made, compress(&reader, &output, 6));
                made?;
                pressed?;
            } else {
                create(inner, &tar, output).await?;
            }
        }
        Some(_) => {
            let input = command.open(&file)?;
            let first = input.peek().await.on(&file)?;
            if tar.gzip || first.starts_with(&[0x1f, 0x8b]) {
                let (reader, writer) = pipe();
                let press = async {
                    let done = decompress(&input, &writer).await;
                    drop(writer);
                    done
                };
                let (read, pressed) = futures::join!(extract(&inner, &tar, &reader), press);
                read?;
                pressed?;
            } else {
                extract(&inner, &tar, &input).await?;
            }
        }
        None => return Err(Failure::usage("one of -c, -x and -t is needed")),
    }
    Ok(0)
}

fn is_excluded(tar: &Tar, name: &str) -> bool {
    tar.excluded.iter().any(|pattern| {
        crate::shell::name_matches(pattern, Path::new(name)) || name.starts_with(pattern.as_str())
    })
}

async fn create(command: Command, tar: &Tar, output: Output) -> Result<(), Failure> {
    if tar.names.is_empty() {
        return Err(Failure::usage("there is nothing to put into the archive"));
    }
    let mut stack: Vec<String> = tar.names.iter().rev().cloned().collect();
    while let Some(name) = stack.pop() {
        if is_excluded(tar, &name) {
            continue;
        }
        let path = command.path(&name);
        if path.components().count() > DEPTH_MAX {
            return Err(too_deep(&path));
        }
        if tar.verbose {
            command.stderr.write(format!("{name}\n")).await?;
        }
        let found = path.symlink_metadata();
        let folder = files::is_dir(&path) && !path.is_symlink();
        let mut header = Header::new_gnu();
        let modified = found.as_ref().ok().and_then(|found| found.modified().ok());
        let since = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        header.set_mtime(since.unwrap_or(Duration::ZERO).as_secs());
        header.set_mode(if folder { 0o755 } else { 0o644 });
        header.set_size(0);
        let stored = name.trim_start_matches('/');
        let stored = if stored.is_empty() { "." } else { stored };
        if folder {
            header.set_entry_type(EntryType::Directory);
            put(&output, header, &format!("{}/", stored.trim_end_matches('/')), None).await?;
            let below = files::list(&path).on(&name)?;
            let name = name.trim_end_matches('/').to_owned();
            stack.extend(below.into_iter().rev().map(|entry| format!("{name}/{entry}")));
        } else if let (true, Ok(target)) = (path.is_symlink(), fs::read_link(&path)) {
            header.set_entry_type(EntryType::Symlink);
            put(&output, header, stored, Some(&target.to_string_lossy())).await?;
        } else {
            let size = found.on(&name)?.len();
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            put(&output, header, stored, None).await?;
            let input = command.open(&name)?;
            copy_exactly(&input, &output, size).await.map_err(|failure| Failure {
                message: format!("{name}: {}", failure.message),
                ..failure
            })?;
            output.write(vec![0; padding(size)]).await?;
        }
    }
    output.write([0; 2 * BLOCK]).await?;
    Ok(())
}

fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// One header; a name that is too long for it comes before it, as GNU does it.
async fn put(
    output: &Output,
    mut header: Header,
    name: &str,
    target: Option<&str>,
) -> Result<(), Failure> {
    for (kind, long) in [(EntryType::GNULongName, Some(name)), (EntryType::GNULongLink, target)] {
        let Some(text) = long.filter(|text| text.len() > 100) else { continue };
        let mut before = Header::new_gnu();
        before.set_entry_type(kind);
        let size = text.len() as u64 + 1;
        before.set_size(size);
        before.set_path("././@LongLink").map_err(Failure::from)?;
        before.set_cksum();
        output.write(before.as_bytes()).await?;
        output.write(text).await?;
        output.write(vec![0; 1 + padding(size)]).await?;
    }
    let cut = |text: &str| text.bytes().take(100).collect::<Vec<u8>>();
    let name = cut(name);
    header.as_old_mut().name[..name.len()].copy_from_slice(&name);
    if let Some(target) = target.map(cut) {
        header.as_old_mut().linkname[..target.len()].copy_from_slice(&target);
    }
    header.set_uid(65_534);
    header.set_gid(65_534);
    header.set_cksum();
    output.write(header.as_bytes()).await?;
    Ok(())
}

async fn copy_exactly(input: &Input, output: &Output, size: u64) -> Result<(), Failure> {
    let mut left = size;
    while left > 0 {
        let chunk = input.chunk(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)).await?;
        if chunk.is_empty() {
            return Err(Failure::new("it ended too early"));
        }
        left -= chunk.len() as u64;
        output.write(chunk).await?;
    }
    Ok(())
}

async fn exactly(input: &Input, size: u64) -> Result<Vec<u8>, Failure> {
    let memory = Output::memory();
    copy_exactly(input, &memory, size).await?;
    Ok(memory.take())
}

/// The next header; None at the end of the archive.
async fn next_header(input: &Input) -> Result<Option<Header>, Failure> {
    if input.peek().await?.is_empty() {
        return Ok(None);
    }
    let block = exactly(input, BLOCK as u64).await?;
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let header = Header::from_byte_slice(&block).clone();
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
    if header.cksum().ok() != Some(sum + 8 * u32::from(b' ')) {
        return Err(Failure::new("this does not look like a tar archive"));
    }
    Ok(Some(header))
}

async fn extract(command: &Command, tar: &Tar, input: &Input) -> Result<(), Failure> {
    let (mut long_name, mut long_target) = (None, None);
    while let Some(header) = next_header(input).await? {
        let size = header.entry_size()?;
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if is_extension {
            if size > NAME_BYTES_MAX {
                return Err(Failure::new("a name in the archive is too long"));
            }
            let text = exactly(input, size).await?;
            exactly(input, padding(size) as u64).await?;
            let plain = String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned();
            if kind.is_gnu_longname() {
                long_name = Some(plain);
            } else if kind.is_gnu_longlink() {
                long_target = Some(plain);
            } else if kind.is_pax_local_extensions() {
                long_name = attribute(&plain, "path").or(long_name);
                long_target = attribute(&plain, "linkpath").or(long_target);
            }
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
        let target = long_target.take().or_else(|| {
            header.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned())
        });
        entry(command, tar, input, &header, &name, target).await?;
        exactly(input, padding(size) as u64).await?;
    }
    // What comes after the end is padding; a writer shall not fail for it.
    while !input.chunk(CHUNK).await?.is_empty() {}
    Ok(())
}

/// `LENGTH NAME=VALUE` lines.
fn attribute(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (_, pair) = line.split_once(' ')?;
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.to_owned())
    })
}

async fn entry(
    command: &Command,
    tar: &Tar,
    input: &Input,
    header: &Header,
    name: &str,
    target: Option<String>,
) -> Result<(), Failure> {
    let size = header.entry_size()?;
    let wanted = tar.names.is_empty()
        || tar.names.iter().any(|wanted| {
            let wanted = wanted.trim_end_matches('/');
            name == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/'))
        });
    let skip = |size| copy_exactly_to_nowhere(input, size);
    if !wanted || is_excluded(tar, name) {
        return skip(size).await;
    }
    if tar.mode == Some('t') {
        command.print(format!("{name}\n")).await?;
        return skip(size).await;
    }
    if tar.to_stdout {
        return copy_exactly(input, &command.stdout, size).await;
    }
    let Some(path) = within(&command.cwd, name, tar.strip)? else { return skip(size).await };
    if tar.verbose {
        command.stderr.write(format!("{name}\n")).await?;
    }
    match header.entry_type() {
        EntryType::Directory => create_all(&path).on(name)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            if let Some(parent) = path.parent() {
                create_all(parent).on(name)?;
            }
            let file = fs::File::create(&path).on(name)?;
            let output = Output::file(file);
            copy_exactly(input, &output, size).await?;
            if let (true, Ok(seconds), Some(file)) =
                (tar.keep_times, header.mtime(), output.as_file())
            {
                let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
                // A file system that keeps no times has them as it wants.
                let _ = time.map(|time| file.borrow().set_modified(time));
            }
        }
        EntryType::Link => {
            // The same content: there are no links between files in WASI's standard library.
            let source = within(&command.cwd, &target.unwrap_or_default(), tar.strip)?;
            if let Some(source) = source {
                fs::copy(source, &path).on(name)?;
            }
        }
        _ => {
            let what = format!("{name}: left out: links and devices cannot be made here");
            command.complain(&what).await;
            skip(size).await?;
        }
    }
    Ok(())
}

async fn copy_exactly_to_nowhere(input: &Input, size: u64) -> Result<(), Failure> {
    copy_exactly(input, &Output::null(), size).await
}

/// Where a name of the archive lies; an error if that is outside of the target.
fn within(folder: &Path, name: &str, strip: usize) -> Result<Option<PathBuf>, Failure> {
    let mut path = folder.to_owned();
    let mut parts = 0;
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => {
                parts += 1;
                if parts > strip {
                    path.push(part);
                }
            }
            Component::ParentDir => {
                return Err(Failure::new(format!("{name}: leads out of the target; refused")));
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok((parts > strip || parts == 0).then_some(path))
}

/// Presses everything that comes in.
async fn compress(input: &Input, output: &Output, level: u32) -> Result<(), Failure> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    loop {
        let chunk = input.chunk(CHUNK).await?;
        if chunk.is_empty() {
            output.write(encoder.finish()?).await?;
            return Ok(());
        }
        encoder.write_all(&chunk)?;
        output.write(std::mem::take(encoder.get_mut())).await?;
    }
}

/// The opposite, also of several streams in a row.
async fn decompress(input: &Input, output: &Output) -> Result<(), Failure> {
    let mut decoder = MultiGzDecoder::new(Vec::new());
    let bad = |_| Failure::new("invalid gzip data");
    loop {
        let chunk = input.chunk(CHUNK).await?;
        if chunk.is_empty() {
            output.write(decoder.finish().map_err(bad)?).await?;
            return Ok(());
        }
        // Small pieces, since a little input can become very much output.
        for piece in chunk.chunks(1024) {
            decoder.write_all(piece).map_err(bad)?;
            output.write(std::mem::take(decoder.get_mut())).await?;
        }
    }
}

pub async fn gzip(command: Command) -> Outcome {
    press(command, "").await
}

pub async fn gunzip(command: Command) -> Outcome {
    press(command, "d").await
}

pub async fn zcat(command: Command) -> Outcome {
    press(command, "dc").await
}

async fn press(command: Command, implied: &str) -> Outcome {
    let mut options = implied.to_owned();
    let mut names = Vec::new();
    for word in &command.args {
        match word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            Some(letters) => options.push_str(letters),
            None => names.push(word.clone()),
        }
    }
    let level = options.chars().find_map(|letter| letter.to_digit(10)).unwrap_or(6);
    let decodes = options.contains('d');
    let keeps = options.contains(['c', 'k']);
    for name in command.inputs(&names) {
        let input = command.open(&name)?;
        let target = match (options.contains('c') || name == "-", decodes) {
            (true, _) => "-".to_owned(),
            (false, false) => format!("{name}.gz"),
            (false, true) => match name.strip_suffix(".gz").or(name.strip_suffix(".z")) {
                Some(stem) => stem.to_owned(),
                None => match name.strip_suffix(".tgz") {
                    Some(stem) => format!("{stem}.tar"),
                    None => return Err(Failure::new(format!("{name}: unknown suffix"))),
                },
            },
        };
        let output = command.create(&target)?;
        match decodes {
            true => decompress(&input, &output).await?,
            false => compress(&input, &output, level).await?,
        }
        if !keeps && target != "-" {
            fs::remove_file(command.path(&name)).on(&name)?;
        }
    }
    Ok(0)
}
