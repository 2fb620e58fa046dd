//! Bytes in front of a connection or in a datagram → whom they name. No I/O.
//!
//! The protocol is HAProxy's `proxy-protocol.txt`. The crate `ppp` reads whole headers; what it
//! leaves open (pieces, checksums, LOCAL and UNKNOWN of any shape) is closed here.

pub mod spp;

mod v1;
mod v2;

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::addr::ClientAddr;

/// The transport that a version 2 header must name to be meant for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// A whole and valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whom it names.
    pub claim: Claim,
    /// Its length in bytes; what follows is the client's.
    pub len: usize,
    /// PP2_TYPE_UNIQUE_ID, as sent.
    pub unique_id: Option<Box<[u8]>>,
}

/// Whom a header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody (LOCAL, UNKNOWN, UNSPEC, UNIX): the real endpoints of the connection hold.
    RealEndpoints,
    /// The client and the address it connected to; neither is IPv4-mapped.
    Client {
        /// The client.
        source: ClientAddr,
        /// What the client connected to.
        destination: SocketAddr,
    },
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A whole header.
    Complete(Header),
    /// The beginning of one; at least so many bytes are missing.
    NeedMore(usize),
}

/// Why bytes are no header, or not one to accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes belong to something else.
    #[error(
        "no PROXY header: the peer connected directly, or send-proxy is off; it began with {0}"
    )]
    Absent(String),
    /// A header that breaks the protocol.
    #[error("bad PROXY header: {0}")]
    Malformed(Cow<'static, str>),
    /// PP2_TYPE_CRC32C does not match.
    #[error("bad PROXY header: its CRC32C is wrong")]
    Checksum,
    /// A header for the other transport.
    #[error("bad PROXY header: it is for {0}")]
    OtherTransport(&'static str),
}

/// Reads the header at the start of `bytes`, which may be cut anywhere.
pub fn parse(bytes: &[u8], transport: Transport) -> Result<Progress, HeaderError> {
    if bytes.is_empty() {
        return Ok(Progress::NeedMore(1));
    }
    let signature = bytes.len().min(v2::SIGNATURE.len());
    if bytes[..signature] == v2::SIGNATURE[..signature] {
        return v2::parse(bytes, transport);
    }
    let prefix = bytes.len().min(v1::PREFIX.len());
    if bytes[..prefix] == v1::PREFIX[..prefix] && transport == Transport::Stream {
        return v1::parse(bytes);
    }
    Err(HeaderError::Absent(
        bytes[..bytes.len().min(16)].escape_ascii().to_string(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_told_at_the_first_byte_that_differs() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"G",
            b"PROXX",
            b"\r\n\r\nX",
            b"\0",
        ] {
            let error = parse(bytes, Transport::Stream).unwrap_err();
            assert!(
                matches!(error, HeaderError::Absent(_)),
                "{bytes:?}: {error}"
            );
        }
        assert!(matches!(
            parse(b"", Transport::Stream),
            Ok(Progress::NeedMore(_))
        ));
        assert!(matches!(
            parse(b"PROXY UNKNOWN\r\n", Transport::Datagram),
            Err(HeaderError::Absent(_))
        ));
    }

    #[test]
    fn what_strangers_sent_is_escaped() {
        let error = parse(b"\x1b[2J\n", Transport::Stream).unwrap_err();
        assert!(error.to_string().is_ascii() && !error.to_string().contains(['\x1b', '\n']));
    }
}
