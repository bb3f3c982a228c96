//! Applets about time, the environment and the machine.

use std::time::Duration;

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::command::{Command, Failure, On, Outcome};
use crate::runtime;

use super::{find, run};

/// What `timeout` ends with when the time is up.
const CODE_TIMEOUT: i32 = 124;

/// `1.5`, `2m`, `1h`: a duration as `sleep` takes it.
fn duration(text: &str) -> Result<Duration, Failure> {
    let bad = || Failure::usage(format!("invalid number '{text}'"));
    if text == "infinity" || text == "inf" {
        return Ok(Duration::MAX);
    }
    let (number, factor) = match text.chars().last() {
        Some('s') => (&text[..text.len() - 1], 1.0),
        Some('m') => (&text[..text.len() - 1], 60.0),
        Some('h') => (&text[..text.len() - 1], 3600.0),
        Some('d') => (&text[..text.len() - 1], 86_400.0),
        _ => (text, 1.0),
    };
    let seconds: f64 = number.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds * factor).map_err(|_| bad())
}

pub async fn sleep(command: Command) -> Outcome {
    if command.args.is_empty() {
        return Err(Failure::usage("how long?"));
    }
    let mut total = Duration::ZERO;
    for word in &command.args {
        total = total.saturating_add(duration(word)?);
    }
    runtime::sleep(total).await;
    Ok(0)
}

/// Waits for ever, as the image of that name does.
pub async fn pause() -> Outcome {
    loop {
        runtime::sleep(Duration::MAX).await;
    }
}

pub async fn timeout(command: Command) -> Outcome {
    let mut words = command.args.iter().cloned().peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        if matches!(option.as_str(), "-s" | "-k") {
            words.next();
        }
    }
    let Some(limit) = words.next() else { return Err(Failure::usage("how long?")) };
    let limit = duration(&limit)?;
    let work = Box::pin(run(command.with(words.collect())));
    match futures::future::select(work, Box::pin(runtime::sleep(limit))).await {
        futures::future::Either::Left((code, _)) => Ok(code),
        futures::future::Either::Right(_) => Ok(CODE_TIMEOUT),
    }
}

pub async fn time(command: Command) -> Outcome {
    let words = command.args.iter().filter(|word| *word != "-p").cloned().collect();
    let started = std::time::Instant::now();
    let code = Box::pin(run(command.with(words))).await;
    let text = format!("real\t{:.2}s\n", started.elapsed().as_secs_f64());
    command.stderr.write(text).await?;
    Ok(code)
}

pub async fn nohup(command: Command) -> Outcome {
    let words = command.args.clone();
    Ok(Box::pin(run(command.with(words))).await)
}

pub async fn date(command: Command) -> Outcome {
    let mut format = "%a %b %e %H:%M:%S %Z %Y".to_owned();
    let mut time = Timestamp::now();
    let mut words = command.args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-u" | "--utc" => {}
            "-d" | "--date" | "-r" if words.len() == 0 => {
                return Err(Failure::usage(format!("{word} needs a value")));
            }
            "-d" | "--date" => time = parsed(words.next().map_or("", String::as_str))?,
            "-r" => {
                let name = words.next().map_or("", String::as_str);
                let found = command.path(name).metadata().and_then(|found| found.modified());
                let modified = found.on(name)?;
                time = Timestamp::try_from(modified)
                    .map_err(|error| Failure::new(error.to_string()))?;
            }
            "-I" | "-Idate" | "--iso-8601" => format = "%Y-%m-%d".to_owned(),
            "-Iseconds" | "--iso-8601=seconds" => format = "%Y-%m-%dT%H:%M:%S%:z".to_owned(),
            "-R" | "--rfc-email" => format = "%a, %d %b %Y %H:%M:%S %z".to_owned(),
            word if word.starts_with('+') => format = word[1..].to_owned(),
            word if word.starts_with("--date=") => time = parsed(&word[7..])?,
            word => return Err(Failure::usage(format!("{word}: unknown option"))),
        }
    }
    // `%N` alone means nine digits.
    let format = format.replace("%3N", "%3f").replace("%N", "%9f");
    let zoned: Zoned = time.to_zoned(TimeZone::UTC);
    let text = strtime::format(&format, &zoned).map_err(|error| Failure::new(error.to_string()))?;
    command.print(format!("{text}\n")).await?;
    Ok(0)
}

/// A moment: `@SECONDS`, RFC 3339, or `YYYY-MM-DD[ HH:MM[:SS]]` in UTC.
pub(super) fn parsed(text: &str) -> Result<Timestamp, Failure> {
    let bad = || Failure::new(format!("invalid date '{text}'"));
    if text == "now" {
        return Ok(Timestamp::now());
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let seconds = seconds.parse().map_err(|_| bad())?;
        return Timestamp::from_second(seconds).map_err(|_| bad());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil: jiff::civil::DateTime = text.parse().map_err(|_| bad())?;
    let zoned = civil.to_zoned(TimeZone::UTC).map_err(|_| bad())?;
    Ok(zoned.timestamp())
}

/// `env [-i] [-u NAME] [NAME=VALUE …] [COMMAND …]`
pub async fn env(mut command: Command) -> Outcome {
    let mut words = std::mem::take(&mut command.args).into_iter().peekable();
    while let Some(word) = words.next_if(|word| word.starts_with('-') || word.contains('=')) {
        match word.as_str() {
            "-i" | "-" | "--ignore-environment" => command.env.clear(),
            "-u" => {
                command.env.remove(&words.next().unwrap_or_default());
            }
            "--" => break,
            word => match word.split_once('=') {
                Some((name, value)) => {
                    command.env.insert(name.to_owned(), value.to_owned());
                }
                None => return Err(Failure::usage(format!("{word}: unknown option"))),
            },
        }
    }
    if words.peek().is_some() {
        let words = words.collect();
        return Ok(Box::pin(run(command.with(words))).await);
    }
    for (name, value) in &command.env {
        command.print(format!("{name}={value}\n")).await?;
    }
    Ok(0)
}

pub async fn printenv(command: Command) -> Outcome {
    if command.args.is_empty() {
        return Box::pin(env(command)).await;
    }
    let mut code = 0;
    for name in &command.args {
        match command.env.get(name) {
            Some(value) => command.print(format!("{value}\n")).await?,
            None => code = 1,
        }
    }
    Ok(code)
}

pub async fn pwd(command: Command) -> Outcome {
    command.print(format!("{}\n", command.cwd.display())).await?;
    Ok(0)
}

pub fn host(command: &Command) -> String {
    command.env.get("HOSTNAME").cloned().unwrap_or_else(|| "localhost".to_owned())
}

pub async fn hostname(command: Command) -> Outcome {
    let host = host(&command);
    let name = match command.args.first().map(String::as_str) {
        Some("-s") => host.split('.').next().unwrap_or_default().to_owned(),
        Some("-f") => full_name(&host, &hosts_file()),
        Some("-d") => {
            let full = full_name(&host, &hosts_file());
            full.split_once('.').map_or("", |(_, domain)| domain).to_owned()
        }
        Some("-i" | "-I") => {
            command.env.get("POD_IP").cloned().unwrap_or_else(super::system::own_address)
        }
        _ => host,
    };
    command.print(format!("{name}\n")).await?;
    Ok(0)
}

fn hosts_file() -> String {
    std::fs::read_to_string("/etc/hosts").unwrap_or_default()
}

/// A name with its domain: the first name of its line in `/etc/hosts`.
fn full_name(host: &str, hosts: &str) -> String {
    let names = |line: &str| line.split_whitespace().skip(1).any(|name| name == host);
    let line = hosts.lines().find(|line| names(line));
    line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or(host).to_owned()
}

#[cfg(target_family = "wasm")]
pub fn own_address() -> String {
    crate::net::own_address().map_or_else(String::new, |address| address.to_string())
}

#[cfg(not(target_family = "wasm"))]
pub fn own_address() -> String {
    String::new()
}

/// A guest has no user: the numbers are those that Kubernetes gives to nobody.
pub async fn id(command: Command) -> Outcome {
    let text = match command.args.first().map(String::as_str) {
        Some("-u" | "-g" | "-G") => "65534\n",
        Some("-un" | "-nu" | "-gn") => "nobody\n",
        _ => "uid=65534(nobody) gid=65534(nobody) groups=65534(nobody)\n",
    };
    command.print(text).await?;
    Ok(0)
}

pub async fn uname(command: Command) -> Outcome {
    let host = host(&command);
    let version = env!("CARGO_PKG_VERSION");
    let all = [("s", "Wasi"), ("n", &host), ("r", version), ("v", "wherry"), ("m", "wasm32")];
    let wanted = match command.args.concat().replace('-', "") {
        none if none.is_empty() => "s".to_owned(),
        all if all.contains('a') => "snrvm".to_owned(),
        some => some,
    };
    let shown: Vec<&str> =
        all.iter().filter(|(letter, _)| wanted.contains(letter)).map(|(_, text)| *text).collect();
    command.print(shown.join(" ") + "\n").await?;
    Ok(0)
}

pub async fn free(command: Command) -> Outcome {
    #[cfg(target_family = "wasm")]
    let used = core::arch::wasm32::memory_size(0) * 64;
    #[cfg(not(target_family = "wasm"))]
    let used = 0;
    command.print(format!("              used\nMem: {used:>13}\n")).await?;
    Ok(0)
}

/// There are no processes: what runs here is all that can be seen from here.
pub async fn ps(command: Command) -> Outcome {
    let own = std::env::args().collect::<Vec<_>>().join(" ");
    command.print(format!("PID   USER     TIME  COMMAND\n    1 nobody    0:00 {own}\n")).await?;
    Ok(0)
}

pub async fn df() -> Outcome {
    Err(Failure::new("WASI does not tell how large a file system is; `du` tells what is in it"))
}

pub async fn which(command: Command) -> Outcome {
    let mut code = 0;
    for name in command.args.iter().filter(|word| !word.starts_with('-')) {
        match find(name) {
            Some(_) => command.print(format!("/bin/{name}\n")).await?,
            None => code = 1,
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::full_name;

    #[test]
    fn a_full_name_is_the_first_of_its_line() {
        let hosts = "127.0.0.1\tlocalhost\n10.0.0.2\tweb-0.web.shop.svc.cluster.local\tweb-0\n";
        assert_eq!(full_name("web-0", hosts), "web-0.web.shop.svc.cluster.local");
        assert_eq!(full_name("other", hosts), "other");
    }
}
