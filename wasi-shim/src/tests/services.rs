//! A guest that keeps values in buckets and logs, through the linked interfaces.

use tokio_util::sync::CancellationToken;

use super::{Printed, config, load};
use crate::{Exit, Form, Mount};

/// Keeps `hello` under `key` in the container's bucket and in the volume's, reads both back, and logs.
/// What does not go as it should is a trap.
const GUEST: &str = r#"(component
  (import "wasi:logging/logging@0.1.0-draft" (instance $logging
    (type $level' (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $level')))
    (export "log" (func
      (param "level" $level) (param "context" string) (param "message" string)))))
  (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
    (export "bucket" (type $bucket (sub resource)))
    (type $error' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
    (export "error" (type $error (eq $error')))
    (export "open" (func (param "identifier" string)
      (result (result (own $bucket) (error $error)))))
    (export "[method]bucket.get" (func (param "self" (borrow $bucket)) (param "key" string)
      (result (result (option (list u8)) (error $error)))))
    (export "[method]bucket.set" (func
      (param "self" (borrow $bucket)) (param "key" string) (param "value" (list u8))
      (result (result (error $error)))))))
  (core module $Libc
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $libc (instantiate $Libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $log (canon lower (func $logging "log") (memory $memory)))
  (core func $open (canon lower (func $store "open") (memory $memory) (realloc $realloc)))
  (core func $get (canon lower (func $store "[method]bucket.get")
    (memory $memory) (realloc $realloc)))
  (core func $set (canon lower (func $store "[method]bucket.set")
    (memory $memory) (realloc $realloc)))
  (core module $Main
    (import "libc" "memory" (memory 1))
    (import "host" "log" (func $log (param i32 i32 i32 i32 i32)))
    (import "host" "open" (func $open (param i32 i32 i32)))
    (import "host" "get" (func $get (param i32 i32 i32 i32)))
    (import "host" "set" (func $set (param i32 i32 i32 i32 i32 i32)))
    (data (i32.const 64) "hello")
    (data (i32.const 80) "key")
    (data (i32.const 96) "default")
    (data (i32.const 112) "/data")
    (func $must (param $holds i32) (if (i32.eqz (local.get $holds)) (then unreachable)))
    (func $keep (param $name i32) (param $length i32) (local $bucket i32)
      (call $open (local.get $name) (local.get $length) (i32.const 0))
      (call $must (i32.eqz (i32.load8_u (i32.const 0))))
      (local.set $bucket (i32.load (i32.const 4)))
      (call $set (local.get $bucket) (i32.const 80) (i32.const 3)
        (i32.const 64) (i32.const 5) (i32.const 0))
      (call $must (i32.eqz (i32.load8_u (i32.const 0))))
      (call $get (local.get $bucket) (i32.const 80) (i32.const 3) (i32.const 0))
      (call $must (i32.eqz (i32.load8_u (i32.const 0))))
      ;; Some, and as long as what was kept.
      (call $must (i32.load8_u (i32.const 4)))
      (call $must (i32.eq (i32.const 5) (i32.load (i32.const 12))))
      (call $must (i32.eq (i32.load (i32.load (i32.const 8))) (i32.load (i32.const 64)))))
    (func (export "run") (result i32)
      (call $keep (i32.const 96) (i32.const 7))
      (call $keep (i32.const 112) (i32.const 5))
      ;; At level info.
      (call $log (i32.const 2) (i32.const 80) (i32.const 3) (i32.const 64) (i32.const 5))
      (i32.const 0)))
  (core instance $main (instantiate $Main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "log" (func $log)) (export "open" (func $open)) (export "get" (func $get))
      (export "set" (func $set))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))"#;

#[tokio::test]
async fn a_guest_keeps_values_and_logs() {
    let folder = tempfile::tempdir().expect("a folder");
    let (stdout, stderr) = (Printed::default(), Printed::default());
    let mut config = config(&stdout, &stderr);
    let (host, guest) = (folder.path().to_owned(), "/data".to_owned());
    config.mounts = vec![Mount { host, guest, read_only: false }];
    let guest = load(GUEST, Form::Component).command(config).expect("a command");
    assert_eq!(guest.run(CancellationToken::new()).await, Exit::Code(0));
    assert_eq!(std::fs::read_to_string(folder.path().join("key")).expect("a file"), "hello");
    assert_eq!((stdout.text(), stderr.text()), (String::new(), "INFO key: hello\n".to_owned()));
}
