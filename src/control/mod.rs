//! The control socket: how an administrator and programs such as fail2ban look at a running proxy
//! and steer it. JSON lines over a Unix socket; examples/control-socket.md describes them.
//!
//! The server lives on the main thread, where no connection is carried.

mod client;
mod clients;
mod commands;
mod protocol;
mod server;
mod socket;
mod table;
mod top;
mod watch;

use std::path::{Path, PathBuf};

pub(crate) use client::status;
pub use client::{Failure, config, run};
pub use commands::Office;
pub(crate) use protocol::{LastRefused, Listener, Status};
pub use server::serve;
pub use socket::{Place, bind};

/// Where control sockets are when nobody says otherwise.
const DIRECTORY: &str = "/run/realpeer";

/// The control socket of the instance of that name.
fn usual_path(name: Option<&str>) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}.sock", name.unwrap_or("control")))
}
