//! Sockets: what `socket2` and `nix` do not do in one system call, or not at all.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv as nix_recv, send as nix_send};
use socket2::SockAddr;
use tokio::io::unix::AsyncFd;

/// Takes a connection from a listener, non-blocking and close-on-exec, with its peer's address.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = listener.as_fd().as_raw_fd();
    // SAFETY: `try_init` hands over storage and length that fit each other, as accept4(2) wants
    // them; the descriptor that accept4 returns is new and ours alone.
    let (socket, peer) = unsafe {
        SockAddr::try_init(|storage, len| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            match libc::accept4(listener, storage.cast(), len, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        })?
    };
    let peer = peer.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, peer))
}

/// Sets an option whose value is a C int.
pub fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads what is there; 0 is the end, `WouldBlock` means nothing yet.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| nix_recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT))
}

/// Writes what fits; `WouldBlock` means nothing does.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    retry(|| nix_send(socket.as_fd().as_raw_fd(), bytes, flags))
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Puts a non-blocking descriptor into the reactor of the runtime this is called from.
pub fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and the
    // `AsyncFd` owns it: nobody gets it out to close or replace it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
