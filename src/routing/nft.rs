//! nftables by netlink: the table of the socket match, and the guard of other programs' marks.

use std::io;

use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
    InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};

use super::nfnetlink::{ask, commit};

/// `priority mangle`, as the kernel counts.
const MANGLE: i32 = -150;

/// Behind all filters, which may look at the mark.
const LAST: i32 = 400;

/// The table of the guard, one for all instances.
pub const GUARD: &str = "realpeer_marks";

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
    tolerate_existing(commit(batch))
}

/// Puts in the guard: SYNs that arrive by a wire lose their mark. One that is there is left alone.
pub fn add_guard() -> io::Result<()> {
    let batch = vec![
        (new_table(GUARD), NLM_F_CREATE | NLM_F_EXCL),
        (
            new_chain(GUARD, "input", InetHookNumber::LocalIn, LAST),
            NLM_F_CREATE,
        ),
        (new_rule(GUARD, "input", take_mark_off()), NLM_F_CREATE),
    ];
    tolerate_existing(commit(batch))
}

fn tolerate_existing(result: io::Result<()>) -> io::Result<()> {
    match result {
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

/// `iif != lo tcp flags & (syn|ack) == syn meta mark set 0`.
fn take_mark_off() -> Vec<Expressions> {
    const LOOPBACK: u32 = 1;
    const TRANSPORT_HEADER: u32 = 2;
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let load_meta = |key| {
        Expressions::Meta(vec![
            Meta::Key(key),
            Meta::DestinationRegister(Register::Reg1),
        ])
    };
    vec![
        load_meta(MetaKey::Iif),
        compare(Operator::NotEqual, &LOOPBACK.to_ne_bytes()),
        load_meta(MetaKey::L4Proto),
        equals(&[libc::IPPROTO_TCP as u8]),
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(TRANSPORT_HEADER),
            Payload::Offset(FLAGS),
            Payload::Len(1),
        ]),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(1),
            Bitwise::Mask(DataAttribute::Value(vec![SYN | ACK])),
            Bitwise::Xor(DataAttribute::Value(vec![0])),
        ]),
        equals(&[SYN]),
        load(Register::Reg1, DataAttribute::Value(vec![0; 4])),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Mark),
            Meta::SourceRegister(Register::Reg1),
        ]),
    ]
}

/// Goes on only if register 1 holds `value`.
pub fn equals(value: &[u8]) -> Expressions {
    compare(Operator::Equal, value)
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
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
