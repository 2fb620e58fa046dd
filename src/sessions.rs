//! The open connections of one worker, so that an administrator can see and end them. A
//! connection comes here when it begins, when its client is known and when it ends, and never in
//! between: carrying bytes costs nothing for it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::addr::{ClientAddr, PeerAddr, TargetAddr};

/// Connections that are looked at before others may come and go again.
const PAGE: usize = 256;

/// Tells an open connection from all others of this run of the program.
pub type SessionId = u64;

/// What is known of an open connection.
#[derive(Clone, Debug)]
pub struct Session {
    /// The name of the listener that it came by.
    pub listener: Option<Arc<str>>,
    /// The load balancer.
    pub peer: PeerAddr,
    /// When it was taken.
    pub began: Instant,
    /// Whose it is and where it goes, once its header was read.
    pub route: Option<Route>,
    means: Means,
    ended_by: Option<EndedBy>,
}

/// How it is ended.
#[derive(Clone, Debug)]
enum Means {
    /// A TCP connection is a task.
    Task(AbortHandle),
    /// A UDP flow is ended by its listener, which `Sessions::kills` tells.
    Flow,
}

/// What a header said.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Whom the backend sees.
    pub client: ClientAddr,
    /// The backend.
    pub target: TargetAddr,
    /// The header named the client; without one the load balancer, or who got here in its place,
    /// speaks for itself.
    pub named: bool,
}

/// Whose will it was that a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// A ban on its client.
    Ban,
    /// `realpeer ctl kill`.
    Kill,
}

/// A worker's open connections.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<Open>,
    kills: watch::Sender<()>,
}

#[derive(Debug)]
struct Open {
    next: SessionId,
    step: u64,
    /// It keeps its room when connections end: a new one then needs no memory.
    sessions: HashMap<SessionId, Session>,
}

impl Session {
    fn new(
        listener: Option<Arc<str>>,
        peer: PeerAddr,
        route: Option<Route>,
        means: Means,
    ) -> Session {
        Session {
            listener,
            peer,
            began: Instant::now(),
            route,
            means,
            ended_by: None,
        }
    }
}

impl Open {
    fn next_id(&mut self) -> SessionId {
        let id = self.next;
        self.next += self.step;
        id
    }
}

impl Sessions {
    /// None yet. The workers' numbers, `number` of `workers`, keep their ids apart.
    pub fn new(number: usize, workers: usize) -> Sessions {
        Sessions {
            open: Mutex::new(Open {
                next: number as u64 + 1,
                step: workers as u64,
                sessions: HashMap::new(),
            }),
            kills: watch::Sender::default(),
        }
    }

    /// Lists a connection whose task `start` spawns. The task may come here only from another
    /// thread or later, which spawning onto a runtime makes sure of.
    pub fn begin(
        &self,
        peer: PeerAddr,
        listener: Option<Arc<str>>,
        start: impl FnOnce(SessionId) -> AbortHandle,
    ) {
        let mut open = self.open();
        let id = open.next_id();
        let means = Means::Task(start(id));
        open.sessions
            .insert(id, Session::new(listener, peer, None, means));
    }

    /// Lists a UDP flow.
    pub fn begin_flow(
        &self,
        peer: PeerAddr,
        listener: Option<Arc<str>>,
        route: Route,
    ) -> SessionId {
        let mut open = self.open();
        let id = open.next_id();
        let session = Session::new(listener, peer, Some(route), Means::Flow);
        open.sessions.insert(id, session);
        id
    }

    /// Tells when UDP flows may have to end by somebody's will: after each `kill`, and so after
    /// each ban.
    pub fn kills(&self) -> watch::Receiver<()> {
        self.kills.subscribe()
    }

    /// Lets UDP listeners look around.
    pub fn wake_flows(&self) {
        self.kills.send_replace(());
    }

    /// The highest id that was given so far, or will have been with the next.
    pub fn last_id(&self) -> SessionId {
        self.open().next
    }

    /// Gives ids above this one from now on, which are those of another process.
    pub fn begin_above(&self, id: SessionId) {
        self.open().next += id;
    }

    /// Tells whose connection it is. Whoever bans that client from now on finds it here.
    pub fn introduce(&self, id: SessionId, route: Route) {
        if let Some(session) = self.open().sessions.get_mut(&id) {
            session.route = Some(route);
        }
    }

    /// Forgets a connection that has ended.
    pub fn end(&self, id: SessionId) {
        self.open().sessions.remove(&id);
    }

    /// Whose will it is that a connection ends, if somebody's.
    pub fn ended_by(&self, id: SessionId) -> Option<EndedBy> {
        self.open().sessions.get(&id)?.ended_by
    }

    /// Ends the connections that `which` says, and tells how many.
    pub fn kill(&self, by: EndedBy, mut which: impl FnMut(SessionId, &Session) -> bool) -> usize {
        let mut count = 0;
        self.visit(|id, session| {
            if session.ended_by.is_none() && which(id, session) {
                session.ended_by = Some(by);
                if let Means::Task(task) = &session.means {
                    task.abort();
                }
                count += 1;
            }
        });
        // Only now, so that who is told finds the reason.
        self.kills.send_replace(());
        count
    }

    /// All open connections, the oldest first.
    pub fn list(&self) -> Vec<(SessionId, Session)> {
        let mut all = Vec::new();
        self.visit(|id, session| all.push((id, session.clone())));
        all
    }

    /// Looks at all open connections.
    pub fn each(&self, mut look: impl FnMut(&Session)) {
        self.visit(|_, session| look(session));
    }

    /// Where connections go that were open at `then`, each target once; `None` for those whose
    /// header is still read.
    pub fn targets_since(&self, then: Instant) -> HashSet<Option<TargetAddr>> {
        let mut all = HashSet::new();
        self.visit(|_, session| {
            if session.began <= then {
                all.insert(session.route.map(|route| route.target));
            }
        });
        all
    }

    /// Shows all of them, page by page. The thread does other work in between.
    pub async fn look(&self, mut action: impl FnMut(&Session)) {
        for page in self.ids().chunks(PAGE) {
            self.visit_page(page, |_, session| action(session));
            tokio::task::yield_now().await;
        }
    }

    /// Goes through all of them, page by page, so that no connection waits for long.
    fn visit(&self, mut action: impl FnMut(SessionId, &mut Session)) {
        for page in self.ids().chunks(PAGE) {
            self.visit_page(page, &mut action);
        }
    }

    fn ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.open().sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn visit_page(&self, page: &[SessionId], mut action: impl FnMut(SessionId, &mut Session)) {
        let mut open = self.open();
        for id in page {
            if let Some(session) = open.sessions.get_mut(id) {
                action(*id, session);
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_those_meant_are_ended_and_ids_are_never_shared() {
        let sessions = Sessions::new(1, 2);
        let mut tasks = Vec::new();
        for _ in 0..PAGE * 2 + 1 {
            let peer = PeerAddr("192.0.2.5:1".parse().unwrap());
            sessions.begin(peer, None, |id| {
                let task = tokio::spawn(std::future::pending::<()>());
                let abort = task.abort_handle();
                tasks.push((id, task));
                abort
            });
        }
        assert!(tasks.iter().all(|(id, _)| id % 2 == 0));
        let bad = tasks[PAGE + 5].0;
        let route = Route {
            client: ClientAddr("203.0.113.7:1".parse().unwrap()),
            target: TargetAddr("127.0.0.1:22".parse().unwrap()),
            named: true,
        };
        sessions.introduce(bad, route);
        let is_bad = |_, session: &Session| session.route.is_some();
        assert_eq!(sessions.kill(EndedBy::Ban, is_bad), 1);
        assert_eq!(sessions.kill(EndedBy::Kill, is_bad), 0, "it is ended once");
        assert_eq!(sessions.ended_by(bad), Some(EndedBy::Ban));
        assert_eq!(sessions.list().len(), tasks.len());
        for (id, task) in tasks {
            if id == bad {
                assert!(task.await.unwrap_err().is_cancelled());
            } else {
                assert!(!task.is_finished());
            }
        }
    }
}
