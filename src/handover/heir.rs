//! The new process: it takes what the old one passes on.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::timeout;

use super::channel::Channel;
use super::elders::Elders;
use super::message::{Activated, FromNew, FromOld, Place, RoutingPaper, VERSION};
use crate::bans::{self, BanList, UnixSeconds};
use crate::config::{RouteTarget, Verbosity};
use crate::control::Bound;
use crate::listeners::Inherited;
use crate::namespaces::Inheritance;
use crate::sockets::Sockets;
use crate::udp::luggage::Luggage;

/// How long an old process that has let go may hang before it does not matter any more.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process that is about to take over.
#[derive(Debug)]
pub struct Heir {
    channel: Channel,
    /// What is to be standard error once this process serves.
    error: OwnedFd,
    pid: u32,
    /// The control socket of the old process.
    pub control: Option<Bound>,
    /// Its routing: what it has put in, and the lock of the table.
    pub routing: Option<(RoutingPaper, OwnedFd)>,
    /// The same in other network namespaces.
    pub inside: Vec<Inheritance>,
    /// What its sessions need.
    pub targets: Vec<RouteTarget>,
}

/// What can change until the last moment.
#[derive(Debug, Default)]
pub struct Estate {
    /// All bans.
    pub bans: BanList,
    /// Flows, and which listeners are drained.
    pub listeners: Inherited,
    /// How much is logged, if that was changed.
    pub verbosity: Option<Verbosity>,
    /// The old process has said all.
    pub is_whole: bool,
    links: Vec<(u32, UnixSeconds, Channel)>,
}

impl Heir {
    /// Takes the sockets of the old process. `None` if that ended before it passed them on: then
    /// this is a start as any other.
    pub async fn greet(socket: OwnedFd, error: OwnedFd) -> Result<Option<(Heir, Sockets)>> {
        let channel = Channel::new(socket).context("the hand-over socket")?;
        let offer = match channel.receive().await {
            Ok(offer) => offer,
            Err(e) if is_end(&e) => {
                restore_error(&error);
                return Ok(None);
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                return Err(e).context("the running process hands over in another way: restart it");
            }
            Err(e) => return Err(e).context("the hand-over socket"),
        };
        let (
            FromOld::Offer {
                version: VERSION,
                pid,
                control,
                routing,
                targets,
                activated,
            },
            descriptors,
        ) = offer
        else {
            bail!("the running process hands over in another way: restart it");
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || {
            let next = descriptors.next();
            next.context("the hand-over came without its descriptors")
        };
        let control = match control {
            Some(paper) => Some(Bound::inherit(next()?, paper.path, paper.inode)),
            None => None,
        };
        let routing = match routing {
            Some(paper) => Some((paper, next()?)),
            None => None,
        };
        let targets = targets.iter().filter_map(|target| target.read());
        let mut heir = Heir {
            channel,
            error,
            pid,
            control,
            routing,
            inside: Vec::new(),
            targets: targets.collect(),
        };
        let sockets = heir.sockets(activated).await?;
        Ok(Some((heir, sockets)))
    }

    async fn sockets(&mut self, activated: Vec<Activated>) -> Result<Sockets> {
        let mut sockets = Sockets::default();
        sockets.activated = activated;
        loop {
            match self.channel.receive().await {
                Ok((FromOld::Socket(place), descriptors)) => sockets.inherit(place, descriptors),
                Ok((FromOld::Inside(namespace, paper), descriptors)) => {
                    let locks = descriptors.into_iter();
                    let inherited = locks.map(|lock| (namespace, paper, lock));
                    self.inside.extend(inherited);
                }
                Ok((FromOld::Offered, _)) => return Ok(sockets),
                Ok(_) => bail!("the running process hands over in another way: restart it"),
                // There will be no more.
                Err(e) if is_end(&e) => return Ok(sockets),
                Err(e) => return Err(e).context("the hand-over socket"),
            }
        }
    }

    /// Says that all that can fail has gone well, and takes over what can change until then. What
    /// has come when the old process ends is all there is.
    pub async fn take_over(&mut self, taken: Vec<Place>, control: bool) -> Result<Estate> {
        let mut estate = Estate::default();
        match self.estate(&mut estate, taken, control).await {
            Ok(()) => estate.is_whole = true,
            Err(e) if is_end(&e) => {}
            Err(e) => return Err(e).context("the hand-over socket"),
        }
        Ok(estate)
    }

    async fn estate(
        &mut self,
        estate: &mut Estate,
        taken: Vec<Place>,
        control: bool,
    ) -> io::Result<()> {
        self.channel
            .send(&FromNew::Prepared { taken, control }, &[])
            .await?;
        loop {
            let (message, descriptors) = self.channel.receive().await?;
            match message {
                FromOld::Bans(bans) => bans.into_iter().for_each(|ban| estate.bans.insert(ban)),
                FromOld::Flows {
                    place,
                    socket,
                    papers,
                } => estate
                    .luggage(place, socket)
                    .flows
                    .extend(papers.into_iter().zip(descriptors)),
                FromOld::Bindings {
                    place,
                    socket,
                    bindings,
                } => estate.luggage(place, socket).bindings.extend(bindings),
                FromOld::Link { pid, since } => {
                    for descriptor in descriptors {
                        estate.links.push((pid, since, Channel::new(descriptor)?));
                    }
                }
                FromOld::State { drained, verbosity } => {
                    let names = drained.into_iter().map(|name| name.map(Arc::from));
                    estate.listeners.drained = names.collect();
                    estate.verbosity = verbosity.map(|level| match level {
                        0 => Verbosity::Quiet,
                        1 => Verbosity::Errors,
                        _ => Verbosity::All,
                    });
                    return Ok(());
                }
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Says that everything is in place, and waits for the word to serve, with the id that the
    /// sessions' ids are to be above. If the old process ends instead, this one serves.
    pub async fn wait(&mut self) -> Result<u64> {
        let said = async {
            self.channel.send(&FromNew::Ready, &[]).await?;
            self.channel.receive().await
        };
        match said.await {
            Ok((FromOld::Go { above }, _)) => {
                let _ = self.channel.send(&FromNew::Serving, &[]).await;
                Ok(above)
            }
            Ok(_) => Err(anyhow!("the running process did not say what was expected")),
            Err(e) if is_end(&e) => Ok(0),
            Err(e) => Err(e).context("the hand-over socket"),
        }
    }

    /// Waits until systemd knows whom to listen to. The old process is one of the elders then, as
    /// are those that it knew.
    pub async fn settle(self, links: Vec<(u32, UnixSeconds, Channel)>, elders: &Elders) {
        restore_error(&self.error);
        for (pid, since, channel) in links {
            elders.add(pid, since, channel);
        }
        let confirmed = self.channel.receive::<FromOld>();
        if timeout(PATIENCE, confirmed)
            .await
            .is_ok_and(|said| said.is_err())
        {
            return;
        }
        elders.add(self.pid, bans::now(), self.channel);
    }
}

impl Estate {
    /// The ways to processes that are still older.
    pub fn links(&mut self) -> Vec<(u32, UnixSeconds, Channel)> {
        std::mem::take(&mut self.links)
    }

    fn luggage(&mut self, place: Place, socket: usize) -> &mut Luggage {
        let all = &mut self.listeners.luggage;
        let at = all.iter().position(|(of, _)| *of == place);
        let at = at.unwrap_or_else(|| {
            all.push((place, Vec::new()));
            all.len() - 1
        });
        let sockets = &mut all[at].1;
        if sockets.len() <= socket {
            sockets.resize_with(socket + 1, Luggage::default);
        }
        &mut sockets[socket]
    }
}

/// Lets standard error be what it was for the old process.
fn restore_error(error: &OwnedFd) {
    let _ = nix::unistd::dup2_stderr(error);
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}
