//! Carries out what comes over the control socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::protocol::{Connection, End, Line, Network, Request, Status};
use crate::bans::{self, Ban};
use crate::config::Protocol;
use crate::proxy::Proxy;
use crate::sessions::{EndedBy, Session, SessionId};
use crate::stats::Count;
use crate::sys;

/// The longest ban that is not for ever: a hundred years.
const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;

/// The longest reason, in bytes.
const LONGEST_REASON: usize = 512;

/// Who carries out commands: the running proxy, and what only its start knew.
#[derive(Debug)]
pub struct Office {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// When it began to.
    pub started: Instant,
}

impl Office {
    /// Carries out a request and returns the lines of its answer.
    pub fn answer(&self, request: Request) -> Vec<Line> {
        match request {
            Request::Status {} => end(self.status()),
            Request::Connections {} => self.connections(),
            Request::Kill { id, client } => end(self.kill(id, client)),
            Request::Ban {
                network,
                length,
                reason,
                listener,
                force,
            } => end(self
                .ban(network.0, length, reason, listener, force)
                .unwrap_or_else(End::error)),
            Request::Unban { network, listener } => end(self.unban(network.0, listener.as_deref())),
            Request::Bans {} => self.bans(),
        }
    }

    fn status(&self) -> End {
        let settings = &self.proxy.settings;
        let counts = Count::ALL
            .iter()
            .map(|count| (count.name().to_owned(), self.proxy.count(*count)));
        End {
            status: Some(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                name: settings.name.clone(),
                pid: std::process::id(),
                listen: self.listen,
                protocol: match settings.protocol {
                    Protocol::Tcp => "tcp".to_owned(),
                    Protocol::Udp => "udp".to_owned(),
                },
                uptime: self.started.elapsed().as_secs(),
                open: self.proxy.open(),
                bans: self.proxy.admission.bans.list().len(),
                counts: counts.collect(),
            }),
            ..End::ok()
        }
    }

    fn connections(&self) -> Vec<Line> {
        let workers = self.proxy.workers.iter();
        let mut all: Vec<_> = workers.flat_map(|worker| worker.sessions.list()).collect();
        all.sort_unstable_by_key(|(_, session)| session.began);
        list(all.iter().map(|(id, session)| Line::Connection {
            connection: Connection {
                id: *id,
                client: session.route.map(|route| route.client.0),
                peer: session.peer.0,
                target: session.route.map(|route| route.target.0),
                age: session.began.elapsed().as_secs(),
            },
        }))
    }

    fn kill(&self, id: Option<SessionId>, client: Option<Network>) -> End {
        let killed = match (id, client) {
            (Some(wanted), None) => self.proxy.kill(EndedBy::Kill, |id, _| id == wanted),
            (None, Some(Network(network))) => self
                .proxy
                .kill(EndedBy::Kill, |_, session| is_of(session, &network)),
            _ => return End::error("kill: give an id, or a client"),
        };
        if killed == 0 {
            return End::error("there is no such connection");
        }
        tracing::info!(
            killed = killed as u64,
            "connections ended by realpeer ctl kill"
        );
        End {
            killed: Some(killed),
            ..End::ok()
        }
    }

    fn ban(
        &self,
        network: IpNet,
        length: Option<f64>,
        reason: String,
        listener: Option<String>,
        force: bool,
    ) -> Result<End, String> {
        if length.is_some_and(|seconds| !(seconds > 0.0 && seconds <= LONGEST)) {
            return Err("for: give more than 0 seconds and less than a hundred years".into());
        }
        if reason.len() > LONGEST_REASON {
            return Err(format!("the reason is longer than {LONGEST_REASON} bytes"));
        }
        let bans = &self.proxy.admission.bans;
        if let Some(name) = listener
            .as_deref()
            .filter(|name| bans.listener() != Some(name))
        {
            return Err(format!("no listener is called {name:?} here (-name)"));
        }
        if !force {
            self.refuse_if_protected(&network)?;
        }
        let until = length.map(|seconds| bans::after(Duration::from_secs_f64(seconds)));
        let ban = Ban {
            network,
            listener,
            since: bans::now(),
            until,
            reason,
        };
        let written = bans.ban(ban.clone());
        let killed = self.proxy.kill(EndedBy::Ban, |_, session| {
            session.route.is_some_and(|route| route.named) && is_of(session, &network)
        });
        tracing::info!(
            network = %network,
            seconds = length.map(|seconds| seconds.ceil() as u64),
            reason = ban.reason,
            listener = ban.listener,
            killed = killed as u64,
            "client banned"
        );
        Ok(End {
            killed: Some(killed),
            until,
            warning: self.warning(written),
            ..End::ok()
        })
    }

    /// Who bans the hosts that all clients come through, or this one, bans everybody.
    fn refuse_if_protected(&self, network: &IpNet) -> Result<(), String> {
        let own = sys::interfaces::addresses();
        let own = own.iter().find(|ip| network.contains(*ip)).copied();
        let loopback = Some(network.addr()).filter(|ip| ip.is_loopback());
        if let Some(ip) = own.or(loopback) {
            return Err(format!(
                "{network} holds this host's own address {ip}: refused without -force"
            ));
        }
        let trusted = self.proxy.admission.allowed_subnets.as_ref();
        if let Some(found) = trusted.and_then(|list| list.overlap(network)) {
            return Err(format!(
                "{network} overlaps {found}, a load balancer of the allowed-subnets file: refused without -force"
            ));
        }
        Ok(())
    }

    fn unban(&self, network: IpNet, listener: Option<&str>) -> End {
        let bans = &self.proxy.admission.bans;
        let (ended, written) = bans.unban(network, listener);
        if ended.is_empty() {
            let wider = bans.list().covering(&network).last().cloned();
            return End::error(match wider {
                Some(ban) => format!(
                    "{network} is banned as a part of {}: unban that",
                    ban.network
                ),
                None => format!("{network} is not banned"),
            });
        }
        tracing::info!(network = %network, "client unbanned");
        End {
            count: Some(ended.len()),
            warning: self.warning(written),
            ..End::ok()
        }
    }

    fn bans(&self) -> Vec<Line> {
        let now = bans::now();
        let bans = self.proxy.admission.bans.list();
        let current = bans
            .iter()
            .filter(|ban| ban.until.is_none_or(|until| now < until));
        list(current.map(|ban| Line::Ban { ban: ban.clone() }))
    }

    fn warning(&self, written: anyhow::Result<()>) -> Option<String> {
        match written {
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "this change to the bans will be lost at the next start"
                );
                Some(format!("it holds until realpeer ends: {error:#}"))
            }
            Ok(()) if !self.proxy.admission.bans.are_kept() => {
                Some("bans end when realpeer does: it runs without -state-dir".into())
            }
            Ok(()) => None,
        }
    }
}

fn is_of(session: &Session, network: &IpNet) -> bool {
    session
        .route
        .is_some_and(|route| network.contains(&route.client.ip()))
}

fn end(end: End) -> Vec<Line> {
    vec![Line::End(end)]
}

fn list(entries: impl Iterator<Item = Line>) -> Vec<Line> {
    let mut lines: Vec<Line> = entries.collect();
    let count = Some(lines.len());
    lines.push(Line::End(End { count, ..End::ok() }));
    lines
}
