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

/// Reads one trace message; `directions` remembers which packet went which way, because only the
/// first message of a chain shows the packet.
pub fn read(
    message: &NetfilterMessage,
    stranger: IpAddr,
    directions: &mut HashMap<u32, Direction>,
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
    let NetfilterMessageInner::NfTables(NfTablesMessage::Trace(attributes)) = &message.inner else {
        return None;
    };
    let id = number(attributes, ID)?;
    if let Some(header) = value(attributes, NETWORK_HEADER) {
        for direction in [Direction::Request, Direction::Reply] {
            let start = address_offset(stranger, direction);
            let address = octets(stranger);
            if header.get(start..start + address.len()) == Some(&address[..]) {
                directions.insert(id, direction);
            }
        }
    }
    let by_policy = number(attributes, KIND)? == KIND_POLICY;
    let verdict = match by_policy {
        true => number(attributes, POLICY),
        false => value(attributes, VERDICT).and_then(|nested| verdict_code(&nested)),
    };
    if verdict? as i32 != libc::NF_DROP {
        return None;
    }
    Some(Dropped {
        direction: *directions.get(&id)?,
        family: family_name(message.header.family.into()),
        table: text(attributes, TABLE)?,
        chain: text(attributes, CHAIN)?,
        handle: value(attributes, HANDLE)
            .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?))),
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
