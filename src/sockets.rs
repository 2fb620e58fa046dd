//! Listening sockets that were there before this process: of a socket unit of systemd
//! (sd_listen_fds(3)), or of the process that this one takes over from. A listener takes its own
//! from here, and binds what is not here.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{SockRef, Type};

use crate::config::{Config, Protocol};
use crate::handover::message::{Activated, Place};

/// Sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Sockets {
    given: Vec<Given>,
    /// Addresses that stand in place of those of the configuration.
    pub activated: Vec<Activated>,
}

/// The sockets of an address.
#[derive(Debug)]
struct Given {
    place: Place,
    /// What a socket unit calls it.
    name: Option<String>,
    sockets: Vec<OwnedFd>,
}

impl Sockets {
    /// Those of a socket unit, with their names. Fails for one that no listener could use.
    pub fn of_systemd(sockets: Vec<(OwnedFd, String)>) -> Result<Sockets> {
        let mut all = Sockets::default();
        for (socket, name) in sockets {
            let place =
                place(&socket).with_context(|| format!("the socket {name:?} of LISTEN_FDS"))?;
            all.add(place, Some(name), vec![socket]);
        }
        Ok(all)
    }

    /// Adds sockets that a process before this one listened on.
    pub fn inherit(&mut self, place: Place, sockets: Vec<OwnedFd>) {
        self.add(place, None, sockets);
    }

    fn add(&mut self, place: Place, name: Option<String>, sockets: Vec<OwnedFd>) {
        let same = |given: &&mut Given| given.place == place && given.name == name;
        match self.given.iter_mut().find(same) {
            Some(given) => given.sockets.extend(sockets),
            None => self.given.push(Given {
                place,
                name,
                sockets,
            }),
        }
    }

    /// Makes the configuration follow what is here: a listener listens where the sockets of its name
    /// are bound, and has as many sockets as it gets. Tells what is not as it was asked for. Fails
    /// when sockets of its name are of the other protocol.
    pub fn fit(&mut self, config: &mut Config) -> Result<Vec<String>> {
        for given in self.given.iter().filter(|given| given.name.is_some()) {
            let named = |listener: &&std::sync::Arc<_>| is_named(listener, given);
            let Some(listener) = config.listeners.iter().find(named) else {
                continue;
            };
            if listener.protocol != given.place.protocol() {
                bail!(
                    "{}: the listener of that name is of the other protocol",
                    given.words()
                );
            }
            let name = given.name.clone().unwrap_or_default();
            let known = self.activated.iter_mut().find(|known| known.name == name);
            match known {
                Some(known) => known.addresses.push(given.place.asked),
                None => self.activated.push(Activated {
                    name,
                    udp: given.place.udp,
                    addresses: vec![given.place.asked],
                }),
            }
        }
        activate(&self.activated, config);
        let mut notes = Vec::new();
        for listener in &mut config.listeners {
            let here = |given: &&Given| {
                given.place.protocol() == listener.protocol
                    && listener.listen.contains(&given.place.asked)
            };
            let most = self
                .given
                .iter()
                .filter(here)
                .map(|given| given.sockets.len())
                .max();
            if let Some(count) = most.filter(|count| *count != listener.listeners) {
                let name = listener.name.as_deref().unwrap_or_default();
                notes.push(format!("listeners of {name:?}: {count} sockets were passed on; another number needs a restart"));
                std::sync::Arc::make_mut(listener).listeners = count;
            }
        }
        Ok(notes)
    }

    /// The sockets of that address, if there are any.
    pub fn take(&mut self, protocol: Protocol, asked: SocketAddr) -> Option<Vec<OwnedFd>> {
        let wanted = Place::new(protocol, asked);
        let found = self.given.extract_if(.., |given| given.place == wanted);
        let sockets: Vec<OwnedFd> = found.flat_map(|given| given.sockets).collect();
        (!sockets.is_empty()).then_some(sockets)
    }

    /// Closes what is left, and tells the addresses that stand in place of those of the configuration.
    pub fn into_activated(self) -> Vec<Activated> {
        self.activated
    }

    /// Fails if a socket unit's socket is left that no listener has taken.
    pub fn refuse_rest(&self) -> Result<()> {
        match self.given.iter().find(|given| given.name.is_some()) {
            None => Ok(()),
            Some(rest) => bail!(
                "{} matches no listener: give the unit FileDescriptorName= with a listener's name, or let a listener have its address and protocol",
                rest.words()
            ),
        }
    }
}

/// Puts the addresses of a socket unit in place of those that listeners of their names are asked for.
pub fn activate(activated: &[Activated], config: &mut Config) {
    for given in activated {
        let named = |listener: &&mut std::sync::Arc<crate::config::ListenerConfig>| {
            listener.name.as_ref() == Some(&given.name)
                && (listener.protocol == Protocol::Udp) == given.udp
        };
        if let Some(listener) = config.listeners.iter_mut().find(named) {
            std::sync::Arc::make_mut(listener)
                .listen
                .clone_from(&given.addresses);
        }
    }
}

fn is_named(listener: &crate::config::ListenerConfig, given: &Given) -> bool {
    listener.name.is_some() && listener.name == given.name
}

impl Given {
    fn words(&self) -> String {
        let (name, asked) = (self.name.as_deref().unwrap_or_default(), self.place.asked);
        let protocol = crate::config::Choice::word(self.place.protocol());
        format!("the socket {name:?} of LISTEN_FDS ({protocol} {asked})")
    }
}

fn place(socket: &OwnedFd) -> Result<Place> {
    let reference = SockRef::from(socket);
    let kind = reference.r#type().context("it is no socket")?;
    let address = reference
        .local_addr()
        .ok()
        .and_then(|addr| addr.as_socket());
    let asked = address.context("it has no internet address")?;
    let protocol = match kind {
        Type::STREAM if getsockopt(socket, sockopt::AcceptConn).unwrap_or(false) => Protocol::Tcp,
        Type::STREAM => bail!("it does not listen: leave Accept=no in the unit"),
        Type::DGRAM => Protocol::Udp,
        _ => bail!("it is neither TCP nor UDP"),
    };
    reference.set_nonblocking(true)?;
    Ok(Place::new(protocol, asked))
}
