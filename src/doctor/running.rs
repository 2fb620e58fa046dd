//! The running proxy, asked at its control socket: whom it refuses, and what that means.

use std::fs;

use super::check::{Check, Status};
use crate::config::{Choice, Config, ListenerConfig, NetworkList};
use crate::control::{self, LastRefused};
use crate::limits;
use crate::stats::Count;

/// Refusals longer ago, in seconds, say nothing of now.
const RECENT: u64 = 3600;
/// Trouble with the listener itself that is longer ago, in seconds, may be over.
const NOW: u64 = 60;
/// So many refusals in a row are no chance where nobody has ever been served, and where somebody has.
/// One scanner on the internet tries once or twice.
const FEW: u64 = 3;
const MANY: u64 = 20;

/// The proxy that listens where `-l` says.
pub struct Running {
    status: control::Status,
    listener: control::Listener,
}

/// The proxy of this configuration, if one answers and has that listener.
pub fn find(config: &Config, listener: &ListenerConfig) -> Option<Running> {
    let mut status = control::status(&config.process)?;
    let ports: Vec<u16> = listener.listen.iter().map(|addr| addr.port()).collect();
    let is_it = |running: &&control::Listener| {
        running.protocol == listener.protocol.word()
            && running
                .listen
                .iter()
                .any(|addr| ports.contains(&addr.port()))
    };
    // Several may have the port, each on another address.
    let at = |wanted: &dyn Fn(&control::Listener) -> bool| {
        let mut all = status.listeners.iter();
        all.position(|running| is_it(&running) && wanted(running))
    };
    let at = at(&|running| running.name == listener.name)
        .or_else(|| at(&|running| running.listen.iter().any(|a| listener.listen.contains(a))))
        .or_else(|| at(&|_| true))?;
    let listener = status.listeners.swap_remove(at);
    Some(Running { status, listener })
}

/// What the counts of a running proxy say is wrong.
pub fn wrong(status: &control::Status, config: &Config) -> Vec<Check> {
    let pairs = status.listeners.iter().zip(&config.listeners);
    let checks = pairs.flat_map(|(listener, config)| {
        let running = Running {
            status: status.clone(),
            listener: listener.clone(),
        };
        running.checks(config)
    });
    checks.filter(|check| check.status != Status::Ok).collect()
}

impl Running {
    /// `refused`, once for each reason that clients may be missing, or once for all is well.
    pub fn checks(&self, config: &ListenerConfig) -> Vec<Check> {
        let wrong: Vec<_> = Count::ALL
            .iter()
            .filter_map(|kind| self.check(*kind, config))
            .collect();
        if !wrong.is_empty() {
            return wrong;
        }
        let (pid, served) = (self.status.pid, self.count(Count::Served));
        let refused: Vec<_> = self
            .listener
            .refused
            .keys()
            .map(|kind| format!("{kind} {}", self.listener.counts.get(kind).unwrap_or(&0)))
            .collect();
        let refused = match &refused[..] {
            [] => "none".to_owned(),
            some => some.join(", "),
        };
        let since = ago(self.status.uptime);
        vec![Check::ok(
            "refused",
            format!("process {pid} began {since}: {served} served, refused: {refused}"),
        )]
    }

    fn check(&self, kind: Count, config: &ListenerConfig) -> Option<Check> {
        let last = self.listener.refused.get(kind.name())?;
        let severity = severity(
            kind,
            last,
            self.count(kind),
            self.count(Count::Accepted),
            self.count(Count::Served),
            config.allowed_subnets.is_some(),
        )?;
        let from = match last.peer {
            Some(peer) => format!(", the last from {peer}"),
            None => ", the last".to_owned(),
        };
        let row = match last.in_a_row {
            n if n > 1 && !last.served_since => format!("; {n} in a row, and none served since"),
            _ => String::new(),
        };
        let found = format!(
            "{} (process {}) refused {} connections since it began {} because {}{from} {}{row}",
            kind.name(),
            self.status.pid,
            self.count(kind),
            ago(self.status.uptime),
            reason(kind),
            ago(last.ago),
        );
        let advice = advice(kind, last, config);
        Some(Check::wrong("refused", severity == Status::Failed, found).advice(advice))
    }

    fn count(&self, kind: Count) -> u64 {
        self.listener.counts.get(kind.name()).copied().unwrap_or(0)
    }

    /// The number of open files that the process may have.
    pub fn open_files(&self) -> Option<usize> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.status.pid)).ok()?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        let soft = line.split_whitespace().next()?;
        Some(soft.parse().unwrap_or(usize::MAX))
    }

    /// `nofile-too-low`, by the limit that the process runs with.
    pub fn nofile(&self, config: &Config, listener: &ListenerConfig) -> Option<Check> {
        let limit = self.open_files()?;
        let carried = limits::carried(config, limit);
        let pid = self.status.pid;
        if listener
            .max_connections
            .is_none_or(|asked| asked <= carried)
        {
            return Some(Check::ok(
                "nofile-too-low",
                format!(
                    "{limit} open files, the limit of process {pid}, carry {carried} connections"
                ),
            ));
        }
        super::host::too_low(
            config,
            listener,
            limit,
            &format!("the {limit} open files of process {pid} carry"),
        )
    }
}

/// How bad refusals of a kind are. Clients fail now if the last refusals came in a row, with nobody
/// served among them or after them. Where strangers can connect as well as load balancers, a row
/// counts only if it is one peer's.
fn severity(
    kind: Count,
    last: &LastRefused,
    count: u64,
    accepted: u64,
    served: u64,
    only_balancers: bool,
) -> Option<Status> {
    let row = match kind {
        Count::TooManyConnections | Count::AcceptFailed => {
            return match last.ago {
                0..=NOW => Some(Status::Failed),
                ago if ago <= RECENT => Some(Status::Warning),
                _ => None,
            };
        }
        Count::UpstreamFailed => last.in_a_row,
        Count::PeerNotAllowed => last.of_peer,
        Count::HeaderCut
        | Count::HeaderTimeout
        | Count::HeaderAbsent
        | Count::HeaderBad
        | Count::BogusClient
        | Count::TargetIsListener
        | Count::BadDestination => match only_balancers {
            true => last.in_a_row,
            false => last.of_peer,
        },
        // What the administrator wants, and health checks.
        _ => return None,
    };
    let enough = if served == 0 { FEW } else { MANY };
    let share = count >= MANY && count * 10 >= accepted;
    match last.ago {
        ago if ago > RECENT => None,
        _ if row >= enough && !last.served_since => Some(Status::Failed),
        _ if share && only_balancers && kind != Count::PeerNotAllowed => Some(Status::Warning),
        _ => None,
    }
}

fn reason(kind: Count) -> &'static str {
    match kind {
        Count::PeerNotAllowed => "the peer is not in the allowed-subnets file",
        Count::TooManyConnections => "too many were open",
        Count::AcceptFailed => "it had no file descriptors or memory for them",
        Count::HeaderAbsent => "they came without a PROXY header",
        Count::HeaderTimeout => "no PROXY header came in time",
        Count::HeaderCut => "the peer went away in the middle of its header",
        Count::HeaderBad => "their PROXY headers were broken",
        Count::BogusClient => "their headers claim clients that cannot be",
        Count::TargetIsListener => "they would have come back to the listener",
        Count::BadDestination => "their headers name destinations that cannot be reached",
        _ => "the backend could not be reached",
    }
}

fn advice(kind: Count, last: &LastRefused, config: &ListenerConfig) -> String {
    let peer = last
        .peer
        .map_or_else(|| "the peer".to_owned(), |ip| ip.to_string());
    match kind {
        Count::PeerNotAllowed => {
            let file = match &config.allowed_subnets {
                Some(NetworkList::File(path)) => path.display().to_string(),
                _ => "its allowed-subnets".to_owned(),
            };
            format!("if {peer} is your load balancer, add it to {file} and reload realpeer; if it is a stranger, nothing is wrong")
        }
        Count::TooManyConnections | Count::AcceptFailed => {
            "raise LimitNOFILE in the unit, and -max-connections if it is given; `realpeer ctl connections` shows whose they are".to_owned()
        }
        Count::HeaderAbsent => format!(
            "turn the PROXY protocol on at {peer}: `proxy_protocol on` in nginx's server block, `send-proxy-v2` on HAProxy's server line, proxy protocol v2 at a cloud's load balancer"
        ),
        Count::HeaderTimeout => format!(
            "turn the PROXY protocol on at {peer}; if it is on, it withholds the header until the client's first byte, which does not work where the server speaks first, as in SSH"
        ),
        Count::HeaderCut | Count::HeaderBad => {
            format!("the log says what {peer} sent: look whether it speaks PROXY version 1 or 2, and once")
        }
        Count::UpstreamFailed => {
            "see what is said of the backend here, and in the log of realpeer".to_owned()
        }
        _ => format!("the log says what the headers of {peer} claim"),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(in_a_row: u64, of_peer: u64) -> LastRefused {
        LastRefused {
            peer: None,
            ago: 5,
            in_a_row,
            of_peer,
            served_since: false,
        }
    }

    #[test]
    fn clients_fail_now_if_a_row_of_refusals_is_the_last_that_happened() {
        let absent = |last: &LastRefused, served, listed| {
            severity(Count::HeaderAbsent, last, 5, 10 + served, served, listed)
        };
        assert_eq!(absent(&last(3, 1), 0, true), Some(Status::Failed));
        // Scanners: one, and several.
        assert_eq!(absent(&last(2, 2), 0, false), None);
        assert_eq!(absent(&last(9, 1), 0, false), None);
        // It worked until lately.
        assert_eq!(absent(&last(19, 19), 100, true), None);
        assert_eq!(absent(&last(20, 20), 100, true), Some(Status::Failed));
        // Others are served.
        let since = LastRefused {
            served_since: true,
            ..last(50, 50)
        };
        assert_eq!(absent(&since, 100, true), None);
        let old = LastRefused {
            ago: 3601,
            ..last(50, 50)
        };
        assert_eq!(absent(&old, 0, true), None);
    }

    #[test]
    fn a_tenth_of_all_refused_is_worth_a_warning() {
        let since = LastRefused {
            served_since: true,
            ..last(1, 1)
        };
        let of = |kind, count| severity(kind, &since, count, 1000, 900, true);
        assert_eq!(of(Count::HeaderAbsent, 99), None);
        assert_eq!(of(Count::HeaderAbsent, 100), Some(Status::Warning));
        assert_eq!(of(Count::PeerNotAllowed, 500), None);
        assert_eq!(of(Count::Banned, 500), None);
    }
}
