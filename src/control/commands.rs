//! Carries out what comes over the control socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::older;
use super::protocol::{Connection, End, LastRefused, Line, Listener, Network, Request, Status};
use crate::bans::{self, Ban};
use crate::config::{self, Choice, Verbosity};
use crate::handover::succession::Succession;
use crate::listeners::Listeners;
use crate::proxy::Proxy;
use crate::service::{Record, Service};
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
    /// The listeners that run.
    pub listeners: Arc<Listeners>,
    /// When they began to.
    pub started: Instant,
    /// Whether another process takes over.
    pub succession: Succession,
}

impl Office {
    /// Makes what was done last. Call it before an answer is sent.
    pub async fn settle(&self, answers: &mut [Line]) {
        let Err(error) = self.proxy().bans.sync().await else {
            return;
        };
        let warning = self.warning(Err(error));
        for answer in answers {
            if let Line::End(end) = answer {
                end.warning.clone_from(&warning);
            }
        }
    }

    /// Does what is asked, and tells the lines of the answer: those of processes before this one,
    /// too. When another process serves, it answers.
    pub async fn answer(&self, request: Request) -> Vec<Line> {
        let succession = &self.succession;
        let gate = match request {
            // These change nothing that is passed on, or keep away from it by themselves.
            Request::Status {}
            | Request::Connections { .. }
            | Request::Bans {}
            | Request::Config {}
            | Request::Reload {}
            | Request::Upgrade {} => None,
            _ => Some(succession.gate.read().await),
        };
        if succession.is_over() {
            return succession.relay(&request).await;
        }
        let lines = match request {
            Request::Upgrade {} => end(self.upgrade().await),
            ref request => self.answer_alone(request.clone()).await,
        };
        drop(gate);
        match request {
            Request::Reload {} if succession.is_over() => succession.relay(&request).await,
            _ => older::add(&self.proxy().elders, &request, lines).await,
        }
    }

    /// As `answer`, for this process only.
    pub async fn answer_alone(&self, request: Request) -> Vec<Line> {
        match request {
            Request::Upgrade {} => end(End::error("another process serves")),
            Request::Status {} => end(self.status().await),
            Request::Connections { listener } => self.connections(listener.as_deref()).await,
            Request::Kill { id, client } => end(self.kill(id, client)),
            Request::Ban {
                network,
                length,
                reason,
                listener,
                force,
            } => end(self
                .ban(network.0, length, reason, listener, force)
                .await
                .unwrap_or_else(End::error)),
            Request::Unban { network, listener } => end(self.unban(network.0, listener.as_deref())),
            Request::Bans {} => self.bans(),
            Request::Drain { listener } => {
                end(done(self.listeners.drain(listener.as_deref()).await))
            }
            Request::Resume { listener } => {
                end(done(self.listeners.resume(listener.as_deref()).await))
            }
            Request::Reload {} => end(match self.listeners.reload().await {
                Ok(notes) => End {
                    warning: (!notes.is_empty()).then(|| notes.join("; ")),
                    ..End::ok()
                },
                Err(error) => End::error(format!("nothing was changed: {error:#}")),
            }),
            Request::Log { level } => end(self.log(level)),
            Request::Config {} => end(End {
                config: Some(config::in_force(&self.listeners.config().await)),
                ..End::ok()
            }),
        }
    }

    async fn upgrade(&self) -> End {
        match self.succession.order().await {
            Ok(pid) => End {
                pid: Some(pid),
                ..End::ok()
            },
            Err(error) => End::error(format!("this process goes on: {error}")),
        }
    }

    fn log(&self, level: u8) -> End {
        let verbosity = match level {
            0 => Verbosity::Quiet,
            1 => Verbosity::Errors,
            2 => Verbosity::All,
            _ => return End::error("log: give 0, 1 or 2"),
        };
        self.listeners.set_verbosity(verbosity);
        tracing::info!(level, "how much is logged was changed by realpeer ctl log");
        End::ok()
    }

    fn proxy(&self) -> &Proxy {
        &self.listeners.proxy
    }

    async fn status(&self) -> End {
        let services = self.listeners.services().await;
        let config = self.listeners.config().await;
        let listeners: Vec<_> = services
            .iter()
            .map(|(s, accepting)| listener(s, *accepting))
            .collect();
        let mut counts = BTreeMap::new();
        for (name, count) in listeners.iter().flat_map(|listener| &listener.counts) {
            *counts.entry(name.clone()).or_default() += count;
        }
        let mut refused: BTreeMap<String, LastRefused> = BTreeMap::new();
        for (kind, last) in listeners.iter().flat_map(|listener| &listener.refused) {
            match refused.get(kind) {
                Some(known) if known.ago <= last.ago => {}
                _ => _ = refused.insert(kind.clone(), last.clone()),
            }
        }
        // There is always one listener.
        let first = listeners.first();
        End {
            status: Some(Box::new(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                name: config.process.name,
                pid: std::process::id(),
                listen: first.and_then(|listener| listener.listen.first().copied()),
                protocol: first.map(|listener| listener.protocol.clone()),
                uptime: self.started.elapsed().as_secs(),
                open: self.proxy().open(),
                bans: self.proxy().bans.list().len(),
                counts,
                listeners,
                older: Vec::new(),
                refused,
            })),
            ..End::ok()
        }
    }

    async fn connections(&self, listener: Option<&str>) -> Vec<Line> {
        let workers = self.proxy().workers.iter();
        let mut all: Vec<_> = workers.flat_map(|worker| worker.sessions.list()).collect();
        all.retain(|(_, session)| listener.is_none() || session.listener.as_deref() == listener);
        // One that is gone may have sessions still.
        if all.is_empty()
            && listener.is_some()
            && let Err(error) = self.listeners.named(listener).await
        {
            return end(End::error(error.to_string()));
        }
        all.sort_unstable_by_key(|(_, session)| session.began);
        list(all.iter().map(|(id, session)| Line::Connection {
            connection: Connection {
                id: *id,
                listener: session.listener.as_deref().map(str::to_owned),
                client: session.route.map(|route| route.client.0),
                peer: session.peer.0,
                target: session.route.map(|route| route.target.0),
                age: session.began.elapsed().as_secs(),
                pid: None,
            },
        }))
    }

    fn kill(&self, id: Option<SessionId>, client: Option<Network>) -> End {
        let killed = match (id, client) {
            (Some(wanted), None) => self.proxy().kill(EndedBy::Kill, |id, _| id == wanted),
            (None, Some(Network(network))) => self
                .proxy()
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

    async fn ban(
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
        let bans = &self.proxy().bans;
        let services = self.listeners.services().await;
        if let Some(name) = &listener {
            let found = self.listeners.named(Some(name)).await;
            found.map_err(|error| error.to_string())?;
        }
        if !force {
            refuse_if_protected(&network, &services)?;
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
        let at = ban.listener.as_deref();
        let killed = self.proxy().kill(EndedBy::Ban, |_, session| {
            let here = at.is_none() || session.listener.as_deref() == at;
            here && is_of(session, &network) && !is_spared(session, &network, &services)
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

    fn unban(&self, network: IpNet, listener: Option<&str>) -> End {
        let bans = &self.proxy().bans;
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
        let bans = self.proxy().bans.list();
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
                    "a change of the bans is not on disk and would be lost at a restart"
                );
                Some(format!(
                    "it is not on disk and holds until realpeer ends: {error:#}"
                ))
            }
            Ok(()) if !self.proxy().bans.are_kept() => {
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

/// Every listener, and whether it takes anything new.
type Services = [(Arc<Service>, bool)];

/// A load balancer that speaks for itself may be spared by the rules of its listener.
fn is_spared(session: &Session, network: &IpNet, services: &Services) -> bool {
    if session.route.is_some_and(|route| route.named) {
        return false;
    }
    let mut services = services.iter().map(|(service, _)| service);
    let service = services.find(|service| service.record.name == session.listener);
    service.is_some_and(|service| service.admission.spares(session.peer, network))
}

/// Who bans the hosts that all clients come through, or this one, bans everybody.
fn refuse_if_protected(network: &IpNet, services: &Services) -> Result<(), String> {
    let own = sys::interfaces::addresses();
    let own = own.iter().find(|ip| network.contains(*ip)).copied();
    let loopback = Some(network.addr()).filter(|ip| ip.is_loopback());
    if let Some(ip) = own.or(loopback) {
        return Err(format!(
            "{network} holds this host's own address {ip}: refused without -force"
        ));
    }
    let trusted = services
        .iter()
        .filter_map(|(service, _)| service.admission.allowed_subnets.as_ref());
    if let Some(found) = trusted.into_iter().find_map(|list| list.overlap(network)) {
        return Err(format!(
            "{network} overlaps {found}, a load balancer of the allowed-subnets file: refused without -force"
        ));
    }
    Ok(())
}

fn listener(service: &Service, accepting: bool) -> Listener {
    let record = &service.record;
    let counts = Count::ALL
        .iter()
        .map(|count| (count.name().to_owned(), record.count(*count)));
    Listener {
        name: record.name.as_deref().map(str::to_owned),
        listen: service.destinations.addresses().to_vec(),
        protocol: service.config.protocol.word().to_owned(),
        accepting,
        open: record.open(),
        counts: counts.collect(),
        refused: refused(record),
    }
}

fn refused(record: &Record) -> BTreeMap<String, LastRefused> {
    let served = record.count(Count::Served);
    let kinds = Count::ALL.iter().filter_map(|kind| {
        let last = record.reporter.refused(*kind)?;
        let told = LastRefused {
            peer: last.peer,
            ago: last.at.elapsed().as_secs(),
            in_a_row: last.in_a_row,
            of_peer: last.of_peer,
            served_since: last.served != served,
        };
        Some((kind.name().to_owned(), told))
    });
    kinds.collect()
}

fn done(result: anyhow::Result<()>) -> End {
    match result {
        Ok(()) => End::ok(),
        Err(error) => End::error(format!("{error:#}")),
    }
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
