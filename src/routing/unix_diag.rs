//! The Unix sockets of this network namespace that are bound to an abstract name, and whose they
//! are, as the kernel tells by sock_diag (sock_diag(7), linux/unix_diag.h).

use std::fs;
use std::io;

use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket, SocketAddr};

/// A socket with an abstract name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name, without the leading zero byte.
    pub name: String,
    /// It listens.
    pub listens: bool,
    /// Who opened it; `None` where the kernel does not tell (before 5.3, or without unix_diag).
    pub uid: Option<u32>,
}

const HEADER: usize = 16;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// All sockets that are bound or listen under an abstract name that is text.
pub fn named() -> io::Result<Vec<Named>> {
    match dump() {
        Ok(found) => Ok(found),
        // A kernel without unix_diag has the names all the same.
        Err(_) => Ok(listed(&fs::read_to_string("/proc/thread-self/net/unix")?)),
    }
}

fn dump() -> io::Result<Vec<Named>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while rest.len() >= HEADER {
            let length = word(rest, 0).max(HEADER as u32) as usize;
            let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
            match i32::from(u16::from_ne_bytes([rest[4], rest[5]])) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => {
                    let errno = i32::from_ne_bytes(word(body, 0).to_ne_bytes());
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => found.extend(read(body)),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A netlink header, then a struct unix_diag_req.
fn request() -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const UDIAG_SHOW_NAME: u32 = 1;
    const UDIAG_SHOW_UID: u32 = 0x40;
    const LENGTH: u32 = 40;
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend((1u32 << TCP_CLOSE | 1 << TCP_LISTEN).to_ne_bytes());
    bytes.extend([0; 4]); // of any inode
    bytes.extend((UDIAG_SHOW_NAME | UDIAG_SHOW_UID).to_ne_bytes());
    bytes.extend([0; 8]); // of any cookie
    bytes
}

/// Reads a struct unix_diag_msg and its attributes; `None` for a socket without abstract name.
fn read(body: &[u8]) -> Option<Named> {
    const UNIX_DIAG_NAME: u16 = 0;
    const UNIX_DIAG_UID: u16 = 7;
    const LENGTH: usize = 16;
    let (mut name, mut uid) = (None, None);
    for attribute in NlasIterator::new(body.get(LENGTH..)?).flatten() {
        match (attribute.kind(), attribute.value()) {
            (UNIX_DIAG_NAME, [0, text @ ..]) => name = String::from_utf8(text.to_vec()).ok(),
            (UNIX_DIAG_UID, value) => uid = value.try_into().ok().map(u32::from_ne_bytes),
            _ => {}
        }
    }
    Some(Named {
        name: name?,
        listens: u32::from(body[2]) == TCP_LISTEN,
        uid,
    })
}

/// Reads /proc/net/unix: "Num RefCount Protocol Flags Type St Inode Path".
fn listed(table: &str) -> Vec<Named> {
    const SO_ACCEPTCON: &str = "00010000";
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some(Named {
            name: words.get(7)?.strip_prefix('@')?.to_owned(),
            listens: *words.get(3)? == SO_ACCEPTCON,
            uid: None,
        })
    };
    table.lines().skip(1).filter_map(read).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    four.map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

    #[test]
    fn both_sources_know_the_sockets_of_this_process() {
        let name = |kind| format!("realpeer-test-{kind}-{}", std::process::id());
        let address = |name: &str| SocketAddr::from_abstract_name(name).expect("a name");
        let (bound, listens) = (name("bound"), name("listens"));
        let _bound = UnixDatagram::bind_addr(&address(&bound)).expect("bind");
        let _listens = UnixListener::bind_addr(&address(&listens)).expect("bind");
        let proc = fs::read_to_string("/proc/thread-self/net/unix").expect("/proc");
        let uid = nix::unistd::geteuid().as_raw();
        for (found, uid) in [(dump().expect("dump"), Some(uid)), (listed(&proc), None)] {
            for (name, listens) in [(&bound, false), (&listens, true)] {
                let wanted = Named {
                    name: name.clone(),
                    listens,
                    uid,
                };
                assert!(found.contains(&wanted), "{wanted:?} in {found:?}");
            }
        }
    }
}
