//! `find` and `xargs`: applets that run others.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::command::{Command, Failure, On, Outcome};
use crate::files;
use crate::shell::name_matches;

use super::run;

/// Bytes of arguments for one command of `xargs`, as systems have it.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

/// One word of a `find` expression.
enum Test {
    Name(String),
    /// In lower case, for names in any.
    NameInAnyCase(String),
    Path(String),
    Type(char),
    /// Older or newer than so many days or minutes.
    Age(std::cmp::Ordering, f64, f64),
    Newer(SystemTime),
    Size(std::cmp::Ordering, u64, u64),
    Empty,
    Not,
    Or,
    Print(char),
    Delete,
    Prune,
    Exec(Vec<String>),
}

pub async fn find(command: Command) -> Outcome {
    let words = &command.args;
    let is_test = |word: &&String| word.starts_with('-') || *word == "!" || *word == "(";
    let starts: Vec<&String> = words.iter().take_while(|word| !is_test(word)).collect();
    let (tests, (depth_min, depth_max)) = parse(&command, &words[starts.len()..])?;
    let here = ".".to_owned();
    let starts = if starts.is_empty() { vec![&here] } else { starts };
    let mut code = 0;
    for start in starts {
        let mut stack = vec![(start.clone(), command.path(start), 0)];
        if !files::exists(&stack[0].1) {
            command.complain(&format!("{start}: No such file or directory")).await;
            code = 1;
            continue;
        }
        while let Some((shown, path, depth)) = stack.pop() {
            let mut prune = depth >= depth_max;
            if depth >= depth_min {
                prune |= judged(&command, &tests, &shown, &path).await?;
            }
            if prune || !files::is_dir(&path) || path.is_symlink() {
                continue;
            }
            for name in files::list(&path).on(&shown)?.into_iter().rev() {
                let shown = format!("{}/{name}", shown.trim_end_matches('/'));
                let path = path.join(&name);
                stack.push((shown, path, depth + 1));
            }
        }
    }
    Ok(code)
}

type Depths = (usize, usize);

fn parse(command: &Command, words: &[String]) -> Result<(Vec<Test>, Depths), Failure> {
    let mut tests = Vec::new();
    let mut depths = (0, super::directory::DEPTH_MAX);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            let missing = || Failure::usage(format!("{word} needs a value"));
            words.next().cloned().ok_or_else(missing)
        };
        let number = |text: String| -> Result<usize, Failure> {
            text.parse().map_err(|_| Failure::usage(format!("{text}: not a number")))
        };
        match word.as_str() {
            "-name" => tests.push(Test::Name(value()?)),
            "-iname" => tests.push(Test::NameInAnyCase(value()?.to_lowercase())),
            "-path" | "-wholename" => tests.push(Test::Path(value()?)),
            "-type" => tests.push(Test::Type(value()?.chars().next().unwrap_or('f'))),
            "-maxdepth" => depths.1 = number(value()?)?,
            "-mindepth" => depths.0 = number(value()?)?,
            "-mtime" => tests.push(age(&value()?, 86_400.0)?),
            "-mmin" => tests.push(age(&value()?, 60.0)?),
            "-newer" => {
                let name = value()?;
                let found = command.path(&name).metadata().and_then(|found| found.modified());
                tests.push(Test::Newer(found.on(&name)?));
            }
            "-size" => tests.push(size(&value()?)?),
            "-empty" => tests.push(Test::Empty),
            "!" | "-not" => tests.push(Test::Not),
            "-o" | "-or" => tests.push(Test::Or),
            "-a" | "-and" | "(" | ")" | "-xdev" | "-depth" => {}
            "-print" => tests.push(Test::Print('\n')),
            "-print0" => tests.push(Test::Print('\0')),
            "-delete" => tests.push(Test::Delete),
            "-prune" => tests.push(Test::Prune),
            "-exec" => {
                let taken: Vec<String> = words
                    .by_ref()
                    .take_while(|word| *word != ";" && *word != "+")
                    .cloned()
                    .collect();
                tests.push(Test::Exec(taken));
            }
            other => return Err(Failure::usage(format!("{other}: unknown test"))),
        }
    }
    let acts =
        tests.iter().any(|test| matches!(test, Test::Print(_) | Test::Delete | Test::Exec(_)));
    if !acts {
        tests.push(Test::Print('\n'));
    }
    Ok((tests, depths))
}

fn signed(text: &str) -> (std::cmp::Ordering, &str) {
    match text.strip_prefix('+') {
        Some(rest) => (std::cmp::Ordering::Greater, rest),
        None => match text.strip_prefix('-') {
            Some(rest) => (std::cmp::Ordering::Less, rest),
            None => (std::cmp::Ordering::Equal, text),
        },
    }
}

fn age(text: &str, unit: f64) -> Result<Test, Failure> {
    let (order, number) = signed(text);
    let number = number.parse().map_err(|_| Failure::usage(format!("{text}: not a number")))?;
    Ok(Test::Age(order, number, unit))
}

fn size(text: &str) -> Result<Test, Failure> {
    let (order, number) = signed(text);
    let (number, unit) = match number.chars().last() {
        Some('c') => (&number[..number.len() - 1], 1),
        Some('k') => (&number[..number.len() - 1], 1 << 10),
        Some('M') => (&number[..number.len() - 1], 1 << 20),
        Some('G') => (&number[..number.len() - 1], 1 << 30),
        _ => (number, 512),
    };
    let number = number.parse().map_err(|_| Failure::usage(format!("{text}: not a size")))?;
    Ok(Test::Size(order, number, unit))
}

/// Goes through the tests until one fails; whether the directory shall not be entered.
async fn judged(
    command: &Command,
    tests: &[Test],
    shown: &str,
    path: &Path,
) -> Result<bool, Failure> {
    let mut holds = true;
    let mut negated = false;
    let mut prune = false;
    for test in tests {
        match test {
            Test::Or if holds => break,
            Test::Or => {
                holds = true;
                continue;
            }
            Test::Not => {
                negated = !negated;
                continue;
            }
            _ if !holds => continue,
            Test::Print(end) => command.print(format!("{shown}{end}")).await?,
            Test::Delete => {
                let removed = match path.is_dir() {
                    true => std::fs::remove_dir(path),
                    false => std::fs::remove_file(path),
                };
                removed.on(shown)?;
            }
            Test::Prune => prune = true,
            Test::Exec(words) => {
                let words = words.iter().map(|word| word.replace("{}", shown)).collect();
                holds = Box::pin(run(command.with(words))).await == 0;
            }
            test => holds = holds_for(test, shown, path) != std::mem::take(&mut negated),
        }
    }
    Ok(prune)
}

fn holds_for(test: &Test, shown: &str, path: &Path) -> bool {
    let found = path.symlink_metadata();
    match test {
        Test::Name(pattern) => match path.file_name() {
            Some(_) => name_matches(pattern, path),
            None => name_matches(pattern, &PathBuf::from("/x").with_file_name(shown)),
        },
        Test::NameInAnyCase(pattern) => {
            name_matches(pattern, Path::new(&path.to_string_lossy().to_lowercase()))
        }
        Test::Path(pattern) => {
            name_matches(&pattern.replace('/', "\u{1}"), Path::new(&shown.replace('/', "\u{1}")))
        }
        Test::Type('d') => files::is_dir(path) && !path.is_symlink(),
        Test::Type('l') => path.is_symlink(),
        Test::Type(_) => found.is_ok_and(|found| found.is_file()),
        Test::Age(order, number, unit) => {
            let modified = found.and_then(|found| found.modified());
            let age = modified.ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            (age.as_secs_f64() / unit).floor().total_cmp(number) == *order
        }
        Test::Newer(time) => {
            found.and_then(|found| found.modified()).is_ok_and(|modified| modified > *time)
        }
        Test::Size(order, number, unit) => {
            found.is_ok_and(|found| found.len().div_ceil(*unit).cmp(number) == *order)
        }
        Test::Empty => match files::is_dir(path) {
            true => files::list(path).is_ok_and(|names| names.is_empty()),
            false => found.is_ok_and(|found| found.len() == 0),
        },
        // The others act, and are judged where they do.
        _ => true,
    }
}

/// `xargs [-0] [-n COUNT] [-L LINES] [-I NAME] [-r] COMMAND …`; with `-P` one after the other, too.
pub async fn xargs(command: Command) -> Outcome {
    let mut words = command.args.iter().cloned().peekable();
    let (mut zero, mut per_run, mut name, mut not_empty) = (false, usize::MAX, None, false);
    let mut lines = None;
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        let mut letters = option[1..].chars();
        while let Some(letter) = letters.next() {
            match letter {
                '0' => zero = true,
                'r' => not_empty = true,
                't' => {}
                'n' | 'L' | 'P' | 'I' => {
                    let given = std::mem::replace(&mut letters, "".chars()).as_str();
                    let value = match given {
                        "" => words.next().unwrap_or_default(),
                        given => given.to_owned(),
                    };
                    let number = || -> Result<usize, Failure> {
                        value.parse().map_err(|_| Failure::usage(format!("{value}: not a number")))
                    };
                    match letter {
                        'n' => per_run = number()?.max(1),
                        'L' => lines = Some(number()?.max(1)),
                        'P' => _ = number()?,
                        _ => name = Some(value),
                    }
                }
                _ => return Err(Failure::usage(format!("{option}: unknown option"))),
            }
        }
    }
    let mut base: Vec<String> = words.collect();
    if base.is_empty() {
        base.push("echo".to_owned());
    }
    let text = command.stdin.rest().await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let items: Vec<&str> = if zero {
        text.split('\0').filter(|item| !item.is_empty()).collect()
    } else if name.is_some() {
        text.lines().map(str::trim).filter(|item| !item.is_empty()).collect()
    } else {
        text.split_whitespace().collect()
    };
    let runs: Vec<Vec<String>> = match &name {
        Some(name) => {
            let each = |item: &&str| base.iter().map(|word| word.replace(name, item)).collect();
            items.iter().map(each).collect()
        }
        None if items.is_empty() && !not_empty => vec![base],
        None => match lines {
            Some(count) => by_lines(&base, &text, count),
            None => grouped(&base, &items, per_run),
        },
    };
    let mut code = 0;
    for words in runs {
        let mut inner = command.with(words);
        inner.stdin = crate::io::Input::null();
        if Box::pin(run(inner)).await != 0 {
            code = 123;
        }
    }
    Ok(code)
}

fn by_lines(base: &[String], text: &str, count: usize) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let run = |lines: &[&str]| -> Vec<String> {
        let words = lines.iter().flat_map(|line| line.split_whitespace()).map(str::to_owned);
        base.iter().cloned().chain(words).collect()
    };
    lines.chunks(count).map(run).collect()
}

fn grouped(base: &[String], items: &[&str], per_run: usize) -> Vec<Vec<String>> {
    let mut runs: Vec<Vec<String>> = Vec::new();
    let (mut count, mut bytes) = (usize::MAX, 0);
    for item in items {
        if count >= per_run || bytes + item.len() > ARGUMENT_BYTES_MAX {
            runs.push(base.to_vec());
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += item.len() + 1;
        if let Some(run) = runs.last_mut() {
            run.push((*item).to_owned());
        }
    }
    runs
}
