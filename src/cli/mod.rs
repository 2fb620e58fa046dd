//! The command line: flags by Go's rules, as go-mmproxy's users know them, checked by clap.

mod ban_relay;
mod config;
mod control;
mod doctor;
mod flags;
mod go;
mod routing;
mod setup;
mod topics;
mod usage;

pub use ban_relay::BanRelayFlags;
pub use config::ConfigAction;
pub use control::{CtlAction, CtlFlags};
pub use flags::{Command, definitions, parse};
pub use routing::{RoutingAction, ShowAs};
pub use setup::SetupFlags;
pub use topics::TOPICS;

/// Why a command line was not understood: a line of usage, then the error, where it is seen. The
/// exit code is 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{usage}\nrealpeer: {message}")]
pub struct UsageError {
    usage: String,
    message: String,
}
