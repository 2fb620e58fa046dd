//! Where a container is, by the engine's API: its process now, and events when that changes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptions;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

use super::search::end_of;
use super::{Door, Namespace};
use crate::config::Engine;
use crate::sys::netns;

/// Seconds that the engine may take to answer.
const ANSWER: u64 = 10;

/// Between two attempts to reach an engine that is down.
const RETRY: Duration = Duration::from_secs(1);

/// A container's first process, in whose namespace we are.
struct Run {
    container: String,
    pid: i64,
    process: OwnedFd,
}

/// Why there is no run.
enum Missing {
    /// The engine says so.
    Container(String),
    /// The engine cannot be asked.
    Engine(String),
}

/// Tells the namespace of each run of the container, for ever.
pub async fn follow(engine: Engine, name: &str, socket: &Path, namespace: &Namespace, door: &Door) {
    let mut search = Search {
        engine,
        name,
        socket,
        namespace,
        door,
        run: None,
        told: None,
    };
    loop {
        let (Missing::Engine(reason) | Missing::Container(reason)) = search.follow_events().await;
        // Without an engine a container may go on.
        if search.run.is_none() {
            search.gone(reason).await;
        }
        tokio::select! {
            () = search.end_of_run() => search.ended().await,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// The container's process now.
pub async fn find(engine: Engine, name: &str, socket: &Path) -> Result<OwnedFd, String> {
    let found = async { look(&connect(engine, socket).await?, engine, name).await };
    match found.await {
        Ok(run) => Ok(run.process),
        Err(Missing::Container(reason) | Missing::Engine(reason)) => Err(reason),
    }
}

struct Search<'a> {
    engine: Engine,
    name: &'a str,
    socket: &'a Path,
    namespace: &'a Namespace,
    door: &'a Door,
    run: Option<Run>,
    /// Why there is none, as it was told last.
    told: Option<String>,
}

impl Search<'_> {
    /// Until the engine goes away.
    async fn follow_events(&mut self) -> Missing {
        let docker = match connect(self.engine, self.socket).await {
            Ok(docker) => docker,
            Err(missing) => return missing,
        };
        let mut events = Box::pin(events(&docker));
        loop {
            if let Err(missing) = self.look(&docker).await {
                return missing;
            }
            loop {
                tokio::select! {
                    event = events.next() => match event {
                        Some(Ok(event)) if self.concerns(&event) => break,
                        Some(Ok(_)) => {}
                        Some(Err(e)) => return Missing::Engine(unreachable(self.engine, self.socket, &e)),
                        None => return Missing::Engine(format!("{} has stopped", self.engine.word())),
                    },
                    () = self.end_of_run() => self.ended().await,
                }
            }
        }
    }

    /// Fails when the engine cannot be asked.
    async fn look(&mut self, docker: &Docker) -> Result<(), Missing> {
        match look(docker, self.engine, self.name).await {
            Ok(run) => {
                let is_known =
                    |known: &Run| (&known.container, known.pid) == (&run.container, run.pid);
                if self.run.as_ref().is_some_and(is_known) {
                    return Ok(());
                }
                let process = run.process.try_clone().map_err(|e| e.to_string());
                (self.run, self.told) = (Some(run), None);
                self.namespace.settle(process, self.door).await;
            }
            Err(Missing::Container(reason)) => {
                self.run = None;
                self.gone(reason).await;
            }
            Err(missing) => return Err(missing),
        }
        Ok(())
    }

    /// Whether an event is about a container that has the name, or had it.
    fn concerns(&self, event: &EventMessage) -> bool {
        let Some(actor) = &event.actor else {
            return false;
        };
        let attribute = |key| actor.attributes.as_ref().and_then(|all| all.get(key));
        let id = actor.id.as_deref().unwrap_or_default();
        let is_id = id.starts_with(self.name);
        let was = self.run.as_ref().is_some_and(|run| run.container == id);
        is_id || was || attribute("name").is_some_and(|name| name == self.name)
    }

    async fn end_of_run(&self) {
        match self.run.as_ref().map(|run| run.process.try_clone()) {
            Some(Ok(process)) => end_of(process).await,
            _ => std::future::pending().await,
        }
    }

    async fn ended(&mut self) {
        self.run = None;
        self.gone(format!("the container {} has stopped", self.name))
            .await;
    }

    async fn gone(&mut self, reason: String) {
        if self.told.as_ref() != Some(&reason) {
            self.told = Some(reason.clone());
            self.namespace.settle(Err(reason), self.door).await;
        }
    }
}

async fn connect(engine: Engine, socket: &Path) -> Result<Docker, Missing> {
    let explain = |error| Missing::Engine(unreachable(engine, socket, &error));
    let path = socket.to_string_lossy();
    let docker = Docker::connect_with_unix(&path, ANSWER, API_DEFAULT_VERSION).map_err(explain)?;
    docker.negotiate_version().await.map_err(explain)
}

/// What happens to containers from a moment ago on, so that nothing is missed that happens before
/// the engine has taken the request.
fn events(docker: &Docker) -> impl Stream<Item = Result<EventMessage, Error>> + use<> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = now.unwrap_or_default().as_secs().saturating_sub(1);
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned()])]);
    docker.events(Some(EventsOptions {
        since: Some(since.to_string()),
        until: None,
        filters: Some(filters),
    }))
}

/// The container's process, opened; asked for twice, so that it was the container's when it was
/// opened.
async fn look(docker: &Docker, engine: Engine, name: &str) -> Result<Run, Missing> {
    let (container, pid) = ask(docker, engine, name).await?;
    let process =
        u32::try_from(pid).map_or(Err(std::io::ErrorKind::NotFound.into()), netns::process);
    let process = process.map_err(|e| {
        Missing::Container(format!(
            "cannot open the process {pid} of the container {name}: {e}"
        ))
    })?;
    match ask(docker, engine, name).await? {
        again if again == (container.clone(), pid) => Ok(Run {
            container,
            pid,
            process,
        }),
        _ => Err(Missing::Container(format!(
            "the container {name} is starting"
        ))),
    }
}

/// The container's id and process.
async fn ask(docker: &Docker, engine: Engine, name: &str) -> Result<(String, i64), Missing> {
    let found = match docker.inspect_container(name, None).await {
        Ok(found) => found,
        Err(Error::DockerResponseServerError {
            status_code: 404, ..
        }) => {
            let missing = format!("{} knows no container {name}", engine.word());
            return Err(Missing::Container(missing));
        }
        // Podman has a state more than Docker, stopped, and fails while it removes a container. An
        // event follows each.
        Err(error @ (Error::DockerResponseServerError { .. } | Error::JsonDataError { .. })) => {
            let missing = format!("the container {name} does not run ({error})");
            return Err(Missing::Container(missing));
        }
        Err(error) => {
            let silent = format!("{} does not answer: {error}", engine.word());
            return Err(Missing::Engine(silent));
        }
    };
    let state = found.state.unwrap_or_default();
    match (found.id, state.running, state.pid) {
        (Some(id), Some(true), Some(pid)) if pid > 0 => Ok((id, pid)),
        _ => {
            let status = state.status.map(|status| status.to_string());
            let status = status.unwrap_or_default();
            Err(Missing::Container(format!(
                "the container {name} does not run ({status})"
            )))
        }
    }
}

fn unreachable(engine: Engine, socket: &Path, error: &Error) -> String {
    let cure = match std::os::unix::net::UnixStream::connect(socket) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            "realpeer may not use it: the drop-in containers.conf for its unit gives it the group"
        }
        Err(_) => "does it run? -docker-socket names another socket",
        Ok(_) => "it answers strangely",
    };
    format!(
        "cannot ask {} by {} ({error}): {cure}",
        engine.word(),
        socket.display()
    )
}
