//! Probes, hooks, volumes and last words of containers with real guests.

use std::path::Path;

use super::harness::*;
use crate::protocol::{
    Check, Code, Container, Env, Exit, ExitReason, Form, Health, HookKind, HttpCheck, LastWords,
    Mount, Probe, ProbeKind, ToAgent, ToWorker,
};

fn probe(check: Check) -> Option<Probe> {
    Some(Probe {
        check,
        initial_delay_s: 0,
        timeout_s: 60,
        period_s: 1,
        success_threshold: 1,
        failure_threshold: 1,
        grace_s: None,
    })
}

/// Not before the others had their say.
fn later(check: Check) -> Option<Probe> {
    probe(check).map(|probe| Probe { initial_delay_s: 5, ..probe })
}

fn exec(command: &str) -> Check {
    Check::Exec { command: command.split(' ').map(str::to_owned).collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_of_the_image_are_probes() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let mut container = command(&fixture.module(&probed()), 0);
    container.probes.startup = probe(exec("ok"));
    container.probes.readiness = probe(exec("ok"));
    container.probes.liveness = later(exec("sick"));
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    agent.started("a").await;
    let (kind, failure, health) = agent.probed("a").await;
    assert_eq!((kind, failure), (ProbeKind::Startup, None));
    assert_eq!(health, Health { started: true, ready: false, failed: None });
    let (kind, failure, health) = agent.probed("a").await;
    assert_eq!((kind, failure, health.ready), (ProbeKind::Readiness, None, true));
    // What it prints is the message.
    let (kind, failure, _) = agent.probed("a").await;
    assert_eq!((kind, failure.as_deref()), (ProbeKind::Liveness, Some("not well")));
    // The next agent hears of it, too.
    let mut successor = fixture.connect(&fixture.hello).await;
    let state = successor.state().await;
    assert_eq!(state.pods[0].containers[0].health.failed, Some(ProbeKind::Liveness));
    fixture.stop(successor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_answer_fails_in_known_words() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&probed());
    let http = HttpCheck {
        host: None,
        port: 8080,
        path: "/healthz".to_owned(),
        https: false,
        headers: Vec::new(),
    };
    let cases = [
        (
            Check::Http(HttpCheck { https: true, ..http.clone() }),
            "Get \"https://10.0.0.1:8080/healthz\": dial tcp 10.0.0.1:8080: connect: connection \
             refused",
        ),
        (
            Check::Http(http),
            "Get \"http://10.0.0.1:8080/healthz\": dial tcp 10.0.0.1:8080: connect: connection \
             refused",
        ),
        (Check::Tcp { host: None, port: 81 }, "dial tcp 10.0.0.1:81: connect: connection refused"),
        (
            Check::Tcp { host: None, port: 0 },
            "the container has no port of the name that is to be asked",
        ),
        (exec("nothing"), "command \"nothing\" timed out"),
    ];
    for (restart, (check, expected)) in cases.into_iter().enumerate() {
        let mut container = command(&module, u32::try_from(restart).expect("few"));
        let never_answers = matches!(check, Check::Exec { .. });
        container.probes.readiness = probe(check);
        if let Some(probe) = &mut container.probes.readiness
            && never_answers
        {
            probe.timeout_s = 1;
        }
        agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
        assert_eq!(agent.probed("a").await.1.as_deref(), Some(expected));
    }
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_at_both_ends() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&probed());
    let hook_failed = |message| match message {
        ToAgent::HookFailed { hook, message, .. } => Some((hook, message)),
        ToAgent::ContainerStarted { .. } => panic!("it counts as started"),
        _ => None,
    };
    let mut container = command(&module, 0);
    container.hooks.post_start = Some(exec("sick"));
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    let failed = agent.hear_until(hook_failed).await;
    assert_eq!(failed, (HookKind::PostStart, "not well".to_owned()));
    let exit = agent.exited("a", 0).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Error));
    assert!(exit.message.contains("postStart"), "{}", exit.message);

    let mut container = command(&module, 1);
    container.hooks.post_start = Some(exec("ok"));
    container.hooks.pre_stop = Some(exec("sick"));
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    agent.started("a").await;
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 1, grace_ms: 10_000 }).await;
    assert_eq!(agent.hear_until(hook_failed).await.0, HookKind::PreStop);
    assert_eq!(agent.exited("a", 1).await.code, 143);
    fixture.stop(agent).await;
}

/// Reads standard input until its end, then exits with 7.
fn listening() -> Vec<u8> {
    wat(r#"(module
        (import "wasi_snapshot_preview1" "fd_read"
          (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
          (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
          (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
          (call $exit (i32.const 7))))"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_an_open_input_ends_by_itself() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let module = fixture.module(&listening());
    let container = Container { stdin: true, ..command(&module, 0) };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    agent.started("a").await;
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 30_000 }).await;
    assert_eq!(agent.exited("a", 0).await.code, 7);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_spent_its_grace_in_a_hook_may_end_by_itself_still() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let mut container = Container { stdin: true, ..command(&fixture.module(&listening()), 0) };
    container.hooks.pre_stop = Some(Check::Sleep { seconds: 60 });
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    agent.started("a").await;
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 100 }).await;
    assert_eq!(agent.exited("a", 0).await.code, 7);
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_image_lacks_is_called_in_the_toolbox() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let mut container = command(&fixture.module(&probed()), 0);
    container.toolbox = Some(Code { module: fixture.module(&listening()), form: Form::Module });
    container.probes.readiness = probe(exec("cat /tmp/healthy"));
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    assert_eq!(agent.probed("a").await.1.as_deref(), Some("command exited with code 7"));
    fixture.stop(agent).await;
}

/// Writes its last words into the file `words` of its first directory and exits with 3.
fn writing() -> Vec<u8> {
    wat(r#"(module
        (import "wasi_snapshot_preview1" "path_open" (func $open
          (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write"
          (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\20\00\00\00\07\00\00\00") (data (i32.const 32) "farewell")
        (data (i32.const 64) "words")
        (func (export "_start") (local $error i32)
          (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5)
            (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))
          (if (local.get $error) (then (call $exit (local.get $error))))
          (drop (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1)
            (i32.const 8)))
          (call $exit (i32.const 3))))"#)
}

/// Prints a line and traps.
fn trapping() -> Vec<u8> {
    wat(r#"(module
        (import "wasi_snapshot_preview1" "fd_write"
          (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\05\00\00\00") (data (i32.const 16) "oops\0a")
        (func (export "_start")
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (unreachable)))"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_container_that_traps_is_shown_with_the_trap() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let last_words = LastWords { file: None, sub: None, from_log: true };
    let container = Container { last_words, ..command(&fixture.module(&trapping()), 0) };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    let Exit { code, message, .. } = agent.exited("a", 0).await;
    assert_eq!(code, 134, "{message}");
    assert!(message.starts_with("the guest trapped: ") && message.ends_with(": oops"), "{message}");
    assert_eq!(message.matches("the guest trapped").count(), 1, "{message}");
    let log = fixture.log("a", "main", 0);
    assert!(log.starts_with("stdout F oops\nstderr F wherry: the guest trapped: "), "{log}");
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_read_from_a_volume_or_from_the_log() {
    let (fixture, mut agent) = Fixture::start("shop").await;
    let root = fixture.folder.0.join("volume");
    std::fs::create_dir_all(root.join("below")).expect("folders");
    let module = fixture.module(&writing());
    let mount = |sub: Option<&str>, read_only| Mount {
        root: root.clone(),
        sub: sub.map(Into::into),
        guest: "/data".to_owned(),
        read_only,
    };
    let last_words = LastWords { file: Some(root.join("words")), sub: None, from_log: true };
    let container = Container {
        mounts: vec![mount(None, false)],
        last_words: last_words.clone(),
        ..command(&module, 0)
    };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    let exit = agent.exited("a", 0).await;
    assert_eq!((exit.code, exit.message.as_str()), (3, "farewel"));

    // Below the volume's root.
    std::fs::remove_file(root.join("words")).expect("it was written");
    let container = Container {
        mounts: vec![mount(Some("below"), false)],
        last_words: LastWords { sub: Some("below".into()), ..last_words.clone() },
        ..command(&module, 1)
    };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    assert_eq!(agent.exited("a", 1).await.message, "farewel");
    assert!(root.join("below/words").exists());

    // A link out of the volume does not start.
    std::os::unix::fs::symlink("/etc", root.join("out")).expect("a link");
    let container = Container { mounts: vec![mount(Some("out"), false)], ..command(&module, 2) };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    let exit = agent.exited("a", 2).await;
    assert_eq!((exit.code, exit.reason), (128, ExitReason::StartError), "{}", exit.message);

    // A guest that may only read exits with the error, and its log is what is left; a link out of the
    // volume leads to no words.
    let module = fixture.module(&printing("it went wrong\n", 9));
    let file = Some(root.join("hostname"));
    let last_words = LastWords { file, sub: Some("out".into()), from_log: true };
    let container = Container { last_words, ..command(&module, 3) };
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    assert_eq!(agent.exited("a", 3).await.message, "it went wrong");
    fixture.stop(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_probed_without_a_socket() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-apps/dist/hello-http.wasm");
    let Ok(image) = std::fs::read(image) else {
        eprintln!("left out: the sample apps are not built; run `make apps`");
        return;
    };
    let (fixture, mut agent) = Fixture::start("shop").await;
    let mut container = handler(&fixture.module(&image), 80);
    container.env = Env(vec![("POD_NAME".to_owned(), "a".to_owned())]);
    container.probes.readiness = probe(Check::Http(HttpCheck {
        host: None,
        port: 80,
        path: "/ready".to_owned(),
        https: false,
        headers: vec![("X-Probe".to_owned(), "yes".to_owned())],
    }));
    container.probes.liveness = later(Check::Grpc { port: 80, service: String::new() });
    // A handler speaks no TLS: a hook makes do without.
    container.hooks.post_start = Some(Check::Http(HttpCheck {
        host: None,
        port: 80,
        path: "/".to_owned(),
        https: true,
        headers: Vec::new(),
    }));
    container.hooks.pre_stop = Some(Check::Tcp { host: None, port: 80 });
    agent.say(pod(&fixture, "a", "10.0.0.1", container)).await;
    agent.started("a").await;
    let (kind, failure, health) = agent.probed("a").await;
    assert_eq!((kind, failure, health.ready), (ProbeKind::Readiness, None, true));
    // It answers, but it is no gRPC server.
    let (kind, failure, _) = agent.probed("a").await;
    let failure = failure.expect("it fails");
    assert_eq!(kind, ProbeKind::Liveness);
    assert!(failure.contains("grpc-status 2"), "{failure}");
    let (uid, container) = ("a".to_owned(), "main".to_owned());
    agent.say(ToWorker::StopContainer { uid, container, restart: 0, grace_ms: 10_000 }).await;
    assert_eq!(agent.exited("a", 0).await.code, 0);
    fixture.stop(agent).await;
}
