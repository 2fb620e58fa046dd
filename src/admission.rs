//! Who may speak, and whom they may name. No sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};

use crate::addr::{ClientAddr, PeerAddr};
use crate::bans::{Banned, Bans};
use crate::claims::Claims;
use crate::config::{ListenerConfig, Untrusted};
use crate::namespaces::Namespace;
use crate::networks::Networks;
use crate::refusal::Refusal;

/// The network that all who are not allowed are in; its family counts for nothing here.
const EVERYBODY: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// What becomes of a peer that may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It speaks for clients: a header is expected of it.
    Header,
    /// It is its own client, and sends no header (`-untrusted serve`).
    Itself,
}

/// The rules a peer and its claim are judged by.
#[derive(Debug, Default)]
pub struct Admission {
    /// The name of the listener, which bans may be for.
    listener: Option<String>,
    untrusted: Untrusted,
    /// The load balancers that may speak; `None` lets everybody.
    pub allowed_subnets: Option<Networks>,
    /// The addresses that may be claimed.
    pub claims: Claims,
    /// The clients that may be named.
    clients: ClientRules,
    /// Those that are banned for now.
    bans: Arc<Bans>,
}

/// The clients that files let in or keep out.
#[derive(Debug, Default)]
pub struct ClientRules {
    denied: Option<Networks>,
    allowed: Option<Networks>,
}

impl ClientRules {
    /// Reads the files that are given. A denied-clients file may be empty, an allowed-clients file
    /// may not: nobody would be served.
    fn load(config: &ListenerConfig) -> Result<ClientRules> {
        let denied = config.denied_clients.as_ref();
        let denied = denied.map(|list| Networks::of_any(list).context("-denied-clients"));
        let allowed = config.allowed_clients.as_ref();
        let allowed = allowed.map(|list| Networks::of(list).context("-allowed-clients"));
        Ok(ClientRules {
            denied: denied.transpose()?,
            allowed: allowed.transpose()?,
        })
    }

    fn judge(&self, client: ClientAddr, spares: impl Fn(&IpNet) -> bool) -> Result<(), Refusal> {
        let denied = self.denied.as_ref();
        let denied = denied.and_then(|list| list.narrowest(client.ip()));
        if denied.is_some_and(|network| !spares(&network)) {
            return Err(Refusal::ClientDenied(client));
        }
        match &self.allowed {
            Some(list) if !list.contains(client.ip()) && !spares(&EVERYBODY) => {
                Err(Refusal::ClientNotAllowed(client))
            }
            _ => Ok(()),
        }
    }
}

impl Admission {
    /// Reads the lists that a listener asks for. Fails when one cannot be read.
    pub fn load(config: &ListenerConfig, claims: Claims, bans: Arc<Bans>) -> Result<Admission> {
        let allowed = config.allowed_subnets.as_ref();
        let allowed = allowed.map(|list| Networks::of(list).context("-allowed-subnets"));
        Ok(Admission {
            listener: config.name.clone(),
            untrusted: config.untrusted,
            allowed_subnets: allowed.transpose()?,
            claims,
            clients: ClientRules::load(config)?,
            bans,
        })
    }

    /// The same for targets in that namespace.
    pub fn inside(mut self, namespace: Option<Arc<Namespace>>) -> Admission {
        self.claims = self.claims.inside(namespace);
        self
    }

    /// May this peer speak at all, and for whom?
    pub fn peer(&self, peer: PeerAddr) -> Result<Trust, Refusal> {
        match &self.allowed_subnets {
            Some(allowed) if !allowed.contains(peer.ip()) => match self.untrusted {
                Untrusted::Refuse => Err(Refusal::PeerNotAllowed),
                Untrusted::Serve => Ok(Trust::Itself),
            },
            _ => Ok(Trust::Header),
        }
    }

    /// May this peer name that client?
    pub fn client(&self, peer: PeerAddr, client: ClientAddr) -> Result<(), Refusal> {
        self.plausible(peer, client)?;
        self.wanted(client)
    }

    /// Whether the client is one that this peer can have. Itself it can always be.
    pub fn plausible(&self, peer: PeerAddr, client: ClientAddr) -> Result<(), Refusal> {
        if client.0 == peer.0 {
            return Ok(());
        }
        let named = || self.naming(peer).is_some();
        let judgement = self.claims.judge(peer, client, named);
        judgement.map_err(|oddity| Refusal::BogusClient(client, oddity))
    }

    /// Whether the client shall be served: a ban goes before the files, and the denied before the
    /// allowed.
    pub fn wanted(&self, client: ClientAddr) -> Result<(), Refusal> {
        self.judge(client, |_| false)
    }

    /// Whether a peer that names no client shall be served. It may be a client that got here
    /// without a load balancer: all that holds for clients holds for it, unless it is spared.
    pub fn peer_wanted(&self, peer: PeerAddr) -> Result<(), Refusal> {
        self.judge(ClientAddr(peer.0), |rule| self.spares(peer, rule))
    }

    /// Whether no ban keeps the client away.
    pub fn free_of_bans(&self, client: ClientAddr) -> Result<(), Refusal> {
        self.judge_bans(client, |_| false)
    }

    /// As `free_of_bans`, for a peer that names no client.
    pub fn peer_free_of_bans(&self, peer: PeerAddr) -> Result<(), Refusal> {
        self.judge_bans(ClientAddr(peer.0), |rule| self.spares(peer, rule))
    }

    /// Whether a rule about clients passes this peer over when it speaks for itself: no rule must
    /// end the health checks of a load balancer. A peer of this host is one; so is one that
    /// `-allowed-subnets` names at least as narrowly as the rule does. A wider network may hold
    /// clients, too.
    pub fn spares(&self, peer: PeerAddr, rule: &IpNet) -> bool {
        let naming = self.naming(peer);
        peer.ip().is_loopback() || naming.is_some_and(|n| n.prefix_len() >= rule.prefix_len())
    }

    /// The narrowest network by which `-allowed-subnets` names a peer. Who lets everybody in
    /// (0.0.0.0/0, ::/0) names nobody.
    fn naming(&self, peer: PeerAddr) -> Option<IpNet> {
        let network = self.allowed_subnets.as_ref()?.narrowest(peer.ip())?;
        (network.prefix_len() > 0).then_some(network)
    }

    /// Whether `-allowed-subnets` names load balancers, and not everybody.
    pub fn lists_peers(&self) -> bool {
        let holds_everybody = |list: &Networks| {
            let first: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let widest = first.iter().filter_map(|ip| list.narrowest(*ip));
            widest.into_iter().any(|network| network.prefix_len() == 0)
        };
        let list = self.allowed_subnets.as_ref();
        list.is_some_and(|list| !holds_everybody(list))
    }

    fn judge(&self, client: ClientAddr, spares: impl Fn(&IpNet) -> bool) -> Result<(), Refusal> {
        self.judge_bans(client, &spares)?;
        self.clients.judge(client, spares)
    }

    fn judge_bans(
        &self,
        client: ClientAddr,
        spares: impl Fn(&IpNet) -> bool,
    ) -> Result<(), Refusal> {
        // It is the narrowest: who is spared it is spared all wider ones.
        match self.bans.find(client.ip(), self.listener.as_deref()) {
            Some(ban) if !spares(ban.network()) => {
                if let Banned::Decided(decision) = &ban {
                    decision.note_refusal();
                }
                Err(Refusal::Banned(client, ban))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bans::Ban;
    use crate::stats::Count;

    #[test]
    fn rules_hold_for_peers_that_speak_for_themselves_unless_they_are_named_as_narrowly() {
        let list = |text: &str| {
            let mut networks = Networks::default();
            networks.insert(crate::networks::parse(text).unwrap());
            Some(networks)
        };
        let refusal = |subnets: Option<&str>, rules, peer: &str| {
            let admission = Admission {
                allowed_subnets: subnets.and_then(list),
                clients: rules,
                ..Admission::default()
            };
            let peer = PeerAddr(format!("{peer}:1").parse().unwrap());
            admission.peer_wanted(peer).err().map(|r| r.count())
        };
        let denied = |network: &str| ClientRules {
            denied: list(network),
            allowed: None,
        };
        for (subnets, network, expected) in [
            (None, "192.0.2.5", Some(Count::ClientDenied)),
            (None, "0.0.0.0/0", Some(Count::ClientDenied)),
            (Some("192.0.2.5"), "192.0.2.5", None),
            (Some("192.0.2.0/24"), "192.0.2.0/24", None),
            (Some("192.0.2.0/24"), "192.0.0.0/16", None),
            (Some("192.0.2.0/24"), "192.0.2.5", Some(Count::ClientDenied)),
            (Some("0.0.0.0/0"), "0.0.0.0/0", Some(Count::ClientDenied)),
        ] {
            let found = refusal(subnets, denied(network), "192.0.2.5");
            assert_eq!(found, expected, "{subnets:?} {network}");
        }
        assert_eq!(refusal(None, denied("127.0.0.0/8"), "127.0.0.1"), None);
        for (subnets, expected) in [
            (None, Some(Count::ClientNotAllowed)),
            (Some("0.0.0.0/0"), Some(Count::ClientNotAllowed)),
            (Some("192.0.2.0/24"), None),
        ] {
            let rules = ClientRules {
                denied: None,
                allowed: list("198.51.100.0/24"),
            };
            assert_eq!(
                refusal(subnets, rules, "192.0.2.5"),
                expected,
                "{subnets:?}"
            );
        }
    }

    #[test]
    fn a_ban_goes_before_denied_and_denied_before_allowed() {
        let list = |text: &str| {
            let mut networks = Networks::default();
            networks.insert(crate::networks::parse(text).unwrap());
            Some(networks)
        };
        let admission = Admission {
            clients: ClientRules {
                denied: list("203.0.113.0/25"),
                allowed: list("203.0.113.0/24"),
            },
            ..Admission::default()
        };
        let refusal = |client: &str| {
            let peer = PeerAddr("192.0.2.1:1".parse().unwrap());
            let client = ClientAddr(client.parse().unwrap());
            admission.client(peer, client).err().map(|r| r.count())
        };
        assert_eq!(refusal("203.0.113.7:1"), Some(Count::ClientDenied));
        assert_eq!(refusal("203.0.113.200:1"), None);
        assert_eq!(refusal("198.51.100.1:1"), Some(Count::ClientNotAllowed));
        let ban = Ban {
            network: "203.0.0.0/16".parse().unwrap(),
            listener: None,
            since: 0,
            until: None,
            reason: String::new(),
        };
        admission.bans.ban(ban).unwrap();
        assert_eq!(refusal("203.0.113.7:1"), Some(Count::Banned));
        assert_eq!(refusal("203.0.113.200:1"), Some(Count::Banned));
    }

    #[test]
    fn only_listed_peers_may_speak() {
        let mut networks = Networks::default();
        networks.insert("192.0.2.0/24".parse().unwrap());
        let admission = Admission {
            allowed_subnets: Some(networks),
            ..Admission::default()
        };
        assert!(
            admission
                .peer(PeerAddr("192.0.2.9:1".parse().unwrap()))
                .is_ok()
        );
        assert!(
            admission
                .peer(PeerAddr("192.0.3.9:1".parse().unwrap()))
                .is_err()
        );
        assert!(
            Admission::default()
                .peer(PeerAddr("192.0.3.9:1".parse().unwrap()))
                .is_ok()
        );
    }
}
