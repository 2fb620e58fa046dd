//! What listening sockets of both transports have in common.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
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
        let socket = open(listen, settings)
            .map_err(|e| anyhow!(cannot_listen(listen, settings.protocol, &e)))?;
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

/// What the kernel's refusal of a listening socket means, and what to do (ip(7), tcp(7)).
pub fn cannot_listen(listen: SocketAddr, protocol: Protocol, error: &io::Error) -> String {
    let port = listen.port();
    let cure = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let list = match protocol {
                Protocol::Tcp => "ss -ltnp",
                Protocol::Udp => "ss -lunp",
            };
            format!(
                "another program has the port: `{list} 'sport = {port}'` shows which; stop it, or choose another port with -l"
            )
        }
        Some(libc::EADDRNOTAVAIL) => {
            "no interface of this host has the address: `ip address` lists those it has; for others there is -listen-transparent".to_owned()
        }
        Some(libc::EACCES) => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE: be root, or put AmbientCapabilities=CAP_NET_BIND_SERVICE into the unit".to_owned()
        }
        Some(libc::EPERM) => {
            "-listen-transparent needs CAP_NET_ADMIN or CAP_NET_RAW: be root, or put AmbientCapabilities=CAP_NET_ADMIN into the unit".to_owned()
        }
        Some(libc::EAFNOSUPPORT) => "this host has no IPv6: listen on an IPv4 address".to_owned(),
        _ => return format!("cannot listen on {listen}: {error}"),
    };
    format!("cannot listen on {listen}: {error}: {cure}")
}
