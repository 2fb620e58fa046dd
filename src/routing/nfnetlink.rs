//! How requests reach the kernel's nftables, and what comes back.

use std::io;

use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// NFNL_SUBSYS_NFTABLES, whom a batch is for.
const SUBSYSTEM: u16 = 10;

/// Carries out all messages in one transaction, or none.
pub fn commit(messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
    commit_on(&open()?, messages)
}

/// As `commit`, for tables of another family than inet.
pub fn commit_in(
    family: NetfilterProtoFamily,
    messages: Vec<(NfTablesMessage, u16)>,
) -> io::Result<()> {
    send_batch(&open()?, family, messages)
}

/// As `commit`, on a socket that will own the tables with `flags owner`: they go when it closes.
pub fn commit_on(socket: &Socket, messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
    send_batch(socket, NetfilterProtoFamily::Inet, messages)
}

fn send_batch(
    socket: &Socket,
    family: NetfilterProtoFamily,
    messages: Vec<(NfTablesMessage, u16)>,
) -> io::Result<()> {
    let mut packet = Vec::new();
    let wanted = messages.len();
    let mark = |message| (NetfilterMessageInner::from(message), 0, SUBSYSTEM);
    let work = messages
        .into_iter()
        .map(|(message, flags)| (message.into(), flags | NLM_F_ACK, 0));
    let all = std::iter::once(mark(ControlMessage::BatchBegin))
        .chain(work)
        .chain(std::iter::once(mark(ControlMessage::BatchEnd)));
    for (sequence, (message, flags, resource)) in all.enumerate() {
        let header = NetfilterHeader::new(family, 0, resource);
        packet.extend(encode(header, message, flags, sequence as u32));
    }
    socket.send(&packet, 0)?;
    let mut acknowledged = 0;
    while acknowledged < wanted {
        for message in receive(socket)? {
            if let NetlinkPayload::Error(error) = message.payload {
                if error.code.is_some() {
                    return Err(error.to_io());
                }
                acknowledged += 1;
            }
        }
    }
    Ok(())
}

/// Asks for one thing; fails with ENOENT when there is none.
pub fn ask(request: NfTablesMessage) -> io::Result<()> {
    let socket = open()?;
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    socket.send(&encode(header, request.into(), NLM_F_ACK, 0), 0)?;
    loop {
        for message in receive(&socket)? {
            if let NetlinkPayload::Error(error) = message.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(error.to_io()),
                };
            }
        }
    }
}

/// Asks for one thing of a table of this family; fails with ENOENT when there is none.
pub fn get(family: NetfilterProtoFamily, request: NfTablesMessage) -> io::Result<NfTablesMessage> {
    let socket = open()?;
    let header = NetfilterHeader::new(family, 0, 0);
    socket.send(&encode(header, request.into(), 0, 0), 0)?;
    loop {
        for message in receive(&socket)? {
            match message.payload {
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(message),
                    ..
                }) => return Ok(message),
                _ => {}
            }
        }
    }
}

/// Asks for a list.
pub fn dump(
    family: NetfilterProtoFamily,
    request: NfTablesMessage,
) -> io::Result<Vec<NfTablesMessage>> {
    let socket = open()?;
    let header = NetfilterHeader::new(family, 0, 0);
    socket.send(&encode(header, request.into(), NLM_F_DUMP, 0), 0)?;
    let mut found = Vec::new();
    loop {
        for message in receive(&socket)? {
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(message),
                    ..
                }) => found.push(message),
                _ => {}
            }
        }
    }
}

/// A socket that hears of each rule that a traced packet passes.
pub fn listen_to_traces() -> io::Result<Socket> {
    const NFNLGRP_NFTRACE: u32 = 9;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.add_membership(NFNLGRP_NFTRACE)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The messages that wait on a non-blocking socket; `None` if there are none.
pub fn waiting(socket: &Socket) -> io::Result<Option<Vec<NetlinkMessage<NetfilterMessage>>>> {
    match receive(socket) {
        Ok(messages) => Ok(Some(messages)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// A connection to the kernel's nftables.
pub fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn encode(
    header: NetfilterHeader,
    inner: NetfilterMessageInner,
    flags: u16,
    sequence: u32,
) -> Vec<u8> {
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, inner));
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// One datagram's messages. The kernel answers within the request, so this never waits.
fn receive(socket: &Socket) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(16)..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}
