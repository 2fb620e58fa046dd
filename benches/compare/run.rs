//! One peer before one backend, for as long as a test takes.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peers::Peer;
use crate::scene::{self, PROXY, client};
use crate::support::{Host, Running, TempDir, addr, wait_until};
use crate::usage::Usage;

/// Where the backend listens, for each protocol.
pub const TARGET: &str = "127.0.0.1:9000";
pub const TARGET_UDP: &str = "127.0.0.1:9001";

/// The private network and a directory for configurations.
pub struct Stage {
    pub host: Host,
    directory: TempDir,
}

impl Stage {
    /// A network whose replies come back to the proxies: only realpeer sees to that by itself.
    pub fn new() -> Stage {
        let host = scene::private_network();
        for words in [
            "ip rule add from 127.0.0.1/8 iif lo table 123",
            "ip route add local 0.0.0.0/0 dev lo table 123",
        ] {
            host.run(&words.split(' ').collect::<Vec<_>>());
        }
        Stage {
            host,
            directory: TempDir::new(),
        }
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        self.directory.file(name, content)
    }
}

/// A running peer and backend; dropping it ends both.
pub struct Run {
    to: SocketAddr,
    proxy: Option<Running>,
    _backend: Running,
}

impl Run {
    /// Starts the backend of this kind and the peer, and waits until both listen.
    pub fn start(stage: &Stage, peer: &Peer, backend: &str) -> Run {
        let udp = backend == "udp";
        let (table, target) = if udp {
            ("udp", TARGET_UDP)
        } else {
            ("tcp", TARGET)
        };
        let myself = std::env::current_exe().expect("the path of this program");
        let myself = myself.to_str().expect("a path in UTF-8");
        let backend = start(stage, &[myself, "backend", backend], table, target);
        let proxy = (!peer.is_direct()).then(|| {
            let words = peer.command(stage, udp);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            start(stage, &words, table, PROXY)
        });
        let to = addr(if proxy.is_some() { PROXY } else { target });
        Run {
            to,
            proxy,
            _backend: backend,
        }
    }

    /// Where clients connect to.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// What a new client's connection begins with.
    pub fn opening(&self) -> Vec<u8> {
        match self.proxy {
            Some(_) => client::header_v1(client::next_claimed()),
            None => Vec::new(),
        }
    }

    /// What each datagram of a new client begins with.
    pub fn opening_of_datagrams(&self) -> Vec<u8> {
        match self.proxy {
            Some(_) => client::header_v2_datagram(client::next_claimed()),
            None => Vec::new(),
        }
    }

    /// Signals the proxy.
    pub fn signal(&self, signal: Signal) {
        if let Some(proxy) = &self.proxy {
            proxy.signal(signal);
        }
    }

    /// Ends the process that listens in the place of the one that was started.
    pub fn end_successor(&self) {
        let port = format!("sport = :{}", self.to.port());
        let listening = Command::new("ss").args(["-ltnpH", &port]).output();
        let listening = listening.expect("ss runs").stdout;
        let listening = String::from_utf8_lossy(&listening);
        let pids = listening.split("pid=").skip(1);
        let pids = pids.filter_map(|rest| rest.split(',').next()?.parse().ok());
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        wait_until("nobody listens any more", || !is_bound("tcp", PROXY));
    }

    /// What the proxy has taken so far; nothing when there is none.
    pub fn usage(&self) -> Option<Usage> {
        self.proxy.as_ref().map(|proxy| Usage::of(proxy.pid()))
    }
}

/// Starts a program and waits until it listens on `address`.
fn start(stage: &Stage, words: &[&str], protocol: &str, address: &str) -> Running {
    let mut program = stage.host.spawn(words).ends_by(Signal::SIGTERM);
    wait_until(&format!("{words:?} listens on {address}"), || {
        assert!(
            !program.has_ended(),
            "{words:?} ended: {:?}",
            program.stderr()
        );
        is_bound(protocol, address)
    });
    program
}

/// Whether a socket of this protocol has the port of `address` and no other end.
fn is_bound(protocol: &str, address: &str) -> bool {
    let port = format!(":{:04X} ", addr(address).port());
    let file = format!("/proc/thread-self/net/{protocol}");
    let table = fs::read_to_string(&file).expect("read the table of sockets");
    // "0: 0100007F:1F40 00000000:0000 0A": ours, and nobody's.
    table.lines().any(|line| {
        line.split_once(&port)
            .is_some_and(|(_, rest)| rest.starts_with("00000000:0000 "))
    })
}
