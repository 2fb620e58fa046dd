//! The process and the host: capabilities, open files, IPv6.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use super::check::Check;
use crate::config::{Config, ListenerConfig};
use crate::limits;
use crate::routing::family::Family;

const CAP_NET_ADMIN: u32 = 12;

/// What this process may do in its network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Powers {
    /// Claim foreign addresses (IP_TRANSPARENT): CAP_NET_RAW or CAP_NET_ADMIN.
    pub claim: bool,
    /// Change the routing and look at the firewall: CAP_NET_ADMIN.
    pub administrate: bool,
}

/// What this process may do, tried rather than read: a capability counts only in the user
/// namespace that owns the network.
pub fn powers() -> Powers {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None);
    let claim = socket.is_ok_and(|socket| socket.set_ip_transparent_v4(true).is_ok());
    Powers {
        claim,
        administrate: claim && has_capability(CAP_NET_ADMIN),
    }
}

/// `no-capability`.
pub fn capabilities(powers: Powers) -> Check {
    const ID: &str = "no-capability";
    if powers.claim {
        let which = if powers.administrate {
            "CAP_NET_ADMIN"
        } else {
            "CAP_NET_RAW"
        };
        return Check::ok(ID, format!("foreign addresses can be claimed ({which})"));
    }
    Check::wrong(
        ID,
        true,
        "neither CAP_NET_ADMIN nor CAP_NET_RAW: no foreign address can be claimed",
    )
    .advice(
        "run it as root, or give the unit AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW, or the container \
         --cap-add NET_ADMIN --cap-add NET_RAW; a container whose user is not root must be allowed to gain \
         them (no no-new-privileges, no allowPrivilegeEscalation: false)",
    )
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << number) != 0)
}

/// `nofile-too-low`: only if a number of connections was asked for.
pub fn open_files(config: &Config, listener: &ListenerConfig) -> Option<Check> {
    const ID: &str = "nofile-too-low";
    let asked = listener.max_connections?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let limit = usize::try_from(hard).unwrap_or(usize::MAX);
    let carried = limits::carried(config, limit);
    if asked <= carried {
        return Some(Check::ok(
            ID,
            format!("{limit} open files carry {asked} connections"),
        ));
    }
    too_low(
        config,
        listener,
        limit,
        &format!("a limit of {limit} open files carries"),
    )
}

/// `nofile-too-low`, failed; `found` is the sentence up to the number of connections.
pub fn too_low(
    config: &Config,
    listener: &ListenerConfig,
    limit: usize,
    found: &str,
) -> Option<Check> {
    let asked = listener.max_connections?;
    let carried = limits::carried(config, limit);
    let mut needed = limit;
    while limits::carried(config, needed) < asked {
        needed += 2 * (asked - limits::carried(config, needed));
    }
    let found = format!("{found} {carried} connections, not the {asked} of -max-connections");
    let advice = format!(
        "LimitNOFILE={needed} in the unit, or `ulimit -Hn {needed}` as root before the start"
    );
    Some(Check::wrong("nofile-too-low", true, found).advice(advice))
}

/// True if IPv6 is switched off for this address of the host, or was never there. For a loopback
/// address the interface lo alone counts.
pub fn is_ipv6_off(at: IpAddr) -> bool {
    let off = |name: &str| {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
        value.map_or(true, |value| value.trim() == "1")
    };
    off("lo") || (!at.is_loopback() && off("all"))
}

/// `ipv6-disabled`: only if IPv6 was asked for.
pub fn ipv6(config: &ListenerConfig) -> Option<Check> {
    const ID: &str = "ipv6-disabled";
    let target = config.targets.v6_given.then(|| config.targets.v6.into());
    let mut listeners = config.listen.iter().copied();
    let listener = listeners.find(|addr| Family::of(addr.ip()) == Family::V6);
    let wanted: Vec<SocketAddr> = target.into_iter().chain(listener).collect();
    if wanted.is_empty() {
        return None;
    }
    let Some(at) = wanted.iter().find(|at| is_ipv6_off(at.ip())) else {
        return Some(Check::ok(ID, "IPv6 is on"));
    };
    let what = match target {
        Some(target) if target == *at => format!("the target -6 {at}"),
        _ => format!("the listener -l {at}"),
    };
    // Not on interfaces that do without: other hosts reach backends by its addresses there.
    let run = match wanted.iter().all(|at| at.ip().is_loopback()) {
        true => "sysctl -w net.ipv6.conf.lo.disable_ipv6=0",
        false => "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0",
    };
    Some(Check::wrong(
        ID,
        true,
        format!("IPv6 is switched off on this host, but {what} needs it"),
    )
    .run(run)
    .advice("this lasts until the next boot; look in /etc/sysctl.conf and /etc/sysctl.d for what switches it off"))
}
