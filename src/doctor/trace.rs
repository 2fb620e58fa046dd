//! Names the firewall's rule that drops a probe, by nft's own tracing.
//!
//! A table of ours marks the probe's packets for tracing. It belongs to the socket that made it
//! (`flags owner`), so the kernel removes it however the doctor ends.

use std::io;
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    DataAttribute, Expressions, InetHookNumber, Meta, MetaKey, NfTablesMessage, Payload, Register,
    TableAttribute, TableFlags, TableMessage,
};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use rtnetlink::sys::Socket;

use super::dropped::{
    Direction, Dropped, FIRST_CHAIN, Journey, LAST_CHAIN, address_offset, octets,
};
use crate::routing::{nfnetlink, nft};

/// Before conntrack's defragmentation (-400) and everything else.
const FIRST: i32 = -450;
/// After everybody's filters (0 to 300).
const LAST: i32 = 450;

/// Runs `probe` and returns what dropped its packets, `None` if no rule of nft's did, and what else
/// was seen of them.
pub fn watch(stranger: IpAddr, probe: impl FnOnce()) -> io::Result<(Option<Dropped>, Journey)> {
    let name = format!("realpeer_doctor_{}", std::process::id());
    let _owner = mark_for_tracing(&name, stranger)?;
    let listener = nfnetlink::listen_to_traces()?;
    probe();
    let mut journey = Journey::new(stranger, name);
    while let Some(messages) = nfnetlink::waiting(&listener)? {
        for message in messages {
            let NetlinkPayload::InnerMessage(message) = message.payload else {
                continue;
            };
            if let Some(drop) = journey.read(&message) {
                return Ok((Some(drop), journey));
            }
        }
    }
    Ok((None, journey))
}

fn mark_for_tracing(name: &str, stranger: IpAddr) -> io::Result<Socket> {
    let socket = nfnetlink::open()?;
    let table = NfTablesMessage::NewTable(TableMessage {
        attributes: vec![
            TableAttribute::Name(name.to_owned()),
            TableAttribute::Flags(TableFlags::Owner),
        ],
    });
    let mut batch = vec![(table, NLM_F_CREATE | NLM_F_EXCL)];
    // The last two show the mark after everybody else has seen the packet.
    for (chain, hook, priority) in [
        ("prerouting", InetHookNumber::PreRouting, FIRST),
        (FIRST_CHAIN, InetHookNumber::LocalOut, FIRST),
        (LAST_CHAIN, InetHookNumber::LocalIn, LAST),
        ("postrouting", InetHookNumber::PostRouting, LAST),
    ] {
        batch.push((nft::new_chain(name, chain, hook, priority), NLM_F_CREATE));
        for direction in [Direction::Request, Direction::Reply] {
            let rule = nft::new_rule(name, chain, trace_rule(stranger, direction));
            batch.push((rule, NLM_F_CREATE | NLM_F_APPEND));
        }
    }
    nfnetlink::commit_on(&socket, batch)?;
    Ok(socket)
}

/// `meta nfproto ipv4 ip saddr STRANGER meta nftrace set 1`, or the same of daddr and IPv6.
fn trace_rule(stranger: IpAddr, direction: Direction) -> Vec<Expressions> {
    const NETWORK_HEADER: u32 = 1;
    let bytes = octets(stranger);
    let family = if stranger.is_ipv4() {
        libc::NFPROTO_IPV4
    } else {
        libc::NFPROTO_IPV6
    };
    vec![
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Nfproto),
            Meta::DestinationRegister(Register::Reg1),
        ]),
        nft::equals(&[family as u8]),
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(NETWORK_HEADER),
            Payload::Offset(address_offset(stranger, direction) as u32),
            Payload::Len(bytes.len() as u32),
        ]),
        nft::equals(&bytes),
        nft::load(Register::Reg1, DataAttribute::Value(vec![1])),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::NftraceBit),
            Meta::SourceRegister(Register::Reg1),
        ]),
    ]
}
