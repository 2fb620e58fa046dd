//! Who may speak, and whom they may name. Pure: no sockets.

use std::net::IpAddr;

use crate::addr::{ClientAddr, PeerAddr};
use crate::networks::Networks;
use crate::refusal::Refusal;

/// The rules a peer and its claim are judged by.
#[derive(Debug, Default)]
pub struct Admission {
    /// The load balancers that may speak; `None` lets everybody.
    pub allowed_subnets: Option<Networks>,
}

impl Admission {
    /// May this peer speak at all?
    pub fn peer(&self, peer: PeerAddr) -> Result<(), Refusal> {
        match &self.allowed_subnets {
            Some(allowed) if !allowed.contains(peer.ip()) => Err(Refusal::PeerNotAllowed),
            _ => Ok(()),
        }
    }

    /// May this peer name that client? Addresses that no client can have are for local peers only,
    /// since a backend may trust what seems to come from its own host.
    pub fn client(&self, peer: PeerAddr, client: ClientAddr) -> Result<(), Refusal> {
        if is_bogus(client.ip()) && !peer.ip().is_loopback() {
            return Err(Refusal::BogusClient(client));
        }
        Ok(())
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
    fn only_listed_peers_may_speak() {
        let mut networks = Networks::default();
        networks.insert("192.0.2.0/24".parse().unwrap());
        let admission = Admission {
            allowed_subnets: Some(networks),
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
