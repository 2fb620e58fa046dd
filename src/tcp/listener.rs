//! Takes connections and gives each to a worker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::connection;
use crate::addr::{PeerAddr, canonical};
use crate::config::ListenerConfig;
use crate::refusal::Refusal;
use crate::report::Subject;
use crate::service::{Current, Service};
use crate::stats::Count;
use crate::sys;

/// Connections that may wait to be taken; the kernel lowers it to net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// How long the listener rests when descriptors or memory are short, first and at most.
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Opens a socket and binds it. It is to listen once everything else is known to go well: what
/// connects from then on must be served.
pub fn open(listen: SocketAddr, config: &ListenerConfig, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    let shared = shared || config.listeners > 1;
    sys::socket::prepare_listener(&socket, listen, shared, config.listen_transparent)?;
    set_up(&socket, config)?;
    socket.bind(&listen.into())?;
    Ok(socket)
}

/// Sets what a listening socket needs, bound or not.
pub fn set_up(socket: &Socket, config: &ListenerConfig) -> io::Result<()> {
    // Accepted sockets inherit these, which saves three system calls a connection.
    socket.set_tcp_nodelay(true)?;
    // An urgent byte keeps its place among the others.
    socket.set_out_of_band_inline(true)?;
    sys::socket::set_keepalive(socket, config.keepalive)
}

/// Takes connections until it is dropped, on worker `own`. Returns only when the listener itself is
/// broken.
pub async fn run(current: Arc<Current>, socket: Arc<OwnedFd>, own: usize) -> io::Error {
    let listener = match sys::socket::register_listener(socket) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let mut rest = REST;
    loop {
        let error = match accept_ready(&current, &listener, own).await {
            Ok(()) => {
                rest = REST;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                let service = current.get();
                service.add(own, Count::AcceptFailed, 1);
                let reporter = &service.record.reporter;
                let served = service.record.count(Count::Served);
                reporter.note(Count::AcceptFailed, None, served);
                if let Some(held_back) = reporter.due(Count::AcceptFailed, Subject::default()) {
                    tracing::error!(listener = service.label(), %error, heldBack = held_back, "cannot take connections for now: raise LimitNOFILE, or lower -max-connections");
                }
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
            _ if is_of_the_connection(&error) => {}
            _ => return error,
        }
    }
}

/// Takes what is waiting, then waits for more.
async fn accept_ready(
    current: &Current,
    listener: &AsyncFd<Arc<OwnedFd>>,
    own: usize,
) -> io::Result<()> {
    let mut guard = listener.readable().await?;
    match sys::socket::accept(listener.get_ref()) {
        Ok((socket, peer)) => take(&current.get(), socket, PeerAddr(canonical(peer)), own),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Serves a connection, or refuses it; `own` is the worker to prefer.
pub fn take(service: &Arc<Service>, socket: OwnedFd, peer: PeerAddr, own: usize) {
    service.add(own, Count::Accepted, 1);
    let refusal = match (service.admission.peer(peer), service.place(own)) {
        (Ok(trust), Ok(slot)) => {
            return slot.start(peer, |slot| connection::serve(slot, socket, peer, trust));
        }
        (Ok(_), Err(most)) => Refusal::TooManyConnections(most),
        (Err(refusal), _) => refusal,
    };
    // A reset leaves nothing behind, neither here nor at the peer.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    service.refused(own, peer, &refusal, None, None);
}

/// Errors of a connection that ended before it was taken (accept(2), "Error handling").
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}
