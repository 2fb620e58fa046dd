//! Which capabilities the process keeps, and how it gives up the rest (capabilities(7)).

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use socket2::{Domain, Socket, Type};

use crate::config::{Config, Routing, SourcePort};

/// What the calling thread may use.
pub fn permitted() -> CapsHashSet {
    caps::read(None, CapSet::Permitted).unwrap_or_default()
}

/// Takes what is permitted into use. The capabilities of a file may be permitted only, so that the
/// program starts with fewer, too: execve(2) fails where a file has more in effect than it may get.
pub fn take_up() -> Result<(), CapsError> {
    caps::set(
        None,
        CapSet::Effective,
        &caps::read(None, CapSet::Permitted)?,
    )
}

/// What a process with this configuration needs of what it `has`.
pub fn needed(config: &Config, has: &CapsHashSet) -> CapsHashSet {
    let mut needed = CapsHashSet::new();
    // IP_TRANSPARENT takes either of the two.
    match has.contains(&Capability::CAP_NET_RAW) {
        true => needed.insert(Capability::CAP_NET_RAW),
        false => needed.insert(Capability::CAP_NET_ADMIN),
    };
    if config.process.routing == Routing::Auto || !raw_may_mark() {
        needed.insert(Capability::CAP_NET_ADMIN);
    }
    if uses_low_ports(config) {
        needed.insert(Capability::CAP_NET_BIND_SERVICE);
    }
    needed.intersection(has).copied().collect()
}

/// Whether ports below 1024 may be bound: a client's may be any, unless none is claimed.
pub fn uses_low_ports(config: &Config) -> bool {
    config.listeners.iter().any(|listener| {
        listener.source_port != SourcePort::Any
            || listener.listen.iter().any(|addr| addr.port() < 1024)
    })
}

/// Whether CAP_NET_RAW is enough for SO_MARK, as it is since Linux 5.17. The kernel is asked.
fn raw_may_mark() -> bool {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::DGRAM, None) else {
        return false;
    };
    let Ok(effective) = caps::read(None, CapSet::Effective) else {
        return false;
    };
    let raw = CapsHashSet::from([Capability::CAP_NET_RAW]);
    if !effective.is_superset(&raw) || caps::set(None, CapSet::Effective, &raw).is_err() {
        return false;
    }
    let may = socket.set_mark(1).is_ok();
    // What is permitted can be taken back into use.
    caps::set(None, CapSet::Effective, &effective).is_ok() && may
}

/// Leaves the calling thread these, and its children none that it does not have. Without
/// CAP_SETPCAP the bounding set stays: no_new_privs keeps it from being of use.
pub fn keep_only(kept: &CapsHashSet) -> Result<(), CapsError> {
    let gone = caps::all();
    for capability in gone.difference(kept) {
        if caps::drop(None, CapSet::Bounding, *capability).is_err() {
            break;
        }
    }
    // Kernels before 4.3 have no ambient set.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)
}

/// Their names, in order.
pub fn names(capabilities: &CapsHashSet) -> Vec<String> {
    let mut names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names
}
