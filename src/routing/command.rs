//! The same steps as commands for an administrator to copy.

use std::fmt;

use super::family::Family;
use super::message::PROTOCOL_NUMBER;
use super::nft;
use super::plan::{Route, Rule, Selector, Step};

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Rule(rule) => rule.fmt(f),
            Step::Route(route) => route.fmt(f),
            Step::FwmarkAccept => f.write_str("sysctl -w net.ipv4.tcp_fwmark_accept=1"),
            Step::MarkGuard => write!(
                f,
                "nft 'table inet {} {{ chain input {{ type filter hook input priority 400; iif != \
                 lo tcp flags & (syn | ack) == syn meta mark set 0; }}; }}'",
                nft::GUARD
            ),
            Step::SocketMatch { table, mark } => {
                let name = nft::table_name(*table);
                write!(
                    f,
                    "nft 'table inet {name} {{ chain prerouting {{ type filter hook prerouting \
                     priority mangle; meta l4proto {{ tcp, udp }} socket transparent 1 meta mark \
                     set {mark} accept; }}; }}'"
                )
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, table) = (dash(self.family), self.table);
        write!(f, "ip {family} rule add ")?;
        match &self.selector {
            Selector::FromLoopback if self.family == Family::V4 => {
                f.write_str("from 127.0.0.0/8 iif lo")?;
            }
            Selector::FromLoopback => f.write_str("from ::1 iif lo")?,
            Selector::Mark(mark) => write!(f, "fwmark {mark}")?,
            Selector::UdpPort(from, port) => {
                if let Some(from) = from {
                    write!(f, "from {from} ")?;
                }
                write!(f, "iif lo ipproto udp sport {port}")?;
            }
        }
        write!(f, " lookup {table} protocol {PROTOCOL_NUMBER}")
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = dash(self.family);
        write!(f, "ip {family} route add local default dev lo")?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        write!(f, " table {} protocol {PROTOCOL_NUMBER}", self.table)?;
        match self.metric {
            Some(metric) => write!(f, " metric {metric}"),
            None => Ok(()),
        }
    }
}

fn dash(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}
