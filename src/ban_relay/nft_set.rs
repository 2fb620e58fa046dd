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
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::backend::Banned;
use crate::routing::nfnetlink::{commit_in, dump};

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

    /// Adds an address; one that is there gets its full time again, and false is told.
    pub fn add(&self, target: IpAddr, time: Duration) -> Result<bool> {
        let element = || {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let timeout = SetElementAttribute::Timeout(milliseconds);
            NfTablesMessage::NewSetElement(self.message(target, vec![key(target), timeout]))
        };
        let new = (element(), NLM_F_CREATE | NLM_F_EXCL);
        match self.commit(vec![new]) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => self
                .commit(vec![(self.delete(target), 0), (element(), NLM_F_CREATE)])
                .map(|()| false)
                .map_err(|e| self.explain(target, e)),
            Err(e) => Err(self.explain(target, e)),
        }
    }

    /// Removes an address; false if it was not there.
    pub fn remove(&self, target: IpAddr) -> Result<bool> {
        match self.commit(vec![(self.delete(target), 0)]) {
            Ok(()) => Ok(true),
            // The same errno tells of a missing set.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self
                .dump(&self.name(target))
                .map(|_| false)
                .map_err(|e| self.explain(target, e)),
            Err(e) => Err(self.explain(target, e)),
        }
    }

    /// Who is in the sets. One of them may be missing.
    pub fn list(&self) -> Result<Vec<Banned>> {
        let names = [self.set.clone(), format!("{}6", self.set)];
        let mut found = names.map(|name| self.dump(&name));
        if found.iter().all(Result::is_err) {
            let [first, _] = found;
            return first.with_context(|| format!("cannot list the sets {self} and {self}6"));
        }
        let lists = found.iter_mut().filter_map(|list| list.as_mut().ok());
        Ok(lists.flat_map(std::mem::take).collect())
    }

    fn dump(&self, set: &str) -> io::Result<Vec<Banned>> {
        let attributes = vec![
            SetElementList::Table(self.table.clone()),
            SetElementList::Set(set.to_owned()),
        ];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let answers = dump(self.netfilter_family(), request)?;
        let lists = answers.into_iter().filter_map(|answer| match answer {
            NfTablesMessage::NewSetElement(message) => Some(message.attributes),
            _ => None,
        });
        let elements = lists.flatten().filter_map(|attribute| match attribute {
            SetElementList::Elements(elements) => Some(elements),
            _ => None,
        });
        let banned = elements.flatten().filter_map(|element| match element {
            ListAttribute::Element(attributes) => banned(&attributes),
            _ => None,
        });
        Ok(banned.collect())
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

fn banned(element: &[SetElementAttribute]) -> Option<Banned> {
    let target = element.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(bytes)) => address(bytes),
        _ => None,
    })?;
    let seconds = element.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Expiration(milliseconds) => Some(milliseconds.div_ceil(1000)),
        _ => None,
    });
    Some(Banned { target, seconds })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
