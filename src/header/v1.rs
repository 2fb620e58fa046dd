//! Version 1: one line of text, at most 107 bytes with its CRLF.

use std::borrow::Cow;
use std::net::SocketAddr;

use ppp::v1::{Addresses, Header as Line};

use super::{Claim, Header, HeaderError, Progress};
use crate::addr::{ClientAddr, canonical};

/// How every line begins.
pub const PREFIX: &[u8] = b"PROXY ";

/// The longest line with its CRLF.
const MAX: usize = 107;

/// Reads a line that begins with as much of `PREFIX` as there is.
pub fn parse(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let window = &bytes[..bytes.len().min(MAX)];
    let Some(end) = window.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
        if window.len() == MAX {
            return Err(malformed("no CRLF in the first 107 bytes"));
        }
        hopeless(window)?;
        return Ok(Progress::NeedMore(if window.len() + 1 == MAX {
            1
        } else {
            2
        }));
    };
    match (window[end], window.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if window.len() < MAX => {
            line(&[&window[..end], b"\r\n"].concat())?;
            return Ok(Progress::NeedMore(1));
        }
        _ => return Err(malformed("a CR or LF stands alone")),
    }
    let len = end + 2;
    Ok(Progress::Complete(Header {
        claim: line(&window[..len])?,
        len,
        unique_id: None,
    }))
}

/// Reads a whole line. `ppp` takes `UNKNOWN` with any further words for unfinished, and a port
/// with a plus sign for a number.
fn line(line: &[u8]) -> Result<Claim, HeaderError> {
    if let Some(rest) = line.strip_prefix(b"PROXY UNKNOWN") {
        return match rest.first() {
            Some(b' ' | b'\r') => Ok(Claim::RealEndpoints),
            _ => Err(malformed("the protocol word is not TCP4, TCP6 or UNKNOWN")),
        };
    }
    let header = Line::try_from(line).map_err(|e| malformed(e.to_string()))?;
    if line.contains(&b'+') {
        return Err(malformed("a port has a sign"));
    }
    let (source, destination): (SocketAddr, SocketAddr) = match header.addresses {
        Addresses::Unknown => return Ok(Claim::RealEndpoints),
        Addresses::Tcp4(a) => (
            (a.source_address, a.source_port).into(),
            (a.destination_address, a.destination_port).into(),
        ),
        Addresses::Tcp6(a) => (
            (a.source_address, a.source_port).into(),
            (a.destination_address, a.destination_port).into(),
        ),
    };
    Ok(Claim::Client {
        source: ClientAddr(canonical(source)),
        destination: canonical(destination),
    })
}

/// Refuses a beginning that no further bytes can make valid: its finished words are tried in a
/// line whose other words are right.
fn hopeless(beginning: &[u8]) -> Result<(), HeaderError> {
    let words: Vec<&[u8]> = beginning.split(|b| *b == b' ').collect();
    let (unfinished, finished) = match words.split_last() {
        Some(split) => split,
        None => return Ok(()),
    };
    let filler: [&[u8]; 6] = match finished.get(1).copied() {
        None if finished.is_empty() => return Ok(()),
        None => {
            let known = [&b"TCP4"[..], b"TCP6", b"UNKNOWN"];
            return match known.iter().any(|word| word.starts_with(unfinished)) {
                true => Ok(()),
                false => Err(malformed("the protocol word is not TCP4, TCP6 or UNKNOWN")),
            };
        }
        Some(b"UNKNOWN") => return Ok(()),
        Some(b"TCP6") => [b"PROXY", b"TCP6", b"::", b"::", b"0", b"0"],
        Some(_) => [b"PROXY", b"TCP4", b"0.0.0.0", b"0.0.0.0", b"0", b"0"],
    };
    let Some(rest @ [_, ..]) = filler.get(finished.len()..) else {
        return Err(malformed("more words than two addresses and two ports"));
    };
    let mut whole = [finished, rest].concat().join(&b' ');
    whole.extend_from_slice(b"\r\n");
    line(&whole).map(drop)
}

fn malformed(why: impl Into<Cow<'static, str>>) -> HeaderError {
    HeaderError::Malformed(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{Transport, parse};

    fn whole(line: &str) -> Result<Progress, HeaderError> {
        parse(line.as_bytes(), Transport::Stream)
    }

    fn client(source: &str, destination: &str, len: usize) -> Result<Progress, HeaderError> {
        Ok(Progress::Complete(Header {
            claim: Claim::Client {
                source: ClientAddr(source.parse().unwrap()),
                destination: destination.parse().unwrap(),
            },
            len,
            unique_id: None,
        }))
    }

    #[test]
    fn addresses_of_both_families() {
        let line = "PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\r\nSSH-2.0";
        assert_eq!(whole(line), client("203.0.113.9:51234", "192.0.2.1:22", 43));
        let line = "PROXY TCP6 2001:db8::9 2001:db8::1 0 65535\r\n";
        assert_eq!(
            whole(line),
            client("[2001:db8::9]:0", "[2001:db8::1]:65535", line.len())
        );
        let line = "PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 1 2\r\n";
        assert_eq!(
            whole(line),
            client("203.0.113.9:1", "192.0.2.1:2", line.len())
        );
    }

    #[test]
    fn every_split_is_the_beginning_of_a_header() {
        for line in [
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\r\n",
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 0 0\r\n",
            "PROXY UNKNOWN\r\n",
            "PROXY UNKNOWN a b c d e f g\r\n",
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        ] {
            for cut in 0..line.len() {
                let progress = whole(&line[..cut]);
                assert!(
                    matches!(progress, Ok(Progress::NeedMore(n)) if n > 0 && n <= line.len() - cut),
                    "{:?}: {progress:?}",
                    &line[..cut]
                );
            }
            assert!(matches!(whole(line), Ok(Progress::Complete(h)) if h.len == line.len()));
        }
    }

    #[test]
    fn unknown_takes_anything_up_to_the_crlf() {
        for line in [
            "PROXY UNKNOWN\r\n",
            "PROXY UNKNOWN \r\n",
            "PROXY UNKNOWN a b c d e f g\r\n",
            "PROXY UNKNOWN \x01\u{e9}\r\n",
        ] {
            let Ok(Progress::Complete(header)) = whole(line) else {
                panic!("{line:?}")
            };
            assert_eq!(
                (header.claim, header.len),
                (Claim::RealEndpoints, line.len())
            );
        }
        assert!(whole("PROXY UNKNOWNX\r\n").is_err());
    }

    #[test]
    fn breaches_of_the_protocol_are_refused() {
        for line in [
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234 22\rX",
            "PROXY TCP4 203.0.113.9  192.0.2.1 51234 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234 22 \r\n",
            "PROXY  TCP4 203.0.113.9 192.0.2.1 51234 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 051234 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234 00\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 +1 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 +22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 -1 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 65536 22\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 51234\r\n",
            "PROXY TCP4 203.0.113.09 192.0.2.1 51234 22\r\n",
            "PROXY TCP4 2001:db8::9 2001:db8::1 51234 22\r\n",
            "PROXY TCP6 203.0.113.9 192.0.2.1 51234 22\r\n",
            "PROXY TCP5 203.0.113.9 192.0.2.1 51234 22\r\n",
            "PROXY UDP4 203.0.113.9 192.0.2.1 51234 22\r\n",
            "PROXY \r\n",
        ] {
            assert!(
                matches!(whole(line), Err(HeaderError::Malformed(_))),
                "{line:?}: {:?}",
                whole(line)
            );
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(107 - 14));
        assert!(whole(&long).is_err());
        assert!(whole(&long[..106]).is_ok());
        assert!(whole(&format!("{}\r\n", &long[..105])).is_ok());
        assert!(whole(&format!("{}\r\n", &long[..106])).is_err());
    }

    #[test]
    fn a_bad_beginning_is_refused_without_its_end() {
        for beginning in [
            "PROXY X",
            "PROXY TCP5",
            "PROXY TCP4 203.0.113.999 ",
            "PROXY TCP4 ::1 ",
            "PROXY TCP4  ",
            "PROXY TCP4 203.0.113.9 192.0.2.1 99999 ",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 2 ",
            "PROXY TCP4 203.0.113.9\r",
        ] {
            assert!(
                matches!(whole(beginning), Err(HeaderError::Malformed(_))),
                "{beginning:?}"
            );
        }
    }
}
