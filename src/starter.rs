//! Starts the program anew for a hand-over. A small process that is forked before anything else
//! happens: it keeps the privileges, the environment, the directory and the standard streams that
//! realpeer was started with, reads nothing of what others send, and can do one thing only: execute
//! the program at the path that it was started by, with the same arguments. So the process that
//! serves may give all of that up.
//!
//! It ends when the process that it belongs to does, and signals do not matter to it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::sys::{passing, process};

/// What it is called in lists of processes.
const NAME: &std::ffi::CStr = c"realpeer-start";

/// The variable that tells the new program where its hand-over socket and its standard error are.
pub const VARIABLE: &str = "REALPEER_HANDOVER";

/// What another process was told by its parent, and the new one must not believe.
const NOT_PASSED_ON: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// How often it looks whether a new program has ended, while it is not known to serve.
const LOOK: u16 = 20;

/// How long its end is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// The process that starts programs, as the one that it belongs to sees it.
#[derive(Debug)]
pub struct Starter {
    socket: OwnedFd,
    pid: Pid,
}

impl Starter {
    /// Forks it. To be called before there are threads.
    pub fn fork() -> io::Result<Starter> {
        let (ours, theirs) = passing::pair()?;
        let (program, arguments) = (program(), env::args_os().collect());
        match process::fork()? {
            ForkResult::Parent { child } => Ok(Starter {
                socket: ours,
                pid: child,
            }),
            ForkResult::Child => {
                drop(ours);
                serve(&theirs, &program, arguments);
                std::process::exit(0);
            }
        }
    }

    /// The socket that it hears requests on. A request for a program brings the socket that is
    /// answered on: `started PID`, `failed WHY`, `ended HOW`.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

/// A request for a new program: with it come its hand-over socket, the descriptor that is its
/// standard error until it serves, and the socket to answer this request on.
pub const START: &[u8] = b"s";

/// A request to kill it.
pub const KILL: &[u8] = b"k";

impl Drop for Starter {
    fn drop(&mut self) {
        let _ =
            nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        // Nothing of it is to be left behind; and one that hangs is nobody's business.
        let step = PATIENCE / 100;
        for _ in 0..100 {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => sleep(step),
                _ => return,
            }
        }
    }
}

/// The path that the program was started by, found as a shell finds it.
fn program() -> PathBuf {
    let called = PathBuf::from(env::args_os().next().unwrap_or_default());
    if called.components().count() > 1 || called.is_absolute() {
        return called;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = env::split_paths(&path).map(|directory| directory.join(&called));
    let found = found.find(|file| file.is_file());
    found.unwrap_or_else(|| env::current_exe().unwrap_or(called))
}

/// The numbers of the hand-over socket and of standard error, if an old process started this one.
pub fn numbers() -> Option<(i32, i32)> {
    let text = env::var(VARIABLE).ok()?;
    let (socket, error) = text.split_once(',')?;
    Some((socket.parse().ok()?, error.parse().ok()?))
}

fn serve(socket: &OwnedFd, program: &PathBuf, arguments: Vec<OsString>) {
    let _ = SigSet::all().thread_block();
    let _ = nix::sys::prctl::set_name(NAME);
    // This process was itself started with a pipe as its standard error.
    if let Some((_, error)) = numbers()
        && let Ok(error) = passing::inherit(error)
    {
        let _ = nix::unistd::dup2_stderr(&error);
    }
    process::close_others(socket);
    let mut child: Option<Started> = None;
    loop {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let patience = match child {
            Some(_) => PollTimeout::from(LOOK),
            None => PollTimeout::NONE,
        };
        if poll(&mut wanted, patience).is_ok_and(|ready| ready > 0) {
            let mut request = [0; 8];
            let Ok((length, descriptors)) = passing::receive(socket, &mut request) else {
                return;
            };
            match &request[..length] {
                // Of an earlier one nobody wants to hear any more.
                START => {
                    child.take().into_iter().for_each(Started::end);
                    child = start(program, &arguments, descriptors);
                }
                KILL => _ = child.as_mut().map(|started| started.child.kill()),
                _ => return,
            }
        }
        child = child.and_then(Started::unless_ended);
    }
}

/// A program that was started, and where the one who asked for it listens.
struct Started {
    child: Child,
    answers: OwnedFd,
}

impl Started {
    /// Tells its number. It is ended when nobody listens any more.
    fn announced(self) -> Option<Started> {
        let number = format!("started {}", self.child.id());
        match passing::send(&self.answers, number.as_bytes(), &[]) {
            Ok(()) => Some(self),
            Err(_) => {
                self.end();
                None
            }
        }
    }

    /// Tells its end, if that has come.
    fn unless_ended(mut self) -> Option<Started> {
        let Ok(Some(status)) = self.child.try_wait() else {
            return Some(self);
        };
        tell(&self.answers, &format!("ended {status}"));
        None
    }

    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell(socket: &OwnedFd, text: &str) {
    let _ = passing::send(socket, text.as_bytes(), &[]);
}

fn start(program: &PathBuf, arguments: &[OsString], mut given: Vec<OwnedFd>) -> Option<Started> {
    let answers = given.pop()?;
    match execute(program, arguments, given) {
        Ok(child) => Started { child, answers }.announced(),
        Err(error) => {
            let program = program.display();
            tell(&answers, &format!("failed cannot start {program}: {error}"));
            None
        }
    }
}

fn execute(
    program: &PathBuf,
    arguments: &[OsString],
    descriptors: Vec<OwnedFd>,
) -> io::Result<Child> {
    let [socket, error]: [OwnedFd; 2] = descriptors
        .try_into()
        .map_err(|_| io::Error::other("the request came without its descriptors"))?;
    let own_error = io::stderr().as_fd().try_clone_to_owned()?;
    for descriptor in [&socket, &own_error] {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let numbers = format!("{},{}", socket.as_raw_fd(), own_error.as_raw_fd());
    let mut command = Command::new(program);
    for name in NOT_PASSED_ON {
        command.env_remove(name);
    }
    if let Some((first, rest)) = arguments.split_first() {
        command.arg0(first).args(rest);
    }
    process::unblock_signals(&mut command);
    command
        .env(VARIABLE, numbers)
        .stderr(Stdio::from(error))
        .spawn()
}
