//! Accepting connections, bounding their number, and closing them in order.
//!
//! A connection task learns that it should close from its own [`Closing`], not from a shared
//! signal: a shared one would be a lock that every connection takes each time it is woken.

use std::{
    collections::HashMap, convert::Infallible, io, net::SocketAddr, os::fd::AsRawFd as _, pin::Pin,
    sync::Arc, time::Duration,
};

use hyper_util::server::graceful::GracefulConnection;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: u32 = 1024;
/// After a failed accept (no descriptors left): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For a connection over the limit. Said without HTTP machinery, which would cost what is missing.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 49\r\n\r\n\
    503 this node has too many connections; try later";

/// Binds a listener at once, also while old connections of the port still linger.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a socket for datagrams.
pub fn bind_datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Tells one connection to finish what it is doing and close.
pub struct Closing(oneshot::Receiver<Infallible>);

impl Closing {
    /// Ends when the connection should close.
    pub async fn asked(self) {
        // Nothing is ever sent: the end of the sender is the signal.
        let _ = self.0.await;
    }
}

/// Serves a connection to its end; asked to close, it ends after the requests that it has.
pub async fn until_closed<C>(mut connection: Pin<&mut C>, closing: Closing) -> Result<(), C::Error>
where
    C: GracefulConnection,
{
    tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome,
        () = closing.asked() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Accepts until `stop`, then asks all connections to close and waits for them. `places` bounds
/// the connections of all listeners that share it.
pub async fn accept<F, Serving>(
    listener: TcpListener,
    stop: CancellationToken,
    places: Arc<Semaphore>,
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr, Closing) -> Serving,
    Serving: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut open: HashMap<tokio::task::Id, oneshot::Sender<Infallible>> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(panic) => panic.id(),
                };
                open.remove(&id);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    if let Some(place) = place(&places, &stream) {
                        let (keep, closing) = oneshot::channel();
                        let serving = serve(stream, remote, Closing(closing));
                        let task = connections.spawn(async move {
                            serving.await;
                            drop(place);
                        });
                        open.insert(task.id(), keep);
                    }
                    // It has its turn, and whoever became ready meanwhile, before the next one is let in.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    drop(open);
    while connections.join_next().await.is_some() {}
}

/// Room for one more connection; otherwise the client is told so.
fn place(places: &Arc<Semaphore>, stream: &TcpStream) -> Option<OwnedSemaphorePermit> {
    let place = places.clone().try_acquire_owned().ok();
    if place.is_none() {
        // The buffer of a new socket has room; if not, closing says it as well.
        let _ = stream.try_write(FULL);
    }
    // Small responses must not wait for the acknowledgement of earlier ones. A socket that cannot
    // do it is broken and will say so on the first read.
    let _ = stream.set_nodelay(true);
    keep_alive(stream);
    place
}

/// Has the kernel ask a silent client whether it is there: one whose machine is gone, with a connection
/// of bytes that nobody writes to, would keep its place for ever. It is noticed after two minutes.
fn keep_alive(stream: &TcpStream) {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 60),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 15),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    ];
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("a few bytes");
    for (level, name, value) in options {
        let number: libc::c_int = value;
        let number = &raw const number;
        // SAFETY: a plain system call; descriptor and integer live through it, the size is its own.
        // A socket that cannot do it is broken and will say so on the first read.
        let _ = unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, number.cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silent_clients_are_asked_whether_they_are_there() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("its address");
        let _client = TcpStream::connect(address).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("a connection");
        assert!(place(&Arc::new(Semaphore::new(1)), &stream).is_some());
        let asked = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::KeepAlive);
        assert_eq!(asked, Ok(true));
    }

    #[test]
    fn the_canned_response_has_the_length_it_says() {
        let text = std::str::from_utf8(FULL).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
