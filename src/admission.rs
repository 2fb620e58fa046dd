//! Which peers may connect, and which clients they may name. Pure: no sockets.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, Result};

use crate::addr::{ClientAddr, PeerAddr};
use crate::bans::Bans;
use crate::networks::Networks;
use crate::refusal::Refusal;

/// The rules a peer and its claim are judged by.
#[derive(Debug, Default)]
pub struct Admission {
    /// The load balancers that may speak; `None` lets everybody.
    pub allowed_subnets: Option<Networks>,
    /// The clients that may be named.
    pub clients: RwLock<ClientRules>,
    /// Those that are banned for now.
    pub bans: Bans,
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
    pub fn load(denied: Option<&Path>, allowed: Option<&Path>) -> Result<ClientRules> {
        let denied = denied.map(|file| Networks::load_any(file).context("-denied-clients"));
        let allowed = allowed.map(|file| Networks::load(file).context("-allowed-clients"));
        Ok(ClientRules {
            denied: denied.transpose()?,
            allowed: allowed.transpose()?,
        })
    }

    fn judge(&self, client: ClientAddr) -> Result<(), Refusal> {
        if self
            .denied
            .as_ref()
            .is_some_and(|list| list.contains(client.ip()))
        {
            return Err(Refusal::ClientDenied(client));
        }
        match &self.allowed {
            Some(list) if !list.contains(client.ip()) => Err(Refusal::ClientNotAllowed(client)),
            _ => Ok(()),
        }
    }
}

impl Admission {
    /// May this peer speak at all?
    pub fn peer(&self, peer: PeerAddr) -> Result<(), Refusal> {
        match &self.allowed_subnets {
            Some(allowed) if !allowed.contains(peer.ip()) => Err(Refusal::PeerNotAllowed),
            _ => Ok(()),
        }
    }

    /// May this peer name that client?
    pub fn client(&self, peer: PeerAddr, client: ClientAddr) -> Result<(), Refusal> {
        self.plausible(peer, client)?;
        self.wanted(client)
    }

    /// Whether the client is one that this peer can have. Addresses that no client can have are
    /// for local peers only, since a backend may trust what seems to come from its own host.
    pub fn plausible(&self, peer: PeerAddr, client: ClientAddr) -> Result<(), Refusal> {
        if is_bogus(client.ip()) && !peer.ip().is_loopback() {
            return Err(Refusal::BogusClient(client));
        }
        Ok(())
    }

    /// Whether the client shall be served: a ban goes before the files, and the denied before the
    /// allowed.
    pub fn wanted(&self, client: ClientAddr) -> Result<(), Refusal> {
        self.free_of_bans(client)?;
        let rules = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        rules.judge(client)
    }

    /// Whether no ban keeps the client away.
    pub fn free_of_bans(&self, client: ClientAddr) -> Result<(), Refusal> {
        match self.bans.find(client.ip()) {
            Some(ban) => Err(Refusal::Banned(client, ban)),
            None => Ok(()),
        }
    }

    /// Puts new rules in the place of the old ones, for connections from now on.
    pub fn replace_rules(&self, rules: ClientRules) {
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}

fn is_bogus(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::canonical;
    use crate::bans::Ban;
    use crate::stats::Count;

    fn judge(peer: &str, client: &str) -> bool {
        let peer = PeerAddr(peer.parse().unwrap());
        let client = ClientAddr(canonical(client.parse().unwrap()));
        Admission::default().client(peer, client).is_ok()
    }

    #[test]
    fn a_claim_must_be_an_address_a_client_can_have() {
        for client in [
            "127.0.0.1:1",
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::1]:1",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:127.0.0.1]:1",
            "[::ffff:224.0.0.1]:1",
        ] {
            assert!(!judge("192.0.2.1:1", client), "{client}");
            assert!(judge("127.0.0.1:1", client), "{client}");
            assert!(judge("[::1]:1", client), "{client}");
        }
        assert!(judge("192.0.2.1:1", "203.0.113.9:0"));
    }

    #[test]
    fn a_ban_goes_before_denied_and_denied_before_allowed() {
        let list = |text: &str| {
            let mut networks = Networks::default();
            networks.insert(crate::networks::parse(text).unwrap());
            Some(networks)
        };
        let admission = Admission::default();
        let refusal = |client: &str| {
            let peer = PeerAddr("192.0.2.1:1".parse().unwrap());
            let client = ClientAddr(client.parse().unwrap());
            admission.client(peer, client).err().map(|r| r.count())
        };
        admission.replace_rules(ClientRules {
            denied: list("203.0.113.0/25"),
            allowed: list("203.0.113.0/24"),
        });
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
