//! Whose rules are whose: the numbers of our routing tables, and the lock on each.
//!
//! A running instance holds an abstract Unix socket that is named after its table. Such a name
//! belongs to the network namespace, as the table does, and the kernel frees it however the
//! process ends. So a table of ours whose name is free is a leftover of a killed instance.

use std::io;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The table of `realpeer routing up`. No proxy's exit touches it.
pub const SWITCH_TABLE: u32 = 8192;

/// The tables of running proxies, one each. Far from the numbers of others (WireGuard's 51820,
/// Tailscale's 52, systemd's VRFs), and as marks (0x2001 to 0x20ff) free of the bits that
/// Kubernetes (0x4000, 0x8000), Tailscale (0xff0000) and Cilium (0x0f00) watch.
pub const INSTANCE_TABLES: RangeInclusive<u32> = 8193..=8447;

/// The right to use one table, for as long as this lives.
#[derive(Debug)]
pub struct Lock {
    /// The table it stands for.
    pub table: u32,
    _name: UnixDatagram,
}

/// Takes the lock of `table`; `None` when a running process holds it.
pub fn try_lock(table: u32) -> Result<Option<Lock>> {
    let name = SocketAddr::from_abstract_name(format!("realpeer-routing-{table}"))
        .context("abstract socket name")?;
    match UnixDatagram::bind_addr(&name) {
        Ok(socket) => Ok(Some(Lock {
            table,
            _name: socket,
        })),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e).context("cannot bind the abstract Unix socket that guards a table"),
    }
}

/// Takes the lock of `table`, waiting for another `routing up` or `down` to end.
pub async fn lock(table: u32) -> Result<Lock> {
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(3);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = try_lock(table)? {
            return Ok(lock);
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "another `realpeer routing` has held table {table} for {} seconds",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}
