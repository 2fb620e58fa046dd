//! What nft's tracing tells of a dropped packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::Command;

use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use rtnetlink::packet_core::{DefaultNla, Nla, NlasIterator};

/// Which way the dropped packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the stranger to the backend.
    Request,
    /// From the backend to the stranger.
    Reply,
}

/// A rule, or a chain's policy, that dropped the probe.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// What it dropped.
    pub direction: Direction,
    /// The nft family of its table: ip, ip6, inet.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// The rules that led to its chain.
    pub jumps: Vec<Place>,
}

/// A rule's place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle.
    pub handle: u64,
}

/// A traced packet, as far as it came.
#[derive(Debug)]
pub struct Packet {
    direction: Direction,
    jumps: Vec<Place>,
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

    /// A command that lets the traffic of the target's port pass.
    pub fn fix(&self, protocol: &str, port: u16) -> String {
        let which = match self.direction {
            Direction::Request => "dport",
            Direction::Reply => "sport",
        };
        let (family, table, chain) = (self.family, &self.table, &self.chain);
        let accept = format!("{protocol} {which} {port} accept");
        match self.handle {
            Some(handle) => {
                format!("nft insert rule {family} {table} {chain} position {handle} {accept}")
            }
            None => format!("nft add rule {family} {table} {chain} {accept}"),
        }
    }

    /// Whether the rule, or one that led to it, looks at the client's address: then it says nothing
    /// about other clients.
    pub fn by_address(&self) -> Option<ByAddress> {
        let own = self.handle.map(|handle| Place {
            table: self.table.clone(),
            chain: self.chain.clone(),
            handle,
        });
        let places = self.jumps.iter().chain(&own);
        let texts = places.filter_map(|place| self.text_of(place));
        texts
            .filter_map(|text| by_address(&text, self.direction))
            .next()
    }

    /// The dropping rule in words; `None` for a policy.
    fn text(&self) -> Option<String> {
        self.text_of(&Place {
            table: self.table.clone(),
            chain: self.chain.clone(),
            handle: self.handle?,
        })
    }

    /// Asks the `nft` program, which alone can put every rule into words.
    fn text_of(&self, place: &Place) -> Option<String> {
        let handle = format!("# handle {}", place.handle);
        let words = [
            "-a",
            "list",
            "chain",
            self.family,
            &place.table,
            &place.chain,
        ];
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

/// How a rule looks at the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByAddress {
    /// It drops the clients that it names, as bans and lists of bogus networks do.
    Named,
    /// It drops all but those that it names.
    Others,
}

/// By the words of the rule: `ip saddr 203.0.113.9`, `ip saddr @banned`, and of iptables the match
/// with an ipset, whose set nft does not tell.
fn by_address(rule: &str, direction: Direction) -> Option<ByAddress> {
    let field = match direction {
        Direction::Request => "saddr",
        Direction::Reply => "daddr",
    };
    let words: Vec<&str> = rule.split_whitespace().collect();
    let ipset =
        words.windows(3).any(|w| w == ["xt", "match", "\"set\""]) || words.contains(&"match-set");
    let at = words
        .windows(2)
        .position(|w| matches!(w[0], "ip" | "ip6") && w[1] == field);
    match at.map(|at| words.get(at + 2)) {
        Some(Some(&"!=")) => Some(ByAddress::Others),
        Some(_) => Some(ByAddress::Named),
        None => ipset.then_some(ByAddress::Named),
    }
}

/// Reads one trace message; `packets` remembers which packet went which way and by which jumps,
/// because only the first message of a chain shows the packet.
pub fn read(
    message: &NetfilterMessage,
    stranger: IpAddr,
    packets: &mut HashMap<u32, Packet>,
) -> Option<Dropped> {
    // linux/netfilter/nf_tables.h: enum nft_trace_attributes, enum nft_trace_types
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const HANDLE: u16 = 3;
    const KIND: u16 = 4;
    const VERDICT: u16 = 5;
    const ID: u16 = 6;
    const NETWORK_HEADER: u16 = 8;
    const POLICY: u16 = 16;
    const KIND_POLICY: u32 = 1;
    const KIND_RETURN: u32 = 2;
    // linux/netfilter/nf_tables.h: enum nft_verdicts
    const NFT_JUMP: i32 = -3;
    const NFT_GOTO: i32 = -4;
    let NetfilterMessageInner::NfTables(NfTablesMessage::Trace(attributes)) = &message.inner else {
        return None;
    };
    let id = number(attributes, ID)?;
    if let Some(header) = value(attributes, NETWORK_HEADER) {
        for direction in [Direction::Request, Direction::Reply] {
            let start = address_offset(stranger, direction);
            let address = octets(stranger);
            if header.get(start..start + address.len()) == Some(&address[..]) {
                packets.entry(id).or_insert(Packet {
                    direction,
                    jumps: Vec::new(),
                });
            }
        }
    }
    let packet = packets.get_mut(&id)?;
    let handle = value(attributes, HANDLE)
        .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    let (table, chain) = (text(attributes, TABLE)?, text(attributes, CHAIN)?);
    let kind = number(attributes, KIND)?;
    let verdict = match kind {
        KIND_POLICY => number(attributes, POLICY),
        _ => value(attributes, VERDICT).and_then(|nested| verdict_code(&nested)),
    };
    match (verdict? as i32, handle) {
        (libc::NF_DROP, _) => {}
        (NFT_JUMP | NFT_GOTO, Some(handle)) => {
            packet.jumps.push(Place {
                table,
                chain,
                handle,
            });
            return None;
        }
        _ => {
            if kind == KIND_RETURN {
                packet.jumps.pop();
            }
            return None;
        }
    }
    Some(Dropped {
        direction: packet.direction,
        family: family_name(message.header.family.into()),
        table,
        chain,
        handle,
        jumps: packet.jumps.clone(),
    })
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
        for (rule, direction, expected) in [
            ("ip saddr @banned drop", Request, Some(Named)),
            (
                "ip6 saddr { 2001:db8::1, 2001:db8::2 } reject",
                Request,
                Some(Named),
            ),
            (
                "tcp dport 22 ip saddr 203.0.113.9 counter packets 1 bytes 60 drop",
                Request,
                Some(Named),
            ),
            (
                "meta l4proto tcp xt match \"set\" counter packets 0 bytes 0 drop",
                Request,
                Some(Named),
            ),
            ("ip saddr != 10.0.0.0/8 drop", Request, Some(Others)),
            ("ip daddr @banned drop", Reply, Some(Named)),
            ("ip daddr 127.0.0.1 tcp dport 22 drop", Request, None),
            ("fib saddr . iif oif missing drop", Request, None),
            ("tcp dport 22 drop", Request, None),
            ("tcp dport 22 drop comment \"not saddr\"", Request, None),
        ] {
            assert_eq!(by_address(rule, direction), expected, "{rule}");
        }
    }
}
