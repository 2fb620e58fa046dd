//! The backend on this host: does anything listen, and is it the real one?

use std::net::{IpAddr, SocketAddr};

use super::check::Check;
use super::processes::{self, Process};
use super::target::Target;
use crate::routing::bound;

/// What listens where the target is.
#[derive(Clone, Debug)]
pub enum Backend {
    /// A socket that takes what is sent to the target.
    Listens,
    /// Docker's relay, which hides every client.
    DockerProxy(Process),
    /// Nothing, but these have the port on another address.
    Elsewhere(Vec<SocketAddr>),
    /// Nothing.
    Nobody,
}

/// Looks for the backend of a target on this host.
pub fn look(target: &Target) -> Backend {
    let at = target.need.target;
    let sockets = bound::bound(target.protocol);
    let on_port: Vec<_> = sockets
        .iter()
        .filter(|s| s.addr.port() == at.port())
        .collect();
    let serving: Vec<_> = on_port
        .iter()
        .filter(|s| bound::serves(s.addr.ip(), at.ip()))
        .collect();
    let docker = serving
        .iter()
        .filter_map(|s| processes::holder(s.inode))
        .find(|p| p.is("docker-proxy"));
    match docker {
        Some(process) => Backend::DockerProxy(process),
        None if !serving.is_empty() => Backend::Listens,
        None if on_port.is_empty() => Backend::Nobody,
        None => Backend::Elsewhere(on_port.iter().map(|s| s.addr).collect()),
    }
}

/// The socket that looks as if it served the target, but cannot: one on :: for IPv6 only.
pub fn only_ipv6(target: &Target) -> bool {
    let at = target.need.target;
    let sockets = bound::bound(target.protocol);
    let mut serving = sockets
        .iter()
        .filter(|s| s.addr.port() == at.port() && bound::serves(s.addr.ip(), at.ip()));
    at.is_ipv4() && serving.all(|s| s.addr.is_ipv6())
}

/// `docker-proxy`, `backend-other-address` and `backend-down`.
pub fn check(target: &Target, backend: &Backend) -> Check {
    let at = target.need.target;
    let given = target.need.given;
    let (flag, protocol) = (target.flag(), target.protocol_name());
    match backend {
        Backend::Listens => Check::ok(
            "backend-down",
            format!("something listens on {at} ({protocol})"),
        ),
        Backend::Nobody => Check::wrong(
            "backend-down",
            given,
            format!("nothing listens on {at} ({protocol})"),
        )
        .advice(format!(
            "start the backend, or give its address with {flag}"
        )),
        Backend::Elsewhere(others) => Check::wrong(
            "backend-other-address",
            given,
            format!(
                "nothing listens on {at} ({protocol}), but the backend does on {}",
                list(others)
            ),
        )
        .advice(advice(target, others)),
        Backend::DockerProxy(process) => {
            let container = match container(process) {
                Some(addr @ SocketAddr::V4(_)) => format!("-4 {addr}"),
                Some(addr @ SocketAddr::V6(_)) => format!("-6 {addr}"),
                None => format!("{flag} CONTAINER-ADDRESS:PORT (docker inspect shows it)"),
            };
            Check::wrong(
                "docker-proxy",
                given,
                format!(
                    "{at} is a published container port: {process} stands in between, and the container sees Docker's address whatever realpeer does"
                ),
            )
            .advice(format!("give realpeer the container's own address: {container}"))
        }
    }
}

/// Where the relay says that it leads. Anybody can write a command line: only addresses count.
pub fn container(process: &Process) -> Option<SocketAddr> {
    let ip: IpAddr = process.flag("container-ip")?.parse().ok()?;
    let port: u16 = process.flag("container-port")?.parse().ok()?;
    Some(SocketAddr::new(ip, port))
}

fn list(addrs: &[SocketAddr]) -> String {
    addrs
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn advice(target: &Target, others: &[SocketAddr]) -> String {
    let at = target.need.target;
    let same_family = others.iter().find(|addr| addr.is_ipv4() == at.is_ipv4());
    match same_family {
        Some(addr) => format!(
            "{} {addr}, or let the backend listen on {at}",
            target.flag()
        ),
        None => format!("let the backend listen on {at} too (it knows the other IP version only)"),
    }
}
