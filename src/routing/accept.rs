//! `net.ipv4.tcp_fwmark_accept`: the one sysctl of mark-accept, for both families and for the
//! whole host.
//!
//! Who turned it on, and who needs it, is kept in the kernel, because it must outlive SIGKILL but
//! not a reboot, as the sysctl does: whoever needs it has a second route, of metric 1, in its
//! table, if the sysctl was off before the first of them came. The last to go puts it back to 0.
//! Where it was on before, nobody has such a route and it stays on.
//!
//! With it each accepted connection inherits the mark of its SYN, whoever set that. Where other
//! rules look at marks, as those of TPROXY do, that would lead answers astray. So there the guard,
//! an nft chain behind all filters, takes the mark off the SYNs that arrive by a wire. Ours arrive
//! by lo and keep theirs. So do other programs' on lo, whose answers are local whatever their mark.

use std::fs;
use std::io;

use super::family::Family;
use super::kernel::Kernel;
use super::nft;
use super::owner::{self, Lock};
use super::plan::Route;

/// The file that it is, in the network namespace of who opens it.
pub const FILE: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// True if accepted connections inherit the mark of the SYN.
pub fn is_on() -> bool {
    fs::read_to_string(FILE).is_ok_and(|text| text.trim() == "1")
}

/// The route that says: the owner of `table` needs the sysctl, and we turned it on.
pub fn marker(table: u32) -> Route {
    Route {
        family: Family::V4,
        table,
        source: None,
        metric: Some(MARKER_METRIC),
    }
}

/// The metric of the route that is a marker.
pub const MARKER_METRIC: u32 = 1;

/// Turns the sysctl on for the owner of `table`, behind the guard where one is due.
/// True if it was off before the first of us came.
pub async fn turn_on(kernel: &Kernel, table: u32) -> io::Result<bool> {
    let _lock = lock().await?;
    if is_on() && !kernel.is_accept_ours().await? {
        return Ok(false);
    }
    kernel.add_route(&marker(table)).await?;
    let done = match guard(kernel).await {
        Ok(()) if is_on() => Ok(()),
        Ok(()) => write("1"),
        Err(e) => Err(e),
    };
    if let Err(e) = done {
        kernel.remove_route(&marker(table)).await?;
        return Err(e);
    }
    Ok(true)
}

/// To be called when a marker has gone: puts the sysctl back when that was the last one, and takes
/// the guard away `with_nft`.
pub async fn put_back(kernel: &Kernel, with_nft: bool) -> io::Result<()> {
    if kernel.is_accept_ours().await? {
        return Ok(());
    }
    if is_on() {
        write("0")?;
    }
    if with_nft && nft::has_table(nft::GUARD)? {
        nft::remove_table(nft::GUARD)?;
    }
    Ok(())
}

/// Puts the guard in where other rules look at marks.
async fn guard(kernel: &Kernel) -> io::Result<()> {
    if kernel.foreign_mark_rules().await?.is_empty() {
        return Ok(());
    }
    nft::add_guard().map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("other programs' rules look at marks, and the nft chain that keeps their connections out of this cannot be put in: {e}"),
        )
    })
}

/// Keeps the guard as it should be; `guarded`: it was put in or found before.
pub async fn keep_guard(kernel: &Kernel, guarded: &mut bool) -> io::Result<()> {
    let due = kernel.is_accept_ours().await? && !kernel.foreign_mark_rules().await?.is_empty();
    // Merely to ask for the guard makes the kernel load nf_tables.
    if !due && !*guarded {
        return Ok(());
    }
    if due != nft::has_table(nft::GUARD)? {
        let _lock = lock().await?;
        match due {
            true => guard(kernel).await?,
            false => _ = nft::remove_table(nft::GUARD)?,
        }
    }
    *guarded = due;
    Ok(())
}

/// Held while the sysctl, its markers or the guard change.
pub async fn lock() -> io::Result<Lock> {
    let lock = owner::lock(owner::ACCEPT).await;
    lock.map_err(|e| io::Error::other(format!("{e:#}")))
}

fn write(value: &str) -> io::Result<()> {
    fs::write(FILE, value).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!(
                "cannot write {FILE} ({e}): set it by `sysctl -w net.ipv4.tcp_fwmark_accept={value}`; \
                 a unit with ProtectKernelTunables=yes cannot, and a container is given it by its engine: --sysctl \
                 net.ipv4.tcp_fwmark_accept=1"
            ),
        )
    })
}
