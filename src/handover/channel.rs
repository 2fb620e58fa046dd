//! Messages between two processes of the program: each a JSON object, with descriptors beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::{passing, socket};

/// Bytes of a message, at most. Senders keep far below.
const LONGEST: usize = 192 << 10;

/// One end of a socket that keeps messages apart.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Speaks through this socket.
    pub fn new(descriptor: OwnedFd) -> io::Result<Channel> {
        socket2::SockRef::from(&descriptor).set_nonblocking(true)?;
        Ok(Channel(socket::register(descriptor)?))
    }

    /// Sends a message, once there is room for it.
    pub async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send_bytes(&serde_json::to_vec(message)?, descriptors)
            .await
    }

    /// As `send`, for what is no JSON.
    pub async fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |socket: &OwnedFd| passing::send(socket, bytes, descriptors);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message. Fails with `UnexpectedEof` when the other end is closed.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let (bytes, descriptors) = self.receive_bytes().await?;
        let message = serde_json::from_slice(&bytes)?;
        Ok((message, descriptors))
    }

    /// As `receive`, for what is no JSON.
    pub async fn receive_bytes(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; LONGEST];
        let receive = |socket: &OwnedFd| passing::receive(socket, &mut buffer);
        let (length, descriptors) = match self.0.async_io(Interest::READABLE, receive).await {
            // The other process ended with messages of ours unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
            result => result?,
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(length);
        Ok((buffer, descriptors))
    }

    /// The socket, to be passed on.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
