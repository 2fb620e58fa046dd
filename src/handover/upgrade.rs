//! The old process: it has a new one started, passes on what it has, and goes on if that fails.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::RwLockWriteGuard;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::channel::Channel;
use super::message::{ControlPaper, FromNew, FromOld, Place, Target, VERSION};
use super::succession::Succession;
use crate::config::Protocol;
use crate::listeners::{Legacy, Listeners};
use crate::metrics;
use crate::routing;
use crate::starter::{self, Starter};
use crate::sys::passing;
use crate::udp;

/// How long a new process may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take from the moment that nothing is served until it serves; 20,000 bans take a
/// tenth of a second.
const COMMIT: Duration = Duration::from_secs(2);

/// How long the end of one that failed, and its last words, are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes that are kept of what a new process says.
const WORDS: usize = 2048;

/// Bans and flows in one message. The longest reason is 512 bytes.
const BANS: usize = 32;
const FLOWS: usize = 64;
const BINDINGS: usize = 500;

/// What a process passes on, and by what means.
#[derive(Debug)]
pub struct Upgrade<'a> {
    /// Starts the new process.
    pub starter: &'a Starter,
    /// What runs.
    pub listeners: &'a Arc<Listeners>,
    /// Commands that are to wait.
    pub succession: &'a Succession,
    /// Of our targets.
    pub routing: &'a routing::Handle,
    /// The socket of the metrics.
    pub metrics: Option<&'a metrics::Bound>,
}

/// A new process serves.
#[derive(Debug)]
pub struct Succeeded {
    /// Its number.
    pub pid: u32,
    /// The way to it, by which it asks.
    pub channel: Channel,
}

/// What the new process took.
struct Taken {
    places: Vec<Place>,
    control: bool,
}

impl Upgrade<'_> {
    /// Has a new process take over. Fails when it does not, and everything is then as it was.
    pub async fn run(&self) -> Result<Succeeded> {
        let _turn = self.listeners.no_reloads().await;
        let (channel, mut newcomer) = self.start().await?;
        let mut gate = None;
        let passing = timeout(PATIENCE, async {
            tokio::select! {
                passed = self.pass_on(&channel, &mut gate) => Ok(passed),
                ended = newcomer.ended() => Err(ended),
            }
        });
        let failure = match passing.await {
            Ok(Ok(Ok(taken))) => {
                newcomer.stays = true;
                let pid = newcomer.pid;
                return Ok(self.succeed(pid, channel, taken).await);
            }
            Ok(Ok(Err(error))) if is_end(&error) => newcomer.ended_so().await,
            Ok(Ok(Err(error))) => anyhow!("the hand-over failed: {error:#}"),
            Ok(Err(ended)) => anyhow!("the new program ended ({ended})"),
            Err(_) => anyhow!(
                "the new program was not ready within {} s",
                PATIENCE.as_secs()
            ),
        };
        let said = newcomer.end().await;
        if gate.is_some() {
            self.listeners.go_on().await;
            self.listeners.proxy.bans.go_on();
        }
        Err(match said.is_empty() {
            true => failure,
            false => anyhow!("{failure}: {said}"),
        })
    }

    async fn start(&self) -> Result<(Channel, Newcomer)> {
        let starter = Channel::new(self.starter.socket()?)?;
        let (ours, theirs) = passing::pair().context("cannot make a socket")?;
        // A late answer to an earlier request is nobody's.
        let (answers, answering) = passing::pair().context("cannot make a socket")?;
        let answers = Channel::new(answers)?;
        let (said, error) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let sent = starter
            .send_bytes(
                starter::START,
                &[theirs.as_fd(), error.as_fd(), answering.as_fd()],
            )
            .await;
        sent.context("the process that starts programs is gone: restart realpeer")?;
        drop((theirs, error, answering));
        let answer = timeout(PATIENCE, answers.receive_bytes()).await;
        let (answer, _) = answer.context("the process that starts programs hangs")??;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.strip_prefix("started ").map(str::parse) {
            Some(Ok(pid)) => {
                let newcomer = Newcomer::new(pid, starter, answers, said)?;
                Ok((Channel::new(ours)?, newcomer))
            }
            _ => bail!("{}", answer.trim_start_matches("failed ")),
        }
    }

    async fn pass_on<'b>(
        &'b self,
        channel: &Channel,
        gate: &mut Option<RwLockWriteGuard<'b, ()>>,
    ) -> Result<Taken> {
        self.offer(channel).await?;
        let (FromNew::Prepared { taken, control }, _) = channel.receive().await? else {
            bail!("it did not say what was expected");
        };
        // From here on nothing changes that is not passed on.
        *gate = Some(self.succession.gate.write().await);
        let take_over = timeout(COMMIT, self.hand_over(channel, &taken)).await;
        take_over.map_err(|_| {
            anyhow!(
                "the new program was ready, but did not take over within {} s",
                COMMIT.as_secs()
            )
        })??;
        Ok(Taken {
            places: taken,
            control,
        })
    }

    /// Passes on what can change, and lets it serve. Datagrams wait meanwhile, and connections.
    async fn hand_over(&self, channel: &Channel, taken: &[Place]) -> Result<()> {
        self.estate(channel, taken).await?;
        let (FromNew::Ready, _) = channel.receive().await? else {
            bail!("it did not say what was expected");
        };
        self.listeners.hush().await;
        let workers = self.listeners.proxy.workers.iter();
        let ids = workers.map(|worker| worker.sessions.last_id());
        let above = ids.max().unwrap_or(0);
        channel.send(&FromOld::Go { above }, &[]).await?;
        let (FromNew::Serving, _) = channel.receive().await? else {
            bail!("it did not say what was expected");
        };
        Ok(())
    }

    async fn offer(&self, channel: &Channel) -> Result<()> {
        let Legacy {
            sockets,
            targets,
            activated,
        } = self.listeners.legacy().await;
        let control = self.succession.with_control(|bound| {
            let paper = ControlPaper {
                path: bound.path.clone(),
                inode: bound.inode(),
            };
            bound.descriptor().map(|descriptor| (paper, descriptor))
        });
        let (control, listener) = control.transpose()?.unzip();
        let (routing, lock) = self.routing.paper().await.unzip();
        let descriptors: Vec<OwnedFd> = listener.into_iter().chain(lock).collect();
        let offer = FromOld::Offer {
            version: VERSION,
            pid: std::process::id(),
            control,
            routing,
            targets: targets.iter().map(Target::from).collect(),
            activated,
        };
        send(channel, &offer, &descriptors).await?;
        for (namespace, paper, lock) in self.listeners.namespaces().papers().await {
            let message = FromOld::Inside(namespace, paper);
            channel.send(&message, &[lock.as_fd()]).await?;
        }
        for (place, sockets) in &sockets {
            for some in sockets.chunks(passing::MOST) {
                let some: Vec<BorrowedFd<'_>> = some.iter().map(|socket| socket.as_fd()).collect();
                channel.send(&FromOld::Socket(*place), &some).await?;
            }
        }
        if let Some(metrics) = self.metrics {
            let place = Place::new(Protocol::Tcp, metrics.asked);
            channel
                .send(&FromOld::Socket(place), &[metrics.as_fd()])
                .await?;
        }
        channel.send(&FromOld::Offered, &[]).await?;
        Ok(())
    }

    async fn estate(&self, channel: &Channel, taken: &[Place]) -> Result<()> {
        let proxy = &self.listeners.proxy;
        proxy.bans.rest();
        let bans: Vec<_> = proxy.bans.list().iter().cloned().collect();
        for some in bans.chunks(BANS) {
            channel.send(&FromOld::Bans(some.to_vec()), &[]).await?;
        }
        let pass_on = async |place, socket, listener: &udp::listener::Listener| {
            pass_flows(channel, place, socket, listener).await
        };
        let drained = self.listeners.rest(taken, pass_on).await?;
        for elder in proxy.elders.all() {
            let link = FromOld::Link {
                pid: elder.pid,
                since: elder.since,
            };
            channel.send(&link, &[elder.channel.as_fd()]).await?;
        }
        let asked = self.listeners.config().await.process.verbosity;
        let verbosity = proxy.volume.get();
        let state = FromOld::State {
            drained,
            verbosity: (verbosity != asked).then(|| verbosity.number()),
        };
        Ok(channel.send(&state, &[]).await?)
    }

    async fn succeed(&self, pid: u32, channel: Channel, taken: Taken) -> Succeeded {
        self.listeners.proxy.manager.succeeded_by(pid);
        let _ = channel.send(&FromOld::Confirmed, &[]).await;
        self.succession.is_over_now(taken.control);
        self.listeners.leave(&taken.places).await;
        self.listeners.proxy.elders.leave();
        Succeeded { pid, channel }
    }
}

async fn send(channel: &Channel, message: &FromOld, descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    channel.send(message, &descriptors).await
}

async fn pass_flows(
    channel: &Channel,
    place: Place,
    socket: usize,
    listener: &udp::listener::Listener,
) -> io::Result<()> {
    let mut flows = listener.flows();
    loop {
        let (papers, sockets): (Vec<_>, Vec<_>) = flows.by_ref().take(FLOWS).unzip();
        if papers.is_empty() {
            break;
        }
        let sockets: Vec<BorrowedFd<'_>> = sockets.into_iter().map(AsFd::as_fd).collect();
        let message = FromOld::Flows {
            place,
            socket,
            papers,
        };
        channel.send(&message, &sockets).await?;
    }
    for bindings in listener.bindings().chunks(BINDINGS) {
        let message = FromOld::Bindings {
            place,
            socket,
            bindings: bindings.to_vec(),
        };
        channel.send(&message, &[]).await?;
    }
    Ok(())
}

fn is_end(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(
        kind,
        Some(ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
    )
}

/// A process that was started and is killed when this is dropped, unless it stays.
struct Newcomer {
    pid: u32,
    stays: bool,
    starter: Channel,
    answers: Channel,
    ended: bool,
    said: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Newcomer {
    fn new(pid: u32, starter: Channel, answers: Channel, error: OwnedFd) -> io::Result<Newcomer> {
        socket2::SockRef::from(&error).set_nonblocking(true)?;
        let mut pipe = pipe::Receiver::from_owned_fd(error)?;
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let collected = Arc::clone(&said);
        let listening = tokio::spawn(async move {
            let mut some = [0; 512];
            while let Ok(count @ 1..) = pipe.read(&mut some).await {
                let mut said = collected.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&some[..count]);
                let spare = said.len().saturating_sub(WORDS);
                said.drain(..spare);
            }
        });
        Ok(Newcomer {
            pid,
            stays: false,
            starter,
            answers,
            ended: false,
            said,
            listening,
        })
    }

    /// How it ended.
    async fn ended(&mut self) -> String {
        let answer = self.answers.receive_bytes().await;
        self.ended = true;
        match answer {
            Ok((text, _)) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                text.trim_start_matches("ended ").to_owned()
            }
            Err(error) => format!("nobody knows how: {error}"),
        }
    }

    /// It has closed its end of the socket: why?
    async fn ended_so(&mut self) -> anyhow::Error {
        match timeout(LAST_WORDS, self.ended()).await {
            Ok(how) => anyhow!("the new program ended ({how})"),
            Err(_) => anyhow!("the new program broke off the hand-over"),
        }
    }

    /// Makes it end, and tells what it has said.
    async fn end(&mut self) -> String {
        if !self.ended {
            let _ = passing::send(self.starter.as_fd(), starter::KILL, &[]);
            let _ = timeout(LAST_WORDS, self.ended()).await;
        }
        let _ = timeout(LAST_WORDS, &mut self.listening).await;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        readable(&String::from_utf8_lossy(&said))
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.listening.abort();
        if !self.stays && !self.ended {
            let _ = passing::send(self.starter.as_fd(), starter::KILL, &[]);
        }
    }
}

/// In one line, without what would steer a terminal.
fn readable(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let escape = |c: char| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            };
            line.chars().map(escape).collect()
        })
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_one_line_and_steers_no_terminal() {
        let said = "realpeer: no\n\n  \u{1b}[31mred\tor not \"so\"\r\n";
        let expected = "realpeer: no; \\u{1b}[31mred\\tor not \"so\"";
        assert_eq!(readable(said), expected);
    }
}
