//! realpeer in the network namespace of the application that it serves, as a user who is not root and
//! with the capabilities that a container is given.

mod support;

use std::net::UdpSocket;

use nix::sys::signal::Signal;
use support::datagrams::{every, open, receive};
use support::header::v2;
use support::stage::{ADDRESSES, CLIENT, CLIENT6, PROXY, VISITED, VISITED6, wire};
use support::streams::{assert_carries, send};
use support::{Backend, Confined, Host, Running, TempDir, addr};

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Each way of the routing, put in by `realpeer routing up` with NET_ADMIN alone; then the proxy has
/// NET_RAW alone, and serves.
#[test]
fn net_raw_is_enough_once_the_routing_is_there() {
    for (protocol, target, target6) in [
        ("tcp", "127.0.0.1:9000", "[::1]:9000"),
        // By mark, which CAP_NET_RAW may set since Linux 5.17.
        ("tcp", "192.0.2.10:9000", "[2001:db8::10]:9000"),
        ("udp", "127.0.0.1:9000", "[::1]:9001"),
    ] {
        let (balancer, server) = wire();
        server.add_address("2001:db8::10/128", "lo");
        let flags = ["-p", protocol, "-4", target, "-6", target6];
        let up = [&["routing", "up"], &flags[..]].concat();
        let serve = [&["-l", "0.0.0.0:2222"], &flags[..]].concat();
        // UDP backends on all addresses answer by the port rule, if they are there when it is put in.
        let everywhere = ["0.0.0.0:9000", "[::]:9001"].map(|at| open(&server, at));
        let confined = Confined::new(&server, TempDir::new());
        let serves = |proxy: &Running| {
            proxy.wait_for_line("\"listening\"");
            match protocol {
                "tcp" => assert_serves(&balancer, &server, [target, target6]),
                _ => assert_answers(&balancer, &everywhere),
            }
            assert_is_content(proxy);
        };
        let mut ended = confined.run(&strings(&["NET_ADMIN"]), &strings(&up));
        assert_eq!(ended.exit_code(), 0, "{target}: {:?}", ended.stderr());
        serves(&confined.run(&strings(&["NET_RAW"]), &strings(&serve)));
    }
}

/// With NET_ADMIN, too, it needs nobody before it, and leaves nothing behind.
#[test]
fn net_admin_and_net_raw_are_enough_without_anything() {
    let (balancer, server) = wire();
    let before = server.run(&["ip", "rule"]);
    let confined = Confined::new(&server, TempDir::new());
    let both = strings(&["NET_ADMIN", "NET_RAW"]);
    let mut proxy = confined.run(&both, &strings(&ADDRESSES));
    proxy.wait_for_line("\"listening\"");
    assert_serves(&balancer, &server, ["127.0.0.1:9000", "[::1]:9000"]);
    assert_ne!(server.run(&["ip", "rule"]), before);
    assert_is_content(&proxy);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), 0);
    assert_eq!(server.run(&["ip", "rule"]), before);
}

/// Who has NET_RAW alone, and nobody before it, is told what is missing.
#[test]
fn net_raw_alone_asks_for_routing_up() {
    let (_balancer, server) = wire();
    let confined = Confined::new(&server, TempDir::new());
    let flags = ["-l", "0.0.0.0:2222", "-4", "127.0.0.1:9000"];
    let proxy = confined.run(&strings(&["NET_RAW"]), &strings(&flags));
    proxy.wait_for_line("realpeer routing up -4 127.0.0.1:9000");
    proxy.wait_for_line("\"listening\"");
    let lines = proxy.stdout();
    assert!(
        !lines.iter().any(|line| line.contains("no-capability")),
        "{lines:?}"
    );
}

/// It missed nothing at its start.
#[track_caller]
fn assert_is_content(proxy: &Running) {
    let missed = |line: &String| line.contains("no-capability") || line.contains("not come back");
    let lines = proxy.stdout();
    assert!(!lines.iter().any(missed), "{lines:?}");
}

#[track_caller]
fn assert_serves(balancer: &Host, server: &Host, at: [&str; 2]) {
    for (target, client, visited) in [(at[0], CLIENT, VISITED), (at[1], CLIENT6, VISITED6)] {
        let backend = Backend::listen(server, target);
        let near = balancer.dial(PROXY);
        send(&near, v2(client, visited).bytes());
        let (far, seen) = backend.accept();
        assert_eq!(seen, addr(client), "{target}");
        assert_carries(&near, &far);
    }
}

#[track_caller]
fn assert_answers(balancer: &Host, backends: &[UdpSocket; 2]) {
    for (backend, client) in backends.iter().zip([CLIENT, CLIENT6]) {
        let near = open(balancer, "0.0.0.0:0");
        near.send_to(&every(client, b"there"), addr(PROXY))
            .expect("send");
        let (got, seen) = receive(backend);
        assert_eq!((&got[..], seen), (&b"there"[..], addr(client)));
        backend.send_to(b"back", seen).expect("answer");
        assert_eq!(receive(&near).0, b"back");
    }
}
