//! The text of guests: what every p1 module and every handler has around its few lines.

/// A p1 module: imports, a page of memory with `hello` at 64, `$print (ptr, len)` to stdout, and
/// these fields.
pub(super) fn p1(fields: &str) -> String {
    let types = [
        ("fd_write", 4),
        ("fd_read", 4),
        ("fd_prestat_get", 2),
        ("args_sizes_get", 2),
        ("args_get", 2),
        ("environ_sizes_get", 2),
        ("environ_get", 2),
    ];
    let import = |(name, params): (&str, usize)| {
        format!(
            r#"(import "wasi_snapshot_preview1" "{name}"
                 (func ${name} (param{}) (result i32)))"#,
            " i32".repeat(params)
        )
    };
    let imports: String = types.map(import).concat();
    format!(
        r#"(module {imports}
          (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "hello")
          (func $print (param $at i32) (param $len i32)
            (i32.store (i32.const 0) (local.get $at))
            (i32.store (i32.const 4) (local.get $len))
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
          {fields})"#
    )
}

/// A `wasi:cli/run` component of this version, whose entry returns this result (0 is success). In
/// WASI 0.3 the entry is of an `async` type.
pub(super) fn cli_run(version: &str, result: i32) -> String {
    let asynchronous = if version.starts_with("0.3") { "async" } else { "" };
    format!(
        r#"(component
          (core module $Main (func (export "run") (result i32) (i32.const {result})))
          (core instance $main (instantiate $Main))
          (func $run {asynchronous} (result (result)) (canon lift (core func $main "run")))
          (instance $exports (export "run" (func $run)))
          (export "wasi:cli/run@{version}" (instance $exports)))"#
    )
}

/// A handler of WASI 0.3 that does this before it answers with error code 16.
pub(super) fn handler_p3(first: &str) -> String {
    format!(
        r#"(component
  (import "wasi:http/types@0.3.0" (instance $types {ERROR_CODE}
    (export "request" (type (sub resource)))
    (export "response" (type (sub resource)))))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (core module $Main
    (memory (export "memory") 1)
    (func (export "handle") (param i32) (result i32)
      {first}
      ;; The error case of the result, and eight bytes on the case of the error code.
      (i32.store8 (i32.const 16) (i32.const 1))
      (i32.store8 (i32.const 24) (i32.const 16))
      (i32.const 16)))
  (core instance $main (instantiate $Main))
  (alias core export $main "memory" (core memory $memory))
  (func $handle async (param "request" (own $request))
    (result (result (own $response) (error $error-code)))
    (canon lift (core func $main "handle") (memory $memory)))
  (instance $exports (export "handle" (func $handle)))
  (export "wasi:http/handler@0.3.0" (instance $exports)))"#
    )
}

/// A handler of WASI 0.3 that answers with error code 16 as soon as this many requests were in its
/// instance at the same time; until then each of them waits, a millisecond at a time. `first` is done
/// before.
pub(super) fn handler_p3_together(together: u32, first: &str) -> String {
    format!(
        r#"(component
  (import "wasi:http/types@0.3.0" (instance $types {ERROR_CODE}
    (export "request" (type (sub resource)))
    (export "response" (type (sub resource)))))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
    (export "wait-for" (func async (param "how-long" u64)))))
  (core module $Libc (memory (export "memory") 1))
  (core instance $libc (instantiate $Libc))
  (alias core export $libc "memory" (core memory $memory))
  (core func $wait (canon lower (func $clock "wait-for") async (memory $memory)))
  (core func $set (canon waitable-set.new))
  (core func $join (canon waitable.join))
  (core func $return (canon task.return
    (result (result (own $response) (error $error-code))) (memory $memory)))
  (core module $Main
    (import "host" "wait" (func $wait (param i64) (result i32)))
    (import "host" "set" (func $set (result i32)))
    (import "host" "join" (func $join (param i32 i32)))
    (import "host" "return" (func $return (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (global $inside (mut i32) (i32.const 0))
    ;; Answers, or says that it waits for a set with one subtask in it.
    (func $go-on (result i32) (local $subtask i32) (local $set i32)
      (if (i32.ge_u (global.get $inside) (i32.const {together})) (then
        (call $return (i32.const 1) (i32.const 16) (i32.const 0) (i64.const 0)
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
        (return (i32.const 0))))
      (local.set $subtask (call $wait (i64.const 1000000)))
      (local.set $set (call $set))
      (call $join (i32.shr_u (local.get $subtask) (i32.const 4)) (local.get $set))
      (i32.or (i32.shl (local.get $set) (i32.const 4)) (i32.const 2)))
    (func (export "handle") (param i32) (result i32)
      {first}
      (global.set $inside (i32.add (global.get $inside) (i32.const 1)))
      (call $go-on))
    (func (export "callback") (param i32 i32 i32) (result i32) (call $go-on)))
  (core instance $main (instantiate $Main
    (with "host" (instance
      (export "wait" (func $wait)) (export "set" (func $set))
      (export "join" (func $join)) (export "return" (func $return))))))
  (alias core export $main "callback" (core func $callback))
  (func $handle async (param "request" (own $request))
    (result (result (own $response) (error $error-code)))
    (canon lift (core func $main "handle") async (memory $memory) (callback $callback)))
  (instance $exports (export "handle" (func $handle)))
  (export "wasi:http/handler@0.3.0" (instance $exports)))"#
    )
}

/// The error codes of wasi:http/types, the same in 0.2 and 0.3.
const ERROR_CODE: &str = r#"
  (type $dns' (record (field "rcode" (option string)) (field "info-code" (option u16))))
  (export "DNS-error-payload" (type $dns (eq $dns')))
  (type $tls' (record (field "alert-id" (option u8)) (field "alert-message" (option string))))
  (export "TLS-alert-received-payload" (type $tls (eq $tls')))
  (type $size' (record (field "field-name" (option string)) (field "field-size" (option u32))))
  (export "field-size-payload" (type $size (eq $size')))
  (type $error-code' (variant
    (case "DNS-timeout") (case "DNS-error" $dns) (case "destination-not-found")
    (case "destination-unavailable") (case "destination-IP-prohibited")
    (case "destination-IP-unroutable") (case "connection-refused")
    (case "connection-terminated") (case "connection-timeout") (case "connection-read-timeout")
    (case "connection-write-timeout") (case "connection-limit-reached")
    (case "TLS-protocol-error") (case "TLS-certificate-error") (case "TLS-alert-received" $tls)
    (case "HTTP-request-denied") (case "HTTP-request-length-required")
    (case "HTTP-request-body-size" (option u64)) (case "HTTP-request-method-invalid")
    (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long")
    (case "HTTP-request-header-section-size" (option u32))
    (case "HTTP-request-header-size" (option $size))
    (case "HTTP-request-trailer-section-size" (option u32))
    (case "HTTP-request-trailer-size" $size) (case "HTTP-response-incomplete")
    (case "HTTP-response-header-section-size" (option u32))
    (case "HTTP-response-header-size" $size) (case "HTTP-response-body-size" (option u64))
    (case "HTTP-response-trailer-section-size" (option u32))
    (case "HTTP-response-trailer-size" $size)
    (case "HTTP-response-transfer-coding" (option string))
    (case "HTTP-response-content-coding" (option string)) (case "HTTP-response-timeout")
    (case "HTTP-upgrade-failed") (case "HTTP-protocol-error") (case "loop-detected")
    (case "configuration-error") (case "internal-error" (option string))))
  (export "error-code" (type $error-code (eq $error-code')))
"#;

/// The part of wasi:http/types that the handlers use, as its own text defines it.
const HTTP_TYPES: &str = r#"
  (alias outer 1 $output-stream (type $stream'))
  (export "output-stream" (type $output-stream (eq $stream')))
  (export "fields" (type $fields (sub resource)))
  (export "headers" (type $headers (eq $fields)))
  (export "trailers" (type $trailers (eq $fields)))
  (export "incoming-request" (type (sub resource)))
  (export "response-outparam" (type $response-outparam (sub resource)))
  (export "outgoing-response" (type $outgoing-response (sub resource)))
  (export "outgoing-body" (type $outgoing-body (sub resource)))
  (export "[constructor]fields" (func (result (own $fields))))
  (export "[constructor]outgoing-response"
    (func (param "headers" (own $headers)) (result (own $outgoing-response))))
  (export "[method]outgoing-response.body"
    (func (param "self" (borrow $outgoing-response)) (result (result (own $outgoing-body)))))
  (export "[method]outgoing-body.write"
    (func (param "self" (borrow $outgoing-body)) (result (result (own $output-stream)))))
  (export "[static]outgoing-body.finish"
    (func (param "this" (own $outgoing-body)) (param "trailers" (option (own $trailers)))
      (result (result (error $error-code)))))
  (export "[static]response-outparam.set"
    (func (param "param" (own $response-outparam))
      (param "response" (result (own $outgoing-response) (error $error-code)))))
"#;

/// The core module of a handler up to its own fields.
const MAIN: &str = r#"
  (import "libc" "memory" (memory 2))
  (import "host" "fields" (func $fields (result i32)))
  (import "host" "response" (func $response (param i32) (result i32)))
  (import "host" "body" (func $body (param i32 i32)))
  (import "host" "write" (func $write (param i32 i32)))
  (import "host" "print" (func $print (param i32 i32 i32 i32)))
  (import "host" "drop" (func $drop (param i32)))
  (import "host" "finish" (func $finish (param i32 i32 i32 i32)))
  (import "host" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (data (i32.const 64) "hello")
  ;; Sends the head of a 200 and returns the body.
  (func $head (param $out i32) (result i32) (local $response i32)
    (local.set $response (call $response (call $fields)))
    (call $body (local.get $response) (i32.const 0))
    (call $set (local.get $out) (i32.const 0) (local.get $response)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (i32.load (i32.const 4)))
  ;; Writes hello.
  (func $say (param $body i32) (local $stream i32)
    (call $write (local.get $body) (i32.const 0))
    (local.set $stream (i32.load (i32.const 4)))
    (call $print (local.get $stream) (i32.const 64) (i32.const 5) (i32.const 0))
    (call $drop (local.get $stream)))
  (func $end (param $body i32)
    (call $finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 0)))
  (func $spin (loop $again (br $again)))
"#;

/// A `wasi:http` handler; the fields define `(func (export "handle") (param $in i32) (param $out
/// i32) …)` and may use `$head`, `$say`, `$end` and `$spin`.
pub(super) fn handler(fields: &str) -> String {
    format!(
        r#"(component
  (import "wasi:io/error@0.2.0" (instance $io-error (export "error" (type (sub resource)))))
  (alias export $io-error "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (alias outer 1 $error (type $error'))
    (export "error" (type $error (eq $error')))
    (export "output-stream" (type $output-stream (sub resource)))
    (type $stream-error' (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $stream-error')))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $output-stream)) (param "contents" (list u8))
        (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $output-stream))
  (import "wasi:http/types@0.2.0" (instance $types {ERROR_CODE} {HTTP_TYPES}))
  (alias export $types "incoming-request" (type $incoming-request))
  (alias export $types "response-outparam" (type $response-outparam))
  (core module $Libc
    (memory (export "memory") 2)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $libc (instantiate $Libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $body
    (canon lower (func $types "[method]outgoing-response.body") (memory $memory)))
  (core func $write (canon lower (func $types "[method]outgoing-body.write") (memory $memory)))
  (core func $print (canon lower
    (func $streams "[method]output-stream.blocking-write-and-flush") (memory $memory)))
  (core func $drop (canon resource.drop $output-stream))
  (core func $finish (canon lower (func $types "[static]outgoing-body.finish")
    (memory $memory) (realloc $realloc)))
  (core func $set (canon lower (func $types "[static]response-outparam.set") (memory $memory)))
  (core module $Main {MAIN} {fields})
  (core instance $main (instantiate $Main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "fields" (func $fields)) (export "response" (func $response))
      (export "body" (func $body)) (export "write" (func $write))
      (export "print" (func $print)) (export "drop" (func $drop))
      (export "finish" (func $finish)) (export "set" (func $set))))))
  (func $handle
    (param "request" (own $incoming-request)) (param "response-out" (own $response-outparam))
    (canon lift (core func $main "handle")))
  (instance $exports (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $exports)))"#
    )
}
