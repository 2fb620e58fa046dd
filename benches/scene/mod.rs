//! The scene of the benchmarks: one private network namespace, the real program in it, and clients
//! and backends that the benchmark plays itself.

// Each benchmark uses a part of this, and is a crate of its own.
#![allow(dead_code)]

pub mod client;

use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use criterion::Criterion;

use crate::support::{Host, Program, Running, addr};

/// Where the proxy listens, and its target.
pub const PROXY: &str = "127.0.0.1:8000";
pub const BACKEND: &str = "127.0.0.1:9000";
/// Where the proxy for the target in another namespace listens.
pub const PROXY_INSIDE: &str = "127.0.0.1:8001";

/// Runs a benchmark with its threads inside a private network.
pub fn run(benchmark: fn(&mut Criterion, &Host)) {
    become_able();
    let host = private_network();
    host.enter(|| {
        let mut criterion = Criterion::default().configure_from_args();
        benchmark(&mut criterion, &host);
        criterion.final_summary();
    });
}

/// An ordinary user starts again inside a user namespace, where it may make networks. As in
/// `tests/run` the user stays the same there, because nginx refuses a mapped root.
pub fn become_able() {
    const DONE: &str = "REALPEER_BENCH_IN_USER_NAMESPACE";
    if nix::unistd::geteuid().is_root() || std::env::var_os(DONE).is_some() {
        return;
    }
    let program = std::env::current_exe().expect("the path of this program");
    let error = Command::new("unshare")
        .args(["--user", "--map-current-user", "--keep-caps", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(DONE, "1")
        .exec();
    panic!("cannot start unshare (Debian: util-linux): {error}");
}

/// A host whose loopback carries many short connections.
pub fn private_network() -> Host {
    let host = Host::new("benchmark");
    // The default may be BBR, whose pacing over loopback would be what is measured.
    host.sysctl("ipv4/tcp_congestion_control", "reno");
    host.sysctl("ipv4/ip_local_port_range", "1024 65535");
    host.sysctl("core/somaxconn", "65535");
    host.sysctl("ipv4/tcp_max_syn_backlog", "65535");
    host
}

/// How a connection gets to the backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// Without a proxy: what the machine itself costs.
    Direct,
    /// Through realpeer.
    Proxied,
    /// Through realpeer to a backend in another network namespace.
    Inside,
}

impl Way {
    /// Both, and what a table calls them.
    pub const BOTH: [(Way, &'static str); 2] =
        [(Way::Direct, "direct"), (Way::Proxied, "realpeer")];
}

/// Where the bench's host finds its other namespace.
const NETNS: &str = "/run/inside";

/// realpeer before a backend that the benchmark plays. Lives inside the namespace.
pub struct Relayed {
    listener: TcpListener,
    pub proxy: Running,
}

impl Relayed {
    /// Starts the program; the calling thread must be inside the host.
    pub fn start(host: &Host) -> Relayed {
        Relayed::start_with(host, &[])
    }

    /// As `start`, with more flags.
    pub fn start_with(host: &Host, more: &[&str]) -> Relayed {
        let listener = TcpListener::bind(BACKEND).expect("listen as the backend");
        let flags = [&["-l", PROXY, "-4", BACKEND], more].concat();
        let proxy = Program::Realpeer.start(host, &flags);
        Relayed { listener, proxy }
    }

    /// As `start`, with the backend in a network namespace of its own.
    pub fn start_inside(host: &Host) -> Relayed {
        let inside = private_network();
        host.name_netns(NETNS, &inside);
        let listener = inside.enter(|| TcpListener::bind(BACKEND).expect("listen as the backend"));
        let flags = ["-l", PROXY_INSIDE, "-4", BACKEND, "-target-netns", NETNS];
        let proxy = Program::Realpeer.start(host, &flags);
        Relayed { listener, proxy }
    }

    /// Connects as a new client, sends `first` behind the header if there is one, and returns the
    /// client's and the backend's end.
    pub fn connect(&self, way: Way, first: &[u8]) -> (TcpStream, TcpStream) {
        self.connect_as(client::next_claimed(), way, first)
    }

    /// As `connect`, as this client.
    pub fn connect_as(
        &self,
        claimed: SocketAddrV4,
        way: Way,
        first: &[u8],
    ) -> (TcpStream, TcpStream) {
        let to: SocketAddr = addr(match way {
            Way::Direct => BACKEND,
            Way::Proxied => PROXY,
            Way::Inside => PROXY_INSIDE,
        });
        let near = client::dial(to).expect("connect");
        let mut opening = match way {
            Way::Direct => Vec::new(),
            Way::Proxied | Way::Inside => client::header_v1(claimed),
        };
        opening.extend_from_slice(first);
        client::send(&near, &opening);
        let (far, _) = self.listener.accept().expect("accept as the backend");
        far.set_nodelay(true).expect("set TCP_NODELAY");
        (near, far)
    }
}
