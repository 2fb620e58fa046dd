//! Whoever reads the log may be slow, or gone: no connection waits for it, and neither does the end.

mod support;

use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use support::ctl::ask_all;
use support::stage::{ADDRESSES, CLIENT, wire};
use support::streams::assert_carries;
use support::{Backend, Ctl, Host, Program, Running, Stage, TempDir, wait_until};

/// A named pipe that a program writes both its standard outputs to.
struct Pipe {
    directory: TempDir,
}

impl Pipe {
    fn new() -> Pipe {
        let pipe = Pipe {
            directory: TempDir::new(),
        };
        mkfifo(&pipe.path(), Mode::S_IRWXU).expect("make a named pipe");
        pipe
    }

    fn path(&self) -> PathBuf {
        self.directory.path("log")
    }

    /// A reader, which may do so at its leisure.
    fn reader(&self) -> File {
        let mut options = OpenOptions::new();
        // Otherwise this would wait for a writer.
        options.read(true).custom_flags(nix::libc::O_NONBLOCK);
        options.open(self.path()).expect("open the pipe")
    }

    /// A reader that reads all.
    fn cat(&self, host: &Host) -> Running {
        host.spawn(&["cat", self.path().to_str().expect("a path")])
    }

    fn spawn(&self, host: &Host, flags: &[&str]) -> Running {
        let script = format!("exec \"$0\" \"$@\" > {0} 2>&1", self.path().display());
        Program::Realpeer.spawn(&["sh", "-c", &script], host, flags)
    }

    /// The usual scene, with the proxy's log in the pipe.
    fn stage(&self, flags: &[&str]) -> Stage {
        let (balancer, server) = wire();
        let backend = Backend::listen(&server, "127.0.0.1:9000");
        let backend6 = Backend::listen(&server, "[::1]:9000");
        let proxy = self.spawn(&server, &[&ADDRESSES, flags].concat());
        server.wait_for_port(2222);
        Stage {
            balancer,
            server,
            backend,
            backend6,
            proxy,
        }
    }
}

/// Bans whose lines in the log are long.
fn bans(count: u16) -> Vec<String> {
    let reason = "\u{1}".repeat(500);
    let network = |n: u16| format!("10.0.{}.{}", n >> 8, n & 255);
    (0..count)
        .map(|n| json!({"do": "ban", "network": network(n), "reason": reason}).to_string())
        .collect()
}

/// More than a pipe and the queue hold.
const FLOOD: u16 = 2500;

#[test]
fn a_reader_that_stalls_stops_nothing_and_learns_what_it_missed() {
    let (pipe, ctl) = (Pipe::new(), Ctl::new());
    let reader = pipe.reader();
    let stage = pipe.stage(&["-v", "2", "-control", &ctl.path()]);
    let session = stage.session(CLIENT);
    let mut administrator = BufReader::new(ctl.connect());
    for some in bans(FLOOD).chunks(100) {
        ask_all(&mut administrator, some);
    }
    assert_carries(&session.near, &session.far);
    stage.session("203.0.113.8:1");

    // It comes back.
    let back = pipe.cat(&stage.server);
    let lost = back.wait_for("count of what was lost", |line| line.contains("\"lost\":"));
    let lost = parse(&lost)["lost"].as_u64().expect("a number");
    let lines = back.stdout();
    let told = lines
        .iter()
        .filter(|line| parse(line)["msg"] == "client banned");
    let missing = u64::from(FLOOD) - told.count() as u64;
    assert!(lost > 0);
    // The second session's end may be among them.
    assert!(
        (missing..=missing + 1).contains(&lost),
        "{lost} of {missing}"
    );
    drop(reader);
}

#[test]
fn a_reader_that_stalls_does_not_hold_the_exit() {
    let (pipe, ctl) = (Pipe::new(), Ctl::new());
    let _reader = pipe.reader();
    let mut stage = pipe.stage(&["-v", "2", "-control", &ctl.path()]);
    stage.session(CLIENT);
    ask_all(&mut BufReader::new(ctl.connect()), &bans(100));
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert_no_rule(&stage.server);
}

#[test]
fn a_reader_that_is_gone_ends_nothing() {
    let (pipe, ctl) = (Pipe::new(), Ctl::new());
    let reader = pipe.reader();
    let mut stage = pipe.stage(&["-v", "2", "-control", &ctl.path()]);
    stage.session(CLIENT);
    drop(reader);
    for n in 1..10 {
        stage.session(&format!("203.0.113.9:{n}"));
    }
    // Another one gets what comes from then on, and the count of the rest.
    let other = pipe.cat(&stage.server);
    wait_until("it is told what it missed", || {
        stage.session("203.0.113.10:1");
        other.stdout().iter().any(|line| line.contains("\"lost\":"))
    });
    drop(other);
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    assert_no_rule(&stage.server);
}

#[test]
fn a_ban_relay_without_a_reader_goes_on() {
    let (pipe, host, files) = (Pipe::new(), Host::new("ingress"), TempDir::new());
    let token = files.file("token", "0123456789abcdef");
    let callers = files.file("callers", "127.0.0.1\n");
    let flags = [
        "ban-relay",
        "-l",
        "127.0.0.1:8000",
        "-token-file",
        &token,
        "-allowed-subnets",
        &callers,
    ];
    let reader = pipe.reader();
    let mut relay = pipe.spawn(&host, &flags);
    host.wait_for_port(8000);
    drop(reader);
    // It logs this, and the stop.
    for _ in 0..2 {
        let answer = "%{http_code}";
        let call = ["curl", "-s", "-o", "/dev/null", "-w", answer];
        let call = [&call[..], &["http://127.0.0.1:8000/bans"]].concat();
        assert_eq!(host.run(&call), "401");
    }
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn the_last_line_is_written_before_the_end() {
    let mut stage = Stage::new(&["-v", "2"]);
    stage.session(CLIENT);
    stage.proxy.signal(Signal::SIGTERM);
    assert_eq!(stage.proxy.exit_code(), 0);
    let last = stage.proxy.stdout().pop().expect("a line");
    assert!(last.contains(r#""msg":"stopped""#), "{last}");
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"))
}

#[track_caller]
fn assert_no_rule(host: &Host) {
    let rules = host.run(&["ip", "rule"]) + &host.run(&["ip", "-6", "rule"]);
    assert!(!rules.contains("iif lo"), "{rules}");
}
