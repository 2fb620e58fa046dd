//! What goes over the control socket: one request per line, and for each request the lines that
//! answer it, of which the last has the field `ok`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::bans::{Ban, UnixSeconds};
use crate::crowdsec;
use crate::events::Told;
use crate::networks;
use crate::sandbox;
use crate::sessions::SessionId;
use crate::stats::Count;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// What runs, and its counts.
    Status {},
    /// The open connections, of one listener or of all.
    Connections {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
    /// End connections: one by its id, or all of a client.
    Kill {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<SessionId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<Network>,
    },
    /// Ban a client.
    Ban {
        network: Network,
        /// Seconds; none means until it is lifted.
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        length: Option<f64>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        #[serde(default)]
        force: bool,
    },
    /// End a ban.
    Unban {
        network: Network,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Even a decision of CrowdSec, which the engine brings back.
        #[serde(default)]
        force: bool,
    },
    /// Who is banned, by all or by one origin.
    Bans {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin: Option<String>,
    },
    /// Take nothing new at a listener, which may be left out if it is the only one.
    Drain {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
    /// Take connections again at a listener.
    Resume {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
    /// Read the configuration and its lists again.
    Reload {},
    /// Change how much is logged.
    Log { level: u8 },
    /// What is in force, as TOML.
    Config {},
    /// Have a new process of the program take over.
    Upgrade {},
    /// The clients with the most open connections, the newest or the oldest, `most` of them.
    Clients {
        #[serde(default)]
        sort: Sort,
        /// A part of their address, or of the name of a listener that they use.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        filter: String,
        most: usize,
    },
    /// What happens from now on, at one listener or at all: lines without end.
    Watch {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
}

/// By what clients are put in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// The most open connections first.
    #[default]
    Open,
    /// The most new ones first.
    New,
    /// The oldest one first.
    Age,
}

/// A network that may also be written as a bare address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(pub IpNet);

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        let network = networks::parse(&text).map(Network);
        network.ok_or_else(|| format!("{text:?} is neither an address nor a network"))
    }
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// One of the open connections.
    Connection { connection: Connection },
    /// One of the bans; a decision of CrowdSec has its origin.
    Ban {
        ban: Ban,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin: Option<String>,
    },
    /// One of the clients.
    Client { client: BusyClient },
    /// Something that happened.
    Event(Arc<Told>),
    /// The last line: how it went.
    End(End),
}

/// How a request went.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// It was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What should be known although it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// How many lines came before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Connections that were ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<usize>,
    /// When a new ban ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixSeconds>,
    /// The process that serves since an `upgrade`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The answer to `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
}

impl End {
    /// Done.
    pub fn ok() -> End {
        End {
            ok: true,
            ..End::default()
        }
    }

    /// Not done.
    pub fn error(why: impl Into<String>) -> End {
        End {
            error: Some(why.into()),
            ..End::default()
        }
    }
}

/// What runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub pid: u32,
    /// Of the first listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    pub uptime: u64,
    pub open: usize,
    pub bans: usize,
    /// How decisions of CrowdSec are read, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crowdsec: Option<crowdsec::Told>,
    /// What happened since the start, as the log names it.
    pub counts: BTreeMap<String, u64>,
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Processes before this one that still carry sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Older>,
    /// The last refusal of each kind that there was, at whatever listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, LastRefused>,
    /// What the process has given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<sandbox::State>,
}

/// A process that was succeeded by another and still carries sessions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Older {
    pub pid: u32,
    /// Missing if it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<usize>,
    /// Seconds since it was succeeded.
    pub since: u64,
}

/// A listener, and what happened there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listener {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub listen: Vec<SocketAddr>,
    pub protocol: String,
    /// It takes new connections; `drain` ends that.
    pub accepting: bool,
    pub open: usize,
    pub counts: BTreeMap<String, u64>,
    /// The last refusal of each kind that there was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, LastRefused>,
}

impl Listener {
    /// A count of it.
    pub fn count(&self, count: Count) -> u64 {
        self.counts.get(count.name()).copied().unwrap_or(0)
    }
}

/// The last refusal of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastRefused {
    /// Whose connection it was; missing for the listener's own trouble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Seconds since then.
    pub ago: u64,
    /// How many of the kind came without any client served in between.
    pub in_a_row: u64,
    /// How many of these came from `peer`, without another's in between.
    pub of_peer: u64,
    /// A client has been served since.
    pub served_since: bool,
}

/// An open connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Connection {
    pub id: SessionId,
    /// The name of its listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// Missing while its header is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    pub peer: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SocketAddr>,
    /// Seconds since it was taken.
    pub age: u64,
    /// The process that carries it, if that was succeeded by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// A client and what it has open.
#[derive(Debug, Serialize, Deserialize)]
pub struct BusyClient {
    pub address: IpAddr,
    /// Connections and flows open now.
    pub open: usize,
    /// Those of them that began in the last ten seconds.
    pub new: usize,
    /// The age of the oldest, in seconds.
    pub oldest: u64,
    /// Names of the listeners.
    pub listeners: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_documented() {
        let read = |text: &str| serde_json::from_str::<Request>(text).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"do":"status"}"#), Ok(Request::Status {}));
        let ban = read(r#"{"do":"ban","network":"203.0.113.9","for":1.5}"#).unwrap();
        let Request::Ban {
            network, length, ..
        } = ban
        else {
            panic!("{ban:?}")
        };
        assert_eq!(
            (network.0.to_string(), length),
            ("203.0.113.9/32".into(), Some(1.5))
        );
        assert!(
            read(r#"{"do":"ban","network":"all"}"#)
                .unwrap_err()
                .contains("\"all\"")
        );
        assert!(read(r#"{"do":"ban","network":"203.0.113.9","fore":1}"#).is_err());
        assert!(read(r#"{"do":"reboot"}"#).is_err());
    }

    #[test]
    fn the_last_line_is_told_from_the_others() {
        let line = serde_json::to_string(&Line::End(End::error("no"))).unwrap();
        assert_eq!(line, r#"{"ok":false,"error":"no"}"#);
        assert!(matches!(serde_json::from_str(&line), Ok(Line::End(_))));
    }
}
