//! Installs filters of system calls, and tells which call they forbade.

use std::fmt::{self, Write};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use seccompiler::BpfProgramRef;
use syscalls::Sysno;

/// How the line looks.
static JSON: AtomicBool = AtomicBool::new(false);

/// Installs a filter for all threads of the process. no_new_privs must be set.
///
/// The crate's own function gives no flags. Without SECCOMP_FILTER_FLAG_SPEC_ALLOW kernels before
/// 5.16 slow down all threads that have a filter, for the sake of programs that run others' code.
pub fn install(program: BpfProgramRef) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // A thread that holds back all signals, as fork(3) does, dies without a line: then there is the
    // kernel's.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
        | libc::SECCOMP_FILTER_FLAG_LOG;
    // SAFETY: `filter` describes the program, whose instructions have the layout of the kernel's
    // sock_filter; the kernel copies them and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!(
            "thread {thread} has a filter of its own"
        ))),
    }
}

/// Whether the calls that Landlock and seccomp need would end the process: a unit with
/// SystemCallFilter= may have a filter that kills. A child tries them.
pub fn are_deadly() -> [bool; 2] {
    let landlock = || {
        const VERSION: libc::c_uint = 1;
        // SAFETY: without a ruleset it only asks for the version (landlock_create_ruleset(2)).
        unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                ptr::null::<libc::c_void>(),
                0,
                VERSION,
            )
        };
    };
    let seccomp = || {
        let action: u32 = libc::SECCOMP_RET_TRAP;
        // SAFETY: it only asks whether there is such an action, which it reads from `action`.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_ACTION_AVAIL,
                0,
                &raw const action,
            )
        };
    };
    match is_filtered() {
        true => [kills(landlock), kills(seccomp)],
        false => [false, false],
    }
}

/// Whether a filter is in force already, as /proc/PID/status tells (proc(5)).
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().any(|line| line == "Seccomp:\t2")
}

/// Whether a call ends who makes it.
fn kills(call: impl FnOnce()) -> bool {
    // SAFETY: the child makes system calls only, so it needs no lock that another thread may hold.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            // A core dump would say nothing.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            call();
            // SAFETY: it ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { child }) => {
            !matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0)))
        }
        // Nothing is known: the call itself will tell.
        Err(_) => false,
    }
}

/// From now on a forbidden call writes a line to standard error, as the log would, and ends the
/// process by SIGSYS.
pub fn tell_forbidden_calls(json: bool) -> io::Result<()> {
    JSON.store(json, Ordering::Relaxed);
    // SAFETY: a zeroed sigaction is an empty mask and no flags; the handler has the signature that
    // SA_SIGINFO asks for.
    let result = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = forbidden as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The part of siginfo_t that SIGSYS fills in (sigaction(2)), on machines of 64 bits.
#[repr(C)]
struct Info {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _pad: libc::c_int,
    address: *const libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

/// The code of a filter's SIGSYS.
const SYS_SECCOMP: libc::c_int = 1;

/// Does only what a signal handler may do (signal-safety(7)): nothing is allocated or locked.
extern "C" fn forbidden(_: libc::c_int, info: *const Info, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is larger than `Info` and begins as it does.
    let (code, call) = unsafe { ((*info).code, (*info).call) };
    if code == SYS_SECCOMP {
        let mut line = Line::new();
        // What does not fit is cut off.
        let _ = write_line(&mut line, call, JSON.load(Ordering::Relaxed));
        line.write_out();
    }
    // SAFETY: SIGSYS has its default action again, which ends the process; raise(3) and _exit(2)
    // may be called here.
    unsafe {
        libc::raise(libc::SIGSYS);
        libc::_exit(1);
    }
}

fn write_line(line: &mut Line, call: i32, json: bool) -> fmt::Result {
    const WHY: &str = "the seccomp filter ends this process, for it made a system call that \
        realpeer has no use for; if nobody attacked it, please report this, and leave seccomp out \
        of -sandbox meanwhile";
    let time = humantime::format_rfc3339_micros(SystemTime::now());
    let known = usize::try_from(call).ok().and_then(Sysno::new);
    let name = known.map_or("unknown", |call| call.name());
    match json {
        true => writeln!(
            line,
            "{{\"time\":\"{time}\",\"level\":\"ERROR\",\"msg\":\"{WHY}\",\"call\":\"{name}\",\"number\":{call}}}"
        ),
        false => writeln!(line, "{time} ERROR {WHY} call={name} number={call}"),
    }
}

/// A line without memory from the heap.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line {
            bytes: [0; 512],
            len: 0,
        }
    }

    /// To standard error, unless its reader keeps us waiting for a second.
    fn write_out(&self) {
        let mut waited = libc::pollfd {
            fd: libc::STDERR_FILENO,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: poll(2) gets one pollfd, and write(2) the bytes of the line; both calls are allowed
        // in signal handlers.
        unsafe {
            if libc::poll(&raw mut waited, 1, 1000) == 1 {
                libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len);
            }
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_call() {
        let line = |json| {
            let mut line = Line::new();
            write_line(&mut line, libc::SYS_execve as i32, json).unwrap();
            String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
        };
        let json: serde_json::Value = serde_json::from_str(&line(true)).unwrap();
        assert_eq!(json["call"], "execve");
        assert_eq!(json["number"], libc::SYS_execve);
        let ending = format!(" call=execve number={}\n", libc::SYS_execve);
        assert!(line(false).ends_with(&ending), "{}", line(false));
    }
}
