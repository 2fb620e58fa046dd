//! A header and its peer → whom to claim to be, and where to go. The one place for TCP and UDP.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::addr::{ClientAddr, PeerAddr, TargetAddr};
use crate::config::{ListenerConfig, Targets, leads_to};
use crate::header::Claim;
use crate::refusal::Refusal;

/// How destinations are chosen.
#[derive(Debug)]
pub struct Destinations {
    targets: Targets,
    dynamic: bool,
    /// Targets are in another network namespace, whose addresses are not this host's.
    elsewhere: bool,
    listen: Vec<SocketAddr>,
}

impl Destinations {
    /// `listen` are the addresses really bound (their ports known).
    pub fn new(config: &ListenerConfig, listen: Vec<SocketAddr>) -> Destinations {
        Destinations {
            targets: config.targets,
            dynamic: config.dynamic_destination,
            elsewhere: config.target_netns.is_some(),
            listen,
        }
    }

    /// The addresses of the listener.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// The client to claim to be and the target to connect to.
    pub fn choose(
        &self,
        claim: Claim,
        peer: PeerAddr,
    ) -> Result<(ClientAddr, TargetAddr), Refusal> {
        Ok(match claim {
            Claim::RealEndpoints => (ClientAddr(peer.0), self.targets.for_client(peer.0)),
            Claim::Client {
                source,
                destination,
            } if self.dynamic => (source, usable(source, destination)?),
            Claim::Client { source, .. } => (source, self.targets.for_client(source.0)),
        })
    }

    /// Where a client goes now whose header named that target at some earlier time.
    pub fn anew(&self, client: ClientAddr, named: TargetAddr) -> TargetAddr {
        match self.dynamic {
            true => named,
            false => self.targets.for_client(client.0),
        }
    }

    /// A refusal as the log tells it: where it is about the default of a flag that was left out, it
    /// says so, for nobody wrote that address.
    pub fn explain<'a>(&self, refusal: &'a Refusal) -> Explained<'a> {
        let target = refusal.target().filter(|_| !self.dynamic);
        let left_out =
            target.and_then(|target| Some((self.targets.flag_left_out(target)?, target)));
        Explained { refusal, left_out }
    }

    /// Fails if connecting to `target` would come back to our own listener. To be asked once a
    /// connection or flow, not once a datagram: `is_local` may ask the kernel for all addresses.
    pub fn refuse_loop(
        &self,
        target: TargetAddr,
        is_local: impl Fn(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        match self.is_listener(target, is_local) {
            true => Err(Refusal::TargetIsListener(target)),
            false => Ok(()),
        }
    }

    fn is_listener(&self, target: TargetAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
        if self.elsewhere {
            return false;
        }
        let mut listen = self.listen.iter();
        listen.any(|addr| leads_to(target.0, *addr, &is_local))
    }
}

/// A refusal with what is to be said about its target.
#[derive(Debug)]
pub struct Explained<'a> {
    refusal: &'a Refusal,
    left_out: Option<(&'static str, TargetAddr)>,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)?;
        match self.left_out {
            Some((flag, target)) => write!(f, " ({flag} was not given; its default is {target})"),
            None => Ok(()),
        }
    }
}

/// A destination named by a header, if a connection from `source` can go there.
fn usable(source: ClientAddr, destination: SocketAddr) -> Result<TargetAddr, Refusal> {
    let ip = destination.ip();
    let unusable = ip.is_unspecified() || ip.is_multicast() || destination.port() == 0;
    if unusable || source.0.is_ipv4() != destination.is_ipv4() {
        return Err(Refusal::BadDestination(TargetAddr(destination)));
    }
    Ok(TargetAddr(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(listen: &str, dynamic: bool) -> Destinations {
        Destinations {
            targets: Targets {
                v4: "127.0.0.1:22".parse().unwrap(),
                v6: "[::1]:22".parse().unwrap(),
                v4_given: true,
                v6_given: true,
            },
            dynamic,
            elsewhere: false,
            listen: vec![listen.parse().unwrap()],
        }
    }

    fn claim(source: &str, destination: &str) -> Claim {
        Claim::Client {
            source: ClientAddr(source.parse().unwrap()),
            destination: destination.parse().unwrap(),
        }
    }

    fn choose(d: &Destinations, claim: Claim) -> Result<(String, String), String> {
        let peer = PeerAddr("192.0.2.1:5000".parse().unwrap());
        let local = |ip: IpAddr| ip.to_string() == "192.0.2.2";
        d.choose(claim, peer)
            .and_then(|(c, t)| d.refuse_loop(t, local).map(|()| (c, t)))
            .map(|(c, t)| (c.to_string(), t.to_string()))
            .map_err(|e| e.to_string())
    }

    fn pair(client: &str, target: &str) -> Result<(String, String), String> {
        Ok((client.into(), target.into()))
    }

    #[test]
    fn the_claimed_clients_family_decides() {
        let d = destinations("0.0.0.0:8443", false);
        assert_eq!(
            choose(&d, claim("203.0.113.9:1", "192.0.2.2:443")),
            pair("203.0.113.9:1", "127.0.0.1:22")
        );
        assert_eq!(
            choose(&d, claim("[2001:db8::9]:1", "[2001:db8::1]:443")),
            pair("[2001:db8::9]:1", "[::1]:22")
        );
    }

    #[test]
    fn without_a_claim_the_peer_is_the_client_and_the_flags_target_holds() {
        for dynamic in [false, true] {
            let d = destinations("0.0.0.0:8443", dynamic);
            assert_eq!(
                choose(&d, Claim::RealEndpoints),
                pair("192.0.2.1:5000", "127.0.0.1:22")
            );
        }
    }

    #[test]
    fn a_dynamic_destination_must_be_reachable_from_the_client() {
        let d = destinations("0.0.0.0:8443", true);
        assert_eq!(
            choose(&d, claim("203.0.113.9:1", "192.0.2.2:443")),
            pair("203.0.113.9:1", "192.0.2.2:443")
        );
        for destination in [
            "[2001:db8::1]:443",
            "0.0.0.0:443",
            "224.0.0.1:443",
            "192.0.2.2:0",
        ] {
            assert!(
                choose(&d, claim("203.0.113.9:1", destination)).is_err(),
                "{destination}"
            );
        }
    }

    #[test]
    fn the_listener_is_no_target() {
        let d = destinations("0.0.0.0:8443", true);
        for own in ["127.0.0.1:8443", "127.9.9.9:8443", "192.0.2.2:8443"] {
            assert!(choose(&d, claim("203.0.113.9:1", own)).is_err(), "{own}");
        }
        assert!(choose(&d, claim("203.0.113.9:1", "192.0.2.3:8443")).is_ok());
        assert!(choose(&d, claim("[2001:db8::9]:1", "[::1]:8443")).is_ok());
        let dual = destinations("[::]:8443", true);
        assert!(choose(&dual, claim("203.0.113.9:1", "127.0.0.1:8443")).is_err());
        assert!(choose(&dual, claim("[2001:db8::9]:1", "[::1]:8443")).is_err());
        let one = destinations("192.0.2.2:8443", true);
        assert!(choose(&one, claim("203.0.113.9:1", "192.0.2.2:8443")).is_err());
        assert!(choose(&one, claim("203.0.113.9:1", "127.0.0.1:8443")).is_ok());
    }
}
