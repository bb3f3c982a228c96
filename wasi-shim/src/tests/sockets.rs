//! Guests of WASI 0.3 that connect and that listen, with streams for what they send and receive.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::load;
use crate::{
    Connection, Datagrams, Exit, Form, GuestConfig, Listener, Network, NetworkError, no_network,
};

const GUEST: ([u8; 4], u16) = ([10, 0, 0, 2], 7);
const PEER: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

/// A network of one peer: it takes connections at [`PEER`] and makes some to the guest.
struct Wire {
    /// The peer's ends of the connections that the guest makes.
    dialled: mpsc::UnboundedSender<DuplexStream>,
    /// The connections that the peer makes.
    incoming: Mutex<Option<mpsc::Receiver<Connection>>>,
}

fn connection(
    stream: DuplexStream,
    (local, remote): (([u8; 4], u16), ([u8; 4], u16)),
) -> Connection {
    let (local, remote) = (SocketAddr::from(local), SocketAddr::from(remote));
    Connection { stream: Box::new(stream), local, remote }
}

impl Network for Wire {
    fn address(&self) -> IpAddr {
        IpAddr::from(GUEST.0)
    }

    fn lookup(&self, _: &str) -> Result<Vec<IpAddr>, NetworkError> {
        Err(NetworkError::NoName)
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, Result<Connection, NetworkError>> {
        assert_eq!(to, SocketAddr::from(PEER));
        let (ours, theirs) = tokio::io::duplex(1024);
        let taken = self.dialled.send(theirs).map_err(|_| NetworkError::Refused);
        Box::pin(std::future::ready(taken.map(|()| connection(ours, ((GUEST.0, 40_000), PEER)))))
    }

    fn listen(&self, at: SocketAddr) -> Result<Listener, NetworkError> {
        assert_eq!(at, SocketAddr::from(GUEST));
        let incoming = self.incoming.lock().expect("not poisoned").take();
        let incoming = incoming.ok_or(NetworkError::InUse)?;
        Ok(Listener { address: at, incoming, held: Box::new(()) })
    }

    fn datagrams(&self, at: SocketAddr) -> Result<Datagrams, NetworkError> {
        no_network().datagrams(at)
    }
}

/// A command of WASI 0.3 with these fields in its core module, which defines `(func $go (param
/// $socket i32))` over a socket that was made. What does not go as it should is a trap.
fn command(go: &str) -> String {
    let zeros = "(i32.const 0) ".repeat(6);
    let params = "i32 ".repeat(14);
    format!(
        r#"(component
  (import "wasi:sockets/types@0.3.0" (instance $sockets
    (export "tcp-socket" (type $tcp (sub resource)))
    (type $code' (variant
      (case "access-denied") (case "not-supported") (case "invalid-argument")
      (case "out-of-memory") (case "timeout") (case "invalid-state")
      (case "address-not-bindable") (case "address-in-use") (case "remote-unreachable")
      (case "connection-refused") (case "connection-broken") (case "connection-reset")
      (case "connection-aborted") (case "datagram-too-large") (case "other" (option string))))
    (export "error-code" (type $code (eq $code')))
    (type $family' (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type $family (eq $family')))
    (type $ip4' (tuple u8 u8 u8 u8))
    (export "ipv4-address" (type $ip4 (eq $ip4')))
    (type $ip6' (tuple u16 u16 u16 u16 u16 u16 u16 u16))
    (export "ipv6-address" (type $ip6 (eq $ip6')))
    (type $at4' (record (field "port" u16) (field "address" $ip4)))
    (export "ipv4-socket-address" (type $at4 (eq $at4')))
    (type $at6' (record (field "port" u16) (field "flow-info" u32) (field "address" $ip6)
      (field "scope-id" u32)))
    (export "ipv6-socket-address" (type $at6 (eq $at6')))
    (type $at' (variant (case "ipv4" $at4) (case "ipv6" $at6)))
    (export "ip-socket-address" (type $at (eq $at')))
    (type $bytes (stream u8))
    (type $done (future (result (error $code))))
    (type $connections (stream (own $tcp)))
    (export "[static]tcp-socket.create" (func (param "address-family" $family)
      (result (result (own $tcp) (error $code)))))
    (export "[method]tcp-socket.bind" (func
      (param "self" (borrow $tcp)) (param "local-address" $at)
      (result (result (error $code)))))
    (export "[method]tcp-socket.connect" (func async
      (param "self" (borrow $tcp)) (param "remote-address" $at)
      (result (result (error $code)))))
    (export "[method]tcp-socket.listen" (func (param "self" (borrow $tcp))
      (result (result $connections (error $code)))))
    (export "[method]tcp-socket.send" (func
      (param "self" (borrow $tcp)) (param "data" $bytes) (result $done)))
    (export "[method]tcp-socket.receive" (func
      (param "self" (borrow $tcp)) (result (tuple $bytes $done))))))
  (alias export $sockets "tcp-socket" (type $tcp))
  (alias export $sockets "error-code" (type $code))
  (type $bytes (stream u8))
  (type $done (future (result (error $code))))
  (type $connections (stream (own $tcp)))
  (core module $Libc
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192)))
  (core instance $libc (instantiate $Libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $create (canon lower (func $sockets "[static]tcp-socket.create")
    (memory $memory) (realloc $realloc)))
  (core func $bind (canon lower (func $sockets "[method]tcp-socket.bind")
    (memory $memory) (realloc $realloc)))
  (core func $connect (canon lower (func $sockets "[method]tcp-socket.connect")
    (memory $memory) (realloc $realloc)))
  (core func $listen (canon lower (func $sockets "[method]tcp-socket.listen")
    (memory $memory) (realloc $realloc)))
  (core func $send (canon lower (func $sockets "[method]tcp-socket.send")))
  (core func $receive (canon lower (func $sockets "[method]tcp-socket.receive")
    (memory $memory)))
  (core func $new (canon stream.new $bytes))
  (core func $write (canon stream.write $bytes async (memory $memory)))
  (core func $read (canon stream.read $bytes async (memory $memory)))
  (core func $close (canon stream.drop-writable $bytes))
  (core func $accept (canon stream.read $connections async (memory $memory)))
  (core func $ended (canon future.read $done async (memory $memory) (realloc $realloc)))
  (core func $set (canon waitable-set.new))
  (core func $wait (canon waitable-set.wait (memory $memory)))
  (core func $join (canon waitable.join))
  (core module $Main
    (import "libc" "memory" (memory 1))
    (import "host" "create" (func $create (param i32 i32)))
    (import "host" "bind" (func $bind (param {params})))
    (import "host" "connect" (func $connect (param {params})))
    (import "host" "listen" (func $listen (param i32 i32)))
    (import "host" "send" (func $send (param i32 i32) (result i32)))
    (import "host" "receive" (func $receive (param i32 i32)))
    (import "host" "new" (func $new (result i64)))
    (import "host" "write" (func $write (param i32 i32 i32) (result i32)))
    (import "host" "read" (func $read (param i32 i32 i32) (result i32)))
    (import "host" "close" (func $close (param i32)))
    (import "host" "accept" (func $accept (param i32 i32 i32) (result i32)))
    (import "host" "ended" (func $ended (param i32 i32) (result i32)))
    (import "host" "set" (func $set (result i32)))
    (import "host" "wait" (func $wait (param i32 i32) (result i32)))
    (import "host" "join" (func $join (param i32 i32)))
    (data (i32.const 64) "hello")
    (func $must (param $holds i32) (if (i32.eqz (local.get $holds)) (then unreachable)))
    ;; The result at this address is no error.
    (func $fine (param $at i32) (call $must (i32.eqz (i32.load8_u (local.get $at)))))
    ;; What came of a read or write: waits for it if it has not ended.
    (func $outcome (param $handle i32) (param $status i32) (result i32) (local $set i32)
      (if (i32.ne (local.get $status) (i32.const -1)) (then (return (local.get $status))))
      (local.set $set (call $set))
      (call $join (local.get $handle) (local.get $set))
      (drop (call $wait (local.get $set) (i32.const 32)))
      (call $join (local.get $handle) (i32.const 0))
      (i32.load (i32.const 36)))
    ;; Sends hello and the end, and waits until that is done.
    (func $say (param $socket i32) (local $pair i64) (local $writer i32) (local $done i32)
      (local.set $pair (call $new))
      (local.set $writer (i32.wrap_i64 (i64.shr_u (local.get $pair) (i64.const 32))))
      (local.set $done
        (call $send (local.get $socket) (i32.wrap_i64 (local.get $pair))))
      (call $must (i32.eq (i32.const 80) (call $outcome (local.get $writer)
        (call $write (local.get $writer) (i32.const 64) (i32.const 5)))))
      (call $close (local.get $writer))
      (call $must (i32.eqz (call $outcome (local.get $done)
        (call $ended (local.get $done) (i32.const 200)))))
      (call $fine (i32.const 200)))
    ;; Receives hello and the end.
    (func $hear (param $socket i32) (local $reader i32) (local $done i32) (local $status i32)
      (call $receive (local.get $socket) (i32.const 24))
      (local.set $reader (i32.load (i32.const 24)))
      (local.set $done (i32.load (i32.const 28)))
      (local.set $status (call $outcome (local.get $reader)
        (call $read (local.get $reader) (i32.const 128) (i32.const 16))))
      (call $must (i32.eq (i32.const 5) (i32.shr_u (local.get $status) (i32.const 4))))
      (call $must (i32.eq (i32.load (i32.const 64)) (i32.load (i32.const 128))))
      ;; Nothing more, and the other side has gone.
      (call $must (i32.eq (i32.const 1) (call $outcome (local.get $reader)
        (call $read (local.get $reader) (i32.const 128) (i32.const 16)))))
      (call $must (i32.eqz (call $outcome (local.get $done)
        (call $ended (local.get $done) (i32.const 200)))))
      (call $fine (i32.const 200)))
    (func $dial (param $socket i32)
      (call $connect (local.get $socket) (i32.const 0) (i32.const 80)
        (i32.const 10) (i32.const 0) (i32.const 0) (i32.const 1) {zeros} (i32.const 16))
      (call $fine (i32.const 16)))
    ;; Listens at port 7 of any address, and takes one connection.
    (func $serve (param $socket i32) (result i32) (local $connections i32)
      (call $bind (local.get $socket) (i32.const 0) (i32.const 7)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) {zeros} (i32.const 16))
      (call $fine (i32.const 16))
      (call $listen (local.get $socket) (i32.const 16))
      (call $fine (i32.const 16))
      (local.set $connections (i32.load (i32.const 20)))
      (call $must (i32.eq (i32.const 16) (call $outcome (local.get $connections)
        (call $accept (local.get $connections) (i32.const 48) (i32.const 1)))))
      (i32.load (i32.const 48)))
    {go}
    (func (export "run") (result i32)
      (call $create (i32.const 0) (i32.const 0))
      (call $fine (i32.const 0))
      (call $go (i32.load (i32.const 4)))
      (i32.const 0)))
  (core instance $main (instantiate $Main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "create" (func $create)) (export "bind" (func $bind))
      (export "connect" (func $connect)) (export "listen" (func $listen))
      (export "send" (func $send)) (export "receive" (func $receive))
      (export "new" (func $new)) (export "write" (func $write)) (export "read" (func $read))
      (export "close" (func $close)) (export "accept" (func $accept))
      (export "ended" (func $ended)) (export "set" (func $set)) (export "wait" (func $wait))
      (export "join" (func $join))))))
  (func $run async (result (result)) (canon lift (core func $main "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $exports)))"#
    )
}

/// Reads what the guest sends until its end.
async fn heard(stream: &mut DuplexStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it ends");
    text
}

#[tokio::test]
async fn a_guest_of_wasi_03_connects() {
    let (dialled, mut peers) = mpsc::unbounded_channel();
    let network = Arc::new(Wire { dialled, incoming: Mutex::new(None) });
    let config = GuestConfig { network, ..GuestConfig::default() };
    let go = "(func $go (param $socket i32)
        (call $dial (local.get $socket))
        (call $say (local.get $socket))
        (call $hear (local.get $socket)))";
    let guest = load(&command(go), Form::Component).command(config).expect("a command");
    let running = tokio::spawn(guest.run(CancellationToken::new()));
    let mut peer = peers.recv().await.expect("it connects");
    assert_eq!(heard(&mut peer).await, "hello");
    peer.write_all(b"hello").await.expect("it listens");
    peer.shutdown().await.expect("the end");
    assert_eq!(running.await.expect("no panic"), Exit::Code(0));
}

#[tokio::test]
async fn a_guest_of_wasi_03_listens() {
    let (sender, incoming) = mpsc::channel(1);
    let network = Arc::new(Wire {
        dialled: mpsc::unbounded_channel().0,
        incoming: Mutex::new(Some(incoming)),
    });
    let config = GuestConfig { network, ..GuestConfig::default() };
    let go = "(func $go (param $socket i32) (local $accepted i32)
        (local.set $accepted (call $serve (local.get $socket)))
        (call $hear (local.get $accepted))
        (call $say (local.get $accepted)))";
    let guest = load(&command(go), Form::Component).command(config).expect("a command");
    let running = tokio::spawn(guest.run(CancellationToken::new()));
    let (mut peer, theirs) = tokio::io::duplex(1024);
    sender.send(connection(theirs, (GUEST, PEER))).await.expect("it listens");
    peer.write_all(b"hello").await.expect("it reads");
    peer.shutdown().await.expect("the end");
    assert_eq!(heard(&mut peer).await, "hello");
    assert_eq!(running.await.expect("no panic"), Exit::Code(0));
}
