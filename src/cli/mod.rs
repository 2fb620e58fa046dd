//! The command line: Go's flag rules for go-mmproxy's users, spelt out by clap.

mod ban_relay;
mod control;
mod doctor;
mod flags;
mod go;
mod routing;
mod usage;
mod value;

pub use ban_relay::BanRelayFlags;
pub use control::{CtlAction, CtlFlags};
pub use flags::{Command, ProxyFlags, parse};
pub use routing::{RoutingAction, ShowAs};
pub use value::HostPort;

/// Why a command line was not understood; shown on one line, followed by the usage, exit code 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n{usage}")]
pub struct UsageError {
    message: String,
    usage: String,
}
