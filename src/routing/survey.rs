//! From the settings and the state of this host to what its targets need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};

use super::bound;
use super::family::Family;
use super::kernel::Kernel;
use super::plan::{self, Need, Place, Way};
use super::stranger;
use crate::config::{Protocol, RoutingMode, Settings};

/// What the targets of `settings` need, IPv4 first.
/// Fails when `-routing-mode` cannot work for a target that was given.
pub async fn needs(kernel: &Kernel, settings: &Settings) -> Result<Vec<Need>> {
    let targets = &settings.targets;
    let mut needs = Vec::new();
    for (target, given) in [
        (SocketAddr::V4(targets.v4), targets.v4_given),
        (SocketAddr::V6(targets.v6), targets.v6_given),
    ] {
        needs.push(need(kernel, settings, target, given).await?);
    }
    if settings.dynamic_destination && settings.protocol == Protocol::Tcp {
        for family in Family::BOTH {
            needs.push(anywhere(kernel, settings, family).await?);
        }
    }
    Ok(needs)
}

async fn need(
    kernel: &Kernel,
    settings: &Settings,
    target: SocketAddr,
    given: bool,
) -> Result<Need> {
    let protocol = settings.protocol;
    let (place, _) = kernel
        .locate(target.ip())
        .await
        .with_context(|| format!("cannot ask the kernel where {target} is"))?;
    let udp = protocol == Protocol::Udp && place != Place::Behind;
    let wildcard = udp && bound::is_wildcard(&bound::bound(protocol), target);
    let auto = plan::choose(protocol, place, wildcard);
    let way = match by_hand(settings.routing_mode) {
        None => auto,
        Some(way) if fits(way, protocol, place) => way,
        Some(_) if !given => auto,
        Some(way) => bail!("-routing-mode {way} cannot serve {target}: {}", limits(way)),
    };
    Ok(Need {
        target,
        given,
        way,
        mark: settings.mark,
        wildcard: wildcard && way == Way::UdpPort,
        stranger: stranger::draw(kernel, Family::of(target.ip())).await?,
    })
}

/// With `-dynamic-destination` the header may name any address of this host.
async fn anywhere(kernel: &Kernel, settings: &Settings, family: Family) -> Result<Need> {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok(Need {
        target: SocketAddr::new(ip, 0),
        given: false,
        way: Way::Mark,
        mark: settings.mark,
        wildcard: true,
        stranger: stranger::draw(kernel, family).await?,
    })
}

fn by_hand(mode: RoutingMode) -> Option<Way> {
    match mode {
        RoutingMode::Auto => None,
        RoutingMode::Loopback => Some(Way::Loopback),
        RoutingMode::Mark => Some(Way::Mark),
        RoutingMode::Socket => Some(Way::Socket),
        RoutingMode::UdpPort => Some(Way::UdpPort),
    }
}

fn fits(way: Way, protocol: Protocol, place: Place) -> bool {
    match way {
        Way::Loopback => place == Place::Loopback,
        Way::Mark => protocol == Protocol::Tcp && place != Place::Behind,
        Way::Socket => place == Place::Behind,
        Way::UdpPort => protocol == Protocol::Udp && place != Place::Behind,
    }
}

fn limits(way: Way) -> &'static str {
    match way {
        Way::Loopback => "it is for targets on 127.0.0.0/8 and ::1",
        Way::Mark => "it is for TCP targets on an address of this host",
        Way::Socket => "it is for targets behind this host; this one is on it",
        Way::UdpPort => "it is for UDP targets on an address of this host",
    }
}
