//! Real servers and load balancers, each with files of its own, run by whoever runs the tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use super::{Host, Running, TempDir};

/// An OpenSSH server on 127.0.0.1:22 and [::1]:22 which lets in the user who runs the tests.
pub struct Sshd {
    pub running: Running,
    _logger: Option<Running>,
    directory: TempDir,
}

impl Sshd {
    /// Starts it with fresh keys.
    #[track_caller]
    pub fn start(host: &Host) -> Sshd {
        Sshd::start_logging(host, None)
    }

    /// As `start`, with its log in this file, as a system's logger would write it.
    #[track_caller]
    pub fn start_logging(host: &Host, log: Option<&str>) -> Sshd {
        let directory = TempDir::new();
        for key in ["host_key", "client_key"] {
            let path = directory.path(key);
            let path = path.to_str().expect("temporary paths are UTF-8");
            host.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]);
        }
        let key =
            fs::read_to_string(directory.path("host_key.pub")).expect("ssh-keygen made a key");
        directory.file("known_hosts", &format!("server {key}"));
        if geteuid().is_root() {
            // Where a sshd run by root puts its unprivileged half; Debian's unit makes it at boot.
            host.run(&["mkdir", "/run/sshd"]);
        }
        let config = config(&directory);
        let (running, logger) = match log {
            None => (
                host.spawn(&["/usr/sbin/sshd", "-D", "-e", "-f", &config]),
                None,
            ),
            Some(log) => {
                let pipe = directory.path("log");
                nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
                let pipe = text(&pipe);
                let stamp = "while IFS= read -r line; do echo \"$(date +%FT%T%:z) server sshd[1]: ${line%?}\"; done";
                let logger = format!("{stamp} <{pipe} >>{log}");
                let logger = host.spawn(&["sh", "-c", &logger]);
                let words = ["/usr/sbin/sshd", "-D", "-E", pipe, "-f", &config];
                (host.spawn(&words), Some(logger))
            }
        };
        host.wait_for_port(22);
        Sshd {
            running,
            directory,
            _logger: logger,
        }
    }

    /// An ssh command from `host` to `to`, which lacks only the remote command.
    pub fn client(&self, host: &Host, to: &str, port: u16) -> Command {
        let user = User::from_uid(geteuid())
            .expect("read the user database")
            .expect("we have a name");
        let mut ssh = host.command("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        let known_hosts = self.directory.path("known_hosts");
        ssh.args([
            "-o",
            "HostKeyAlias=server",
            "-o",
            &format!("UserKnownHostsFile={}", known_hosts.display()),
        ]);
        ssh.arg("-i").arg(self.directory.path("client_key"));
        ssh.arg("-p")
            .arg(port.to_string())
            .arg(format!("{}@{to}", user.name));
        ssh
    }
}

fn config(directory: &TempDir) -> String {
    let path = |name| directory.path(name).display().to_string();
    // With PAM a root whose password is locked may enter by key; without root there is no PAM.
    let pam = if geteuid().is_root() { "yes" } else { "no" };
    let lines = [
        "ListenAddress 127.0.0.1:22",
        "ListenAddress [::1]:22",
        "LogLevel VERBOSE",
        "PidFile none",
        "PermitRootLogin prohibit-password",
        // The keys lie below /tmp, which is writable for all.
        "StrictModes no",
        &format!("UsePAM {pam}"),
        &format!("HostKey {}", path("host_key")),
        &format!("AuthorizedKeysFile {}", path("client_key.pub")),
    ];
    directory.file("sshd_config", &lines.join("\n"))
}

/// nginx, its files in a directory of its own.
pub struct Nginx {
    pub running: Running,
    _directory: TempDir,
}

/// Starts nginx with this configuration and waits for its port.
#[track_caller]
pub fn nginx(host: &Host, configuration: &Path, port: u16) -> Nginx {
    let directory = TempDir::new();
    // Our own file: nginx removes its pid file when it ends, whatever the path names.
    let globals = format!(
        "daemon off; pid {}; error_log stderr;",
        directory.path("pid").display()
    );
    let running = host.spawn(&[
        "nginx",
        "-c",
        text(configuration),
        "-e",
        "stderr",
        "-g",
        &globals,
    ]);
    host.wait_for_port(port);
    // It must end its workers itself.
    Nginx {
        running: running.ends_by(Signal::SIGTERM),
        _directory: directory,
    }
}

/// Starts HAProxy with this configuration and waits for its port.
#[track_caller]
pub fn haproxy(host: &Host, configuration: &Path, port: u16) -> Running {
    let running = host.spawn(&["haproxy", "-db", "-f", text(configuration)]);
    host.wait_for_port(port);
    running
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}
