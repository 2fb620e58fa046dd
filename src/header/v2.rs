//! Version 2: a binary block of 16 bytes and up to 65,535 more.

use std::net::SocketAddr;

use ppp::v2::{Addresses, Header as Block, Type};

use super::{Claim, Header, HeaderError, Progress, Transport};
use crate::addr::{ClientAddr, canonical};

/// The 12 bytes that every block begins with.
pub const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
const FIXED: usize = 16;

/// Where the command and the family stand.
const COMMAND: usize = 12;
const FAMILY: usize = 13;

/// Reads a block that begins with as much of `SIGNATURE` as there is. Errors are told as soon as
/// the byte that shows them is there.
pub fn parse(bytes: &[u8], transport: Transport) -> Result<Progress, HeaderError> {
    let local = match bytes.get(COMMAND) {
        None | Some(0x21) => false,
        Some(0x20) => true,
        Some(b) if b >> 4 != 2 => return Err(field("version", b >> 4, "2")),
        Some(b) => return Err(field("command", b & 15, "LOCAL or PROXY")),
    };
    let family = bytes.get(FAMILY).copied().unwrap_or_default();
    if !local {
        check_family(family, transport)?;
    }
    let Some(&[high, low]) = bytes.get(FAMILY + 1..FIXED) else {
        return Ok(Progress::NeedMore(FIXED - bytes.len()));
    };
    let announced = usize::from(u16::from_be_bytes([high, low]));
    if !local && announced < address_len(family) {
        return Err(malformed("its length is too short for its addresses"));
    }
    let len = FIXED + announced;
    if bytes.len() < len {
        return Ok(Progress::NeedMore(len - bytes.len()));
    }
    if local || !matches!(family >> 4, 1 | 2) {
        let claim = Claim::RealEndpoints;
        return Ok(Progress::Complete(Header {
            claim,
            len,
            unique_id: None,
        }));
    }
    block(&bytes[..len]).map(Progress::Complete)
}

/// A PROXY block's family and transport byte; UNSPEC takes any transport, for it names nobody.
fn check_family(byte: u8, transport: Transport) -> Result<(), HeaderError> {
    match (byte >> 4, byte & 15, transport) {
        (4.., _, _) => Err(field(
            "address family",
            byte >> 4,
            "UNSPEC, INET, INET6 or UNIX",
        )),
        (_, 3.., _) => Err(field("transport", byte & 15, "UNSPEC, STREAM or DGRAM")),
        (0, ..) | (_, 1, Transport::Stream) | (_, 2, Transport::Datagram) => Ok(()),
        (_, 1, _) => Err(HeaderError::OtherTransport("TCP (STREAM)")),
        (_, 2, _) => Err(HeaderError::OtherTransport("UDP (DGRAM)")),
        _ => Err(HeaderError::OtherTransport("no transport (UNSPEC)")),
    }
}

/// Bytes that the addresses of a family take: INET, INET6, UNIX.
fn address_len(family: u8) -> usize {
    [0, 12, 36, 216]
        .get(usize::from(family >> 4))
        .copied()
        .unwrap_or_default()
}

/// Reads a whole PROXY block with Internet addresses, its TLVs and its checksum.
fn block(bytes: &[u8]) -> Result<Header, HeaderError> {
    let block = Block::try_from(bytes).map_err(|_| malformed("its addresses cannot be read"))?;
    let (source, destination): (SocketAddr, SocketAddr) = match &block.addresses {
        Addresses::IPv4(a) => (
            (a.source_address, a.source_port).into(),
            (a.destination_address, a.destination_port).into(),
        ),
        Addresses::IPv6(a) => (
            (a.source_address, a.source_port).into(),
            (a.destination_address, a.destination_port).into(),
        ),
        Addresses::Unspecified | Addresses::Unix(_) => {
            return Err(malformed("no Internet addresses"));
        }
    };
    let mut unique_id = None;
    let mut at = bytes.len() - block.tlv_bytes().len();
    for tlv in block.tlvs() {
        let tlv = tlv.map_err(|_| malformed("a TLV runs past its end"))?;
        let value = at + 3;
        at = value + tlv.value.len();
        if tlv.kind == u8::from(Type::CRC32C) {
            check_crc(bytes, value, at)?;
        } else if tlv.kind == u8::from(Type::UniqueId) {
            unique_id = Some(value..at);
        }
    }
    Ok(Header {
        claim: Claim::Client {
            source: ClientAddr(canonical(source)),
            destination: canonical(destination),
        },
        len: bytes.len(),
        unique_id,
    })
}

/// The checksum at `from..to` covers the whole block with its own four bytes taken as zero.
fn check_crc(block: &[u8], from: usize, to: usize) -> Result<(), HeaderError> {
    let Ok(sent) = <[u8; 4]>::try_from(&block[from..to]) else {
        return Err(malformed("its CRC32C has not four bytes"));
    };
    let crc = crc32c::crc32c(&block[..from]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &block[to..]);
    if crc == u32::from_be_bytes(sent) {
        Ok(())
    } else {
        Err(HeaderError::Checksum)
    }
}

fn malformed(why: &'static str) -> HeaderError {
    HeaderError::Malformed(why.into())
}

fn field(field: &'static str, found: u8, wanted: &'static str) -> HeaderError {
    HeaderError::Field {
        field,
        found,
        wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::parse;

    const INET: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0xc8, 0x22, 0, 22];

    fn block(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &len, rest].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &len[..], value].concat()
    }

    fn with_crc(mut rest: Vec<u8>, after: &[u8], spoil: u32) -> Vec<u8> {
        let at = FIXED + rest.len() + 3;
        rest.extend(tlv(0x03, &[0; 4]));
        rest.extend(after);
        let mut all = block(0x21, 0x11, &rest);
        let crc = crc32c::crc32c(&all) ^ spoil;
        all[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        all
    }

    fn read(bytes: &[u8]) -> Result<Progress, HeaderError> {
        parse(bytes, Transport::Stream)
    }

    fn complete(bytes: &[u8]) -> Header {
        match read(bytes) {
            Ok(Progress::Complete(header)) => header,
            other => panic!("{other:?}"),
        }
    }

    fn claim(source: &str, destination: &str) -> Claim {
        Claim::Client {
            source: ClientAddr(source.parse().unwrap()),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn addresses_of_both_families() {
        let bytes = [block(0x21, 0x11, &INET), b"SSH".to_vec()].concat();
        let header = complete(&bytes);
        assert_eq!(header.claim, claim("203.0.113.9:51234", "192.0.2.1:22"));
        assert_eq!(header.len, 28);
        let mut rest = [0u8; 36];
        rest[..2].copy_from_slice(&[0x20, 1]);
        rest[16..18].copy_from_slice(&[0x20, 1]);
        rest[35] = 22;
        assert_eq!(
            complete(&block(0x21, 0x21, &rest)).claim,
            claim("[2001::]:0", "[2001::]:22")
        );
        let mapped = [
            &[0; 10][..],
            &[255, 255, 203, 0, 113, 9],
            &[0; 10],
            &[255, 255, 192, 0, 2, 1],
            &[0, 1, 0, 2],
        ]
        .concat();
        assert_eq!(
            complete(&block(0x21, 0x21, &mapped)).claim,
            claim("203.0.113.9:1", "192.0.2.1:2")
        );
    }

    #[test]
    fn every_split_is_the_beginning_of_a_header() {
        let rest = [&INET[..], &tlv(0x05, b"id"), &tlv(0xEA, &[1; 300])].concat();
        for bytes in [
            block(0x21, 0x11, &rest),
            block(0x20, 0, &[]),
            block(0x20, 0xff, &[9; 70]),
            with_crc(INET.to_vec(), &[], 0),
        ] {
            for cut in 0..bytes.len() {
                let progress = read(&bytes[..cut]);
                assert!(
                    matches!(progress, Ok(Progress::NeedMore(n)) if n > 0 && n <= bytes.len() - cut),
                    "{cut}: {progress:?}"
                );
            }
            assert_eq!(complete(&bytes).len, bytes.len());
        }
    }

    #[test]
    fn the_longest_header() {
        let rest = [
            &INET[..],
            &tlv(0x04, &vec![0; 65_535 - 12 - 3 - 5]),
            &tlv(0x05, b"id"),
        ]
        .concat();
        assert_eq!(rest.len(), 65_535);
        let header = complete(&block(0x21, 0x11, &rest));
        assert_eq!(
            (header.len, header.unique_id),
            (65_551, Some(65_549..65_551))
        );
    }

    #[test]
    fn local_unspec_and_unix_name_nobody_and_nothing_in_them_is_walked() {
        for bytes in [
            block(0x20, 0x00, &[]),
            block(0x20, 0x11, &[]),
            block(0x20, 0xff, &[0xff; 9]),
            block(0x20, 0x12, &INET),
            block(0x21, 0x00, &[0x03, 0xff, 0xff]),
            block(0x21, 0x31, &[0xff; 300]),
        ] {
            let header = complete(&bytes);
            assert_eq!(
                (header.claim, header.len),
                (Claim::RealEndpoints, bytes.len())
            );
        }
    }

    #[test]
    fn breaches_of_the_protocol_are_refused_as_soon_as_they_show() {
        let short_inet6 = block(0x21, 0x21, &[0; 35]);
        let short_unix = block(0x21, 0x31, &[0; 215]);
        for (bytes, shown_at) in [
            (block(0x11, 0x11, &INET), 13),
            (block(0x22, 0x11, &INET), 13),
            (block(0x21, 0x41, &INET), 14),
            (block(0x21, 0x13, &INET), 14),
            (block(0x21, 0x12, &INET), 14),
            (block(0x21, 0x10, &INET), 14),
            (block(0x21, 0x11, &INET[..11]), 16),
            (short_inet6, 16),
            (short_unix, 16),
        ] {
            assert!(
                matches!(read(&bytes[..shown_at - 1]), Ok(Progress::NeedMore(_))),
                "{bytes:?}"
            );
            assert!(read(&bytes[..shown_at]).is_err(), "{bytes:?}");
        }
        assert!(parse(&block(0x21, 0x12, &INET), Transport::Datagram).is_ok());
        assert!(parse(&block(0x21, 0x11, &INET), Transport::Datagram).is_err());
    }

    #[test]
    fn tlvs_are_walked() {
        let rest = [
            &INET[..],
            &tlv(0x77, b"?"),
            &tlv(0x05, b"abc"),
            &tlv(0x04, b""),
        ]
        .concat();
        let bytes = block(0x21, 0x11, &rest);
        let unique_id = complete(&bytes).unique_id;
        assert_eq!(unique_id.map(|at| &bytes[at]), Some(&b"abc"[..]));
        for tail in [
            &[0x04][..],
            &[0x04, 0],
            &[0x04, 0, 1],
            &[0x04, 0xff, 0xff, 0],
        ] {
            let rest = [&INET[..], tail].concat();
            assert!(
                matches!(
                    read(&block(0x21, 0x11, &rest)),
                    Err(HeaderError::Malformed(_))
                ),
                "{tail:?}"
            );
        }
    }

    #[test]
    fn the_checksum_must_match_wherever_it_stands() {
        assert_eq!(
            complete(&with_crc(INET.to_vec(), &[], 0)).claim,
            claim("203.0.113.9:51234", "192.0.2.1:22")
        );
        complete(&with_crc(INET.to_vec(), &tlv(0x05, b"behind"), 0));
        assert_eq!(
            read(&with_crc(INET.to_vec(), &[], 1)),
            Err(HeaderError::Checksum)
        );
        let rest = [&INET[..], &tlv(0x03, &[0; 3])].concat();
        assert!(matches!(
            read(&block(0x21, 0x11, &rest)),
            Err(HeaderError::Malformed(_))
        ));
    }
}
