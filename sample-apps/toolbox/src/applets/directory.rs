//! Applets about files and directories.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lexopt::prelude::*;

use crate::command::{Command, Failure, On, Outcome};
use crate::files;

/// Directories within each other that are walked; the guest's stack is small.
pub const DEPTH_MAX: usize = 128;

pub fn too_deep(path: &Path) -> Failure {
    Failure::new(format!("{}: directories are nested too deeply", path.display()))
}

fn letters(command: &Command, known: &str) -> Result<(String, Vec<String>), Failure> {
    let mut found = String::new();
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short(letter) if known.contains(letter) => found.push(letter),
            Long("parents") => found.push('p'),
            Long("recursive") => found.push('r'),
            Long("force") => found.push('f'),
            Long("all") => found.push('a'),
            Long("color") => {
                options.optional_value();
            }
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((found, names))
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 1024.0 {
            let digits = usize::from(!unit.is_empty() && value < 10.0);
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

fn modified(found: &Metadata) -> Timestamp {
    let time = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub async fn ls(command: Command) -> Outcome {
    let (options, mut names) = letters(&command, "1aAlRrtShdFpCni")?;
    if names.is_empty() {
        names.push(".".to_owned());
    }
    let has = |letter| options.contains(letter);
    let mut code = 0;
    let (mut plain, mut folders) = (Vec::new(), Vec::new());
    for name in &names {
        let path = command.path(name);
        if files::is_dir(&path) && !has('d') {
            folders.push((name.clone(), path));
        } else if files::exists(&path) {
            plain.push((name.clone(), path));
        } else {
            command.complain(&format!("{name}: No such file or directory")).await;
            code = 1;
        }
    }
    if !plain.is_empty() {
        show(&command, plain, &options).await?;
    }
    let titles = names.len() > 1 || has('R');
    let mut first = names.len() == folders.len();
    folders.reverse();
    while let Some((name, path)) = folders.pop() {
        if titles {
            let gap = if first { "" } else { "\n" };
            command.print(format!("{gap}{name}:\n")).await?;
        }
        first = false;
        let mut entries = files::list(&path).on(&name)?;
        entries.retain(|entry| has('a') || has('A') || !entry.starts_with('.'));
        if has('a') {
            entries.splice(0..0, [".".to_owned(), "..".to_owned()]);
        }
        let entries: Vec<(String, PathBuf)> = entries
            .into_iter()
            .map(|entry| {
                let path = files::absolute(&path, &entry);
                (entry, path)
            })
            .collect();
        if has('R') {
            if path.components().count() > DEPTH_MAX {
                return Err(too_deep(&path));
            }
            let below = entries.iter().rev().filter(|(entry, path)| {
                entry != "." && entry != ".." && path.is_dir() && !path.is_symlink()
            });
            folders.extend(below.map(|(entry, path)| (format!("{name}/{entry}"), path.clone())));
        }
        show(&command, entries, &options).await?;
    }
    Ok(code)
}

async fn show(
    command: &Command,
    mut entries: Vec<(String, PathBuf)>,
    options: &str,
) -> Result<(), Failure> {
    let has = |letter| options.contains(letter);
    if has('t') {
        let time = |path: &PathBuf| path.symlink_metadata().map(|found| modified(&found)).ok();
        entries.sort_by_key(|(_, path)| std::cmp::Reverse(time(path)));
    } else if has('S') {
        let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |found| found.len());
        entries.sort_by_key(|(_, path)| std::cmp::Reverse(size(path)));
    }
    if has('r') {
        entries.reverse();
    }
    for (name, path) in entries {
        let mark = if (has('F') || has('p')) && files::is_dir(&path) { "/" } else { "" };
        if !has('l') {
            command.print(format!("{name}{mark}\n")).await?;
            continue;
        }
        let Ok(found) = path.symlink_metadata() else {
            // Part of the way to a mount, or a device: there is nothing to be known of it.
            let kind = if files::is_device(&path) { "crw-rw-rw-" } else { "drwxr-xr-x" };
            command.print(format!("{kind}    1 nobody   nobody           0 {name}\n")).await?;
            continue;
        };
        let target = match fs::read_link(&path) {
            Ok(target) if found.is_symlink() => format!(" -> {}", target.display()),
            _ => String::new(),
        };
        let size = if has('h') { human(found.len()) } else { found.len().to_string() };
        let time = modified(&found).to_zoned(TimeZone::UTC).strftime("%b %e %H:%M").to_string();
        let mode = mode(&found);
        let line = format!("{mode}    1 nobody   nobody   {size:>9} {time} {name}{mark}{target}\n");
        command.print(line).await?;
    }
    Ok(())
}

/// WASI knows the type of a file, and nothing of its owners' rights.
fn mode(found: &Metadata) -> &'static str {
    if found.is_symlink() {
        "lrwxrwxrwx"
    } else if found.is_dir() {
        "drwxr-xr-x"
    } else {
        "-rw-r--r--"
    }
}

pub async fn mkdir(command: Command) -> Outcome {
    let mut parents = false;
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('p') | Long("parents") => parents = true,
            Short('m') | Long("mode") => drop(options.value()?),
            Short('v') => {}
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    for name in &names {
        let path = command.path(name);
        if parents && files::is_dir(&path) {
            continue;
        }
        let made = if parents { create_all(&path) } else { fs::create_dir(&path) };
        files::changed(&path, made).map_err(|error| {
            Failure::new(format!("can't create directory '{name}': {}", files::reason(&error)))
        })?;
    }
    Ok(0)
}

/// Makes what is missing, from the nearest directory that is there.
pub fn create_all(path: &Path) -> io::Result<()> {
    if files::is_dir(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && !files::is_dir(parent)
        && parent.parent().is_some()
    {
        create_all(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

pub async fn rmdir(command: Command) -> Outcome {
    let (options, names) = letters(&command, "p")?;
    for name in &names {
        fs::remove_dir(command.path(name)).on(name)?;
        let mut parent = Path::new(name).parent();
        while let Some(path) =
            parent.filter(|path| options.contains('p') && path.file_name().is_some())
        {
            let shown = path.to_string_lossy();
            fs::remove_dir(command.path(&shown)).on(&shown)?;
            parent = path.parent();
        }
    }
    Ok(0)
}

pub async fn rm(command: Command) -> Outcome {
    let (options, names) = letters(&command, "rRfiv")?;
    let recursive = options.contains(['r', 'R']);
    let force = options.contains('f');
    let mut code = 0;
    for name in &names {
        let path = command.path(name);
        if path.parent().is_none() {
            return Err(Failure::new("it is dangerous to remove /"));
        }
        let removed = match path.symlink_metadata() {
            Err(_) if force => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() && !recursive => Err(io::Error::other("is a directory")),
            Ok(_) => files::changed(&path, remove(&path, 0)),
        };
        if let Err(error) = removed {
            command.complain(&format!("can't remove '{name}': {}", files::reason(&error))).await;
            code = 1;
        }
    }
    Ok(code)
}

fn remove(path: &Path, depth: usize) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    for entry in fs::read_dir(path)? {
        remove(&entry?.path(), depth + 1)?;
    }
    fs::remove_dir(path)
}

/// Sources and target of `cp` and `mv`: where each source goes.
fn pairs(command: &Command, names: &[String]) -> Result<Vec<(String, PathBuf, PathBuf)>, Failure> {
    let [sources @ .., target] = names else {
        return Err(Failure::usage("from where, to where?"));
    };
    if sources.is_empty() {
        return Err(Failure::usage("from where, to where?"));
    }
    let into = command.path(target);
    let folder = files::is_dir(&into);
    if sources.len() > 1 && !folder {
        return Err(Failure::new(format!("{target}: Not a directory")));
    }
    let pair = |name: &String| {
        let from = command.path(name);
        let to = match from.file_name() {
            Some(last) if folder && !means_contents(name) => into.join(last),
            _ => into.clone(),
        };
        (name.clone(), from, to)
    };
    Ok(sources.iter().map(pair).collect())
}

/// Whether a name stands for what is in a directory (`cp -r from/. to`): its last part is no name.
fn means_contents(name: &str) -> bool {
    matches!(name.trim_end_matches('/').rsplit('/').next(), Some("." | ".."))
}

pub async fn cp(command: Command) -> Outcome {
    let (options, names) = letters(&command, "rRafpdPLHvinu")?;
    let recursive = options.contains(['r', 'R', 'a']);
    for (name, from, to) in pairs(&command, &names)? {
        if from.is_dir() && !recursive {
            return Err(Failure::new(format!("omitting directory '{name}'")));
        }
        if options.contains('n') && to.exists() {
            continue;
        }
        files::changed(&to, copy(&from, &to, 0)).on(&name)?;
    }
    Ok(0)
}

fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if !from.is_dir() {
        if files::are_same(from, to) {
            // It would be emptied before it is read.
            return Err(io::Error::other(format!("it and {} are the same file", to.display())));
        }
        let mut source = File::open(from)?;
        let mut target = File::create(to)?;
        io::copy(&mut source, &mut target)?;
        return Ok(());
    }
    if depth > DEPTH_MAX || to.starts_with(from) {
        return Err(io::Error::other("the target lies within the source"));
    }
    create_all(to)?;
    for name in files::list(from)? {
        copy(&from.join(&name), &to.join(&name), depth + 1)?;
    }
    Ok(())
}

pub async fn mv(command: Command) -> Outcome {
    let (options, names) = letters(&command, "finv")?;
    for (name, from, to) in pairs(&command, &names)? {
        if options.contains('n') && to.exists() {
            continue;
        }
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                // Another volume.
                copy(&from, &to, 0).on(&name)?;
                remove(&from, 0).on(&name)?;
            }
            moved => moved.on(&name)?,
        }
    }
    Ok(0)
}

/// `ln [-sfn] TARGET [NAME]`
pub async fn ln(command: Command) -> Outcome {
    let (options, mut names) = letters(&command, "sfnTvr")?;
    if names.len() == 1 {
        names.push(".".to_owned());
    }
    let mut links = pairs(&command, &names)?;
    if let ([link], [name, last]) = (&mut links[..], &names[..])
        && options.contains(['n', 'T'])
        && command.path(last).is_symlink()
    {
        // The link itself is meant, not the directory that it leads to.
        *link = (name.clone(), command.path(name), command.path(last));
    }
    for (name, from, to) in links {
        if options.contains('f') && to.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            fs::remove_file(&to).on(&name)?;
        }
        let made = match options.contains('s') {
            true if Path::new(&name).is_absolute() => symlink(&way(&to, &from), &to),
            true => symlink(Path::new(&name), &to),
            false => fs::hard_link(&from, &to),
        };
        made.on(&to.to_string_lossy())?;
    }
    Ok(0)
}

/// Deprecated where links to files and directories differ; here they do not.
#[allow(deprecated)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    fs::soft_link(target, link)
}

/// How to get from a link's directory to its target: WASI has no links to absolute paths.
fn way(link: &Path, target: &Path) -> PathBuf {
    let folder = link.parent().unwrap_or(Path::new("/"));
    let shared = folder.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(target.components().skip(shared)).collect();
    if way.as_os_str().is_empty() { PathBuf::from(".") } else { way }
}

pub async fn touch(command: Command) -> Outcome {
    let mut create = true;
    let mut time = SystemTime::now();
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('c') => create = false,
            Short('a' | 'm') => {}
            Short('r') => {
                let name = options.value()?.string()?;
                time =
                    command.path(&name).metadata().and_then(|found| found.modified()).on(&name)?;
            }
            Short('d' | 't') => {
                time = super::system::parsed(&options.value()?.string()?)?.into();
            }
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    for name in &names {
        let path = command.path(name);
        if !create && !path.exists() {
            continue;
        }
        let mut file = OpenOptions::new();
        let file = files::changed(&path, file.append(true).create(true).open(&path)).on(name)?;
        // A file system that keeps no times has them as it wants.
        let _ = file.set_modified(time);
    }
    Ok(0)
}

pub async fn stat(command: Command) -> Outcome {
    let mut format = None;
    let mut names = Vec::new();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('c') | Long("format") => format = Some(options.value()?.string()?),
            Short('L') => {}
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    for name in &names {
        let found = command.path(name).symlink_metadata().on(name)?;
        let kind = if found.is_symlink() {
            "symbolic link"
        } else if found.is_dir() {
            "directory"
        } else {
            "regular file"
        };
        let (time, bytes) = (modified(&found), found.len().to_string());
        let text = match &format {
            Some(format) => {
                let seconds = time.as_second().to_string();
                let rights = if found.is_dir() { "755" } else { "644" };
                let values = [
                    ("%n", name.as_str()),
                    ("%s", &bytes),
                    ("%F", kind),
                    ("%Y", &seconds),
                    ("%a", rights),
                    ("%A", mode(&found)),
                    ("%U", "nobody"),
                    ("%G", "nobody"),
                    ("%u", "65534"),
                    ("%g", "65534"),
                ];
                values.iter().fold(format.clone(), |text, (from, to)| text.replace(from, to))
            }
            None => format!("  File: {name}\n  Size: {bytes}\t{kind}\nModify: {time}"),
        };
        command.print(text + "\n").await?;
    }
    Ok(0)
}

pub async fn mktemp(command: Command) -> Outcome {
    let (options, names) = letters(&command, "dqut")?;
    let folder = command.env.get("TMPDIR").map_or("/tmp", String::as_str);
    let template = names.first().cloned().unwrap_or_else(|| format!("{folder}/tmp.XXXXXX"));
    let stem = template.trim_end_matches('X');
    let wanted = template.len() - stem.len();
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let random = crate::io::Input::random().chunk(wanted.max(6)).await?;
    let end: String =
        random.iter().map(|byte| char::from(letters[usize::from(*byte) % letters.len()])).collect();
    let name = format!("{stem}{end}");
    let path = command.path(&name);
    if options.contains('d') {
        fs::create_dir(&path).on(&name)?;
    } else {
        OpenOptions::new().write(true).create_new(true).open(&path).on(&name)?;
    }
    command.print(format!("{name}\n")).await?;
    Ok(0)
}

pub async fn readlink(command: Command) -> Outcome {
    let (options, names) = letters(&command, "fenm")?;
    for name in &names {
        let path = command.path(name);
        let target = match options.contains(['f', 'e', 'm']) {
            true => resolved(&path),
            false => match fs::read_link(&path) {
                Ok(target) => target,
                Err(_) => return Ok(1),
            },
        };
        command.print(format!("{}\n", target.display())).await?;
    }
    Ok(0)
}

/// Follows links in the last part, as far as WASI tells where they lead.
fn resolved(path: &Path) -> PathBuf {
    const LINKS_MAX: usize = 32;
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else { break };
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        path = files::absolute(&parent, &target.to_string_lossy());
    }
    path
}

pub async fn realpath(command: Command) -> Outcome {
    for name in &command.args {
        let path = command.path(name);
        if !files::exists(&path) {
            return Err(Failure::new(format!("{name}: No such file or directory")));
        }
        command.print(format!("{}\n", resolved(&path).display())).await?;
    }
    Ok(0)
}

pub async fn du(command: Command) -> Outcome {
    let (options, mut names) = letters(&command, "shkacm")?;
    if names.is_empty() {
        names.push(".".to_owned());
    }
    for name in &names {
        let bytes = size(&command.path(name), 0).on(name)?;
        let shown = match options.contains('h') {
            true => human(bytes),
            false => bytes.div_ceil(1024).to_string(),
        };
        command.print(format!("{shown}\t{name}\n")).await?;
    }
    Ok(0)
}

fn size(path: &Path, depth: usize) -> io::Result<u64> {
    if !files::is_dir(path) || path.is_symlink() {
        return Ok(path.symlink_metadata()?.len());
    }
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let mut total = 0;
    for name in files::list(path)? {
        total += size(&path.join(name), depth + 1)?;
    }
    Ok(total)
}
