//! `realpeer ctl` against a proxy of a test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use super::program::Ended;
use super::{DEADLINE, Host, Program, Running, TempDir, Terminal};

/// A control socket in a directory of its own.
pub struct Ctl {
    host: Host,
    directory: TempDir,
}

impl Ctl {
    /// A place for a socket; the proxy makes it.
    pub fn new() -> Ctl {
        Ctl {
            host: Host::new("admin"),
            directory: TempDir::new(),
        }
    }

    /// The socket's path.
    pub fn path(&self) -> String {
        let path = self.directory.path("control.sock");
        path.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Where the proxy may keep bans.
    pub fn state(&self) -> PathBuf {
        self.directory.path("state")
    }

    /// Runs `realpeer ctl` with these words, from a host without any network: only the socket
    /// joins them.
    #[track_caller]
    pub fn run(&self, words: &str) -> Ended {
        let path = self.path();
        let mut all = vec!["ctl", "-control", &path];
        all.extend(words.split(' '));
        Program::Realpeer.run(&self.host, &all)
    }

    /// Starts `realpeer ctl` with these words, and leaves it running.
    #[track_caller]
    pub fn spawn(&self, words: &str) -> Running {
        let (program, path) = (Program::Realpeer.path(), self.path());
        let mut all = vec![&*program, "ctl", "-control", &path];
        all.extend(words.split(' '));
        self.host.spawn(&all)
    }

    /// The command line of `realpeer ctl` with these words.
    pub fn line(&self, words: &str) -> String {
        let program = Program::Realpeer.path();
        format!("{program} ctl -control {} {words}", self.path())
    }

    /// Starts a shell's command line, and waits for a line with this.
    #[track_caller]
    pub fn shell(&self, line: &str, text: &str) -> Running {
        // bash tells how each of a pipeline ended.
        let line = format!("set -o pipefail; {line}");
        let running = self.host.spawn(&["bash", "-c", &line]);
        running.wait_for_line(text);
        running
    }

    /// A terminal of the administrator's.
    #[track_caller]
    pub fn terminal(&self, columns: u16, rows: u16) -> Terminal<'_> {
        Terminal::new(&self.host, columns, rows)
    }

    /// As `run`, and it must go well.
    #[track_caller]
    pub fn ok(&self, words: &str) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, 0, "ctl {words}: {}", ended.stderr);
        ended.stdout
    }

    /// As `run`, and it must be refused with a word of `why`.
    #[track_caller]
    pub fn refused(&self, words: &str, why: &str) {
        let ended = self.run(words);
        assert_eq!(ended.code, 1, "ctl {words}: {}", ended.stdout);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }

    /// A count of the proxy.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        let status: Value = serde_json::from_str(&self.ok("-json status")).expect("JSON");
        let count = &status["status"]["counts"][name];
        count
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// A bare connection to the socket.
    #[track_caller]
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).expect("connect to the control socket");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("set a timeout");
        stream
    }
}

/// Sends one request and returns the line that ends its answer.
#[track_caller]
pub fn ask(stream: &mut BufReader<UnixStream>, request: &str) -> Value {
    let bytes = format!("{request}\n");
    stream
        .get_mut()
        .write_all(bytes.as_bytes())
        .expect("send a request");
    end_of_answer(stream)
}

/// Sends many requests at once, which must all go well.
#[track_caller]
pub fn ask_all(stream: &mut BufReader<UnixStream>, requests: &[String]) {
    let bytes = requests.join("\n") + "\n";
    stream
        .get_mut()
        .write_all(bytes.as_bytes())
        .expect("send requests");
    for request in requests {
        assert_eq!(end_of_answer(stream)["ok"], true, "{request}");
    }
}

#[track_caller]
fn end_of_answer(stream: &mut BufReader<UnixStream>) -> Value {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        if line.get("ok").is_some() {
            return line;
        }
    }
}
