//! Network namespaces: opening one with care, and entering it (setns(2), namespaces(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

/// Which namespace it is: nsfs gives each an inode of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(u64, u64);

/// Opens the namespace file at `path`, such as `ip netns add` makes. Symbolic links are not
/// followed, at any place in the path, nor those of /proc: whoever may write there could make them
/// lead to another namespace. Fails with ELOOP for a link and with `InvalidInput` for a file that is
/// no network namespace, which is not touched.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let found = openat2(AT_FDCWD, path, how)?;
    if fstatfs(&found)?.filesystem_type() != NSFS_MAGIC {
        return Err(not_a_namespace());
    }
    // What was looked at, whatever stands under the path by now.
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    match kind(&file)? {
        libc::CLONE_NEWNET => Ok(file.into()),
        _ => Err(not_a_namespace()),
    }
}

fn not_a_namespace() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the file is no network namespace",
    )
}

/// The CLONE_NEW* flag of a namespace (ioctl_nsfs(2)).
fn kind(namespace: &File) -> io::Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and touches no memory of ours.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) };
    match kind {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

/// A descriptor of the process, which stays its own when the number passes to another; readable once
/// the process has ended (pidfd_open(2)). Fails with ESRCH when there is none.
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: the call takes two integers; the descriptor that it returns is new, close-on-exec and
    // ours alone.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as libc::c_int)),
        }
    }
}

/// Moves the calling thread into the network namespace of an opened file or process. Takes
/// CAP_SYS_ADMIN, and for a process of another user CAP_SYS_PTRACE.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// The namespace that the calling thread is in.
pub fn current() -> io::Result<Identity> {
    identity(&File::open("/proc/thread-self/ns/net")?)
}

/// Which namespace a file is.
pub fn identity(namespace: &File) -> io::Result<Identity> {
    let metadata = namespace.metadata()?;
    Ok(Identity(metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_not_opened() {
        let kind = |path: &str| open(Path::new(path)).expect_err(path);
        assert_eq!(kind("/proc/self/ns/net").raw_os_error(), Some(libc::ELOOP));
        assert_eq!(kind("/etc/passwd").kind(), io::ErrorKind::InvalidInput);
        assert_eq!(kind("/nowhere/at/all").kind(), io::ErrorKind::NotFound);
        let uts = File::open("/proc/self/ns/uts").expect("it is there");
        assert_eq!(super::kind(&uts).expect("a kind"), libc::CLONE_NEWUTS);
    }
}
