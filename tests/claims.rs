//! Whom a header may name: addresses that no client has, or that make a backend believe something
//! that is not true.

mod support;

use std::net::TcpStream;

use realpeer::addr::{ClientAddr, TargetAddr, canonical};
use realpeer::routing::Marks;
use realpeer::upstream::{self, Kind, SourcePort, UpstreamError};
use support::datagrams::{Scene, assert_silent, every, receive, spp};
use support::header::{v1, v2};
use support::stage::{CLIENT, PROXY, VISITED, VISITED6};
use support::streams::{assert_carries, assert_closed, send};
use support::{Backend, Host, Program, Stage, TempDir, addr, wait_until};

/// A network of the server, with its first and its last address.
const OWN: &str = "10.9.0.1/24";
const NETWORK: &str = "10.9.0.0:40000";
const BROADCAST: &str = "10.9.0.255:40000";

/// The usual scene, on a server that is in that network, too.
fn stage(flags: &[&str]) -> Stage {
    let stage = Stage::new(flags);
    join(&stage.server);
    settle(&stage, BROADCAST);
    stage
}

fn join(server: &Host) {
    let words = "ip address add 10.9.0.1/24 brd + dev to-balancer";
    server.run(&words.split(' ').collect::<Vec<_>>());
    assert!(OWN.starts_with("10.9.0.1/"));
}

/// Waits until the proxy knows what is odd about an address. What it does before is another
/// question.
fn settle(stage: &Stage, client: &str) {
    wait_until("the proxy has heard of the network", || {
        drop(stage.dial_and_send(v1(client, VISITED)));
        said(stage, "a broadcast address")
    });
    while let Some(_reset) = stage.backend.accept_unless(|| true) {}
}

fn said(stage: &Stage, text: &str) -> bool {
    stage.proxy.stdout().iter().any(|line| line.contains(text))
}

fn dial(stage: &Stage, client: &str) -> TcpStream {
    let visited = if addr(client).is_ipv4() {
        VISITED
    } else {
        VISITED6
    };
    stage.dial_and_send(v1(client, visited))
}

/// nginx with `allow 127.0.0.1; deny all` served it.
#[test]
fn a_broadcast_address_makes_nobody_127_0_0_1() {
    let stage = stage(&["-v", "1"]);
    for client in [
        BROADCAST,
        "192.0.2.255:40000",
        "127.255.255.255:40000",
        "255.255.255.255:40000",
        "[::ffff:10.9.0.255]:40000",
        "[2002:a09:ff::1]:40000",
        "[64:ff9b::10.9.0.255]:40000",
    ] {
        let visited = if addr(client).is_ipv4() {
            VISITED
        } else {
            VISITED6
        };
        for header in [v1(client, visited), v2(client, visited).bytes()] {
            assert_closed(&stage.dial_and_send(header));
        }
    }
    // Not from this host either.
    let near = stage.server.dial("127.0.0.1:2222");
    send(&near, v1(BROADCAST, VISITED));
    assert_closed(&near);
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
    stage.assert_serves();
}

#[test]
fn networks_that_come_and_go_are_heard_of() {
    let stage = Stage::new(&["-v", "1"]);
    let before = stage.session(BROADCAST);
    assert_carries(&before.near, &before.far);
    join(&stage.server);
    settle(&stage, BROADCAST);
    assert_closed(&dial(&stage, BROADCAST));
    stage.backend.assert_idle();
    stage
        .server
        .run(&["ip", "address", "del", OWN, "dev", "to-balancer"]);
    wait_until("the address is a client's again", || {
        let near = dial(&stage, "10.9.0.255:40001");
        let refused = || support::streams::has_ended(&near);
        stage.backend.accept_unless(refused).is_some()
    });
}

#[test]
fn a_datagram_may_not_claim_a_broadcast_address_in_any_style() {
    for style in ["every", "first", "spp"] {
        let scene = Scene::new(&["-udp-header", style, "-v", "1"]);
        let datagram = |client: &str, payload: &[u8]| match style {
            "spp" => spp(client, VISITED, payload),
            _ => every(client, payload),
        };
        join(&scene.server);
        let near = scene.socket();
        wait_until("the proxy has heard of the network", || {
            // Style first binds a socket: each is another one.
            let other = scene.socket();
            other.send(&datagram(BROADCAST, b"trust me")).unwrap();
            let lines = scene.proxy.stdout();
            lines
                .iter()
                .any(|line| line.contains("a broadcast address"))
        });
        for client in [NETWORK, "192.0.2.255:40000", "192.0.2.10:40000"] {
            near.send(&datagram(client, b"trust me")).unwrap();
        }
        near.send(&datagram(CLIENT, b"good")).unwrap();
        scene.expect(CLIENT, b"good");
        assert_silent(&scene.backend);
    }
}

/// Before the news of an address arrives, the kernel itself must be asked: what a socket sends from
/// is compared with its claim.
#[test]
fn a_socket_that_sends_from_another_address_than_its_claim_is_none() {
    let (_balancer, server) = support::stage::wire();
    join(&server);
    // What is prohibited answers as a broadcast address does.
    server.run(&["ip", "route", "add", "prohibit", "default"]);
    let _backend = Backend::listen(&server, "127.0.0.1:9000");
    let asking = server.enter(upstream::Asking::new);
    let options = upstream::Options {
        place: upstream::Place::here(
            Marks::default().into(),
            asking.expect("a socket to ask with").into(),
        ),
        mark: None,
        source_port: SourcePort::Keep,
        keepalive: None,
    };
    let connect = |client: &str, kind| {
        let target = TargetAddr(addr("127.0.0.1:9000"));
        server.enter(|| upstream::connect(ClientAddr(addr(client)), target, kind, &options))
    };
    for kind in [Kind::Stream, Kind::Datagram { shared: false }] {
        for client in [
            BROADCAST,
            "10.9.0.255:0",
            "192.0.2.255:40000",
            "255.255.255.255:40000",
            "224.0.0.9:40000",
            "0.0.0.0:40000",
        ] {
            let refused = connect(client, kind);
            assert!(
                matches!(refused, Err(UpstreamError::NotAsClaimed(_))),
                "{kind:?} {client}: {refused:?}"
            );
        }
        for client in [CLIENT, "203.0.113.7:0", NETWORK, "192.0.2.10:40000"] {
            let made = connect(client, kind);
            assert!(made.is_ok(), "{kind:?} {client}: {made:?}");
        }
    }
}

/// The rows of the table in realpeer.8.
const ODD: [(&str, &str); 12] = [
    ("0.1.2.3:40000", "an address of 0.0.0.0/8"),
    ("240.0.0.1:40000", "an address of 240.0.0.0/4"),
    (NETWORK, "the address of a whole network"),
    ("169.254.7.7:40000", "a link-local address"),
    ("[fe80::7]:40000", "a link-local address"),
    ("[::ffff:169.254.7.7]:40000", "a link-local address"),
    ("[2002:a9fe:707::1]:40000", "a link-local address"),
    ("[64:ff9b::240.0.0.1]:40000", "an address of 240.0.0.0/4"),
    ("[2002:7f00:1::1]:40000", "a loopback address"),
    ("[64:ff9b::127.0.0.1]:40000", "a loopback address"),
    ("[64:ff9b::224.0.0.1]:40000", "a multicast address"),
    ("10.9.0.1:40000", "an address of this host"),
];

#[test]
fn a_stranger_may_not_claim_what_no_client_has() {
    let stage = stage(&["-v", "1"]);
    for (client, what) in ODD {
        assert_closed(&dial(&stage, client));
        let shown = canonical(addr(client)).to_string();
        stage
            .proxy
            .wait_for(client, |line| line.contains(what) && line.contains(&shown));
    }
    stage.backend.assert_idle();
    stage.backend6.assert_idle();
}

/// A host that reaches its own service by its load balancer really has that address.
#[test]
fn own_addresses_are_for_peers_that_the_subnets_name() {
    let files = TempDir::new();
    let named = files.file("named", "192.0.2.5\n");
    let everybody = files.file("everybody", "0.0.0.0/0\n");
    let named = stage(&["-v", "1", "-allowed-subnets", &named]);
    let own = named.session("10.9.0.1:40000");
    assert_carries(&own.near, &own.far);
    named.session("192.0.2.10:40000");
    // The rest of the table holds for them as for all.
    assert_closed(&dial(&named, NETWORK));
    assert_closed(&dial(&named, "169.254.7.7:40000"));
    named.backend.assert_idle();

    let everybody = stage(&["-v", "1", "-allowed-subnets", &everybody]);
    assert_closed(&dial(&everybody, "10.9.0.1:40000"));
    // A peer of this host, by one of its addresses.
    let near = everybody.server.dial(PROXY);
    send(&near, v1("10.9.0.1:40000", VISITED));
    let (far, from) = everybody.backend.accept();
    assert_eq!(from, addr("10.9.0.1:40000"));
    assert_carries(&near, &far);
}

#[test]
fn an_administrator_can_allow_what_clients_really_have() {
    let allowed = "169.254.0.0/16,240.0.0.1, 10.9.0.0/24";
    let stage = stage(&["-v", "1", "-allow-claims", allowed]);
    for client in [
        "169.254.7.7:40000",
        "240.0.0.1:40000",
        NETWORK,
        "10.9.0.1:40000",
    ] {
        let session = stage.session(client);
        assert_carries(&session.near, &session.far);
    }
    for client in [BROADCAST, "240.0.0.2:40000", "127.0.0.1:40000"] {
        assert_closed(&dial(&stage, client));
    }
    stage.backend.assert_idle();
    for never in ["127.0.0.1", "224.0.0.0/4", "255.255.255.255", "::1"] {
        let ended = Program::Realpeer.run(&stage.server, &["-allow-claims", never]);
        assert_eq!(ended.code, 2, "{never}");
        assert!(ended.stderr.contains("never"), "{}", ended.stderr);
    }
}

/// Nobody wrote [::1]:443.
#[test]
fn a_target_that_nobody_gave_is_called_a_default() {
    for (given, target, flag, default, client) in [
        (
            "-4",
            "127.0.0.1:9000",
            "-6",
            "[::1]:443",
            "[2001:db8:c::7]:40000",
        ),
        ("-6", "[::1]:9000", "-4", "127.0.0.1:443", CLIENT),
    ] {
        let (balancer, server) = support::stage::wire();
        let flags = ["-l", "[::]:2222", given, target, "-v", "1"];
        let proxy = Program::Realpeer.start(&server, &flags);
        let said = proxy.wait_for_line(&format!("{flag} was not given"));
        assert!(said.contains(default) && said.contains("INFO"), "{said}");
        let visited = if addr(client).is_ipv4() {
            VISITED
        } else {
            VISITED6
        };
        let near = balancer.dial(PROXY);
        send(&near, v1(client, visited));
        assert_closed(&near);
        let said = proxy.wait_for_line("refused the connection");
        let why = format!("({flag} was not given; its default is {default})");
        assert!(said.contains(&why), "{said}");
    }
    let stage = Stage::new(&[]);
    stage.proxy.wait_for_line("listening");
    assert!(!said(&stage, "was not given"), "both were");
}

#[test]
fn a_udp_target_that_nobody_gave_is_called_a_default() {
    let (balancer, server) = support::stage::wire();
    let backend = support::datagrams::open(&server, "127.0.0.1:9000");
    let flags = ["-p", "udp", "-l", PROXY, "-4", "127.0.0.1:9000", "-v", "1"];
    let proxy = Program::Realpeer.spawn(&[], &server, &flags);
    proxy.wait_for_line("-6 was not given");
    proxy.wait_for_line("listening");
    let near = support::datagrams::open(&balancer, "192.0.2.5:0");
    near.connect(addr(PROXY)).unwrap();
    // The kernel tells at the second one that the first reached nobody.
    wait_until("the log tells of the default", || {
        near.send(&every("[2001:db8:c::7]:40000", b"anybody?"))
            .unwrap();
        let lines = proxy.stdout();
        lines
            .iter()
            .any(|line| line.contains("(-6 was not given; its default is [::1]:443)"))
    });
    near.send(&every(CLIENT, b"hello")).unwrap();
    assert_eq!(receive(&backend).0, b"hello");
}
