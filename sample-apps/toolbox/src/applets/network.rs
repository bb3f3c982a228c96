//! Applets of the network.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::{Either, FutureExt, LocalBoxFuture, select};
use lexopt::prelude::*;

use crate::command::{Command, Failure, On, Outcome};
use crate::files;
use crate::http::{self, Request, Response, Serve, Url, header, query};
use crate::io::{Input, Output};
use crate::net::{self, Connection, Datagrams, Listener};
use crate::runtime;

use super::nc::Nc;

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 10;
/// Requests that `netexec` makes for one of its own.
const DIALS_MAX: u32 = 100;
/// Files that `httpd` serves lie in memory while they are sent.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// What `wget` and `curl` have in common.
#[derive(Default)]
struct Fetch {
    urls: Vec<String>,
    method: Option<String>,
    headers: Vec<String>,
    body: Vec<u8>,
    output: Option<String>,
    quiet: bool,
    timeout: Option<Duration>,
    follow: bool,
    /// Whether a status of 400 and more is a failure.
    fails: bool,
    show_head: bool,
    only_head: bool,
    tries: u32,
    write_out: Option<String>,
}

impl Fetch {
    async fn run(&self, command: &Command) -> Outcome {
        let mut code = 0;
        for url in &self.urls {
            code = match self.timeout {
                None => self.fetch(command, url).await?,
                Some(timeout) => {
                    let work = Box::pin(self.fetch(command, url));
                    match select(work, Box::pin(runtime::sleep(timeout))).await {
                        Either::Left((code, _)) => code?,
                        Either::Right(_) => {
                            let message = "download timed out".to_owned();
                            let code = if command.name == "curl" { 28 } else { 1 };
                            return Err(Failure { message, code });
                        }
                    }
                }
            };
        }
        Ok(code)
    }

    async fn fetch(&self, command: &Command, text: &str) -> Outcome {
        let mut url = Url::parse(text)?;
        let method = match &self.method {
            Some(method) => method.as_str(),
            None if self.only_head => "HEAD",
            None if !self.body.is_empty() => "POST",
            None => "GET",
        };
        let mut answer = self.sent(&url, method).await?;
        for _ in 0..REDIRECTS_MAX {
            let target = match header(&answer.headers, "location") {
                Some(target) if self.follow && (300..400).contains(&answer.status) => target,
                _ => break,
            };
            url = match target.starts_with('/') {
                true => Url { path: target.to_owned(), ..url },
                false => Url::parse(target)?,
            };
            answer = self.sent(&url, method).await?;
        }
        if self.fails && answer.status >= 400 {
            let message = match command.name.as_str() {
                "curl" => format!("The requested URL returned error: {}", answer.status),
                _ => format!("server returned error: HTTP/1.1 {} {}", answer.status, answer.reason),
            };
            let code = if command.name == "curl" { 22 } else { 1 };
            return Err(Failure { message, code });
        }
        let output = match self.output.as_deref() {
            Some(name) => command.create(name)?,
            None => command.stdout.clone(),
        };
        if self.show_head || self.only_head {
            output.write(&answer.head).await?;
        }
        answer.body_to(&output).await?;
        if let Some(format) = &self.write_out {
            let text = format.replace("%{http_code}", &answer.status.to_string());
            let text = crate::escapes::expand(&text, crate::escapes::Octal::Bare).0;
            command.print(text).await?;
        }
        Ok(0)
    }

    async fn sent(&self, url: &Url, method: &str) -> Result<http::Answer, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let sent = http::request(url, method, &self.headers, &self.body).await;
            match sent {
                Err(_) if tries <= self.tries => runtime::sleep(Duration::from_secs(1)).await,
                sent => {
                    return sent.map_err(|error| {
                        let why = files::reason(&error);
                        Failure {
                            message: format!("can't connect to {}: {why}", url.authority()),
                            code: 1,
                        }
                    });
                }
            }
        }
    }
}

fn seconds(text: std::ffi::OsString) -> Result<Duration, Failure> {
    let seconds: f64 = text.parse()?;
    Duration::try_from_secs_f64(seconds).map_err(|_| Failure::usage("not a number of seconds"))
}

pub async fn wget(command: Command) -> Outcome {
    let mut fetch = Fetch { follow: true, fails: true, ..Fetch::default() };
    let mut spider = false;
    let mut folder = None;
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('q') | Long("quiet" | "no-verbose") => fetch.quiet = true,
            Short('O') | Long("output-document") => fetch.output = Some(options.value()?.string()?),
            Short('T') | Long("timeout") => fetch.timeout = Some(seconds(options.value()?)?),
            Short('t') | Long("tries") => {
                let tries: u32 = options.value()?.parse()?;
                fetch.tries = tries.saturating_sub(1);
            }
            Short('U') | Long("user-agent") => {
                fetch.headers.push(format!("User-Agent: {}", options.value()?.string()?));
            }
            Long("header") => fetch.headers.push(options.value()?.string()?),
            Long("post-data") => fetch.body = options.value()?.string()?.into_bytes(),
            Long("post-file") => {
                let name = options.value()?.string()?;
                fetch.body = command.open(&name)?.rest().await.on(&name)?;
            }
            Long("spider") => spider = true,
            Short('S') | Long("server-response") => fetch.show_head = true,
            Short('P') | Long("directory-prefix") => folder = Some(options.value()?.string()?),
            Short('n') => drop(options.optional_value()),
            Short('c') | Long("no-check-certificate") => {}
            Value(url) => fetch.urls.push(url.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if fetch.urls.is_empty() {
        return Err(Failure::usage("which URL?"));
    }
    if fetch.output.is_none() {
        let name = Url::parse(&fetch.urls[0])?.path;
        let name = name.split('?').next().unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
        let name = if name.is_empty() { "index.html".to_owned() } else { name };
        fetch.output = Some(folder.map_or(name.clone(), |folder| format!("{folder}/{name}")));
    }
    if spider {
        fetch.output = Some("/dev/null".to_owned());
    }
    let code = fetch.run(&command).await?;
    if !fetch.quiet
        && let Some(name) = &fetch.output
        && name != "-"
        && !spider
    {
        command.complain(&format!("'{name}' saved")).await;
    }
    Ok(code)
}

pub async fn curl(command: Command) -> Outcome {
    let mut fetch = Fetch::default();
    let mut options = command.options();
    while let Some(argument) = options.next()? {
        match argument {
            Short('s') | Long("silent") => fetch.quiet = true,
            Short('S' | 'k' | 'g' | 'N' | 'v' | '4' | '6') => {}
            Long("show-error" | "insecure" | "globoff" | "no-buffer" | "verbose") => {}
            Short('L') | Long("location") => fetch.follow = true,
            Short('f') | Long("fail" | "fail-with-body") => fetch.fails = true,
            Short('i') | Long("include") => fetch.show_head = true,
            Short('I') | Long("head") => fetch.only_head = true,
            Short('o') | Long("output") => fetch.output = Some(options.value()?.string()?),
            Short('O') => {}
            Short('X') | Long("request") => fetch.method = Some(options.value()?.string()?),
            Short('H') | Long("header") => fetch.headers.push(options.value()?.string()?),
            Short('A') | Long("user-agent") => {
                fetch.headers.push(format!("User-Agent: {}", options.value()?.string()?));
            }
            Short('d') | Long("data" | "data-raw" | "data-binary") => {
                let data = options.value()?.string()?;
                match data.strip_prefix('@') {
                    Some(name) => fetch.body = command.open(name)?.rest().await.on(name)?,
                    None => {
                        if !fetch.body.is_empty() {
                            fetch.body.push(b'&');
                        }
                        fetch.body.extend_from_slice(data.as_bytes());
                    }
                }
            }
            Short('w') | Long("write-out") => fetch.write_out = Some(options.value()?.string()?),
            Short('m') | Long("max-time") => fetch.timeout = Some(seconds(options.value()?)?),
            Long("connect-timeout") => {
                let limit = seconds(options.value()?)?;
                fetch.timeout.get_or_insert(limit);
            }
            Long("retry") => fetch.tries = options.value()?.parse()?,
            Long("retry-delay" | "retry-max-time") => drop(options.value()?),
            Long("retry-connrefused" | "retry-all-errors") => {}
            Value(url) => fetch.urls.push(url.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if fetch.urls.is_empty() {
        return Err(Failure::usage("which URL?"));
    }
    match fetch.run(&command).await {
        Err(Failure { message, code: 1 }) if message.starts_with("can't connect") => {
            let code = if message.contains("does not resolve") { 6 } else { 7 };
            let message = if fetch.quiet { String::new() } else { message };
            Err(Failure { message, code })
        }
        outcome => outcome,
    }
}

pub async fn nslookup(command: Command) -> Outcome {
    let Some(name) = command.args.iter().find(|word| !word.starts_with('-')) else {
        return Err(Failure::usage("which name?"));
    };
    command.print(format!("Name:\t{name}\n")).await?;
    match net::lookup(name).await {
        Ok(addresses) => {
            for (index, address) in addresses.iter().enumerate() {
                command.print(format!("Address {}: {address}\n", index + 1)).await?;
            }
            Ok(0)
        }
        Err(error) => Err(Failure::new(format!("can't resolve '{name}': {error}"))),
    }
}

pub async fn nc(command: Command) -> Outcome {
    let Nc { listens, again, probes, udp, verbose, wait, host, port, program } =
        Nc::parse(&command.args)?;
    if udp {
        return nc_udp(&command, listens, host.as_ref(), port, wait).await;
    }
    if listens {
        let listener = Listener::bind(port).await.on(&format!("port {port}"))?;
        loop {
            let connection = listener.accept().await?;
            if program.is_empty() {
                converse(&command, connection, None, true).await?;
            } else {
                serve_by(&command, &program, connection).await;
            }
            if !again {
                return Ok(0);
            }
        }
    }
    let Some(host) = &host else { return Err(Failure::usage("which host?")) };
    let connecting = Box::pin(net::connect(host, port));
    let limit = wait.unwrap_or(Duration::from_secs(10));
    let connection = match select(connecting, Box::pin(runtime::sleep(limit))).await {
        Either::Left((connection, _)) => connection.on(&format!("{host} ({port})"))?,
        Either::Right(_) => {
            return Err(Failure::new(format!("{host} ({port}): Connection timed out")));
        }
    };
    if let Some(peer) = connection.peer.filter(|_| verbose) {
        command.stderr.write(format!("{host} ({peer}) open\n")).await?;
    }
    if probes {
        return Ok(0);
    }
    if !program.is_empty() {
        serve_by(&command, &program, connection).await;
        return Ok(0);
    }
    converse(&command, connection, wait, false).await?;
    Ok(0)
}

async fn serve_by(command: &Command, program: &[String], connection: Connection) {
    let mut inner = command.with(program.to_vec());
    let Connection { input, output, .. } = connection;
    (inner.stdin, inner.stdout) = (input, output);
    Box::pin(super::run(inner)).await;
}

/// Both directions until the peer ends; `silence` bounds the wait for it after the input's end. Who
/// listens keeps its side open: a server without input has not said its last word by that.
async fn converse(
    command: &Command,
    connection: Connection,
    silence: Option<Duration>,
    listens: bool,
) -> Result<(), Failure> {
    let Connection { input, output, .. } = connection;
    let stdin = command.stdin.clone();
    let sending = async move {
        // A peer that takes no more has told enough.
        let _ = copy(&stdin, &output).await;
        let _kept = listens.then_some(output);
        match silence {
            Some(limit) => runtime::sleep(limit).await,
            None => futures::future::pending().await,
        }
    };
    let receiving = copy(&input, &command.stdout);
    match select(Box::pin(sending), Box::pin(receiving)).await {
        Either::Left(((), _)) => Ok(()),
        Either::Right((received, _)) => Ok(received?),
    }
}

async fn copy(input: &Input, output: &Output) -> std::io::Result<()> {
    loop {
        let chunk = input.chunk(32 << 10).await?;
        if chunk.is_empty() {
            return Ok(());
        }
        output.write(chunk).await?;
    }
}

async fn nc_udp(
    command: &Command,
    listens: bool,
    host: Option<&String>,
    port: u16,
    wait: Option<Duration>,
) -> Outcome {
    if listens {
        let socket = Datagrams::bind(port).await.on(&format!("port {port}"))?;
        loop {
            for (data, _) in socket.receive().await? {
                command.print(data).await?;
            }
        }
    }
    let Some(host) = host else { return Err(Failure::usage("which host?")) };
    let addresses = net::lookup(host).await.on(host)?;
    let to = SocketAddr::new(addresses[0], port);
    let socket = Datagrams::bind(0).await?;
    let sending = async {
        while let Some(line) = command.stdin.until(b'\n').await? {
            socket.send(line, to).await?;
        }
        runtime::sleep(wait.unwrap_or(Duration::from_secs(1))).await;
        std::io::Result::Ok(())
    };
    let receiving = async {
        loop {
            for (data, _) in socket.receive().await? {
                command.stdout.write(data).await?;
            }
        }
    };
    let receiving: LocalBoxFuture<'_, std::io::Result<()>> = receiving.boxed_local();
    match select(Box::pin(sending), receiving).await {
        Either::Left((done, _)) | Either::Right((done, _)) => done?,
    }
    Ok(0)
}

/// `httpd [-f] [-p PORT] [-h FOLDER]`: without `-f` in the background.
pub async fn httpd(command: Command) -> Outcome {
    let (mut port, mut folder, mut foreground) = ("80".to_owned(), command.cwd.clone(), false);
    let mut words = command.args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-f" => foreground = true,
            "-p" => port = words.next().cloned().unwrap_or_default(),
            "-h" => folder = command.path(words.next().map_or(".", String::as_str)),
            "-v" | "-vv" | "-i" => {}
            "-c" | "-u" | "-r" => drop(words.next()),
            other => match other.strip_prefix("-p") {
                Some(value) => port = value.to_owned(),
                None => return Err(Failure::usage(format!("{other}: unknown option"))),
            },
        }
    }
    let number = port.rsplit(':').next().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| Failure::usage(format!("{port}: not a port")))?;
    let listener = Listener::bind(number).await.on(&format!("port {number}"))?;
    let serving = http::serve(listener, Folder(folder));
    if foreground {
        serving.await?;
        return Ok(0);
    }
    runtime::spawn(async move {
        // It ends with the Pod.
        let _ = serving.await;
    });
    Ok(0)
}

/// Serves the files of a directory.
#[derive(Clone)]
struct Folder(PathBuf);

impl Serve for Folder {
    fn answer(&self, request: Request) -> LocalBoxFuture<'static, Response> {
        let folder = self.0.clone();
        async move {
            if !["GET", "HEAD"].contains(&request.method.as_str()) {
                return Response::text(405, "405 Method Not Allowed\n");
            }
            let name = http::decoded(request.path.split('?').next().unwrap_or("/"));
            // The name is cut to the folder: `..` cannot lead out of the root it starts from.
            let inside = files::absolute(std::path::Path::new("/"), &name);
            let mut path = folder.join(inside.strip_prefix("/").unwrap_or(&inside));
            if files::is_dir(&path) {
                path.push("index.html");
            }
            if path.metadata().is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
                return Response::text(500, "500 the file is too large for this server\n");
            }
            match std::fs::read(&path) {
                Ok(body) => Response { status: 200, kind: kind(&path), body, headers: Vec::new() },
                Err(_) => Response::text(404, "404 Not Found\n"),
            }
        }
        .boxed_local()
    }
}

fn kind(path: &std::path::Path) -> &'static str {
    match path.extension().and_then(|end| end.to_str()) {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("txt" | "log" | "md") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// A server for tests, after the image of that name in Kubernetes' own: `netexec`, `serve-hostname`,
/// `liveness`, `grpc-health-checking`, `test-webserver`, `logs-generator` and `pause`.
pub async fn agnhost(mut command: Command) -> Outcome {
    let mode = if command.args.is_empty() { "pause".into() } else { command.args.remove(0) };
    // `--name=value` and `--name value`
    let option = |name: &str| {
        let mut words = command.args.iter();
        while let Some(word) = words.next() {
            let rest = word.strip_prefix('-').map(|word| word.trim_start_matches('-'));
            match rest.and_then(|rest| rest.strip_prefix(name)) {
                Some("") => return words.next().cloned(),
                Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
                _ => {}
            }
        }
        None
    };
    let port = |name: &str, otherwise: u16| -> Result<u16, Failure> {
        option(name).map_or(Ok(otherwise), |text| {
            text.parse().map_err(|_| Failure::usage(format!("--{name}={text}: not a port")))
        })
    };
    match mode.as_str() {
        "pause" => super::system::pause().await,
        "netexec" => {
            let server = TestServer::new(&command, None);
            let udp = port("udp-port", 8081)?;
            let datagrams = Datagrams::bind(udp).await;
            if let Ok(datagrams) = datagrams {
                runtime::spawn(answer_datagrams(datagrams, command.clone()));
            }
            web(port("http-port", 8080)?, server).await
        }
        "serve-hostname" => {
            let server = TestServer { says_name: true, ..TestServer::new(&command, None) };
            web(port("port", 9376)?, server).await
        }
        "liveness" => {
            let server = TestServer::new(&command, Some(Duration::from_secs(10)));
            web(port("port", 8080)?, server).await
        }
        "grpc-health-checking" => {
            let server = TestServer::new(&command, None);
            let number = port("port", 5000)?;
            let listener = Listener::bind(number).await.on(&format!("port {number}"))?;
            runtime::spawn(answer_health(listener, server.clone()));
            web(port("http-port", 8080)?, server).await
        }
        "test-webserver" => {
            let listener = Listener::bind(port("port", 80)?).await?;
            http::serve(listener, Folder(PathBuf::from("/"))).await?;
            Ok(0)
        }
        "logs-generator" => {
            let total: u64 =
                option("log-lines-total").and_then(|text| text.parse().ok()).unwrap_or(10);
            let run = option("run-duration")
                .and_then(|text| text.trim_end_matches('s').parse::<f64>().ok());
            let pause = run.unwrap_or(1.0) / total.max(1) as f64;
            for line in 0..total {
                let text = format!("{line} /api/v1/namespaces/default/pods/logs-{line} 200\n");
                command.stderr.write(text).await?;
                runtime::sleep(Duration::from_secs_f64(pause.max(0.0))).await;
            }
            Ok(0)
        }
        other => Err(Failure::usage(format!(
            "{other}: unknown; there are netexec, serve-hostname, liveness, grpc-health-checking, \
             test-webserver, logs-generator and pause"
        ))),
    }
}

async fn web(port: u16, server: TestServer) -> Outcome {
    let listener = Listener::bind(port).await.on(&format!("port {port}"))?;
    let exit = server.exit.clone();
    let serving = Box::pin(http::serve(listener, server));
    let asked = async move {
        let code = exit.asked().await;
        // The answer to whoever asked goes out first.
        runtime::sleep(Duration::from_millis(100)).await;
        code
    };
    match select(serving, Box::pin(asked)).await {
        Either::Left((served, _)) => {
            served?;
            Ok(0)
        }
        Either::Right((code, _)) => Ok(code),
    }
}

/// The exit code that a request asks for.
#[derive(Default)]
struct Exit(RefCell<(Option<i32>, Option<Waker>)>);

impl Exit {
    fn ask(&self, code: i32) {
        let mut inner = self.0.borrow_mut();
        inner.0 = Some(code);
        inner.1.take().into_iter().for_each(Waker::wake);
    }

    async fn asked(&self) -> i32 {
        poll_fn(|cx| {
            let mut inner = self.0.borrow_mut();
            inner.1 = Some(cx.waker().clone());
            inner.0.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// What `netexec` and its like answer.
#[derive(Clone)]
struct TestServer {
    command: Command,
    started: Instant,
    healthy: Rc<Cell<bool>>,
    /// After this long it says that it is not healthy.
    healthy_for: Option<Duration>,
    /// Whether its name is what it is there to say.
    says_name: bool,
    exit: Rc<Exit>,
}

impl TestServer {
    fn new(command: &Command, healthy_for: Option<Duration>) -> TestServer {
        TestServer {
            command: command.clone(),
            started: Instant::now(),
            healthy: Rc::new(Cell::new(true)),
            healthy_for,
            says_name: false,
            exit: Rc::default(),
        }
    }

    fn is_healthy(&self) -> bool {
        let young = self.healthy_for.is_none_or(|limit| self.started.elapsed() < limit);
        self.healthy.get() && young
    }
}

impl Serve for TestServer {
    fn answer(&self, request: Request) -> LocalBoxFuture<'static, Response> {
        let server = self.clone();
        async move {
            let path = request.path.clone();
            let asked = |name: &str| query(&path, name);
            match path.split('?').next().unwrap_or("/") {
                "/hostname" | "/hostName" => {
                    Response::text(200, super::system::host(&server.command))
                }
                "/" if server.says_name => {
                    Response::text(200, super::system::host(&server.command))
                }
                "/" => Response::text(200, format!("NOW: {}", jiff::Timestamp::now())),
                "/echo" => {
                    let status = asked("code").and_then(|code| code.parse().ok()).unwrap_or(200);
                    let text = asked("msg");
                    let body = String::from_utf8_lossy(&request.body).into_owned();
                    Response::text(status, text.unwrap_or(body))
                }
                "/clientip" => {
                    let forwarded = header(&request.headers, "x-forwarded-for");
                    let peer = request.peer.map(|peer| peer.to_string());
                    Response::text(200, forwarded.map_or(peer.unwrap_or_default(), str::to_owned))
                }
                "/header" => {
                    let name = asked("key").unwrap_or_default();
                    Response::text(200, header(&request.headers, &name).unwrap_or(""))
                }
                "/redirect" => {
                    let status = asked("code").and_then(|code| code.parse().ok()).unwrap_or(302);
                    let location = asked("location").unwrap_or_default();
                    let headers = vec![("location".to_owned(), location)];
                    Response { headers, ..Response::text(status, "") }
                }
                "/healthz" | "/readyz" | "/started" => match server.is_healthy() {
                    true => Response::text(200, "ok"),
                    false => Response::text(500, "not healthy"),
                },
                "/healthz/fail" | "/make-not-serving" => {
                    server.healthy.set(false);
                    Response::text(200, "from now on not healthy")
                }
                "/healthz/ok" | "/make-serving" => {
                    server.healthy.set(true);
                    Response::text(200, "from now on healthy")
                }
                "/exit" => {
                    let code = asked("code").and_then(|code| code.parse().ok()).unwrap_or(0);
                    server.exit.ask(code);
                    Response::text(200, "")
                }
                "/dial" => server.dial(&path).await,
                "/shell" | "/shell/" => server.shell(&asked("cmd").unwrap_or_default()).await,
                _ => Response::text(404, "404 Not Found\n"),
            }
        }
        .boxed_local()
    }
}

/// A text as JSON.
fn json(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

impl TestServer {
    /// How a command ends, and what it prints, as JSON.
    async fn run(&self, words: &[&str]) -> (i32, String) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let mut inner = self.command.with(words);
        let output = Output::memory();
        (inner.stdin, inner.stdout, inner.stderr) = (Input::null(), output.clone(), output.clone());
        let code = Box::pin(super::run(inner)).await;
        (code, json(&String::from_utf8_lossy(&output.take())))
    }

    async fn shell(&self, text: &str) -> Response {
        let (code, output) = self.run(&["sh", "-c", text]).await;
        let error = if code == 0 { String::new() } else { format!(",\"error\":\"exit {code}\"") };
        Response::text(200, format!("{{\"output\":{output}{error}}}"))
    }

    /// Asks another server, and says what it has answered.
    async fn dial(&self, path: &str) -> Response {
        let asked = |name: &str| query(path, name);
        let (Some(host), Some(port), Some(what)) = (asked("host"), asked("port"), asked("request"))
        else {
            return Response::text(400, "host, port and request are needed");
        };
        if asked("protocol").is_some_and(|protocol| protocol != "http") {
            return Response::text(400, "the protocol can only be http");
        }
        let url = format!("http://{host}:{port}/{what}");
        let tries = asked("tries").and_then(|tries| tries.parse().ok()).unwrap_or(1);
        let (mut responses, mut errors, mut status) = (Vec::new(), Vec::new(), 200);
        for _ in 0..DIALS_MAX.min(tries) {
            let (code, said) = self.run(&["wget", "-T", "5", "-qO-", &url]).await;
            status = if code == 0 { 200 } else { 417 };
            let list = if code == 0 { &mut responses } else { &mut errors };
            list.push(said);
        }
        let lists = [("errors", errors), ("responses", responses)];
        let filled = lists.iter().filter(|(_, list)| !list.is_empty());
        let parts = filled.map(|(name, list)| format!("\"{name}\":[{}]", list.join(",")));
        Response::text(status, format!("{{{}}}", parts.collect::<Vec<_>>().join(",")))
    }
}

/// gRPC's health checks, as long as somebody connects.
async fn answer_health(listener: Listener, server: TestServer) {
    while let Ok(Connection { input, output, .. }) = listener.accept().await {
        let server = server.clone();
        runtime::spawn(async move {
            // A client that breaks off is its own business.
            let _ = super::grpc::converse(&input, &output, || server.is_healthy()).await;
        });
    }
}

/// `echo TEXT`, `hostname` and `clientip`, as `netexec` answers them by UDP.
async fn answer_datagrams(socket: Datagrams, command: Command) {
    while let Ok(received) = socket.receive().await {
        for (data, from) in received {
            let text = String::from_utf8_lossy(&data).trim().to_owned();
            let answer = match text.split_once(' ').unwrap_or((&text, "")) {
                ("echo", rest) => rest.to_owned(),
                ("hostname" | "hostName", _) => super::system::host(&command),
                ("clientip", _) => from.to_string(),
                _ => continue,
            };
            // Whoever asked may be gone.
            let _ = socket.send(answer.into_bytes(), from).await;
        }
    }
}
