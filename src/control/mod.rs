//! The control socket: how an administrator and programs such as fail2ban look at a running proxy
//! and steer it. JSON lines over a Unix socket; examples/control-socket.md describes them.
//!
//! The server lives on the main thread, where no connection is carried.

mod client;
mod clients;
mod commands;
mod older;
mod protocol;
mod server;
mod socket;
mod table;
mod top;
mod watch;

use std::path::{Path, PathBuf};

use crate::config::Control;

pub(crate) use client::status;
pub use client::{Failure, config, reload, run, running};
pub use commands::Office;
pub(crate) use protocol::{End, LastRefused, Line, Listener, Request, Status};
pub use server::serve;
pub use socket::{Bound, Place, bind, lock_path};
pub(crate) use table::older_words;

/// Where control sockets are when nobody says otherwise.
pub const DIRECTORY: &str = "/run/realpeer";

/// Where the control socket of an instance is to be, if anywhere.
pub fn path(control: &Control, name: Option<&str>) -> Option<PathBuf> {
    match control {
        Control::Off => None,
        Control::Usual => Some(usual_path(name)),
        Control::At(path) => Some(path.clone()),
    }
}

/// The control socket of the instance of that name.
fn usual_path(name: Option<&str>) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}.sock", name.unwrap_or("control")))
}
