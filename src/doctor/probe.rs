//! A real packet from a stranger's address, through the real path.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// On one host an answer takes microseconds; a SYN is sent again after a second.
pub const PATIENCE: Duration = Duration::from_millis(2500);
/// For a probe that is lost already, and is only watched on its way.
pub const ONE_PACKET: Duration = Duration::from_millis(300);

/// What became of the probe.
#[derive(Debug)]
pub enum Answer {
    /// It came back.
    Came,
    /// A reset, or an ICMP message: somebody said no.
    Refused(io::Error),
    /// Silence.
    None,
    /// It could not be sent.
    Unsent(io::Error),
}

/// A TCP handshake with the target in the name of `stranger`, and a reset at once. What the backend
/// then takes from its queue has no peer any more: sshd says nothing of it, where after an orderly
/// close it would log, and fail2ban count, a client that went away without a word.
pub fn tcp(target: SocketAddr, stranger: IpAddr, mark: Option<u32>, patience: Duration) -> Answer {
    let socket = match claim(Type::STREAM, stranger, mark) {
        Ok(socket) => socket,
        Err(e) => return Answer::Unsent(e),
    };
    match socket.connect_timeout(&target.into(), patience) {
        Ok(()) => {
            _ = socket.set_linger(Some(Duration::ZERO));
            Answer::Came
        }
        Err(e) if e.kind() == ErrorKind::TimedOut => Answer::None,
        Err(e) => Answer::Refused(e),
    }
}

/// A datagram to a socket of our own on the target's address, and the answer to it. The backend
/// is not disturbed.
pub fn udp(target: IpAddr, stranger: IpAddr, mark: Option<u32>, patience: Duration) -> Answer {
    let pair = || {
        let server = UdpSocket::bind((target, 0))?;
        server.set_read_timeout(Some(patience))?;
        let client: UdpSocket = claim(Type::DGRAM, stranger, mark)?.into();
        client.connect(server.local_addr()?)?;
        client.set_read_timeout(Some(patience))?;
        Ok((server, client))
    };
    let (server, client) = match pair() {
        Ok(pair) => pair,
        Err(e) => return Answer::Unsent(e),
    };
    match exchange(&server, &client) {
        Ok(()) => Answer::Came,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Answer::None,
        Err(e) => Answer::Refused(e),
    }
}

fn exchange(server: &UdpSocket, client: &UdpSocket) -> io::Result<()> {
    client.send(b"realpeer doctor")?;
    let from = receive(server)?;
    server.send_to(b"realpeer doctor", from)?;
    receive(client)?;
    Ok(())
}

/// The sender of the next datagram. A wait with a deadline is interrupted when the process is
/// stopped and continued (signal(7)); that is no answer of the network's.
fn receive(socket: &UdpSocket) -> io::Result<SocketAddr> {
    loop {
        match socket.recv_from(&mut [0; 32]) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result.map(|(_, from)| from),
        }
    }
}

fn claim(kind: Type, stranger: IpAddr, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(stranger, 0)),
        kind,
        None,
    )?;
    match stranger {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&SocketAddr::new(stranger, 0).into())?;
    Ok(socket)
}
