//! Clients of the benchmarks: each comes from a port that is free and claims an address that no
//! other one has, so that no connection meets the remains of an earlier one.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::support::header;

/// No exchange takes that long, unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whom the headers say the client connected to.
const VISITED: &str = "198.51.100.1:443";

/// An address and port in 10.0.0.0/8 that nobody has claimed yet: distinct for 3.8 billion calls.
pub fn next_claimed() -> SocketAddrV4 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let host = n % 60_000 + 1;
    let port = 1024 + n / 60_000 % 64_000;
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + host), port as u16)
}

/// The header of a TCP connection.
pub fn header_v1(claimed: SocketAddrV4) -> Vec<u8> {
    header::v1(&claimed.to_string(), VISITED)
}

/// The header of a UDP datagram.
pub fn header_v2_datagram(claimed: SocketAddrV4) -> Vec<u8> {
    let addresses = header::addresses(claimed.into(), crate::support::addr(VISITED));
    header::V2::new(header::PROXY, header::INET | header::DGRAM, addresses).bytes()
}

/// Connects from one address after the other of 127.1.0.0/16, so that ports do not run out.
pub fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % 1024;
    let from = Ipv4Addr::new(127, 1, (n / 16) as u8, (n % 16 + 1) as u8);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The port is chosen at connect(2), where only the whole pair of addresses must be free.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(from.into(), 0).into())?;
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Sends all bytes.
pub fn send(stream: &TcpStream, bytes: &[u8]) {
    try_send(stream, bytes).expect("send");
}

/// As `send`, where the other side may be gone.
pub fn try_send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

/// Receives as many bytes as the buffer holds; an error if the other side ends before.
pub fn receive(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.read_exact(buffer)
}
