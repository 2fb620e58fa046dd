//! Processes that take over from each other: the program lies in a directory of its own, where the
//! test may replace it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::program::Ended;
use super::stage::{Session, VISITED, wire};
use super::{Backend, Ctl, Host, Program, Running, TempDir, addr, header, streams, wait_until};

/// The first process of several, and where they run.
pub struct Lineage {
    pub balancer: Host,
    pub server: Host,
    pub ctl: Ctl,
    /// All of them write to its standard output.
    pub first: Running,
    files: TempDir,
}

impl Lineage {
    /// Starts the first with this file.
    #[track_caller]
    pub fn new(text: &str) -> Lineage {
        Lineage::under(&[], text, &[])
    }

    /// As `new`, with something done to the server before.
    #[track_caller]
    pub fn prepared(text: &str, prepare: impl FnOnce(&Host)) -> Lineage {
        Lineage::start(&[], text, &[], prepare)
    }

    /// As `new`, under a wrapper that ends in exec, with flags besides the file.
    #[track_caller]
    pub fn under(wrapper: &[&str], text: &str, flags: &[&str]) -> Lineage {
        Lineage::start(wrapper, text, flags, |_| {})
    }

    #[track_caller]
    fn start(wrapper: &[&str], text: &str, flags: &[&str], prepare: impl FnOnce(&Host)) -> Lineage {
        let (balancer, server) = wire();
        prepare(&server);
        let (ctl, files) = (Ctl::new(), TempDir::new());
        let program = files.path("realpeer");
        symlink(Program::Realpeer.path(), &program).expect("make a link");
        let program = program.display().to_string();
        let file = files.file("realpeer.toml", text);
        let path = ctl.path();
        let own = [&program, "-config", &file, "-control", &path];
        let first = server.spawn(&[wrapper, &own, flags].concat());
        let mut lineage = Lineage {
            balancer,
            server,
            ctl,
            first,
            files,
        };
        wait_until("the proxy runs", || {
            let first = &mut lineage.first;
            assert!(!first.has_ended(), "{:?}", first.stderr());
            lineage.ctl.run("status").code == 0
        });
        lineage
    }

    /// Writes the file anew, for the next process.
    pub fn write(&self, text: &str) {
        let new = self.files.file("new.toml", text);
        fs::rename(new, self.files.path("realpeer.toml")).expect("replace the file");
    }

    /// Puts a shell script in the program's place. `$REAL` in it is the real program.
    pub fn replace(&self, script: &str) {
        let real = Program::Realpeer.path();
        let new = self
            .files
            .file("new", &format!("#!/bin/sh\nREAL={real}\n{script}\n"));
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("make it a program");
        fs::rename(new, self.files.path("realpeer")).expect("replace the program");
    }

    /// Puts the real program in its place again.
    pub fn restore(&self) {
        let new = self.files.path("link");
        symlink(Program::Realpeer.path(), &new).expect("make a link");
        fs::rename(new, self.files.path("realpeer")).expect("replace the program");
    }

    /// A file that scripts may use.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    /// Has a new process take over, which must go well, and returns its number.
    #[track_caller]
    pub fn upgrade(&self) -> u32 {
        let answer: Value = serde_json::from_str(&self.ctl.ok("-json upgrade")).expect("JSON");
        let pid = answer["pid"].as_u64().expect("a process") as u32;
        assert_eq!(self.status()["pid"], pid, "it answers");
        pid
    }

    /// Has a new process take over, which must fail, and returns how.
    #[track_caller]
    pub fn fail(&self) -> Ended {
        let before = self.status()["pid"].clone();
        let ended = self.ctl.run("upgrade");
        assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
        assert_eq!(self.status()["pid"], before, "it goes on");
        ended
    }

    /// What the process that serves says of itself.
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer: Value = serde_json::from_str(&self.ctl.ok("-json status")).expect("JSON");
        answer["status"].clone()
    }

    /// The open connections.
    #[track_caller]
    pub fn connections(&self) -> Vec<Value> {
        let lines = self.ctl.ok("-json connections");
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let lines = lines.filter_map(|line: Value| line.get("connection").cloned());
        lines.collect()
    }

    /// The processes that run, without those that start others.
    pub fn processes(&self) -> Vec<u32> {
        let all = self.all().into_iter();
        all.filter(|pid| name(*pid) != "realpeer-start").collect()
    }

    /// The processes that start others.
    pub fn starters(&self) -> Vec<u32> {
        let all = self.all().into_iter();
        all.filter(|pid| name(*pid) == "realpeer-start").collect()
    }

    /// A session of this client by this address, which must reach that backend under the client's
    /// address.
    #[track_caller]
    pub fn session(&self, at: &str, backend: &Backend, client: &str) -> Session {
        let near = self.balancer.dial(at);
        streams::send(&near, header::v1(client, VISITED));
        let mut far = None;
        // Each new process looks once whether the backend is there.
        wait_until(&format!("the backend sees {client}"), || {
            let came = backend.try_accept();
            far = came.filter(|far| far.peer_addr().is_ok_and(|from| from == addr(client)));
            far.is_some()
        });
        let far = streams::with_deadline(far.expect("the wait is over"));
        streams::assert_carries(&near, &far);
        Session { near, far }
    }

    /// The policy rules of the server.
    pub fn rules(&self) -> String {
        self.server.run(&["ip", "rule"]) + &self.server.run(&["ip", "-6", "rule"])
    }

    fn all(&self) -> Vec<u32> {
        let ours = self.ctl.path();
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            let is_ctl = words.clone().any(|word| word == b"ctl");
            words.any(|word| word == ours.as_bytes()) && !is_ctl
        })
        .collect()
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        wait_until("all processes are gone", || {
            let all = self.all();
            for pid in &all {
                end(*pid, Signal::SIGKILL);
            }
            let _ = self.first.has_ended();
            all.is_empty()
        });
    }
}

/// Sends a signal to a process that may be gone.
pub fn end(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

/// Whether a process runs, and is no zombie.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}
