//! Addresses in nft sets with time-outs, by netlink: `SET` holds IPv4 addresses and `SET6` IPv6
//! ones. The sets, and the rules that drop whom they hold, are the administrator's.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};
use rtnetlink::packet_core::NLM_F_CREATE;

use super::backend::Banned;
use super::book::End;
use crate::routing::nfnetlink::{commit_in, dump, get};

/// A pair of sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftSet {
    family: Family,
    table: String,
    set: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Inet,
    Ip,
    Ip6,
}

/// An element of a set.
struct Held {
    target: IpAddr,
    end: End,
}

impl fmt::Display for NftSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        };
        write!(f, "{family}/{}/{}", self.table, self.set)
    }
}

impl NftSet {
    /// Sets of a table. Fails for families that know no addresses of clients.
    pub fn new(family: &str, table: &str, set: &str) -> Result<NftSet, String> {
        let family = match family {
            "inet" => Family::Inet,
            "ip" => Family::Ip,
            "ip6" => Family::Ip6,
            _ => return Err("the family must be inet, ip or ip6".into()),
        };
        Ok(NftSet {
            family,
            table: table.to_owned(),
            set: set.to_owned(),
        })
    }

    /// When an address leaves its set by itself; `None` if it is not in it.
    pub fn held(&self, target: IpAddr) -> Result<Option<End>> {
        let request = NfTablesMessage::GetSetElement(self.message(target, vec![key(target)]));
        match get(self.netfilter_family(), request) {
            Ok(answer) => Ok(held_in(vec![answer]).first().map(|held| held.end)),
            // The same errno tells of a missing set.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self
                .dump(&self.name(target))
                .map(|_| None)
                .map_err(|e| self.explain(target, e)),
            Err(e) => Err(self.explain(target, e)),
        }
    }

    /// Keeps an address in its set until `wanted`, or takes it out; it is in there until `held`. An
    /// element that ends when it should, as far as clocks agree, is left alone.
    pub fn hold(&self, target: IpAddr, held: Option<End>, wanted: Option<End>) -> Result<()> {
        let delete = (self.delete(target), 0);
        let changed = match (held, wanted) {
            (None, None) => Ok(()),
            (None, Some(end)) => self.commit(vec![self.add(target, end)]),
            (Some(_), None) => self.commit(vec![delete]).or_else(gone),
            (Some(held), Some(end)) if held >= end && !held.is_beyond(end) => Ok(()),
            (Some(_), Some(end)) => match self.commit(vec![delete, self.add(target, end)]) {
                // It has just ended.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    self.commit(vec![self.add(target, end)])
                }
                other => other,
            },
        };
        changed.map_err(|e| self.explain(target, e))
    }

    fn add(&self, target: IpAddr, end: End) -> (NfTablesMessage, u16) {
        // Zero is for ever, whatever the set's own time-out is; a ban that is over lasts a second.
        let seconds = end.left().map_or(0, |left| seconds(left).max(1));
        let element = vec![
            key(target),
            SetElementAttribute::Timeout(seconds.saturating_mul(1000)),
        ];
        let element = self.message(target, element);
        (NfTablesMessage::NewSetElement(element), NLM_F_CREATE)
    }

    /// Who is in the sets. One of them may be missing.
    pub fn list(&self) -> Result<Vec<Banned>> {
        let names = [self.set.clone(), format!("{}6", self.set)];
        let held = match names.map(|name| self.dump(&name)) {
            [Err(error), Err(_)] => {
                return Err(error)
                    .with_context(|| format!("cannot list the sets {self} and {self}6"));
            }
            lists => lists.into_iter().flatten().flatten(),
        };
        Ok(held
            .map(|Held { target, end }| Banned {
                target,
                seconds: end.left().map(seconds),
            })
            .collect())
    }

    fn dump(&self, set: &str) -> io::Result<Vec<Held>> {
        let attributes = vec![
            SetElementList::Table(self.table.clone()),
            SetElementList::Set(set.to_owned()),
        ];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        Ok(held_in(dump(self.netfilter_family(), request)?))
    }

    fn delete(&self, target: IpAddr) -> NfTablesMessage {
        NfTablesMessage::DeleteSetElement(self.message(target, vec![key(target)]))
    }

    fn message(&self, target: IpAddr, element: Vec<SetElementAttribute>) -> SetElementMessage {
        SetElementMessage {
            attributes: vec![
                SetElementList::Table(self.table.clone()),
                SetElementList::Set(self.name(target)),
                SetElementList::Elements(vec![ListAttribute::Element(element)]),
            ],
        }
    }

    fn name(&self, target: IpAddr) -> String {
        match target {
            IpAddr::V4(_) => self.set.clone(),
            IpAddr::V6(_) => format!("{}6", self.set),
        }
    }

    fn commit(&self, messages: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
        commit_in(self.netfilter_family(), messages)
    }

    fn netfilter_family(&self) -> NetfilterProtoFamily {
        match self.family {
            Family::Inet => NetfilterProtoFamily::Inet,
            Family::Ip => NetfilterProtoFamily::IPv4,
            Family::Ip6 => NetfilterProtoFamily::IPv6,
        }
    }

    fn explain(&self, target: IpAddr, error: io::Error) -> anyhow::Error {
        let kind = match target {
            IpAddr::V4(_) => "ipv4_addr",
            IpAddr::V6(_) => "ipv6_addr",
        };
        let NftSet { table, .. } = self;
        let set = self.name(target);
        let why = match error.raw_os_error() {
            Some(libc::ENOENT) => "it is not there",
            Some(libc::EINVAL) => "it is of another type, or has no time-outs",
            Some(libc::EPERM) => "CAP_NET_ADMIN is missing",
            _ => "the kernel refuses",
        };
        anyhow!(error).context(format!(
            "cannot change the set {set} of table {table}: {why}; it must be {{ type {kind}; flags timeout; }}"
        ))
    }
}

fn key(target: IpAddr) -> SetElementAttribute {
    let bytes = match target {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    SetElementAttribute::Key(DataAttribute::Value(bytes))
}

/// Whom these answers of the kernel hold.
fn held_in(answers: Vec<NfTablesMessage>) -> Vec<Held> {
    let lists = answers.into_iter().filter_map(|answer| match answer {
        NfTablesMessage::NewSetElement(message) => Some(message.attributes),
        _ => None,
    });
    let elements = lists.flatten().filter_map(|attribute| match attribute {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    let held = elements.flatten().filter_map(|element| match element {
        ListAttribute::Element(attributes) => held(&attributes),
        _ => None,
    });
    held.collect()
}

/// Whole seconds, the last one counted in full.
fn seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000) as u64
}

/// It was removed in the meantime.
fn gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

fn held(element: &[SetElementAttribute]) -> Option<Held> {
    let target = element.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(bytes)) => address(bytes),
        _ => None,
    })?;
    let end = element.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Expiration(left) => Some(End::after(Duration::from_millis(*left))),
        _ => None,
    });
    let end = end.unwrap_or(End::Never);
    Some(Held { target, end })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
