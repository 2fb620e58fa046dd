//! A second process of this program, made before there are threads.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, fork as nix_fork};

/// Makes a copy of this process; fails if there are other threads.
pub fn fork() -> io::Result<ForkResult> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|e| io::Error::new(e.kind(), format!("/proc is needed here, mount it: {e}")))?;
    if threads.count() != 1 {
        return Err(io::Error::other("there are other threads already"));
    }
    // SAFETY: there is one thread, so no lock of another is held in the copy.
    Ok(unsafe { nix_fork() }?)
}

/// The command's process will have no signal blocked, whatever this one has.
pub fn unblock_signals(command: &mut Command) {
    let unblock = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: sigprocmask(2) may be called between fork and exec (signal-safety(7)), and nothing is
    // allocated.
    unsafe { command.pre_exec(unblock) };
}

/// Closes everything but the standard streams and `kept` (close_range(2), Linux 5.9).
pub fn close_others(kept: &OwnedFd) {
    let kept = kept.as_raw_fd() as libc::c_uint;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: the caller, a process just forked, owns no other descriptor that it will use.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}
