//! Bytes in front of a connection or in a datagram → whom they name. No I/O.
//!
//! The protocol is HAProxy's `proxy-protocol.txt`. The crate `ppp` reads whole headers; what it
//! leaves open (pieces, checksums, LOCAL and UNKNOWN of any shape) is closed here.
//!
//! ```
//! use realpeer::header::{Claim, Progress, Transport, parse};
//!
//! let bytes = b"PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\r\nSSH-2.0-client\r\n";
//! // The first piece has no end yet.
//! assert!(matches!(parse(&bytes[..9], Transport::Stream)?, Progress::NeedMore(_)));
//!
//! let Progress::Complete(header) = parse(bytes, Transport::Stream)? else {
//!     panic!("the header is whole");
//! };
//! let Claim::Client { source, .. } = header.claim else {
//!     panic!("it names a client");
//! };
//! assert_eq!(source.to_string(), "203.0.113.9:51234");
//! assert_eq!(&bytes[header.len..], b"SSH-2.0-client\r\n");
//! # Ok::<(), realpeer::header::HeaderError>(())
//! ```

pub mod spp;

mod v1;
mod v2;

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;

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
    /// Where the value of PP2_TYPE_UNIQUE_ID stands among its bytes.
    pub unique_id: Option<Range<usize>>,
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
    /// The beginning of one; at least this many bytes are missing.
    NeedMore(usize),
}

/// Why bytes are not an acceptable header. It is put into words only when it is logged: a
/// flood of bad datagrams must not cost an allocation each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes belong to something else.
    #[error(
        "no PROXY header: the peer connected directly, or send-proxy is off; it began with {0}"
    )]
    Absent(Beginning),
    /// A header that breaks the protocol.
    #[error("bad PROXY header: {0}")]
    Malformed(Cow<'static, str>),
    /// A field of a version 2 header has a value that is none.
    #[error("bad PROXY header: {field} {found}, not {wanted}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        found: u8,
        /// What it may say.
        wanted: &'static str,
    },
    /// PP2_TYPE_CRC32C does not match.
    #[error("bad PROXY header: its CRC32C is wrong")]
    Checksum,
    /// A header for the other transport.
    #[error("bad PROXY header: it is for {0}")]
    OtherTransport(&'static str),
}

/// The first bytes of something that is not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    bytes: [u8; 16],
    len: usize,
}

impl Beginning {
    /// Keeps what is worth showing of these bytes.
    pub fn of(whole: &[u8]) -> Beginning {
        let mut bytes = [0; 16];
        let len = whole.len().min(bytes.len());
        bytes[..len].copy_from_slice(&whole[..len]);
        Beginning { bytes, len }
    }
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes[..self.len].escape_ascii().fmt(f)
    }
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
    Err(HeaderError::Absent(Beginning::of(bytes)))
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

    /// Headers with some bytes spoilt, cut everywhere: nothing panics, an error stays an error
    /// however many bytes follow, and a complete header stays the same.
    #[test]
    fn every_verdict_is_final() {
        let crc = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xcb\0\x71\x09\xc0\0\x02\x01\xc8\x22\0\x16\x03\0\x04abcd";
        let seeds: [&[u8]; 5] = [
            b"PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\r\nx",
            b"PROXY TCP6 2001:db8::9 2001:db8::1 1 65535\r\n",
            b"PROXY UNKNOWN a b\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x28\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x16\x05\0\x01i",
            crc,
        ];
        let spoilers = b"\0\r\n +-.:09AZaf\xff\x20\x21\x11\x31\x03";
        // A linear congruential generator (Knuth's MMIX constants): the same bytes in each run.
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let mut bytes = seeds[below(seeds.len())].to_vec();
            for _ in 0..below(4) {
                let at = below(bytes.len());
                bytes[at] = spoilers[below(spoilers.len())];
            }
            let mut verdict = None;
            for cut in 0..=bytes.len() {
                let now = parse(&bytes[..cut], Transport::Stream);
                match (&verdict, &now) {
                    (Some(Err(_)), _) => assert!(now.is_err(), "{} at {cut}", bytes.escape_ascii()),
                    (Some(earlier), _) => {
                        assert_eq!(earlier, &now, "{} at {cut}", bytes.escape_ascii())
                    }
                    (None, Ok(Progress::NeedMore(n))) => assert!(*n > 0),
                    (None, _) => verdict = Some(now),
                }
            }
        }
    }
}
