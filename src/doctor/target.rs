//! One of the proxy's targets, and where it is.

use anyhow::Result;

use crate::config::Protocol;
use crate::routing::family::Family;
use crate::routing::kernel::Kernel;
use crate::routing::plan::{Need, Place};
use crate::routing::{self, bound};

/// One of the proxy's targets.
#[derive(Clone, Debug)]
pub struct Target {
    /// What its replies need.
    pub need: Need,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it is.
    pub place: Place,
    /// The interface towards a target that is not on this host.
    pub interface: Option<u32>,
    /// Its UDP backend is bound to the wildcard address.
    pub wildcard: bool,
}

impl Target {
    /// Looks where it is.
    pub async fn locate(kernel: &Kernel, protocol: Protocol, need: Need) -> Result<Target> {
        let at = need.target;
        let (place, interface) = kernel.locate(at.ip()).await?;
        let udp_here = protocol == Protocol::Udp && place != Place::Behind;
        let wildcard = udp_here && bound::is_wildcard(&bound::bound(protocol), at);
        Ok(Target {
            need,
            protocol,
            place,
            interface,
            wildcard,
        })
    }

    /// The flag that names it.
    pub fn flag(&self) -> &'static str {
        match self.need.family() {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    /// As firewalls call it.
    pub fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// The command that puts its way back in, for good.
    pub fn up(&self) -> String {
        let mut command = format!("realpeer routing up {}", routing::flags(&self.need));
        if self.need.target.ip().is_unspecified() {
            command = "realpeer routing up -dynamic-destination".into();
            if let Some(netns) = &self.need.netns {
                command += &format!(" -target-netns {netns}");
            }
        }
        if self.protocol == Protocol::Udp {
            command += " -p udp";
        }
        if let Some(mark) = self.need.mark {
            command += &format!(" -mark {mark}");
        }
        command
    }
}
