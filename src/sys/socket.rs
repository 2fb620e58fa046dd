//! Sockets: what `socket2` and `nix` do not do in one system call, or not at all.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv as nix_recv, send as nix_send};
use socket2::{SockAddr, SockRef, Socket, TcpKeepalive};
use tokio::io::Interest;
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

/// Probes a TCP peer that is silent for `every`, whole seconds, and again as often; `None` never
/// does. Sockets inherit it from the listener that accepts them.
pub fn set_keepalive(socket: &Socket, every: Option<Duration>) -> io::Result<()> {
    match every {
        Some(every) => {
            let keepalive = TcpKeepalive::new().with_time(every).with_interval(every);
            socket.set_tcp_keepalive(&keepalive)
        }
        None => socket.set_keepalive(false),
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

/// Takes a TCP listener out of its state LISTEN: connections are refused until listen(2) is called
/// again, and the address stays taken meanwhile (inet_shutdown in the kernel's net/ipv4/af_inet.c).
pub fn stop_listening(listener: impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(&listener);
    // One that does not listen would keep the shutdown, and pass it on to what it accepts later.
    match socket.is_listener()? {
        true => socket.shutdown(Shutdown::Read),
        false => Ok(()),
    }
}

/// What is set before a listening socket is bound: IPv6 takes IPv4 too, `shared` lets other sockets
/// have the address, `transparent` takes what is for foreign addresses (IP_TRANSPARENT).
pub fn prepare_listener(
    socket: &Socket,
    listen: SocketAddr,
    shared: bool,
    transparent: bool,
) -> io::Result<()> {
    if shared {
        socket.set_reuse_port(true)?;
    }
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    match (transparent, listen.is_ipv6()) {
        (true, true) => socket.set_ip_transparent_v6(true),
        (true, false) => socket.set_ip_transparent_v4(true),
        (false, _) => Ok(()),
    }
}

/// As `register`, for a listener that others hold, too.
pub fn register_listener(descriptor: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: as below; the `AsyncFd` keeps the `Arc`, and with it the descriptor, alive.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Whether a TCP connection is over, both ways. Its error stays for others.
pub fn is_closed(socket: impl AsFd) -> io::Result<bool> {
    /// TCP_CLOSE of include/net/tcp_states.h.
    const CLOSE: u8 = 7;
    // The first byte of TCP_INFO is the state; the kernel writes no more than it is asked for.
    let mut state = 0u8;
    let mut len = size_of_val(&state) as libc::socklen_t;
    // SAFETY: the pointers lead to `state`, whose size `len` holds, and to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(state == CLOSE)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Bytes sent, and an end, that the other side's kernel has not acknowledged (tcp(7), SIOCOUTQ).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int, to where the pointer leads.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or_default())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts a non-blocking descriptor into the reactor of the runtime this is called from.
pub fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register_for(descriptor, Interest::READABLE | Interest::WRITABLE)
}

/// As `register`, for a reactor that also tells of urgent data.
pub fn register_with_urgent(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
    register_for(socket, interest)
}

/// As `register`, for other events.
pub fn register_for(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and the
    // `AsyncFd` owns it: nobody gets it out to close or replace it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
