//! A load balancer, a server, and on the server a proxy that a file configures. The test plays the
//! load balancer and the backends.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::stage::{Session, VISITED, wire};
use super::{Backend, Ctl, Host, Program, Running, TempDir, addr, datagrams, header, streams};

/// Where the first two listeners are found.
pub const AT_A: &str = "192.0.2.10:2201";
pub const AT_B: &str = "192.0.2.10:2202";
/// Backends.
pub const NINE: &str = "127.0.0.1:9000";
pub const NINE_TOO: &str = "127.0.0.1:9001";
/// A second client.
pub const OTHER: &str = "203.0.113.8:40001";

/// The hosts and what runs there.
pub struct Site {
    pub balancer: Host,
    pub server: Host,
    pub ctl: Ctl,
    pub proxy: Running,
    pub files: TempDir,
}

/// A listener as the file has it; `more` are further lines.
pub fn listener(name: &str, listen: &str, target: &str, more: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nlisten = \"{listen}\"\nipv4 = \"{target}\"\n{more}\n\n"
    )
}

/// As `listener`, of UDP.
pub fn udp(name: &str, listen: &str, target: &str, more: &str) -> String {
    listener(name, listen, target, &format!("protocol = \"udp\"\n{more}"))
}

impl Site {
    /// Starts the proxy with this file.
    #[track_caller]
    pub fn new(text: &str) -> Site {
        Site::prepared(text, |_| {})
    }

    /// As `new`, with something done to the server before.
    #[track_caller]
    pub fn prepared(text: &str, prepare: impl FnOnce(&Host)) -> Site {
        let (balancer, server) = wire();
        prepare(&server);
        let (ctl, files) = (Ctl::new(), TempDir::new());
        let proxy = start(&server, &ctl, &files, text);
        Site {
            balancer,
            server,
            ctl,
            proxy,
            files,
        }
    }

    /// Ends the proxy and starts another one with this file.
    #[track_caller]
    pub fn restart(&mut self, text: &str) {
        self.proxy.signal(Signal::SIGTERM);
        assert_eq!(self.proxy.exit_code(), 0);
        self.proxy = start(&self.server, &self.ctl, &self.files, text);
    }

    /// Where the file is.
    pub fn file(&self) -> String {
        self.files.path("realpeer.toml").display().to_string()
    }

    /// A file beside it, for a list.
    pub fn list(&self, name: &str, content: &str) -> String {
        self.files.file(name, content)
    }

    /// Writes the file anew.
    pub fn write(&self, text: &str) {
        // At once: a reload may read it at any time.
        let new = self.files.file("new.toml", text);
        fs::rename(new, self.file()).expect("replace the file");
    }

    /// Writes the file anew and has it read, which must go well. Returns what is said.
    #[track_caller]
    pub fn reload(&self, text: &str) -> String {
        self.write(text);
        let ended = self.ctl.run("reload");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stderr
    }

    /// Writes the file anew and has it read, which must fail for that reason.
    #[track_caller]
    pub fn refused_reload(&self, text: &str, why: &str) {
        self.write(text);
        self.ctl.refused("reload", why);
    }

    /// A session of this client by this address, which must reach that backend under the client's
    /// address.
    #[track_caller]
    pub fn session(&self, at: &str, backend: &Backend, client: &str) -> Session {
        let near = self.balancer.dial(at);
        streams::send(&near, header::v1(client, VISITED));
        let (far, from) = backend.accept();
        assert_eq!(from, addr(client), "the backend sees the client");
        streams::assert_carries(&near, &far);
        Session { near, far }
    }

    /// A socket of the load balancer that speaks to this address.
    #[track_caller]
    pub fn socket(&self, at: &str) -> UdpSocket {
        let socket = datagrams::open(&self.balancer, "0.0.0.0:0");
        socket.connect(addr(at)).expect("connect a UDP socket");
        socket
    }

    /// What the proxy says of itself.
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer: Value = serde_json::from_str(&self.ctl.ok("-json status")).expect("JSON");
        answer["status"].clone()
    }

    /// What it says of a listener.
    #[track_caller]
    pub fn listener(&self, name: &str) -> Value {
        let status = self.status();
        let mut all = status["listeners"].as_array().expect("a list").iter();
        let found = all.find(|listener| listener["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {status}"))
            .clone()
    }

    /// Checks that nobody listens there.
    #[track_caller]
    pub fn assert_refused(&self, at: &str) {
        let error = self
            .balancer
            .try_dial(None, at)
            .expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{at}");
    }

    /// The inodes of the sockets that listen on this port, sorted.
    pub fn sockets(&self, port: u16) -> Vec<String> {
        let list = self
            .server
            .run(&["ss", "-Hlntue", &format!("sport = :{port}")]);
        let mut inodes: Vec<String> = list
            .split_whitespace()
            .filter(|word| word.starts_with("ino:"))
            .map(str::to_owned)
            .collect();
        inodes.sort();
        inodes
    }

    /// The policy rules of a host.
    pub fn rules_of(host: &Host) -> String {
        host.run(&["ip", "rule"]) + &host.run(&["ip", "-6", "rule"])
    }

    /// Everything of the kernel's that a reload may change: sockets with their inodes, rules,
    /// routes, nftables.
    pub fn kernel(&self) -> String {
        let lists: [&[&str]; 6] = [
            &["ss", "-Hlntue"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["nft", "list", "ruleset"],
        ];
        lists.map(|words| self.server.run(words)).concat()
    }
}

/// A client's datagram each way: by `near` to the backend, and back.
#[track_caller]
pub fn converse(near: &UdpSocket, backend: &UdpSocket, client: &str) {
    near.send(&datagrams::every(client, b"there"))
        .expect("send to the proxy");
    let (got, from) = datagrams::receive(backend);
    assert_eq!((&got[..], from), (&b"there"[..], addr(client)));
    backend.send_to(b"and back", from).expect("answer");
    assert_eq!(datagrams::receive(near).0, b"and back");
}

/// Starts the proxy with this file, and waits until it answers.
#[track_caller]
pub fn start(server: &Host, ctl: &Ctl, files: &TempDir, text: &str) -> Running {
    let file = files.file("realpeer.toml", text);
    let state = ctl.state().display().to_string();
    let flags = [
        "-config",
        &file,
        "-control",
        &ctl.path(),
        "-state-dir",
        &state,
    ];
    let _ = fs::create_dir(ctl.state());
    let mut proxy = Program::Realpeer.spawn(&[], server, &flags);
    super::wait_until("the proxy runs", || {
        assert!(!proxy.has_ended(), "{:?}", proxy.stderr());
        ctl.run("status").code == 0
    });
    proxy
}
