//! How many connections and flows the open-file limit carries.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{Config, Protocol};
use crate::metrics;
use crate::namespaces::DESCRIPTORS;
use crate::tcp;

/// Descriptors that are not connections: standard streams, runtimes, signals, netlink, logs.
const RESERVED: usize = 32;

/// Raises the open-file limit as far as it goes, and says how many connections and flows it
/// carries. Who asked for more is told.
pub fn capacity(config: &Config) -> usize {
    let limit = raise_open_files();
    let carried = carried(config, limit);
    for listener in &config.listeners {
        let (flag, asked) = match listener.protocol {
            Protocol::Tcp => ("-max-connections", listener.max_connections),
            Protocol::Udp => ("-max-flows", listener.max_flows),
        };
        if let Some(asked) = asked.filter(|asked| *asked > carried) {
            tracing::warn!(
                listener = listener.label.as_deref(),
                asked = asked as u64,
                carried = carried as u64,
                limit = limit as u64,
                "the open-file limit does not carry {flag}: raise LimitNOFILE"
            );
        }
    }
    carried
}

/// How many connections or flows so many open files carry. A connection takes two, beside the
/// pipes that bulk transfers share; a flow takes one, and a UDP listener three.
pub fn carried(config: &Config, limit: usize) -> usize {
    let workers = config.process.workers;
    let sockets = |protocol| {
        let listeners = config
            .listeners
            .iter()
            .filter(|listener| listener.protocol == protocol);
        listeners
            .map(|listener| listener.listen.len() * listener.listeners)
            .sum::<usize>()
    };
    let (tcp, udp) = (sockets(Protocol::Tcp), sockets(Protocol::Udp));
    let mut namespaces: Vec<_> = config
        .listeners
        .iter()
        .filter_map(|listener| listener.target_netns.as_ref())
        .collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    let inside = namespaces.len() * DESCRIPTORS;
    // Its socket, and its clients.
    let metrics = config.process.metrics.map_or(0, |_| 1 + metrics::CLIENTS);
    let rest = limit.saturating_sub(inside + RESERVED + metrics + 4 * workers + tcp + 3 * udp);
    let carried = match tcp {
        0 => rest,
        _ => {
            let pipes = (2 * tcp::PIPES_A_WORKER * workers).min(limit / 8);
            rest.saturating_sub(pipes) / 2
        }
    };
    carried.max(1)
}

fn raise_open_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX)
}
