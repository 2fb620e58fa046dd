//! A rule that lets the way of one target pass where it is dropped, and nothing else: for its
//! address and port on that one interface, right before the rule that is in the way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};

use super::dropped::{Direction, Dropped};
use super::outside::quote;
use super::words;
use crate::routing::nfnetlink;

/// One rule to put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    tool: Tool,
    table: String,
    chain: String,
    /// In front of this; `None`: at the end, before the chain's policy.
    before: Option<u64>,
    arriving: bool,
    interface: String,
    direction: Direction,
    protocol: &'static str,
    target: SocketAddr,
}

/// The program whose table it is. A table of iptables with a rule that nft wrote into it can be
/// unreadable to iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    /// With the family of the table.
    Nft(&'static str),
    /// With the number of the rule in its chain.
    Iptables(Option<usize>),
}

/// A pass for the probe alone, until this is dropped.
pub struct Temporary(Vec<String>);

impl Pass {
    /// The way past `dropped` for the traffic of `target`; `None` if no command can name the place.
    pub fn new(dropped: &Dropped, protocol: &'static str, target: SocketAddr) -> Option<Pass> {
        let before = dropped.handle.or(dropped.returned);
        let tool = match is_of_iptables(dropped) {
            true => Tool::Iptables(match before {
                Some(handle) => Some(number(dropped, handle)?),
                None => None,
            }),
            false => Tool::Nft(dropped.family),
        };
        let interface = words::interface(dropped.spot.interface);
        let names = [&dropped.table, &dropped.chain, &interface];
        if !names.into_iter().all(|name| is_identifier(name)) {
            return None;
        }
        Some(Pass {
            tool,
            table: dropped.table.clone(),
            chain: dropped.chain.clone(),
            before,
            arriving: dropped.spot.arriving,
            interface,
            direction: dropped.direction,
            protocol,
            target,
        })
    }

    /// The command that puts it in.
    pub fn command(&self) -> String {
        let words: Vec<_> = self.words(None).iter().map(|word| quote(word)).collect();
        words.join(" ")
    }

    /// How to keep it.
    pub fn keeping(&self) -> &'static str {
        match self.tool {
            Tool::Iptables(_) => {
                "this lasts until the next boot: keep it with `netfilter-persistent save` (package iptables-persistent), or under ufw in /etc/ufw/before.rules and before6.rules"
            }
            Tool::Nft(_) if self.table == "firewalld" => {
                "this lasts until firewalld is reloaded: keep it as a policy of firewalld's"
            }
            Tool::Nft(_) => {
                "this lasts until the next boot: keep it by writing the rule, at the same place in its chain, into /etc/nftables.conf or the file that your firewall is loaded from"
            }
        }
    }

    /// Puts it in for the probe's own sender alone, to see what else is in the way.
    pub fn open_for(&self, stranger: IpAddr) -> io::Result<Temporary> {
        let mut words = self.words(Some(stranger));
        let undo = match self.tool {
            Tool::Iptables(_) => {
                run(&words)?;
                // -I CHAIN NUMBER, or -A CHAIN
                let at = words.iter().position(|word| word == "-I" || word == "-A");
                let at = at.ok_or(io::ErrorKind::InvalidInput)?;
                if words[at] == "-I" {
                    words.remove(at + 2);
                }
                words[at] = "-D".into();
                words
            }
            Tool::Nft(family) => {
                words.splice(1..1, ["-e".to_owned(), "-a".to_owned()]);
                let said = String::from_utf8_lossy(&run(&words)?.stdout).into_owned();
                let (_, handle) = said
                    .rsplit_once("# handle ")
                    .ok_or_else(|| io::Error::other(said.clone()))?;
                let place = [family, &self.table, &self.chain, "handle", handle.trim()];
                ["nft", "delete", "rule"]
                    .into_iter()
                    .chain(place)
                    .map(str::to_owned)
                    .collect()
            }
        };
        Ok(Temporary(undo))
    }

    fn words(&self, stranger: Option<IpAddr>) -> Vec<String> {
        let text = match self.tool {
            Tool::Nft(family) => self.nft(family, stranger),
            Tool::Iptables(number) => self.iptables(number, stranger),
        };
        text.split(' ').map(str::to_owned).collect()
    }

    fn nft(&self, family: &str, stranger: Option<IpAddr>) -> String {
        let (table, chain, protocol) = (&self.table, &self.chain, self.protocol);
        let verb = match self.before {
            Some(handle) => format!("insert rule {family} {table} {chain} position {handle}"),
            None => format!("add rule {family} {table} {chain}"),
        };
        let interface = match (self.arriving, &*self.interface) {
            (true, "lo") => "iif lo".to_owned(),
            (false, "lo") => "oif lo".to_owned(),
            (true, name) => format!("iifname {name}"),
            (false, name) => format!("oifname {name}"),
        };
        let ip = if self.target.is_ipv4() { "ip" } else { "ip6" };
        let (own, other, which) = match self.direction {
            Direction::Request => ("daddr", "saddr", "dport"),
            Direction::Reply => ("saddr", "daddr", "sport"),
        };
        let only =
            stranger.map_or_else(String::new, |stranger| format!("{ip} {other} {stranger} "));
        let (address, port) = (self.target.ip(), self.target.port());
        format!(
            "nft {verb} {interface} {only}{ip} {own} {address} {protocol} {which} {port} accept"
        )
    }

    fn iptables(&self, number: Option<usize>, stranger: Option<IpAddr>) -> String {
        let (table, chain, protocol) = (&self.table, &self.chain, self.protocol);
        let program = if self.target.is_ipv4() {
            "iptables-nft"
        } else {
            "ip6tables-nft"
        };
        let verb = match number {
            Some(number) => format!("-I {chain} {number}"),
            None => format!("-A {chain}"),
        };
        let side = if self.arriving { "-i" } else { "-o" };
        let (own, other, which) = match self.direction {
            Direction::Request => ("-d", "-s", "--dport"),
            Direction::Reply => ("-s", "-d", "--sport"),
        };
        let only = stranger.map_or_else(String::new, |stranger| format!("{other} {stranger} "));
        let (interface, address, port) = (&self.interface, self.target.ip(), self.target.port());
        format!(
            "{program} -w -t {table} {verb} {side} {interface} {only}{own} {address} -p {protocol} {which} {port} -j ACCEPT"
        )
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = run(&self.0) {
            crate::output::complain(format_args!(
                "cannot take the probe's rule away: {e}; run: {}",
                self.0.join(" ")
            ));
        }
    }
}

fn is_of_iptables(dropped: &Dropped) -> bool {
    let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let tables = ["filter", "mangle", "raw", "nat", "security"];
    matches!(dropped.family, "ip" | "ip6")
        && tables.contains(&&*dropped.table)
        && built_in.contains(&&*dropped.spot.base)
}

/// The number of the rule in its chain, from 1, which is what iptables asks for.
fn number(dropped: &Dropped, handle: u64) -> Option<usize> {
    let family = match dropped.family {
        "ip6" => NetfilterProtoFamily::IPv6,
        _ => NetfilterProtoFamily::IPv4,
    };
    let request = NfTablesMessage::GetRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(dropped.table.clone()),
            RuleAttribute::Chain(dropped.chain.clone()),
        ],
    });
    let rules = nfnetlink::dump(family, request).ok()?;
    let is_it = |message: &NfTablesMessage| matches!(message, NfTablesMessage::NewRule(rule) if rule.attributes.contains(&RuleAttribute::Handle(handle)));
    Some(rules.iter().position(is_it)? + 1)
}

/// What nft takes as a name without quotes; its own words (`drop`) cannot be names.
fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || "_.".contains(c))
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

fn run(words: &[String]) -> io::Result<Output> {
    let places = [words[0].clone(), format!("/usr/sbin/{}", words[0])];
    let mut result = Err(io::ErrorKind::NotFound.into());
    for place in places {
        result = Command::new(place).args(&words[1..]).output();
        if result.is_ok() {
            break;
        }
    }
    let output = result?;
    match output.status.success() {
        true => Ok(output),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}
