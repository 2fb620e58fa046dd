//! Processes before this one that still carry sessions, and what they are asked. One that hangs is
//! waited for a second at most.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::timeout;

use super::channel::Channel;
use super::message::{FromNew, FromOld};
use crate::bans::UnixSeconds;
use crate::control::{Line, Request};

/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// All of them.
#[derive(Debug, Default)]
pub struct Elders(Mutex<Vec<Arc<Elder>>>);

/// A process that carries sessions and takes no more.
#[derive(Debug)]
pub struct Elder {
    /// Its number.
    pub pid: u32,
    /// When it was succeeded.
    pub since: UnixSeconds,
    /// The way to it.
    pub channel: Channel,
    /// The number of the last question. Held while one is asked.
    turn: tokio::sync::Mutex<u64>,
}

impl Elders {
    /// Adds one that was succeeded then.
    pub fn add(&self, pid: u32, since: UnixSeconds, channel: Channel) {
        // Another process may have asked by the same way before, whose answers are not ours.
        let first = u64::from(std::process::id()) << 32;
        self.list().push(Arc::new(Elder {
            pid,
            since,
            channel,
            turn: tokio::sync::Mutex::new(first),
        }));
    }

    /// Those that have not ended.
    pub fn all(&self) -> Vec<Arc<Elder>> {
        self.list().clone()
    }

    /// Whether there are none.
    pub fn are_gone(&self) -> bool {
        self.list().is_empty()
    }

    /// Forgets those that have ended.
    pub fn forget_ended(&self) {
        for ended in self.list().extract_if(.., |elder| elder.has_ended()) {
            let pid = ended.pid;
            tracing::info!(pid, "the process before this one has ended");
        }
    }

    /// Forgets all, which another process knows now.
    pub fn leave(&self) {
        self.list().clear();
    }

    /// Asks all of them at once; `None` from one that does not answer. One that ends meanwhile is
    /// left out.
    pub async fn ask(&self, request: &Request) -> Vec<(Arc<Elder>, Option<Vec<Line>>)> {
        self.forget_ended();
        let questions = self.all().into_iter().map(|elder| async move {
            let answer = elder.ask(request.clone()).await;
            (elder, answer)
        });
        let mut answers = join_all(questions).await;
        answers.retain(|(elder, answer)| answer.is_some() || !elder.has_ended());
        answers
    }

    /// Tells all of them to stop.
    pub async fn stop(&self) {
        let orders = self.all().into_iter().map(|elder| async move {
            let _ = timeout(PATIENCE, elder.channel.send(&FromNew::Stop, &[])).await;
        });
        join_all(orders).await;
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Elder>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Elder {
    async fn ask(&self, request: Request) -> Option<Vec<Line>> {
        timeout(PATIENCE, self.converse(request)).await.ok()?.ok()
    }

    async fn converse(&self, request: Request) -> io::Result<Vec<Line>> {
        let mut turn = self.turn.lock().await;
        *turn += 1;
        let question = FromNew::Ask {
            number: *turn,
            request,
        };
        self.channel.send(&question, &[]).await?;
        let mut all = Vec::new();
        loop {
            let (message, _) = self.channel.receive().await?;
            // An answer that comes late is to an earlier question.
            if let FromOld::Answer {
                number,
                lines,
                last,
            } = message
                && number == *turn
            {
                all.extend(lines);
                if last {
                    return Ok(all);
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        let mut wanted = [PollFd::new(self.channel.as_fd(), PollFlags::empty())];
        let _ = poll(&mut wanted, PollTimeout::ZERO);
        let found = wanted[0].revents();
        found.is_some_and(|found| found.contains(PollFlags::POLLHUP))
    }
}
