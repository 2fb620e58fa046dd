//! A real systemd-journald, with sockets and files in a host's own /run.

use serde_json::Value;

use super::{Host, Running, wait_until};

/// Where its files are, in the host's /run.
pub const DIRECTORY: &str = "/run/log/journal";

/// It keeps all that it gets, and listens to nobody but this host's programs.
const CONFIGURATION: &str = "[Journal]
Storage=volatile
RateLimitIntervalSec=0
ReadKMsg=no
Audit=no
ForwardToSyslog=no
";

/// Starts its arguments with the journal for standard output and error, as systemd does.
pub const CONNECTED: [&str; 5] = [
    "systemd-cat",
    "sh",
    "-c",
    "JOURNAL_STREAM=$(stat -Lc %d:%i /dev/fd/2) exec \"$@\"",
    "sh",
];

/// A running journald.
pub struct Journald {
    pub running: Running,
}

impl Journald {
    /// Starts it and waits until it listens.
    #[track_caller]
    pub fn start(host: &Host) -> Journald {
        let directories = ["/run/systemd/journald.conf.d", DIRECTORY];
        host.run(&[&["mkdir", "-p"], &directories[..]].concat());
        let file = format!("{}/test.conf", directories[0]);
        let script = format!("printf '{CONFIGURATION}' >{file}");
        host.run(&["sh", "-c", &script]);
        let running = host.spawn(&["/lib/systemd/systemd-journald"]);
        wait_until("journald listens", || {
            let mut test = host.command("test");
            test.args(["-S", "/run/systemd/journal/socket"]);
            test.status().expect("test is there").success()
        });
        Journald { running }
    }

    /// What realpeer has written so far, oldest first.
    #[track_caller]
    pub fn entries(&self, host: &Host) -> Vec<Value> {
        let told = host.run(&[
            "journalctl",
            "--quiet",
            "--all",
            "--output",
            "json",
            "--directory",
            DIRECTORY,
            "_COMM=realpeer",
        ]);
        let entry = |line: &str| serde_json::from_str(line).expect("JSON");
        told.lines().map(entry).collect()
    }

    /// Waits for an entry that is as `wanted`.
    #[track_caller]
    pub fn wait_for(&self, host: &Host, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_until(&format!("the journal has {what}"), || {
            found = self.entries(host).into_iter().find(&wanted);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// Waits for a message that begins so.
    #[track_caller]
    pub fn wait_for_message(&self, host: &Host, beginning: &str) -> Value {
        self.wait_for(host, beginning, |entry| {
            let message = entry["MESSAGE"].as_str().unwrap_or_default();
            message.starts_with(beginning)
        })
    }
}
