//! What nft's tracing tells of a dropped packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::Command;

use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use rtnetlink::packet_core::{DefaultNla, Nla, NlasIterator};

/// Which way the dropped packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the stranger to the backend.
    Request,
    /// From the backend to the stranger.
    Reply,
}

/// A rule, or a chain's policy, that dropped the probe or changed its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// What it dropped.
    pub direction: Direction,
    /// Where the packet was.
    pub spot: Spot,
    /// The nft family of its table: ip, ip6, inet.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// The rule that ended the chain by `return` and so left the packet to the policy.
    pub returned: Option<u64>,
}

/// Where a packet is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The chain at the hook.
    pub base: String,
    /// It is arriving, not leaving.
    pub arriving: bool,
    /// By this interface.
    pub interface: u32,
}

impl Dropped {
    /// The rule as `nft` prints it.
    pub fn describe(&self) -> String {
        let place = format!("table {} {}, chain {}", self.family, self.table, self.chain);
        match (self.handle, self.text()) {
            (None, _) => format!("the policy of {place}"),
            (Some(_), Some(text)) => format!("\"{text}\" in {place}"),
            (Some(handle), None) => format!("the rule with handle {handle} in {place}"),
        }
    }

    /// What it is in the way of.
    pub fn what(&self) -> &'static str {
        match self.direction {
            Direction::Request => "what clients send to",
            Direction::Reply => "the replies of",
        }
    }

    /// Asks the `nft` program, which alone can put every rule into words.
    fn text(&self) -> Option<String> {
        let handle = format!("# handle {}", self.handle?);
        let words = ["-a", "list", "chain", self.family, &self.table, &self.chain];
        let listing = ["nft", "/usr/sbin/nft"]
            .iter()
            .find_map(|nft| Command::new(nft).args(words).output().ok())?;
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        let line = listing
            .lines()
            .find_map(|line| line.trim_end().strip_suffix(&handle))?;
        Some(line.trim().to_owned())
    }
}

/// The doctor's own chain in which a packet that this host sends is seen first.
pub const FIRST_CHAIN: &str = "output";

/// The one that it passes last.
pub const LAST_CHAIN: &str = "input";

/// What the traces of a probe tell.
#[derive(Debug)]
pub struct Journey {
    stranger: IpAddr,
    /// Rules of this table are the doctor's own.
    own_table: String,
    packets: HashMap<u32, Packet>,
    marks: HashMap<Direction, u32>,
    /// Rules after which a packet's mark was another.
    pub markers: Vec<Dropped>,
    /// A mark that something else than nft set.
    pub foreign_mark: Option<u32>,
    /// The directions whose packet passed all rules.
    arrived: Vec<Direction>,
}

/// A packet in a chain at a hook.
#[derive(Debug)]
struct Packet {
    direction: Direction,
    spot: Spot,
    returned: Option<u64>,
}

impl Journey {
    /// One that has not begun.
    pub fn new(stranger: IpAddr, own_table: String) -> Journey {
        Journey {
            stranger,
            own_table,
            packets: HashMap::new(),
            marks: HashMap::new(),
            markers: Vec::new(),
            foreign_mark: None,
            arrived: Vec::new(),
        }
    }

    /// The mark that the reply had when it was last seen; `None` if there was no reply.
    pub fn reply_mark(&self) -> Option<u32> {
        self.marks.get(&Direction::Reply).copied()
    }

    /// True if packets of both directions passed all rules.
    pub fn is_complete(&self) -> bool {
        [Direction::Request, Direction::Reply]
            .iter()
            .all(|direction| self.arrived.contains(direction))
    }

    /// Reads one trace message, and returns what dropped the packet.
    pub fn read(&mut self, message: &NetfilterMessage) -> Option<Dropped> {
        // linux/netfilter/nf_tables.h: enum nft_trace_attributes, enum nft_trace_types
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        const HANDLE: u16 = 3;
        const KIND: u16 = 4;
        const VERDICT: u16 = 5;
        const ID: u16 = 6;
        const MARK: u16 = 14;
        const POLICY: u16 = 16;
        const KIND_POLICY: u32 = 1;
        const RETURN: i32 = -5;
        let NetfilterMessageInner::NfTables(NfTablesMessage::Trace(attributes)) = &message.inner
        else {
            return None;
        };
        let chain = text(attributes, CHAIN)?;
        let id = number(attributes, ID)?;
        self.meet(id, &chain, attributes);
        let packet = self.packets.get_mut(&id)?;
        let by_policy = number(attributes, KIND)? == KIND_POLICY;
        let handle = match by_policy {
            true => None,
            false => value(attributes, HANDLE)
                .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?))),
        };
        let verdict = match by_policy {
            true => number(attributes, POLICY),
            false => value(attributes, VERDICT).and_then(|nested| verdict_code(&nested)),
        };
        let verdict = verdict? as i32;
        if verdict == RETURN && packet.spot.base == chain {
            packet.returned = handle;
        }
        let place = Dropped {
            direction: packet.direction,
            spot: packet.spot.clone(),
            family: family_name(message.header.family.into()),
            table: text(attributes, TABLE)?,
            chain,
            handle,
            returned: packet.returned.filter(|_| by_policy),
        };
        self.note_mark(&place, number(attributes, MARK).unwrap_or(0));
        (verdict == libc::NF_DROP).then_some(place)
    }

    /// Only the first message of a chain at a hook shows the packet.
    fn meet(&mut self, id: u32, chain: &str, attributes: &[DefaultNla]) {
        const NETWORK_HEADER: u16 = 8;
        const IN: u16 = 10;
        const OUT: u16 = 12;
        const TRANSPORT_HEADER: u16 = 9;
        let Some(header) = value(attributes, NETWORK_HEADER) else {
            return;
        };
        let transport = value(attributes, TRANSPORT_HEADER).unwrap_or_default();
        if self.is_by_a_firewall(&header, &transport) {
            return;
        }
        let (into, out) = (number(attributes, IN), number(attributes, OUT));
        for direction in [Direction::Request, Direction::Reply] {
            let start = address_offset(self.stranger, direction);
            let address = octets(self.stranger);
            if header.get(start..start + address.len()) == Some(&address[..]) {
                let packet = Packet {
                    direction,
                    spot: Spot {
                        base: chain.to_owned(),
                        arriving: out.is_none(),
                        interface: out.or(into).unwrap_or(1),
                    },
                    returned: None,
                };
                self.packets.insert(id, packet);
            }
        }
    }

    /// An ICMP error or a reset is how a firewall rejects what really was on its way.
    fn is_by_a_firewall(&self, header: &[u8], transport: &[u8]) -> bool {
        const TCP_FLAGS: usize = 13;
        const RST: u8 = 4;
        let protocol_offset = if self.stranger.is_ipv4() { 9 } else { 6 };
        match header.get(protocol_offset).copied().map(i32::from) {
            Some(libc::IPPROTO_TCP) => transport.get(TCP_FLAGS).is_some_and(|f| f & RST != 0),
            Some(libc::IPPROTO_UDP) => false,
            _ => true,
        }
    }

    fn note_mark(&mut self, place: &Dropped, mark: u32) {
        let before = self.marks.insert(place.direction, mark);
        let changed = before.is_some_and(|before| before != mark);
        let own = place.table == self.own_table;
        // There the packet is new: the one before it may have ended with another mark.
        let first = own && place.spot.base == FIRST_CHAIN;
        if own && place.spot.base == LAST_CHAIN {
            self.arrived.push(place.direction);
        }
        match changed && !first {
            true if own => self.foreign_mark = Some(mark),
            true if place.handle.is_some() => self.markers.push(place.clone()),
            _ => {}
        }
    }
}

fn verdict_code(nested: &[u8]) -> Option<u32> {
    const CODE: u16 = 1;
    let code = NlasIterator::new(nested)
        .flatten()
        .find(|nla| nla.kind() == CODE)?;
    Some(u32::from_be_bytes(code.value().try_into().ok()?))
}

fn value(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let nla = attributes
        .iter()
        .find(|nla| nla.kind() & !(1 << 15) == kind)?;
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    Some(bytes)
}

fn number(attributes: &[DefaultNla], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(
        value(attributes, kind)?.try_into().ok()?,
    ))
}

fn text(attributes: &[DefaultNla], kind: u16) -> Option<String> {
    let bytes = value(attributes, kind)?;
    Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\0')
            .to_owned(),
    )
}

fn family_name(number: u8) -> &'static str {
    match i32::from(number) {
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_NETDEV => "netdev",
        libc::NFPROTO_BRIDGE => "bridge",
        _ => "inet",
    }
}

/// Where the stranger's address stands in the IP header.
pub fn address_offset(stranger: IpAddr, direction: Direction) -> usize {
    match (stranger, direction) {
        (IpAddr::V4(_), Direction::Request) => 12,
        (IpAddr::V4(_), Direction::Reply) => 16,
        (IpAddr::V6(_), Direction::Request) => 8,
        (IpAddr::V6(_), Direction::Reply) => 24,
    }
}

/// The bytes of an address, as headers hold them.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
