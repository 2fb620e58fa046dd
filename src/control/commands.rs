//! Carries out what comes over the control socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::clients;
use super::older;
use super::protocol::{Connection, End, LastRefused, Line, Listener, Network, Request, Status};
use crate::bans::{self, Ban, Decision};
use crate::config::{self, Choice, Verbosity};
use crate::events::Watcher;
use crate::handover::succession::Succession;
use crate::listeners::Listeners;
use crate::protected::{Protected, is_of};
use crate::proxy::Proxy;
use crate::service::{Record, Service};
use crate::sessions::{EndedBy, SessionId};
use crate::stats::Count;

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
            | Request::Bans { .. }
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
            Request::Status {} => end(End {
                status: Some(Box::new(self.status().await)),
                ..End::ok()
            }),
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
            Request::Unban {
                network,
                listener,
                force,
            } => end(self.unban(network.0, listener.as_deref(), force)),
            // It is answered page by page: see `bans`.
            Request::Bans { .. } => end(End::ok()),
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
            Request::Clients { sort, filter, most } => {
                clients::busiest(self.proxy(), sort, &filter, most).await
            }
            // The server does it: it has no end.
            Request::Watch { .. } => end(End::error("watch: cannot be answered at once")),
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

    /// What runs, with the processes before this one that still carry sessions.
    pub(crate) async fn status_of_all(&self) -> Status {
        let status = self.status().await;
        let alone = end(End {
            status: Some(Box::new(status.clone())),
            ..End::ok()
        });
        let all = older::add(&self.proxy().elders, &Request::Status {}, alone).await;
        match all.into_iter().next_back() {
            Some(Line::End(End {
                status: Some(status),
                ..
            })) => *status,
            _ => status,
        }
    }

    /// Watches what happens, at that listener or at all.
    pub async fn watch(&self, listener: Option<&str>) -> Result<Watcher, End> {
        if listener.is_some() {
            let found = self.listeners.named(listener).await;
            found.map_err(|error| End::error(error.to_string()))?;
        }
        Ok(self.proxy().events.watch())
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

    /// What runs, and its counts.
    async fn status(&self) -> Status {
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
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: config.process.name,
            pid: std::process::id(),
            listen: first.and_then(|listener| listener.listen.first().copied()),
            protocol: first.map(|listener| listener.protocol.clone()),
            uptime: self.started.elapsed().as_secs(),
            open: self.proxy().open(),
            bans: self.proxy().bans.list().len(),
            crowdsec: self
                .proxy()
                .crowdsec
                .as_ref()
                .map(|state| state.told(&self.proxy().bans.decisions)),
            counts,
            listeners,
            older: Vec::new(),
            refused,
            sandbox: self.proxy().sandbox.get().map(|it| it.state.clone()),
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
        let protected = Protected::now(&self.listeners).await;
        if let Some(name) = &listener {
            let found = self.listeners.named(Some(name)).await;
            found.map_err(|error| error.to_string())?;
        }
        if !force {
            let refused = protected.refuse(&network);
            refused.map_err(|why| format!("{why}: refused without -force"))?;
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
            here && is_of(session, &network) && !protected.spares(session, &network)
        });
        // Of several processes the one that serves tells it.
        if killed > 0 || !self.succession.is_over() {
            tracing::info!(
                network = %network,
                seconds = length.map(|seconds| seconds.ceil() as u64),
                reason = ban.reason,
                listener = ban.listener,
                killed = killed as u64,
                "client banned"
            );
        }
        Ok(End {
            killed: Some(killed),
            until,
            warning: self.warning(written),
            ..End::ok()
        })
    }

    fn unban(&self, network: IpNet, listener: Option<&str>, force: bool) -> End {
        let bans = &self.proxy().bans;
        let decision = bans.decisions.on(&network, bans::now());
        let (ended, written) = bans.unban(network, listener);
        let mut warning = self.warning(written);
        if let Some(decision) = &decision {
            let back = format!(
                "the engine brings it back with its next full answer; `cscli decisions delete --{} {}` on its host ends it",
                if is_single(&network) { "ip" } else { "range" },
                if is_single(&network) {
                    network.addr().to_string()
                } else {
                    network.to_string()
                },
            );
            match (force, ended.is_empty()) {
                (false, true) => {
                    return End::error(format!("{decision}: refused without -force, for {back}"));
                }
                (false, false) => warning = Some(format!("it stays banned, {decision}: {back}")),
                (true, _) => {
                    bans.decisions.remove_all(&network);
                    warning = Some(format!("it was banned, {decision}: {back}"));
                }
            }
        } else if ended.is_empty() {
            let wider = bans.list().covering(&network).last().cloned();
            return End::error(match wider {
                Some(ban) => format!(
                    "{network} is banned as a part of {}: unban that",
                    ban.network
                ),
                None => match bans.decisions.find(network.addr(), bans::now()) {
                    Some(wider) => format!("{network} is banned as a part of {wider}"),
                    None => format!("{network} is not banned"),
                },
            });
        }
        if !self.succession.is_over() {
            tracing::info!(network = %network, "client unbanned");
        }
        End {
            count: Some(ended.len()),
            warning,
            ..End::ok()
        }
    }

    /// The bans of an origin, or all, page by page; the last page ends the answer. There may be
    /// millions: a thread of its own lists them, as fast as the client reads.
    pub fn bans(&self, origin: Option<String>) -> mpsc::Receiver<Vec<Line>> {
        let (sender, pages) = mpsc::channel(2);
        let bans = Arc::clone(&self.proxy().bans);
        tokio::task::spawn_blocking(move || {
            let now = bans::now();
            let is_wanted = |line: &Line| match (&origin, line) {
                (Some(wanted), Line::Ban { origin, .. }) => is_of_origin(origin.as_deref(), wanted),
                _ => true,
            };
            let list = bans.list();
            let here = list
                .iter()
                .filter(|ban| ban.until.is_none_or(|until| now < until));
            let here: Vec<Line> = here.map(|ban| ban_line(ban.clone(), None)).collect();
            drop(list);
            let mut count = 0;
            let decided = bans.decisions.pages(now).map(|page| {
                let lines = page.into_iter().map(decision_line);
                lines.collect::<Vec<Line>>()
            });
            for mut page in std::iter::once(here).chain(decided) {
                page.retain(&is_wanted);
                count += page.len();
                if !page.is_empty() && sender.blocking_send(page).is_err() {
                    return;
                }
            }
            let count = Some(count);
            let _ = sender.blocking_send(end(End { count, ..End::ok() }));
        });
        pages
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

/// Where a ban spoken here comes from, and whose the engine's decisions are.
const HERE: &str = "local";
const ENGINE: &str = "crowdsec";

fn ban_line(ban: Ban, origin: Option<String>) -> Line {
    Line::Ban { ban, origin }
}

/// A decision as the ban that it is.
fn decision_line(decision: Decision) -> Line {
    let cause = &decision.cause;
    let origin = Some(format!("{ENGINE}/{}", cause.origin));
    let ban = Ban {
        network: decision.network,
        listener: None,
        since: 0,
        until: Some(decision.until),
        reason: cause.scenario.to_string(),
    };
    ban_line(ban, origin)
}

/// `crowdsec` is all decisions, `crowdsec/CAPI` those of one origin, `local` what was spoken here.
fn is_of_origin(origin: Option<&str>, wanted: &str) -> bool {
    let origin = origin.unwrap_or(HERE);
    origin == wanted || origin.split('/').next() == Some(wanted)
}

fn is_single(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
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
