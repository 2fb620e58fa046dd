//! Sends the probes, and says what became of them.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use super::backend::{self, Backend};
use super::check::Check;
use super::probe::{self, Answer};
use super::trace::{self, Direction};
use super::{Examination, Target, remote};
use crate::config::{Protocol, Routing};
use crate::routing::keeper::{self, Keeper, Outcome};
use crate::routing::plan::{Place, Way};

/// Probes the targets that are still open. Under `-routing auto` the way back is put in first and
/// taken away afterwards, whatever happens.
pub async fn probe(
    examination: &Examination<'_>,
    open: Vec<(&Target, Option<Backend>)>,
) -> Result<Vec<Check>> {
    let accept = fs::read(keeper::FWMARK_ACCEPT);
    let mut keeper = Keeper {
        kernel: examination.kernel.clone(),
        needs: open.iter().map(|(target, _)| target.need.clone()).collect(),
        lock: None,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let checks = tokio::select! {
        checks = probe_all(examination, &mut keeper, open) => checks,
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
    };
    if let Some(lock) = &keeper.lock {
        keeper::clear(&keeper.kernel, lock.table)
            .await
            .context("cannot take the probe's rules away")?;
        if let Ok(accept) = accept {
            // As it was before; it stays readable only where the proxy may not change it either.
            _ = fs::write(keeper::FWMARK_ACCEPT, accept);
        }
    }
    checks
}

async fn probe_all(
    examination: &Examination<'_>,
    keeper: &mut Keeper,
    open: Vec<(&Target, Option<Backend>)>,
) -> Result<Vec<Check>> {
    let powers = examination.powers;
    let put_in = examination.settings.routing == Routing::Auto && powers.administrate;
    let outcomes = match put_in {
        true => keeper.ensure().await?,
        false => keeper.look().await?,
    };
    let mut checks = Vec::new();
    for ((target, backend), outcome) in open.into_iter().zip(outcomes) {
        let table = match outcome {
            Outcome::InPlace(table) | Outcome::PutIn(table) => Some(table),
            Outcome::Failed(e) if put_in => {
                checks.push(not_put_in(target, &e));
                continue;
            }
            Outcome::Failed(_) => None,
        };
        let remote = target.place == Place::Behind && !examination.options.probe_remote;
        let (Some(table), true, false) = (table, powers.claim, remote) else {
            checks.extend(backend.map(|backend| backend::check(target, &backend)));
            continue;
        };
        let mark = match target.need.way {
            Way::Mark => Some(target.need.mark_in(table)),
            _ => target.need.mark,
        };
        let shot = Shot {
            target: target.clone(),
            mark,
            trace: powers.administrate,
        };
        checks.extend(match (target.protocol, backend) {
            (Protocol::Udp, backend) => shot.udp(backend).await?,
            (Protocol::Tcp, Some(backend)) => shot.tcp_here(backend).await?,
            (Protocol::Tcp, None) => shot.tcp_remote().await?,
        });
    }
    Ok(checks)
}

fn not_put_in(target: &Target, error: &io::Error) -> Check {
    let found = format!(
        "the way back from {} cannot be put in: {error}",
        target.need.target
    );
    Check::wrong("no-rule", target.need.given, found, target.up())
}

/// A probe of one target.
#[derive(Clone)]
struct Shot {
    target: Target,
    mark: Option<u32>,
    /// nft may be asked who dropped it.
    trace: bool,
}

impl Shot {
    async fn tcp_here(&self, backend: Backend) -> Result<Vec<Check>> {
        let answer = self.fire().await?;
        let look = backend::check(&self.target, &backend);
        Ok(match (answer, backend) {
            (Answer::Came, Backend::Listens) => vec![look, self.came()],
            // Something else on this host answers for it: a kernel's address translation.
            (Answer::Came, _) => vec![self.came()],
            (Answer::Refused(_), Backend::Listens) if backend::only_ipv6(&self.target) => {
                let port = self.target.need.target.port();
                let elsewhere = Backend::Elsewhere(vec![SocketAddr::from(([0u16; 8], port))]);
                vec![backend::check(&self.target, &elsewhere)]
            }
            (answer, Backend::Listens) => vec![look, self.lost(answer).await?],
            (Answer::Refused(_), _) => vec![look],
            // Nobody listens, and nobody said so: then a firewall is in the way as well.
            (answer, _) => {
                let lost = self.lost(answer).await?;
                let named = lost.id.starts_with("firewall");
                [Some(look), named.then_some(lost)]
                    .into_iter()
                    .flatten()
                    .collect()
            }
        })
    }

    async fn tcp_remote(&self) -> Result<Vec<Check>> {
        let at = self.target.need.target;
        Ok(vec![match self.fire().await? {
            Answer::Came => self.came(),
            Answer::Refused(e) => self.down(format!("{at} refuses connections ({e})")),
            answer => {
                let lost = self.lost(answer).await?;
                if lost.id != "probe" {
                    return Ok(vec![lost]);
                }
                match spawn_blocking(move || TcpStream::connect_timeout(&at, probe::PATIENCE))
                    .await?
                {
                    Ok(_) => remote::wrong(
                        &self.target,
                        "it answers this host, but a client's address gets no answer",
                    ),
                    Err(e) => self.down(format!("{at} does not answer this host either ({e})")),
                }
            }
        }])
    }

    async fn udp(&self, backend: Option<Backend>) -> Result<Vec<Check>> {
        let look: Vec<_> = backend
            .map(|backend| backend::check(&self.target, &backend))
            .into_iter()
            .collect();
        // The port rule is for the backend's own port, which no other socket may have.
        let probed = self.target.need.way == Way::Loopback;
        if !probed || look.iter().any(|check| check.status != super::Status::Ok) {
            return Ok(look);
        }
        let result = match self.fire().await? {
            Answer::Came => self.came(),
            answer => self.lost(answer).await?,
        };
        Ok(look.into_iter().chain([result]).collect())
    }

    async fn fire(&self) -> Result<Answer> {
        let shot = self.clone();
        Ok(spawn_blocking(move || shot.fire_now(probe::PATIENCE)).await?)
    }

    fn fire_now(&self, patience: Duration) -> Answer {
        let at = self.target.need.target;
        let stranger = self.target.need.family().stranger();
        match self.target.protocol {
            Protocol::Tcp => probe::tcp(at, stranger, self.mark, patience),
            Protocol::Udp => probe::udp(at.ip(), stranger, self.mark, patience),
        }
    }

    /// Fires again under nft's eyes.
    async fn trace(&self) -> Result<Option<trace::Drop>> {
        if !self.trace {
            return Ok(None);
        }
        let shot = self.clone();
        let stranger = self.target.need.family().stranger();
        let traced =
            spawn_blocking(move || trace::watch(stranger, || _ = shot.fire_now(probe::ONE_PACKET)))
                .await?;
        // A kernel without nftables has no rules of nftables.
        Ok(traced.unwrap_or(None))
    }

    /// Why no answer came.
    async fn lost(&self, answer: Answer) -> Result<Check> {
        let at = self.target.need.target;
        if let Answer::Unsent(e) = answer {
            bail!("the probe to {at} cannot be sent: {e}");
        }
        if let Some(drop) = self.trace().await? {
            let (id, what) = match drop.direction {
                Direction::Request => ("firewall-input", "what clients send to"),
                Direction::Reply => ("firewall-output", "the replies of"),
            };
            let found = format!("{} drops or rejects {what} {at}", drop.describe());
            return Ok(Check::wrong(
                id,
                true,
                found,
                drop.fix(self.target.protocol_name(), at.port()),
            ));
        }
        let how = match answer {
            Answer::Refused(e) => format!("was refused ({e})"),
            _ => "got no answer".to_owned(),
        };
        let stranger = self.target.need.family().stranger();
        Ok(Check::wrong(
            "probe",
            true,
            format!("a connection from {stranger} to {at} {how}, and no rule of nft's is to blame"),
            "look for legacy iptables rules (iptables-legacy -S), for eBPF filters, and into the backend's log",
        ))
    }

    fn came(&self) -> Check {
        let (need, stranger) = (&self.target.need, self.target.need.family().stranger());
        let what = match self.target.protocol {
            Protocol::Tcp => "a connection",
            Protocol::Udp => "a datagram",
        };
        Check::ok(
            "probe",
            format!("{what} from {stranger} to {} was answered", need.target),
        )
    }

    fn down(&self, found: String) -> Check {
        let fix = format!(
            "start the backend, or give its address with {}",
            self.target.flag()
        );
        Check::wrong("backend-down", self.target.need.given, found, fix)
    }
}
