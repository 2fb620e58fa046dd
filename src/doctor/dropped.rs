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
    /// The rules that led to its chain.
    pub jumps: Vec<Jump>,
}

/// A rule that sends packets to another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The chain that it is in.
    pub chain: String,
    /// Its handle.
    pub handle: u64,
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

    /// How the rule, or one that led to it, looks at the client's address; `None` if none does. If
    /// one does, it says nothing about other clients.
    pub fn by_address(&self) -> Option<ByAddress> {
        let jumps = self
            .jumps
            .iter()
            .filter_map(|jump| self.text_of(&jump.chain, jump.handle));
        let mut rules = jumps.chain(self.text());
        rules.find_map(|rule| by_address(&rule, self.direction))
    }

    fn text(&self) -> Option<String> {
        self.text_of(&self.chain, self.handle?)
    }

    /// Asks the `nft` program, which alone can put every rule into words.
    fn text_of(&self, chain: &str, handle: u64) -> Option<String> {
        let handle = format!("# handle {handle}");
        let listing = nft(&["-a", "list", "chain", self.family, &self.table, chain])?;
        let line = listing
            .lines()
            .find_map(|line| line.trim_end().strip_suffix(&handle))?;
        Some(line.trim().to_owned())
    }
}

/// What the `nft` program prints; `None` if it is not here.
pub fn nft(words: &[&str]) -> Option<String> {
    let output = ["nft", "/usr/sbin/nft"]
        .iter()
        .find_map(|nft| Command::new(nft).args(words).output().ok())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The doctor's own chain in which a packet that this host sends is seen first.
pub const FIRST_CHAIN: &str = "output";

/// The one that it passes last.
pub const LAST_CHAIN: &str = "input";
/// How a rule looks at the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByAddress {
    /// It drops the clients that it names, as bans and lists of bogus networks do.
    Named,
    /// It drops all but those that it names.
    Others,
}

/// By the words of the rule: `ip saddr 203.0.113.9`, `ip saddr @banned`, and those matches of
/// iptables whose addresses nft does not tell (it quotes their names since 1.0.7).
pub fn by_address(rule: &str, direction: Direction) -> Option<ByAddress> {
    const LISTS: [&str; 4] = ["set", "recent", "hashlimit", "geoip"];
    let field = match direction {
        Direction::Request => "saddr",
        Direction::Reply => "daddr",
    };
    let words: Vec<&str> = rule.split_whitespace().collect();
    let list = words
        .windows(3)
        .any(|w| w[..2] == ["xt", "match"] && LISTS.contains(&w[2].trim_matches('"')));
    let at = words
        .windows(2)
        .position(|w| matches!(w[0], "ip" | "ip6") && w[1] == field);
    match at.map(|at| words.get(at + 2)) {
        // A guard against forged addresses on lo, which are what realpeer sends: no list of clients.
        Some(Some(&"!=")) if at.is_some_and(|at| is_loopback(words.get(at + 3))) => None,
        Some(Some(&"!=")) => Some(ByAddress::Others),
        Some(_) => Some(ByAddress::Named),
        None => (list || words.contains(&"match-set")).then_some(ByAddress::Named),
    }
}

fn is_loopback(word: Option<&&str>) -> bool {
    let network = word.and_then(|word| crate::networks::parse(word));
    network.is_some_and(|network| network.addr().is_loopback())
}

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
    jumps: Vec<Jump>,
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
        // linux/netfilter/nf_tables.h: enum nft_verdicts
        const JUMP: i32 = -3;
        const GOTO: i32 = -4;
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
        // Back in the chain: the end of the one that was jumped to is not told.
        if let Some(at) = packet.jumps.iter().position(|jump| jump.chain == chain) {
            packet.jumps.truncate(at);
        }
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
            jumps: packet.jumps.clone(),
        };
        if let (JUMP | GOTO, Some(handle)) = (verdict, handle) {
            packet.jumps.push(Jump {
                chain: place.chain.clone(),
                handle,
            });
        }
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
                    jumps: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_look_at_the_clients_address_are_known() {
        use {ByAddress::*, Direction::*};
        let counter = "counter packets 1 bytes 60";
        for (rule, direction, expected) in [
            ("ip saddr @banned drop", Request, Some(Named)),
            ("ip6 saddr { 2001:db8::1 } reject", Request, Some(Named)),
            (
                "tcp dport 22 ip saddr 203.0.113.9 drop",
                Request,
                Some(Named),
            ),
            ("tcp dport 22 xt match \"set\" drop", Request, Some(Named)),
            ("tcp dport 22  xt match set drop", Request, Some(Named)),
            ("tcp dport 22 xt match recent drop", Request, Some(Named)),
            ("tcp dport 22 xt match \"comment\" drop", Request, None),
            ("ip saddr != 10.0.0.0/8 drop", Request, Some(Others)),
            ("iif lo ip saddr != 127.0.0.0/8 drop", Request, None),
            ("ip daddr @banned drop", Reply, Some(Named)),
            ("ip daddr 127.0.0.1 tcp dport 22 drop", Request, None),
            ("fib saddr . iif oif missing drop", Request, None),
            ("tcp dport 22 drop comment \"not saddr\"", Request, None),
        ] {
            assert_eq!(by_address(rule, direction), expected, "{rule}");
            let counted = rule.replace("drop", &format!("{counter} drop"));
            assert_eq!(by_address(&counted, direction), expected, "{counted}");
        }
    }
}
