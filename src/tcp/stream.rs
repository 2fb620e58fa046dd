//! A connected socket in a worker's reactor.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A TCP socket that knows when to try again. System calls go straight to the socket; the
/// reactor is asked only after one of them would block.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Registers a non-blocking socket with the worker's reactor.
    pub fn new(socket: OwnedFd) -> io::Result<Stream> {
        sys::socket::register_with_urgent(socket).map(Stream)
    }

    /// As `sys::socket::recv`.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        sys::socket::recv(self, buffer)
    }

    /// As `sys::socket::send`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        sys::socket::send(self, bytes)
    }

    /// Ready when bytes, an end or an error arrived since the last time it was ready.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .poll_read_ready(cx)
            .map_ok(|mut guard| guard.clear_ready())
    }

    /// Ready when room or an error arose since the last time it was ready.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .poll_write_ready(cx)
            .map_ok(|mut guard| guard.clear_ready())
    }

    /// Waits for bytes, an end or an error.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Whether an urgent byte has ever come, or the end: a short read may then have stopped at the
    /// urgent mark (tcp(7)) and left bytes behind it, of which the reactor will not tell.
    pub fn has_urgent(&self) -> bool {
        self.0.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Whether the connection is over, both ways, by a reset or an error, which the socket keeps
    /// for the next call that fails. If not, it asks to be woken then. For a side that is not read
    /// at the moment, where this would otherwise stay unseen.
    pub fn is_gone(&self, cx: &mut Context<'_>) -> io::Result<bool> {
        while let Poll::Ready(guard) = self.0.poll_write_ready(cx) {
            let mut guard = guard?;
            if guard.ready().is_write_closed() {
                return Ok(self.is_closed());
            }
            guard.clear_ready();
        }
        Ok(false)
    }

    /// Bytes sent, an end among them, that the other side's kernel has not acknowledged, or never
    /// did before the connection was over.
    pub fn unacknowledged(&self) -> usize {
        sys::socket::unacknowledged(self).unwrap_or_default()
    }

    /// Whether the connection is over, both ways, and acknowledged or broken.
    pub fn is_closed(&self) -> bool {
        sys::socket::is_closed(self).unwrap_or(true)
    }

    /// Fails with the socket's pending error (SO_ERROR), if there is one.
    pub fn take_error(&self) -> io::Result<()> {
        match SockRef::from(self).take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Tells the other side that no more bytes come.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Makes the close a reset instead of an orderly end.
    pub fn reset_on_close(&self) {
        // It fails only for a socket that has ended anyway.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
