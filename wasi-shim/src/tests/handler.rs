//! Handlers: requests answered by fresh instances, and everything a hostile one may try.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Empty};

use super::guests::{handler, handler_p3, handler_p3_together};
use super::{Printed, engine, load, load_into, until};
use crate::engine::compile_checked;
use crate::{
    Body, Engine, EngineConfig, Form, GuestConfig, HandleError, Handler, LoadError, Usage, Wake,
};

/// Answers with a full response.
pub(crate) const HELLO: &str = r#"(func (export "handle") (param $in i32) (param $out i32) (local $body i32)
    (local.set $body (call $head (local.get $out)))
    (call $say (local.get $body))
    (call $end (local.get $body)))"#;

pub(crate) const SPINS: &str = r#"(func (export "handle") (param i32 i32) (call $spin))"#;

pub(crate) fn load_handler(fields: &str, config: GuestConfig) -> Handler {
    load(&handler(fields), Form::Component).handler(config).expect("a handler")
}

/// A deadline that a loop reaches soon; not for sane guests, whom a busy machine may hold up as long.
fn hurried() -> GuestConfig {
    let mut config = GuestConfig::default();
    config.limits.request_deadline = Duration::from_millis(200);
    config
}

pub(crate) fn get() -> http::Request<Body> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    http::Request::get("http://app.default/").body(body).expect("a plain request")
}

async fn body_of(handler: &Handler) -> String {
    let response = handler.handle(get()).await.expect("a response");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("the whole body");
    String::from_utf8_lossy(&body.to_bytes()).into_owned()
}

#[tokio::test]
async fn answers_each_request_in_a_fresh_instance() {
    // Traps if memory or globals are not as they were at the start.
    let counts = r#"
        (global $count (mut i32) (i32.const 0))
        (func (export "handle") (param $in i32) (param $out i32) (local $body i32)
          (if (i32.or (global.get $count) (i32.load (i32.const 70000))) (then unreachable))
          (global.set $count (i32.const 1))
          (i32.store (i32.const 70000) (i32.const 1))
          (memory.fill (i32.const 80000) (i32.const 7) (i32.const 40000))
          (local.set $body (call $head (local.get $out)))
          (call $say (local.get $body))
          (call $end (local.get $body)))"#;
    let handler = load_handler(counts, GuestConfig::default());
    assert_eq!(handler.account().usage(), Usage::default(), "an idle handler has no instance");
    for _ in 0..50 {
        assert_eq!(body_of(&handler).await, "hello");
    }
    until("the last instance is gone", || handler.account().usage().instances_live == 0).await;
    let usage = handler.account().usage();
    assert_eq!((usage.instances_started, usage.memory_bytes), (50, 0));
    assert!(usage.memory_bytes_peak >= 128 << 10, "{usage:?}");
    assert!(!usage.cpu.is_zero());
}

#[tokio::test]
async fn an_instance_is_wiped_behind_its_answer() {
    let handler = load_handler(HELLO, GuestConfig::default());
    let mut behind = 0;
    for _ in 0..20 {
        let response = handler.handle(get()).await.expect("a response");
        let usage = handler.account().usage();
        behind += u32::from(usage.instances_live == 1 && usage.memory_bytes == 0);
        drop(response);
        until("it is gone", || handler.account().usage().instances_live == 0).await;
    }
    // One that a tick stops goes on by itself.
    assert!(behind > 0);
    // Nobody else has had a turn since these began: they do not pile up.
    let mut responses = Vec::new();
    for _ in 0..50 {
        responses.push(handler.handle(get()).await.expect("a response"));
    }
    let live = handler.account().usage().instances_live;
    assert!(live < 50, "{live}");
    until("all are gone", || handler.account().usage().instances_live == 0).await;
}

#[tokio::test]
async fn an_instance_answers_as_many_requests_as_its_pod_says() {
    // Says how many requests it has had, as a letter; the fourth would trap.
    let counts = r#"
        (global $count (mut i32) (i32.const 0))
        (func (export "handle") (param $in i32) (param $out i32) (local $body i32)
          (if (i32.eq (global.get $count) (i32.const 3)) (then unreachable))
          (global.set $count (i32.add (global.get $count) (i32.const 1)))
          (local.set $body (call $head (local.get $out)))
          (call $say (local.get $body))
          (call $end (local.get $body)))"#;
    let mut config = GuestConfig::default();
    config.limits.instance_requests = 3;
    let handler = load_handler(counts, config);
    for _ in 0..30 {
        assert_eq!(body_of(&handler).await, "hello");
        // The instance rests once its call has ended, which may be after its last byte.
        until("no call runs", || handler.is_idle()).await;
    }
    assert_eq!(handler.account().usage().instances_started, 10);
    assert_eq!(body_of(&handler).await, "hello");
    // What is left of the ten others is wiped behind their answers.
    until("one rests", || handler.account().usage().instances_live == 1).await;
    drop(handler);
}

#[tokio::test]
async fn an_instance_that_rests_for_long_is_given_back() {
    let mut config = GuestConfig::default();
    config.limits.instance_requests = 1000;
    config.limits.instance_rest = Duration::from_millis(50);
    let handler = load_handler(HELLO, config);
    for _ in 0..2 {
        assert_eq!(body_of(&handler).await, "hello");
        until("it is given back", || handler.account().usage().instances_live == 0).await;
    }
    assert_eq!(handler.account().usage().instances_started, 2);
}

#[tokio::test]
async fn an_instance_that_failed_answers_no_more() {
    let traps = r#"
        (global $count (mut i32) (i32.const 0))
        (func (export "handle") (param $in i32) (param $out i32) (local $body i32)
          (if (i32.eq (global.get $count) (i32.const 1)) (then unreachable))
          (global.set $count (i32.add (global.get $count) (i32.const 1)))
          (local.set $body (call $head (local.get $out)))
          (call $say (local.get $body))
          (call $end (local.get $body)))"#;
    let mut config = GuestConfig::default();
    config.limits.instance_requests = 1000;
    let handler = load_handler(traps, config);
    for _ in 0..3 {
        assert_eq!(body_of(&handler).await, "hello");
        until("the guest has returned", || handler.is_idle()).await;
        let error = handler.handle(get()).await.expect_err("the second request traps");
        assert!(matches!(error, HandleError::Trap(_)), "{error}");
    }
    assert_eq!(handler.account().usage().instances_started, 3);
}

#[tokio::test]
async fn answers_many_requests_at_once() {
    let handler = load_handler(HELLO, GuestConfig::default());
    let requests = (0..40).map(|_| body_of(&handler));
    let bodies = futures::future::join_all(requests).await;
    assert!(bodies.iter().all(|body| body == "hello"), "{bodies:?}");
}

/// The guest's fault is returned, and told to the guest's own log.
async fn check_fault(fields: &str, config: GuestConfig) -> (HandleError, String) {
    let stderr = Printed::default();
    let config = GuestConfig { stderr: stderr.output(), ..config };
    let handler = load_handler(fields, config);
    let error = handler.handle(get()).await.expect_err("no response");
    until("the instance is gone", || handler.account().usage().instances_live == 0).await;
    (error, stderr.text())
}

#[tokio::test]
async fn a_loop_reaches_the_deadline() {
    let (error, log) = check_fault(SPINS, hurried()).await;
    assert!(matches!(error, HandleError::Deadline), "{error:?}");
    assert_eq!(log, "wherry: the guest did not answer in time\n");
    // Also when it loops while it is being instantiated.
    let starts = r#"(start $spin) (func (export "handle") (param i32 i32))"#;
    let (error, _) = check_fault(starts, hurried()).await;
    assert!(matches!(error, HandleError::Deadline), "{error:?}");
}

#[tokio::test]
async fn a_memory_bomb_is_out_of_memory() {
    let bomb = r#"(func (export "handle") (param i32 i32)
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        unreachable)"#;
    let mut config = GuestConfig::default();
    config.limits.memory_bytes = 8 << 20;
    let (error, _) = check_fault(bomb, config).await;
    assert!(matches!(error, HandleError::OutOfMemory), "{error:?}");
    // Also if it is the memory of all: the guest has seen the request, which is not to be sent again.
    let mut config = GuestConfig::default();
    config.limits.memory_bytes_total = 4 << 20;
    let (error, _) = check_fault(bomb, config).await;
    assert!(matches!(error, HandleError::NoMemoryLeft), "{error:?}");
}

#[tokio::test]
async fn a_trap_names_the_function() {
    let traps = r#"(func $boom unreachable)
        (func (export "handle") (param i32 i32) (call $boom))"#;
    let (error, log) = check_fault(traps, GuestConfig::default()).await;
    assert!(matches!(&error, HandleError::Trap(text) if text.contains("at boom")), "{error:?}");
    assert!(log.starts_with("wherry: the guest trapped: wasm trap: "), "{log}");
}

#[tokio::test]
async fn a_guest_that_says_nothing() {
    let silent = r#"(func (export "handle") (param i32 i32))"#;
    let (error, _) = check_fault(silent, GuestConfig::default()).await;
    assert!(matches!(error, HandleError::NoResponse), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_answers_with_an_error_code() {
    // Case 1 of the result, case 16 of the error codes: HTTP-request-length-required.
    let refuses = r#"(func (export "handle") (param $in i32) (param $out i32)
        (call $set (local.get $out) (i32.const 1) (i32.const 16) (i32.const 0) (i64.const 0)
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"#;
    let (error, _) = check_fault(refuses, GuestConfig::default()).await;
    assert!(
        matches!(&error, HandleError::GuestError(text) if text.contains("LengthRequired")),
        "{error:?}"
    );
}

#[tokio::test]
async fn handlers_of_wasi_0_3() {
    let check = async |first: &str, config: GuestConfig| {
        let module = load(&handler_p3(first), Form::Component);
        let handler = module.handler(config).expect("a handler");
        let error = handler.handle(get()).await.map(drop).expect_err("never a response");
        until("the instance is gone", || handler.account().usage().instances_live == 0).await;
        error
    };
    let error = check("", GuestConfig::default()).await;
    assert!(
        matches!(&error, HandleError::GuestError(text) if text.contains("LengthRequired")),
        "{error:?}"
    );
    let error = check("unreachable", GuestConfig::default()).await;
    assert!(matches!(error, HandleError::Trap(_)), "{error:?}");
    let error = check("(loop $again (br $again))", hurried()).await;
    assert!(matches!(error, HandleError::Deadline), "{error:?}");
}

/// A handler of WASI 0.3 of whose instances each may have eight requests at once.
fn load_crowd(text: &str, deadline: Duration, rest: Duration) -> Handler {
    let mut config = GuestConfig::default();
    config.limits.request_deadline = deadline;
    config.limits.instance_requests = 1000;
    config.limits.instance_concurrency = 8;
    config.limits.instance_rest = rest;
    load(text, Form::Component).handler(config).expect("a handler")
}

fn refused(outcome: &Result<http::Response<Body>, HandleError>) -> bool {
    matches!(outcome, Err(HandleError::GuestError(text)) if text.contains("LengthRequired"))
}

#[tokio::test]
async fn an_instance_of_wasi_0_3_answers_several_requests_at_once() {
    // None is answered before all eight are in one instance, which rests until the next one comes.
    let (long, rest) = (Duration::from_secs(60), Duration::from_secs(3));
    let handler = load_crowd(&handler_p3_together(8, ""), long, rest);
    let requests = (0..8).map(|_| handler.handle(get()));
    let outcomes = futures::future::join_all(requests).await;
    assert!(outcomes.iter().all(refused), "{outcomes:?}");
    assert_eq!(handler.account().usage().instances_started, 1);
    // Its instance remembers them, and takes the next one as well.
    assert!(refused(&handler.handle(get()).await));
    assert_eq!(handler.account().usage().instances_started, 1);
    until("it is given back", || handler.account().usage().instances_live == 0).await;
    assert!(handler.is_idle());
}

#[tokio::test]
async fn a_request_beyond_an_instances_room_gets_another_one() {
    let (long, rest) = (Duration::from_secs(60), Duration::from_secs(3));
    let handler = load_crowd(&handler_p3_together(8, ""), long, rest);
    let requests = (0..16).map(|_| handler.handle(get()));
    let outcomes = futures::future::join_all(requests).await;
    assert!(outcomes.iter().all(refused), "{outcomes:?}");
    assert_eq!(handler.account().usage().instances_started, 2);
}

/// Two wait in the only instance that has memory for a third one that would have to be in it, too.
#[tokio::test]
async fn a_request_for_whose_instance_there_is_no_memory_has_none_made() {
    let mut config = GuestConfig::default();
    config.limits.instance_requests = 1000;
    config.limits.instance_concurrency = 2;
    config.limits.memory_bytes_total = 100 << 10;
    let module = load(&handler_p3_together(3, ""), Form::Component);
    let handler = module.handler(config).expect("a handler");
    let (mut one, mut other) = (Box::pin(handler.handle(get())), Box::pin(handler.handle(get())));
    assert!((&mut one).now_or_never().is_none() && (&mut other).now_or_never().is_none());
    until("their instance runs", || handler.account().usage().instances_live == 1).await;
    let third = handler.handle(get()).await.map(drop);
    assert!(matches!(third, Err(HandleError::Busy)), "{third:?}");
    assert_eq!(handler.account().usage().instances_started, 1);
}

#[tokio::test]
async fn a_call_that_reaches_its_deadline_ends_alone_and_a_trap_ends_all() {
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(200));
    // Three wait for a fourth that never comes.
    let handler = load_crowd(&handler_p3_together(4, ""), short, short);
    let requests = (0..3).map(|_| handler.handle(get()));
    let outcomes = futures::future::join_all(requests).await;
    assert!(outcomes.iter().all(|it| matches!(it, Err(HandleError::Deadline))), "{outcomes:?}");
    until("the instance is gone", || handler.account().usage().instances_live == 0).await;
    assert!(handler.is_idle());
    // The second one spins, and the event loop with it: both are ended from outside.
    let spins = "(if (global.get $inside) (then (loop $again (br $again))))";
    let handler = load_crowd(&handler_p3_together(4, spins), short, short);
    let outcomes = futures::future::join_all((0..2).map(|_| handler.handle(get()))).await;
    assert!(outcomes.iter().all(|it| matches!(it, Err(HandleError::Deadline))), "{outcomes:?}");
    until("the instance is gone", || handler.account().usage().instances_live == 0).await;
    // The third one traps.
    let traps = "(if (i32.eq (global.get $inside) (i32.const 2)) (then unreachable))";
    let handler = load_crowd(&handler_p3_together(4, traps), long, short);
    let outcomes = futures::future::join_all((0..3).map(|_| handler.handle(get()))).await;
    assert!(outcomes.iter().all(|it| matches!(it, Err(HandleError::Trap(_)))), "{outcomes:?}");
    until("the instance is gone", || handler.account().usage().instances_live == 0).await;
    assert!(handler.is_idle());
}

#[tokio::test]
async fn a_handler_gives_its_code_back_and_the_next_requests_wake_it() {
    let compiled =
        compile_checked(handler(HELLO).as_bytes(), Form::Component).expect("it compiles");
    let file = tempfile::NamedTempFile::new().expect("a file for the code");
    std::fs::write(file.path(), compiled.code).expect("the code can be written");
    let path = file.path().to_owned();
    let load = move || engine().load(&path, Form::Component).map(Arc::new);
    let module = load().expect("the code can be loaded");
    let mapped = Arc::downgrade(&module);
    let wakes = Arc::new(AtomicUsize::new(0));
    let wake: Wake = Arc::new({
        let wakes = wakes.clone();
        move || {
            wakes.fetch_add(1, Ordering::Relaxed);
            futures::future::ready(load()).boxed()
        }
    });
    let handler = module.resting_handler(GuestConfig::default(), wake).expect("a handler");
    drop(module);
    assert_eq!(body_of(&handler).await, "hello");
    assert!(!handler.is_at_rest());
    assert!(handler.rest() && handler.is_at_rest());
    until("the code is unmapped", || mapped.strong_count() == 0).await;
    assert!(!handler.rest(), "it has nothing more to give");
    let bodies = futures::future::join_all((0..8).map(|_| body_of(&handler))).await;
    assert!(bodies.iter().all(|body| body == "hello"), "{bodies:?}");
    assert_eq!(wakes.load(Ordering::Relaxed), 1, "one of them woke it for all");
    // Code that is gone is a failure of that request, which says so.
    assert!(handler.rest());
    drop(file);
    let error = handler.handle(get()).await.map(drop).expect_err("there is no code");
    assert!(matches!(error, HandleError::Asleep(_)), "{error}");
    assert_eq!(error.status(), 503);
}

/// A body whose guest failed must not look as if it were complete.
#[tokio::test]
async fn a_failure_after_the_head_cuts_the_body_off() {
    let then = |what: &str| {
        format!(
            r#"(func (export "handle") (param $in i32) (param $out i32) (local $body i32)
                (local.set $body (call $head (local.get $out)))
                (call $say (local.get $body))
                {what})"#
        )
    };
    for what in ["unreachable", "(call $spin)"] {
        let mut config = GuestConfig::default();
        config.limits.request_deadline = Duration::from_secs(2);
        let handler = load_handler(&then(what), config);
        let response = handler.handle(get()).await.expect("the head");
        let mut body = response.into_body();
        let first = body.frame().await.expect("a frame").expect("not yet cut off");
        assert_eq!(first.into_data().expect("data"), "hello");
        assert!(body.frame().await.expect("an end").is_err(), "{what}");
        until("the instance is gone", || handler.account().usage().instances_live == 0).await;
    }
}

/// Places, then the queue, then refusals; and a caller that goes away takes its instance along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_limits_are_refused() {
    let mut config = GuestConfig::default();
    config.limits.concurrent_requests = 1;
    config.limits.queued_requests = 0;
    let handler = load_handler(SPINS, config);
    let first = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(get()).await.map(drop) }
    });
    let live = || handler.account().usage().instances_live;
    until("the first request runs", || live() == 1).await;
    let second = handler.handle(get()).await.map(drop);
    assert!(matches!(second, Err(HandleError::Busy)), "{second:?}");
    first.abort();
    until("the first instance is gone", || live() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_all_instances_is_bounded() {
    let mut config = GuestConfig::default();
    config.limits.memory_bytes_total = 200 << 10;
    config.limits.queued_requests = 0;
    let handler = load_handler(SPINS, config);
    let first = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(get()).await.map(drop) }
    });
    until("the first one has memory", || handler.account().usage().memory_bytes > 0).await;
    let second = handler.handle(get()).await.map(drop);
    assert!(matches!(second, Err(HandleError::Busy)), "{second:?}");
    first.abort();
}

/// The memory limit is for all instances: a request waits until another one's is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_memory() {
    let mut config = GuestConfig::default();
    config.limits.memory_bytes_total = 200 << 10;
    let handler = load_handler(HELLO, config);
    let bodies = futures::future::join_all((0..32).map(|_| body_of(&handler))).await;
    assert!(bodies.iter().all(|body| body == "hello"), "{bodies:?}");
    let peak = handler.account().usage().memory_bytes_peak;
    assert!(peak <= 200 << 10, "{peak}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_refuses() {
    let small = Engine::new(&EngineConfig { instances: Some(1) });
    let module = load_into(&small.expect("an engine"), &handler(SPINS), Form::Component);
    let handler = module.handler(GuestConfig::default()).expect("a handler");
    let first = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(get()).await.map(drop) }
    });
    until("the first one burns CPU", || handler.account().usage().cpu.as_millis() > 0).await;
    let second = handler.handle(get()).await.map(drop);
    assert!(matches!(second, Err(HandleError::InstanceLimit)), "{second:?}");
    first.abort();
}

#[tokio::test]
async fn requests_without_an_authority() {
    let handler = load_handler(HELLO, GuestConfig::default());
    let request = |host: Option<&[u8]>| {
        let (mut parts, body) = get().into_parts();
        parts.uri = http::Uri::from_static("/path");
        if let Some(host) = host {
            let host = http::HeaderValue::from_bytes(host).expect("a header");
            parts.headers.insert(http::header::HOST, host);
        }
        http::Request::from_parts(parts, body)
    };
    handler.handle(request(None)).await.expect("for this host");
    handler.handle(request(Some(b"app"))).await.expect("for app");
    let bad = handler.handle(request(Some(b"\xff"))).await.map(drop);
    assert!(matches!(bad, Err(HandleError::BadRequest(_))), "{bad:?}");
}

#[test]
fn other_images_are_not_handlers() {
    let p1 = load(r#"(module (func (export "_start")))"#, Form::Module);
    let error = p1.handler(GuestConfig::default()).map(drop).expect_err("not a component");
    assert!(matches!(error, LoadError::Guest { wanted: "handler", .. }));
    let module = load(&handler(HELLO), Form::Component);
    let error = module.command(GuestConfig::default()).map(drop).expect_err("no wasi:cli/run");
    assert!(matches!(error, LoadError::Guest { wanted: "command", .. }));
}
