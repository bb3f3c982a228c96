//! Connections, requests and names, as many as can be had.

use std::net::Ipv4Addr;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::OutgoingDatagram;
use wasip2::sockets::udp_create_socket::create_udp_socket;

use crate::storm;

/// What is held at the same time at most: less than the handles that a guest may have.
const HELD_MAX: usize = 1_000;

fn failed(code: ErrorCode) -> String {
    code.name().to_owned()
}

fn target() -> (String, u16) {
    let target = std::env::var("TARGET").unwrap_or_default();
    let (host, port) = target.split_once(':').unwrap_or(("10.0.0.1", "80"));
    (host.to_owned(), port.parse().unwrap_or(80))
}

fn address() -> IpSocketAddress {
    let (host, port) = target();
    let [a, b, c, d] = host.parse().unwrap_or(Ipv4Addr::new(10, 0, 0, 1)).octets();
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) })
}

/// Requests that are sent and whose answers nobody reads.
pub fn requests() {
    let (host, port) = target();
    let authority = format!("{host}:{port}");
    let mut held = Vec::new();
    storm(|| {
        if held.len() >= HELD_MAX {
            held.clear();
        }
        let request = OutgoingRequest::new(Fields::new());
        let set = request
            .set_scheme(Some(&Scheme::Http))
            .and_then(|()| request.set_authority(Some(&authority)))
            .and_then(|()| request.set_path_with_query(Some("/bench")));
        set.map_err(|()| "the request cannot be made".to_owned())?;
        let future = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
        // What was refused is known at once.
        let refused = match future.get() {
            Some(Ok(Err(code))) => Err(format!("{code:?}")),
            _ => Ok(()),
        };
        held.push(future);
        refused
    });
}

/// Names that nobody has.
pub fn names() {
    let mut number = 0_u64;
    storm(|| {
        number += 1;
        let name = format!("nobody-{number}.default.svc.cluster.local");
        let found = resolve_addresses(&instance_network(), &name).map_err(failed)?;
        found.subscribe().block();
        found.resolve_next_address().map(drop).map_err(failed)
    });
}

pub fn sockets() {
    let mut held = Vec::new();
    storm(|| {
        held.push(create_tcp_socket(IpAddressFamily::Ipv4).map_err(failed)?);
        Ok(())
    });
}

/// Connections to a neighbour on which nothing is ever said.
pub fn half_open() {
    let mut held = Vec::new();
    storm(|| {
        let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(failed)?;
        socket.start_connect(&instance_network(), address()).map_err(failed)?;
        socket.subscribe().block();
        let streams = socket.finish_connect().map_err(failed)?;
        held.push((streams, socket));
        Ok(())
    });
}

pub fn datagrams() {
    let socket = create_udp_socket(IpAddressFamily::Ipv4).expect("one socket is allowed");
    let any = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 0, address: (0, 0, 0, 0) });
    socket.start_bind(&instance_network(), any).expect("any port is allowed");
    socket.finish_bind().expect("any port is free");
    let (_incoming, outgoing) = socket.stream(None).expect("it is bound");
    let data = vec![0; 1200];
    storm(|| {
        outgoing.subscribe().block();
        outgoing.check_send().map_err(failed)?;
        let datagram = OutgoingDatagram { data: data.clone(), remote_address: Some(address()) };
        outgoing.send(&[datagram]).map(drop).map_err(failed)
    });
}
