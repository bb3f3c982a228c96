//! Commands: p1 modules and `wasi:cli/run` components, well-behaved and hostile.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::guests::{cli_run, p1};
use super::{Printed, config, engine, load, until};
use crate::engine::compile_checked;
use crate::instance::Pod;
use crate::{Budget, Command, Exit, Form, GuestConfig, Input, LoadError};

fn command(text: &str, config: GuestConfig) -> Command {
    load(text, Form::Module).command(config).expect("a command")
}

/// Runs a p1 module made of these fields, and returns how it ended and what it printed.
async fn run(fields: &str, adjust: impl FnOnce(&mut GuestConfig)) -> (Exit, String) {
    let printed = Printed::default();
    let mut config = config(&printed, &printed);
    adjust(&mut config);
    let exit = command(&p1(fields), config).run(CancellationToken::new()).await;
    (exit, printed.text())
}

#[tokio::test]
async fn prints_and_returns() {
    let hello = r#"(func (export "_start") (call $print (i32.const 64) (i32.const 5)))"#;
    assert_eq!(run(hello, |_| {}).await, (Exit::Code(0), "hello".into()));
}

#[tokio::test]
async fn exits_with_its_own_code() {
    let exits = r#"(func (export "_start") (call $exit (i32.const 7)))"#;
    assert_eq!(run(exits, |_| {}).await, (Exit::Code(7), String::new()));
}

/// Arguments and environment are exactly the configured ones; input is empty; no directory is open.
#[tokio::test]
async fn gets_what_it_was_given_and_nothing_else() {
    let prints_args = r#"(func (export "_start")
        (drop (call $args_sizes_get (i32.const 0) (i32.const 16)))
        (drop (call $args_get (i32.const 256) (i32.const 512)))
        (call $print (i32.const 512) (i32.load (i32.const 16))))"#;
    let args = |config: &mut GuestConfig| config.args = vec!["a".into(), "bc".into()];
    assert_eq!(run(prints_args, args).await.1, "a\0bc\0");

    let prints_env = r#"(func (export "_start")
        (drop (call $environ_sizes_get (i32.const 0) (i32.const 16)))
        (drop (call $environ_get (i32.const 256) (i32.const 512)))
        (call $print (i32.const 512) (i32.load (i32.const 16))))"#;
    let env = |config: &mut GuestConfig| {
        config.env = Arc::from([("KEY".to_owned(), "value".to_owned())]);
    };
    assert_eq!(run(prints_env, env).await.1, "KEY=value\0");

    let reads = r#"(func (export "_start")
        (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.load (i32.const 8))))"#;
    assert_eq!(run(reads, |_| {}).await.0, Exit::Code(0));

    const BAD_DESCRIPTOR: i32 = 8;
    let opens = r#"(func (export "_start")
        (call $exit (call $fd_prestat_get (i32.const 3) (i32.const 0))))"#;
    assert_eq!(run(opens, |_| {}).await.0, Exit::Code(BAD_DESCRIPTOR));
}

#[tokio::test]
async fn a_trap_tells_where() {
    let traps = r#"(func $boom unreachable) (func $main (export "_start") (call $boom))"#;
    let (exit, _) = run(traps, |_| {}).await;
    expect_test::expect![[r#"
        wasm trap: wasm `unreachable` instruction executed
          at boom
          at main"#]]
    .assert_eq(&match exit {
        Exit::Trap(text) => text,
        other => format!("{other:?}"),
    });
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let recurses = r#"(func $deeper (call $deeper)) (func (export "_start") (call $deeper))"#;
    let (exit, _) = run(recurses, |_| {}).await;
    assert!(matches!(&exit, Exit::Trap(text) if text.contains("stack")), "{exit:?}");
}

/// The memory bomb asks for a page until it is refused, and gives up as allocators do.
const BOMB: &str = r#"(func $bomb
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    unreachable)"#;

#[tokio::test]
async fn a_memory_bomb_runs_out_of_its_own_memory() {
    let bomb = format!(r#"{BOMB} (func (export "_start") (call $bomb))"#);
    let small = |config: &mut GuestConfig| config.limits.memory_bytes = 8 << 20;
    let printed = Printed::default();
    let mut limited = config(&printed, &printed);
    small(&mut limited);
    let command = command(&p1(&bomb), limited);
    let account = command.account();
    assert_eq!(command.run(CancellationToken::new()).await, Exit::OutOfMemory);
    let usage = account.usage();
    assert!(usage.memory_bytes_peak <= 8 << 20, "{usage:?}");
    assert!(usage.memory_bytes_peak > 7 << 20, "{usage:?}");
    assert_eq!((usage.memory_bytes, usage.instances_live), (0, 0));
}

#[tokio::test]
async fn a_memory_that_is_too_large_from_the_start() {
    let large = r#"(module (memory (export "memory") 1024) (func (export "_start")))"#;
    let mut config = GuestConfig::default();
    config.limits.memory_bytes = 32 << 20;
    let exit = command(large, config).run(CancellationToken::new()).await;
    assert_eq!(exit, Exit::OutOfMemory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_is_stopped() {
    for fields in [
        r#"(func (export "_start") (loop $again (br $again)))"#,
        // Before the entry point is even reached.
        r#"(func $spin (loop $again (br $again))) (start $spin) (func (export "_start"))"#,
        // In host calls.
        r#"(func (export "_start")
            (loop $again (drop (call $fd_read (i32.const 9) (i32.const 0) (i32.const 0)
              (i32.const 0))) (br $again)))"#,
    ] {
        let command = command(&p1(fields), GuestConfig::default());
        let account = command.account();
        let stop = CancellationToken::new();
        let running = tokio::spawn(command.run(stop.clone()));
        until("it burns CPU", || account.usage().cpu.as_millis() > 20).await;
        stop.cancel();
        assert_eq!(running.await.expect("no panic"), Exit::Stopped);
        assert_eq!(account.usage().instances_live, 0);
    }
}

/// On one thread, a guest that never stops lets another one through.
#[tokio::test]
async fn guests_take_turns() {
    let spins = command(
        &p1(r#"(func (export "_start") (loop $again (br $again)))"#),
        GuestConfig::default(),
    );
    let stop = CancellationToken::new();
    let spinning = tokio::spawn(spins.run(stop.clone()));
    let hello = r#"(func (export "_start") (call $print (i32.const 64) (i32.const 5)))"#;
    assert_eq!(run(hello, |_| {}).await, (Exit::Code(0), "hello".into()));
    stop.cancel();
    assert_eq!(spinning.await.expect("no panic"), Exit::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_makes_it_wait() {
    let mut config = GuestConfig::default();
    config.limits.cpu = Some(100);
    let spins = command(&p1(r#"(func (export "_start") (loop $again (br $again)))"#), config);
    let account = spins.account();
    let stop = CancellationToken::new();
    let running = tokio::spawn(spins.run(stop.clone()));
    until("it was throttled", || account.usage().throttled.as_millis() > 0).await;
    stop.cancel();
    assert_eq!(running.await.expect("no panic"), Exit::Stopped);
}

#[tokio::test]
async fn a_panic_in_the_host_ends_that_guest_only() {
    let hello = r#"(func (export "_start") (call $print (i32.const 64) (i32.const 5)))"#;
    let panics = |config: &mut GuestConfig| config.stdout = Arc::new(|_| panic!("a host bug"));
    let (exit, _) = run(hello, panics).await;
    assert!(matches!(&exit, Exit::Trap(text) if text.contains("host failed")), "{exit:?}");
    assert_eq!(run(hello, |_| {}).await.0, Exit::Code(0));
}

#[tokio::test]
async fn components_of_wasi_cli() {
    for (version, code) in [("0.2.0", 0), ("0.2.6", 1), ("0.3.0", 0), ("0.3.0", 1)] {
        let module = load(&cli_run(version, code), Form::Component);
        let command = module.command(GuestConfig::default()).expect("a command");
        assert_eq!(command.run(CancellationToken::new()).await, Exit::Code(code));
    }
}

#[test]
fn other_images_are_not_commands() {
    let library = load(r#"(module (func (export "add")))"#, Form::Module);
    assert!(matches!(
        library.command(GuestConfig::default()),
        Err(LoadError::Guest { wanted: "command", .. })
    ));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let load = || super::engine().load(file.path(), Form::Module).map(drop);
    std::fs::write(file.path(), b"\0asm\x01\0\0\0").expect("it can be written");
    assert!(load().is_err(), "not compiled");
    let compiled =
        compile_checked(cli_run("0.2.0", 0).as_bytes(), Form::Component).expect("it compiles");
    std::fs::write(file.path(), compiled.code).expect("it can be written");
    assert!(matches!(load(), Err(LoadError::Form { .. })), "not a module");
}

/// Opens a file below the first directory and prints what it has, or exits with the error.
fn prints_file(path: &str) -> String {
    format!(
        r#"(import "wasi_snapshot_preview1" "path_open" (func $path_open
             (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
           (memory (export "memory") 1)
           (data (i32.const 64) "{path}")
           (func (export "_start") (local $error i32)
             (local.set $error (call $path_open (i32.const 3) (i32.const 1) (i32.const 64)
               (i32.const {length}) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0)
               (i32.const 16)))
             (if (local.get $error) (then (call $exit (local.get $error))))
             (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
             (drop (call $fd_read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1)
               (i32.const 8)))
             (call $print (i32.const 512) (i32.load (i32.const 8))))"#,
        length = path.len()
    )
}

/// A module like [`p1`] whose fields bring their own imports and memory.
fn p1_with(fields: &str) -> String {
    let (import, rest) = fields.split_once("(memory").expect("imports come first");
    let text = p1(&format!("(func $unused) {}", rest.split_once('\n').expect("a line").1));
    text.replacen("(module ", &format!("(module {import} "), 1)
}

#[tokio::test]
async fn directories_are_those_that_were_given() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("in")).expect("a folder");
    std::fs::write(folder.path().join("secret"), "outside").expect("a file");
    std::fs::write(folder.path().join("in/file"), "inside").expect("a file");
    std::os::unix::fs::symlink("../secret", folder.path().join("in/link")).expect("a link");
    for (path, expected) in [
        ("file", (Exit::Code(0), "inside".to_owned())),
        // Not permitted (63), whatever the way out.
        ("../secret", (Exit::Code(63), String::new())),
        ("link", (Exit::Code(63), String::new())),
    ] {
        let printed = Printed::default();
        let mut config = config(&printed, &printed);
        config.mounts = vec![crate::Mount {
            host: folder.path().join("in"),
            guest: "/data".to_owned(),
            read_only: true,
        }];
        let text = p1_with(&prints_file(path));
        let exit = command(&text, config).run(CancellationToken::new()).await;
        assert_eq!((exit, printed.text()), expected, "{path}");
    }
}

#[tokio::test]
async fn a_volume_that_is_gone_is_named() {
    let mut config = GuestConfig::default();
    let (host, guest) = ("/nonexistent/volume".into(), "/data".to_owned());
    config.mounts = vec![crate::Mount { host, guest, read_only: true }];
    let module = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
    let exit = command(module, config).run(CancellationToken::new()).await;
    assert!(matches!(&exit, Exit::Trap(text) if text.contains("/data")), "{exit:?}");
}

/// It is told to end by the end of its input, or by the interface; both end by themselves.
#[tokio::test]
async fn a_command_hears_that_it_shall_end() {
    let reads = p1(r#"(func (export "_start")
        (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.add (i32.const 5) (i32.load (i32.const 8)))))"#);
    let asks = r#"(module
        (import "wherry:pod" "stopping" (func $stopping (result i32)))
        (import "wherry:pod" "wait_for_stop" (func $wait))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
          (if (call $stopping) (then (call $exit (i32.const 1))))
          (call $wait)
          (call $exit (i32.add (i32.const 4) (call $stopping)))))"#;
    let (_writer, input) = Input::pipe();
    for (text, stdin) in [(reads.as_str(), Some(input)), (asks, None)] {
        let config = GuestConfig { stdin, ..GuestConfig::default() };
        let term = config.term.clone();
        let command = command(text, config);
        assert!(command.hears_term());
        let account = command.account();
        let running = tokio::spawn(command.run(CancellationToken::new()));
        until("it runs", || account.usage().instances_started == 1).await;
        tokio::task::yield_now().await;
        assert!(!running.is_finished());
        term.cancel();
        assert_eq!(running.await.expect("no panic"), Exit::Code(5));
    }
    let deaf = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
    assert!(!command(deaf, GuestConfig::default()).hears_term());
}

/// What is called beside a guest takes none of its memory, and finds its own where that has all.
#[tokio::test]
async fn who_shares_a_budget_has_its_own_memory() {
    let mut config = GuestConfig::default();
    config.limits.memory_bytes_total = 8 << 20;
    let main = Pod::new(engine(), config.clone());
    let called = GuestConfig { budget: Some(Budget(Arc::clone(&main.meter))), ..config };
    let called = Pod::new(engine(), called);
    let (own, beside) = (main.memory_account(), called.memory_account());
    assert!(own.take_memory(8 << 20, 8 << 20), "all is free");
    assert!(beside.take_memory(6 << 20, 8 << 20), "it has its own");
    assert!(!beside.take_memory(6 << 20, 8 << 20), "that is bounded, too");
    assert_eq!(main.meter.account.usage().memory_bytes, 14 << 20, "both are told");
    own.give_memory_back(8 << 20);
    assert!(own.take_memory(8 << 20, 8 << 20));
}

/// Single exports can be called, each time in a fresh instance, on the budget of another guest.
#[tokio::test]
async fn exports_are_called_by_name() {
    let text = r#"(module (memory (export "memory") 1) (global $n (mut i32) (i32.const 6))
        (func (export "_start") (loop $again (br $again)))
        (func (export "healthy"))
        (func (export "count") (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
        (func (export "add") (param i32) (result i32) (local.get 0)))"#;
    let module = load(text, Form::Module);
    let main = module.command(GuestConfig::default()).expect("a command");
    let run = async |export: &str| {
        let config = GuestConfig { budget: Some(main.budget()), ..GuestConfig::default() };
        match module.call(export, config) {
            Ok(command) => format!("{:?}", command.run(CancellationToken::new()).await),
            Err(LoadError::Call { source, .. }) => source.to_string(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(run("healthy").await, "Code(0)");
    assert_eq!(run("count").await, "Code(7)");
    assert_eq!(run("count").await, "Code(7)");
    assert!(run("gone").await.starts_with("the image exports no function gone, "));
    assert!(matches!(
        module.call("no#such", GuestConfig::default()),
        Err(LoadError::NoExport { .. })
    ));
    assert_eq!(run("add").await, "it takes 1 parameters and is given 0");
    assert_eq!(main.account().usage().instances_started, 3);
    let words = |words: &[&str]| {
        let args = words.iter().map(|word| word.to_string()).collect();
        GuestConfig { args, ..GuestConfig::default() }
    };
    let add = module.call("add", words(&["add", "41"])).expect("a number is given");
    assert_eq!(add.run(CancellationToken::new()).await, Exit::Code(41));
    assert!(module.call("add", words(&["add", "many"])).is_err());
    assert!(module.call("healthy", words(&["healthy", "or", "not"])).is_ok());

    let component = r#"(component
        (core module $Main (func (export "ok") (result i32) (i32.const 1)))
        (core instance $main (instantiate $Main))
        (func $bool (result bool) (canon lift (core func $main "ok")))
        (func $result (result (result)) (canon lift (core func $main "ok")))
        (export "healthy" (func $bool))
        (instance $exports (export "check" (func $result)))
        (export "test:app/health@1.0.0" (instance $exports))
        (core module $Text
            (memory (export "memory") 1)
            (data (i32.const 128) "\90\00\00\00\05\00\00\00") (data (i32.const 144) "hello")
            (func (export "greet") (result i32) (i32.const 128))
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64))
            (func (export "length") (param i32 i32 i32) (result i32)
                (i32.add (local.get 1) (local.get 2))))
        (core instance $text (instantiate $Text))
        (func $length (param "text" string) (param "more" u8) (result u32)
            (canon lift (core func $text "length")
                (memory (core memory $text "memory")) (realloc (core func $text "realloc"))))
        (export "length" (func $length))
        (func $greet (result string)
            (canon lift (core func $text "greet") (memory (core memory $text "memory"))))
        (export "greet" (func $greet)))"#;
    let module = load(component, Form::Component);
    for (export, code) in [("healthy", 0), ("test:app/health@1.0.0#check", 1)] {
        let command = module.call(export, GuestConfig::default()).expect(export);
        assert_eq!(command.run(CancellationToken::new()).await, Exit::Code(code), "{export}");
    }
    let length = module.call("length", words(&["length", "hello", "3"])).expect("both are given");
    assert_eq!(length.run(CancellationToken::new()).await, Exit::Code(8));
    assert!(module.call("length", words(&["length", "hello", "300"])).is_err());
    let printed = Printed::default();
    let greet = module.call("greet", config(&printed, &printed)).expect("it takes nothing");
    assert_eq!(greet.run(CancellationToken::new()).await, Exit::Code(0));
    assert_eq!(printed.text(), "hello\n");
}

/// Many that never stop share the cores by their weights. As many threads as cores: with fewer there
/// is always enough for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn weights_decide_when_there_is_not_enough() {
    let spins = p1(r#"(func (export "_start") (loop $again (br $again)))"#);
    let engine = super::own_engine();
    let stop = CancellationToken::new();
    let mut running = Vec::new();
    let mut accounts = Vec::new();
    // More of them than cores, so that they compete whatever the machine has.
    for weight in [900, 100].into_iter().cycle().take(64) {
        let mut config = GuestConfig::default();
        config.limits.cpu_weight = weight;
        let module = super::load_into(&engine, &spins, Form::Module);
        let command = module.command(config).expect("a command");
        accounts.push((weight, command.account()));
        running.push(tokio::spawn(command.run(stop.clone())));
    }
    let used = |weight: u32| {
        let of = accounts.iter().filter(|(other, _)| *other == weight);
        of.map(|(_, account)| account.usage().cpu.as_millis()).sum::<u128>()
    };
    until("the heavy ones are ahead", || used(900) > 500 && used(900) > 2 * used(100)).await;
    stop.cancel();
    for task in running {
        assert_eq!(task.await.expect("no panic"), Exit::Stopped);
    }
}
