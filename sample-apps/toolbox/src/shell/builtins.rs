//! Commands that change the shell itself.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use futures::future::{AbortHandle, Abortable, Either, FutureExt, LocalBoxFuture, select};

use super::{Flow, Job, JobState, Run, Shell, Variable, expand};
use crate::applets;
use crate::command::{Failure, Outcome};
use crate::files;
use crate::runtime;
use crate::signals::Signal;

type Builtin = for<'a> fn(&'a mut Shell, Vec<String>) -> LocalBoxFuture<'a, Run<Outcome>>;

/// The number of the shell, `$$`.
pub(super) const SHELL: &str = "1";
/// The first number of a job.
const JOB_FIRST: usize = 100;
/// What a job that was killed ends with: 128 + SIGTERM.
const CODE_TERMINATED: i32 = 143;

/// Name, whether POSIX calls it special, and what it does.
#[rustfmt::skip] // a table
const BUILTINS: &[(&str, bool, Builtin)] = &[
    (":", true, |_, _| ok(Ok(0))),
    (".", true, |shell, words| source(shell, words).boxed_local()),
    ("source", true, |shell, words| source(shell, words).boxed_local()),
    ("alias", false, |shell, words| alias(shell, words).boxed_local()),
    ("unalias", false, |shell, words| {
        let all = words.get(1).is_some_and(|word| word == "-a");
        shell.aliases.retain(|name, _| !all && !words[1..].contains(name));
        ok(Ok(0))
    }),
    ("bg", false, |_, _| ok(Ok(0))),
    ("break", true, |_, words| flow(levels(&words).map(Flow::Break))),
    ("builtin", false, |shell, words| command(shell, words).boxed_local()),
    ("cd", false, |shell, words| cd(shell, words).boxed_local()),
    ("command", false, |shell, words| command(shell, words).boxed_local()),
    ("continue", true, |_, words| flow(levels(&words).map(Flow::Continue))),
    ("declare", false, |shell, words| local(shell, words).boxed_local()),
    ("eval", true, |shell, words| eval(shell, words).boxed_local()),
    ("exec", true, |shell, words| exec(shell, words).boxed_local()),
    ("exit", true, |shell, words| flow(code(shell, &words).map(Flow::Exit))),
    ("export", true, |shell, words| export(shell, words).boxed_local()),
    ("fg", false, |shell, _| wait(shell, vec![]).boxed_local()),
    ("getopts", false, |shell, words| ok(getopts(shell, &words))),
    ("hash", false, |_, _| ok(Ok(0))),
    ("jobs", false, |shell, _| jobs(shell).boxed_local()),
    ("kill", false, |shell, words| ok(kill(shell, &words))),
    ("let", false, |shell, words| let_(shell, words).boxed_local()),
    ("local", false, |shell, words| local(shell, words).boxed_local()),
    ("pwd", false, |shell, _| pwd(shell).boxed_local()),
    ("read", false, |shell, words| read(shell, words).boxed_local()),
    ("readonly", true, |shell, words| ok(readonly(shell, &words))),
    ("return", true, |shell, words| flow(code(shell, &words).map(Flow::Return))),
    ("set", true, |shell, words| set(shell, words).boxed_local()),
    ("shift", true, |shell, words| ok(shift(shell, &words))),
    ("shopt", false, |_, _| ok(Ok(0))),
    ("times", true, |_, _| ok(Ok(0))),
    ("trap", true, |shell, words| ok(trap(shell, &words))),
    ("type", false, |shell, words| type_(shell, words).boxed_local()),
    ("typeset", false, |shell, words| local(shell, words).boxed_local()),
    ("ulimit", false, |shell, _| { let out = shell.output(1); async move {
        Ok(out.write("unlimited\n").await.map(|()| 0).map_err(Failure::from)) }.boxed_local() }),
    ("umask", false, |shell, words| { let out = shell.output(1); async move {
        let text = if words.len() == 1 { "0022\n" } else { "" };
        Ok(out.write(text).await.map(|()| 0).map_err(Failure::from)) }.boxed_local() }),
    ("unset", true, |shell, words| ok(unset(shell, &words))),
    ("wait", false, |shell, words| wait(shell, words).boxed_local()),
];

pub(super) fn is(name: &str) -> bool {
    BUILTINS.iter().any(|(known, ..)| *known == name)
}

pub(super) fn is_special(name: &str) -> bool {
    BUILTINS.iter().any(|(known, special, _)| *known == name && *special)
}

/// Whether `NAME=VALUE` after it is an assignment and not a word.
pub(super) fn declares(name: &str) -> bool {
    ["export", "readonly", "local", "declare", "typeset"].contains(&name)
}

/// Whether what it declares is gone after the function.
pub(super) fn hides(name: &str) -> bool {
    ["local", "declare", "typeset"].contains(&name)
}

pub(super) async fn run(shell: &mut Shell, words: Vec<String>) -> Run<()> {
    let name = words[0].clone();
    let (.., builtin) =
        BUILTINS.iter().find(|(known, ..)| *known == name).expect("the caller has looked it up");
    match builtin(shell, words).await? {
        Ok(code) => shell.status = code,
        Err(failure) => shell.failed(&name, failure).await,
    }
    Ok(())
}

fn ok<'a>(outcome: Outcome) -> LocalBoxFuture<'a, Run<Outcome>> {
    async move { Ok(outcome) }.boxed_local()
}

fn flow<'a>(flow: Result<Flow, Failure>) -> LocalBoxFuture<'a, Run<Outcome>> {
    async move {
        match flow {
            Ok(flow) => Err(flow),
            Err(failure) => Ok(Err(failure)),
        }
    }
    .boxed_local()
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Failure::usage(format!("{text}: not a number")))
}

fn levels(words: &[String]) -> Result<u32, Failure> {
    words.get(1).map_or(Ok(1), |text| number(text))
}

fn code(shell: &Shell, words: &[String]) -> Result<i32, Failure> {
    words.get(1).map_or(Ok(shell.status), |text| number(text))
}

async fn source(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let Some(name) = words.get(1) else {
        return Ok(Err(Failure::usage("which file?")));
    };
    let path = files::absolute(&shell.cwd, name);
    let text = match files::open(&path, &shell.stdin()) {
        Ok(file) => file.rest().await,
        Err(error) => Err(error),
    };
    let text = match text {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            let message = format!("{name}: {}", files::reason(&error));
            return Ok(Err(Failure::new(message)));
        }
    };
    let parameters = (words.len() > 2).then(|| words[2..].to_vec());
    let before = parameters.map(|new| std::mem::replace(&mut shell.parameters, new));
    let outcome = nested(shell, &text).await;
    if let Some(before) = before {
        shell.parameters = before;
    }
    match outcome {
        Err(Flow::Return(code)) => Ok(Ok(code)),
        Err(flow) => Err(flow),
        Ok(()) => Ok(Ok(shell.status)),
    }
}

async fn eval(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    shell.status = 0;
    nested(shell, &words[1..].join(" ")).await?;
    Ok(Ok(shell.status))
}

pub(super) async fn nested(shell: &mut Shell, text: &str) -> Run<()> {
    shell.depth += 1;
    shell.check_depth(shell.depth).await?;
    let flow = shell.text(text).boxed_local().await;
    shell.depth -= 1;
    flow
}

async fn alias(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    for word in &words[1..] {
        if let Some((name, value)) = word.split_once('=') {
            shell.aliases.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(Ok(0))
}

async fn cd(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let target = match words.iter().skip(1).find(|word| *word != "-P" && *word != "-L") {
        None => shell.get("HOME").unwrap_or_else(|| "/".to_owned()),
        Some(dash) if dash == "-" => shell.get("OLDPWD").unwrap_or_else(|| "/".to_owned()),
        Some(name) => name.clone(),
    };
    let path = files::absolute(&shell.cwd, &target);
    if !files::is_dir(&path) && path.as_os_str() != "/" {
        return Ok(Err(Failure::new(format!("can't cd to {target}: No such file or directory"))));
    }
    let old = shell.cwd.to_string_lossy().into_owned();
    shell.variables.insert("OLDPWD".to_owned(), Variable::exported(&old));
    let new = path.to_string_lossy().into_owned();
    shell.variables.insert("PWD".to_owned(), Variable::exported(&new));
    shell.cwd = path;
    if words.get(1).is_some_and(|word| word == "-") {
        let _ = shell.output(1).write(format!("{new}\n")).await;
    }
    Ok(Ok(0))
}

async fn pwd(shell: &mut Shell) -> Run<Outcome> {
    let text = format!("{}\n", shell.cwd.display());
    Ok(shell.output(1).write(text).await.map(|()| 0).map_err(Failure::from))
}

/// `command [-v|-V] NAME …`: without functions.
async fn command(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    match words.get(1).map(String::as_str) {
        Some("-v" | "-V") => {
            let mut code = 0;
            for name in &words[2..] {
                match located(shell, name) {
                    Some(place) => {
                        let _ = shell.output(1).write(format!("{place}\n")).await;
                    }
                    None => code = 127,
                }
            }
            Ok(Ok(code))
        }
        None => Ok(Ok(0)),
        Some(_) => {
            let words: Vec<String> =
                words.into_iter().skip(1).filter(|word| word != "-p").collect();
            if words.first().is_some_and(|name| is(name)) {
                run(shell, words).boxed_local().await?;
            } else {
                shell.applet(words).await;
            }
            Ok(Ok(shell.status))
        }
    }
}

fn located(shell: &Shell, name: &str) -> Option<String> {
    if shell.functions.contains_key(name) || is(name) {
        Some(name.to_owned())
    } else if applets::find(name).is_some() {
        Some(if name.contains('/') { name.to_owned() } else { format!("/bin/{name}") })
    } else {
        None
    }
}

async fn type_(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let mut code = 0;
    for name in &words[1..] {
        let text = if shell.functions.contains_key(name) {
            format!("{name} is a function\n")
        } else if is(name) {
            format!("{name} is a shell builtin\n")
        } else if applets::find(name).is_some() {
            format!("{name} is /bin/{name}\n")
        } else {
            code = 127;
            format!("{name}: not found\n")
        };
        let _ = shell.output(1).write(text).await;
    }
    Ok(Ok(code))
}

async fn exec(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    // What takes the shell's place knows nothing of its traps, but for what they ignore.
    for (signal, action) in std::mem::take(&mut shell.traps).signals {
        if !action.is_empty() {
            signal.handle(false);
        }
    }
    shell.applet(words[1..].to_vec()).await;
    Err(Flow::Exit(shell.status))
}

async fn export(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let unexport = words.iter().any(|word| word == "-n");
    let names: Vec<&String> = words[1..].iter().filter(|word| !word.starts_with('-')).collect();
    if names.is_empty() {
        for (name, value) in shell.environment() {
            let _ = shell.output(1).write(format!("export {name}={}\n", quoted(&value))).await;
        }
        return Ok(Ok(0));
    }
    for word in names {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), None),
        };
        if let Some(value) = value
            && shell.get(name).as_deref() != Some(value)
            && let Err(message) = shell.set(name, value.to_owned())
        {
            return Ok(Err(Failure::new(message)));
        }
        shell.variables.entry(name.to_owned()).or_default().exported = !unexport;
    }
    Ok(Ok(0))
}

/// A word as a shell would read it back.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn readonly(shell: &mut Shell, words: &[String]) -> Outcome {
    for word in words[1..].iter().filter(|word| !word.starts_with('-')) {
        let name = match word.split_once('=') {
            Some((name, value)) if shell.get(name).as_deref() != Some(value) => {
                shell.set(name, value.to_owned()).map_err(Failure::new)?;
                name
            }
            Some((name, _)) => name,
            None => word,
        };
        shell.variables.entry(name.to_owned()).or_default().readonly = true;
    }
    Ok(0)
}

/// `local NAME[=VALUE] …`. Values were assigned before; what they hide is put back at the end of
/// the function.
async fn local(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let exports = words.iter().any(|word| word.starts_with('-') && word.contains('x'));
    for word in words[1..].iter().filter(|word| !word.starts_with(['-', '+'])) {
        let (name, has_value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word.as_str(), false),
        };
        if !has_value && !shell.locals.is_empty() {
            shell.hide(name);
            shell.variables.remove(name);
        }
        if exports {
            shell.variables.entry(name.to_owned()).or_default().exported = true;
        }
    }
    Ok(Ok(0))
}

impl Shell {
    /// Remembers what a local variable hides, once.
    pub(super) fn hide(&mut self, name: &str) {
        let old = self.variables.get(name).cloned();
        if let Some(frame) = self.locals.last_mut() {
            frame.entry(name.to_owned()).or_insert(old);
        }
    }
}

fn unset(shell: &mut Shell, words: &[String]) -> Outcome {
    let functions = words.iter().any(|word| word == "-f");
    for name in words[1..].iter().filter(|word| !word.starts_with('-')) {
        if functions {
            shell.functions.remove(name);
        } else {
            shell.unset(name).map_err(Failure::new)?;
        }
    }
    Ok(0)
}

async fn let_(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let mut value = 0;
    for word in &words[1..] {
        value = shell.arithmetic(word).await?;
    }
    Ok(Ok(i32::from(value == 0)))
}

async fn set(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    if words.len() == 1 {
        for (name, variable) in &shell.variables {
            let _ = shell.output(1).write(format!("{name}={}\n", quoted(&variable.value))).await;
        }
        return Ok(Ok(0));
    }
    let mut rest = words[1..].iter().peekable();
    while let Some(word) = rest.next_if(|word| word.starts_with(['-', '+']) && word.len() > 1) {
        let on = word.starts_with('-');
        if word == "--" {
            shell.parameters = rest.cloned().collect();
            return Ok(Ok(0));
        }
        for letter in word[1..].chars() {
            let known = match letter {
                'o' => match rest.next() {
                    Some(name) => shell.options.set_name(name, on),
                    None => true,
                },
                letter => shell.options.set_letter(letter, on),
            };
            if !known {
                return Ok(Err(Failure::usage(format!("{word}: unknown option"))));
            }
        }
    }
    if rest.peek().is_some() {
        shell.parameters = rest.cloned().collect();
    }
    Ok(Ok(0))
}

fn shift(shell: &mut Shell, words: &[String]) -> Outcome {
    let count: usize = words.get(1).map_or(Ok(1), |text| number(text))?;
    if count > shell.parameters.len() {
        return Err(Failure::new("can't shift that many"));
    }
    shell.parameters.drain(..count);
    Ok(0)
}

/// Of other signals than these nothing is ever heard.
fn trap(shell: &mut Shell, words: &[String]) -> Outcome {
    let words: Vec<&String> = words[1..].iter().filter(|word| *word != "--").collect();
    let Some((action, names)) = words.split_first() else { return Ok(0) };
    let action = Some((*action).clone()).filter(|action| action != "-");
    for name in names {
        if ["EXIT", "0"].contains(&name.as_str()) {
            shell.traps.exit = action.clone().filter(|action| !action.is_empty());
        } else if let Some(signal) = Signal::named(name) {
            signal.handle(action.is_some());
            match &action {
                Some(action) => shell.traps.signals.insert(signal, action.clone()),
                None => shell.traps.signals.remove(&signal),
            };
        }
    }
    Ok(0)
}

/// `read [-res] [-p PROMPT] [-d END] [-t SECONDS] [-a LIST | NAME …]`
async fn read(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let mut raw = false;
    let mut end = b'\n';
    let (mut silent_end, mut list) = (None, None);
    let mut names = Vec::new();
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            names.push(word.clone());
            continue;
        };
        for (at, letter) in letters.char_indices() {
            raw |= letter == 'r';
            if "res".contains(letter) {
                continue;
            }
            if !"pdta".contains(letter) {
                return Ok(Err(Failure::usage(format!("{word}: unknown option"))));
            }
            // The value is the rest of the word, or the next one.
            let value = match &letters[at + 1..] {
                "" => rest.next().cloned().unwrap_or_default(),
                value => value.to_owned(),
            };
            match letter {
                'p' => _ = shell.output(2).write(value).await,
                'd' => end = value.bytes().next().unwrap_or(0),
                't' => silent_end = value.parse::<f64>().ok(),
                _ => list = Some(value),
            }
            break;
        }
    }
    let input = shell.stdin();
    let reading = async {
        let mut text = String::new();
        loop {
            let Some(bytes) = input.until(end).await? else { break Ok((text, false)) };
            let complete = bytes.last() == Some(&end);
            let part = &bytes[..bytes.len() - usize::from(complete)];
            text.push_str(&String::from_utf8_lossy(part));
            let continues = complete && !raw && text.ends_with('\\') && !text.ends_with("\\\\");
            if !continues {
                break Ok((text, complete));
            }
            text.pop();
        }
    };
    let read: std::io::Result<(String, bool)> = match silent_end {
        None => reading.await,
        Some(seconds) => {
            let pause = runtime::sleep(std::time::Duration::from_secs_f64(seconds.max(0.0)));
            match futures::future::select(Box::pin(reading), Box::pin(pause)).await {
                futures::future::Either::Left((read, _)) => read,
                futures::future::Either::Right(_) => return Ok(Ok(142)),
            }
        }
    };
    let (text, complete) = match read {
        Ok(read) => read,
        Err(error) => return Ok(Err(error.into())),
    };
    let text = if raw { text } else { without_backslashes(&text) };
    let separators = shell.get("IFS").unwrap_or_else(|| " \t\n".to_owned());
    if let Some(name) = list {
        let fields = expand::fields_of(&text, &separators);
        return Ok(match shell.set_list(&name, fields) {
            Ok(()) => Ok(i32::from(!complete)),
            Err(message) => Err(Failure::new(message)),
        });
    }
    if names.is_empty() {
        names.push("REPLY".to_owned());
    }
    for (name, value) in names.iter().zip(parts(&text, &separators, names.len())) {
        if let Err(message) = shell.set(name, value) {
            return Ok(Err(Failure::new(message)));
        }
    }
    Ok(Ok(i32::from(!complete)))
}

fn without_backslashes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        out.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    out
}

/// A line cut into `count` parts; the last one has all that is left.
fn parts(text: &str, separators: &str, count: usize) -> Vec<String> {
    let is_blank = |c: char| separators.contains(c) && c.is_ascii_whitespace();
    let mut rest = text.trim_matches(is_blank);
    let mut all = Vec::with_capacity(count);
    while all.len() + 1 < count {
        let end = rest.find(|c| separators.contains(c)).unwrap_or(rest.len());
        all.push(rest[..end].to_owned());
        rest = rest[end..].trim_start_matches(is_blank);
        if let Some(next) = rest.chars().next()
            && separators.contains(next)
            && end < text.len()
        {
            rest = rest[next.len_utf8()..].trim_start_matches(is_blank);
        }
    }
    all.push(rest.to_owned());
    all
}

fn getopts(shell: &mut Shell, words: &[String]) -> Outcome {
    let [_, wanted, name, given @ ..] = words else {
        return Err(Failure::usage("getopts OPTIONS NAME [WORDS]"));
    };
    let arguments = if given.is_empty() { shell.parameters.clone() } else { given.to_vec() };
    let index: usize = shell.get("OPTIND").and_then(|text| text.parse().ok()).unwrap_or(1);
    let position = if shell.getopts.0 == index { shell.getopts.1.max(1) } else { 1 };
    let argument = arguments.get(index - 1).cloned().unwrap_or_default();
    let letter = argument.strip_prefix('-').and_then(|rest| rest.chars().nth(position - 1));
    let (Some(letter), true) = (letter, argument != "--") else {
        shell.set(name, "?".to_owned()).map_err(Failure::new)?;
        let next = if argument == "--" { index + 1 } else { index };
        shell.set("OPTIND", next.to_string()).map_err(Failure::new)?;
        return Ok(1);
    };
    let last = argument.chars().count() == position + 1;
    let (mut next, mut inside) = if last { (index + 1, 1) } else { (index, position + 1) };
    let known = wanted.find(letter).filter(|_| letter != ':');
    let mut found = letter.to_string();
    match known {
        None => {
            shell.set("OPTARG", found).map_err(Failure::new)?;
            found = "?".to_owned();
        }
        Some(at) if wanted[at + letter.len_utf8()..].starts_with(':') => {
            let value = if last {
                next = index + 2;
                arguments.get(index).cloned()
            } else {
                next = index + 1;
                Some(argument.chars().skip(position + 1).collect())
            };
            inside = 1;
            match value {
                Some(value) => shell.set("OPTARG", value).map_err(Failure::new)?,
                None => found = if wanted.starts_with(':') { ":" } else { "?" }.to_owned(),
            }
        }
        Some(_) => {}
    }
    shell.set(name, found).map_err(Failure::new)?;
    shell.set("OPTIND", next.to_string()).map_err(Failure::new)?;
    shell.getopts = (next, inside);
    Ok(0)
}

/// The number by which scripts know a job.
pub(super) fn job_id(job: usize) -> usize {
    JOB_FIRST + job
}

/// Starts a job; its index.
pub(super) fn start(shell: &Shell, work: impl Future<Output = i32> + 'static) -> usize {
    let state = Rc::new(RefCell::new(JobState::default()));
    let (handle, registration) = AbortHandle::new_pair();
    let mut jobs = shell.jobs.borrow_mut();
    jobs.push(Job { state: state.clone(), abort: handle });
    runtime::spawn(async move {
        let code = Abortable::new(work, registration).await.unwrap_or(CODE_TERMINATED);
        let mut state = state.borrow_mut();
        state.code = Some(code);
        state.waiting.drain(..).for_each(std::task::Waker::wake);
    });
    jobs.len() - 1
}

async fn joined(state: Rc<RefCell<JobState>>) -> i32 {
    poll_fn(|cx| {
        let mut state = state.borrow_mut();
        match state.code {
            Some(code) => Poll::Ready(code),
            None => {
                state.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

/// The job of `$!` or `%N`.
fn job_of(shell: &Shell, word: &str) -> Option<usize> {
    let index = match word.strip_prefix('%') {
        Some(number) => number.parse::<usize>().ok()?.checked_sub(1)?,
        None => word.parse::<usize>().ok()?.checked_sub(JOB_FIRST)?,
    };
    (index < shell.jobs.borrow().len()).then_some(index)
}

async fn wait(shell: &mut Shell, words: Vec<String>) -> Run<Outcome> {
    let named: Vec<&String> = words.iter().skip(1).filter(|word| !word.starts_with('-')).collect();
    let states: Vec<_> = if named.is_empty() {
        shell.jobs.borrow().iter().map(|job| Some(job.state.clone())).collect()
    } else {
        let state = |index: usize| shell.jobs.borrow()[index].state.clone();
        named.iter().map(|word| job_of(shell, word).map(state)).collect()
    };
    let all = async {
        let mut code = 0;
        for state in states {
            code = match state {
                Some(state) => joined(state).await,
                None => 127,
            };
        }
        code
    };
    let trap = shell.traps.signals.get(&Signal::Terminate).filter(|action| !action.is_empty());
    let trapped = match trap {
        Some(_) => Signal::Terminate.comes().left_future(),
        None => std::future::pending::<()>().right_future(),
    };
    Ok(Ok(match select(Box::pin(all), Box::pin(trapped)).await {
        Either::Left(_) if named.is_empty() => 0,
        Either::Left((code, _)) => code,
        // What the trap says comes next.
        Either::Right(_) => i32::from(Signal::Terminate.code()),
    }))
}

async fn jobs(shell: &mut Shell) -> Run<Outcome> {
    let mut lines = Vec::new();
    for (index, job) in shell.jobs.borrow().iter().enumerate() {
        let word = if job.state.borrow().code.is_some() { "Done" } else { "Running" };
        lines.push(format!("[{}]  {word}\n", index + 1));
    }
    Ok(shell.output(1).write(lines.concat()).await.map(|()| 0).map_err(Failure::from))
}

/// Ends jobs, or signals the shell itself; there are no other processes.
fn kill(shell: &mut Shell, words: &[String]) -> Outcome {
    let asks_only = words.iter().any(|word| word == "-0");
    let signal = words.iter().find_map(|word| Signal::named(word.strip_prefix('-')?));
    for word in words[1..].iter().filter(|word| !word.starts_with('-')) {
        if word == SHELL {
            if !asks_only {
                signal.unwrap_or(Signal::Terminate).raise();
            }
            continue;
        }
        let Some(index) = job_of(shell, word) else {
            return Err(Failure::new(format!("can't kill pid {word}: No such process")));
        };
        let jobs = shell.jobs.borrow();
        if jobs[index].state.borrow().code.is_some() {
            return Err(Failure::new(format!("can't kill pid {word}: No such process")));
        }
        if !asks_only {
            jobs[index].abort.abort();
        }
    }
    Ok(0)
}
