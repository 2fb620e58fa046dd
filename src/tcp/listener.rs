//! Takes connections and gives each to a worker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::unix::AsyncFd;

use super::connection;
use crate::addr::{PeerAddr, canonical};
use crate::config::Settings;
use crate::listening;
use crate::proxy::Proxy;
use crate::refusal::Refusal;
use crate::report::Subject;
use crate::stats::Count;
use crate::sys;
use crate::upstream::KEEPALIVE;

/// Connections that may wait to be taken; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// How long the listener rests when descriptors or memory are short, first and at most.
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Opens the listening sockets, all on one address, and returns that address.
pub fn bind(settings: &Settings) -> Result<(Vec<OwnedFd>, SocketAddr)> {
    listening::bind(settings, open)
}

fn open(listen: SocketAddr, settings: &Settings) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    listening::prepare(&socket, listen, settings)?;
    // Accepted sockets inherit these, which saves two system calls a connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE),
    )?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Accepts connections, on worker `own`. Returns only when the listener itself is broken.
pub async fn run(proxy: Arc<Proxy>, socket: OwnedFd, own: usize) -> io::Error {
    let listener = match sys::socket::register(socket) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let mut rest = REST;
    loop {
        let error = match accept_ready(&proxy, &listener, own).await {
            Ok(()) => {
                rest = REST;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                proxy.workers[own].stats.add(Count::AcceptFailed, 1);
                if let Some(held_back) = proxy.reporter.due(Count::AcceptFailed, Subject::default())
                {
                    tracing::error!(%error, heldBack = held_back, "cannot accept connections at the moment: raise LimitNOFILE or lower -max-connections");
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
    proxy: &Arc<Proxy>,
    listener: &AsyncFd<OwnedFd>,
    own: usize,
) -> io::Result<()> {
    let mut guard = listener.readable().await?;
    match sys::socket::accept(listener.get_ref()) {
        Ok((socket, peer)) => take(proxy, socket, PeerAddr(canonical(peer)), own),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
        Err(e) => return Err(e),
    }
    Ok(())
}

fn take(proxy: &Arc<Proxy>, socket: OwnedFd, peer: PeerAddr, own: usize) {
    let stats = &proxy.workers[own].stats;
    stats.add(Count::Accepted, 1);
    let refusal = match (proxy.admission.peer(peer), proxy.place(own)) {
        (Ok(()), Some(slot)) => {
            return slot.start(peer, |slot| connection::serve(slot, socket, peer));
        }
        (Ok(()), None) => Refusal::TooManyConnections(proxy.max_connections),
        (Err(refusal), _) => refusal,
    };
    // A reset leaves nothing behind, neither here nor at the peer.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    connection::report(proxy, stats, peer, &refusal, None, None);
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
