//! Whom a ban must not hit: this host and the load balancers, whom banning would ban everybody; and
//! sessions of those who speak for themselves, where a rule spares them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::listeners::Listeners;
use crate::service::Service;
use crate::sessions::Session;
use crate::sys;

/// What is protected, as the listeners and this host were when it was made.
#[derive(Debug)]
pub struct Protected {
    /// Every listener, and whether it takes anything new.
    services: Vec<(Arc<Service>, bool)>,
    own: Vec<IpAddr>,
}

impl Protected {
    /// What is protected now.
    pub async fn now(listeners: &Listeners) -> Protected {
        Protected {
            services: listeners.services().await,
            own: sys::interfaces::addresses(),
        }
    }

    /// Why a network may not be banned, if it may not.
    pub fn refuse(&self, network: &IpNet) -> Result<(), String> {
        let own = self.own.iter().find(|ip| network.contains(*ip)).copied();
        let loopback = Some(network.addr()).filter(|ip| ip.is_loopback());
        if let Some(ip) = own.or(loopback) {
            return Err(format!("{network} holds this host's own address {ip}"));
        }
        let mut trusted = self
            .services
            .iter()
            .filter_map(|(service, _)| service.admission.allowed_subnets.as_ref());
        match trusted.find_map(|list| list.overlap(network)) {
            Some(found) => Err(format!(
                "{network} overlaps {found}, a load balancer of the allowed-subnets file"
            )),
            None => Ok(()),
        }
    }

    /// Whether a ban on that network passes the session over: a load balancer that speaks for itself
    /// may be spared by the rules of its listener.
    pub fn spares(&self, session: &Session, network: &IpNet) -> bool {
        if session.route.is_some_and(|route| route.named) {
            return false;
        }
        let mut services = self.services.iter().map(|(service, _)| service);
        let service = services.find(|service| service.record.name == session.listener);
        service.is_some_and(|service| service.admission.spares(session.peer, network))
    }

    /// Whether the same is protected: no reload and no new address came between.
    pub fn is_as(&self, other: &Protected) -> bool {
        let mut pairs = self.services().zip(other.services());
        self.own == other.own
            && self.services.len() == other.services.len()
            && pairs.all(|(ours, theirs)| std::ptr::eq(ours, theirs))
    }

    /// The listeners.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|(service, _)| &**service)
    }
}

/// Whether a session is one of a client in that network.
pub fn is_of(session: &Session, network: &IpNet) -> bool {
    session
        .route
        .is_some_and(|route| network.contains(&route.client.ip()))
}
