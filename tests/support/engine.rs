//! A real Docker or Podman on a host of a test, with its files in a directory of the test's own.

use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use super::{Host, Running, TempDir, wait_until};

/// The image that containers are made of: this machine's programs, and no more than root and sshd
/// for users.
const IMAGE: &str = "image";

/// An engine that runs containers.
pub struct Engine<'a> {
    host: &'a Host,
    kind: Kind,
    directory: TempDir,
    daemon: Option<Running>,
}

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Docker,
    Podman,
}

impl<'a> Engine<'a> {
    /// Starts one, with the image. None, and a loud line, where this machine cannot run it: only
    /// root may, and not inside a user namespace.
    pub fn start(kind: Kind, host: &'a Host) -> Option<Engine<'a>> {
        let outer = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let all = outer.split_whitespace().last() == Some("4294967295");
        if !geteuid().is_root() || !all {
            eprintln!(
                "NOT TESTED: {kind:?} needs root, so nothing is known about realpeer with its containers; run tests/run as root"
            );
            // Past the harness, which holds back what tests that pass have said.
            let line = format!("NOT TESTED without root: realpeer with {kind:?}\n");
            let _ = std::fs::write("/dev/tty", &line);
            return None;
        }
        let mut engine = Engine {
            host,
            kind,
            directory: TempDir::new(),
            daemon: None,
        };
        engine.start_daemon();
        engine.import();
        Some(engine)
    }

    /// Its API's socket.
    pub fn socket(&self) -> String {
        self.path("api.sock")
    }

    fn path(&self, name: &str) -> String {
        self.directory.path(name).display().to_string()
    }

    /// Starts the daemon, again perhaps.
    #[track_caller]
    pub fn start_daemon(&mut self) {
        let (root, run, pid) = (self.path("root"), self.path("run"), self.path("pid"));
        let socket = format!("unix://{}", self.socket());
        let storage = ["--storage-driver", "vfs"];
        let words: Vec<&str> = match self.kind {
            Kind::Docker => {
                let places = ["--data-root", &root, "--exec-root", &run, "--pidfile", &pid];
                [&["dockerd", "-H", &socket], &places[..], &storage[..]].concat()
            }
            Kind::Podman => {
                let places = ["--root", &root, "--runroot", &run];
                let cgroups = ["--cgroup-manager", "cgroupfs", "--events-backend", "file"];
                let service = ["system", "service", "--time", "0", &socket];
                [&["podman"], &storage[..], &places, &cgroups, &service].concat()
            }
        };
        let daemon = self.host.spawn(&words).ends_by(Signal::SIGTERM);
        self.daemon = Some(daemon);
        wait_until("the engine answers", || {
            let ended = self.daemon.as_mut().is_none_or(Running::has_ended);
            assert!(!ended, "{:?}", self.daemon.as_ref().map(Running::stderr));
            self.command(&["version"])
                .output()
                .is_ok_and(|out| out.status.success())
        });
    }

    /// Ends the daemon and what it runs.
    pub fn stop_daemon(&mut self) {
        self.daemon = None;
    }

    fn import(&self) {
        let root = self.path("image");
        let script = format!(
            "mkdir -p {root}/etc {root}/usr {root}/tmp {root}/run/sshd {root}/var/log {root}/root {root}/proc {root}/dev {root}/sys && \
             for d in bin sbin lib lib64; do ln -s usr/$d {root}/$d; done && \
             printf 'root:x:0:0::/root:/bin/sh\\nsshd:x:100:65534::/run/sshd:/bin/false\\n' >{root}/etc/passwd && \
             ssh-keygen -q -t ed25519 -N '' -f {root}/etc/host_key && \
             tar -C {root} -cf {root}.tar ."
        );
        self.host.run(&["sh", "-c", &script]);
        self.ok(&["import", &format!("{root}.tar"), IMAGE]);
    }

    /// Its command line.
    pub fn command(&self, words: &[&str]) -> Command {
        let socket = format!("unix://{}", self.socket());
        // The service has told it all else.
        let (program, to) = match self.kind {
            Kind::Docker => ("docker", ["-H", &socket].to_vec()),
            Kind::Podman => ("podman", ["--remote", "--url", &socket].to_vec()),
        };
        let mut command = self.host.command(program);
        command.args(to).args(words);
        command
    }

    /// Runs it to its end, which must be a success, and returns what it printed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.command(words).output().expect("it is installed");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{words:?}: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    /// Starts a container with OpenSSH on all its addresses, under further flags of `run`.
    #[track_caller]
    pub fn run_sshd(&self, name: &str, flags: &[&str]) {
        let sshd = [
            "/usr/sbin/sshd",
            "-D",
            "-e",
            "-f",
            "/dev/null",
            "-h",
            "/etc/host_key",
            "-o",
            "LogLevel=VERBOSE",
            "-o",
            "UsePAM=no",
        ];
        // By itself Podman asks for more than some machines allow.
        let limits: &[&str] = match self.kind {
            Kind::Docker => &[],
            Kind::Podman => &["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"],
        };
        let usr = ["run", "-d", "--name", name, "-v", "/usr:/usr:ro"];
        // Docker switches IPv6 off where a network has none, ::1 too.
        let ipv6 = ["all", "lo"].map(|at| format!("--sysctl=net.ipv6.conf.{at}.disable_ipv6=0"));
        let ipv6 = [&*ipv6[0], &*ipv6[1]];
        self.ok(&[&usr[..], limits, &ipv6, flags, &[IMAGE], &sshd].concat());
    }

    /// Waits until a container's OpenSSH has logged a connection from that client.
    #[track_caller]
    pub fn wait_for_client(&self, name: &str, client: &str) {
        let client = super::addr(client);
        let line = format!("Connection from {} port {} on ", client.ip(), client.port());
        wait_until(&format!("sshd of {name} logs {client}"), || {
            let output = self
                .command(&["logs", name])
                .output()
                .expect("it is installed");
            String::from_utf8_lossy(&output.stderr).contains(&line)
                || String::from_utf8_lossy(&output.stdout).contains(&line)
        });
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Ok(list) = self.command(&["ps", "-aq"]).output() {
            for id in String::from_utf8_lossy(&list.stdout).split_whitespace() {
                let _ = self.command(&["rm", "-f", id]).output();
            }
        }
    }
}
