//! Addresses that stand for a client: nobody's, and hardly ever the same twice, so that a ban of one
//! does not spoil the next look at the host.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::family::Family;
use super::kernel::Kernel;

/// Draws from one network before the next is tried.
const DRAWS: usize = 8;

/// The networks that strangers are drawn from: for benchmarks (RFC 2544, RFC 5180) and, where those
/// are in use, parts of those for documentation (RFC 5737, RFC 3849). The jails of
/// packaging/fail2ban ignore them all.
pub fn networks(family: Family) -> [IpNet; 2] {
    let networks: [(IpAddr, u8); 2] = match family {
        Family::V4 => [
            (Ipv4Addr::new(198, 18, 0, 0).into(), 15),
            (Ipv4Addr::new(203, 0, 113, 128).into(), 25),
        ],
        Family::V6 => [
            (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0).into(), 48),
            (
                Ipv6Addr::new(0x2001, 0xdb8, 0xfff0, 0, 0, 0, 0, 0).into(),
                44,
            ),
        ],
    };
    networks.map(|(ip, bits)| IpNet::new_assert(ip, bits))
}

/// An address that is not this host's and that no network which it knows of holds.
pub async fn draw(kernel: &Kernel, family: Family) -> io::Result<IpAddr> {
    for network in networks(family) {
        if let Some(stranger) = draw_from(kernel, network).await? {
            return Ok(stranger);
        }
    }
    Ok(random(networks(family)[0]))
}

/// As `draw`, from one network; none if they are all in use.
pub async fn draw_from(kernel: &Kernel, network: IpNet) -> io::Result<Option<IpAddr>> {
    for _ in 0..DRAWS {
        let stranger = random(network);
        if kernel.is_nobodys(stranger).await? {
            return Ok(Some(stranger));
        }
    }
    Ok(None)
}

/// Neither the first nor the last address: a subnet's would be its network and its broadcast.
fn random(network: IpNet) -> IpAddr {
    // Each RandomState has keys that nobody can guess: chance enough to be hardly ever the same.
    let number = u128::from(RandomState::new().hash_one(()));
    let last = u128::MAX >> (128 - network.max_prefix_len()) >> network.prefix_len();
    let host = 1 + number % (last - 1);
    match network.network() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() + host as u32).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + host).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn strangers_are_of_their_network_and_differ() {
        for network in Family::BOTH.iter().flat_map(|family| networks(*family)) {
            let drawn: HashSet<_> = (0..200).map(|_| random(network)).collect();
            assert!(drawn.iter().all(|ip| network.contains(ip)), "{drawn:?}");
            assert!(!drawn.contains(&network.network()) && !drawn.contains(&network.broadcast()));
            // Of the 126 in the smallest network 200 draws find far more.
            assert!(drawn.len() > 60, "{}", drawn.len());
        }
    }
}
