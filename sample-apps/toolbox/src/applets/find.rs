//! `find` and `xargs`: applets that run others.

use std::fs::Metadata;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::slice::Iter;
use std::time::SystemTime;

use futures::future::{FutureExt, LocalBoxFuture};

use crate::command::{Command, Failure, On, Outcome};
use crate::files;
use crate::shell::name_matches;

use super::run;

/// Bytes of arguments for one command of `xargs`, as systems have it.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;
/// Parentheses within each other in an expression of `find`: the guest's stack is small.
const NESTING_MAX: u32 = 32;

/// What `find` asks of each entry; `-o` binds less than `-a`, and `!` most.
enum Expression {
    Test(Test),
    Not(Box<Expression>),
    /// One after the other, until one does not hold.
    All(Vec<Expression>),
    /// One after the other, until one holds.
    Any(Vec<Expression>),
}

/// One word of an expression, with its value.
enum Test {
    /// An option that is meant for the whole search: `-maxdepth`, `-depth` and so on.
    Option,
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
    Print(char),
    Delete,
    Prune,
    Exec(Vec<String>),
    /// `-exec … +`: the command of this index gets the name, with others, at the end.
    Gather(usize),
}

/// Something that is found.
struct Entry {
    /// As it is printed.
    shown: String,
    path: PathBuf,
    depth: usize,
    /// As it was before anything in it was deleted.
    metadata: Option<Metadata>,
    /// Whether what it holds has had its turn (`-depth`).
    entered: bool,
}

impl Entry {
    fn new(shown: String, path: PathBuf, depth: usize) -> Entry {
        let metadata = path.symlink_metadata().ok();
        Entry { shown, path, depth, metadata, entered: false }
    }

    fn is_folder(&self) -> bool {
        files::is_dir(&self.path) && !self.path.is_symlink()
    }
}

/// The options of a search, and what has come of it so far.
struct Search<'a> {
    command: &'a Command,
    depth_min: usize,
    depth_max: usize,
    /// What a directory holds comes before itself, as `-delete` needs it.
    contents_first: bool,
    /// Whether the directory that was judged last shall not be entered.
    pruned: bool,
    /// Commands of `-exec … +`, and the names for each.
    gathered: Vec<(Vec<String>, Vec<String>)>,
    code: i32,
}

pub async fn find(command: Command) -> Outcome {
    let words = &command.args;
    let is_test = |word: &String| word.starts_with('-') || word == "!" || word == "(";
    let count = words.iter().position(is_test).unwrap_or(words.len());
    let (starts, tests) = words.split_at(count);
    let (expression, mut search) = parse(&command, tests)?;
    let here = [".".to_owned()];
    let starts = if starts.is_empty() { &here[..] } else { starts };
    for start in starts {
        let first = Entry::new(start.clone(), command.path(start), 0);
        if files::exists(&first.path) {
            search.walk(&expression, first).await?;
        } else {
            search.complain(start, "No such file or directory").await;
        }
    }
    search.run_gathered().await;
    Ok(search.code)
}

impl Search<'_> {
    async fn walk(&mut self, expression: &Expression, first: Entry) -> Result<(), Failure> {
        let mut stack = vec![first];
        while let Some(entry) = stack.pop() {
            if self.contents_first && !entry.entered && self.enters(&entry) {
                let below = self.below(&entry).await;
                stack.push(Entry { entered: true, ..entry });
                stack.extend(below);
                continue;
            }
            self.pruned = false;
            if entry.depth >= self.depth_min {
                self.judge(expression, &entry).await?;
            }
            if !self.contents_first && !self.pruned && self.enters(&entry) {
                stack.extend(self.below(&entry).await);
            }
        }
        Ok(())
    }

    fn enters(&self, entry: &Entry) -> bool {
        entry.depth < self.depth_max && entry.is_folder()
    }

    /// What a directory holds, the last first.
    async fn below(&mut self, entry: &Entry) -> Vec<Entry> {
        let names = match files::list(&entry.path) {
            Ok(names) => names,
            Err(error) => {
                self.complain(&entry.shown, &files::reason(&error)).await;
                return Vec::new();
            }
        };
        let within = |name: String| {
            let shown = format!("{}/{name}", entry.shown.trim_end_matches('/'));
            Entry::new(shown, entry.path.join(&name), entry.depth + 1)
        };
        names.into_iter().rev().map(within).collect()
    }

    /// Says what went wrong with one name; the others have their turn.
    async fn complain(&mut self, shown: &str, why: &str) {
        self.command.complain(&format!("{shown}: {why}")).await;
        self.code = 1;
    }

    /// Whether an expression holds for an entry. What it says to do is done on the way.
    fn judge<'b>(
        &'b mut self,
        expression: &'b Expression,
        entry: &'b Entry,
    ) -> LocalBoxFuture<'b, Result<bool, Failure>> {
        async move {
            match expression {
                Expression::Test(test) => self.test(test, entry).await,
                Expression::Not(inner) => Ok(!self.judge(inner, entry).await?),
                Expression::All(all) => {
                    for one in all {
                        if !self.judge(one, entry).await? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                }
                Expression::Any(all) => {
                    for one in all {
                        if self.judge(one, entry).await? {
                            return Ok(true);
                        }
                    }
                    Ok(false)
                }
            }
        }
        .boxed_local()
    }

    async fn test(&mut self, test: &Test, entry: &Entry) -> Result<bool, Failure> {
        let shown = &entry.shown;
        match test {
            Test::Print(end) => self.command.print(format!("{shown}{end}")).await?,
            Test::Delete => {
                let removed = match entry.is_folder() {
                    // Where the search begins is left, as everywhere.
                    true if shown == "." => Ok(()),
                    true => std::fs::remove_dir(&entry.path),
                    false => std::fs::remove_file(&entry.path),
                };
                if let Err(error) = files::changed(&entry.path, removed) {
                    self.complain(shown, &files::reason(&error)).await;
                    return Ok(false);
                }
            }
            Test::Prune => self.pruned = true,
            Test::Exec(words) => {
                let words = words.iter().map(|word| word.replace("{}", shown)).collect();
                return Ok(Box::pin(run(self.command.with(words))).await == 0);
            }
            Test::Gather(index) => self.gathered[*index].1.push(shown.clone()),
            test => return Ok(holds_for(test, entry)),
        }
        Ok(true)
    }

    async fn run_gathered(&mut self) {
        for (words, names) in std::mem::take(&mut self.gathered) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for words in grouped(&words, &names, usize::MAX) {
                if Box::pin(run(self.command.with(words))).await != 0 {
                    self.code = 1;
                }
            }
        }
    }
}

/// Reads an expression: `-o` between what `-a`, or nothing, stands between.
struct Parser<'a, 'b> {
    words: Peekable<Iter<'a, String>>,
    search: &'b mut Search<'a>,
    /// Whether it does anything with what it finds.
    acts: bool,
}

fn parse<'a>(
    command: &'a Command,
    words: &'a [String],
) -> Result<(Expression, Search<'a>), Failure> {
    let mut search = Search {
        command,
        depth_min: 0,
        depth_max: super::directory::DEPTH_MAX,
        contents_first: false,
        pruned: false,
        gathered: Vec::new(),
        code: 0,
    };
    let words = words.iter().peekable();
    let mut parser = Parser { words, search: &mut search, acts: false };
    let mut expression = match parser.words.peek() {
        Some(_) => parser.any(0)?,
        None => Expression::All(Vec::new()),
    };
    if parser.words.peek().is_some() {
        return Err(Failure::usage("a ) has no ("));
    }
    if !parser.acts {
        expression = Expression::All(vec![expression, Expression::Test(Test::Print('\n'))]);
    }
    Ok((expression, search))
}

impl Parser<'_, '_> {
    fn next_is(&mut self, known: &[&str]) -> bool {
        self.words.next_if(|word| known.contains(&word.as_str())).is_some()
    }

    fn any(&mut self, nesting: u32) -> Result<Expression, Failure> {
        let mut all = vec![self.all(nesting)?];
        while self.next_is(&["-o", "-or"]) {
            all.push(self.all(nesting)?);
        }
        Ok(Expression::Any(all))
    }

    fn all(&mut self, nesting: u32) -> Result<Expression, Failure> {
        let mut all = vec![self.one(nesting)?];
        let ends = |word: &&String| matches!(word.as_str(), "-o" | "-or" | ")");
        while self.next_is(&["-a", "-and"]) || self.words.peek().is_some_and(|word| !ends(word)) {
            all.push(self.one(nesting)?);
        }
        Ok(Expression::All(all))
    }

    fn one(&mut self, nesting: u32) -> Result<Expression, Failure> {
        let mut negated = false;
        while self.next_is(&["!", "-not"]) {
            negated = !negated;
        }
        let one = if self.next_is(&["("]) {
            if nesting == NESTING_MAX {
                return Err(Failure::usage("there are too many ( within each other"));
            }
            let inner = self.any(nesting + 1)?;
            if !self.next_is(&[")"]) {
                return Err(Failure::usage("a ( has no )"));
            }
            inner
        } else {
            Expression::Test(self.test()?)
        };
        Ok(if negated { Expression::Not(Box::new(one)) } else { one })
    }

    fn test(&mut self) -> Result<Test, Failure> {
        let Some(word) = self.words.next() else {
            return Err(Failure::usage("a test is missing at the end"));
        };
        let mut value = || {
            let missing = || Failure::usage(format!("{word} needs a value"));
            self.words.next().cloned().ok_or_else(missing)
        };
        let number = |text: String| -> Result<usize, Failure> {
            text.parse().map_err(|_| Failure::usage(format!("{text}: not a number")))
        };
        let test = match word.as_str() {
            "-name" => Test::Name(value()?),
            "-iname" => Test::NameInAnyCase(value()?.to_lowercase()),
            "-path" | "-wholename" => Test::Path(value()?),
            "-type" => Test::Type(value()?.chars().next().unwrap_or('f')),
            "-maxdepth" => {
                self.search.depth_max = number(value()?)?;
                Test::Option
            }
            "-mindepth" => {
                self.search.depth_min = number(value()?)?;
                Test::Option
            }
            "-mtime" => age(&value()?, 86_400.0)?,
            "-mmin" => age(&value()?, 60.0)?,
            "-newer" => {
                let name = value()?;
                let path = self.search.command.path(&name);
                let found = path.metadata().and_then(|found| found.modified());
                Test::Newer(found.on(&name)?)
            }
            "-size" => size(&value()?)?,
            "-empty" => Test::Empty,
            "-depth" | "-d" => {
                self.search.contents_first = true;
                Test::Option
            }
            "-xdev" => Test::Option,
            "-print" => Test::Print('\n'),
            "-print0" => Test::Print('\0'),
            "-delete" => {
                self.search.contents_first = true;
                Test::Delete
            }
            "-prune" => Test::Prune,
            "-exec" => self.exec()?,
            other => return Err(Failure::usage(format!("{other}: unknown test"))),
        };
        self.acts |=
            matches!(test, Test::Print(_) | Test::Delete | Test::Exec(_) | Test::Gather(_));
        Ok(test)
    }

    fn exec(&mut self) -> Result<Test, Failure> {
        let mut taken: Vec<String> = Vec::new();
        while let Some(word) = self.words.next() {
            if word == ";" {
                return Ok(Test::Exec(taken));
            }
            if word == "+" && taken.pop_if(|last| last == "{}").is_some() {
                self.search.gathered.push((taken, Vec::new()));
                return Ok(Test::Gather(self.search.gathered.len() - 1));
            }
            taken.push(word.clone());
        }
        Err(Failure::usage("-exec needs a ; at its end, or {} +"))
    }
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

fn holds_for(test: &Test, entry: &Entry) -> bool {
    let (path, found) = (&entry.path, entry.metadata.as_ref());
    let modified = || found.and_then(|found| found.modified().ok());
    match test {
        Test::Name(pattern) => match path.file_name() {
            Some(_) => name_matches(pattern, path),
            None => name_matches(pattern, &PathBuf::from("/x").with_file_name(&entry.shown)),
        },
        Test::NameInAnyCase(pattern) => {
            name_matches(pattern, Path::new(&path.to_string_lossy().to_lowercase()))
        }
        Test::Path(pattern) => {
            let shown = entry.shown.replace('/', "\u{1}");
            name_matches(&pattern.replace('/', "\u{1}"), Path::new(&shown))
        }
        Test::Type('d') => entry.is_folder(),
        Test::Type('l') => path.is_symlink(),
        Test::Type(_) => found.is_some_and(|found| found.is_file()),
        Test::Age(order, number, unit) => {
            let age = modified().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            (age.as_secs_f64() / unit).floor().total_cmp(number) == *order
        }
        Test::Newer(time) => modified().is_some_and(|modified| modified > *time),
        Test::Size(order, number, unit) => {
            found.is_some_and(|found| found.len().div_ceil(*unit).cmp(number) == *order)
        }
        Test::Empty => match files::is_dir(path) {
            true => files::list(path).is_ok_and(|names| names.is_empty()),
            false => found.is_some_and(|found| found.len() == 0),
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
