//! The kernel's policy routing, read and changed by netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use futures_util::stream::Stream;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion};

use super::plan::{Family, Question, Route, Rule, Selector};

/// The number that tells our rules and routes from everybody else's (`ip rule` shows "proto 84").
/// The kernel only stores it; rtnetlink.h gives numbers up to 192 to routing daemons, not this one.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(84);

/// The interface index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// A netlink connection to the kernel's routing. Needs a tokio runtime.
#[derive(Clone)]
pub struct Kernel(Handle);

/// Where the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// To a process of this host.
    pub local: bool,
    /// The routing table that said so.
    pub table: u32,
}

impl Kernel {
    /// Fails where netlink is forbidden (`RestrictAddressFamilies=` without AF_NETLINK).
    pub fn connect() -> Result<Kernel> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .context("cannot open a netlink socket (is AF_NETLINK allowed?)")?;
        tokio::spawn(connection);
        Ok(Kernel(handle))
    }

    /// Asks for the way a packet would take; `None` when there is none.
    pub async fn ask(&self, question: &Question) -> io::Result<Option<Answer>> {
        let answers = self.0.route().get(question.message()).execute();
        match collect(answers).await {
            Ok(routes) => Ok(routes.first().map(|route| Answer {
                local: route.header.kind == RouteType::Local,
                table: route_table(route),
            })),
            Err(e) if is_no_route(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All policy rules of one family. Empty where the kernel has no such family.
    pub async fn rules(&self, family: Family) -> io::Result<Vec<RuleMessage>> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        or_empty(collect(self.0.rule().get(version).execute()).await)
    }

    /// The routes of one family in one table.
    pub async fn routes(&self, family: Family, table: u32) -> io::Result<Vec<RouteMessage>> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family.number();
        filter.attributes.push(RouteAttribute::Table(table));
        let mut routes = or_empty(collect(self.0.route().get(filter).execute()).await)?;
        // Without strict checking the kernel ignores the filter and lists every table.
        routes.retain(|route| route_table(route) == table);
        Ok(routes)
    }

    /// Adds a rule in front of all others; one that is there already is left alone.
    pub async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        let mut request = self.0.rule().add();
        *request.message_mut() = rule.message();
        tolerate(request.execute().await, &[libc::EEXIST])
    }

    /// Adds a route; one that is there already is left alone.
    pub async fn add_route(&self, route: &Route) -> io::Result<()> {
        tolerate(
            self.0.route().add(route.message()).execute().await,
            &[libc::EEXIST],
        )
    }

    /// Takes away the rules and routes that carry our number in `table`. True if there were any.
    pub async fn clear(&self, table: u32) -> io::Result<bool> {
        let mut found = false;
        for family in Family::BOTH {
            for rule in self.rules(family).await? {
                if is_ours(&rule) && rule_table(&rule) == table {
                    found = true;
                    let gone = [libc::ENOENT];
                    tolerate(self.0.rule().del(rule).execute().await, &gone)?;
                }
            }
            for route in self.routes(family, table).await? {
                if route.header.protocol == PROTOCOL {
                    found = true;
                    let gone = [libc::ESRCH];
                    tolerate(self.0.route().del(route).execute().await, &gone)?;
                }
            }
        }
        Ok(found)
    }
}

/// True if the rule carries our protocol number.
pub fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

/// The table a rule leads to.
pub fn rule_table(rule: &RuleMessage) -> u32 {
    let wide = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(rule.header.table.into())
}

/// The table a route stands in.
pub fn route_table(route: &RouteMessage) -> u32 {
    let wide = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(route.header.table.into())
}

impl Family {
    fn number(self) -> AddressFamily {
        match self {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        }
    }
}

impl Question {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = Family::of(self.from).number();
        let bits = Family::of(self.from).bits();
        header.source_prefix_length = bits;
        header.destination_prefix_length = bits;
        // The answer then names the table that was used (RTM_F_LOOKUP_TABLE).
        header.flags = RouteFlags::LookupTable;
        message.attributes = vec![
            RouteAttribute::Source(address(self.from)),
            RouteAttribute::Destination(address(self.to)),
        ];
        message
    }
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family.number();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        match self.selector {
            Selector::FromLoopback => {
                let (from, bits) = match self.family {
                    Family::V4 => (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                    Family::V6 => (Ipv6Addr::LOCALHOST.into(), 128),
                };
                message.header.src_len = bits;
                message.attributes.push(RuleAttribute::Source(from));
                message.attributes.push(RuleAttribute::Iifname("lo".into()));
            }
        }
        message
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = self.family.number();
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.header.protocol = PROTOCOL;
        message.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(LOOPBACK),
        ];
        message
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

async fn collect<T>(answers: impl Stream<Item = Result<T, Error>>) -> io::Result<Vec<T>> {
    answers.try_collect().await.map_err(plain)
}

fn tolerate(result: Result<(), Error>, errnos: &[i32]) -> io::Result<()> {
    match result.map_err(plain) {
        Err(e) if e.raw_os_error().is_some_and(|n| errnos.contains(&n)) => Ok(()),
        other => other,
    }
}

/// A kernel without IPv6 answers EOPNOTSUPP or EAFNOSUPPORT to questions about it.
fn or_empty<T>(result: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match result {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
            ) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Unreachable, prohibited and blackholed destinations, and a source that is not ours.
fn is_no_route(error: &io::Error) -> bool {
    let no_way = [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EACCES,
        libc::EINVAL,
        libc::EAFNOSUPPORT,
        libc::EOPNOTSUPP,
    ];
    error.raw_os_error().is_some_and(|n| no_way.contains(&n))
}

fn plain(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
