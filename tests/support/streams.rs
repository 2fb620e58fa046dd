//! Reading from and writing to connections in a test, never for ever.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::DEADLINE;

/// Gives both directions of a connection the deadline.
pub fn with_deadline(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("set a read timeout");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("set a write timeout");
    stream
}

/// Reads what is there, or waits for it. A read with a deadline is interrupted where one without
/// goes on: when the process is stopped and continued (signal(7)).
pub fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Waits until a socket is ready for `what`, and returns whether it is.
pub fn is_ready(socket: &impl AsFd, what: PollFlags, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).expect("the time fits");
    loop {
        match poll(&mut [PollFd::new(socket.as_fd(), what)], timeout) {
            Err(Errno::EINTR) => {}
            result => return result.expect("poll a socket") > 0,
        }
    }
}

/// Sends bytes.
#[track_caller]
pub fn send(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream
        .write_all(bytes.as_ref())
        .expect("send to the connection");
}

/// Receives exactly so many bytes.
#[track_caller]
pub fn receive(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream
        .read_exact(&mut bytes)
        .unwrap_or_else(|e| panic!("{count} bytes did not come: {e}"));
    bytes
}

/// Receives what comes until the other side finishes.
#[track_caller]
pub fn receive_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .unwrap_or_else(|e| panic!("no orderly end of the stream: {e}"));
    bytes
}

/// Receives what comes until the other side finishes or resets.
#[track_caller]
pub fn receive_to_any_end(stream: &TcpStream) -> Vec<u8> {
    receive_to_the_end(stream).0
}

/// Receives what comes until the other side resets.
#[track_caller]
pub fn receive_until_reset(stream: &TcpStream) -> Vec<u8> {
    let (bytes, end) = receive_to_the_end(stream);
    assert!(end.is_err(), "an orderly end, where bytes may be missing");
    bytes
}

fn receive_to_the_end(mut stream: &TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, Ok(())),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => (bytes, Err(e)),
        Err(e) => panic!("neither bytes nor an end: {e}"),
    }
}

/// Sends one message each way and checks that it arrives as it was.
#[track_caller]
pub fn assert_carries(near: &TcpStream, far: &TcpStream) {
    send(near, "there");
    assert_eq!(receive(far, 5), b"there");
    send(far, "and back");
    assert_eq!(receive(near, 8), b"and back");
}

/// Finishes the sending direction only.
pub fn finish_sending(stream: &TcpStream) {
    stream
        .shutdown(Shutdown::Write)
        .expect("shut down one direction");
}

/// Waits until the other side has ended the connection, by a FIN or by a reset.
#[track_caller]
pub fn assert_closed(stream: &TcpStream) {
    match read(stream, &mut [0; 1]) {
        Ok(0) => {}
        Ok(_) => panic!("a byte came where the connection should be closed"),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the connection was not closed: {e}"),
    }
}

/// Whether the other side has ended the connection, asked without waiting. Nothing must have come.
pub fn has_ended(stream: &TcpStream) -> bool {
    stream
        .set_nonblocking(true)
        .expect("make a stream non-blocking");
    let peeked = stream.peek(&mut [0; 1]);
    stream
        .set_nonblocking(false)
        .expect("make a stream blocking");
    match peeked {
        Ok(0) => true,
        Ok(_) => panic!("a byte came where the connection should be silent"),
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

/// Checks that somebody listens and closes what comes, which may be before `connect` returns.
#[track_caller]
pub fn assert_turned_away(dialled: io::Result<TcpStream>) {
    match dialled {
        Ok(stream) => assert_closed(&stream),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}"),
    }
}

/// As `assert_turned_away`, by a reset and nothing else.
#[track_caller]
pub fn assert_reset_at_once(dialled: io::Result<TcpStream>) {
    match dialled {
        Ok(stream) => assert_reset(&stream),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}"),
    }
}

/// Waits until the other side has reset the connection.
#[track_caller]
pub fn assert_reset(stream: &TcpStream) {
    match read(stream, &mut [0; 1]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("expected a reset, and read {other:?}"),
    }
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket
        .set_linger(Some(Duration::ZERO))
        .expect("set SO_LINGER");
}
