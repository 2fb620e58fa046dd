//! Whose rules are whose: the numbers of our routing tables, and the lock on each.
//!
//! A running instance holds an abstract Unix socket that is named after its table. Such a name
//! belongs to the network namespace, as the table does, and the kernel frees it however the
//! process ends. So a table of ours whose name is free is a leftover of a killed instance.
//!
//! Any local user may bind any such name, so two things keep strangers out. Names end in a random
//! number, so that nobody can take them first. And a name counts only if its owner might have put
//! rules in: root, our own user, or a process that has CAP_NET_ADMIN here, such as a service with
//! a user of its own.
//!
//! As names differ, it takes two steps to have one owner: bind, so that others see the claim, then
//! look for theirs; with none that goes first, listen, which makes the claim a lock.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, sleep};

use super::unix_diag::{self, Named};

/// The table of `realpeer routing up`. No proxy's exit touches it.
pub const SWITCH_TABLE: u32 = 8192;

/// The tables of running proxies, one each. Far from the numbers of others (WireGuard's 51820,
/// Tailscale's 52, systemd's VRFs), and as marks (0x2001 to 0x20ff) free of the bits that
/// Kubernetes (0x4000, 0x8000), Tailscale (0xff0000) and Cilium (0x0f00) watch.
pub const INSTANCE_TABLES: RangeInclusive<u32> = 8193..=8447;

/// No table: who holds its lock may change `tcp_fwmark_accept`.
pub const ACCEPT: u32 = 0;

/// Between two looks at a lock that is not free.
const PAUSE: Duration = Duration::from_millis(3);

/// The right to use one table, for as long as this lives.
#[derive(Debug)]
pub struct Lock {
    /// The table it stands for.
    pub table: u32,
    name: Socket,
}

impl Lock {
    /// The socket that is the lock, to be passed on: another process then has it, too.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.name.try_clone()?.into())
    }
}

/// Takes over a lock that another process passes on, under a name of our own: that of the other
/// would not count any more when the other has ended.
pub fn succeed(table: u32, theirs: OwnedFd) -> Result<Lock> {
    let name = claim(&new_name(table))
        .context("cannot bind the abstract Unix socket that guards a table")?;
    name.listen(0).context("cannot listen on a Unix socket")?;
    // Until now it kept others away.
    drop(theirs);
    Ok(Lock { table, name })
}

/// Takes the lock of `table`; `None` when a running process holds it.
pub async fn try_lock(table: u32) -> Result<Option<Lock>> {
    /// A claim becomes a lock, or is dropped, within a millisecond; one of a stopped process never.
    const PATIENCE: Duration = Duration::from_secs(1);
    let name = new_name(table);
    let socket =
        claim(&name).context("cannot bind the abstract Unix socket that guards a table")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut others = claims(table).context("cannot list the Unix sockets of this host")?;
        others.retain(|other| other.name != name);
        if others.is_empty() {
            socket.listen(0).context("cannot listen on a Unix socket")?;
            let name = socket;
            return Ok(Some(Lock { table, name }));
        }
        // Of two claims that see each other the smaller one goes first; it waits until the other
        // is gone, or turns out to have been there before.
        let loses = |other: &Named| other.listens || other.name < name;
        if others.iter().any(loses) || Instant::now() > deadline {
            return Ok(None);
        }
        sleep(PAUSE).await;
    }
}

/// Takes the lock of `table`, waiting for another `routing up` or `down` to end.
pub async fn lock(table: u32) -> Result<Lock> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = try_lock(table).await? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            bail!(
                "another `realpeer routing` has held table {table} for {} seconds",
                PATIENCE.as_secs()
            );
        }
        sleep(PAUSE).await;
    }
}

/// The process that holds `table`, by its number in its own PID namespace.
pub fn holder(table: u32) -> Option<u32> {
    let claims = claims(table).unwrap_or_default();
    claims.iter().find_map(|claim| pid(&claim.name))
}

/// Who claims `table` or holds it.
fn claims(table: u32) -> io::Result<Vec<Named>> {
    let mut found = unix_diag::named()?;
    let prefix = prefix(table);
    found.retain(|socket| socket.name.starts_with(&prefix) && counts(socket));
    Ok(found)
}

fn prefix(table: u32) -> String {
    format!("realpeer-routing-{table}-")
}

fn new_name(table: u32) -> String {
    // The standard library draws its keys at random.
    let random = RandomState::new().build_hasher().finish();
    format!("{}{}-{random:016x}", prefix(table), std::process::id())
}

fn pid(name: &str) -> Option<u32> {
    name.rsplit('-').nth(1)?.parse().ok()
}

fn claim(name: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
    Ok(socket)
}

/// True if the socket's owner may own a table.
fn counts(socket: &Named) -> bool {
    match socket.uid {
        Some(uid) => {
            let own = nix::unistd::geteuid().as_raw();
            uid == 0 || uid == own || pid(&socket.name).is_some_and(|pid| may_route(pid, uid))
        }
        None => true,
    }
}

/// True if process `pid` is of user `uid` and has CAP_NET_ADMIN over this network namespace: in
/// the same user namespace as we, for in one of their own all users have all capabilities.
fn may_route(pid: u32, uid: u32) -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    let read = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let pid = pid.to_string();
    let Ok(status) = read(&pid, "status") else {
        return false;
    };
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let effective = field("Uid:").and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok());
    let capabilities = field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let same_namespace = || match (read(&pid, "uid_map"), read("self", "uid_map")) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    };
    effective == Some(uid)
        && capabilities.is_some_and(|capabilities| capabilities & CAP_NET_ADMIN != 0)
        && same_namespace()
}
