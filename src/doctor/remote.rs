//! Targets that are not on this host: do their replies to strangers pass here?

use std::fs;
use std::io;

use super::check::Check;
use super::target::Target;
use super::words;
use crate::routing::family::Family;
use crate::routing::kernel::Kernel;
use crate::routing::plan::Question;

const ID: &str = "target-not-local";

/// `target-not-local`, as far as this host's own routes tell.
pub async fn check(kernel: &Kernel, target: &Target, with_guesses: bool) -> io::Result<Check> {
    let at = target.need.target;
    Ok(match doubt(kernel, target).await? {
        Doubt::Certain(why) => wrong(target, &why),
        Doubt::Guess(why) if with_guesses => wrong(target, &why),
        _ => Check::ok(
            ID,
            format!(
                "{at} is behind this host; whether its replies pass here, only -probe-remote can tell"
            ),
        ),
    })
}

/// The same, found by a probe.
pub fn wrong(target: &Target, why: &str) -> Check {
    let at = target.need.target;
    Check::wrong(
        ID,
        target.need.given,
        format!(
            "{at} is not an address of this host, and its replies to clients do not pass here: {why}"
        ),
    )
    .advice("run realpeer on the backend's host, or make this host the backend's default gateway (-probe-remote shows whether it is)")
}

/// What speaks against it that replies pass here.
enum Doubt {
    /// Nothing.
    No,
    /// They go another way.
    Certain(String),
    /// A gateway looks different; only a probe could tell for sure.
    Guess(String),
}

async fn doubt(kernel: &Kernel, target: &Target) -> io::Result<Doubt> {
    let family = target.need.family();
    let way = |to| Question {
        family,
        from: None,
        to,
        mark: None,
        arrives_on: None,
        udp_source_port: None,
    };
    let Some(there) = kernel.ask(&way(target.need.target.ip())).await? else {
        return Ok(Doubt::Certain("this host knows no way to it".into()));
    };
    let out = kernel.ask(&way(target.need.stranger)).await?;
    if let Some(out) = out.filter(|out| !out.local && out.interface == there.interface) {
        return Ok(Doubt::Certain(match (there.gateway, out.gateway) {
            (Some(gateway), _) => format!("it is beyond the gateway {gateway}"),
            (None, Some(gateway)) => format!("its network has another gateway, {gateway}"),
            (None, None) => "it is on the network that leads to the clients".into(),
        }));
    }
    let Some(index) = there.interface else {
        return Ok(Doubt::No);
    };
    // Containers stand on a bridge of this host, which is their gateway.
    if kernel.is_bridge(index).await? || forwards(family, &words::interface(index)) {
        return Ok(Doubt::No);
    }
    Ok(Doubt::Guess(
        "this host does not forward, so it is no gateway".into(),
    ))
}

fn forwards(family: Family, interface: &str) -> bool {
    let version = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let file = format!("/proc/sys/net/{version}/conf/{interface}/forwarding");
    fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}
