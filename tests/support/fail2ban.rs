//! fail2ban with Debian's files and ours, each server in a directory of its own.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use super::{Host, Running, TempDir, repository, wait_until};

/// A configuration: what Debian ships, with packaging/fail2ban on top.
pub struct Configuration(TempDir);

impl Configuration {
    /// A fresh copy. Jails that are turned on are in `jails`.
    pub fn new(jails: &str) -> Configuration {
        let directory = TempDir::new();
        let etc = Path::new("/etc/fail2ban");
        copy_files(etc, &directory.path(""));
        for part in ["action.d", "filter.d", "jail.d"] {
            fs::create_dir(directory.path(part)).expect("make a directory");
            let ours = repository("packaging/fail2ban").join(part);
            // Debian's jail.d turns a jail on.
            let theirs = (part != "jail.d").then(|| etc.join(part));
            for source in theirs.iter().chain([&ours]) {
                copy_files(source, &directory.path(part));
            }
        }
        let database = directory.path("database");
        directory.file(
            "fail2ban.local",
            &format!(
                "[Definition]\ndbfile = {}\nallowipv6 = yes\n",
                database.display()
            ),
        );
        directory.file("jail.local", jails);
        Configuration(directory)
    }

    /// Its directory.
    pub fn path(&self) -> String {
        self.0
            .path("")
            .to_str()
            .expect("temporary paths are UTF-8")
            .to_owned()
    }

    /// What a filter finds in a log file: one address a line.
    #[track_caller]
    pub fn find(&self, host: &Host, log: &str, filter: &str) -> Vec<String> {
        self.regex(host, &["-o", "ip", log, filter])
    }

    /// As `find`, in the entries of a journal that a jail with this `journalmatch` reads.
    #[track_caller]
    pub fn find_in_journal(
        &self,
        host: &Host,
        journal: &TempDir,
        journalmatch: &str,
        filter: &str,
    ) -> Vec<String> {
        let journal = format!(
            "systemd-journal[journalpath={}]",
            journal.path("").display()
        );
        self.regex(host, &["-o", "ip", "-m", journalmatch, &journal, filter])
    }

    /// The lines that `fail2ban-regex` prints.
    #[track_caller]
    pub fn regex(&self, host: &Host, words: &[&str]) -> Vec<String> {
        let path = self.path();
        let found = host.run(&[&["fail2ban-regex", "-c", &path], words].concat());
        found.lines().map(str::to_owned).collect()
    }
}

fn copy_files(from: &Path, to: &Path) {
    let entries = fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    for entry in entries.map(|entry| entry.expect("list a directory")) {
        if entry.file_type().expect("a file type").is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy a file");
        }
    }
}

/// A jail that finds nothing: who is banned there is said by its administrator.
pub fn idle_jail(name: &str, action: &str) -> String {
    format!(
        "[{name}]\nenabled = true\nbackend = polling\nfilter = realpeer-relay\nlogpath = /dev/null\naction = {action}\n"
    )
}

/// A server with its socket.
pub struct Fail2ban {
    pub running: Running,
    configuration: Configuration,
}

impl Fail2ban {
    /// Starts it and waits until its jails run.
    #[track_caller]
    pub fn start(host: &Host, jails: &str) -> Fail2ban {
        Fail2ban::start_with(host, Configuration::new(jails))
    }

    /// Ends it, and starts it again so many seconds after that by what it knows of its bans.
    #[track_caller]
    pub fn restart_after(self, host: &Host, seconds: u32) -> Fail2ban {
        let Fail2ban {
            running,
            configuration,
        } = self;
        running.signal(Signal::SIGTERM);
        running.wait_for_line("Exiting Fail2ban");
        let database = configuration.0.path("database");
        let script = format!(
            "import sqlite3; c = sqlite3.connect('{}'); [c.execute(f'UPDATE {{table}} SET timeofban = timeofban - {seconds}') for table in ('bans', 'bips')]; c.commit()",
            database.display()
        );
        drop(running);
        host.run(&["python3", "-c", &script]);
        Fail2ban::start_with(host, configuration)
    }

    #[track_caller]
    fn start_with(host: &Host, configuration: Configuration) -> Fail2ban {
        let (path, socket) = (configuration.path(), configuration.0.path("socket"));
        let pid = configuration.0.path("pid");
        let mut command = host.command("fail2ban-server");
        command.args([
            "-f",
            "-x",
            "-c",
            &path,
            "--logtarget",
            "STDOUT",
            "--loglevel",
            "INFO",
        ]);
        command.arg("-s").arg(&socket).arg("-p").arg(&pid);
        // The actions of ours start `realpeer`.
        let program = super::Program::Realpeer.path();
        let directory = Path::new(&program)
            .parent()
            .expect("a program is in a directory");
        let search = std::env::var("PATH").unwrap_or_default();
        command.env(
            "PATH",
            format!("{}:{search}:/usr/sbin:/sbin", directory.display()),
        );
        let running = Running::start("fail2ban", command).ends_by(Signal::SIGTERM);
        let server = Fail2ban {
            running,
            configuration,
        };
        server.running.wait_for_line("Server ready");
        server
    }

    /// A directory with a `fail2ban-client` that speaks to this server.
    pub fn client_directory(&self) -> String {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.configuration.0.path("bin");
        if !directory.exists() {
            fs::create_dir(&directory).expect("make a directory");
        }
        let script = directory.join("fail2ban-client");
        let socket = self.configuration.0.path("socket");
        let text = format!(
            "#!/bin/sh\nexec /usr/bin/fail2ban-client -s {} \"$@\"\n",
            socket.display()
        );
        fs::write(&script, text).expect("write a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        directory
            .to_str()
            .expect("temporary paths are UTF-8")
            .to_owned()
    }

    /// What its administrator says to it, such as `set sshd banip 203.0.113.9`.
    #[track_caller]
    pub fn tell(&self, host: &Host, words: &str) {
        let mut client = self.start_telling(host, words);
        let code = client.exit_code();
        let said = [client.stdout(), client.stderr()].concat();
        assert_eq!(code, 0, "{words}: {said:?}");
    }

    /// As `tell`, without waiting for what comes of it.
    #[track_caller]
    pub fn start_telling(&self, host: &Host, words: &str) -> Running {
        let (path, socket) = (
            self.configuration.path(),
            self.configuration.0.path("socket"),
        );
        let socket = socket.display().to_string();
        let words: Vec<&str> = words.split(' ').collect();
        let client = ["fail2ban-client", "-c", &path, "-s", &socket];
        host.spawn(&[&client, &words[..]].concat())
    }

    /// Whether an action went wrong so far.
    pub fn has_failed(&self) -> bool {
        self.running
            .stdout()
            .iter()
            .any(|line| line.contains("ERROR"))
    }

    /// Waits until it has banned an address.
    #[track_caller]
    pub fn wait_for_ban(&self, address: &str) {
        let wanted = format!("Ban {address}");
        wait_until(&format!("fail2ban bans {address}"), || {
            self.running
                .stdout()
                .iter()
                .any(|line| line.ends_with(&wanted))
        });
    }
}
