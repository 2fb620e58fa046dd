//! What happens to sessions and bans, for whoever watches (`realpeer ctl watch`).
//!
//! Nobody waits for a watcher: one that is slow loses the oldest events, and learns how many. While
//! nobody watches, an event costs a look at a number and is not even put together.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};

use crate::bans::UnixSeconds;
use crate::sessions::SessionId;

/// Events that may wait for a watcher.
const WAITING: usize = 16 << 10;

/// Where events are told.
#[derive(Debug, Default)]
pub struct Events {
    watchers: AtomicUsize,
    /// Made for the first watcher: it holds half a megabyte.
    channel: OnceLock<Sender<Arc<Told>>>,
}

/// An event, and when it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    /// In UTC.
    pub time: SystemTime,
    /// What it was.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "lowercase",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// The watcher is told everything from now on.
    Watching {},
    /// A connection has reached its backend, or a UDP flow has its socket.
    Opened {
        /// As `ctl connections` has it.
        id: SessionId,
        /// The listener's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Whom the backend sees.
        client: SocketAddr,
        /// The load balancer.
        peer: SocketAddr,
        /// The backend.
        target: SocketAddr,
    },
    /// It has ended.
    Closed {
        /// As `ctl connections` had it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<SessionId>,
        /// The listener's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Whom the backend saw; missing if it was ended while its header was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<SocketAddr>,
        /// The load balancer.
        peer: SocketAddr,
        /// The backend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<SocketAddr>,
        /// From the client.
        bytes_up: u64,
        /// To the client.
        bytes_down: u64,
        /// Seconds since it was taken.
        age: f64,
        /// Why.
        end: String,
    },
    /// A connection or datagram was refused.
    Refused {
        /// The listener's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// The counter that it added to.
        reason: String,
        /// Why, in words.
        error: String,
        /// Whom the header named, as far as it was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<SocketAddr>,
        /// The load balancer.
        peer: SocketAddr,
        /// Where it was to go, if that was known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<SocketAddr>,
    },
    /// A client was banned.
    Ban {
        /// Who.
        network: IpNet,
        /// Where; everywhere if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// When it ends; until it is lifted if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<UnixSeconds>,
        /// Why.
        reason: String,
    },
    /// A ban has ended.
    Unban {
        /// Whose.
        network: IpNet,
        /// Where; everywhere if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Its time was over.
        expired: bool,
    },
    /// The watcher was too slow and has missed events.
    Lost {
        /// How many.
        count: u64,
    },
}

impl Events {
    /// Tells those who watch. It waits for none of them.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if self.watchers.load(Ordering::Relaxed) > 0
            && let Some(channel) = self.channel.get()
        {
            // It fails when the last watcher has just left.
            let _ = channel.send(Arc::new(Told::now(event())));
        }
    }

    /// Watches from now on.
    pub fn watch(self: &Arc<Events>) -> Watcher {
        let channel = self.channel.get_or_init(|| broadcast::channel(WAITING).0);
        let receiver = channel.subscribe();
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher {
            receiver,
            events: Arc::clone(self),
        }
    }
}

/// Hears all events as long as it lives.
#[derive(Debug)]
pub struct Watcher {
    receiver: Receiver<Arc<Told>>,
    events: Arc<Events>,
}

impl Watcher {
    /// Waits for the next event. The number of those that were missed stands for them.
    pub async fn next(&mut self) -> Arc<Told> {
        match self.receiver.recv().await {
            Ok(told) => told,
            Err(RecvError::Lagged(count)) => lost(count),
            // The sender is in `events`.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// The next event, if there is one already.
    pub fn ready(&mut self) -> Option<Arc<Told>> {
        match self.receiver.try_recv() {
            Ok(told) => Some(told),
            Err(TryRecvError::Lagged(count)) => Some(lost(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.events.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lost(count: u64) -> Arc<Told> {
    Arc::new(Told::now(Event::Lost { count }))
}

impl Told {
    /// It happens now.
    pub fn now(event: Event) -> Told {
        Told {
            time: SystemTime::now(),
            event,
        }
    }

    /// Whether it concerns that listener.
    pub fn concerns(&self, name: &str) -> bool {
        let (listener, everywhere) = match &self.event {
            Event::Opened { listener, .. }
            | Event::Closed { listener, .. }
            | Event::Refused { listener, .. } => (listener, false),
            Event::Ban { listener, .. } | Event::Unban { listener, .. } => (listener, true),
            Event::Watching {} | Event::Lost { .. } => return true,
        };
        listener.as_deref().map_or(everywhere, |at| at == name)
    }
}

fn write_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn read_time<'a, D: Deserializer<'a>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(count: u64) -> Event {
        Event::Lost { count }
    }

    fn count(told: &Told) -> u64 {
        match told.event {
            Event::Lost { count } => count,
            _ => panic!("{told:?}"),
        }
    }

    #[tokio::test]
    async fn who_is_slow_misses_the_oldest_and_learns_how_many() {
        let events = Arc::new(Events::default());
        events.tell(|| panic!("nobody watches"));
        let (mut slow, mut fast) = (events.watch(), events.watch());
        for number in 0..WAITING as u64 + 7 {
            events.tell(|| event(number));
            assert_eq!(count(fast.next().await.as_ref()), number);
        }
        assert_eq!(count(slow.next().await.as_ref()), 7);
        for number in 7..WAITING as u64 + 7 {
            assert_eq!(slow.ready().map(|told| count(&told)), Some(number));
        }
        assert!(slow.ready().is_none());
        drop((slow, fast));
        events.tell(|| panic!("nobody watches any more"));
    }

    #[test]
    fn a_listener_hears_of_its_own_and_of_bans_of_all() {
        let unban = |listener: Option<&str>| {
            Told::now(Event::Unban {
                network: "203.0.113.0/24".parse().unwrap(),
                listener: listener.map(str::to_owned),
                expired: true,
            })
        };
        let concerns = [None, Some("a"), Some("b")].map(|at| unban(at).concerns("a"));
        assert_eq!(concerns, [true, true, false]);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let mut told = Told::now(event(3));
        told.time = SystemTime::UNIX_EPOCH;
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(
            text,
            r#"{"time":"1970-01-01T00:00:00.000Z","event":"lost","count":3}"#
        );
        assert_eq!(count(&serde_json::from_str(&text).unwrap()), 3);
    }
}
