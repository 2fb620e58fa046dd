//! A systemd journal of a test's own. systemd-journal-remote writes it, because it takes also the
//! fields that otherwise only journald adds, such as the sender's unit.

use std::io::Write;
use std::process::ChildStdin;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Host, Running, TempDir, wait_until};

/// What every entry has besides its message and its source.
const COMMON: &str = "_BOOT_ID=0123456789abcdef0123456789abcdef
_MACHINE_ID=0123456789abcdef0123456789abcdef
_HOSTNAME=server
";

/// A journal in a directory of its own.
pub struct Journal {
    directory: TempDir,
    writer: Running,
    input: ChildStdin,
    entries: u64,
}

impl Journal {
    /// An empty journal.
    #[track_caller]
    pub fn new(host: &Host) -> Journal {
        let directory = TempDir::new();
        let file = directory.path("system.journal");
        let file = file.to_str().expect("temporary paths are UTF-8");
        let words = ["/lib/systemd/systemd-journal-remote", "-o", file, "-"];
        let mut writer = host.spawn(&words);
        let input = writer.stdin();
        Journal {
            directory,
            writer,
            input,
            entries: 0,
        }
    }

    /// Adds an entry of now, from a process of its own; `source` has lines such as
    /// `_SYSTEMD_UNIT=ssh.service`.
    #[track_caller]
    pub fn add(&mut self, source: &str, message: &str) {
        self.entries += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("it is after 1970").as_micros();
        let entry = format!(
            "__REALTIME_TIMESTAMP={now}\n__MONOTONIC_TIMESTAMP={n}\n{COMMON}_PID={n}\n{source}\nMESSAGE={message}\n\n",
            n = self.entries
        );
        self.input
            .write_all(entry.as_bytes())
            .expect("write to the journal");
    }

    /// Waits until all that was added can be read.
    #[track_caller]
    pub fn wait_until_written(&self, host: &Host) {
        let file = self.directory.path("system.journal");
        wait_until("the journal is written", || {
            let mut read = host.command("journalctl");
            read.args(["--quiet", "--output", "cat", "--file"])
                .arg(&file);
            let output = read.output().expect("journalctl is there");
            String::from_utf8_lossy(&output.stdout).lines().count() as u64 == self.entries
        });
    }

    /// The directory of its file.
    pub fn path(&self) -> String {
        self.directory.path("").display().to_string()
    }

    /// What fail2ban reads it by.
    pub fn backend(&self) -> String {
        format!("systemd[journalpath={}]", self.directory.path("").display())
    }

    /// Ends the writing; all that was added can be read then. The directory is the caller's.
    #[track_caller]
    pub fn finish(self) -> TempDir {
        let Journal {
            directory,
            mut writer,
            input,
            ..
        } = self;
        drop(input);
        assert_eq!(writer.exit_code(), 0, "{:?}", writer.stderr());
        directory
    }
}
