//! `realpeer ctl`: one request, its answer, and an exit code that scripts can trust.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{End, Line, Network, Request, Status};
use super::{table, top, usual_path, watch};
use crate::cli::{CtlAction, CtlFlags};
use crate::config::{Control, Process};
use crate::output;

/// How long the proxy may take for a line of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an upgrade may take: the proxy gives the new process 10 s, and may have a reload to end
/// first.
const LONGEST_UPGRADE: Duration = Duration::from_secs(60);

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The proxy said no: exit code 1.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers: exit code 3.
    #[error("{0}")]
    NoProxy(String),
    /// The answer could not be printed: exit code 1.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// What the program ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(_) | Failure::Output(_) => 1,
            Failure::NoProxy(_) => 3,
        }
    }
}

/// Asks the proxy and prints what it says.
pub fn run(flags: &CtlFlags) -> Result<(), Failure> {
    let path = flags
        .control
        .clone()
        .unwrap_or_else(|| usual_path(flags.name.as_deref()));
    match flags.action {
        CtlAction::Watch => return watch::run(&path, flags),
        CtlAction::Top => return top::run(&path),
        _ => {}
    }
    let (lines, end) = ask(&path, &request(flags)).map_err(|e| no_proxy(&path, &e))?;
    if flags.json {
        let mut lines = lines;
        lines.push(Line::End(end));
        let mut text = String::new();
        for line in &lines {
            text += &serde_json::to_string(line).map_err(io::Error::other)?;
            text.push('\n');
        }
        output::print(text)?;
        return match lines.pop() {
            Some(Line::End(End {
                error: Some(error), ..
            })) => Err(Failure::Refused(error)),
            _ => Ok(()),
        };
    }
    if let Some(error) = end.error {
        return Err(Failure::Refused(error));
    }
    output::print(table::answer(&flags.action, &lines, &end))?;
    if let Some(warning) = end.warning {
        output::complain(warning);
    }
    Ok(())
}

/// What the proxy of these settings says of itself; `None` if none answers.
pub fn status(process: &Process) -> Option<Status> {
    let path = match &process.control {
        Control::Off => return None,
        Control::Usual => usual_path(process.name.as_deref()),
        Control::At(path) => path.clone(),
    };
    let (_, end) = ask(&path, &Request::Status {}).ok()?;
    end.status.map(|status| *status)
}

/// The process of the running proxy of that name, if there is one.
pub fn running(name: &str) -> Option<u32> {
    let (_, end) = ask(&usual_path(Some(name)), &Request::Status {}).ok()?;
    end.status.map(|status| status.pid)
}

/// What the running proxy has in force, as TOML.
pub fn config(control: Option<&Path>, name: Option<&str>) -> Result<String, Failure> {
    let path = control.map_or_else(|| usual_path(name), Path::to_owned);
    let (_, end) = ask(&path, &Request::Config {}).map_err(|e| no_proxy(&path, &e))?;
    match (end.config, end.error) {
        (Some(text), _) => Ok(text),
        (None, error) => Err(Failure::Refused(error.unwrap_or_default())),
    }
}

/// Has the running proxy of that name read its configuration again.
pub fn reload(name: &str) -> Result<(), Failure> {
    let path = usual_path(Some(name));
    let (_, end) = ask(&path, &Request::Reload {}).map_err(|e| no_proxy(&path, &e))?;
    end.error
        .map_or(Ok(()), |error| Err(Failure::Refused(error)))
}

pub(super) fn request(flags: &CtlFlags) -> Request {
    match flags.action {
        // The screen asks for more.
        CtlAction::Status | CtlAction::Top => Request::Status {},
        CtlAction::Connections => Request::Connections {
            listener: flags.listener.clone(),
        },
        CtlAction::KillId(id) => Request::Kill {
            id: Some(id),
            client: None,
        },
        CtlAction::KillClient(client) => Request::Kill {
            id: None,
            client: Some(Network(client)),
        },
        CtlAction::Ban(network) => Request::Ban {
            network: Network(network),
            length: flags.length.map(|length| length.as_secs_f64()),
            reason: flags.reason.clone(),
            listener: flags.listener.clone(),
            force: flags.force,
        },
        CtlAction::Unban(network) => Request::Unban {
            network: Network(network),
            listener: flags.listener.clone(),
            force: flags.force,
        },
        CtlAction::Bans => Request::Bans {
            origin: flags.origin.clone(),
        },
        CtlAction::Drain(ref listener) => Request::Drain {
            listener: listener.clone(),
        },
        CtlAction::Resume(ref listener) => Request::Resume {
            listener: listener.clone(),
        },
        CtlAction::Reload => Request::Reload {},
        CtlAction::Log(level) => Request::Log { level },
        CtlAction::Upgrade => Request::Upgrade {},
        CtlAction::Watch => Request::Watch {
            listener: flags.listener.clone(),
        },
    }
}

fn ask(path: &Path, request: &Request) -> io::Result<(Vec<Line>, End)> {
    Conversation::begin(path)?.ask(request)
}

/// A connection to a proxy.
pub(super) struct Conversation(BufReader<UnixStream>);

impl Conversation {
    /// Fails if nobody listens there.
    pub fn begin(path: &Path) -> io::Result<Conversation> {
        Ok(Conversation(BufReader::new(UnixStream::connect(path)?)))
    }

    /// Asks, and waits for the whole answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<(Vec<Line>, End)> {
        let patience = match request {
            Request::Upgrade {} => LONGEST_UPGRADE,
            _ => PATIENCE,
        };
        self.0.get_ref().set_read_timeout(Some(patience))?;
        // A proxy that has too many clients answers without reading.
        let sent = send(self.0.get_mut(), request);
        let mut lines = Vec::new();
        for line in self.0.by_ref().lines() {
            match serde_json::from_str(&line?)? {
                Line::End(end) => return Ok((lines, end)),
                line => lines.push(line),
            }
        }
        sent?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sends a request.
pub(super) fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)
}

pub(super) fn no_proxy(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::NoProxy(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no proxy listens at {path}: is it running, and with this -control or -name?")
        }
        io::ErrorKind::PermissionDenied => {
            format!("may not use {path}: be root, or in the group of its -control-group")
        }
        io::ErrorKind::WouldBlock => format!("the proxy at {path} does not answer"),
        _ => format!("the proxy at {path} broke off: {error}"),
    })
}
