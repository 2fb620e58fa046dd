//! nftables by netlink: the table of the socket match.

use std::io;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber,
    Meta, MetaKey, NfTablesMessage, Operator, Register, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// NFNL_SUBSYS_NFTABLES, whom a batch is for.
const SUBSYSTEM: u16 = 10;

/// `priority mangle`, as the kernel counts.
const MANGLE: i32 = -150;

/// The name of the nft table that goes with a routing table.
pub fn table_name(table: u32) -> String {
    format!("realpeer_{table}")
}

/// Puts in the table that marks what arrives for transparent sockets with `mark`.
/// One that is there already is left alone.
pub fn add_socket_match(table: u32, mark: u32) -> io::Result<()> {
    let name = table_name(table);
    let batch = vec![
        (new_table(&name), NLM_F_CREATE | NLM_F_EXCL),
        (
            new_chain(&name, "prerouting", InetHookNumber::PreRouting, MANGLE),
            NLM_F_CREATE,
        ),
        (
            new_rule(&name, "prerouting", socket_match(mark)),
            NLM_F_CREATE,
        ),
    ];
    match commit(batch) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes the table away; none is fine. True if there was one.
pub fn remove_table(name: &str) -> io::Result<bool> {
    let attributes = vec![TableAttribute::Name(name.to_owned())];
    let delete = NfTablesMessage::DeleteTable(TableMessage { attributes });
    match commit(vec![(delete, 0)]) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// True if there is an inet table of this name. False where the kernel has no nftables.
pub fn has_table(name: &str) -> io::Result<bool> {
    let attributes = vec![TableAttribute::Name(name.to_owned())];
    match ask(NfTablesMessage::GetTable(TableMessage { attributes })) {
        Ok(_) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(false),
            // Without CAP_NET_ADMIN one may not even look.
            Some(libc::EPERM) => Ok(false),
            _ => Err(e),
        },
    }
}

/// A new table of family inet.
pub fn new_table(name: &str) -> NfTablesMessage {
    NfTablesMessage::NewTable(TableMessage {
        attributes: vec![TableAttribute::Name(name.to_owned())],
    })
}

/// A new base chain of type filter.
pub fn new_chain(table: &str, chain: &str, hook: InetHookNumber, priority: i32) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(chain.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(hook.into()),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Type("filter".into()),
        ],
    })
}

/// A new rule at the end of a chain.
pub fn new_rule(table: &str, chain: &str, expressions: Vec<Expressions>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    })
}

/// `socket transparent 1 meta mark set MARK accept`. The socket expression itself looks at TCP,
/// UDP, and the ICMP errors about them only.
fn socket_match(mark: u32) -> Vec<Expressions> {
    const NFTA_SOCKET_KEY: u16 = 1;
    const NFTA_SOCKET_DREG: u16 = 2;
    const NFT_SOCKET_TRANSPARENT: u32 = 0;
    const NFT_REG_1: u32 = 1;
    const NF_ACCEPT: u32 = 1;
    let be = |kind, n: u32| DefaultNla::new(kind, n.to_be_bytes().to_vec());
    let verdict = vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))];
    vec![
        Expressions::Other {
            expression_type: "socket".into(),
            attributes: vec![
                be(NFTA_SOCKET_KEY, NFT_SOCKET_TRANSPARENT),
                be(NFTA_SOCKET_DREG, NFT_REG_1),
            ],
        },
        equals(&[1]),
        load(
            Register::Reg1,
            DataAttribute::Value(mark.to_ne_bytes().to_vec()),
        ),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Mark),
            Meta::SourceRegister(Register::Reg1),
        ]),
        load(Register::Verdict, DataAttribute::Verdict(verdict)),
    ]
}

/// Goes on only if register 1 holds `value`.
pub fn equals(value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

/// Puts a constant into a register.
pub fn load(register: Register, data: DataAttribute) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(data),
    ])
}

/// Carries out all messages in one transaction, or none.
pub fn commit(messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
    commit_on(&open()?, messages)
}

/// As `commit`, on a socket that will own the tables with `flags owner`: they go when it closes.
pub fn commit_on(socket: &Socket, messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
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
        packet.extend(encode(message, flags, resource, sequence as u32));
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

/// Asks for one thing.
fn ask(request: NfTablesMessage) -> io::Result<()> {
    let socket = open()?;
    socket.send(&encode(request.into(), NLM_F_ACK, 0, 0), 0)?;
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

fn encode(inner: NetfilterMessageInner, flags: u16, resource: u16, sequence: u32) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, resource);
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
