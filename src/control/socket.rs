//! The socket itself: nobody finds it before it is as it shall be, and no living one is replaced.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, chown};
use socket2::{Domain, SockAddr, Socket, Type};

use super::path;
use crate::config::{Control, Process};
use crate::lock_file;

/// Owner and group may use it, nobody else.
const MODE: u32 = 0o660;

/// Clients that wait to be taken.
const BACKLOG: i32 = 128;

/// How long another realpeer that is binding there is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a socket that is in use is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// A control socket that takes connections; its file goes with it.
#[derive(Debug)]
pub struct Bound {
    /// Non-blocking.
    pub listener: UnixListener,
    /// Where it is.
    pub path: PathBuf,
    inode: u64,
    /// The file stays when this is dropped.
    kept: AtomicBool,
}

impl Bound {
    /// Takes over the socket of another process, whose file this one leaves alone until `own`.
    pub fn inherit(socket: OwnedFd, path: PathBuf, inode: u64) -> Bound {
        Bound {
            listener: UnixListener::from(socket),
            path,
            inode,
            kept: AtomicBool::new(true),
        }
    }

    /// The socket, to be passed on.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.listener.try_clone()?.into())
    }

    /// Of its file.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// It is another process's, too.
    pub fn is_inherited(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// The file is to go with it.
    pub fn own(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// Leaves the file to another process.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        // Whoever removed ours and put another there keeps that one.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where the control socket is to be.
#[derive(Debug)]
pub enum Place {
    /// It is open there.
    Ours(Bound),
    /// Another program answers there for now.
    InUse(Wanted),
}

impl Place {
    /// The path of the socket.
    pub fn path(&self) -> &Path {
        match self {
            Place::Ours(bound) => &bound.path,
            Place::InUse(wanted) => &wanted.path,
        }
    }
}

/// A control socket to be made.
#[derive(Debug)]
pub struct Wanted {
    path: PathBuf,
    group: Option<Gid>,
}

/// Opens the control socket. None if there shall be none, or if the usual place is out of reach.
/// Whom it must be waited for is told. Fails when a place that was asked for cannot be had.
/// `inherited` is the socket of a process before this one, which is taken if it is at that place.
pub fn bind(process: &Process, inherited: Option<Bound>) -> Result<Option<Place>> {
    let Some(path) = path(&process.control, process.name.as_deref()) else {
        return Ok(None);
    };
    if let Some(bound) = inherited.filter(|bound| bound.path == path) {
        return Ok(Some(Place::Ours(bound)));
    }
    let asked = process.control != Control::Usual;
    let group = process.control_group.as_deref().map(group_id);
    let group = group.transpose().context("-control-group")?;
    let wanted = Wanted { path, group };
    match wanted.bind() {
        Ok(Ok(bound)) => Ok(Some(Place::Ours(bound))),
        Ok(Err(InUse(pid))) => {
            tracing::warn!(path = %wanted.path.display(), pid, "the control socket is in use by another program: waiting until it is free; give each instance its own -name or -control");
            Ok(Some(Place::InUse(wanted)))
        }
        Err(error) if asked || group.is_some() => {
            Err(error).with_context(|| format!("-control: cannot make {}", wanted.path.display()))
        }
        Err(error) => {
            tracing::debug!(path = %wanted.path.display(), error = format!("{error:#}"), "running without a control socket");
            Ok(None)
        }
    }
}

/// Another program answers there, maybe this process.
struct InUse(Option<i32>);

impl Wanted {
    /// Waits until nobody else has it.
    pub async fn wait(self) -> Bound {
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.bind() {
                Ok(Ok(bound)) => {
                    tracing::info!(path = %self.path.display(), "the control socket was free and is taken now");
                    return bound;
                }
                Ok(Err(InUse(_))) => {}
                Err(error) => {
                    tracing::debug!(path = %self.path.display(), error = format!("{error:#}"), "cannot take the control socket for now");
                }
            }
        }
    }

    fn bind(&self) -> Result<Result<Bound, InUse>> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let made = DirBuilder::new().mode(0o755).create(directory);
        if let Err(e) = made
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(e).with_context(|| format!("cannot make {}", directory.display()));
        }
        // Of two that start at once, one must see the other's socket.
        let _lock = lock(&self.path)?;
        if let Some(user) = user(&self.path)? {
            return Ok(Err(user));
        }
        // Under a name of its own it gets its mode and group, and then its place.
        let private = directory.join(format!(".{}", std::process::id()));
        let _ = fs::remove_file(&private);
        let bound = make(&private, &self.path, self.group);
        let _ = fs::remove_file(&private);
        bound.map(Ok)
    }
}

fn group_id(text: &str) -> Result<Gid> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    let group = Group::from_name(text).with_context(|| format!("cannot look up {text}"))?;
    Ok(group
        .with_context(|| format!("there is no group {text}"))?
        .gid)
}

fn make(private: &Path, path: &Path, group: Option<Gid>) -> Result<Bound> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The file takes over the mode of the socket (unix_bind_bsd in the kernel's net/unix/af_unix.c):
    // so nobody else can connect before it has its group.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(private)?)?;
    socket.listen(BACKLOG)?;
    let listener = UnixListener::from(OwnedFd::from(socket));
    if let Some(group) = group {
        chown(private, None, Some(group)).with_context(|| {
            format!("cannot give it to group {group}: is realpeer root, or a member?")
        })?;
    }
    fs::set_permissions(private, Permissions::from_mode(MODE))?;
    let inode = fs::symlink_metadata(private)?.ino();
    fs::rename(private, path)?;
    Ok(Bound {
        listener,
        path: path.to_owned(),
        inode,
        kept: AtomicBool::new(false),
    })
}

/// The file beside the socket that is locked while the socket is made.
pub fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn lock(socket: &Path) -> Result<Flock<File>> {
    let path = lock_path(socket);
    let name = || format!("cannot lock {}", path.display());
    let mut file = lock_file::open(&path)?;
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if start.elapsed() > PATIENCE => return Err(error).with_context(name),
            Err((unlocked, _)) => file = unlocked,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Who listens on the socket at `path`. What is no socket is never touched.
fn user(path: &Path) -> Result<Option<InUse>> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is no socket", path.display())
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Ok(()) => {
            let listening = getsockopt(&probe, sockopt::PeerCredentials);
            Ok(Some(InUse(listening.ok().map(|user| user.pid()))))
        }
        // Its queue is full, or we may not speak to it.
        Err(_) => Ok(Some(InUse(None))),
    }
}
