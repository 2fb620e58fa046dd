//! Which system calls the process may make (seccomp(2)). Any other ends it, with a line that names
//! the call.
//!
//! Since Linux 5.11 a call that is allowed whatever its arguments costs a look at a bitmap, so
//! those of the data path are.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Result;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use syscalls::Sysno;

use super::Part;
use crate::config::LogFormat;
use crate::log;
use crate::sys;

/// By their names; what an architecture does not have is left out. Beside what realpeer was seen to
/// make, the list has the siblings that another libc or kernel takes for the same, and what
/// modules of getaddrinfo(3) need.
const ALLOWED: &[&str] = &[
    // Bytes.
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "lseek",
    "close",
    "splice",
    "tee",
    "vmsplice",
    "pipe",
    "pipe2",
    "sendfile",
    "dup",
    "dup2",
    "dup3",
    "fcntl",
    "ioctl",
    "eventfd2",
    "memfd_create",
    // Sockets.
    "bind",
    "listen",
    "accept",
    "accept4",
    "connect",
    "shutdown",
    "socketpair",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "sendmmsg",
    "recvmmsg",
    // Waiting.
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "nanosleep",
    "clock_nanosleep",
    "clock_gettime",
    "clock_getres",
    "gettimeofday",
    "time",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "sched_yield",
    "restart_syscall",
    // Files.
    "open",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "statfs",
    "fstatfs",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getcwd",
    "getdents64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "fadvise64",
    "flock",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "umask",
    // Memory.
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "membarrier",
    "mincore",
    // Threads; see also `clone` below.
    "futex",
    "futex_waitv",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "set_tid_address",
    "exit",
    "exit_group",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "getcpu",
    "prctl",
    "arch_prctl",
    // Signals; a thread may send itself one.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "sigaltstack",
    "tgkill",
    "tkill",
    // The end of the starter.
    "wait4",
    // Who and where we are.
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getresuid",
    "getresgid",
    "getgroups",
    "capget",
    "uname",
    "sysinfo",
    "getrandom",
    "getrlimit",
    "prlimit64",
    "getrusage",
    "times",
    // A kernel without a filter would carry it out: it answers as one that does not know it.
    "clone3",
];

/// For namespaces of targets: the end of a container's process is waited for, and a thread that has
/// entered one gives up its privileges.
const OF_NAMESPACES: &[&str] = &[
    "pidfd_open",
    "capset",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
];

/// Families of sockets: Unix, IPv4, IPv6 and netlink.
const FAMILIES: [libc::c_int; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Filters the calls of all threads. A line in the format of the log names a forbidden one. `namespaces`:
/// network namespaces are entered, and no others.
pub fn filter(namespaces: bool) -> Result<Part> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Part::Unavailable);
    };
    sys::seccomp::tell_forbidden_calls(log::format() == LogFormat::Json)?;
    for program in programs(arch, namespaces)? {
        match sys::seccomp::install(&program) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)
                ) =>
            {
                return Ok(Part::Unavailable);
            }
            Err(e) => return Err(anyhow::Error::new(e).context("cannot filter system calls")),
        }
    }
    Ok(Part::On)
}

/// The filters, in the order in which they are installed: the last forbids to install more.
fn programs(arch: TargetArch, namespaces: bool) -> Result<[BpfProgram; 2]> {
    let rules = |calls: &[&str]| -> BTreeMap<i64, Vec<SeccompRule>> {
        calls
            .iter()
            .filter_map(|call| number(call))
            .map(|number| (number, vec![]))
            .collect()
    };
    // Its flags are in memory, where no filter looks: libc then takes `clone`.
    let enosys = SeccompAction::Errno(libc::ENOSYS as u32);
    let without_clone3 =
        SeccompFilter::new(rules(&["clone3"]), SeccompAction::Allow, enosys, arch)?;
    let mut allowed = rules(ALLOWED);
    // Threads, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    let is_thread = condition(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    allowed.extend(number("clone").map(|number| (number, vec![is_thread])));
    let families = FAMILIES.map(|family| condition(0, SeccompCmpOp::Eq, family as u64));
    let families = families.into_iter().collect::<Result<_>>()?;
    allowed.extend(number("socket").map(|number| (number, families)));
    if namespaces {
        allowed.extend(rules(OF_NAMESPACES));
        let network = condition(1, SeccompCmpOp::Eq, libc::CLONE_NEWNET as u64)?;
        allowed.extend(number("setns").map(|number| (number, vec![network])));
    }
    let allowed = SeccompFilter::new(allowed, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    Ok([without_clone3.try_into()?, allowed.try_into()?])
}

fn condition(argument: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// The number of a call on this architecture, if it has it.
fn number(call: &str) -> Option<i64> {
    Sysno::from_str(call).ok().map(|call| i64::from(call.id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_call_and_none_is_there_twice() {
        let mut names = ALLOWED.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALLOWED.len());
        if cfg!(target_arch = "x86_64") {
            let unknown: Vec<_> = names.iter().filter(|name| number(name).is_none()).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }

    #[test]
    fn what_takes_over_a_host_is_not_allowed() {
        for call in [
            "execve",
            "execveat",
            "fork",
            "vfork",
            "ptrace",
            "process_vm_writev",
            "init_module",
            "finit_module",
            "delete_module",
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "bpf",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "setns",
            "unshare",
            "kexec_load",
            "reboot",
            "perf_event_open",
            "userfaultfd",
            "personality",
            "open_by_handle_at",
            "mknod",
            "mknodat",
            "setuid",
            "setresuid",
            "capset",
            "seccomp",
            "kill",
        ] {
            assert!(!ALLOWED.contains(&call), "{call}");
        }
    }

    /// A call that is looked at with its arguments is not in the kernel's bitmap.
    #[test]
    fn only_calls_that_no_message_makes_are_looked_at_with_their_arguments() {
        for call in [
            "read",
            "write",
            "splice",
            "recvmmsg",
            "sendmmsg",
            "epoll_wait",
            "recvfrom",
        ] {
            assert!(ALLOWED.contains(&call), "{call}");
        }
    }
}
