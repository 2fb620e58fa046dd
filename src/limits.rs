//! How many connections and flows the open-file limit carries.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{Protocol, Settings};
use crate::tcp;

/// Descriptors that are not connections: standard streams, runtimes, signals, netlink, logs.
const RESERVED: usize = 32;

/// Raises the open-file limit as far as it goes, and says how many connections or flows may be
/// open: what was asked for, or what the limit carries.
pub fn capacity(settings: &Settings) -> usize {
    let limit = raise_open_files();
    let carried = carried(settings, limit);
    let (flag, asked) = match settings.protocol {
        Protocol::Tcp => ("-max-connections", settings.max_connections),
        Protocol::Udp => ("-max-flows", settings.max_flows),
    };
    let Some(asked) = asked else {
        return carried;
    };
    if asked > carried {
        tracing::warn!(
            asked = asked as u64,
            carried = carried as u64,
            limit = limit as u64,
            "the open-file limit does not carry {flag}: raise LimitNOFILE"
        );
    }
    asked
}

/// How many connections or flows so many open files carry. A connection takes two, beside the
/// pipes that bulk transfers share; a flow takes one, and a UDP listener three.
pub fn carried(settings: &Settings, limit: usize) -> usize {
    let fixed = RESERVED + 4 * settings.workers;
    let carried = match settings.protocol {
        Protocol::Tcp => {
            let pipes = (2 * tcp::PIPES_A_WORKER * settings.workers).min(limit / 8);
            limit.saturating_sub(fixed + settings.listeners + pipes) / 2
        }
        Protocol::Udp => limit.saturating_sub(fixed + 3 * settings.listeners),
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
