//! What listening sockets of both transports have in common.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use socket2::Socket;

use crate::config::{Protocol, Settings};

/// Opens `-listeners` sockets by `open`, all on one address, and tells that address.
pub fn bind(
    settings: &Settings,
    open: fn(SocketAddr, &Settings) -> io::Result<Socket>,
) -> Result<(Vec<OwnedFd>, SocketAddr)> {
    let mut listen = settings.listen;
    let mut sockets = Vec::with_capacity(settings.listeners);
    for _ in 0..settings.listeners {
        let socket =
            open(listen, settings).with_context(|| cannot_listen(listen, settings.protocol))?;
        // Port 0 lets the kernel choose: the others share its choice.
        let bound = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        listen = bound.context("the listener has no address")?;
        sockets.push(socket.into());
    }
    Ok((sockets, listen))
}

/// Sets what `-listeners`, `-listen-transparent` and the address ask for, before the bind.
pub fn prepare(socket: &Socket, listen: SocketAddr, settings: &Settings) -> io::Result<()> {
    if settings.listeners > 1 {
        socket.set_reuse_port(true)?;
    }
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    match (settings.listen_transparent, listen.is_ipv6()) {
        (true, true) => socket.set_ip_transparent_v6(true),
        (true, false) => socket.set_ip_transparent_v4(true),
        (false, _) => Ok(()),
    }
}

fn cannot_listen(listen: SocketAddr, protocol: Protocol) -> String {
    let ss = match protocol {
        Protocol::Tcp => "ss -ltnp",
        Protocol::Udp => "ss -lunp",
    };
    format!(
        "cannot listen on {listen}: is the port taken ({ss}), the address this host's, or the port below 1024 without CAP_NET_BIND_SERVICE?"
    )
}
