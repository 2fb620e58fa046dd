//! A host is a network namespace and a /run of its own, held open by file descriptors. Nothing in
//! it can be reached from the machine the tests run on, so fixed ports, addresses and sockets in
//! /run are safe there.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};

use super::{DEADLINE, Running, streams, wait_until};

/// A private network namespace with its loopback interface up, and an empty /run.
pub struct Host {
    name: String,
    network: File,
    mounts: File,
}

impl Host {
    /// Makes a host; `name` is for messages only.
    pub fn new(name: &str) -> Host {
        // A thread of its own makes the namespaces, because the test's thread should stay outside.
        let made = thread::spawn(make_namespaces).join();
        let (network, mounts) = made.expect("the thread does not panic").unwrap_or_else(|e| {
            panic!(
                "cannot make private namespaces ({e}). Run these tests by tests/run, or as root. \
                 If tests/run fails so, this system forbids user namespaces: see \
                 user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns."
            )
        });
        let host = Host {
            name: name.to_owned(),
            network,
            mounts,
        };
        host.run(&["ip", "link", "set", "lo", "up"]);
        host
    }

    /// Joins two hosts by a wire (veth). Each end gets its addresses, written `192.0.2.1/24`.
    pub fn connect(&self, addresses: &[&str], other: &Host, other_addresses: &[&str]) {
        let (here, there) = (format!("to-{}", other.name), format!("to-{}", self.name));
        self.run(&[
            "ip",
            "link",
            "add",
            &here,
            "type",
            "veth",
            "peer",
            "name",
            &there,
            "netns",
            &other.path(),
        ]);
        for (host, device, addresses) in
            [(self, &here, addresses), (other, &there, other_addresses)]
        {
            host.run(&["ip", "link", "set", device, "up"]);
            for address in addresses {
                host.add_address(address, device);
            }
        }
    }

    /// Gives an interface one more address.
    pub fn add_address(&self, address: &str, device: &str) {
        let mut words = vec!["ip", "address", "add", address, "dev", device];
        if address.contains(':') {
            // Without it an IPv6 address is of no use for a second, until nobody else claims it.
            words.push("nodad");
        }
        self.run(&words);
    }

    /// Gives the network of another host a file on this one, as `ip netns attach` does.
    #[track_caller]
    pub fn name_netns(&self, path: &str, other: &Host) {
        self.run(&["touch", path]);
        self.run(&["mount", "-c", "--bind", &other.path(), path]);
    }

    /// Takes such a file away, as `ip netns delete` does.
    #[track_caller]
    pub fn forget_netns(&self, path: &str) {
        self.run(&["umount", "-l", path]);
        self.run(&["rm", path]);
    }

    /// Runs `action` in this host's network: sockets that it opens belong here for ever.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                action()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", path(&self.network)))
            .arg(format!("--mount={}", path(&self.mounts)))
            .arg("--")
            .arg(program);
        // An ordinary user's PATH on Debian lacks ip, nft, nginx and sshd.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    }

    /// Starts a program on this host; it is killed when the guard is dropped.
    pub fn spawn(&self, words: &[&str]) -> Running {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Running::start(words[0], command)
    }

    /// Runs a program to its end, which must be a success, and returns what it printed.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self
            .command(words[0])
            .args(&words[1..])
            .output()
            .expect("nsenter is there");
        assert!(
            output.status.success(),
            "on {}: {words:?} failed: {}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a kernel parameter of this host's network, written with slashes: `ipv4/tcp_rmem`.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| fs::write(format!("/proc/sys/net/{name}"), value))
            .unwrap_or_else(|e| panic!("cannot set net/{name} to {value}: {e}"));
    }

    /// Connects from this host.
    #[track_caller]
    pub fn dial(&self, to: &str) -> TcpStream {
        self.try_dial(None, to)
            .unwrap_or_else(|e| panic!("{} cannot connect to {to}: {e}", self.name))
    }

    /// Connects from this host, from one of its addresses (`192.0.2.6:0` for any port of it).
    #[track_caller]
    pub fn dial_from(&self, from: &str, to: &str) -> TcpStream {
        self.try_dial(Some(from), to)
            .unwrap_or_else(|e| panic!("{} cannot connect from {from} to {to}: {e}", self.name))
    }

    /// As `dial_from`, where the failure is the point.
    pub fn try_dial(&self, from: Option<&str>, to: &str) -> io::Result<TcpStream> {
        let to = super::addr(to);
        self.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(from) = from {
                socket.bind(&super::addr(from).into())?;
            }
            socket.connect_timeout(&to.into(), DEADLINE)?;
            Ok(streams::with_deadline(socket.into()))
        })
    }

    /// How many sockets listen on this TCP port.
    pub fn listeners(&self, port: u16) -> usize {
        self.sockets(|row| row.local_port == port && row.state == LISTEN)
    }

    /// How many TCP sockets here have this port at their own end and are connected.
    pub fn established(&self, port: u16) -> usize {
        self.sockets(|row| row.local_port == port && row.state == ESTABLISHED)
    }

    /// Bytes sent on the connection between these two ports which this host has yet to have
    /// acknowledged, and bytes that came and that nobody has read.
    pub fn queues(&self, local_port: u16, peer_port: u16) -> Option<(usize, usize)> {
        let rows = self.enter(tcp_rows);
        let mut rows = rows.iter().filter(|row| row.state == ESTABLISHED);
        rows.find(|row| (row.local_port, row.peer_port) == (local_port, peer_port))
            .map(|row| (row.unacknowledged, row.unread))
    }

    /// Waits until something listens on this TCP port.
    #[track_caller]
    pub fn wait_for_port(&self, port: u16) {
        wait_until(&format!("port {port} of {} is open", self.name), || {
            self.listeners(port) > 0
        });
    }

    /// The addresses of the TCP connections of this host to or from `port`, as `ss` shows them:
    /// local, then peer.
    pub fn connections(&self, port: u16) -> Vec<(SocketAddr, SocketAddr)> {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let listing = self.run(&["ss", "-Htn", "state", "established", &filter]);
        listing
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                (super::addr(words[2]), super::addr(words[3]))
            })
            .collect()
    }

    fn sockets(&self, wanted: impl Fn(&TcpRow) -> bool) -> usize {
        self.enter(tcp_rows)
            .iter()
            .filter(|row| wanted(row))
            .count()
    }

    fn path(&self) -> String {
        path(&self.network)
    }
}

/// Where another process finds what we hold open.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Leaves the thread in namespaces of its own and returns them.
fn make_namespaces() -> io::Result<(File, File)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    // Without the first line the second would reach the machine itself.
    mount(&["--make-rprivate", "/"])?;
    mount(&["-t", "tmpfs", "none", "/run"])?;
    let own = |kind| File::open(format!("/proc/thread-self/ns/{kind}"));
    Ok((own("net")?, own("mnt")?))
}

fn mount(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("mount").args(arguments).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(said));
    }
    Ok(())
}

const ESTABLISHED: u8 = 0x01;
const LISTEN: u8 = 0x0A;

/// What a line of /proc/net/tcp or tcp6 says; it names no process, so it needs no privilege.
struct TcpRow {
    local_port: u16,
    peer_port: u16,
    state: u8,
    unacknowledged: usize,
    unread: usize,
}

fn tcp_rows() -> Vec<TcpRow> {
    let mut rows = Vec::new();
    // thread-self, because /proc/net shows the namespace of the process's first thread.
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let table = fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
        rows.extend(table.lines().skip(1).map(tcp_row));
    }
    rows
}

fn tcp_row(line: &str) -> TcpRow {
    // "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 …": local, peer, state, send and
    // receive queue, all in hexadecimal.
    let words: Vec<&str> = line.split_whitespace().collect();
    let hex = |text: &str| usize::from_str_radix(text, 16).expect("/proc/net/tcp is hexadecimal");
    let pair = |text: &str| {
        let (left, right) = text.rsplit_once(':').expect("two numbers");
        (left.to_owned(), hex(right))
    };
    TcpRow {
        local_port: pair(words[1]).1 as u16,
        peer_port: pair(words[2]).1 as u16,
        state: hex(words[3]) as u8,
        unacknowledged: hex(&pair(words[4]).0),
        unread: pair(words[4]).1,
    }
}
