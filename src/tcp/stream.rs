//! A connected socket in a worker's reactor.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A TCP socket that knows when to try again. System calls go straight to the socket; the
/// reactor is asked only after one of them would block.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Registers a non-blocking socket with the worker's reactor.
    pub fn new(socket: OwnedFd) -> io::Result<Stream> {
        sys::socket::register(socket).map(Stream)
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

    /// Asks to be woken by a reset, and fails with it if it has come. For a side that is not read
    /// at the moment, where a reset would otherwise stay unseen.
    pub fn check_reset(&self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(guard) = self.0.poll_write_ready(cx) {
            let mut guard = guard?;
            if guard.ready().is_write_closed() {
                return self.take_error();
            }
            guard.clear_ready();
        }
        Ok(())
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
