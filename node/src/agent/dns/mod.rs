//! The DNS server of the node, for programs outside of Pods: by UDP and TCP, authoritative for the
//! cluster's domain and the addresses in it, and for nothing else.
//!
//! ```text
//!   agent's loop ──changes──▶ Zone (zone.rs) ◀──questions── sockets, here
//!                                                 │
//!                            message.rs: bytes to question, answer to bytes, by `domain`
//! ```
//!
//! Datagrams are answered one after the other by one task, which costs microseconds each; what the
//! socket cannot take at once is lost, as datagrams may be. Streams are bounded in number, and
//! closed when nothing comes. While its address is taken the node runs without, and tries again.

mod message;
mod zone;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use domain::base::iana::OptRcode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    message::{Read, Way, Written},
    zone::Answer,
};

pub use self::zone::Zone;

/// The names, changed by the agent's loop. A lock, because a question is answered in microseconds
/// and nobody waits for anything while holding it.
pub type SharedZone = Arc<RwLock<Zone>>;

/// How often an address that was taken is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// After an error of a socket, which would come again at once.
const PAUSE: Duration = Duration::from_millis(50);
/// Questions are short; what is longer is cut off, and refused as broken.
const QUESTION_BYTES_MAX: usize = 1500;
/// Streams at once. Others wait in the kernel.
const STREAMS_MAX: usize = 64;
/// A stream on which nothing is asked, or nothing taken, is closed after so long.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one stream: then somebody else may have its place.
const QUESTIONS_MAX: usize = 1000;

/// Serves at an address, as soon as it is free, until `shutdown`.
pub async fn run(address: SocketAddr, zone: SharedZone, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(serve(address, zone)).await;
}

async fn serve(address: SocketAddr, zone: SharedZone) {
    let mut told = false;
    let (datagrams, streams) = loop {
        match bind(address).await {
            Ok(sockets) => break sockets,
            Err(error) => {
                if !told {
                    tracing::warn!(%address, %error, "no DNS server yet, trying again");
                }
                told = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    let address = datagrams.local_addr().unwrap_or(address);
    tracing::info!(%address, "DNS server");
    tokio::join!(serve_datagrams(datagrams, &zone), serve_streams(streams, &zone));
}

/// The same port for both.
async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = UdpSocket::bind(address).await?;
    let streams = TcpListener::bind(datagrams.local_addr()?).await?;
    Ok((datagrams, streams))
}

async fn serve_datagrams(socket: UdpSocket, zone: &SharedZone) {
    let mut buffer = [0; QUESTION_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                if let Some(answer) = reply(zone, &buffer[..length], Way::Datagram) {
                    // Who does not hear asks again.
                    let _ = socket.try_send_to(answer.as_dgram_slice(), client);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "DNS by UDP");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_streams(listener: TcpListener, zone: &SharedZone) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    let mut streams = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, client)) => {
                let zone = zone.clone();
                streams.spawn(async move {
                    if let Err(error) = serve_stream(stream, &zone).await {
                        tracing::debug!(%client, %error, "DNS by TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "DNS by TCP");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while streams.try_join_next().is_some() {}
    }
}

async fn serve_stream(mut stream: TcpStream, zone: &SharedZone) -> io::Result<()> {
    let mut message = Vec::new();
    for _ in 0..QUESTIONS_MAX {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            // Nothing more comes.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        if length > QUESTION_BYTES_MAX {
            return Err(io::Error::other("the question is too long"));
        }
        message.resize(length, 0);
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let Some(answer) = reply(zone, &message, Way::Stream) else { return Ok(()) };
        timeout(IDLE, stream.write_all(answer.as_stream_slice())).await??;
    }
    Ok(())
}

/// The answer to a message, if it is to be answered.
fn reply(zone: &RwLock<Zone>, bytes: &[u8], way: Way) -> Option<Written> {
    let question = match message::read(bytes) {
        Read::Question(question) => question,
        Read::Bad(header, code) => return message::write_bad(header, code),
        Read::Silence => return None,
    };
    let answer = if question.is_newer() {
        Answer::only(OptRcode::BADVERS)
    } else if !question.is_in {
        Answer::only(OptRcode::REFUSED)
    } else {
        let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
        zone.answer(&question.labels, question.wanted)
    };
    message::write(&question, &answer, way)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question about the domain's name server, as clients write it.
    const ASKED: &[u8] =
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02ns\x03dns\x07cluster\x05local\0\0\x01\0\x01";
    const ADDRESS: [u8; 4] = [192, 0, 2, 1];

    async fn served() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let mut zone = Zone::new("cluster.local", ADDRESS.into());
        zone.complete();
        let zone = Arc::new(RwLock::new(zone));
        let (datagrams, streams) =
            bind("127.0.0.1:0".parse().expect("an address")).await.expect("free");
        let address = datagrams.local_addr().expect("bound");
        let serving = tokio::spawn(async move {
            tokio::join!(serve_datagrams(datagrams, &zone), serve_streams(streams, &zone));
        });
        (address, serving)
    }

    #[tokio::test]
    async fn datagrams_are_answered_and_noise_is_not() {
        let (address, serving) = served().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("free");
        client.connect(address).await.expect("connected");
        let mut buffer = [0; 512];
        for noise in [&b""[..], b"x", &[0xff; 40]] {
            client.send(noise).await.expect("sent");
        }
        client.send(ASKED).await.expect("sent");
        let length =
            timeout(IDLE, client.recv(&mut buffer)).await.expect("in time").expect("received");
        assert_eq!(buffer[..2], ASKED[..2]);
        assert_eq!(buffer[length - 4..length], ADDRESS);
        serving.abort();
    }

    #[tokio::test]
    async fn a_stream_asks_as_often_as_it_likes_and_too_much_ends_it() {
        let (address, serving) = served().await;
        let mut client = TcpStream::connect(address).await.expect("connected");
        for _ in 0..3 {
            let length = u16::try_from(ASKED.len()).expect("short");
            client.write_u16(length).await.expect("written");
            client.write_all(ASKED).await.expect("written");
            let mut answer = vec![0; usize::from(client.read_u16().await.expect("answered"))];
            client.read_exact(&mut answer).await.expect("answered");
            assert_eq!(answer[answer.len() - 4..], ADDRESS);
        }
        client.write_u16(u16::MAX).await.expect("written");
        assert_eq!(client.read(&mut [0; 1]).await.expect("closed"), 0);
        serving.abort();
    }
}
