//! The kernel's policy routing, read and changed by netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use futures_util::stream::Stream;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{Error, Handle, IpVersion};

use super::plan::{Family, Place, Question, Route, Rule, Selector};

/// The number that tells our rules and routes from everybody else's (`ip rule` shows "proto 84").
/// The kernel only stores it; rtnetlink.h gives numbers up to 192 to routing daemons, not this one.
pub const PROTOCOL_NUMBER: u8 = 84;
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(PROTOCOL_NUMBER);

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
    /// The interface it leaves by.
    pub interface: Option<u32>,
    /// The next router on its way.
    pub gateway: Option<IpAddr>,
}

impl Kernel {
    /// Fails where netlink is forbidden (`RestrictAddressFamilies=` without AF_NETLINK).
    pub fn connect() -> Result<Kernel> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
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
                interface: route.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                }),
                gateway: route.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                    _ => None,
                }),
            })),
            Err(e) if is_no_route(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where `target` is, and by which interface it is reached if it is not on this host.
    pub async fn locate(&self, target: IpAddr) -> io::Result<(Place, Option<u32>)> {
        if target.is_loopback() {
            return Ok((Place::Loopback, None));
        }
        let question = Question {
            family: Family::of(target),
            from: None,
            to: target,
            mark: None,
            arrives_on: None,
            udp_source_port: None,
        };
        Ok(match self.ask(&question).await? {
            Some(answer) if answer.local => (Place::Own, None),
            Some(answer) => (Place::Behind, answer.interface),
            None => (Place::Behind, None),
        })
    }

    /// True if the interface is a bridge, such as containers are attached to.
    pub async fn is_bridge(&self, interface: u32) -> io::Result<bool> {
        let links = collect(self.0.link().get().match_index(interface).execute()).await?;
        let kinds = links
            .iter()
            .flat_map(|link| &link.attributes)
            .filter_map(|a| match a {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
        let is_bridge = |info: &LinkInfo| *info == LinkInfo::Kind(InfoKind::Bridge);
        Ok(kinds.flatten().any(is_bridge))
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
        let mut routes = self.all_routes(family, Some(table)).await?;
        routes.retain(|route| route_table(route) == table);
        Ok(routes)
    }

    /// Lists routes; kernels before 4.20 ignore the filter.
    async fn all_routes(
        &self,
        family: Family,
        table: Option<u32>,
    ) -> io::Result<Vec<RouteMessage>> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family.number();
        match table {
            Some(table) => filter.attributes.push(RouteAttribute::Table(table)),
            None => filter.header.protocol = PROTOCOL,
        }
        or_empty(collect(self.0.route().get(filter).execute()).await)
    }

    /// Adds a rule in front of all others; one that is there already is left alone. The kernel
    /// itself takes the same rule twice (EEXIST is for rules of the same priority only), so the
    /// lock of the table must be held.
    pub async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        if self.find_rule(rule).await?.is_some() {
            return Ok(());
        }
        let mut request = self.0.rule().add();
        *request.message_mut() = rule.message();
        request.execute().await.map_err(plain)
    }

    /// Takes one rule away; none is fine.
    pub async fn remove_rule(&self, rule: &Rule) -> io::Result<()> {
        match self.find_rule(rule).await? {
            Some(found) => self.delete_rule(found).await,
            None => Ok(()),
        }
    }

    /// Takes the very rule of a listing away.
    async fn delete_rule(&self, rule: RuleMessage) -> io::Result<()> {
        tolerate(self.0.rule().del(rule).execute().await, &[libc::ENOENT])
    }

    /// The rule as the kernel lists it.
    pub async fn find_rule(&self, rule: &Rule) -> io::Result<Option<RuleMessage>> {
        let wanted = rule.message();
        let rules = self.rules(rule.family).await?;
        Ok(rules.into_iter().find(|found| is_same(found, &wanted)))
    }

    /// Adds a route to a table of ours; one that is there already is left alone.
    pub async fn add_route(&self, route: &Route) -> io::Result<()> {
        let add = self.0.route().add(route.message());
        match route.source {
            // The source serves those who need none too, so the richer route wins.
            Some(_) => add.replace().execute().await.map_err(plain),
            None => tolerate(add.execute().await, &[libc::EEXIST]),
        }
    }

    /// True if the very route is there.
    pub async fn has_route(&self, route: &Route) -> io::Result<bool> {
        let wanted = route.message();
        let routes = self.routes(route.family, route.table).await?;
        Ok(routes.iter().any(|found| {
            found.header.kind == wanted.header.kind && found.header.destination_prefix_length == 0
        }))
    }

    /// The tables that rules or routes with our number use.
    pub async fn own_tables(&self) -> io::Result<Vec<u32>> {
        let mut tables = Vec::new();
        for family in Family::BOTH {
            let rules = self.rules(family).await?;
            tables.extend(rules.iter().filter(|r| is_ours(r)).map(rule_table));
            let routes = self.all_routes(family, None).await?;
            let ours = routes.iter().filter(|r| r.header.protocol == PROTOCOL);
            tables.extend(ours.map(route_table));
        }
        Ok(tables)
    }

    /// Who else uses `table`: a rule or a route in it without our number.
    pub async fn is_foreign(&self, table: u32) -> io::Result<bool> {
        for family in Family::BOTH {
            let rules = self.rules(family).await?;
            let routes = self.routes(family, table).await?;
            if rules.iter().any(|r| rule_table(r) == table && !is_ours(r))
                || routes.iter().any(|r| r.header.protocol != PROTOCOL)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes away the rules and routes that carry our number in `table`. True if there were any.
    pub async fn clear(&self, table: u32) -> io::Result<bool> {
        let mut found = false;
        for family in Family::BOTH {
            for rule in self.rules(family).await? {
                if is_ours(&rule) && rule_table(&rule) == table {
                    found = true;
                    self.delete_rule(rule).await?;
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

/// True if both catch the same packets for the same table and carry the same number. What the
/// kernel fills in (priority, mask, suppressor) is not looked at.
fn is_same(a: &RuleMessage, b: &RuleMessage) -> bool {
    let core = |rule: &RuleMessage| -> Vec<RuleAttribute> {
        let filled_in = |a: &&RuleAttribute| {
            matches!(
                a,
                RuleAttribute::Priority(_)
                    | RuleAttribute::FwMask(_)
                    | RuleAttribute::SuppressPrefixLen(_)
            )
        };
        let attributes = rule.attributes.iter();
        attributes.filter(|a| !filled_in(a)).cloned().collect()
    };
    let (a_core, b_core) = (core(a), core(b));
    a.header.src_len == b.header.src_len
        && a_core.len() == b_core.len()
        && a_core.iter().all(|attribute| b_core.contains(attribute))
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
        let bits = self.family.bits();
        message.header.address_family = self.family.number();
        message.header.destination_prefix_length = bits;
        // The answer then names the table that was used. For IPv6 it does so anyway, and the
        // flag is EINVAL.
        if self.family == Family::V4 {
            message.header.flags = RouteFlags::LookupTable;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(address(self.to)));
        if let Some(from) = self.from {
            message.header.source_prefix_length = bits;
            attributes.push(RouteAttribute::Source(address(from)));
        }
        attributes.extend(self.mark.map(RouteAttribute::Mark));
        attributes.extend(self.arrives_on.map(RouteAttribute::Iif));
        if let Some(port) = self.udp_source_port {
            attributes.push(RouteAttribute::IpProto(libc::IPPROTO_UDP as u8));
            attributes.push(RouteAttribute::Sport(port));
        }
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
        let attributes = &mut message.attributes;
        let from_here = || RuleAttribute::Iifname("lo".into());
        match self.selector {
            Selector::FromLoopback => {
                let (from, bits) = match self.family {
                    Family::V4 => (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                    Family::V6 => (Ipv6Addr::LOCALHOST.into(), 128),
                };
                message.header.src_len = bits;
                attributes.extend([RuleAttribute::Source(from), from_here()]);
            }
            Selector::Mark(mark) => attributes.push(RuleAttribute::FwMark(mark)),
            Selector::UdpPort(from, port) => {
                if let Some(from) = from {
                    message.header.src_len = self.family.bits();
                    attributes.push(RuleAttribute::Source(from));
                }
                let range = RulePortRange {
                    start: port,
                    end: port,
                };
                attributes.extend([
                    from_here(),
                    RuleAttribute::IpProtocol(IpProtocol::Udp),
                    RuleAttribute::SourcePortRange(range),
                ]);
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
        let source = self.source.map(address).map(RouteAttribute::PrefSource);
        message.attributes.extend(source);
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

/// A kernel without IPv6 answers EOPNOTSUPP or EAFNOSUPPORT, and ENOENT about a table that is empty.
fn or_empty<T>(result: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match result {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT)
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
