//! From targets and the state of this host to what they need.

use anyhow::{Context, Result, bail};

use super::bound;
use super::family::Family;
use super::kernel::Kernel;
use super::plan::{self, Need, Place, Way};
use super::stranger;
use crate::config::{Protocol, RouteTarget, RoutingMode};

/// What these targets need.
/// Fails when a `-routing-mode` cannot work for a target that was given.
pub async fn needs(kernel: &Kernel, targets: &[RouteTarget]) -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    for target in targets {
        needs.push(need(kernel, target).await?);
    }
    Ok(needs)
}

async fn need(kernel: &Kernel, route: &RouteTarget) -> Result<Need> {
    let RouteTarget {
        target,
        given,
        protocol,
        mark,
        mode,
        ref netns,
    } = *route;
    if target.ip().is_unspecified() && target.port() == 0 {
        return anywhere(kernel, route).await;
    }
    let (place, _) = kernel
        .locate(target.ip())
        .await
        .with_context(|| format!("cannot ask the kernel where {target} is"))?;
    let udp = protocol == Protocol::Udp && place != Place::Behind;
    let wildcard = udp && bound::is_wildcard(&bound::bound(protocol), target);
    let auto = plan::choose(protocol, place, wildcard);
    let way = match by_hand(mode) {
        None => auto,
        Some(way) if fits(way, protocol, place) => way,
        Some(_) if !given => auto,
        Some(way) => bail!("-routing-mode {way} cannot serve {target}: {}", limits(way)),
    };
    Ok(Need {
        target,
        netns: netns.as_ref().map(ToString::to_string),
        given,
        way,
        mark,
        wildcard: wildcard && way == Way::UdpPort,
        stranger: stranger::draw(kernel, Family::of(target.ip())).await?,
    })
}

/// Any address of this host, which is how `-dynamic-destination` asks.
async fn anywhere(kernel: &Kernel, route: &RouteTarget) -> Result<Need> {
    let family = Family::of(route.target.ip());
    Ok(Need {
        target: route.target,
        netns: route.netns.as_ref().map(ToString::to_string),
        given: false,
        way: Way::Mark,
        mark: route.mark,
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
