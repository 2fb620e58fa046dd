//! The listening side: the port, a loop, the load balancer.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::check::Check;
use super::outside::quote;
use super::processes;
use crate::config::{ListenerConfig, NetworkList, Protocol};
use crate::networks::Networks;
use crate::routing::bound::{self, Bound};

/// `port-in-use`.
pub fn port(config: &ListenerConfig, listen: SocketAddr) -> Check {
    const ID: &str = "port-in-use";
    if !is_taken(config.protocol, listen) {
        return Check::ok(ID, format!("{listen} is free"));
    }
    let holders = bound::bound(config.protocol);
    let holder = holders
        .iter()
        .find(|other| collide(other, listen))
        .and_then(|other| processes::holder(other.inode));
    match holder {
        Some(process) if processes::is_this_program(process.pid) => {
            Check::ok(ID, format!("{listen} is held by {process}"))
        }
        Some(process) if process.is("realpeer") => Check::wrong(
            ID,
            true,
            format!(
                "{listen} is taken by {process}, which calls itself realpeer but runs another program, {}",
                process.program()
            ),
        )
        .advice("stop that program, or choose another address with -l; if it is a realpeer of yours, run the doctor with the same executable"),
        Some(process) => Check::wrong(ID, true, format!("{listen} is taken by {process}"))
            .advice("stop that program, or choose another address with -l"),
        None => Check::wrong(
            ID,
            true,
            format!("{listen} is taken by a process that only root can see"),
        )
        .advice("run the doctor as root, or choose another address with -l"),
    }
}

/// As the proxy binds it; nothing is taken by this, the socket never listens.
fn is_taken(protocol: Protocol, listen: SocketAddr) -> bool {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let bind = || {
        let socket = Socket::new(Domain::for_address(listen), kind, None)?;
        if protocol == Protocol::Tcp {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&listen.into())
    };
    bind().is_err_and(|e: std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse)
}

fn collide(other: &Bound, listen: SocketAddr) -> bool {
    let (a, b) = (other.addr.ip(), listen.ip());
    other.addr.port() == listen.port() && (bound::serves(a, b) || bound::serves(b, a))
}

/// True if connections to `target`, which is on this host, come back to the listener.
pub fn is_listener(config: &ListenerConfig, target: SocketAddr) -> bool {
    let mut listen = config.listen.iter();
    listen.any(|addr| target.port() == addr.port() && bound::serves(addr.ip(), target.ip()))
}

/// `target-is-listener`.
pub fn target(config: &ListenerConfig, target: SocketAddr) -> Check {
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    Check::wrong(
        "target-is-listener",
        true,
        format!(
            "the target {target} is what realpeer itself listens on (-l {})",
            listen.join(",")
        ),
    )
    .advice("give the backend's own address with -4 or -6")
}

/// `peer-not-allowed`: only if a load balancer and a file were named. A file that cannot be read
/// is for the proxy to refuse.
pub fn peer(config: &ListenerConfig, from: Option<IpAddr>) -> Option<Check> {
    const ID: &str = "peer-not-allowed";
    let (from, list) = (from?.to_canonical(), config.allowed_subnets.as_ref()?);
    let networks = Networks::of(list).ok()?;
    let place = match list {
        NetworkList::File(path) => path.display().to_string(),
        NetworkList::Here(_) => "the allowed-subnets of the configuration file".to_owned(),
    };
    if networks.contains(from) {
        return Some(Check::ok(ID, format!("{from} is in {place}")));
    }
    let found = format!("the load balancer {from} is not in {place}: its connections are refused");
    let check = Check::wrong(ID, true, found);
    Some(match list {
        NetworkList::File(_) => check
            .run(format!("printf '\\n%s\\n' {from} >> {}", quote(&place)))
            .advice("then reload realpeer, if it runs: systemctl reload, or realpeer ctl reload"),
        NetworkList::Here(_) => check.advice(format!("add {from} there, then reload realpeer")),
    })
}

/// `target-default`: the flag that was left out, if the other was given.
pub fn unset_target(config: &ListenerConfig) -> Option<Check> {
    let targets = &config.targets;
    let (flag, family, default) = match (targets.v4_given, targets.v6_given) {
        (true, false) => ("-6", "IPv6", targets.v6.to_string()),
        (false, true) => ("-4", "IPv4", targets.v4.to_string()),
        _ => return None,
    };
    Some(Check::ok(
        "target-default",
        format!("{flag} was not given: {family} clients go to its default, {default}"),
    ))
}
