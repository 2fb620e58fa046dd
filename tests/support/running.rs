//! A program that runs beside the test: its lines are collected, and it never outlives the test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, TempDir, wait_until};

/// A child process; dropping it ends it.
pub struct Running {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
    ending: Signal,
    files: Option<TempDir>,
}

impl Running {
    /// Starts the command with its output collected.
    pub fn start(name: &str, mut command: Command) -> Running {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let stdout = Lines::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::collect(child.stderr.take().expect("stderr is piped"));
        Running {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
            ending: Signal::SIGKILL,
            files: None,
        }
    }

    /// Keeps its files for as long as it runs.
    pub fn with(mut self, files: TempDir) -> Running {
        self.files = Some(files);
        self
    }

    /// The signal that ends it when it is dropped, for a program that must end its own children.
    pub fn ends_by(mut self, signal: Signal) -> Running {
        self.ending = signal;
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, to write to, or to close by dropping it.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child
            .stdin
            .take()
            .expect("standard input is taken once")
    }

    /// The lines of its standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// The lines of its standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for a line of standard output that contains `text`.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for(&format!("line with {text:?}"), |line| line.contains(text))
    }

    /// Waits for a line of standard output that `wanted` likes; `what` describes it.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout
            .wait_for(&wanted)
            .unwrap_or_else(|| panic!("{} printed no {what}", self.name))
    }

    /// Waits for a line of standard error that contains `text`.
    #[track_caller]
    pub fn wait_for_error(&self, text: &str) -> String {
        let found = self.stderr.wait_for(&|line| line.contains(text));
        found.unwrap_or_else(|| panic!("{} said nothing of {text:?} on standard error", self.name))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("the process is there");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_some()
    }

    /// Waits for its end and for the last of its lines.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(&format!("{} ends", self.name), || {
            status = self.child.try_wait().expect("wait for a child");
            status.is_some()
        });
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        status.expect("it ended")
    }

    /// Its exit code, once it has ended by itself.
    #[track_caller]
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait_for_exit();
        status
            .code()
            .unwrap_or_else(|| panic!("{} was killed: {status}", self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(Pid::from_raw(self.pid() as i32), self.ending);
            let start = Instant::now();
            while self.child.try_wait().is_ok_and(|status| status.is_none()) {
                if start.elapsed() > DEADLINE {
                    let _ = self.child.kill();
                }
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        if thread::panicking() {
            for line in self.stdout().iter().chain(&self.stderr()) {
                println!("{}: {line}", self.name);
            }
        }
    }
}

/// The lines of a stream, read by a thread of its own so that the program never blocks on us.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let collected = lines.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // Bytes, not text: a program that logs a stranger's bytes raw must not stop the reader.
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text =
                    String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                collected.change(|state| state.lines.push(text));
                line.clear();
            }
            collected.change(|state| state.ended = true);
        });
        lines
    }

    fn change(&self, change: impl FnOnce(&mut Collected)) {
        let (state, changed) = &*self.0;
        change(&mut state.lock().expect("no reader panics"));
        changed.notify_all();
    }

    fn all(&self) -> Vec<String> {
        self.0.0.lock().expect("no reader panics").lines.clone()
    }

    fn wait_for(&self, wanted: &dyn Fn(&str) -> bool) -> Option<String> {
        let find = |state: &Collected| state.lines.iter().find(|line| wanted(line)).cloned();
        self.wait_while(|state| find(state).is_none() && !state.ended);
        find(&self.0.0.lock().expect("no reader panics"))
    }

    fn wait_for_end(&self) {
        self.wait_while(|state| !state.ended);
    }

    fn wait_while(&self, unfinished: impl Fn(&Collected) -> bool) {
        let (state, changed) = &*self.0;
        let state = state.lock().expect("no reader panics");
        drop(changed.wait_timeout_while(state, DEADLINE, |state| unfinished(state)));
    }
}
