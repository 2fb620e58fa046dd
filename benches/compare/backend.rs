//! The backends, as a process of their own: they echo, swallow or pour out bytes.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockRef, Socket, Type};

use crate::load::watch;
use crate::run::{TARGET, TARGET_UDP};
use crate::support::addr;

/// What a ready connection needs; false ends it.
type Step = fn(&mut TcpStream, &mut [u8]) -> bool;

/// Runs for ever.
pub fn run(kind: &str) {
    match kind {
        "udp" => echo_datagrams(),
        "echo" => serve(EpollFlags::EPOLLIN, echo),
        "sink" => serve(EpollFlags::EPOLLIN, swallow),
        "source" => serve(EpollFlags::EPOLLOUT, pour),
        _ => panic!("no backend {kind}"),
    }
}

/// Serves all connections on one thread.
fn serve(wanted: EpollFlags, step: Step) {
    let listener = listen(addr(TARGET)).expect("listen as the backend");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("make an epoll");
    watch(&epoll, &listener, EpollFlags::EPOLLIN);
    // By the number of the descriptor.
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let mut events = [EpollEvent::empty(); 1024];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE);
        for event in &events[..ready.unwrap_or_default()] {
            let number = event.data() as usize;
            if number == listener.as_raw_fd() as usize {
                while let Ok(stream) = accept(&listener) {
                    watch(&epoll, &stream, wanted);
                    let number = stream.as_raw_fd() as usize;
                    streams.resize_with(streams.len().max(number + 1), || None);
                    streams[number] = Some(stream);
                }
            } else if !streams[number]
                .as_mut()
                .is_some_and(|stream| step(stream, &mut buffer))
            {
                streams[number] = None;
            }
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(65_535)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn echo(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    let Ok(size @ 1..) = stream.read(buffer) else {
        return false;
    };
    let mut left = &buffer[..size];
    while !left.is_empty() {
        match stream.write(left) {
            Ok(sent) => left = &left[sent..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(_) => return false,
        }
    }
    true
}

/// Throws away what came without copying it (MSG_TRUNC): the proxy is measured, not the backend.
fn swallow(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    matches!(
        recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC),
        Ok(1..)
    )
}

fn pour(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.write(&buffer[..256 << 10]) {
        Ok(sent) => sent > 0,
        Err(e) => e.kind() == ErrorKind::WouldBlock,
    }
}

fn echo_datagrams() {
    let socket = UdpSocket::bind(TARGET_UDP).expect("listen as the backend");
    // Room for every datagram in flight; the kernel may give less to an ordinary user.
    let room = 8 << 20;
    let _ = SockRef::from(&socket).set_recv_buffer_size(room);
    let _ = SockRef::from(&socket).set_send_buffer_size(room);
    let mut buffer = [0; 65_536];
    loop {
        if let Ok((size, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..size], from);
        }
    }
}
