//! Datagrams on their way out of a socket. Runs of one receiver and one size leave as one message
//! that the kernel cuts (UDP_SEGMENT), the rest side by side in one call.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::lru::Key;
use crate::sys::datagram::{self, LocalIp, Message};

/// Datagrams that one message is cut into, at most: UDP_MAX_SEGMENTS of the older kernels.
const SEGMENTS: usize = 64;

/// Bytes of one message, at most: what an IPv4 datagram carries.
const MOST: usize = 65_507;

/// Pieces (a header, a payload) in one call.
const PIECES: usize = 2 * SEGMENTS;

/// A connected socket tells an ICMP error about an earlier datagram instead of sending this one.
/// The second try mostly sends; the third is for an error that came in between.
const TRIES: u32 = 3;

/// How long a full socket may take to have room again, in milliseconds. Datagrams that come
/// meanwhile wait in the sockets that they came to.
const PATIENCE: u16 = 5;

/// Where the datagrams of a flow go.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The receiver; a connected socket knows it.
    pub to: Option<std::net::SocketAddr>,
    /// The address of ours that they come from, if routing shall not choose.
    pub from: Option<LocalIp>,
    /// Stands before each of them.
    pub header: &'a [u8],
}

/// What goes wrong on the way out.
#[derive(Debug)]
pub enum Trouble<'a> {
    /// An error about what was sent before; nothing of this is lost by it.
    Earlier(&'a io::Error),
    /// The kernel does not cut messages into datagrams of this size here.
    Uncut(usize),
    /// So many datagrams could not be sent.
    Lost(usize, &'a io::Error),
}

/// Datagrams waiting to leave, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    parcels: Vec<Parcel>,
    datagrams: Vec<Range<usize>>,
}

/// Datagrams that leave as one message.
#[derive(Clone, Debug)]
struct Parcel {
    flow: Key,
    /// Where they stand among the outbox's datagrams.
    datagrams: Range<usize>,
    /// With their headers.
    bytes: usize,
    /// The size of each with its header; the last may be shorter.
    segment: usize,
}

impl Outbox {
    /// Adds a datagram, given as its place in the batch's bytes and the size of the header that it
    /// will get. Beyond the size `uncut` it travels alone.
    pub fn push(&mut self, flow: Key, datagram: Range<usize>, header: usize, uncut: usize) {
        let size = header + datagram.len();
        self.datagrams.push(datagram);
        let end = self.datagrams.len();
        match self.parcels.last_mut() {
            Some(last) if size < uncut && last.takes(flow, size) => {
                last.datagrams.end = end;
                last.bytes += size;
            }
            _ => self.parcels.push(Parcel {
                flow,
                datagrams: end - 1..end,
                bytes: size,
                segment: size,
            }),
        }
    }

    /// Sends everything. `bytes` are the batch's; `trouble` is told what goes wrong, by flow.
    pub fn flush<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &'a [u8],
        envelope: impl Fn(Key) -> Envelope<'a>,
        mut trouble: impl FnMut(Key, Trouble<'_>),
    ) {
        self.deliver(&self.parcels, socket, bytes, &envelope, &mut trouble);
        self.parcels.clear();
        self.datagrams.clear();
    }

    fn deliver<'a>(
        &self,
        mut parcels: &[Parcel],
        socket: BorrowedFd<'_>,
        bytes: &'a [u8],
        envelope: &impl Fn(Key) -> Envelope<'a>,
        trouble: &mut impl FnMut(Key, Trouble<'_>),
    ) {
        let mut tries = 0;
        while let Some(first) = parcels.first() {
            let error = match self.send(parcels, socket, bytes, envelope) {
                Ok(sent) => {
                    (parcels, tries) = (&parcels[sent..], 0);
                    continue;
                }
                Err(error) => error,
            };
            tries += 1;
            let full = error.kind() == io::ErrorKind::WouldBlock;
            if tries < TRIES {
                match full {
                    true => wait_for_room(socket),
                    false => trouble(first.flow, Trouble::Earlier(&error)),
                }
                continue;
            }
            if first.is_cut() && !full {
                trouble(first.flow, Trouble::Uncut(first.segment));
                self.deliver(&self.alone(first), socket, bytes, envelope, trouble);
            } else {
                let lost = first.datagrams.len();
                trouble(first.flow, Trouble::Lost(lost, &error));
            }
            (parcels, tries) = (&parcels[1..], 0);
        }
    }

    /// One call; returns how many parcels were sent.
    fn send<'a>(
        &self,
        parcels: &[Parcel],
        socket: BorrowedFd<'_>,
        bytes: &'a [u8],
        envelope: &impl Fn(Key) -> Envelope<'a>,
    ) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let mut ends = [0; datagram::BATCH];
        let (mut used, mut count) = (0, 0);
        for (parcel, end) in parcels.iter().zip(&mut ends) {
            if used + 2 * parcel.datagrams.len() > PIECES {
                break;
            }
            let header = envelope(parcel.flow).header;
            for datagram in &self.datagrams[parcel.datagrams.clone()] {
                if !header.is_empty() {
                    pieces[used] = IoSlice::new(header);
                    used += 1;
                }
                pieces[used] = IoSlice::new(&bytes[datagram.clone()]);
                used += 1;
            }
            *end = used;
            count += 1;
        }
        let mut start = 0;
        let messages = parcels[..count].iter().zip(ends).map(|(parcel, end)| {
            let Envelope { to, from, .. } = envelope(parcel.flow);
            let from_piece = std::mem::replace(&mut start, end);
            Message {
                pieces: &pieces[from_piece..end],
                to,
                from,
                segment: parcel.is_cut().then_some(parcel.segment as u16),
            }
        });
        datagram::send(socket, messages)
    }

    /// The datagrams of a parcel, each as a parcel of its own.
    fn alone(&self, parcel: &Parcel) -> Vec<Parcel> {
        let header = parcel.segment - self.datagrams[parcel.datagrams.start].len();
        let single = |at: usize| {
            let size = header + self.datagrams[at].len();
            Parcel {
                flow: parcel.flow,
                datagrams: at..at + 1,
                bytes: size,
                segment: size,
            }
        };
        parcel.datagrams.clone().map(single).collect()
    }
}

impl Parcel {
    fn is_cut(&self) -> bool {
        self.datagrams.len() > 1
    }

    /// Whether a datagram of this size can be cut off its end.
    fn takes(&self, flow: Key, size: usize) -> bool {
        let count = self.datagrams.len();
        self.flow == flow
            && (1..=self.segment).contains(&size)
            && self.bytes == count * self.segment
            && self.bytes + size <= MOST
            && count < SEGMENTS
    }
}

fn wait_for_room(socket: BorrowedFd<'_>) {
    let mut wanted = [PollFd::new(socket, PollFlags::POLLOUT)];
    // Whatever comes of it, the next try tells.
    let _ = poll(&mut wanted, PollTimeout::from(PATIENCE));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcels(sizes: &[(u64, usize)], header: usize, uncut: usize) -> Vec<(usize, usize)> {
        let mut outbox = Outbox::default();
        for &(flow, size) in sizes {
            outbox.push(Key::from_number(flow), 0..size, header, uncut);
        }
        let shape = |p: &Parcel| (p.datagrams.len(), p.bytes);
        outbox.parcels.iter().map(shape).collect()
    }

    #[test]
    fn runs_of_one_size_leave_together_and_a_shorter_one_ends_a_run() {
        let sizes = [
            (1, 50),
            (1, 50),
            (1, 20),
            (1, 20),
            (1, 30),
            (2, 30),
            (2, 30),
        ];
        let expected = [(3, 120), (1, 20), (1, 30), (2, 60)];
        assert_eq!(parcels(&sizes, 0, usize::MAX), expected);
    }

    #[test]
    fn empty_and_large_datagrams_travel_alone() {
        let sizes = [(1, 0), (1, 0), (1, 9), (1, 0)];
        let expected = [(1, 0), (1, 0), (1, 9), (1, 0)];
        assert_eq!(parcels(&sizes, 0, usize::MAX), expected);
        assert_eq!(parcels(&[(1, 0), (1, 0)], 38, usize::MAX), [(2, 76)]);
        assert_eq!(parcels(&[(1, 900), (1, 900)], 0, 900), [(1, 900); 2]);
    }

    #[test]
    fn a_message_has_64_datagrams_and_65507_bytes_at_most() {
        let many = vec![(1, 10); 65];
        assert_eq!(parcels(&many, 0, usize::MAX), [(64, 640), (1, 10)]);
        let large = [(1, 30_000); 3];
        assert_eq!(parcels(&large, 0, usize::MAX), [(2, 60_000), (1, 30_000)]);
    }
}
