//! The kernel's policy routing, read and changed by netlink.

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use futures_util::stream::Stream;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion};

use super::accept;
use super::family::Family;
use super::message::{Answer, PROTOCOL, is_ours, is_same, looks_at_marks, route_table, rule_table};
use super::plan::{Place, Question, Route, Rule};

/// A netlink connection to the kernel's routing. Needs a tokio runtime.
#[derive(Clone)]
pub struct Kernel(Handle);

/// Something of another program's where we would put ours.
pub enum Foreigner {
    /// A policy rule.
    Rule(RuleMessage),
    /// A route.
    Route(RouteMessage),
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
            Ok(routes) => Ok(routes.first().map(Answer::read)),
            Err(e) if is_no_route(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where `target` is, and by which interface it is reached if it is not on this host.
    /// The unspecified address stands for all addresses of this host.
    pub async fn locate(&self, target: IpAddr) -> io::Result<(Place, Option<u32>)> {
        if target.is_unspecified() {
            return Ok((Place::Own, None));
        }
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

    /// True if nothing that this host knows of holds the address: not itself, and no network but
    /// those that lead to the internet at large. Routes such as a VPN's 0.0.0.0/1 and a provider's
    /// 2000::/3 name no network of somebody's; one that throws packets away is about its network.
    pub async fn is_nobodys(&self, ip: IpAddr) -> io::Result<bool> {
        const AT_LARGE: u8 = 7;
        let mut question = Question {
            family: Family::of(ip),
            from: None,
            to: ip,
            mark: None,
            arrives_on: None,
            udp_source_port: None,
        }
        .message();
        question.header.flags |= RouteFlags::FibMatch;
        match collect(self.0.route().get(question).execute()).await {
            Ok(routes) => Ok(routes.first().is_none_or(|route| {
                route.header.kind == RouteType::Unicast
                    && route.header.destination_prefix_length <= AT_LARGE
            })),
            Err(e) if is_no_route(&e) => Ok(!matches!(
                e.raw_os_error(),
                Some(libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            )),
            Err(e) => Err(e),
        }
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
            found.header.kind == wanted.header.kind
                && found.header.destination_prefix_length == 0
                && route.metric.is_none_or(|metric| has_metric(found, metric))
        }))
    }

    /// Takes a route of ours away; none is fine.
    pub async fn remove_route(&self, route: &Route) -> io::Result<()> {
        let gone = self.0.route().del(route.message()).execute().await;
        tolerate(gone, &[libc::ESRCH])
    }

    /// True if one of us turned `tcp_fwmark_accept` on, and needs it still.
    pub async fn is_accept_ours(&self) -> io::Result<bool> {
        let routes = self.all_routes(Family::V4, None).await?;
        let is_marker = |route: &RouteMessage| {
            route.header.protocol == PROTOCOL
                && route.header.kind == RouteType::Local
                && has_metric(route, accept::MARKER_METRIC)
        };
        Ok(routes.iter().any(is_marker))
    }

    /// Rules of other programs that look at marks.
    pub async fn foreign_mark_rules(&self) -> io::Result<Vec<RuleMessage>> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            found.extend(self.rules(family).await?);
        }
        found.retain(|rule| looks_at_marks(rule) && !is_ours(rule));
        Ok(found)
    }

    /// True if a rule of ours sends marked packets to `table`.
    pub async fn has_mark_rule(&self, table: u32) -> io::Result<bool> {
        for family in Family::BOTH {
            let rules = self.rules(family).await?;
            let ours = rules
                .iter()
                .filter(|r| is_ours(r) && rule_table(r) == table);
            let marked = |a: &RuleAttribute| matches!(a, RuleAttribute::FwMark(_));
            if ours.flat_map(|rule| &rule.attributes).any(marked) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The addresses of all interfaces, each with the network that it is in.
    pub async fn addresses(&self) -> io::Result<Vec<(IpAddr, IpNet)>> {
        let addresses = collect(self.0.address().get().execute()).await?;
        Ok(addresses.iter().filter_map(own_address).collect())
    }

    /// The destinations of all routes of the type broadcast: binding to them gives a socket
    /// another address.
    pub async fn broadcasts(&self) -> io::Result<Vec<IpNet>> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = Family::V4.number();
        filter.header.kind = RouteType::Broadcast;
        let mut routes = collect(self.0.route().get(filter).execute()).await?;
        // Kernels before 4.20 ignore the filter.
        routes.retain(|route| route.header.kind == RouteType::Broadcast);
        Ok(routes.iter().filter_map(destination).collect())
    }

    /// The tables that rules or routes with our number use, each once.
    pub async fn own_tables(&self) -> io::Result<Vec<u32>> {
        let mut tables = Vec::new();
        for family in Family::BOTH {
            let rules = self.rules(family).await?;
            tables.extend(rules.iter().filter(|r| is_ours(r)).map(rule_table));
            let routes = self.all_routes(family, None).await?;
            let ours = routes.iter().filter(|r| r.header.protocol == PROTOCOL);
            tables.extend(ours.map(route_table));
        }
        tables.sort_unstable();
        tables.dedup();
        Ok(tables)
    }

    /// What of somebody else's leads to `table` or stands in it.
    pub async fn foreigner(&self, table: u32) -> io::Result<Option<Foreigner>> {
        for family in Family::BOTH {
            let mut rules = self.rules(family).await?.into_iter();
            if let Some(rule) = rules.find(|r| rule_table(r) == table && !is_ours(r)) {
                return Ok(Some(Foreigner::Rule(rule)));
            }
            let mut routes = self.routes(family, table).await?.into_iter();
            if let Some(route) = routes.find(|r| r.header.protocol != PROTOCOL) {
                return Ok(Some(Foreigner::Route(route)));
            }
        }
        Ok(None)
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

/// On a point-to-point link the network is that of the other end (IFA_ADDRESS, rtnetlink(7)).
fn own_address(message: &AddressMessage) -> Option<(IpAddr, IpNet)> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let there = find(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let here = find(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let own = here.or(there)?;
    let network = IpNet::new(there.unwrap_or(own), message.header.prefix_len).ok()?;
    Some((own, network))
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let ip = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        _ => None,
    });
    IpNet::new(ip?, route.header.destination_prefix_length).ok()
}

fn has_metric(route: &RouteMessage, metric: u32) -> bool {
    route.attributes.contains(&RouteAttribute::Priority(metric))
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
