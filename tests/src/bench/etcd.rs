//! Three members of Debian's etcd on loopback, with TLS for clients and peers as Wherry has it, and
//! the few of its messages that the load needs. Everything else is as etcd ships it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use wherry_tests::http::Credentials;
use wherry_tests::own_address;

use crate::apps::Ended;
use crate::target::{Connection, Kind};

const BINARY: &str = "/usr/bin/etcd";
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// 100,000 objects and the history that etcd keeps of them.
const QUOTA_BYTES: u64 = 8 << 30;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes before each gRPC message: compressed or not, and its length.
pub const FRAME_HEADER: usize = 5;

/// All keys begin with this.
const PREFIX: &str = "/bench/";

pub fn key(name: &str) -> Vec<u8> {
    format!("{PREFIX}{name}").into_bytes()
}

/// The end of the range of all our keys.
fn range_end() -> Vec<u8> {
    let mut end = PREFIX.as_bytes().to_vec();
    let last = end.last_mut().expect("the prefix is not empty");
    *last += 1;
    end
}

/// A message: fields of bytes by their numbers, the only sort that our requests have.
pub fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, field) in fields {
        encoding::encode_key(*number, WireType::LengthDelimited, &mut bytes);
        encoding::encode_varint(field.len() as u64, &mut bytes);
        bytes.extend_from_slice(field);
    }
    bytes
}

/// A field of an answer.
pub enum Field {
    Number(u64),
    Bytes(Bytes),
}

/// The fields of an answer, those of other sorts left out.
pub fn fields(mut message: Bytes) -> Result<Vec<(u32, Field)>> {
    let mut fields = Vec::new();
    while message.has_remaining() {
        let (number, sort) = encoding::decode_key(&mut message)?;
        match sort {
            WireType::Varint => {
                fields.push((number, Field::Number(encoding::decode_varint(&mut message)?)));
            }
            WireType::LengthDelimited => {
                let length = usize::try_from(encoding::decode_varint(&mut message)?)?;
                ensure!(message.remaining() >= length, "a field beyond the end");
                fields.push((number, Field::Bytes(message.split_to(length))));
            }
            other => {
                encoding::skip_field(other, number, &mut message, DecodeContext::default())?;
            }
        }
    }
    Ok(fields)
}

/// The parts of a message under one number.
pub fn parts(message: Bytes, number: u32) -> Result<Vec<Bytes>> {
    let of_number = |field| match field {
        (found, Field::Bytes(bytes)) if found == number => Some(bytes),
        _ => None,
    };
    Ok(fields(message)?.into_iter().filter_map(of_number).collect())
}

/// PutRequest: key 1, value 2.
pub fn put(name: &str, value: &str) -> Vec<u8> {
    message(&[(1, &key(name)), (2, value.as_bytes())])
}

/// RangeRequest of one key: key 1.
pub fn range_of(name: &str) -> Vec<u8> {
    message(&[(1, &key(name))])
}

/// RangeRequest of all our keys: key 1, range_end 2.
pub fn range_of_all() -> Vec<u8> {
    message(&[(1, PREFIX.as_bytes()), (2, &range_end())])
}

/// WatchRequest: create_request 1, which begins with the two fields of a range.
pub fn watch_all() -> Vec<u8> {
    message(&[(1, &range_of_all())])
}

/// RangeResponse: kvs 2.
pub fn found(response: Bytes) -> Result<usize> {
    Ok(parts(response, 2)?.len())
}

/// WatchResponse: created 3.
pub fn created(response: Bytes) -> Result<bool> {
    let is_it = |(number, field): &(u32, Field)| *number == 3 && matches!(field, Field::Number(1));
    Ok(fields(response)?.iter().any(is_it))
}

/// WatchResponse: events 11, in each kv 2, in that key 1.
pub fn changed_keys(response: Bytes) -> Result<Vec<Bytes>> {
    let mut keys = Vec::new();
    for event in parts(response, 11)? {
        for kv in parts(event, 2)? {
            keys.extend(parts(kv, 1)?);
        }
    }
    Ok(keys)
}

/// A message as gRPC sends it.
pub fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(FRAME_HEADER + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("requests are small"));
    bytes.extend_from_slice(message);
    bytes.freeze()
}

/// The first message of a buffer, once it is whole.
pub fn unframe(buffer: &mut BytesMut) -> Option<Bytes> {
    let header: [u8; 4] = buffer.get(1..FRAME_HEADER)?.try_into().expect("four bytes");
    let length = usize::try_from(u32::from_be_bytes(header)).expect("32 bits fit");
    if buffer.len() < FRAME_HEADER + length {
        return None;
    }
    buffer.advance(FRAME_HEADER);
    Some(buffer.split_to(length).freeze())
}

/// A running cluster of three.
pub struct Etcd {
    members: Vec<Option<Ended>>,
    pub addresses: Vec<SocketAddr>,
    pub credentials: Credentials,
    folder: PathBuf,
}

impl Etcd {
    pub async fn start(folder: &Path) -> Result<Etcd> {
        ensure!(Path::new(BINARY).exists(), "{BINARY} is missing: apt-get install etcd-server");
        let [a, b, c, _] = own_address().octets();
        let hosts = [1, 2, 3].map(|last| Ipv4Addr::new(a, b, c, last));
        let credentials = certificates(folder, &hosts)?;
        let addresses = hosts.iter().map(|host| (*host, CLIENT_PORT).into()).collect();
        let folder = folder.to_owned();
        let mut etcd = Etcd { members: Vec::new(), addresses, credentials, folder };
        for number in 0..hosts.len() {
            let member = etcd.spawn(number)?;
            etcd.members.push(Some(member));
        }
        for number in 0..hosts.len() {
            etcd.serves(number).await?;
        }
        Ok(etcd)
    }

    fn spawn(&self, number: usize) -> Result<Ended> {
        let host = self.addresses[number].ip();
        let peer = |address: &SocketAddr| format!("https://{}:{PEER_PORT}", address.ip());
        let all = self.addresses.iter().enumerate();
        let all: Vec<String> =
            all.map(|(number, address)| format!("e{number}={}", peer(address))).collect();
        let client = format!("https://{host}:{CLIENT_PORT}");
        let own_peer = peer(&self.addresses[number]);
        let log = std::fs::File::create(self.folder.join(format!("e{number}.log")))?;
        let file = |name: &str| self.folder.join(name).display().to_string();
        let child = Command::new(BINARY)
            .args(["--name", &format!("e{number}")])
            .args(["--data-dir", &file(&format!("e{number}"))])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &own_peer, "--initial-advertise-peer-urls", &own_peer])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()])
            .args(["--cert-file", &file("leaf.crt"), "--key-file", &file("leaf.key")])
            .args(["--client-cert-auth", "--trusted-ca-file", &file("ca.crt")])
            .args(["--peer-cert-file", &file("leaf.crt"), "--peer-key-file", &file("leaf.key")])
            .args(["--peer-client-cert-auth", "--peer-trusted-ca-file", &file("ca.crt")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start etcd")?;
        Ok(Ended(child))
    }

    /// Waits until a linearizable read through this member works.
    async fn serves(&self, number: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.read(number).await {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > START_TIMEOUT => {
                    return Err(error.context("etcd does not get ready"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn read(&self, number: usize) -> Result<()> {
        let address = self.addresses[number];
        let connection = Connection::open(Kind::Etcd, address, &self.credentials).await?;
        let read = connection.get("ready");
        match tokio::time::timeout(Duration::from_secs(2), read).await? {
            Err(error) if error.to_string().contains("is not there") => Ok(()),
            other => other,
        }
    }

    pub fn pids(&self) -> Vec<i32> {
        let running = self.members.iter().flatten();
        running.map(|member| member.0.id().cast_signed()).collect()
    }

    /// kill -9 of a member, and the time from its next start until it serves reads.
    pub async fn restart(&mut self, number: usize) -> Result<Duration> {
        self.members[number] = None;
        let begun = Instant::now();
        self.members[number] = Some(self.spawn(number)?);
        self.serves(number).await?;
        Ok(begun.elapsed())
    }
}

/// An authority and one leaf for everything, in files for etcd and in memory for the clients.
fn certificates(folder: &Path, hosts: &[Ipv4Addr]) -> Result<Credentials> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "bench");
    let ca_key = KeyPair::generate()?;
    let ca = authority.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(authority, ca_key);
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name.push(DnType::CommonName, "bench-leaf");
    // etcd looks at where a peer's connection comes from, which on loopback is 127.0.0.1.
    let addresses = hosts.iter().chain([&Ipv4Addr::LOCALHOST]);
    let addresses = addresses.map(|host| SanType::IpAddress((*host).into()));
    leaf.subject_alt_names = addresses.collect();
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &issuer)?.pem();
    let key = key.serialize_pem();
    for (name, text) in [("ca.crt", &ca), ("leaf.crt", &certificate), ("leaf.key", &key)] {
        std::fs::write(folder.join(name), text)?;
    }
    Credentials::of_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes())
}
