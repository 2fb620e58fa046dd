//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2), with the control messages that tell which
//! address of ours a datagram came to (IP_PKTINFO) and how a run of equal ones is cut (UDP_GRO,
//! UDP_SEGMENT).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockAddr;

/// Messages that one call receives or sends, at most.
pub const BATCH: usize = 64;

/// The largest that a message can be: what GRO glues together stays below 64 KiB, as do single
/// datagrams.
pub const LARGEST: usize = 65_536;

/// Slots lie so much further apart, or all their first lines would share one set of the cache.
const GAP: usize = 576;

/// One of our own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalIp {
    /// IPv4-mapped when an IPv6 socket took an IPv4 datagram.
    pub ip: IpAddr,
    /// The interface of a link-local address, 0 for others: routing chooses for them.
    pub interface: u32,
}

/// A message that came: a datagram, or several of one sender and size that GRO glued together.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    start: usize,
    len: usize,
    segment: usize,
    /// Its sender, unless the socket is connected.
    pub from: Option<SocketAddr>,
    /// Where it was sent to, if the socket was told to say so.
    pub to: Option<LocalIp>,
    /// It was longer than the buffer.
    pub truncated: bool,
}

impl Received {
    /// Where its datagrams stand in the batch; an empty message is one empty datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end, segment) = (self.start, self.start + self.len, self.segment);
        let count = self.len.div_ceil(segment).max(1);
        (0..count).map(move |i| {
            let at = start + i * segment;
            at..(at + segment).min(end)
        })
    }
}

/// Room for a batch of messages, allocated once; pages that no message touched take no memory.
#[derive(Debug)]
pub struct Batch {
    /// The size of the largest message that fits.
    largest: usize,
    bytes: Vec<u8>,
    received: Vec<Received>,
}

impl Batch {
    /// Room for `BATCH` messages of that size each, `LARGEST` for whatever may come.
    pub fn new(largest: usize) -> Batch {
        Batch {
            largest,
            bytes: vec![0; BATCH * (largest + GAP)],
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Forgets the messages.
    pub fn clear(&mut self) {
        self.received.clear();
    }

    /// Messages that still fit.
    pub fn room(&self) -> usize {
        BATCH - self.received.len()
    }

    /// The messages, in the order they came.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// The bytes that `Received::datagrams` points into.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Receives what waits on a socket, `most` messages and what fits at most, and returns how many
    /// came. `WouldBlock` means none.
    pub fn receive(&mut self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        let first = self.received.len();
        let most = most.min(self.room());
        let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::uninit() }; BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        let stride = self.largest + GAP;
        let slots = self.bytes[first * stride..].chunks_exact_mut(stride);
        for (i, slot) in slots.take(most).enumerate() {
            let piece = pieces[i].write(libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: self.largest,
            });
            let header = headers[i].write(empty_header());
            header.msg_hdr.msg_name = names[i].as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = controls[i].as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        let came = retry(|| {
            // SAFETY: the first `most` headers are written, and what they point to (names,
            // pieces, controls, disjoint slots of `bytes`) is as long as they say and outlives
            // the call.
            unsafe {
                libc::recvmmsg(
                    socket.as_fd().as_raw_fd(),
                    headers.as_mut_ptr().cast(),
                    most as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            }
        })?;
        for (i, header) in headers[..came].iter().enumerate() {
            // SAFETY: the loop above has written these headers, and the kernel has filled in the
            // names and controls that they point to, which are alive.
            let received = unsafe { decode(header.assume_init_ref(), (first + i) * stride) };
            self.received.push(received);
        }
        Ok(came)
    }
}

/// A message to send: one datagram, or a run that the kernel cuts.
#[derive(Debug)]
pub struct Message<'a> {
    /// What it is made of, end to end.
    pub pieces: &'a [IoSlice<'a>],
    /// Its receiver; a connected socket knows it.
    pub to: Option<SocketAddr>,
    /// The address of ours that it comes from, if routing shall not choose.
    pub from: Option<LocalIp>,
    /// Cut it into datagrams of this size; the last may be shorter.
    pub segment: Option<u16>,
}

/// Sends messages, `BATCH` at most, and returns how many the kernel took. An error is about the
/// first one, or about what was sent before it (an ICMP error of a connected socket).
pub fn send<'a>(
    socket: impl AsFd,
    messages: impl Iterator<Item = Message<'a>>,
) -> io::Result<usize> {
    let mut names = [const { MaybeUninit::<SockAddr>::uninit() }; BATCH];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let mut count = 0;
    for (i, message) in messages.take(BATCH).enumerate() {
        count += 1;
        let header = &mut headers[i].write(empty_header()).msg_hdr;
        if let Some(to) = message.to {
            let name = names[i].write(to.into());
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
        }
        // `IoSlice` is an `iovec` by its documentation, and sending does not write through it.
        header.msg_iov = message.pieces.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.pieces.len() as _;
        if message.from.is_some() || message.segment.is_some() {
            let control = controls[i].write(Control([0; CONTROL]));
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            // SAFETY: the header points to `control`, which is zeroed, aligned and has room for
            // both control messages.
            header.msg_controllen = unsafe { encode(header, &message) } as _;
        }
    }
    retry(|| {
        // SAFETY: the first `count` headers are written; names and controls that they point to
        // stand above, and the pieces are borrowed for 'a: all outlive the call.
        unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr().cast(),
                count,
                libc::MSG_DONTWAIT as _,
            )
        }
    })
}

/// Bytes for control messages: the largest pair, IPV6_PKTINFO and UDP_GRO, takes 64.
const CONTROL: usize = 96;

/// Aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

fn empty_header() -> libc::mmsghdr {
    // SAFETY: null pointers and zero lengths are a valid, empty header.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// # Safety
/// `header` must be one that recvmmsg(2) has filled in, and what it points to must be alive.
unsafe fn decode(header: &libc::mmsghdr, start: usize) -> Received {
    let len = header.msg_len as usize;
    let header = &header.msg_hdr;
    let mut received = Received {
        start,
        len,
        segment: len.max(1),
        // SAFETY: as the caller promises.
        from: unsafe { name(header) },
        to: None,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
    };
    // SAFETY: as the caller promises; CMSG_FIRSTHDR and CMSG_NXTHDR stay within the control
    // buffer, and data is read unaligned, as its type tells.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(c) = control.as_ref() {
            let data = libc::CMSG_DATA(c);
            match (c.cmsg_level, c.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.cast::<libc::c_int>().read_unaligned();
                    received.segment = usize::try_from(size).unwrap_or(len).max(1);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    received.to = Some(LocalIp {
                        ip: Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into(),
                        interface: 0,
                    });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    received.to = local_v6(info);
                }
                _ => {}
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    received
}

/// A multicast address is nobody's own: routing chooses the source of what answers it.
fn local_v6(info: libc::in6_pktinfo) -> Option<LocalIp> {
    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
    let interface = match ip.is_unicast_link_local() {
        true => info.ipi6_ifindex,
        false => 0,
    };
    (!ip.is_multicast()).then_some(LocalIp {
        ip: ip.into(),
        interface,
    })
}

/// # Safety
/// As for `decode`.
unsafe fn name(header: &libc::msghdr) -> Option<SocketAddr> {
    if header.msg_namelen == 0 {
        return None;
    }
    let name = header.msg_name;
    // SAFETY: the name is there, and its family tells its type.
    unsafe {
        match i32::from(name.cast::<libc::sockaddr>().as_ref()?.sa_family) {
            libc::AF_INET => {
                let name = name.cast::<libc::sockaddr_in>().read();
                let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 => {
                let name = name.cast::<libc::sockaddr_in6>().read();
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                let port = u16::from_be(name.sin6_port);
                Some(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Writes the control messages and returns their length.
///
/// # Safety
/// `header` must point to a zeroed control buffer of `CONTROL` bytes.
unsafe fn encode(header: &libc::msghdr, message: &Message<'_>) -> usize {
    // SAFETY: the largest pair takes 64 bytes, so the pointers stay within the buffer.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        let mut used = 0;
        match message.from {
            Some(LocalIp {
                ip: IpAddr::V4(ip), ..
            }) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                used += put(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                control = libc::CMSG_NXTHDR(header, control);
            }
            Some(LocalIp {
                ip: IpAddr::V6(ip),
                interface,
            }) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: interface as _,
                };
                used += put(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                control = libc::CMSG_NXTHDR(header, control);
            }
            None => {}
        }
        if let Some(size) = message.segment {
            used += put(control, libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
        used
    }
}

/// # Safety
/// `control` must point to room for a control message with this value.
unsafe fn put<T>(control: *mut libc::cmsghdr, level: i32, kind: i32, value: T) -> usize {
    let len = size_of::<T>() as libc::c_uint;
    // SAFETY: as the caller promises.
    unsafe {
        (*control).cmsg_level = level;
        (*control).cmsg_type = kind;
        (*control).cmsg_len = libc::CMSG_LEN(len) as _;
        libc::CMSG_DATA(control).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(len) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        a.connect(b.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn a_datagram_that_does_not_fit_is_told() {
        let (near, far) = pair();
        let mut batch = Batch::new(100);
        for len in [100, 101, 0, 100] {
            near.send(&vec![len as u8; len]).unwrap();
        }
        assert_eq!(batch.receive(&far, BATCH).unwrap(), 4);
        let told: Vec<bool> = batch.received().iter().map(|m| m.truncated).collect();
        assert_eq!(told, [false, true, false, false]);
        for message in batch.received() {
            assert_eq!(message.from, near.local_addr().ok());
            assert_eq!(message.datagrams().count(), 1);
        }
    }

    #[test]
    fn a_batch_takes_what_fits_and_leaves_the_rest() {
        let (near, far) = pair();
        let mut batch = Batch::new(LARGEST);
        for number in 0..BATCH as u8 + 9 {
            near.send(&[number]).unwrap();
        }
        assert_eq!(batch.receive(&far, 10).unwrap(), 10);
        assert_eq!(batch.receive(&far, BATCH).unwrap(), BATCH - 10);
        let bytes = |batch: &Batch| -> Vec<u8> {
            let ranges = batch.received().iter().flat_map(Received::datagrams);
            ranges
                .flat_map(|range| batch.bytes()[range].to_vec())
                .collect()
        };
        assert_eq!(bytes(&batch), (0..BATCH as u8).collect::<Vec<_>>());
        batch.clear();
        assert_eq!(batch.receive(&far, BATCH).unwrap(), 9);
        assert_eq!(
            bytes(&batch),
            (BATCH as u8..BATCH as u8 + 9).collect::<Vec<_>>()
        );
    }

    #[test]
    fn messages_are_gathered_and_cut() {
        let (near, far) = pair();
        let pieces = [&b"one"[..], b"two", b"x"].map(IoSlice::new);
        let cut = Message {
            pieces: &pieces,
            to: None,
            from: None,
            segment: Some(3),
        };
        let whole = Message {
            pieces: &pieces[..2],
            to: Some(far.local_addr().unwrap()),
            from: Some(LocalIp {
                ip: [127, 0, 0, 1].into(),
                interface: 0,
            }),
            segment: None,
        };
        assert_eq!(send(&near, [cut, whole].into_iter()).unwrap(), 2);
        let mut buffer = [0; 99];
        for expected in [&b"one"[..], b"two", b"x", b"onetwo"] {
            let len = far.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], expected);
        }
    }
}
