//! ICMP errors about a connection, as the kernel keeps them for a socket that asked (ip(7),
//! IP_RECVERR).

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};

/// Asks the kernel to keep ICMP errors for `rejection`, or not to any more.
pub fn keep_errors(socket: &impl AsFd, family_of: IpAddr, keep: bool) -> io::Result<()> {
    match family_of {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &keep)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &keep)?,
    }
    Ok(())
}

/// Whether one of the errors kept is a firewall's reject.
pub fn was_rejected(socket: &impl AsFd) -> bool {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut byte = [0u8; 1];
    let mut rejected = false;
    loop {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_fd().as_raw_fd(),
            &mut buffers,
            Some(&mut control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        );
        let Ok(message) = message else {
            return rejected;
        };
        let Ok(errors) = message.cmsgs() else {
            return rejected;
        };
        rejected |= errors.into_iter().any(|error| match error {
            ControlMessageOwned::Ipv4RecvErr(e, _) | ControlMessageOwned::Ipv6RecvErr(e, _) => {
                is_reject(e.ee_origin, e.ee_type, e.ee_code)
            }
            _ => false,
        });
    }
}

/// What iptables' REJECT and nft's reject send: a port or protocol that is not there, which a host
/// without a firewall tells of TCP by a reset, or "administratively prohibited" (RFC 1812, 5.2.7.1
/// and RFC 4443, 3.1). A network or host out of reach is none.
fn is_reject(origin: u8, kind: u8, code: u8) -> bool {
    match (origin, kind) {
        (libc::SO_EE_ORIGIN_ICMP, 3) => matches!(code, 2 | 3 | 9 | 10 | 13),
        (libc::SO_EE_ORIGIN_ICMP6, 1) => matches!(code, 1 | 4 | 5 | 6),
        _ => false,
    }
}
