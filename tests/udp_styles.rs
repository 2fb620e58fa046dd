//! The other header styles: `first`, as frp, traefik and Sōzu send it, and `spp`, as Cloudflare
//! Spectrum and Tencent EdgeOne do.

mod support;

use std::net::UdpSocket;

use support::addr;
use support::datagrams::{
    BACKEND, PROXY, PROXY_V6, Scene, assert_silent, every, header, header_to, receive, spp,
};
use support::header::{DGRAM, INET, LOCAL, V2, v1, v2};
use support::stage::{CLIENT, CLIENT6, VISITED, VISITED6};

const OTHER: &str = "203.0.113.8:40000";

#[test]
fn first_binds_a_socket_to_its_client_and_all_else_is_payload() {
    let scene = Scene::new(&["-udp-header", "first"]);
    let (near, other) = (scene.socket(), scene.socket_to(PROXY_V6));
    scene.converse(&near, CLIENT);
    scene.converse(&other, CLIENT6);
    // A header of the client's own making is payload, as is everything.
    for payload in [
        &every(OTHER, b"I am another")[..],
        b"plain",
        b"",
        &v1(OTHER, VISITED),
    ] {
        near.send(payload).unwrap();
        assert_eq!(scene.expect(CLIENT, payload), addr(CLIENT));
        other.send(payload).unwrap();
        assert_eq!(scene.expect(CLIENT6, payload), addr(CLIENT6));
    }
    scene.backend.send_to(b"answer", addr(CLIENT)).unwrap();
    assert_eq!(receive(&near).0, b"answer");
}

#[test]
fn first_needs_a_header_first() {
    let scene = Scene::new(&["-udp-header", "first", "-v", "1"]);
    let near = scene.socket();
    for bad in [
        &b"plain"[..],
        b"",
        &v1(CLIENT, VISITED),
        &v2(CLIENT, VISITED).bytes(),
    ] {
        near.send(bad).unwrap();
    }
    near.send(&every("127.0.0.1:1", b"trust me")).unwrap();
    // What was dropped has bound nothing.
    scene.converse(&near, CLIENT);
    assert_silent(&scene.backend);
    scene.proxy.wait_for_line("no PROXY header");
}

#[test]
fn first_forgets_a_socket_after_silence_both_ways() {
    let scene = Scene::new(&["-udp-header", "first", "-v", "2", "-close-after", "1s"]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    scene.proxy.wait_for_line("silent for -close-after");
    near.send(b"whose?").unwrap();
    scene.proxy.wait_for_line("no PROXY header");
    scene.converse(&near, OTHER);
    assert_silent(&scene.backend);
}

#[test]
fn first_keeps_a_socket_bound_while_its_flow_makes_room() {
    let scene = Scene::new(&["-udp-header", "first", "-v", "2", "-max-flows", "1"]);
    let (near, other) = (scene.socket(), scene.socket());
    scene.converse(&near, CLIENT);
    scene.converse(&other, OTHER);
    scene.proxy.wait_for_line("made room for a new flow");
    // Were the binding lost, the client could name itself anything now.
    let forged = every("203.0.113.66:6", b"I am another");
    near.send(&forged).unwrap();
    assert_eq!(scene.expect(CLIENT, &forged), addr(CLIENT));
}

/// A client that opens flow after flow must not make the proxy forget another one's socket, however
/// few flows there may be.
#[test]
fn first_keeps_all_sockets_that_a_load_balancer_can_have() {
    let scene = Scene::new(&[
        "-udp-header",
        "first",
        "-max-flows",
        "1",
        "-close-after",
        "1h",
    ]);
    let near = scene.socket();
    scene.converse(&near, CLIENT);
    scene.balancer.enter(|| {
        for port in 1..=65_535 {
            // One port is taken: by the first client's socket.
            let Ok(other) = UdpSocket::bind(("192.0.2.5", port)) else {
                continue;
            };
            other.send_to(&every(OTHER, b"hello"), PROXY).unwrap();
            scene.expect(OTHER, b"hello");
        }
    });
    let forged = every("203.0.113.66:6", b"I am another");
    near.send(&forged).unwrap();
    assert_eq!(scene.expect(CLIENT, &forged), addr(CLIENT));
}

#[test]
fn first_gives_a_client_on_two_listeners_its_port_once() {
    // Only the first datagram of each socket names the client, so the kernel cannot bring them to
    // one listener: the second flow gets a free port, and each socket its own answers.
    let scene = Scene::new(&["-udp-header", "first", "-listeners", "2", "-workers", "2"]);
    let sockets: Vec<UdpSocket> = (0..16).map(|_| scene.socket()).collect();
    let mut ports = std::collections::BTreeSet::new();
    for near in &sockets {
        near.send(&every(CLIENT, b"hello")).unwrap();
        let from = scene.expect(CLIENT, b"hello");
        ports.insert(from.port());
        scene.backend.send_to(b"to you", from).unwrap();
        assert_eq!(receive(near).0, b"to you");
    }
    assert!(ports.contains(&addr(CLIENT).port()), "{ports:?}");
    assert_eq!(ports.len(), 2, "16 sockets meet both listeners");
}

#[test]
fn first_serves_local_datagrams() {
    let scene = Scene::new(&["-udp-header", "first"]);
    let near = scene.socket();
    let local = V2::new(LOCAL, INET | DGRAM, vec![]).bytes();
    near.send(&[&local, &b"alive?"[..]].concat()).unwrap();
    let (payload, from) = receive(&scene.backend);
    assert_eq!(
        (&payload[..], from),
        (&b"alive?"[..], near.local_addr().unwrap())
    );
    near.send(b"and now?").unwrap();
    assert_eq!(receive(&scene.backend), (b"and now?".to_vec(), from));
}

#[test]
fn spp_carries_its_header_both_ways() {
    let scene = Scene::new(&["-udp-header", "spp"]);
    for (client, visited) in [(CLIENT, VISITED), (CLIENT6, VISITED6)] {
        let near = scene.socket();
        for payload in [&b"there"[..], b"", &[7; 1200], &[8; 1200], &[9; 40]] {
            near.send(&spp(client, visited, payload)).unwrap();
            let from = scene.expect(client, payload);
            assert_eq!(from, addr(client));
            let backend = if from.is_ipv4() {
                &scene.backend
            } else {
                &scene.backend6
            };
            backend.send_to(payload, from).unwrap();
            assert_eq!(receive(&near).0, spp(client, visited, payload));
        }
    }
}

#[test]
fn spp_answers_runs_with_a_header_each() {
    let scene = Scene::new(&["-udp-header", "spp"]);
    let near = scene.socket();
    near.send(&spp(CLIENT, VISITED, b"please")).unwrap();
    let from = scene.expect(CLIENT, b"please");
    nix::sys::socket::setsockopt(
        &scene.backend,
        nix::sys::socket::sockopt::UdpGsoSegment,
        &100,
    )
    .unwrap();
    let run: Vec<u8> = (0..130).flat_map(|i| [i; 100]).collect();
    scene.backend.send_to(&run[..6400], from).unwrap();
    scene.backend.send_to(&run[6400..12_800], from).unwrap();
    for i in 0..128 {
        assert_eq!(receive(&near).0, spp(CLIENT, VISITED, &[i; 100]));
    }
}

#[test]
fn spp_goes_where_its_header_says() {
    let scene = Scene::new(&[
        "-udp-header",
        "spp",
        "-dynamic-destination",
        "-4",
        "127.0.0.1:1",
    ]);
    let near = scene.socket();
    near.send(&spp(CLIENT, BACKEND, b"straight")).unwrap();
    assert_eq!(scene.expect(CLIENT, b"straight"), addr(CLIENT));
}

#[test]
fn spp_drops_what_is_none() {
    let scene = Scene::new(&["-udp-header", "spp", "-v", "1"]);
    let near = scene.socket();
    let whole = spp(CLIENT, VISITED, b"");
    for cut in 0..whole.len() {
        near.send(&whole[..cut]).unwrap();
    }
    near.send(&every(CLIENT, b"PROXY v2")).unwrap();
    near.send(&header_to(CLIENT, BACKEND).bytes()).unwrap();
    near.send(&header(CLIENT).bytes()[..20]).unwrap();
    near.send(&spp("127.0.0.1:1", VISITED, b"trust me"))
        .unwrap();
    near.send(&spp(CLIENT, VISITED, b"good")).unwrap();
    scene.expect(CLIENT, b"good");
    assert_silent(&scene.backend);
    scene.proxy.wait_for_line("shorter than the 38 bytes");
    scene
        .proxy
        .wait_for_line("which only a local peer may claim");
}

#[test]
fn spp_answers_too_long_for_their_header_are_dropped_and_told() {
    let scene = Scene::new(&["-udp-header", "spp", "-v", "1"]);
    let near = scene.socket();
    near.send(&spp(CLIENT, VISITED, b"please")).unwrap();
    let from = scene.expect(CLIENT, b"please");
    scene.backend.send_to(&[1; 65_507 - 37], from).unwrap();
    scene.backend.send_to(&[2; 65_507 - 38], from).unwrap();
    assert_eq!(receive(&near).0, spp(CLIENT, VISITED, &[2; 65_507 - 38]));
    scene.proxy.wait_for_line("they are lost");
}

#[test]
fn spp_gives_a_client_one_flow_however_many_listeners_there_are() {
    let scene = Scene::new(&["-udp-header", "spp", "-listeners", "4", "-workers", "2"]);
    for (client, visited) in [
        (CLIENT, VISITED),
        (CLIENT6, VISITED6),
        ("203.0.113.200:53", VISITED),
    ] {
        let sockets: Vec<UdpSocket> = (0..16).map(|_| scene.socket()).collect();
        for near in &sockets {
            near.send(&spp(client, visited, b"hello")).unwrap();
            assert_eq!(scene.expect(client, b"hello"), addr(client));
        }
        let backend = if addr(client).is_ipv4() {
            &scene.backend
        } else {
            &scene.backend6
        };
        backend.send_to(b"to the newest", addr(client)).unwrap();
        assert_eq!(
            receive(&sockets[15]).0,
            spp(client, visited, b"to the newest")
        );
    }
}
