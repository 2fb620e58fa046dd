//! DNS client → dnsdist → realpeer → dnsmasq: dnsmasq's log has the client's address and port.

mod support;

use std::fs;
use std::net::UdpSocket;

use support::datagrams::{open, receive};
use support::stage::row;
use support::{Program, TempDir, addr, repository};

/// What dnsmasq answers.
const ANSWER: [u8; 4] = [198, 51, 100, 77];

#[test]
fn the_query_log_has_the_ipv4_client() {
    play("203.0.113.7", "203.0.113.1:53", "192.0.2.10:5300");
}

#[test]
fn the_query_log_has_the_ipv6_client() {
    play("2001:db8:c::7", "[2001:db8:c::1]:53", "[2001:db8::10]:5300");
}

#[test]
fn the_query_log_has_the_ipv6_client_behind_an_ipv4_load_balancer() {
    play("2001:db8:c::7", "[2001:db8:c::1]:53", "192.0.2.10:5300");
}

fn play(client_ip: &str, balancer_address: &str, proxy_address: &str) {
    let (client, balancer, server) = row();
    let dnsmasq = server.spawn(&[
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1,::1",
        "--address=/example.test/198.51.100.77",
        "--log-queries=extra",
    ]);
    dnsmasq.wait_for_error("started");
    let proxy = Program::Realpeer.spawn(
        &[],
        &server,
        &[
            "-p",
            "udp",
            "-l",
            "[::]:5300",
            "-4",
            "127.0.0.1:53",
            "-6",
            "[::1]:53",
        ],
    );
    proxy.wait_for_line("listening");

    let example = fs::read_to_string(repository("examples/ingress/dnsdist.conf")).unwrap();
    let directory = TempDir::new();
    let configuration = directory.file(
        "dnsdist.conf",
        &example.replace("192.0.2.10:5300", proxy_address),
    );
    let dnsdist = balancer.spawn(&[
        "dnsdist",
        "--supervised",
        "--disable-syslog",
        "-C",
        &configuration,
    ]);
    // Its health check, a LOCAL datagram each second, goes all the way to dnsmasq and back.
    dnsdist.wait_for("back end that is up", |line| line.contains("as 'up'"));
    let own = if proxy_address.starts_with('[') {
        "2001:db8::"
    } else {
        "192.0.2."
    };
    dnsmasq.wait_for_error(&format!("query[A] a.root-servers.net from {own}"));

    for number in 0..3 {
        let socket = open(&client, &any_port(client_ip));
        let port = socket.local_addr().unwrap().port();
        ask(&socket, balancer_address, &format!("q{number}"));
        let line = dnsmasq.wait_for_error(&format!("query[A] q{number}.example.test"));
        assert!(line.contains(&format!(" {client_ip}/{port} ")), "{line}");
    }
}

fn any_port(ip: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]:0")
    } else {
        format!("{ip}:0")
    }
}

/// Asks for the address of a name below example.test and checks the answer.
fn ask(socket: &UdpSocket, to: &str, name: &str) {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in [name, "example", "test", ""] {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 1, 0, 1]);
    socket.send_to(&query, addr(to)).unwrap();
    let (answer, from) = receive(socket);
    assert_eq!(from, addr(to));
    assert!(
        answer.starts_with(b"\x12\x34") && answer.ends_with(&ANSWER),
        "{answer:?}"
    );
}
