//! Sockets that systemd passes on (sd_listen_fds(3)). A shell plays systemd: it opens nothing, but
//! gives what it was given the right numbers and variables.

mod support;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use support::datagrams::open;
use support::lineage::end;
use support::site::{converse, listener, udp};
use support::stage::{CLIENT, wire};
use support::streams::assert_carries;
use support::{Backend, Host, Lineage, Program, Running, TempDir, addr};

const NINE: &str = "127.0.0.1:9000";
const AT: &str = "192.0.2.10:2201";
const OTHER: &str = "203.0.113.8:40001";

/// Sockets on the server, open for a child.
fn sockets(server: &Host, wanted: &[(&str, bool)]) -> Vec<OwnedFd> {
    let open = |(at, is_udp): &(&str, bool)| -> OwnedFd {
        let socket: OwnedFd = match is_udp {
            true => UdpSocket::bind(addr(at)).expect("bind").into(),
            false => TcpListener::bind(addr(at)).expect("bind").into(),
        };
        socket
    };
    server.enter(|| wanted.iter().map(open).collect())
}

/// Starts the proxy with these as descriptors 3 and up.
fn start(server: &Host, given: &[OwnedFd], names: &str, pid: &str, flags: &[&str]) -> Running {
    for socket in given {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("let the child have it");
    }
    // Out of the way first: their numbers may be among those wanted.
    let numbers = given.iter().map(AsRawFd::as_raw_fd).enumerate();
    let (mut away, mut to) = (String::new(), String::new());
    for (at, number) in numbers {
        away += &format!("eval \"exec {}<&{number}\"; ", 100 + at);
        to += &format!("eval \"exec {}<&{}\"; ", 3 + at, 100 + at);
    }
    let count = given.len();
    let script = format!(
        "{away}{to}export LISTEN_FDS={count} LISTEN_FDNAMES={names} LISTEN_PID={pid}; exec \"$@\""
    );
    let program = Program::Realpeer.path();
    // Only bash has descriptors of two digits.
    let words = [&["bash", "-c", &script, "bash", &program], flags].concat();
    let running = server.spawn(&words);
    for socket in given {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("keep it");
    }
    running
}

fn inodes(server: &Host) -> String {
    let list = server.run(&["ss", "-Hlntue", "sport = :2201 or sport = :2202"]);
    let inodes = list
        .split_whitespace()
        .filter(|word| word.starts_with("ino:"));
    let mut inodes: Vec<&str> = inodes.collect();
    inodes.sort_unstable();
    inodes.join(" ")
}

/// By its name a socket is a listener's wherever it is bound; otherwise the address decides. Several
/// of one address are its `-listeners`.
#[test]
fn sockets_go_to_listeners_by_name_or_by_address() {
    let (balancer, server) = wire();
    let given = sockets(&server, &[("0.0.0.0:2201", false), ("0.0.0.0:2202", true)]);
    let files = TempDir::new();
    let text = listener("a", "0.0.0.0:1", NINE, "") + &udp("u", "0.0.0.0:2202", NINE, "");
    let file = files.file("realpeer.toml", &text);
    let control = files.path("control.sock").display().to_string();
    let before = inodes(&server);
    let flags = ["-config", &file, "-control", &control];
    let proxy = start(&server, &given, "a:unknown", "$$", &flags);
    drop(given);
    proxy.wait_for("listening for udp", |line| {
        line.contains(r#""protocol":"udp""#)
    });
    assert_eq!(inodes(&server), before, "it binds none of its own");
    let lines = proxy.stdout().join("\n");
    assert!(lines.contains(r#""listenAdr":"0.0.0.0:2201""#), "{lines}");
    let backend = Backend::listen(&server, NINE);
    let near = balancer.dial(AT);
    support::streams::send(&near, support::header::v1(CLIENT, support::stage::VISITED));
    let (far, from) = backend.accept();
    assert_eq!(from, addr(CLIENT));
    assert_carries(&near, &far);
    let udp_backend = open(&server, NINE);
    let near = open(&balancer, "0.0.0.0:0");
    near.connect(addr("192.0.2.10:2202")).expect("connect");
    converse(&near, &udp_backend, CLIENT);

    // A reload, and a hand-over, keep them.
    for action in ["reload", "upgrade"] {
        let words = ["ctl", "-control", &control, action];
        let ended = Program::Realpeer.run(&server, &words);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(inodes(&server), before, "{action}");
        converse(&near, &udp_backend, CLIENT);
    }
    let words = ["ctl", "-control", &control, "-json", "status"];
    let status = Program::Realpeer.run(&server, &words).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    end(
        status["status"]["pid"].as_u64().expect("a pid") as u32,
        nix::sys::signal::Signal::SIGKILL,
    );
}

#[test]
fn a_socket_that_matches_nothing_is_an_error_that_names_it() {
    let (_balancer, server) = wire();
    for (given, names, words) in [
        (
            &[("0.0.0.0:2299", false)][..],
            "stray",
            &["stray", "0.0.0.0:2299", "matches no listener"][..],
        ),
        // The protocol is another.
        (&[("0.0.0.0:2201", true)], "other", &["other", "udp"]),
        (&[("0.0.0.0:2201", true)], "a", &["the other protocol"]),
    ] {
        let given = sockets(&server, given);
        let flags = [
            "-name",
            "a",
            "-l",
            "0.0.0.0:2201",
            "-4",
            NINE,
            "-control",
            "off",
        ];
        let mut proxy = start(&server, &given, names, "$$", &flags);
        assert_eq!(proxy.exit_code(), 1);
        let said = proxy.stderr().join("\n");
        for word in words {
            assert!(said.contains(word), "{word} in {said}");
        }
    }
}

/// What was meant for another process is not ours.
#[test]
fn sockets_of_another_process_are_left_alone() {
    let (_balancer, server) = wire();
    let given = sockets(&server, &[("0.0.0.0:2299", false)]);
    let flags = ["-l", "0.0.0.0:2201", "-4", NINE, "-control", "off"];
    let proxy = start(&server, &given, "stray", "1", &flags);
    proxy.wait_for_line("listening");
}

/// Two sockets of an address are served, whatever `listeners` says.
#[test]
fn the_number_of_sockets_is_what_there_is() {
    let text = |listeners| {
        listener(
            "a",
            "0.0.0.0:2201",
            NINE,
            &format!("listeners = {listeners}"),
        )
    };
    let lineage = Lineage::new(&text(2));
    let backend = Backend::listen(&lineage.server, NINE);
    let before = inodes(&lineage.server);
    lineage.write(&text(3));
    lineage.upgrade();
    lineage
        .first
        .wait_for_line("another number needs a restart");
    assert_eq!(inodes(&lineage.server), before);
    for n in 1..20 {
        lineage.session(AT, &backend, &format!("203.0.113.20:{n}"));
    }
    lineage.session(AT, &backend, OTHER);
}
